"""N-grams of a store in the byte order of their text, in bounded memory.

Ids mean nothing to a user, so what leaves kvps is sorted by string. The walk yields n-grams by shard and context; they are
dealt by their first word into partitions through a scratch file, and each partition is sorted when its turn comes.
"""
from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from kvps._ngrams import argsort_rows
from kvps._spill import Spill
from kvps.store import files
from kvps.text.vocabulary import Vocabulary

# Rows of a partition: with their keys they stay in the second-level cache while they are sorted and written; four times as
# many took a quarter longer to export.
PARTITION_ROWS = 1 << 15
MAX_PARTITIONS = 1024


class Words:
    """The words of a store as arrays, and their ranks in byte order."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        n = len(vocabulary)
        _, self.ends, self.blob = vocabulary.table.frozen(np.ones(n, np.uint8))
        table = vocabulary.table
        words = [table.word(i) for i in range(n)]
        # What follows a word decides where it stands: "a" and a blank come before "a!", but after "a" and a byte below.
        self.by_rank = np.array(sorted(range(n), key=[word + b" " for word in words].__getitem__), np.uint32)
        self.rank = _inverse(self.by_rank)
        self.last_rank = _inverse(np.array(sorted(range(n), key=[word + b"\t" for word in words].__getitem__), np.uint32))

    def line_order(self, ranks: np.ndarray, k: int) -> np.ndarray:
        """Return the places of rows of k ranks (and more columns) in the byte order of their lines `w1 ... wk TAB`."""
        if not np.array_equal(self.rank, self.last_rank):          # some word has a byte below the blank in it
            ranks = ranks.copy()
            ranks[:, k - 1] = self.last_rank[self.by_rank[ranks[:, k - 1]]]
        return argsort_rows(ranks, k)

    def in_rank_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (ends, blob) of the words in the order of their ranks."""
        lengths = np.diff(self.ends)[self.by_rank]
        ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])
        blob = self.blob.tobytes()
        starts, stops = self.ends[self.by_rank].tolist(), self.ends[self.by_rank.astype(np.int64) + 1].tolist()
        joined = b"".join(blob[a:b] for a, b in zip(starts, stops, strict=True))
        return ends, np.frombuffer(joined or b"\0", np.uint8)


def _inverse(permutation: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(permutation), np.uint32)
    inverse[permutation] = np.arange(len(permutation), dtype=np.uint32)
    return inverse


def text_order(k: int) -> list[int]:
    """Return the columns of a row in context order that make text order."""
    return [*range(k - 2, -1, -1), k - 1] if k > 1 else [0]


class Partitions:
    """Records that begin with the rank of a word, dealt by it; one spill per shard, so that shards work side by side."""

    def __init__(self, stack: contextlib.ExitStack, columns: int, n_rows: int, n_shards: int, mass: np.ndarray,
                 scratch: Path) -> None:
        """Prepare.

        Args:
            stack: closes the scratch files in the end.
            columns: uint32 numbers of a record, the first one a rank.
            n_rows: about how many records there will be.
            mass: per rank, how often it begins a record, roughly: makes partitions of like size.
        """
        self.columns, self._scratch = columns, scratch
        self.n = max(1, min(MAX_PARTITIONS, n_rows // PARTITION_ROWS))
        reached = np.cumsum(mass, dtype=np.float64)
        self._of = np.zeros(len(mass), np.uint16)
        if reached[-1] > 0:
            self._of[:] = np.minimum(reached / reached[-1] * self.n, self.n - 1)
        self._spills = [Spill(stack.enter_context(files.scratch(scratch)), self.n, 4 * columns) for _ in range(n_shards)]

    def add(self, shard: int, records: np.ndarray) -> None:
        """Add records, uint32 (n, columns)."""
        if len(records):
            with files.reporting(self._scratch):       # the kernel knows no name of its file
                self._spills[shard].add(self._of[records[:, 0]], records.view(np.uint8))

    def finish(self, shard: int) -> None:
        """Say that a shard has no more records."""
        with files.reporting(self._scratch):
            self._spills[shard].finish()

    def read(self, partition: int) -> np.ndarray:
        """Return the records of a partition, uint32 (n, columns), not sorted yet."""
        with files.reporting(self._scratch):
            ends = np.cumsum([spill.sizes()[partition] for spill in self._spills]).astype(int).tolist()
            out = np.empty((ends[-1], 4 * self.columns), np.uint8)
            for spill, start, end in zip(self._spills, [0, *ends], ends, strict=False):
                spill.read(partition, out[start:end])
            return out.view(np.uint32)

"""N-grams of a store in the byte order of their text, in bounded memory.

Ids mean nothing to a user, so what leaves kvps is sorted by string. The walk yields n-grams by shard and context; they are
dealt by their first word into partitions through a scratch file, and each partition is sorted when its turn comes.
"""
from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import numpy as np

from kvps._arpa import Strings, sort_text_keys, text_key_bytes, text_key_width
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
        self._table = vocabulary.table
        _, self.ends, self.blob = self._table.frozen(np.ones(len(vocabulary), np.uint8))
        self.by_rank = self._sorted_before(b" ")
        self.rank = _inverse(self.by_rank)

    @functools.cached_property
    def by_last_rank(self) -> np.ndarray:
        """The ids in the order that last words of a line have, where a tab follows and not a blank."""
        return self._sorted_before(b"\t")

    @functools.cached_property
    def last_rank(self) -> np.ndarray:
        """The place of each id in that order."""
        return _inverse(self.by_last_rank)

    def _sorted_before(self, follows: bytes) -> np.ndarray:
        """Sort the ids. What follows a word decides: "a" and a blank come before "a!", but after "a" and a byte below."""
        words = [self._table.word(i) + follows for i in range(len(self._table))]
        return np.array(sorted(range(len(words)), key=words.__getitem__), np.uint32)

    def strings(self, order: np.ndarray) -> Strings:
        """Return the words of some ids, the i-th being the word of order[i]."""
        lengths = np.diff(self.ends)[order]
        ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])
        blob = self.blob.tobytes()
        starts, stops = self.ends[order].tolist(), self.ends[order.astype(np.int64) + 1].tolist()
        joined = b"".join(blob[a:b] for a, b in zip(starts, stops, strict=True))
        return Strings(ends, np.frombuffer(joined or b"\0", np.uint8))


def _inverse(permutation: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(permutation), np.uint32)
    inverse[permutation] = np.arange(len(permutation), dtype=np.uint32)
    return inverse


def text_order(k: int) -> list[int]:
    """Return the columns of a row in context order that make text order."""
    return [*range(k - 2, -1, -1), k - 1] if k > 1 else [0]


class Partitions:
    """Keys in text order (kvps._arpa), dealt by their first word; one spill per shard, so that shards work side by side."""

    def __init__(self, stack: contextlib.ExitStack, k: int, bits: int, n_ngrams: int, n_shards: int, mass: np.ndarray,
                 scratch: Path) -> None:
        """Prepare.

        Args:
            stack: closes the scratch files in the end.
            k, bits: words of an n-gram, and the bits of a word's rank.
            n_ngrams: about how many n-grams there will be.
            mass: per rank, how often it begins an n-gram, roughly: makes partitions of like size.
        """
        self._k, self._bits, self._scratch = k, bits, scratch
        self.width = text_key_width(k, bits)           # uint64 of a key
        self.n = max(1, min(MAX_PARTITIONS, n_ngrams // PARTITION_ROWS))
        reached = np.cumsum(mass, dtype=np.float64)
        self._of = np.zeros(len(mass), np.uint16)
        if reached[-1] > 0:
            self._of[:] = np.minimum(reached / reached[-1] * self.n, self.n - 1)
        record_bytes = text_key_bytes(k, bits)
        self._files = stack.enter_context(contextlib.ExitStack())
        self._spills = [Spill(self._files.enter_context(files.scratch(scratch)), self.n, record_bytes) for _ in range(n_shards)]

    def add(self, shard: int, keys: np.ndarray) -> None:
        """Add n-grams, uint64 (n * width,)."""
        with files.reporting(self._scratch):           # the kernel knows no name of its file
            self._spills[shard].add_keys(keys, self._k, self._bits, self._of)

    def finish(self, shard: int) -> None:
        """Say that a shard has no more n-grams."""
        with files.reporting(self._scratch):
            self._spills[shard].finish()

    def close(self) -> None:
        """Give the scratch files up before the stack does."""
        self._files.close()

    def n_keys(self) -> int:
        """Return how many n-grams there are in all."""
        return sum(int(spill.sizes().sum()) for spill in self._spills)

    def read(self, partition: int) -> np.ndarray:
        """Return the n-grams of a partition, sorted, uint64 (n * width,)."""
        ends = np.cumsum([self.width * int(spill.sizes()[partition]) for spill in self._spills]).tolist()
        keys = np.empty(ends[-1], np.uint64)
        with files.reporting(self._scratch):
            for spill, start, end in zip(self._spills, [0, *ends], ends, strict=False):
                spill.read_keys(partition, keys[start:end])
        sort_text_keys(keys, self._k, self._bits)
        return keys


def unpacked(keys: np.ndarray, k: int, bits: int) -> np.ndarray:
    """Return the rows of pack_text_keys(), uint32 (n, k), without their numbers."""
    limbs = keys.reshape(-1, text_key_width(k, bits))
    rows = np.empty((len(limbs), k), np.uint32)
    for j in range(k):
        limb, shift = divmod(32 + bits * (k - 1 - j), 64)
        word = limbs[:, limb] >> np.uint64(shift)
        if shift + bits > 64:
            word = word | limbs[:, limb + 1] << np.uint64(64 - shift)
        rows[:, j] = word & np.uint64((1 << bits) - 1)
    return rows

"""N-grams of a store in the byte order of their text, in bounded memory.

Ids mean nothing to a user, so what leaves kvps is sorted by string. The walk yields n-grams by shard and context; they are
dealt by their first word into partitions through a scratch file, and each partition is sorted when its turn comes.
"""
from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._ngrams import argsort_rows
from kvps._spill import Spill
from kvps.store import files
from kvps.text.vocabulary import Vocabulary

# Rows of a partition: sorting that many takes some 10 MB a thread.
PARTITION_ROWS = 1 << 17
MAX_PARTITIONS = 1024


class Words:
    """The words of a store as arrays, and their ranks in byte order."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        n = len(vocabulary)
        _, self.ends, self.blob = vocabulary.table.frozen(np.ones(n, np.uint8))
        table = vocabulary.table
        words = [table.word(i) for i in range(n)]
        # What follows a word decides where it stands: "a" and a blank come before "a!", but after "a" and a byte below.
        self.rank = _rank([word + b" " for word in words])
        self.last_rank = _rank([word + b"\t" for word in words])

    def line_order(self, rows: np.ndarray) -> np.ndarray:
        """Return the places of rows (word ids in text order) in the byte order of their lines `w1 ... wk TAB`."""
        ranks = self.rank[rows]
        ranks[:, -1] = self.last_rank[rows[:, -1]]
        return argsort_rows(ranks)


def _rank(keys: list[bytes]) -> np.ndarray:
    rank = np.empty(len(keys), np.uint32)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys), dtype=np.uint32)
    return rank


def text_order(k: int) -> list[int]:
    """Return the columns of a row in context order that make text order."""
    return [*range(k - 2, -1, -1), k - 1] if k > 1 else [0]


class Partitions:
    """Rows of k words (and a value) dealt by their first word; one spill per shard, so that shards work side by side."""

    def __init__(self, stack: contextlib.ExitStack, words: Words, k: int, n_rows: int, n_shards: int, mass: np.ndarray,
                 scratch: Path, *, values: bool) -> None:
        """Prepare.

        Args:
            stack: closes the scratch files in the end.
            n_rows: about how many there will be.
            mass: per word, how often it begins an n-gram, roughly: makes partitions of like size.
        """
        self.k, self.values, self._words = k, values, words
        self.n = max(1, min(MAX_PARTITIONS, n_rows // PARTITION_ROWS))
        by_rank = np.argsort(words.rank)
        reached = np.cumsum(mass[by_rank], dtype=np.float64)
        self._of = np.zeros(len(mass), np.uint16)
        if reached[-1] > 0:
            self._of[by_rank] = np.minimum(reached / reached[-1] * self.n, self.n - 1).astype(np.uint16)
        size = 4 * k + (8 if values else 0)
        self._spills = [Spill(stack.enter_context(files.scratch(scratch)), self.n, size) for _ in range(n_shards)]

    def add(self, shard: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Add rows in context order, uint32 (n, k), and their values."""
        if not len(rows):
            return
        rows = rows[:, text_order(self.k)]
        records = np.ascontiguousarray(rows).view(np.uint8)
        if self.values:
            records = np.concatenate([records, values.view(np.uint8).reshape(-1, 8)], axis=1)
        self._spills[shard].add(self._of[rows[:, 0]], records)

    def finish(self, shard: int) -> None:
        """Say that a shard has no more rows."""
        self._spills[shard].finish()

    def read(self, partition: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows in text order, values) of a partition, not sorted yet."""
        records = np.concatenate([spill.read(partition) for spill in self._spills])
        rows = np.ascontiguousarray(records[:, :4 * self.k]).view(np.uint32).reshape(-1, self.k)
        values = np.ascontiguousarray(records[:, 4 * self.k:]).view(np.uint64).reshape(-1)
        return rows, values


def gathered(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> list:
    """Run a function over items; where one fails, those not begun are dropped and its exception is raised."""
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def windowed(pool: ThreadPoolExecutor, function: Callable, items: Iterable, window: int) -> Iterator:
    """Yield function(item) in order, working at most `window` items ahead, so that memory is bounded."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

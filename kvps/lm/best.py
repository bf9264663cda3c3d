"""The best next words after contexts, of one model or of several by their weights; and the scratch of threads that ask."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kvps._best import Best
from kvps._followers import Workspace


class Workspaces:
    """Scratch for threads, kept for those that ask next."""

    def __init__(self, n_words: int, n_models: int = 1) -> None:
        """Take how many words there are; n_models: that are asked at once."""
        self._sizes = n_words, n_models
        self._free: list[Workspace] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[Workspace]:
        """Give the scratch of one thread."""
        try:
            space = self._free.pop()
        except IndexError:
            space = Workspace(*self._sizes)
        yield space
        self._free.append(space)               # not after a failure, which may leave something in it


class BestWords:
    """Models that are asked together for the best next words."""

    def __init__(self, models: Sequence[tuple[Any, float, np.ndarray | None, np.ndarray | None]], ranks: np.ndarray,
                 by_rank: np.ndarray) -> None:
        """Take what kvps._best.Best does."""
        self.best = Best(models, ranks, by_rank)
        self.spaces = Workspaces(self.best.n_room, len(models))

    def find(self, contexts: Sequence[Sequence[int]], k: int, places: tuple[int, int], least: int = 0, *,
             drawn_from: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the k best next words after each of n contexts of word ids.

        Args:
            places, least, drawn_from: low and high, least, and drawn_from of Best.find().

        Returns:
            As Foresight.top().
        """
        k, most = min(k, self.best.n_words), self.best.order - 1
        rows = [context[max(0, len(context) - most):] for context in contexts]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.array([i for row in rows for i in row], np.uint32)
        found = np.zeros((len(rows), k), np.uint32), np.zeros((len(rows), k)), np.empty(len(rows), np.int64)
        with self.spaces.one() as space:
            self.best.find(space, ids, ends, k, *places, least, drawn_from, *found)
        return found

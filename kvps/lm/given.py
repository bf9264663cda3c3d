"""The n-grams of an imported model, from its lists, and what all words have together after each context.

With b(h) for the back-off of a context h, and h' for h without its first word,

    sum over all w of p(w | h) = sum over w listed after h of p(w | h) + b(h) (sum over all w of p(w | h') - those listed after h)

so that the sums of shorter contexts make those of longer ones: of each context 16 bytes are kept in memory.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kvps.lm.balance import hash_rows
from kvps.lm.model import CompiledModel
from kvps.lm.opening import ModelFile
from kvps.lm.ordered import text_order
from kvps.text.vocabulary import BOS

ROUNDING = 1e-6                # what is left of a sum of probabilities with seven digits, when nothing is
NO_LOG = -99.0                 # log10 of 0, as SRILM writes it


class ByHash:
    """Numbers of n-grams of one length, float64, by a hash of their words."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._hashes, self._numbers = np.empty(0, np.uint64), np.empty(0)

    def add(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Add some; they are found after sort()."""
        self._parts.append((hash_rows(rows), numbers))

    def sort(self) -> None:
        """Say that there are no more."""
        if self._parts:
            hashes, numbers = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
            order = np.argsort(hashes)
            self._hashes, self._numbers, self._parts = hashes[order], numbers[order], []

    def get(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which n-grams are there, and their numbers, 0 for others."""
        if not len(self._hashes):
            return np.zeros(len(rows), bool), np.zeros(len(rows))
        wanted = hash_rows(rows)
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        found = self._hashes[at] == wanted
        return found, np.where(found, self._numbers[at], 0)


class AddedUp(NamedTuple):
    """What n-grams of one order, all those of a context one after another, have together: arrays by context."""

    contexts: np.ndarray                   # uint32 (n, k - 1)
    sums: np.ndarray                       # of the probabilities of all words
    backoffs: np.ndarray                   # log10
    rest: np.ndarray                       # of words that are not listed, after the shorter context
    lower: np.ndarray                      # of those that are, after that
    starts: np.ndarray                     # the first n-gram of each
    predicted: np.ndarray                  # by n-gram: whether it counts; <s> does not where it is given

    def total(self, p: np.ndarray) -> np.ndarray:
        """Return the sums of numbers of the n-grams."""
        return np.add.reduceat(np.where(self.predicted, p, 0), self.starts)


class Given:
    """The lists of an imported model.

    Attributes:
        log10_p: by word id, float32. p: the probabilities, float64; 0 for <s> where it is given.
    """

    def __init__(self, place: ModelFile, model: CompiledModel) -> None:
        """model: of the file."""
        self._place, self._model = place, model
        self.log10_p = log10_of(np.asarray(model.unigrams))
        self.p = 10.0 ** self.log10_p.astype(np.float64)
        self.gives_start = start_is_given(self.log10_p)
        if self.gives_start:
            self.p[BOS] = 0
        self._sums = {k: ByHash() for k in range(1, model.order)}

    def listed(self, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the k-grams in text order of their words, uint32 (n, k), and their log10 p, float32."""
        for some in self._place.listed(k):
            yield np.ascontiguousarray(some[:, text_order(k)]), log10_of(some[:, k])

    def by_context(self, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same, all those of a context at once."""
        rows, log10_p = np.empty((0, k), np.uint32), np.empty(0, np.float32)
        for more, more_p in self.listed(k):
            rows, log10_p = np.concatenate([rows, more]), np.concatenate([log10_p, more_p])
            differ = np.flatnonzero((rows[:, :-1] != rows[-1, :-1]).any(axis=1))
            end = int(differ[-1]) + 1 if len(differ) else 0
            if end:
                yield rows[:end], log10_p[:end]
                rows, log10_p = rows[end:], log10_p[end:]
        if len(rows):
            yield rows, log10_p

    def backoffs(self, rows: np.ndarray) -> np.ndarray:
        """Return log10 of the back-offs of n-grams, float64."""
        return self._model.tables.backoffs_of(np.ascontiguousarray(rows)).astype(np.float64)

    def lower(self, rows: np.ndarray) -> np.ndarray:
        """Return log10 p(last word | the words before it but the first), float64."""
        return self._model.score_rows(rows[:, 1:])

    def add_up(self, rows: np.ndarray, log10_p: np.ndarray) -> AddedUp:
        """Add up what by_context() yields; REQUIRES that of all shorter n-grams, and done() after each order."""
        starts = np.flatnonzero(np.concatenate([[True], (rows[1:, :-1] != rows[:-1, :-1]).any(axis=1)]))
        contexts, predicted = rows[starts, :-1], (rows[:, -1] != BOS) | (not self.gives_start)
        backoffs = self.backoffs(contexts)
        found = AddedUp(contexts, backoffs, backoffs, backoffs, backoffs, starts, predicted)
        lower = found.total(10.0 ** self.lower(rows))
        rest = self.sums_after(contexts[:, 1:]) - lower
        rest = np.where(rest < ROUNDING, 0, rest)
        sums = found.total(10.0 ** log10_p.astype(np.float64)) + 10.0 ** backoffs * rest
        self._sums[rows.shape[1] - 1].add(contexts, sums)
        return found._replace(sums=sums, rest=rest, lower=lower)

    def done(self, k: int) -> None:
        """Say that all k-grams were added up."""
        self._sums[k - 1].sort()

    def sums_after(self, contexts: np.ndarray, where: dict[int, ByHash] | None = None) -> np.ndarray:
        """Return what all words have together after contexts, uint32 (n, d); `where`: by length, contexts without others."""
        if contexts.shape[1] == 0:
            return np.full(len(contexts), self.p.sum())
        found, sums = self._sums[contexts.shape[1]].get(contexts)
        if where is not None:
            found &= where[contexts.shape[1]].get(contexts)[0]
        return np.where(found, sums, self.sums_after(contexts[:, 1:], where))


def log10_of(codes: np.ndarray) -> np.ndarray:
    """Return the log10 probabilities that a model file has, float32; a new array."""
    return -(codes - 1).astype(np.uint32).view(np.float32)


def start_is_given(log10_p: np.ndarray) -> bool:
    """Return whether a file, by the log10 p of its words, says nothing of the probability of <s>: 1 or 0 stands there."""
    return not NO_LOG < log10_p[BOS] < 0

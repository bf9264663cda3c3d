"""Counts of n-grams: nltk's NgramCounter without its bound, in memory or in a folder."""
from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from os import PathLike

import numpy as np
from nltk.lm import NgramCounter as Theirs
from nltk.probability import ConditionalFreqDist, FreqDist

from kvps.compat.nltk.kept import MAX_ORDER, Kept
from kvps.errors import ArgumentError

#: How many distinct n-grams a counter in memory may have; more are a ValueError. nltk has ten million, here there is no bound.
MAX_NGRAMS = sys.maxsize

Text = Iterable[Iterable[tuple[str, ...]]]


class NgramCounter(Theirs):
    """nltk.lm.NgramCounter; with `path`, its counts are those of a folder, and update() adds to them durably.

    `updates` goes up with each update.
    """

    def __init__(self, ngram_text: Text | None = None, *, path: str | PathLike[str] | None = None) -> None:
        """Count some text, if it is given, in addition to what the folder has."""
        self.updates = 0
        self._kept: Kept | None = None
        super().__init__()
        if path is not None:
            self._kept = Kept(path)
            self._counts = _Orders(self._kept)
            self.unigrams = self._counts[1]
            for order in self._kept.orders():
                self._counts[order]
        if ngram_text:
            self.update(ngram_text)

    def update(self, ngram_text: Text) -> None:
        """Count n-grams, tuples of words, sentence by sentence.

        In a folder all of the text is counted, durably, or none of it; some 4 bytes a word of each n-gram are kept in memory
        meanwhile.

        Raises:
            TypeError: an n-gram is no tuple. ArgumentError: it cannot be kept in a folder.
        """
        self.updates += 1
        if self._kept is None:
            self._count(ngram_text)
            return
        parts: dict[int, array] = defaultdict(lambda: array("I"))
        with self._kept.update() as change:
            ids = change.ids
            for sentence in ngram_text:
                for ngram in sentence:
                    _check(ngram)
                    parts[len(ngram)].extend([ids[word] for word in ngram])
            if parts and not 1 <= min(parts) <= max(parts) <= MAX_ORDER:
                raise ArgumentError(f"n-grams of {min(parts)} to {max(parts)} words, expected 1 to {MAX_ORDER}")
            rows = {order: np.frombuffer(part, np.uint32).reshape(-1, order) for order, part in parts.items()}
            for order, row in rows.items():
                change.add(f"order-{order}", row, np.ones(len(row), np.int64))
        if change.stale:
            for order in {*self._counts, *self._kept.orders()}:
                self._counts[order].read()
            return
        words = self._kept.words
        for order, row in rows.items():
            self._counts[order].follow([words[i] for i in ngram] for ngram in row.tolist())

    def _count(self, ngram_text: Text) -> None:
        bounded, distinct, counts = sys.maxsize > MAX_NGRAMS, self._distinct, self._counts
        for sentence in ngram_text:
            for ngram in sentence:
                _check(ngram)
                *context, word = ngram
                found = self.unigrams if not context else counts[len(ngram)][tuple(context)]
                if bounded and word not in found:
                    if distinct >= MAX_NGRAMS:
                        raise ValueError(f"more than {MAX_NGRAMS:,} distinct n-grams, which counter.MAX_NGRAMS allows")
                    distinct += 1
                    self._distinct = distinct
                found[word] += 1

    def __reduce_ex__(self, protocol: int) -> tuple | str:
        if self._kept is None:
            return super().__reduce_ex__(protocol)
        return _again, (self._kept.path,)


def _check(ngram: object) -> None:
    if not isinstance(ngram, tuple):
        raise TypeError(f"Ngram <{ngram}> isn't a tuple, but {type(ngram)}")


def _again(path: PathLike[str]) -> NgramCounter:
    return NgramCounter(path=path)


class _Orders(defaultdict):
    """Order -> counts of the n-grams of this order."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept

    def __missing__(self, order: int) -> _Unigrams | _Contexts:
        self[order] = found = _Unigrams(self._kept) if order == 1 else _Contexts(self._kept, order)
        return found


class _Unigrams(FreqDist):
    """Counts of words, all read."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept
        self.read()

    def read(self) -> None:
        """Read all counts again."""
        self.clear()
        self.update({words[0]: count for words, count in self._kept.ngrams("order-1")})

    def follow(self, ngrams: Iterable[list[str]]) -> None:
        """Count what was just pushed."""
        for word, in ngrams:
            self[word] += 1


class _Contexts(ConditionalFreqDist):
    """Context -> counts of the words behind it, read when they are asked for; all of them when one goes through them."""

    def __init__(self, kept: Kept, order: int) -> None:
        super().__init__()
        self._kept, self._order, self._whole = kept, order, False

    def read(self) -> None:
        """Forget what was read, so that it is read again."""
        self.clear()
        self._whole = False

    def __missing__(self, context: tuple[str, ...]) -> FreqDist:
        self[context] = found = FreqDist()
        if not self._whole and isinstance(context, tuple) and len(context) == self._order - 1:
            for words, count in self._kept.ngrams(f"order-{self._order}", context):
                found[words[-1]] = count
        return found

    def follow(self, ngrams: Iterable[list[str]]) -> None:
        """Count what was just pushed, in the contexts that have been read."""
        if not self._whole and not super().__len__():
            return
        for *context, word in ngrams:
            if self._whole or super().__contains__(tuple(context)):
                self[tuple(context)][word] += 1

    def _all(self) -> None:
        if not self._whole:
            read = set(super().keys())
            for (*context, word), count in self._kept.ngrams(f"order-{self._order}"):
                if tuple(context) not in read:
                    super().setdefault(tuple(context), FreqDist())[word] = count
            self._whole = True

    def get(self, context: tuple[str, ...], default: object = None) -> object:
        """Return the counts behind a context, or `default` if there are none."""
        if context not in self:
            return default
        return self[context]

    def __contains__(self, context: object) -> bool:
        return super().__contains__(context) or bool(self[context])

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    __hash__ = None

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __iter__(self) -> Iterator:
        self._all()
        return super().__iter__()

    def keys(self) -> KeysView:
        """Return all contexts."""
        self._all()
        return super().keys()

    def values(self) -> ValuesView:
        """Return the counts behind each context."""
        self._all()
        return super().values()

    def items(self) -> ItemsView:
        """Return all contexts with the counts behind them."""
        self._all()
        return super().items()

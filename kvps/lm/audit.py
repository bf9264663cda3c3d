"""Whether a model is a distribution: what its probabilities after a context add up to.

Two ways. Of some contexts, the probabilities of all words are asked of the model one by one and added up. Of all contexts of a
store, by induction: with p(w | h) = g(h) p(w | h') for each w that was not seen after h (h' = h without its first word),

    sum over all w of p(w | h) = sum over w seen after h of (p(w | h) - g(h) p(w | h')) + g(h) sum over all w of p(w | h')

is 1 if that of h' is, so that only what was seen has to be looked at; that of no words at all is added up as it is.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kvps._statistics import Walk
from kvps.lm.balance import DRAIN_BLOCKS, hash_rows, mixed
from kvps.lm.given import log10_of, start_is_given
from kvps.lm.model import CompiledModel
from kvps.lm.ordered import text_order
from kvps.lm.smoothing import GIVEN
from kvps.lm.walks import folded, summed_unigrams, walk_shard
from kvps.ps.runs import bits_for
from kvps.store.directory import StoreSnapshot
from kvps.text.vocabulary import BOS, EOS, UNK

CHUNK_TOKENS = 1 << 16         # scored in one call: some 20 MB with what the model says of them


# Of the n-grams that begin with a context.
TOTALS = ("in all", "n-grams seen once", "n-grams seen twice", "n-grams seen more often")


class Off(NamedTuple):
    """What is not as it should be of a context or n-gram: word ids in text order."""

    ids: tuple[int, ...]
    what: str                              # "sum" of the probabilities after these words, "count" of this n-gram, or of TOTALS
    found: float
    expected: float


def words_of(model: CompiledModel) -> np.ndarray:
    """Return the ids of the words that share the probability after a context, uint32."""
    there = np.asarray(model.unigrams) > 0
    there[[UNK, EOS]] = True
    # As the first word of a sentence it is given; nltk.lm's smoothings count it like any other, and some ARPA files do.
    there[BOS] = (not start_is_given(log10_of(np.asarray(model.unigrams))) if model.smoothing == GIVEN
                  else model.smoothing.name != "modified-kneser-ney")
    return np.flatnonzero(there).astype(np.uint32)


def sum_after(model: CompiledModel, context: Sequence[int], words: np.ndarray) -> float:
    """Return the sum of the probabilities of some words after a context of at most order - 1."""
    if not context and model.smoothing == GIVEN:
        return float((10.0 ** log10_of(np.asarray(model.unigrams)[words]).astype(np.float64)).sum())
    if not context:
        alone = np.empty(len(model.unigrams))
        model.tables.unigram_probabilities(alone)
        return float(alone[words].sum())
    total = float(model.shares_of([np.array(context, np.uint32)], np.zeros(len(words), np.int64), words).sum())
    if model.smoothing == GIVEN and BOS in words:      # which is no next word of an imported model
        total += float(_last(model, np.array([[*context, BOS]], np.uint32))[0])
    return total


def _last(model: CompiledModel, rows: np.ndarray) -> np.ndarray:
    """Return p(last word | the others) of rows of words in text order."""
    log10_p, _ = model.score_ids(np.ascontiguousarray(rows).reshape(-1), _history(rows))
    return 10.0 ** log10_p.reshape(rows.shape)[:, -1]


def _history(rows: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(rows.shape[1], dtype=np.uint8), len(rows))


class Sample:
    """Contexts of each length, chosen by a seeded hash, so that the same ones are chosen wherever they lie."""

    def __init__(self, most: int, seed: int) -> None:
        """most: of each length."""
        self._most, self._seed = most, np.uint64(seed)
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def take(self, rows: np.ndarray) -> None:
        """Look at contexts of one length."""
        keys = mixed(hash_rows(rows), np.full(len(rows), self._seed, np.uint64))
        if (kept := self._rows.get(rows.shape[1])) is not None:
            rows, keys = np.concatenate([kept[0], rows]), np.concatenate([kept[1], keys])
        best = np.argsort(keys, kind="stable")[:self._most]
        self._rows[rows.shape[1]] = rows[best], keys[best]

    def contexts(self, order: int) -> list[tuple[int, ...]]:
        """Return those for a model of some order, no words at all first."""
        return [(), *(tuple(row) for k in sorted(self._rows) if k < order for row in self._rows[k][0].tolist())]


def every_context(model: CompiledModel, snapshot: StoreSnapshot, order: int, n_words: int, tolerance: float,
                  off: Callable[[Off], None], progress: Callable[[int], None] = lambda n: None) -> tuple[int, float]:
    """Look at every n-gram and context of a store in the model that was made of it, whose smoothing has back-offs.

    Args:
        order: of the store; n_words: of its vocabulary, dead ones too.
        off: is told of counts that are not the store's, and of sums that are not 1.

    Returns:
        (contexts, largest distance of a sum from 1).
    """
    bits, top, worst, n = bits_for(n_words), model.order, 0.0, 0

    def begun(split: Sequence[int] = ()) -> Walk:
        return Walk(order, top, bits, n_words, raw=model.smoothing.kind == "raw", rows_of=range(2, top + 1), split=split)

    def drain(walk: Walk) -> None:
        nonlocal worst, n
        for k in range(2, top + 1):
            rows, values = walk.take_rows(k)
            if len(rows):
                n_here, error = _ngrams(model, np.ascontiguousarray(rows[:, text_order(k)]), values, tolerance, off)
                worst, n = max(worst, error), n + n_here

    walks = []
    for shard in range(len(snapshot.shards)):
        walk = begun(snapshot.split)
        walk_shard(snapshot, shard, order, n_words, [walk], functools.partial(drain, walk), progress, every=DRAIN_BLOCKS)
        walks.append(walk)
    walks.append(folded(walks, begun()))
    drain(walks[-1])
    adjusted, raw = summed_unigrams(walks)
    expected, found = raw if model.smoothing.kind == "raw" else adjusted, np.asarray(model.unigrams)
    for i in np.flatnonzero(found != expected).tolist():
        off(Off((i,), "count", int(found[i]), int(expected[i])))
    return n, worst


def _ngrams(model: CompiledModel, rows: np.ndarray, values: np.ndarray, tolerance: float,
            off: Callable[[Off], None]) -> tuple[int, float]:
    """Look at n-grams of one order, all those of a context one after another; return (contexts, largest error)."""
    k = rows.shape[1]
    own, backoffs, totals = np.empty(len(rows)), np.empty(len(rows)), np.empty((len(rows), 4), np.uint64)
    step = max(1, CHUNK_TOKENS // k)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        found, after, (_, _, weights) = model.tables.look(rows[part].reshape(-1), _history(rows[part]))
        counts, backoffs[part], totals[part] = found[k - 1::k, k - 1], weights[k - 1::k, k - 1], after[k - 1::k, k - 1]
        own[part] = _last(model, rows[part]) - backoffs[part] * _last(model, rows[part][:, 1:])
        for i in np.flatnonzero(counts != values[part]).tolist():
            off(Off(tuple(rows[start + i].tolist()), "count", int(counts[i]), int(values[start + i])))
    first = np.flatnonzero(np.r_[True, (rows[1:, :-1] != rows[:-1, :-1]).any(axis=1)])
    parts = (values, values == 1, values == 2, values > 2)         # what the model has of a context: (sum, N1, N2, N3+)
    expected = np.stack([np.add.reduceat(part.astype(np.uint64), first) for part in parts], axis=1)
    for i in np.flatnonzero((totals[first] != expected).any(axis=1)).tolist():
        column = int(np.flatnonzero(totals[first[i]] != expected[i])[0])
        off(Off(tuple(rows[first[i], :-1].tolist()), TOTALS[column], int(totals[first[i], column]), int(expected[i, column])))
    sums = np.add.reduceat(own, first) + backoffs[first]
    errors = np.abs(sums - 1)
    for i in np.flatnonzero(~(errors <= tolerance)).tolist():        # not a number is no sum either
        off(Off(tuple(rows[first[i], :-1].tolist()), "sum", float(sums[i]), 1.0))
    return len(first), float(errors.max())

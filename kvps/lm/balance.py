"""Whether the counts of a store agree over its orders: every n-gram is followed as often as it occurs, but for the end.

Lower orders are derived from the highest one by what stands before them, so they agree on that side whatever the counts are.
On the other side they need not: the (k+1)-grams that begin with a k-gram g have to add up to the count of g, unless g
ends in </s>, which nothing follows. All counts of texts do, and taking a text away changes nothing in that, even one that was
never there; counts that came from a file may not, nor those that went wrong.
"""
from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kvps._statistics import Walk
from kvps.lm.ordered import text_order
from kvps.lm.walks import folded, summed_unigrams, walk_shard
from kvps.ps.runs import bits_for
from kvps.store.directory import StoreSnapshot
from kvps.text.vocabulary import EOS

BINS = 1 << 12                 # of n-grams by their hash, whose sums are compared: looking again is at 1 in so many
DRAIN_BLOCKS = 16              # of 16,384 keys, after which a walk gives up what it has collected


class Unbalanced(NamedTuple):
    """An n-gram that is followed more or less often than it occurs."""

    ids: tuple[int, ...]                   # its words, in text order
    count: int
    followed: int


def unbalanced(snapshot: StoreSnapshot, order: int, n_words: int,
               progress: Callable[[int], None] = lambda n: None,
               contexts: Callable[[np.ndarray], None] = lambda rows: None) -> list[Unbalanced]:
    """Return, of each order that has some, an n-gram whose counts do not agree; nothing if all do.

    Of n-grams by the thousand sums are compared of (hash of the words and the count), modulo 2**64: that they agree by chance
    while counts do not is as likely as that two hashes are the same. Memory is bounded; where something is found, all is
    walked over once more.

    contexts: called with all contexts on the way, some at a time: word ids in text order, uint32 (n, k).
    """
    sums = np.zeros((order, BINS), np.uint64)

    def add(k: int, ids: np.ndarray, counts: np.ndarray, sign: int) -> None:
        if sign < 0:
            contexts(ids)
        hashes = hash_rows(ids)
        marks = mixed(hashes, counts)
        np.add.at(sums[k], (hashes >> np.uint64(52)).astype(np.int64), marks if sign > 0 else -marks)

    _both_sides(snapshot, order, n_words, add, progress)
    bins = {k: int(np.flatnonzero(sums[k])[0]) for k in range(order) if sums[k].any()}
    if not bins:
        return []
    found: dict[int, dict[tuple[int, ...], list[int]]] = {k: defaultdict(lambda: [0, 0]) for k in bins}

    def look(k: int, ids: np.ndarray, counts: np.ndarray, sign: int) -> None:
        if k in bins:
            ours = np.flatnonzero((hash_rows(ids) >> np.uint64(52)) == np.uint64(bins[k]))
            for row, count in zip(ids[ours].tolist(), counts[ours].tolist(), strict=True):
                found[k][tuple(row)][0 if sign > 0 else 1] += count

    _both_sides(snapshot, order, n_words, look, lambda n: None)
    return [Unbalanced(*min((ids, *pair) for ids, pair in found[k].items() if pair[0] != pair[1])) for k in sorted(bins)]


def _both_sides(snapshot: StoreSnapshot, order: int, n_words: int,
                take: Callable[[int, np.ndarray, np.ndarray, int], None], progress: Callable[[int], None]) -> None:
    """Give take(k, ids in text order, counts, 1) of all k-grams that can be followed, and with -1 what follows each adds up to."""
    bits, below = bits_for(n_words), range(2, order)

    def begun(split: Sequence[int] = ()) -> Walk:
        return Walk(order, order, bits, n_words, raw=True, rows_of=below, contexts=order > 1, split=split)

    def drain(walk: Walk) -> None:
        totals = None
        for k in range(1, order):
            rows, numbers = walk.take_contexts(k)
            if len(rows):
                totals = walk.table.rows()[:, 0] if totals is None else totals
                take(k, np.ascontiguousarray(rows[:, ::-1]), totals[numbers].astype(np.uint64), -1)
            if k > 1:
                rows, values = walk.take_rows(k)
                open_ = rows[:, -1] != EOS
                take(k, rows[open_][:, text_order(k)], values[open_], 1)

    walks = []
    for shard in range(len(snapshot.shards)):
        walk = begun(snapshot.split)
        walk_shard(snapshot, shard, order, n_words, [walk], functools.partial(drain, walk), progress, every=DRAIN_BLOCKS)
        walks.append(walk)
    rest = folded(walks, begun())
    drain(rest)
    _, raw = summed_unigrams([*walks, rest])
    alive = np.flatnonzero(raw)
    alive = alive[alive != EOS].astype(np.uint32)
    if order > 1:
        take(1, alive.reshape(-1, 1), raw[alive], 1)


def hash_rows(ids: np.ndarray) -> np.ndarray:
    """Return a hash of each row, uint64 (n,)."""
    h = np.full(len(ids), 0x6b767073, np.uint64)
    for column in range(ids.shape[1]):
        h = mixed(h, ids[:, column].astype(np.uint64) + np.uint64(1))
    return h


def mixed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return hashes of pairs of numbers, uint64; they wrap on purpose (the finish is that of splitmix64)."""
    x = (a ^ np.uint64(0x9e3779b97f4a7c15)) * np.uint64(0xd6e8feb86659fd93) + b * np.uint64(0x9e3779b97f4a7c15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return x ^ (x >> np.uint64(31))

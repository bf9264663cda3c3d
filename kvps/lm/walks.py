"""Walk over the shards of a snapshot: the loop that compiling, exporting and listing share, and what it adds up to."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvps._statistics import Walk
from kvps.lm.pools import gathered
from kvps.lm.statistics import Statistics
from kvps.ps.runs import bits_for, merged, merged_below
from kvps.store.directory import StoreSnapshot
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD


def walk_shard(snapshot: StoreSnapshot, shard: int, order: int, n_words: int, walks: Sequence[Walk],
               drain: Callable[[], None] = lambda: None, progress: Callable[[int], None] = lambda n: None, *,
               below: list[tuple[int, ...]] | None = None) -> None:
    """Feed one shard's counts to walks.

    Args:
        drain: called after every block and at the end, to take what the walks collect.
        below: only keys with these prefixes, as in merged_below().
    """
    source = snapshot.shards[shard], snapshot.runs(shard), order, bits_for(n_words)
    with contextlib.closing(merged(*source) if below is None else merged_below(*source, below)) as blocks:
        for block in blocks:
            for walk in walks:
                walk.feed(block.keys, block.counts)
            drain()
            progress(len(block.counts))
    for walk in walks:
        walk.finish()
    drain()


def walk_all(snapshot: StoreSnapshot, order: int, n_words: int, top: int, pool: ThreadPoolExecutor) -> list[Walk]:
    """Return a walk of order `top` over each shard, done."""
    def look(shard: int) -> Walk:
        walk = Walk(order, top, bits_for(n_words), n_words)
        walk_shard(snapshot, shard, order, n_words, [walk])
        return walk

    return gathered(pool, look, range(len(snapshot.shards)))


def survey(snapshot: StoreSnapshot, order: int, n_words: int, top: int, pool: ThreadPoolExecutor) -> tuple[Statistics, np.ndarray]:
    """Return the statistics of a snapshot as a Kneser-Ney model of order `top`, and its adjusted unigram counts."""
    walks = walk_all(snapshot, order, n_words, top, pool)
    unigrams, raw = summed_unigrams(walks)
    return statistics_of(snapshot, top, walks, unigrams, raw), unigrams


def summed_unigrams(walks: Sequence[Walk]) -> tuple[np.ndarray, np.ndarray]:
    """Return (values, raw counts) of every word over all shards, uint64 (n_words,); <s> has one raw count for each </s>."""
    values, raw = (sum(column) for column in zip(*(walk.unigram_values() for walk in walks), strict=True))
    raw[BOS] = raw[EOS]
    return values, raw


def statistics_of(snapshot: StoreSnapshot, top: int, walks: Sequence[Walk], unigrams: np.ndarray, raw: np.ndarray) -> Statistics:
    """Add the shards' statistics up."""
    state = snapshot.state
    sums = sum(walk.counts_of_counts() for walk in walks)
    n_alive = int(np.count_nonzero(raw[FIRST_WORD:]))
    return Statistics(
        order=top, version=snapshot.version, tokens=state["tokens"], sentences=state["sentences"], vocabulary=n_alive,
        ngrams={1: n_alive + 3} | {k: int(sums[k, 0]) for k in range(2, top + 1)},
        t={1: [int(np.count_nonzero(unigrams == k)) for k in (1, 2, 3, 4)]}
        | {k: sums[k, 1:].astype(int).tolist() for k in range(2, top + 1)})

"""Walk over the shards of a snapshot: the loop that compiling, exporting and listing share, and what it adds up to."""
from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvps._statistics import Walk
from kvps.lm.statistics import Statistics
from kvps.pools import gathered
from kvps.ps.runs import Block, bits_for, merged, merged_below
from kvps.store.directory import StoreSnapshot
from kvps.store.shard import Snapshot
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD


def walk_shard(snapshot: StoreSnapshot, shard: int, order: int, n_words: int, walks: Sequence[Walk],
               drain: Callable[[], None] = lambda: None, progress: Callable[[int], None] = lambda n: None, *,
               below: list[tuple[int, ...]] | None = None, every: int = 1) -> None:
    """Feed one shard's counts to walks.

    Args:
        drain: called after every so many blocks and at the end, to take what the walks collect.
        below: only keys with these prefixes, as in merged_below().
    """
    source = snapshot.shards[shard], snapshot.runs(shard), order, bits_for(n_words)
    walk_blocks(merged(*source) if below is None else merged_below(*source, below), walks, drain, progress, every=every)


def walk_blocks(source: Iterator[Block], walks: Sequence[Walk], drain: Callable[[], None] = lambda: None,
                progress: Callable[[int], None] = lambda n: None, *, every: int = 1) -> None:
    """Feed blocks of counts to walks, and finish them; arguments as those of walk_shard()."""
    with contextlib.closing(source) as blocks:
        for number, block in enumerate(blocks, 1):
            for walk in walks:
                walk.feed(block.keys, block.counts)
            if number % every == 0:
                drain()
            progress(len(block.counts))
    for walk in walks:
        walk.finish()
    drain()


@dataclasses.dataclass
class Sums:
    """What a walk over a shard adds up to; its methods are those of Walk."""

    values: np.ndarray         # uint64 (n_words,), and the raw counts
    raw: np.ndarray
    counts: np.ndarray         # of counts
    rows: np.ndarray           # of split words, with their values and raw counts
    row_values: np.ndarray
    row_raws: np.ndarray

    @classmethod
    def of(cls, walk: Walk) -> Sums:
        """Return those of a walk that is finished."""
        return cls(*walk.unigram_values(), walk.counts_of_counts(), *walk.split_ngrams(), walk.split_raws())

    def unigram_values(self) -> tuple[np.ndarray, np.ndarray]:
        """As Walk.unigram_values()."""
        return self.values, self.raw

    def counts_of_counts(self) -> np.ndarray:
        """As Walk.counts_of_counts()."""
        return self.counts

    def split_ngrams(self) -> tuple[np.ndarray, np.ndarray]:
        """As Walk.split_ngrams()."""
        return self.rows, self.row_values

    def split_raws(self) -> np.ndarray:
        """As Walk.split_raws()."""
        return self.row_raws

    def packed(self) -> bytes:
        """Return bytes, which unpacked() takes."""
        out = io.BytesIO()
        for field in dataclasses.fields(self):
            np.save(out, getattr(self, field.name), allow_pickle=False)
        return out.getvalue()

    @classmethod
    def unpacked(cls, data: bytes) -> Sums:
        """Return what was packed."""
        file = io.BytesIO(data)
        return cls(*(np.load(file, allow_pickle=False) for _ in dataclasses.fields(cls)))


def sums_of(snapshot: Snapshot, *, runs: Sequence[int], order: int, n_words: int, top: int, raw: bool, raws: bool,
            split: Sequence[int], progress: Callable[[int], None] = lambda n: None) -> Iterator[bytes]:
    """Yield the sums of a walk of order `top` over some runs of a shard, packed; what walk_all() asks of one that is elsewhere."""
    walk = Walk(order, top, bits_for(n_words), n_words, raw=raw, raws=raws, split=list(split))
    chosen = set(runs)
    walk_blocks(merged(snapshot, [run for run in snapshot.all_runs() if run.id in chosen], order, bits_for(n_words)), [walk],
                progress=progress)
    yield Sums.of(walk).packed()


def split_sums(walks: Sequence[Walk | Sums]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bigrams of split words, of which each shard's walk set its part aside, summed over the shards.

    Returns:
        (c1, word) uint32 (n, 2), strictly increasing; their values, uint64 (n,); their raw counts where these are kept, uint32.
    """
    rows, values = (np.concatenate(column) for column in zip(*(walk.split_ngrams() for walk in walks), strict=True))
    keys, places = np.unique(rows[:, 0].astype(np.uint64) << np.uint64(32) | rows[:, 1], return_inverse=True)
    sums = np.zeros(len(keys), np.uint64)
    np.add.at(sums, places, values)
    raws = np.zeros(len(keys), np.uint64)
    np.add.at(raws, places, np.concatenate([walk.split_raws() for walk in walks]))
    return (np.stack([keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32), sums,
            np.minimum(raws, 0xFFFFFFFF).astype(np.uint32))


def folded(walks: Sequence[Walk | Sums], walk: Walk) -> Walk:
    """Let a new walk, made as those of the shards but without split words, go over what they set aside; return it.

    With it, the walks of the shards add up to one over all of a store.
    """
    walk.fold(*split_sums(walks))
    return walk


def walk_all(snapshot: StoreSnapshot, order: int, n_words: int, top: int, pool: ThreadPoolExecutor, *,
             raw: bool = False, raws: bool = False, progress: Callable[[int], None] = lambda n: None) -> list[Walk | Sums]:
    """Return walks of order `top`, done, that add up to one over the store: of each shard, and of what split words have."""
    def look(shard: int) -> Walk | Sums:
        if snapshot.shards[shard].elsewhere:
            found = snapshot.shards[shard].run(sums_of, runs=[run.id for run in snapshot.runs(shard)], order=order, n_words=n_words,
                                               top=top, raw=raw, raws=raws, split=list(snapshot.split))
            return Sums.unpacked(b"".join(found))
        walk = Walk(order, top, bits_for(n_words), n_words, raw=raw, raws=raws, split=snapshot.split)
        walk_shard(snapshot, shard, order, n_words, [walk], progress=progress)
        return walk

    walks = gathered(pool, look, range(len(snapshot.shards)))
    return [*walks, folded(walks, Walk(order, top, bits_for(n_words), n_words, raw=raw, raws=raws))]




def survey(snapshot: StoreSnapshot, order: int, n_words: int, top: int, pool: ThreadPoolExecutor, *, raw: bool = False,
           raws: bool = False) -> tuple[Statistics, np.ndarray, np.ndarray, list[Walk | Sums]]:
    """Return the statistics of a snapshot as a model of order `top`, its unigram values and raw counts, and the walks.

    raw, raws: as in Walk; statistics of raw counts have no meaningful t.
    """
    walks = walk_all(snapshot, order, n_words, top, pool, raw=raw, raws=raws)
    unigrams, words = summed_unigrams(walks)
    return statistics_of(snapshot, top, walks, unigrams, words), unigrams, words, walks


def summed_unigrams(walks: Sequence[Walk | Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return (values, raw counts) of every word over all walks, uint64 (n_words,); <s> has one raw count for each </s>."""
    values, raw = (sum(column) for column in zip(*(walk.unigram_values() for walk in walks), strict=True))
    raw[BOS] = raw[EOS]
    return values, raw


def statistics_of(snapshot: StoreSnapshot, top: int, walks: Sequence[Walk | Sums], unigrams: np.ndarray,
                  raw: np.ndarray) -> Statistics:
    """Add the statistics of walk_all() up."""
    state = snapshot.state
    sums = sum(walk.counts_of_counts() for walk in walks)
    n_alive = int(np.count_nonzero(raw[FIRST_WORD:]))
    return Statistics(
        order=top, version=snapshot.version, tokens=state["tokens"], sentences=state["sentences"], vocabulary=n_alive,
        ngrams={1: n_alive + 3} | {k: int(sums[k, 0]) for k in range(2, top + 1)},
        t={1: [int(np.count_nonzero(unigrams == k)) for k in (1, 2, 3, 4)]}
        | {k: sums[k, 1:].astype(int).tolist() for k in range(2, top + 1)})

"""Deal the n-grams of a shard out to others, whose router knows where each belongs, a part at a time."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from kvps._runs import encode, encoded_room
from kvps.ps.router import Router
from kvps.ps.runs import CHUNK_BYTES, Block, bits_for, merged
from kvps.store.runs import Run, by_label
from kvps.store.shard import Shard, Snapshot

# Keys that a thread gathers before it deals them out: some 80 MB with what sorting takes; runs of 16 shards fill chunks.
PART_KEYS = 1 << 20


def deal(snapshot: Snapshot, runs: Sequence[Run], order: int, n_words: int, router: Router, targets: Mapping[int, Shard],
         advance: Callable[[int], None]) -> None:
    """Add the sums of some runs of a shard, label by label, to those of the new shards `targets` that they belong to.

    Each part makes a run in each of them. What belongs to a shard that is not among them is left out.
    """
    bits = bits_for(n_words)
    for label, ours in by_label(runs).items():
        version = max(run.version for run in ours)
        with contextlib.closing(merged(snapshot, ours, order, bits)) as blocks:
            for keys, counts in gathered_keys(blocks):
                shards = router.shards(keys.reshape(-1), order, bits, n_words)
                places = np.argsort(shards.astype(np.uint16), kind="stable")         # so each part is sorted
                ends = np.cumsum(np.bincount(shards, minlength=router.n_shards)).tolist()
                for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                    if number in targets and start < end:
                        chosen = places[start:end]
                        targets[number].add_run(encode(keys[chosen].reshape(-1), counts[chosen], order, bits, CHUNK_BYTES,
                                                       np.empty(encoded_room(end - start), np.uint8)), version, label)
                advance(len(counts))


def gathered_keys(blocks: Iterator[Block]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (keys uint64 (n, width), counts int64 (n,)) of many blocks at once."""
    keys: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    n = 0
    for block in blocks:
        keys.append(block.keys.reshape(len(block.counts), -1).copy())
        counts.append(block.counts.copy())
        n += len(block.counts)
        if n >= PART_KEYS:
            yield np.concatenate(keys), np.concatenate(counts)
            keys, counts, n = [], [], 0
    if n:
        yield np.concatenate(keys), np.concatenate(counts)

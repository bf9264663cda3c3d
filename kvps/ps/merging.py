"""Merge the runs of a shard, a few at a time, while somebody adds to it."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from kvps.ps.runs import Block, bits_for, encoded, merged
from kvps.store.runs import Run
from kvps.store.shard import Shard

# This many runs of like size are merged: a key is written again once each time the counts grow sixteenfold.
FAN_IN = 16


def tidy(shard: Shard, *, order: int, n_words: int, version: int, job: str | None, fan_in: int | None = None,
         at_most: int | None = None) -> None:
    """Merge runs of like size where there are `fan_in` of them (a power of 2; FAN_IN), `at_most` so often.

    job: only the runs of this job, which will make `version`; None: only committed runs, of `version` at most. Never
    both: a merge must not cross the commit line.
    """
    fan_in, done = fan_in or FAN_IN, 0
    while done != at_most:
        runs = [run for run in shard.runs() if (run.job == job and run.version == version if job else run.version <= version)]
        tiers = defaultdict(list)
        for run in runs:
            if run.until is None:              # else it goes as a whole
                tiers[run.label or "", run.n_keys.bit_length() // (fan_in.bit_length() - 1)].append(run)
        crowded = next((tier for _, tier in sorted(tiers.items()) if len(tier) >= fan_in), None)
        if crowded is None:
            return
        merge(shard, crowded, order, n_words)
        done += 1


def cancel(shard: Shard, *, order: int, n_words: int, version: int, label: str | None) -> None:
    """Merge all committed runs of a label once the smaller ones hold more keys than the largest.

    After a removal: n-grams and their removal stand in runs of their own until they meet, so text that comes and goes
    would take many times its space before tidy() sees enough runs.
    """
    runs = [run for run in shard.runs() if run.version <= version and run.until is None and run.label == label]
    sizes = sorted(run.n_keys for run in runs)
    if len(sizes) > 1 and sum(sizes[:-1]) > sizes[-1]:
        merge(shard, runs, order, n_words)


def merge(shard: Shard, runs: list[Run], order: int, n_words: int, progress: Callable[[int], None] = lambda n: None) -> None:
    """Replace runs of a shard by their sum."""
    bits = bits_for(n_words)
    with shard.snapshot() as snapshot:
        blocks = merged(snapshot, runs, order, bits)
        try:
            shard.replace([run.id for run in runs], max(run.version for run in runs),
                          encoded(_counted(blocks, progress), order, bits))
        finally:
            blocks.close()         # lets go of the snapshot's pages


def _counted(blocks: Iterator[Block], progress: Callable[[int], None]) -> Iterator[Block]:
    for block in blocks:
        yield block
        progress(len(block.counts))

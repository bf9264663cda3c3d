"""Merge all runs of a store when asked to; jobs and tables merge a few at a time by themselves (kvps/ps/merging.py)."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kvps.ps.merging import merge
from kvps.ps.runs import n_words_of
from kvps.store.directory import StoreDirectory


def compact(store: StoreDirectory, *, threads: int, vacuum: bool, progress: Callable[[int, int], None]) -> dict:
    """Merge the committed runs of every shard into one a label; with vacuum, also give free pages back to the file system."""
    store.root.claim()
    state = store.root.state()
    n_words = n_words_of(store.identity, state)
    work = []
    for shard in store.shards:
        by_label = defaultdict(list)
        for run in shard.runs():
            if run.version <= state["version"] and run.until is None:
                by_label[run.label].append(run)
        work += [(shard, runs) for runs in by_label.values() if len(runs) > 1]
    total = sum(run.n_keys for _, runs in work for run in runs)
    before, done = store.bytes(), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(merge, shard, runs, store.identity["order"], n_words, advance) for shard, runs in work]:
            future.result()
    if vacuum:
        store.vacuum()
    return {"version": state["version"], "merged_runs": sum(len(runs) for _, runs in work), "bytes_before": before,
            "bytes": store.bytes()}


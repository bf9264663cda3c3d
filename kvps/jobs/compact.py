"""Merge all runs of a store when asked to; jobs and tables merge a few at a time by themselves (kvps/ps/merging.py)."""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kvps.ps.merging import merge
from kvps.ps.runs import n_words_of
from kvps.store.directory import StoreDirectory
from kvps.store.runs import Run, by_label
from kvps.store.shard import Shard


def crowded(shard: Shard, *, version: int) -> dict[str, int]:
    """Return how many keys the committed runs of a shard have that compact_label() would merge, by label ("": none)."""
    return {label or "": sum(run.n_keys for run in runs) for label, runs in _mergeable(shard, version).items()}


def compact_label(shard: Shard, *, label: str, order: int, n_words: int, version: int,
                  progress: Callable[[int], None] = lambda n: None) -> int:
    """Merge the committed runs of a label into one; return how many there were."""
    runs = _mergeable(shard, version).get(label or None, [])
    if runs:
        merge(shard, runs, order, n_words, progress)
    return len(runs)


def _mergeable(shard: Shard, version: int) -> dict[str | None, list[Run]]:
    found = by_label(run for run in shard.runs() if run.version <= version and run.until is None)
    return {label: runs for label, runs in found.items() if len(runs) > 1}


def compact(store: StoreDirectory, *, threads: int, vacuum: bool, progress: Callable[[int, int], None]) -> dict:
    """Merge the committed runs of every shard into one a label; with vacuum, also give free pages back to the file system."""
    store.root.claim()
    state = store.root.state()
    shape = {"order": store.identity["order"], "n_words": n_words_of(store.identity, state), "version": state["version"]}
    found = [(shard, shard.run(crowded, version=state["version"])) for shard in store.shards]
    total = sum(n_keys for _, crowd in found for n_keys in crowd.values())
    before, done = store.bytes(), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    def merge_label(shard: Shard, label: str) -> int:
        return shard.run(compact_label, label=label, **shape, here={"progress": advance})

    with ThreadPoolExecutor(threads) as pool:
        merged_runs = sum(future.result() for future in [
            pool.submit(merge_label, shard, label) for shard, crowd in found for label in crowd])
    if vacuum:
        store.vacuum()
    return {"version": state["version"], "merged_runs": merged_runs, "bytes_before": before,
            "bytes": store.bytes()}


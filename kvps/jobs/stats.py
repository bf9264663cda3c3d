"""Sizes, counts of counts and discounts of a store, and what each label takes."""
from __future__ import annotations

from collections.abc import Callable

from kvps.lm import cache, container
from kvps.lm.statistics import Statistics
from kvps.ps.tables import listed
from kvps.store.directory import StoreDirectory


def statistics(store: StoreDirectory, *, stale: str = "wait", threads: int | None = None,
               progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Return what `kvps stats --json` prints; makes the compiled model where there is none."""
    meta, _ = cache.load(store, container.read, threads=threads, stale=stale, progress=progress)
    known = Statistics.from_json(meta["statistics"])
    n_bytes = store.bytes()
    table, fallen = known.discounts()
    return {
        "order": known.order, "version": known.version, "tokens": known.tokens, "sentences": known.sentences,
        "vocabulary": known.vocabulary, "shards": store.identity["shards"],
        "bytes": n_bytes["file"], "live_bytes": n_bytes["live"], "labels": label_sizes(store), "tables": listed(store.path),
        **store.identity["tokenizer"], "closed": "closed" in store.identity,
        "ngrams": {str(k): n for k, n in known.ngrams.items()},
        "t": {str(k): t for k, t in known.t.items()},
        "discounts": {str(k): table[k][1:] for k in known.ngrams},
        "fallback": {str(k): reason for k, reason in fallen.items()}}


def label_sizes(store: StoreDirectory) -> dict[str, dict]:
    """Return each label's tokens, sentences, first and last version, and the bytes of its runs."""
    labels = store.root.labels()
    with store.snapshot() as snapshot:
        runs = [run for shard in range(len(snapshot.shards)) for run in snapshot.runs(shard)]
    return {name: {**row, "bytes": sum(run.bytes for run in runs if run.label == name)} for name, row in labels.items()}

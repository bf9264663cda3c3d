"""Refuse to forget what was never there: look for n-grams whose counts would fall below zero."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kvps._runs import unpack
from kvps.errors import DataError
from kvps.ps.runs import bits_for, merged
from kvps.store.directory import StoreDirectory
from kvps.store.runs import Run
from kvps.store.shard import Shard
from kvps.text.vocabulary import BOS, Vocabulary

MAX_ROWS = 100_000             # n-grams below zero that one look at a shard returns


def below_zero(shard: Shard, *, order: int, n_words: int, version: int, label: str | None, skip: int,
               progress: Callable[[int], None] = lambda n: None) -> dict[str, Any]:
    """Look for counts below zero among the runs of a label that make up `version`, which need not be committed.

    Returns:
        "more" (whether there are more than are returned), "rows" (uint32 (n, order), in
        context order) and "counts" of at most MAX_ROWS n-grams after the first `skip`.
    """
    bits, found = bits_for(n_words), 0
    rows, counts = [np.empty((0, order), np.uint32)], [np.empty(0, np.int64)]
    with shard.snapshot() as snapshot:
        runs = _chosen(snapshot.all_runs(), version, label)
        with contextlib.closing(merged(snapshot, runs, order, bits)) as blocks:
            for block in blocks:
                below = np.flatnonzero(block.counts < 0)
                chosen = below[max(0, skip - found):max(0, skip + MAX_ROWS - found)]
                found += len(below)
                if len(chosen):
                    width = len(block.keys) // len(block.counts)
                    keys = np.ascontiguousarray(block.keys.reshape(-1, width)[chosen]).reshape(-1)
                    rows.append(unpack(keys, order, bits))
                    counts.append(block.counts[chosen])
                progress(len(block.counts))
    return {"more": found > skip + MAX_ROWS, "rows": np.concatenate(rows), "counts": np.concatenate(counts)}


def n_keys(shard: Shard, *, version: int, label: str | None) -> int:
    """Return how many keys below_zero() will read, before they are merged."""
    return sum(run.n_keys for run in _chosen(shard.runs(), version, label))


def _chosen(runs: list[Run], version: int, label: str | None) -> list[Run]:
    return [run for run in runs if run.seen(version) and run.label == label]


def refuse_negative(store: StoreDirectory, job: dict, *, threads: int,
                    progress: Callable[[str, int, int | None], None]) -> None:
    """Raise DataError when the store with the job's counts has a count below zero, naming the least such n-gram.

    Text that a label holds apart is looked at apart, so that any choice of labels has counts of 0 and above.
    """
    asked = {"order": store.identity["order"], "n_words": store.root.next_word(), "version": job["version"], "label": job["label"]}
    words: Vocabulary | None = None
    total = sum(shard.run(n_keys, version=job["version"], label=job["label"]) for shard in store.shards)
    done, counting = 0, threading.Lock()

    def advance(n: int) -> None:
        nonlocal done
        with counting:
            done += n
        progress("verifying", done, total)

    def least(shard: Shard) -> tuple[bytes, int] | None:
        """Return the least n-gram of a shard, in byte order, that is taken away too often, and how often."""
        nonlocal words
        worst, skip, more = None, 0, True
        while more:
            found = shard.run(below_zero, **asked, skip=skip, here={"progress": advance})
            skip, more = skip + MAX_ROWS, found["more"]
            with counting:
                if len(found["counts"]) and words is None:
                    words = Vocabulary(store.root.words())     # under the store's ids, which need not be ours
            for row, count in zip(found["rows"].tolist(), found["counts"].tolist(), strict=True):
                text = _ngram(row, words)
                if worst is None or text < worst[0]:
                    worst = text, count
        return worst

    with ThreadPoolExecutor(threads) as pool:
        found = [worst for worst in pool.map(least, store.shards) if worst is not None]
    if found:
        text, count = min(found)
        where = f"in label {job['label']}" if job["label"] else "without a label" if store.root.labels() else "before"
        raise DataError(f'"{text.decode("utf-8", "replace")}" would have count {count}: this text, or a part of it, was not '
                        f"added {where} or is forgotten already; the store is as before", ngram=text, count=count)


def _ngram(row: list[int], vocabulary: Vocabulary) -> bytes:
    """Return the words of a key in text order, with one <s> at most."""
    *context, word = row
    if BOS in context:
        context = context[:context.index(BOS) + 1]
    return b" ".join(vocabulary.table.word(i) for i in (*reversed(context), word))

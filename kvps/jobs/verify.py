"""Refuse to forget what was never there: look for n-grams whose counts would fall below zero."""
from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvps._runs import unpack
from kvps.errors import DataError
from kvps.ps.runs import bits_for, merged
from kvps.store.directory import StoreDirectory
from kvps.store.shard import Shard
from kvps.text.vocabulary import BOS, Vocabulary


def refuse_negative(store: StoreDirectory, vocabulary: Vocabulary, job: dict, *, threads: int,
                    progress: Callable[[str, int, int | None], None]) -> None:
    """Raise DataError when the store with the job's counts has a count below zero, naming the least such n-gram.

    Text that a label holds apart is looked at apart, so that any choice of labels has counts of 0 and above.
    """
    order, bits = store.identity["order"], bits_for(len(vocabulary))
    runs = {shard: [run for run in shard.runs() if run.seen(job["version"]) and run.label == job["label"]]
            for shard in store.shards}
    total = sum(run.n_keys for shard_runs in runs.values() for run in shard_runs)
    done = 0
    counting = threading.Lock()

    def least(shard: Shard) -> tuple[bytes, int] | None:
        """Return the least n-gram of a shard, in byte order, that is taken away too often, and how often."""
        nonlocal done
        worst = None
        with shard.snapshot() as snapshot:
            blocks = merged(snapshot, runs[shard], order, bits)
            try:
                for block in blocks:
                    below = np.flatnonzero(block.counts < 0)
                    if len(below):
                        width = len(block.keys) // len(block.counts)
                        keys = np.ascontiguousarray(block.keys.reshape(-1, width)[below]).reshape(-1)
                        for row, count in zip(unpack(keys, order, bits).tolist(), block.counts[below].tolist(), strict=True):
                            text = _ngram(row, vocabulary)
                            if worst is None or text < worst[0]:
                                worst = text, count
                    with counting:
                        done += len(block.counts)
                    progress("verifying", done, total)
            finally:
                blocks.close()
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

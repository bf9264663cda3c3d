"""What a removal leaves behind, how to be rid of it, and a receipt of what was done.

Forgetting subtracts counts. The words themselves, pages that LMDB has freed and not used again, compiled models of
older versions, and checkpoints may hold pieces of the text until purge() and `delete` of the checkpoints.
"""
from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps.errors import StoreError
from kvps.jobs.compact import compact
from kvps.lm import cache
from kvps.lm.walks import summed_unigrams, survey, walk_all
from kvps.ps import tables
from kvps.store import checkpoint, files
from kvps.store.directory import StoreDirectory
from kvps.store.layout import KEPT
from kvps.text.vocabulary import FIRST_WORD, Vocabulary, pack_segment, unpack_segment
from kvps.units import thread_count


def purge(store: StoreDirectory, *, threads: int | None = None) -> dict:
    """Leave no byte of text that is not counted any more in the files of a store that is open for writing.

    Words whose count is 0 lose their letters, runs are merged so that n-grams of count 0 vanish, root and shards are
    written anew so that no freed page keeps old bytes, and compiled models and copies of stdin are deleted. Killed at
    any instant, it can be run again. Checkpoints stay. What the file system does with the blocks of deleted files is
    beyond us.

    Returns:
        {"words": how many lost their letters, "bytes": of the store's data files before and after}.

    Raises:
        StoreError: a job is pending, whose words are not counted yet.
    """
    threads = thread_count(threads)
    job = store.root.job()
    if job is not None:
        raise StoreError(f"{store.path}: a {job['command']} was interrupted; go on with kvps resume, or roll it back with kvps "
                         "abort, before what is forgotten can be purged", path=str(store.path))
    before = store.bytes()["file"]
    dead = dead_words(store, threads)
    store.root.claim()
    store.root.replace_words(_without(store.root.words(), set(dead.tolist())))
    compact(store, threads=threads, vacuum=False, progress=lambda done, total: None)
    store.vacuum(root=True)
    for folder in cache.folders(store):
        files.remove_tree(folder)
    return {"words": len(dead), "bytes": {"before": before, "after": store.bytes()["file"]}}


def dead_words(store: StoreDirectory, threads: int) -> np.ndarray:
    """Return the ids of the words whose count is 0 and which still have their letters."""
    vocabulary = Vocabulary(store.root.words())
    n_words = len(vocabulary)
    with store.snapshot() as snapshot, ThreadPoolExecutor(threads) as pool:
        _, raw = summed_unigrams(walk_all(snapshot, store.identity["order"], n_words, 1, pool))
    ids = np.flatnonzero(raw[FIRST_WORD:] == 0) + FIRST_WORD
    return ids[[vocabulary.table.word(i)[:1] != b"\0" for i in ids.tolist()]]


def _without(segments: Iterable[tuple[int, bytes]], dead: set[int]) -> Iterable[tuple[int, bytes]]:
    """Yield the segments that have a dead word in them, with a mark in its place that no text can hold."""
    for first, segment in segments:
        lengths, words = unpack_segment(segment)
        if dead.isdisjoint(range(first, first + len(lengths))):
            continue
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        kept = [b"\0%d" % (first + i) if first + i in dead else words[a:b].tobytes()
                for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False))]
        yield first, pack_segment(np.array([len(word) for word in kept], np.uint32), b"".join(kept))


def sizes(store: StoreDirectory, threads: int | None = None) -> dict:
    """Return what a receipt compares: tokens, sentences, words, and by order the distinct n-grams."""
    n_words, order = store.root.next_word(), store.identity["order"]
    with store.snapshot() as snapshot, ThreadPoolExecutor(thread_count(threads)) as pool:
        found, *_ = survey(snapshot, order, n_words, order, pool)
    return {"version": found.version, "tokens": found.tokens, "sentences": found.sentences, "words": found.vocabulary,
            "ngrams": {str(k): n for k, n in found.ngrams.items()}}


def remains(store: StoreDirectory, purged: bool, checkpoints: Iterable[str]) -> list[str]:
    """Return, in sentences, what may still hold pieces of the text after it was forgotten."""
    names = list(checkpoints)
    found = [] if purged else [
        "words that only this text had, and pages of the data files that were freed but not used again: kvps forget --purge",
        "compiled models of earlier versions, until the next one is made: kvps forget --purge"]
    if names:
        found.append(f"the checkpoints {', '.join(names)}: kvps checkpoint delete, or kvps forget --purge --checkpoints")
    if held := tables.names(store.path):
        found.append(f"the tables {', '.join(held)}, if it was pushed to them")
    if (store.path / KEPT).exists():
        found.append(f"what kvps recover put aside in {store.path / KEPT}: remove it when it is not needed any more")
    return [*found, "copies of the store or of its disk, and exports made earlier, of which kvps does not know"]


def write_receipt(path: Path, store: StoreDirectory, result: dict, before: dict, after: dict, left: list[str],
                  purged: dict | None) -> dict:
    """Write what was removed, and what is known to hold it still, as one JSON object; return it.

    It proves that counts were subtracted, not that the text had once been added.
    """
    history = store.root.history()[after["version"] - 1] if after["version"] > before["version"] else {}
    record = {
        "receipt": "kvps forget", "store": str(store.path), "uuid": store.identity["uuid"], "time": time.time(),
        "inputs": [{"name": row["name"], "digest": row["digest"]} for row in history.get("inputs", [])]
        + [{"digest": digest} for digest in history.get("gone_inputs", [])],
        "label": history.get("label"), "labels": result.get("labels", []), "versions": [before["version"], after["version"]],
        "differences": {"tokens": after["tokens"] - before["tokens"], "sentences": after["sentences"] - before["sentences"],
                        "words": after["words"] - before["words"],
                        "ngrams": {k: after["ngrams"][k] - before["ngrams"][k] for k in before["ngrams"]}},
        "purged": purged, "remains": left}
    files.atomic_write(path, json.dumps(record, indent=1).encode() + b"\n", private=False)
    return record


def checkpoints_of(store: StoreDirectory) -> list[str]:
    """Return the names of the checkpoints beside a store: each may hold what was forgotten after it was made."""
    return [found["name"] for found in checkpoint.listed(checkpoint.depot_of(store.path)[0])]

"""kvps work: count a part of the text of a job that another client of a server has begun."""
from __future__ import annotations

import time
from collections.abc import Callable

from kvps.errors import InputGone, StoreError, StoreLocked
from kvps.jobs.counting import count_splits
from kvps.jobs.job_inputs import from_record
from kvps.ps.places import Address
from kvps.ps.remote_store import RemoteDirectory
from kvps.text.tokenize import store_tokenizer
from kvps.text.vocabulary import Vocabulary

LOOK_S = 0.2


def work(place: Address, *, tokenizer: str | None = None, threads: int, wait: float = 60.0,
         progress: Callable[[int], None] = lambda n: None) -> dict | None:
    """Take part in the job that is at work on a store, until it is over.

    Splits are taken one after another, whoever is free first; the ledgers of the shards see to it that each counts once,
    so a worker may be killed at any time, or be started a second time.

    Args:
        place: of the store's server.
        tokenizer: names the store's own MODULE:FUNC again.
        threads: splits counted at once.
        wait: how long to wait for a job to begin [s].
        progress: called with the bytes that all workers have counted since the last call, as they lie on disk.

    Returns:
        {"job", "command", "version" that the store has now}, or None where no job came.

    Raises:
        InputGone: the text of the job is not here, or not the same. Unreachable: no answer.
    """
    deadline = time.monotonic() + wait
    with _store(place, deadline) as store:
        joined = _joined(store, deadline)
        if joined is None:
            return None
        job = joined[1]
        while joined is not None and joined[1]["id"] == job["id"]:
            try:
                _count(store, *joined, tokenizer, threads, progress)
            except StoreLocked:                # the session is another client's now, who goes on with the job or ends it
                time.sleep(LOOK_S)
            joined = _joined(store, time.monotonic() + LOOK_S)
            while joined is not None and joined[1]["id"] == job["id"] and not _missing(store, joined[1]):
                time.sleep(LOOK_S)
                joined = _joined(store, time.monotonic() + LOOK_S)
        return {"job": job["id"], "command": job["command"], "version": store.root.state()["version"]}


def _store(place: Address, deadline: float) -> RemoteDirectory:
    """Return the store, which need not have been made yet."""
    while True:
        try:
            return RemoteDirectory(place, keys=place.keys)
        except StoreError as exc:
            if not getattr(exc, "empty", False) or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_S)


def _joined(store: RemoteDirectory, deadline: float) -> tuple[int, dict] | None:
    """Return (epoch, job) of the job that counts text and is at work; None where there is none by the deadline."""
    while True:
        epoch, job = store.join()
        if job is not None and job["inputs"]:
            return epoch, job
        if time.monotonic() > deadline:
            return None
        time.sleep(LOOK_S)


def _count(store: RemoteDirectory, epoch: int, job: dict, tokenizer: str | None, threads: int,
           progress: Callable[[int], None]) -> None:
    store.take_part(epoch)
    inputs = [from_record(store.path, row["input"]) for row in job["inputs"]]
    seen_as = [(item.fingerprint(), row["fingerprint"]) for item, row in zip(inputs, job["inputs"], strict=True)]
    for item, row in zip(inputs, job["inputs"], strict=True):
        if item.digest() != row["digest"]:     # always: on another machine size and time tell nothing
            raise InputGone(f"{item.name}: is not the text that the {job['command']} counts; workers need its inputs under the "
                            "same paths", path=item.name)
    words = store_tokenizer(store.path, store.identity["tokenizer"], tokenizer)
    vocabulary = Vocabulary(store.root.words(), store.root.share_words)
    try:
        count_splits(store, vocabulary, words, job, inputs, threads=threads, progress=progress, seen_as=seen_as)
    finally:
        store.release()


def _missing(store: RemoteDirectory, job: dict) -> bool:
    """Return whether splits of a job are missing somewhere that were counted elsewhere, as after a change of its text."""
    ledgers = [set(shard.splits(job["id"])) for shard in store.shards]
    return any(ledger != ledgers[0] for ledger in ledgers) or not ledgers[0]

"""kvps work: count a part of the text of a job that another client of a server has begun."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from kvps.errors import InputGone, StoreError, StoreLocked
from kvps.jobs.counting import count_splits
from kvps.jobs.job_inputs import from_record
from kvps.ps.places import Address
from kvps.ps.remote_store import RemoteDirectory
from kvps.text.tokenize import store_tokenizer
from kvps.text.vocabulary import Vocabulary
from kvps.units import running_system

LOOK_S = 0.05


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
        job = _joined(store, deadline)
        if job is None:
            return None
        count = counter(store, job, tokenizer, threads, progress)
        epoch, at_work = store.at_work()
        while at_work == job["id"]:
            # Of another epoch, what was counted may have been taken back; where it was not, there is nothing to do.
            with contextlib.suppress(StoreLocked):     # the epoch is over already
                count(epoch)
            while (now := store.at_work()) == (epoch, job["id"]):
                time.sleep(LOOK_S)
            epoch, at_work = now
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


def _joined(store: RemoteDirectory, deadline: float) -> dict | None:
    """Return the job that counts text and is at work; None where there is none by the deadline."""
    while True:
        _, at_work = store.at_work()
        job = None if at_work is None else store.root.job()
        if job is not None and job["id"] == at_work and job["inputs"]:
            return job
        if time.monotonic() > deadline:
            return None
        time.sleep(LOOK_S)


def counter(store: RemoteDirectory, job: dict, tokenizer: str | None, threads: int,
            progress: Callable[[int], None] = lambda n: None) -> Callable[[int], None]:
    """Return what counts a part of a job's text in the session of an epoch, until all is counted; errors as work()'s."""
    words = store_tokenizer(store.path, store.identity["tokenizer"], tokenizer)
    inputs = [from_record(store.path, row["input"]) for row in job["inputs"]]
    seen_as = [(item.fingerprint(), row["fingerprint"]) for item, row in zip(inputs, job["inputs"], strict=True)]
    here = job.get("machine") not in (None, "") and job["machine"] == running_system()
    files = job.get("files") or [None] * len(inputs)
    for item, row, file, (found, recorded) in zip(inputs, job["inputs"], files, seen_as, strict=True):
        if here and found == recorded and file is not None and item.file() == file:        # the very file
            continue
        if item.digest() != row["digest"]:     # size and time would tell nothing of another machine's file
            raise InputGone(f"{item.name}: is not the text that the {job['command']} counts; workers need its inputs under "
                            "the same paths", path=item.name)

    def count(epoch: int) -> None:
        store.take_part(epoch)
        vocabulary = Vocabulary(store.root.words(), store.root.share_words, closed="closed" in store.identity)
        try:
            count_splits(store, vocabulary, words, job, inputs, threads=threads, progress=progress, seen_as=seen_as)
        finally:
            store.release()

    return count

"""What is going on with a store, told by a reader while a writer works: owner lock, job record and ledgers."""
from __future__ import annotations

import time
from pathlib import Path

from kvps.jobs.counting import raw_bytes
from kvps.jobs.job_inputs import job_bytes
from kvps.ps.places import address, open_place
from kvps.store import lock
from kvps.store.directory import StoreDirectory


def status(path: str | Path) -> dict:
    """Return the state of a store and of the job at work on it, or left undone.

    Returns:
        "store", "state" (idle, running or interrupted), "version" (the committed one, which readers see), "command"
        and "pid" of the writer or the interrupted job, "started" [s since 1970], "elapsed_s" of the running process,
        "done_bytes" and "total_bytes" of the inputs as they lie on disk, "remaining_s" of counting at the pace so far.
        None where it does not apply or nobody knows: the total of NLTK's corpora, the time before the first split is
        done. A forget verifies after it has counted; that time is not in remaining_s.
    """
    there = address(path)
    owner = lock.owner(path) if there is None and (Path(path) / lock.NAME).exists() else None
    with open_place(path) as store:
        return store.run(status_of, here={"owner": owner})


def status_of(store: StoreDirectory, owner: dict | None) -> dict:
    """Return what status() does, of an open store; `owner` says who writes, as lock.owner() does."""
    version, job = store.root.state()["version"], store.root.job()
    rows = _everywhere([shard.splits(job["id"]) for shard in store.shards]) if job else []
    where = str(store.path)
    now = time.time()
    started = owner.get("started") if owner else None
    done = sum(raw_bytes(row) for row in rows)
    total = job_bytes(job) if job else None
    return {
        "store": where, "state": "running" if owner else "interrupted" if job else "idle", "version": version,
        "command": job["command"] if job else owner and owner.get("command"), "pid": owner and owner.get("pid"),
        "started": started, "elapsed_s": started and round(now - started, 3),
        "done_bytes": done if job else None, "total_bytes": total,
        "remaining_s": (_remaining_s(rows, total - done, max(started, job["started"]), now)
                        if started and total else None)}


def _everywhere(ledgers: list[dict[int, dict]]) -> list[dict]:
    """Return the rows of the splits that every shard has applied, with the time at which the last one did."""
    numbers = set(ledgers[0]).intersection(*ledgers[1:])
    return [{**ledgers[0][number], "time": max(ledger[number]["time"] for ledger in ledgers)} for number in numbers]


def _remaining_s(rows: list[dict], bytes_left: int, started: float, now: float) -> float | None:
    """Return how long the rest takes at the pace of this process, counting since `started`; None before it has one.

    A resumed job's earlier splits are done, but say nothing about today's pace. A worker that hangs makes the pace
    fall, and the answer grow.
    """
    recent = sum(raw_bytes(row) for row in rows if row["time"] >= started)
    if recent == 0:
        return None
    return round(max(0, bytes_left) * (now - started) / recent, 1)

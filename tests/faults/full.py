"""A disk that becomes full at one call of a workload and stays so: what readers and repetitions meet, and how it ends.

Runs in the server (server.py), after workloads.prepare().
"""
from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from processes import summary

from faults.library import Kind, Loaded
from faults.server import Ended, cli, forked
from faults.workloads import WORKLOADS, Workload, check_end, finish, fresh, readable, run, same

BALLAST = "ballast"


def fault(folder: str, name: str, at: int, kind: int, seed: int | str) -> dict:
    """Let the disk be full from a workload's call number `at` on; as workloads.fault()."""
    disk, workload, loaded = Path(folder) / "disk", WORKLOADS[name], Loaded()
    store = fresh(workload, disk)
    ended = run(workload, store, lambda: loaded.arm(disk, at, Kind(kind)))
    fired = loaded.fired()
    return _judged(workload, store, fired, ended, seed, lambda: loaded.arm(disk, 1, Kind.ENOSPC_EVER), lambda: None)


def level(folder: str, name: str, leave: int, seed: int | str) -> dict:
    """Run a workload on a disk, FOLDER/disk, that is full but for `leave` bytes; as workloads.fault()."""
    disk, workload = Path(folder) / "disk", WORKLOADS[name]
    store = fresh(workload, disk)
    if workload.start and not workload.killed_at and not workload.finds:       # a store with free pages would need no room
        ended = cli(["compact", store, "--vacuum"], first=lambda: Loaded().arm(None))
        assert ended.code == 0, ended.err
    with open(disk / BALLAST, "wb") as file:
        found = os.statvfs(disk)
        if (ballast := found.f_bavail * found.f_frsize - leave) > 0:
            os.posix_fallocate(file.fileno(), 0, ballast)
    ended = run(workload, store, lambda: Loaded().arm(None))
    fired = f"{leave} bytes are left" if ended.code else ""
    return _judged(workload, store, fired, ended, seed, lambda: None, (disk / BALLAST).unlink)


def _judged(workload: Workload, store: Path, fired: str, ended: Ended, seed: int | str, stay_full: Callable[[], None],
            make_room: Callable[[], None]) -> dict:
    """Look at the outcome in a child; `stay_full` is called in one that meets the full disk, `make_room` before the end."""
    checked = forked(lambda: _check(workload, store, fired, ended, random.Random(seed), stay_full, make_room))
    failure = None
    if checked.code:
        failure = (f"{workload.name}, full at {fired or 'no call'}, seed {seed}: exit {ended.code}: {ended.err.strip()}\n"
                   f"then exit {checked.code}: {checked.err}")
    return {"fired": fired, "code": ended.code, "how": checked.result, "failure": failure}


def _check(workload: Workload, store: Path, fired: str, ended: Ended, rng: random.Random, stay_full: Callable[[], None],
           make_room: Callable[[], None]) -> str:
    """Assert that nothing is lost while the disk is full, and that the same command ends the work once there is room."""
    check_end(Kind.ENOSPC_EVER if fired else Kind.NONE, ended, store.parent)
    if fired and store.exists():
        checked = forked(lambda: _readers(workload, store, stay_full))
        assert checked.code == 0, f"readers of a full disk: exit {checked.code}: {checked.err}"
        done = workload.is_job and summary(store)[0] == workload.version
        again = run(workload, store, stay_full)
        if not (done and again.code == workload.repeat):
            check_end(Kind.ENOSPC_EVER, again, store.parent)
    make_room()
    return finish(workload, store, rng, how="again" if fired else None)


def _readers(workload: Workload, store: Path, stay_full: Callable[[], None]) -> None:
    """Read a store on a full disk, by commands that need no compiled model."""
    stay_full()
    if workload.finds and not readable(workload, store):
        return
    version, base = summary(store)[0], workload.base
    assert version in (base.version if base else 0, workload.version)
    done = workload.finds or (version == workload.version and workload.is_job)
    same(store, workload.holds if done else base.holds if base else "")
    for command in (["status", store], ["dump", store, "--order", 2]):
        ended = cli(command, first=stay_full)
        assert ended.code == 0, ended.err

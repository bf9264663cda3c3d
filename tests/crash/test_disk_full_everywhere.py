"""A disk that becomes full at any call and stays so: readers go on, and the same command ends the work once there is room."""
import os
import shutil
import subprocess
import time
from collections import Counter

import pytest
from faults.library import Kind, Op
from faults.server import Server, scratch

pytestmark = pytest.mark.crash

DEFAULT_FAULTS, DEFAULT_LEVELS = 18, 18
DISK_BYTES, PAGE_BYTES = 24 << 20, 4096
KINDS = (Kind.ENOSPC_EVER, Kind.SHORT_ENOSPC)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that has prepared the workloads; its folder; by workload, (Op, whether it makes a file) of its calls."""
    with scratch(tmp_path_factory.mktemp("full")) as folder, Server() as server:
        calls = server.call("workloads:prepare", str(folder))
        yield server, str(folder), {name: [(Op(op), creates) for op, creates in ops] for name, ops in calls.items()}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A server that has prepared the workloads in a folder whose `disk` is a small file system of its own; the folder."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path_factory.mktemp("full").resolve()
    (folder / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder / "disk"], capture_output=True,
                             text=True, timeout=60)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        with Server() as server:
            calls = server.call("workloads:prepare", str(folder))
            yield server, str(folder), list(calls)
    finally:
        subprocess.run(["umount", folder / "disk"], check=True, timeout=60)


def judge(began, reached, failures, at_least):
    """Print what was reached, and assert that nothing failed."""
    n_reached = sum(reached.values())
    print(f"{n_reached} full disks in {time.monotonic() - began:.0f} s:", dict(sorted(reached.items())))
    assert not failures, f"{len(failures)} of {n_reached}:\n" + "\n".join(failures[:5])
    assert n_reached >= at_least


def fill(server, chosen):
    """Let the disk be full from these calls on, (workload, number, Kind) each; return (how many were, failures)."""
    server, folder, _ = server
    reached, failures = Counter(), []
    for name, at, kind in chosen:
        done = server.call("full:fault", folder, name, at, int(kind), f"{name} {at}")
        reached[name] += bool(done["fired"])
        if done["failure"]:
            failures.append(done["failure"])
    return reached, failures


def possible(calls):
    """Return every place at which a disk may become full, as (workload, number of the call, Kind)."""
    return [(name, at, kind) for name, ops in calls.items() for at, call in enumerate(ops, 1) for kind in KINDS
            if kind.suits(*call)]


def test_full_at_a_call(server, rng):
    """A disk that is full from a call on stops the command with exit 4 and one line, and nothing else; some calls of each."""
    began, places = time.monotonic(), possible(server[2])
    chosen = [rng.choice([place for place in places if place[0] == name]) for name in server[2]
              for _ in range(DEFAULT_FAULTS // len(server[2]))]
    judge(began, *fill(server, chosen), 0.8 * len(chosen))


@pytest.mark.slow
def test_full_at_every_call(server):
    """So does one that is full from any call on that needs space."""
    began, places = time.monotonic(), possible(server[2])
    judge(began, *fill(server, places), 0.98 * len(places))


def leave(small_disk, chosen):
    """Run workloads on a disk with so many bytes left, (workload, bytes) each; return (how many met it full, failures)."""
    server, folder, _ = small_disk
    reached, failures = Counter(), []
    for name, n_bytes in chosen:
        done = server.call("full:level", folder, name, n_bytes, f"{name} {n_bytes}")
        reached[name] += bool(done["fired"])
        if done["failure"]:
            failures.append(done["failure"])
    return reached, failures


def needs(small_disk, name):
    """Return how many bytes a workload needs, to a page; fewer are not enough."""
    server, folder, _ = small_disk
    low, high = -1, DISK_BYTES // PAGE_BYTES // 2
    while high - low > 1:
        middle = (low + high) // 2
        done = server.call("full:level", folder, name, middle * PAGE_BYTES, 0)
        assert not done["failure"], done["failure"]
        low, high = (middle, high) if done["fired"] else (low, middle)
    return high * PAGE_BYTES


def test_small_disk(small_disk, rng):
    """On a small disk that is nearly full every command stops with exit 4 and one line; at some levels of each."""
    began, chosen = time.monotonic(), []
    names = small_disk[2]
    for name in names:
        chosen += [(name, PAGE_BYTES * rng.randrange(8)) for _ in range(DEFAULT_LEVELS // len(names))]
    judge(began, *leave(small_disk, chosen), len(chosen) // 3)


@pytest.mark.slow
def test_small_disk_at_every_level(small_disk):
    """So it does at every level at which the command finds too little room, page by page."""
    began, chosen = time.monotonic(), []
    for name in small_disk[2]:
        chosen += [(name, n_bytes) for n_bytes in range(0, needs(small_disk, name) + 4 * PAGE_BYTES, PAGE_BYTES)]
    judge(began, *leave(small_disk, chosen), len(chosen) // 2)

"""Every call that changes a store going wrong: what is left can be brought to its end, and no count is lost or doubled."""
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
from faults.library import Kind, Op, preloaded, read_log
from faults.server import Server, scratch
from faults.workloads import NEW, WORK, WORKLOADS
from processes import DRIVER, TIMEOUT_S, contents, counted, environment, run, zipf_text

pytestmark = pytest.mark.crash

DEFAULT_FAULTS = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that has prepared the workloads; by workload, (Op, whether it makes a file) of each of its calls."""
    with scratch(tmp_path_factory.mktemp("faults")) as folder, Server() as server:
        calls = server.call("workloads:prepare", str(folder))
        yield server, {name: [(Op(op), creates) for op, creates in ops] for name, ops in calls.items()}


def inject(server, seed, chosen, max_s):
    """Let faults happen, (workload, number of the call, Kind) each; print what was reached; return how many happened."""
    began, reached, failures = time.monotonic(), Counter(), []
    try:
        for number, (name, at, kind) in enumerate(chosen):
            assert time.monotonic() - began < max_s, f"only {number} faults of {len(chosen)} in {max_s} s"
            done = server.call("workloads:fault", name, at, int(kind), f"{seed} {name} {at} {kind}")
            if done["fired"]:
                reached[name, kind.name] += 1
            if done["failure"]:
                failures.append(done["failure"])
    finally:                                   # also of a run that is stopped
        print(f"seed {seed}: {reached.total()} faults in {time.monotonic() - began:.0f} s, {len(failures)} bad:",
              ", ".join(f"{name} {kind} {n}" for (name, kind), n in sorted(reached.items())))
    assert not failures, f"{len(failures)} of {reached.total()} faults:\n" + "\n".join(failures[:5])
    return reached.total()


def possible(calls):
    """Return every fault there is, as (workload, number of the call, Kind)."""
    return [(name, at, kind) for name, ops in calls.items() for at, call in enumerate(ops, 1) for kind in Kind
            if kind.suits(*call)]


def test_faults(server, seed, rng):
    """Sampled calls of every workload fail in every way, and the work is ended exactly by resume, repetition or abort."""
    server, calls = server
    faults = possible(calls)
    chosen = []
    kinds = [kind for kind in Kind if kind != Kind.NONE]
    rng.shuffle(kinds)
    for number in range(DEFAULT_FAULTS):                # each workload with as many kinds as there is time for
        name, kind = list(calls)[number % len(calls)], kinds[number // len(calls) % len(kinds)]
        chosen.append(rng.choice([fault for fault in faults if fault[0] == name and fault[2] == kind]))

    assert inject(server, seed, chosen, 300) >= 0.9 * DEFAULT_FAULTS


@pytest.mark.slow
def test_every_fault(server, seed):
    """Every call of every workload fails in every way, and the work is ended exactly."""
    server, calls = server
    faults = possible(calls)
    random.Random(seed).shuffle(faults)

    assert inject(server, seed, faults, 7200) >= 0.98 * len(faults)
    assert len(faults) >= 5000


def test_workloads_reach_every_step(server):
    """The workloads make each sort of call that a store makes, and the first one many."""
    _, calls = server

    assert {op for ops in calls.values() for op, _ in ops} == set(Op) - {Op.MARK, Op.LINK}
    assert set(calls) == set(WORKLOADS)
    assert len(calls["train"]) > 200


# The system calls that the library sees, by the sort under which it writes them down.
SYSTEM_CALLS = {
    "open": Op.OPEN, "openat": Op.OPEN, "openat2": Op.OPEN, "creat": Op.OPEN, "write": Op.WRITE, "pwrite64": Op.WRITE,
    "writev": Op.WRITE, "pwritev": Op.WRITE, "pwritev2": Op.WRITE, "truncate": Op.TRUNCATE, "ftruncate": Op.TRUNCATE,
    "fallocate": Op.ALLOCATE, "fsync": Op.SYNC, "fdatasync": Op.SYNC, "msync": Op.SYNC, "sync_file_range": Op.SYNC,
    "rename": Op.RENAME, "renameat": Op.RENAME, "renameat2": Op.RENAME, "unlink": Op.UNLINK, "unlinkat": Op.UNLINK,
    "rmdir": Op.RMDIR, "mkdir": Op.MKDIR, "mkdirat": Op.MKDIR, "link": Op.LINK, "linkat": Op.LINK, "sync": None, "syncfs": None,
    "sendfile": None, "copy_file_range": None, "symlink": None, "symlinkat": None, "mknod": None, "mknodat": None,
    "io_uring_enter": None, "splice": None}


def traced(path, folder):
    """Return the calls of a strace below a folder: a Counter of the sorts, Op or the name of one that is not watched."""
    found = Counter()
    for line in path.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if not match or str(folder) not in match[2]:
            continue
        # What the C library opens by itself, only to read: opendir() and fopen().
        if "O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY" in line or "O_RDONLY)" in line:
            continue
        op = SYSTEM_CALLS.get(match[1], match[1])
        if op == Op.UNLINK and "AT_REMOVEDIR" in line:
            op = Op.RMDIR
        found[match[1] if op is None else op] += 1
    return found


def test_library_misses_nothing(tmp_path):
    """The library sees every call on a store that strace sees, and no memory of its data is mapped for writing."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to compare")
    disk, text = tmp_path.resolve() / "disk", tmp_path / "text"
    text.write_bytes(zipf_text(1, 300))
    seen, expected = Counter(), Counter()
    for command in (["train", disk / "store", text, *NEW, *WORK], ["forget", disk / "store", text, *WORK],
                    ["update", disk / "store", text, *WORK], ["compact", disk / "store", "--vacuum"], ["compile", disk / "store"]):
        disk.mkdir(exist_ok=True)
        log, trace = tmp_path / "log", tmp_path / "trace"
        line = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(trace), "-e", f"trace={','.join(SYSTEM_CALLS)},mmap",
                sys.executable, str(DRIVER), *map(str, command)]
        more = preloaded(disk, log=log)
        line[1:1] = [f"-E{name}={value}" for name, value in more.items()]
        done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
        if not trace.exists() or not trace.stat().st_size:
            pytest.skip(f"strace does not work here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        seen += Counter(call.op for call in read_log(log))
        expected += traced(trace, disk)
        log.unlink()
        for mapping in re.findall(r"mmap\(.*PROT_WRITE.*MAP_SHARED.*", trace.read_text()):
            assert str(disk) not in mapping or "/lock.mdb>" in mapping
    expected.pop("mmap", None)

    assert seen == expected
    assert seen[Op.WRITE] > 50


@pytest.mark.parametrize("kind", [Kind.KILL_HALF, Kind.EIO_ONCE, Kind.SHORT_ENOSPC])
def test_fault_in_a_process(tmp_path, rng, kind):
    """A fault in the program as users start it, not in a forked child, is no different."""
    disk, text = tmp_path / "disk", zipf_text(1, 300)
    disk.mkdir()
    (tmp_path / "text").write_bytes(text)
    command = ("train", disk / "store", tmp_path / "text", *NEW, *WORK)
    run(*command, small=True, env=preloaded(disk, log=tmp_path / "log"))
    writes = [call.number for call in read_log(tmp_path / "log") if call.op == Op.WRITE]
    shutil.rmtree(disk / "store")

    done = run(*command, small=True, check=None, env=preloaded(disk, rng.choice(writes), kind))

    if "is committed, but merging is put off" in done.stderr:          # the fault came after what was asked for
        assert done.returncode == 0
    else:
        assert done.returncode == {Kind.KILL_HALF: -9, Kind.EIO_ONCE: 1, Kind.SHORT_ENOSPC: 4}[kind], done.stderr
        assert ("full" in done.stderr) == (kind == Kind.SHORT_ENOSPC)
        run(*command, small=True)
    assert contents(disk / "store") == counted(text, 3)

"""Power cuts at any call of a store's life: what was acknowledged is there, and what was not can be brought to its end."""
import random
import time
from collections import Counter

import pytest
from faults.library import CREATED, DIRECTORY, NO_LENGTH, SYNCED, Call, Op
from faults.power import PAGE_BYTES, STORY, Disk, Plan
from faults.server import Server, scratch

pytestmark = pytest.mark.crash

DEFAULT_STATES, ALL_STATES = 100, 20_000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A server that has recorded the story; its folder; where in the log each command begins, and the log's length."""
    with scratch(tmp_path_factory.mktemp("power")) as folder, Server() as server:
        calls = server.call("workloads:prepare", str(folder))
        places = server.call("power:record", str(folder), {name: len(ops) for name, ops in calls.items()})
        yield server, str(folder), places


def cut(recorded, seed, n_states, max_s, *, lies=False):
    """Cut the power at `n_states` places, as many within each command; print what was reached, return the failures."""
    server, folder, places = recorded
    rng = random.Random(seed)
    chosen = []
    for number in range(n_states):
        command = number % (len(places) - 1)
        # The first time not after its end.
        chosen.append(rng.randint(places[command] + 1, places[command + 1] - (number < len(places) - 1)))
    began, reached, failures = time.monotonic(), Counter(), []
    try:
        for number, position in enumerate(sorted(chosen)):
            assert time.monotonic() - began < max_s, f"only {number} states of {n_states} in {max_s} s"
            done = server.call("power:cut", folder, position, f"{seed} {number} {position}", lies)
            reached[done["moment"]] += 1
            if done["failure"]:
                failures.append(done["failure"])
    finally:                                   # also of a run that is stopped
        print(f"seed {seed}: {reached.total()} states in {time.monotonic() - began:.0f} s, {len(failures)} bad:",
              ", ".join(f"{moment} {n}" for moment, n in sorted(reached.items())))
    assert {name for name, _ in STORY} <= set(reached)
    return failures


def test_power_cuts(recorded, seed):
    """Power cuts in all commands lose nothing that was acknowledged, and the work is ended exactly."""
    failures = cut(recorded, seed, DEFAULT_STATES, 300)

    assert not failures, f"{len(failures)} states:\n" + "\n".join(failures[:5])


@pytest.mark.slow
def test_20_000_power_cuts(recorded, seed):
    """So do 20,000."""
    failures = cut(recorded, seed, ALL_STATES, 4 * 3600)

    assert not failures, f"{len(failures)} states:\n" + "\n".join(failures[:5])


def test_disk_that_lies(recorded, seed):
    """The same power cuts on a disk that does not sync when it is told to lose data: these tests would notice a sync too few."""
    assert len(cut(recorded, seed, 36, 120, lies=True)) >= 5


# The model of a disk itself. Inode 1 is the folder, 2 a file in it.

def call(op, path="/disk/file", inode=2, **fields):
    """Return a call as the log has it."""
    known = {"flags": 0, "folder": 1, "target": 0, "offset": 0, "length": 0, "other": "", "data": b""}
    return Call(1, op, error=0, inode=inode, path=path, **{**known, **fields})


MAKE = call(Op.OPEN, flags=CREATED, length=NO_LENGTH)
SYNC_FILE, SYNC_FOLDER = call(Op.SYNC), call(Op.SYNC, inode=1, flags=DIRECTORY)


def written(data, offset=0, flags=0):
    """Return a call that writes."""
    return call(Op.WRITE, offset=offset, data=data, length=len(data), flags=flags)


def outcomes(tmp_path, rng, *calls, n=300):
    """Return what is found after cuts that follow these calls: contents by name, each as sorted pairs."""
    disk, found = Disk(1), set()
    tmp_path.mkdir(exist_ok=True)
    for each in calls:
        disk.apply(each)
    for number in range(n):
        target = tmp_path / str(number)
        disk.write(target, rng, Plan.draw(rng))
        found.add(tuple(sorted((str(path.relative_to(target)), path.read_bytes()) for path in target.rglob("*") if path.is_file())))
    return found


def test_file_that_was_not_synced(tmp_path, rng):
    """A file that was not synced is missing, empty, in part zeros, or whole, though its folder was."""
    data = b"a" * 512 + b"b" * 512

    assert outcomes(tmp_path, rng, MAKE, written(data)) == {
        (), *(((("file", found)),) for found in (b"", data, bytes(512) + data[512:], data[:512] + bytes(512), bytes(1024)))}


def test_file_that_was_synced_in_a_folder_that_was_not(tmp_path, rng):
    """A file that was synced is whole, if its folder has it."""
    assert outcomes(tmp_path, rng, MAKE, written(b"a"), SYNC_FILE) == {(), (("file", b"a"),)}
    assert outcomes(tmp_path / "synced", rng, MAKE, written(b"a"), SYNC_FILE, SYNC_FOLDER) == {(("file", b"a"),)}


def test_rename_that_was_not_synced(tmp_path, rng):
    """A rename has happened or has not; never both names, never none."""
    rename = call(Op.RENAME, other="/disk/new", target=1)

    assert outcomes(tmp_path, rng, MAKE, written(b"a"), SYNC_FILE, SYNC_FOLDER, rename) == {(("file", b"a"),), (("new", b"a"),)}
    assert outcomes(tmp_path / "synced", rng, MAKE, written(b"a"), SYNC_FILE, rename, SYNC_FOLDER) == {(("new", b"a"),)}


def test_synced_write_among_others(tmp_path, rng):
    """A write through O_DSYNC is there, with the page that it lies on; other pages need not be."""
    first, second = b"a" * PAGE_BYTES, b"b" * PAGE_BYTES
    found = outcomes(tmp_path, rng, MAKE, SYNC_FOLDER, written(first + second), written(b"c", 1, SYNCED))

    pages = {contents[0][1] for contents in found}
    assert {page[:PAGE_BYTES] for page in pages} == {b"ac" + first[2:]}
    assert {page[PAGE_BYTES:] for page in pages} >= {b"", second, bytes(PAGE_BYTES)}


def test_removal_that_was_not_synced(tmp_path, rng):
    """A file that was removed may be there again, whole if it was synced."""
    calls = MAKE, written(b"a"), SYNC_FILE, SYNC_FOLDER, call(Op.UNLINK)

    assert outcomes(tmp_path, rng, *calls) == {(), (("file", b"a"),)}
    assert outcomes(tmp_path / "synced", rng, *calls, SYNC_FOLDER) == {()}


def test_length_that_was_not_synced(tmp_path, rng):
    """A file that was cut and written anew has one of its lengths, each byte old, new or zero."""
    found = outcomes(tmp_path, rng, MAKE, written(b"aaaa"), SYNC_FILE, SYNC_FOLDER, call(Op.TRUNCATE, length=0), written(b"bb"))

    assert {contents[0][1] for contents in found} == {b"aaaa", b"", b"aa", b"bb", b"bb\0\0"}


def test_states_are_the_same_again(tmp_path):
    """The same seed makes the same state."""
    calls = MAKE, written(bytes(range(256)) * 64), SYNC_FOLDER
    found = [outcomes(tmp_path / name, random.Random(7), *calls, n=5) for name in "ab"]

    assert found[0] == found[1]

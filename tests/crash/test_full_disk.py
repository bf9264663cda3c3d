"""A disk without room: every command ends with exit 4 and loses nothing, and goes on once there is room."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import contents, counted, refused, run, run_json, summary, zipf_text

pytestmark = pytest.mark.crash

ORDER = 3
SMALL = ("--memory", "64K")
DISK_BYTES = 12 << 20


@pytest.fixture
def disk(tmp_path):
    """A folder on a small disk of its own: a tmpfs in a mount namespace, which needs no root, seen from outside."""
    inner = tmp_path / "disk"
    inner.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount a small disk")
    mount = 'mount -t tmpfs -o size="$1" none "$2" && echo ready && exec cat'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(DISK_BYTES), str(inner)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as holder:
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"cannot mount a small disk here: {holder.stderr.read().strip()}")
        yield Path(f"/proc/{holder.pid}/root{inner}")
        holder.stdin.close()


def fill(disk, leave):
    """Fill the disk but for `leave` bytes."""
    with (disk / "ballast").open("wb") as file:
        found = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)


def make_room(disk):
    """Take the filling away."""
    (disk / "ballast").unlink()


@pytest.fixture
def texts(tmp_path):
    """Two texts, outside the small disk."""
    for name, seed, lines in (("a", 1, 2500), ("b", 2, 2500)):
        (tmp_path / name).write_bytes(zipf_text(seed, lines))
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def store(disk, texts):
    """A store on the small disk, trained on the first text."""
    run("train", disk / "store", texts[0], "--order", ORDER)
    return disk / "store"


@pytest.mark.parametrize(("command", "leave", "again"), [
    ("update", 0, "repeat"), ("update", 50_000, "resume"), ("update", 200_000, "repeat"), ("update", 200_000, "resume"),
    ("forget", 0, "repeat"), ("forget", 50_000, "resume"), ("forget", 200_000, "repeat")])
def test_job_on_a_full_disk(disk, store, texts, command, leave, again):
    """A job that fills the disk stops with exit 4; readers see the old version; with room again it goes on."""
    a, b = (path.read_bytes() for path in texts)
    line = (command, store, texts[command == "update"], *SMALL)
    fill(disk, leave)
    message = refused(*line, small=True, code=4)
    assert "full" in message
    assert str(disk) in message
    assert contents(store) == counted(a, ORDER)
    assert refused(*line, small=True, code=4)
    make_room(disk)

    pending = summary(store)[3]
    run(*(("resume", store) if again == "resume" and pending else line), small=True)

    assert contents(store) == (counted(a + b, ORDER) if command == "update" else {})


@pytest.mark.parametrize("leave", [0, 20_000, 150_000, 400_000])
def test_train_on_a_full_disk(disk, texts, leave):
    """A train without room for its store leaves none or one that can go on, and the same command ends it later."""
    fill(disk, leave)
    message = refused("train", disk / "store", texts[0], "--order", ORDER, *SMALL, small=True, code=4)
    assert "full" in message
    assert not [entry.name for entry in disk.iterdir() if ".tmp-" in entry.name]
    make_room(disk)

    run("train", disk / "store", texts[0], "--order", ORDER, *SMALL, small=True)

    assert contents(disk / "store") == counted(texts[0].read_bytes(), ORDER)


def test_abort_on_a_full_disk(disk, store, texts):
    """A job that filled the disk is rolled back, at the latest when there is a little room: deleting needs some."""
    before = contents(store)
    fill(disk, 200_000)
    refused("update", store, texts[1], *SMALL, small=True, code=4)
    if run("abort", store, check=None).returncode:
        assert "full" in refused("abort", store, code=4)
        make_room(disk)
        fill(disk, 100_000)
        run("abort", store)

    assert contents(store) == before
    assert summary(store)[3] is False


def test_compile_on_a_full_disk(disk, store, texts):
    """A model that finds no room is not left half made, and is made when there is room."""
    fill(disk, 100_000)
    for command in (("compile", store), ("perplexity", store, texts[1])):
        message = refused(*command, code=4)
        assert "full" in message
        assert str(disk) in message
    assert not list((store / "models").glob("*.kvm*"))
    make_room(disk)

    assert run_json("perplexity", store, texts[1])["version"] == 1


@pytest.mark.parametrize("vacuum", [(), ("--vacuum",)], ids=["merge", "vacuum"])
def test_compact_on_a_full_disk(disk, store, texts, vacuum):
    """A compaction that finds no room leaves the runs as they were, and works later."""
    run("update", store, texts[1])
    before = contents(store)
    fill(disk, 40_000)
    message = refused("compact", store, *vacuum, code=4)
    assert "full" in message
    assert contents(store) == before
    make_room(disk)

    run("compact", store, *vacuum)

    assert contents(store) == before


def test_readers_on_a_full_disk(disk, store, texts):
    """What only reads works on a disk without a free byte."""
    run("compile", store)
    fill(disk, 0)

    assert run_json("perplexity", store, texts[1])["version"] == 1
    assert run_json("status", store)["state"] == "idle"
    assert run_json("stats", store)["version"] == 1
    assert contents(store) == counted(texts[0].read_bytes(), ORDER)


def test_export_to_a_full_disk(disk, texts, tmp_path):
    """An export that finds no room says where, and leaves no half file."""
    run("train", tmp_path / "store", texts[0], "--order", ORDER)
    fill(disk, 100_000)

    message = refused("export", tmp_path / "store", disk / "model.arpa", code=4)

    assert str(disk) in message
    assert sorted(entry.name for entry in disk.iterdir()) == ["ballast"]

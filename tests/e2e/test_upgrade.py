"""kvps upgrade: stores that older versions wrote (tests/data) become stores of ours, whatever happens on the way."""
import os
import shutil
import signal
from pathlib import Path

import pytest
from processes import contents, refused, run, run_json, tree

import kvps
from kvps.store import format as fmt
from kvps.store import seal
from kvps.store.environment import Environment

V1 = Path(__file__).parents[1] / "data" / "v1"


@pytest.fixture
def old(tmp_path):
    """Return a copy of the folder with stores of format 1, and their text."""
    return Path(shutil.copytree(V1, tmp_path / "v1"))


def dump(store):
    """Return what `kvps dump` says."""
    return run("dump", store, "--order", 3, "--sorted").stdout


def test_old_stores_are_refused_without_it(old):
    """Other commands name the command that carries an old store forward, and change nothing."""
    before = tree(old)
    for command in ("stats", "check", "status", "recover"):
        assert "kvps upgrade" in refused(command, old / "idle")
    assert "kvps upgrade" in refused("update", old / "idle", old / "c.txt")

    assert tree(old) == before


def test_an_idle_store(old):
    """The counts, versions and inputs of a store are what they were; it can be changed and is sound."""
    store = old / "idle"
    assert run_json("upgrade", store) == {"store": str(store), "from": 1, "to": 2, "version": 4, "shards": 2}

    assert dump(store) == (old / "idle.dump").read_text()
    assert kvps.check(store, "full") == []
    assert "already counted" in run("update", store, old / "a.txt").stdout
    run("update", store, old / "b.txt", "--label", "x")
    run("forget", store, "--label", "x")
    assert dump(store) == (old / "idle.dump").read_text()
    run("compact", store, "--vacuum")
    run("forget", store, old / "a.txt")
    assert len(contents(store)) == 5                           # "the cat of stdin"
    with kvps.open(store) as opened:
        commands = [row["command"] for row in opened.history()]
    assert commands == ["train", "update", "update", "forget", "update", "forget", "forget"]


def test_an_interrupted_job(old):
    """A job that the older version left is resumed by ours, and each n-gram is counted once."""
    store = old / "pending"
    run("upgrade", store)
    assert run_json("status", store)["done_bytes"] > 0

    run("update", store, old / "c.txt")
    assert dump(store) == (old / "pending.dump").read_text()
    assert kvps.check(store, "full") == []


def test_an_interrupted_job_is_rolled_back(old):
    """It can be rolled back too."""
    store = old / "pending"
    run("upgrade", store)
    run("abort", store)

    assert run_json("status", store)["version"] == 1
    assert kvps.check(store, "full") == []


def test_a_shard_is_made_again_from_an_old_history(old):
    """A history of format 1 does not say how text was read; the text that is given does."""
    store = old / "idle"
    run("upgrade", store)
    shutil.rmtree(store / "shards" / "0001.0")
    (old / "stdin").write_text("the cat of stdin\n")
    run("recover", store, "--yes", "--input", old / "a.txt", "--input", old / "stdin")

    assert dump(store) == (old / "idle.dump").read_text()


def test_again(old):
    """A store of our format is left alone."""
    run("upgrade", old / "idle")
    before = tree(old)

    assert "format 2 already" in run("upgrade", old / "idle").stdout
    assert run_json("upgrade", old / "idle")["from"] == 2
    assert tree(old) == before


@pytest.mark.parametrize("moved", [False, True])
def test_a_store_of_ours_without_its_seal(old, tmp_path, moved):
    """A store of our format that lost its seal did not come from format 1: upgrade says what helps, and changes nothing."""
    store = tmp_path / "s"
    run("train", store, old / "a.txt", "-o", 2, "--shards", 1)
    if moved:
        run("update", store, old / "b.txt", "--label", "x")
        run("forget", store, "--label", "x", "--purge")
    (store / seal.NAME).unlink()
    before = tree(store)

    assert "is of format 2 already, but its seal is missing: run kvps recover" in refused("upgrade", store, code=3)
    assert tree(store) == before
    run("recover", store, "--yes")
    assert run_json("upgrade", store)["from"] == 2


STEPS = ["before kvps.jobs.upgrade:_carry_shard 1", "after kvps.jobs.upgrade:_carry_shard 1",
         "after kvps.jobs.upgrade:_carry_shard 2",
         "before kvps.store.environment:Environment._may_write 1", "before kvps.store.environment:Environment._may_write 3",
         "before kvps.store.files:rename 1", "after kvps.store.files:rename 1", "before kvps.store.seal:write 1",
         "before kvps.store.files:atomic_write 1", "after kvps.store.seal:write 1"]


@pytest.mark.crash
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(old, step):
    """An upgrade that is killed is done by the next one; in between no command takes the store for a sound one."""
    store = old / "idle"
    run("upgrade", store, stop_at=f"SIGKILL {step}", check=-signal.SIGKILL)
    if not seal.exists(store):
        refused("stats", store)
    run("upgrade", store)

    assert dump(store) == (old / "idle.dump").read_text()
    assert kvps.check(store, "full") == []


@pytest.mark.parametrize("shard", [0, 1])
def test_a_damaged_store(old, shard):
    """Where a checksum is wrong, a file is cut or missing, nothing is changed."""
    store, data = old / "idle", old / "idle" / "shards" / f"000{shard}.0" / "data.mdb"
    pages, at = bytearray(data.read_bytes()), -1
    while (at := pages.find(fmt.CHUNK_MAGIC, at + 1)) >= 0:
        pages[at + 60] ^= 1
    for contents_of in (bytes(pages), bytes(pages[:9000]), b"", None):
        if contents_of is None:
            data.unlink()
        else:
            data.write_bytes(contents_of)
        before = tree(old)
        assert refused("upgrade", store, code=3)
        assert tree(old) == before


def rewrite(folder, number):
    """Let the identity in a folder say another format."""
    env = Environment.open(folder, writable=True)
    with env.write() as txn:
        row = fmt.unpack_row(fmt.IDENTITY, txn.get(fmt.IDENTITY))
        txn.put(fmt.IDENTITY, fmt.pack_row(fmt.IDENTITY, {**row, "format": number}))
    env.close()


def test_a_newer_format(old, tmp_path):
    """A store of a format to come is refused with its number, by upgrade as by others, and not changed."""
    store = tmp_path / "s"
    run("train", store, old / "a.txt", "-o", 2, "--shards", 1)
    record = seal.read(store)
    seal.write(store, {**record, "format": 3})
    before = tree(store)
    for command in ("upgrade", "check", "recover", "stats"):
        message = refused(command, store)
        assert "format 3" in message and "newer" in message
    assert tree(store) == before

    rewrite(old / "idle" / "root", 3)
    assert "format 3" in refused("upgrade", old / "idle")


def test_what_is_no_store(tmp_path):
    """What is no store is refused; so is a link in one."""
    assert "no such store" in refused("upgrade", tmp_path / "missing")
    assert "not a kvps store" in refused("upgrade", tmp_path)


def test_a_link_in_an_old_store(old):
    """A symbolic link in a store is not followed."""
    shard = old / "idle" / "shards" / "0000.0"
    shard.rename(old / "elsewhere")
    os.symlink(old / "elsewhere", shard)

    assert "symbolic link" in refused("upgrade", old / "idle")

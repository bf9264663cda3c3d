"""Shards on other machines than their root: in folders of their own here, which is all that their servers can tell."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from machines import Machines
from processes import Served, counted, damage_shard, go_on, refused, run, run_json, start, stopped, zipf_text

import kvps
from kvps.errors import KvpsError
from kvps.ps.away import GONE_S, chunk_arrays
from kvps.ps.connection import Connection
from kvps.ps.home_service import HomeService
from kvps.ps.remote_store import RemoteDirectory
from kvps.store.shard import Shard

SMALL = ["--threads", 1, "--memory", "64K"]


@pytest.fixture
def machines(tmp_path):
    """Servers without a store, and texts a, b and c."""
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        (tmp_path / name).write_bytes(zipf_text(seed, 400, n_words=300))
    made = Machines(tmp_path)
    yield made
    made.end()


def plain(folder, *names):
    """Return what a store in one folder has of some texts."""
    run("train", folder / "plain", *(folder / name for name in names), "-o", 3, "--shards", 3)
    found = run("dump", folder / "plain", "-o", 3, "--sorted").stdout
    shutil.rmtree(folder / "plain")
    return found


@pytest.mark.slow
def test_moved_and_served(machines, tmp_path):
    """Shards go where they are to be, with all that they hold; the folder of the root says where they are not."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    run("update", machines.there, tmp_path / "b", "--label", "second")
    assert len(list((machines.store / "shards").iterdir())) == 1
    for number in (1, 2):
        assert len(list((tmp_path / f"home{number}" / "shards").iterdir())) == 1
    assert machines.contents() == plain(tmp_path, "a", "b")
    assert "shard 1 lies on another machine" in refused("stats", machines.store)
    assert "lies on another machine" in run("check", machines.store).stdout + run("check", machines.store).stderr
    assert json.loads(run("check", machines.there, "--full", "--json").stdout.splitlines()[-1])["damage"] == 0
    run("forget", machines.there, "--label", "second")
    run("compact", machines.there)
    machines.root.end()
    assert "shard 1 lies on another machine; say where" in refused("serve", machines.store, "--bind", f"ipc://{tmp_path}/x")
    machines.root.start()
    assert machines.contents() == plain(tmp_path, "a")


def test_a_store_that_was_whole(tmp_path):
    """A store in one folder gives shards away, exactly; not while a job is pending."""
    (tmp_path / "a").write_bytes(zipf_text(1, 400))
    (tmp_path / "b").write_bytes(zipf_text(2, 4000))
    run("train", tmp_path / "store", tmp_path / "a", "-o", 3, "--shards", 3)
    before = run("dump", tmp_path / "store", "-o", 3, "--sorted").stdout
    home = ("--shard", 1, "--root", f"kvps://{tmp_path}/root", "--bind", f"ipc://{tmp_path}/1")
    root = ("--bind", f"ipc://{tmp_path}/root", "--away", f"1=kvps://{tmp_path}/1")
    with Served(tmp_path / "home", *home):
        with stopped("update", tmp_path / "store", tmp_path / "b", *SMALL,
                     stop_at="SIGSTOP after kvps.store.shard:Shard.apply 9") as process:
            process.kill()
        assert "resume or abort it before" in refused("serve", tmp_path / "store", *root)
        run("abort", tmp_path / "store")
        with Served(tmp_path / "store", *root) as served:
            assert run("dump", served.address, "-o", 3, "--sorted").stdout == before
        assert "is using it (serve)" in refused("serve", tmp_path / "home", *home[:-1], f"ipc://{tmp_path}/2", code=5)


def test_made_again_out_of_order(machines, tmp_path):
    """Of a shard that is being made, what comes once more and late takes nothing away; one that was left is swept."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    before = machines.contents()
    folder = next((tmp_path / "home1" / "shards").iterdir())
    with Connection(f"ipc://{tmp_path}/1") as connection, Shard.open(folder, shard=1).snapshot() as snapshot:
        runs = snapshot.all_runs()
        identity = {"uuid": (tmp_path / "home1" / "store").read_text(), "shard": 1, "shards": 3, "order": 3}
        for attempt in ("x", "y"):
            new = {"attempt": attempt, "dir": f"shards/0001.200000000{'xy'.index(attempt)}", "identity": identity, "above": 0,
                   "writer": 0}
            connection.call("new", new)
            places = np.array([[run.id, index] for run in runs for index in range(run.n_chunks)], np.uint64)
            chunks = [(bytes(payload), n) for run in runs for payload, n in snapshot.chunks(run)]
            sent = [("new", new, {}), ("fill", {"attempt": attempt}, {**chunk_arrays(chunks), "places": places}),
                    ("list", {"attempt": attempt, "arguments": {"runs": [run.to_row() for run in runs]}}, {}),
                    ("count", {"attempt": attempt, "version": 1, "number": 1}, chunk_arrays(chunks[:1]))]
            for name, arguments, arrays in (*sent[1:], *sent):
                connection.call(name, arguments, arrays)
            made = tmp_path / "home1" / (new["dir"] + ".new")
            with contextlib.closing(Shard.open(made, shard=1)) as shard:
                assert [run.n_keys for run in shard.runs()] == [*(run.n_keys for run in runs), chunks[0][1]]
            connection.call("finish", {"attempt": attempt, "words": 999, "version": 1})
        assert len(list(folder.parent.iterdir())) == 2         # what is in force, and the last one
    assert machines.contents() == before


def test_a_job_ends_while_a_shard_is_opened(machines, tmp_path):
    """A server that opens its shard while a job commits takes nothing of that job away."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    process = stopped("update", machines.there, tmp_path / "b",
                      stop_at="SIGSTOP before kvps.ps.remote_store:RemoteRoot.commit_job 1")
    machines.homes[1].end(signal.SIGKILL)
    home = HomeService(tmp_path / "home1", 1, lambda: Committing(machines.there, process), {}, {})
    try:
        home.here()
    finally:
        home.close()
    machines.homes[1].start()
    assert process.communicate(timeout=60) and process.returncode == 0
    assert machines.contents() == plain(tmp_path, "a", "b")


class Committing(RemoteDirectory):
    """A connection to a store whose job commits right after its version was read first."""

    def __init__(self, address, process):
        """Connect."""
        super().__init__(address)
        state, asked = self.root.state, []

        def commits():
            found = state()
            if not asked:
                asked.append(process.send_signal(signal.SIGCONT))
                while state()["version"] == found["version"]:
                    time.sleep(0.01)
            return found

        self.root.state = commits


@pytest.mark.slow
def test_a_home_of_another_store(machines, tmp_path):
    """A folder takes shards of one store alone; a server of a shard that there is not says so."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    before = machines.contents()
    run("train", tmp_path / "other", tmp_path / "b", "-o", 3, "--shards", 3)
    other = run("dump", tmp_path / "other", "-o", 3, "--sorted").stdout
    assert "has shards of the store" in refused("serve", tmp_path / "other", "--bind", f"ipc://{tmp_path}/x", "--away",
                                                f"1=kvps://{tmp_path}/1")
    assert run("dump", tmp_path / "other", "-o", 3, "--sorted").stdout == other
    with (Served(tmp_path / "home9", "--shard", 9, "--root", machines.there, "--bind", f"ipc://{tmp_path}/9"),
          Connection(f"ipc://{tmp_path}/9") as connection, pytest.raises(KvpsError, match="has 3 shards, no shard 9")):
        connection.call("facts")
    assert machines.contents() == before


@pytest.mark.slow
def test_a_damaged_shard(machines, tmp_path):
    """One that is there and damaged is made again as one that is lost; so is one beside the root while others are away."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    before = machines.contents()
    machines.homes[2].end()
    damage_shard(tmp_path / "home2", "a bit", 2)
    machines.homes[2].start()
    assert run("check", machines.there, check=3).stdout.count("damage:") >= 1
    assert run_json("recover", machines.there, "--yes")["rebuilt"] == [2]
    assert machines.contents() == before
    machines.root.end()
    damage_shard(machines.store, "a bit", 0)
    assert run_json("recover", machines.store, "--yes")["rebuilt"] == [0]
    machines.root.start()
    assert machines.contents() == before


@pytest.mark.slow
def test_a_home_that_stands_still(machines, tmp_path):
    """While one gives no answer, the root answers what does not need it, and says of the rest what is missing."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    servers = {row["server"]: row["pid"] for row in map(json.loads, run("servers", machines.there, "--json").stdout.splitlines())}
    os.kill(servers["shard 1"], signal.SIGSTOP)
    try:
        processes = [start("stats", machines.there) for _ in range(3)]
        began = time.monotonic()
        run("history", machines.there)
        run("table", "list", machines.there)
        assert time.monotonic() - began < 60
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 4 and ("no answer" in err), out + err
    finally:
        os.kill(servers["shard 1"], signal.SIGCONT)
    time.sleep(GONE_S)
    assert run_json("stats", machines.there)["version"] == 1


@pytest.mark.parametrize("how", ["checkpoint", pytest.param("text", marks=pytest.mark.slow),
                                 pytest.param("older", marks=pytest.mark.slow)])
def test_a_lost_disk(machines, tmp_path, how):
    """A shard whose disk is lost, or is an older copy, is made again: from a checkpoint and the text since, or text alone."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    if how == "checkpoint":
        run("checkpoint", "create", machines.there)
    older = tmp_path / "older"
    machines.homes[1].end()
    shutil.copytree(tmp_path / "home1", older)
    machines.homes[1].start()
    run("update", machines.there, tmp_path / "b", tmp_path / "c")
    run("forget", machines.there, tmp_path / "c")
    machines.lose(1, (lambda home: shutil.copytree(older, home)) if how == "older" else (lambda home: None))
    what = "went back in time" if how == "older" else "shard 1 is not here"
    assert what in refused("stats", machines.there, code=3)
    assert what in refused("update", machines.there, tmp_path / "c", code=3)
    assert what in run("check", machines.there, check=3).stdout
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    assert f"needs text that is not where it was, or has changed: {tmp_path}/b" in refused(
        "recover", machines.there, "--yes", code=4)
    found = run_json("recover", machines.there, "--input", tmp_path / "elsewhere", "--yes")
    assert found["rebuilt"] == [1] and found["resumable"] is False
    assert ("from checkpoint v000001" in found["steps"][0]["what"]) == (how == "checkpoint")
    assert machines.contents() == plain(tmp_path, "a", "elsewhere")
    assert run_json("recover", machines.there, "--yes")["rebuilt"] == []
    run("forget", machines.there, tmp_path / "elsewhere")
    assert machines.contents() == plain(tmp_path, "a")


@pytest.mark.slow
def test_a_disk_is_lost_in_a_job(machines, tmp_path):
    """A job that was at work when a disk was lost goes on after it: what the shard had of it is counted again."""
    (tmp_path / "long").write_bytes(zipf_text(4, 20_000))
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    process = stopped("update", machines.there, tmp_path / "long", *SMALL,
                      stop_at="SIGSTOP after kvps.ps.remote_store:RemoteShard.begin_apply 30")
    machines.lose(2)
    code, _, err = go_on(process)
    assert code == 3 and "shard 2 is not here" in err
    found = run_json("recover", machines.there, "--yes")
    assert found["rebuilt"] == [2] and found["resumable"] is True
    run("resume", machines.there)
    assert machines.contents() == plain(tmp_path, "a", "long")


@pytest.mark.slow
def test_servers_are_killed(machines, tmp_path, rng):
    """Whichever server is killed while text is counted, everything counts once."""
    text = zipf_text(5, 12_000)
    (tmp_path / "long").write_bytes(text)
    process = start("train", machines.there, tmp_path / "long", "-o", 3, "--shards", 3, *SMALL, small=True)
    while process.poll() is None:
        try:
            process.wait(rng.uniform(0.3, 0.8))
        except subprocess.TimeoutExpired:
            victim = rng.choice([machines.root, *machines.homes.values()])
            victim.end(signal.SIGKILL)
            victim.start()
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert sum(int(line.rpartition("\t")[2]) for line in machines.contents().splitlines()) == sum(
        n for key, n in counted(text, 3).items() if len(key) == 3)


def test_foreign_requests(machines, tmp_path):
    """What nobody should ask is refused in words, and the shard is as it was."""
    run("train", machines.there, tmp_path / "a", "-o", 3, "--shards", 3)
    before = machines.contents()
    identity = {"uuid": (tmp_path / "home1" / "store").read_text(), "shard": 1, "shards": 3, "order": 3}
    chunks = {"chunks": np.zeros(9, np.uint8), "lengths": np.array([9], np.uint32), "keys": np.array([3], np.uint32)}
    new = {"attempt": "x", "identity": identity, "writer": 0, "above": 0}
    asked = [
        ("new", {**new, "dir": "../../x"}, {}), ("new", {**new, "dir": "shards/0002.7"}, {}), ("new", {**new, "dir": 7}, {}),
        ("new", {**new, "dir": "shards/0001.7", "identity": {}}, {}),
        ("new", {**new, "dir": "shards/0001.7", "identity": {**identity, "shards": 1 << 40}}, {}),
        ("fill", {"attempt": "y"}, chunks), ("list", {"attempt": "y", "arguments": {"runs": []}}, {}),
        ("count", {"attempt": "y", "version": 1, "number": 1}, chunks), ("finish", {"attempt": "y", "words": 9, "version": 1}, {}),
        ("snapshot", {"dir": "shards/0001.0"}, {}), ("snapshot", {}, {}),
        ("chunks", {"snapshot": 99, "run": 1, "first": 0, "n": 1, "of": 1}, {}),
        ("new", {**new, "dir": "shards/0001.8", "identity": {**identity, "uuid": "0" * 32}}, {}),
        ("new", {**new, "dir": "shards/0001.\u00b2"}, {}), ("splits", {"job": ""}, {}), ("splits", {"job": "x" * 300}, {}),
        ("look", {"snapshot": 99, "function": "sums_of", "arguments": {}}, {}), ("look", {"function": "tidy", "arguments": {}}, {}),
        ("run", {"function": "tidy", "arguments": {}}, {}), ("run", {"function": 7, "arguments": {}}, {}), ("run", {}, {}),
        ("apply", {"job": "j", "split": 1, "version": 2, "row": {}, "staged": 0}, chunks),
    ]
    walk = {"runs": [1], "order": 3, "n_words": 9, "top": 3, "raw": False, "raws": False, "split": []}
    with Connection(f"ipc://{tmp_path}/1") as connection:
        name = next((tmp_path / "home1" / "shards").iterdir()).name
        found = connection.call("snapshot", {"dir": f"shards/{name}"}).call
        kept, walk["runs"] = found["snapshot"], [row["id"] for row in found["result"]["runs"]]
        for arguments in ({**walk, "n_words": 1 << 40}, {**walk, "order": 99}, {**walk, "split": "x"}, {}, {**walk, "runs": 7},
                          walk, {**walk, "n_words": 0}, {**walk, "n_words": -9}, {**walk, "n_words": "x"}):
            with pytest.raises(KvpsError):
                stream = connection.call("look", {"snapshot": kept, "function": "sums_of", "arguments": arguments}).call["stream"]
                connection.call("more", {"stream": stream, "number": 0})
        for name, arguments, arrays in asked:
            with pytest.raises(KvpsError):
                connection.call(name, arguments, arrays)
        connection.call("new", {**new, "dir": "shards/0001.2000000000"})       # made, and never named by the root
        for name, arguments, arrays in (
                ("fill", {}, {**chunks, "places": np.zeros((2, 2), np.uint64)}), ("fill", {}, {}),
                ("count", {"version": 1, "number": 1}, chunks),
                ("list", {"arguments": {"runs": [{"id": 1}]}}, {}), ("list", {"arguments": {"runs": 7}}, {})):
            with pytest.raises(KvpsError):
                connection.call(name, {"attempt": "x", **arguments}, arrays)
        connection.call("finish", {"attempt": "x", "words": 9, "version": 1})
        assert connection.call("finish", {"attempt": "x", "words": 9, "version": 1}).call["generation"] > 0
    machines.homes[1].end()
    machines.homes[1].start()
    assert machines.contents() == before
    with Connection(f"ipc://{tmp_path}/root", client=b"c" * 16) as connection:
        connection.epoch = connection.call("begin", {"command": "test"}).call["epoch"]
        place = {"shard": 1, "name": "shards/0001.7", "generation": 1, "away": True}
        for arguments in ({**place, "shard": 0}, {**place, "name": "x"}, {**place, "away": False}, {**place, "shard": 9},
                          {**place, "shard": "1"}, {**place, "generation": None}, {"shard": 1}):
            with pytest.raises(KvpsError):
                connection.call("root-change", {"method": "move_shard", "arguments": arguments})
        connection.call("end")
    assert machines.contents() == before


@pytest.mark.slow
def test_keys(tmp_path):
    """Servers of one store on several machines let each other in by their common keys, and nobody else."""
    (tmp_path / "a").write_bytes(zipf_text(1, 300))
    run("keygen", tmp_path / "keys", "me")
    run("keygen", tmp_path / "others", "me")
    mine = ("--keys", tmp_path / "keys" / "client-me")
    run("train", tmp_path / "store", tmp_path / "a", "-o", 3, "--shards", 2)
    before = run("dump", tmp_path / "store", "-o", 3, "--sorted").stdout
    with Served(tmp_path / "unused", "--bind", "tcp://127.0.0.1:0", "--keys", tmp_path / "keys") as taken:
        port = int(taken.address.rpartition(":")[2])
    with Served(tmp_path / "home", "--shard", 1, "--root", f"kvps://127.0.0.1:{port}", "--bind", "tcp://127.0.0.1:0", "--keys",
                tmp_path / "keys") as home, \
            Served(tmp_path / "store", "--away", f"1={home.address}", "--bind", f"tcp://127.0.0.1:{port}", "--keys",
                   tmp_path / "keys") as root:
        assert run("dump", root.address, "-o", 3, "--sorted", *mine).stdout == before
        run("forget", root.address, tmp_path / "a", *mine)
        with pytest.raises(kvps.Unreachable), kvps.connect(root.address, keys=tmp_path / "others" / "client-me",
                                                           patience_s=2) as remote:
            remote.status()


def test_folders_that_are_something_else(tmp_path):
    """A home is a new folder, or one of shards; options that do not go together are refused."""
    (tmp_path / "a").write_text("a b\n")
    run("train", tmp_path / "store", tmp_path / "a")
    home = ("--root", f"kvps://{tmp_path}/root", "--bind", f"ipc://{tmp_path}/1")
    assert "is a store itself" in refused("serve", tmp_path / "store", "--shard", 1, *home)
    assert "is something else" in refused("serve", tmp_path, "--shard", 1, *home)
    for options in (["--shard", 1], ["--shard", 1, *home[:2]], home, ["--shard", 1, "--shard", 1, *home],
                    ["--shard", 1, *home, "--away", "2=kvps:///x"], ["--away", "x=kvps:///x"],
                    ["--away", "1=kvps:///x", "--away", "1=kvps:///y"]):
        refused("serve", tmp_path / "store", *options, code=2)
    assert "has 4 shards, no shard 9" in refused("serve", tmp_path / "store", "--away", f"9=kvps://{tmp_path}/9", code=2)

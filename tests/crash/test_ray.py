"""A store on a cluster of three nodes: whatever is killed while its text is counted, everything counts once."""
import json
import os
import shutil
import signal
import time

import clusters
import pytest
from processes import contents, counted, refused, run, run_json, start, summary, zipf_text

import kvps

pytestmark = [pytest.mark.crash, *clusters.NEEDED]


@pytest.fixture
def cluster():
    """A cluster of a head and two nodes, on one of which the disk is."""
    made = clusters.Cluster("head", "disk", "other")
    yield made
    made.end()


def pids(there):
    """Return {"root" or "shard N": pid} of the actors that answer."""
    rows = map(json.loads, run("servers", there, "--json", check=None).stdout.splitlines())
    return {row["server"]: row["pid"] for row in rows if row.get("state") == "up"}


def done(there, process):
    """Return which share of the text is counted, while the job is at work."""
    while process.poll() is None:
        found = run_json("status", there, check=None)
        if found.get("done_bytes"):
            return found["done_bytes"] / found["total_bytes"]
        time.sleep(0.1)
    raise AssertionError(f"ended too early: {process.communicate()}")


def test_a_worker_an_actor_and_a_node_are_killed(tmp_path, cluster):
    """A task, a shard's actor, the root's, a node with tasks and the node of the disk die; the counts are those of the text."""
    store = tmp_path / "store"
    lines = zipf_text(1, 40_000).splitlines()
    text = b"".join(b"%s n%d\n" % (line, number // 3) for number, line in enumerate(lines))
    (tmp_path / "text").write_bytes(text)
    there = f"ray://disk@{cluster.address}{store}"

    def node_of_the_disk():
        cluster.tell("kill", "disk")
        cluster.tell("add", "disk")

    kills = [lambda: os.kill(cluster.tasks()[0], signal.SIGKILL), lambda: os.kill(pids(there)["shard 1"], signal.SIGKILL),
             lambda: os.kill(pids(there)["root"], signal.SIGKILL), lambda: cluster.tell("kill", "other"), node_of_the_disk]
    process = start("train", there, tmp_path / "text", "-o", 3, "--shards", 3, "-S", "100K", "--threads", 3, small=True)
    for number, kill in enumerate(kills):
        while (share := done(there, process)) < 0.05 + 0.1 * number:
            time.sleep(0.05)
        assert share < 1
        kill()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    run("servers", there, "--stop")
    assert summary(store) == (1, 13 * len(lines), len(lines), False)
    assert contents(store) == counted(text, 3)
    run("check", store, "--full")


def test_one_owner(tmp_path, cluster):
    """While a process of the actors lives, nobody else writes, not even the actors that Ray starts in their place."""
    store = tmp_path / "store"
    (tmp_path / "text").write_text("a b c\n")
    there = f"ray://disk@{cluster.address}{store}"
    run("train", there, tmp_path / "text", "-o", 2, "--shards", 2)
    before = pids(there)
    os.kill(before["root"], signal.SIGKILL)            # and all others end with it
    assert run_json("update", there, "-", input="d e\n")["version"] == 2
    now = pids(there)
    assert len(now) == 3 and not set(now.values()) & set(before.values())
    os.kill(now["shard 0"], signal.SIGSTOP)            # it cannot see that the root's is gone, and may be in the middle of a write
    os.kill(now["root"], signal.SIGKILL)
    with pytest.raises(kvps.Unreachable), kvps.connect(there, patience_s=8) as remote:
        remote.status()
    clusters.leave()
    assert "is using it (ray)" in refused("update", store, "-", input="f g\n", code=5)
    os.kill(now["shard 0"], signal.SIGCONT)
    assert run_json("update", there, "-", input="f g\n")["version"] == 3
    assert not set(pids(there).values()) & set(now.values())
    run("servers", there, "--stop")
    assert run_json("update", store, "-", input="h\n")["version"] == 4
    assert contents(store) == counted(b"a b c\nd e\nf g\nh\n", 2)


def test_the_disk_is_gone(tmp_path, cluster):
    """A store whose machine is lost with its disk lives on elsewhere: a checkpoint, and the text since, told by its content."""
    gone, saved = tmp_path / "gone" / "store", tmp_path / "saved"
    gone.parent.mkdir()
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        (tmp_path / name).write_bytes(zipf_text(seed, 3000))
    there = f"ray://disk@{cluster.address}{gone}"
    run("train", there, tmp_path / "a", "-o", 3, "--shards", 2)
    run("checkpoint", "create", gone, "--to", saved)   # of the folder, where the disk is, while it is served
    run("update", there, tmp_path / "b")
    cluster.tell("kill", "disk")
    gone.parent.rename(tmp_path / "lost")
    found = run_json("checkpoint", "restore", "--from", saved, "v000001", "--into", tmp_path / "store")
    elsewhere = f"ray://other@{cluster.address}{found['path']}"
    done = run_json("update", elsewhere, tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert list(done["already"]) == [str(tmp_path / "a")] and done["inputs"] == 2
    run("servers", elsewhere, "--stop")
    assert contents(tmp_path / "store") == counted(b"".join((tmp_path / name).read_bytes() for name in "abc"), 3)


def test_shards_on_three_machines(tmp_path, cluster):
    """Shards on the disks of three nodes: a task, an actor and a node die, then a node with its disk, in one job."""
    store, homes = tmp_path / "store", tmp_path / "store.shards"
    lines = zipf_text(7, 40_000).splitlines()
    text = b"".join(b"%s n%d\n" % (line, number // 3) for number, line in enumerate(lines))
    (tmp_path / "first").write_bytes(zipf_text(6, 2000))
    (tmp_path / "text").write_bytes(text)
    there = f"ray://head,disk,other@{cluster.address}{store}"
    run("train", there, tmp_path / "first", "-o", 3, "--shards", 3)
    assert sorted(folder.name for folder in homes.iterdir()) == ["1", "2"]
    assert len(list((store / "shards").iterdir())) == 1
    run("checkpoint", "create", there)

    def node_comes_again():
        cluster.tell("kill", "other")
        cluster.tell("add", "other")

    def disk_is_lost():
        cluster.tell("kill", "disk")
        shutil.rmtree(homes / "1")
        cluster.tell("add", "disk")

    kills = [lambda: os.kill(cluster.tasks()[0], signal.SIGKILL), lambda: os.kill(pids(there)["shard 2"], signal.SIGKILL),
             lambda: os.kill(pids(there)["root"], signal.SIGKILL), node_comes_again, disk_is_lost]
    arguments = there, tmp_path / "text", "-S", "100K", "--threads", 3
    process = start("update", *arguments, small=True)
    for number, kill in enumerate(kills):
        while (share := done(there, process)) < 0.05 + 0.1 * number:
            time.sleep(0.05)
        assert share < 1
        kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3 and "shard 1 is not here" in err, out + err
    found = run_json("recover", there, "--yes")
    assert (found["rebuilt"], found["resumable"]) == ([1], True)
    assert "from checkpoint v000001" in found["steps"][0]["what"]
    assert run_json("resume", there)["version"] == 2
    name = run_json("checkpoint", "create", there)["name"]
    assert json.loads(run("check", there, "--full", "--json").stdout.splitlines()[-1])["damage"] == 0
    run("servers", there, "--stop")
    run("checkpoint", "restore", "--from", store / "checkpoints", name, "--into", tmp_path / "whole")
    assert contents(tmp_path / "whole") == counted((tmp_path / "first").read_bytes() + text, 3)

"""Checkpoints in processes of their own: while a job runs, killed at any step, two at once, the disk gone."""
import json
import os
import random
import shutil
import time
from collections import Counter

import pytest
from processes import contents, counted, go_on, kill_after, refused, run, run_json, start, stopped, summary, zipf_text

pytestmark = pytest.mark.crash

ORDER = 3
SMALL = ("--memory", "64K", "--threads", 1)
SHARD, DEPOT, CHECKPOINT = "kvps.store.shard:Shard", "kvps.store.depot:LocalDepot", "kvps.store.checkpoint.creation"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store of four shards, and a text that is not in it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "a").write_bytes(zipf_text(1, 3000))
    (folder / "b").write_bytes(zipf_text(2, 1500))
    run("train", folder / "store", folder / "a", "--order", ORDER, "--shards", 4, *SMALL, small=True)
    return folder


@pytest.fixture
def store(trained, tmp_path):
    """A copy of the store."""
    shutil.copytree(trained / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def before(trained):
    """What the store holds."""
    return counted((trained / "a").read_bytes(), ORDER)


@pytest.fixture(scope="module")
def after(trained):
    """What it holds with the other text."""
    return counted((trained / "a").read_bytes() + (trained / "b").read_bytes(), ORDER)


def rows(*arguments):
    """Run a command with --json and return its objects."""
    return [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]


def dumped(store):
    """Return the bytes of a sorted dump."""
    return run("dump", store, "--order", ORDER, "--sorted").stdout


def unfinished(folder):
    """Return what was not finished and lies in a folder or below it."""
    return [path for path in folder.rglob("*") if ".tmp-" in path.name]


def restored(source, name, into):
    """Restore a checkpoint and return what the new store holds."""
    run("checkpoint", "restore", "--from", source, name, "--into", into)
    assert not summary(into)[3]
    return contents(into)


# While others work


@pytest.mark.parametrize("step", [f"after {SHARD}.apply 9", f"after {SHARD}.replace 1", "before kvps.store.root:Root.commit_job 1",
                                  "after kvps.store.root:Root.commit_job 1", f"before {SHARD}.replace 2"])
def test_taken_while_an_update_runs(store, trained, tmp_path, before, after, step):
    """A checkpoint taken in the middle of an update holds the version before it, or, once committed, the one after it."""
    job = stopped("update", store, trained / "b", *SMALL, stop_at=f"SIGSTOP {step}")
    made = run_json("checkpoint", "create", store, "x", "--to", tmp_path / "depot")
    assert go_on(job)[0] == 0

    # Runs are merged within the job and after its commit.
    assert made["version"] in ((1, 2) if "replace" in step else (2,) if step.startswith("after kvps.store.root") else (1,))
    assert restored(tmp_path / "depot", "x", tmp_path / "r") == (before if made["version"] == 1 else after)
    assert contents(store) == after
    run("update", tmp_path / "r", trained / "b", *SMALL, small=True)
    assert dumped(tmp_path / "r") == dumped(store)


def test_update_while_a_checkpoint_is_taken(store, trained, tmp_path, before, after):
    """An update, a merge and a vacuum that run while a checkpoint is being copied do not change what it holds."""
    for step in (f"after {DEPOT}.put 3", f"before {CHECKPOINT}:_create 1"):
        depot, copy = tmp_path / step[-9:-2].replace(":", ""), tmp_path / f"{step[:5]}.store"
        shutil.copytree(store, copy)
        creation = stopped("checkpoint", "create", copy, "x", "--to", depot, stop_at=f"SIGSTOP {step}")
        run("update", copy, trained / "b", *SMALL, small=True)
        run("compact", copy, "--vacuum")
        assert go_on(creation)[0] == 0

        assert restored(depot, "x", depot.with_suffix(".r")) == before
        assert contents(copy) == after


def test_many_versions_are_kept_while_they_are_made(store, trained, tmp_path):
    """Checkpoints taken one after the other beside updates each hold the counts of the version that they name."""
    texts = [zipf_text(f"v{number}", 60) for number in range(4)]
    for number, text in enumerate(texts):
        (tmp_path / f"t{number}").write_bytes(text)
    made = []
    for number in range(len(texts)):
        with start("update", store, tmp_path / f"t{number}") as job:
            while job.poll() is None:
                made.append(run_json("checkpoint", "create", store, "--to", tmp_path / "depot"))
        assert job.returncode == 0
    made.append(run_json("checkpoint", "create", store, "--to", tmp_path / "depot"))

    base = (trained / "a").read_bytes()
    versions = sorted({row["version"] for row in made})
    assert versions[-1] == 5 and len(versions) >= 2
    for version in versions:
        expected = counted(base + b"".join(texts[:version - 1]), ORDER)
        assert restored(tmp_path / "depot", f"v{version:06d}", tmp_path / f"r{version}") == expected
    assert all(not row["findings"] for row in rows("checkpoint", "verify", "--from", tmp_path / "depot"))


# Two at once


def test_delete_waits_for_create(store, trained, tmp_path, after):
    """A deletion does not take what a create at work relies on: it is refused, or waits, and the checkpoint is whole."""
    depot = tmp_path / "depot"
    run("checkpoint", "create", store, "old", "--to", depot)
    run("update", store, trained / "b", *SMALL, small=True)
    creation = stopped("checkpoint", "create", store, "new", "--to", depot, stop_at=f"SIGSTOP before {DEPOT}.write_description 1")
    message = refused("checkpoint", "delete", store, "old", "--to", depot, code=5)
    assert f"process {creation.pid}" in message and "checkpoint create" in message
    assert [row["name"] for row in rows("checkpoint", "list", store, "--to", depot)] == ["old"]

    deletion = start("checkpoint", "delete", store, "old", "--to", depot, "--wait", 60)
    assert go_on(creation)[0] == 0
    _, error = deletion.communicate(timeout=60)

    assert deletion.returncode == 0, error
    assert [row["name"] for row in rows("checkpoint", "list", "--from", depot)] == ["new"]
    assert restored(depot, "new", tmp_path / "r") == after


def test_create_waits_for_delete(store, trained, tmp_path, after):
    """A create beside a deletion that has decided what goes waits, and sends anew what it needs."""
    depot = tmp_path / "depot"
    run("update", store, trained / "b", *SMALL, small=True)
    run("checkpoint", "create", store, "old", "--to", depot)
    deletion = stopped("checkpoint", "delete", store, "old", "--to", depot, stop_at=f"SIGSTOP before {DEPOT}.remove 1")
    assert refused("checkpoint", "create", store, "new", "--to", depot, code=5)
    creation = start("checkpoint", "create", store, "new", "--to", depot, "--wait", 60)
    assert go_on(deletion)[0] == 0
    _, error = creation.communicate(timeout=60)

    assert creation.returncode == 0, error
    assert restored(depot, "new", tmp_path / "r") == after


# Killed


CREATE_STEPS = [f"before {DEPOT}.sweep 1", f"before {DEPOT}.put 1", f"after {DEPOT}.put 1", f"after {DEPOT}.put 3",
                "before kvps.store.depot:os.rename 2", "after kvps.store.files:open_new 4", f"before {DEPOT}.write_description 1",
                f"before {DEPOT}._settle 1", "before kvps.store.files:rename 1", "after kvps.store.files:rename 1"]


@pytest.mark.parametrize("step", CREATE_STEPS, ids=[step.replace("kvps.store.", "") for step in CREATE_STEPS])
def test_create_killed_at_a_step(store, trained, tmp_path, before, after, step):
    """A create killed at any step leaves a whole checkpoint or none; the next one goes on and leaves nothing half written."""
    depot = tmp_path / "depot"
    run("checkpoint", "create", store, "first", "--to", depot)
    run("update", store, trained / "b", *SMALL, small=True)
    run("checkpoint", "create", store, "x", "--to", depot, stop_at=f"SIGKILL {step}", check=-9)

    names = [row["name"] for row in rows("checkpoint", "list", "--from", depot)]
    assert names == (["first", "x"] if step.startswith("after kvps.store.files:rename") else ["first"])
    assert all(not row["findings"] for row in rows("checkpoint", "verify", "--from", depot))

    run("checkpoint", "create", store, "x", "--to", depot)
    assert not unfinished(depot)
    assert restored(depot, "x", tmp_path / "r") == after
    assert restored(depot, "first", tmp_path / "r1") == before


RESTORE_STEPS = ["after kvps.store.files:make_dir 1", f"after {SHARD}.create 2", f"before {SHARD}.fill 3",
                 "before kvps.store.root:Root.fill 1", "before kvps.store.seal:renew 1",
                 "before kvps.store.files:rename 2"]


@pytest.mark.parametrize("step", RESTORE_STEPS, ids=[step.replace("kvps.store.", "") for step in RESTORE_STEPS])
def test_restore_killed_at_a_step(store, tmp_path, before, step):
    """A restore killed at any step leaves nothing under the new name; the next one makes it and removes what lies about."""
    run("checkpoint", "create", store, "x")
    line = ("checkpoint", "restore", store, "x", "--into", tmp_path / "r")
    run(*line, stop_at=f"SIGKILL {step}", check=-9)
    assert not (tmp_path / "r").exists()
    for path in tmp_path.glob("r.tmp-*"):
        os.utime(path, (0, 0))                     # one without a lock is removed when it is a minute old

    run(*line)

    assert contents(tmp_path / "r") == before
    assert not unfinished(tmp_path)


DELETE_STEPS = [f"before {DEPOT}.remove_description 1", f"after {DEPOT}.remove_description 1", f"before {DEPOT}.remove 1",
                "after kvps.store.depot:os.unlink 4"]


@pytest.mark.parametrize("step", DELETE_STEPS, ids=[step.replace("kvps.store.", "") for step in DELETE_STEPS])
def test_delete_killed_at_a_step(store, trained, tmp_path, after, step):
    """A deletion killed at any step takes nothing from other checkpoints, and the next deletion takes the rest."""
    depot = tmp_path / "depot"
    run("checkpoint", "create", store, "one", "--to", depot)
    run("update", store, trained / "b", *SMALL, small=True)
    run("compact", store)
    run("checkpoint", "create", store, "two", "--to", depot)
    run("checkpoint", "delete", store, "one", "--to", depot, stop_at=f"SIGKILL {step}", check=-9)

    assert all(not row["findings"] for row in rows("checkpoint", "verify", "--from", depot))
    names = [row["name"] for row in rows("checkpoint", "list", "--from", depot)]
    assert names == (["one", "two"] if step.startswith(f"before {DEPOT}.remove_description") else ["two"])
    assert restored(depot, "two", tmp_path / "r") == after
    for name in names:
        run("checkpoint", "delete", "--from", depot, name)
    assert [path for path in (depot / "objects").rglob("*") if path.is_file()] == []


def killed_at_random(trained, tmp_path, rng, times, before, after):
    """Kill create, restore and delete at random times, and compare after each; return what was hit."""
    hits = Counter()
    reference = {1: before, 2: after}
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        store, depot = folder / "store", folder / "depot"
        shutil.copytree(trained / "store", store)
        run("checkpoint", "create", store, "one", "--to", depot)
        run("update", store, trained / "b", *SMALL, small=True)
        command = ("create", "restore", "delete")[number % 3]
        line = {"create": ("create", store, "two", "--to", depot),
                "restore": ("restore", "--from", depot, "one", "--into", folder / "r"),
                "delete": ("delete", store, "one", "--to", depot)}[command]
        if command == "delete":
            run("checkpoint", "create", store, "two", "--to", depot)
        hit = kill_after(rng.uniform(0.1, 0.8) * seconds(store, depot, folder / "timed"), "checkpoint", *line)
        hits[command, hit] += 1
        found = {row["name"]: row for row in rows("checkpoint", "list", "--from", depot)}
        assert all(not row["findings"] for row in rows("checkpoint", "verify", "--from", depot))
        assert command == "delete" or "one" in found
        if command == "restore" and (folder / "r").exists():
            assert contents(folder / "r") == before
            shutil.rmtree(folder / "r")
        run("checkpoint", "create", store, "two", "--to", depot)
        for name in {*found, "two"}:
            row = next(row for row in rows("checkpoint", "list", "--from", depot) if row["name"] == name)
            assert restored(depot, name, folder / f"r-{name}") == reference[row["version"]]
        assert not unfinished(depot)
        shutil.rmtree(folder)
    return hits


def seconds(store, depot, into):
    """Return how long a restore takes when nobody disturbs it, about as long as the other commands."""
    began = time.monotonic()
    run("checkpoint", "restore", "--from", depot, "one", "--into", into)
    shutil.rmtree(into)
    return time.monotonic() - began


def test_killed_at_random_times(trained, tmp_path, rng, before, after):
    """Create, restore and delete killed at random times leave whole checkpoints, and go on."""
    killed_at_random(trained, tmp_path, rng, 3, before, after)


@pytest.mark.slow
def test_killed_at_100_random_times(trained, tmp_path, seed, before, after):
    """So do 100, most of which died at work."""
    hits = killed_at_random(trained, tmp_path, random.Random(seed), 100, before, after)
    print(f"seed {seed}:", hits)

    assert sum(n for (_, hit), n in hits.items() if hit) >= 50


# The disk gone


def test_disk_gone(store, trained, tmp_path, before):
    """With the store's disk lost, the place of the checkpoints alone lists, verifies, restores and deletes."""
    depot = tmp_path / "depot"
    run("checkpoint", "create", store, "--to", depot)
    expected = dumped(store)
    shutil.rmtree(store)

    assert [row["version"] for row in rows("checkpoint", "list", "--from", depot)] == [1]
    assert rows("checkpoint", "verify", "--from", depot)[0]["findings"] == []
    made = run_json("checkpoint", "restore", "--from", depot, "--version", 1, "--into", store)

    assert dumped(store) == expected and contents(store) == before
    assert made["version"] == 1
    again = run_json("update", store, trained / "a", *SMALL)
    assert list(again["already"].values()) == [1]
    run("checkpoint", "delete", "--from", depot, "v000001")
    assert rows("checkpoint", "list", "--from", depot) == []


def test_damaged_store_beside_its_checkpoints(store, tmp_path, before):
    """The checkpoints in a store whose own files are damaged or gone can still be listed, verified and restored."""
    run("checkpoint", "create", store, "x")
    (store / "seal").unlink()
    for folder in store.glob("root.*"):
        shutil.rmtree(folder)

    assert [row["name"] for row in rows("checkpoint", "list", store)] == ["x"]
    run("checkpoint", "verify", store)
    run("checkpoint", "restore", store, "x", "--into", tmp_path / "r")
    assert contents(tmp_path / "r") == before

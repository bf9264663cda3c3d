"""Checkpoints: what they hold, what they cost, what they refuse, locally and at URLs."""
import errno
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import contents, counted, summary, tree, zipf_text

import kvps
from kvps.errors import ArgumentError, CorruptionError, StoreError, StoreFull, StoreLocked, VersionMismatch
from kvps.jobs.removal import remove
from kvps.jobs.train import Options, forget_labels, update
from kvps.store import checkpoint as checkpoints
from kvps.store import depot as depots
from kvps.store import files
from kvps.store import format as fmt
from kvps.store.checkpoint import creation
from kvps.store.directory import open_store
from kvps.store.lock import OwnerLock

ORDER = 3
DOCUMENT = Path(depots.__file__).with_name("CHECKPOINT.md")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three texts, in files."""
    folder, made = tmp_path_factory.mktemp("texts"), []
    for number, lines in ((1, 400), (2, 100), (3, 100)):
        made.append(folder / f"text{number}")
        made[-1].write_bytes(zipf_text(number, lines))
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory, texts):
    """A store of three shards with a text, a label's text, and one that was forgotten."""
    path = tmp_path_factory.mktemp("trained") / "store"
    with kvps.create(path, order=ORDER, shards=3) as store:
        store.train_files([texts[0], texts[2]], threads=1)
        update(path, [texts[1]], options=Options(label="new"))
        store.forget_files([texts[2]], threads=1)
    return path


@pytest.fixture
def store(tmp_path, trained):
    """A copy of that store, open for reading."""
    shutil.copytree(trained, tmp_path / "store")
    with kvps.open(tmp_path / "store") as store:
        yield store


@pytest.fixture(params=["folder", "file", "memory"])
def place(request, tmp_path):
    """A place for checkpoints: a folder, the same by a URL, an object store."""
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec", reason="needs fsspec (the extra `remote`)")
        yield f"memory://kvps-{os.urandom(8).hex()}/depot"
        fsspec.filesystem("memory").store.clear()
    else:
        yield tmp_path / "depot" if request.param == "folder" else (tmp_path / "depot").as_uri()


def rows(path):
    """Return what the root of a store says of its version."""
    with open_store(path) as opened:
        root = opened.root
        state = {name: root.state()[name] for name in ("version", "tokens", "sentences", "words")}
        return state, root.history(), root.inputs(), root.labels(), list(root.words()), root.identity["tokenizer"]


def objects(depot):
    """Return the files of the objects of a local depot."""
    return sorted(path for path in Path(depot, "objects").rglob("*") if path.is_file())


def chunk_bytes(path):
    """Return the bytes of all chunks of a store."""
    with open_store(path) as opened, opened.snapshot() as snapshot:
        return sum(run.bytes for snap in snapshot.shards for run in snap.runs(snapshot.version))


# What a checkpoint is


def test_restored_store_is_the_same(store, place, tmp_path, texts):
    """A restored store has the counts, history, inputs, labels, words and version of the checkpoint, and another uuid."""
    made = store.checkpoint(to=place)
    before = contents(store.path)
    store.update(["something else"])

    with kvps.restore(place, tmp_path / "r", made["name"]) as restored:
        history = restored.history()

    assert (made["name"], made["version"], made["existed"]) == ("v000003", 3, False)
    assert contents(tmp_path / "r") == before == counted(texts[0].read_bytes() + texts[1].read_bytes(), ORDER)
    assert [row["version"] for row in history] == [1, 2, 3]
    with open_store(store.path) as ours, open_store(tmp_path / "r") as theirs:
        assert theirs.identity["uuid"] != ours.identity["uuid"] == made["store"]
        assert theirs.identity["restored_from"] == {"uuid": made["store"], "version": 3}


def test_rows_of_a_restored_store(store, tmp_path):
    """Every row of the root comes back as it was."""
    store.checkpoint("x")
    kvps.restore(store.path / "checkpoints", tmp_path / "r", "x").close()

    assert rows(tmp_path / "r") == rows(store.path)


def test_restored_store_goes_on(store, place, tmp_path, texts):
    """A restored store is updated, knows what it has counted, forgets texts and labels, is compacted and read anew."""
    store.checkpoint("x", to=place)
    with kvps.restore(place, tmp_path / "r", version=3) as restored:
        assert restored.update_files([texts[0]])["already"] == {str(texts[0]): 1}
        restored.update_files([texts[2]], threads=1)
        forget_labels(restored.path, ["new"])
        restored.forget_files([texts[0]], threads=1)
        restored.compact(vacuum=True)

        assert restored.version == 6
    assert contents(tmp_path / "r") == counted(texts[2].read_bytes(), ORDER)


def test_restored_store_shares_the_objects(store, tmp_path):
    """A checkpoint of a restored store sends nothing: its chunks have the bytes, and so the names, that they had."""
    store.checkpoint("one", to=tmp_path / "depot")
    with kvps.restore(tmp_path / "depot", tmp_path / "r", "one") as restored:
        made = restored.checkpoint("two", to=tmp_path / "depot")

    assert made["new_bytes"] == 0 and made["bytes"] > 0


def test_empty_store(tmp_path, place):
    """A store at version 0 can be kept and restored too."""
    with kvps.create(tmp_path / "store", order=2) as store:
        store.checkpoint(to=place)
    with kvps.restore(place, tmp_path / "r", version=0) as restored:
        restored.train(["a b"])

    assert contents(tmp_path / "r") == counted(b"a b\n", 2)


def test_pending_job_is_not_part(store, tmp_path, texts, monkeypatch):
    """What an interrupted job has counted is not in a checkpoint, nor is the job; the store keeps both."""
    before = contents(store.path)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("kvps.store.root.Root.commit_job", stop)
        with pytest.raises(KeyboardInterrupt):
            store.update_files([texts[2]], threads=1)
    store.checkpoint("x")
    kvps.restore(store.path / "checkpoints", tmp_path / "r", "x").close()

    assert summary(store.path)[3] and not summary(tmp_path / "r")[3]
    assert contents(tmp_path / "r") == before
    store.resume()
    assert store.version == 4


def test_marks_of_a_pending_job_are_not_part(store, tmp_path, monkeypatch):
    """Text that a pending job is about to take away is in a checkpoint, for good."""
    before = contents(store.path)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("kvps.store.root.Root.commit_job", stop)
        with pytest.raises(KeyboardInterrupt):
            forget_labels(store.path, ["new"])
    store.checkpoint("x")
    with kvps.restore(store.path / "checkpoints", tmp_path / "r", "x") as restored:
        assert contents(restored.path) == before
        restored.update(["one more"])
        assert contents(restored.path) == before + counted(b"one more\n", ORDER)


def test_modes_and_links(store, tmp_path):
    """Folders are 0700 and files 0600, and the checkpoints lie in the store."""
    store.checkpoint()
    found = list((store.path / "checkpoints").rglob("*"))

    assert {stat.S_IMODE(path.lstat().st_mode) for path in found if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.lstat().st_mode) for path in found if path.is_file()} == {0o600}
    assert stat.S_IMODE((store.path / "checkpoints").stat().st_mode) == 0o700


def test_store_is_only_read(store, tmp_path):
    """A checkpoint elsewhere changes no byte of the store, and works while somebody writes."""
    before = tree(store.path)
    lock = OwnerLock(store.path, command="update")
    try:
        store.checkpoint(to=tmp_path / "depot")
    finally:
        lock.close()

    assert tree(store.path) == before


# What it costs


def test_only_what_changed_is_sent(store, place, texts):
    """A second checkpoint sends what an update has added; without one, nothing."""
    first = store.checkpoint("one", to=place)
    second = store.checkpoint("two", to=place)
    store.update_files([texts[2]], threads=1)
    third = store.checkpoint("three", to=place)

    assert first["new_bytes"] == first["bytes"] > chunk_bytes(store.path) / 2
    assert second["new_bytes"] == 0
    assert 0 < third["new_bytes"] < third["bytes"] / 2
    assert third["bytes"] - second["bytes"] == third["new_bytes"]


def test_known_runs_are_not_read(store, place, monkeypatch):
    """A run that an earlier checkpoint of the store lists is not read again."""
    store.checkpoint("one", to=place)

    def fail(*args):
        raise AssertionError("a chunk was read")
    monkeypatch.setattr("kvps.store.shard.Snapshot.chunk", fail)

    assert store.checkpoint("two", to=place)["new_bytes"] == 0


def test_missing_and_short_objects_are_sent_again(store, tmp_path):
    """A create heals what is missing or cut short at its place, also of earlier checkpoints."""
    depot = tmp_path / "depot"
    store.checkpoint("one", to=depot)
    missing, short = objects(depot)[:2]
    lost = missing.stat().st_size + short.stat().st_size
    missing.unlink()
    short.write_bytes(b"")
    assert [bool(row["findings"]) for row in store.verify_checkpoints(to=depot)] == [True]

    assert store.checkpoint("two", to=depot)["new_bytes"] == lost
    assert [row["findings"] for row in store.verify_checkpoints(to=depot)] == [[], []]


def test_same_version_twice(store, place):
    """The same version under the same name is made once; another version under it is refused."""
    first = store.checkpoint("x", to=place)
    again = store.checkpoint("x", to=place)
    store.update(["more"])

    assert again == {**first, "existed": True}
    with pytest.raises(StoreError, match="has a checkpoint x already, of version 3"):
        store.checkpoint("x", to=place)


# List, keep, delete


def test_list(store, place):
    """The list has the checkpoints oldest first; an empty place and a store without any have none."""
    assert store.checkpoints() == []
    names = [store.checkpoint(name, to=place)["name"] for name in ("b", "a", "c")]

    assert [row["name"] for row in store.checkpoints(to=place)] == names
    assert {row["version"] for row in store.checkpoints(to=place)} == {3}


def test_keep(store, place):
    """With keep, the oldest of this store go and others stay, and what is left is whole."""
    with kvps.create(f"{store.path}2", order=2, shards=1) as other:
        other.train(["a b c"])
        other.checkpoint("other", to=place)
    for number in range(4):
        store.update([f"line {number}"])
        made = store.checkpoint(to=place, keep=2)

    assert made["deleted"] == ["v000005"]
    assert [row["name"] for row in checkpoints.listed(depots.open_depot(place))] == ["other", "v000006", "v000007"]
    assert [row["name"] for row in store.checkpoints(to=place)] == ["v000006", "v000007"]
    assert [row["findings"] for row in checkpoints.verify(depots.open_depot(place))] == [[], [], []]


def test_the_one_just_made_is_kept(store, tmp_path, monkeypatch):
    """A clock that went back does not make the newest checkpoint the oldest."""
    store.checkpoint("one", to=tmp_path / "depot")
    monkeypatch.setattr(creation.time, "time", lambda: 1.0)

    assert store.checkpoint("two", to=tmp_path / "depot", keep=1)["deleted"] == ["one"]


def test_delete_leaves_what_others_need(store, place, tmp_path, texts):
    """A deletion frees what only that checkpoint needed; the others restore, and the last one leaves no object."""
    store.checkpoint("one", to=place)
    store.update_files([texts[2]], threads=1)
    store.compact()
    added = store.checkpoint("two", to=place)["new_bytes"]
    before = contents(store.path)
    total = sum(depots.open_depot(place).objects().values())

    freed = store.delete_checkpoint("one", to=place)["freed_bytes"]
    kvps.restore(place, tmp_path / "r", "two").close()

    assert freed > 0 and sum(depots.open_depot(place).objects().values()) == total - freed >= added
    assert contents(tmp_path / "r") == before
    assert store.delete_checkpoint("two", to=place)["freed_bytes"] == total - freed
    assert depots.open_depot(place).objects() == {}


def test_purge_takes_the_checkpoints_too(store, texts):
    """A purge lists the checkpoints in the store, which may hold the text, and deletes them where that is asked for."""
    store.checkpoint("one")
    store.checkpoint("two")
    Path(store.path, "checkpoints", "one.json").write_bytes(b"damaged")

    told = remove(store.path, [texts[0]], purge=True)["remains"]
    assert any("one" in line and "two" in line for line in told)
    remove(store.path, purge=True, checkpoints=True)

    assert store.checkpoints() == [] and objects(store.path / "checkpoints") == []


def test_checkpoint_of_another_store(store, place):
    """Named with a store, a checkpoint of another store is not deleted or verified."""
    with kvps.create(f"{store.path}2", order=2) as other:
        other.checkpoint("other", to=place)

    for call in (store.delete_checkpoint, lambda name, to: store.verify_checkpoints(name, to=to)):
        with pytest.raises(StoreError, match="is of store"):
            call("other", to=place)
    with pytest.raises(StoreError, match="no checkpoint nothing; there are: other"):
        checkpoints.delete(depots.open_depot(place), "nothing")


def test_version_of_several_stores(store, place, tmp_path):
    """A version that several stores have is not chosen by chance."""
    with kvps.create(f"{store.path}2", order=2) as other:
        for text in "abc":
            other.update([text])
        other.checkpoint("other", to=place)
    store.checkpoint("mine", to=place)

    with pytest.raises(StoreError, match="of several stores; choose one by its name: other, mine"):
        kvps.restore(place, tmp_path / "r", version=3)
    with pytest.raises(StoreError, match=r"no checkpoint of version 9; there are: 3 \(other\), 3 \(mine\)"):
        kvps.restore(place, tmp_path / "r", version=9)


def test_newest_of_a_version(store, place, tmp_path):
    """Of several checkpoints of a version the newest is restored."""
    store.checkpoint("one", to=place)
    store.checkpoint("two", to=place)

    assert checkpoints.restore(depots.open_depot(place), tmp_path / "r", version=3)["name"] == "two"


# Damage


def test_every_damaged_object_is_found(store, tmp_path, rng):
    """A bit flipped, a byte less or more, or nothing at all in the place of any object: verify names it, restore refuses."""
    depot = tmp_path / "depot"
    store.checkpoint("x", to=depot)
    for path in rng.sample(objects(depot), 6):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        for broken in (bytes(flipped), whole[:-1], whole + b"x", b"", None):
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            findings = store.verify_checkpoints("x", to=depot)[0]["findings"]
            assert [finding["path"] for finding in findings] == [str(path)]
            with pytest.raises(CorruptionError, match=re.escape(str(path))):
                kvps.restore(depot, tmp_path / "r", "x")
            path.write_bytes(whole)
    assert store.verify_checkpoints("x", to=depot)[0]["findings"] == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("r")] == []


def test_damaged_description(store, tmp_path, rng):
    """A description with a flipped bit, cut short, or under another name is damaged: listed so, found, and not restored."""
    depot = tmp_path / "depot"
    store.checkpoint("x", to=depot)
    store.checkpoint("y", to=depot)
    path = depot / "x.json"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    for broken in (bytes(flipped), whole[:rng.randrange(len(whole))], b"", (depot / "y.json").read_bytes()):
        path.write_bytes(broken)
        listed = {row["name"]: row.get("damaged") for row in store.checkpoints(to=depot)}
        assert str(path) in listed["x"] and listed["y"] is None
        assert {row["name"]: len(row["findings"]) for row in store.verify_checkpoints(to=depot)} == {"x": 1, "y": 0}
        with pytest.raises(CorruptionError, match="checkpoint x is damaged"):
            kvps.restore(depot, tmp_path / "r", "x")
        with pytest.raises(CorruptionError, match="checkpoint x is damaged"):
            store.checkpoint("x", to=depot)
    # What the damaged one needs is not known, so nothing is taken from under it.
    there = objects(depot)
    assert store.delete_checkpoint("y", to=depot) == {"name": "y", "freed_bytes": 0, "blocked_by": ["x"]}
    assert objects(depot) == there
    freed = store.delete_checkpoint("x", to=depot)

    assert (freed["blocked_by"], objects(depot)) == ([], []) and freed["freed_bytes"] > 0


def rewritten(depot, change):
    """Change the description of checkpoint x by a function of its record, with a checksum that fits."""
    key, path = b"checkpoint x", Path(depot, "x.json")
    row = fmt.unpack_row(key, path.read_bytes())
    change(row)
    path.write_bytes(fmt.pack_row(key, row))


def first_run(row):
    """Return the first run of a description's record that has chunks."""
    return next(run for runs in row["shards"] for run in runs if run["objects"])


@pytest.mark.parametrize("change", [
    lambda row: first_run(row)["objects"][0].__setitem__(0, "../../etc/passwd"),
    lambda row: first_run(row)["objects"][0].__setitem__(0, "A" * 64),
    lambda row: first_run(row)["objects"][0].__setitem__(1, -1), lambda row: first_run(row).update(chunks=7),
    lambda row: first_run(row).update(version=99), lambda row: first_run(row).update(keys=True),
    lambda row: first_run(row).update(id="1"), lambda row: row["words"][0].__setitem__(0, 2**40),
    lambda row: row.update(words=7), lambda row: row.pop("history"), lambda row: row["state"].pop("tokens"),
    lambda row: row["shards"].pop(), lambda row: row.update(inputs={"": {}}), lambda row: row["identity"].update(order=10**9),
    lambda row: row["history"][0].update(version=-1), lambda row: row.update(labels=[1]), lambda row: row.update(name="y")],
    ids=range(17))
def test_descriptions_that_claim_what_cannot_be(store, tmp_path, change):
    """A description whose checksum fits but whose contents cannot be is refused before any path is made of it."""
    store.checkpoint("x", to=tmp_path / "depot")
    rewritten(tmp_path / "depot", change)

    assert "damaged" in store.checkpoints(to=tmp_path / "depot")[0]
    with pytest.raises(CorruptionError):
        kvps.restore(tmp_path / "depot", tmp_path / "r", "x")


@pytest.mark.parametrize("change", [
    lambda row: first_run(row).update(digest="0" * 16), lambda row: first_run(row).update(keys=1),
    lambda row: first_run(row).update(id=99), lambda row: row["identity"].update(order=2),
    lambda row: row["words"].pop(), lambda row: row["words"][0].__setitem__(0, 4), lambda row: row["state"].update(words=4),
    lambda row: row["words"][0].__setitem__(1, first_run(row)["objects"][0])], ids=range(8))
def test_descriptions_that_do_not_fit_their_objects(store, tmp_path, change):
    """Objects that are whole, but not what the description says of them, are refused by restore, which leaves nothing."""
    store.checkpoint("x", to=tmp_path / "depot")
    rewritten(tmp_path / "depot", change)

    with pytest.raises(CorruptionError):
        kvps.restore(tmp_path / "depot", tmp_path / "r", "x")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("r")] == []


@pytest.mark.parametrize("field", ["checkpoint", "format"])
def test_other_formats(store, tmp_path, field):
    """A description of another format is refused with both numbers."""
    store.checkpoint("x", to=tmp_path / "depot")
    rewritten(tmp_path / "depot", lambda row: row.update({field: 99}))

    with pytest.raises(VersionMismatch, match=f"has {field} format 99, this kvps reads"):
        kvps.restore(tmp_path / "depot", tmp_path / "r", "x")


def test_damaged_store_gives_no_checkpoint(store, tmp_path, rng):
    """A store whose chunks are damaged is found out while they are read, and there is no checkpoint."""
    with open_store(store.path) as opened, opened.snapshot() as snapshot:
        run = snapshot.shards[0].runs(3)[0]
        payload, _ = snapshot.shards[0].chunk(run, 0)
        middle = bytes(payload[len(payload) // 2:][:40])
        payload.release()
    data = next((store.path / "shards").glob("0000.*/data.mdb"))
    store.close()
    whole = data.read_bytes()
    assert whole.count(middle) == 1
    data.write_bytes(whole.replace(middle, middle[::-1]))

    with kvps.open(store.path) as opened, pytest.raises(CorruptionError, match="checksum"):
        opened.checkpoint("x", to=tmp_path / "depot")
    assert list((tmp_path / "depot").glob("*.json")) == []


# Names, links, places


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\n", "x" * 65, "ä"])
def test_names_that_lead_elsewhere(store, tmp_path, name):
    """A name that could lead out of the depot is refused by every call."""
    for call in (store.checkpoint, store.verify_checkpoints, store.delete_checkpoint,
                 lambda name: kvps.restore(tmp_path, tmp_path / "r", name)):
        with pytest.raises(ArgumentError, match="cannot be the name of a checkpoint"):
            call(name)


def test_links_in_a_depot(store, tmp_path):
    """A link in the place of a description, an object, or a folder of objects is refused; its target stays."""
    depot = tmp_path / "depot"
    store.checkpoint("x", to=depot)
    parts = [depot / "x.json", objects(depot)[0], objects(depot)[0].parent, depot / "objects"]
    for part in parts:
        away = tmp_path / "away"
        part.rename(away)
        part.symlink_to(away)
        before = tree(away) if away.is_dir() else away.read_bytes()
        for call in (lambda: store.checkpoint("y", to=depot), lambda: store.verify_checkpoints(to=depot),
                     lambda: store.delete_checkpoint("x", to=depot), lambda: kvps.restore(depot, tmp_path / "r", "x")):
            with pytest.raises(StoreError, match="link"):
                call()
        assert (tree(away) if away.is_dir() else away.read_bytes()) == before
        part.unlink()
        away.rename(part)
        (depot / "y.json").unlink(missing_ok=True)
        if not (depot / "x.json").exists():        # deleted before the link was met
            store.checkpoint("x", to=depot)


def test_linked_default_place(store, tmp_path):
    """STORE/checkpoints is a folder of the store and no link; elsewhere is for --to, and that may be one."""
    (tmp_path / "elsewhere").mkdir()
    (store.path / "checkpoints").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreError, match="symbolic link"):
        store.checkpoint()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert store.checkpoint(to=tmp_path / "link")["new_bytes"] > 0


def test_restore_takes_no_place_of_others(store, tmp_path):
    """A store, a file, or a folder with something in it is not restored over; an empty folder is fine."""
    store.checkpoint("x")
    place = store.path / "checkpoints"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for target in (store.path, tmp_path / "file", tmp_path / "full"):
        with pytest.raises(StoreError, match="is a store already|is something else"):
            kvps.restore(place, target, "x")
    with pytest.raises(StoreError, match="No such file"):
        kvps.restore(place, tmp_path / "no" / "parent", "x")
    kvps.restore(place, tmp_path / "empty", "x").close()

    assert contents(tmp_path / "empty") == contents(store.path)


def test_name_or_version():
    """A restore without, or with both of them, is refused."""
    for arguments in ({}, {"name": "x", "version": 1}):
        with pytest.raises(ArgumentError, match="give one of them"):
            kvps.restore("/", "/x", **arguments)


def test_places_that_are_none(store, tmp_path):
    """A file, a missing parent, another machine's file and a store that is not there are refused."""
    (tmp_path / "file").write_text("")
    for place, message in ((tmp_path / "file", "is not a folder"), (tmp_path / "a" / "b", "No such file"),
                           ("file://machine/x", "another machine"), ("nonsense://x", "nonsense")):
        with pytest.raises(StoreError, match=message):
            store.checkpoint(to=place)
    for arguments in ((tmp_path / "none",), (tmp_path / "none", tmp_path)):
        with pytest.raises(StoreError, match="no such store"):
            checkpoints.depot_of(*arguments)
    with pytest.raises(ArgumentError):
        checkpoints.depot_of(None)


# Locks


def test_one_at_a_time(store, tmp_path):
    """While somebody makes or deletes checkpoints at a place, others are told who, or wait; readers wait too."""
    depot = tmp_path / "depot"
    store.checkpoint("x", to=depot)
    lock = OwnerLock(depot, command="checkpoint create")
    calls = [lambda **more: store.checkpoint("x", to=depot, **more), lambda **more: store.verify_checkpoints(to=depot, **more),
             lambda **more: kvps.restore(depot, tmp_path / "r", "x", **more).close(),
             lambda **more: store.delete_checkpoint("x", to=depot, **more)]
    try:
        for call in calls:
            with pytest.raises(StoreLocked, match="checkpoint create") as caught:
                call()
            assert caught.value.pid == os.getpid()
        assert [row["name"] for row in store.checkpoints(to=depot)] == ["x"]
        release = threading.Timer(0.5, lock.close)
        release.start()
        for call in calls:
            call(wait=30)
        release.join()
    finally:
        lock.close()


def test_readers_share(store, tmp_path):
    """Two can read a place at once; a deletion is kept away meanwhile."""
    depot = tmp_path / "depot"
    store.checkpoint("x", to=depot)
    lock = OwnerLock(depot, shared=True)
    try:
        assert store.verify_checkpoints(to=depot)[0]["findings"] == []
        with pytest.raises(StoreLocked):
            store.delete_checkpoint("x", to=depot)
    finally:
        lock.close()


# Full disks and leftovers


def test_disk_full(store, tmp_path, monkeypatch):
    """A full disk stops a create with what is needed in all; nothing is listed; the next one sends only the rest."""
    depot, number, original = tmp_path / "depot", itertools.count(1), os.fsync

    def fsync(fd):
        if "/objects/" in os.readlink(f"/proc/self/fd/{fd}") and next(number) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(fd)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        with pytest.raises(StoreFull, match="disk full: needs") as caught:
            store.checkpoint("x", to=depot)
    kept = {path: path.stat().st_size for path in objects(depot)}

    assert caught.value.needs > 0 and caught.value.has > 0
    assert store.checkpoints(to=depot) == []
    assert len(kept) == 2 and all(len(path.name) == 64 for path in kept)
    made = store.checkpoint("x", to=depot)
    assert made["new_bytes"] == made["bytes"] - sum(kept.values())
    assert store.verify_checkpoints(to=depot)[0]["findings"] == []


def test_no_room_to_restore(store, tmp_path, monkeypatch):
    """A restore that cannot fit says so before it begins."""
    made = store.checkpoint("x")
    monkeypatch.setattr(files, "free_bytes", lambda path: 100)

    with pytest.raises(StoreFull) as caught:
        kvps.restore(store.path / "checkpoints", tmp_path / "r", "x")
    assert (caught.value.needs, caught.value.has) == (made["bytes"], 100)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("call", ["create", "delete", "delete again", "tidy"])
def test_leftovers_are_removed(store, tmp_path, call):
    """What a killed create or deletion left goes with the next call that writes; what is not ours stays."""
    depot = tmp_path / "depot"
    store.checkpoint("x", to=depot)
    store.checkpoint("y", to=depot)
    orphan = depots.object_name(b"orphan")
    depots.open_depot(depot).put(orphan, b"orphan")
    halves = [objects(depot)[0].with_name(f"{objects(depot)[0].name}.tmp-{'0' * 16}"), depot / f"y.json.tmp-{'1' * 16}"]
    for half in halves:
        half.write_bytes(b"half")
    (depot / "notes.txt").write_text("mine")

    if call == "create":
        store.checkpoint("z", to=depot)
    elif call == "delete":
        assert store.delete_checkpoint("y", to=depot)["freed_bytes"] == len(b"orphan")
    elif call == "delete again":
        with pytest.raises(StoreError, match="no checkpoint z; there are: x, y"):
            store.delete_checkpoint("z", to=depot)
    else:
        assert checkpoints.tidy(depot) == {"freed_bytes": len(b"orphan"), "blocked_by": []}
        assert checkpoints.tidy(tmp_path / "none") == {"freed_bytes": 0, "blocked_by": []}

    assert orphan not in depots.open_depot(depot).objects()
    assert any(half.exists() for half in halves) == call.startswith("delete")
    assert (depot / "notes.txt").read_text() == "mine"
    assert store.verify_checkpoints("x", to=depot)[0]["findings"] == []


# Object stores


def test_fsspec_is_imported_for_urls_only(store, tmp_path):
    """A folder needs no fsspec, and a URL without it is refused in one line that says what to install."""
    code = ("import sys\nsys.modules['fsspec'] = None\nimport kvps\nstore = kvps.open(sys.argv[1])\n"
            "store.checkpoint('x', to=sys.argv[2])\nkvps.restore(sys.argv[2], sys.argv[3], 'x').close()\n"
            "try:\n    store.checkpoint('x', to='memory://x')\nexcept kvps.StoreError as exc:\n    print(exc)")

    done = subprocess.run([sys.executable, "-c", code, store.path, tmp_path / "d", tmp_path / "r"], capture_output=True, text=True)

    assert done.stdout == 'memory://x: needs fsspec; run pip install "kvps[remote]"\n', done.stderr


def test_errors_of_an_object_store(store, monkeypatch):
    """Whatever a driver raises becomes a StoreError with the URL, without the password in it."""
    memory = pytest.importorskip("fsspec.implementations.memory", reason="needs fsspec (the extra `remote`)")

    def fail(*args, **kwargs):
        raise PermissionError("Access\nDenied")
    monkeypatch.setattr(memory.MemoryFileSystem, "pipe_file", fail)

    with pytest.raises(StoreError, match=r"memory://\*\*\*@x/d/objects/../.*: Access Denied \(PermissionError, fsspec\)") as caught:
        store.checkpoint("x", to="memory://user:secret@x/d")
    assert "secret" not in str(caught.value)


def test_torn_put_is_sent_again(store):
    """An object that a driver left half written has another length than it should, and is put again."""
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec (the extra `remote`)")
    memory, url = fsspec.filesystem("memory"), f"memory://kvps-{os.urandom(8).hex()}"
    store.checkpoint("x", to=url)
    victim = next(path for path in memory.find(url) if "/objects/" in path)
    size = memory.size(victim)
    memory.pipe_file(victim, b"half")

    assert len(store.verify_checkpoints(to=url)[0]["findings"]) == 1
    assert store.checkpoint("y", to=url)["new_bytes"] == size
    assert [row["findings"] for row in store.verify_checkpoints(to=url)] == [[], []]
    memory.store.clear()


def test_deletion_beside_a_create_is_noticed(store, monkeypatch):
    """Where there is no lock, a create whose objects were deleted meanwhile says so and leaves no checkpoint."""
    pytest.importorskip("fsspec", reason="needs fsspec (the extra `remote`)")
    url, original = f"memory://kvps-{os.urandom(8).hex()}", depots.RemoteDepot.write_description

    def write(self, name, data, objects):
        self.remove(sorted(self.objects())[:1])
        original(self, name, data, objects)
    monkeypatch.setattr(depots.RemoteDepot, "write_description", write)

    with pytest.raises(StoreError, match="1 objects were deleted while this checkpoint was made"):
        store.checkpoint("x", to=url)
    assert store.checkpoints(to=url) == []


# The document


def test_example_of_the_document():
    """The description in CHECKPOINT.md is one, and packs to the checksum that the text says."""
    text = DOCUMENT.read_text(encoding="utf-8")
    row = json.loads(re.search(r"```json description\n(.*?)```", text, re.DOTALL)[1])
    crc = bytes.fromhex(re.search(r"```hex checksum\n(.*?)  ", text, re.DOTALL)[1])
    body = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    found = checkpoints.unpack("v000001", crc + body, "the document")

    assert found.pack() == crc + body
    assert [len(runs) for runs in found.shards] == [1] and found.state["version"] == 1
    assert set(row) == set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))

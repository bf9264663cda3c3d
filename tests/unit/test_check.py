"""kvps check: damage of each kind is found at the level that promises it, with its place, and no byte is changed."""
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import contents, refused, run, stopped, tree, zipf_text

import kvps
from kvps._runs import encode, encoded_room, pack
from kvps.jobs import check as checking
from kvps.jobs.check import LEVELS, Check
from kvps.ps.runs import bits_for
from kvps.store import format as fmt
from kvps.store.directory import open_store
from kvps.store.environment import Environment

ORDER = 3


def lines(seed, n_lines):
    """Return sentences."""
    return zipf_text(seed, n_lines, n_words=200).decode().splitlines()


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Return a store with a label, two versions and a compiled model; not to be changed."""
    path = tmp_path_factory.mktemp("check") / "s"
    with kvps.create(path, order=ORDER, shards=2) as store:
        store.train(lines(1, 300))
        store.update(lines(2, 200), label="x")
        store.model().close()
        store.model("witten-bell").close()
    return path


@pytest.fixture
def store(sound, tmp_path):
    """Return a copy of that store, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "s"))


def data_of(store, shard):
    """Return the data file of a shard."""
    return next((store / "shards").glob(f"{shard:04d}.*")) / "data.mdb"


def found(store, level="checksums", severity="damage"):
    """Return the findings of one severity, after a look whether a byte was changed."""
    before = tree(store)
    findings = [finding for finding in kvps.check(store, level) if finding.severity == severity]
    assert tree(store) == before
    return findings


def only(findings):
    """Return the one finding there is."""
    assert len(findings) == 1, [str(finding) for finding in findings]
    assert findings[0].next
    return findings[0]


def flip_chunks(path):
    """Change a byte in every chunk of a file, those of freed pages included."""
    data, at = bytearray(path.read_bytes()), -1
    while (at := data.find(fmt.CHUNK_MAGIC, at + 1)) >= 0:
        data[at + fmt.CHUNK_HEADER_BYTES + 3] ^= 16
    path.write_bytes(data)


def rewrite_manifest(path, change):
    """Let a shard's manifest be what `change` makes of it, with a checksum that is right."""
    env = Environment.open(path.parent, writable=True)
    try:
        with env.write() as txn:
            manifest = fmt.unpack_row(fmt.MANIFEST, txn.get(fmt.MANIFEST))
            change(manifest, txn)
            txn.put(fmt.MANIFEST, fmt.pack_row(fmt.MANIFEST, {**manifest, "txn": txn.id, "generation": manifest["generation"] + 1}))
    finally:
        env.close()


# Sound stores


@pytest.mark.parametrize("level", LEVELS)
def test_a_sound_store(store, level):
    """Nothing is found in a sound store, and its version is told."""
    look = Check(store, level)

    assert list(look) == []
    assert (look.version, look.n_shards) == (2, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_a_new_store(tmp_path, level):
    """A store without text is sound."""
    kvps.create(tmp_path / "s").close()

    assert kvps.check(tmp_path / "s", level) == []


def test_a_store_after_removals(store):
    """Forgotten text, forgotten labels and a compaction leave a sound store; the counts of a run may be negative."""
    with kvps.open(store) as opened:
        opened.update(lines(3, 50))
        opened.forget(lines(3, 50))
        assert kvps.check(store, "full") == []
        opened.compact(vacuum=True)
    run("forget", store, "--label", "x", "--purge")

    assert kvps.check(store, "full") == []


def test_an_interrupted_job_is_no_damage(store, tmp_path):
    """A job that was killed, whose runs no version sees yet, is no damage."""
    (tmp_path / "t.txt").write_bytes(zipf_text(5, 500))
    run("update", store, tmp_path / "t.txt", stop_at="SIGKILL before kvps.store.shard:Shard.apply 2", check=-signal.SIGKILL)

    assert kvps.check(store, "full") == []


def test_a_store_at_work(store, tmp_path):
    """While a process writes the pages are not walked, and a warning says so."""
    (tmp_path / "t.txt").write_bytes(zipf_text(5, 500))
    process = stopped("update", store, tmp_path / "t.txt", stop_at="SIGSTOP before kvps.store.shard:Shard.apply 2")
    try:
        findings = kvps.check(store, "full")
    finally:
        process.kill()
        process.communicate()

    assert only(findings).part == "writer"
    assert str(process.pid) in str(findings[0])


def test_what_is_no_store(tmp_path):
    """A missing folder and one without a store are refused, which is no damage."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(kvps.StoreError, match="store"):
            kvps.check(path)
    with pytest.raises(kvps.ArgumentError, match="levels"):
        kvps.check(tmp_path, "thorough")


# Structure: found at every level


@pytest.mark.parametrize("level", LEVELS)
def test_the_seal(store, level):
    """A seal that is missing, or of which a bit is wrong, is found."""
    seal = (store / "seal").read_bytes()
    (store / "seal").write_bytes(seal[:20] + bytes([seal[20] ^ 1]) + seal[21:])
    assert only(found(store, level)).part == "seal"

    (store / "seal").unlink()
    assert "missing" in str(only(found(store, level)))


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "cut", "cut by a page", "foreign", "zeros", "link"])
@pytest.mark.parametrize("part", ["root", "shard"])
def test_files(store, tmp_path, part, damage):
    """A data file that is missing, empty, cut short, something else or a link is found before LMDB maps it."""
    data = store / "root.0" / "data.mdb" if part == "root" else data_of(store, 1)
    n_bytes = data.stat().st_size
    if damage == "missing":
        data.unlink()
    elif damage == "folder":
        shutil.rmtree(data.parent)
    elif damage in ("empty", "cut", "cut by a page"):
        os.truncate(data, {"empty": 0, "cut": n_bytes // 2 + 5, "cut by a page": n_bytes - 4096}[damage])
    elif damage == "link":
        data.rename(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
    else:
        data.write_bytes((b"kvps" if damage == "foreign" else bytes(4)) * (n_bytes // 4))

    finding = only(found(store, "fast"))
    assert (finding.part, finding.shard) == (part, 1 if part == "shard" else None)
    assert finding.path.startswith(str(data.parent))


def test_pages_of_a_tree(store):
    """A page that says it is another is found by the walk, with its offset."""
    data = data_of(store, 0)
    pages = bytearray(data.read_bytes())
    for at in range(2 * 4096, len(pages), 4096):
        if pages[at + 10] & 3:
            pages[at] ^= 1
    data.write_bytes(pages)

    findings = found(store, "fast")
    assert findings
    assert all(finding.shard == 0 and finding.offset % 4096 == 0 for finding in findings)


def test_a_shard_of_an_older_time(store):
    """A shard that is an older copy of itself is found by its generation."""
    older = store.parent / "older"
    shutil.copytree(store, older)
    with kvps.open(store) as opened:
        opened.update(lines(9, 100))
    shutil.copy(data_of(older, 0), data_of(store, 0))

    finding = found(store, "fast")[0]
    assert finding.shard == 0
    assert "short" in str(finding) or "back in time" in str(finding)


def test_a_root_of_an_older_time(store):
    """A root that is an older copy of itself is found by the seal."""
    older = (store / "root.0" / "data.mdb").read_bytes()
    with kvps.open(store) as opened:
        opened.update(["w1 w2"])
    (store / "root.0" / "data.mdb").write_bytes(older.ljust((store / "root.0" / "data.mdb").stat().st_size, b"\0"))

    assert "went back in time" in str(only(found(store, "fast")))


def test_another_shard_and_another_store(store, tmp_path):
    """A shard that is another one, of this store or of any, is found."""
    rest = data_of(store, 1).read_bytes()
    data_of(store, 1).write_bytes(data_of(store, 0).read_bytes().ljust(len(rest), b"\0"))
    assert only(found(store, "fast")).shard == 1

    kvps.create(tmp_path / "other", order=ORDER, shards=2).close()
    data_of(store, 1).write_bytes(data_of(tmp_path / "other", 1).read_bytes().ljust(len(rest), b"\0"))
    assert "uuid" in str(only(found(store, "fast")))


def test_manifest(store):
    """A manifest whose runs have one number twice is found; so is one that no kvps wrote."""
    rewrite_manifest(data_of(store, 0), lambda manifest, txn: manifest["runs"].append(manifest["runs"][0]))
    assert "numbers of runs" in str(only(found(store, "fast")))

    rewrite_manifest(data_of(store, 0), lambda manifest, txn: manifest.update(runs=[{"id": "one"}]))
    assert "not of its kind" in str(only(found(store, "fast")))


@pytest.mark.parametrize(("kind", "key", "change", "expected"), [
    (fmt.STATE, fmt.STATE, {"tokens": 1}, "tokens"), (fmt.STATE, fmt.STATE, {"version": 3}, "versions"),
    (fmt.STATE, fmt.STATE, {"words": 10**6}, "word ids"), (fmt.LABEL, fmt.LABEL + b"x", {"last": 7}, "versions"),
    (fmt.LABEL, fmt.LABEL + b"x", {"tokens": 10**9}, "tokens"), (fmt.JOB, fmt.JOB, {"version": 1, "id": "j"}, "job record")])
def test_records_of_the_root(store, kind, key, change, expected):
    """Records of the root that do not agree with each other are found."""
    env = Environment.open(store / "root.0", writable=True)
    with env.write() as txn:
        value = txn.get(key)
        state = fmt.unpack_row(fmt.STATE, txn.get(fmt.STATE))
        txn.put(fmt.STATE, fmt.pack_row(fmt.STATE, {**state, "txn": txn.id, "generation": state["generation"] + 1}))
        row = {**(fmt.unpack_row(key, value) if value else {}), **change}
        txn.put(key, fmt.pack_row(key, {**row, "txn": txn.id} if key == fmt.STATE else row))
    env.close()

    findings = found(store, "fast")
    assert findings
    assert expected in str(findings[0])


def test_a_gap_in_the_vocabulary(store):
    """A segment of the vocabulary that is missing is found."""
    with open_store(store, writable=True) as opened:
        opened.root.add_words(opened.root.next_word(), fmt.pack_words([b"new"]))
        opened.root.add_words(opened.root.next_word(), fmt.pack_words([b"newer"]))
        middle = fmt.numbered_key(fmt.WORDS, opened.root.next_word() - 2)
    env = Environment.open(store / "root.0", writable=True)
    with env.write() as txn:
        txn.delete(middle)
        state = fmt.unpack_row(fmt.STATE, txn.get(fmt.STATE))
        txn.put(fmt.STATE, fmt.pack_row(fmt.STATE, {**state, "txn": txn.id}))
    env.close()

    assert "words from id" in str(only(found(store, "fast")))


def test_what_lies_about(store):
    """Folders that are not in force, unfinished files, chunks of no run and copies of stdin are warnings."""
    rewrite_manifest(data_of(store, 0), lambda manifest, txn: manifest["runs"].pop())
    (store / "shards" / "0000.7").mkdir()
    (store / "root.9").mkdir()
    (store / "seal.tmp-12").touch()
    (store / "spool").mkdir()
    (store / "spool" / "text").touch()

    warnings = found(store, "fast", "warning")
    assert {finding.part for finding in warnings} == {"leftover"}
    assert len(warnings) == 5


# Checksums


@pytest.mark.parametrize("level", LEVELS)
def test_a_bit_of_a_chunk(store, level):
    """A wrong bit in a chunk is found by comparing checksums, with run and chunk; not by a fast check."""
    flip_chunks(data_of(store, 1))

    findings = found(store, level)
    assert {(finding.shard, finding.chunk) for finding in findings} == (set() if level == "fast" else {(1, 0)})
    assert {finding.run for finding in findings} == (set() if level == "fast" else {1, 2})


def test_chunks_that_are_missing_or_too_many(store):
    """A run with other chunks than the manifest lists is found."""
    rewrite_manifest(data_of(store, 0), lambda manifest, txn: txn.delete(fmt.chunk_key(manifest["runs"][0]["id"], 0)))
    assert only(found(store)).chunk == 0

    rewrite_manifest(data_of(store, 1), lambda manifest, txn: txn.put(fmt.chunk_key(manifest["runs"][0]["id"], 5), b"?"))
    assert "more than the 1 chunks" in str(found(store)[1])


@pytest.mark.parametrize(("field", "value"), [("keys", 1), ("bytes", 77), ("digest", "00" * 8)])
def test_what_a_run_adds_up_to(store, field, value):
    """A run whose chunks do not add up to what the manifest says is found, but not by a fast check."""
    rewrite_manifest(data_of(store, 0), lambda manifest, txn: manifest["runs"][0].update({field: value}))

    assert found(store, "fast") == []
    assert only(found(store)).run == 1


# Every count


def apply(store, rows, counts, *, raw=None):
    """Add a run to the committed version behind the root's back; `rows` in key order."""
    with open_store(store, writable=True) as opened:
        with opened.snapshot() as snapshot:
            bits, version = bits_for(opened.root.next_word()), snapshot.version
        keys = pack(np.array(rows, np.uint32), bits)
        chunks = encode(keys, np.array(counts, np.int64), ORDER, bits, 4096, np.empty(encoded_room(len(rows)), np.uint8))
        opened.root.claim()
        opened.shards[0].apply("behind", 0, version, [(raw(payload), n) if raw else (payload, n) for payload, n in chunks], {})


def n_words(store):
    """Return the first word id that a store does not use."""
    with open_store(store) as opened:
        return opened.root.next_word()


@pytest.mark.parametrize(("rows", "counts", "expected"), [
    ([[3, 4, 5]], [5], "tokens"), ([[3, 4, 2]], [1], "sentences"), ([[3, 4, 5]], [0], "count of 0"),
    ([[3, 198, 197]], [-1], "below 0"), ([[0, 3, 4]], [1], "no sentence makes"), ([[3, 2, 4]], [1], "no sentence makes")])
def test_counts_that_cannot_be(store, rows, counts, expected):
    """Counts that no text adds up to are found by looking at all of them only."""
    apply(store, rows, counts)

    assert found(store) == []
    assert any(expected in str(finding) for finding in found(store, "full"))


def test_a_word_beyond_the_vocabulary(store):
    """A word id that the vocabulary does not have is found."""
    apply(store, [[3, 4, n_words(store)]], [1])

    assert f"word id {n_words(store)}" in str(found(store, "full")[0])


def test_entries_that_are_none(store):
    """Bytes that are no entries, under a checksum that is right, are found with run and chunk."""
    apply(store, [[3, 4, 5]], [1], raw=lambda payload: b"\xff" * len(payload))

    finding = found(store, "full")[0]
    assert (finding.shard, finding.chunk, finding.run) == (0, 0, 3)


def test_a_compiled_model(store):
    """A page of a compiled model that is damaged is found by a full check only, and so is a model of other counts."""
    model = next((store / "models").glob("kn-*.kvm"))
    data = bytearray(model.read_bytes())
    data[5000] ^= 1
    model.write_bytes(data)

    assert found(store) == []
    assert only(found(store, "full")).part == "model"
    with kvps.open(store) as opened:
        opened.update(["w1 w2 w1 w2 w3"])
    for path in (store / "models").glob("*.kvm"):
        path.rename(path.with_name(path.name.replace("-v2", "-v3")))
    assert any("expected" in str(finding) and finding.part == "model" for finding in found(store, "full"))


def test_a_checkpoint_in_the_store(store):
    """An object of a checkpoint that is damaged is found by a full check."""
    with kvps.open(store) as opened:
        opened.checkpoint()
    damaged = next(path for path in (store / "checkpoints" / "objects").rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])

    assert only(found(store, "full")).part == "checkpoint"


# The child


def look_otherwise(folder, monkeypatch, *lines):
    """Let children run these lines of Python before they look at shard 0; one that says nothing for 3 s is not waited for."""
    body = "".join(f"            {line}\n" for line in lines)
    (folder / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'kvps.jobs.check' in sys.orig_argv:\n"
        "    import kvps.store.check as looks\n"
        "    original = looks.look_at_shard\n"
        "    def look_at_shard(path, number, *rest, **more):\n"
        "        if number == 0:\n" + body +
        "        return original(path, number, *rest, **more)\n"
        "    looks.look_at_shard = look_at_shard\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(checking, "SILENCE_S", 3)


def test_a_child_that_dies(store, tmp_path, monkeypatch):
    """Where reading a shard kills the process that looks, that is a finding about this shard; the others are looked at."""
    look_otherwise(tmp_path, monkeypatch, "import os, signal", "os.kill(os.getpid(), signal.SIGSYS)")
    flip_chunks(data_of(store, 1))

    findings = kvps.check(store)
    assert {finding.shard for finding in findings} == {0, 1}
    assert "SIGSYS" in str(next(finding for finding in findings if finding.shard == 0))


def test_a_child_that_hangs(store, tmp_path, monkeypatch):
    """Where a child stops reading and does not end, that is a finding about the shard it was at; the others are looked at."""
    look_otherwise(tmp_path, monkeypatch, "time.sleep(600)")
    flip_chunks(data_of(store, 1))
    began = time.monotonic()

    findings = kvps.check(store)
    assert {finding.shard for finding in findings} == {0, 1}
    assert "nothing was read for 3 s" in str(next(finding for finding in findings if finding.shard == 0))
    assert time.monotonic() - began < 60


def test_a_child_that_is_slow(store, tmp_path, monkeypatch):
    """A child that takes longer is waited for, as long as it reads."""
    look_otherwise(tmp_path, monkeypatch, "import mmap", "pages = mmap.mmap(-1, 4096 * 40)", "for page in range(40):",
                   "    pages[4096 * page], _ = 1, time.sleep(0.2)")

    assert kvps.check(store) == []


def test_modules_beside_us_are_not_imported(store, tmp_path, monkeypatch):
    """A folder of somebody else's may hold Python files; the child does not run them."""
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)

    assert kvps.check(store) == []


@pytest.mark.parametrize("n_trials", [15, pytest.param(600, marks=pytest.mark.slow)])
def test_random_damage(sound, tmp_path, rng, n_trials):
    """Wherever bytes are changed, check survives; and where it finds no damage, the counts are all there."""
    right = contents(sound)
    for _ in range(n_trials):
        store = tmp_path / "s"
        shutil.copytree(sound, store)
        data = rng.choice([store / "root.0" / "data.mdb", data_of(store, 0), data_of(store, 1)])
        pages = bytearray(data.read_bytes())
        at, n_bytes = rng.randrange(len(pages)), rng.choice([1, 1, 8, 4096])
        pages[at:at + n_bytes] = rng.randbytes(len(pages[at:at + n_bytes]))
        data.write_bytes(pages)

        assert found(store, "full") or contents(store) == right, f"{data} at {at}, {n_bytes} bytes"
        shutil.rmtree(store)


# The command


def test_command(store):
    """The command ends with 0 for a sound store and 3 for a damaged one; findings come first, a line says it in short."""
    assert run("check", store).stdout.endswith(" s)\n")
    flip_chunks(data_of(store, 1))
    done = run("check", store, check=3)

    assert [line.split(":")[0] for line in done.stdout.splitlines()[:-1]] == ["damage", "damage"]
    assert "2 findings of damage; version 2" in done.stdout.splitlines()[-1]
    assert run("check", store, "--fast").stdout.count("\n") == 1


def test_command_json(store):
    """With --json findings are objects with their place, and a last one says how many there are."""
    flip_chunks(data_of(store, 1))
    *findings, last = map(json.loads, run("check", store, "--json", check=3).stdout.splitlines())

    assert [(row["shard"], row["run"], row["chunk"]) for row in findings] == [(1, 1, 0), (1, 2, 0)]
    assert all(row["found"] and row["expected"] and row["next"] and row["path"] for row in findings)
    assert (last["damage"], last["warnings"], last["version"], last["shards"], last["level"]) == (2, 0, 2, 2, "checksums")


def test_command_on_what_is_no_store(tmp_path):
    """What is no store is an error, not damage."""
    assert "not a kvps store" in refused("check", tmp_path)

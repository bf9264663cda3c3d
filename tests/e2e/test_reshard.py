"""kvps reshard through the command line: what it leaves, whom it refuses, and who goes on beside it."""
import shutil

import pytest
from processes import contents, damage_shard, go_on, refused, run, run_json, stopped, summary, tree, zipf_text

import kvps
from kvps.errors import StoreError
from kvps.store.directory import open_store

ORDER = 3
TEXTS = {name: zipf_text(number, 900, n_words=300, words_per_line=9) for number, name in enumerate("abc")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with texts and a store of two of them, one under a label."""
    made = tmp_path_factory.mktemp("reshard")
    for name, text in TEXTS.items():
        (made / name).write_bytes(text)
    run("train", made / "s", made / "a", "--order", ORDER, "--shards", 4)
    run("update", made / "s", made / "b", "--label", "mon")
    return made


@pytest.fixture
def store(folder, tmp_path):
    """A copy of the store."""
    return shutil.copytree(folder / "s", tmp_path / "s")


def said(store, folder):
    """Return what commands print of a store."""
    out = folder.parent / f"{store.parent.name}.arpa"
    run("export", store, out)
    stats = run_json("stats", store)
    for name in ("shards", "bytes", "live_bytes"):
        del stats[name]
    for label in stats["labels"].values():
        del label["bytes"]
    return ([run("dump", store, "--order", k, "--sorted").stdout for k in range(1, ORDER + 1)], out.read_bytes(), stats,
            run("perplexity", store, folder / "c", "--json").stdout, run("history", store, "--json").stdout)


def shards_of(store):
    """Return (number of shards, words dealt, words split)."""
    with open_store(store) as opened, opened.snapshot() as snapshot:
        assert opened.identity["shards"] == len(snapshot.shards) == len(list((store / "shards").iterdir()))
        table = snapshot.routing or {"words": [], "split": []}
        return len(snapshot.shards), len(table["words"]), len(table["split"])


def largest(store):
    """Return the largest shard over the mean, by distinct n-grams."""
    kvps.open(store).compact()
    with open_store(store) as opened, opened.snapshot() as snapshot:
        sizes = [sum(run.n_keys for run in snapshot.runs(number)) for number in range(len(snapshot.shards))]
    return max(sizes) * len(sizes) / sum(sizes)


def test_nothing_that_is_said_changes(store, folder):
    """Dumps, ARPA file, statistics, perplexity and history stay, to 16 shards, to one, and to four; and text comes and goes."""
    before = said(store, folder)
    for shards in (16, 1, 4):
        told = run_json("reshard", store, "--shards", shards)
        assert (told["shards"], told["version"]) == (shards, 2)
        shutil.rmtree(store / "models", ignore_errors=True)
        assert said(store, folder) == before
        assert shards_of(store)[0] == shards
        assert run("check", store, "--full").stdout.endswith("\n")
    run("update", store, folder / "c")
    run("forget", store, "--label", "mon")
    run("forget", store, folder / "a")
    fresh = store.with_name("fresh")
    run("train", fresh, folder / "c", "--order", ORDER, "--shards", 2)
    assert contents(store) == contents(fresh)


def test_shards_are_of_like_size(folder, tmp_path):
    """A trained store and one that is resharded have shards of like size, and words that are split."""
    lines = zipf_text(5, 30_000, n_words=3000)
    (tmp_path / "text").write_bytes(lines)
    run("train", tmp_path / "s", tmp_path / "text", "--order", ORDER, "--shards", 8)
    assert shards_of(tmp_path / "s")[1] == 1024
    assert shards_of(tmp_path / "s")[2] >= 1
    assert largest(tmp_path / "s") < 1.1
    told = run_json("reshard", tmp_path / "s", "--shards", 5)
    assert told["largest"] < 1.01
    assert largest(tmp_path / "s") == pytest.approx(told["largest"])


def test_the_table_stays(store, folder):
    """What the first job has recorded does not change with more text, with a job that is rolled back, and with a purge."""
    with open_store(store) as opened:
        table = opened.root.routing()
    assert table["words"]
    run("update", store, folder / "c")
    run("forget", store, folder / "a", "--purge")
    with open_store(store) as opened:
        assert opened.root.routing() == table
    assert run("check", store, "--full").returncode == 0


def test_refused(store, folder, tmp_path):
    """Impossible numbers, a table, no store, and a store with a pending job: one line each, and nothing has changed."""
    before = tree(store)
    for shards in (0, 2000, -1):
        assert f"{shards} shards are not possible, expected 1 to 1024" in refused("reshard", store, "--shards", shards, code=2)
    assert run("reshard", store, check=2).stderr
    assert run("reshard", store, "--shards", "many", check=2).stderr
    assert "no such store" in refused("reshard", tmp_path / "nothing", "--shards", 2)
    assert "stop its servers" in run("reshard", "kvps:///tmp/socket", "--shards", 2, check=2).stderr
    assert tree(store) == before
    run("table", "create", store, "t", "--key-bytes", 8)
    assert "is a table" in refused("reshard", store / "tables" / "t", "--shards", 2)
    writer = stopped("update", store, folder / "c", stop_at="SIGSTOP before kvps.store.shard:Shard.apply 3")
    refused("reshard", store, "--shards", 2, code=5)
    writer.kill()
    writer.communicate()
    assert "a update was interrupted; go on with kvps resume" in refused("reshard", store, "--shards", 2)
    assert shards_of(store)[0] == 4
    run("abort", store)
    assert run_json("reshard", store, "--shards", 2)["shards"] == 2


def test_readers_at_work(store, folder):
    """A snapshot that is open is read to its end; the same reader's next one, and a model, are of the new shards."""
    before = contents(store)
    with kvps.open(store) as reader, open_store(store) as directory:
        expected = sorted(reader.dump(2))
        listed = reader.dump(2)
        first = next(listed)
        with directory.snapshot() as snapshot:
            run("reshard", store, "--shards", 9)
            assert len(snapshot.shards) == 4
            assert snapshot.n_keys() == sum(r.n_keys for number in range(4) for r in snapshot.runs(number))
        assert sorted([first, *listed]) == expected
        assert sorted(reader.dump(2)) == expected
        with directory.snapshot() as snapshot:
            assert len(snapshot.shards) == directory.identity["shards"] == 9
        reader.reshard(3)
        assert reader.model(threads=1).perplexity([["w1", "w2"]]) > 1
        assert len(list((store / "shards").iterdir())) == 3
    assert contents(store) == before


def test_a_reader_that_opens_at_that_instant(store):
    """One that has read the root before the shards are replaced, and opens them afterwards, sees the new ones."""
    before = contents(store)
    reader = stopped("dump", store, "--order", 2, "--sorted", stop_at="SIGSTOP before kvps.store.shard:Shard.open 2")
    run("reshard", store, "--shards", 7)
    code, out, _ = go_on(reader)
    assert code == 0
    assert out == run("dump", store, "--order", 2, "--sorted").stdout
    assert contents(store) == before


def test_checkpoints_made_before(store, folder, tmp_path):
    """A checkpoint made before is restored with the shards of its time; recover says what it needs, or takes a new one."""
    before = contents(store)
    run("checkpoint", "create", store, "old")
    run("reshard", store, "--shards", 6)
    run("checkpoint", "restore", store, "old", "--into", tmp_path / "r")
    assert contents(tmp_path / "r") == before
    assert shards_of(tmp_path / "r")[0] == 4
    run("update", tmp_path / "r", folder / "c")
    assert run("check", tmp_path / "r", "--full").returncode == 0
    run("checkpoint", "create", store, "new")
    damage_shard(store, "cut", 5)
    run("recover", store, "--yes")
    assert contents(store) == before
    assert run("check", store, "--full").returncode == 0
    run("checkpoint", "restore", store, "new", "--into", tmp_path / "n")
    assert contents(tmp_path / "n") == before
    assert shards_of(tmp_path / "n") == shards_of(store)


@pytest.mark.parametrize("shards", [3, 4])
@pytest.mark.parametrize("source", ["checkpoint", "text", "nothing"])
def test_recover_after_a_reshard(folder, tmp_path, shards, source):
    """A shard is made from a checkpoint of other shards and the text since, from text alone, or named with what is missing."""
    for name in "abc":
        shutil.copy(folder / name, tmp_path / name)
    store = tmp_path / "s"
    run("train", store, tmp_path / "a", "--order", ORDER, "--shards", 4)
    run("update", store, tmp_path / "b", "--label", "mon")
    if source == "checkpoint":
        run("checkpoint", "create", store)
    run("reshard", store, "--shards", shards)        # of 4 shards as many, but dealt anew
    run("update", store, tmp_path / "c", "--label", "tue")
    before = contents(store)
    damage_shard(store, "deleted", 2)
    if source != "text":
        (tmp_path / "a").unlink()
    if source == "nothing":
        assert "give each with --input FILE" in run("recover", store, "--yes", check=4).stderr
        return
    run("recover", store, "--yes")
    assert contents(store) == before
    assert run("check", store, "--full").returncode == 0
    run("forget", store, "--label", "mon")
    run("forget", store, "--label", "tue")
    run("train", tmp_path / "fresh", folder / "a", "--order", ORDER)
    assert contents(store) == contents(tmp_path / "fresh")


def test_a_failure_leaves_nothing(store, monkeypatch):
    """A reshard that fails half-way says why, and has removed what it began; the store is as before."""
    from kvps.store.shard import Shard

    names = sorted(entry.name for entry in (store / "shards").iterdir())
    calls = []
    original = Shard.add_run

    def fail(self, *arguments):
        calls.append(self)
        if len(calls) == 9:
            raise StoreError("no more")
        return original(self, *arguments)

    before = contents(store)
    monkeypatch.setattr(Shard, "add_run", fail)
    with kvps.open(store) as opened, pytest.raises(StoreError, match="no more"):
        opened.reshard(5, threads=2)
    assert sorted(entry.name for entry in (store / "shards").iterdir()) == names
    assert contents(store) == before


def test_an_empty_store(tmp_path):
    """A store without text is resharded too, and its first text deals its words."""
    with kvps.create(tmp_path / "s", order=ORDER, shards=2) as store:
        assert store.reshard(5)["ngrams"] == 0
    (tmp_path / "a").write_bytes(TEXTS["a"])
    run("train", tmp_path / "s", tmp_path / "a", "--order", ORDER, "--shards", 5)
    assert shards_of(tmp_path / "s")[:2] != (5, 0)
    assert summary(tmp_path / "s")[0] == 1

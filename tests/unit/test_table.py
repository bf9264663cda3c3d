"""CountTable and the tables of a store: what a push adds is there, once, whatever happens beside it; names stay inside."""
import os
import random
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from processes import refused, run, run_json

import kvps
from kvps.errors import ArgumentError, CorruptionError, DataError, StoreError, StoreLocked
from kvps.ps import local, lookup, tables
from kvps.store.shard import Shard

MOST = 1 << 62


@pytest.fixture
def store(tmp_path, request):
    """Return a store of n-grams, open for writing; it is checked at the end, but for the many that only refuse arguments."""
    kvps.create(tmp_path / "s", order=2, shards=1).close()
    with kvps.open(tmp_path / "s", writable=True) as opened:
        yield opened
    if not hasattr(request.node, "callspec"):
        assert [found for found in kvps.check(tmp_path / "s", "full") if found.severity == "damage"] == []


@pytest.fixture
def clicks(store):
    """Return a table with keys of 8 bytes and two shards."""
    return store.table("clicks", kind="count", key_bytes=8, shards=2)


def contents(table, **bounds):
    """Return what a scan gives, {key: count}, after a look at its order."""
    found = [(key if keys.ndim == 1 else bytes(key), count) for keys, counts in table.scan(**bounds)
             for key, count in zip(keys.tolist(), counts.tolist(), strict=True)]
    assert [key for key, _ in found] == sorted({key for key, _ in found})
    return dict(found)


def leftovers(path):
    """Return what a check of a store says of leftovers, without the places, and that there is no damage."""
    found = kvps.check(path)
    assert {finding.severity for finding in found} <= {"warning"}
    return [finding.what.partition(": ")[2] for finding in found if finding.part == "leftover"]


# Push, pull, scan


def test_push_adds_and_pull_answers_in_order(clicks):
    """Deltas add up within and over pushes; keys are answered as asked, those without a count by 0."""
    clicks.push(np.array([5, 3, 5, 2**64 - 1], np.uint64), np.array([1, 2, 3, 4]))
    clicks.push(np.array([3, 9], np.uint64), -1)
    clicks.push(np.array([9], np.uint64))

    found = clicks.pull(np.array([9, 5, 3, 5, 2**64 - 1, 7], np.uint64))

    assert found.dtype == np.int64
    assert found.tolist() == [0, 4, 1, 4, 4, 0]
    assert contents(clicks) == {3: 1, 5: 4, 2**64 - 1: 4}
    assert len(clicks) == 3


@pytest.mark.parametrize("key_bytes", [1, 2, 4, 5, 8, 9, 12, 16, 17, 31, 32])
def test_keys_of_any_width(store, rng, key_bytes):
    """Keys as an array of bytes and as a list are the same keys, for every width, and come in byte order."""
    table = store.table(f"t{key_bytes}", kind="count", key_bytes=key_bytes, shards=3)
    keys = [rng.randbytes(key_bytes) for _ in range(200)] * 2
    table.push(keys, 2)
    table.push(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, key_bytes), 1)

    expected = {key: 3 * n for key, n in Counter(keys).items()}
    found = contents(table)

    assert {key.to_bytes(key_bytes) if isinstance(key, int) else key: n for key, n in found.items()} == expected
    assert table.pull(keys).tolist() == [expected[key] for key in keys]
    assert len(table) == len(expected)


def test_scan_of_a_part(store):
    """A scan may begin and end anywhere, by prefix or by bounds, across chunks and runs."""
    table = store.table("t", kind="count", key_bytes=3, shards=2)
    keys = [bytes([a, b, c]) for a in (0, 1, 254, 255) for b in range(0, 256, 5) for c in (0, 7, 255)]
    for part in range(3):
        table.push(keys[part::3], part + 1)
    everything = contents(table)

    for prefix in (b"", b"\x01", b"\x01\x05", b"\xff", b"\xff\xff", b"\xff\xff\xff", b"\x07", b"\xfe\x05\xff"):
        assert contents(table, prefix=prefix) == {key: n for key, n in everything.items() if key.startswith(prefix)}
    for start, stop in ((b"\x01", None), (None, b"\x01"), (b"\x01\x02\x03", b"\xfe\x05"), (b"\xff", b"\x01"), (b"", b"")):
        assert contents(table, start=start, stop=stop) == {
            key: n for key, n in everything.items() if (start or b"") <= key and (stop is None or key < stop.ljust(3, b"\0"))}


def test_scan_of_numbers(clicks):
    """Where keys are integers, so are the bounds of a scan."""
    clicks.push(np.arange(0, 5000, 10, dtype=np.uint64))

    assert list(contents(clicks, start=995, stop=1040)) == [1000, 1010, 1020, 1030]
    assert list(contents(clicks, start=4980)) == [4980, 4990]
    assert list(contents(clicks, prefix=b"\0" * 6 + b"\1")) == list(range(260, 512, 10))


def test_a_scan_is_one_snapshot(clicks):
    """What is pushed while a scan is read does not show in it, and a merge takes nothing from under it."""
    keys = np.arange(40_000, dtype=np.uint64)
    clicks.push(keys)
    scan = clicks.scan()
    first = next(scan)
    for _ in range(6):
        clicks.push(keys)

    assert {*first[1].tolist(), *(count for _, counts in scan for count in counts.tolist())} == {1}
    assert set(clicks.pull(keys).tolist()) == {7}


def test_runs_stay_few(clicks):
    """Pushes merge what they leave, so that a key is looked for in few runs."""
    for number in range(150):
        clicks.push(np.array([number % 7, number, 10**9 + number], np.uint64))

    stats = clicks.stats()
    assert stats["runs"] <= 2 * 3 * 5
    assert clicks.pull(np.array([3, 100, 10**9 + 5], np.uint64)).tolist() == [22, 1, 1]
    assert (stats["name"], stats["kind"], stats["key_bytes"], stats["shards"], stats["clients"]) == ("clicks", "count", 8, 2, 0)


def test_what_is_kept_of_runs_is_bounded(clicks, monkeypatch):
    """With hardly any memory for what was decoded, keys are found all the same."""
    monkeypatch.setattr(lookup, "MEMORY_BYTES", 1)
    keys = np.random.default_rng(1).integers(0, 2**64, 100_000, dtype=np.uint64)
    clicks.push(keys)
    for _ in range(2):
        assert (clicks.pull(keys) == 1).all()
        assert all(len(known._marks) == 1 for known in clicks._shards._lookups.values())


@pytest.mark.parametrize("keys", [
    np.array([1, 2]), np.array([[1, 2]], np.uint8), np.array([1.0]), np.array([1], np.uint32), b"12345678", "12345678",
    [b"1234567"], [b"12345678", 5], [-1], [2**64], [True], {1, 2}, 5, np.array(["a"]), None])
def test_keys_that_are_none(clicks, keys):
    """Keys of another kind or width are refused, and nothing is added."""
    for call in (lambda: clicks.push(keys), lambda: clicks.pull(keys)):
        with pytest.raises(ArgumentError, match="key"):
            call()
    assert contents(clicks) == {}


@pytest.mark.parametrize("deltas", [
    np.array([1, 2, 3]), np.array([[1, 2]]), np.array([1.5, 2]), np.array([1, 2], np.uint64), [True, False], ["1", "2"], "12",
    2**63, -2**63 - 1, 1.5, None, True, [[1], [2, 3]]])
def test_deltas_that_are_none(clicks, deltas):
    """Deltas of another kind or number are refused, and nothing is added."""
    with pytest.raises(ArgumentError, match="count"):
        clicks.push([1, 2], deltas)
    assert contents(clicks) == {}


def test_deltas_of_other_widths(clicks):
    """Whole numbers that fit in 64 bits are taken as they are; nothing is a push too."""
    assert clicks.push([1, 2], np.array([1, -2], np.int8))
    assert clicks.push([], 1) and clicks.push(np.empty(0, np.uint64), [])
    assert clicks.push(np.arange(6, dtype=np.uint64)[::2], np.arange(6)[::2])
    assert clicks.pull([]).tolist() == []
    assert contents(clicks) == {1: 1, 4: 4}


@pytest.mark.parametrize("bounds", [{"prefix": b"a", "start": b"b"}, {"start": "a"}, {"stop": b"123456789"}, {"start": -1},
                                    {"stop": 2**64}, {"prefix": 5.0}, {"start": True}])
def test_bounds_that_are_none(clicks, bounds):
    """A scan with bounds that mean nothing is refused when it is asked for."""
    with pytest.raises(ArgumentError):
        clicks.scan(**bounds)


# Overflow


@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_is_refused_and_loses_nothing(clicks, sign):
    """A count beyond 2**62 is refused, with its key, and neither that push nor what was there is changed."""
    clicks.push([7, 8, 9], sign * (MOST - 5))
    for deltas in ([0, 0, 6], [1, 1, MOST], [1, 1, 2**63 - 1]):
        with pytest.raises(DataError, match=r"key 9 .*2\*\*62"):
            clicks.push([7, 8, 9], [sign * delta for delta in deltas])
    assert contents(clicks) == dict.fromkeys((7, 8, 9), sign * (MOST - 5))
    clicks.push([9], sign * 5)
    with pytest.raises(DataError):
        clicks.push([9], sign)
    clicks.push([9], -sign * MOST)
    assert contents(clicks) == dict.fromkeys((7, 8), sign * (MOST - 5))


def test_great_counts_come_and_go(clicks, rng):
    """However large counts come and go, merges never meet a sum that they cannot hold."""
    expected = Counter()
    for _ in range(60):
        key, delta = rng.randrange(3), rng.choice([MOST, -MOST, MOST // 2, 1, -1])
        if abs(expected[key] + delta) <= MOST:
            clicks.push([key, 5], [delta, 1])
            expected[key], expected[5] = expected[key] + delta, expected[5] + 1
        else:
            with pytest.raises(DataError):
                clicks.push([key, 5], [delta, 1])
        assert clicks.pull([0, 1, 2, 5]).tolist() == [expected[key] for key in (0, 1, 2, 5)]


# Exactly once


def test_a_number_counts_once(clicks):
    """A push that is sent again with its number changes nothing; the next number counts; a gap is refused."""
    assert clicks.push([1], 5, client="a", sequence=1) is True
    assert clicks.push([1], 5, client="a", sequence=1) is False
    assert clicks.push([1, 2], 5, client="a", sequence=2) is True
    assert clicks.push([1], 5, client="a", sequence=1) is False
    assert clicks.push([1], 5, client="b", sequence=1) is True
    with pytest.raises(StoreError, match="4 last|so 3 is expected, not 4") as caught:
        clicks.push([1], 5, client="a", sequence=4)

    assert caught.value.expected == 3
    assert contents(clicks) == {1: 15, 2: 5}
    assert clicks.client("a")["sequence"] == 2 and clicks.client("c") == {"sequence": 0, "note": None}
    assert clicks.stats()["clients"] == 2


def test_a_number_has_one_note(clicks):
    """A number that comes again with another note is something else, and is refused."""
    clicks.push([1], 5, client="a", sequence=1, note="x")

    assert clicks.push([1], 5, client="a", sequence=1, note="x") is False
    with pytest.raises(StoreError, match="something else as number 1"):
        clicks.push([2], 5, client="a", sequence=1, note="y")
    assert clicks.client("a") == {"sequence": 1, "note": "x"}


@pytest.mark.parametrize("how", [{"client": "a"}, {"sequence": 1}, {"client": "", "sequence": 1}, {"client": "a/b", "sequence": 1},
                                 {"client": "a", "sequence": 0}, {"client": "a", "sequence": True},
                                 {"client": "a", "sequence": "1"}, {"client": "a", "sequence": 2**63},
                                 {"client": "x" * 65, "sequence": 1}])
def test_numbers_that_are_none(clicks, how):
    """A client without a number, a number without a client, and what is neither are refused."""
    with pytest.raises(ArgumentError):
        clicks.push([1], **how)


def test_a_push_that_reached_some_shards(store, monkeypatch):
    """A push that broke off between shards is sent again and counts once in each; the next number is refused before."""
    table = store.table("t", kind="count", key_bytes=8, shards=4)
    keys = np.arange(100, dtype=np.uint64)
    table.push(keys, client="a", sequence=1)
    original, calls = Shard.push, []

    def failing(self, *args, **more):
        calls.append(self.shard)
        if len(calls) == 3:
            raise StoreError("the cable is out")
        return original(self, *args, **more)

    monkeypatch.setattr(Shard, "push", failing)
    with pytest.raises(StoreError, match="cable"):
        table.push(keys, client="a", sequence=2)
    monkeypatch.undo()

    with pytest.raises(StoreError, match="so 2 is expected"):
        table.push(keys, client="a", sequence=3)
    assert table.push(keys, client="a", sequence=2) is True
    assert table.push(keys, client="a", sequence=2) is False
    assert set(contents(table).values()) == {2}


# A store and its tables


def test_a_table_is_made_once_and_found_again(tmp_path):
    """A table is made by a store that is open for writing, and is there for every store that is opened later."""
    kvps.create(tmp_path / "s", order=2).close()
    with kvps.open(tmp_path / "s") as reader, pytest.raises(StoreError, match=r"has no table clicks; there are: \(none\)"):
        reader.table("clicks", kind="count", key_bytes=8)
    with kvps.open(tmp_path / "s", writable=True) as writer:
        with pytest.raises(StoreError, match="give kind and key_bytes"):
            writer.table("clicks")
        made = writer.table("clicks", kind="count", key_bytes=8)
        made.push([1, 2])
        assert writer.table("clicks") is made
        assert set(writer.tables()) == {"clicks"}
    with pytest.raises(StoreError, match="is closed"):
        made.pull([1])
    with kvps.open(tmp_path / "s") as reader, reader.table("clicks", kind="count", key_bytes=8) as table:
        assert contents(table) == {1: 1, 2: 1}
        for wrong in ({"kind": "vector"}, {"key_bytes": 4}, {"kind": "count", "key_bytes": 9}):
            with pytest.raises(StoreError, match="is a table with"):
                reader.table("clicks", **wrong)


@pytest.mark.parametrize(("more", "why"), [({"kind": "vector"}, "kind"), ({"key_bytes": 0}, "bytes"), ({"key_bytes": 33}, "bytes"),
                                           ({"key_bytes": "8"}, "bytes"), ({"shards": 0}, "shards"), ({"shards": 65}, "shards")])
def test_tables_that_cannot_be(store, more, why):
    """A kind, width or number of shards that is not possible makes no table."""
    with pytest.raises(ArgumentError, match=why):
        store.table("t", **{"kind": "count", "key_bytes": 8, **more})
    assert store.tables() == {}


@pytest.mark.parametrize("name", [
    "", ".", "..", "../x", "a/b", "/etc", "a\0b", ".hidden", "-x", "x" * 65, "tëst", "x.tmp-1", "a b", 5])
def test_names_cannot_leave_the_folder(store, name):
    """A name that could be a path, or look like one that is being made, is refused by every call."""
    before = sorted(store.path.rglob("*"))
    for call in (lambda: store.table(name, kind="count", key_bytes=8), lambda: store.drop_table(name)):
        with pytest.raises(ArgumentError, match="name of a table"):
            call()
    assert sorted(store.path.rglob("*")) == before


def test_links_are_refused(store, tmp_path):
    """A link in the place of the folder of tables, or of a table, is neither followed, listed as sound nor removed."""
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", store.path / "tables")
    with pytest.raises(StoreError, match="symbolic link"):
        store.table("t", kind="count", key_bytes=8)
    assert any("symbolic link" in str(found) for found in kvps.check(store.path))
    os.unlink(store.path / "tables")

    store.table("t", kind="count", key_bytes=8).close()
    shutil.move(store.path / "tables" / "t", tmp_path / "elsewhere" / "t")
    os.symlink(tmp_path / "elsewhere" / "t", store.path / "tables" / "t")
    for call in (lambda: store.table("t"), lambda: store.drop_table("t"), lambda: store.table("t", kind="count", key_bytes=8)):
        with pytest.raises(StoreError, match="symbolic link"):
            call()
    assert any("symbolic link" in str(found) for found in kvps.check(store.path))
    assert "symbolic link" in store.tables()["t"]["damaged"]
    assert (tmp_path / "elsewhere" / "t" / "seal").exists()
    os.unlink(store.path / "tables" / "t")


def test_a_table_is_no_store_of_ngrams(store, tmp_path):
    """Each refuses to be taken for the other, in one line."""
    store.table("t", kind="count", key_bytes=8).close()
    path = store.path / "tables" / "t"
    with pytest.raises(StoreError, match="is a table"):
        kvps.open(path)
    for command in (["update", path, path], ["counts", path, "a"], ["stats", path], ["resume", path], ["history", path],
                    ["dump", path, "--order", "1"], ["export", path, tmp_path / "x.arpa"], ["table", "list", path]):
        assert "is a table (count, keys of 8 bytes)" in refused(*command)
    kvps.create(tmp_path / "other").close()
    shutil.copytree(tmp_path / "other", store.path / "tables" / "other")
    with pytest.raises(StoreError, match="not a table"):
        store.table("other")
    shutil.rmtree(store.path / "tables" / "other")


def test_one_writer_many_readers(tmp_path):
    """A table that is open for writing keeps other writers away, and readers see each push when it has returned."""
    kvps.create(tmp_path / "s").close()
    with kvps.open(tmp_path / "s", writable=True) as writer, writer.table("t", kind="count", key_bytes=8) as table:
        assert run("table", "pull", tmp_path / "s", "t", "1").stdout == "1,0\n"
        with kvps.open(tmp_path / "s") as reader, reader.table("t") as other:
            for n in range(1, 6):
                table.push([1])
                assert other.pull([1]).tolist() == [n]
            assert run("table", "pull", tmp_path / "s", "t", "1").stdout == "1,5\n"
            with pytest.raises(StoreLocked):
                other.push([1])
            assert "is using it" in refused("table", "push", tmp_path / "s", "t", code=5, input="1,1\n")
            table.close()
            assert other.push([1]) and other.push([1], client="me", sequence=1)
            assert other.pull([1]).tolist() == [7]


def test_readers_follow_a_table_that_moves(store):
    """A reader goes on when the table was vacuumed under it."""
    table = store.table("t", kind="count", key_bytes=8, shards=2)
    table.push(np.arange(50, dtype=np.uint64))
    table.push(np.arange(50, dtype=np.uint64))
    table.close()
    with kvps.open(store.path) as reader, reader.table("t") as other:
        assert set(other.pull(np.arange(50, dtype=np.uint64)).tolist()) == {2}
        run("compact", store.path / "tables" / "t", "--vacuum")
        assert set(other.pull(np.arange(50, dtype=np.uint64)).tolist()) == {2}
        assert other.stats()["runs"] == 2


def test_threads(clicks):
    """Several threads push and pull at once, and nothing is lost."""
    def work(number):
        for _ in range(10):
            clicks.push(np.arange(200, dtype=np.uint64), number)
            assert (clicks.pull(np.arange(200, dtype=np.uint64)) > 0).all()

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(contents(clicks).values()) == {60}


def test_a_table_that_is_dropped(store):
    """A table that is dropped is gone as a whole; a name can be used again; others stay."""
    for name in ("a", "b"):
        store.table(name, kind="count", key_bytes=8).push([1])
    store.drop_table("a")

    assert set(store.tables()) == {"b"} and os.listdir(store.path / "tables") == ["b"]
    with pytest.raises(StoreError, match="there are: b"):
        store.drop_table("a")
    assert contents(store.table("a", kind="count", key_bytes=4)) == {}


def test_what_a_kill_left_is_removed(store):
    """A table whose making or removal was killed is not listed, and goes when the next one is made."""
    store.table("a", kind="count", key_bytes=8).close()
    shutil.copytree(store.path / "tables" / "a", store.path / "tables" / "b.tmp-0123456789abcdef")

    assert set(store.tables()) == {"a"}
    assert leftovers(store.path) == ["was not finished"]
    store.table("c", kind="count", key_bytes=8)
    assert sorted(os.listdir(store.path / "tables")) == ["a", "c"]


def test_jobs_leave_tables_alone(store):
    """Training, compaction, purges and checkpoints of a store change nothing in its tables, and say where they matter."""
    store.train(["a b", "b c"])
    store.table("t", kind="count", key_bytes=8).push([1, 2], client="me", sequence=1)
    store.forget(["b c"])
    store.compact(vacuum=True)
    store.purge()
    store.checkpoint("x", to=store.path.parent / "depot")
    left = store.table("t")
    assert contents(left) == {1: 1, 2: 1} and left.client("me")["sequence"] == 1
    store.close()
    assert any("the tables t" in sentence for sentence in run_json("forget", store.path, "--purge")["remains"])
    kvps.open(store.path, writable=True).close()
    assert run_json("table", "pull", store.path, "t", "2") == {"key": 2, "count": 1}


# Damage and loss


def damaged(folder, rng):
    """Change one byte inside a chunk of a table."""
    data = next(Path(folder).glob("shards/0000.*/data.mdb"))
    raw = bytearray(data.read_bytes())
    at = raw.index(b"kvCh") + 24 + rng.randrange(2000)
    raw[at] ^= 1 << rng.randrange(8)
    data.write_bytes(raw)


def test_damage_is_told_and_never_reads_as_0(tmp_path, rng):
    """A flipped bit in a chunk ends pulls of its keys and scans with an error, and check finds it."""
    kvps.create(tmp_path / "s").close()
    with kvps.open(tmp_path / "s", writable=True) as store:
        store.table("t", kind="count", key_bytes=8).push(np.arange(0, 100_000, 3, dtype=np.uint64))
    damaged(tmp_path / "s" / "tables" / "t", rng)
    with kvps.open(tmp_path / "s") as store, store.table("t") as table:
        for key in (0, 1, 3, 6000, 2999):
            with pytest.raises(CorruptionError):
                table.pull([key])
        with pytest.raises(CorruptionError):
            list(table.scan())
    assert [found.severity for found in kvps.check(tmp_path / "s")] == ["damage"]
    assert "no text can make a table again" in refused("recover", tmp_path / "s" / "tables" / "t", "--yes", code=3)


def test_a_seal_that_is_gone(tmp_path):
    """A table without its seal is listed as damaged, kept from being made anew, and recovered."""
    kvps.create(tmp_path / "s").close()
    path = tmp_path / "s" / "tables" / "t"
    with kvps.open(tmp_path / "s", writable=True) as store:
        store.table("t", kind="count", key_bytes=8).push([1])
    (path / "seal").unlink()
    with kvps.open(tmp_path / "s", writable=True) as store:
        assert "no seal" in store.tables()["t"]["damaged"]
        with pytest.raises(StoreError, match="no seal"):
            store.table("t", kind="count", key_bytes=8)
    run("recover", path, "--yes")
    with kvps.open(tmp_path / "s") as store:
        assert contents(store.table("t")) == {1: 1}


def test_a_shard_put_back_is_noticed(tmp_path):
    """A shard that lost pushes which were acknowledged before the table was closed is refused."""
    kvps.create(tmp_path / "s").close()
    path = tmp_path / "s" / "tables" / "t"
    with kvps.open(tmp_path / "s", writable=True) as store:
        store.table("t", kind="count", key_bytes=8).push([1])
    shutil.copytree(path / "shards", tmp_path / "older")
    with kvps.open(tmp_path / "s", writable=True) as store:
        store.table("t").push([1])
    shutil.rmtree(path / "shards")
    shutil.copytree(tmp_path / "older", path / "shards")
    with kvps.open(tmp_path / "s") as store, pytest.raises(CorruptionError):
        store.table("t")


def test_checkpoints_of_a_table(tmp_path):
    """A checkpoint of a table holds its counts and the numbers of its clients; the restored table goes on from there."""
    kvps.create(tmp_path / "s").close()
    path = tmp_path / "s" / "tables" / "t"
    kept = []
    for number in (1, 2, 3):
        with kvps.open(tmp_path / "s", writable=True) as store:
            table = store.table("t", kind="count", key_bytes=8, shards=2)
            table.push([1, 2, 3], number, client="me", sequence=number, note=str(number))
        kept.append(run_json("checkpoint", "create", path, "--to", tmp_path / "depot"))
    again = run_json("checkpoint", "create", path, "--to", tmp_path / "depot")
    assert again["existed"] and again["name"] == kept[2]["name"] and len({row["name"] for row in kept}) == 3
    assert "already" in refused("checkpoint", "create", path, kept[0]["name"], "--to", tmp_path / "depot")

    run("checkpoint", "restore", "--from", tmp_path / "depot", kept[1]["name"], "--into", tmp_path / "s" / "tables" / "u")
    run("checkpoint", "verify", "--from", tmp_path / "depot")
    with kvps.open(tmp_path / "s", writable=True) as store, store.table("u") as table:
        assert contents(table) == {1: 3, 2: 3, 3: 3}
        assert table.client("me") == {"sequence": 2, "note": "2"}
        assert table.push([1], client="me", sequence=2, note="2") is False
        with pytest.raises(StoreError, match="so 3 is expected"):
            table.push([1], client="me", sequence=4)
        assert table.push([1], client="me", sequence=3)
        assert table.pull([1, 2]).tolist() == [4, 3]
    assert [found for found in kvps.check(tmp_path / "s", "full") if found.severity == "damage"] == []


def test_check_finds_keys_in_the_wrong_shard(tmp_path):
    """A full check notices chunks that lie in another shard than their keys belong to."""
    kvps.create(tmp_path / "s").close()
    with kvps.open(tmp_path / "s", writable=True) as store:
        table = store.table("t", kind="count", key_bytes=8, shards=2)
        part = next(part for part in table._parts(np.arange(99, dtype=np.uint64).view(np.uint8), True, np.array([1])) if part.shard)
        table._shards.push([local.Part(0, part.keys, part.counts, 1)], None, 0, None)
    found = kvps.check(tmp_path / "s", "full")

    assert [(one.severity, one.shard) for one in found] == [("damage", 0)]
    assert "do not belong to this shard" in str(found[0])


def test_a_merge_that_was_killed_is_swept(store):
    """Chunks of a run that was never finished go with the first push of the next writer, and nothing else does."""
    table = store.table("t", kind="count", key_bytes=8)
    table.push([1, 2, 3], client="me", sequence=1)
    shard = table._shards._directory.shards[0]
    with shard._write() as (txn, manifest):
        number = manifest["next_run"]
        manifest["next_run"] += 1
        with shard.snapshot() as snap:
            value = bytes(snap.chunk(snap.all_runs()[0], 0)[0])
        txn.put(b"r" + number.to_bytes(8) + bytes(4), value)
    table.close()
    assert leftovers(store.path) == ["1 chunks of runs that were not finished"]
    with store.table("t") as table:
        table.push([1], client="me", sequence=2)
        assert contents(table) == {1: 2, 2: 1, 3: 1}
    assert leftovers(store.path) == []


def test_tables_of_the_documentation_are_in_their_shards():
    """The example of FORMAT.md has the shards that the kernel gives."""
    text = (Path(kvps.__file__).parent / "store" / "FORMAT.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("Example: of 4 shards"))
    from reference import shard_of_key

    for key, shard in ((bytes(7) + b"\x2a", 2), (bytes(7) + b"\x01", 1)):
        assert f"`{key.hex(' ')}`" in line and f"in shard {shard}" in line
        assert shard_of_key(key, 4) == shard


def test_random_names_stay_inside(store, rng):
    """Names made of anything either are refused or lie in the folder of tables."""
    letters = "aZ09_.-/\\ \0é~$%*?"
    for _ in range(300):
        name = "".join(random.Random(rng.random()).choices(letters, k=rng.randrange(0, 8)))
        try:
            path = tables.table_path(store.path, name)
        except ArgumentError:
            continue
        assert path.parent == store.path / "tables" and path.name == name and name not in (".", "..")

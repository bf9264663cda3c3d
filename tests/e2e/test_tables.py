"""kvps table on the command line: every way to write keys, what comes out goes in again, and bad input loses nothing."""
import bz2
import gzip
import json
import subprocess
import sys

import pytest
from processes import environment, refused, run, run_json

import kvps
from kvps.ps import tables


@pytest.fixture
def store(tmp_path):
    """Return a store with tables of 8, 3 and 20 bytes a key."""
    kvps.create(tmp_path / "s").close()
    for name, key_bytes in (("n", 8), ("hex", 3), ("text", 20)):
        tables.create(tmp_path / "s", name, "count", key_bytes, 2)
    return tmp_path / "s"


def scan(store, name, *more):
    """Return the lines of a scan."""
    return run("table", "scan", store, name, *more).stdout.splitlines()


def test_numbers(store):
    """Numbers from 0 to the greatest one are keys, in the order of the numbers."""
    run("table", "push", store, "n", input=f"{2**64 - 1},1\n0,2\n10,-3\n9,+4\n")

    assert scan(store, "n") == ["0,2", "9,4", "10,-3", f"{2**64 - 1},1"]
    assert scan(store, "n", "--start", "9", "--stop", "11") == ["9,4", "10,-3"]
    assert scan(store, "n", "--limit", "1") == ["0,2"] and scan(store, "n", "--limit", "0") == []
    assert scan(store, "n", "--key-type", "hex", "--prefix", "00" * 7) == ["0000000000000000,2", "0000000000000009,4",
                                                                          "000000000000000a,-3"]
    assert [json.loads(line) for line in scan(store, "n", "--json", "--start", "10", "--limit", "1")] == [{"key": 10, "count": -3}]


def test_hexadecimal_keys(store):
    """Two digits a byte are a key, a part of them the beginning of some."""
    run("table", "push", store, "hex", "--key-type", "hex", input="00ff01,1\n00FF02,2\nffffff,3\n")

    assert scan(store, "hex", "--key-type", "hex") == ["00ff01,1", "00ff02,2", "ffffff,3"]
    assert scan(store, "hex", "--key-type", "hex", "--prefix", "00ff") == ["00ff01,1", "00ff02,2"]
    assert scan(store, "hex", "--key-type", "hex", "--start", "00ff02") == ["00ff02,2", "ffffff,3"]
    assert scan(store, "hex") == ["65281,1", "65282,2", "16777215,3"]


def test_text_keys(store):
    """Text up to the width is a key, with commas, quotes and letters of any alphabet; what is printed can be pushed."""
    keys = ["", "a", "ab", "a,b", 'say "hi"', "größe", "x" * 20, "日本語", " blank "]
    rows = "".join(json.dumps({"key": key, "count": n, "more": [1]}) + "\n" for n, key in enumerate(keys, 1))
    run("table", "push", store, "text", "--key-type", "text", "--format", "jsonl", input=rows)

    found = {row["key"]: row["count"] for row in map(json.loads, scan(store, "text", "--key-type", "text", "--json"))}
    assert found == {key: n for n, key in enumerate(keys, 1)}
    assert run_json("table", "pull", store, "text", "--key-type", "text", "a,b") == {"key": "a,b", "count": 4}
    assert scan(store, "text", "--key-type", "text", "--prefix", "a") == ["a,2", '"a,b",4', "ab,3"]
    run("table", "create", store, "copy", "--key-bytes", "20")
    run("table", "push", store, "copy", "--key-type", "text", input="\n".join(scan(store, "text", "--key-type", "text")))
    assert scan(store, "copy") == scan(store, "text")


def test_files(store, tmp_path):
    """Files are told by their names, unpacked, and may have a mark at the beginning, blank lines and any line ends."""
    rows = b"\xef\xbb\xbf1,1\r\n\r\n2,2\n   \n3,3"
    (tmp_path / "a.csv").write_bytes(rows)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(b'{"key": "1", "count": 1}\n{"count": 2, "key": 2}\n'))
    for name, n_rows in (("a.csv", 3), ("b.csv.gz", 3), ("c.jsonl.bz2", 2)):
        assert run_json("table", "push", store, "n", tmp_path / name)["rows"] == n_rows
    assert scan(store, "n") == ["1,3", "2,6", "3,6"]


def test_nothing(store):
    """Empty input adds nothing, and neither does it with a client."""
    assert run_json("table", "push", store, "n", input="") | {"elapsed_s": 0} == {
        "table": "n", "rows": 0, "batches": 0, "already": 0, "elapsed_s": 0}
    assert run_json("table", "push", store, "n", "--client", "me", input="")["batches"] == 0
    assert scan(store, "n") == []


@pytest.mark.parametrize(("line", "why"), [
    ("5", "1 fields"), ("1,2,3", "3 fields"), ("x,1", 'the key "x"'), ("-1,1", 'the key "-1"'), (f"{2**64},1", "2**64 - 1"),
    (",1", 'key ""'),
    ("1,x", 'count "x"'), ("1,", 'count ""'), ("1,1.5", 'count "1.5"'), ("1,1_0", 'count "1_0"'), ("1, 2", 'count " 2"'),
    ("1" * 100 + ",1", "the key"),
    ("١,1", 'key "١"'), (f"1,{2**62 + 1}", "beyond 2**62"), ('"1,2', "no CSV"), ('"1"x,2', "no CSV")])
def test_a_bad_line_of_csv(store, line, why):
    """A line that is no key and count ends the command with its number and the reason; what was before it is told and kept."""
    rows = f"1,1\n2,1\n{line}\n3,1\n"
    message = refused("table", "push", store, "n", "--batch", "1", input=rows)
    assert "stdin: line 3: " in message and why in message and "lines 1 to 2 are added" in message
    with kvps.open(store) as opened, opened.table("n") as table:
        assert [(keys.tolist(), counts.tolist()) for keys, counts in table.scan()] == [([1, 2], [1, 1])]


@pytest.mark.parametrize(("line", "why"), [
    ("5", "no object"), ("{}", "no object"), ('{"key": 1}', "no object"), ("{", "no JSON"),
    ('{"key": 1, "count": 1.5}', '"count" is 1.5'),
    ('{"key": 1, "count": true}', '"count" is true'), ('{"key": null, "count": 1}', '"key" is null'),
    ('{"key": [1], "count": 1}', "[1]"),
    ('{"key": 1, "count": "1"}', '"count" is "1"'), ('{"key": 1, "count": 99999999999999999999}', "2**62"),
    ("[" * 50_000, "line 2: ")])
def test_a_bad_line_of_json(store, line, why):
    """A line that is no object with key and count is refused likewise."""
    message = refused("table", "push", store, "n", "--format", "jsonl", input='{"key": 1, "count": 1}\n' + line + "\n")
    assert why in message and "line 2: " in message and "nothing is added" in message
    with kvps.open(store) as opened, opened.table("n") as table:
        assert len(table) == 0


@pytest.mark.parametrize(("name", "key_type", "key", "why"), [
    ("hex", "hex", "00ff", "6 hexadecimal digits"), ("hex", "hex", "00ff0g", "6 hexadecimal digits"),
    ("hex", "hex", "00ff0000", "6 hex"),
    ("text", "text", "x" * 21, "21 bytes"), ("text", "text", "日" * 7, "21 bytes"), ("n", "uint", "0x5", "no number")])
def test_keys_that_do_not_fit(store, name, key_type, key, why):
    """A key that is not of the table's width is refused by push and pull."""
    assert why in refused("table", "push", store, name, "--key-type", key_type, input=f"{key},1\n")
    assert why in refused("table", "pull", store, name, "--key-type", key_type, key, code=2)


def test_bytes_that_are_no_text(store, tmp_path):
    """Input that is not UTF-8 is named by its line; a key that is no text is shown as hexadecimal digits only."""
    (tmp_path / "rows").write_bytes(b"1,1\n\xff,1\n")
    assert "rows: line 2 is not UTF-8 at its byte 0; nothing is added" in refused("table", "push", store, "n", tmp_path / "rows")
    run("table", "push", store, "hex", "--key-type", "hex", input="ff0000,1\n")
    assert "0xff0000 is no text" in refused("table", "scan", store, "hex", "--key-type", "text")
    (tmp_path / "long").write_bytes(b"1" * (1 << 21))
    assert "line 1: is longer than" in refused("table", "push", store, "n", tmp_path / "long")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"1,1\n" * 1000)[:-20])
    assert "cut.gz" in refused("table", "push", store, "n", tmp_path / "cut.gz")


@pytest.mark.parametrize(("arguments", "code", "why"), [
    (("create", "s", "n", "--key-bytes", "8"), 1, "has a table n already"),
    (("create", "s", "a/b", "--key-bytes", "8"), 2, "name of a table"),
    (("create", "s", "x", "--key-bytes", "33"), 2, "1 to 32"),
    (("create", "s", "x", "--key-bytes", "8", "--shards", "0"), 2, "1 to 64"),
    (("create", "nowhere", "x", "--key-bytes", "8"), 1, "no such store"),
    (("push", "s", "x"), 1, "has no table x; there are: hex, n, text"),
    (("push", "s", "n", "nowhere.csv"), 1, "no such file"), (("push", "s", "n", "s"), 1, "is no file"),
    (("push", "s", "n", "--client", "a b"), 2, "name of a client"), (("push", "s", "n", "--batch", "0"), 2, "--batch"),
    (("drop", "s", "x"), 1, "has no table x; there are: hex, n, text"), (("drop", "s", "../n"), 2, "name of a table"),
    (("drop", "s", "n.tmp-1"), 2, ".tmp-"), (("drop", "nowhere", "n"), 1, "no such store"), (("drop", "s"), 2, "NAME"),
    (("pull", "s", "../n", "1"), 2, "name of a table"), (("scan", "s", "n", "--prefix", "1"), 2, "--start and --stop"),
    (("scan", "s", "hex", "--key-type", "hex", "--prefix", "00", "--start", "00"), 2, "not both"),
    (("scan", "s", "n", "--start", "x"), 2, "no number"), (("list", "nowhere"), 1, "no such store")])
def test_what_cannot_be_done_is_one_line(store, arguments, code, why):
    """A name, place or bound that is not possible is told in one line, and nothing is made."""
    before = sorted(store.rglob("*"))
    words = [str(store.parent / word) if word in ("s", "nowhere", "nowhere.csv") else word for word in arguments]
    assert why in refused("table", *words, code=code, input="")
    assert sorted(store.rglob("*")) == before


def test_overflow_names_the_key(store):
    """A count that would leave 62 bits is refused with its key, and what was added before is told."""
    run("table", "push", store, "n", input=f"7,{2**62}\n")
    message = refused("table", "push", store, "n", "--batch", "2", input="1,1\n2,2\n7,1\n8,1\n")

    assert "key 7" in message and "2**62" in message and "lines 1 to 2 are added, the others are not" in message
    assert scan(store, "n") == ["1,1", "2,2", f"7,{2**62}"]


def test_a_reader_that_leaves(store):
    """A scan whose reader has seen enough ends without a word."""
    run("table", "push", store, "n", input="".join(f"{n},1\n" for n in range(50_000)))
    with subprocess.Popen([sys.executable, "-m", "kvps", "table", "scan", str(store), "n"], env=environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "0,1\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0

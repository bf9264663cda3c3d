"""Counts come back as they were written: a store made of exported counts is the store, and counts of no text are refused."""
import gzip
import shutil
import signal
import subprocess
import sys

import pytest
import reference
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, DataError, StoreError
from kvps.jobs.from_counts import train_from_counts
from kvps.lm import google
from kvps.lm.balance import unbalanced
from kvps.lm.google import export_counts
from kvps.store.directory import open_store

WORDS = ["a", "b", "c", "the", "a!", "\u732b", "word-of-more-than-sixteen-bytes", "x\u0085", "\x0b", "a\x01", "7"]
TEXT = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=8)


def exported(store, out):
    """Write the counts of a store to a folder; return it."""
    with open_store(store) as opened:
        export_counts(opened, out, threads=1)
    return out


def files_of(folder):
    """Return {path: text} of exported counts, unpacked."""
    return {str(path.relative_to(folder)): gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(TEXT, st.integers(1, 8), st.integers(1, 3), st.sampled_from([1, 2, 5, 10_000]), st.booleans())
def test_round_trip(tmp_path_factory, text, order, shards, file_lines, closed):
    """Export, make a store of it, export: the same bytes; the store has all counts, is sound, and text of it can be forgotten."""
    folder = tmp_path_factory.mktemp("counts")
    with kvps.create(folder / "a", order=order, shards=2) as store:
        store.train([*text, ["b"]], threads=1)
        if closed:
            store.limit(folder / "limited", words=["a", "c"], threads=1).close()
    a = folder / ("limited" if closed else "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(google, "FILE_LINES", file_lines)
        first = exported(a, folder / "first")
        made = train_from_counts(folder / "b", [first], shards=shards, threads=1)
        second = exported(folder / "b", folder / "second")

    assert files_of(first) == files_of(second)
    assert (made["tokens"], made["sentences"]) == (1 + sum(map(len, text)), len(text) + 1)
    with kvps.open(a) as one, kvps.open(folder / "b") as other:
        assert (one.statistics.ngrams, one.statistics.t) == (other.statistics.ngrams, other.statistics.t)
        other.update([["new", "a"]], threads=1)
        assert other.count("new") == (0 if closed else 1)
        other.forget(text, threads=1)
        left = [["b"], ["new", "a"]]
        if closed:
            left = [["<unk>"], ["<unk>", "a" if any("a" in sentence for sentence in text) else "<unk>"]]
        assert dict(other.dump(order, threads=1)) == reference.raw_counts(left, order)
        assert other.history()[0]["command"] == "train"
    assert [f for f in kvps.check(folder / "b", level="full") if f.severity == "damage"] == []


def changed(folder, name, change):
    """Change the lines of one file of exported counts, written without compression."""
    path = folder / name
    lines = gzip.decompress(path.read_bytes()).split(b"\n")[:-1]
    path.unlink()
    path.with_suffix("").write_bytes(b"".join(line + b"\n" for line in change(lines)))


@pytest.fixture
def counts(tmp_path):
    """Return the exported counts of a small store of order 3."""
    with kvps.create(tmp_path / "a", order=3, shards=2) as store:
        store.train(["the cat sat", "the dog sat on the cat", "a dog", "", "the cat sat"])
    return exported(tmp_path / "a", tmp_path / "counts")


ONE, TWO, THREE = "1gms/vocab.gz", "2gms/2gm-0000.gz", "3gms/3gm-0000.gz"


@pytest.mark.parametrize(("name", "change", "message"), [
    (THREE, lambda lines: [*lines[:3], lines[3] + b"0", *lines[4:]], "line"),                                     # too often
    (TWO, lambda lines: [*lines[:3], lines[3] + b"0", *lines[4:]], "2gm-0000: line 4: found .* what follows"),
    (ONE, lambda lines: [line.replace(b"<s>\t5", b"<s>\t6") for line in lines], "vocab: line .*found '<s> 6'"),
    (ONE, lambda lines: [line.replace(b"</s>\t5", b"</s>\t6") for line in lines], "vocab: line .*'</s> 6'"),
    (THREE, lambda lines: lines[1:], "line"),
    (THREE, lambda lines: lines[:-1], "line|ends before"),
    (TWO, lambda lines: lines[:-1], "2gm-0000: ends before 'the dog 1'"),
    (ONE, lambda lines: lines[:-1], "not among the 1-grams: found"),
    (TWO, lambda lines: [lines[0], lines[0], *lines[1:]], "2gm-0000: line 2: this n-gram is listed twice"),
    (TWO, lambda lines: lines[::-1], "2gm-0000: line 2: expected n-grams in byte order"),
    (THREE, lambda lines: [lines[0].replace(b"\t", b"\t-"), *lines[1:]], "3gm-0000: line 1: expected a whole number above 0"),
    (THREE, lambda lines: [lines[0].rpartition(b"\t")[0] + b"\t0", *lines[1:]], "line 1: expected a whole number above 0"),
    (THREE, lambda lines: [lines[0] + b".5", *lines[1:]], "line 1: expected a whole number above 0"),
    (THREE, lambda lines: [lines[0] + b"\r", *lines[1:]], "line 1: expected a whole number above 0"),
    (THREE, lambda lines: [lines[0].rpartition(b"\t")[0] + b"\t4611686018427387905", *lines[1:]], "more than a store can hold"),
    (THREE, lambda lines: [lines[0].rpartition(b"\t")[0] + b"\t99999999999999999999999", *lines[1:]], "more than a store can hold"),
    (THREE, lambda lines: [line.rpartition(b"\t")[0] + b"\t4611686018427387904" for line in lines], "add up to more than"),
    (THREE, lambda lines: [lines[0].replace(b"\t", b" "), *lines[1:]], "line 1: expected an n-gram of 1 to 8|number of words"),
    (THREE, lambda lines: [*lines[:2], b"the  cat\t1", *lines[2:]], "line 3: expected that number of words"),
    (THREE, lambda lines: [*lines, b"the <s> cat\t1"], "<s> begins an n-gram"),
    (THREE, lambda lines: [*lines, b"the </s> cat\t1"], "</s> ends one"),
    (THREE, lambda lines: [*lines, b"the zebra cat\t1"], "not among the 1-grams"),
    (TWO, lambda lines: [], "is empty"),
    (ONE, lambda lines: [b"\xff\t1", *lines], "line 1: not UTF-8"),
])
def test_counts_of_no_text(tmp_path, counts, name, change, message):
    """What is missing, twice, out of its place or no line of counts is refused with its place, and nothing is left."""
    changed(counts, name, change)
    with pytest.raises(DataError, match=message) as failed:
        train_from_counts(tmp_path / "b", [counts], threads=1)
    assert failed.value.path is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "counts"]


def test_counts_that_nothing_follows(tmp_path):
    """Counts that agree by what stands before, but not by what follows, name the n-gram that is followed too seldom."""
    for k, lines in {1: ["</s>\t2", "<s>\t2", "a\t2", "b\t1"], 2: ["<s> a\t2", "a </s>\t2", "a b\t1"]}.items():
        (tmp_path / f"{k}").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError, match=r"1: line 3: 'a' occurs 2 times, but the 2-grams that begin with it 3 times"):
        train_from_counts(tmp_path / "b", [tmp_path / "1", tmp_path / "2"], threads=1)
    assert not (tmp_path / "b").exists()


def test_which_files(tmp_path, counts):
    """All orders are needed, the order is that of the files, parts may be named one by one, and a place that is taken is left."""
    shutil.copytree(counts, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "2gms")
    with pytest.raises(DataError, match="no file has 2-grams"):
        train_from_counts(tmp_path / "b", [tmp_path / "less"])
    with pytest.raises(ArgumentError, match="of order 3, not 2"):
        train_from_counts(tmp_path / "b", [counts], order=2)
    with pytest.raises(StoreError, match="store already"):
        train_from_counts(tmp_path / "a", [counts])
    (tmp_path / "x.jsonl").write_text('{"text": "a\\t1"}\n')
    with pytest.raises(DataError, match="no file of n-grams"):
        train_from_counts(tmp_path / "b", [tmp_path / "x.jsonl"])
    train_from_counts(tmp_path / "b", [counts / THREE, counts / ONE, counts / TWO])
    assert files_of(exported(tmp_path / "b", tmp_path / "again")) == files_of(counts)


def test_from_the_command_line(tmp_path, counts):
    """The command makes the store, says what is in it, and refuses options that are about text."""
    run = CliRunner()
    done = run.invoke(main, ["train", str(tmp_path / "b"), str(counts), "--from-counts", "--json"])
    assert done.exit_code == 0, done.stderr
    assert '"tokens": 14, "sentences": 5, "inputs": 3' in done.stdout
    for wrong in (["--label", "x"], ["--dry-run"], ["--reserved", "skip"]):
        assert run.invoke(main, ["train", str(tmp_path / "c"), str(counts), "--from-counts", *wrong]).exit_code == 2
    with kvps.from_counts(tmp_path / "c", [counts], tokenizer="char") as store:
        store.update(["\u732b\u72ac"])          # two words of Chinese: a cat and a dog
        assert store.count("\u732b \u72ac") == 1
        assert store.count("the cat") == 3


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(TEXT, TEXT, st.integers(1, 5), st.integers(1, 3))
def test_balance(tmp_path_factory, text, gone, order, shards):
    """Counts of any text are balanced, however they are dealt; what is out of balance is told, once for each order."""
    folder = tmp_path_factory.mktemp("balance")
    with kvps.create(folder / "a", order=order, shards=shards) as store:
        store.train([*text, *gone], threads=1)
        store.forget(gone, threads=1)
    with open_store(folder / "a") as store, store.snapshot() as snapshot:
        assert unbalanced(snapshot, order, store.root.next_word()) == []


@pytest.mark.crash
@pytest.mark.parametrize("place", ["Shard.add_run", "Root.fill", "_Counts.verify"])
def test_killed_leaves_nothing(tmp_path, counts, place):
    """Killed while it deals, merges, writes the root or compares, there is no store; the same command makes it."""
    script = ("import os, signal, sys\n"
              "from kvps.jobs import from_counts\n"
              "from kvps.jobs.from_counts import _Counts\n"
              "from kvps.store.root import Root\n"
              "from kvps.store.shard import Shard\n"
              f"{place} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
              "from_counts.train_from_counts(sys.argv[1], [sys.argv[2]], threads=1)\n")
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "b", counts], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    train_from_counts(tmp_path / "b", [counts])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "counts"]

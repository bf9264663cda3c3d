"""Merging stores adds their counts: the sum is what counting all text into one store makes."""
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
from kvps.jobs import merge as merging
from kvps.jobs import train as jobs

WORDS = ["a", "b", "c", "the", "a!", "\u732b", "word-of-more-than-sixteen-bytes", "x\u0085", "\x0b", "7"]
TEXT = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=8)


def contents(path):
    """Return all that a user can see of the counts of a store, which is checked in full."""
    with kvps.open(path) as store:
        counts = [dict(store.dump(k, threads=1)) for k in range(1, store.order + 1)]
        return counts, store.statistics if any(counts) else None


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(TEXT, TEXT, st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3), st.integers(1, 8),
       st.integers(1, 3))
def test_merge_is_training_on_all(tmp_path_factory, parts, order, shards):
    """Stores of any texts, in several runs and shards, merge with any weights to the store of all texts, each as often."""
    folder = tmp_path_factory.mktemp("merge")
    every = []
    for number, (text, more, weight, n) in enumerate(parts):
        with kvps.create(folder / str(number), order=order, shards=n) as store:
            store.train(text, label="first", threads=1)
            store.update(more, threads=1, again=True)
            store.update([["gone", "a"]], threads=1, again=True)
            store.forget([["gone", "a"]], threads=1)
        every += (text + more) * weight
    made = merging.merge(folder / "sum", [folder / str(number) for number in range(len(parts))],
                         weights=[weight for _, _, weight, _ in parts], shards=shards, threads=1)
    with kvps.create(folder / "all", order=order, shards=2) as store:
        store.train(every, threads=1)
    (found, statistics), (expected, whole) = contents(folder / "sum"), contents(folder / "all")

    assert found == expected == [reference.raw_counts(every, k) for k in range(1, order + 1)]
    assert made["tokens"] == sum(map(len, every))
    assert made["sentences"] == len(every)
    if statistics is not None:
        assert (statistics.ngrams, statistics.t, statistics.vocabulary) == (whole.ngrams, whole.t, whole.vocabulary)
    assert [f for f in kvps.check(folder / "sum", level="full") if f.severity == "damage"] == []


def test_merged_store_goes_on(tmp_path):
    """A merged store can be updated; it knows what was counted, forgets it, and drops labels."""
    for name, text in (("a", "the cat sat\n"), ("b", "the dog sat\n")):
        (tmp_path / f"{name}.txt").write_text(text)
        jobs.train(tmp_path / name, [tmp_path / f"{name}.txt"], order=3, options=jobs.Options(label=name))
    merging.merge(tmp_path / "sum", [tmp_path / "a", tmp_path / "b"], weights=[1, 2])

    assert jobs.update(tmp_path / "sum", [tmp_path / "a.txt"])["already"]
    with kvps.open(tmp_path / "sum") as store:
        assert store.count("the dog") == 2
    jobs.forget_labels(tmp_path / "sum", ["b"])
    jobs.update(tmp_path / "sum", [tmp_path / "b.txt"])
    jobs.forget(tmp_path / "sum", [tmp_path / "a.txt"], options=jobs.Options(label="a"))
    with kvps.open(tmp_path / "sum") as store:
        assert dict(store.dump(3)) == reference.raw_counts([["the", "dog", "sat"]], 3)
        assert store.version == 4


def test_what_does_not_add_up(tmp_path):
    """Another order, another tokenizer, a weight of 0, a count too large, and a place that is taken are refused."""
    for name, more in (("a", {}), ("order", {"order": 2}), ("tokenizer", {"tokenizer": "char"})):
        with kvps.create(tmp_path / name, **{"order": 3, **more}) as store:
            store.train(["a b"])
    for other in ("order", "tokenizer"):
        with pytest.raises(ArgumentError, match=other):
            merging.merge(tmp_path / "sum", [tmp_path / "a", tmp_path / other])
    for weights in ([1], [1, 0]):
        with pytest.raises(ArgumentError, match="weight"):
            merging.merge(tmp_path / "sum", [tmp_path / "a"] * 2, weights=weights)
    with pytest.raises(DataError, match="more than a store can hold"):
        merging.merge(tmp_path / "sum", [tmp_path / "a"], weights=[1 << 62 | 1])
    with pytest.raises(StoreError, match="store already"):
        merging.merge(tmp_path / "a", [tmp_path / "a"])
    assert not list(tmp_path.glob("sum*"))


def test_recovery_says_that_there_is_no_text(tmp_path):
    """A merged store that lost a shard is not made again from nothing: what it lacks is named."""
    with kvps.create(tmp_path / "a", order=3, shards=1) as store:
        store.train(["a b c"])
    merging.merge(tmp_path / "sum", [tmp_path / "a"], shards=1)
    next((tmp_path / "sum" / "shards").glob("*/data.mdb")).unlink()

    failed = CliRunner().invoke(main, ["recover", str(tmp_path / "sum"), "--yes"])
    assert failed.exit_code == 4
    assert "merged 1 times" in failed.stderr


@pytest.mark.crash
@pytest.mark.parametrize("call", [1, 3, 5, 8])
def test_killed_merge_leaves_nothing(tmp_path, call):
    """Killed while it deals, merges or writes the root, there is no new store; the same command makes it, and leaves no rest."""
    with kvps.create(tmp_path / "a", order=3, shards=2) as store:
        store.train(["a b c d", "e f g h", "b c d e"])
    script = ("import os, signal, sys, itertools\n"
              "from kvps.store.shard import Shard\n"
              "from kvps.jobs.merge import merge\n"
              "add, calls = Shard.add_run, itertools.count(1)\n"
              "def killed(*a, **k):\n"
              f"    if next(calls) == {call}: os.kill(os.getpid(), signal.SIGKILL)\n"
              "    return add(*a, **k)\n"
              "Shard.add_run = killed\n"
              "merge(sys.argv[1], [sys.argv[2]] * 2, shards=2, threads=1)\n")
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "sum", tmp_path / "a"], timeout=60, check=False)
    assert done.returncode in (-signal.SIGKILL, 0)
    if done.returncode:
        assert not (tmp_path / "sum").exists()
        merging.merge(tmp_path / "sum", [tmp_path / "a"] * 2, shards=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "sum"]
    assert contents(tmp_path / "sum")[0][2] == {gram: 2 * n for gram, n in contents(tmp_path / "a")[0][2].items()}

"""Records that count as often as a field says: the same as writing each of them so often."""
import json
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import new_store

import kvps
from kvps.jobs import train as jobs

TIMES = st.integers(0, 9) | st.sampled_from([255, 256, 2**20 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
TEXT = st.lists(st.sampled_from(["a", "b", "猫", "\n", "how to", "Go. Up"]), max_size=6).map(" ".join)
RECORDS = st.lists(st.tuples(TEXT, TIMES), min_size=1, max_size=8)


def weighted(records, k, split):
    """Return the k-grams of records, each text so often as it counts; a newline ends a sentence."""
    found = Counter()
    for text, times in records:
        for line in text.removesuffix("\n").split("\n"):
            for sentence in line.replace("Go. Up", "Go.\nUp").split("\n") if split else [line]:
                for ngram, n in reference.raw_counts([sentence.split()], k).items():
                    found[ngram] += n * times
    return {ngram: n for ngram, n in found.items() if n}


def written(folder, name, records, rng=None):
    """Write records as JSON lines, numbers in the forms that JSON has for them, and return the path."""
    forms = [lambda n: str(n), lambda n: f"{n}.0", lambda n: f"{n}e0", lambda n: f"{n * 10}E-1"]
    lines = [f'{{"q": {json.dumps(text)}, "n": {forms[i % 4](times)}, "text": "no"}}\n' for i, (text, times) in enumerate(records)]
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder / name


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
GIVEN = given(a=RECORDS, b=RECORDS, order=st.integers(1, 8), shards=st.integers(1, 3), split_bytes=st.integers(1, 200),
              threads=st.integers(1, 3), split=st.booleans())


@settings(max_examples=12, suppress_health_check=SLOW)
@GIVEN
def test_counts_are_multiplied(**drawn):
    """A store has the counts of each record times its number, exactly, and forgetting the same records undoes that."""
    compare(**drawn)


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=SLOW)
@GIVEN
def test_counts_are_multiplied_often(**drawn):
    """The same with many more records."""
    compare(**drawn)


def compare(a, b, order, shards, split_bytes, threads, split):
    """Train some records, update and forget others, and compare with plain Python each time."""
    how = {"field": "q", "count_field": "n", "threads": threads}
    a = [*a, ("once", 1)]                      # a text that counts 0 times in all is refused
    b = [*b, ("more", 2)]

    def check(store, records):
        for k in range(1, order + 1):
            assert dict(store.dump(k, threads=1)) == weighted(records, k, split)
        unigrams, history = weighted(records, 1, split), store.history()
        assert sum(row["sentences"] for row in history) == unigrams.pop(("</s>",))
        assert sum(row["tokens"] for row in history) == sum(unigrams.values()) - unigrams[("<s>",)]

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(jobs, "split_bytes", lambda *_: split_bytes):
        folder = Path(folder)
        with kvps.create(folder / "s", order, shards, split_sentences=split) as store:
            store.train_files([written(folder, "a.jsonl", a)], **how)
            check(store, a)
            store.update_files([written(folder, "b.jsonl", b)], again=True, **how)
            check(store, a + b)
            store.forget_files([folder / "b.jsonl"], **how)
            check(store, a)


def test_numbers_are_the_records_written_so_often(tmp_path):
    """Small numbers give to the last bit the model that the records give when each is written so often."""
    records = [("the cat sat", 3), ("the cat", 5), ("a dog sat", 1), ("the dog", 0)]
    (tmp_path / "all.txt").write_text("".join((text + "\n") * times for text, times in records))
    with new_store(3) as counted, new_store(3) as plain:
        counted.train_files([written(tmp_path, "q.jsonl", records)], field="q", count_field="n")
        plain.train_files([tmp_path / "all.txt"])

        assert counted.statistics == plain.statistics
        assert dict(counted.vocabulary) == dict(plain.vocabulary)
        with counted.model("witten-bell") as one, plain.model("witten-bell") as other:
            assert one.score(["the cat sat", "a dog"]).tolist() == other.score(["the cat sat", "a dog"]).tolist()

"""With every tokenizer counts are exact: splits, threads, shards and removals make no difference."""
import re
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_of_tests import KINDS, spec_of

import kvps
from kvps.jobs import train as jobs
from kvps.text.tokenize import Tokenizer

PIECES = ["a", "Z9", " ", " ", "  ", "\t", "e\u0301", "\u00e9", "人", "好", "Ａ", "ｂ", "\u3000", ". ", "! ", "。", "”", "\"",
          "it's", "Mr. X", "whale", "\u0301", "ﬁ", "Σ", "?", "猫\U000e0100", "7"]
TEXT = st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), min_size=1, max_size=8)


def dumps(store):
    """Return {n-gram: count} of all orders."""
    return [dict(store.dump(k, threads=1)) for k in range(1, store.order + 1)]


def windows(lines, tokenizer, order):
    """Return what dumps() must be of lines, made words of one by one."""
    sentences = []
    for line in lines:
        for sentence in tokenizer.prepare(line.encode() + b"\n").decode().split("\n")[:-1]:
            sentences.append([word for word in re.split("[\0\t\r ]+", sentence) if word])
    return [reference.raw_counts(sentences, k) for k in range(1, order + 1)]


GIVEN = given(a=TEXT, b=TEXT, how=st.tuples(st.booleans(), st.sampled_from([None, "NFC", "NFKC"]), st.booleans()),
              order=st.integers(1, 4), shards=st.integers(1, 3), split_bytes=st.integers(1, 40), threads=st.integers(1, 3))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, suppress_health_check=SLOW)
@GIVEN
def test_counts_are_exact(tmp_path, kind, **drawn):
    """A store counts the words that its tokenizer makes of each line by itself, and forgetting a text undoes its update."""
    compare(tmp_path, kind, **drawn)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, suppress_health_check=SLOW)
@GIVEN
def test_counts_are_exact_often(tmp_path, kind, **drawn):
    """The same with many more texts."""
    compare(tmp_path, kind, **drawn)


def compare(tmp_path, kind, a, b, how, order, shards, split_bytes, threads):
    """Train one text, update and forget another one, and compare with plain Python each time."""
    lowercase, normalize, split = how
    options = {"lowercase": lowercase, "normalize": normalize, "split_sentences": split}
    spec = spec_of(kind, tmp_path)
    tokenizer = Tokenizer.from_spec(spec, **options, trusted=True)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder, mock.patch.object(jobs, "split_bytes", lambda *_: split_bytes):
        for name, lines in (("a", a), ("b", b)):
            (Path(folder) / name).write_bytes("".join(line + "\n" for line in lines).encode())
        with kvps.create(Path(folder) / "s", order, shards, spec, **options) as store:
            store.train_files([Path(folder) / "a"], threads=threads)
            assert dumps(store) == windows(a, tokenizer, order)
            store.update(b, again=True, threads=threads)
            assert dumps(store) == windows(a + b, tokenizer, order)
            store.forget_files([Path(folder) / "b"], threads=threads)
            assert dumps(store) == windows(a, tokenizer, order)

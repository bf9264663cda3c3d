"""Imported models written again, with less in them: what stays keeps its probability, and contexts sum to what they did."""
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from arpas import p_in, read_arpa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import new_store

import kvps
from kvps.errors import ArgumentError

WORDS = ["a", "b", "c", "the", "a!", "\u732b", "word-of-more-than-sixteen-bytes"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=14)
# By how much the worth of an n-gram is off, of which the model has the logarithms as float32.
ROUNDED = 2e-7
FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
SMOOTHINGS = ["modified-kneser-ney", "kneser-ney", "absolute-discounting", "witten-bell"]


def sums(listed, order):
    """Return what all words but <s> have together after each context, by context."""
    ground = {ngram: 10 ** p for ngram, (p, _) in listed[1].items()} | {("<s>",): 0.0}
    return {context: math.fsum(p_in(listed, ground, context, word) for word, in ground if word != "<s>")
            for k in range(1, order) for context in listed[k] if context[-1] != "</s>"}


def worth(listed, ngram):
    """Return what an n-gram is worth, by the definition."""
    ground = {gram: 10 ** p for gram, (p, _) in listed[1].items()}
    *context, word = ngram
    share = ground["</s>",] if context[0] == "<s>" else ground[context[0],]
    for i in range(1, len(context)):
        share *= p_in(listed, ground, tuple(context[:i]), context[i])
    p, backed = 10 ** listed[len(ngram)][ngram][0], 10 ** listed[len(context)][tuple(context)][1]
    backed *= p_in(listed, ground, tuple(context[1:]), word)
    return share * p * math.log(p / backed) if p > backed else 0.0


@FEW
@given(SENTENCES, st.integers(2, 4), st.sampled_from(SMOOTHINGS), st.data())
def test_less_of_a_model(sentences, order, smoothing, data):
    """By entropy those that are worth least go, by vocabulary those with other words; contexts sum to what they did."""
    with ExitStack() as stack:
        store = stack.enter_context(new_store(order, 2))
        store.train(sentences, threads=1)
        folder = Path(store.path).parent
        kvps.export(store.path, folder / "whole.arpa", smoothing=smoothing, threads=1)
        kvps.import_arpa(folder / "m", folder / "whole.arpa", threads=1)
        whole = read_arpa(folder / "whole.arpa")
        n_words, n = len(whole[1]), sum(map(len, whole.values()))
        how = data.draw(st.sampled_from(["prune_to", "prune_entropy", "limit_vocab"]))
        value = data.draw({"prune_to": st.integers(n_words, n), "prune_entropy": st.sampled_from([1e-9, 0.001, 0.01, 0.1, 10.0]),
                           "limit_vocab": st.lists(st.sampled_from([*WORDS, "<s>", "other"]), max_size=5, unique=True)}[how])
        made = kvps.export(folder / "m", folder / "less.arpa", threads=1, **{how: value})
        less = read_arpa(folder / "less.arpa")
        assert made["ngrams"] == {k: len(ngrams) for k, ngrams in less.items()}
        raised = {}
        for k in range(order, 1, -1):
            for ngram in whole[k]:
                longer = [raised[other] for other in whole.get(k + 1, {}) if other[:k] == ngram]
                raised[ngram] = max([worth(whole, ngram), *longer])
        kept = {ngram for k in range(2, order + 1) for ngram in less.get(k, {})}
        if how == "limit_vocab":
            allowed = {*value, "<s>", "</s>", "<unk>"}
            assert kept == {ngram for ngram in raised if allowed.issuperset(ngram)}
            assert set(less[1]) == {ngram for ngram in whole[1] if allowed.issuperset(ngram)}
            gone = math.fsum(10 ** p for ngram, (p, _) in whole[1].items() if ngram not in less[1])
            assert 10 ** less[1]["<unk>",][0] == pytest.approx(10 ** whole[1]["<unk>",][0] + gone, rel=1e-5)
        else:
            bound = math.log1p(value) if how == "prune_entropy" else min((raised[ngram] for ngram in kept), default=math.inf)
            assert all(raised[ngram] >= bound * (1 - 1e-4) - ROUNDED for ngram in kept)
            assert all(raised[ngram] <= bound * (1 + 1e-4) + ROUNDED for ngram in raised if ngram not in kept)
            assert how == "prune_entropy" or n_words + len(kept) <= value
            assert set(less[1]) == set(whole[1])
        for k, ngrams in less.items():
            for ngram, (p, _) in ngrams.items():
                assert np.float32(p) == np.float32(whole[k][ngram][0]) or (ngram == ("<unk>",) and how == "limit_vocab")
        before = sums(whole, order)
        for context, total in sums(less, order).items():
            assert total == pytest.approx(before[context], abs=1e-5), context


def test_what_takes_counts(tmp_path):
    """What takes counts is refused of an imported model in a line that names what does not; as is an order that it lacks."""
    with kvps.create(tmp_path / "s", order=2) as store:
        store.train(["a b", "b a"], threads=1)
    kvps.export(tmp_path / "s", tmp_path / "a.arpa")
    kvps.import_arpa(tmp_path / "m", tmp_path / "a.arpa")
    for how in ({"smoothing": "wb"}, {"prune": [0, 1]}, {"counts": True}, {"labels": ["a"]}, {"vocab_pad": 9}):
        with pytest.raises(ArgumentError, match=f"--{next(iter(how)).replace('_', '-')} takes counts, which .*--prune-to"):
            kvps.export(tmp_path / "m", tmp_path / "b.arpa", **how)
    with pytest.raises(ArgumentError, match="orders 1 to 2"):
        kvps.export(tmp_path / "m", tmp_path / "b.arpa", 3)
    kvps.import_arpa(tmp_path / "m", tmp_path / "a.arpa", list_ngrams=False)
    with pytest.raises(ArgumentError, match="import it again without --no-list-ngrams"):
        kvps.export(tmp_path / "m", tmp_path / "b.arpa")


def test_words_whose_share_nothing_can_get(tmp_path):
    """Where all words that stay are listed after a context, what those that go had there has no place, and that is told."""
    grams = "".join(f"-0.60206\ta {word}\n" for word in ("a", "b", "</s>", "<unk>"))
    words = "0\t<s>\t0\n-0.60206\ta\t0\n-0.60206\tb\t0\n-0.60206\t</s>\t0\n-0.60206\t<unk>\t0\n"
    (tmp_path / "a.arpa").write_text(f"\\data\\\nngram 1=5\nngram 2=4\n\n\\1-grams:\n{words}\n\\2-grams:\n{grams}\n\\end\\\n")
    kvps.import_arpa(tmp_path / "m", tmp_path / "a.arpa")
    with pytest.raises(ArgumentError, match="after 'a' all words that stay are listed"):
        kvps.export(tmp_path / "m", tmp_path / "b.arpa", limit_vocab=["a"])
    assert kvps.export(tmp_path / "m", tmp_path / "b.arpa", limit_vocab=["b"])["ngrams"] == {1: 4, 2: 0}
    (tmp_path / "a.arpa").write_text((tmp_path / "a.arpa").read_text().replace("-0.60206\tb", "-0.01\tb"))
    with pytest.raises(ArgumentError, match="<unk> would get a probability of 1.22"):
        kvps.export(tmp_path / "a.arpa", tmp_path / "b.arpa", limit_vocab=["a"])

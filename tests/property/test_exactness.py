"""Counts are exact however they came to be, and every model is a function of them: stores against plain Python."""
import contextlib
import itertools
import math
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import kvps
from kvps.jobs import train as jobs
from kvps.lm import arpa, cache
from kvps.lm.model import CompiledModel
from kvps.ps import merging
from kvps.store.directory import open_store

# Few words, so that n-grams repeat; odd ones, since words are bytes: with a no-break space, a separator of Python's but
# not ours, a longer one, ones that sort after a word with its blank and before, and one that looks like a number.
WORDS = ["a", "b", "c", "the", "a\u00a0b", "x\u0085", "\x0b", "\u732b", "a!", "a\x0b", "7", "word-of-more-than-sixteen-bytes"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=12)
ORDERS = st.integers(1, 8)
SMOOTHINGS = {
    "kneser-ney": "kneser_ney", "absolute-discounting": "absolute_discounting", "witten-bell": "witten_bell",
    "lidstone:0.1": "lidstone", "laplace": "laplace", "mle": "mle", "stupid-backoff": "stupid_backoff"}
FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@contextlib.contextmanager
def new_store(order, shards=2):
    """Give an empty store in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="kvps-exactness-"))
    try:
        with kvps.create(folder / "store", order=order, shards=shards) as store:
            yield store
    finally:
        shutil.rmtree(folder)


def dumps(store, orders=None):
    """Return [{n-gram: count} of order 1, 2, ...], each n-gram having come once."""
    found = []
    for k in orders or range(1, store.order + 1):
        listed = list(store.dump(k, threads=1))
        assert len(dict(listed)) == len(listed)
        found.append(dict(listed))
    return found


def windows(sentences, order):
    """Return what dumps() must be."""
    return [reference.raw_counts(sentences, k) for k in range(1, order + 1)]


@FEW
@given(SENTENCES, SENTENCES, ORDERS, st.integers(1, 4), st.booleans())
def test_forget_undoes_update(a, b, order, shards, compact):
    """After train(A), update(B), forget(B), dumps of all orders and the statistics are those after train(A)."""
    with new_store(order, shards) as store:
        store.train(a, threads=1)
        before, statistics = dumps(store), store.statistics
        store.update(b, again=True, threads=1)
        assert dumps(store) == windows(a + b, order)
        if compact:
            store.compact(threads=1)
        store.forget(b, threads=1)

        assert dumps(store) == before == windows(a, order)
        after = store.statistics
        after.version = statistics.version
        assert after == statistics


@FEW
@given(SENTENCES, ORDERS, st.integers(1, 5), st.integers(1, 40), st.integers(1, 3), st.integers(2, 9), st.data())
@example([["a"] * 9] * 3, 3, 3, 1, 2, 2, None)
def test_every_way_of_counting_is_the_same(sentences, order, shards, split_bytes, threads, fan_in, data):
    """Splits, threads, shards, the order of updates and when runs are merged make no difference to any dump."""
    parts = []
    rest = data.draw(st.permutations(sentences)) if data else sentences
    while rest:
        n = data.draw(st.integers(1, len(rest))) if data else 1
        parts, rest = [*parts, rest[:n]], rest[n:]
    with (new_store(order, shards) as store, mock.patch.object(jobs, "split_bytes", lambda *_: split_bytes),
          mock.patch.object(merging, "FAN_IN", fan_in)):
        for number, part in enumerate(parts):
            store.update(part, again=True, threads=threads)
            if data and data.draw(st.integers(0, 3)) == 0:
                store.compact(threads=threads, vacuum=number % 2 == 0)

        assert dumps(store) == windows(sentences, order)


@FEW
@given(SENTENCES, SENTENCES, SENTENCES, ORDERS, st.integers(1, 3), st.data())
def test_models_do_not_know_how_counts_came(a, b, c, order, shards, data):
    """A store that was updated and forgot gives statistics and scores, to the last bit, as one made from scratch."""
    text = data.draw(SENTENCES)
    smoothing = data.draw(st.sampled_from(["modified-kneser-ney", *SMOOTHINGS]))
    with new_store(order, shards) as grown, new_store(order, data.draw(st.integers(1, 3))) as fresh:
        grown.train(b, threads=1)
        grown.update(c, again=True, threads=1)
        grown.update(a, again=True, threads=1)
        grown.forget(b, threads=1)
        fresh.train(a + c, threads=1)
        one, other = grown.statistics, fresh.statistics
        one.version = other.version

        assert one == other
        assert dict(grown.vocabulary) == dict(fresh.vocabulary)
        with grown.model(smoothing, threads=1) as x, fresh.model(smoothing, threads=1) as y:
            assert x.score(text).tolist() == y.score(text).tolist()


def questions(sentences, order, rng):
    """Return (word, context) pairs: all windows of the text, and some with changed, unknown and odd words."""
    asked = {(gram[-1], gram[:-1]) for n in range(1, order + 1) for gram in reference.raw_counts(sentences, n)}
    words = [*sorted({word for sentence in sentences for word in sentence}), "</s>", "unheard-of"]
    contexts = [*words, "<s>"]
    for n in range(order):
        for _ in range(12):
            asked.add((rng.choice(words), tuple(rng.choice(contexts) for _ in range(n))))
    for word, context in list(asked)[:40]:
        if context:
            i = rng.randrange(len(context))
            asked.add((word, (*context[:i], rng.choice(contexts), *context[i + 1:])))
            asked.add((rng.choice(words), context))
    return sorted(q for q in asked if q[0] != "<s>")


def compiled(store, smoothing, top, exact):
    """Return the compiled model of a StoreDirectory."""
    kind = "kn" if "kneser" in smoothing else "raw"
    return CompiledModel(cache.ensure(store, kind=kind, top=top, exact=exact, threads=1), smoothing, top)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SENTENCES, ORDERS, st.integers(1, 3), st.randoms(use_true_random=False), st.data())
def test_smoothings_agree_with_their_twins(sentences, order, shards, rng, data):
    """Every smoothing, of the store's order and as a view of a lower one, gives its textbook probability.

    After contexts seen and unseen, with unknown words and odd places of <s> and </s>; and a model with fingerprints
    gives to the last bit what one without gives.
    """
    top = data.draw(st.integers(1, order))
    with new_store(order, shards) as made:
        made.train(sentences, threads=1)
        asked = questions(sentences, top, rng)
        grams = [(*context, word) for word, context in asked]
        plain = reference.Nltk(sentences, top)
        twins = {"modified-kneser-ney": reference.ModifiedKneserNey(sentences, top).p}
        twins |= {name: getattr(plain, twin) for name, twin in SMOOTHINGS.items()}
        if top == 1:                           # nltk.lm raises; ours are relative frequencies, <s> not being among them
            total = plain.total[()] - plain.count[("<s>",)]
            twins["kneser-ney"] = lambda word, context: plain.count[(word,)] / total
        with open_store(made.path) as store:
            for smoothing, twin in twins.items():
                hashed = compiled(store, smoothing, top, False)
                found = hashed.log10_ngrams(grams)
                assert found.tolist() == compiled(store, smoothing, top, True).log10_ngrams(grams).tolist()
                for (word, context), log10 in zip(asked, found.tolist(), strict=True):
                    expected = twin(word, context)
                    # 1e-9: sums of at most some hundred float64 terms in another order
                    assert 10 ** log10 == pytest.approx(expected, rel=1e-9, abs=0), (smoothing, word, context)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SENTENCES, ORDERS, st.data())
def test_contexts_sum_to_one(sentences, order, data):
    """After any context the probabilities of words, </s> and the unknown word sum to 1 (with <s>, where nltk has it)."""
    top = data.draw(st.integers(1, order))
    words = [*sorted({word for sentence in sentences for word in sentence}), "</s>", "unheard-of"]
    contexts = {gram[:-1] for n in range(1, top + 1) for gram in reference.raw_counts(sentences, n)}
    contexts |= {("unheard-of",)[:top - 1], ("unheard-of", words[0])[:top - 1]}
    with new_store(order) as made:
        made.train(sentences, threads=1)
        with open_store(made.path) as store:
            for smoothing in ("modified-kneser-ney", "kneser-ney", "absolute-discounting", "witten-bell"):
                model = compiled(store, smoothing, top, False)
                for context in sorted(contexts):
                    if not context and smoothing in ("absolute-discounting", "witten-bell"):
                        continue               # <s> has its share of the unigrams, and cannot be asked for
                    after = words if smoothing == "modified-kneser-ney" or not context else [*words, "<s>"]
                    scores = model.log10_ngrams([(*context, word) for word in after])
                    assert math.fsum(10 ** scores) == pytest.approx(1, rel=1e-12), (smoothing, context)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SENTENCES, SENTENCES, ORDERS, st.data())
def test_text_scores_as_its_tokens(sentences, text, order, data):
    """Scoring texts, lists, sentences and words is one and the same, whatever the batches; tokens and OOVs add up."""
    top = data.draw(st.integers(1, order))
    smoothing = data.draw(st.sampled_from(["modified-kneser-ney", *SMOOTHINGS]))
    text = text * data.draw(st.sampled_from([1, 40]))      # 40: some thousand tokens, many blocks of the kernel
    known = {word for sentence in sentences for word in sentence} | {"</s>"}
    with new_store(order) as store:
        store.train(sentences, threads=1)
        with store.model(smoothing, order=top, threads=1) as model:
            tokens = model.score_words(text)
            scores = model.score(text)
            whole = model.evaluate(text)
            lines = [" ".join(sentence) for sentence in text]
            by_line = {line: model.score(line) for line in set(lines)}
            assert scores.tolist() == model.score(lines).tolist() == [by_line[line] for line in lines]
            asked = sorted({(*words[max(0, i - top + 1):i], words[i]) for words in
                            (("<s>", *sentence, "</s>") for sentence in text) for i in range(1, len(words))})
            alone = dict(zip(asked, (model.log10(gram[-1], gram[:-1]) for gram in asked), strict=True))

    for sentence, found, score in zip(text, tokens, scores.tolist(), strict=True):
        words = ("<s>", *sentence, "</s>")
        assert [token.word for token in found] == list(words[1:])
        assert [token.log10 for token in found] == [alone[*words[max(0, i - top + 1):i], words[i]]
                                                    for i in range(1, len(words))]
        assert [token.oov for token in found] == [word not in known for word in words[1:]]
        assert score == pytest.approx(math.fsum(token.log10 for token in found), rel=1e-12)
    every = list(itertools.chain.from_iterable(tokens))
    assert (whole.sentences, whole.tokens) == (len(text), len(every))
    assert whole.oov == sum(token.oov for token in every)
    assert whole.zero_probability_tokens == sum(token.log10 == -math.inf for token in every)
    if not whole.zero_probability_tokens:
        assert whole.perplexity == pytest.approx(10 ** (-math.fsum(token.log10 for token in every) / len(every)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SENTENCES, ORDERS, st.integers(1, 3), st.booleans(), st.data())
def test_arpa_is_the_textbook_s(sentences, order, shards, forgotten, data):
    """An ARPA file has every n-gram of its order and below, with the textbook's probabilities and back-offs."""
    top = data.draw(st.integers(1, order))
    with new_store(order, shards) as made:
        made.train(sentences, threads=1)
        if forgotten:
            made.update([["gone", *sentences[0], "gone"]], threads=1)
            made.forget([["gone", *sentences[0], "gone"]], threads=1)
        pieces = []
        with open_store(made.path) as store:
            told = arpa.export(store, "-", order=top, threads=1, write=lambda piece: pieces.append(bytes(piece)))
    found = {}
    for line in b"".join(pieces).decode().split("\n"):
        fields = line.split("\t")
        if len(fields) > 1:
            assert tuple(fields[1].split(" ")) not in found
            found[tuple(fields[1].split(" "))] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else None)

    twin = reference.ModifiedKneserNey(sentences, top)
    assert told["ngrams"] == {k: len(grams) for k, grams in twin.adjusted.items()}
    grams = {gram for counts in twin.adjusted.values() for gram in counts}
    assert found.keys() == grams
    for gram in grams:
        # float32 and seven decimals; -99 stands for the logarithm of 0
        p, backoff = 10 ** found[gram][0], found[gram][1]
        assert p == pytest.approx(twin.p(gram[-1], gram[:-1]), rel=2e-6), gram
        if len(gram) == top:
            assert backoff is None
        else:
            assert 10 ** backoff == pytest.approx(twin.backoff(gram), rel=2e-6, abs=1e-15), gram


def test_arpa_of_nothing(tmp_path):
    """The ARPA file of a store without text holds the three special words and can be read."""
    with kvps.create(tmp_path / "s", order=2, shards=1) as made, open_store(made.path) as store:
        told = arpa.export(store, tmp_path / "a.arpa", threads=1)
        made.train(["a"])
        made.forget(["a"])
        arpa.export(store, tmp_path / "b.arpa", threads=1)

    assert told["ngrams"] == {1: 3, 2: 0}
    assert (tmp_path / "a.arpa").read_bytes() == (tmp_path / "b.arpa").read_bytes()
    assert b"nan" not in (tmp_path / "a.arpa").read_bytes()


def test_counts_beyond_all_short_forms(tmp_path):
    """Counts that fill one byte, two bytes, the codes of the model and 16 bits are exact, in dumps and in models."""
    times = {"one": 1, "fourteen": 14, "fifteen": 15, "sixteen": 16, "hundred": 128, "codes": 16384, "many": 70000}
    sentences = [[word] for word, n in times.items() for _ in range(n)]
    plain = reference.Nltk(sentences, 2)
    with kvps.create(tmp_path / "s", order=2, shards=3) as store:
        store.train(sentences)
        assert dumps(store) == windows(sentences, 2)
        for exact in (False, True):
            with store.model("laplace", exact=exact) as model:
                for word in times:
                    for gram in (("<s>", word), (word, "</s>"), (word, word)):
                        assert 10 ** model.log10(gram[1], gram[:1]) == pytest.approx(plain.laplace(gram[1], gram[:1]))
        store.forget([["many"]] * 69999 + [["codes"]])
        assert store.counts(["many", "<s> codes", "fifteen </s>"]) == [1, 16383, 15]


def test_larger_text(rng, tmp_path):
    """A text of several blocks and chunks keeps every count, and its models every entry, in few buckets and many."""
    words = [f"w{i}" for i in range(3000)]
    weights = 1 / np.arange(1, 3001)
    sentences = [rng.choices(words, weights.tolist(), k=rng.randrange(30)) for _ in range(4000)]
    counts = windows(sentences, 4)
    with kvps.create(tmp_path / "s", order=4, shards=3) as store:
        store.train(sentences[:3000], threads=2)
        store.update(sentences[3000:], threads=1)
        assert [Counter(d) for d in dumps(store)] == counts
        twin = reference.ModifiedKneserNey(sentences, 4)
        grams = rng.sample(sorted(counts[3]), 3000) + rng.sample(sorted(counts[1]), 1000)
        grams += [(*gram[:-1], rng.choice(words)) for gram in grams]
        expected = [math.log10(twin.p(gram[-1], gram[:-1])) for gram in grams]
        with open_store(store.path) as directory:
            found = compiled(directory, "modified-kneser-ney", 4, False).log10_ngrams(grams)
            exactly = compiled(directory, "modified-kneser-ney", 4, True).log10_ngrams(grams)
    assert found.tolist() == exactly.tolist()
    assert found == pytest.approx(np.array(expected), rel=1e-9)

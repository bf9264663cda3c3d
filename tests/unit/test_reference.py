"""The naive twins are themselves checked: against what lmplz printed, and against nltk.lm."""
import gzip
import itertools
import math
import re

import nltk.lm
import pytest
import reference
from nltk.util import everygrams

TEXT = b"the cat sat on the mat\nthe dog sat\n\nthe cat saw the dog on the mat\na b a c\nb a c a\na b\r a\tc\nlast line"
NLTK_MODELS = {  # our name: nltk's class and its options
    "mle": (nltk.lm.MLE, {}),
    "lidstone": (nltk.lm.Lidstone, {"gamma": 0.1}),
    "laplace": (nltk.lm.Laplace, {}),
    "stupid_backoff": (nltk.lm.StupidBackoff, {}),
    "witten_bell": (nltk.lm.WittenBellInterpolated, {}),
    "absolute_discounting": (nltk.lm.AbsoluteDiscountingInterpolated, {}),
    "kneser_ney": (nltk.lm.KneserNeyInterpolated, {}),
}


def read_arpa(lines):
    """Return {n-gram: (log10 probability, log10 back-off or None)} of an ARPA file."""
    entries = {}
    for line in lines:
        fields = line.rstrip("\n").split("\t")
        if len(fields) > 1:
            entries[tuple(fields[1].split(" "))] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else None)
    return entries


def assert_same_arpa(model, entries):
    """Compare a model with an ARPA file, n-gram for n-gram; lmplz computes in float32, hence 2e-6."""
    ours = {gram: (p, backoff) for gram, p, backoff in model.arpa()}
    assert ours.keys() == entries.keys()
    for gram, (p, backoff) in entries.items():
        assert ours[gram][0] == pytest.approx(p, abs=2e-6), gram
        assert ours[gram][1] == (backoff if backoff is None else pytest.approx(backoff, abs=2e-6)), gram


@pytest.fixture(scope="module")
def small(shared):
    """Return the sentences of small.txt."""
    return reference.read_sentences((shared / "reference" / "small.txt").read_bytes())


def scores(shared, name):
    """Return the ({order: (n-grams, discounts)}, {label: figure}) that SCORES.md has for one model."""
    section = re.search(rf"^## {re.escape(name)}:.*?(?=^## |\Z)", (shared / "reference" / "SCORES.md").read_text(),
                        re.M | re.S).group()
    orders = {int(n): (int(size), tuple(map(float, d))) for n, size, *d in
              re.findall(r"^(\d) (\d+) D1=(\S+) D2=(\S+) D3\+=(\S+)", section, re.M)}
    return orders, {label: float(value) for label, value in re.findall(r"^([A-Z][\w ]+):\t(\S+)", section, re.M)}


def test_modified_kneser_ney_tiny_arpa(shared):
    """A text too small for discounts gives lmplz's ARPA file line for line, once its slip in t is made too.

    The slip matters here: with it order 1 has no n-gram of count 1 and falls back; without it order 2 does instead.
    """
    sentences = reference.read_sentences((shared / "reference" / "tiny.txt").read_bytes())
    model = reference.ModifiedKneserNey(sentences, 3, slip=True)

    assert model.fallen == {1}
    assert_same_arpa(model, read_arpa((shared / "reference" / "tiny.o3.fallback.arpa").read_text().splitlines()))
    assert reference.ModifiedKneserNey(sentences, 3).fallen == {2}


@pytest.mark.parametrize("order", [2, 3, 5])
def test_modified_kneser_ney_small(shared, small, order):
    """Counts, discounts, every line of the ARPA file and the held-out perplexity of small.txt are lmplz's."""
    model = reference.ModifiedKneserNey(small, order)
    orders, figures = scores(shared, f"o{order}")

    for n, (size, d) in orders.items():
        assert len(model.adjusted[n]) == size
        assert model.discounts[n] == pytest.approx(d, rel=1e-5)  # six digits are printed
    with gzip.open(shared / "reference" / f"small.o{order}.arpa.gz", "rt", encoding="utf-8", newline="\n") as lines:
        assert_same_arpa(model, read_arpa(lines))

    heldout = reference.read_sentences((shared / "reference" / "small.heldout.txt").read_bytes())
    known = {gram[0] for gram in model.adjusted[1]} - {reference.UNK}
    result = reference.perplexity(model.p, heldout, order, known)
    assert (result["tokens"], result["oov"]) == (figures["Tokens"], figures["OOVs"])
    assert result["perplexity"] == pytest.approx(figures["Perplexity including OOVs"], rel=1e-5)
    assert result["perplexity_excluding_oov"] == pytest.approx(figures["Perplexity excluding OOVs"], rel=1e-5)


def test_modified_kneser_ney_words(shared, small):
    """Each word of the held-out text has the log10 probability that query printed for it."""
    model = reference.ModifiedKneserNey(small, 3)
    with gzip.open(shared / "reference" / "small.o3.query.words.gz", "rt", encoding="utf-8") as lines:
        printed = re.findall(r"(\S+)=\d+ \d+ (\S+)", lines.read())

    assert sum(word == reference.EOS for word, _ in printed) == 20
    while printed:
        end = [word for word, _ in printed].index(reference.EOS) + 1
        words, printed = printed[:end], printed[end:]
        padded = (reference.BOS, *(word for word, _ in words))
        for i, (word, log10) in enumerate(words, 1):
            p = model.p(word, padded[:i])
            assert math.log10(p) == pytest.approx(float(log10), abs=2e-6), padded[:i + 1]


@pytest.mark.parametrize("order", range(1, 9))
def test_modified_kneser_ney_sums_to_one(order):
    """The probabilities of every word but <s>, and of <unk>, sum to 1 after any context, at each order from 1 to 8."""
    sentences = reference.read_sentences(TEXT)
    model = reference.ModifiedKneserNey(sentences, order)
    words = [gram[0] for gram in model.adjusted[1] if gram[0] != reference.BOS]

    contexts = {gram[:-1] for n in range(1, order + 1) for gram in reference.raw_counts(sentences, n)}
    for context in contexts | {("unheard-of",), ("unheard-of", "the")}:
        assert math.fsum(model.p(word, context) for word in words) == pytest.approx(1)


def test_read_sentences_separators():
    """NUL, TAB, CR and space separate words, other white space is part of them; an unterminated line is a sentence."""
    text = "a\0b\tc\r\n\n d\u00a0e f\x85g\fh "
    assert reference.read_sentences(text.encode()) == [["a", "b", "c"], [], ["d\u00a0e", "f\x85g\fh"]]
    assert reference.read_sentences(b"") == []


def test_windows_of_short_sentences():
    """A sentence has no windows longer than itself with its two pads, and an empty one still has <s> </s>."""
    assert reference.windows(["a"], 2) == [("<s>", "a"), ("a", "</s>")]
    assert reference.windows([], 2) == [("<s>", "</s>")]
    assert reference.windows([], 3) == []


def test_discounts_undefined():
    """Discounts are undefined where t1, t2 or t3 is 0, or where one leaves [0, k]."""
    assert reference.discounts([0, 4, 2, 1, 1]) == pytest.approx((0.5, 1.25, 1))
    assert reference.discounts([0, 4, 2, 0, 1]) is None
    assert reference.discounts([0, 1, 1, 100, 1]) is None


def fit(cls, sentences, order, **options):
    """Return an nltk model fitted on the sentences with one pad at each side."""
    model = cls(order=order, **options)
    padded = [[reference.BOS, *sentence, reference.EOS] for sentence in sentences]
    model.fit([list(everygrams(sentence, max_len=order)) for sentence in padded], [w for s in padded for w in s])
    return model


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NLTK_MODELS)
def test_nltk_scores(name, order, rng):
    """Each smoothing scores as nltk.lm does, over contexts seen, unseen and too long, unknown words, <UNK> and <s>."""
    sentences = reference.read_sentences(TEXT)
    cls, options = NLTK_MODELS[name]
    theirs, ours = fit(cls, sentences, order, **options), reference.Nltk(sentences, order)
    assert len(theirs.vocab) == ours.V

    words = [*sorted(ours.vocabulary), "unheard-of", "<UNK>"]
    seen = {gram[:-1] for n in range(1, order + 2) for gram in reference.raw_counts(sentences, n)}
    made = {tuple(rng.choices(words, k=n)) for n in range(1, order + 2) for _ in range(30)}
    refused = 0
    for context, word in itertools.product(sorted(seen | made), words):
        score = getattr(ours, name)(word, context)
        try:
            expected = theirs.score(word, context)
        except ZeroDivisionError:
            # Only where nltk's Kneser-Ney asks what precedes <s>: after a context that begins with it, below the top.
            cut = ours.lookup(ours.cut(context))
            back_offs = {cut[i:][:1] for i in range(len(cut)) if i or len(cut) < order - 1}
            assert name == "kneser_ney" and (order == 1 or (reference.BOS,) in back_offs)
            refused += 1
        else:
            assert score == pytest.approx(expected, rel=1e-12, abs=0), (word, context)
    assert bool(refused) == (name == "kneser_ney" and order != 2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["laplace", "witten_bell", "absolute_discounting", "kneser_ney"])
def test_nltk_sums_to_one(name, order):
    """Distributions sum to 1 over |V| after every seen context, also where nltk's Kneser-Ney raises."""
    sentences = reference.read_sentences(TEXT)
    model = reference.Nltk(sentences, order)

    for context in {gram[:-1] for n in range(1, order + 1) for gram in reference.raw_counts(sentences, n)}:
        scored = (getattr(model, name)(word, context) for word in [*model.vocabulary, "<UNK>"])
        assert math.fsum(scored) == pytest.approx(1), context


def test_nltk_text_with_unk():
    """A text that holds the word <UNK> is counted twice in |V| by nltk, and lends its score to every unknown word."""
    sentences = [["a", "b", "a"], ["a", "<UNK>", "c"]]
    theirs, ours = fit(nltk.lm.Laplace, sentences, 2), reference.Nltk(sentences, 2)

    assert len(theirs.vocab) == ours.V == 7
    for word, context in itertools.product(["a", "c", "unheard-of"], [("a",), ("unheard-of",)]):
        assert ours.laplace(word, context) == pytest.approx(theirs.score(word, context), rel=1e-12)


@pytest.mark.parametrize("name", NLTK_MODELS)
def test_nltk_perplexity(name):
    """Perplexity over the windows of a text is nltk's, and infinite where one token has probability 0."""
    sentences = reference.read_sentences(TEXT)
    cls, options = NLTK_MODELS[name]
    theirs, ours = fit(cls, sentences, 2, **options), reference.Nltk(sentences, 2)

    for heldout in (sentences[:2], [["the", "cat", "barked"]]):
        grams = [gram for sentence in heldout for gram in reference.windows(sentence, 2)]
        result = reference.perplexity(getattr(ours, name), heldout, 2, ours.vocabulary)
        assert result["perplexity"] == pytest.approx(theirs.perplexity(grams))
        assert math.isinf(result["perplexity"]) == bool(result["zero_probability_tokens"])

"""The tutorial's job on Reuters at order 3: scores, counts and perplexities are nltk.lm's.

Each document is a sentence with one pad at each side, `<s> w1 ... wk </s>`, for nltk too: what the tutorial's n - 1 pads
ask for is the business of kvps's interface to nltk.
"""
import math
from functools import cached_property

import pytest

import kvps

ORDER = 3
TRIGRAMS = 10_000
SMOOTHINGS = {"mle": "MLE", "laplace": "Laplace", "witten-bell": "WittenBellInterpolated", "stupid-backoff": "StupidBackoff"}


def padded(sentence):
    """Return the tokens of a sentence as nltk takes them."""
    return ["<s>", *sentence, "</s>"]


def scored(sentence):
    """Return, as n-grams, what a perplexity scores: each token after the one or two before it."""
    tokens = padded(sentence)
    return [tuple(tokens[max(0, i - ORDER + 1):i + 1]) for i in range(1, len(tokens))]


class Both:
    """Documents fitted by nltk.lm and trained into a store."""

    def __init__(self, nltk, documents, n_heldout, path, source=None):
        """Fit all documents but the last `n_heldout`; `source`: the input that has just these, instead of word lists."""
        from nltk.lm import NgramCounter, Vocabulary
        from nltk.util import everygrams

        self.nltk = nltk
        self.fitted, self.heldout = documents[:len(documents) - n_heldout], documents[len(documents) - n_heldout:]
        self.counter = NgramCounter(everygrams(padded(sentence), max_len=ORDER) for sentence in self.fitted)
        self.vocabulary = Vocabulary(word for sentence in self.fitted for word in padded(sentence))
        self.store = kvps.create(path, order=ORDER)
        if source:
            self.store.train_files([source])
        else:
            self.store.train(self.fitted)

    def nltk_model(self, smoothing):
        """Return nltk's model of a smoothing; all share the counts."""
        cls = getattr(self.nltk.lm, SMOOTHINGS[smoothing])
        return cls(order=ORDER, vocabulary=self.vocabulary, counter=self.counter)

    @cached_property
    def contexts(self):
        """The contexts of two words that were seen."""
        return {tuple(context) for context in self.counter[3]}


@pytest.fixture(scope="module")
def reuters(shared):
    """Return (nltk, the corpus) from the development data."""
    pytest.importorskip("nltk.lm", reason="nltk is not installed")
    import nltk
    from nltk.corpus import LazyCorpusLoader
    from nltk.corpus.reader import CategorizedPlaintextCorpusReader

    before, nltk.data.path = nltk.data.path, [str(shared / "data" / "nltk_data")]
    corpus = LazyCorpusLoader("reuters", CategorizedPlaintextCorpusReader, "(training|test).*", cat_file="cats.txt",
                              encoding="ISO-8859-2")
    yield nltk, corpus
    nltk.data.path = before


@pytest.fixture(scope="module")
def part(reuters, tmp_path_factory):
    """Return 1,500 documents fitted by both, and 100 more."""
    nltk, corpus = reuters
    documents = [list(corpus.words(name)) for name in corpus.fileids()[:1600]]
    both = Both(nltk, documents, 100, tmp_path_factory.mktemp("reuters") / "store")
    yield both
    both.store.close()


def compare(both, smoothing, rng):
    """Compare the scores of trigrams of fitted and of held-out text, in contexts seen and unseen."""
    grams = {gram for sentence in both.heldout for gram in scored(sentence) if len(gram) == ORDER}
    grams = rng.sample(sorted(grams), min(len(grams), TRIGRAMS * 6 // 10))
    while len(grams) < TRIGRAMS:
        gram = rng.choice(scored(rng.choice(both.fitted)))
        if len(gram) == ORDER:
            grams.append(gram)
            # the same words in another place: mostly never seen
            grams.append((gram[1], gram[0], gram[2]) if gram[0] != "<s>" and gram[2] != "</s>" else gram)
    theirs = both.nltk_model(smoothing)
    with both.store.model(smoothing) as model:
        ours = [model.log10(gram[-1], gram[:-1]) for gram in grams]

    unseen = sum(gram[:-1] not in both.contexts for gram in grams)
    assert len(grams) >= TRIGRAMS
    assert unseen > 1000
    assert len(grams) - unseen > 1000
    for gram, log10 in zip(grams, ours, strict=True):
        # Both are float64; nltk multiplies and adds in another order.
        assert 10 ** log10 == pytest.approx(theirs.score(gram[-1], gram[:-1]), rel=1e-9, abs=0), gram


def compare_counts(both, rng):
    """Compare the counts of n-grams of every order, some of which do not occur."""
    grams = [tuple(padded(sentence)[i:i + n]) for n in (1, 2, 3) for sentence in rng.sample(both.fitted, 100)
             for i in rng.sample(range(len(sentence) - 1), min(10, len(sentence) - 1))]
    grams += [(c, b, a) for a, b, c in rng.sample([gram for gram in grams if len(gram) == 3], 300)]
    expected = [both.counter[gram[0]] if len(gram) == 1 else both.counter[gram[:-1]][gram[-1]] for gram in grams]

    assert both.store.counts(grams) == expected
    assert 0 in expected
    assert len(both.store.vocabulary) + 3 == len(both.vocabulary)      # nltk has <s>, </s> and <UNK> in it
    assert sum(both.store.vocabulary.values()) == sum(map(len, both.fitted))


def compare_perplexities(both, smoothing, sentences):
    """Compare the perplexity of sentences."""
    theirs = both.nltk_model(smoothing)
    expected = theirs.perplexity([gram for sentence in sentences for gram in scored(sentence)])
    with both.store.model(smoothing) as model:
        found = model.perplexity(sentences)

    assert found == pytest.approx(expected, rel=1e-9)
    return found


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_scores_part(part, smoothing, rng):
    """On 1,500 documents, 10,000 trigrams score as nltk.lm scores them."""
    compare(part, smoothing, rng)


def test_counts_part(part, rng):
    """On 1,500 documents, counts of n-grams of every order are nltk's, and so is the vocabulary."""
    compare_counts(part, rng)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_perplexities_part(part, smoothing):
    """Perplexities of fitted and held-out documents are nltk's, and infinite where nltk's are."""
    assert math.isfinite(compare_perplexities(part, smoothing, part.fitted[:3]))
    heldout = compare_perplexities(part, smoothing, part.heldout[:3])
    assert math.isinf(heldout) == (smoothing != "laplace")             # the others give unknown words no probability


@pytest.mark.slow
def test_whole_corpus(reuters, tmp_path, rng):
    """On all of Reuters, read from the corpus itself, scores, counts and perplexities are nltk's."""
    nltk, corpus = reuters
    documents = [list(corpus.words(name)) for name in corpus.fileids()]
    both = Both(nltk, documents, 0, tmp_path / "store", source="nltk:reuters")
    with both.store:
        compare_counts(both, rng)
        # Held-out text: its documents with their words in reverse, for contexts that were never seen.
        both.heldout = [sentence[::-1] for sentence in rng.sample(documents, 200)]
        for smoothing in SMOOTHINGS:
            compare(both, smoothing, rng)
            compare_perplexities(both, smoothing, documents[:2])

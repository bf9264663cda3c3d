"""kvps.compat.nltk has the results of nltk.lm, in memory and in a folder that outlives the process."""
import copy
import functools
import importlib
import math
import os
import pickle
import signal
import warnings

import pytest
from nltk import lm as theirs
from nltk.lm.preprocessing import padded_everygram_pipeline

from kvps.compat import nltk as ours
from kvps.compat.nltk import api, models, preprocessing, smoothing
from kvps.compat.nltk import counter as counters
from kvps.errors import KvpsError, StoreError
from kvps.jobs.check import check

MODELS = {"MLE": (), "Lidstone": (0.3,), "Laplace": (), "StupidBackoff": (0.3,), "WittenBellInterpolated": (),
          "AbsoluteDiscountingInterpolated": (), "KneserNeyInterpolated": ()}
WORDS = ["a", "b", "c", "dé", "语言", "two words", "", "<s>", "<UNK>", "tab\t", "\n"]


def text(rng, n, words=WORDS):
    """Return random sentences."""
    return [rng.choices(words, weights=range(len(words), 0, -1), k=rng.randrange(9)) for _ in range(n)]


def outcome(call, *arguments, **options):
    """Return what a call gives, or the class of what it raises."""
    try:
        return call(*arguments, **options)
    except Exception as exc:
        return type(exc)


def seen(counts):
    """Return the contexts that something follows; asking for others makes empty ones."""
    return {context: found for context, found in counts.items() if found}


def made(module, name, order, **options):
    """Return a new model; Lidstone and stupid back-off take a number first."""
    return getattr(module, name)(*MODELS[name], order, **options)


def same(mine, expected, rng):
    """Compare two models: counts, scores, entropy, generated text."""
    assert mine.vocab == expected.vocab and len(mine.vocab) == len(expected.vocab) and set(mine.vocab) == set(expected.vocab)
    assert (mine.counts.N(), mine.counts.unigrams) == (expected.counts.N(), expected.counts.unigrams)
    for _ in range(60):
        word, context = rng.choice([*WORDS, "new"]), tuple(rng.choices([*WORDS, "new"], k=rng.randrange(5)))
        for call in ("score", "logscore", "unmasked_score"):
            assert outcome(getattr(mine, call), word, context) == outcome(getattr(expected, call), word, context)
    test = [ngram for sentence in text(rng, 5) for ngram in preprocessing.padded_everygrams(mine.order, sentence)]
    assert outcome(mine.perplexity, test) == outcome(expected.perplexity, test)
    for seed in range(3):
        context = rng.choices(WORDS, k=rng.randrange(4))
        found, wanted = (outcome(model.generate, 8, text_seed=context, random_seed=seed) for model in (mine, expected))
        assert found == wanted
    for order in range(2, mine.order + 1):
        assert seen(mine.counts[order]) == seen(expected.counts[order])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kept", [False, True])
def test_models(tmp_path, rng, name, kept):
    """Every model agrees with nltk's after a first fit, after updates, and, kept in a folder, when opened again."""
    order = rng.randrange(2, 5)
    where = {"path": tmp_path / "lm"} if kept else {}
    mine, expected = made(ours, name, order, **where), made(theirs, name, order)
    for _ in range(2):
        sentences = text(rng, 12)
        for model in (mine, expected):
            model.fit(*padded_everygram_pipeline(order, sentences))
        same(mine, expected, rng)
    if kept:
        same(made(ours, name, order, **where), expected, rng)
    if kept and name == "MLE":
        assert not [finding for finding in check(tmp_path / "lm", "full") if finding.severity == "damage"]


@pytest.mark.parametrize("kept", [False, True])
def test_counter(tmp_path, rng, kept):
    """A counter takes any mixture of orders and is asked as nltk's is."""
    where = {"path": tmp_path / "counts"} if kept else {}
    mine, expected = ours.NgramCounter(**where), theirs.NgramCounter()
    for _ in range(4):
        ngrams = [[tuple(rng.choices(WORDS[:4], k=rng.randrange(1, 8))) for _ in range(9)] for _ in range(9)]
        mine.update(ngrams)
        expected.update(ngrams)
        word = rng.choice(WORDS)
        assert (mine[word], mine[[word]], mine[[word]] is mine[2][(word,)]) == (expected[word], expected[[word]], True)
        if rng.random() < 0.5:
            assert (mine[3], len(mine[3]), mine[3].N()) == (expected[3], len(expected[3]), expected[3].N())
    assert (mine.N(), len(mine), str(mine), 3 in mine, 40 in mine) == (expected.N(), len(expected), str(expected), True, False)
    assert mine[1] is mine.unigrams and isinstance(mine, theirs.NgramCounter)
    again = pickle.loads(pickle.dumps(mine))
    assert (again.N(), seen(again[2])) == (expected.N(), seen(expected[2]))
    if not kept:
        assert copy.deepcopy(mine)[2] == expected[2]


def test_no_bound(monkeypatch):
    """nltk's bound does not count here; one of our own can be set."""
    ngrams = [[(str(i),) for i in range(50)]]
    monkeypatch.setattr("nltk.lm.counter.MAX_NGRAMS", 10)
    assert ours.NgramCounter(ngrams).N() == 50
    monkeypatch.setattr(counters, "MAX_NGRAMS", 10)
    with pytest.raises(ValueError, match="MAX_NGRAMS"):
        ours.NgramCounter(ngrams)


def test_vocabulary(tmp_path):
    """A vocabulary in a folder goes on where it was, with another cut-off if one likes."""
    first = ours.Vocabulary(["a", "b", "a"], path=tmp_path / "lm")
    first.update(b=2)
    again = ours.Vocabulary(["c"], unk_cutoff=3, path=tmp_path / "lm")
    first.update(["d"])

    assert again.counts == {"a": 2, "b": 3, "c": 1} and set(again) == {"b", "<UNK>"}
    assert first.counts == {"a": 2, "b": 3, "c": 1, "d": 1}
    assert pickle.loads(pickle.dumps(again)).cutoff == 3 and pickle.loads(pickle.dumps(first)) == first


def test_two_counters_of_a_folder(tmp_path):
    """What another counter of the same folder has added is there after the next update."""
    one, two = ours.NgramCounter(path=tmp_path / "lm"), ours.NgramCounter(path=tmp_path / "lm")
    one.update([[("a",), ("a", "b")]])
    two.update([[("a",), ("a", "c"), ("a", "b", "c")]])
    one.update([[("b",)]])

    assert (one["a"], one["b"], dict(one[["a"]]), one[["a", "b"]]["c"]) == (2, 1, {"b": 1, "c": 1}, 1)
    assert (two["a"], dict(two[["a"]])) == (2, {"b": 1, "c": 1})


def test_what_cannot_be_kept(tmp_path):
    """An update that fails adds nothing: n-grams that are no tuples, too long, of no str. Other folders are refused."""
    counter = ours.NgramCounter([[("a",)]], path=tmp_path / "lm")
    for wrong, error in (("ab", TypeError), (tuple("abcdefghi"), KvpsError), ((1, 2), KvpsError),
                         (("\ud800",), UnicodeEncodeError)):
        with pytest.raises(error):
            counter.update([[("a",), ("new",), wrong]])
    counter.update([[("b",)]])

    assert ours.NgramCounter(path=tmp_path / "lm").unigrams == {"a": 1, "b": 1} == counter.unigrams
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError):
        ours.NgramCounter(path=tmp_path / "other")
    with pytest.raises(KvpsError):
        ours.MLE(2, ours.Vocabulary(), ours.NgramCounter(), path=tmp_path / "lm")


@pytest.mark.crash
def test_kill(tmp_path, rng):
    """An update that is killed at any call of the file system's counts as a whole or not at all, and the next one goes on."""
    path, expected = tmp_path / "lm", theirs.NgramCounter()
    ours.NgramCounter(path=path)
    for attempt in range(12):
        ngrams = [[tuple(rng.choices([*WORDS, str(attempt)], k=rng.randrange(1, 4))) for _ in range(20)]]
        pid = os.fork()
        if pid == 0:
            die_at(rng.randrange(40))
            ours.NgramCounter(ngrams, path=path)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert killed in (0, -signal.SIGKILL)
        found, whole = ours.NgramCounter(path=path), copy.deepcopy(expected)
        whole.update(ngrams)
        if killed == 0 or found.N() == whole.N():
            expected = whole
        assert (found.N(), found.unigrams, found[2], found[3]) == (expected.N(), expected.unigrams, expected[2], expected[3])


def die_at(number):
    """End this process at the so manieth call that changes a file."""
    from kvps.store import files
    from kvps.store.transaction import Txn

    left = [number]

    def counted(function):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped

    for name in ("fsync", "rename", "remove_file", "make_dir"):
        setattr(files, name, counted(getattr(files, name)))
    Txn.commit = counted(Txn.commit)


def test_tutorial(tmp_path):
    """The code of nltk's tutorial runs, with nltk's numbers, in memory and in a folder."""
    sentences = [["a", "b", "c"], ["a", "c", "d", "c", "e", "f"]]
    for where in ({}, {"path": tmp_path / "lm"}):
        train, words = preprocessing.padded_everygram_pipeline(2, sentences)
        model = ours.MLE(2, **where)
        assert len(model.vocab) == 0
        model.fit(train, words)
        assert (len(model.vocab), model.counts["a"], model.counts[["a"]]["b"]) == (9, 2, 1)
        assert (model.score("a"), model.score("b", ["a"])) == (2 / 13, 0.5)
        assert model.vocab.lookup(["a", "b", "c"]) == ("a", "b", "c")
        assert model.score("<UNK>") == model.score("aliens") == 0
        assert model.perplexity([("a", "b"), ("c", "d")]) == pytest.approx(2.449489742783178)
        assert model.generate(5, random_seed=3) == ["<s>", "a", "b", "c", "d"]
        assert model.logscore("a") == pytest.approx(math.log2(2 / 13))


def test_warns_as_nltk_does():
    """A vocabulary that is none is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours.MLE(2, vocabulary={"a"})

    assert [str(warning.message) for warning in caught] == [
        "The `vocabulary` argument passed to 'MLE' must be an instance of `nltk.lm.Vocabulary`."]


@pytest.mark.parametrize("name", ["api", "counter", "models", "preprocessing", "smoothing", "util", "vocabulary"])
def test_names_of_each_module(name):
    """What a module of nltk.lm defines for others is in the module of that name here."""
    expected = importlib.import_module(f"nltk.lm.{name}")
    public = {key for key, value in vars(expected).items()
              if not key.startswith("_") and (key.isupper() or getattr(value, "__module__", None) == expected.__name__)}

    assert public <= set(dir(importlib.import_module(f"kvps.compat.nltk.{name}")))


@pytest.mark.parametrize("kept", [False, True])
def test_models_of_ones_own(tmp_path, rng, kept):
    """Models and smoothings that others write over nltk's interfaces run over ours, also in a folder, with nltk's results."""
    def written(api, models, smoothing, **where):
        """Return such models."""
        class Half(api.Smoothing):
            """Half the frequency."""

            def unigram_score(self, word):
                """Return what begins the recursion."""
                return self.counts.unigrams.freq(word)

            def alpha_gamma(self, word, context):
                """Return the share of this order, and the weight of the lower ones."""
                return self.counts[context].freq(word) / 2, 0.5

        class Followers(api.LanguageModel):
            """The fewer words follow a context, the better."""

            def unmasked_score(self, word, context=None):
                """Return the same for all words."""
                return 2 ** -len(self.context_counts(context))

        return [Followers(3, **where), *(models.InterpolatedLanguageModel(one, 3, **where) for one in (
            Half, smoothing.WittenBell, smoothing.AbsoluteDiscounting, functools.partial(smoothing.KneserNey, order=3)))]

    known = text(rng, 60)
    for number in range(5):
        where = {"path": tmp_path / f"lm{number}"} if kept else {}
        found, expected = written(api, models, smoothing, **where)[number], written(
            theirs.api, theirs.models, theirs.smoothing)[number]
        assert isinstance(found, api.LanguageModel)
        for model in (found, expected):
            model.fit(*padded_everygram_pipeline(3, known))
        same(found, expected, rng)

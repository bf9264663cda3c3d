"""How a text goes on while it is typed: kvps complete and Model.complete."""
import itertools
import math

import numpy as np
import pytest
from click.testing import CliRunner

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError
from kvps.lm import foresight
from kvps.lm.completion import split_typed
from kvps.text.tokenize import Tokenizer

QUERIES = [*["how to make bread"] * 9, *["how to make a cake"] * 6, *["how to mend a bike"] * 4, *["how to mail a letter"] * 3,
           "how to make my neighbour john doe move", "how far is the moon", *["weather"] * 5, *["makers"] * 2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return an order-3 store of queries."""
    with kvps.create(tmp_path_factory.mktemp("completion") / "store", order=3, shards=2) as store:
        store.train(QUERIES, threads=1)
        yield store


def every_completion(model, typed, partial, max_words):
    """Return {text: probability} of all completions of so many words, by going through the whole vocabulary."""
    vocabulary = [*model.next([[]], None)[0].words, "</s>"]
    words = sorted(set(vocabulary) - {"<s>", "<unk>"})
    first = [word for word in words if word.startswith(partial) and word != "</s>"]
    total = math.fsum(10 ** model.log10(word, ["<s>", *typed]) for word in first) if partial else 1.0
    found = {}
    for n in range(1, max_words + 1):
        for added in itertools.product(first, *[words] * (n - 1)):
            if "</s>" in added[:-1] or (added[-1] != "</s>" and n < max_words):
                continue
            whole = ["<s>", *typed, *added]
            log10 = sum(model.log10(whole[i], whole[:i]) for i in range(len(typed) + 1, len(whole)))
            found[" ".join([*typed, *(word for word in added if word != "</s>")])] = 10 ** log10 / total
    return found


@pytest.mark.parametrize("smoothing", ["modified-kneser-ney", "witten-bell", "kneser-ney", "absolute-discounting", "lidstone:0.1"])
@pytest.mark.parametrize(("typed", "partial"), [(["how", "to"], "ma"), (["how"], ""), ([], "m"), (["zebra"], "how"), ([], "")])
def test_best_of_all_completions(smoothing, typed, partial, store):
    """With a beam as wide as the vocabulary the completions are the best of all that there are, with their probabilities."""
    text = " ".join([*typed, partial]) if partial or not typed else " ".join(typed) + " "
    with store.model(smoothing) as model:
        expected = sorted(every_completion(model, typed, partial, 2).items(), key=lambda found: -found[1])
        found = model.complete(text, 8, max_words=2, beam=1000)

        assert [row.probability for row in found] == pytest.approx([p for _, p in expected[:8]], rel=1e-9)
        assert all(dict(expected)[row.text] == pytest.approx(row.probability) for row in found)


def test_half_words_and_whole_ones(store):
    """A last word without a blank behind it may be half there, or a word of its own; with one it stands."""
    with store.model("witten-bell") as model:
        assert model.complete("how to ma", 3, max_words=6)[0].text == "how to make bread"
        assert {row.text.split()[2] for row in model.complete("how to ma", 20, max_words=1)} == {"make", "mail", "makers"}
        assert model.complete("how to make", 3)[0] == model.complete("how to mak", 3)[0]._replace(
            probability=model.complete("how to make", 3)[0].probability)
        assert model.complete("how to make ", 1)[0].text == "how to make bread"
        assert all(row.text.startswith("how to make ") for row in model.complete("how to make ", 9))
        assert model.complete("how to zz") == []
        assert model.complete("weather", 1)[0] == ("weather", pytest.approx(model.complete("weather", 1)[0].probability), True)


def test_rare_queries_never_surface(store):
    """With min_count no completion has a word that was seen more rarely after the words before it."""
    with store.model("witten-bell") as model:
        shown = {row.text for text in ("h", "how to make ", "how to make my ", "how to m", "john ", "w", "")
                 for row in model.complete(text, 50, max_words=8, beam=50, min_count=4)}
        assert not any(word in text for text in shown for word in ("neighbour", "john", "mail", "far", "moon"))
        assert shown >= {"how to make bread", "how to make a cake", "how to mend a bike", "weather"}
        every = {row.text for row in model.complete("how to make ", 50, max_words=8, beam=50, min_count=1)}
        assert "how to make my neighbour john doe move" in every
        assert model.complete("how to make ", min_count=10) == []
        assert model.complete("zebra ", min_count=1) == []


@pytest.mark.parametrize("smoothing", ["mkn", "kn", "witten-bell", "lidstone:0.1"])
def test_what_min_count_counts(smoothing, tmp_path):
    """It counts what was seen, but where Kneser-Ney has backed off and no sentence begins, the different words before."""
    with kvps.create(tmp_path / "store", order=3) as store:
        store.train(["x a b"] * 6 + ["y a b"] * 4 + ["a b"] * 3, threads=1)
        with store.model(smoothing) as model:
            def most(text):
                return max(n for n in range(1, 20) if n == 1 or model.complete(text, min_count=n, max_words=1))

            continued = smoothing in ("mkn", "kn")
            assert most("x a ") == 6                         # order - 1 words
            assert most("a ") == 3                           # <s> a, which begins the sentence
            assert most("") == 6
            assert most("zebra a ") == (3 if continued else 13)          # x, y and <s> before a b


def test_many_texts(store):
    """Texts are answered in order, on all threads, each as alone; of the same probability by their bytes."""
    texts = ["how to ma", "w", "", "how far", "makers"] * 8
    with store.model("witten-bell", threads=3) as model:
        assert model.complete(texts, 4) == [model.complete(text, 4) for text in texts]
        assert model.complete([]) == []
        ranked = [(-row.probability, row.text) for row in model.complete("", 30, max_words=1, beam=30)]
        assert ranked == sorted(ranked)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"beam": 0}, {"max_words": 0}, {"min_count": -1}, {"beam": 1001},
                                   {"min_count": 10**20}, {"beam": "wide"}], ids=str)
def test_complete_refuses(wrong, store):
    """A number that is not possible is refused; so are scores."""
    with store.model() as model, pytest.raises(ArgumentError, match="not possible"):
        model.complete("a", **wrong)
    with store.model("stupid-backoff") as model, pytest.raises(ArgumentError, match="not a distribution"):
        model.complete("a")


def test_split_typed():
    """What is typed ends with a whole word where a separator follows it."""
    plain = Tokenizer.from_spec("whitespace")

    for text, expected in (("a b", (["a"], "b")), ("a b ", (["a", "b"], "")), ("a b\t", (["a", "b"], "")), ("", ([], "")),
                           (" ", ([], ""))):
        assert split_typed(text, plain.prepare(text.encode()).decode().split()) == expected


@pytest.mark.parametrize("n", [1, 63, 64, 500, 5000])
def test_the_greatest_shares(rng, n):
    """The greatest of a list are those that sorting all of it finds, of equal ones the first, wherever they lie; 0 is none."""
    for steps in (2, 10, 10**6):               # many equal ones, or none
        shares = np.array([rng.randrange(steps) * (rng.random() < rng.choice([0.01, 0.9])) for _ in range(n)]) / steps
        for some in (shares, np.sort(shares), np.sort(shares)[::-1]):
            for k in {1, 2, 10, n // 64 or 1, n}:
                best = [i for i in np.argsort(-some, kind="stable") if some[i] > 0][:k]
                assert foresight._first(some, k).tolist() == best


def test_words_without_counts(tmp_path):
    """What was forgotten, or has other labels, is not in the way of a half word: answers are those of a store without it."""
    one = ["the ship sank", "the shore", "of the sea", "we sail the sea", "a boat"]
    two = ["thank you", "thee and thou", "she sells shells", "zebras sleep", "about the theme", "seal", "sharks swim"]
    with (kvps.create(tmp_path / "both", order=3) as both, kvps.create(tmp_path / "alone", order=3) as alone):
        both.train(two, label="2", threads=1)
        both.update(one, label="1", threads=1)
        alone.train(one, threads=1)
        asked = ["the s", "of th", "we sa", "a b", "t", "s", "z", "the sh", "thank"]
        with alone.model("witten-bell") as model:
            expected = model.complete(asked)
        assert any(expected) and not expected[-1]
        with both.model("witten-bell", labels=["1"]) as model:
            for ours, theirs in zip(model.complete(asked), expected, strict=True):
                assert [row.text for row in ours] == [row.text for row in theirs]
                assert [row.probability for row in ours] == pytest.approx([row.probability for row in theirs])
        both.forget_labels(["2"])
        with both.model("witten-bell") as model:
            assert model.complete(asked) == expected


def test_text_as_people_write_it(tmp_path):
    """Completions and drawn sentences of characters begin with what was typed; Latin words keep their blanks."""
    text = ["\u4eca\u5929\u5929\u6c14 very good", "\u4eca\u5929 GPU 4090 \u3002", "\u4eca\u665a"]
    with kvps.create(tmp_path / "s", order=3, tokenizer="char") as store:
        store.train(text, threads=1)
        with store.model("witten-bell") as model:
            found = [row.text for row in model.complete("\u4eca\u5929", 9)]
            assert found and all(row.startswith("\u4eca\u5929") for row in found)
            assert "\u4eca\u5929\u5929\u6c14very good" in found and "\u4eca\u5929GPU 4090\u3002" in found
            for line in model.generate("\u4eca\u5929", 20, seed=1):
                assert line.startswith("\u4eca\u5929")
        for command in (["complete", str(store.path), "\u4eca\u5929"], ["generate", str(store.path), "--prompt", "\u4eca\u5929"]):
            assert "\u4eca\u5929" in CliRunner().invoke(main, command).stdout


def test_words_joined():
    """Words are written so that the tokenizer makes the same ones of them again."""
    char = Tokenizer.from_spec("char")
    for words in (["\u4eca", "\u5929", "GPU", "4090", "!", "caf\u00e9", "a", ",", "b", "\u3002"], ["a"], [], ["\u4eca"]):
        assert char.prepare(char.joined(words).encode()).decode().split() == words
    assert char.joined(["\u4eca", "\u5929", "GPU", "4090", "!"]) == "\u4eca\u5929GPU 4090!"
    assert Tokenizer.from_spec("whitespace").joined(["a", "\u4eca", "\u5929"]) == "a \u4eca \u5929"

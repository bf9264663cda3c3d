"""A closed vocabulary: the store is what counting the text with <unk> in the place of other words would have made."""
import ast
import math
import signal
import subprocess
import sys

import pytest
import reference
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, DataError
from kvps.jobs import limit as limiting
from kvps.jobs import merge as merging
from kvps.lm.arpa import Choices, export
from kvps.store.directory import open_store

WORDS = ["a", "b", "c", "the", "a!", "\u732b", "word-of-more-than-sixteen-bytes", "x\u0085"]
TEXT = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=8)
UNK = "<unk>"
SMOOTHINGS = ("modified-kneser-ney", "witten-bell", "absolute-discounting", "kneser-ney", "laplace", "mle", "stupid-backoff")


def replaced(text, kept):
    """Return a text with <unk> in the place of words that are not kept."""
    return [[word if word in kept else UNK for word in sentence] for sentence in text]


def expected_scores(text, order, smoothing):
    """Return the naive model's p(word, context) of a text in which <unk> is a word."""
    if smoothing == "modified-kneser-ney":
        return reference.ModifiedKneserNey(text, order).p
    model = reference.Nltk(text, order)
    model.vocabulary |= {UNK}
    model.V = len(model.vocabulary)            # the unknown word is <unk>, counted or not, and is once in |V|
    model.lookup = lambda words: tuple(word if word in model.vocabulary else UNK for word in words)
    return {"witten-bell": model.witten_bell, "absolute-discounting": model.absolute_discounting, "kneser-ney": model.kneser_ney,
            "laplace": model.laplace, "mle": model.mle, "stupid-backoff": model.stupid_backoff}[smoothing]


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(TEXT, TEXT, st.sets(st.sampled_from([*WORDS, "never"])), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_limit_is_counting_with_unk(tmp_path_factory, text, more, kept, order, shards, by_count):
    """The counts, and those after later text was added and forgotten, are those of the text with its other words as <unk>."""
    folder = tmp_path_factory.mktemp("limit")
    with kvps.create(folder / "all", order=order, shards=shards) as store:
        store.train(text, label="first", threads=1)
        store.update(text, threads=1, again=True)
        if by_count:
            kept = {word for word, n in store.vocabulary.items() if n >= 3}
        made = store.limit(folder / "some", **({"min_count": 3} if by_count else {"words": kept}), threads=1)
    with made as some:
        for now, change in ((text * 2, lambda: None), (text * 2 + more, lambda: some.update(more, threads=1, again=True)),
                            (text + more, lambda: some.forget(text, label="first", threads=1))):
            change()
            assert [dict(some.dump(k, threads=1)) for k in range(1, order + 1)] == [
                reference.raw_counts(replaced(now, kept), k) for k in range(1, order + 1)]
            assert some.status()["version"] == some.version
    assert [f for f in kvps.check(folder / "some", level="full") if f.severity == "damage"] == []


def drawn(model, **choice):
    """Return sentences that a model draws; none where it refuses to, because only <unk>, which is never drawn, can come."""
    try:
        return model.generate(count=20, seed=1, **choice)
    except ArgumentError as error:
        assert "gives no word a probability after" in str(error)
        after = ast.literal_eval(str(error).partition(" after ")[2])
        assert model.next([after.split()], None)[0].words == [UNK]
        return []


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(TEXT, st.sets(st.sampled_from(WORDS), min_size=1, max_size=5), st.integers(1, 4))
@example([["a", "c", "c", "a", "a"]], {"c"}, 3)
def test_counted_unk_in_every_answer(tmp_path_factory, text, kept, order):
    """Every smoothing scores <unk> as a word with counts and its uniform share; contexts sum to 1; nothing drawn has it."""
    folder = tmp_path_factory.mktemp("limit")
    text = [*text, ["a", "b", "zzz", "a"]]
    with kvps.create(folder / "all", order=order, shards=2) as store:
        store.train(text, threads=1)
        store.limit(folder / "some", words=kept, threads=1).close()
    closed = replaced(text, kept)
    seen = sorted({word for sentence in closed for word in sentence if word != UNK})
    for smoothing in SMOOTHINGS:
        if (smoothing, order) == ("kneser-ney", 1):     # where nltk.lm has none
            continue
        p = expected_scores(closed, order, smoothing)
        with kvps.load(folder / "some", smoothing) as model:
            for context in ([], ["<s>"], [UNK], ["never"], ["<s>", "a"], ["a", UNK], [UNK, UNK], ["b", "never"]):
                known = [word if word in (*seen, "<s>") else UNK for word in context][max(0, len(context) - order + 1):]
                total = 0.0
                for word in [*seen, UNK, "</s>"]:
                    found = 10 ** model.log10(word if word != UNK else "never", context=" ".join(context))
                    wanted = p(word, tuple(known))
                    total += found
                    assert math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12), (smoothing, word, context)
                if smoothing == "modified-kneser-ney":
                    assert math.isclose(total, 1, rel_tol=1e-9)
            if smoothing in ("stupid-backoff", "mle"):
                continue
            listed = model.next("a", k=None)
            assert math.isclose(listed.cumulative[-1], 1, rel_tol=1e-9)
            for choice in ({}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.5}):
                for sentence in drawn(model, **choice):
                    assert UNK not in sentence.split()
            score = model.score_words("a never b")
            assert [word.oov for word in score] == ["a" not in seen, True, "b" not in seen, False]


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(TEXT, st.sets(st.sampled_from(WORDS), max_size=5), st.integers(1, 4))
@example([["the", "the", "a", "the", "b", "b", "b"], *[["x\x85", "the", "a", "the", "b", "b", "b"]] * 2], {"the", "a", "x\x85"}, 4)
def test_arpa_of_a_closed_vocabulary(tmp_path_factory, text, kept, order):
    """The ARPA file has <unk> with its counts, as a word and in contexts, and scores as the store when it is imported."""
    folder = tmp_path_factory.mktemp("limit")
    with kvps.create(folder / "all", order=order, shards=2) as store:
        store.train(text, threads=1)
        store.limit(folder / "some", words=kept, threads=1).close()
    with open_store(folder / "some") as store:
        export(store, folder / "out.arpa", choices=Choices(), threads=1)
    expected = {gram: (p, backoff) for gram, p, backoff in reference.ModifiedKneserNey(replaced(text, kept), order).arpa()}
    lines = [line.split("\t") for line in (folder / "out.arpa").read_text().split("\n") if "\t" in line]
    assert {tuple(words.split(" ")) for _, words, *_ in lines} == set(expected)
    for p, words, *backoff in lines:
        wanted = expected[tuple(words.split(" "))]
        assert math.isclose(float(p), 0 if words == "<s>" else wanted[0], abs_tol=2e-6)
        if backoff:
            assert math.isclose(float(backoff[0]), wanted[1], abs_tol=2e-6)


def test_what_cannot_be_limited(tmp_path):
    """Both choices, none, a count of 0, no word, one str, a file that is not UTF-8 and merges of other vocabularies are refused."""
    with kvps.create(tmp_path / "a", order=2) as store:
        store.train(["a b c"])
        for wrong in ({}, {"words": ["a"], "min_count": 2}, {"min_count": 0}, {"words": ["a b"]}, {"words": [""]},
                      {"words": "abc"}, {"words": b"abc"}):
            with pytest.raises(ArgumentError):
                store.limit(tmp_path / "out", **wrong)
        store.limit(tmp_path / "x", words=["a"]).close()
        store.limit(tmp_path / "y", words=["b"]).close()
        store.limit(tmp_path / "z", words=["a", "<unk>"]).close()
    (tmp_path / "bad.txt").write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match="line 2"):
        limiting.words_of_file(tmp_path / "bad.txt")
    for other in ("a", "y"):
        with pytest.raises(ArgumentError, match="vocabulary"):
            merging.merge(tmp_path / "sum", [tmp_path / "x", tmp_path / other])
    merging.merge(tmp_path / "sum", [tmp_path / "x", tmp_path / "z"])
    with kvps.open(tmp_path / "sum") as store:
        store.update(["new words a"])
        assert (dict(store.vocabulary), store.counts([UNK, "a", "new"])) == ({"a": 3}, [6, 3, 0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bad.txt", "sum", "x", "y", "z"]


def test_limit_from_the_command_line(tmp_path):
    """The command says how much is <unk>; a checkpoint keeps the vocabulary closed."""
    (tmp_path / "text").write_text("a b a c\nc b\n")
    (tmp_path / "words").write_text("a\nb\r\nnever")
    run = CliRunner()
    assert run.invoke(main, ["train", str(tmp_path / "s"), str(tmp_path / "text")]).exit_code == 0
    assert run.invoke(main, ["limit", str(tmp_path / "o"), str(tmp_path / "s")]).exit_code == 2
    done = run.invoke(main, ["limit", str(tmp_path / "o"), str(tmp_path / "s"), "--vocab", str(tmp_path / "words")])
    assert "3 words; 2 of 6 tokens are <unk>" in done.stderr + done.stdout
    assert '"closed": true' in run.invoke(main, ["stats", str(tmp_path / "o"), "--json"]).stdout
    assert "other words are <unk>" in run.invoke(main, ["stats", str(tmp_path / "o")]).stdout
    with kvps.open(tmp_path / "o") as store:
        store.checkpoint(to=tmp_path / "kept")
    with kvps.restore(tmp_path / "kept", tmp_path / "again", version=1) as store:
        store.update(["never more"])
        assert store.counts([UNK, "never", "more"]) == [3, 1, 0]


@pytest.mark.crash
@pytest.mark.parametrize("call", [1, 3, 5])
def test_killed_limit_leaves_nothing(tmp_path, call):
    """Killed while it deals or merges, there is no new store; the same command makes it, and leaves no rest."""
    with kvps.create(tmp_path / "a", order=3, shards=2) as store:
        store.train(["a b c d", "e f g h", "b c d e"])
    script = ("import os, signal, sys, itertools\n"
              "from kvps.store.shard import Shard\n"
              "from kvps.jobs.limit import limit\n"
              "add, calls = Shard.add_run, itertools.count(1)\n"
              "def killed(*a, **k):\n"
              f"    if next(calls) == {call}: os.kill(os.getpid(), signal.SIGKILL)\n"
              "    return add(*a, **k)\n"
              "Shard.add_run = killed\n"
              "limit(sys.argv[1], sys.argv[2], min_count=2, threads=1)\n")
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "out", tmp_path / "a"], timeout=60, check=False)
    assert done.returncode in (-signal.SIGKILL, 0)
    if done.returncode:
        assert not (tmp_path / "out").exists()
        limiting.limit(tmp_path / "out", tmp_path / "a", min_count=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "out"]

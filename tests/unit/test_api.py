"""kvps from Python: what kvps.create, kvps.open and kvps.load give."""
import contextlib
import gzip
import inspect
import math
import multiprocessing
import subprocess
import sys
import threading
import time
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest
import reference

import kvps
from kvps._vocabulary import encode_frozen
from kvps.jobs import train as jobs
from kvps.lm import arpa
from kvps.store import files
from kvps.store.directory import open_store

TEXT = ["the cat sat on the mat", "the dog sat", "", "the cat saw the dog on the mat"]
ROOT = Path(kvps.__file__).resolve().parents[1]


def halved(line):
    """Tokenise a line into two halves; named as MODULE:FUNC below."""
    return [part for part in (line[:len(line) // 2], line[len(line) // 2:]) if part.strip()]


@pytest.fixture
def store(tmp_path):
    """Return an order-3 store with TEXT."""
    with kvps.create(tmp_path / "store", order=3, shards=2) as store:
        store.train(TEXT, threads=1)
        yield store


def words_of(text):
    """Return sentences as the reference takes them."""
    return [sentence.split() for sentence in text]


def wait_until(condition):
    """Wait for other threads, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def dumped(store, k):
    """Return {n-gram: raw count} of one order; every n-gram must come once."""
    listed = list(store.dump(k))
    assert len(dict(listed)) == len(listed)
    return dict(listed)


# ---- the package

def test_import_is_cheap():
    """Importing kvps loads nothing but itself, until a name is used; and every public name can be used."""
    code = ("import sys; before = set(sys.modules); import kvps; after = set(sys.modules) - before; "
            "assert after == {'kvps'}, after; assert callable(kvps.open) and 'numpy' in sys.modules; "
            "assert all(getattr(kvps, name) is not None for name in kvps.__all__); "
            "assert set(dir(kvps)) >= set(kvps.__all__)")

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_name_of_the_package():
    """A name that kvps does not have is an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        kvps.tarin  # noqa: B018


def test_version_is_the_project_s():
    """kvps.__version__ is what pyproject.toml says, and the package says that it is typed."""
    project = ROOT / "pyproject.toml"
    if not project.exists():
        pytest.skip("kvps is installed without its checkout")
    assert kvps.__version__ == tomllib.loads(project.read_text())["project"]["version"]
    assert (ROOT / "kvps" / "py.typed").exists()


@pytest.mark.parametrize("cls", [kvps.Store, kvps.Model, kvps.Vocabulary, kvps.Classifier])
def test_public_methods_are_typed_and_documented(cls):
    """Every public function, method and property has a docstring, and every parameter and result a type."""
    members = [kvps.create, kvps.open, kvps.load, kvps.mix, kvps.merge, kvps.export, kvps.import_arpa, kvps.from_counts]
    for name, member in vars(cls).items():
        if not name.startswith("_"):
            members.append(member.fget if isinstance(member, property) else member)
    for member in members:
        signature = inspect.signature(member)
        assert member.__doc__, member
        assert signature.return_annotation is not signature.empty, member
        assert all(p.annotation is not p.empty for p in signature.parameters.values() if p.name != "self"), member


@pytest.mark.parametrize("method", [
    kvps.Model.score, kvps.Model.score_words, kvps.Model.perplexities, kvps.Model.explain, kvps.Model.next, kvps.Model.complete,
    kvps.Classifier.classify], ids=lambda method: method.__name__)
def test_answers_have_types(method):
    """What is answered to one text has one type, what is answered to many another, and neither is Any."""
    found = [inspect.signature(member) for member in (*typing.get_overloads(method), method)]

    assert len(found) == 3 and len({tuple(signature.parameters) for signature in found}) == 1
    assert len({signature.return_annotation for signature in found}) == 3
    assert not any("Any" in signature.return_annotation for signature in found)


# ---- writing

def test_train_update_forget(store):
    """Sentences come as text or as words, are counted and forgotten exactly, and each job makes a version."""
    before = {k: dumped(store, k) for k in (1, 2, 3)}
    assert store.version == 1
    assert before[3] == reference.raw_counts(words_of(TEXT), 3)

    assert store.update([["a", "cat"], ("sat",)]) == {
        "command": "update", "version": 2, "tokens": 3, "sentences": 2, "inputs": 1, "already": {}}
    assert dumped(store, 2) == reference.raw_counts([*words_of(TEXT), ["a", "cat"], ["sat"]], 2)
    assert store.forget(["sat", "a cat"])["tokens"] == -3      # the same n-grams, given in another way

    assert {k: dumped(store, k) for k in (1, 2, 3)} == before
    assert store.version == 3


def test_words_are_not_tokenised_again(tmp_path):
    """A list of words is taken as it is, whatever the tokenizer; text goes through it."""
    with kvps.create(tmp_path / "s", order=2, tokenizer="wordpunct", lowercase=True) as store:
        store.train([["Don't", "U.S."]])
        store.update(["Don't"])

        assert dict(store.vocabulary) == {"'": 1, "Don't": 1, "U.S.": 1, "don": 1, "t": 1}
        with store.model("laplace") as model:
            assert model.score("DON'T") == model.score([["don", "'", "t"]])[0]


@pytest.mark.parametrize("method", ["train", "update", "forget"])
@pytest.mark.parametrize(("sentences", "message"), [
    ("one text", "not one str"), (b"bytes", "not one bytes"), (7, "got int"), (["a\nb"], "newline"),
    ([["a b"]], "separator"), ([["a", ""]], "empty"), ([["a\tb"]], "separator"), ([["a"], "b"], "mixed"),
    ([1], "is int")])
def test_odd_sentences_are_refused(store, method, sentences, message):
    """A bare text, other things than sentences, and words that would not stay one word change nothing."""
    with pytest.raises(kvps.ArgumentError, match=message):
        getattr(store, method)(sentences)

    assert store.version == 1
    assert not (store.path / "spool").exists()


@pytest.mark.parametrize("sentences", [[], iter(())])
def test_no_sentences_are_refused(store, sentences):
    """An iterable without a sentence is told, and changes nothing."""
    with pytest.raises(kvps.DataError, match="no text"):
        store.update(sentences)

    assert store.version == 1
    assert store.status()["state"] == "idle"


def test_empty_sentence_counts(store):
    """An empty sentence is one: it has <s> </s>."""
    store.update([""])

    assert store.count("<s> </s>") == 2


def test_exception_of_the_iterable_comes_through(store):
    """What the user's own generator raises is raised as it is, and nothing of it is counted."""
    def broken(error):
        yield "a b"
        raise error

    for error in (OSError("theirs"), KeyError("theirs")):
        with pytest.raises(type(error), match="theirs"):
            store.update(broken(error))
        with store.model() as model, pytest.raises(type(error), match="theirs"):
            model.score(broken(error))
    assert store.version == 1
    assert not (store.path / "spool").exists()


def test_same_text_is_counted_once(store):
    """Text that is counted already changes nothing, unless `again` is given or it was forgotten since."""
    assert store.update(TEXT)["already"] == {"(iterable)": 1}
    assert store.train(TEXT)["already"] == {"(iterable)": 1}
    assert store.version == 1
    assert store.count("cat") == 2

    store.update(TEXT, again=True)
    assert store.count("cat") == 4
    store.forget(TEXT)
    store.forget(TEXT)
    assert store.count("cat") == 0
    assert store.update(TEXT)["already"] == {}
    assert store.count("cat") == 2


def test_train_twice_is_refused(store):
    """Other text is not trained onto a store that has some; the message names update."""
    with pytest.raises(kvps.StoreError, match="use kvps update"):
        store.train(["other"])

    assert store.version == 1
    assert not (store.path / "spool").exists()


def test_forget_what_was_not_added(store):
    """Forgetting more than is there names the least n-gram and changes nothing."""
    before = dumped(store, 3)

    with pytest.raises(kvps.DataError, match='"<s> zebra" would have count -1'):
        store.forget(["zebra"])

    assert dumped(store, 3) == before
    assert store.version == 1


def test_files(tmp_path):
    """Files of every kind are counted by path; one bare path is refused."""
    (tmp_path / "a.txt").write_text("a b\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"c d"))
    with kvps.create(tmp_path / "s", order=2) as store:
        with pytest.raises(kvps.ArgumentError, match="put it in a list"):
            store.train_files(str(tmp_path / "a.txt"))
        with pytest.raises(kvps.DataError, match="No such file"):
            store.train_files([tmp_path / "zzz"])
        assert store.version == 0
        assert store.train_files([tmp_path / "a.txt", str(tmp_path / "b.gz")])["inputs"] == 2
        assert set(store.vocabulary) == {"a", "b", "c", "d"}
        assert store.update_files([tmp_path / "a.txt"])["already"]
        store.update_files([tmp_path / "a.txt"], again=True)
        assert store.count("a b") == 2
        store.forget_files([tmp_path / "a.txt"])
        assert store.count("a b") == 1


def test_options_of_a_job(store):
    """The options of a job are those of the command line; what is not one is refused before anything happens."""
    with pytest.raises(kvps.DataError, match="reserved"):
        store.update(["a <s> b"])
    store.update(["a <s> b"], reserved="skip", threads=2, memory="64M")
    assert store.count("a b") == 1
    with pytest.raises(kvps.ArgumentError, match="reserved words"):
        store.update(["x"], reserved="maybe")
    with pytest.raises(TypeError, match="colour"):
        store.update(["x"], colour="red")
    assert store.version == 2


def test_interrupted_job(store, monkeypatch):
    """After an interruption readers see the old version, other writes are refused, the same one or resume() goes on."""
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    def interrupt(sentences):
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "count_splits", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.update(sentences)
        assert store.version == version
        assert store.status()["state"] == "interrupted"

    version = 1
    interrupt(["new words"])
    with pytest.raises(kvps.StoreError, match="was interrupted"):
        store.update(["other"])
    assert store.update(["new words"])["version"] == 2
    version = 2
    interrupt(["more words"])
    assert store.resume()["version"] == 3
    assert store.count("more words") == 1
    version = 3
    interrupt(["less words"])
    assert store.abort() == {"command": "update", "version": 3}
    assert store.count("less") == 0
    assert store.resume() is None
    assert store.abort() is None
    assert store.status()["state"] == "idle"
    assert not (store.path / "spool").exists()


def test_interrupted_job_with_text_counted_before(store, tmp_path, monkeypatch):
    """The same command resumes also when a part of its inputs had been counted before.

    Digests of all inputs were compared with those of the job, which has only the new ones: the job was refused instead.
    """
    (tmp_path / "old").write_text("old text\n")
    (tmp_path / "new").write_text("new text\n")
    paths = [tmp_path / "old", tmp_path / "new", tmp_path / "new"]
    store.update_files(paths[:1])
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "count_splits", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.update_files(paths)

    assert store.update_files(paths)["version"] == 3
    assert store.counts(["old", "new", "text"]) == [1, 1, 2]


def test_compact(store):
    """Compaction, with and without vacuum, changes no count, and a store that is open goes on reading."""
    for i in range(5):
        store.update([f"word{i} cat"])
    with kvps.open(store.path) as reader:
        before = dumped(store, 3)
        assert store.compact()["merged_runs"] > 0
        assert store.compact(vacuum=True)["merged_runs"] == 0

        assert dumped(store, 3) == dumped(reader, 3) == before


# ---- who may write when

def test_reader_holds_no_lock(store):
    """Stores open for reading take turns at writing, and each sees what the others committed."""
    with kvps.open(store.path) as other:
        other.update(["other words"])
        store.update(["own words"])

        assert other.version == store.version == 3
        assert other.counts(["other", "own", "words"]) == store.counts(["other", "own", "words"]) == [1, 1, 2]


def test_writable_store_keeps_others_away(store):
    """A store opened writable keeps the owner lock: others can read, not write, until it is closed."""
    with kvps.open(store.path, writable=True) as owner:
        owner.update(["by the owner"])
        with pytest.raises(kvps.StoreLocked) as caught:
            store.update(["by another"])
        with pytest.raises(kvps.StoreLocked):
            kvps.open(store.path, writable=True)
        assert caught.value.exit_code == 5
        assert store.count("owner") == 1
        owner.compact()
        assert owner.resume() is None
        assert owner.abort() is None

    store.update(["by another"])
    assert store.version == 3


def test_waiting_for_the_lock(store):
    """With `wait`, a write waits for its turn."""
    owner = kvps.open(store.path, writable=True)
    timer = threading.Timer(0.5, owner.close)
    timer.start()

    assert store.update(["at last"], wait=30)["version"] == 2
    timer.join()


def read_in_child(path, ready, go, result):
    """Count a word of a store before and after its writer has gone on; runs in a process of its own."""
    with kvps.open(path) as store, store.model("mle") as model:
        ready.put(None)
        go.get(timeout=60)
        result.put((store.version, store.count("fresh"), model.version, model.refresh(), model.score("fresh")))


def test_other_processes_read_while_one_writes(store):
    """A process that has the store open sees the next version as soon as it is committed."""
    context = multiprocessing.get_context("spawn")
    ready, go, result = context.Queue(), context.Queue(), context.Queue()
    child = context.Process(target=read_in_child, args=(store.path, ready, go, result))
    child.start()
    ready.get(timeout=60)
    store.update(["fresh"])
    go.put(None)
    version, count, before, refreshed, score = result.get(timeout=60)
    child.join(60)

    assert (version, count, before, refreshed) == (2, 1, 1, True)
    assert math.isfinite(score)


def test_store_that_is_closed(store):
    """A closed store says so; closing twice is fine."""
    store.close()
    store.close()

    assert "closed" in repr(store)
    for use in (lambda: store.version, lambda: store.count("a"), lambda: store.update(["a"]), lambda: store.model(),
                lambda: list(store.dump(1)), lambda: store.vocabulary):
        with pytest.raises(kvps.StoreError, match="is closed"):
            use()


@pytest.mark.parametrize(("order", "shards", "tokenizer"), [
    (0, 1, "whitespace"), (9, 1, "whitespace"), (2.5, 1, "whitespace"), (True, 1, "whitespace"), ("3", 1, "whitespace"),
    (3, 0, "whitespace"), (3, 1025, "whitespace"), (3, 2.5, "whitespace"), (3, 1, "sentence piece")])
def test_stores_that_cannot_be(tmp_path, order, shards, tokenizer):
    """Orders, numbers of shards and tokenizers that are not possible are refused, and nothing is made."""
    with pytest.raises(kvps.ArgumentError):
        kvps.create(tmp_path / "s", order=order, shards=shards, tokenizer=tokenizer)

    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_or_empty(store, tmp_path):
    """A store is not made over something else, and not opened where there is none."""
    with pytest.raises(kvps.StoreError, match="is a store already"):
        kvps.create(store.path)
    with pytest.raises(kvps.StoreError, match="no such store"):
        kvps.open(tmp_path / "nothing")
    with pytest.raises(kvps.StoreError, match="not a kvps store"):
        kvps.load(tmp_path)


def test_tokenizer_of_the_user_is_imported_only_when_named(tmp_path):
    """A recorded MODULE:FUNC is not imported until the caller names it; counts can be read without it."""
    name = f"{__name__}:halved"
    with kvps.create(tmp_path / "s", order=2, tokenizer=name) as store:
        store.train(["abcd"])
        assert set(store.vocabulary) == {"ab", "cd"}
        assert store.model("mle").score("abcd") == 0
    with kvps.open(tmp_path / "s") as store:
        assert store.count("ab cd") == 1
        assert store.model("mle").score([["ab", "cd"]]) == [0]
        with pytest.raises(kvps.ArgumentError, match="name it again"):
            store.update(["efgh"])
        with store.model("mle") as model, pytest.raises(kvps.ArgumentError, match="name it again"):
            model.score("abcd")
    for call in (kvps.open, kvps.load):
        with pytest.raises(kvps.ArgumentError, match="was made with tokenizer"):
            call(tmp_path / "s", tokenizer="char")
        call(tmp_path / "s", tokenizer=name).close()


# ---- reading

def test_count(store):
    """Counts are raw counts of windows of `<s> words </s>`, of n-grams given as text or as words."""
    for k in (1, 2, 3):
        for gram, count in reference.raw_counts(words_of(TEXT), k).items():
            assert store.count(" ".join(gram)) == store.count(list(gram)) == count
    assert store.counts(["the", ("the", "cat"), " the\tcat ", "cat the", "zebra", "the zebra"]) == [6, 2, 2, 0, 0, 0]
    assert store.counts([]) == []


@pytest.mark.parametrize("ngram", ["", "a b c d", [], ["a b"], ["a", ""], ["a", 1]])
def test_count_of_what_is_no_ngram(store, ngram):
    """An n-gram has 1 to `order` words; lists hold words only."""
    with pytest.raises(kvps.ArgumentError):
        store.count(ngram)


def test_counts_of_a_bare_text(store):
    """counts() refuses one text, whose letters it would count."""
    with pytest.raises(kvps.ArgumentError, match="count\\(\\)"):
        store.counts("the cat")


def test_vocabulary(store):
    """The vocabulary is a mapping of the words that occur to their counts, in byte order, without the specials."""
    words = store.vocabulary
    expected = {gram[0]: n for gram, n in reference.raw_counts(words_of(TEXT), 1).items()
                if gram[0] not in ("<s>", "</s>")}

    assert dict(words) == expected
    assert list(words) == sorted(expected, key=str.encode)
    assert len(words) == len(expected)
    assert "cat" in words
    assert words["the"] == 6
    assert words.get("zebra", 0) == 0
    for absent in ("zebra", "<s>", "</s>", "<unk>", "", 3, None, "\udc80"):
        assert absent not in words


def test_vocabulary_forgets(store):
    """A word whose count falls to 0 is gone from the vocabulary; a vocabulary that was taken stays at its version."""
    store.update(["zebra cat"])
    with_zebra = store.vocabulary
    assert store.vocabulary is with_zebra
    store.forget(["zebra cat"])

    assert "zebra" not in store.vocabulary
    assert "zebra" in with_zebra
    assert (with_zebra.version, store.vocabulary.version) == (2, 3)
    with store.model() as model:
        assert model.score_words("zebra")[0].oov


def test_dump(store):
    """A dump lists each n-gram of an order once; in_order, in byte order of its lines."""
    for k in (1, 2, 3):
        listed = list(store.dump(k, in_order=True))
        lines = [" ".join(gram) + "\t" for gram, _ in listed]
        assert dict(listed) == dumped(store, k) == reference.raw_counts(words_of(TEXT), k)
        assert lines == sorted(lines, key=str.encode)
    with pytest.raises(kvps.ArgumentError):
        list(store.dump(4))


def test_scratch_files_on_a_full_disk(store, monkeypatch):
    """Where scratch files do not fit, a sorted dump, an export and a model say that the disk is full, and how to go on.

    Dumps and exports let the OSError of the kernel through, which has no path.
    """
    @contextlib.contextmanager
    def full(folder):
        with Path("/dev/full").open("r+b", buffering=0) as file:
            yield file.fileno()

    monkeypatch.setattr(files, "scratch", full)
    with open_store(store.path) as directory:
        for use in (lambda: list(store.dump(2, in_order=True)), lambda: arpa.export(directory, store.path / "a.arpa"),
                    store.model):
            with pytest.raises(kvps.StoreFull, match="disk full"):
                use()
    assert not (store.path / "a.arpa").exists()


def test_dump_that_is_not_read_to_its_end(store):
    """Leaving a dump early lets go of the store."""
    for _ in store.dump(2):
        break
    store.update(["x"])

    assert store.version == 2


def test_statistics(store):
    """Sizes are those of the text; distinct n-grams are counted as lmplz does."""
    found = store.statistics

    assert (found.order, found.version, found.tokens, found.sentences) == (3, 1, 17, 4)
    assert found.vocabulary == len(store.vocabulary)
    adjusted = reference.adjusted_counts(words_of(TEXT), 3)
    assert found.ngrams == {k: len(adjusted[k]) for k in (1, 2, 3)}
    assert found.t == {k: reference.counts_of_counts(adjusted[k])[1:] for k in (1, 2, 3)}


def test_empty_store(tmp_path):
    """A store without text has no words, counts nothing, and its models still answer."""
    with kvps.create(tmp_path / "s") as store:
        assert (store.version, len(store.vocabulary), list(store.vocabulary), store.count("a")) == (0, 0, [], 0)
        assert list(store.dump(5)) == list(store.dump(1)) == []
        assert store.statistics.tokens == 0
        with store.model() as model:
            assert model.version == 0
            assert not math.isnan(model.score("a b"))


def test_everything_forgotten(store):
    """A store whose text was all forgotten is like an empty one."""
    store.forget(TEXT)

    assert store.statistics.ngrams == {1: 3, 2: 0, 3: 0}
    assert list(store.dump(1)) == []
    for smoothing in ("mkn", "kn", "ad", "wb", "laplace", "mle", "stupid-backoff"):
        with store.model(smoothing) as model:
            assert model.score_words("the cat")[0].oov


# ---- models

@pytest.mark.parametrize("exact", [False, True])
def test_score(store, exact):
    """A text gives a float, sentences an array, words are not tokenised; tokens are words and one </s> a sentence."""
    twin = reference.ModifiedKneserNey(words_of(TEXT), 3)
    expected = [math.fsum(math.log10(twin.p(word, padded[max(0, i - 2):i])) for i, word in enumerate(padded) if i)
                for padded in (("<s>", *line.split(), "</s>") for line in ("the cat", "", "zebra dog"))]
    with store.model(exact=exact) as model:
        one = model.score("the cat")
        many = model.score(iter(["the cat", "", "zebra dog"]))

        assert type(one) is float
        assert many.dtype == np.float64
        assert many.shape == (3,)
        assert one == many[0]
        assert many == pytest.approx(expected, rel=1e-12)
        assert model.score([["the", "cat"], [], ("zebra", "dog")]).tolist() == many.tolist()
        assert model.score([]).shape == (0,)
        result = model.evaluate(["the cat", "", "zebra dog"])
        assert (result.sentences, result.tokens, result.oov) == (3, 7, 1)
        assert model.perplexity(["the cat", "", "zebra dog"]) == pytest.approx(10 ** (-sum(expected) / 7))
        assert model.perplexity("the cat") == pytest.approx(10 ** (-one / 3))


def test_score_mixed_forms(store):
    """Texts and lists of words may be mixed when scoring, and batches do not matter."""
    with store.model() as model:
        sentences = ["the cat", ["the", "cat"], "the dog"] * 50

        assert model.score(sentences).tolist() == [model.score(s) if isinstance(s, str) else model.score([s])[0]
                                                   for s in sentences]


def test_score_of_the_impossible(store):
    """Where a token has probability 0, a sentence scores -inf and the perplexity is infinite."""
    with store.model("mle") as model:
        assert model.score("zebra") == -math.inf
        assert model.score(["the cat", "zebra"])[1] == -math.inf
        assert model.perplexity(["the cat", "zebra"]) == math.inf
        assert math.isnan(model.perplexity([]))


def test_score_words(store):
    """Each token comes with its score, the order of the longest n-gram seen, and whether it is unknown."""
    with store.model() as model:
        tokens = model.score_words("the cat zebra")

        assert [t.word for t in tokens] == ["the", "cat", "zebra", "</s>"]
        assert [t.oov for t in tokens] == [False, False, True, False]
        assert [t.order for t in tokens][:2] == [2, 3]
        assert math.fsum(t.log10 for t in tokens) == pytest.approx(model.score("the cat zebra"))
        assert model.score_words(["the cat zebra", []]) == [tokens, model.score_words("")]


@pytest.mark.parametrize("ask", [kvps.Model.evaluate, kvps.Model.perplexity, kvps.Model.score, kvps.Model.score_words,
                                 kvps.Model.explain, kvps.Model.perplexities], ids=lambda ask: ask.__name__)
def test_many_sentences_use_all_threads(ask, store, monkeypatch):
    """Several threads give what one gives, to the last bit and in order, and take sentences no further ahead than they work."""
    texts = [" ".join(TEXT[i % len(TEXT)].split()[i % 3:]) + " zebra" * (i % 2) for i in range(200)]
    if ask is not kvps.Model.perplexities:
        texts[50:60] = [text.split() for text in texts[50:60]]
    monkeypatch.setattr("kvps.lm.model.BATCH_BYTES", 1)      # a sentence each
    monkeypatch.setattr("kvps.api.model.BATCH_BYTES", 1)
    monkeypatch.setattr("kvps.lm.model.CHUNK", 1)
    once = 2 if ask is kvps.Model.explain else 1             # times that a sentence is encoded

    def watched(*arguments):
        workers.append(threading.get_ident())
        ahead.append(len(taken) - len(workers) // once)
        return encode_frozen(*arguments)

    def given():
        for text in texts:
            taken.append(text)
            yield text

    for module in ("kvps.lm.model", "kvps.lm.scorer"):
        monkeypatch.setattr(f"{module}.encode_frozen", watched)
    found = []
    for threads in (1, 3):
        workers, taken, ahead = [], [], []
        with store.model(threads=threads) as model:
            found.append(ask(model, given()))
            assert (set(workers) == {threading.get_ident()}) == (threads == 1)
            assert (taken, len(workers)) == (texts, once * len(texts)) and max(ahead) <= 2 * threads + 4
    assert np.array_equal(*found, equal_nan=True) if isinstance(found[0], np.ndarray) else found[0] == found[1]


def test_log10(store):
    """A word is scored after a context of any length, of which the last order - 1 words count."""
    twin = reference.ModifiedKneserNey(words_of(TEXT), 3)
    with store.model() as model:
        for context in ((), ("<s>",), ("<s>", "the"), ("the",), ("on", "the"), ("zebra", "the"), ("sat", "on", "the")):
            for word in ("the", "mat", "cat", "</s>", "zebra"):
                expected = pytest.approx(math.log10(twin.p(word, context)), rel=1e-12)
                assert model.log10(word, list(context)) == expected
                assert model.log10(word, " ".join(context)) == expected


def test_order_views(store):
    """A model of a lower order is that of the same text trained at that order, for every kind of smoothing."""
    for smoothing, twin in (("mkn", reference.ModifiedKneserNey(words_of(TEXT), 2).p),
                            ("wb", reference.Nltk(words_of(TEXT), 2).witten_bell)):
        with store.model(smoothing, order=2) as model:
            assert model.order == 2
            assert 10 ** model.log10("cat", ["sat", "the"]) == pytest.approx(twin("cat", ("the",)))


@pytest.mark.parametrize("options", [
    {"smoothing": "good-turing"}, {"smoothing": "lidstone"}, {"smoothing": None}, {"order": 0}, {"order": 4}, {"order": 2.0},
    {"order": "2"}, {"order": True}, {"stale": "perhaps"}, {"labels": []}, {"labels": "a"}, {"labels": 3}, {"labels": [b"a"]}])
def test_models_that_cannot_be(store, options):
    """A smoothing, order, stale mode or labels that are not possible are refused, and leave no model behind."""
    with pytest.raises(kvps.ArgumentError):
        store.model(**options)

    assert not list(store.path.glob("models/*.kvm"))


@pytest.mark.parametrize("ask", [
    lambda model: model.next("the", 2.5), lambda model: model.next("the", True), lambda model: model.complete("the", "3"),
    lambda model: model.generate(count="2"), lambda model: model.generate(seed=1.5), lambda model: model.generate(temperature="a"),
    lambda model: model.generate(top_p="a"), lambda model: list(model.rescore([], weight="a")), lambda model: model.log10("a b"),
    lambda model: model.log10("")])
def test_questions_that_cannot_be(store, ask):
    """Numbers that are none, and words that are none, are refused."""
    with store.model() as model, pytest.raises(kvps.ArgumentError):
        ask(model)


@pytest.mark.parametrize("wrong", [5, None, [5], [None], b"ab", "a \ud800", ["a \ud800"], [["a", 5, 6]], [["a\ud800"]]])
def test_texts_that_cannot_be(store, wrong):
    """What is no text, or none that can be written, is an ArgumentError that names it, whichever call it is given to."""
    path = str(store.path)
    with store.model() as model, kvps.Classifier({"a": path, "b": path}) as classifier:
        calls = [model.score, model.perplexity, model.perplexities, model.next, model.complete, model.generate, store.counts,
                 model.score_words, model.explain, model.measure, classifier.classify, classifier.evaluate,
                 lambda text: model.log10(text, "a"), lambda text: model.log10("a", text)]
        for call in calls:
            with pytest.raises(kvps.ArgumentError):
                call(wrong)


@pytest.mark.parametrize("threads", [-3, 0, 1.5, "2"])
def test_threads_that_cannot_be(store, threads, tmp_path):
    """Every call that takes a number of threads refuses one below 1, and what is no whole number."""
    path = str(store.path)
    for call in (store.model, store.compact, store.purge, lambda **more: store.reshard(3, **more),
                 lambda **more: list(store.dump(1, **more)), lambda **more: store.limit(tmp_path / "l", min_count=2, **more),
                 lambda **more: kvps.audit(path, **more), lambda **more: kvps.export(path, tmp_path / "m.arpa", **more),
                 lambda **more: kvps.mix(tmp_path / "m", [path, path], TEXT, **more),
                 lambda **more: kvps.Classifier({"a": path, "b": path}, **more)):
        with pytest.raises(kvps.ArgumentError, match="a number of threads of .* is not possible"):
            call(threads=threads)
    assert not list(tmp_path.glob("[lm]*"))


def test_model_outlives_its_store(store):
    """A model stays usable after its store object is closed, and says so when it is closed itself."""
    model = store.model("witten-bell")
    store.close()
    assert math.isfinite(model.score("the cat"))
    assert (model.order, model.version, model.smoothing, model.statistics.tokens) == (3, 1, "witten-bell", 17)
    model.close()
    model.close()

    assert "closed" in repr(model)
    for use in (lambda: model.score("a"), lambda: model.refresh(), lambda: model.version):
        with pytest.raises(kvps.StoreError, match="closed"):
            use()


def test_refresh(store):
    """A model answers from its version until it is refreshed, though its file is gone by then."""
    with store.model("mle") as model, kvps.load(store.path, "mle") as other:
        assert model.refresh() is False
        store.update(["the zebra"])
        assert model.score("the zebra") == -math.inf
        assert model.version == 1
        assert other.refresh() is True         # compiles, and removes the older file

        assert model.score("the cat") == other.score("the cat") or model.version == 1
        assert model.refresh() is True
        assert math.isfinite(model.score("the zebra"))
        assert model.version == other.version == 2


def test_refresh_is_atomic(store):
    """Threads that score while the model switches versions get the one answer or the other, never a mixture."""
    model = store.model("laplace")
    old = model.score(["the cat sat"] * 20).tolist()
    store.update(["the cat ran", "the cat hid"])
    with store.model("laplace") as fresh:
        new = fresh.score(["the cat sat"] * 20).tolist()
    seen, stop = [[], [], []], threading.Event()

    def score(mine):
        while not stop.is_set():
            mine.append(model.score(["the cat sat"] * 20).tolist())

    threads = [threading.Thread(target=score, args=[mine]) for mine in seen]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(old in mine for mine in seen))
    model.refresh()
    wait_until(lambda: all(mine[-1] == new for mine in seen))
    stop.set()
    for thread in threads:
        thread.join()
    model.close()

    assert old != new
    for mine in seen:
        switched = mine.index(new)
        assert mine == [old] * switched + [new] * (len(mine) - switched)


def test_threads_read_at_once(store):
    """One store and one model serve several threads, each of which gets what one alone would."""
    model = store.model()
    expected = model.score(TEXT).tolist(), dumped(store, 3), store.counts(["the", "the cat"])
    results = []

    def read():
        for _ in range(5):
            results.append((model.score(TEXT).tolist(), dumped(store, 3), store.counts(["the", "the cat"])))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model.close()

    assert results == [expected] * 20

"""The vocabulary of a store and of a model: words, their counts and their numbers; here, behind a server, imported."""
from collections.abc import Mapping

import pytest
from processes import Served, run

import kvps

TEXT = ["the cat sat on the mat", "人 人 平等", "the cat"]
COUNTS = {"cat": 2, "mat": 1, "on": 1, "sat": 1, "the": 3, "人": 2, "平等": 1}


@pytest.fixture
def store(tmp_path):
    """Return a store of some words, one of which is not in its text any more."""
    with kvps.create(tmp_path / "s", order=3, shards=2) as made:
        made.train(["zebra"], label="old")
        made.update(TEXT, label="new")
        made.forget(["zebra"], label="old")
        yield made


def check(words, counts):
    """Check all that can be done with a vocabulary."""
    assert isinstance(words, Mapping)
    assert (len(words), list(words)) == (len(counts), sorted(counts, key=str.encode))
    assert dict(words) == dict(words.items()) == counts
    assert [words[word] for word in counts] == list(counts.values())
    numbers = {word: words.id(word) for word in counts}
    assert len({*numbers.values()}) == len(numbers) and min(numbers.values()) >= 3
    assert {word: words.word(number) for word, number in numbers.items()} == {word: word for word in counts}
    assert [words.id(word) for word in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert [words.word(number) for number in range(3)] == ["<unk>", "<s>", "</s>"]
    for absent in ("zebra", "", "the cat", "\udc80"):
        assert absent not in words and words.get(absent) is None
        with pytest.raises(KeyError):
            words.id(absent)
        with pytest.raises(KeyError):
            words[absent]
    for absent in (None, 3, b"the", "<s>", "<unk>"):
        assert absent not in words
    for number in (-1, 10**6, *({*range(3, 12)} - {*numbers.values()})):
        with pytest.raises(KeyError):
            words.word(number)


@pytest.mark.parametrize("smoothing", ["modified-kneser-ney", "witten-bell"])
def test_store_and_model(store, smoothing):
    """A store and its models have the words that are in the text, with raw counts whatever the smoothing, and one number each."""
    check(store.vocabulary, COUNTS)
    with store.model(smoothing) as model:
        check(model.vocabulary, COUNTS)
        assert model.vocabulary is model.vocabulary
        assert [model.vocabulary.id(word) for word in COUNTS] == [store.vocabulary.id(word) for word in COUNTS]


def test_labels(store):
    """A model of some labels has the words of their text alone."""
    store.update(["new zebra"], label="more")
    with store.model(labels=["more"]) as model:
        assert dict(model.vocabulary) == {"new": 1, "zebra": 1}
        assert model.vocabulary.id("zebra") == store.vocabulary.id("zebra")


def test_numbers_stay(store):
    """The number of a word is the same in all versions, also when it went and came again."""
    with store.model() as model:
        before, words = model.vocabulary.id("the"), model.vocabulary
        store.update(["a zebra"])
        assert model.vocabulary is words and "zebra" not in words
        model.refresh()
        assert model.vocabulary["zebra"] == 1
        zebra = model.vocabulary.id("zebra")
        store.forget(["a zebra"])
        store.update(["zebra a"])
        assert (store.vocabulary.id("the"), store.vocabulary.id("zebra")) == (before, zebra)


def test_store_moved_on(store):
    """Words that were never looked at are those of the version that answers, or there is an error that says what to do."""
    with store.model() as model:
        store.update(["a zebra"])
        with pytest.raises(kvps.StoreError, match="version 3 answers, and the store has version 4; refresh"):
            model.vocabulary  # noqa: B018 - looking at it is what fails
        model.refresh()
        assert model.vocabulary["zebra"] == 1


def test_imported(store, tmp_path):
    """An imported model has words and numbers, but no counts."""
    run("export", store.path, tmp_path / "m.arpa")
    run("import", tmp_path / "m.kvm", tmp_path / "m.arpa")
    with kvps.load(tmp_path / "m.kvm") as model:
        words = model.vocabulary

        assert (len(words), list(words)) == (len(COUNTS), sorted(COUNTS, key=str.encode))
        assert [words.word(words.id(word)) for word in COUNTS] == list(COUNTS)
        assert "cat" in words and "zebra" not in words and "<s>" not in words
        with pytest.raises(KeyError):
            words["zebra"]
        with pytest.raises(kvps.StoreError, match="was imported, and its words have no counts"):
            words["cat"]


def test_served(store, tmp_path):
    """Behind an address it is the same, numbers too; a version that came meanwhile is fetched."""
    pytest.importorskip("zmq", reason="needs pyzmq")
    here = {word: store.vocabulary.id(word) for word in COUNTS}
    with Served(store.path, "--bind", f"ipc://{tmp_path}/sock") as servers, kvps.connect(servers.address) as remote:
        words = remote.vocabulary
        check(words, COUNTS)
        assert {word: words.id(word) for word in COUNTS} == here and words.version == 3
        assert remote.vocabulary is words
        with remote.model() as model:
            check(model.vocabulary, COUNTS)
            remote.update(["a zebra"])
            assert "zebra" in remote.vocabulary and "zebra" not in model.vocabulary
        with remote.model(labels=["new"]) as model, pytest.raises(kvps.StoreError, match="open its folder"):
            model.vocabulary  # noqa: B018 - looking at it is what fails

"""Repeating, adding twice and taking away again, through the command line."""
import shutil

import pytest
from processes import contents, counted, refused, run, run_json, summary, tree, zipf_text

ORDER = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the texts a and b and a store trained on a."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("a", 1), ("b", 2)):
        (folder / name).write_bytes(zipf_text(seed, 300, n_words=200))
    run("train", folder / "store", folder / "a", "--order", ORDER)
    return folder


@pytest.fixture
def store(made, tmp_path):
    """A copy of that store."""
    return shutil.copytree(made / "store", tmp_path / "store")


def test_repeated_train_changes_nothing(made, store):
    """The same train again says in which version the text was counted, exits 0 and changes no byte."""
    before = tree(store)

    assert "already counted in version 1" in run("train", store, made / "a", "--order", ORDER).stdout
    assert "already counted in version 1" in run("update", store, made / "a").stdout
    assert tree(store) == before


def test_again_counts_twice(made, store):
    """--again counts the same text once more, and forget takes it away once at a time."""
    a = (made / "a").read_bytes()
    run("update", store, made / "a", "--again")
    assert contents(store) == counted(a + a, ORDER)

    run("forget", store, made / "a")
    assert contents(store) == counted(a, ORDER)
    assert "already counted" in run("update", store, made / "a").stdout


def test_forgotten_text_can_be_counted_again(made, store):
    """Text that was forgotten is not counted any more, so it can be added without --again."""
    before = contents(store)
    run("update", store, made / "b")
    run("forget", store, made / "b")
    assert contents(store) == before

    run("update", store, made / "b")

    assert contents(store) == counted((made / "a").read_bytes() + (made / "b").read_bytes(), ORDER)
    assert summary(store)[0] == 4


def test_everything_forgotten(made, store):
    """A store whose whole text was forgotten is empty, answers so, and takes new text."""
    run("forget", store, made / "a")
    stats = run_json("stats", store)
    assert (stats["tokens"], stats["sentences"], stats["vocabulary"]) == (0, 0, 0)
    assert contents(store) == {}

    run("update", store, made / "b")

    assert contents(store) == counted((made / "b").read_bytes(), ORDER)


def test_same_file_named_twice_in_one_command(made, store):
    """A file that one command names twice is counted once; with --again, twice."""
    a, b = ((made / name).read_bytes() for name in "ab")
    run("update", store, made / "b", made / "b")
    assert contents(store) == counted(a + b, ORDER)

    run("update", store, made / "b", made / "b", "--again")

    assert contents(store) == counted(a + b + b + b, ORDER)


def test_refused_forget_names_the_least_ngram(made, store, tmp_path):
    """Forgetting what was never added names the first n-gram in byte order that is missing, and changes no count."""
    before = contents(store)
    foreign = tmp_path / "foreign"
    foreign.write_bytes((made / "a").read_bytes()[:3000].rpartition(b"\n")[0] + b"\nzebra w0 w1\nw0 w1 aardvark w2\n")

    message = refused("forget", store, foreign)

    assert '"<s> w0 w1"' in message or '"<s> zebra"' in message or "aardvark" in message
    missing = {gram: count for gram, count in counted(foreign.read_bytes(), ORDER).items() if count > before[gram]}
    assert f'"{min(" ".join(gram).encode() for gram in missing).decode()}"' in message
    assert contents(store) == before
    assert summary(store)[0] == 1
    assert not summary(store)[3]
    run("forget", store, made / "a")


def test_forget_of_part_of_a_file(made, store, tmp_path):
    """Any sentences that are there may be forgotten, wherever they came from."""
    a = (made / "a").read_bytes()
    head = a[:a.index(b"\n", len(a) // 2) + 1]
    (tmp_path / "head").write_bytes(head)

    run("forget", store, tmp_path / "head")

    assert contents(store) == counted(a[len(head):], ORDER)


@pytest.mark.parametrize("options", [
    ("--order", 4), ("--order", ORDER, "--shards", 2), ("--order", ORDER, "--lowercase")])
def test_train_with_other_options_is_refused(made, store, options):
    """Train on a store that was made with other options is refused and names update."""
    before = tree(store)

    assert "kvps update" in refused("train", store, made / "a", *options)
    assert tree(store) == before


def test_train_with_other_text_is_refused(made, store):
    """Train with other text on a trained store is refused and names update."""
    before = tree(store)

    assert "kvps update" in refused("train", store, made / "b", "--order", ORDER)
    assert tree(store) == before

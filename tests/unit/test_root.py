"""The root: versions, the pending job, history, counted inputs, vocabulary."""
import pytest

from kvps.errors import CorruptionError, StoreError, VersionMismatch
from kvps.store import format as fmt
from kvps.store.root import Root

IDENTITY = {"uuid": "u" * 32, "order": 3, "shards": 2, "tokenizer": {"name": "whitespace"}, "created": 0.0}


@pytest.fixture
def root(tmp_path):
    """A new root, writable."""
    made = Root.create(tmp_path / "root", IDENTITY, ["shards/0000.0", "shards/0001.0"])
    yield made
    made.close()


def commit(root, version, inputs, **changes):
    """Begin and commit a job of 10 tokens and 2 sentences."""
    root.begin_job({"id": f"job {version}"})
    root.commit_job(version, changes.get("d_tokens", 10), changes.get("d_sentences", 2), {"command": "x"}, inputs)


def test_new_root(root):
    """A new root is at version 0, with nothing counted and no job."""
    state = root.state()

    assert (state["version"], state["tokens"], state["sentences"], state["words"]) == (0, 0, 0, 3)
    assert [place["dir"] for place in state["shards"]] == ["shards/0000.0", "shards/0001.0"]
    assert root.job() is None
    assert root.history() == []
    assert root.inputs() == {}
    assert list(root.words()) == []
    assert root.next_word() == 3
    assert root.identity["tokenizer"] == {"name": "whitespace"}


def test_commit_job(root):
    """Committing sets version, totals, history and inputs together, and ends the job."""
    root.begin_job({"id": "a", "done": 1})
    assert root.job() == {"id": "a", "done": 1}
    root.add_words(3, fmt.pack_words([b"x", b"y"]))
    assert root.state()["words"] == 3          # not part of a committed version yet
    root.commit_job(1, 100, 10, {"command": "train"}, {"digest": 1}, generations=[4, 5])
    state = root.state()

    assert (state["version"], state["tokens"], state["sentences"], state["words"]) == (1, 100, 10, 5)
    assert [place["generation"] for place in state["shards"]] == [4, 5]
    assert root.job() is None
    assert root.history() == [{"command": "train", "version": 1}]
    assert root.counted("digest") == 1


def test_root_survives_reopening(root):
    """Everything is there after closing and opening."""
    root.add_words(3, fmt.pack_words([b"x"]))
    commit(root, 1, {"d": 1})
    root.begin_job({"id": "pending"})
    root.close()
    again = Root.open(root.path)

    assert again.identity == root.identity
    assert again.state()["version"] == 1
    assert again.job() == {"id": "pending"}
    assert list(again.words()) == [(3, fmt.pack_words([b"x"]))]
    with pytest.raises(StoreError, match="for reading"):
        again.clear_job()
    again.close()


def test_begin_job_while_one_is_pending(root):
    """A second job is refused with the two ways out."""
    root.begin_job({"id": "a"})

    with pytest.raises(StoreError, match="kvps resume or kvps abort"):
        root.begin_job({"id": "b"})
    assert root.job() == {"id": "a"}


def test_job_that_is_not_pending(root):
    """Without a pending job nothing can be committed; clearing is harmless."""
    root.clear_job()
    with pytest.raises(StoreError, match="cannot follow"):
        root.commit_job(1, 0, 0, {}, {})
    assert root.state()["version"] == 0


@pytest.mark.parametrize("version", [0, 2])
def test_commit_of_another_version_than_the_next(root, version):
    """Versions follow each other by one."""
    root.begin_job({})

    with pytest.raises(StoreError, match=f"version {version} cannot follow version 0"):
        root.commit_job(version, 0, 0, {}, {})
    assert root.job() == {}


def test_commit_with_wrong_number_of_generations(root):
    """A generation for each shard or none: a commit with another number changes nothing."""
    root.begin_job({})

    with pytest.raises(ValueError, match="shorter"):
        root.commit_job(1, 5, 5, {}, {}, generations=[1])
    assert root.state()["version"] == 0


def test_clear_job(root):
    """A job that was rolled back leaves no record."""
    root.begin_job({"id": "a"})
    root.clear_job()

    assert root.job() is None


def test_inputs_are_counted_net(root):
    """An input counted twice and forgotten once is still counted; forgotten again it is not."""
    commit(root, 1, {"a": 1, "b": 1})
    commit(root, 2, {"a": 1})
    assert root.inputs() == {"a": {"times": {"": 2}, "version": 2}, "b": {"times": {"": 1}, "version": 1}}
    commit(root, 3, {"a": -1})
    assert root.counted("a") == 2              # when it was last counted, not when it was last touched
    commit(root, 4, {"a": -1, "b": -5, "never": -1})
    assert root.inputs() == {}
    assert root.counted("a") is None
    assert root.counted("never") is None
    commit(root, 5, {"a": 1})
    assert root.counted("a") == 5


def test_totals_fall_again(root):
    """A job that takes text away lowers the totals."""
    commit(root, 1, {})
    commit(root, 2, {}, d_tokens=-4, d_sentences=-1)

    assert (root.state()["tokens"], root.state()["sentences"]) == (6, 1)


def test_history_is_in_order(root):
    """History lists versions oldest first, beyond 255 too."""
    for version in range(1, 259):
        commit(root, version, {})

    assert [row["version"] for row in root.history()] == list(range(1, 259))


def test_words_follow_without_a_gap(root):
    """Segments follow each other; one that leaves a gap, or overlaps, is refused."""
    root.add_words(3, fmt.pack_words([b"a", b"b"]))
    for wrong in (3, 4, 6):
        with pytest.raises(ValueError, match="expected 5"):
            root.add_words(wrong, fmt.pack_words([b"c"]))
    root.add_words(5, fmt.pack_words([b"c"]))

    assert root.next_word() == 6
    assert [(first, fmt.unpack_words(blob)) for first, blob in root.words()] == [(3, [b"a", b"b"]), (5, [b"c"])]


def test_words_that_are_no_segment(root):
    """A blob that is no segment is refused before it is stored."""
    with pytest.raises(ValueError, match="segment"):
        root.add_words(3, b"")
    assert root.next_word() == 3


def test_move_shard(root):
    """Moving a shard changes its place and nothing else."""
    root.move_shard(1, "shards/0001.1", 9)

    assert root.state()["shards"] == [{"dir": "shards/0000.0", "generation": 0},
                                      {"dir": "shards/0001.1", "generation": 9}]
    assert root.state()["version"] == 0


def test_damaged_segment(root):
    """A damaged vocabulary is noticed when it is read."""
    root.add_words(3, fmt.pack_words([b"W" * 9000]))
    root.close()
    data = bytearray(root._env.data.read_bytes())
    data[data.index(b"W" * 9000) + 7] ^= 1
    root._env.data.write_bytes(data)
    again = Root.open(root.path)

    with pytest.raises(CorruptionError, match="words from id 3: checksum"):
        list(again.words())
    again.close()


def test_state_of_another_transaction(root):
    """A state that another transaction than the last one wrote is refused."""
    with root._env.write() as txn:
        txn.put(fmt.INPUT + b"x", b"")

    with pytest.raises(CorruptionError, match="state: transaction id 1, expected 2"):
        root.state()


def test_newer_format(root):
    """A store of a newer format is refused with what it has and what we read."""
    with root._write() as (txn, _):
        txn.put(fmt.IDENTITY, fmt.pack_row(fmt.IDENTITY, {**root.identity, "format": 3}))

    with pytest.raises(VersionMismatch, match="has format 3, this kvps reads 2") as caught:
        Root.open(root.path)
    assert (caught.value.found, caught.value.expected) == (3, 2)

"""What `kvps status` knows: state, progress and remaining time."""
import pytest

from kvps.errors import StoreError
from kvps.jobs import counting
from kvps.jobs.status import _everywhere, _remaining_s, status
from kvps.jobs.train import Options, resume, train
from kvps.store import lock


def row(start, end, time):
    """Return a ledger row."""
    return {"input": 0, "start": start, "end": end, "time": time}


def test_remaining_time_is_that_of_the_pace_so_far():
    """A third done in 10 s leaves 20 s."""
    assert _remaining_s([row(0, 100, 105), row(100, 200, 110)], 400, started=100, now=110) == 20


def test_remaining_time_before_anything_is_done():
    """Nobody knows the remaining time before a split is done; splits of an earlier process tell nothing."""
    assert _remaining_s([], 400, started=100, now=110) is None
    assert _remaining_s([row(0, 100, 99)], 400, started=100, now=110) is None


def test_remaining_time_grows_while_nothing_happens():
    """A job that hangs has more and more time to go."""
    rows = [row(0, 100, 101)]

    assert _remaining_s(rows, 100, started=100, now=200) > _remaining_s(rows, 100, started=100, now=102)


def test_a_split_is_done_when_every_shard_has_it():
    """What some shard lacks does not count as done; the time of the last shard counts."""
    ledgers = [{0: row(0, 5, 1.0), 1: row(5, 9, 2.0)}, {0: row(0, 5, 3.0)}]

    assert _everywhere(ledgers) == [row(0, 5, 3.0)]


def test_status_of_a_job(tmp_path, monkeypatch):
    """A job that stopped half-way is interrupted, with what it has done; while somebody has the lock it is running."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n" * 1000)
    monkeypatch.setattr(counting, "MIN_SPLIT_BYTES", 4096)
    applied = []
    original = counting.tidy

    def stop(*args, **kwargs):
        applied.append(args)
        if len(applied) > 8:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(counting, "tidy", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "s", [text], order=2, shards=2, options=Options(memory="4K", threads=1))
    stopped = status(tmp_path / "s")
    owner = lock.OwnerLock(tmp_path / "s", command="resume")
    running = status(tmp_path / "s")
    owner.close()
    resume(tmp_path / "s")
    idle = status(tmp_path / "s")

    assert (stopped["state"], stopped["command"], stopped["version"]) == ("interrupted", "train", 0)
    assert 0 < stopped["done_bytes"] < stopped["total_bytes"] == 23000
    assert (stopped["pid"], stopped["remaining_s"]) == (None, None)
    assert (running["state"], running["command"], running["done_bytes"]) == ("running", "train", stopped["done_bytes"])
    assert running["pid"] and running["remaining_s"] is None and running["elapsed_s"] >= 0
    assert (idle["state"], idle["version"], idle["done_bytes"]) == ("idle", 1, None)


def test_status_of_what_is_no_store(tmp_path):
    """A folder that is no store is refused."""
    with pytest.raises(StoreError, match="not a kvps store"):
        status(tmp_path)

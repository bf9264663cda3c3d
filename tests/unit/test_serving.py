"""What a server keeps for its clients: scans for a while, and the names of those that have none."""
import contextlib
import threading
import time

import numpy as np
import pytest

import kvps
from kvps.errors import StoreError
from kvps.ps import local, remote, serving, streams
from kvps.ps.server import Server
from kvps.ps.serving import TableService
from kvps.ps.streams import Streams
from kvps.store.shard import Shard

KEYS = np.arange(100_000, dtype=np.uint64)


class Served:
    """The tables of a new store, served by threads of this process."""

    def __init__(self, folder):
        """Begin to serve."""
        kvps.create(folder / "s").close()
        self.store, self.address = folder / "s", f"kvps://{folder}/socket"
        self.service = TableService(self.store)
        self.server = Server(f"ipc://{folder}/socket", self.service.functions(), idle=self.service.scans.drop_idle)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def scans(self, n, within_s=10.0):
        """Return whether there are so many scans before long."""
        until = time.monotonic() + within_s
        while len(self.service.scans) != n and time.monotonic() < until:
            time.sleep(0.02)
        return len(self.service.scans) == n

    def end(self):
        """End the server and close its tables."""
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.service.close()


@pytest.fixture
def served(tmp_path):
    """A server in this process; what it leaves has no damage."""
    running = Served(tmp_path)
    yield running
    running.end()
    assert [found for found in kvps.check(running.store, "full") if found.severity == "damage"] == []


@pytest.fixture
def clicks(served):
    """A table of it, of two shards."""
    with kvps.connect(served.address) as connection:
        yield connection.table("clicks", kind="count", key_bytes=8, shards=2)


def clients(served):
    """Return the names of a table's clients."""
    with served.service._open["clicks"]._shards._directory.snapshot() as snapshot:
        return {name for shard in snapshot.shards for name in shard.clients()}


def contents(table):
    """Return what a scan gives, {key: count}."""
    return {key: count for keys, counts in table.scan() for key, count in zip(keys.tolist(), counts.tolist(), strict=True)}


def test_scans_that_nobody_goes_on_with(served, clicks, monkeypatch):
    """A scan is ended a while after its last message though nothing else is asked; who comes back is told to begin again."""
    clicks.push(np.arange(400_000, dtype=np.uint64))
    scan = clicks.scan()
    next(scan)
    assert served.scans(1)
    monkeypatch.setattr(streams, "IDLE_S", 0.1)
    assert served.scans(0)
    with pytest.raises(StoreError, match="begin it again"):
        list(scan)


def test_scans_that_are_read(served, clicks, monkeypatch):
    """A scan lasts as long as somebody goes on with it, and is gone soon after its end."""
    monkeypatch.setattr(streams, "IDLE_S", 1.0)
    monkeypatch.setattr(serving, "BLOCKS", 1)
    clicks.push(KEYS)
    scan, n = clicks.scan(), 0
    began = time.monotonic()
    for keys, _ in scan:
        n += len(keys)
        time.sleep(0.3 if time.monotonic() - began < 2 else 0)
    assert n == len(KEYS)
    assert served.scans(0)


def test_a_scan_that_is_at_work_is_not_idle(served, clicks, monkeypatch):
    """A piece that takes longer than a scan may be idle is answered."""
    clicks.push(KEYS)
    original = serving._pieces

    def slow(blocks):
        for answer in original(blocks):
            time.sleep(1.5)
            yield answer

    monkeypatch.setattr(serving, "_pieces", slow)
    monkeypatch.setattr(streams, "IDLE_S", 0.6)
    assert sum(len(keys) for keys, _ in clicks.scan()) == len(KEYS)


def test_clients_without_a_name_are_forgotten(served, clicks, monkeypatch):
    """The rows of connections go when their time is over, those of clients with a name stay; counts are as they were."""
    clicks.push(KEYS[:9], client="me", sequence=1)
    for _ in range(3):
        with kvps.connect(served.address) as other:
            other.table("clicks").push(KEYS[:9])
    assert len(clients(served)) == 4
    monkeypatch.setattr(local, "SWEEP_S", 0)
    clicks.push(KEYS[:9])
    assert len(clients(served)) == 5
    monkeypatch.setattr(local, "UNNAMED_KEPT_S", -9)
    clicks.push(KEYS[:9])
    monkeypatch.undo()
    assert len(clients(served)) == 5
    with kvps.connect(served.address) as other:
        monkeypatch.setattr(local, "SWEEP_S", 0)
        other.table("clicks").push(KEYS[:9])
        name = other.table("clicks").client("me")
    assert len(clients(served)) == 5 and name == {"sequence": 1, "note": None}
    assert set(contents(clicks).values()) == {7}
    assert clicks.push(KEYS[:9], client="me", sequence=1) is False


def test_rows_are_swept_when_a_table_is_opened(tmp_path, monkeypatch):
    """What a server left goes with the first push of the next writer."""
    served = Served(tmp_path)
    monkeypatch.setattr(local, "UNNAMED_KEPT_S", -9)
    with kvps.connect(served.address) as connection:
        table = connection.table("clicks", kind="count", key_bytes=8)
        table.push(KEYS[:9])
        table.push(KEYS[:9], client="me", sequence=1)
    served.end()
    monkeypatch.undo()
    with kvps.open(served.store, writable=True) as store, store.table("clicks") as table:
        assert table.stats()["clients"] == 2
        table.push(KEYS[:9])
        assert table.stats()["clients"] == 1
        assert set(contents(table).values()) == {3}


def test_an_idle_connection_takes_another_name(served, clicks, monkeypatch):
    """A connection does not come back under a name whose row may be gone."""
    monkeypatch.setattr(remote, "RENAMED_S", 0.2)
    for pause in (0, 0, 0.3, 0):
        time.sleep(pause)
        clicks.push(KEYS[:9])
    assert len(clients(served)) == 2
    assert set(contents(clicks).values()) == {4}


@pytest.mark.parametrize("error", [StoreError, KeyboardInterrupt])
def test_a_push_that_failed_half_way_takes_nothing_from_the_next(clicks, monkeypatch, error):
    """After a push that reached one shard and failed, another one counts in every shard."""
    clicks.push(KEYS[:50])
    original, reached = Shard.push, []

    def failing(self, *args, **more):
        if reached and error is StoreError:
            raise StoreError("the cable is out")
        reached.append(self.shard)
        return original(self, *args, **more)

    monkeypatch.setattr(Shard, "push", failing)
    if error is KeyboardInterrupt:
        call = remote.RemoteShards._push

        def interrupted(self, *args):
            call(self, *args)
            raise KeyboardInterrupt

        monkeypatch.setattr(remote.RemoteShards, "_push", interrupted)
    with pytest.raises(error):
        clicks.push(KEYS[50:100])
    monkeypatch.undo()
    before = contents(clicks)
    clicks.push(KEYS[100:200])
    assert contents(clicks) == before | dict.fromkeys(range(100, 200), 1)


def test_a_table_is_dropped_with_scans_of_it(served, clicks):
    """A table that is dropped while somebody reads it is gone; what is asked of it then is an error in one line."""
    clicks.push(np.arange(400_000, dtype=np.uint64))
    scan = clicks.scan()
    next(scan)
    with kvps.connect(served.address) as other:
        uuid = other._remote._connection.call("uuid", {"table": "clicks"}).call["uuid"]
        other.drop_table("clicks")
        assert other.tables() == {}
        with contextlib.suppress(kvps.KvpsError):
            list(scan)
        with pytest.raises(StoreError, match="has no table clicks"):
            clicks.pull(KEYS[:3])
        again = other.table("clicks", kind="count", key_bytes=8)
        again.push(KEYS[:3])
        other._remote._connection.call("drop", {"table": "clicks", "uuid": uuid})      # the request of before, which came late
        assert contents(again) == {0: 1, 1: 1, 2: 1}


def test_streams_that_fail_or_are_many(monkeypatch):
    """An error in a long answer is said again to who asks again, and answers that are done make room for others."""
    streams = Streams()

    def broken():
        """Yield a piece, and fail."""
        yield {"n": 1}, {}
        raise StoreError("it broke")

    number = streams.begin(broken())
    assert streams.piece(number, 0)[0]["n"] == 1
    for _ in range(2):
        with pytest.raises(StoreError, match="it broke"):
            streams.piece(number, 1)
    monkeypatch.setattr("kvps.ps.streams.MAX_STREAMS", 4)
    for _ in range(20):
        number = streams.begin(piece for piece in ())
        assert streams.piece(number, 0)[0]["done"]
    streams.close()

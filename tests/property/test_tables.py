"""Tables beside a Counter: any pushes, in any batches, over any shards, with reopenings, merges and broken pushes between."""
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvps
from kvps.errors import StoreError
from kvps.ps import local, lookup
from kvps.ps.merging import merge
from kvps.store.shard import Shard

N_KEYS = 40                          # so few that pushes meet

pushes = st.lists(st.tuples(st.integers(0, N_KEYS - 1), st.integers(-3, 5)), max_size=30)
steps = st.lists(st.one_of(
    st.tuples(st.just("push"), pushes), st.tuples(st.just("client"), pushes, st.sampled_from("ab")),
    st.tuples(st.just("again"), st.sampled_from("ab")),
    st.tuples(st.just("break"), pushes, st.sampled_from("ab"), st.integers(0, 3)),
    st.just(("reopen",)), st.just(("merge",)), st.just(("copy",)), st.tuples(st.just("pull"), pushes)), max_size=25)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make chunks short and marks dense, so that small tables have many of both."""
    monkeypatch.setattr(local, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(lookup, "INTERVAL", 2)


class Model:
    """A table, and a Counter that must agree with it."""

    def __init__(self, folder, key_bytes, shards, keys):
        """Make a table in a new store."""
        self.path, self.key_bytes, self.shards, self.keys = folder / "s", key_bytes, shards, keys
        self.counts, self.last, self.sent = Counter(), Counter(), {}
        kvps.create(self.path).close()
        self.open()

    def open(self):
        """Open the table."""
        self.store = kvps.open(self.path, writable=True)
        self.table = self.store.table("t", kind="count", key_bytes=self.key_bytes, shards=self.shards)

    def send(self, rows, client):
        """Push rows under the next number of a client, or under none."""
        keys, deltas = [self.keys[i] for i, _ in rows], [delta for _, delta in rows]
        more = {} if client is None else {"client": client, "sequence": self.last[client] + 1}
        assert self.table.push(keys, deltas, **more) is True
        self.done(rows, client)

    def done(self, rows, client):
        """Note that rows were added."""
        for i, delta in rows:
            self.counts[self.keys[i]] += delta
        if client is not None:
            self.last[client] += 1
            self.sent[client] = rows

    def broken(self, rows, client, after, monkeypatch):
        """Push rows, with an error in the middle of the shards; then push them again."""
        original, calls = Shard.push, []

        def push(shard, *args, **more):
            calls.append(shard)
            if len(calls) > after:
                raise StoreError("broken off")
            return original(shard, *args, **more)

        with monkeypatch.context() as patched, pytest.raises(StoreError, match="broken off"):
            patched.setattr(Shard, "push", push)
            if after >= self.shards:
                raise StoreError("broken off")
            self.send(rows, client)
        self.step(("reopen",), monkeypatch)
        self.send(rows, client)

    def step(self, step, monkeypatch):
        """Do one thing."""
        name, *more = step
        if name == "push":
            self.send(*more, None)
        elif name == "client":
            self.send(*more)
        elif name == "break":
            self.broken(*more, monkeypatch)
        elif name == "again":
            client, = more
            if client in self.sent:
                rows = self.sent[client]
                assert self.table.push([self.keys[i] for i, _ in rows], [delta for _, delta in rows], client=client,
                                       sequence=self.last[client]) is False
        elif name == "reopen":
            self.store.close()
            self.open()
        elif name == "merge":
            for shard in self.table._shards._directory.shards:
                if len(shard.runs()) > 1:
                    merge(shard, shard.runs(), self.table._shards._order, local.N_WORDS)
        elif name == "copy":                   # as it would be found after a power cut in this instant
            copy = self.path.with_name("copy")
            shutil.copytree(self.path, copy)
            with kvps.open(copy) as store, store.table("t") as table:
                self.compare(table)
            shutil.rmtree(copy)
        elif name == "pull":
            asked = [self.keys[i] for i, _ in more[0]]
            assert self.table.pull(asked).tolist() == [self.counts[key] for key in asked]

    def compare(self, table):
        """Assert that a table holds what the Counter does."""
        found = [(bytes(key) if keys.ndim > 1 else int(key).to_bytes(self.key_bytes), count)
                 for keys, counts in table.scan() for key, count in zip(keys, counts.tolist(), strict=True)]
        assert found == sorted((key, count) for key, count in self.counts.items() if count)
        assert len(table) == len(found)
        assert table.pull(self.keys).tolist() == [self.counts[key] for key in self.keys]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key_bytes=st.integers(1, 32), shards=st.integers(1, 4), steps=steps, data=st.data())
def test_any_history_equals_a_counter(key_bytes, shards, steps, data, monkeypatch):
    """Whatever is pushed, broken off, sent again, merged and opened anew, in any order, each push counts once."""
    key = st.binary(min_size=key_bytes, max_size=key_bytes)
    keys = data.draw(st.lists(key, min_size=N_KEYS, max_size=N_KEYS) if key_bytes > 1 else st.permutations(
        [bytes([number]) for number in range(N_KEYS)]))
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder), key_bytes, shards, keys)
        try:
            for step in steps:
                model.step(step, monkeypatch)
            model.compare(model.table)
            model.step(("reopen",), monkeypatch)
            model.compare(model.table)
        finally:
            model.store.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), key_bytes=st.sampled_from([3, 4, 8, 11, 16, 32]), shards=st.integers(1, 5),
       cuts=st.lists(st.integers(0, 3000), max_size=6), bounds=st.tuples(st.binary(max_size=3), st.binary(max_size=3)))
def test_batches_and_shards_do_not_matter(seed, key_bytes, shards, cuts, bounds):
    """The same rows give the same scan, whole or in part, whatever the batches and the number of shards."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (3000, key_bytes), np.uint8)
    raw[:, :key_bytes - 1] &= rng.choice([0, 3, 255], (3000, 1)).astype(np.uint8)
    deltas = rng.integers(-2, 3, 3000)
    scans = []
    with tempfile.TemporaryDirectory() as folder:
        kvps.create(Path(folder) / "s").close()
        with kvps.open(Path(folder) / "s", writable=True) as store:
            for name, n_shards, ends in (("one", 1, [3000]), ("many", shards, sorted([*cuts, 3000]))):
                table, start = store.table(name, kind="count", key_bytes=key_bytes, shards=n_shards), 0
                for end in ends:
                    table.push(raw[start:end], deltas[start:end])
                    start = end
                start, stop = (bound[:key_bytes] for bound in bounds)
                scans.append([[(keys.tobytes(), counts.tobytes()) for keys, counts in found]
                              for found in (table.scan(), table.scan(prefix=start), table.scan(start=start, stop=stop))])
    assert _joined(scans[0]) == _joined(scans[1])


def _joined(scans):
    """Return what scans gave, however it was cut into blocks."""
    return [tuple(b"".join(column) for column in zip(*blocks, strict=True)) for blocks in scans]

"""A shard in the folder of another machine than its root's: the ends that ask its server; home_service.py answers.

AwayShard     reads it: stands for a Shard in the directory of the store's root
NewShard      makes it: stands for a Shard that is empty, is filled, and then takes the place of what was there
"""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from kvps.errors import CorruptionError, KvpsError, Unreachable
from kvps.ps import calls
from kvps.ps.connection import Connection
from kvps.store import format as fmt
from kvps.store.runs import Run
from kvps.store.shard import Listed

AHEAD = 4                      # chunks in one message where they are read one after another; the next message is on its way
AHEAD_ALL = 32                 # of all runs of a shard together, which may be merged
PATIENCE_S = 10.0              # how long a server is asked again that gives no answer; others wait meanwhile
GONE_S = 5.0                   # and for so long it is not asked again
STAGE_BYTES = 8 << 20          # of chunks in one message

T = TypeVar("T")
Chunk = tuple[bytes | memoryview, int]         # payload, number of keys


def chunk_arrays(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Return the arrays of a message that has some chunks; chunks_of() returns them."""
    return {"chunks": [payload for payload, _ in chunks],
            "lengths": np.array([len(payload) for payload, _ in chunks], np.uint32),
            "keys": np.array([n_keys for _, n_keys in chunks], np.uint32)}


def chunks_of(arrays: Mapping[str, np.ndarray]) -> list[Chunk]:
    """Return the chunks of a message, which came as one array with the length and keys of each.

    Raises:
        KeyError, TypeError, ValueError: it has none.
    """
    data, lengths, keys = (arrays[name] for name in ("chunks", "lengths", "keys"))
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    if data.dtype != np.uint8 or (ends[-1] if ends else 0) != len(data) or len(keys) != len(lengths):
        raise ValueError("lengths do not add up")
    blob = memoryview(data)                    # of the message, which lives as long as they do
    return [(blob[a:b], n) for a, b, n in zip([0, *ends], ends, keys.tolist(), strict=False)]


def grouped(chunks: Iterable[T], n_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield chunks, as many at once as a message takes; at least one group."""
    group: list[T] = []
    size = 0
    for chunk in chunks:
        if group and size + n_bytes(chunk) > STAGE_BYTES:
            yield group
            group, size = [], 0
        group.append(chunk)
        size += n_bytes(chunk)
    yield group


class AwayShard:
    """Reads a shard on another machine."""

    def __init__(self, connection: Connection, number: int, name: str) -> None:
        """Take a connection of ours alone to its server, and the name of the directory that the root says it is in."""
        self._connection, self.shard, self._name = connection, number, name
        self.path = f"{connection.address}/{name}"
        self._kept: set[int] = set()           # snapshots that its server keeps for us
        self._turn = threading.Lock()
        self._gone = 0.0                       # until when it is not asked [s], monotonic

    def snapshot(self) -> AwaySnapshot:
        """As Shard.snapshot(); Unreachable at once where its server gave no answer a moment ago."""
        if time.monotonic() < self._gone:
            raise Unreachable(f"{self._connection.address}: the server of shard {self.shard} gave no answer; try again when it is "
                              "up", path=self._connection.address)
        try:
            return AwaySnapshot(self._connection, self._name, self._keep)
        except Unreachable:
            self._gone = time.monotonic() + GONE_S
            raise

    def _keep(self, number: int, kept: bool) -> None:
        with self._turn:
            (self._kept.add if kept else self._kept.discard)(number)

    def renew(self) -> None:
        """Let its server keep our snapshots for longer; called now and then, beside who reads them."""
        with self._turn:
            kept = sorted(self._kept)
        if kept and time.monotonic() >= self._gone:
            with contextlib.suppress(KvpsError):       # who reads them will be told
                self._connection.call("snapshot-keep", {"snapshots": kept})

    def splits(self, job: str) -> dict[int, dict]:
        """As Shard.splits()."""
        return dict(calls.heard(self._connection, self._connection.call("splits", {"job": job})))

    def bytes(self) -> dict[str, int]:
        """As Shard.bytes()."""
        found = self._connection.call("facts").call
        return {"file": found["file"], "live": found["live"]}

    @property
    def generation(self) -> int:
        """As Shard.generation."""
        return self._connection.call("facts").call["generation"]

    def close(self) -> None:
        """Close the connection; snapshots that are open can be read no more."""
        self._connection.close()


class AwaySnapshot(Listed):
    """One shard at one commit, which its server keeps for us; as Snapshot."""

    elsewhere = True

    def __init__(self, connection: Connection, name: str, keep: Callable[[int, bool], None]) -> None:
        """Begin it; `keep` is told its number, and whether it is still to be kept."""
        self._connection, self._keep = connection, keep
        reply = connection.call("snapshot", {"dir": name})
        self._number = reply.call["snapshot"]
        self._manifest = calls.heard(connection, reply)
        self._ahead = max(1, min(AHEAD, AHEAD_ALL // max(1, len(self._manifest["runs"]))))
        keep(self._number, True)
        self._read: dict[int, tuple[int, list[Chunk]]] = {}        # by run: chunks that are here, and the number of the first
        self._coming: dict[int, tuple[int, int]] = {}              # by run: the first chunk that was asked for, the request

    def chunk(self, run: Run, index: int) -> tuple[memoryview, int]:
        """As Snapshot.chunk(): verified where it lies, and again as a part of its message."""
        first, chunks = self._read.get(run.id, (0, []))
        if not first <= index < first + len(chunks):
            following = bool(chunks) and index == first + len(chunks)
            coming = self._coming.pop(run.id, (-1, 0))
            if coming[0] >= 0 and coming[0] != index:
                self._connection.wait(coming[1])
            request = coming[1] if coming[0] == index else self._ask(run, index, self._ahead if following or index == 0 else 1)
            first, chunks = index, chunks_of(self._connection.wait(request).arrays)
            self._read[run.id] = first, chunks
            if (following or index == 0) and index + len(chunks) < run.n_chunks:
                self._coming[run.id] = index + len(chunks), self._ask(run, index + len(chunks), self._ahead)
        payload, n_keys = chunks[index - first]
        return memoryview(payload), n_keys

    def _ask(self, run: Run, first: int, n: int) -> int:
        return self._connection.begin("chunks", {"snapshot": self._number, "run": run.id, "first": first,
                                                 "n": min(n, run.n_chunks - first), "of": run.n_chunks})

    def chunks(self, run: Run) -> Iterator[tuple[memoryview, int]]:
        """As Snapshot.chunks()."""
        return (self.chunk(run, index) for index in range(run.n_chunks))

    def run(self, function: Callable[..., T], **arguments: Any) -> T:
        """Return function(snapshot, **arguments), called by its server."""
        return calls.run(self._connection, function, arguments, call="look", snapshot=self._number)

    def close(self, *, strict: bool = True) -> None:
        """End it, also where its server is gone."""
        self._keep(self._number, False)
        for _, request in self._coming.values():
            with contextlib.suppress(KvpsError):
                self._connection.wait(request)
        self._coming.clear()
        self._read.clear()
        with contextlib.suppress(KvpsError):
            self._connection.call("snapshot-end", {"snapshot": self._number})

    def __enter__(self) -> AwaySnapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NewShard:
    """A shard that is being made on another machine, out of sight until finish(); what is sent twice is there once.

    Its server forgets it if it is started again: then all of it is to be made again.
    """

    def __init__(self, connection: Connection, identity: Mapping[str, Any], name: str, *, above: int, epoch: int) -> None:
        """Begin it, empty.

        Args:
            connection: to its server; closed in the end.
            identity: uuid, shard, shards and order.
            name: of the directory that it is to be in.
            above: as Shard.create's.
            epoch: of the writer that makes it.
        """
        self._connection, self.identity, self.name = connection, dict(identity), name
        self.shard: int = identity["shard"]
        self._numbers = itertools.count(1)     # of the runs that are added, by several threads
        self._attempt = os.urandom(16).hex()
        self._call("new", {"identity": self.identity, "dir": name, "above": above, "writer": epoch})

    def _call(self, name: str, arguments: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._connection.call(name, {"attempt": self._attempt, **arguments}, arrays).call

    def fill(self, runs: Sequence[Run], chunks: Iterator[tuple[bytes, bytes]], ledger: dict | None = None) -> None:
        """As Shard.fill()."""
        assert ledger is None, "tables have no shards on other machines"
        for group in grouped(chunks, lambda chunk: len(chunk[1])):
            places = np.array([fmt.RUN_CHUNK.unpack(key[1:]) for key, _ in group], np.uint64).reshape(-1, 2)
            found = [fmt.unpack_chunk(key, value, self._connection.address)[:2] for key, value in group]
            self._call("fill", {}, {**chunk_arrays(found), "places": places})
        packed, arrays = calls.packed({"runs": [run.to_row() for run in runs]})
        self._call("list", packed, arrays)

    def take(self, snapshot: Listed, version: int) -> None:
        """Take over what readers of a version see in a snapshot of the shard that was there."""
        runs = [dataclasses.replace(run, until=None) for run in snapshot.runs(version)]
        order = self.identity["order"]

        def chunks() -> Iterator[tuple[bytes, bytes]]:
            for run in runs:
                for index in range(run.n_chunks):
                    key = fmt.chunk_key(run.id, index)
                    payload, n_keys = snapshot.chunk(run, index)
                    value = fmt.pack_chunk(key, order, n_keys, payload)
                    payload.release()
                    yield key, value

        self.fill(runs, chunks())

    def add_run(self, chunks: Iterable[Chunk], version: int, label: str | None) -> None:
        """As Shard.add_run()."""
        for group in grouped(chunks, lambda chunk: len(chunk[0])):
            self._call("count", {"version": version, "label": label, "number": next(self._numbers)}, chunk_arrays(group))

    def splits(self, job: str) -> dict[int, dict]:
        """As Shard.splits() of one that is empty."""
        return {}

    def begin_apply(self, job: str, split: int, version: int, chunks: Sequence[Chunk], row: dict, *,
                    label: str | None = None) -> Callable[[], bool]:
        """Add the counts of a split, of whatever job."""
        self.add_run(chunks, version, label)
        return lambda: True

    def run(self, function: Callable[..., Any], *, here: Mapping[str, Any] | None = None, **arguments: Any) -> None:
        """Do nothing: finish() merges."""

    def finish(self, n_words: int, version: int) -> int:
        """Merge its runs and give it its name, durably; return its generation. The root is then to name it.

        Raises:
            CorruptionError: it has not what its runs should have.
        """
        return self._call("finish", {"words": n_words, "version": version})["generation"]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def not_here(folder: object, number: int, name: str) -> CorruptionError:
    """Return the error for a shard that is not where its root says."""
    return CorruptionError(f"{folder}: shard {number} is not here (its root says {name}); if its disk is gone, make it again: kvps "
                           "recover ADDRESS", path=str(folder), shard=number, key="shard", found="nothing", expected=name)

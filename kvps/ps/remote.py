"""The tables of a server elsewhere: RemoteShards answers for CountTable what LocalShards does, by asking; serving.py answers."""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kvps.errors import ArgumentError, StoreError
from kvps.ps.connection import Connection
from kvps.ps.keys import Part, user_keys
from kvps.ps.places import RAY, SCHEME
from kvps.ps.runs import Block
from kvps.ps.table import UNNAMED, UNNAMED_KEPT_S, CountTable

if TYPE_CHECKING:
    from kvps.ps.ray import RayConnection

PULL_KEYS = 1 << 18            # of a message: 8 MiB of the widest keys
RENAMED_S = UNNAMED_KEPT_S / 7     # long before the row of an idle connection goes, it takes another name


def endpoint(address: str) -> str:
    """Return where ZeroMQ finds the server of kvps://HOST:PORT, or kvps:///PATH of a socket; an address on Ray as it is.

    Raises:
        ArgumentError: no such address.
    """
    if address.startswith(RAY):
        return address
    rest = address.removeprefix(SCHEME).removesuffix("/")
    if address.startswith(SCHEME) and rest.startswith("/") and len(rest) > 1:
        return f"ipc://{rest}"
    host, _, port = rest.rpartition(":")
    if not address.startswith(SCHEME) or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ArgumentError(f"{address}: is no address of a server; expected kvps://HOST:PORT, or kvps:///FOLDER/SOCKET")
    return f"tcp://{rest}"


def connected(place: str, *, keys: str | Path | None = None, make: bool = False, **options: Any) -> Connection | RayConnection:
    """Return a connection to what endpoint() returned.

    keys: of ours, for a server. make: where there is no store yet, what makes one is started on Ray.
    """
    if place.startswith(RAY):
        from kvps.ps.ray import RayConnection

        return RayConnection(place, make=make, **options)
    return Connection(place, keys=keys, **options)


class RemoteTables:
    """The tables that a server serves. Made by kvps.connect(); a context manager, usable from several threads."""

    def __init__(self, address: str, *, keys: str | Path | None = None, retry_s: float = 2.0, patience_s: float = 60.0) -> None:
        """Connect; a server that is not there is noticed by the first call.

        Args:
            address: kvps://HOST:PORT, or kvps:///FOLDER/SOCKET.
            keys: our folder of keys, made by kvps keygen, for a server that has some.
            retry_s: how long a call waits for its answer before it asks again [s].
            patience_s: how long it asks again before it gives up [s].
        """
        self.address = address
        self._connection = connected(endpoint(address), keys=keys, client=os.urandom(16), retry_s=retry_s, patience_s=patience_s)

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return what CountTable.stats() says of each table, by name."""
        return self._connection.call("tables").call["tables"]

    def table(self, name: str, *, kind: str | None = None, key_bytes: int | None = None, shards: int = 1) -> CountTable:
        """Return a table, which is made if it is not there and kind and key_bytes are given; as Store.table()."""
        facts = self._connection.call("table", {"table": name, "kind": kind, "key_bytes": key_bytes, "shards": shards}).call
        return CountTable(name, RemoteShards(self._connection, name, facts["key_bytes"]))

    def create_table(self, name: str, kind: str, key_bytes: int, shards: int = 1) -> None:
        """Make an empty table; StoreError if there is one of this name."""
        self._connection.call("create", {"table": name, "kind": kind, "key_bytes": key_bytes, "shards": shards})

    def drop_table(self, name: str) -> None:
        """Delete a table and everything in it."""
        uuid = self._connection.call("uuid", {"table": name}).call["uuid"]
        self._connection.call("drop", {"table": name, "uuid": uuid})

    def close(self) -> None:
        """Close the connection; its tables are closed with it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class RemoteShards:
    """All shards of one table, behind a connection. The server deals keys to shards, so for the client they are one."""

    n_shards = 1

    def __init__(self, connection: Connection, name: str, key_bytes: int) -> None:
        """Take the place of the shards; the connection is shared and stays open."""
        self.key_bytes = key_bytes
        self._connection: Connection | None = connection
        self._name = name
        self._pushing = threading.Lock()
        self._client, self._sequence, self._answered = "", 0, 0.0      # of pushes for which the user names none

    def push(self, parts: list[Part], client: str | None, sequence: int, note: str | None) -> bool:
        """Add parts; as CountTable.push(). What is asked again because no answer came counts once, also without a client."""
        keys, counts = (parts[0].keys, parts[0].counts) if parts else (np.empty(0, np.uint64), np.empty(0, np.int64))
        arrays = {"keys": user_keys(keys, self.key_bytes), "counts": counts}
        if client is not None:
            return self._push(arrays, client, sequence, note)
        with self._pushing:
            if not self._client or time.monotonic() - self._answered > RENAMED_S:
                self._client, self._sequence = f"{UNNAMED}{os.urandom(16).hex()}", 0
            name, self._client = self._client, ""      # whether a push that fails has arrived, or in some shards, is not known
            self._push(arrays, name, self._sequence + 1, note)
            self._client, self._sequence, self._answered = name, self._sequence + 1, time.monotonic()
            return True

    def _push(self, arrays: dict[str, np.ndarray], client: str, sequence: int, note: str | None) -> bool:
        reply = self._open().call("push", {"table": self._name, "client": client, "note": note}, arrays, sequence=sequence)
        return reply.call["applied"]

    def pull(self, keys: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the counts of packed keys, int64; more than a message holds are asked for in pieces, each of one snapshot."""
        asked = user_keys(keys, self.key_bytes)
        pieces = range(0, max(1, len(asked)), PULL_KEYS)
        return np.concatenate([self._open().call("pull", {"table": self._name}, {"keys": asked[at:at + PULL_KEYS]}).arrays["counts"]
                               for at in pieces])

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Block]:
        """Yield blocks of keys and counts of one snapshot, which the server keeps for us from call to call."""
        asked = {"table": self._name, "start": start.hex(), "stop": None if stop is None else stop.hex()}
        cursor, number = self._open().call("scan", asked).call["cursor"], 0
        while True:
            reply = self._open().call("next", {"cursor": cursor, "number": number})
            if reply.call["done"]:
                return
            yield Block(reply.arrays["keys"], reply.arrays["counts"])
            number += 1

    def n_keys(self) -> int:
        """Return how many keys have a count."""
        return self._open().call("length", {"table": self._name}).call["keys"]

    def rows(self, name: str) -> list[dict]:
        """Return what the ledger of each shard has of a client."""
        return self._open().call("client", {"table": self._name, "client": name}).call["rows"]

    def facts(self) -> dict:
        """Return what CountTable.stats() says."""
        return self._open().call("stats", {"table": self._name}).call["facts"]

    def close(self) -> None:
        """Let go of the connection, which others may use."""
        self._connection = None

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._connection is None

    def _open(self) -> Connection:
        if self._connection is None:
            raise StoreError(f"table {self._name}: is closed")
        return self._connection

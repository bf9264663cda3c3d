"""CountTable: fixed-width keys -> int64 sums, in batches of arrays; where its shards are is the transport's business."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from kvps._table import arrange, combine, order_of
from kvps.errors import ArgumentError, DataError
from kvps.ps.keys import Keys, Part, count_array, expected, raw_keys, shown, user_keys, width_of
from kvps.ps.runs import Block
from kvps.units import check_name

KINDS = ("count",)
UNNAMED = "connection-"            # begins the names that RemoteShards gives to clients that have none
UNNAMED_KEPT_S = 7 * 86_400        # after their last push: nothing of theirs is on its way any more when their rows go


class Shards(Protocol):
    """What a table asks of its shards; LocalShards says what each call does."""

    key_bytes: int
    n_shards: int

    def push(self, parts: list[Part], client: str | None, sequence: int, note: str | None) -> bool: ...  # noqa: D102
    def pull(self, keys: np.ndarray, ends: np.ndarray) -> np.ndarray: ...  # noqa: D102
    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Block]: ...  # noqa: D102
    def n_keys(self) -> int: ...  # noqa: D102
    def rows(self, name: str) -> list[dict]: ...  # noqa: D102
    def facts(self) -> dict: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102

    @property
    def closed(self) -> bool: ...  # noqa: D102


class CountTable:
    """A durable table of counts. Made by Store.table(); a context manager, usable from several threads.

    Keys are arrays: uint64 (n,) where they have 8 bytes, uint32 (n,) where they have 4, else uint8 (n, key_bytes) or a
    list of bytes. Their order is that of their bytes, which for integers is that of the numbers.
    """

    def __init__(self, name: str, shards: Shards) -> None:
        """Take over open shards."""
        self.name, self._shards = name, shards
        self.kind, self.key_bytes = "count", shards.key_bytes

    def push(self, keys: Keys, deltas: np.ndarray | Sequence[int] | int = 1, *, client: str | None = None,
             sequence: int | None = None, note: str | None = None) -> bool:
        """Add deltas to the counts of keys, durably.

        Args:
            keys: see above; a key may stand there several times.
            deltas: int64 (n,), or one int for all; negative ones take away. A count that gets 0 is gone.
            client: names who pushes, so that a push that may have arrived can be sent again and counts once.
            sequence: the client's number of this push: 1, 2, 3 ...
            note: kept with the number, see client(); a repeated push must have the same one.

        Returns:
            False if this number of this client had arrived before; nothing has changed then.

        Raises:
            ArgumentError: no such keys or deltas.
            DataError: a count would leave +-2**62; nothing is changed.
            StoreError: the number is not the next one, which the message names (and its attribute `expected`), or it has
                another note than the first time.
            StoreLocked: another process is writing. StoreFull: make room; with a client, push again.
        """
        if (client is None) != (sequence is None):
            raise ArgumentError("a push that may be repeated needs a client and a sequence number, any other one neither")
        if client is not None:
            check_name("client", client)
            if not isinstance(sequence, int) or isinstance(sequence, bool) or not 1 <= sequence < 1 << 63:
                raise ArgumentError(f"{sequence} is not the number of a push: they count from 1")
        raw, native = raw_keys(keys, self.key_bytes)
        counts = count_array(deltas, len(raw) // self.key_bytes)
        return self._shards.push(list(self._parts(raw, native, counts)), client, sequence or 0, note)

    def _parts(self, raw: np.ndarray, native: bool, deltas: np.ndarray) -> Iterator[Part]:
        """Sort a batch, add it up and split it by shard."""
        order, width = order_of(self.key_bytes), width_of(self.key_bytes)
        keys, places, ends = arrange(raw, self.key_bytes, self._shards.n_shards, native=native)
        counts, most = combine(keys, places, deltas, ends, order)
        if counts is None:
            key = raw[most * self.key_bytes:(most + 1) * self.key_bytes]
            packed, _, _ = arrange(key, self.key_bytes, 1, native=native)
            raise DataError(f"the deltas of key {shown(packed, self.key_bytes)} add up to more than 2**62; nothing of this push "
                            "was added", key=shown(packed, self.key_bytes))
        start = 0
        for shard, end in enumerate(ends.tolist()):
            if end > start:
                yield Part(shard, keys[start * width:end * width], counts[start:end], most)
            start = end

    def pull(self, keys: Keys) -> np.ndarray:
        """Return the counts of keys, int64 (n,), in the order asked, 0 for those that have none; of one snapshot."""
        raw, native = raw_keys(keys, self.key_bytes)
        packed, places, ends = arrange(raw, self.key_bytes, self._shards.n_shards, native=native)
        counts = np.empty(len(places), np.int64)
        counts[places] = self._shards.pull(packed, ends)
        return counts

    def scan(self, prefix: bytes = b"", *, start: bytes | int | None = None,
             stop: bytes | int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (keys, counts) in the order of the keys, some thousands at a time, of one snapshot.

        Args:
            prefix: only keys that begin with these bytes.
            start, stop: only keys from `start` on, and below `stop`: bytes, whole or the beginning of some, or ints where
                keys are integers. Not together with `prefix`.
        """
        if prefix and (start is not None or stop is not None):
            raise ArgumentError("a scan takes a prefix, or start and stop, not both")
        if prefix:
            first, last = self._bound(prefix, "prefix"), _after(prefix)
        else:
            first = b"" if start is None else self._bound(start, "start")
            last = None if stop is None else self._bound(stop, "stop")
        return self._scan(first, last)

    def _scan(self, first: bytes, last: bytes | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with contextlib.closing(self._shards.scan(first, last)) as blocks:
            for block in blocks:
                yield user_keys(block.keys.copy(), self.key_bytes), block.counts.copy()

    def blocks(self, first: bytes, last: bytes | None) -> Iterator[Block]:
        """Yield scan()'s blocks with packed keys; `first` and `last` as Shards.scan() takes them, checked. For servers."""
        return self._shards.scan(self._bound(first, "start"), None if last is None else self._bound(last, "stop"))

    def _bound(self, key: bytes | int, what: str) -> bytes:
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and self.key_bytes in (4, 8):
            if not 0 <= key < 1 << 8 * self.key_bytes:
                raise ArgumentError(f"{what} is {key}, expected 0 to 2**{8 * self.key_bytes} - 1")
            return int(key).to_bytes(self.key_bytes)
        if not isinstance(key, bytes) or len(key) > self.key_bytes:
            found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise ArgumentError(f"{what} is {found}, expected bytes, at most {self.key_bytes} of them"
                                f"{', or an int' if self.key_bytes in (4, 8) else ''}")
        return key

    def client(self, name: str) -> dict[str, Any]:
        """Return {"sequence", "note"} of the last push of a client that arrived everywhere; 0 and None before the first."""
        return min(self.rows(name), key=lambda row: row["sequence"])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return what client() says, of each shard."""
        return self._shards.rows(check_name("client", name))

    def __len__(self) -> int:
        """Return how many keys have a count; reads all of them, unless the runs are merged."""
        return self._shards.n_keys()

    def stats(self) -> dict[str, Any]:
        """Return what is known without reading counts.

        Returns:
            {"name", "kind", "key_bytes", "shards", "runs", "entries" (a key counts once for each run that it is in),
            "clients", "bytes", "live_bytes"}.
        """
        return {"name": self.name, "kind": self.kind, "key_bytes": self.key_bytes, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return the part of stats() that the shards know."""
        return self._shards.facts()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._shards.closed

    def close(self) -> None:
        """Close the table, and let the next writer in if it was open for writing."""
        self._shards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kvps.CountTable {self.name!r}, keys {expected(self.key_bytes)}>"


def _after(prefix: bytes) -> bytes | None:
    """Return the least bytes that are above all that begin with a prefix, or None where there are none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None

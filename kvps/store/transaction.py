"""A transaction on one environment: bytes in and out, and views that cannot be read after its end."""
from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

from kvps.errors import StoreError

# LMDB keeps what a transaction writes in memory until its commit; longer work takes several transactions.
DIRTY_BYTES = 64 << 20

_lingering: set[Txn] = set()     # ended while somebody still held a view: kept, so that the view stays true


class Txn:
    """A transaction: the state of one commit, or a commit in the making."""

    def __init__(self, handle: Any, raw: Any, write: bool) -> None:
        """Take over `raw`, py-lmdb's transaction; `handle` counts it, and maps its errors."""
        self._handle = handle
        self._raw = raw
        self._write = write
        self._lent: list[tuple[weakref.ref[memoryview], weakref.ref[Any]]] = []   # views, and what they stand on
        self.id = raw.id()       # of the commit that is read; of the one that a write transaction will make
        self.dirty_bytes = 0

    @property
    def where(self) -> str:
        """The path of the data file, for messages."""
        return str(self._handle.data)

    @property
    def full(self) -> bool:
        """Whether this transaction holds as much as one should."""
        return self.dirty_bytes >= DIRTY_BYTES

    @contextlib.contextmanager
    def _mapping(self) -> Iterator[Any]:
        if self._raw is None:
            raise StoreError(f"{self._handle.data}: the snapshot is closed", path=str(self._handle.data))
        with self._handle.mapping(self.dirty_bytes):
            yield self._raw

    def get(self, key: bytes) -> bytes | None:
        """Return a copy of the value, or None."""
        with self._mapping() as raw:
            found = raw.get(key)
            return None if found is None else bytes(found)

    def view(self, key: bytes) -> memoryview | None:
        """Return the value without a copy, or None; hand every part of it that leaves the store to lend()."""
        assert not self._write, "a write transaction moves its pages"
        with self._mapping() as raw:
            return raw.get(key)

    def lend(self, view: memoryview) -> memoryview:
        """Return the bytes of `view` as a view that cannot be read after the transaction.

        close() releases it, and notices whatever else was made of it: a slice, an array, a kernel's cursor.
        """
        import numpy as np  # here, for only those who read chunks need it, and they have it

        # Everything made of the view keeps this array alive, and nothing else does; a bare view of LMDB's memory
        # would not tell, because NumPy takes a second view of it, which the release of the first does not touch.
        array = np.frombuffer(view, np.uint8)
        lent = memoryview(array)
        if len(self._lent) % 1024 == 1023:
            self._lent = [refs for refs in self._lent if refs[1]() is not None]
        self._lent.append((weakref.ref(lent), weakref.ref(array)))
        return lent

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value."""
        with self._mapping() as raw:
            raw.put(key, value)
        self.dirty_bytes += len(key) + len(value) + 4096

    def put_some(self, pairs: Iterator[tuple[bytes, bytes]]) -> bool:
        """Put (key, value) until the transaction is full; return whether that was all."""
        while not self.full:
            pair = next(pairs, None)
            if pair is None:
                return True
            self.put(*pair)
        return False

    def delete(self, key: bytes) -> bool:
        """Delete a key; return whether it was there."""
        with self._mapping() as raw:
            return raw.delete(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield copies of (key, value) with this prefix, in key order; the transaction may not write meanwhile."""
        with self._mapping() as raw, raw.cursor() as cursor:
            found = cursor.set_range(prefix)
            while found and (key := bytes(cursor.key())).startswith(prefix):
                yield key, bytes(cursor.value())
                found = cursor.next()

    def first_key(self, start: bytes) -> bytes | None:
        """Return the least key that is not below `start`, or None; touches no value."""
        with self._mapping() as raw, raw.cursor() as cursor:
            return bytes(cursor.key()) if cursor.set_range(start) else None

    def last_key(self, prefix: bytes) -> bytes | None:
        """Return the greatest key with this prefix (whose last byte is not 255), or None; touches no value."""
        with self._mapping() as raw, raw.cursor() as cursor:
            after = prefix[:-1] + bytes([prefix[-1] + 1])
            found = cursor.prev() if cursor.set_range(after) else cursor.last()
            key = bytes(cursor.key()) if found else b""
            return key if key.startswith(prefix) else None

    def commit(self) -> None:
        """Commit durably; errors are LMDB's own, for Environment.write knows what to do after them."""
        raw, self._raw = self._raw, None
        try:
            raw.commit()
        finally:
            self._handle.end()

    def close(self, *, strict: bool = True) -> None:
        """End the transaction without a commit, and release what it lent.

        Raises:
            StoreError: something made of a lent view is still in use; only if `strict`.
                The pages stay mapped then, for as long as the process lives.
        """
        raw, self._raw = self._raw, None
        if raw is None:
            return
        n_busy = sum(not _released(*refs) for refs in self._lent)
        if n_busy:
            self._raw = raw
            _lingering.add(self)
            if strict:
                raise StoreError(f"{self._handle.data}: {n_busy} views of a snapshot are still in use at its end; "
                                 "drop what holds them first", path=str(self._handle.data))
            return
        _lingering.discard(self)
        raw.abort()
        self._handle.end()


def _released(view: weakref.ref[memoryview], array: weakref.ref[Any]) -> bool:
    """Release a lent view; return False if something still reads through it."""
    try:
        if (held := view()) is not None:
            held.release()
            del held
    except BufferError:
        return False
    return array() is None

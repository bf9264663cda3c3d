"""What a server answers for the tables of a store: the functions that RemoteTables and RemoteShards call.

Arguments come from outside: each is looked at before it is used, and a table's own checks do the rest.
"""
from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvps.errors import ArgumentError
from kvps.ps import tables
from kvps.ps.answering import Answer, Function, field, optional
from kvps.ps.protocol import Message
from kvps.ps.runs import Block
from kvps.ps.streams import Streams
from kvps.ps.table import CountTable
from kvps.store import files, lock
from kvps.store.layout import TABLES

BLOCKS = 16                    # of a scan in one message: some 4 MiB of 8-byte keys


class TableService:
    """The tables of a store, open for writing as long as they are served."""

    def __init__(self, store: Path) -> None:
        """Serve the tables below the folder of a store."""
        self.store = store
        folder = store / TABLES
        files.refuse_symlink(folder)
        if not files.exists(folder):
            files.make_dir(folder)
        self._lock = lock.OwnerLock(folder, command="kvps serve")      # one server a store, whatever it has open
        self._turn = threading.Lock()
        self._open: dict[str, CountTable] = {}
        self.scans = Streams()

    def functions(self) -> dict[str, Function]:
        """Return what a Server is to answer."""
        return {"tables": Function(self.tables), "table": Function(self.table, changes=True),
                "create": Function(self.create, changes=True), "uuid": Function(self.uuid),
                "drop": Function(self.drop, changes=True),
                "push": Function(self.push, changes=True), "pull": Function(self.pull), "scan": Function(self.scan),
                "next": Function(self.next), "length": Function(self.length), "client": Function(self.client),
                "stats": Function(self.stats)}

    # tables as a whole

    def tables(self, message: Message) -> Answer:
        """Return the statistics of all tables."""
        return {"tables": tables.listed(self.store)}, {}

    def table(self, message: Message) -> Answer:
        """Open a table, made if need be, and say how wide its keys are."""
        name, kind, key_bytes = (optional(message, name, kind) for name, kind in (
            ("table", str), ("kind", str), ("key_bytes", int)))
        if not tables.exists(self.store, name) and kind is not None and key_bytes is not None:
            self.create(message)
        table = self._table(message)
        facts = {"key_bytes": table.key_bytes, "kind": table.kind}
        tables.refuse_other(tables.table_path(self.store, name), facts, kind, key_bytes)
        return facts, {}

    def create(self, message: Message) -> Answer:
        """Make an empty table."""
        tables.create(self.store, field(message, "table", str), field(message, "kind", str), field(message, "key_bytes", int),
                      field(message, "shards", int))
        return {}, {}

    def uuid(self, message: Message) -> Answer:
        """Tell a table from a later one of its name."""
        return {"uuid": tables.uuid_of(self.store, field(message, "table", str))}, {}

    def drop(self, message: Message) -> Answer:
        """Delete a table, unless that was done before: what is there then has another uuid."""
        name, uuid = field(message, "table", str), optional(message, "uuid", str)
        if not tables.exists(self.store, name) or tables.uuid_of(self.store, name) != uuid:
            return {}, {}
        with self._turn:
            known = self._open.pop(name, None)
        if known is not None:
            known.close()
        tables.drop(self.store, name)
        return {}, {}

    # one table

    def push(self, message: Message) -> Answer:
        """Add counts."""
        keys, counts = _array(message, "keys"), _array(message, "counts")
        applied = self._table(message).push(keys, counts, client=field(message, "client", str), sequence=message.sequence,
                                            note=optional(message, "note", str))
        return {"applied": applied}, {}

    def pull(self, message: Message) -> Answer:
        """Look counts up."""
        return {}, {"counts": self._table(message).pull(_array(message, "keys"))}

    def scan(self, message: Message) -> Answer:
        """Begin a scan."""
        table, stop = self._table(message), optional(message, "stop", str)
        try:
            first, last = bytes.fromhex(field(message, "start", str)), None if stop is None else bytes.fromhex(stop)
        except ValueError as exc:
            raise ArgumentError(f"a scan begins and ends at hexadecimal digits: {exc}") from exc
        return {"cursor": self.scans.begin(_pieces(table.blocks(first, last)))}, {}

    def next(self, message: Message) -> Answer:
        """Return the next piece of a scan, or the last one again, whose answer was lost."""
        return self.scans.piece(field(message, "cursor", int), field(message, "number", int))

    def length(self, message: Message) -> Answer:
        """Count the keys."""
        return {"keys": len(self._table(message))}, {}

    def client(self, message: Message) -> Answer:
        """Return what is known of a client."""
        return {"rows": self._table(message).rows(field(message, "client", str))}, {}

    def stats(self, message: Message) -> Answer:
        """Return a table's statistics."""
        return {"facts": self._table(message).facts()}, {}

    def close(self) -> None:
        """Close all tables and end all scans; call it when no request is being answered any more."""
        with self._turn, contextlib.ExitStack() as stack:
            for table in self._open.values():
                stack.callback(table.close)
            self._open.clear()
            self.scans.close()
            self._lock.close()

    def _table(self, message: Message) -> CountTable:
        name = field(message, "table", str)
        with self._turn:
            if name not in self._open:
                self._open[name] = tables.open_table(self.store, name, writable=True)
            return self._open[name]


def _pieces(blocks: Iterator[Block]) -> Iterator[Answer]:
    """Yield the blocks of a scan, some in each reply. Blocks are copied: each is good until the next one only."""
    with contextlib.closing(blocks):
        while some := [(block.keys.copy(), block.counts.copy()) for block in itertools.islice(blocks, BLOCKS)]:
            keys, counts = (np.concatenate(column) for column in zip(*some, strict=True))
            yield {}, {"keys": keys, "counts": counts}


def _array(message: Message, name: str) -> np.ndarray:
    if name not in message.arrays:
        raise ArgumentError(f"{message.call['call']}: no array {name}")
    return message.arrays[name]

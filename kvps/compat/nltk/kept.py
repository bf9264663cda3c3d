"""Counts of n-grams of words in a folder: a store, in which each order has a table, and the vocabulary one more.

    words          those of the store's root; ids are theirs
    table words    id -> count in the vocabulary
    table order-K  ids of K words -> count

An update is first written to STORE/nltk, as a whole, and then pushed table by table; whoever opens the folder or updates
after a crash pushes what is left of it. The pushes of a table are numbered, so that each counts once.
"""
from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvps.errors import ArgumentError
from kvps.ps import tables
from kvps.ps.table import CountTable
from kvps.store import files
from kvps.store.creation import create_store
from kvps.store.directory import StoreDirectory, open_store
from kvps.text.tokenize import Tokenizer
from kvps.text.vocabulary import Vocabulary

MAX_ORDER = 8                  # ids of 4 bytes in keys of at most 32
CLIENT = "nltk"                # who pushes, in the tables
WORDS = "words"
FOLDER = "nltk"                # of an update that is not pushed yet
WAIT_S = 3600.0                # for another process that updates


class Kept:
    """One such folder, which is made if it is not there."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open it, ending an update that a crash interrupted.

        Raises:
            StoreError: something else is there. StoreLocked: another process has been updating for an hour.
        """
        self.path = Path(path).absolute()
        if not files.exists(self.path):
            create_store(self.path, 1, 1, Tokenizer.from_spec("whitespace", False).to_json())
        self._tables: dict[str, CountTable] = {}
        self.words: list[str] = []
        self._vocabulary = Vocabulary()
        with open_store(self.path) as store:
            self._read_words(store)
        self._seen = self._numbers()           # what the caller is about to read
        if files.exists(self._spooled):
            with self.update():
                pass

    @property
    def _spooled(self) -> Path:
        return self.path / FOLDER / "update.npz"

    def __del__(self) -> None:
        for table in self.__dict__.get("_tables", {}).values():
            table.close()

    def orders(self) -> list[int]:
        """Return the orders of which there are n-grams."""
        return [int(name[6:]) for name in tables.names(self.path) if name.startswith("order-")]

    def word_counts(self) -> dict[str, int]:
        """Return the counts of the vocabulary."""
        return {words[0]: count for words, count in self.ngrams(WORDS)}

    def ngrams(self, name: str, context: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield (words, count) of a table, of those n-grams that begin with a context."""
        table = self._table(name)
        ids = [self._vocabulary.table.get(word.encode()) if isinstance(word, str) else None for word in context]
        if table is None or None in ids:
            return
        words = self.words
        for keys, counts in table.scan(b"".join(i.to_bytes(4) for i in ids)):
            for row, count in zip(_ids(keys).tolist(), counts.tolist(), strict=True):
                yield tuple([words[i] for i in row]), count

    @contextlib.contextmanager
    def update(self) -> Iterator[Change]:
        """Gather a change, and make it durable at the end; nothing happens where the block raises."""
        with open_store(self.path, writable=True, wait=WAIT_S, command="update") as store:
            self._finish(store)
            if store.root.next_word() != len(self._vocabulary.table):
                self._read_words(store)
            before = self._numbers()
            change = Change(self._vocabulary, stale=before != self._seen)
            try:
                yield change
            except BaseException:
                self._read_words(store)        # without the words that were new
                raise
            self._vocabulary.store_new(store.root.add_words)
            known = len(self.words)
            self.words += [self._vocabulary.table.word(i).decode() for i in range(known, len(self._vocabulary.table))]
            if change.parts:
                self._spool(change)
                self._finish(store)
            self._seen = self._numbers()

    def _numbers(self) -> dict[str, int]:
        """Return the number of the last update of each table."""
        return {name: self._table(name).client(CLIENT)["sequence"] for name in tables.names(self.path)}

    def _spool(self, change: Change) -> None:
        arrays = {}
        for name, (ids, counts) in change.parts.items():
            table = self._table(name)
            number = 1 if table is None else table.client(CLIENT)["sequence"] + 1
            arrays |= {f"{name}.ids": ids, f"{name}.counts": counts, f"{name}.number": np.array(number)}
        written = io.BytesIO()
        np.savez(written, **arrays)
        if not files.exists(self._spooled.parent):
            files.make_dir(self._spooled.parent)
        files.atomic_write(self._spooled, written.getvalue())

    def _finish(self, store: StoreDirectory) -> None:
        """Push what is spooled; the store is open for writing, so that nobody else does."""
        if not files.exists(self._spooled):
            files.remove_tree(self._spooled.parent)        # one that was killed before it was whole
            return
        with files.reporting(self._spooled), np.load(self._spooled, allow_pickle=False) as spooled:
            for name in sorted({key.partition(".")[0] for key in spooled}):
                ids, counts, number = spooled[f"{name}.ids"], spooled[f"{name}.counts"], int(spooled[f"{name}.number"])
                if not tables.exists(store.path, name):
                    tables.create(store.path, name, "count", 4 * ids.shape[1])
                self._table(name).push(_keys(ids), counts, client=CLIENT, sequence=number)
        files.remove_tree(self._spooled.parent)

    def _table(self, name: str) -> CountTable | None:
        if name not in self._tables:
            if not tables.exists(self.path, name):
                return None
            self._tables[name] = tables.open_table(self.path, name, kind="count", wait=WAIT_S)
        return self._tables[name]

    def _read_words(self, store: StoreDirectory) -> None:
        self._vocabulary = Vocabulary(store.root.words())
        lengths, blob = self._vocabulary.table.slice(0)
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        self.words = [bytes(blob[start:end]).decode() for start, end in zip([0, *ends], ends, strict=False)]


class Change:
    """What one update adds. `stale`: others have added something since the last update here, or since this was opened."""

    def __init__(self, vocabulary: Vocabulary, *, stale: bool) -> None:
        """Begin with nothing."""
        self.ids, self.stale = _Ids(vocabulary), stale
        self.parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, name: str, ids: np.ndarray, counts: np.ndarray) -> None:
        """Add counts, int64 (n,), of n-grams, uint32 (n, order), to a table."""
        if len(ids):
            self.parts[name] = ids, counts


class _Ids(dict):
    """Word -> id, that of a new word being the next one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._table = vocabulary.table

    def __missing__(self, word: str) -> int:
        if not isinstance(word, str):
            raise ArgumentError(f"a word is {type(word).__name__}, expected str where it is kept in a folder")
        self[word] = found = self._table.add(word.encode())
        return found


def _keys(ids: np.ndarray) -> np.ndarray:
    """Return n-grams, uint32 (n, order), as keys of a table."""
    n, order = ids.shape
    if order == 1:
        return ids[:, 0]
    if order == 2:
        return ids[:, 0].astype(np.uint64) << np.uint64(32) | ids[:, 1]
    return ids.astype(">u4").view(np.uint8).reshape(n, -1)


def _ids(keys: np.ndarray) -> np.ndarray:
    """Return keys of a table as n-grams, (n, order)."""
    if keys.dtype == np.uint32:
        return keys.reshape(-1, 1)
    if keys.dtype == np.uint64:
        return np.stack([keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)], axis=1)
    return np.ascontiguousarray(keys).view(">u4")

"""A RemoteStore: the interface of a Store, for one that a server serves."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kvps.api.model import DEFAULT_SMOOTHING, Model
from kvps.api.store import Path_, Store
from kvps.api.words import FetchedVocabulary, Vocabulary
from kvps.errors import ArgumentError, StoreError
from kvps.jobs import served
from kvps.jobs.stats import statistics
from kvps.jobs.status import status_of
from kvps.lm.smoothing import parse
from kvps.lm.statistics import Statistics
from kvps.ps.places import Address
from kvps.ps.remote import RemoteTables
from kvps.ps.remote_store import RemoteDirectory
from kvps.ps.table import CountTable
from kvps.text.tokenize import Spec, store_tokenizer


class RemoteStore(Store):
    """A store behind a server. Made by connect(); a context manager, usable from several threads.

    Text that is counted is read and counted here, and what reads counts runs where the store is. A call that writes takes
    its turn among those of all clients. What only a folder can do, purge() and compact(vacuum=True), is refused.
    """

    def __init__(self, address: str, *, keys: Path_ | None = None, tokenizer: Spec | None = None, retry_s: float = 2.0,
                 patience_s: float = 60.0) -> None:
        """Connect; arguments as in connect()."""
        self.path: Any = Address(address, None if keys is None else str(keys))
        self._options = {"keys": self.path.keys, "retry_s": retry_s, "patience_s": patience_s}
        self._named = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._remote = RemoteTables(address, **self._options)
        self._open: RemoteDirectory | None = None
        self._closed = False

    def _reader(self) -> Any:
        if self._closed:
            raise StoreError(f"{self.path}: is closed", path=self.path)
        if self._open is None:
            directory = RemoteDirectory(self.path, **self._options)
            if self._named is not None:
                try:
                    store_tokenizer(directory.path, directory.identity["tokenizer"], self._named)
                except BaseException:
                    directory.close()
                    raise
            self._open = directory
        return self._open

    @contextlib.contextmanager
    def _writer(self, command: str, wait: float) -> Iterator[Any]:
        self._reader()
        with RemoteDirectory(self.path, writable=True, wait=wait, command=command, **self._options) as directory:
            yield directory

    @property
    def order(self) -> int:
        """The order of the store."""
        return self._reader().identity["order"]

    # tables

    def table(self, name: str, *, kind: str | None = None, key_bytes: int | None = None, shards: int = 1,
              wait: float = 0.0) -> CountTable:
        """Return a table, which is made if it is not there and kind and key_bytes are given; as Store.table()."""
        return self._remote.table(name, kind=kind, key_bytes=key_bytes, shards=shards)

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return what CountTable.stats() says of each table, by name."""
        return self._remote.tables()

    def create_table(self, name: str, kind: str, key_bytes: int, shards: int = 1) -> None:
        """Make an empty table; StoreError if there is one of this name."""
        self._remote.create_table(name, kind, key_bytes, shards)

    def drop_table(self, name: str, *, wait: float = 0.0) -> None:
        """Delete a table and everything in it."""
        self._remote.drop_table(name)

    # checkpoints: in the store, on the server's machine

    def checkpoint(self, name: str | None = None, *, to: Path_ | None = None, keep: int | None = None, wait: float = 0.0,
                   progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Make a checkpoint in the store; as Store.checkpoint()."""
        self._refuse_place(to)
        return self._reader().run(served.make_checkpoint, name=name, keep=keep, wait=wait)

    def checkpoints(self, to: Path_ | None = None) -> list[dict[str, Any]]:
        """Return the checkpoints in the store; as Store.checkpoints()."""
        self._refuse_place(to)
        return self._reader().run(served.list_checkpoints)

    def verify_checkpoints(self, name: str | None = None, *, to: Path_ | None = None, wait: float = 0.0,
                           progress: Callable[[int, int], None] = lambda done, total: None) -> list[dict[str, Any]]:
        """Read one checkpoint in the store or all as a whole; as Store.verify_checkpoints()."""
        self._refuse_place(to)
        return self._reader().run(served.verify_checkpoints, name=name, wait=wait)

    def delete_checkpoint(self, name: str, *, to: Path_ | None = None, wait: float = 0.0) -> dict[str, Any]:
        """Delete a checkpoint in the store; as Store.delete_checkpoint()."""
        self._refuse_place(to)
        return self._reader().run(served.delete_checkpoint, name=name, wait=wait)

    def _refuse_place(self, to: Path_ | None) -> None:
        if to is not None:
            raise ArgumentError(f"{self.path}: a server keeps the checkpoints of its store in the store, not at {to}")

    # reading

    def status(self) -> dict[str, Any]:
        """Return what `kvps status --json` prints; running means that a client writes."""
        return self._reader().run(status_of)

    @property
    def statistics(self) -> Statistics:
        """Sizes and counts of counts of the last version, which is compiled first if it has not been."""
        found = self._reader().run(statistics)
        return Statistics.from_json({name: found[name] for name in (
            "order", "version", "tokens", "sentences", "vocabulary", "ngrams", "t")})

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the last version in byte order, and their counts, all of them fetched."""
        kept = self._vocabulary
        if kept is None or kept.version != self.version:
            kept = self._vocabulary = FetchedVocabulary(self._reader())
        return kept

    def model(self, smoothing: str = DEFAULT_SMOOTHING, order: int | None = None, exact: bool = False, stale: str = "wait", *,
              labels: Iterable[str] | None = None, threads: int | None = None) -> Model:
        """Return the last version as a model that answers where the store is; as Store.model()."""
        self._reader()
        parse(smoothing)
        directory = RemoteDirectory(self.path, **self._options)
        try:
            return Model(directory, smoothing, order, exact=exact, stale=stale, labels=labels, tokenizer=self._named,
                         threads=threads)
        except BaseException:
            directory.close()
            raise

    def purge(self, *, wait: float = 0.0, threads: int | None = None) -> dict[str, Any]:
        """Refuse: it writes the files anew that the servers have open."""
        raise StoreError(f"{self.path}: a purge writes the files of the store anew, which its servers have open; stop them, and "
                         "purge the folder", path=self.path)

    def compact(self, *, vacuum: bool = False, wait: float = 0.0, threads: int | None = None,
                progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Merge the runs of every shard; as Store.compact(), but for `vacuum`, which is refused."""
        if vacuum:
            raise StoreError(f"{self.path}: with vacuum the files of the store are written anew, which its servers have open; stop "
                             "them, and compact the folder", path=self.path)
        return super().compact(wait=wait, threads=threads, progress=progress)

    def close(self) -> None:
        """Close all connections; tables and models are closed with them, models have their own."""
        self._closed = True
        self._remote.close()
        if self._open is not None:
            self._open.close()

    def __repr__(self) -> str:
        return f"<kvps.RemoteStore {str(self.path)!r}{', closed' if self._closed else ''}>"



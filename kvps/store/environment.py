"""One LMDB environment: the only importer of lmdb, where every lmdb.Error becomes an error of ours.

Each rule here answers a trap that was found by running it:

- The engine is named (0.9), because an environment variable would otherwise choose the format of new files.
- The map is 1 TiB from the start: a map that is full cannot even delete. writemap is never used: a full disk kills it.
- The file is checked before LMDB opens it (extents.py), the lock file has its blocks before LMDB maps it.
- One process may open a file only once in LMDB, so openings share a _Handle; each counts its open transactions, and
  unmaps only when none is left: a view of an unmapped page would kill the process.
- A failed commit says nothing about what is on disk: the environment is opened anew, and the caller reads its ledger.
- After fork() the child may not use what the parent opened; LMDB would let it.
"""
from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb

from kvps.errors import CorruptionError, StoreError, StoreFull, VersionMismatch
from kvps.store import extents, files
from kvps.store.transaction import Txn

MAP_BYTES = 1 << 40
MAX_READERS = 512
LOCK_BYTES = 8192 + 64 * MAX_READERS   # LMDB's header and 64 bytes a reader, with room
BEGIN_TRIES = 100                      # a retry means that a commit came within the microseconds of beginning
READER_CHECK_S = 30.0                  # a reader killed in another process pins pages until somebody looks

# Every class of py-lmdb 3: what it means for us, and what to do. None: told by its errno.
ERRORS: dict[type[lmdb.Error], tuple[type[Exception], str] | None] = {
    lmdb.Error: None,
    lmdb.DiskError: None,
    lmdb.MapFullError: (StoreFull, "the shard has reached the size of its memory map; use more shards"),
    lmdb.MemoryError: (MemoryError, "no memory, or no address space (ulimit -v) for the memory map"),
    lmdb.CorruptedError: (CorruptionError, "the file is damaged; put back a sound copy"),
    lmdb.PageNotFoundError: (CorruptionError, "a page is missing; put back a sound copy"),
    lmdb.InvalidError: (CorruptionError, "not an LMDB file; put back a sound copy"),
    lmdb.BadChecksumError: (CorruptionError, "a page checksum is wrong; put back a sound copy"),
    lmdb.ProblemError: (CorruptionError, "LMDB met what should not be; put back a sound copy"),
    lmdb.IncompatibleError: (CorruptionError, "the file has other flags than a store's; put back a sound copy"),
    lmdb.EnvEncryptionError: (CorruptionError, "the file is encrypted; put back a sound copy"),
    lmdb.CryptoFailError: (CorruptionError, "the file is encrypted; put back a sound copy"),
    lmdb.VersionMismatchError: (VersionMismatch, "another LMDB format than 0.9; use the kvps that wrote it"),
    lmdb.PanicError: (StoreError, "an earlier write failed; open the store again"),
    lmdb.MapResizedError: (StoreError, "the file outgrew its memory map; open the store again"),
    lmdb.ReadersFullError: (StoreError, f"{MAX_READERS} or more readers at once; close some"),
    lmdb.ReadonlyError: (StoreError, "permission denied"),
    lmdb.LockError: (StoreError, "the lock file is held in another container with the same process number; "
                                 "use the store from one container at a time"),
    lmdb.TlsFullError: (StoreError, "no thread-local storage is left"),
    lmdb.TxnFullError: (StoreError, "the transaction is too large"),
    lmdb.CursorFullError: (CorruptionError, "the tree is too deep; put back a sound copy"),
    lmdb.PageFullError: (CorruptionError, "a page has no room where it must; put back a sound copy"),
    lmdb.BadTxnError: (StoreError, "the transaction failed earlier or is closed"),
    lmdb.BadRslotError: (StoreError, "a reader slot is in use twice"),
    lmdb.BadDbiError: (StoreError, "the database was changed by another program"),
    lmdb.DbsFullError: (StoreError, "named databases are not used here"),
    lmdb.BadValsizeError: (StoreError, "a key or value has a length that LMDB cannot store"),
    lmdb.InvalidParameterError: (StoreError, "LMDB refused the request"),
    lmdb.KeyExistsError: (StoreError, "the key exists"),
    lmdb.NotFoundError: (StoreError, "the key does not exist"),
}


def mapped(exc: lmdb.Error, path: str | Path, needs: int | None = None) -> Exception:
    """Return the exception of ours for `exc`; `needs` is what the transaction would have written [bytes]."""
    entry = ERRORS.get(type(exc))
    place = str(path)
    if entry is None:
        code = getattr(exc, "code", 0)
        # LMDB 0.9 reports a full disk as EIO, because what it sees first is a short write.
        if code in files.FULL or (code == errno.EIO and files.free_bytes(path) < (needs or 0) + 4096):
            return files.disk_full(path, needs)
        return StoreError(f"{place}: {exc}; look at the disk and the system log, then run the command again",
                          path=place)
    kind, meaning = entry
    if kind is MemoryError:
        return MemoryError(f"{place}: {meaning}")
    return kind(f"{place}: {meaning} ({exc})", path=place)


class _Handle:
    """The one LMDB environment that this process has on a data file, shared by all openings of it."""

    def __init__(self, path: Path, map_bytes: int, *, create: bool = False, verify: bool = False) -> None:
        self.path, self.data = path, path / "data.mdb"
        self.pid = os.getpid()
        self.map_bytes = map_bytes
        self.openings = 0
        self.txns = 0              # open transactions; the map stays while there is one
        self.stale = False         # a commit failed: open anew before the next transaction
        self.failed: str | None = None   # a write or sync failed for no want of space: no more writes from this process
        self.checked_s = -math.inf
        self.env: lmdb.Environment | None = None
        self.open(create=create, verify=verify)

    def open(self, *, create: bool = False, verify: bool = False) -> None:
        """Open the environment; its files are checked first."""
        for name in (self.data, self.path / "lock.mdb"):
            files.refuse_symlink(name)
        if not create:
            extents.check(self.data)
        if verify:
            _verify(self.data)
        self.read_only = not (create or os.access(self.data, os.W_OK))
        self.registered = can_register(self.path)
        if self.registered:
            files.preallocate(self.path / "lock.mdb", LOCK_BYTES)
        try:
            self.env = lmdb.Environment(
                str(self.path), map_size=self.map_bytes, lib_version=0, max_readers=MAX_READERS, max_dbs=0,
                mode=files.FILE_MODE, create=create, readonly=self.read_only, lock=self.registered,
                sync=True, metasync=True, writemap=False, max_spare_txns=0)
        except lmdb.Error as exc:
            raise mapped(exc, self.data) from exc
        except OSError as exc:         # it makes the directory itself where it does not find one
            raise files.os_error(exc, self.data) from exc
        if self.env.lib_version()[:2] != (0, 9):
            raise VersionMismatch(f"{self.data}: opened with LMDB {self.env.lib_version()}, expected 0.9",
                                  path=str(self.data))
        with files.reporting(self.data):       # it may be gone by now, where a writer has put another in its place
            found = os.stat(self.data)
        self.key = (found.st_dev, found.st_ino)
        self.page_bytes = self.env.stat()["psize"]
        self.stale = False
        self.checked_s = -math.inf

    def _begin_reading(self) -> lmdb.Transaction:
        """Begin a read transaction that sees the commit whose number it has.

        LMDB takes the number of the last commit, and then looks where that commit's trees begin, which the next commit but
        one writes over. Who gets no turn in between reads a later commit under the earlier number: whole, but to a check of
        the number it would look like damage.
        """
        for _ in range(BEGIN_TRIES):
            raw = self.env.begin(buffers=True)
            if self.env.info()["last_txnid"] <= raw.id():
                return raw
            raw.abort()
        return self.env.begin(buffers=True)

    def begin(self, write: bool) -> lmdb.Transaction:
        """Begin an LMDB transaction, opening the environment anew if the last commit failed."""
        with _lock:
            if self.stale and not self.txns:
                self.close()
                self.open()
            if self.stale or self.env is None:
                raise StoreError(f"{self.data}: an earlier write failed; close the open snapshots, then try again",
                                 path=str(self.data))
            self.txns += 1
        try:
            if self.registered and time.monotonic() - self.checked_s > READER_CHECK_S:
                self.env.reader_check()
                self.checked_s = time.monotonic()
            return self.env.begin(write=True, buffers=True) if write else self._begin_reading()
        except BaseException as exc:
            self.end()
            if isinstance(exc, lmdb.Error):
                raise mapped(exc, self.data) from exc
            raise

    @contextlib.contextmanager
    def mapping(self, needs: int | None = None) -> Iterator[None]:
        """Turn an lmdb.Error of the block into an error of ours; `needs` as in mapped()."""
        try:
            yield
        except lmdb.Error as exc:
            raise mapped(exc, self.data, needs) from exc

    def end(self) -> None:
        """Count one transaction less, and close what nobody uses any more."""
        with _lock:
            self.txns -= 1
            if not self.txns and not self.openings:
                self.close()

    def close(self) -> None:
        """Unmap; REQUIRES that no transaction is open."""
        if self.env is not None:
            self.env.close()
            self.env = None
        if not self.openings and _handles.get(self.key) is self:
            del _handles[self.key]


_lock = threading.RLock()          # guards _handles and the counters of every handle
_handles: dict[tuple[int, int], _Handle] = {}


def _after_fork() -> None:
    global _lock                   # another thread of the parent may have held it, and is not here to let it go
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def problems(data: Path) -> list[str]:
    """Return what is wrong with the pages of a file, in words; LMDB trusts what it reads, and would be led astray.

    REQUIRES: nobody writes, or what is found is looked at again.
    """
    from lmdb import verify

    try:
        return verify.verify(str(data), subdir=False)
    except OSError as exc:
        raise files.os_error(exc, data) from exc
    except MemoryError:
        raise
    except verify.VerifyError as exc:
        return [str(exc)]
    except Exception as exc:                   # a walker over bytes that may be anything
        return [f"{type(exc).__name__}: {exc}"]


def _verify(data: Path) -> None:
    """Raise CorruptionError if a page of the file would lead LMDB astray."""
    found = problems(data)
    if found:
        raise CorruptionError(f"{data}: {found[0]}, expected a sound tree of pages ({len(found)} found); keep a copy of the "
                              "store, then run kvps recover", path=str(data), found=found[0], expected="a sound tree of pages")


def can_register(path: Path) -> bool:
    """Return whether this process can take a reader's slot in the lock file of the environment in `path`."""
    lock = path / "lock.mdb"
    return os.access(lock if files.exists(lock) else path, os.W_OK)


class Environment:
    """One opening of an LMDB environment, for reading, or for reading and writing.

    May be used from several threads; a Txn from one at a time.
    """

    def __init__(self, handle: _Handle, writable: bool) -> None:
        self._handle: _Handle | None = handle
        self.writable = writable
        self.path = handle.path
        self.data = handle.data
        self.page_bytes = handle.page_bytes

    @classmethod
    def create(cls, path: str | Path, *, map_bytes: int = MAP_BYTES) -> Environment:
        """Make the directory and an empty environment in it, writable.

        Not atomic: make it under a temporary name, commit, and rename its directory.
        """
        files.make_dir(path)
        with _lock:
            handle = _Handle(Path(path), map_bytes, create=True)
            return cls._opened(handle, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False, map_bytes: int = MAP_BYTES,
             verify: bool = False) -> Environment:
        """Open an environment that exists.

        verify: look at every page of its trees before LMDB maps the file (some 0.3 s per GB), unless this process has it
            open already.

        Raises:
            StoreError: there is none, or it may not be read (or written, if `writable`).
            CorruptionError: the file is empty, foreign or cut short.
        """
        data = Path(path) / "data.mdb"
        with _lock:
            try:
                found = os.stat(data)
            except OSError as exc:
                raise files.os_error(exc, data) from exc
            handle = _handles.get((found.st_dev, found.st_ino))
            if handle is not None and handle.pid != os.getpid():   # the parent's, before a fork
                if handle.txns:
                    raise StoreError(f"{data}: the parent process had a snapshot of it open at fork; "
                                     "close snapshots before forking, or use spawn", path=str(data))
                handle.openings = 0
                handle.close()
                handle = None
            if handle is None:
                handle = _Handle(Path(path), map_bytes, verify=verify)
            if writable and handle.read_only:
                if not handle.openings:
                    handle.close()
                raise StoreError(f"{data}: permission denied to write", path=str(data))
            return cls._opened(handle, writable)

    @classmethod
    def _opened(cls, handle: _Handle, writable: bool) -> Environment:
        handle.openings += 1
        _handles[handle.key] = handle
        return cls(handle, writable)

    def _live(self) -> _Handle:
        handle = self._handle
        if handle is None:
            raise StoreError(f"{self.data}: is closed", path=str(self.data))
        if handle.pid != os.getpid():
            raise StoreError(f"{self.data}: was opened before this process was forked; open it again here",
                             path=str(self.data))
        return handle

    def begin(self) -> Txn:
        """Begin a read transaction; the caller closes it."""
        handle = self._live()
        return Txn(handle, handle.begin(write=False), write=False)

    @contextlib.contextmanager
    def read(self) -> Iterator[Txn]:
        """Give a read transaction."""
        txn = self.begin()
        try:
            yield txn
        except BaseException:
            txn.close(strict=False)
            raise
        txn.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[Txn]:
        """Give a write transaction; it commits, durably, when the block ends, and is rolled back by an exception.

        Raises:
            StoreFull, StoreError: the commit failed. It may have reached the disk all the same, and the
                environment has been opened anew: read back what is there before doing anything.
        """
        handle = self._live()
        self._may_write(handle)
        txn = Txn(handle, handle.begin(write=True), write=True)
        try:
            yield txn
        except BaseException:
            txn.close()
            raise
        try:
            txn.commit()
        except lmdb.Error as exc:
            error = mapped(exc, self.data, txn.dirty_bytes)
            self._commit_failed(handle, error)
            raise error from exc
        # A transaction that put and deleted the same value leaves its last pages unwritten; without this a sound file
        # would look cut short.
        files.extend(self.data, (handle.env.info()["last_pgno"] + 1) * handle.page_bytes)

    def _may_write(self, handle: _Handle) -> None:
        if not self.writable:
            raise StoreError(f"{self.data}: was opened for reading", path=str(self.data))
        if handle.failed:
            raise StoreError(f"{self.data}: an earlier write failed ({handle.failed}); look at the disk, then open the "
                             "store again", path=str(self.data))
        try:
            found = os.stat(self.data)
        except OSError as exc:
            raise files.os_error(exc, self.data) from exc
        if (found.st_dev, found.st_ino) != handle.key:
            # LMDB would go on committing, successfully, into a file without a name.
            raise StoreError(f"{self.data}: was replaced while it was open; open the store again", path=str(self.data))

    @staticmethod
    def _commit_failed(handle: _Handle, error: Exception) -> None:
        with _lock:
            handle.stale = True
            if not isinstance(error, StoreFull):
                # A failed sync is reported once; later ones may "succeed" although pages were lost.
                handle.failed = str(error)
            if not handle.txns:
                with contextlib.suppress(StoreError, CorruptionError):   # begin() tries again, and reports
                    handle.close()
                    handle.open()

    def copy_to(self, path: str | Path, finish: Callable[[Txn], None] | None = None) -> None:
        """Write a compact copy of the last committed state to a new environment directory, durable.

        finish: writes the copy's first transaction; LMDB numbers the transactions of a copy from 1 again.
        """
        handle = self._live()
        files.make_dir(path)
        target = Path(path) / "data.mdb"
        fd = files.open_new(target)
        try:
            with _lock:
                handle.txns += 1
            try:
                handle.env.copyfd(fd, compact=True)
            except lmdb.Error as exc:
                raise mapped(exc, target, self.bytes()["live"]) from exc
            finally:
                handle.end()
            files.fsync(fd, target)
        finally:
            os.close(fd)
        files.fsync_dir(path)
        if finish is not None:
            with contextlib.closing(Environment.open(path, writable=True)) as copy, copy.write() as txn:
                finish(txn)

    def bytes(self) -> dict[str, int]:
        """Return {"file": length of the data file, "live": bytes of the pages in use}."""
        handle = self._live()
        with self.read():             # opens anew after a failed commit, and keeps the map
            stat = handle.env.stat()
        n_pages = 2 + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        with files.reporting(self.data):
            n_bytes = os.stat(self.data).st_size
        return {"file": n_bytes, "live": n_pages * self.page_bytes}

    @property
    def registered(self) -> bool:
        """Whether readers here keep a writer from reusing their pages (False in a folder that may not be written)."""
        return self._live().registered

    def close(self) -> None:
        """Close this opening; the file is unmapped when the last transaction on it ends."""
        handle, self._handle = self._handle, None
        if handle is None or handle.pid != os.getpid():
            return
        with _lock:
            handle.openings -= 1
            if not handle.openings and not handle.txns:
                handle.close()

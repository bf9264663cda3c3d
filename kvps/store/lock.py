"""The owner lock of a store: one writer at a time, told apart from LMDB's own lock because that one waits without end.

It is a flock on STORE/owner.lock, which the system drops when its process ends, however it ends.
The file holds one line of JSON about the owner, for messages and `kvps status`; after a crash it is out of date, so
only the lock itself says whether somebody writes.
"""
from __future__ import annotations

import fcntl
import json
import os
import time
import weakref
from pathlib import Path

from kvps.errors import StoreLocked
from kvps.store import files

NAME = "owner.lock"
RETRY_S = 0.05
# Whoever asks for the owner holds a shared lock for an instant; a writer must not be turned away by that.
GRACE_S = 0.25


class OwnerLock:
    """A held owner lock; released by close(), or when the process ends."""

    def __init__(self, store: str | Path, *, wait_s: float = 0.0, command: str = "", shared: bool = False) -> None:
        """Take the lock, waiting up to `wait_s` for it.

        `shared` takes it for reading instead: it keeps writers away, and several may hold it.

        Raises:
            StoreLocked: somebody else has it; `pid` says who.
        """
        self.path = Path(store) / NAME
        self.shared = shared
        self._fd: int | None = files.open_lock(self.path, create=not shared)
        try:
            self._take(wait_s)
            if not shared:
                self._sign(command)
        except BaseException:
            self.close()
            raise
        _held.add(self)

    def _take(self, wait_s: float) -> None:
        deadline = time.monotonic() + max(wait_s, GRACE_S)
        while True:
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if self._current():
                    return
                # The store was removed while we waited: this lock keeps nobody away from one that is made in its place.
                os.close(self._fd)
                self._fd = None
                self._fd = files.open_lock(self.path, create=not self.shared)
                continue
            except OSError as exc:
                if not isinstance(exc, BlockingIOError):
                    raise files.os_error(exc, self.path) from exc
                if time.monotonic() >= deadline:
                    found = _read(self._fd)
                    pid = found.get("pid")
                    raise StoreLocked(
                        f"{self.path.parent}: process {pid or '(unknown)'} on {found.get('host', 'this machine')} is "
                        f"using it ({found.get('command') or 'kvps'}); wait for it, or give --wait SECONDS",
                        path=str(self.path.parent), pid=pid) from None
                time.sleep(RETRY_S)

    def _current(self) -> bool:
        """Return whether the file that we hold is the one that lies there."""
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _sign(self, command: str) -> None:
        record = {"pid": os.getpid(), "host": os.uname().nodename, "command": command, "started": time.time()}
        line = (json.dumps(record) + "\n").encode()
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, line, 0)
        except OSError as exc:
            raise files.os_error(exc, self.path, len(line)) from exc

    def fileno(self) -> int:
        """Return its file descriptor: a child that inherits it holds the lock too."""
        return self._fd

    def close(self) -> None:
        """Release the lock; fine if it is released."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)     # a forked child closes its own copy of the descriptor, see below


def owner(store: str | Path) -> dict | None:
    """Return who is writing to a store now ({"pid", "host", "command", "started"}), or None.

    The pid is None in the instant in which the owner has the lock and has not signed it yet.
    """
    fd = files.open_lock(Path(store) / NAME, create=False)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return {"pid": None, **_read(fd)}
    finally:
        os.close(fd)


def _read(fd: int) -> dict:
    """Return the owner's line, empty if it cannot be read (it is being written)."""
    try:
        record = json.loads(files.read_exactly(fd, 4096, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


_held: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


def _after_fork() -> None:
    # A flock belongs to the open file, which a child shares: it would hold the store after its parent died.
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_after_fork)

"""The owner lock of a store in several processes that nobody has forked: who has it lends it, the open file itself, over a socket.

Each process that has it keeps the lock held until it ends, so nobody else writes as long as one of them lives. For each
part of the store it is lent to one process at a time: the next one gets it when the one before has ended, and a process
ends itself, at once, when the lender is gone.
"""
from __future__ import annotations

import collections
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from kvps.errors import StoreLocked
from kvps.store import files
from kvps.store.lock import OwnerLock

SOCKET = "lock.sock"           # in the store's folder
WAIT_S = 10.0                  # how long a borrower waits until the one before it has ended
PART = struct.Struct("<i")     # what a borrower says: its part


class Lender:
    """Lends an owner lock until close(), in threads of its own."""

    def __init__(self, folder: Path, owner: OwnerLock) -> None:
        """Listen in the store's folder; whatever socket is there is nobody's, for we have the lock."""
        self._owner, self._path = owner, folder / SOCKET
        self._lent: dict[int, socket.socket] = {}
        self._turns: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with files.reporting(folder), _short(folder) as path:
                self._path.unlink(missing_ok=True)
                self._listening.bind(path)
                self._listening.listen()
        except BaseException:
            self._listening.close()
            raise
        finally:
            os.umask(before)
        threading.Thread(target=self._listen, name="lock", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                peer, _ = self._listening.accept()
            except OSError:                    # closed
                return
            threading.Thread(target=self._lend, args=(peer,), name="lock", daemon=True).start()

    def _lend(self, peer: socket.socket) -> None:
        """Lend the lock to a process once no other has it for the same part; or hang up."""
        with contextlib.suppress(OSError, struct.error):
            peer.settimeout(WAIT_S)
            part, = PART.unpack(peer.recv(PART.size, socket.MSG_WAITALL))
            with self._turns[part]:
                before = self._lent.get(part)
                if before is not None:
                    with contextlib.suppress(OSError):
                        before.shutdown(socket.SHUT_WR)        # it ends when it sees that
                    before.settimeout(WAIT_S)
                    while before.recv(1):                      # until its process is gone
                        pass
                    before.close()
                self._lent[part] = peer
                socket.send_fds(peer, [b"x"], [self._owner.fileno()])
                return
        peer.close()

    def close(self) -> None:
        """Lend it to nobody any more; who has it ends."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)         # wakes accept()
        self._listening.close()
        self._path.unlink(missing_ok=True)
        for peer in self._lent.values():
            peer.close()


@contextlib.contextmanager
def borrowed(folder: Path, part: int) -> Iterator[None]:
    """Hold the lock of the store in a folder for a block, in which a part of it is open for writing.

    Where the lender ends before the end of the block, so does this process, whatever it is at: what is acknowledged is on disk.

    Raises:
        StoreLocked: nobody lends it, or another process has it for this part, and does not end.
    """
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        peer.settimeout(2 * WAIT_S)
        try:
            with _short(folder) as path:
                peer.connect(path)
            peer.sendall(PART.pack(part))
            _, found, _, _ = socket.recv_fds(peer, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as exc:
            raise StoreLocked(f"{folder}: nobody lends its lock: {exc}", path=str(folder)) from exc
        for fd in found:
            stack.callback(os.close, fd)
        if not found:
            raise StoreLocked(f"{folder}: an earlier process has part {part} still open", path=str(folder))
        peer.settimeout(None)
        ending = threading.Event()

        def watch() -> None:
            with contextlib.suppress(OSError):
                peer.recv(1)
            if not ending.is_set():
                os._exit(1)

        watching = threading.Thread(target=watch, name="lender", daemon=True)
        watching.start()
        try:
            yield
        finally:
            ending.set()
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            watching.join()


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Give a path of the socket in a folder, however deep it lies: that of a socket has 107 bytes at most."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)

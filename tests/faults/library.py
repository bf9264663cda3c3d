"""The library of faults.c from Python: built with gcc, loaded into processes, its log read."""
from __future__ import annotations

import ctypes
import dataclasses
import enum
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")
RECORD = struct.Struct("@5Ii6Q")
NO_LENGTH = 2**64 - 1


class Kind(enum.IntEnum):
    """What happens at a call; the numbers are faults.c's."""

    NONE = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    KILL_HALF = 3        # of a write
    EIO_ONCE = 4
    EIO_EVER = 5
    ENOSPC_ONCE = 6      # of what needs space, or of a sync: some file systems look for it only then
    ENOSPC_EVER = 7      # of what needs space
    SHORT = 8            # half of a write, reported as what it is
    SHORT_ENOSPC = 9     # likewise, and from then on as ENOSPC_EVER

    @property
    def kills(self) -> bool:
        """Whether the process ends at the call."""
        return self in (Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.KILL_HALF)

    @property
    def full(self) -> bool:
        """Whether the disk stays full."""
        return self in (Kind.ENOSPC_EVER, Kind.SHORT_ENOSPC)

    def suits(self, op: Op, creates: bool) -> bool:
        """Return whether this can happen at a call of this sort; creates: it makes a file."""
        if self in (Kind.KILL_HALF, Kind.SHORT, Kind.SHORT_ENOSPC):
            return op == Op.WRITE
        if self in (Kind.ENOSPC_ONCE, Kind.ENOSPC_EVER):
            return op in (Op.WRITE, Op.ALLOCATE, Op.RENAME, Op.MKDIR) or creates or (op == Op.SYNC and self == Kind.ENOSPC_ONCE)
        return self != Kind.NONE


class Op(enum.IntEnum):
    """Sorts of calls; the numbers are faults.c's."""

    MARK = 0
    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    ALLOCATE = 4
    SYNC = 5
    RENAME = 6
    UNLINK = 7
    RMDIR = 8
    MKDIR = 9
    LINK = 10


SYNCED, DIRECTORY, CREATED = 1, 2, 4     # flags of a Call


@dataclasses.dataclass
class Call:
    """One record of a log: the fields of faults.c's `struct record`."""

    number: int
    op: Op
    flags: int
    error: int
    inode: int
    folder: int          # inode of the directory of `path`
    target: int          # inode of the directory of `other`
    offset: int
    length: int
    path: str
    other: str
    data: bytes

    def __str__(self) -> str:
        """Show what the call was, on one line."""
        about = f" {self.length} at {self.offset}" if self.op == Op.WRITE else f" -> {self.other}" if self.other else ""
        return f"{self.number} {self.op.name.lower()} {self.path}{about}"


def read_log(path: str | Path) -> Iterator[Call]:
    """Yield the calls of a log, in their order."""
    with open(path, "rb") as file:
        while head := file.read(RECORD.size):
            number, op, flags, n_path, n_other, error, inode, folder, target, offset, length, n_data = RECORD.unpack(head)
            path, other, data = os.fsdecode(file.read(n_path)), os.fsdecode(file.read(n_other)), file.read(n_data)
            assert len(data) == n_data
            yield Call(number, Op(op), flags, error, inode, folder, target, offset, length, path, other, data)


@functools.cache
def library() -> str:
    """Return the path of the built library; skips the test where there is no compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, to build the library of faults")
    folder = tempfile.TemporaryDirectory(prefix="kvps-faults-")
    _folders.append(folder)
    os.chmod(folder.name, 0o755)
    target = os.path.join(folder.name, "faults.so")
    subprocess.run([compiler, "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", target, SOURCE,
                    "-ldl", "-lpthread"], check=True, timeout=120)
    return target


_folders: list[tempfile.TemporaryDirectory] = []     # removed when the process ends


def preloaded(folder: str | Path | None = None, at: int = 0, kind: Kind = Kind.NONE,
              log: str | Path | None = None) -> dict[str, str]:
    """Return what to add to the environment of a process that the library shall watch; as faults.c's head says."""
    more = {"LD_PRELOAD": library()}
    if folder is not None:
        more |= {"FAULTS_DIR": os.path.realpath(folder), "FAULTS_AT": str(at), "FAULTS_KIND": str(int(kind))}
    if log is not None:
        more["FAULTS_LOG"] = str(log)
    return more


class Loaded:
    """The library as it is loaded into this process; there is one only under LD_PRELOAD."""

    def __init__(self) -> None:
        """Find the functions."""
        self._library = ctypes.CDLL(None)
        self._library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self._library.faults_arm.restype = None
        self._library.faults_mark.argtypes = [ctypes.c_char_p]
        self._library.faults_mark.restype = None
        self._library.faults_calls.restype = ctypes.c_uint
        self._library.faults_fired.restype = ctypes.c_char_p

    def arm(self, folder: str | Path | None, at: int = 0, kind: Kind = Kind.NONE, log: str | Path | None = None, *,
            data: bool = False) -> None:
        """Watch a folder from now on, in this process and those forked from it; None: nothing any more."""
        self._library.faults_arm(os.fsencode(os.path.realpath(folder)) if folder else None, at, kind,
                                 os.fsencode(log) if log else None, data)

    def mark(self, text: str) -> None:
        """Write a mark into the log, if there is one."""
        self._library.faults_mark(text.encode())

    def calls(self) -> int:
        """Return how many calls were watched since arm(), here or in the last child."""
        return self._library.faults_calls()

    def fired(self) -> str:
        """Return the number, sort and path of the call that went wrong, "" if none did."""
        return os.fsdecode(self._library.faults_fired())

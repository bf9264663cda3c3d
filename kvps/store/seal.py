"""The seal of a store: how far it had come, written beside its LMDB files after each version.

A file cannot know that its own last commit vanished. The seal can: a root whose generation is below the one sealed has
gone back in time. It also names the directory in which the root lies, so that a root can be replaced as a whole, and
how long and how old each data file was, so that a file that changed since is looked at before LMDB maps it.
FORMAT.md, "Seal".
"""
from __future__ import annotations

import os
from pathlib import Path

from kvps.errors import CorruptionError, StoreError, VersionMismatch
from kvps.store import files, layout
from kvps.store import format as fmt
from kvps.store.root import Root

NAME = "seal"
KEY = b"seal"             # the checksum covers it, as it covers a record's key in LMDB
MAX_BYTES = 1 << 20       # 1,024 shards take 100 KB


def exists(store: Path) -> bool:
    """Return whether a store has a seal, and so whether it is a store."""
    return files.exists(store / NAME)


def read(store: Path) -> dict:
    """Return the seal of a store; CorruptionError where it is not one."""
    path = store / NAME
    with files.reading(path) as fd:
        value = files.read_exactly(fd, MAX_BYTES, 0)
    record = fmt.unpack_row(KEY, value, str(path))
    fmt.check_identity({**record, "lib_version": fmt.LIB_VERSION}, str(path))
    name = str(record.get("root"))
    if not name.startswith(layout.ROOT) or not name[len(layout.ROOT):].isdigit():
        raise CorruptionError(f"{path}: names the root {name!r}, expected root.N; keep a copy of the store, then run "
                              "kvps recover", path=str(path), key="seal", found=name, expected="root.N")
    return record


def write(store: Path, record: dict) -> None:
    """Replace the seal of a store, durably."""
    files.atomic_write(store / NAME, fmt.pack_row(KEY, {"format": fmt.FORMAT_VERSION, **record}))


def renew(store: Path, root_name: str, root: Root) -> dict:
    """Write the seal of a store as its root is now; return it."""
    state = root.state()
    folders = [root_name, *(place["dir"] for place in state["shards"] if "away" not in place)]
    record = {"uuid": root.identity["uuid"], "root": root_name, "version": state["version"],
              "generation": state["generation"], "files": {name: stamp(store / name / layout.DATA) for name in folders}}
    write(store, record)
    return record


def refuse_old(store: Path) -> None:
    """Raise VersionMismatch for a store of format 1, which has no seal."""
    if files.exists(store / "root" / layout.DATA):
        raise VersionMismatch(f"{store}: is a store of format 1, this kvps reads {fmt.FORMAT_VERSION}; run kvps upgrade on it",
                              path=str(store), found=1, expected=fmt.FORMAT_VERSION)


def none_at(path: Path) -> StoreError:
    """Return the error that says of a path that no store is there."""
    if os.path.isfile(path):
        what = "is a file, expected the folder of a store; a model in a file has no counts: commands that take MODEL read it"
    else:
        what = "is not a kvps store: no seal" if files.exists(path) else "no such store"
    return StoreError(f"{path}: {what}", path=str(path))


def stamp(path: Path) -> list[int]:
    """Return what tells a data file from itself later: its length, its time of change, its inode."""
    with files.reporting(path):
        found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ino]

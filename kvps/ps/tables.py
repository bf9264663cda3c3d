"""The tables of a store: STORE/tables/NAME, each a store directory of its own (kvps/store/FORMAT.md, "Tables")."""
from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kvps._table import order_of
from kvps.errors import ArgumentError, CorruptionError, StoreError
from kvps.ps.keys import check_key_bytes
from kvps.ps.local import LocalShards
from kvps.ps.table import KINDS, CountTable
from kvps.store import creation, files, lock, seal
from kvps.store.directory import open_store
from kvps.store.layout import TABLES
from kvps.units import check_name

# A scan merges the runs of all shards at once; with more shards these could be more than a merge takes.
MAX_SHARDS = 64
DEFAULT_SHARDS = 1         # a push is one transaction then, all or nothing


def table_path(store: Path, name: str) -> Path:
    """Return where a table lies, which need not exist.

    Raises:
        ArgumentError: not the name of a table. StoreError: a symbolic link is in the way.
    """
    check_name("table", name)
    if ".tmp-" in name:        # as directories are called that are being made, or removed
        raise ArgumentError(f'"{name}" cannot be the name of a table: it contains .tmp-')
    for place in (store / TABLES, store / TABLES / name):
        files.refuse_symlink(place)
    return store / TABLES / name


def names(store: Path) -> list[str]:
    """Return the names of the tables of a store."""
    folder = store / TABLES
    files.refuse_symlink(folder)
    if not files.exists(folder):
        return []
    with files.reporting(folder):
        found = sorted(os.listdir(folder))
    return [name for name in found if ".tmp-" not in name and (folder / name).is_dir()]


def exists(store: Path, name: str) -> bool:
    """Return whether a store has a table of this name."""
    return files.exists(table_path(store, name))


def create(store: Path, name: str, kind: str, key_bytes: int, shards: int = DEFAULT_SHARDS) -> None:
    """Make an empty table that is there as a whole or not at all.

    Raises:
        ArgumentError: a name, kind, width or number of shards that is not possible. StoreError: something is there already.
    """
    path = table_path(store, name)
    if kind not in KINDS:
        raise ArgumentError(f'"{kind}" is not a kind of table; there is {", ".join(KINDS)}')
    check_key_bytes(key_bytes)
    if not isinstance(shards, int) or isinstance(shards, bool) or not 1 <= shards <= MAX_SHARDS:
        raise ArgumentError(f"a table of {shards} shards is not possible, expected 1 to {MAX_SHARDS}")
    if files.exists(path):
        raise StoreError(f"{store}: has a table {name} already", path=str(path))
    if not files.exists(path.parent):
        with contextlib.suppress(FileExistsError):
            files.make_dir(path.parent)
        files.fsync_dir(store)
    _sweep(path.parent)
    creation.create_store(path, order_of(key_bytes), shards, None, table={"kind": kind, "key_bytes": key_bytes})


def open_table(store: Path, name: str, *, kind: str | None = None, key_bytes: int | None = None, writable: bool = False,
               wait: float = 0.0) -> CountTable:
    """Open a table.

    Args:
        kind, key_bytes: what the table is expected to be; None: whatever it is.
        writable: keep other writers away until it is closed; without it, only while a push writes.
        wait: how long a writer waits for another one [s].

    Raises:
        StoreError: no such table, or of another kind or width. StoreLocked: another process is writing.
    """
    path = table_path(store, name)
    if not files.exists(path):
        raise StoreError(f"{store}: has no table {name}; there are: {', '.join(names(store)) or '(none)'}", path=str(path))
    opened = open_store(path, writable, wait, command="table", table=True)
    try:
        found = opened.identity["table"]
        refuse_other(path, found, kind, key_bytes)
        if found.get("kind") not in KINDS:
            raise StoreError(f"{path}: is a table of kind {found.get('kind')}, which this kvps does not know; use a newer one",
                             path=str(path))
        return CountTable(name, LocalShards(opened, wait))
    except BaseException:
        opened.close()
        raise


def refuse_other(path: Path, found: dict, kind: str | None, key_bytes: int | None) -> None:
    """Raise StoreError if the table at `path` has another "kind" or "key_bytes" than expected; None: whatever it has."""
    for field, wanted in (("kind", kind), ("key_bytes", key_bytes)):
        if wanted is not None and wanted != found.get(field):
            raise StoreError(f"{path}: is a table with {field} {found.get(field)}, not {wanted}", path=str(path),
                             found=found.get(field), expected=wanted)


def listed(store: Path) -> dict[str, dict]:
    """Return CountTable.stats() of each table, by name; {"name", "damaged": why} of one that cannot be opened."""
    found = {}
    for name in names(store):
        try:
            with open_table(store, name) as table:
                found[name] = table.stats()
        except (CorruptionError, StoreError) as exc:
            found[name] = {"name": name, "damaged": str(exc)}
    return found


def uuid_of(store: Path, name: str) -> str | None:
    """Return what tells a table from a later one of its name; None where it is damaged.

    Raises:
        StoreError: there is no such table.
    """
    path = table_path(store, name)
    if not files.exists(path):
        raise StoreError(f"{store}: has no table {name}; there are: {', '.join(names(store)) or '(none)'}", path=str(path))
    try:
        return seal.read(path)["uuid"]
    except (CorruptionError, StoreError):
        return None


def drop(store: Path, name: str, *, wait: float = 0.0) -> None:
    """Delete a table and everything in it, all or nothing; StoreLocked while another process is writing to it."""
    uuid_of(store, name)           # it is there
    path = table_path(store, name)
    _sweep(path.parent)
    with contextlib.closing(lock.OwnerLock(path, wait_s=wait, command="table drop")):
        gone = path.with_name(f"{name}.tmp-{os.urandom(8).hex()}")
        files.rename(path, gone)
        files.remove_tree(gone)


def _sweep(folder: Path) -> None:
    """Remove tables whose making or removal was killed."""
    with files.reporting(folder):
        unfinished = {entry.partition(".tmp-")[0] for entry in os.listdir(folder) if ".tmp-" in entry}
    for name in unfinished:
        creation.sweep_unfinished(folder / name)

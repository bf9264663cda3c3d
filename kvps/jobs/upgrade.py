"""Carry a store of format 1 to format 2, in place.

    STEP 1  look at every page and every chunk; nothing is written where something is damaged
    STEP 2  each shard, in one transaction: its identity, its manifest with digests, its ledger
    STEP 3  the root, in one transaction: its identity, state, inputs, pending job
    STEP 4  STORE/root becomes STORE/root.0
    STEP 5  the seal is written: from here on it is a store of format 2

Chunks, words and history stay as they are. Each step knows what an earlier run has done, so it can be killed anywhere
and run again; in between neither an old nor a new kvps opens the store, but for this.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from kvps.errors import CorruptionError, StoreError
from kvps.store import directory, environment, extents, files, lock, seal
from kvps.store import format as fmt
from kvps.store.check import shard_folder
from kvps.store.environment import Environment
from kvps.store.root import FIRST_WORD, Root
from kvps.store.transaction import Txn

OLD_ROOT = "root"
OLD = 1
BACKUP = "put back a sound copy of the store"


def upgrade(path: str | Path, *, wait: float = 0.0, progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Carry a store to our format.

    Args:
        path: of the store.
        wait: for another writer [s].
        progress: called with (shards done, shards in all).

    Returns:
        {"store", "from", "to": formats, "version": of the store, "shards"}; from and to are the same where there was
        nothing to do.

    Raises:
        VersionMismatch: it is of a newer format. CorruptionError: it is damaged, and as it was. StoreError: no store.
    """
    path = Path(os.path.abspath(path))
    _recognise(path)
    if seal.exists(path):
        seal.read(path)
        with directory.open_store(path) as store:
            return _result(store.path, fmt.FORMAT_VERSION, store.root.state())
    with contextlib.closing(lock.OwnerLock(path, wait_s=wait, command="upgrade")):
        if seal.exists(path):                      # another process was faster
            with directory.open_store(path) as store:
                return _result(path, fmt.FORMAT_VERSION, store.root.state())
        name = OLD_ROOT if files.exists(path / OLD_ROOT) else f"{directory.ROOT}0"
        root = _Root(path / name)
        root.look(path)
        for number, place in enumerate(root.state["shards"]):
            _look_at_shard(shard_folder(path, number, place["dir"]), number, root)
        for number, place in enumerate(root.state["shards"]):
            _carry_shard(path / place["dir"], root)
            progress(number + 1, len(root.state["shards"]))
        root.carry()
        if name == OLD_ROOT:
            name = f"{directory.ROOT}0"
            files.rename(path / OLD_ROOT, path / name)
        with contextlib.closing(Root.open(path / name, writable=True)) as carried:
            directory.seal_store(path, name, carried)
            return _result(path, OLD, carried.state())


def _result(path: Path, old: int, state: dict) -> dict:
    return {"store": str(path), "from": old, "to": fmt.FORMAT_VERSION, "version": state["version"], "shards": len(state["shards"])}


def _recognise(path: Path) -> None:
    if seal.exists(path) or any((path / name / "data.mdb").exists() for name in (OLD_ROOT, f"{directory.ROOT}0")):
        return
    what = "is not a kvps store" if files.exists(path) else "no such store"
    raise StoreError(f"{path}: {what}", path=str(path))


def _check_format(identity: dict, where: str) -> int:
    """Return the format of a part, 1 or ours; VersionMismatch for any other."""
    if identity.get("format") != OLD:
        fmt.check_identity(identity, where)
    return identity["format"]


def _row(txn: Txn, key: bytes, where: str) -> dict:
    value = txn.get(key)
    if value is None:
        raise fmt.damaged(where, key, "value", "none", "a record")
    return fmt.unpack_row(key, value, where)


def _sound(folder: Path) -> None:
    """STEP 1 for one file: raise CorruptionError unless LMDB may map it."""
    for name in (folder, folder / "data.mdb", folder / "lock.mdb"):
        files.refuse_symlink(name)
    if not files.exists(folder / "data.mdb"):
        raise CorruptionError(f"{folder / 'data.mdb'}: is missing; {BACKUP}", path=str(folder), found="nothing",
                              expected="an LMDB file")
    extents.check(folder / "data.mdb")
    if found := environment.problems(folder / "data.mdb"):
        raise CorruptionError(f"{folder / 'data.mdb'}: {found[0]}, expected a sound tree of pages; {BACKUP}",
                              path=str(folder / "data.mdb"), found=found[0], expected="a sound tree of pages")


class _Root:
    """The root of a store that is being carried."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder / "data.mdb")
        self.identity: dict = {}
        self.state: dict = {}
        self.n_words = FIRST_WORD          # the first id that is not used

    def look(self, path: Path) -> None:
        """Read it all; CorruptionError or VersionMismatch where it cannot be carried."""
        _sound(self.folder)
        with contextlib.closing(Environment.open(self.folder)) as env, env.read() as txn:
            self.identity = _row(txn, fmt.IDENTITY, self.where)
            _check_format(self.identity, self.where)
            self.state = _row(txn, fmt.STATE, self.where)
            if self.state.get("txn") != txn.id:
                raise fmt.damaged(self.where, fmt.STATE, "transaction id", self.state.get("txn"), txn.id)
            for kind in (fmt.HISTORY, fmt.INPUT, fmt.JOB):
                for key, value in txn.scan(kind):
                    fmt.unpack_row(key, value, self.where)
            for key, value in txn.scan(fmt.WORDS):
                if int.from_bytes(key[1:]) != self.n_words:
                    raise fmt.damaged(self.where, key, "first id", int.from_bytes(key[1:]), self.n_words)
                self.n_words += len(fmt.check_words(fmt.unpack_blob(key, value, self.where)))
        for number, place in enumerate(self.state["shards"]):
            shard_folder(path, number, place["dir"])

    def carry(self) -> None:
        """STEP 3."""
        with contextlib.closing(Environment.open(self.folder, writable=True)) as env:
            if _is_old(env, self.where):
                with env.write() as txn:
                    self._carry(txn)

    def _carry(self, txn: Txn) -> None:
        identity = _row(txn, fmt.IDENTITY, self.where)
        for key, value in list(txn.scan(fmt.INPUT)):
            row = fmt.unpack_row(key, value, self.where)
            txn.put(key, fmt.pack_row(key, {**row, "times": {"": row["times"]}}))
        job = txn.get(fmt.JOB)
        if job is not None:
            row = fmt.unpack_row(fmt.JOB, job, self.where)
            txn.put(fmt.JOB, fmt.pack_row(fmt.JOB, {"label": None, "gone_labels": [], **row}))
        state = {**_row(txn, fmt.STATE, self.where), "epoch": 0, "generation": 1, "txn": txn.id}
        txn.put(fmt.STATE, fmt.pack_row(fmt.STATE, state))
        txn.put(fmt.IDENTITY, fmt.pack_row(fmt.IDENTITY, {**identity, "format": fmt.FORMAT_VERSION}))


def _is_old(env: Environment, where: str) -> bool:
    """Return whether a part is not carried yet."""
    with env.read() as txn:
        return _check_format(_row(txn, fmt.IDENTITY, where), where) == OLD


def _look_at_shard(folder: Path, number: int, root: _Root) -> None:
    """STEP 1 for one shard."""
    _sound(folder)
    where = str(folder / "data.mdb")
    with contextlib.closing(_open(folder, root)) as env, env.read() as txn:
        identity = _row(txn, fmt.IDENTITY, where)
        _check_format(identity, where)
        for field, wanted in (("uuid", root.identity["uuid"]), ("shard", number), ("order", root.identity["order"])):
            if identity.get(field) != wanted:
                raise fmt.damaged(where, fmt.IDENTITY, field, identity.get(field), wanted)
        manifest = _row(txn, fmt.MANIFEST, where)
        if manifest.get("txn") != txn.id:
            raise fmt.damaged(where, fmt.MANIFEST, "transaction id", manifest.get("txn"), txn.id)
        if manifest["generation"] < (least := root.state["shards"][number]["generation"]):
            raise fmt.damaged(where, fmt.MANIFEST, "generation", manifest["generation"], f"at least {least}")
        for row in manifest["runs"]:
            n_keys = n_bytes = 0
            for index in range(row["chunks"]):
                key = fmt.chunk_key(row["id"], index)
                value = txn.view(key)
                if value is None:
                    raise fmt.damaged(where, key, "value", "none", f"chunk {index} of {row['chunks']}")
                _, keys, _ = fmt.unpack_chunk(key, value, where)
                n_keys, n_bytes = n_keys + keys, n_bytes + len(value)
            if (n_keys, n_bytes) != (row["keys"], row["bytes"]):
                raise fmt.damaged(where, fmt.MANIFEST, f"run {row['id']} has keys and bytes", (n_keys, n_bytes),
                                  (row["keys"], row["bytes"]))
        for key, value in txn.scan(fmt.LEDGER):
            fmt.unpack_row(key, value, where)


def _open(folder: Path, root: _Root, *, writable: bool = False) -> Environment:
    return Environment.open(folder, writable=writable, map_bytes=directory.map_bytes(root.identity["shards"]))


def _carry_shard(folder: Path, root: _Root) -> None:
    """STEP 2 for one shard."""
    where = str(folder / "data.mdb")
    with contextlib.closing(_open(folder, root, writable=True)) as env:
        if not _is_old(env, where):
            return
        with env.write() as txn:
            _carry_records(txn, where, root)


def _carry_records(txn: Txn, where: str, root: _Root) -> None:
    identity = _row(txn, fmt.IDENTITY, where)
    manifest = _row(txn, fmt.MANIFEST, where)
    runs = [{**row, "label": None, "until": None, "digest": _digest(txn, row)} for row in manifest["runs"]]
    for key, value in list(txn.scan(fmt.LEDGER)):
        # The words of a split were stored before it was applied, so the root has them all.
        txn.put(key, fmt.pack_row(key, {"words": root.n_words, **fmt.unpack_row(key, value, where)}))
    manifest |= {"epoch": 0, "runs": runs, "generation": manifest["generation"] + 1, "txn": txn.id}
    txn.put(fmt.MANIFEST, fmt.pack_row(fmt.MANIFEST, manifest))
    txn.put(fmt.IDENTITY, fmt.pack_row(fmt.IDENTITY, {**identity, "format": fmt.FORMAT_VERSION}))


def _digest(txn: Txn, row: dict) -> str:
    digest = "0" * 16
    for index in range(row["chunks"]):
        key = fmt.chunk_key(row["id"], index)
        digest = fmt.add_digest(digest, fmt.chunk_digest(key, txn.get(key)))
    return digest

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

from kvps.errors import CorruptionError
from kvps.store import directory, environment, extents, files, layout, lock, records, seal
from kvps.store import format as fmt
from kvps.store.environment import Environment
from kvps.store.root import FIRST_WORD, Root
from kvps.store.runs import RunTotal
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
        VersionMismatch: it is of a newer format. CorruptionError: it is damaged, and as it was; or it is of our format and
            has lost its seal. StoreError: no store.
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
        name = OLD_ROOT if files.exists(path / OLD_ROOT) else layout.roots(path)[0]
        root = _Root(path / name)
        root.look(path)
        if name != OLD_ROOT and not root.just_carried:
            raise CorruptionError(f"{path}: is of format {fmt.FORMAT_VERSION} already, but its seal is missing: run kvps recover",
                                  path=str(path), key="seal", found="nothing", expected="a seal")
        for number, place in enumerate(root.state["shards"]):
            _look_at_shard(layout.shard_folder(path, number, place["dir"]), number, root)
        for number, place in enumerate(root.state["shards"]):
            _carry_shard(path / place["dir"], root)
            progress(number + 1, len(root.state["shards"]))
        root.carry()
        if name == OLD_ROOT:
            name = layout.first_root()
            files.rename(path / OLD_ROOT, path / name)
        with contextlib.closing(Root.open(path / name, writable=True)) as carried:
            seal.renew(path, name, carried)
            return _result(path, OLD, carried.state())


def _result(path: Path, old: int, state: dict) -> dict:
    return {"store": str(path), "from": old, "to": fmt.FORMAT_VERSION, "version": state["version"], "shards": len(state["shards"])}


def _recognise(path: Path) -> None:
    if seal.exists(path) or any((path / name / layout.DATA).exists() for name in (OLD_ROOT, *layout.roots(path))):
        return
    raise seal.none_at(path)


def _check_format(identity: dict, where: str) -> int:
    """Return the format of a part, 1 or ours; VersionMismatch for any other."""
    if identity.get("format") != OLD:
        fmt.check_identity(identity, where)
    return identity["format"]


def _sound(folder: Path) -> None:
    """STEP 1 for one file: raise CorruptionError unless LMDB may map it."""
    for name in (folder, folder / layout.DATA, folder / "lock.mdb"):
        files.refuse_symlink(name)
    if not files.exists(folder / layout.DATA):
        raise CorruptionError(f"{folder / 'data.mdb'}: is missing; {BACKUP}", path=str(folder), found="nothing",
                              expected="an LMDB file")
    extents.check(folder / layout.DATA)
    if found := environment.problems(folder / layout.DATA):
        raise CorruptionError(f"{folder / 'data.mdb'}: {found[0]}, expected a sound tree of pages; {BACKUP}",
                              path=str(folder / layout.DATA), found=found[0], expected="a sound tree of pages")


class _Root:
    """The root of a store that is being carried."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder / layout.DATA)
        self.identity: dict = {}
        self.state: dict = {}
        self.n_words = FIRST_WORD          # the first id that is not used

    def look(self, path: Path) -> None:
        """Read it all; CorruptionError or VersionMismatch where it cannot be carried."""
        _sound(self.folder)
        with contextlib.closing(Environment.open(self.folder)) as env, env.read() as txn:
            self.identity = records.required(txn, fmt.IDENTITY)
            _check_format(self.identity, self.where)
            self.state = records.current(txn, fmt.STATE)
            for kind in (fmt.HISTORY, fmt.INPUT, fmt.JOB):
                for _ in records.rows(txn, kind):
                    pass
            for key, value in txn.scan(fmt.WORDS):
                if int.from_bytes(key[1:]) != self.n_words:
                    raise fmt.damaged(self.where, key, "first id", int.from_bytes(key[1:]), self.n_words)
                self.n_words += len(fmt.check_words(fmt.unpack_blob(key, value, self.where)))
        for number, place in enumerate(self.state["shards"]):
            layout.shard_folder(path, number, place["dir"])

    @property
    def just_carried(self) -> bool:
        """Whether nobody has written to this root since step 3, which alone leaves these numbers: a writer begins an epoch."""
        return (self.state.get("epoch"), self.state.get("generation")) == (0, 1)

    def carry(self) -> None:
        """STEP 3."""
        with contextlib.closing(Environment.open(self.folder, writable=True)) as env:
            if _is_old(env, self.where):
                with env.write() as txn:
                    self._carry(txn)

    def _carry(self, txn: Txn) -> None:
        identity = records.required(txn, fmt.IDENTITY)
        for key, row in list(records.rows(txn, fmt.INPUT)):
            records.put(txn, key, {**row, "times": {"": row["times"]}})
        job = records.row(txn, fmt.JOB)
        if job is not None:
            records.put(txn, fmt.JOB, {"label": None, "gone_labels": [], **job})
        state = {**records.required(txn, fmt.STATE), "epoch": 0, "generation": 1, "txn": txn.id}
        records.put(txn, fmt.STATE, state)
        records.put(txn, fmt.IDENTITY, {**identity, "format": fmt.FORMAT_VERSION})


def _is_old(env: Environment, where: str) -> bool:
    """Return whether a part is not carried yet."""
    with env.read() as txn:
        return _check_format(records.required(txn, fmt.IDENTITY), where) == OLD


def _look_at_shard(folder: Path, number: int, root: _Root) -> None:
    """STEP 1 for one shard."""
    _sound(folder)
    where = str(folder / layout.DATA)
    with contextlib.closing(_open(folder, root)) as env, env.read() as txn:
        identity = records.required(txn, fmt.IDENTITY)
        _check_format(identity, where)
        for field, wanted in (("uuid", root.identity["uuid"]), ("shard", number), ("order", root.identity["order"])):
            if identity.get(field) != wanted:
                raise fmt.damaged(where, fmt.IDENTITY, field, identity.get(field), wanted)
        manifest = records.current(txn, fmt.MANIFEST)
        if manifest["generation"] < (least := root.state["shards"][number]["generation"]):
            raise fmt.damaged(where, fmt.MANIFEST, "generation", manifest["generation"], f"at least {least}")
        for row in manifest["runs"]:
            total = _total(txn, row)
            if (total.n_keys, total.bytes) != (row["keys"], row["bytes"]):
                raise fmt.damaged(where, fmt.MANIFEST, f"run {row['id']} has keys and bytes", (total.n_keys, total.bytes),
                                  (row["keys"], row["bytes"]))
        for _ in records.rows(txn, fmt.LEDGER):
            pass


def _open(folder: Path, root: _Root, *, writable: bool = False) -> Environment:
    return Environment.open(folder, writable=writable, map_bytes=layout.map_bytes(root.identity["shards"]))


def _carry_shard(folder: Path, root: _Root) -> None:
    """STEP 2 for one shard."""
    where = str(folder / layout.DATA)
    with contextlib.closing(_open(folder, root, writable=True)) as env:
        if not _is_old(env, where):
            return
        with env.write() as txn:
            _carry_records(txn, root)


def _carry_records(txn: Txn, root: _Root) -> None:
    identity = records.required(txn, fmt.IDENTITY)
    manifest = records.required(txn, fmt.MANIFEST)
    runs = [{**row, "label": None, "until": None, "digest": _total(txn, row).digest} for row in manifest["runs"]]
    for key, row in list(records.rows(txn, fmt.LEDGER)):
        # The words of a split were stored before it was applied, so the root has them all.
        records.put(txn, key, {"words": root.n_words, **row})
    records.put_current(txn, fmt.MANIFEST, {**manifest, "epoch": 0, "runs": runs})
    records.put(txn, fmt.IDENTITY, {**identity, "format": fmt.FORMAT_VERSION})


def _total(txn: Txn, row: dict) -> RunTotal:
    """Return what the chunks of a run add up to; CorruptionError where one is missing or damaged."""
    total = RunTotal()
    for index in range(row["chunks"]):
        key = fmt.chunk_key(row["id"], index)
        value = txn.get(key)
        if value is None:
            raise fmt.damaged(txn.where, key, "value", "none", f"chunk {index} of {row['chunks']}")
        total.add(key, value, fmt.unpack_chunk(key, value, txn.where)[1])
    return total

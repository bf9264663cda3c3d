"""A whole store on disk: STORE/root, STORE/shards/NNNN.G, STORE/owner.lock; made, opened and read as one.

Which directory holds which shard is written in the root's state, so a shard can be replaced by another copy of itself
in one commit, while readers keep the old one.
"""
from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvps.errors import CorruptionError, StoreError
from kvps.store import environment, files, lock
from kvps.store.root import Root
from kvps.store.shard import Shard, Snapshot

ROOT = "root"
SHARDS = "shards"
MAX_SHARDS = 1024
ADDRESS_BYTES = 62 << 40      # a process has 128 TiB of addresses on x86-64; all shards of a store share half of it
SNAPSHOT_TRIES = 1000         # a retry means that a version was committed within the few microseconds of opening


def map_bytes(n_shards: int) -> int:
    """Return the length of each shard's memory map."""
    return min(environment.MAP_BYTES, ADDRESS_BYTES // n_shards // 4096 * 4096)


def create_store(path: str | Path, order: int, shards: int, tokenizer: dict, *, force: bool = False) -> None:
    """Make an empty store, at version 0, that is there as a whole or not at all.

    Args:
        path: must not exist, or be an empty directory.
        order: of the n-grams, recorded in every shard and chunk.
        shards: how many, 1 to 1024; fixed for the life of the store.
        tokenizer: recorded as it is; JSON.
        force: allow a network file system.
    """
    path = Path(os.path.abspath(path))
    if not 1 <= shards <= MAX_SHARDS:
        raise StoreError(f"{shards} shards are not possible, expected 1 to {MAX_SHARDS}", path=str(path))
    _refuse_occupied(path)
    _check_file_system(path.parent, force)
    sweep_unfinished(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.urandom(8).hex()}")
    files.make_dir(temporary)
    owner = None
    try:
        owner = lock.OwnerLock(temporary, command="create")
        uuid = os.urandom(16).hex()
        files.make_dir(temporary / SHARDS)
        names = [f"{SHARDS}/{number:04d}.0" for number in range(shards)]
        for number, name in enumerate(names):
            identity = {"uuid": uuid, "shard": number, "shards": shards, "order": order}
            Shard.create(temporary / name, identity, map_bytes=map_bytes(shards)).close()
            files.fsync_dir(temporary / name)
        identity = {"uuid": uuid, "order": order, "shards": shards, "tokenizer": tokenizer, "created": time.time()}
        Root.create(temporary / ROOT, identity, names).close()
        for folder in (temporary / ROOT, temporary / SHARDS, temporary):
            files.fsync_dir(folder)
        _refuse_occupied(path)
        files.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(StoreError, OSError):
            files.remove_tree(temporary)
        raise
    finally:
        if owner is not None:
            owner.close()


def _refuse_occupied(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if files.exists(path / ROOT / "data.mdb"):
        raise StoreError(f"{path}: is a store already", path=str(path))
    with files.reporting(path):
        occupied = not path.is_dir() or path.is_symlink() or bool(os.listdir(path))
    if occupied:
        raise StoreError(f"{path}: is something else; name a folder that does not exist yet", path=str(path))


def sweep_unfinished(path: Path) -> None:
    """Remove what creations of the store `path` left that were killed; a creation at work holds its owner lock."""
    for folder in path.parent.glob(f"{_escaped(path.name)}.tmp-*"):
        with contextlib.suppress(StoreError, OSError):
            if not (folder / lock.NAME).exists() and time.time() - folder.stat().st_mtime < 60:
                continue       # perhaps made this instant, and about to be locked
            with contextlib.closing(lock.OwnerLock(folder, command="sweep")):
                files.remove_tree(folder)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _check_file_system(path: Path, force: bool) -> None:
    kind = files.file_system(path)
    if kind in files.NETWORK_FILE_SYSTEMS and not force:
        raise StoreError(f"{path}: lies on a network file system ({kind}), where locks and syncs may not hold; "
                         "use a local disk", path=str(path))


@dataclass
class StoreSnapshot:
    """A store at one committed version: every shard's state as readers of that version see it."""

    version: int
    state: dict
    shards: list[Snapshot]


class StoreDirectory:
    """A store that is open. Made by open_store()."""

    def __init__(self, path: Path, root: Root, writable: bool, owner: lock.OwnerLock | None) -> None:
        self.path, self.root, self.writable, self.lock = path, root, writable, owner
        self.identity = root.identity
        self.shards: list[Shard] = []
        self._names: list[str] = []
        self._turn = threading.Lock()

    def _follow(self, state: dict) -> None:
        """Open the shard directories that `state` names, and close those that were replaced; holding self._turn."""
        for number, place in enumerate(state["shards"]):
            name = place["dir"]
            if number < len(self._names) and self._names[number] == name:
                continue
            shard = self._open_shard(number, name, place["generation"])
            if number < len(self.shards):
                self.shards[number].close()
            self.shards[number:number + 1] = [shard]
            self._names[number:number + 1] = [name]

    def _open_shard(self, number: int, name: str, generation: int) -> Shard:
        folder = self.path / name
        expected = f"{SHARDS}/{number:04d}."
        if not name.startswith(expected) or not name[len(expected):].isdigit():
            raise CorruptionError(f"{self.path}: shard {number} is said to be in {name}, expected {expected}N",
                                  path=str(self.path), key=f"shard {number}", found=name, expected=expected)
        files.refuse_symlink(folder)
        shard = Shard.open(folder, self.identity["uuid"], self.writable, shard=number,
                           map_bytes=map_bytes(self.identity["shards"]))
        if shard.generation < generation:
            found = shard.generation
            shard.close()
            raise CorruptionError(f"{folder}: shard {number} went back in time: its generation is {found}, expected at "
                                  f"least {generation}; put back a sound copy of the whole store",
                                  path=str(folder), key="manifest", found=found, expected=generation)
        return shard

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[StoreSnapshot]:
        """Give the last committed version, whole, whatever a writer does meanwhile; one thread at a time."""
        with contextlib.ExitStack() as stack:
            for _ in range(SNAPSHOT_TRIES):
                state = self.root.state()
                with contextlib.ExitStack() as attempt:
                    try:
                        with self._turn:
                            self._follow(state)
                            snaps = [attempt.enter_context(shard.snapshot()) for shard in self.shards]
                    except (StoreError, CorruptionError):
                        if self.root.state() == state:
                            raise
                        continue       # a shard moved between our two looks
                    if _committed(self.root.state()) == _committed(state):
                        stack.push(attempt.pop_all())
                        break
            else:
                raise StoreError(f"{self.path}: versions are committed faster than they can be read",
                                 path=str(self.path))
            yield StoreSnapshot(state["version"], state, snaps)

    def generations(self) -> list[int]:
        """Return each shard's generation, for Root.commit_job()."""
        return [shard.generation for shard in self.shards]

    def vacuum(self) -> None:
        """Copy each shard into a new directory without its free pages, and remove the old one."""
        for number in range(len(self.shards)):
            old = self._names[number]
            name = f"{SHARDS}/{number:04d}.{int(old.rpartition('.')[2]) + 1}"
            files.remove_tree(self.path / name)       # what a killed vacuum left
            self.shards[number].copy_to(self.path / name)
            files.fsync_dir(self.path / name)
            files.fsync_dir(self.path / SHARDS)
            self.root.move_shard(number, name, self.shards[number].generation)
            with self._turn:
                self._follow(self.root.state())
            files.remove_tree(self.path / old)

    def sweep_directories(self) -> None:
        """Remove shard directories that the root does not name: copies that were not finished, or were replaced."""
        with files.reporting(self.path / SHARDS):
            folders = sorted((self.path / SHARDS).iterdir())
        for folder in folders:
            if f"{SHARDS}/{folder.name}" not in self._names and not folder.is_symlink():
                files.remove_tree(folder)

    def bytes(self) -> dict[str, int]:
        """Return {"file", "live"} summed over the root and all shards [bytes]."""
        parts = [self.root.bytes(), *(shard.bytes() for shard in self.shards)]
        return {key: sum(part[key] for part in parts) for key in ("file", "live")}

    def close(self) -> None:
        """Close everything and let the next writer in; snapshots that are open stay readable."""
        for shard in self.shards:
            shard.close()
        self.root.close()
        if self.lock is not None:
            self.lock.close()

    def __enter__(self) -> StoreDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _committed(state: dict) -> tuple[int, list[str]]:
    return state["version"], [place["dir"] for place in state["shards"]]


def open_store(path: str | Path, writable: bool = False, wait: float = 0.0, *, command: str = "",
               force: bool = False) -> StoreDirectory:
    """Open a store; a writer takes the owner lock first, a reader takes none.

    Args:
        path: of the store's directory; it may itself be a symbolic link.
        writable: for the one writer.
        wait: how long a writer waits for the lock [s].
        command: what the writer is about to do, for the messages of others.
        force: allow a network file system.

    Raises:
        StoreError: `path` is no store, or may not be read.
        StoreLocked: somebody else is writing.
        VersionMismatch: a format that this kvps does not read.
        CorruptionError: damaged.
    """
    path = Path(os.path.abspath(path))
    if not files.exists(path / ROOT / "data.mdb"):
        what = "is not a kvps store: no root/data.mdb" if files.exists(path) else "no such store"
        raise StoreError(f"{path}: {what}", path=str(path))
    for inner in (path / ROOT, path / SHARDS, path / lock.NAME):
        files.refuse_symlink(inner)
    if stat.S_IMODE(os.stat(path).st_mode) & stat.S_IWOTH:
        raise StoreError(f"{path}: everybody may write in it; chmod o-w it first", path=str(path))
    _check_file_system(path, force)
    owner = None
    if writable:
        owner = lock.OwnerLock(path, wait_s=wait, command=command)
    elif not environment.can_register(path / ROOT):
        # A reader that no writer can see is safe only while there is no writer.
        owner = lock.OwnerLock(path, shared=True)
    store = None
    try:
        store = StoreDirectory(path, Root.open(path / ROOT, writable), writable, owner)
        with store.snapshot():
            pass
        if writable:
            store.sweep_directories()
        return store
    except BaseException:
        if store is not None:
            store.close()
        elif owner is not None:
            owner.close()
        raise

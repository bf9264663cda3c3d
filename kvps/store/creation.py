"""Make a store that is there as a whole or not at all: under a temporary name, which its last step changes.

A store that is empty and one that is restored from a checkpoint are made here, and differ in what they are filled with.
"""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kvps.errors import StoreError
from kvps.store import files, layout, lock, seal
from kvps.store.root import Root
from kvps.store.shard import Shard


def create_store(path: str | Path, order: int, shards: int, tokenizer: dict | None, *, table: dict | None = None,
                 force: bool = False) -> None:
    """Make an empty store, at version 0.

    Args:
        path: must not exist, or be an empty directory.
        order: of the n-grams, recorded in every shard and chunk.
        shards: how many, 1 to 1024.
        tokenizer: recorded as it is; JSON. None: a table is made.
        table: recorded in its place: what kind of table it is.
        force: allow a network file system.
    """
    path = Path(os.path.abspath(path))
    if not 1 <= shards <= layout.MAX_SHARDS:
        raise StoreError(f"{shards} shards are not possible, expected 1 to {layout.MAX_SHARDS}", path=str(path))
    refuse_place(path, force)
    kind = {"tokenizer": tokenizer} if table is None else {"table": table}
    make_store(path, {"order": order, "shards": shards, "created": time.time(), **kind}, command="create")


def refuse_place(path: Path, force: bool) -> None:
    """Raise StoreError unless a store can be made at `path`; `force` allows a network file system."""
    _refuse_occupied(path)
    files.refuse_network(path.parent, force)


def make_store(path: Path, identity: dict, *, command: str, fill_shard: Callable[[Shard], None] = lambda shard: None,
               fill_root: Callable[[Root, list[int]], None] = lambda root, generations: None,
               verify: Callable[[Path], None] = lambda folder: None) -> str:
    """Make a store and return its uuid; whatever goes wrong, there is none.

    Args:
        path: absolute; refuse_place() has nothing against it.
        identity: order, shards, tokenizer, created, and what else the root is to know of itself.
        command: for the messages of others.
        fill_shard: called with each shard, empty, in the order of their numbers.
        fill_root: called with the root, at version 0, and the generations of the shards.
        verify: called with the folder when all is there but the name; may open it for reading.
    """
    uuid = os.urandom(16).hex()
    with _under_temporary_name(path, command) as folder:
        files.make_dir(folder / layout.SHARDS)
        names = [layout.first_shard(number) for number in range(identity["shards"])]
        generations = []
        for number, name in enumerate(names):
            own = {"uuid": uuid, "shard": number, "shards": len(names), "order": identity["order"]}
            with contextlib.closing(Shard.create(folder / name, own, map_bytes=layout.map_bytes(len(names)))) as shard:
                fill_shard(shard)
                generations.append(shard.generation)
            files.fsync_dir(folder / name)
        name = layout.first_root()
        with contextlib.closing(Root.create(folder / name, {**identity, "uuid": uuid}, names)) as root:
            fill_root(root, generations)
            for inner in (folder / name, folder / layout.SHARDS):
                files.fsync_dir(inner)
            seal.renew(folder, name, root)
        files.fsync_dir(folder)
        verify(folder)
    return uuid


@contextlib.contextmanager
def _under_temporary_name(path: Path, command: str) -> Iterator[Path]:
    """Give a new folder, locked, that becomes `path` when the block ends, and is removed where it fails."""
    sweep_unfinished(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.urandom(8).hex()}")
    files.make_dir(temporary)
    owner = None
    try:
        owner = lock.OwnerLock(temporary, command=command)
        yield temporary
        _refuse_occupied(path)
        files.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(StoreError, OSError):
            files.remove_tree(temporary)
        raise
    finally:
        if owner is not None:
            owner.close()


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


def _refuse_occupied(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if seal.exists(path):
        raise StoreError(f"{path}: is a store already", path=str(path))
    with files.reporting(path):
        occupied = not path.is_dir() or path.is_symlink() or bool(os.listdir(path))
    if occupied:
        raise StoreError(f"{path}: is something else; name a folder that does not exist yet", path=str(path))

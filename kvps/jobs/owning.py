"""Become the writer of what is to be served: of a store, some of whose shards may go to other machines, or of shards alone."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from kvps.errors import ArgumentError, StoreError
from kvps.ps.away import NewShard
from kvps.ps.connection import Connection
from kvps.store import files, layout, lock, rebuild, seal
from kvps.store.directory import StoreDirectory, open_store
from kvps.store.lock import OwnerLock

HEIRS_S = 3.0                  # how long the servers of a starter that was killed may take to end
OURS = {layout.SHARDS, lock.NAME, "store", "socket"}        # what lies in a folder of shards


def take_over(store: Path, command: str, wait: float = 0.0, away: Mapping[int, Callable[[], Connection]] = MappingProxyType({}),
              ) -> tuple[OwnerLock, int]:
    """Become the writer of a store, whose servers are still to be started; return the owner lock and the number of shards.

    away: connects to the servers of the shards that are on other machines; those that are still here go there first.

    Raises:
        StoreError: a shard is on another machine, and `away` has it not; or a job is pending, and a shard is to go there.
    """
    open_store(store, whole=False).close()     # it is a store, before a lock is made in it
    owner = OwnerLock(store, wait_s=max(wait, HEIRS_S), command=command)
    try:
        with StoreDirectory(store, True, None) as directory:
            directory.root.adopt()             # a client that began its session before goes on with it
            version, job = directory.root.state()["version"], directory.root.job_id()
            for shard in directory.follow():
                shard.sweep(version, job)
            _move_away(directory, away)
            n_shards = len(directory.shards)
            directory.follow()
            directory.sweep_directories()
            directory.reseal()
    except BaseException:
        owner.close()
        raise
    return owner, n_shards


def _move_away(directory: StoreDirectory, away: Mapping[int, Callable[[], Connection]]) -> None:
    """Let shards that are here, and are to be on other machines, go there."""
    places, n_words = directory.root.state()["shards"], directory.root.next_word()
    for number, place in enumerate(places):
        if place.get("away") and number not in away:
            raise StoreError(f"{directory.path}: shard {number} lies on another machine; say where: --away "
                             f"{number}=ADDRESS, on Ray the resource of that machine", path=str(directory.path), shard=number)
    if not away.keys() <= set(range(len(places))):
        raise ArgumentError(f"{directory.path}: has {len(places)} shards, no shard {max(away)}")
    for number in sorted(number for number in away if not places[number].get("away")):
        if directory.root.job_id() is not None:
            raise StoreError(f"{directory.path}: a job was interrupted; resume or abort it before shard {number} goes to another "
                             "machine", path=str(directory.path), shard=number)
        name, version = layout.later(places[number]["dir"]), directory.root.state()["version"]
        with directory.shards[number].snapshot() as snapshot, contextlib.closing(NewShard(
                away[number](), rebuild.new_identity(directory.identity, number), name, above=snapshot.following,
                epoch=directory.root.next_epoch)) as new:
            new.take(snapshot, version)
            generation = new.finish(n_words, version)
        directory.root.move_shard(number, name, generation, away=True)


def home_lock(folder: Path, command: str, wait: float = 0.0) -> OwnerLock:
    """Return the lock of a folder of shards whose root is on another machine; the folder is made if it is not there.

    Raises:
        StoreError: the folder is something else. StoreLocked: somebody else has it.
    """
    if seal.exists(folder):
        raise StoreError(f"{folder}: is a store itself; shards of a store on another machine need a folder of their own",
                         path=str(folder))
    if not files.exists(folder):
        files.refuse_network(folder.parent, False)
        files.make_dir(folder)
        files.fsync_dir(folder.parent)
    files.refuse_network(folder, False)
    for inner in (folder / layout.SHARDS, folder / lock.NAME):
        files.refuse_symlink(inner)
    if any(name not in OURS and not name.startswith("socket.") for name in os.listdir(folder)):
        raise StoreError(f"{folder}: is something else; name a folder that does not exist yet", path=str(folder))
    return OwnerLock(folder, wait_s=max(wait, HEIRS_S), command=command)

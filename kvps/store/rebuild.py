"""Put a shard that was made anew in the place of a damaged one, which is kept.

    STEP 1  make shards/NNNN.G.new, above every generation that the damaged one may have reached
    STEP 2  fill it: from a checkpoint, by the caller from text
    STEP 3  rename it to shards/NNNN.G; move what was there to STORE/damaged
    STEP 4  let the root name it: from here on it is in force

Killed before step 4, the store is as damaged as before, nothing of the damaged shard is lost, and all is done again.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvps.store import files, layout
from kvps.store.checkpoint import Checkpoint, fill_shard
from kvps.store.depot import Depot
from kvps.store.root import Root
from kvps.store.shard import Shard

UNFINISHED = ".new"
# A job makes far fewer transactions, so no number of a run or generation of the damaged shard comes again.
AHEAD = 1 << 32


def new_identity(identity: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what a new shard of a store knows of itself."""
    return {"uuid": identity["uuid"], "shard": number, "shards": identity["shards"], "order": identity["order"]}


def begin(path: Path, root: Root, number: int) -> Shard:
    """STEP 1: return the new shard, empty and writable."""
    place = root.state()["shards"][number]
    folder = path / (layout.following(place["dir"]) + UNFINISHED)
    files.remove_tree(folder)
    if not files.exists(folder.parent):
        files.make_dir(folder.parent)
    identity = new_identity(root.identity, number)
    return Shard.create(folder, identity, map_bytes=layout.map_bytes(identity["shards"]), epoch=root.next_epoch,
                        above=place["generation"] + AHEAD)


def fill(shard: Shard, depot: Depot, checkpoint: Checkpoint, gone_labels: Collection[str],
         advance: Callable[[int], None] = lambda n_bytes: None) -> None:
    """STEP 2: take the runs of a checkpoint but those of some labels.

    Raises:
        CorruptionError: the checkpoint is damaged.
    """
    fill_shard(shard, depot, [kept for kept in checkpoint.shards[shard.shard] if kept.run.label not in gone_labels], advance)


@contextlib.contextmanager
def old_shard(scratch: Path, root: Root, depot: Depot, checkpoint: Checkpoint, number: int,
              gone_labels: Collection[str]) -> Iterator[Shard]:
    """Give, for a while, shard `number` of a checkpoint whose shards are not those of the store, filled as by fill()."""
    folder = scratch / f"checkpoint{UNFINISHED}"
    files.remove_tree(folder)
    identity = {**new_identity(root.identity, number), "shards": len(checkpoint.shards)}
    try:
        with contextlib.closing(Shard.create(folder, identity, map_bytes=layout.map_bytes(identity["shards"]))) as shard:
            fill(shard, depot, checkpoint, gone_labels)
            yield shard
    finally:
        files.remove_tree(folder)


def finish(path: Path, root: Root, shard: Shard) -> str:
    """STEPS 3 and 4, of a shard that is filled; it is closed. Return the folder that is in force now."""
    number, generation = shard.shard, shard.generation
    shard.close()
    place = root.state()["shards"][number]
    name = layout.following(place["dir"])
    folder = path / name
    for old in (folder, path / place["dir"]):
        keep(path, old)
    files.fsync_dir(path / (name + UNFINISHED))
    files.rename(path / (name + UNFINISHED), folder)
    root.move_shard(number, name, generation)
    return name


def keep(path: Path, folder: Path) -> None:
    """Move a folder to STORE/damaged, under a name that is free there; fine if it is not there."""
    if not os.path.lexists(folder):
        return
    kept = path / layout.KEPT
    files.refuse_symlink(kept)
    if not files.exists(kept):
        files.make_dir(kept)
        files.fsync_dir(path)
    name, number = folder.name, 1
    while os.path.lexists(kept / name):
        number += 1
        name = f"{folder.name}-{number}"
    files.rename(folder, kept / name)
    files.fsync_dir(folder.parent)

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
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from kvps.store import directory, files
from kvps.store.check import KEPT
from kvps.store.root import Root
from kvps.store.shard import Shard

if TYPE_CHECKING:
    from kvps.store.checkpoint import Checkpoint
    from kvps.store.depot import Depot

UNFINISHED = ".new"
# A job makes far fewer transactions, so no number of a run or generation of the damaged shard comes again.
AHEAD = 1 << 32


def new_name(place: dict) -> str:
    """Return the folder that will take the place of one in the root's state."""
    stem, _, number = place["dir"].rpartition(".")
    return f"{stem}.{int(number) + 1}"


def begin(path: Path, root: Root, number: int) -> Shard:
    """STEP 1: return the new shard, empty and writable."""
    place = root.state()["shards"][number]
    folder = path / (new_name(place) + UNFINISHED)
    files.remove_tree(folder)
    if not files.exists(folder.parent):
        files.make_dir(folder.parent)
    identity = {"uuid": root.identity["uuid"], "shard": number, "shards": root.identity["shards"], "order": root.identity["order"]}
    shard = Shard.create(folder, identity, map_bytes=directory.map_bytes(identity["shards"]))
    shard.epoch = root.next_epoch
    with shard._write() as (_, manifest):
        manifest["generation"] = place["generation"] + AHEAD
        manifest["next_run"] = manifest["generation"]
    return shard


def fill(shard: Shard, depot: Depot, checkpoint: Checkpoint, gone_labels: Collection[str],
         advance: Callable[[int], None] = lambda n_bytes: None) -> None:
    """STEP 2: take the runs of a checkpoint but those of some labels.

    Raises:
        CorruptionError: the checkpoint is damaged.
    """
    from kvps.store import checkpoint as checkpoints

    kept = [found for found in checkpoint.shards[shard.shard] if found.run.label not in gone_labels]
    with shard._write() as (_, manifest):
        following = manifest["next_run"]
    with contextlib.closing(checkpoints._chunks(depot, kept, shard.identity["order"], advance)) as chunks:
        checkpoints._fill(shard, [found.run for found in kept], chunks)
    with shard._write() as (_, manifest):
        manifest["next_run"] = max(following, manifest["next_run"])


def finish(path: Path, root: Root, shard: Shard) -> str:
    """STEPS 3 and 4, of a shard that is filled; it is closed. Return the folder that is in force now."""
    number, generation = shard.shard, shard.generation
    shard.close()
    place = root.state()["shards"][number]
    name = new_name(place)
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
    kept = path / KEPT
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

"""Which checkpoints a place has: find the place, read what is there, choose one by its name or version."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from kvps.errors import ArgumentError, CorruptionError, StoreError, VersionMismatch
from kvps.store import files, layout, seal
from kvps.store.checkpoint.description import Checkpoint, unpack
from kvps.store.depot import Depot, is_url, open_depot
from kvps.units import check_name

Place = str | os.PathLike[str]
Progress = Callable[[int, int], None]          # (done, total) [bytes]


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


def default_place(store: Place) -> Path:
    """Return STORE/checkpoints; StoreError where it is a link that leads elsewhere."""
    place = Path(os.path.abspath(store)) / layout.CHECKPOINTS
    files.refuse_symlink(place)
    return place


def depot_of(store: Place | None, to: Place | None = None, source: Place | None = None) -> tuple[Depot | None, str | None]:
    """Return the depot to look at, and the uuid of the store whose checkpoints alone are meant, None for all.

    Args:
        store: whose own folder is meant, where neither `to` nor `source` is given.
        to: where checkpoints of this store were put.
        source: a depot, whichever stores it has checkpoints of; stands in for a store that is gone.

    Returns:
        No depot where a store has never had a checkpoint.
    """
    if source is not None:
        return open_depot(source), None
    if store is None:
        raise ArgumentError("name a store, or a place with --from")
    path = Path(store)
    if to is not None:
        if not seal.exists(path):
            raise StoreError(f"{path}: no such store; give the place of its checkpoints with --from", path=str(path))
        return open_depot(to), seal.read(path)["uuid"]
    place = default_place(path)
    if files.exists(place):
        return open_depot(place), None
    if not seal.exists(path):
        raise StoreError(f"{path}: no such store, and no checkpoints in it", path=str(path))
    return None, None


def opened(depot: Depot | Place | None) -> Depot | None:
    """Return the depot at a place that may be one already, None where there is no such folder."""
    if depot is None or isinstance(depot, Depot):
        return depot
    return open_depot(depot) if is_url(depot) or files.exists(depot) else None


def read(depot: Depot, name: str) -> Checkpoint | None:
    """Return a checkpoint, None where there is none of this name."""
    data = depot.read_description(check_name("checkpoint", name))
    return None if data is None else unpack(name, data, depot.where_description(name))


def read_all(depot: Depot) -> tuple[list[Checkpoint], dict[str, CorruptionError | VersionMismatch]]:
    """Return the checkpoints of a depot, oldest first, and what is wrong with those that cannot be read, by name."""
    sound, damaged = [], {}
    for name in depot.names():
        try:
            found = read(depot, name)
        except (CorruptionError, VersionMismatch) as exc:
            damaged[name] = exc
        else:
            if found is not None:              # else deleted this instant
                sound.append(found)
    return sorted(sound, key=lambda found: (found.created, found.state["version"], found.name)), damaged


def _there(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"


def listed(place: Depot | Place | None, only: str | None = None) -> list[dict]:
    """Return Checkpoint.summary() of each checkpoint, oldest first; {"name", "damaged": why} of those that cannot be read."""
    depot = opened(place)
    if depot is None:
        return []
    sound, damaged = read_all(depot)
    return [*(found.summary() for found in sound if only in (None, found.uuid)),
            *({"name": name, "damaged": str(exc)} for name, exc in damaged.items())]


def missing(depot: Depot | None, name: str, only: str | None = None) -> StoreError:
    """Return the error for a checkpoint that is not there."""
    names = [row["name"] for row in listed(depot, only)]
    place = f"{depot.place}: " if depot else ""
    return StoreError(f"{place}no checkpoint {name}; there are: {_there(names)}", path=depot and depot.place)


def named(depot: Depot, name: str, only: str | None, found: Checkpoint | None) -> Checkpoint:
    """Return `found`, which has this name, unless it is none or of another store than the one meant."""
    if found is None:
        raise missing(depot, name, only)
    if only not in (None, found.uuid):
        raise StoreError(f"{depot.place}: checkpoint {name} is of store {found.uuid}, not of {only}; name the place with --from "
                         "and no store", path=depot.place)
    return found


def of_version(depot: Depot, version: int) -> Checkpoint:
    """Return the newest checkpoint of a version."""
    sound, damaged = read_all(depot)
    found = [checkpoint for checkpoint in sound if checkpoint.state["version"] == version]
    if not found:
        there = [f"{checkpoint.state['version']} ({checkpoint.name})" for checkpoint in sound]
        there += [f"{name}, which is damaged" for name in damaged]
        raise StoreError(f"{depot.place}: no checkpoint of version {version}; there are: {_there(there)}", path=depot.place)
    if len({checkpoint.uuid for checkpoint in found}) > 1:
        names = _there(checkpoint.name for checkpoint in found)
        raise StoreError(f"{depot.place}: has checkpoints of version {version} of several stores; choose one by its name: {names}",
                         path=depot.place)
    return found[-1]

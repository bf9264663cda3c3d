"""Delete checkpoints, and the objects that no other one needs."""
from __future__ import annotations

from kvps.store.checkpoint.catalog import Place, missing, named, opened, read_all
from kvps.store.checkpoint.description import Checkpoint
from kvps.store.depot import Depot
from kvps.units import check_name


def delete(place: Depot | Place | None, name: str, *, only: str | None = None, wait: float = 0.0) -> dict:
    """Delete a checkpoint, and every object that no other one needs.

    Returns:
        {"name", "freed_bytes", "blocked_by"}, the last being checkpoints that cannot be read: nobody knows what they need,
        so nothing is freed until they are deleted too.
    """
    check_name("checkpoint", name)
    depot = opened(place)
    if depot is None:
        raise missing(None, name)
    with depot.locked("checkpoint delete", wait):
        sound, damaged = read_all(depot)
        if name not in damaged:
            found = next((found for found in sound if found.name == name), None)
            if found is None:
                collect(depot)            # perhaps it was deleted, but not to the end
            named(depot, name, only, found)
        freed_bytes, blocked_by = _delete(depot, [name])
    return {"name": name, "freed_bytes": freed_bytes, "blocked_by": blocked_by}


def beyond(depot: Depot, made: Checkpoint, keep: int) -> list[str]:
    """Delete the oldest checkpoints of a store that are too many, never the one just made; return their names."""
    ours = [found.name for found in read_all(depot)[0] if found.uuid == made.uuid and found.name != made.name]
    gone = ours[:max(0, len(ours) + 1 - keep)]
    if gone:
        _delete(depot, gone)
    return gone


def _delete(depot: Depot, names: list[str]) -> tuple[int, list[str]]:
    """Delete checkpoints, then what no other one needs; return what collect() does. REQUIRES the depot's lock."""
    for name in names:
        depot.remove_description(name)
    return collect(depot)         # a kill in between leaves objects that nobody needs, for the next call


def tidy(place: Depot | Place | None, *, wait: float = 0.0) -> dict:
    """Remove what creations and deletions left that were killed; return {"freed_bytes", "blocked_by"} as delete()."""
    depot = opened(place)
    if depot is None:
        return {"freed_bytes": 0, "blocked_by": []}
    with depot.locked("checkpoint delete", wait):
        depot.sweep()
        freed_bytes, blocked_by = collect(depot)
    return {"freed_bytes": freed_bytes, "blocked_by": blocked_by}


def collect(depot: Depot) -> tuple[int, list[str]]:
    """Remove objects that no checkpoint needs; return how many bytes, and the checkpoints that prevent it.

    REQUIRES: nobody makes a checkpoint meanwhile; the depot's lock sees to that, where it has one.
    """
    sound, damaged = read_all(depot)
    if damaged:
        return 0, sorted(damaged)
    needed = {found for checkpoint in sound for found, _ in checkpoint.objects()}
    gone = {name: n_bytes for name, n_bytes in depot.objects().items() if name not in needed}
    depot.remove(sorted(gone))
    return sum(gone.values()), []

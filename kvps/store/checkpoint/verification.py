"""Read checkpoints as a whole, and compare every byte with its hash."""
from __future__ import annotations

from kvps.errors import CorruptionError, VersionMismatch
from kvps.pools import spread
from kvps.store.checkpoint.catalog import Progress, missing, named, no_progress, read_all
from kvps.store.checkpoint.description import Object
from kvps.store.depot import WORKERS, Depot
from kvps.units import check_name


def verify(depot: Depot | None, name: str | None = None, *, only: str | None = None, wait: float = 0.0,
           progress: Progress = no_progress) -> list[dict]:
    """Read every object of one checkpoint, or of all, and compare it with its name.

    Returns:
        For each checkpoint {"name", "objects", "bytes", "findings"}, a finding being {"checkpoint", "path", "found",
        "expected", "message"}.
    """
    if name is not None:
        check_name("checkpoint", name)
    if depot is None:
        if name is not None:
            raise missing(None, name)
        return []
    with depot.locked("checkpoint verify", wait, shared=True):
        sound, damaged = read_all(depot)
        if name is not None:
            if name not in damaged:
                sound = [named(depot, name, only, next((found for found in sound if found.name == name), None))]
            damaged = {key: exc for key, exc in damaged.items() if key == name}
        chosen = [found for found in sound if (name is None or found.name == name) and only in (None, found.uuid)]
        wrong = _wrong_objects(depot, {found for checkpoint in chosen for found in checkpoint.objects()}, progress)
    rows = []
    for checkpoint in chosen:
        objects = dict.fromkeys(checkpoint.objects())
        findings = [_finding(checkpoint.name, wrong[found]) for found in objects if found in wrong]
        rows.append({"name": checkpoint.name, "objects": len(objects), "bytes": sum(n_bytes for _, n_bytes in objects),
                     "findings": findings})
    return rows + [{"name": key, "objects": 0, "bytes": 0, "findings": [_finding(key, exc)]} for key, exc in damaged.items()]


def _finding(name: str, exc: CorruptionError | VersionMismatch) -> dict:
    return {"checkpoint": name, "path": exc.path, "found": exc.found, "expected": exc.expected, "message": str(exc)}


def _wrong_objects(depot: Depot, objects: set[Object], progress: Progress) -> dict[Object, CorruptionError]:
    def look(found: Object) -> tuple[Object, CorruptionError | None]:
        try:
            depot.read(*found)
        except CorruptionError as exc:
            return found, exc
        return found, None

    wrong, done, total = {}, 0, sum(n_bytes for _, n_bytes in objects)
    for found, exc in spread(look, sorted(objects), WORKERS):
        if exc is not None:
            wrong[found] = exc
        done += found[1]
        progress(done, total)
    return wrong

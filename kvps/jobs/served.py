"""What the servers of a store run by name, where the store is: one list for its root's server, one for each shard's."""
from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from kvps.errors import ArgumentError, StoreError
from kvps.jobs import scoring
from kvps.jobs.check import Check
from kvps.jobs.compact import compact_label, crowded
from kvps.jobs.counts import look_at_counts
from kvps.jobs.history import history
from kvps.jobs.purge import checkpoints_of, remains, sizes
from kvps.jobs.stats import statistics
from kvps.jobs.verify import below_zero, n_keys
from kvps.lm import cache
from kvps.lm.arpa import arpa_file
from kvps.lm.listing import counts, dump
from kvps.lm.walks import sums_of
from kvps.ps.merging import cancel, tidy
from kvps.ps.places import open_place
from kvps.ps.remote_store import RemoteDirectory
from kvps.store import checkpoint
from kvps.store.check import look_at_snapshot
from kvps.store.depot import Depot, is_object_name
from kvps.store.directory import StoreDirectory
from kvps.store.findings import WARNING, Finding, Report
from kvps.store.shard import Snapshot
from kvps.units import check_name

WAIT_S = 60.0                  # at most, whatever a client says: a thread of the server waits


def check_store(store: StoreDirectory, *, level: str) -> Iterator[bytes]:
    """Yield what `kvps check` finds as lines of JSON, and {"version", "shards"} at the end."""
    look, state = Check(store.path, level), store.root.state()
    away = {number for number, place in enumerate(state["shards"]) if place.get("away")}
    for finding in look:
        if not away or (finding.part, finding.severity) not in (("shard", WARNING), ("counts", WARNING)):
            yield _line(finding)
    report, root = Report(), {"identity": store.identity, "state": state, "job": store.root.job_id()}
    store.follow()
    for number in sorted(away):
        with report.guarding("shard", shard=number), store.shards[number].snapshot() as snapshot:
            yield from snapshot.run(check_shard, number=number, root=root, chunks=level != "fast")
    if away and level == "full" and not report.found:
        with store.snapshot() as snapshot:
            look_at_counts(store, snapshot, (), report, lambda *place: True, lambda *place: None, lambda done, total: None)
    yield from map(_line, report.found)
    yield json.dumps({"version": look.version, "shards": look.n_shards}).encode() + b"\n"


def check_shard(snapshot: Snapshot, *, number: int, root: dict, chunks: bool) -> Iterator[bytes]:
    """Yield what is found in a shard on another machine, as lines of JSON; `root` as look_at_snapshot() takes it."""
    report = Report()
    look_at_snapshot(snapshot, number, root, report, chunks=chunks)
    yield from map(_line, report.found)


def _line(finding: Finding) -> bytes:
    return json.dumps(finding.to_json(), default=str).encode() + b"\n"


class ServedCheck:
    """A look at a store by its server, in a process of its own there; as Check, with findings as they are printed."""

    def __init__(self, place: str, level: str) -> None:
        """Note what to do."""
        self.place, self.level = place, level
        self.version: int | None = None
        self.n_shards: int | None = None

    def __iter__(self) -> Iterator[dict]:
        """Yield what is found."""
        with open_place(self.place) as store:
            lines = b"".join(store.run(check_store, level=self.level)).splitlines()
        for line in lines[:-1]:
            yield json.loads(line)
        last = json.loads(lines[-1])
        self.version, self.n_shards = last["version"], last["shards"]


def compile_model(store: StoreDirectory, *, kind: str, order: int | None, exact: bool, labels: list[str] | None, stale: str,
                  threads: int | None = None, scratch: Path | None = None,
                  progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Make the compiled model of the last version, as cache.ensure(); return its "path" where the store is, and its "bytes"."""
    path = cache.ensure(store, kind=kind, top=order, exact=exact, labels=labels, stale=stale, threads=threads, scratch=scratch,
                        progress=progress)
    return {"path": str(path), "bytes": os.stat(path).st_size}


# Checkpoints of a store that is served lie in the store: a client names no place on the server's machine.

def make_checkpoint(store: StoreDirectory, *, name: str | None, keep: int | None, wait: float) -> dict[str, Any]:
    """Make a checkpoint in the store, as checkpoint.create()."""
    return checkpoint.create(store, name, keep=keep, wait=min(wait, WAIT_S))


def list_checkpoints(store: StoreDirectory) -> list[dict[str, Any]]:
    """Return the checkpoints in the store, as checkpoint.listed()."""
    return checkpoint.listed(*checkpoint.depot_of(store.path))


def verify_checkpoints(store: StoreDirectory, *, name: str | None, wait: float) -> list[dict[str, Any]]:
    """Read checkpoints in the store, as checkpoint.verify(), findings as checks print them."""
    depot, only = checkpoint.depot_of(store.path)
    return checkpoint.verify(depot, name, only=only, wait=min(wait, WAIT_S))


def delete_checkpoint(store: StoreDirectory, *, name: str, wait: float) -> dict[str, Any]:
    """Delete a checkpoint in the store, as checkpoint.delete()."""
    depot, only = checkpoint.depot_of(store.path)
    return checkpoint.delete(depot, name, only=only, wait=min(wait, WAIT_S))


def checkpoint_names(store: StoreDirectory) -> list[str]:
    """Return the names of the checkpoints in the store."""
    depot, _ = checkpoint.depot_of(store.path)
    return depot.names() if depot else []


def checkpoint_description(store: StoreDirectory, *, name: str) -> Iterator[bytes]:
    """Yield the description of a checkpoint in the store; nothing where there is none."""
    depot, _ = checkpoint.depot_of(store.path)
    yield (depot.read_description(check_name("checkpoint", name)) if depot else None) or b""


def checkpoint_object(store: StoreDirectory, *, name: str, n_bytes: int) -> Iterator[bytes]:
    """Yield an object of the checkpoints in the store, compared with its name."""
    depot, _ = checkpoint.depot_of(store.path)
    if depot is None or not is_object_name(name):
        raise ArgumentError(f"{name!r:.80} names no object of a checkpoint")
    yield depot.read(name, n_bytes)


class ServedDepot(Depot):
    """The checkpoints in a store that is served, for reading."""

    def __init__(self, store: RemoteDirectory) -> None:
        """Take the store, open."""
        self._store, self.place = store, f"{store.path}/checkpoints"

    def locked(self, command: str, wait_s: float, *, shared: bool = False) -> contextlib.AbstractContextManager[object]:
        """Do nothing: what is deleted meanwhile is missing, and another checkpoint is tried."""
        return contextlib.nullcontext()

    def names(self) -> list[str]:
        """As Depot.names()."""
        return self._store.run(checkpoint_names)

    def read_description(self, name: str) -> bytes | None:
        """As Depot.read_description()."""
        return b"".join(self._store.run(checkpoint_description, name=name)) or None

    def _read(self, name: str, n_bytes: int) -> bytes | None:
        return b"".join(self._store.run(checkpoint_object, name=name, n_bytes=n_bytes))

    def _refuse(self, *_: object) -> NoReturn:
        raise StoreError(f"{self.place}: is written by kvps checkpoint alone", path=self.place)

    write_description = remove_description = objects = put = remove = sweep = _refuse


_STORE = (dump, counts, history, statistics, arpa_file, check_store, compile_model, make_checkpoint, list_checkpoints,
          verify_checkpoints, delete_checkpoint, sizes, remains, checkpoints_of, checkpoint_names, checkpoint_description,
          checkpoint_object, *scoring.FUNCTIONS)
_SHARD = (tidy, cancel, below_zero, n_keys, crowded, compact_label)
_HOME = (check_shard, sums_of)         # with a snapshot of a shard on another machine, by its root's server
STORE, SHARD, HOME = ({function.__name__: function for function in functions} for functions in (_STORE, _SHARD, _HOME))

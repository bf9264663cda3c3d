"""What the servers of a store run by name, where the store is: one list for its root's server, one for each shard's."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvps.jobs.check import Check
from kvps.jobs.compact import compact_label, crowded
from kvps.jobs.history import history
from kvps.jobs.purge import checkpoints_of, remains, sizes
from kvps.jobs.scoring import log10, open_model, score_sentences, score_text, score_words
from kvps.jobs.stats import statistics
from kvps.jobs.verify import below_zero, n_keys
from kvps.lm import cache
from kvps.lm.arpa import arpa_file
from kvps.lm.listing import counts, dump
from kvps.ps.merging import cancel, tidy
from kvps.ps.places import open_place
from kvps.store import checkpoint
from kvps.store.directory import StoreDirectory

WAIT_S = 60.0                  # at most, whatever a client says: a thread of the server waits


def check_store(store: StoreDirectory, *, level: str) -> Iterator[bytes]:
    """Yield what `kvps check` finds as lines of JSON, and {"version", "shards"} at the end."""
    look = Check(store.path, level)
    for finding in look:
        yield json.dumps(finding.to_json()).encode() + b"\n"
    yield json.dumps({"version": look.version, "shards": look.n_shards}).encode() + b"\n"


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


_STORE = (dump, counts, history, statistics, arpa_file, check_store, compile_model, open_model, score_text, score_sentences,
          score_words, log10, make_checkpoint, list_checkpoints, verify_checkpoints, delete_checkpoint, sizes, remains,
          checkpoints_of)
_SHARD = (tidy, cancel, below_zero, n_keys, crowded, compact_label)
STORE, SHARD = ({function.__name__: function for function in functions} for functions in (_STORE, _SHARD))

"""Make a store, or the runs of a shard, of a checkpoint: every byte compared with its hash, its key and its run."""
from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kvps.errors import ArgumentError, CorruptionError
from kvps.pools import spread
from kvps.store import creation, files
from kvps.store import format as fmt
from kvps.store.checkpoint.catalog import Place, Progress, missing, named, no_progress, of_version, read
from kvps.store.checkpoint.description import STATE, Checkpoint, Kept
from kvps.store.depot import WORKERS, Depot
from kvps.store.root import FIRST_WORD, Root
from kvps.store.runs import RunTotal
from kvps.store.shard import Shard
from kvps.units import check_name

Advance = Callable[[int], None]                # called with the bytes that were read since the last call


def restore(depot: Depot | None, into: Place, name: str | None = None, version: int | None = None, *, wait: float = 0.0,
            force: bool = False, progress: Progress = no_progress) -> dict:
    """Make a store of a checkpoint, with another uuid; it is there as a whole or not at all.

    Args:
        into: must not exist, or be an empty directory.
        name, version: one of them; of several checkpoints of a version the newest.
        force: allow a network file system.

    Returns:
        {"path", "name", "version", "tokens", "sentences", "bytes", "store": the new uuid}.

    Raises:
        CorruptionError: an object is missing or damaged. StoreError: no such checkpoint; `into` is something already.
    """
    if (name is None) == (version is None):
        raise ArgumentError("a checkpoint is restored by its name or by a version: give one of them")
    if name is not None:
        check_name("checkpoint", name)
    target = Path(os.path.abspath(into))
    creation.refuse_place(target, force)
    if depot is None:
        raise missing(None, name or f"of version {version}")
    with depot.locked("checkpoint restore", wait, shared=True):
        chosen = of_version(depot, version) if name is None else named(depot, name, None, read(depot, name))
        if files.free_bytes(target.parent) < chosen.bytes:
            raise files.disk_full(target, chosen.bytes)
        uuid = _restore(depot, chosen, target, progress)
    return {"path": str(target), "name": chosen.name, **{field: chosen.state[field] for field in STATE[:3]},
            "bytes": chosen.bytes, "store": uuid}


def _restore(depot: Depot, chosen: Checkpoint, target: Path, progress: Progress) -> str:
    """Make the store; return its uuid."""
    done = 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, chosen.bytes)

    identity = {**chosen.identity, "restored_from": {"uuid": chosen.uuid, "version": chosen.state["version"]}}
    return creation.make_store(
        target, identity, command="checkpoint restore",
        fill_shard=lambda shard: fill_shard(shard, depot, chosen.shards[shard.shard], advance,
                                            chosen.ledgers and chosen.ledgers[shard.shard]),
        fill_root=lambda root, generations: _fill_root(root, generations, depot, chosen, advance))


def fill_shard(shard: Shard, depot: Depot, runs: list[Kept], advance: Advance, ledger: dict | None = None) -> None:
    """Let a new shard take some of the runs that a checkpoint has, and a table's ledger; CorruptionError where it is damaged."""
    with contextlib.closing(_chunks(depot, runs, shard.identity["order"], advance)) as chunks:
        shard.fill([kept.run for kept in runs], chunks, ledger)


def _fill_root(root: Root, generations: list[int], depot: Depot, chosen: Checkpoint, advance: Advance) -> None:
    """Write vocabulary and rows, then the state."""
    with contextlib.closing(_segments(depot, chosen, advance)) as segments:
        root.fill(itertools.chain(segments, _rows(chosen)), chosen.state, generations)


def _chunks(depot: Depot, runs: list[Kept], order: int, advance: Advance) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of all chunks of a shard's runs, each compared with its name, its key and its run."""
    wanted = (found for kept in runs for found in kept.objects)
    with contextlib.closing(spread(lambda found: depot.read(*found), wanted, WORKERS)) as values:
        for kept in runs:
            total = RunTotal()
            for index, (name, n_bytes) in enumerate(kept.objects):
                key, value = fmt.chunk_key(kept.run.id, index), next(values)
                _, n_keys, found = fmt.unpack_chunk(key, value, depot.where(name))
                if found != order:
                    raise fmt.damaged(depot.where(name), key, "order", found, order)
                total.add(key, value, n_keys)
                yield key, value
                advance(n_bytes)
            total.refuse_other(kept.run, f"run {kept.run.id}", depot.place)


def _segments(depot: Depot, chosen: Checkpoint, advance: Advance) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of the vocabulary; CorruptionError unless it has every id up to the state's once."""
    following = FIRST_WORD
    with contextlib.closing(spread(lambda found: depot.read(*found), (found for _, found in chosen.words), WORKERS)) as segments:
        for (first, (name, n_bytes)), segment in zip(chosen.words, segments, strict=True):
            try:
                n_words = len(fmt.check_words(segment))
            except ValueError as exc:
                raise CorruptionError(f"{depot.where(name)}: {exc}; use another checkpoint", path=depot.where(name)) from exc
            _expect(depot, "the first word id of a segment", first, following)
            following += n_words
            key = fmt.numbered_key(fmt.WORDS, first)
            yield key, fmt.pack_blob(key, segment)
            advance(n_bytes)
    _expect(depot, "the number of word ids", following, chosen.state["words"])


def _expect(depot: Depot, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise CorruptionError(f"{depot.place}: {what} is {found}, expected {expected}; use another checkpoint", path=depot.place,
                              found=found, expected=expected)


def _rows(chosen: Checkpoint) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of history, inputs, labels and the routing table."""
    if chosen.routing is not None:
        yield fmt.ROUTING, fmt.pack_row(fmt.ROUTING, chosen.routing)
    for row in chosen.history:
        key = fmt.numbered_key(fmt.HISTORY, row["version"])
        yield key, fmt.pack_row(key, {field: value for field, value in row.items() if field != "version"})
    for kind, rows in ((fmt.INPUT, chosen.inputs), (fmt.LABEL, chosen.labels)):
        for name, row in rows.items():
            key = fmt.named_key(kind, name)
            yield key, fmt.pack_row(key, row)

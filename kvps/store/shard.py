"""One shard: sorted runs of chunks, the ledger of applied splits, and the manifest that says which runs are visible.

A run is written once and never changed; its number is never used again.
Every write transaction rewrites the manifest with its own transaction id, so a manifest that belongs to another state
of the file is noticed.
What a payload means is the business of others; the bytes are described in FORMAT.md, the protocol in DESIGN.md.
"""
from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kvps.errors import StoreError, StoreLocked
from kvps.store import format as fmt
from kvps.store import records
from kvps.store.environment import MAP_BYTES, Environment
from kvps.store.runs import Run, RunTotal
from kvps.store.transaction import Txn

# No sum of counts in a table is above it, or below its negative.
MOST = 1 << 62

T = TypeVar("T")


class Shard:
    """One shard, open; writes from several threads take turns, snapshots are independent of them."""

    def __init__(self, env: Environment, identity: dict) -> None:
        self._env = env
        self.epoch = 0                 # of the writer that we are; a shard that a later one has written to takes nothing
        self.identity = identity
        self.path: Path = env.path
        self.shard: int = identity["shard"]
        self._turn = threading.Lock()

    @classmethod
    def create(cls, path: str | Path, identity: dict, *, map_bytes: int = MAP_BYTES, epoch: int = 0, above: int = 0) -> Shard:
        """Make a new shard in the directory `path`, which must not exist, and return it writable.

        Not atomic: make the whole store under a temporary name and rename it.

        Args:
            path: of the directory.
            identity: uuid, shard, shards and order; format and lib_version are added.
            map_bytes: length of the memory map.
            epoch: of the writer that makes it.
            above: its generation is above this number, and its runs' are not below it.
        """
        env = Environment.create(path, map_bytes=map_bytes)
        full = {**identity, "format": fmt.FORMAT_VERSION, "lib_version": fmt.LIB_VERSION}
        with env.write() as txn:
            records.put(txn, fmt.IDENTITY, full)
            records.put_current(txn, fmt.MANIFEST, {"epoch": epoch, "generation": above, "next_run": max(1, above), "runs": []})
        made = cls(env, full)
        made.epoch = epoch
        return made

    @classmethod
    def open(cls, path: str | Path, expected_uuid: str | None = None, writable: bool = False, *,
             shard: int | None = None, map_bytes: int = MAP_BYTES, verify: bool = False) -> Shard:
        """Open a shard and check that it is the one expected, in a format we know, with a manifest of its last commit.

        verify: look at every page of the file before LMDB maps it.

        Raises:
            VersionMismatch: another format.
            CorruptionError: no or another identity, or a damaged or outdated manifest.
        """
        env = Environment.open(path, writable=writable, map_bytes=map_bytes, verify=verify)
        try:
            with env.read() as txn:
                identity = records.required(txn, fmt.IDENTITY)
                expected = {"uuid": expected_uuid, "shard": shard}
                fmt.check_identity(identity, str(env.data), **{k: v for k, v in expected.items() if v is not None})
                records.current(txn, fmt.MANIFEST)
            return cls(env, identity)
        except BaseException:
            env.close()
            raise

    @contextlib.contextmanager
    def _write(self) -> Iterator[tuple[Txn, dict]]:
        """Give a write transaction and the manifest, which is written at its end with the transaction's id."""
        with self._env.write() as txn:
            manifest = records.current(txn, fmt.MANIFEST, txn.id - 1)
            if manifest["epoch"] > self.epoch:
                raise StoreLocked(f"{self.path}: another process has taken the store over; open it again",
                                  path=str(self.path), shard=self.shard)
            manifest["epoch"] = self.epoch
            yield txn, manifest
            records.put_current(txn, fmt.MANIFEST, manifest)

    def apply(self, job: str, split: int, version: int, chunks: Iterable[tuple[bytes, int]], row: dict, *,
              label: str | None = None) -> bool:
        """Add one split's chunks as a run of `version`, and `row` to the ledger, all or nothing, durably.

        Args:
            job: names the job, 1 to 255 bytes; never that of an earlier job whose rows have not been swept.
            split: number of the split within the job.
            version: the one that the job will commit.
            chunks: (payload, number of keys) in key order; none is fine, then only the ledger row is written.
            row: what the job wants to know about the split; JSON.
            label: of the run.

        Returns:
            False, and nothing is changed, if the ledger has this split of this job already.
        """
        key = fmt.ledger_key(job, split)
        with self._turn:
            with self._env.read() as txn:
                if txn.get(key) is not None:
                    return False
            self._write_run(chunks, version, job, label, ledger=(key, fmt.pack_row(key, row)))
        return True

    def begin_apply(self, job: str, split: int, version: int, chunks: Iterable[tuple[bytes, int]], row: dict, *,
                    label: str | None = None) -> Callable[[], bool]:
        """Begin apply(), for who has other shards to send to meanwhile; what is returned waits for its end, which here was now."""
        applied = self.apply(job, split, version, chunks, row, label=label)
        return lambda: applied

    def push(self, chunks: Iterable[tuple[bytes, int]], most: int, *, client: str | None = None, sequence: int = 0,
             note: str | None = None, until: int | None = None) -> bool:
        """Add chunks as a run that readers see at once: a push to a table, all or nothing, durably, and once only.

        Args:
            chunks: (payload, number of keys) in key order, or none.
            most: the greatest absolute value of their counts.
            client: who pushes, or None: then the ledger does not change, and nobody can tell whether it was pushed before.
            sequence: the client's number of this push.
            note: kept in the ledger with it.
            until: from this time on [s since 1970] sweep() may forget the client; None: never.

        Returns:
            False, and nothing is changed, if the ledger has this number of this client, or a greater one.

        Raises:
            StoreError: `sequence` is not the next one.
        """
        with self._turn:
            ledger = None
            if client is not None:
                with self.snapshot() as snap:
                    last = snap.client(client)["sequence"]
                if sequence <= last:
                    return False
                if sequence != last + 1:
                    raise StoreError(f"{self.path}: client {client} pushed number {last} last, so {last + 1} is expected, not "
                                     f"{sequence}", path=str(self.path), shard=self.shard, expected=last + 1, found=sequence)
                key = fmt.named_key(fmt.CLIENT, client)
                ledger = key, fmt.pack_row(key, {"note": note, "sequence": sequence, **({} if until is None else {"until": until})})
            self._write_run(chunks, 0, None, None, ledger=ledger, most=most)
        return True

    def set_most(self, most: int) -> None:
        """Note that no sum of counts is above `most`; REQUIRES: the caller has looked, and nobody pushes meanwhile."""
        with self._turn, self._write() as (_, manifest):
            manifest["most"] = most

    def replace(self, old_run_ids: Iterable[int], version: int, chunks: Iterable[tuple[bytes, int]]) -> None:
        """Put one run in the place of several: a merge. Killed at any instant, it leaves the old runs or the new one.

        Args:
            old_run_ids: what the new run replaces.
            version: the greatest version of the old runs; never merge a committed run with an uncommitted one.
            chunks: as in apply(); it may read from an open snapshot of this shard; none: the runs cancel out.
        """
        old = set(old_run_ids)
        with self._turn:
            runs = {run.id: run for run in self.runs()}
            if not old <= runs.keys():
                raise StoreError(f"{self.path}: there is no run {min(old - runs.keys())} to replace",
                                 path=str(self.path), shard=self.shard)
            jobs, labels = ({getattr(runs[number], name) for number in old} for name in ("job", "label"))
            if len(labels) > 1:
                raise StoreError(f"{self.path}: runs of different labels do not merge", path=str(self.path), shard=self.shard)
            self._write_run(chunks, version, jobs.pop() if len(jobs) == 1 else None, labels.pop(), removed=old)

    def add_run(self, chunks: Iterable[tuple[bytes, int]], version: int, label: str | None) -> None:
        """Add a run that no job wrote; REQUIRES a new shard, which no root names yet."""
        with self._turn:
            self._write_run(chunks, version, None, label)

    def _write_run(self, chunks: Iterable[tuple[bytes, int]], version: int, job: str | None, label: str | None, *,
                   ledger: tuple[bytes, bytes] | None = None, removed: set[int] = frozenset(),
                   most: int | None = None) -> None:
        """Write a run in as many transactions as it takes; the last one lists it in the manifest."""
        order = self.identity["order"]
        source = iter(chunks)
        number, total, done = None, RunTotal(), False
        while not done:
            with self._write() as (txn, manifest):
                if number is None:
                    number = manifest["next_run"]
                    manifest["next_run"] += 1      # also if we die after this transaction: numbers are never reused
                while not txn.full:
                    if (chunk := next(source, None)) is None:
                        done = True
                        break
                    payload, n_keys = chunk
                    key = fmt.chunk_key(number, total.n_chunks)
                    value = fmt.pack_chunk(key, order, n_keys, payload)
                    txn.put(key, value)
                    total.add(key, value, n_keys)
                if done:
                    if ledger:
                        txn.put(*ledger)
                    for row in [row for row in manifest["runs"] if row["id"] in removed]:
                        _delete_chunks(txn, row)
                    manifest["runs"] = [row for row in manifest["runs"] if row["id"] not in removed]
                    if most is not None:
                        manifest["most"] = min(_most(manifest) + most, MOST)
                    if total.n_chunks:
                        run = Run(number, version, job, label=label, **dataclasses.asdict(total))
                        manifest["runs"].append(run.to_row())

    def fill(self, runs: Sequence[Run], chunks: Iterator[tuple[bytes, bytes]], ledger: dict | None = None) -> None:
        """Take over runs of another shard as they are; REQUIRES a new shard, which no root names yet.

        Args:
            runs: of the other shard.
            chunks: (key, value) of all their chunks, under the keys that they had.
            ledger: of a table: "most" and "clients", as Snapshot has them.
        """
        done = False
        while not done:
            with self._write() as (txn, manifest):
                done = txn.put_some(chunks)
                if done:
                    manifest["runs"] = [run.to_row() for run in runs]
                    manifest["next_run"] = max([manifest["next_run"], *(run.id + 1 for run in runs)])
                    if ledger is not None:
                        manifest["most"] = ledger["most"]
                        for name, row in ledger["clients"].items():
                            records.put(txn, fmt.named_key(fmt.CLIENT, name), row)

    def mark(self, labels: Iterable[str], version: int) -> None:
        """Let readers of `version` and later ones no longer see the runs of these labels; once is as good as twice."""
        chosen = set(labels)
        with self._turn:
            if any(run.label in chosen and run.version < version and run.until is None for run in self.runs()):
                with self._write() as (_, manifest):
                    for row in manifest["runs"]:
                        if row["label"] in chosen and row["version"] < version and row["until"] is None:
                            row["until"] = version

    def sweep(self, version: int, job: str | None) -> int:
        """Remove what no reader of `version` and no work of `job` needs; return how many records went.

        That is: runs newer than `version` that are not `job`'s, runs that `version` does not see any more, ledger rows
        of other jobs, rows of clients whose time is over, and chunks of runs that were never finished. Without a job,
        runs that a later version was to take away stay. REQUIRES: `version` is the committed one. Changes nothing where
        there is nothing to do.
        """
        with self._turn:
            with self._env.read() as txn:
                manifest = records.current(txn, fmt.MANIFEST)
                gone = {row["id"] for row in manifest["runs"]
                        if (row["version"] > version and (job is None or row["job"] != job))
                        or (row["until"] is not None and row["until"] <= version)}
                doomed = list(orphans(txn, {row["id"] for row in manifest["runs"]}))
                ours = None if job is None else fmt.named_key(fmt.LEDGER, job)
                doomed += [key for key, _ in txn.scan(fmt.LEDGER) if key[:-8] != ours]
                now = time.time()
                doomed += [key for key, row in records.rows(txn, fmt.CLIENT) if row.get("until", now) < now]
                marked = job is None and any(row["until"] is not None and row["until"] > version for row in manifest["runs"])
            if not gone and not doomed and not marked:
                return 0
            with self._write() as (txn, manifest):
                if marked:
                    _unmark(manifest, version)
                return len(doomed) + _remove(txn, manifest, gone, doomed)

    def drop(self, job: str, version: int) -> None:
        """Roll a job back: delete its runs newer than the committed `version`, its ledger rows, and its marks."""
        with self._turn, self._write() as (txn, manifest):
            gone = {row["id"] for row in manifest["runs"] if row["job"] == job and row["version"] > version}
            prefix = fmt.named_key(fmt.LEDGER, job)
            _unmark(manifest, version)
            _remove(txn, manifest, gone, [key for key, _ in txn.scan(prefix) if key[:-8] == prefix])

    def splits(self, job: str) -> dict[int, dict]:
        """Return the ledger of a job: split -> the row that was applied with it."""
        prefix = fmt.named_key(fmt.LEDGER, job)
        with self._env.read() as txn:
            return {int.from_bytes(key[-8:]): row for key, row in records.rows(txn, prefix) if key[:-8] == prefix}

    def runs(self) -> list[Run]:
        """Return every run in the manifest: committed or not, taken away or not."""
        with self.snapshot() as snap:
            return snap.all_runs()

    @property
    def generation(self) -> int:
        """How many transactions this shard has seen; it never goes back, not even by a copy."""
        with self._env.read() as txn:
            return records.current(txn, fmt.MANIFEST)["generation"]

    def snapshot(self) -> Snapshot:
        """Return the state of the last commit, to be used as a context manager or closed."""
        return Snapshot(self._env)

    def run(self, function: Callable[..., T], *, here: Mapping[str, Any] | None = None, **arguments: Any) -> T:
        """Return function(self, **arguments): work that is done where the shard is, which may be elsewhere.

        here: further arguments, which mean something in this process only, as progress does.
        """
        return function(self, **arguments, **(here or {}))

    def bytes(self) -> dict[str, int]:
        """Return {"file": length of the data file, "live": bytes of the pages in use}."""
        return self._env.bytes()

    def copy_to(self, path: str | Path) -> None:
        """Write a compact copy of this shard into the new directory `path`, durable and ready to be opened."""
        with self._turn:
            self._env.copy_to(path, lambda txn: records.put_current(txn, fmt.MANIFEST, records.required(txn, fmt.MANIFEST)))

    def close(self) -> None:
        """Close the shard; snapshots that are open stay readable."""
        self._env.close()


class Listed:
    """What a manifest tells of a shard at one commit."""

    _manifest: dict

    @property
    def generation(self) -> int:
        """How many transactions the shard had seen."""
        return self._manifest["generation"]

    def all_runs(self) -> list[Run]:
        """Return every run in the manifest, oldest first."""
        return [Run.from_row(row) for row in self._manifest["runs"]]

    @property
    def following(self) -> int:
        """A number that is above the generation, and not below that of the next run."""
        return max(self.generation + 1, self._manifest["next_run"])

    def runs(self, version: int) -> list[Run]:
        """Return the runs that make up `version` of the store, oldest first."""
        return [run for run in self.all_runs() if run.seen(version)]


class Snapshot(Listed):
    """One shard at one commit; usable from one thread at a time, and closed in the end."""

    elsewhere = False              # whether another process has the file

    def __init__(self, env: Environment) -> None:
        self._path = str(env.data)
        self._txn = env.begin()
        try:
            self._manifest = records.current(self._txn, fmt.MANIFEST)
        except BaseException:
            self._txn.close()
            raise
        self.txn_id = self._txn.id

    @property
    def txn(self) -> Txn:
        """The transaction, for who looks at the records themselves."""
        return self._txn

    def manifest(self) -> dict:
        """Return the manifest: what Listed is made of."""
        return self._manifest

    @property
    def most(self) -> int:
        """What no sum of some counts of one key in a table's runs is above, or below its negative; at most MOST."""
        return _most(self._manifest)

    def client(self, name: str) -> dict:
        """Return the ledger's row of a client of a table: {"sequence": of its last push, 0 for none, "note"}."""
        key = fmt.named_key(fmt.CLIENT, name)
        value = self._txn.get(key)
        return {"sequence": 0, "note": None} if value is None else fmt.unpack_row(key, value, self._path)

    def clients(self) -> dict[str, dict]:
        """Return the rows of all clients of a table, by name."""
        return {key[1:].decode(): fmt.unpack_row(key, value, self._path) for key, value in self._txn.scan(fmt.CLIENT)}

    def chunk(self, run: Run, index: int) -> tuple[memoryview, int]:
        """Return (payload, number of keys) of one chunk, its checksum verified now, at every call.

        The payload is LMDB's own page: no copy, and released when the snapshot is closed.
        Whoever holds a part of it by then (a slice, an array, a kernel) makes close() fail.
        """
        key = fmt.chunk_key(run.id, index)
        value = self._txn.view(key)
        if value is None:
            raise fmt.damaged(self._path, key, "value", "none", f"chunk {index} of {run.n_chunks}")
        payload, n_keys, _ = fmt.unpack_chunk(key, value, self._path)
        return self._txn.lend(payload), n_keys

    def known_chunk(self, run: Run, index: int) -> tuple[memoryview, int]:
        """Return chunk() of one that the caller has verified before: not compared, and not noticed if it is still held at close().

        For callers who look at many chunks for an instant each; REQUIRES: nothing of the payload is kept.
        """
        key = fmt.chunk_key(run.id, index)
        value = self._txn.view(key)
        if value is None:
            raise fmt.damaged(self._path, key, "value", "none", f"chunk {index} of {run.n_chunks}")
        payload, n_keys, _ = fmt.unpack_chunk(key, value, self._path, trusted=True)
        return payload, n_keys

    def chunks(self, run: Run) -> Iterator[tuple[memoryview, int]]:
        """Yield chunk() of every chunk of a run, in key order."""
        return (self.chunk(run, index) for index in range(run.n_chunks))

    def close(self, *, strict: bool = True) -> None:
        """End the snapshot; StoreError if one of its payloads is still in use, unless not `strict`."""
        self._txn.close(strict=strict)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(strict=kind is None)


def _most(manifest: dict) -> int:
    """Return Snapshot.most; a manifest with runs that does not say it, a copy's, could have anything."""
    return manifest.get("most", MOST if manifest["runs"] else 0)


def _delete_chunks(txn: Txn, row: dict) -> None:
    for index in range(row["chunks"]):
        txn.delete(fmt.chunk_key(row["id"], index))


def _remove(txn: Txn, manifest: dict, gone: set[int], doomed: Iterable[bytes]) -> int:
    """Delete the runs `gone` and the records `doomed`; return how many chunks the runs had."""
    n_chunks = 0
    for row in manifest["runs"]:
        if row["id"] in gone:
            _delete_chunks(txn, row)
            n_chunks += row["chunks"]
    for key in doomed:
        txn.delete(key)
    manifest["runs"] = [row for row in manifest["runs"] if row["id"] not in gone]
    return n_chunks


def _unmark(manifest: dict, version: int) -> None:
    """Let runs stay that a version above `version` was to take away."""
    for row in manifest["runs"]:
        if row["until"] is not None and row["until"] > version:
            row["until"] = None


def orphans(txn: Txn, known: set[int]) -> Iterator[bytes]:
    """Yield the keys of chunks whose run is not in `known`, skipping over known runs without visiting their chunks."""
    key = txn.first_key(fmt.CHUNK)
    while key is not None and key.startswith(fmt.CHUNK):
        run, index = fmt.RUN_CHUNK.unpack(key[1:])
        if run in known:
            key = txn.first_key(fmt.chunk_key(run + 1, 0))
        else:
            yield key
            key = txn.first_key(fmt.chunk_key(run, index + 1))

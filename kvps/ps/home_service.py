"""What the server of a shard answers that lies in a folder of its own, on another machine than its root.

    FOLDER/owner.lock  FOLDER/store  FOLDER/shards/NNNN.G

`store` has the uuid of the one store whose shards are here.
Only the root says which directory holds the shard; a directory that it does not name is being made, or was left. So nothing is
in force here before the root's commit, and a disk that is lost or old is found out at once. What is written is written under
the root's epochs and for its pending job, as everywhere; the root is asked over a connection.
"""
from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvps.errors import ArgumentError, CorruptionError, StoreError
from kvps.ps.answering import Answer, Function, field, optional
from kvps.ps.away import AHEAD, chunk_arrays, not_here
from kvps.ps.calls import Runner, said, unpacked
from kvps.ps.merging import tidy
from kvps.ps.protocol import Message
from kvps.ps.remote_store import RemoteDirectory
from kvps.ps.runs import verify_chunks
from kvps.ps.shard_service import ShardService, sent_chunks
from kvps.store import files, layout
from kvps.store import format as fmt
from kvps.store.rebuild import UNFINISHED
from kvps.store.runs import Run, RunTotal
from kvps.store.shard import Shard, Snapshot

IDLE_S = 150.0                 # a snapshot of which nobody says for so long that it is read goes: the root's server has ended
MAX_SNAPSHOTS = 64
STORE = "store"


class _Kept:
    """A snapshot between two messages; read by one thread at a time, which has its turn."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.used, self.turn = snapshot, time.monotonic(), threading.Lock()


def _guarded(function: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    """Return what yields the same of a snapshot that is kept, and lets nobody end that meanwhile."""
    @functools.wraps(function)
    def look(kept: _Kept, **arguments: Any) -> Iterator[bytes]:
        with kept.turn:                        # let go by whichever thread fetches the last piece
            yield from function(kept.snapshot, **arguments)
            kept.used = time.monotonic()

    return look


def _name(shard: Shard) -> str:
    """Return the name of a shard's directory, as its root has it."""
    return f"{layout.SHARDS}/{shard.path.name}"


class HomeService(ShardService):
    """One shard in a folder of its own; under a lock of that folder."""

    def __init__(self, folder: Path, number: int, directory: Callable[[], RemoteDirectory], functions: Mapping[str, Callable],
                 reads: Mapping[str, Callable]) -> None:
        """Serve a shard.

        Args:
            folder: where it is, or is to be made.
            number: its own.
            directory: connects to the store at its root, when that is first needed.
            functions: may be run with it, in a session.
            reads: may be run with a snapshot of it, by anybody.
        """
        super().__init__(None, functions)
        self._looker = Runner(self._looked_at, {name: _guarded(function) for name, function in reads.items()}, self.runner.streams)
        self._folder, self._number, self._connect = folder, number, directory
        self._attempt, self._new, self._new_name = "", None, ""
        self._listed = False                       # whether it has what it takes over
        self._finished: dict[str, int] = {}        # attempt -> generation
        self._snapshots: dict[int, _Kept] = {}
        self._numbers = itertools.count(1)

    def functions(self) -> dict[str, Function]:
        """Return what a Server is to answer."""
        making = {name: Function(answer, changes=True) for name, answer in (
            ("new", self.new), ("fill", self.fill), ("list", self.list), ("count", self.count), ("finish", self.finish),
            ("snapshot", self.snapshot), ("snapshot-end", self.snapshot_end))}
        return {**super().functions(), **making, "chunks": Function(self.chunks), "snapshot-keep": Function(self.snapshot_keep),
                "look": Function(self._looker.run)}

    # which directory is in force

    def here(self) -> Shard:
        """Return the shard, in the directory that the root names.

        Raises:
            CorruptionError: there is none, or one that went back in time. Unreachable: the root cannot be asked.
        """
        if self.shard is None:
            if self._directory is None:
                self._directory = self._connect()
            job = self._directory.root.job_id()            # before the version: a job that ends meanwhile keeps its runs
            state = self._directory.root.state()
            if self._number >= len(state["shards"]):
                raise StoreError(f"{self._folder}: the store has {len(state['shards'])} shards, no shard {self._number}; serve "
                                 "another one here", path=str(self._folder), shard=self._number)
            place = state["shards"][self._number]
            self._refuse_other(self._directory.identity["uuid"])
            folder = layout.shard_folder(self._folder, self._number, place["dir"])
            if not place.get("away") or not files.exists(folder / layout.DATA):
                raise not_here(self._folder, self._number, place["dir"])
            self.open(folder, self._number, state["epoch"], verify=True)
            if self.shard.generation < place["generation"]:
                found = self.shard.generation
                self._shut()
                raise CorruptionError(f"{folder}: shard {self._number} went back in time: its generation is {found}, expected at "
                                      f"least {place['generation']}; make it again: kvps recover ADDRESS", path=str(folder),
                                      key="manifest", found=found, expected=place["generation"])
            self.shard.epoch = self._epoch
            self._sweep(place["dir"])
            self.shard.sweep(state["version"], job)
        return self.shard

    def _given(self, epoch: int) -> bool:
        state = self._directory.root.state()
        if state["shards"][self._number]["dir"] != _name(self.shard):
            self._shut()                       # another was made in its place, under an epoch before this one
            self.here()
        return epoch <= state["epoch"]

    def _current(self, message: Message) -> Shard:
        super()._current(message)
        return self.here()                     # which may be another one now

    def fence(self, message: Message) -> Answer:
        """As in ShardService; where there is no shard nothing can be taken, and one that is made begins with the root's epoch."""
        with contextlib.suppress(CorruptionError):
            self._current(message)
        return {}, {}

    def _shut(self) -> None:
        shard, self.shard = self.shard, None
        if shard is not None:
            shard.close()

    def _sweep(self, name: str) -> None:
        """Remove the directories before the one that is in force; a later one may be about to be."""
        ours = int(name.rpartition(".")[2])
        for folder in (self._folder / layout.SHARDS).glob(f"{self._number:04d}.*"):
            number = folder.name.rpartition(".")[2]
            if number.isdigit() and int(number) < ours and folder.is_dir() and not folder.is_symlink():
                files.remove_tree(folder)

    # reading, by the root's server

    def snapshot(self, message: Message) -> Answer:
        """Keep the last commit of a directory for the sender."""
        name, shard = field(message, "dir", str), self.here()
        if _name(shard) != name and self._directory.root.state()["shards"][self._number]["dir"] == name:
            self._shut()                       # another was made in its place
            shard = self.here()
        if _name(shard) != name:
            raise StoreError(f"{self._folder}: shard {self._number} is in {_name(shard)}, not in {name!r:.80}; "
                             "run the command again", path=str(self._folder), shard=self._number)
        if len(self._snapshots) >= MAX_SNAPSHOTS:
            raise StoreError(f"{shard.path}: {MAX_SNAPSHOTS} snapshots are open already; wait until one has ended")
        number, kept = next(self._numbers), _Kept(shard.snapshot())
        self._snapshots[number] = kept
        call, arrays = said(kept.snapshot.manifest(), self.runner.streams)
        return {**call, "snapshot": number}, arrays

    def chunks(self, message: Message) -> Answer:
        """Return chunks of a run that follow one another."""
        kept = self._kept(message)
        run, first, n, of = (field(message, name, int) for name in ("run", "first", "n", "of"))
        with kept.turn:
            self._kept(message)                # nobody has ended it while we waited
            listed = next((row for row in kept.snapshot.all_runs() if row.id == run), None)
            if listed is None or not 0 <= n <= AHEAD or not 0 <= first <= first + n <= listed.n_chunks == of:
                raise ArgumentError(f"run {run} has no chunks {first} to {first + n} of {of}")
            found = []
            for index in range(first, first + n):
                payload, n_keys = kept.snapshot.chunk(listed, index)
                found.append((bytes(payload), n_keys))
                payload.release()
        return {}, chunk_arrays(found)

    def _kept(self, message: Message) -> _Kept:
        kept = self._snapshots.get(field(message, "snapshot", int))
        if kept is None:
            raise StoreError(f"{self._folder}: its server was started again in the middle; run the command again")
        kept.used = time.monotonic()
        return kept

    def _looked_at(self, message: Message) -> _Kept:
        """Return the snapshot that a function is to look at; ArgumentError for words, which take memory, that there are not."""
        kept, arguments = self._kept(message), message.call.get("arguments")
        n_words = arguments.get("n_words", 0) if isinstance(arguments, dict) else 0
        if not isinstance(n_words, int) or not 0 <= n_words <= self._directory.root.next_word():
            raise ArgumentError(f"{n_words!r:.80} is no number of words of this store")
        return kept

    def snapshot_keep(self, message: Message) -> Answer:
        """Note that snapshots are still read."""
        for number in field(message, "snapshots", list):
            kept = self._snapshots.get(number) if isinstance(number, int) else None
            if kept is not None:
                kept.used = time.monotonic()
        return {}, {}

    def snapshot_end(self, message: Message) -> Answer:
        """Let go of a snapshot; fine if it has gone."""
        self._end(field(message, "snapshot", int))
        return {}, {}

    def _end(self, number: int) -> None:
        """End a snapshot that nobody reads."""
        kept = self._snapshots.get(number)
        if kept is not None and kept.turn.acquire(blocking=False):
            try:
                if self._snapshots.pop(number, None) is not None:
                    kept.snapshot.close()
            finally:
                kept.turn.release()

    def drop_idle(self) -> None:
        """End what nobody goes on with; called now and then."""
        self.runner.streams.drop_idle()
        for number, kept in list(self._snapshots.items()):
            if time.monotonic() - kept.used > IDLE_S:
                self._end(number)

    # making: by whoever moves a shard here, or makes one again that was lost

    def new(self, message: Message) -> Answer:
        """Begin a shard, out of sight; the one that was begun before goes, if it was not finished."""
        attempt, name, identity = field(message, "attempt", str), field(message, "dir", str), field(message, "identity", dict)
        if attempt == self._attempt:
            return {}, {}
        folder = layout.shard_folder(self._folder, self._number, name)
        numbers = [identity.get("order"), identity.get("shards"), field(message, "above", int), field(message, "writer", int)]
        if (files.exists(folder) or identity.get("shard") != self._number or not isinstance(identity.get("uuid"), str)
                or not all(isinstance(number, int) and 0 <= number < 1 << 62 for number in numbers)
                or not 1 <= numbers[1] <= layout.MAX_SHARDS):
            raise ArgumentError(f"{folder}: cannot be made: it is there, or is for another shard than {self._number}")
        self._refuse_other(identity["uuid"])
        self._drop_new()
        self._sweep_new()
        if self.shard is not None:             # what another attempt has finished, and nobody has named
            for left in (self._folder / layout.SHARDS).glob(f"{self._number:04d}.*"):
                if left != self.shard.path:
                    files.remove_tree(left)
        if not files.exists(folder.parent):
            files.make_dir(folder.parent)
            files.fsync_dir(self._folder)
        self._new = Shard.create(folder.with_name(folder.name + UNFINISHED), {
            name: identity[name] for name in ("uuid", "shard", "shards", "order")}, map_bytes=layout.map_bytes(identity["shards"]),
            above=numbers[2], epoch=numbers[3])
        self._attempt, self._new_name, self._listed = attempt, name, False
        return {}, {}

    def _refuse_other(self, uuid: str) -> None:
        """Raise StoreError where this folder has shards of another store; from now on it has those of this one."""
        mark = self._folder / STORE
        if not files.exists(mark):
            files.atomic_write(mark, uuid.encode())
        with files.reading(mark) as fd:
            found = files.read_exactly(fd, 64, 0).decode("utf-8", "replace")
        if found != uuid:
            raise StoreError(f"{self._folder}: has shards of the store {found:.40}, not of {uuid:.40}; serve those of "
                             "another store from another folder", path=str(self._folder), shard=self._number)

    def _sweep_new(self) -> None:
        if files.exists(self._folder / layout.SHARDS):
            for folder in (self._folder / layout.SHARDS).glob(f"{self._number:04d}.*{UNFINISHED}"):
                files.remove_tree(folder)

    def _made(self, message: Message) -> Shard:
        if self._new is None or field(message, "attempt", str) != self._attempt:
            raise StoreError(f"{self._folder}: shard {self._number} was begun anew, or its server was started again in the middle; "
                             "run the command again")
        return self._new

    def fill(self, message: Message) -> Answer:
        """Take chunks under the keys that they had."""
        shard, places = self._made(message), message.arrays.get("places")
        if self._listed:                       # it comes once more, late
            return {}, {}
        chunks = sent_chunks(message)
        if places is None or places.dtype != np.uint64 or places.shape != (len(chunks), 2):
            raise ArgumentError("chunks without their places")
        keys = [fmt.chunk_key(run, index) for run, index in places.tolist()]
        shard.fill([], iter([(key, fmt.pack_chunk(key, shard.identity["order"], n_keys, bytes(payload)))
                             for key, (payload, n_keys) in zip(keys, chunks, strict=True)]))
        return {}, {}

    def list(self, message: Message) -> Answer:
        """Take the list of the runs that the chunks make up, and look whether they do."""
        shard = self._made(message)
        if self._listed:
            return {}, {}
        runs = [Run.from_row(row) for row in unpacked(message)["runs"]]
        shard.fill(runs, iter(()))
        with shard.snapshot() as snapshot:
            for run in runs:
                total = RunTotal()
                for index, (payload, n_keys) in enumerate(snapshot.chunks(run)):
                    key = fmt.chunk_key(run.id, index)
                    total.add(key, fmt.pack_chunk(key, shard.identity["order"], n_keys, payload), n_keys)
                    payload.release()
                total.refuse_other(run, f"run {run.id}", str(shard.path))
        self._listed = True                    # from here on runs are added alone
        return {}, {}

    def count(self, message: Message) -> Answer:
        """Take a run of counts."""
        shard, chunks = self._made(message), sent_chunks(message)
        verify_chunks(chunks, shard.identity["order"], 1 << 32)
        self._listed = True
        shard.apply(self._attempt, field(message, "number", int), field(message, "version", int), chunks, {},
                    label=optional(message, "label", str))
        return {}, {}

    def finish(self, message: Message) -> Answer:
        """Merge its runs, and give it its name."""
        attempt = field(message, "attempt", str)
        if attempt not in self._finished:
            shard, version = self._made(message), field(message, "version", int)
            tidy(shard, order=shard.identity["order"], n_words=field(message, "words", int), version=version, job=None)
            shard.sweep(version, None)
            generation = shard.generation
            self._new = None
            shard.close()
            folder = self._folder / self._new_name
            unfinished = folder.with_name(folder.name + UNFINISHED)
            files.fsync_dir(unfinished)
            files.rename(unfinished, folder)
            self._attempt = ""
            self._finished[attempt] = generation
        return {"generation": self._finished[attempt]}, {}

    def _drop_new(self) -> None:
        shard, self._new, self._attempt = self._new, None, ""
        if shard is not None:
            shard.close()

    def close(self) -> None:
        """Close what is open."""
        self._drop_new()
        self.runner.streams.close()
        for number in list(self._snapshots):
            self._end(number)
        self._shut()
        if self._directory is not None:
            self._directory.close()

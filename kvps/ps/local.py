"""The shards of a table in this process: what CountTable asks of a transport, over a nested store directory.

    push    STEP 1  which shards have this number of the client already; a gap is refused
            STEP 2  no sum may leave 62 bits: told from the manifest, or (when counts are that large) from the counts
            STEP 3  one transaction a shard: a run that readers see at once, and the client's row
            STEP 4  at most one merge a shard, so that a pull looks at few runs
    pull    one snapshot of all shards; Lookup in each
    scan    one snapshot; all runs of all shards merged

Keys arrive sorted and added up (table.py). What a push acknowledges is on disk.
"""
from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvps._runs import encode, encoded_room
from kvps._table import lower_bounds, order_of
from kvps.errors import DataError, StoreError
from kvps.ps.keys import BITS, Part, packed_key, shown, width_of, words_of
from kvps.ps.lookup import Lookup
from kvps.ps.merging import merge, tidy
from kvps.ps.runs import CHUNK_BYTES, Block, chunk_of, merged, merged_shards
from kvps.ps.table import UNNAMED, UNNAMED_KEPT_S
from kvps.store.directory import StoreDirectory, StoreSnapshot, open_store
from kvps.store.shard import MOST, Shard

# A key is written again each time the runs above it have grown fourfold, and a pull meets three runs of a size at most.
FAN_IN = 4
SWEEP_S = 86_400               # how often a writer looks for what is left over
N_WORDS = 1 << BITS


class LocalShards:
    """The shards of one table, open; may be used from several threads."""

    def __init__(self, directory: StoreDirectory, wait: float = 0.0) -> None:
        """Take over an open directory; one opened for reading is opened for writing for the time of each push."""
        self._directory: StoreDirectory | None = directory
        self.path: Path = directory.path
        self.key_bytes: int = directory.identity["table"]["key_bytes"]
        self.n_shards: int = directory.identity["shards"]
        self._order, self._wait = order_of(self.key_bytes), wait
        self._pushing, self._looking = threading.Lock(), threading.Lock()
        self._begun, self._swept = False, 0.0
        self._room = np.empty(0, np.uint8)             # of encoded chunks; fresh memory for each push would cost more than encoding
        self._lookups: dict[str, Lookup] = {}          # by the shard's place in the store: it changes with its life

    # pushing

    def push(self, parts: list[Part], client: str | None, sequence: int, note: str | None) -> bool:
        """Add parts of at most one push a shard; as CountTable.push()."""
        directory = self._open()
        if directory.writable:
            with self._pushing:
                return self._push(directory, parts, client, sequence, note)
        with open_store(self.path, writable=True, wait=self._wait, command="table push", table=True) as writer:
            shards = LocalShards(writer)
            try:
                return shards._push(writer, parts, client, sequence, note)
            finally:
                shards._settle(writer)

    def _push(self, directory: StoreDirectory, parts: list[Part], client: str | None, sequence: int, note: str | None) -> bool:
        by_shard = {part.shard: part for part in parts}
        if client is None:
            wanted = sorted(by_shard)
        else:
            wanted = self._lacking(directory, client, sequence, note)
        if not wanted:
            return client is None
        self._begin(directory)
        for number in wanted:
            if number in by_shard:
                self._make_room(directory.shards[number], by_shard[number])
        until = int(time.time()) + UNNAMED_KEPT_S if client is not None and client.startswith(UNNAMED) else None
        for number in wanted:
            part, shard = by_shard.get(number), directory.shards[number]
            shard.push(self._chunks(part) if part else (), part.most if part else 0, client=client, sequence=sequence, note=note,
                       until=until)
            if part:
                tidy(shard, order=self._order, n_words=N_WORDS, version=0, job=None, fan_in=FAN_IN, at_most=1)
        return True

    def _lacking(self, directory: StoreDirectory, client: str, sequence: int, note: str | None) -> list[int]:
        """Return the shards that have not applied a number of a client; StoreError where one lacks an earlier number too."""
        rows = [_client(shard, client) for shard in directory.shards]
        lasts = [row["sequence"] for row in rows]
        if any(row["sequence"] == sequence and row["note"] != note for row in rows):
            raise StoreError(f"{self.path}: client {client} has pushed something else as number {sequence}: give the same "
                             "input, in batches of the same size, or use another client", path=str(self.path))
        if sequence > min(lasts) + 1:
            raise StoreError(f"{self.path}: client {client} pushed number {min(lasts)} last, so {min(lasts) + 1} is expected, not "
                             f"{sequence}", path=str(self.path), expected=min(lasts) + 1, found=sequence)
        return [number for number, last in enumerate(lasts) if last < sequence]

    def _begin(self, directory: StoreDirectory) -> None:
        """Before the first push: become the writer of this epoch, and sweep what a dead one left; after it, sweep once a day."""
        now = time.monotonic()
        if self._begun and now - self._swept < SWEEP_S:
            return
        if not self._begun:
            directory.root.claim()
        for shard in directory.shards:
            shard.sweep(0, None)
        self._begun, self._swept = True, now

    def _chunks(self, part: Part) -> list[tuple[bytes, int]]:
        if len(self._room) < encoded_room(len(part.counts)):
            self._room = np.empty(encoded_room(len(part.counts)), np.uint8)
        return encode(part.keys, part.counts, self._order, BITS, CHUNK_BYTES, self._room)

    def _make_room(self, shard: Shard, part: Part) -> None:
        """Raise DataError if a sum would leave 62 bits; merge what would let a sum of some runs leave them."""
        with shard.snapshot() as snap:
            if snap.most + part.most <= MOST:
                return
            runs = snap.all_runs()
        if len(runs) > 1:
            merge(shard, runs, self._order, N_WORDS)
        most = 0
        with shard.snapshot() as snap:
            for block in merged(snap, snap.all_runs(), self._order, BITS):
                most = max(most, int(block.counts.max()), -int(block.counts.min()))
        if most + part.most > MOST:
            self._refuse_overflow(shard, part)
        shard.set_most(most)

    def _refuse_overflow(self, shard: Shard, part: Part) -> None:
        sums = np.zeros(len(part.counts), np.int64)
        with shard.snapshot() as snap:
            Lookup(self._order, str(shard.path)).sums(snap, snap.all_runs(), part.keys, sums)
        over = np.where(sums > 0, part.counts > MOST - np.maximum(sums, 0), part.counts < -MOST - np.minimum(sums, 0))
        if over.any():
            at, width = int(np.argmax(over)), width_of(self.key_bytes)
            key = shown(part.keys[at * width:(at + 1) * width], self.key_bytes)
            raise DataError(f"{self.path}: the count of key {key} is {sums[at]}, and {part.counts[at]} more would be beyond 2**62; "
                            "nothing of this push was added", path=str(self.path), key=key)

    # reading

    def pull(self, keys: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the counts of packed keys, increasing within each shard, shard after shard up to `ends`; int64."""
        width = width_of(self.key_bytes)
        sums, start = np.zeros(len(keys) // width, np.int64), 0
        with self._looking, self._open().snapshot() as snapshot:
            self._follow(snapshot)
            for number, end in enumerate(ends.tolist()):
                if end > start:
                    place = snapshot.state["shards"][number]["dir"]
                    self._lookups[place].sums(snapshot.shards[number], snapshot.runs(number), keys[start * width:end * width],
                                              sums[start:end])
                start = end
        return sums

    def _follow(self, snapshot: StoreSnapshot) -> None:
        places = [place["dir"] for place in snapshot.state["shards"]]
        self._lookups = {place: self._lookups.get(place) or Lookup(self._order, str(self.path / place)) for place in places}

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Block]:
        """Yield blocks of keys from `start` up to but not with `stop` and their counts; valid until the next one.

        start, stop: whole keys, or the beginning of some.
        """
        width = width_of(self.key_bytes)
        least = packed_key(start, self.key_bytes)
        beyond = None if stop is None else packed_key(stop, self.key_bytes)
        with self._open().snapshot() as snapshot:
            sources = [(snap, run) for number, snap in enumerate(snapshot.shards) for run in snapshot.runs(number)]
            first = [chunk_of(snap, run, self._order, words_of(start, self.key_bytes)) for snap, run in sources] if start else None
            with contextlib.closing(merged_shards(sources, self._order, BITS, first)) as blocks:
                for block in blocks:
                    a = self._below(block, least) if start else 0
                    b = len(block.counts) if beyond is None else self._below(block, beyond)
                    if a < b:
                        yield Block(block.keys[a * width:b * width], block.counts[a:b])
                    if b < len(block.counts):
                        return

    def _below(self, block: Block, bound: np.ndarray) -> int:
        return int(lower_bounds(block.keys, bound, self._order)[0])

    def n_keys(self) -> int:
        """Return how many keys have a count; reads everything, unless each shard has one run."""
        with self._open().snapshot() as snapshot:
            total = 0
            for number, snap in enumerate(snapshot.shards):
                runs = snapshot.runs(number)
                total += runs[0].n_keys if len(runs) == 1 else sum(
                    len(block.counts) for block in merged(snap, runs, self._order, BITS)) if runs else 0
            return total

    def rows(self, name: str) -> list[dict]:
        """Return what the ledger of each shard has of a client."""
        return [_client(shard, name) for shard in self._current()]

    def _current(self) -> list[Shard]:
        directory = self._open()
        with directory.snapshot():             # follows shards that moved
            return list(directory.shards)

    def facts(self) -> dict:
        """Return what CountTable.stats() says, without reading any counts."""
        directory = self._open()
        with directory.snapshot() as snapshot:
            runs = [snapshot.runs(number) for number in range(self.n_shards)]
            clients = {name for snap in snapshot.shards for name in snap.clients()}
        n_bytes = directory.bytes()
        return {"shards": self.n_shards, "runs": sum(map(len, runs)), "entries": sum(run.n_keys for found in runs for run in found),
                "clients": len(clients), "bytes": n_bytes["file"], "live_bytes": n_bytes["live"]}

    # the end

    def _settle(self, directory: StoreDirectory) -> None:
        """Write down how far the shards have come: one that is found behind it later has lost commits."""
        if self._begun:
            directory.root.note_generations(directory.generations())

    def close(self) -> None:
        """Close, and let the next writer in; fine if it is closed."""
        directory, self._directory = self._directory, None
        if directory is not None:
            try:
                if directory.writable:
                    self._settle(directory)
            finally:
                directory.close()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._directory is None

    @property
    def writable(self) -> bool:
        """Whether other writers are kept away until it is closed."""
        return self._open().writable

    def _open(self) -> StoreDirectory:
        if self._directory is None:
            raise StoreError(f"{self.path}: is closed", path=str(self.path))
        return self._directory


def _client(shard: Shard, name: str) -> dict:
    with shard.snapshot() as snap:
        return snap.client(name)

"""Sums of the counts of some keys in a shard's runs, with what was learnt of their chunks kept for the next time.

A run never changes, and its number is never used again. Of each, the first keys of its chunks are kept; of each chunk
that was looked into, every INTERVAL-th entry, decoded, so that a key costs half as many entries; and that its checksum
was compared, which happens once.
"""
from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from kvps._ngrams import key_width
from kvps._runs import first_key, pack
from kvps._table import look_up, lower_bounds, marks
from kvps.errors import CorruptionError
from kvps.ps.keys import BITS
from kvps.store.runs import Run
from kvps.store.shard import Snapshot

INTERVAL = 8               # 20 bytes for every 8 keys of 8 bytes; 16 took a fifth, 32 two fifths more of the time of a look
COARSE_INTERVAL = 32       # of runs whose marks would else take all of the memory below
FINE_KEYS = 8 << 20        # of a run: up to here INTERVAL
MEMORY_BYTES = 64 << 20    # of marks, for each shard; what was not used for longest goes first


@dataclass
class _Known:
    """What is known of a run."""

    firsts: np.ndarray     # packed first keys of its chunks
    compared: bytearray    # per chunk: 1 if its checksum was right


class Lookup:
    """One shard, in one life of its directory; used by one thread at a time."""

    def __init__(self, order: int, path: str) -> None:
        self._order, self._width, self._path = order, key_width(order, BITS), path
        self._runs: dict[int, _Known] = {}
        self._marks: OrderedDict[tuple[int, int], tuple[np.ndarray, ...]] = OrderedDict()
        self._bytes = 0

    def sums(self, snap: Snapshot, runs: list[Run], asked: np.ndarray, sums: np.ndarray) -> None:
        """Add to `sums` what the runs have for the packed keys `asked`, which are increasing."""
        self._forget(runs)
        for run in runs:
            known = self._runs.get(run.id)
            if known is None:
                known = self._runs[run.id] = _Known(self._firsts(snap, run), bytearray(run.n_chunks))
            # asked[bounds[c]:bounds[c + 1]] can be in chunk c; what is below the first key of all is in none.
            interval = INTERVAL if run.n_keys <= FINE_KEYS else COARSE_INTERVAL
            bounds = np.append(lower_bounds(asked, known.firsts, self._order), len(sums))
            if bounds[0] > 0:
                self._chunk(snap, run, known, 0)
            for index in np.flatnonzero(np.diff(bounds)).tolist():
                start, stop = bounds[index], bounds[index + 1]
                payload, n_keys = self._chunk(snap, run, known, index)
                if index + 1 < run.n_chunks and not known.compared[index + 1]:
                    self._chunk(snap, run, known, index + 1)       # its first key says where this chunk ends
                wrong = look_up(payload, n_keys, self._order, interval, *self._marks_of(run, index, payload, n_keys, interval),
                                asked[start * self._width:stop * self._width], sums[start:stop])
                if wrong:
                    raise self._damaged(run, index, wrong)

    def _chunk(self, snap: Snapshot, run: Run, known: _Known, index: int) -> tuple[memoryview, int]:
        if known.compared[index]:
            return snap.known_chunk(run, index)
        found = snap.chunk(run, index)
        known.compared[index] = 1
        return found

    def _firsts(self, snap: Snapshot, run: Run) -> np.ndarray:
        """Return the first keys of a run's chunks, as they are read: a chunk is compared before its key is relied on."""
        rows = np.empty((run.n_chunks, self._order), np.uint32)
        for index in range(run.n_chunks):
            key = first_key(snap.known_chunk(run, index)[0], self._order)
            if key is None:
                snap.chunk(run, index)
                raise self._damaged(run, index, "bytes that are no entry")
            rows[index] = key
        return pack(rows, BITS)

    def _marks_of(self, run: Run, index: int, payload: memoryview, n_keys: int, interval: int) -> tuple[np.ndarray, ...]:
        place = run.id, index
        found = self._marks.get(place)
        if found is not None:
            self._marks.move_to_end(place)
            return found
        found = marks(payload, n_keys, self._order, interval)
        if found is None:
            raise self._damaged(run, index, "bytes that are no entries in order")
        self._marks[place] = found
        self._bytes += sum(array.nbytes for array in found)
        while self._bytes > MEMORY_BYTES and len(self._marks) > 1:
            _, gone = self._marks.popitem(last=False)
            self._bytes -= sum(array.nbytes for array in gone)
        return found

    def _forget(self, runs: list[Run]) -> None:
        """Drop what is known of runs that are there no more."""
        ids = {run.id for run in runs}
        if not self._runs.keys() <= ids:
            for number in self._runs.keys() - ids:
                del self._runs[number]
            for place in [place for place in self._marks if place[0] not in ids]:
                self._bytes -= sum(array.nbytes for array in self._marks.pop(place))

    def _damaged(self, run: Run, index: int, reason: str) -> CorruptionError:
        key = f"run {run.id} chunk {index}"
        return CorruptionError(f"{self._path}: {key}: {reason}, expected sorted entries; the table is damaged: keep a copy of it, "
                               "and restore a checkpoint", path=self._path, key=key, found=reason, expected="sorted entries")

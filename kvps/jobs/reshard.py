"""Deal the counts of a store to another number of shards, evenly; nothing that anybody asks for changes.

    STEP 1  weigh: how many distinct n-grams each routing word has; plan the routing table (ps/router.py)
    STEP 2  deal: read each old shard in key order, a part at a time, into runs of staging shards, one beside each new one
    STEP 3  merge: the runs of a staging shard into one a label, in the new shard; the staging shard goes
    STEP 4  one transaction in the root names the new shards, their number and the table: from here on they are in force
    STEP 5  remove the old ones

Killed before step 4, the store is as before, and the next writer removes what was begun: the same command begins again.
Killed after it, the store is resharded. Readers keep the shards that they have open, and their next snapshot has the new ones.
The ledgers of jobs that are over stay behind: they are of no use to any later one.
"""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvps.errors import StoreError
from kvps.jobs.dealing import deal
from kvps.jobs.train import check_shape
from kvps.pools import gathered
from kvps.ps.router import Router, parts, plan, weigh
from kvps.ps.runs import Block, bits_for, encoded, merged, merged_below
from kvps.store import files, layout, rebuild
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.store.runs import by_label
from kvps.store.shard import Shard

Progress = Callable[[str, int, int], None]     # (stage, done, total) [n-grams]


def reshard(store: StoreDirectory, shards: int, *, threads: int, progress: Progress = lambda stage, done, total: None) -> dict:
    """Give a store that is open for writing another number of shards.

    Args:
        shards: how many; as many as now is fine: heavy words are dealt anew.
        progress: called with the stage, "weighing", "dealing" or "merging", and (n-grams done, in all).

    Returns:
        {"version", "shards_before", "shards", "ngrams": distinct ones, "largest": shard's share of the mean}.

    Raises:
        ArgumentError: an impossible number. StoreError: a job is pending.
    """
    check_shape(store.identity["order"], shards)
    job = store.root.job()
    if job is not None:
        raise StoreError(f"{store.path}: a {job['command']} was interrupted; go on with kvps resume, or roll it back with kvps "
                         "abort, before the store is resharded", path=str(store.path))
    store.root.claim()
    before = len(store.shards)
    with store.snapshot() as snapshot:
        made = _Reshard(store, snapshot, shards, progress)
        try:
            n_keys = made.run(threads)
        except BaseException:
            made.discard()
            raise
        finally:
            made.close()
    store.take_over(made.names, made.generations, made.table)
    largest = max(n_keys) * shards / sum(n_keys) if sum(n_keys) else 1.0
    return {"version": snapshot.version, "shards_before": before, "shards": shards, "ngrams": sum(n_keys), "largest": largest}


class _Ended(Exception):
    """Another thread has failed, or somebody has pressed Ctrl-C."""


class _Reshard:
    """One reshard of one version."""

    def __init__(self, store: StoreDirectory, snapshot: StoreSnapshot, n_shards: int, progress: Progress) -> None:
        self.store, self.snapshot, self.n_shards, self._tell = store, snapshot, n_shards, progress
        self.order, self.n_words = store.identity["order"], store.root.next_word()
        self.bits = bits_for(self.n_words)
        self.table: dict | None = None
        self.names = layout.next_shards([place["dir"] for place in snapshot.state["shards"]], n_shards)
        self.generations: list[int] = []
        # Their numbers go on from those of the old ones: what a checkpoint has of a run names it for ever.
        self.above = max(snap.following for snap in snapshot.shards)
        self.staging: list[Shard] = []
        self._total, self._done, self._turn, self._ended = snapshot.n_keys(), 0, threading.Lock(), False

    def run(self, threads: int) -> list[int]:
        """Steps 1 to 3; return how many n-grams each new shard has."""
        with ThreadPoolExecutor(threads) as self.pool:
            try:
                self.weigh()
                self.deal()
                return self.merge()
            except BaseException:
                self._ended = True                    # the other threads need not go on to their end
                raise

    def advance(self, stage: str, n: int) -> None:
        """Say that so many more n-grams of a stage are done."""
        with self._turn:
            if self._ended:
                raise _Ended
            self._done += n
            self._tell(stage, self._done, self._total)

    def close(self) -> None:
        """Let go of the staging shards."""
        for shard in self.staging:
            shard.close()

    def discard(self) -> None:
        """Remove what was begun; what cannot be removed now goes with the next writer."""
        self.close()
        for name in self.names:
            for folder in (name, name + rebuild.UNFINISHED):
                with contextlib.suppress(StoreError, OSError):
                    files.remove_tree(self.store.path / folder)

    # STEP 1

    def weigh(self) -> None:
        """Make the routing table."""
        def look(number: int) -> np.ndarray:
            weights = np.zeros(self.n_words, np.int64)
            with self.merged(number) as blocks:
                for block in blocks:
                    weigh(block.keys, self.order, self.bits, weights)
                    self.advance("weighing", len(block.counts))
            return weights

        self._done = 0
        every = range(len(self.snapshot.shards))
        if self.n_shards > 1 and self.order > 1:
            weights = sum(gathered(self.pool, look, every))
            self.table = plan(weights, self.n_shards, self.order, lambda split: sum(gathered(
                self.pool, lambda number: self.parts(number, split), every)))

    def merged(self, number: int) -> contextlib.closing[Iterator[Block]]:
        """Return the sums of all runs of an old shard."""
        return contextlib.closing(merged(self.snapshot.shards[number], self.snapshot.runs(number), self.order, self.bits))

    def parts(self, number: int, split: Sequence[int]) -> np.ndarray:
        """Return how many n-grams of split words each new shard gets from an old one."""
        found = np.zeros(self.n_shards, np.int64)
        below = [(word,) for word in sorted(split)]
        with contextlib.closing(merged_below(self.snapshot.shards[number], self.snapshot.runs(number), self.order, self.bits,
                                             below)) as blocks:
            for block in blocks:
                found += parts(block.keys, self.order, self.bits, self.n_words, self.n_shards, split)
        return found

    # STEP 2

    def deal(self) -> None:
        """Fill the staging shards."""
        self._done = 0
        router = Router(self.n_shards, self.table)
        for number in range(self.n_shards):
            self.staging.append(self.create(number, self.names[number] + rebuild.UNFINISHED))
        targets = dict(enumerate(self.staging))
        gathered(self.pool, lambda number: deal(
            self.snapshot.shards[number], self.snapshot.runs(number), self.order, self.n_words, router, targets,
            lambda n: self.advance("dealing", n)), range(len(self.snapshot.shards)))

    def create(self, number: int, name: str) -> Shard:
        """Make an empty shard."""
        folder = self.store.path / name
        files.remove_tree(folder)                     # of a reshard that was killed
        identity = {"uuid": self.store.identity["uuid"], "shard": number, "shards": self.n_shards, "order": self.order}
        return Shard.create(folder, identity, map_bytes=layout.map_bytes(self.n_shards), epoch=self.store.root.next_epoch,
                            above=self.above)

    # STEP 3

    def merge(self) -> list[int]:
        """Make the new shards; return how many n-grams each has."""
        self._done = 0

        def finish(number: int) -> tuple[int, int]:
            name, n_keys = self.names[number], 0
            with contextlib.closing(self.create(number, name)) as new:
                with self.staging[number].snapshot() as staged:
                    for label, runs in by_label(staged.all_runs()).items():
                        with contextlib.closing(merged(staged, runs, self.order, self.bits)) as blocks:
                            new.add_run(encoded(self.counted(blocks), self.order, self.bits), max(run.version for run in runs),
                                        label)
                n_keys, generation = sum(run.n_keys for run in new.runs()), new.generation
            files.fsync_dir(self.store.path / name)
            self.staging[number].close()
            files.remove_tree(self.store.path / (name + rebuild.UNFINISHED))
            return n_keys, generation

        done = gathered(self.pool, finish, range(self.n_shards))
        files.fsync_dir(self.store.path / layout.SHARDS)
        self.generations = [generation for _, generation in done]
        return [n_keys for n_keys, _ in done]

    def counted(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass blocks on and tell of them."""
        for block in blocks:
            yield block
            self.advance("merging", len(block.counts))


"""A store on a Ray cluster: what its actors answer, which of them may write, and counting as tasks.

The root's actor does what the starter of kvps serve does: it takes the owner lock, looks at the store as any writer does,
and has Ray start an actor for each shard on the same machine. It lends them the lock (store/lending.py); an actor of a
shard opens nothing before it has that, and ends at once when the root's is gone. So nobody else writes as long as a process
of theirs lives, whatever Ray believes: an actor that was started again while the one before it still lives gets the lock
only when that one has ended. A shard on another machine has a folder, and so a lock, of its own there; that it takes nothing
but what its root lets it is seen to by the root's epochs.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kvps.errors import InputGone, KvpsError, StoreLocked
from kvps.jobs.owning import home_lock, take_over
from kvps.jobs.serve import ROOT, StoreMaker, functions_at_home, functions_of
from kvps.jobs.work import counter
from kvps.ps.ray import NotReady, Place, RayConnection, Tasks, cpus
from kvps.ps.remote_store import AWAY, RemoteDirectory
from kvps.store import creation, files, lock, seal
from kvps.store.directory import open_store
from kvps.store.lending import Lender, borrowed

log = logging.getLogger("kvps")

COMMAND = "ray"                # what the owner lock says of us


class Opened:
    """What an actor answers with; made by opened()."""

    def __init__(self, place: Place) -> None:
        """Open the root of a store, or a shard.

        Raises:
            NotReady: the lock is still that of an actor before us, or the root's actor has not got it yet.
            KvpsError: it cannot be opened.
        """
        self._stack, folder = contextlib.ExitStack(), Path(place.folder)
        self.over = False                      # whether it is to be closed, and the place opened again
        self.idle: Callable[[], None] = lambda: None
        try:
            if place.away:
                self._open_home(place)
            elif place.number is not None:
                self._open_shard(place.number, folder)
            elif seal.exists(folder):
                self._open_root(place, folder)
            else:
                creation.refuse_place(folder, False)
                self.functions = StoreMaker(folder, self._end).functions()
        except BaseException:
            self._stack.close()
            raise

    def _open_root(self, place: Place, folder: Path) -> None:
        with open_store(folder, whole=False) as store:
            shards = [dataclasses.replace(place, number=number) for number in range(store.identity["shards"])]

        def connect(shard: Place) -> RayConnection:
            shard.start()
            return RayConnection(str(shard))

        with _not_ours(folder):
            owner, _ = take_over(folder, COMMAND, away={
                shard.number: functools.partial(connect, shard) for shard in shards if shard.away})
        self._stack.enter_context(contextlib.closing(owner))
        self._stack.enter_context(contextlib.closing(Lender(folder, owner)))
        for shard in shards:
            shard.start()
        self.functions, self.idle = functions_of(
            folder, ROOT, [f"{AWAY}{shard}" if shard.away else f"#{shard.number}" for shard in shards], self._stack)

    def _open_shard(self, number: int, folder: Path) -> None:
        try:
            self._stack.enter_context(borrowed(folder, number))
        except StoreLocked as exc:
            raise NotReady(str(exc)) from exc
        self.functions, self.idle = functions_of(folder, number, [], self._stack)

    def _open_home(self, place: Place) -> None:
        """Open the folder of a shard on another machine than its root."""
        with files.reporting(place.home.parent):
            place.home.parent.mkdir(files.DIR_MODE, parents=True, exist_ok=True)
        with _not_ours(place.home):
            self._stack.enter_context(contextlib.closing(home_lock(place.home, COMMAND)))
        root = str(dataclasses.replace(place, number=None))
        self.functions, self.idle = functions_at_home(place.home, place.number, self._stack, lambda: RemoteDirectory(root))

    def _end(self) -> None:
        """Let the next request find the store that was made."""
        self.over = True

    def close(self) -> None:
        """Close all, and give the lock back."""
        self._stack.close()


@contextlib.contextmanager
def _not_ours(folder: Path) -> Iterator[None]:
    """Let who asks ask again where a lock is that of an actor before us, which is about to end."""
    try:
        yield
    except StoreLocked as exc:
        if (lock.owner(folder) or {}).get("command") == COMMAND:
            raise NotReady(str(exc)) from exc
        raise


def opened(place: Place) -> Opened:
    """Open what the actor of a place is to answer with."""
    return Opened(place)


# Counting.

class Counters:
    """Tasks that count the text of a job."""

    def __init__(self, place: str, job: dict, tokenizer: str, n: int) -> None:
        """Start n of them."""
        there = str(Place.parse(place).joined())
        # A task keeps its name when it is run again, and so goes on with the splits that it had claimed.
        self._tasks = Tasks(count, [(there, job["id"], tokenizer, os.urandom(16)) for _ in range(n)])

    def wait(self, at_most_s: float) -> bool:
        """Wait a while; return whether there is nothing left for them to count. What they could not count is the caller's."""
        if not self._tasks.wait(at_most_s):
            return False
        reasons = (type(result).__name__ if isinstance(result, Exception) else result for result in self._tasks.results)
        for reason in sorted({reason for reason in reasons if reason is not None}):
            log.warning("a task could not count: %s", reason)
        return True

    def close(self) -> None:
        """End those that run."""
        self._tasks.cancel()


def n_counters(place: str, asked: int | None) -> int:
    """Return how many tasks count at a place: as many as were asked for, or a CPU of the cluster each."""
    Place.parse(place).joined()
    return asked or cpus()


def count(place: str, job_id: str, tokenizer: str, client: bytes) -> str | None:
    """Count a part of the text of a job, until all is counted; return why not, where its text is not here.

    What is wrong with the text itself is met again by the client that began the job, which then says so.
    """
    with contextlib.suppress(KvpsError):
        try:
            with RemoteDirectory(place, client=client) as store:
                (epoch, at_work), job = store.at_work(), store.root.job()
                if job is not None and at_work == job["id"] == job_id:
                    counter(store, job, tokenizer, 1)(epoch)
        except InputGone as exc:
            return str(exc)
    return None

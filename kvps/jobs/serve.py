"""kvps serve: a starter, which starts a server for the root of a store and one for each shard, and again whatever dies.

The starter takes the owner lock, looks at the store as any writer does, and lets its children inherit the lock: nobody
else writes as long as one of them lives. A child ends when its starter does: it reads from a pipe that nobody writes to.

    python -m kvps.jobs.serve CHILD        CHILD: a JSON object, the fields of Child
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from kvps.errors import ArgumentError, KvpsError, StoreError
from kvps.jobs.owning import home_lock, take_over
from kvps.jobs.train import check_shape
from kvps.ps.answering import Answer, Function
from kvps.ps.away import PATIENCE_S, AwayShard
from kvps.ps.connection import Connection
from kvps.ps.protocol import Message
from kvps.ps.remote import connected, endpoint
from kvps.ps.remote_store import AWAY, RemoteDirectory
from kvps.ps.server import Server, check_bind, refuse_taken
from kvps.store import creation, seal
from kvps.store.directory import StoreDirectory
from kvps.store.lock import OwnerLock
from kvps.text.tokenize import recordable
from kvps.units import cpu_count

log = logging.getLogger("kvps.server")

ROOT, EMPTY = -1, -2           # in the place of a shard's number: the store's root; a store that is still to be made
START_S = 60.0                 # a server that is not ready after that will not be
SHORT_LIFE_S = 1.0             # who dies so soon after its start is started again more slowly each time
MAX_DELAY_S = 5.0
STOP_S = 30.0                  # how long a server may take to finish its work before it is killed
LOOK_S = 0.5
LINE_S = 0.1
TELL_S = 1.0                   # how often a server says what it is doing


@dataclasses.dataclass
class Child:
    """One server: what it is told."""

    store: str                 # its folder, or the one that the shard has for itself
    number: int                # of its shard, or ROOT, or EMPTY
    bind: str
    keys: str | None
    threads: int
    root: str | None = None    # of a shard in a folder of its own: the address of the store


@dataclasses.dataclass
class _Running:
    """One server as its starter sees it."""

    child: Child
    process: subprocess.Popen | None = None
    began: float = 0.0
    delay_s: float = 0.0       # before it is started again
    due: float = 0.0
    starts: int = 0
    said: bytes = b""          # of a line that is not whole
    facts: dict | None = None  # what it said of itself last


def binds(bind: str, n_shards: int) -> list[str]:
    """Return where the shards of a store are served whose root is at `bind`: sockets beside it, or the ports that follow."""
    if bind.startswith("ipc://"):
        return [f"{bind}.{number}" for number in range(n_shards)]
    host, _, port = bind.rpartition(":")
    first = int(port)
    if first and first + n_shards > 65535:
        raise ArgumentError(f"{bind}: the {n_shards} ports that follow are for the shards, and ports end at 65535")
    return [f"{host}:{first and first + 1 + number}" for number in range(n_shards)]


class Starter:
    """Starts the servers of a store, and keeps them alive until stop().

    Where there is no store yet, one server waits for the client that has it made.

        starter = Starter(path, bind)
        if starter.start():
            starter.run()
        starter.close()
    """

    def __init__(self, store: Path, bind: str, *, keys: str | None = None, threads: int | None = None, wait: float = 0.0,
                 away: Mapping[int, str] = MappingProxyType({}), shards: Sequence[int] = (), root: str | None = None) -> None:
        """Take the store for us, and look whether it is sound.

        Args:
            store: its folder; with `shards`, a folder for these alone, made if it is not there.
            bind: where the root is served; with `shards`, the first of them.
            keys: folder of the server's keys.
            threads: as Server's.
            wait: for another writer [s].
            away: where the shards are served, by their numbers, that are on other machines.
            shards: serve these of the store that is served at `root`.

        Raises:
            ArgumentError: no such address, or one that others can reach, without keys.
            StoreError: it is something else. StoreLocked: somebody else is writing. CorruptionError: the store is damaged.
        """
        check_bind(bind, keys is not None)
        self._store, self._bind, self._wait, self._away = store, bind, wait, {number: endpoint(away[number]) for number in away}
        self._told = {"store": str(store), "keys": keys and os.path.abspath(keys), "threads": threads or cpu_count(), "root": root}
        self._stopping = threading.Event()
        self._owner: OwnerLock | None = None
        self._running: list[_Running] = []
        try:
            if root is not None:
                endpoint(root)
                self._take_home(shards)
            elif seal.exists(store):
                self._take_over()
            else:
                creation.refuse_place(store, False)
                self._running = [_Running(Child(number=EMPTY, bind=bind, **self._told))]
            for running in self._running:          # now: the servers of a starter that was killed are gone
                refuse_taken(running.child.bind)
        except BaseException:
            self.close()
            raise

    def start(self) -> bool:
        """Start the servers; return False if stop() was called meanwhile. StoreError: one did not start."""
        failed = self._start(self._running)
        if failed and not self._stopping.is_set():
            raise StoreError(f"{self._store}: the server of {_name(failed[0].child.number)} did not start", path=str(self._store))
        return not failed

    def _take_over(self) -> None:
        """Become the writer of the store, whose servers are still to be started."""
        self._owner, n_shards = take_over(self._store, "serve", self._wait, {
            number: functools.partial(Connection, place, keys=self._told["keys"]) for number, place in self._away.items()})
        children = [Child(number=number, bind=place, **self._told) for number, place in enumerate(binds(self._bind, n_shards))
                    if number not in self._away]
        self._running = [_Running(child) for child in (*children, Child(number=ROOT, bind=self._bind, **self._told))]

    def _take_home(self, shards: Sequence[int]) -> None:
        """Take the folder of shards whose root is on another machine, whose servers are still to be started."""
        self._owner = home_lock(self._store, "serve", self._wait)
        first, *following = [self._bind, *binds(self._bind, len(shards) - 1)]
        self._running = [_Running(Child(number=number, bind=place, **self._told))
                         for number, place in zip(shards, [first, *following], strict=True)]

    @property
    def address(self) -> str:
        """Where the root is served."""
        return self._running[-1].child.bind

    def homes(self) -> dict[int, str]:
        """Return where each shard is served whose root is on another machine, by its number."""
        return {running.child.number: running.child.bind for running in self._running if running.child.root is not None}

    def _start(self, chosen: list[_Running]) -> list[_Running]:
        """Start servers, and wait until they are ready; from then on each is at the same address whenever it is started.

        Returns those that ended before.
        """
        failed = []
        for running in chosen:
            running.began, running.said, running.facts = time.monotonic(), b"", None
            running.starts += 1
            running.process = subprocess.Popen(
                [sys.executable, "-m", "kvps.jobs.serve", json.dumps(dataclasses.asdict(running.child))], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, pass_fds=() if self._owner is None else (self._owner.fileno(),),
                process_group=0)               # Ctrl-C is ours, and we tell them
        for running in chosen:
            child, process = running.child, running.process
            if child.number == ROOT:           # the last one: it is told where the others are
                with contextlib.suppress(OSError):
                    here = {other.child.number: other.child.bind for other in self._running[:-1]}
                    there = {number: f"{AWAY}{place}" for number, place in self._away.items()}
                    places = [place for _, place in sorted({**here, **there}.items())]
                    os.write(process.stdin.fileno(), json.dumps(places).encode() + b"\n")
            try:
                first, _, running.said = _line(process.stdout, START_S, self._stopping).partition(b"\n")
                child.bind = json.loads(first)["address"]
            except ValueError:
                process.kill()
                failed.append(running)
            self._bind = child.bind if child.number < 0 else self._bind
        return failed

    def run(self) -> None:
        """Start again whatever dies, until stop()."""
        with contextlib.closing(selectors.DefaultSelector()) as selector:
            for running in self._running:
                selector.register(running.process.stdout, selectors.EVENT_READ, running)      # at its end a server is gone
            while not self._stopping.is_set():
                for key, _ in selector.select(LOOK_S):
                    self._hear(key.data)
                now = time.monotonic()
                for running in self._running:
                    if running.process is not None and running.process.poll() is not None:
                        selector.unregister(running.process.stdout)
                        self._died(running, now)
                if self._running[0].child.number == EMPTY and self._running[0].process is None and seal.exists(self._store):
                    self._take_over()
                due = [running for running in self._running if running.process is None and now >= running.due]
                failed = [] if self._stopping.is_set() else self._start(due)
                for running in due:
                    if running in failed and not self._stopping.is_set():
                        self._died(running, time.monotonic())
                    elif running.process is not None:
                        selector.register(running.process.stdout, selectors.EVENT_READ, running)

    @staticmethod
    def _hear(running: _Running) -> None:
        """Read what a server says of itself; nothing, at its end."""
        *lines, running.said = (running.said + os.read(running.process.stdout.fileno(), 1 << 16)).split(b"\n")
        for line in lines[-1:]:
            with contextlib.suppress(ValueError):
                running.facts = json.loads(line)

    def servers(self) -> list[dict]:
        """Return "server", "up", "starts" and "facts" of each; called from any thread."""
        return [{"server": "root" if running.child.number < 0 else f"shard {running.child.number}",
                 "up": running.process is not None, "starts": running.starts, "facts": running.facts}
                for running in list(self._running)]

    def _died(self, running: _Running, now: float) -> None:
        code = running.process.wait()
        running.process.stdin.close()
        running.process.stdout.close()
        running.process = running.facts = None
        short = now - running.began < SHORT_LIFE_S
        running.delay_s = min(MAX_DELAY_S, 2 * running.delay_s or 0.1) if short else 0.0
        running.due = now + running.delay_s
        if running.child.number == EMPTY and code == 0:
            return
        log.warning("the server of %s ended with code %d, and is started again", _name(running.child.number), code)

    def stop(self) -> None:
        """Let run() end; may be called from a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """End the servers, each when it has done what it has begun, the root's last; then let the next writer in."""
        try:
            for running in self._running[:-1], self._running[-1:]:
                _end([one.process for one in running if one.process is not None])
        finally:
            if self._owner is not None:
                self._owner.close()


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()
        process.stdout.close()


def _line(stream: BinaryIO, timeout_s: float, stopping: threading.Event) -> bytes:
    """Return the next line of a pipe, perhaps with more behind it, or what came of it in time, or until we are to stop."""
    found, deadline = b"", time.monotonic() + timeout_s
    with contextlib.closing(selectors.DefaultSelector()) as selector:
        selector.register(stream, selectors.EVENT_READ)
        while b"\n" not in found and time.monotonic() < deadline and not stopping.is_set():
            if selector.select(LINE_S):
                some = os.read(stream.fileno(), 4096)
                if not some:
                    break
                found += some
    return found


def _name(number: int) -> str:
    return f"shard {number}" if number >= 0 else "the root"


# A server's own process.

def serve_child(child: Child) -> None:
    """Serve until SIGTERM, or until our starter is gone; a line on stdout says where."""
    with contextlib.ExitStack() as stack:
        if child.number == EMPTY:
            maker = StoreMaker(Path(child.store), lambda: server.stop())
            functions, idle = maker.functions(), lambda: None
        else:
            shards = json.loads(_line(sys.stdin.buffer, START_S, threading.Event())) if child.number == ROOT else []
            if child.root is None:
                functions, idle = functions_of(Path(child.store), child.number, shards, stack, keys=child.keys)
            else:
                functions, idle = functions_at_home(Path(child.store), child.number, stack,
                                                    lambda: RemoteDirectory(child.root, keys=child.keys))
        server = Server(child.bind, functions, keys=child.keys, threads=child.threads, idle=lambda: (idle(), tell()))
        told = 0.0

        def tell() -> None:
            """Say what we are doing, to a starter that may be slow, or gone."""
            nonlocal told
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                with contextlib.suppress(OSError):
                    os.write(1, json.dumps(server.facts()).encode() + b"\n")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        threading.Thread(target=_watch_starter, name="starter", daemon=True).start()
        sys.stdout.write(json.dumps({"address": server.address}) + "\n")
        sys.stdout.flush()
        os.set_blocking(1, False)
        server.run()


class StoreMaker:
    """What a server answers that has no store yet: it makes one, as a client wants it, and ends."""

    def __init__(self, path: Path, stop: Callable[[], None]) -> None:
        """Take where the store is to be, and what ends the server."""
        self._path, self._stop = path, stop

    def functions(self) -> dict[str, Function]:
        """Return what a Server is to answer."""
        return {"store": Function(self.store, changes=True), "make": Function(self.make, changes=True)}

    def store(self, message: Message) -> Answer:
        """Say that there is none."""
        return {"empty": True, "path": str(self._path)}, {}

    def make(self, message: Message) -> Answer:
        """Make the store."""
        order, shards, tokenizer = (message.call.get(name) for name in ("order", "shards", "tokenizer"))
        if not (isinstance(order, int) and isinstance(shards, int)):
            raise ArgumentError("a store is made of an order, a number of shards and a tokenizer")
        check_shape(order, shards)
        if not seal.exists(self._path):        # else this is asked again
            creation.create_store(self._path, order, shards, recordable(tokenizer))
        self._stop()                           # when this is answered
        return {}, {}


def functions_at_home(folder: Path, number: int, stack: contextlib.ExitStack, root: Callable[[], RemoteDirectory],
                      ) -> tuple[dict, Callable[[], None]]:
    """Return what functions_of() does, for a shard in a folder of its own; `root` connects to its store."""
    from kvps.jobs import served
    from kvps.ps.home_service import HomeService

    shard = stack.enter_context(contextlib.closing(HomeService(folder, number, root, served.SHARD, served.HOME)))
    return shard.functions(), shard.drop_idle


def functions_of(store: Path, number: int, shards: list[str], stack: contextlib.ExitStack, *,
                 keys: str | None = None) -> tuple[dict, Callable[[], None]]:
    """Return what the server of a shard or of the ROOT answers, and what it does now and then; the stack closes it.

    shards: addresses of the shards' servers, for the root's. keys: folder of the server's keys.
    """
    from kvps.jobs import served

    if number != ROOT:
        from kvps.ps.shard_service import ShardService

        directory = StoreDirectory(store, False, None)
        shard = stack.enter_context(contextlib.closing(ShardService(directory, served.SHARD)))
        directory.follow()
        shard.open(directory.shards[number].path, number, directory.root.state()["epoch"])
        return shard.functions(), shard.runner.streams.drop_idle
    from kvps.jobs.status import status_of
    from kvps.ps.calls import Runner
    from kvps.ps.root_service import RootService
    from kvps.ps.serving import TableService
    from kvps.ps.streams import Streams

    streams = Streams()
    root = stack.enter_context(contextlib.closing(RootService(store, shards, streams, lambda number, name: AwayShard(
        connected(shards[number].removeprefix(AWAY), keys=keys, patience_s=PATIENCE_S), number, name))))
    tables = stack.enter_context(contextlib.closing(TableService(store)))

    def status(directory: StoreDirectory) -> dict:
        return status_of(directory, root.session())

    runner = Runner(lambda message: root.directory, {**served.STORE, status_of.__name__: status}, streams)
    stack.callback(streams.close)

    def idle() -> None:
        streams.drop_idle()
        tables.scans.drop_idle()
        root.renew_snapshots()

    return {**tables.functions(), **root.functions(), **runner.functions(changes=False)}, idle


def _watch_starter() -> None:
    """End this process at once when its starter is gone, whatever it is at: everything that is acknowledged is on disk."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def main() -> None:
    """Be one server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C is the starter's, which tells us
    try:
        serve_child(Child(**json.loads(sys.argv[1])))
    except KvpsError as exc:
        log.error("%s", exc)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()

"""Stores on a Ray cluster: actors that answer what servers do, the connection that asks them, and tasks beside them.

The one module that imports ray. Placement, membership, restarts and retries are Ray's; that everything counts once is ours.
Requests and answers are the frames of PROTOCOL.md, as between sockets.

    ray://[RESOURCE@][HOST:PORT]/FOLDER     the store in a folder of the machine that has the resource, in a cluster
    ray://A,B,C@[HOST:PORT]/FOLDER          its shards dealt to the machines that have A, B and C; its root on that of A

An actor is found by its name, which is the resource and the folder. It may be started again by Ray at any time, and the one
before it may live on for some seconds; which of them may write is not Ray's to say (jobs/on_ray.py).
"""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kvps.errors import ArgumentError, KvpsError, StoreError, Unreachable
from kvps.ps import protocol
from kvps.ps.answering import Answerer, Function, failure
from kvps.ps.connection import HIGH_WATER, damaged, error_from
from kvps.ps.places import RAY
from kvps.ps.protocol import ERROR, REQUEST, WORKING, Message
from kvps.store import seal
from kvps.units import cpu_count

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")      # nobody is told that somebody counts n-grams
try:
    import ray
except ImportError as exc:
    raise StoreError('stores on a Ray cluster need ray: pip install "kvps[ray]"') from exc

NAMESPACE = "kvps"             # of the names of our actors
SERVED = "kvps.jobs.on_ray"    # opened() there says what an actor answers; it is of a layer above, so we know its name only
SHARE = 0.001                  # of the resource that an actor is tied to: it binds, and uses nothing up
IN_FLIGHT = 64                 # requests that an actor has taken and not answered; more wait with Ray
PUT_BYTES = 64 << 10           # a body from this length on goes once into Ray's object store, however often it is asked
CONNECT_S = 5.0                # a cluster that does not take a connection within this is not there
AGAIN_S = 0.1                  # an actor that is gone is asked again so soon
IDLE_S = 0.5                   # how often an actor does what is to be done now and then
END_S = 30.0                   # how long one that is to end may take to do what it has begun


@dataclasses.dataclass(frozen=True)
class Place:
    """What an address on Ray names."""

    resource: str              # "": this node's own, which it also has when it is started again; several: A,B,C
    cluster: str               # HOST:PORT; "": the one of $RAY_ADDRESS or of this machine, else one that is started here
    folder: str
    number: int | None         # of a shard; None: the root

    @classmethod
    def parse(cls, address: str) -> Place:
        """Take an address apart; one of a shard ends with # and its number."""
        rest, hash_, number = address.removeprefix(RAY).partition("#")
        where, slash, folder = rest.partition("/")
        resource, _, cluster = where.rpartition("@")
        folder = os.path.normpath(slash + folder)
        if not slash or folder == "/" or (cluster and not cluster.rpartition(":")[2].isdigit()) or (hash_ and not number.isdigit()):
            raise ArgumentError(f"{address}: is no address on Ray; expected ray://[RESOURCE@][HOST:PORT]/FOLDER, and no # in it")
        return cls(resource, cluster, folder, int(number) if hash_ else None)

    def joined(self) -> Place:
        """Be a part of the cluster, if we are not yet, and return the place as all of its nodes understand it.

        Raises:
            Unreachable: it is not there. ArgumentError: this process is a part of another one.
        """
        _join(self.cluster)
        return dataclasses.replace(self, resource=self.resource or _own_node(), cluster="")

    @property
    def name(self) -> str:
        """The name of its actor; REQUIRES a place that joined() returned."""
        return f"{self.resource}{self.folder}{self._part}"

    @property
    def on(self) -> str:
        """The resource of the machine that it is on."""
        first, *others = self.resource.split(",")
        return [first, *others][(self.number or 0) % (1 + len(others))]

    @property
    def away(self) -> bool:
        """Whether it is a shard on another machine than its root."""
        return self.on != self.resource.partition(",")[0]

    @property
    def home(self) -> Path:
        """The folder of its own that a shard has on another machine than its root."""
        return Path(f"{self.folder}.shards", str(self.number))

    def __str__(self) -> str:
        """Return its address."""
        return f"{RAY}{self.resource}{'@' if self.resource else ''}{self.cluster}{self.folder}{self._part}"

    @property
    def _part(self) -> str:
        return "" if self.number is None else f"#{self.number}"

    def actor(self) -> Any:
        """Return the actor; ValueError if there is none."""
        return ray.get_actor(self.name, NAMESPACE)

    def start(self) -> Any:
        """Return the actor, which is started on the node that has the resource unless it is there already."""
        return ray.remote(Host).options(
            name=self.name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1,
            max_task_retries=0, max_concurrency=IN_FLIGHT, resources={self.on: SHARE}).remote(self)


def _join(cluster: str) -> None:
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if cluster and _resolved(cluster) != _resolved(there):
            raise ArgumentError(f"{cluster}: this process is a part of another Ray cluster, {there}")
        return
    if cluster:
        host, _, port = cluster.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()     # Ray itself would take minutes
        except OSError as exc:
            raise Unreachable(f"{cluster}: no Ray cluster is there: {exc.strerror or exc}", path=cluster) from exc
    try:
        ray.init(cluster or None, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as exc:
        why = "it wants a token: RAY_AUTH_MODE=token" if "AuthToken" in str(exc.__cause__) else str(exc)
        raise Unreachable(f"{cluster or 'ray'}: cannot join the Ray cluster there; this machine must be a node of it: {why}",
                          path=cluster) from exc
    # Ray prints what becomes of its processes to our stdout, among what commands print, and has no public switch for that.
    with contextlib.suppress(ImportError):
        importlib.import_module("ray._private.worker")._worker_logs_enabled = False


def _resolved(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return ("here" if host.startswith("127.") or host == ray.util.get_node_ip_address() else host), port


def _own_node() -> str:
    return f"node:{ray.util.get_node_ip_address()}"


# An actor.

class NotReady(Exception):
    """An actor cannot answer yet; whoever asks is to ask again."""


class Opened(Protocol):
    """What an actor answers with."""

    functions: Mapping[str, Function]
    over: bool                 # whether it is to be closed, and opened anew

    def idle(self) -> None:
        """Do what is to be done now and then."""

    def close(self) -> None:
        """End it, once nothing is asked any more."""


class Host:
    """An actor: answers requests, each worked on once; opens what it serves when it is first asked."""

    def __init__(self, place: Place) -> None:
        """Take note of what to serve."""
        self._place, self._ended = place, False
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="opening")
        self._askers = itertools.count()
        self._answerer: Answerer | None = None
        self._opened: Opened | None = None
        threading.Thread(target=self._look, name="idle", daemon=True).start()

    async def ask(self, head: bytes, body: bytes | np.ndarray) -> list:
        """Return the frames that answer a request; those of an error, too.

        Raises:
            NotReady: we have not what we serve yet.
        """
        frames = [memoryview(head), memoryview(body).cast("B")]
        loop = asyncio.get_running_loop()
        if self._ended:
            raise NotReady("it was ended")
        if self._opened is None or self._opened.over:
            try:
                await loop.run_in_executor(self._opening, self._open)
            except KvpsError as exc:
                number, client = protocol.number_of(frames)
                return failure(exc, "a request", Message(ERROR, number, {}, client=client))
        answer = loop.create_future()

        def reply(found: list[bytes]) -> None:
            loop.call_soon_threadsafe(lambda: answer.done() or answer.set_result(found))

        self._answerer.take(frames, next(self._askers).to_bytes(8), reply)
        head, body = await answer
        return [head, _large(body)]

    def _open(self) -> None:
        """Open what we serve, or something else in its place; in a thread of its own."""
        if self._opened is not None and self._opened.over:
            self._close()
        if self._opened is None:
            made = importlib.import_module(SERVED).opened(self._place)
            self._answerer = Answerer(made.functions, threads=cpu_count())
            self._opened = made

    def _close(self) -> None:
        """Answer what was taken, and close what we serve."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._answerer.close()
            opened.close()

    def _look(self) -> None:
        while True:
            time.sleep(IDLE_S)
            if (opened := self._opened) is not None:
                opened.idle()

    async def end(self) -> None:
        """Answer what was taken, and close what we serve; called before an actor is ended for good."""
        self._ended = True
        await asyncio.get_running_loop().run_in_executor(self._opening, self._close)


def _large(body: bytes) -> bytes | np.ndarray:
    """Return a body as Ray takes it best: arrays go through shared memory, and are not copied where they are read."""
    return np.frombuffer(body, np.uint8) if len(body) >= PUT_BYTES else body


# The client's end.

@dataclasses.dataclass
class _Asked:
    """A request without an answer yet."""

    frames: list[Any]          # as Ray takes them
    alive: float               # when it was first sent, or was last said to be worked on [s], monotonic
    sent: float = 0.0          # when it was last sent
    refs: list[Any] = dataclasses.field(default_factory=list)      # of answers, one for each time that it was sent
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class RayConnection:
    """A connection to the actor of a store's root or of a shard; it has what Connection has, for what it stands for.

    Args:
        address: Place.parse() takes it.
        make: whether the root's actor may be started where there is no store yet.
        client, retry_s, patience_s: as Connection's.
    """

    def __init__(self, address: str, *, make: bool = False, client: bytes = bytes(16), retry_s: float = 2.0,
                 patience_s: float = 60.0) -> None:
        self.address, self.client = address, client
        self.retry_s, self.patience_s = retry_s, patience_s
        self.sent_bytes = self.received_bytes = 0
        self.epoch = 0
        parsed = Place.parse(address)
        self._place = parsed.joined()
        self._known = bool(parsed.resource) or make    # whether an actor may be started that finds no store
        self._numbers = itertools.count(int.from_bytes(os.urandom(6)) + 1)
        self._turn = threading.Lock()
        self._pid = os.getpid()
        self._actor: Any = None
        self._waiting: dict[int, _Asked] = {}          # oldest first
        self._answers: dict[int, Message] = {}         # that nobody has taken yet

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, arrays: Mapping[str, np.ndarray] | None = None, *,
             sequence: int = 0) -> Message:
        """As Connection.call()."""
        return self.wait(self.begin(name, arguments, arrays, sequence=sequence))

    def begin(self, name: str, arguments: Mapping[str, Any] | None = None, arrays: Mapping[str, np.ndarray] | None = None, *,
              sequence: int = 0) -> int:
        """As Connection.begin()."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self.address}: this connection is another process's; open the store again after a fork",
                             path=self.address)
        number = next(self._numbers)
        head, body = protocol.pack(Message(REQUEST, number, {"call": name, **(arguments or {})}, arrays or {}, self.client,
                                           sequence, self.epoch))
        while (oldest := self._oldest()) is not None:
            self._settle(*oldest)
        asked = _Asked([head, ray.put(_large(body)) if len(body) >= PUT_BYTES else body], time.monotonic())
        with self._turn:
            self.sent_bytes += len(head) + len(body)
            self._waiting[number] = asked
        with asked.turn:
            self._send(asked)
        return number

    def wait(self, number: int) -> Message:
        """As Connection.wait()."""
        while True:
            with self._turn:
                answer, asked = self._answers.pop(number, None), self._waiting.get(number)
            if answer is not None:
                break
            if asked is None:
                raise ArgumentError(f"no request {number} is on its way")
            self._settle(number, asked)
        if answer.kind == ERROR:
            raise error_from(answer.call, self.address)
        return answer

    def _oldest(self) -> tuple[int, _Asked] | None:
        """Return the oldest request where so many are on their way that another has to wait."""
        with self._turn:
            return next(iter(self._waiting.items())) if len(self._waiting) >= HIGH_WATER else None

    def _settle(self, number: int, asked: _Asked) -> None:
        """Wait a while for the answer to a request, and ask again where it is due.

        Raises:
            Unreachable: it has waited long enough.
        """
        with asked.turn:
            if number not in self._waiting:
                return
            ready = ray.wait(asked.refs, timeout=self.retry_s)[0] if asked.refs else []
            answer = None
            for ref in ready:
                asked.refs.remove(ref)
                answer = self._taken(number, ref)
                if answer is not None and answer.kind == WORKING:
                    asked.alive = time.monotonic()
            if answer is not None and answer.kind != WORKING:
                with self._turn:
                    del self._waiting[number]
                    self._answers[number] = answer
                return
            now = time.monotonic()
            if now - asked.alive > self.patience_s:
                with self._turn:
                    del self._waiting[number]
                raise Unreachable(f"{self.address}: no answer for {self.patience_s:.0f} s; is the node up that has its disk?",
                                  path=self.address)
            if not asked.refs:
                time.sleep(min(AGAIN_S, self.retry_s))
            if not asked.refs or now - asked.sent >= self.retry_s:
                self._send(asked)

    def _send(self, asked: _Asked) -> None:
        """Ask, perhaps once more; holding the request's turn."""
        asked.sent = time.monotonic()
        actor = self._found()
        if actor is not None:
            asked.refs.append(actor.ask.remote(*asked.frames))

    def _taken(self, number: int, ref: Any) -> Message | None:
        """Return an answer; None where there was none, since the actor is gone, or not ready, and we are to ask again."""
        try:
            frames = ray.get(ref)
        except ray.exceptions.ActorDiedError:
            self._actor = None                 # another one may have its name now
            return None
        except ray.exceptions.RayError as exc:
            if isinstance(exc, ray.exceptions.RayTaskError) and not isinstance(exc.cause, NotReady):
                raise StoreError(f"{self.address}: {type(exc.cause).__name__}: {exc.cause}", path=self.address) from exc
            return None
        answer = protocol.unpack(frames)
        with self._turn:
            self.received_bytes += sum(map(len, frames))
        return None if answer.kind == ERROR and damaged(answer.call) else answer

    def _found(self) -> Any:
        """Return the actor, None where there is none; the root's is started where its store is on this machine.

        Raises:
            StoreError: there is no such store.
        """
        if self._actor is None:
            place = self._place
            try:
                self._actor = place.actor()
            except ValueError:
                if place.number is not None:
                    return None
                if not (self._known or seal.exists(Path(place.folder))):
                    raise StoreError(f"{self.address}: no such store on this machine; kvps train makes it, and one on another "
                                     "machine is named with a resource of that, as ray://node:IP@HOST:PORT/FOLDER",
                                     path=self.address, empty=True) from None
                self._actor = place.start()
        return self._actor

    def close(self) -> None:
        """Close the connection; what has no answer yet may or may not have been done."""
        with self._turn:
            self._waiting.clear()

    def __enter__(self) -> RayConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end_actors(address: str) -> bool:
    """End the actors of a store for good, so that its folder can be written to again; return whether there were some."""
    place = Place.parse(address).joined()
    found = []
    with contextlib.suppress(ValueError):
        found.append(place.actor())
        for number in itertools.count():
            found.append(dataclasses.replace(place, number=number).actor())
    for actor in reversed(found):              # the root's last, which others would wait for
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(actor.end.remote(), timeout=END_S)
        ray.kill(actor, no_restart=True)
    return bool(found)


# Tasks.

def cpus() -> int:
    """Return how many CPUs the cluster has that we are a part of."""
    return int(ray.cluster_resources().get("CPU", 0))


class Tasks:
    """Some calls of a function, each of which runs on a CPU of the cluster, and again where it is killed."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[tuple]) -> None:
        """Start a call for each of some arguments; the function is one of a module, which each node has."""
        task = ray.remote(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")(function)
        self._running = [task.remote(*one) for one in arguments]
        self.results: list[Any] = []           # of calls that are over, an exception being one

    def wait(self, at_most_s: float) -> bool:
        """Wait a while for them; return whether all are over."""
        if self._running:
            ready, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=at_most_s)
            for ref in ready:
                try:
                    self.results.append(ray.get(ref))
                except ray.exceptions.RayError as exc:
                    self.results.append(exc)
        return not self._running

    def cancel(self) -> None:
        """End those that run."""
        for ref in self._running:
            ray.cancel(ref, force=True)

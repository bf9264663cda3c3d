"""A server: one socket, and functions that answer requests by their name.

It knows no tables and no language models; what it serves is given to it as functions. Requests that change something are
answered one after another, in the order in which they came; the others side by side.
"""
from __future__ import annotations

import collections
import contextlib
import dataclasses
import ipaddress
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kvps.errors import ArgumentError, KvpsError, StoreError
from kvps.ps import curve as keyfiles
from kvps.ps import protocol
from kvps.ps.connection import set_options, zmq
from kvps.ps.protocol import ERROR, REPLY, REQUEST, Message, ProtocolError

logger = logging.getLogger("kvps.server")

Answer = tuple[dict[str, Any], Mapping[str, np.ndarray]]

ZAP_DOMAIN = b"kvps"
MAX_TOLD = 1000                # keys of refused clients that are told about
MAX_GIVEN = 1000               # answers to changes that are kept for those who ask again, each of so many bytes at most
GIVEN_BYTES = 4096
IDLE_MS = 500                  # how often the loop looks whether it is to stop


FIELDS = {str: "text", int: "a whole number", dict: "an object", list: "a list"}


def field(message: Message, name: str, kind: type) -> Any:
    """Return a field of a request; ArgumentError where it is not of this kind, one of FIELDS."""
    value = message.call.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArgumentError(f"{message.call['call']}: {name} is {type(value).__name__}, expected {FIELDS[kind]}")
    return value


def optional(message: Message, name: str, kind: type) -> Any:
    """Return a field of a request that may be missing, or null: then None."""
    return None if message.call.get(name) is None else field(message, name, kind)


@dataclasses.dataclass(frozen=True)
class Function:
    """What answers a request: takes the message, returns (call, arrays) of the reply."""

    answer: Callable[[Message], Answer]
    changes: bool = False      # answered one after another


@dataclasses.dataclass
class Counted:
    """What a server has done with requests of one name."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0       # at work on them
    bytes_in: int = 0
    bytes_out: int = 0


class Server:
    """A ROUTER socket, bound; run() answers until stop() is called from anywhere.

    Args:
        bind: "ipc:///path" or "tcp://host:port"; port 0 takes a free one, which `address` then names.
        functions: by the name that requests call them by.
        keys: folder with our secret key and the clients' public ones (curve.py); None: no encryption, and only an address
            that no other machine can reach.
        threads: how many requests that change nothing are answered side by side.
        in_flight: requests taken in and not answered yet; more wait in their senders.
        idle: called now and then.
    """

    def __init__(self, bind: str, functions: Mapping[str, Function], *, keys: str | Path | None = None, threads: int = 2,
                 in_flight: int = 64, idle: Callable[[], None] = lambda: None) -> None:
        check_bind(bind, keys is not None)
        self.functions = {**functions, "server": Function(lambda message: (self.facts(), {}))}
        self.threads, self.in_flight, self.began = threads, in_flight, time.time()
        # Answers to changes, by client and number: one that is asked again, for its answer was lost, is not made again.
        self._given: collections.OrderedDict[tuple[bytes, int], list[bytes]] = collections.OrderedDict()
        self._waiting = 0              # requests taken in and not answered yet
        self._idle = idle
        self.counted: dict[str, Counted] = collections.defaultdict(Counted)
        self._answers: queue.SimpleQueue[tuple[bytes, list[bytes]]] = queue.SimpleQueue()
        self._changes: queue.SimpleQueue[tuple[bytes, Message] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._context = zmq.Context()
        self._authenticator: Any = None
        self._socket_file: Path | None = None
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        try:
            self._socket = self._bound(bind, keys)
        except BaseException:
            self._close()
            raise
        if bind.startswith("ipc://"):
            self._socket_file = Path(bind.removeprefix("ipc://"))
        self.address: str = self._socket.get_string(zmq.LAST_ENDPOINT)

    def _bound(self, bind: str, keys: str | Path | None) -> zmq.Socket:
        socket = self._context.socket(zmq.ROUTER)
        set_options(socket)
        socket.router_mandatory = 1
        if keys is not None:
            from zmq.auth.thread import ThreadAuthenticator

            own = keyfiles.load_secret(Path(keys) / keyfiles.SERVER)
            allowed = keyfiles.allowed(Path(keys) / keyfiles.CLIENTS)
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(ZAP_DOMAIN.decode(), _AllowList(allowed))
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = own
            socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        try:
            with _private_umask():
                socket.bind(bind)
        except zmq.ZMQError as exc:
            socket.close()
            raise StoreError(f"{bind}: cannot be bound: {exc.strerror}; is another server at work there?", path=bind) from exc
        return socket

    def stop(self) -> None:
        """Let run() end once what it has taken in is answered; may be called from a signal handler."""
        self._stopping.set()
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"x")

    def facts(self) -> dict[str, Any]:
        """Return what this server is doing and has done.

        Returns:
            "pid", "began" [s since 1970], "waiting" (requests taken in and not answered, this one among them), "rss_bytes", and by
            name of request "requests": {"requests", "errors", "seconds" at work, "bytes_in", "bytes_out"}.
        """
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return {"pid": os.getpid(), "began": self.began, "waiting": self._waiting, "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
                "requests": {name: dataclasses.asdict(done) for name, done in list(self.counted.items())}}

    def run(self) -> None:
        """Answer requests until stop(); closes the socket in the end."""
        changing = threading.Thread(target=self._change, name="changes", daemon=True)
        changing.start()
        taken, looked = 0, time.monotonic()
        try:
            with ThreadPoolExecutor(self.threads, thread_name_prefix="answers") as pool:
                poller = zmq.Poller()
                poller.register(self._awake, zmq.POLLIN)
                while taken or not self._stopping.is_set():
                    listening = taken < self.in_flight and not self._stopping.is_set()
                    poller.register(self._socket, zmq.POLLIN) if listening else _unregister(poller, self._socket)
                    ready = dict(poller.poll(IDLE_MS))
                    if time.monotonic() - looked > IDLE_MS / 1000:
                        looked = time.monotonic()
                        self._idle()
                    if self._awake in ready:
                        os.read(self._awake, 4096)
                    if self._socket in ready:
                        self._take(pool)
                        taken += 1
                    taken -= self._send()
                    self._waiting = taken
                self._changes.put(None)
                changing.join()
        finally:
            self._close()

    def _take(self, pool: ThreadPoolExecutor) -> None:
        """Receive one request and hand it on; its answer will be in the queue."""
        peer, *frames = self._socket.recv_multipart(copy=False)
        sender, parts = peer.bytes, [frame.buffer for frame in frames]
        try:
            message = protocol.unpack(parts)
            if message.kind != REQUEST:
                raise ProtocolError("expected a request", field="kind", found=message.kind, expected=REQUEST)
            name = message.call.get("call")
            function = self.functions.get(name) if isinstance(name, str) else None
            if function is None:
                known = ", ".join(sorted(self.functions))
                raise ProtocolError(f"no function {name!r:.80}; there are {known}", field="call", found=name, expected=known)
        except ProtocolError as exc:
            number, client = protocol.number_of(parts)
            self.counted["(refused)"].requests += 1
            self.counted["(refused)"].errors += 1
            self._answers.put((sender, protocol.pack(Message(ERROR, number, exc.as_dict(), client=client))))
            return
        self.counted[name].requests += 1
        self.counted[name].bytes_in += sum(map(len, parts))
        if function.changes:
            self._changes.put((sender, message))
        else:
            pool.submit(self._answer, sender, message)

    def _change(self) -> None:
        """Answer the requests that change something, one after another, and each once."""
        while (item := self._changes.get()) is not None:
            sender, message = item
            key = message.client, message.number
            if key in self._given:
                self._reply(sender, self._given[key])
                continue
            frames = self._answer(sender, message)
            if sum(map(len, frames)) <= GIVEN_BYTES:       # long ones are about what is there, and may be made twice
                self._given[key] = frames
            if len(self._given) > MAX_GIVEN:
                self._given.popitem(last=False)

    def _answer(self, sender: bytes, message: Message) -> list[bytes]:
        """Call a function, queue what it says, and return it."""
        name, began = message.call["call"], time.monotonic()
        try:
            call, arrays = self.functions[name].answer(message)
            frames = protocol.pack(Message(REPLY, message.number, call, arrays, message.client, message.sequence))
        except Exception as exc:
            self.counted[name].errors += 1
            if isinstance(exc, KvpsError):
                said = exc.as_dict()
            else:
                logger.exception("%s failed", name)
                said = {"error": "StoreError", "message": f"{name} failed in the server: {type(exc).__name__}; its log says more"}
            frames = protocol.pack(Message(ERROR, message.number, said, client=message.client, sequence=message.sequence))
        self.counted[name].seconds += time.monotonic() - began
        self.counted[name].bytes_out += sum(map(len, frames))
        self._reply(sender, frames)
        return frames

    def _reply(self, sender: bytes, frames: list[bytes]) -> None:
        self._answers.put((sender, frames))
        with contextlib.suppress(BlockingIOError):       # a full pipe wakes too
            os.write(self._wake, b"x")

    def _send(self) -> int:
        """Send the answers that are ready; return how many. Who cannot take one is gone, or asks again."""
        sent = 0
        while True:
            try:
                sender, frames = self._answers.get_nowait()
            except queue.Empty:
                return sent
            sent += 1
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([sender, *frames], zmq.NOBLOCK, copy=False)

    def _close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
        for fd in (self._awake, self._wake):
            os.close(fd)


def new_pair() -> tuple[bytes, bytes]:
    """Return a new (public, secret) pair of CURVE keys, as Z85 text."""
    return zmq.curve_keypair()


class _AllowList:
    """Says of a client's public key whether it is listed; asked by pyzmq at every handshake."""

    def __init__(self, allowed: set[bytes]) -> None:
        self._allowed = allowed
        self._refused: set[bytes] = set()          # told about already, for a client that is refused comes again at once

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key, as Z85 text, may come in."""
        known = bytes(key) in self._allowed
        if not known and key not in self._refused and len(self._refused) < MAX_TOLD:
            self._refused.add(bytes(key))
            logger.warning("refused a client with the key %s", bytes(key).decode("ascii", "replace"))
        return known


def check_bind(bind: str, encrypted: bool) -> None:
    """Refuse an address that other machines can reach, unless connections are encrypted and clients known.

    Raises:
        ArgumentError: the address is none, or open to others without keys.
    """
    scheme, _, rest = bind.partition("://")
    if scheme == "ipc" and rest.startswith("/"):
        return
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not (port.isdigit() and int(port) < 65536):
        raise ArgumentError(f"{bind}: is no address to serve at; write ipc:///FOLDER/NAME or tcp://HOST:PORT")
    if encrypted:
        return
    try:
        inside = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        inside = host == "localhost"
    if not inside:
        raise ArgumentError(f"{bind}: other machines can reach this address, so it needs keys: make them with kvps keygen, and "
                            "name their folder with --keys")


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    """Let a socket file be made for its owner alone."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _unregister(poller: zmq.Poller, socket: zmq.Socket) -> None:
    if socket in poller:
        poller.unregister(socket)

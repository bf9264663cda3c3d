"""A server: one socket, and functions that answer requests by their name (answering.py).

It knows no tables and no language models; what it serves is given to it as functions.
"""
from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import os
import queue
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvps.errors import ArgumentError, StoreError
from kvps.ps import curve as keyfiles
from kvps.ps.answering import Answerer, Function
from kvps.ps.connection import set_options, zmq

logger = logging.getLogger("kvps.server")

ZAP_DOMAIN = b"kvps"
MAX_TOLD = 1000                # keys of refused clients that are told about
LINGER_MS = 500                # for the last answers to go, at the end
JOIN_S = 5.0
IDLE_MS = 500                  # how often the loop looks whether it is to stop


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
        self.threads, self.in_flight = threads, in_flight
        self._idle = idle
        self._answers: queue.SimpleQueue[tuple[bytes, list[bytes]]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._closing, self._closed = threading.RLock(), False         # of the pipe; a signal may come while it is held
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
        self.answerer = Answerer(functions, threads=threads)

    def _bound(self, bind: str, keys: str | Path | None) -> zmq.Socket:
        router = self._context.socket(zmq.ROUTER)
        set_options(router)
        router.router_mandatory = 1
        if keys is not None:
            from zmq.auth.thread import ThreadAuthenticator

            own = keyfiles.load_secret(Path(keys) / keyfiles.SERVER)
            allowed = {*keyfiles.allowed(Path(keys) / keyfiles.CLIENTS), own[0]}
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(ZAP_DOMAIN.decode(), _AllowList(allowed))
            router.curve_server = True
            router.curve_publickey, router.curve_secretkey = own
            router.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        try:
            refuse_taken(bind)
            with _private_umask():
                router.bind(bind)
        except zmq.ZMQError as exc:
            router.close()
            raise StoreError(f"{bind}: cannot be bound: {exc.strerror}; is another server at work there?", path=bind) from exc
        return router

    def stop(self) -> None:
        """Let run() end once what it has taken in is answered; may be called from a signal handler."""
        self._stopping.set()
        with self._closing, contextlib.suppress(BlockingIOError):
            if not self._closed:               # the loop may have seen it, and ended
                os.write(self._wake, b"x")

    def facts(self) -> dict[str, Any]:
        """Return what this server is doing and has done, as Answerer.facts()."""
        return self.answerer.facts()

    def run(self) -> None:
        """Answer requests until stop(), then what was taken in by then; closes the socket in the end."""
        idling = threading.Thread(target=self._look, name="idle", daemon=True)
        idling.start()
        poller = zmq.Poller()
        poller.register(self._awake, zmq.POLLIN)
        try:
            while self.answerer.waiting or not self._stopping.is_set():
                listening = self.answerer.waiting < self.in_flight and not self._stopping.is_set()
                poller.register(self._socket, zmq.POLLIN) if listening else _unregister(poller, self._socket)
                ready = dict(poller.poll(IDLE_MS))
                if self._awake in ready:
                    os.read(self._awake, 4096)
                if self._socket in ready:
                    sender, *frames = self._socket.recv_multipart(copy=False)
                    self.answerer.take([frame.buffer for frame in frames], sender.bytes,
                                       functools.partial(self._reply, sender.bytes))
                self._send()
            self.answerer.close()
            self._send()
            idling.join(JOIN_S)                # it may wait for a server that is gone
        finally:
            self._close()

    def _look(self) -> None:
        """Do what is to be done now and then: not in the loop, for it may ask a server that asks us meanwhile."""
        while not self._stopping.wait(IDLE_MS / 1000):
            self._idle()

    def _reply(self, sender: bytes, frames: list[bytes]) -> None:
        self._answers.put((sender, frames))
        with contextlib.suppress(BlockingIOError):       # a full pipe wakes too
            os.write(self._wake, b"x")

    def _send(self) -> None:
        """Send what is ready. Who cannot take it is gone, or asks again."""
        while not self._answers.empty():
            sender, frames = self._answers.get()
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([sender, *frames], zmq.NOBLOCK, copy=False)

    def _close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=LINGER_MS)
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
        with self._closing:
            self._closed = True
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


def refuse_taken(bind: str) -> None:
    """Refuse the place of a socket where something else is, which ZeroMQ would delete, or where somebody listens.

    Raises:
        ArgumentError: something else is there. StoreError: another server is at work there.
    """
    path = Path(bind.removeprefix("ipc://"))
    if not bind.startswith("ipc://") or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ArgumentError(f"{path}: is there, and no socket; name another place to serve at")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:                            # left by a server that was killed
            return
    raise StoreError(f"{path}: another server is at work there", path=str(path))


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

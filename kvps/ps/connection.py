"""The client's end of a connection to one server: ask, wait, ask again until there is an answer."""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import kvps.errors
from kvps.errors import ArgumentError, KvpsError, StoreError, Unreachable
from kvps.ps import curve as keyfiles
from kvps.ps import protocol
from kvps.ps.protocol import ERROR, REPLY, REQUEST, WORKING, Message, ProtocolError

try:
    import zmq
except ImportError as exc:
    raise StoreError('servers and their clients need pyzmq: pip install "kvps[server]"') from exc

HANDSHAKE_MS = 5000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 2000, 10_000
HIGH_WATER = 16                # requests that a client sends ahead; each has at most MAX_BODY_BYTES
RECONNECT_MS, RECONNECT_MAX_MS = 20, 500
LONGER = 4                     # a request is sent again after so many times its first wait at most
TURN_S = 0.005                 # how long a thread that waits keeps others from sending
QUEUE_S = 0.0002               # and then leaves them time to
TELL_S = 10.0                  # after so long without a sign of life the user is told

log = logging.getLogger("kvps")


@dataclasses.dataclass(eq=False)
class _Asked:
    """A request without an answer yet."""

    frames: list[bytes]
    sent: float                # when it was last sent [s], monotonic
    alive: float               # when it was first sent, or was last said to be worked on
    again_s: float             # is sent again so long after that; longer each time, for a link may be slow


class Connection:
    """A connection to one server; calls from several threads take turns.

    A request that has no answer after `retry_s` is sent again under the same number, so that the server can tell it from
    another one, and over a new socket where nothing came over the old one for so long; then after twice that time, and so on.
    After `patience_s` without an answer, or word that it is being worked on, Unreachable is raised.

    Args:
        address: "ipc:///path" or "tcp://host:port".
        keys: our folder of keys (curve.py), for a server that has some.
        client: 16 bytes that name us, for changes that must happen exactly once.
    """

    def __init__(self, address: str, *, keys: str | Path | None = None, client: bytes = bytes(16),
                 retry_s: float = 2.0, patience_s: float = 60.0) -> None:
        if not address.startswith(("ipc:///", "tcp://")):
            raise ArgumentError(f"{address}: is no address of a server; expected ipc:///FOLDER/NAME or tcp://HOST:PORT")
        self.address, self.client = address, client
        self.retry_s, self.patience_s = retry_s, patience_s
        self.sent_bytes = self.received_bytes = 0
        self.epoch = 0                 # of our session, which changes of a store need
        self._keys = None
        if keys is not None:
            self._keys = *keyfiles.load_secret(keyfiles.own_secret(keys)), keyfiles.load_public(Path(keys) / keyfiles.SERVER_PUBLIC)
        self._numbers = itertools.count(int.from_bytes(os.urandom(6)) + 1)       # of ours alone, whatever names us
        self._turn = threading.Lock()
        # One for the process, and never ended: an end waits for each socket, also for one that an interrupt left half made.
        self._context = zmq.Context.instance()
        self._socket: zmq.Socket | None = None
        self._heard = time.monotonic()     # when something came over the socket, or it was made
        self._told = False                 # whether the user knows that nothing comes
        self._pid = os.getpid()
        self._waiting: dict[int, _Asked] = {}          # oldest first
        self._answers: dict[int, Message] = {}         # that nobody has taken yet

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, arrays: Mapping[str, np.ndarray] | None = None, *,
             sequence: int = 0) -> Message:
        """Ask for a function and return its reply.

        Raises:
            Unreachable: no answer within patience_s.
            KvpsError: what the function raised, of the same class, with the same message.
        """
        return self.wait(self.begin(name, arguments, arrays, sequence=sequence))

    def begin(self, name: str, arguments: Mapping[str, Any] | None = None, arrays: Mapping[str, np.ndarray] | None = None, *,
              sequence: int = 0) -> int:
        """Send a request and return its number, for wait(); up to HIGH_WATER may be on their way."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self.address}: this connection is another process's; open the store again after a fork",
                             path=self.address)
        number = next(self._numbers)
        frames = protocol.pack(Message(REQUEST, number, {"call": name, **(arguments or {})}, arrays or {}, self.client, sequence,
                                       self.epoch))
        with self._turn:
            while len(self._waiting) >= HIGH_WATER:
                self._receive(next(iter(self._waiting.values())), self.retry_s)
            now = time.monotonic()
            self._waiting[number] = _Asked(frames, now, now, self.retry_s)
            self._transmit(frames)
        return number

    def wait(self, number: int) -> Message:
        """Return the reply to a request that was begun; errors as call()'s. Other threads may send and wait meanwhile."""
        while True:
            with self._turn:
                if number in self._answers:
                    answer = self._answers.pop(number)
                    break
                if number not in self._waiting:
                    raise ArgumentError(f"no request {number} is on its way")
                try:
                    self._receive(self._waiting[number], TURN_S)
                except Unreachable:
                    self._waiting.pop(number, None)
                    raise
                if number in self._answers:
                    answer = self._answers.pop(number)
                    break
            time.sleep(QUEUE_S)                # or we would take the next turn too
        if answer.kind == ERROR:
            raise error_from(answer.call, self.address)
        return answer

    # holding self._turn

    def _transmit(self, frames: list[bytes]) -> None:
        if self._socket is None:
            self._socket = self._connected()
            self._heard = time.monotonic()
        self.sent_bytes += sum(map(len, frames))
        with contextlib.suppress(zmq.Again):              # a server that takes nothing is asked again later
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _receive(self, asked: _Asked, at_most_s: float) -> None:
        """Take in what comes within a while; ask again for what has waited for long.

        Raises:
            Unreachable: `asked` has waited long enough.
        """
        now = time.monotonic()
        due = min(one.sent + one.again_s for one in self._waiting.values())
        if self._socket is not None and self._socket.poll(int(1000 * max(0.0, min(at_most_s, due - now)))):
            self._take()
            if now < due or asked not in self._waiting.values():
                return
        now = time.monotonic()
        if now - asked.alive > self.patience_s:
            self._drop()
            raise Unreachable(f"{self.address}: no answer for {self.patience_s:.0f} s; is kvps serve at work there, and do the "
                              "keys fit?", path=self.address)
        if not self._told and now - max(asked.alive, self._heard) > TELL_S:
            self._told = True
            log.warning("%s: no answer for %.0f s; asking on until %.0f s are over", self.address, TELL_S, self.patience_s)
        late = [one for one in self._waiting.values() if now - one.sent >= one.again_s]
        anew = self._socket is None or any(now - self._heard >= one.again_s for one in late)
        for one in late:
            one.again_s = min(2 * one.again_s, LONGER * self.retry_s, self.patience_s / 4)
        if anew:           # what a socket had on its way may be lost with the server: all of it once more, in the old order
            self._drop()
        for one in list(self._waiting.values()) if anew else late:
            one.sent = now
            self._transmit(one.frames)

    def _take(self) -> None:
        """Read one message: the answer to a request that waits, or word that it is worked on. Others are late doubles."""
        frames = self._socket.recv_multipart(copy=False)
        parts = [frame.buffer for frame in frames]
        self.received_bytes += sum(map(len, parts))
        try:
            answer = protocol.unpack(parts)
        except ProtocolError:
            return                                        # damaged on its way: we ask again
        self._heard, self._told = time.monotonic(), False
        asked = self._waiting.get(answer.number)
        if asked is None:
            return
        if answer.kind == WORKING:
            asked.alive = self._heard
        elif answer.kind == REPLY or (answer.kind == ERROR and not damaged(answer.call)):
            del self._waiting[answer.number]
            self._answers[answer.number] = answer

    def _connected(self) -> zmq.Socket:
        socket = self._context.socket(zmq.DEALER)
        set_options(socket)
        socket.reconnect_ivl, socket.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
        if self._keys is not None:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = self._keys
        try:
            socket.connect(self.address)
        except zmq.ZMQError as exc:
            socket.close()
            raise ArgumentError(f"{self.address}: is no address of a server: {exc.strerror}") from exc
        return socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        """Close the connection; what has no answer yet may or may not have been done."""
        if os.getpid() == self._pid:
            with self._turn:
                self._drop()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def set_options(socket: zmq.Socket) -> None:
    """Set what both ends have in common: limits, and how soon a peer that is gone is noticed."""
    for option, value in ((zmq.MAXMSGSIZE, protocol.MAX_BODY_BYTES), (zmq.HANDSHAKE_IVL, HANDSHAKE_MS), (zmq.LINGER, 0),
                          (zmq.HEARTBEAT_IVL, HEARTBEAT_MS), (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
                          (zmq.RCVHWM, 2 * HIGH_WATER), (zmq.SNDHWM, 2 * HIGH_WATER)):
        socket.setsockopt(option, value)


def damaged(error: Mapping[str, Any]) -> bool:
    """Return whether an error tells that a request was damaged on its way, which then is to be sent again."""
    return error.get("error") == "ProtocolError" and error.get("field") != "call"


def error_from(call: Mapping[str, Any], address: str) -> KvpsError:
    """Return the exception that a server's error means; one of ours, whatever the server says."""
    kind = {**vars(kvps.errors), "ProtocolError": ProtocolError}.get(str(call.get("error")))
    if not (isinstance(kind, type) and issubclass(kind, KvpsError)):
        kind = KvpsError
    facts = {name: value for name, value in call.items() if name in kind.facts}
    return kind(str(call.get("message", f"{address}: an error without a message")), **facts)

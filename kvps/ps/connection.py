"""The client's end of a connection to one server: ask, wait, ask again until there is an answer."""
from __future__ import annotations

import collections
import contextlib
import itertools
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
from kvps.ps.protocol import ERROR, REPLY, REQUEST, Message, ProtocolError

try:
    import zmq
except ImportError as exc:
    raise StoreError('servers and their clients need pyzmq: pip install "kvps[server]"') from exc

HANDSHAKE_MS = 5000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 2000, 10_000
HIGH_WATER = 16                # requests that a client sends ahead; each has at most MAX_BODY_BYTES
RECONNECT_MS, RECONNECT_MAX_MS = 20, 500
TURN_S = 0.005                 # how long a thread that waits keeps others from sending
QUEUE_S = 0.0002


class Connection:
    """A connection to one server; calls from several threads take turns.

    A request that has no answer after `retry_s` is sent again, over a new socket, under the same number, so that the server
    can tell it from another one; after `patience_s` Unreachable is raised.

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
            self._keys = (*keyfiles.load_secret(Path(keys) / keyfiles.CLIENT),
                          keyfiles.load_public(Path(keys) / keyfiles.SERVER_PUBLIC))
        self._numbers = itertools.count(int.from_bytes(os.urandom(6)) + 1)       # of ours alone, whatever names us
        self._turn = threading.Lock()
        self._queueing = 0             # threads that want their turn, to send
        self._asked = 0.0              # when what waits was sent, or something came [s], monotonic
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        # Requests without an answer yet, oldest first, and answers that nobody has asked for yet.
        self._waiting: collections.OrderedDict[int, list[bytes]] = collections.OrderedDict()
        self._answers: dict[int, Message] = {}

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
        number = next(self._numbers)
        frames = protocol.pack(Message(REQUEST, number, {"call": name, **(arguments or {})}, arrays or {}, self.client, sequence,
                                       self.epoch))
        self._queueing += 1
        try:
            self._turn.acquire()
        finally:
            self._queueing -= 1
        try:
            began = time.monotonic()
            while len(self._waiting) >= HIGH_WATER:
                self._receive(began, self.retry_s)
            if not self._waiting:
                self._asked = time.monotonic()
            self._waiting[number] = frames
            self._transmit(frames)
        finally:
            self._turn.release()
        return number

    def wait(self, number: int) -> Message:
        """Return the reply to a request that was begun; errors as call()'s. Other threads may send and wait meanwhile."""
        began = time.monotonic()
        while True:
            with self._turn:
                if number in self._answers:
                    answer = self._answers.pop(number)
                    break
                if number not in self._waiting:
                    raise ArgumentError(f"no request {number} is on its way")
                try:
                    self._receive(began, TURN_S)
                except Unreachable:
                    self._waiting.pop(number, None)
                    raise
            if self._queueing:
                time.sleep(QUEUE_S)            # or we would take the next turn too
        if answer.kind == ERROR:
            raise _error(answer.call, self.address)
        return answer

    # holding self._turn

    def _transmit(self, frames: list[bytes]) -> None:
        if self._socket is None:
            self._socket = self._connected()
        self.sent_bytes += sum(map(len, frames))
        with contextlib.suppress(zmq.Again):              # a server that takes nothing is asked again later
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _receive(self, began: float, at_most_s: float) -> None:
        """Take in what comes within a while, asking again for all that wait where there was nothing for long.

        Raises:
            Unreachable: who waits since `began` has waited long enough.
        """
        now = time.monotonic()
        if self._socket is not None and self._socket.poll(int(1000 * max(0.0, min(at_most_s, self._asked + self.retry_s - now)))):
            if self._take():
                self._asked = time.monotonic()
            return
        now = time.monotonic()
        if now - began > self.patience_s:
            self._drop()
            raise Unreachable(f"{self.address}: no answer for {self.patience_s:.0f} s; is kvps serve at work there, and do the "
                              "keys fit?", path=self.address)
        if self._socket is None or now - self._asked >= self.retry_s:
            # What a socket had on its way may be lost with the server: begin anew, with all of it in the old order.
            self._drop()
            for frames in self._waiting.values():
                self._transmit(frames)
            self._asked = now

    def _take(self) -> bool:
        """Read one message; return whether it is the answer to a request that waits. Others are late doubles."""
        frames = self._socket.recv_multipart(copy=False)
        parts = [frame.buffer for frame in frames]
        self.received_bytes += sum(map(len, parts))
        try:
            answer = protocol.unpack(parts)
        except ProtocolError:
            return False                                  # damaged on its way: we ask again
        if answer.kind not in (REPLY, ERROR) or answer.number not in self._waiting:
            return False
        if answer.kind == ERROR and answer.call.get("error") == "ProtocolError" and answer.call.get("field") != "call":
            return False                                  # our request was damaged on its way
        del self._waiting[answer.number]
        self._answers[answer.number] = answer
        return True

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
        with self._turn:
            self._drop()
            self._context.term()

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


def _error(call: Mapping[str, Any], address: str) -> KvpsError:
    """Return the exception that a server's error means; one of ours, whatever the server says."""
    kind = {**vars(kvps.errors), "ProtocolError": ProtocolError}.get(str(call.get("error")))
    if not (isinstance(kind, type) and issubclass(kind, KvpsError)):
        kind = KvpsError
    facts = {name: value for name, value in call.items() if name in kind.facts}
    return kind(str(call.get("message", f"{address}: an error without a message")), **facts)

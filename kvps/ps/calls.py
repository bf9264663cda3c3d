"""Functions called by name where the data is: both ends.

    subject.run(function, argument=...)      a shard or store in this process calls function(subject, argument=...);
                                             a remote one sends the name of the function and its arguments

Arguments and results are what JSON has, and arrays and bytes in the dicts that hold them. A function that yields bytes is a
stream: its pieces are fetched one after another, and a piece whose answer was lost is asked for again.
"""
from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kvps.errors import ArgumentError, StoreError
from kvps.ps.connection import Connection
from kvps.ps.protocol import Message
from kvps.ps.server import Answer, Function

log = logging.getLogger("kvps")

MAX_STREAMS = 64
STREAM_IDLE_S = 60.0           # a stream that nobody goes on with keeps a snapshot open
PIECE_BYTES = 4 << 20          # of a stream in one message


def parted(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (what JSON has, arrays) of a dict; bytes are taken for arrays."""
    arrays = {name: np.frombuffer(value, np.uint8) if isinstance(value, (bytes, memoryview)) else value
              for name, value in values.items() if isinstance(value, (bytes, memoryview, np.ndarray))}
    return {name: value for name, value in values.items() if name not in arrays}, arrays


class _Warnings(logging.Handler):
    """Keeps what is logged while a thread answers a request, for the client; whatever else is logged goes to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._of = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, or pass it on."""
        kept = getattr(self._of, "messages", None)
        if kept is not None:
            kept.append(record.getMessage())
        elif logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)

    @contextlib.contextmanager
    def kept(self) -> Iterator[list[str]]:
        """Give the list of what this thread logs in the block."""
        self._of.messages = messages = []
        try:
            yield messages
        finally:
            self._of.messages = None


_warnings = _Warnings()


@dataclasses.dataclass
class _Stream:
    """A stream between two messages."""

    pieces: Iterator[bytes]
    used: float
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    number: int = -1           # of the last piece sent, which may be asked for again
    last: bytes | None = b""   # None: there are no more


class Runner:
    """The server's end: functions that requests may name, and the streams that they began."""

    def __init__(self, subject: Callable[[Message], Any], functions: Mapping[str, Callable]) -> None:
        """Take what gives the thing that the functions are called with, and the functions by name."""
        self._subject, self._functions = subject, dict(functions)
        log.addHandler(_warnings)
        self._turn = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._numbers = itertools.count(1)

    def functions(self, *, changes: bool) -> dict[str, Function]:
        """Return what a Server is to answer; `changes`: the functions are called one after another."""
        return {"run": Function(self.run, changes=changes), "more": Function(self.more)}

    def run(self, message: Message) -> Answer:
        """Call a function."""
        name, arguments = message.call.get("function"), message.call.get("arguments")
        function = self._functions.get(name) if isinstance(name, str) else None
        if function is None or not isinstance(arguments, dict):
            raise ArgumentError(f"no function {name!r:.80} to run; there are {', '.join(sorted(self._functions))}")
        arguments = {**arguments, **message.arrays}
        try:
            inspect.signature(function).bind(None, **arguments)
        except TypeError as exc:
            raise ArgumentError(f"{name}: {exc}") from exc
        with _warnings.kept() as warnings:
            result = function(self._subject(message), **arguments)
        if inspect.isgenerator(result):
            return {"stream": self._begin(result)}, {}
        plain, arrays = parted(result) if isinstance(result, dict) else (result, {})
        return {"result": plain, "warnings": warnings}, arrays

    def _begin(self, pieces: Iterator[bytes]) -> int:
        with self._turn:
            self._drop_idle()
            if len(self._streams) >= MAX_STREAMS:
                raise StoreError(f"{MAX_STREAMS} streams are open already; finish one, or wait {STREAM_IDLE_S:.0f} s for those "
                                 "that nobody goes on with")
            number = next(self._numbers)
            self._streams[number] = _Stream(pieces, time.monotonic())
        return number

    def more(self, message: Message) -> Answer:
        """Return the next piece of a stream, or the last one again, whose answer was lost."""
        stream, number = self._streams.get(message.call.get("stream")), message.call.get("number")
        if stream is None:
            raise StoreError("the server was started again, or nobody went on for a minute, in the middle of a long answer; run "
                             "the command again")
        with stream.turn:
            stream.used = time.monotonic()
            if number not in (stream.number, stream.number + 1):
                raise ArgumentError(f"piece {number!r:.80} of a stream, expected {stream.number + 1}")
            with _warnings.kept() as warnings:
                if number > stream.number:
                    stream.number, stream.last = number, _piece(stream.pieces)
            if stream.last is None:
                return {"done": True, "warnings": warnings}, {}
            return {"done": False, "warnings": warnings}, {"piece": np.frombuffer(stream.last, np.uint8)}

    def _drop_idle(self, everything: bool = False) -> None:
        """End streams that are done, or that nobody goes on with; holding self._turn."""
        now = time.monotonic()
        for number, stream in list(self._streams.items()):
            limit_s = STREAM_IDLE_S if stream.last is not None else 1.0
            if (everything or now - stream.used > limit_s) and stream.turn.acquire(blocking=False):
                stream.pieces.close()
                del self._streams[number]

    def idle(self) -> None:
        """End streams that nobody goes on with; called now and then."""
        with self._turn:
            self._drop_idle()

    def close(self) -> None:
        """End all streams."""
        with self._turn:
            self._drop_idle(everything=True)


def _piece(pieces: Iterator[bytes]) -> bytes | None:
    """Return the next bytes of a stream as one piece, None at its end."""
    some, n = [], 0
    for piece in pieces:
        some.append(bytes(piece))
        n += len(piece)
        if n >= PIECE_BYTES:
            break
    return b"".join(some) if some else None


def run(connection: Connection, function: Callable, arguments: Mapping[str, Any]) -> Any:
    """Call a function at the other end of a connection; return its result, or an iterator over a stream's pieces."""
    plain, arrays = parted(arguments)
    reply = connection.call("run", {"function": function.__name__, "arguments": plain}, arrays)
    if "stream" in reply.call:
        return _pieces(connection, reply.call["stream"])
    _warn(reply)
    result = reply.call["result"]
    return {**result, **reply.arrays} if isinstance(result, dict) else result


def _pieces(connection: Connection, stream: int) -> Iterator[bytes]:
    for number in itertools.count():
        reply = connection.call("more", {"stream": stream, "number": number})
        _warn(reply)
        if reply.call["done"]:
            return
        yield reply.arrays["piece"].tobytes()


def _warn(reply: Message) -> None:
    """Tell the user here what the library said there."""
    for text in reply.call["warnings"]:
        log.warning("%s", text)

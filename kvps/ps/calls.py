"""Functions called by name where the data is: both ends.

    subject.run(function, argument=...)      a shard or store in this process calls function(subject, argument=...);
                                             a remote one sends the name of the function and its arguments

Arguments and results are what JSON has, and arrays and bytes in the dicts that hold them. A function that yields bytes is a
stream: its pieces are fetched one after another, and a piece whose answer was lost is asked for again.
"""
from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import logging
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kvps.errors import ArgumentError
from kvps.ps.answering import Answer, Function, field
from kvps.ps.connection import Connection
from kvps.ps.protocol import Message
from kvps.ps.streams import Streams

log = logging.getLogger("kvps")

PIECE_BYTES = 4 << 20          # of a stream in one message
LONG_BYTES = 256 << 10         # JSON that is longer goes as a stream, or packed as an array
MAX_PACKED_BYTES = 256 << 20   # of JSON that came packed
# What a function may be given by its caller in the same process alone (`here` of run()): a client chooses no place and no work.
HERE = frozenset({"threads", "scratch", "progress", "owner"})


def parted(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (what JSON has, arrays) of a dict; bytes are taken for arrays."""
    arrays = {name: np.frombuffer(value, np.uint8) if isinstance(value, (bytes, memoryview)) else value
              for name, value in values.items() if isinstance(value, (bytes, memoryview, np.ndarray))}
    return {name: value for name, value in values.items() if name not in arrays}, arrays


def packed(value: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (fields, arrays) of a request with the JSON object "arguments", however long; unpacked() returns it."""
    text = json.dumps(value).encode()
    if len(text) <= LONG_BYTES:
        return {"arguments": value}, {}
    return {}, {"arguments": np.frombuffer(zlib.compress(text, 1), np.uint8)}


def unpacked(message: Message) -> dict[str, Any]:
    """Return the arguments of a request; ArgumentError where there are none."""
    array = message.arrays.get("arguments")
    if array is None:
        return field(message, "arguments", dict)
    try:
        unpacker = zlib.decompressobj()
        value = json.loads(unpacker.decompress(array.tobytes(), MAX_PACKED_BYTES))
        if not unpacker.eof or not isinstance(value, dict):
            raise ValueError("no object, or too long")
    except (ValueError, RecursionError, zlib.error) as exc:
        raise ArgumentError(f"{message.call['call']}: packed arguments cannot be read: {exc}") from exc
    return value


def said(value: Any, streams: Streams) -> Answer:
    """Return the answer that is a value of JSON, however long; heard() returns it."""
    text = json.dumps(value).encode()
    if len(text) <= LONG_BYTES:
        return {"result": value}, {}
    pieces = (text[at:at + PIECE_BYTES] for at in range(0, len(text), PIECE_BYTES))
    return {"long": streams.begin(_pieces(pieces))}, {}


def heard(connection: Connection, reply: Message) -> Any:
    """Return the value that an answer of said() has."""
    if "long" in reply.call:
        return json.loads(b"".join(_fetched(connection, reply.call["long"])))
    return reply.call["result"]


def called(function: Callable, arguments: Mapping[str, Any], *subject: Any) -> Callable[[], Any]:
    """Return what calls a function with the arguments of a request; ArgumentError where it takes others."""
    try:
        inspect.signature(function).bind(*subject, **arguments)
    except TypeError as exc:
        raise ArgumentError(f"{function.__name__}: {exc}") from exc
    return functools.partial(function, *subject, **arguments)


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


class Runner:
    """The server's end: functions that requests may name, and the streams that they began."""

    def __init__(self, subject: Callable[[Message], Any], functions: Mapping[str, Callable], streams: Streams) -> None:
        """Take what gives the thing that the functions are called with, the functions by name, and where streams are kept."""
        self._subject, self._functions, self.streams = subject, dict(functions), streams
        log.addHandler(_warnings)

    def functions(self, *, changes: bool) -> dict[str, Function]:
        """Return what a Server is to answer; `changes`: the functions are called one after another."""
        return {"run": Function(self.run, changes=changes), "more": Function(self.more)}

    def run(self, message: Message) -> Answer:
        """Call a function."""
        name, arguments = message.call.get("function"), message.call.get("arguments")
        function = self._functions.get(name) if isinstance(name, str) else None
        if function is None or not isinstance(arguments, dict):
            raise ArgumentError(f"no function {name!r:.80} to run; there are {', '.join(sorted(self._functions))}")
        given = {**arguments, **message.arrays}
        if not HERE.isdisjoint(given):
            raise ArgumentError(f"{name}: {', '.join(sorted(HERE & given.keys()))} cannot be given from elsewhere")
        call = called(function, given, self._subject(message))
        with _warnings.kept() as warnings:
            result = call()
        if inspect.isgenerator(result):
            return {"stream": self.streams.begin(_pieces(result))}, {}
        plain, arrays = parted(result) if isinstance(result, dict) else (result, {})
        call, _ = said(plain, self.streams)
        return {**call, "warnings": warnings}, arrays

    def more(self, message: Message) -> Answer:
        """Return the next piece of a stream, or the last one again, whose answer was lost."""
        return self.streams.piece(field(message, "stream", int), field(message, "number", int))


def _pieces(stream: Iterator[bytes]) -> Iterator[Answer]:
    """Yield the bytes of a stream, as many as a message takes in each reply, with what was logged meanwhile."""
    with contextlib.closing(stream):
        while True:
            some, n = [], 0
            with _warnings.kept() as warnings:
                for piece in stream:
                    some.append(bytes(piece))
                    n += len(piece)
                    if n >= PIECE_BYTES:
                        break
            if not some:
                return
            yield {"warnings": warnings}, {"piece": np.frombuffer(b"".join(some), np.uint8)}


def run(connection: Connection, function: Callable, arguments: Mapping[str, Any], *, call: str = "run", **more: Any) -> Any:
    """Call a function at the other end of a connection; return its result, or an iterator over a stream's pieces.

    call, more: under which name a Runner is asked for it, and what that is told besides.
    """
    plain, arrays = parted(arguments)
    reply = connection.call(call, {"function": function.__name__, "arguments": plain, **more}, arrays)
    if "stream" in reply.call:
        return _fetched(connection, reply.call["stream"])
    _warn(reply)
    result = heard(connection, reply)
    return {**result, **reply.arrays} if isinstance(result, dict) else result


def _fetched(connection: Connection, stream: int) -> Iterator[bytes]:
    for number in itertools.count():
        reply = connection.call("more", {"stream": stream, "number": number})
        if reply.call["done"]:
            return
        _warn(reply)
        yield reply.arrays["piece"].tobytes()


def _warn(reply: Message) -> None:
    """Tell the user here what the library said there."""
    for text in reply.call["warnings"]:
        log.warning("%s", text)

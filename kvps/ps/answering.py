"""What answers requests, whatever brings them: functions by name, each request worked on once, however often it is asked.

No sockets: frames come in, and frames go out. Requests that change something are answered one after another, in the order in
which they came; the others side by side.
"""
from __future__ import annotations

import collections
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kvps.errors import ArgumentError, KvpsError, StoreError
from kvps.ps import protocol
from kvps.ps.protocol import ERROR, REPLY, REQUEST, WORKING, Message, ProtocolError

logger = logging.getLogger("kvps.server")

Answer = tuple[dict[str, Any], Mapping[str, np.ndarray]]
Frames = Sequence[bytes | memoryview]
Reply = Callable[[list[bytes]], None]

MAX_GIVEN = 1000               # answers to changes that are kept for those who ask again, each of so many bytes at most
GIVEN_BYTES = 4096
MAX_ASKERS = 16                # senders that one request is answered to; one that lost its socket asks again from another

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
    """What has been done with requests of one name."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0       # at work on them
    bytes_in: int = 0
    bytes_out: int = 0


class Answerer:
    """Works on requests in threads of its own; usable from several threads.

    A request is known by its client and number. One that comes again while it is worked on is not worked on twice: whoever
    asks is told so, and gets the answer too. An answer to a change is kept for a while for who asks again.

    Args:
        functions: by the name that requests call them by; "server" is added, which answers facts().
        threads: how many requests that change nothing are answered side by side.
    """

    def __init__(self, functions: Mapping[str, Function], *, threads: int = 2) -> None:
        self.functions = {**functions, "server": Function(lambda message: (self.facts(), {}))}
        self.began = time.time()
        self.counted: dict[str, Counted] = collections.defaultdict(Counted)
        self._turn = threading.Lock()
        self._at_work: dict[tuple[bytes, int], dict[bytes, Reply]] = {}        # by sender
        self._given: collections.OrderedDict[tuple[bytes, int], list[bytes]] = collections.OrderedDict()
        self._changes: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answers")
        self._changing = threading.Thread(target=self._change, name="changes", daemon=True)
        self._changing.start()

    @property
    def waiting(self) -> int:
        """How many requests are taken and not answered yet."""
        return len(self._at_work)

    def facts(self) -> dict[str, Any]:
        """Return what this process is doing and has done.

        Returns:
            "pid", "began" [s since 1970], "waiting" (requests taken in and not answered, this one among them), "rss_bytes", and by
            name of request "requests": {"requests", "errors", "seconds" at work, "bytes_in", "bytes_out"}.
        """
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return {"pid": os.getpid(), "began": self.began, "waiting": self.waiting,
                "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
                "requests": {name: dataclasses.asdict(done) for name, done in list(self.counted.items())}}

    def take(self, frames: Frames, sender: bytes, reply: Reply) -> None:
        """Take a request; `reply` is called with the frames of each message to its sender, perhaps from another thread.

        That is the answer, and before it, for a request that comes again and is still worked on, a message that says so.
        """
        try:
            message, function = self._understood(frames)
        except Exception as exc:
            number, client = protocol.number_of(frames)
            counted = self.counted["(refused)"]
            counted.requests, counted.errors = counted.requests + 1, counted.errors + 1
            reply(failure(exc, "a request", Message(ERROR, number, {}, client=client)))
            return
        key = message.client, message.number
        with self._turn:
            known, askers = self._given.get(key), self._at_work.get(key)
            if known is None and askers is None:
                self._at_work[key] = {sender: reply}
                counted = self.counted[message.call["call"]]
                counted.requests += 1
                counted.bytes_in += sum(map(len, frames))
        if known is not None:
            reply(known)
        elif askers is not None:
            if len(askers) < MAX_ASKERS:
                askers[sender] = reply
            reply(protocol.pack(Message(WORKING, message.number, {}, client=message.client)))
        elif function.changes:
            self._changes.put(message)
        else:
            self._pool.submit(self._answer, message)

    def _understood(self, frames: Frames) -> tuple[Message, Function]:
        message = protocol.unpack(frames)
        if message.kind != REQUEST:
            raise ProtocolError("expected a request", field="kind", found=message.kind, expected=REQUEST)
        name = message.call.get("call")
        function = self.functions.get(name) if isinstance(name, str) else None
        if function is None:
            shown = repr(name[:80]) if isinstance(name, str) else f"of {type(name).__name__}"
            known = ", ".join(sorted(self.functions))
            raise ProtocolError(f"no function {shown}; there are {known}", field="call", found=shown, expected=known)
        return message, function

    def _change(self) -> None:
        """Answer the requests that change something, one after another."""
        while (message := self._changes.get()) is not None:
            self._answer(message)

    def _answer(self, message: Message) -> None:
        """Call a function, and tell what it says to all who have asked."""
        name, began = message.call["call"], time.monotonic()
        function, counted = self.functions[name], self.counted[name]
        try:
            call, arrays = function.answer(message)
            frames = protocol.pack(Message(REPLY, message.number, call, arrays, message.client, message.sequence))
        except Exception as exc:
            counted.errors += 1
            if isinstance(exc, ProtocolError):         # of ours, and not of the request, which would be sent again
                exc = StoreError(f"{name}: the answer cannot be sent: {exc}")
            frames = failure(exc, name, message)
        counted.seconds += time.monotonic() - began
        counted.bytes_out += sum(map(len, frames))
        key = message.client, message.number
        with self._turn:
            if function.changes and sum(map(len, frames)) <= GIVEN_BYTES:      # long ones tell what is there, and are made anew
                self._given[key] = frames
                if len(self._given) > MAX_GIVEN:
                    self._given.popitem(last=False)
            askers = self._at_work.pop(key)
        for reply in list(askers.values()):
            reply(frames)

    def close(self) -> None:
        """Wait until all that was taken is answered, and end the threads."""
        self._changes.put(None)
        self._changing.join()
        self._pool.shutdown()


def failure(exc: Exception, name: str, request: Message) -> list[bytes]:
    """Return the frames that tell of an exception; of one that is not ours no more than its kind."""
    said = {"error": "StoreError", "message": f"{name} failed in the server: {type(exc).__name__}; its log says more"}
    if isinstance(exc, KvpsError):
        try:
            return protocol.pack(Message(ERROR, request.number, exc.as_dict(), client=request.client, sequence=request.sequence))
        except Exception:                      # too long, or nothing that JSON has
            logger.warning("%s: an error that cannot be sent: %s", name, exc)
            said = {"error": type(exc).__name__, "message": str(exc)[:1000]}
    else:
        logger.error("%s failed", name, exc_info=exc)
    return protocol.pack(Message(ERROR, request.number, said, client=request.client, sequence=request.sequence))

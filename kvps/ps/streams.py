"""Long answers: what a server sends piece by piece, each when it is asked for, and once more when its answer was lost."""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Generator
from typing import Any

from kvps.errors import KvpsError, StoreError
from kvps.ps.answering import Answer

MAX_STREAMS = 64
IDLE_S = 60.0                  # one that nobody goes on with keeps a snapshot open, and so deleted pages in the files
DONE_S = 1.0                   # and one that has ended the answer that says so, which may have to be sent again

Pieces = Generator[Answer, None, Any]


@dataclasses.dataclass
class _Stream:
    """A long answer between two messages."""

    pieces: Pieces
    used: float
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    number: int = -1           # of the last piece sent
    last: Answer = ({"done": False}, {})
    error: Exception | None = None         # that ended it: said again to who asks again


class Streams:
    """The long answers of a server that have begun; usable from several threads."""

    def __init__(self) -> None:
        self._open: dict[int, _Stream] = {}
        self._turn = threading.Lock()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, pieces: Pieces) -> int:
        """Take a generator of answers and return the number by which they are asked for; it is closed in the end."""
        with self._turn:
            if len(self._open) >= MAX_STREAMS:     # those that are done wait only for who lost the last answer
                for which in [which for which, stream in self._open.items() if stream.last[0]["done"]]:
                    del self._open[which]
            if len(self._open) >= MAX_STREAMS:
                raise StoreError(f"{MAX_STREAMS} scans and other long answers are open already; finish one, or wait {IDLE_S:.0f} s "
                                 "for those that nobody goes on with")
            number = next(self._numbers)
            self._open[number] = _Stream(pieces, time.monotonic())
            return number

    def piece(self, which: int, number: int) -> Answer:
        """Return the next piece of an answer, or the last one again; its call has "done", True after the last.

        Raises:
            StoreError: it has ended, or another piece is asked for.
        """
        stream = self._open.get(which)
        if stream is None:
            raise _gone()
        with stream.turn:
            if which not in self._open:        # dropped while we waited for our turn
                raise _gone()
            if number not in (stream.number, stream.number + 1):
                raise StoreError(f"piece {number} of a long answer, expected {stream.number + 1}")
            if number > stream.number:
                if stream.error is not None:
                    raise stream.error
                try:
                    call, arrays = next(stream.pieces, ({"done": True}, {}))
                except Exception as exc:
                    stream.error = exc
                    raise
                stream.number, stream.last = number, ({"done": False, **call}, arrays)
            stream.used = time.monotonic()
            return stream.last

    def drop_idle(self) -> None:
        """End those that nobody goes on with, or that are done; does not wait for those at work."""
        now = time.monotonic()
        for which, stream in list(self._open.items()):
            limit_s = DONE_S if stream.last[0]["done"] or stream.error is not None else IDLE_S
            if now - stream.used > limit_s and stream.turn.acquire(blocking=False):
                try:
                    self._open.pop(which, None)
                    with contextlib.suppress(KvpsError):       # what it read from is gone
                        stream.pieces.close()
                finally:
                    stream.turn.release()

    def close(self) -> None:
        """End all; call it when no request is being answered any more."""
        while self._open:
            _, stream = self._open.popitem()
            stream.pieces.close()


def _gone() -> StoreError:
    return StoreError(f"the server was started again in the middle of a long answer, or nobody went on with it for {IDLE_S:.0f} s; "
                      "begin it again")

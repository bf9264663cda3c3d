"""The exceptions that kvps raises on purpose, each with the exit code the command line ends with.

    KvpsError                     everything below                                            exit 1
    ├─ ArgumentError              the caller asked for something impossible (a ValueError)    exit 2
    ├─ DataError                  the text or the counts cannot be used   path, line, offset  exit 1
    │  ├─ InputGone               an input vanished or changed; put it back and resume        exit 4
    │  ├─ DiscountError           an order's discounts cannot be computed  order, k           exit 1
    │  └─ VocabularyFull          no word id is left                                          exit 1
    ├─ StoreError                 a store cannot do it now                path, shard         exit 1
    │  ├─ StoreLocked             another process is writing              pid                 exit 5
    │  ├─ StoreFull               the disk is full; make room and resume  needs, has          exit 4
    │  ├─ VersionMismatch         another format than this kvps reads     found, expected     exit 1
    │  └─ Unreachable             a server gives no answer                                    exit 4
    ├─ CorruptionError            bytes are not what FORMAT.md says       path, key, found, expected   exit 3
    └─ Stopped                    asked to stop (SIGTERM); resume goes on                     exit 4

A message says what, where, found against expected, and what to do next, on one line.
The attributes carry the same facts for programs; any further keyword becomes an attribute too.
The library raises; only the command line prints and exits.
"""
from __future__ import annotations

import os
from typing import Any, ClassVar


def one_line(text: str) -> str:
    """Return `text` with what a terminal would not show as a character (newline, escape, lone surrogate) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: object) -> object:
    """Return `value` as something JSON can hold: numbers and text as they are, paths and bytes as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return one_line(value.decode("utf-8", "backslashreplace"))
    return os.fsdecode(value) if isinstance(value, os.PathLike) else str(value)


class KvpsError(Exception):
    """Everything kvps raises on purpose."""

    exit_code: ClassVar[int] = 1
    facts: ClassVar[tuple[str, ...]] = ()  # attributes that every instance has; None where not known

    def __init__(self, message: str, **attributes: Any) -> None:
        """Keep `message` as one printable line, and each keyword as an attribute."""
        super().__init__(one_line(message))
        for name in self.facts:
            setattr(self, name, None)
        for name, value in attributes.items():
            setattr(self, name, value)

    def as_dict(self) -> dict[str, object]:
        """Return {"error": class name, "message": line} and the known attributes, ready for JSON."""
        known = {name: _plain(value) for name, value in vars(self).items()
                 if value is not None and not name.startswith("_")}
        return {"error": type(self).__name__, "message": str(self), **known}


class ArgumentError(KvpsError, ValueError):
    """The caller asked for something impossible."""

    exit_code = 2


class DataError(KvpsError):
    """The text or the counts cannot be used; `line` counts from 1, `offset` is in bytes of the decompressed text."""

    facts = ("path", "line", "offset")
    path: str | None
    line: int | None
    offset: int | None


class InputGone(DataError):
    """An input of a job vanished or changed; with the input back in place the job can be resumed."""

    exit_code = 4


class DiscountError(DataError):
    """The discounts of one order cannot be computed from its counts of counts."""

    facts = (*DataError.facts, "order", "k")
    order: int | None
    k: int | None


class VocabularyFull(DataError):
    """No word id is left."""


class StoreError(KvpsError):
    """A store cannot do it now."""

    facts = ("path", "shard")
    path: str | None
    shard: int | None


class StoreLocked(StoreError):
    """Another process is writing to the store; `pid` names it."""

    exit_code = 5
    facts = (*StoreError.facts, "pid")
    pid: int | None


class StoreFull(StoreError):
    """The disk is full: `needs` and `has` are in bytes."""

    exit_code = 4
    facts = (*StoreError.facts, "needs", "has")
    needs: int | None
    has: int | None


class VersionMismatch(StoreError):
    """The store was written in another format than this kvps reads."""

    facts = (*StoreError.facts, "found", "expected")
    found: object
    expected: object


class Unreachable(StoreError):
    """A server gives no answer; a job that needs it can be resumed when it does."""

    exit_code = 4


class CorruptionError(KvpsError):
    """Bytes are not what FORMAT.md says."""

    exit_code = 3
    facts = ("path", "key", "found", "expected")
    path: str | None
    key: object
    found: object
    expected: object


class Stopped(KvpsError):
    """The job was asked to stop (SIGTERM) and can be resumed."""

    exit_code = 4

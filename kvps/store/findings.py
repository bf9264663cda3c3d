"""What a look at a store finds: each thing that is not as it should be, with its place and what to do about it."""
from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from kvps.errors import CorruptionError, KvpsError, VersionMismatch

DAMAGE, WARNING = "damage", "warning"
PAGE_BYTES = 4096

RECOVER = "keep a copy of the store, then run kvps recover"
RESTORE = "restore a checkpoint: kvps checkpoint list, then kvps checkpoint restore STORE NAME --into DIR"
OLDER = f"{RESTORE}; or kvps recover --accept-older"
LINK = "put the real file there"
SWEPT = "the next writer removes it"
AGAIN = "delete it, it will be made again"
# What a finding's part asks for, unless it says so itself.
NEXT = {"seal": RECOVER, "root": RESTORE, "shard": RECOVER, "counts": RECOVER, "model": AGAIN, "leftover": SWEPT,
        "checkpoint": "delete that checkpoint and make another one", "writer": "run kvps check again when it is done"}
_PLACE = re.compile(r"run (\d+)(?: chunk (\d+))?")
_PAGE = re.compile(r"\bpage (\d+)")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    severity: str                  # "damage" or "warning"
    part: str                      # seal, root, shard, counts, model, checkpoint, leftover, writer
    what: str                      # in words: what was found where, and what was expected
    next: str                      # what to do
    path: str | None = None
    shard: int | None = None
    run: int | None = None
    chunk: int | None = None
    offset: int | None = None      # in the file [bytes], where that is known
    found: object = None
    expected: object = None

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.what}; {self.next}"

    def to_json(self) -> dict[str, Any]:
        """Return {"severity", "part", "message", ...} with what is known."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None and name != "what"}
        return {**known, "message": str(self)}


def damage(part: str, what: str, **more: Any) -> Finding:
    """Return a finding of damage."""
    return Finding(DAMAGE, part, what, more.pop("next", NEXT[part]), **more)


def warning(part: str, what: str, **more: Any) -> Finding:
    """Return a finding that takes nothing away from what the store holds."""
    return Finding(WARNING, part, what, more.pop("next", NEXT[part]), **more)


def page_offset(what: object) -> int | None:
    """Return where the page lies that a text names first [bytes], None where it names none."""
    page = _PAGE.search(str(what or ""))
    return int(page[1]) * PAGE_BYTES if page else None


def of_error(part: str, exc: KvpsError, **more: Any) -> Finding:
    """Return the finding for an exception that says what is damaged; run and chunk are read from its key."""
    place = _PLACE.match(str(getattr(exc, "key", None) or ""))
    numbers = {name: int(text) for name, text in zip(("run", "chunk"), place.groups(), strict=True) if text} if place else {}
    offset = page_offset(getattr(exc, "found", None))
    if offset is not None:
        more.setdefault("offset", offset)
    known = {name: getattr(exc, name, None) for name in ("path", "found", "expected")}
    return damage(part, str(exc).partition("; ")[0], **{**known, **numbers, **more})


class Report:
    """Collects what was found; `tell` hears of each finding at once."""

    def __init__(self, tell: Callable[[Finding], None] = lambda finding: None) -> None:
        self.found: list[Finding] = []
        self._tell = tell

    def add(self, finding: Finding) -> None:
        """Add one."""
        self.found.append(finding)
        self._tell(finding)

    @contextlib.contextmanager
    def guarding(self, part: str, **more: Any) -> Iterator[None]:
        """Turn an error of the block that tells of damage into a finding."""
        try:
            yield
        except (CorruptionError, VersionMismatch) as exc:
            self.add(of_error(part, exc, **more))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            # A record with a checksum that is right, which no kvps wrote.
            self.add(damage(part, f"a record is not of its kind ({type(exc).__name__}: {exc})", **more))

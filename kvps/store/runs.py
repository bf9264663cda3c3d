"""One run of a shard: what the manifest says about it, and what its chunks add up to (FORMAT.md, "Manifest")."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kvps.errors import CorruptionError
from kvps.store import format as fmt

NO_DIGEST = "0" * 16      # of a run without chunks


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as the manifest lists it."""

    id: int
    version: int        # of the store, that this run's job makes or made
    job: str | None     # the job that wrote it; None after a merge of several jobs' runs
    n_chunks: int
    n_keys: int
    bytes: int          # of its chunks, headers included
    label: str | None = None     # its text can be taken away as a whole; runs of different labels never merge
    until: int | None = None     # the version that takes it away, or None
    digest: str = NO_DIGEST      # over the headers of its chunks

    @classmethod
    def from_row(cls, row: dict) -> Run:
        """Return the run that a row of the manifest describes."""
        return cls(row["id"], row["version"], row["job"], row["chunks"], row["keys"], row["bytes"], row["label"], row["until"],
                   row["digest"])

    def to_row(self) -> dict:
        """Return what from_row() takes."""
        return {"id": self.id, "version": self.version, "job": self.job, "chunks": self.n_chunks, "keys": self.n_keys,
                "bytes": self.bytes, "label": self.label, "until": self.until, "digest": self.digest}

    def seen(self, version: int) -> bool:
        """Return whether readers of `version` see this run."""
        return self.version <= version and (self.until is None or self.until > version)


def by_label(runs: Iterable[Run]) -> dict[str | None, list[Run]]:
    """Return runs by their labels."""
    found: dict[str | None, list[Run]] = {}
    for run in runs:
        found.setdefault(run.label, []).append(run)
    return found


@dataclasses.dataclass
class RunTotal:
    """What the chunks of a run add up to, one after the other."""

    n_chunks: int = 0
    n_keys: int = 0
    bytes: int = 0
    digest: str = NO_DIGEST

    def add(self, key: bytes, value: bytes | memoryview, n_keys: int) -> None:
        """Add one chunk."""
        self.n_chunks += 1
        self.n_keys += n_keys
        self.bytes += len(value)
        self.digest = fmt.add_digest(self.digest, fmt.chunk_digest(key, value))

    def differs(self, run: Run) -> tuple[tuple, tuple] | None:
        """Return what was found and what the manifest says, (keys, bytes, digest) each; None where they are the same."""
        found, expected = ((total.n_keys, total.bytes, total.digest) for total in (self, run))
        return None if found == expected else (found, expected)

    def refuse_other(self, run: Run, what: str, path: str | None = None) -> None:
        """Raise CorruptionError unless the chunks are those of the run; `what` names it in the message."""
        if different := self.differs(run):
            found, expected = different
            raise CorruptionError(f"{f'{path}: ' if path else ''}{what} has keys, bytes and digest {found}, expected {expected}; "
                                  "use a copy made earlier", path=path, key=f"run {run.id}", found=found, expected=expected)

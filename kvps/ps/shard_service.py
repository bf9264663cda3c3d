"""What the server of one shard answers: the calls of Shard that jobs make, and functions that run where the shard is.

A change names the epoch of its session, and one of an earlier epoch than the last that this shard has heard of is refused; the
shard keeps the number in LMDB with whatever it writes. What belongs to a job is done only while the root has that job
pending: a message may come once more when the job, and what told that it was done, are long gone.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from kvps.errors import ArgumentError, StoreLocked
from kvps.ps.answering import Answer, Function, field, optional
from kvps.ps.away import Chunk, chunks_of
from kvps.ps.calls import Runner, said
from kvps.ps.protocol import Message
from kvps.ps.runs import verify_chunks
from kvps.ps.streams import Streams
from kvps.store import layout
from kvps.store.directory import StoreDirectory
from kvps.store.shard import Shard

MAX_STAGED_BYTES = 256 << 20   # of splits that come in several messages
PART_BYTES = 1 << 10           # what one of them takes beside its arrays


class ShardService:
    """One shard, open for writing."""

    def __init__(self, directory: StoreDirectory, functions: Mapping[str, Callable]) -> None:
        """Take the store whose root says what may be done, and what may be run with the shard; open() is the caller's to call."""
        self._directory = directory
        self._epoch = 0
        self.shard: Shard | None = None
        self.runner = Runner(self._current, functions, Streams())
        self._staged_bytes: dict[tuple[bytes, str, int], int] = {}
        self._staged: OrderedDict[tuple[bytes, str, int], dict[int, list[Chunk]]] = OrderedDict()

    def functions(self) -> dict[str, Function]:
        """Return what a Server is to answer; requests are answered one after another, as a shard takes them."""
        own = {name: Function(answer, changes=True) for name, answer in (
            ("fence", self.fence), ("stage", self.stage), ("apply", self.apply), ("splits", self.splits), ("drop", self.drop),
            ("mark", self.mark), ("sweep", self.sweep), ("facts", self.facts))}
        return {**own, **self.runner.functions(changes=True)}

    def open(self, path: Path, number: int, epoch: int, *, verify: bool = False) -> None:
        """Open the shard in a directory, which the root names at this epoch; under a lock that the caller holds."""
        identity = self._directory.identity
        self._epoch = epoch
        self.shard = Shard.open(path, identity["uuid"], True, shard=number, map_bytes=layout.map_bytes(identity["shards"]),
                                verify=verify)

    def here(self) -> Shard:
        """Return the shard."""
        return self.shard

    def _current(self, message: Message) -> Shard:
        """Return the shard for a change by the sender; StoreLocked where its session is over, or was never given."""
        shard = self.here()
        if message.epoch < self._epoch or (message.epoch > self._epoch and not self._given(message.epoch)):
            raise self._locked("another client has taken the store over; run the command again")
        self._epoch = shard.epoch = message.epoch
        return shard

    def _given(self, epoch: int) -> bool:
        """Return whether the root has given an epoch that we have not heard of."""
        return epoch <= self._directory.root.state()["epoch"]

    def _at_work(self, message: Message, version: int) -> Shard:
        """Return the shard for a change of the pending job; `version` is the one that is committed, as the sender knows it."""
        shard, root = self._current(message), self._directory.root
        job = root.job_id()
        if job is None or job != message.call.get("job", job) or version != root.state()["version"]:
            raise self._locked("this job is over, or another is at work; run the command again")
        return shard

    def _locked(self, why: str) -> StoreLocked:
        return StoreLocked(f"{self.shard.path}: {why}", path=str(self.shard.path), shard=self.shard.shard)

    def fence(self, message: Message) -> Answer:
        """Take nothing any more from sessions before the sender's."""
        self._current(message)
        return {}, {}

    def stage(self, message: Message) -> Answer:
        """Keep a part of a split until the rest of it comes."""
        self._at_work(message, field(message, "version", int) - 1)
        key = message.client, field(message, "job", str), field(message, "split", int)
        self._staged.setdefault(key, {})[field(message, "part", int)] = sent_chunks(message)
        # A part keeps its whole message, whatever of it are chunks.
        self._staged_bytes[key] = self._staged_bytes.get(key, 0) + PART_BYTES + sum(a.nbytes for a in message.arrays.values())
        while sum(self._staged_bytes.values()) > MAX_STAGED_BYTES:
            gone, _ = self._staged.popitem(last=False)
            del self._staged_bytes[gone]
        return {}, {}

    def apply(self, message: Message) -> Answer:
        """Add a split; "missing" where parts of it are not here any more."""
        job, split = field(message, "job", str), field(message, "split", int)
        shard = self._at_work(message, field(message, "version", int) - 1)
        key, n_staged = (message.client, job, split), field(message, "staged", int)
        staged = self._staged.pop(key, {})
        self._staged_bytes.pop(key, None)
        if len(staged) != n_staged or any(part not in staged for part in range(len(staged))):
            if split in shard.splits(job):
                return {"applied": False}, {}
            return {"missing": True}, {}
        chunks = [chunk for part in range(n_staged) for chunk in staged[part]] + sent_chunks(message)
        verify_chunks(chunks, self._directory.identity["order"], self._directory.root.next_word())
        return {"applied": shard.apply(job, split, field(message, "version", int), chunks, field(message, "row", dict),
                                       label=optional(message, "label", str))}, {}

    def splits(self, message: Message) -> Answer:
        """Return the ledger of a job."""
        job = field(message, "job", str)
        if not 1 <= len(job.encode()) <= 255:
            raise ArgumentError(f"{job!r:.80} names no job")
        return said(list(self.here().splits(job).items()), self.runner.streams)

    def drop(self, message: Message) -> Answer:
        """Roll a job back."""
        job, version = field(message, "job", str), field(message, "version", int)
        self._at_work(message, version).drop(job, version)
        return {}, {}

    def mark(self, message: Message) -> Answer:
        """Let later versions no longer see some labels."""
        version = field(message, "version", int)
        self._at_work(message, version - 1).mark(field(message, "labels", list), version)
        return {}, {}

    def sweep(self, message: Message) -> Answer:
        """Remove what nobody needs."""
        version, job, root = field(message, "version", int), optional(message, "job", str), self._directory.root
        shard = self._current(message)
        if (version, job) != (root.state()["version"], root.job_id()):
            raise self._locked("another version is committed, or another job at work; run the command again")
        return {"removed": shard.sweep(version, job)}, {}

    def facts(self, message: Message) -> Answer:
        """Return generation, bytes and runs."""
        shard = self.here()
        runs = shard.runs()
        return {"shard": shard.shard, "generation": shard.generation, "runs": len(runs),
                "keys": sum(run.n_keys for run in runs), **shard.bytes()}, {}

    def close(self) -> None:
        """Close the shard."""
        self.runner.streams.close()
        if self.shard is not None:
            self.shard.close()
        self._directory.close()


def sent_chunks(message: Message) -> list[Chunk]:
    """Return the chunks of a message."""
    try:
        return chunks_of(message.arrays)
    except (KeyError, ValueError, TypeError) as exc:
        raise ArgumentError(f"{message.call['call']}: no chunks: {exc}") from exc

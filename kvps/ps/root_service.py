"""What the server of a store's root answers: who may write, what the root says, and the ids of words.

One client at a time has the session, in which it writes to the root and the shards; workers of its job take part in it.
A session has an epoch, kept in LMDB with its client, that is greater than that of every session before: who was silent for too
long, and whose session another client was given, can write no more, neither here nor in a shard that has heard of the new one.
Its holder asks for another epoch when nothing that it has sent and is still on its way may be taken any more, as before a
commit: a message may come twice, and late.
"""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvps.errors import ArgumentError, StoreError, StoreLocked
from kvps.ps.answering import Answer, Function, field
from kvps.ps.away import AwayShard
from kvps.ps.calls import called, said, unpacked
from kvps.ps.protocol import Message
from kvps.ps.streams import Streams
from kvps.store import layout, seal
from kvps.store.directory import StoreDirectory
from kvps.store.root import Root
from kvps.text.tokenize import SEPARATORS
from kvps.text.vocabulary import Vocabulary, unpack_segment

DOUBT_S = 1.5                  # more than a client leaves between two signs of life
SESSION_S = 5.0                # a holder that is silent for so long loses its session to the next that asks
WORDS_BYTES = 8 << 20          # of the vocabulary in one message
RENEW_S = 30.0                 # how often it is said that snapshots on other machines are still read
CLAIM_S = 30.0                 # a worker that is silent for so long leaves its splits to others
SPACE = np.frombuffer((SEPARATORS + "\n").encode(), np.uint8)

READS = ("state", "history", "counted", "inputs", "job", "labels", "next_word", "bytes", "routing", "job_id")
CHANGES = ("begin_job", "clear_job", "commit_job", "set_routing", "move_shard")


@dataclasses.dataclass
class Session:
    """Who writes."""

    client: bytes
    command: str
    started: float             # [s since 1970]
    heard: float               # [s], monotonic
    doubted: float | None = None       # when it was first found silent, since it was heard last


class RootService:
    """The root of a store, open for writing, and its directory, open for reading; under the owner lock of whoever started us."""

    def __init__(self, path: Path, shards: list[str], streams: Streams, away: Callable[[int, str], AwayShard]) -> None:
        """Open.

        Args:
            path: of the store.
            shards: the addresses of the shards' servers.
            streams: where long answers are kept.
            away: what StoreDirectory takes by this name.
        """
        self.shards, self._streams = shards, streams
        self.directory = StoreDirectory(path, False, None, away)
        self.directory.follow()
        name = seal.read(path)["root"]
        self.root = Root.open(path / name, writable=True)
        self.root.adopt()
        self._name = name
        self._renewed = 0.0
        self._session: Session | None = None
        if (holder := self.root.session()) is not None:        # it may be alive, and know nothing of a restart
            self._session = Session(bytes.fromhex(holder), "", time.time(), time.monotonic())
        self._vocabulary: Vocabulary | None = None
        self._claims: dict[tuple[str, int], bytes] = {}        # (job, split) -> worker
        self._workers: dict[bytes, float] = {}                 # those that have claims -> when they were heard last

    def functions(self) -> dict[str, Function]:
        """Return what a Server is to answer; all of it is short, and done one after another."""
        return {name: Function(answer, changes=True) for name, answer in (
            ("store", self.store), ("begin", self.begin), ("fence", self.fence), ("renew", self.renew), ("end", self.end),
            ("join", self.join), ("root", self.read), ("root-change", self.change), ("words", self.words),
            ("share-words", self.share_words), ("claim", self.claim), ("release", self.release), ("reseal", self.reseal))}

    def renew_snapshots(self) -> None:
        """Let the servers of shards on other machines keep what is being read here; called now and then."""
        if time.monotonic() - self._renewed > RENEW_S:
            self._renewed = time.monotonic()
            for shard in list(self.directory.shards):
                if isinstance(shard, AwayShard):
                    shard.renew()

    # sessions

    def store(self, message: Message) -> Answer:
        """Say what the store is, and where its shards are served."""
        return {"identity": self.root.identity, "shards": self.shards, "path": str(self.directory.path),
                "free_bytes": self.directory.free_bytes()}, {}

    def begin(self, message: Message) -> Answer:
        """Give the sender the session, unless another client has it."""
        held, now = self._session, time.monotonic()
        command = field(message, "command", str)
        if held is not None and held.client != message.client and self._alive(held, now):
            raise StoreLocked(f"{self.directory.path}: another client of its server is using it ({held.command}); wait for it, or "
                              "give --wait SECONDS", path=str(self.directory.path), silent_s=round(now - held.heard, 3))
        if held is None or held.client != message.client:
            self.root.renew(message.client.hex())
            self._session = Session(message.client, command, time.time(), now)
            self._claims.clear()
            self._workers.clear()
        return {"epoch": self.root.epoch}, {}

    def fence(self, message: Message) -> Answer:
        """Give the holder of the session another epoch; once, if it asks again for want of an answer."""
        held = self._session
        if held is None or held.client != message.client or message.epoch != self.root.epoch - 1:
            self._check(message)
            self.root.renew(message.client.hex())
        return {"epoch": self.root.epoch}, {}

    def renew(self, message: Message) -> Answer:
        """Note that the holder of the session is alive."""
        self._check(message)
        return {}, {}

    def end(self, message: Message) -> Answer:
        """End the sender's session."""
        if self._session is not None and self._session.client == message.client:
            self.root.renew()
            self._session = None
        return {}, {}

    def join(self, message: Message) -> Answer:
        """Give a worker the epoch of the session that is at work, and the id of its job."""
        alive = self._session is not None and self._alive(self._session, time.monotonic())
        return {"epoch": self.root.epoch, "job": self.root.job_id() if alive else None}, {}

    @staticmethod
    def _alive(held: Session, now: float) -> bool:
        """Return whether the holder of the session is to be waited for.

        Where we stood still ourselves, what it said meanwhile has not been read yet: silence is noted first, and counts when
        nothing was heard for a while after that.
        """
        if now - held.heard < SESSION_S:
            return True
        if held.doubted is None:
            held.doubted = now
        return now - held.doubted < DOUBT_S

    def claim(self, message: Message) -> Answer:
        """Say whether a worker should count a split. Only so that no two do the same: the ledgers see that it counts once."""
        job, split, now = field(message, "job", str), field(message, "split", int), time.monotonic()
        if job != self.root.job_id():
            raise StoreLocked(f"{self.directory.path}: this job is over", path=str(self.directory.path))
        self._workers[message.client] = now
        holder = self._claims.get((job, split))
        if holder is not None and holder != message.client and now - self._workers.get(holder, -CLAIM_S) < CLAIM_S:
            return {"yours": False}, {}
        self._claims[job, split] = message.client
        return {"yours": True}, {}

    def release(self, message: Message) -> Answer:
        """Leave the sender's splits to others."""
        self._workers.pop(message.client, None)
        return {}, {}

    def _check(self, message: Message) -> None:
        """Refuse who has not the session, or has it no more; hear who has it."""
        held = self._session
        if held is None or held.client != message.client or message.epoch != self.root.epoch:
            raise self._taken_over()
        held.heard, held.doubted = time.monotonic(), None
        held.command = held.command or str(message.call.get("command", ""))        # a restart has forgotten it

    def _taken_over(self) -> StoreLocked:
        return StoreLocked(f"{self.directory.path}: another client has taken the store over; run the command again",
                           path=str(self.directory.path))

    def session(self) -> dict[str, Any] | None:
        """Return {"command", "started"} of the client that writes, or None."""
        held = self._session
        if held is None or time.monotonic() - held.heard > SESSION_S:
            return None
        return {"command": held.command, "started": held.started}

    # the root

    def read(self, message: Message) -> Answer:
        """Call a method of the root that changes nothing."""
        return said(self._method(message, READS, field(message, "arguments", dict))(), self._streams)

    def change(self, message: Message) -> Answer:
        """Call a method of the root that changes it, once, however often it is asked."""
        self._check(message)
        arguments = unpacked(message)
        method = self._method(message, CHANGES, arguments)
        if not self._done_before(message.call["method"], arguments):
            method()
        return {"result": None}, {}

    def _method(self, message: Message, names: tuple[str, ...], arguments: dict) -> Callable[[], Any]:
        name = field(message, "method", str)
        if name not in names:
            raise ArgumentError(f"the root has no {name!r:.80} to call; there are {', '.join(names)}")
        return called(getattr(self.root, name), arguments)

    def _done_before(self, method: str, arguments: dict) -> bool:
        """Return whether this change was made before, and its answer lost."""
        job = self.root.job_id()
        if method == "begin_job":
            record = arguments.get("record")
            return job is not None and isinstance(record, dict) and job == record.get("id")
        if method == "move_shard":
            return self._moved_before(**arguments)
        if method == "set_routing":
            return self.root.routing() is not None and self.root.routing() == arguments.get("table")
        if method == "commit_job" and job is None:
            state, made = self.root.state(), arguments.get("history")
            if state["version"] == arguments.get("version") and isinstance(made, dict):
                return self.root.history()[-1].get("job") == made.get("job")
        return False

    def _moved_before(self, shard: int, name: str, generation: int, away: bool = False) -> bool:
        """Return whether a shard is in this directory; ArgumentError where a client may not move it there."""
        places = self.root.state()["shards"]
        if shard not in range(len(places)) or not isinstance(generation, int) or not places[shard].get("away") or away is not True:
            raise ArgumentError("only a shard on another machine is moved, to another directory there")
        layout.shard_folder(self.directory.path, shard, name)
        return places[shard]["dir"] == name

    def reseal(self, message: Message) -> Answer:
        """Write down how far the store has come."""
        self._check(message)
        seal.renew(self.directory.path, self._name, self.root)
        return {}, {}

    # words

    def words(self, message: Message) -> Answer:
        """Return segments of the vocabulary from a word on, as many as one message takes."""
        first = field(message, "first", int)
        found, n_bytes, more = [], 0, False
        for start, segment in self.root.words():
            if start < first:
                continue
            if found and n_bytes + len(segment) > WORDS_BYTES:
                more = True
                break
            found.append((start, segment))
            n_bytes += len(segment)
        return ({"more": more}, {"first": np.array([start for start, _ in found], np.uint32),
                                 "bytes": np.array([len(segment) for _, segment in found], np.uint32),
                                 "segments": np.frombuffer(b"".join(segment for _, segment in found), np.uint8)})

    def share_words(self, message: Message) -> Answer:
        """Return the ids of words, which are stored where they are new."""
        if message.epoch != self.root.epoch:
            raise self._taken_over()
        segment = message.arrays.get("segment")
        if segment is None or segment.dtype != np.uint8:
            raise ArgumentError("no segment of words")
        lengths, letters = unpack_segment(segment.tobytes())
        if len(lengths) == 0 or lengths.min() == 0 or np.isin(letters, SPACE).any():
            raise ArgumentError("a word is empty or contains a separator")
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self.root.words())
        text = np.full(len(letters) + len(lengths), ord(" "), np.uint8)
        text[np.arange(len(letters)) + np.repeat(np.arange(len(lengths)), lengths)] = letters
        ids = np.empty(len(text) + 1, np.uint32)
        n_ids, n_sentences, reserved = self._vocabulary.encode(text, ids, skip_reserved=False)
        if reserved >= 0 or (n_ids, n_sentences) != (len(lengths) + 1, 1):
            self._vocabulary = None                # it has words now that nobody has stored
            raise ArgumentError("a word is reserved")
        try:
            self._vocabulary.store_new(self.root.add_words)
        except BaseException:                      # what is stored now is not known
            self._vocabulary = None
            raise
        return {}, {"ids": ids[:len(lengths)]}

    def close(self) -> None:
        """Write down how far the store has come, and close it."""
        try:
            seal.renew(self.directory.path, self._name, self.root)
        except StoreError:
            pass                       # without it the next one to open looks more closely
        finally:
            self.root.close()
            self.directory.close()

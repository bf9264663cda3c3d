"""The root of a store: its identity, the committed version, the pending job, history, inputs, labels, routing, and vocabulary.

A version is committed by one transaction here, after every shard has committed its part; that is the instant at which
readers see it.
The bytes are described in FORMAT.md.
"""
from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvps.errors import StoreError, StoreLocked
from kvps.store import format as fmt
from kvps.store import records
from kvps.store.environment import Environment
from kvps.store.transaction import Txn

if TYPE_CHECKING:
    import numpy as np

FIRST_WORD = 3        # 0, 1 and 2 are <unk>, <s> and </s>, which are not stored


class Root:
    """The root environment, open; each call reads one commit or makes one."""

    share_words: Callable[[bytes], np.ndarray] | None = None      # its one writer gives words their ids by itself

    def __init__(self, env: Environment, identity: dict) -> None:
        self._env = env
        self.identity = identity
        self.path: Path = env.path
        self._turn = threading.Lock()
        self.epoch = 0                 # of the writer that we are, from our first write on
        self._last_epoch = 0           # of the writer before us
        self._known_job = b"", ""      # the record of the pending job that was read last, and its id

    @classmethod
    def create(cls, path: str | Path, identity: dict, shard_dirs: Sequence[str]) -> Root:
        """Make the root of a new store at version 0, in the directory `path`, which must not exist.

        `identity` holds uuid, order, shards, tokenizer and created; format and lib_version are added.
        """
        env = Environment.create(path)
        full = {**identity, "format": fmt.FORMAT_VERSION, "lib_version": fmt.LIB_VERSION}
        state = {"version": 0, "tokens": 0, "sentences": 0, "words": FIRST_WORD, "epoch": 0, "generation": 0,
                 "shards": [{"dir": name, "generation": 0} for name in shard_dirs]}
        with env.write() as txn:
            records.put(txn, fmt.IDENTITY, full)
            records.put(txn, fmt.STATE, {**state, "txn": txn.id})
        return cls(env, full)

    @classmethod
    def open(cls, path: str | Path, writable: bool = False, *, verify: bool = False) -> Root:
        """Open the root of a store; `verify` and errors as Shard.open's."""
        env = Environment.open(path, writable=writable, verify=verify)
        try:
            with env.read() as txn:
                identity = records.required(txn, fmt.IDENTITY)
                fmt.check_identity(identity, str(env.data))
            root = cls(env, identity)
            root._last_epoch = root.state()["epoch"]
            return root
        except BaseException:
            env.close()
            raise

    @property
    def next_epoch(self) -> int:
        """The number of our epoch as a writer, begun or not."""
        return self.epoch or self._last_epoch + 1

    def claim(self) -> None:
        """Begin our epoch as a writer, if no write has done so: whoever began an earlier one can write no more.

        The owner lock keeps a second writer away. Should it ever fail to (its file was removed, a file system that does
        not lock), the first write that comes after another process's is refused.
        """
        if not self.epoch:
            with self._write():
                pass

    def adopt(self) -> None:
        """Go on with the last epoch: of a server that was started again, under the owner lock that has been held since."""
        self.epoch = self._last_epoch

    def renew(self, session: str | None = None) -> int:
        """Begin another epoch and return its number: who writes under an earlier one can write no more.

        session: names whose epoch it is, for session() after a restart.
        """
        self._last_epoch, self.epoch = self.epoch or self._last_epoch, 0
        with self._write() as (_, state):
            state["session"] = {"name": session, "epoch": self.next_epoch}
        return self.epoch

    def session(self) -> str | None:
        """Return whose epoch the last one is, as renew() was told; None if it is nobody's."""
        state = self.state()
        session = state.get("session", {})
        return session["name"] if session.get("epoch") == state["epoch"] else None

    @contextlib.contextmanager
    def _write(self) -> Iterator[tuple[Txn, dict]]:
        """Give a write transaction and the state, which is written at its end with the transaction's id."""
        with self._turn, self._env.write() as txn:
            state = records.current(txn, fmt.STATE, txn.id - 1)
            if state["epoch"] != (self.epoch or self._last_epoch):
                raise StoreLocked(f"{self.path.parent}: another process has taken the store over; open it again",
                                  path=str(self.path.parent))
            epoch = self.next_epoch
            yield txn, state
            records.put_current(txn, fmt.STATE, {**state, "epoch": epoch})
        self.epoch = epoch

    # state and history

    def state(self) -> dict:
        """Return version, tokens, sentences, words (the first id that this version does not use), shards, and more.

        FORMAT.md, "State", has them all.
        """
        with self._env.read() as txn:
            return records.current(txn, fmt.STATE)

    def history(self) -> list[dict]:
        """Return one row a version, oldest first: what its job said, with "version" added."""
        with self._env.read() as txn:
            return [{**row, "version": int.from_bytes(key[1:])} for key, row in records.rows(txn, fmt.HISTORY)]

    def counted(self, digest: str) -> int | None:
        """Return the version in which this input was last counted, or None if it is not counted now."""
        key = fmt.named_key(fmt.INPUT, digest)
        with self._env.read() as txn:
            row = records.row(txn, key)
        return row["version"] if row else None

    def inputs(self) -> dict[str, dict]:
        """Return every input that is counted now: digest -> {"times": by label ("": none), "version": when last counted}."""
        with self._env.read() as txn:
            return {key[1:].decode(): row for key, row in records.rows(txn, fmt.INPUT)}

    # the pending job

    def job(self) -> dict | None:
        """Return the record of the pending job, or None."""
        with self._env.read() as txn:
            return records.row(txn, fmt.JOB)

    def job_id(self) -> str | None:
        """Return the id of the pending job, or None; cheap to ask again while the job is the same."""
        with self._env.read() as txn:
            value = txn.get(fmt.JOB)
            if value is None:
                return None
            if value != self._known_job[0]:
                self._known_job = bytes(value), fmt.unpack_row(fmt.JOB, value, txn.where)["id"]
            return self._known_job[1]

    def begin_job(self, record: dict) -> None:
        """Record a job as pending; StoreError if one is already."""
        with self._write() as (txn, _):
            if txn.get(fmt.JOB) is not None:
                raise StoreError(f"{self.path.parent}: a job was interrupted; kvps resume or kvps abort it first",
                                 path=str(self.path.parent))
            records.put(txn, fmt.JOB, record)

    def clear_job(self) -> None:
        """Forget the pending job, after its shards were rolled back; fine if there is none."""
        if self.job() is not None:
            with self._write() as (txn, _):
                txn.delete(fmt.JOB)

    def commit_job(self, version: int, d_tokens: int, d_sentences: int, history: dict,
                   inputs_delta: Mapping[str, int], *, generations: Sequence[int] | None = None,
                   label: str | None = None, gone_labels: Sequence[str] = ()) -> None:
        """Make `version` the committed one and end the pending job, in one transaction.

        Args:
            version: one more than the committed version.
            d_tokens: what the job's text added; negative when it took away.
            d_sentences: likewise.
            history: the row for history().
            inputs_delta: digest -> how often it was counted (negative: forgotten).
            generations: each shard's generation now; a shard found below it later has lost commits.
            label: of the job's text.
            gone_labels: labels whose text this version does not have any more.
        """
        with self._write() as (txn, state):
            if txn.get(fmt.JOB) is None or version != state["version"] + 1:
                raise StoreError(f"{self.path.parent}: version {version} cannot follow version {state['version']}"
                                 " without a pending job", path=str(self.path.parent))
            for digest, delta in inputs_delta.items():
                self._count_input(txn, digest, label or "", delta, version)
            if label is not None:
                self._add_to_label(txn, label, d_tokens, d_sentences, version)
            for name in gone_labels:
                row = self._drop_label(txn, name)
                d_tokens, d_sentences = d_tokens - row["tokens"], d_sentences - row["sentences"]
            state.update(version=version, tokens=state["tokens"] + d_tokens,
                         sentences=state["sentences"] + d_sentences, words=self._next_word(txn))
            if generations is not None:
                _note_generations(state, generations)
            key = fmt.numbered_key(fmt.HISTORY, version)
            records.put(txn, key, history)
            txn.delete(fmt.JOB)

    def _count_input(self, txn: Txn, digest: str, label: str, delta: int, version: int) -> None:
        key = fmt.named_key(fmt.INPUT, digest)
        row = records.row(txn, key) or {"times": {}, "version": version}
        times = dict(row["times"])
        times[label] = max(0, times.get(label, 0) + delta)
        self._put_input(txn, key, times, version if delta > 0 else row["version"])

    @staticmethod
    def _put_input(txn: Txn, key: bytes, times: dict[str, int], version: int) -> None:
        if times := {label: n for label, n in times.items() if n > 0}:
            records.put(txn, key, {"times": times, "version": version})
        else:
            txn.delete(key)

    # labels

    def labels(self) -> dict[str, dict]:
        """Return every label that has text: name -> {"tokens", "sentences", "first", "last" (versions)}, oldest first."""
        with self._env.read() as txn:
            found = {key[1:].decode(): row for key, row in records.rows(txn, fmt.LABEL)}
        return dict(sorted(found.items(), key=lambda item: (item[1]["first"], item[0])))

    def _add_to_label(self, txn: Txn, label: str, d_tokens: int, d_sentences: int, version: int) -> None:
        key = fmt.named_key(fmt.LABEL, label)
        row = records.row(txn, key) or {"tokens": 0, "sentences": 0, "first": version}
        row = {**row, "tokens": row["tokens"] + d_tokens, "sentences": row["sentences"] + d_sentences, "last": version}
        if row["sentences"] or row["tokens"]:          # words may be left of which no sentence is
            records.put(txn, key, row)
        else:
            txn.delete(key)

    def _drop_label(self, txn: Txn, label: str) -> dict:
        """Forget a label and its inputs; return what it had."""
        key = fmt.named_key(fmt.LABEL, label)
        row = records.row(txn, key)
        if row is None:
            raise StoreError(f"{self.path.parent}: no label {label}", path=str(self.path.parent))
        txn.delete(key)
        for input_key, found in list(records.rows(txn, fmt.INPUT)):
            if label in found["times"]:
                self._put_input(txn, input_key, {**found["times"], label: 0}, found["version"])
        return row

    # the root as a whole

    def fill(self, rows: Iterator[tuple[bytes, bytes]], state: Mapping[str, int], generations: Sequence[int]) -> None:
        """Take over what another root had; REQUIRES a new root, of a store that is not there yet.

        Args:
            rows: (key, value) of its vocabulary, history, inputs, labels and routing table.
            state: version, tokens, sentences and words.
            generations: each shard's generation.
        """
        done = False
        while not done:
            with self._write() as (txn, ours):
                done = txn.put_some(rows)
                if done:
                    ours.update(state)
                    _note_generations(ours, generations)

    def note_generations(self, generations: Sequence[int]) -> None:
        """Record each shard's generation: one that is found below it later has lost commits."""
        with self._write() as (_, state):
            _note_generations(state, generations)

    def move_shard(self, shard: int, name: str, generation: int, away: bool = False) -> None:
        """Let the directory `name` hold shard number `shard` from now on; `away`: one in the folder of another machine."""
        with self._write() as (_, state):
            state["shards"][shard] = {"dir": name, "generation": generation, **({"away": True} if away else {})}

    # where n-grams go

    def routing(self) -> dict | None:
        """Return the routing table, None where there is none: {"words": [[word, shard] ...], "split": [word ...]}."""
        with self._env.read() as txn:
            row = records.row(txn, fmt.ROUTING)
            if row is None:
                return None
            return fmt.check_routing(row, len(records.current(txn, fmt.STATE)["shards"]), self._next_word(txn), txn.where)

    def set_routing(self, table: dict) -> None:
        """Record the routing table of a store whose shards are empty; StoreError if it has one."""
        with self._write() as (txn, state):
            if txn.get(fmt.ROUTING) is not None:
                raise StoreError(f"{self.path.parent}: has a routing table already", path=str(self.path.parent))
            records.put(txn, fmt.ROUTING, fmt.check_routing(table, len(state["shards"]), self._next_word(txn)))

    def reshard(self, places: Sequence[dict], table: dict | None) -> None:
        """Let other shards hold the counts of the committed version from now on: as many as `places`, dealt as `table` says.

        places: "dir" and "generation" of each.
        """
        with self._write() as (txn, state):
            if txn.get(fmt.JOB) is not None:
                raise StoreError(f"{self.path.parent}: a job is pending", path=str(self.path.parent))
            identity = {**records.required(txn, fmt.IDENTITY), "shards": len(places)}
            records.put(txn, fmt.IDENTITY, identity)
            txn.delete(fmt.ROUTING)
            if table is not None:
                records.put(txn, fmt.ROUTING, fmt.check_routing(table, len(places), self._next_word(txn)))
            state["shards"] = list(places)
        self.identity = identity

    def read_identity(self) -> None:
        """Read the identity again, which changes when a store is resharded."""
        with self._env.read() as txn:
            self.identity = records.required(txn, fmt.IDENTITY)

    # vocabulary

    def next_word(self) -> int:
        """Return the first word id that is not assigned."""
        with self._env.read() as txn:
            return self._next_word(txn)

    def _next_word(self, txn: Txn) -> int:
        key = txn.last_key(fmt.WORDS)
        if key is None:
            return FIRST_WORD
        n_words, = struct.unpack_from("<I", fmt.unpack_blob(key, txn.get(key), txn.where))
        return int.from_bytes(key[1:]) + n_words

    def add_words(self, first_id: int, blob: bytes) -> None:
        """Add a segment of the vocabulary (FORMAT.md, "Words"), durable on return; `first_id` must be next_word()."""
        fmt.check_words(blob)
        key = fmt.numbered_key(fmt.WORDS, first_id)
        with self._write() as (txn, _):
            expected = self._next_word(txn)
            if first_id != expected:
                raise ValueError(f"the first word id is {first_id}, expected {expected}")
            txn.put(key, fmt.pack_blob(key, blob))

    def replace_words(self, segments: Iterable[tuple[int, bytes]]) -> None:
        """Put other segments in the place of some that are there, in one transaction; the number of words may not change."""
        changed = [(fmt.numbered_key(fmt.WORDS, first), blob, len(fmt.check_words(blob))) for first, blob in segments]
        if not changed:
            return
        with self._write() as (txn, _):
            for key, blob, n_words in changed:
                found = len(fmt.check_words(fmt.unpack_blob(key, txn.get(key), txn.where)))
                if found != n_words:
                    raise ValueError(f"{fmt.key_name(key)}: {n_words} words in place of {found}")
                txn.put(key, fmt.pack_blob(key, blob))

    def words(self) -> Iterator[tuple[int, bytes]]:
        """Yield (first id, segment) in id order, of one commit."""
        with self._env.read() as txn:
            for key, value in txn.scan(fmt.WORDS):
                yield int.from_bytes(key[1:]), bytes(fmt.unpack_blob(key, value, txn.where))

    def bytes(self) -> dict[str, int]:
        """Return {"file": length of the data file, "live": bytes of the pages in use}."""
        return self._env.bytes()

    def copy_to(self, path: str | Path) -> None:
        """Write a compact copy of this root into the new directory `path`, durable and ready to be opened."""
        with self._turn:
            self._env.copy_to(path, lambda txn: records.put_current(txn, fmt.STATE, records.required(txn, fmt.STATE)))

    def close(self) -> None:
        """Close the root."""
        self._env.close()


def _note_generations(state: dict, generations: Sequence[int]) -> None:
    """Write the generation of each shard into a state."""
    for place, generation in zip(state["shards"], generations, strict=True):
        place["generation"] = generation

"""A store behind servers: RemoteDirectory, RemoteRoot and RemoteShard stand for StoreDirectory, Root and Shard.

Jobs cannot tell the difference. What reads much runs where the store is (calls.py); see root_service.py and
shard_service.py for the other end.
"""
from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from kvps.errors import ArgumentError, KvpsError, StoreError, StoreLocked
from kvps.ps import calls
from kvps.ps.away import NewShard, chunk_arrays, grouped
from kvps.ps.connection import Connection
from kvps.ps.protocol import ProtocolError
from kvps.ps.remote import connected, endpoint
from kvps.store import files, layout, rebuild

KEEP_ALIVE_S = 1.0
SILENT_S = 2.5                 # who says so much less often than it should is perhaps gone: wait until that is known
GRACE_S = 3.5                  # at least so long a client waits for a session: longer than it takes to be found silent
RETRY_S = 0.1
HASTE_S = 5.0                  # who wants to stop waits so long for a server that is gone
AWAY = "@"                     # begins the address of a shard that is on another machine than its root
MAX_RECORD_BYTES = 5 << 20     # of a packed job: at its commit it says of each input twice as much, in one message

T = TypeVar("T")


class RemoteRoot:
    """The root of a store; each call asks its server."""

    def __init__(self, connection: Connection, identity: dict) -> None:
        """Take the connection to the root's server."""
        self.connection = connection
        self.identity = identity

    def _read(self, method: str, **arguments: Any) -> Any:
        return calls.heard(self.connection, self.connection.call("root", {"method": method, "arguments": arguments}))

    def _change(self, method: str, **arguments: Any) -> None:
        fields, arrays = calls.packed(arguments)
        if method == "begin_job" and any(array.nbytes > MAX_RECORD_BYTES for array in arrays.values()):
            raise ArgumentError(f"{len(arguments['record']['inputs']):,} inputs are too many for one job over a server; give them "
                                "in several, or join files")
        self.connection.call("root-change", {"method": method, **fields}, arrays)

    def state(self) -> dict:
        """As Root.state()."""
        return self._read("state")

    def history(self) -> list[dict]:
        """As Root.history()."""
        return self._read("history")

    def counted(self, digest: str) -> int | None:
        """As Root.counted()."""
        return self._read("counted", digest=digest)

    def inputs(self) -> dict[str, dict]:
        """As Root.inputs()."""
        return self._read("inputs")

    def job(self) -> dict | None:
        """As Root.job()."""
        return self._read("job")

    def job_id(self) -> str | None:
        """As Root.job_id()."""
        return self._read("job_id")

    def labels(self) -> dict[str, dict]:
        """As Root.labels()."""
        return self._read("labels")

    def next_word(self) -> int:
        """As Root.next_word()."""
        return self._read("next_word")

    def bytes(self) -> dict[str, int]:
        """As Root.bytes()."""
        return self._read("bytes")

    def routing(self) -> dict | None:
        """As Root.routing()."""
        return self._read("routing")

    def set_routing(self, table: dict) -> None:
        """As Root.set_routing()."""
        self._change("set_routing", table=table)

    def move_shard(self, shard: int, name: str, generation: int, away: bool = False) -> None:
        """As Root.move_shard(), of shards that lie on other machines."""
        self._change("move_shard", shard=shard, name=name, generation=generation, away=away)

    def claim(self) -> None:
        """Do nothing: the session has its epoch."""

    def begin_job(self, record: dict) -> None:
        """As Root.begin_job()."""
        self._change("begin_job", record=record)

    def clear_job(self) -> None:
        """As Root.clear_job()."""
        self._change("clear_job")

    def commit_job(self, version: int, d_tokens: int, d_sentences: int, history: dict, inputs_delta: Mapping[str, int], *,
                   generations: Sequence[int] | None = None, label: str | None = None, gone_labels: Sequence[str] = ()) -> None:
        """As Root.commit_job()."""
        self._change("commit_job", version=version, d_tokens=d_tokens, d_sentences=d_sentences, history=history,
                     inputs_delta=dict(inputs_delta), generations=generations and list(generations), label=label,
                     gone_labels=list(gone_labels))

    def words(self) -> Iterator[tuple[int, bytes]]:
        """As Root.words()."""
        first, more = 0, True
        while more:
            reply = self.connection.call("words", {"first": first})
            blob, more, at = reply.arrays["segments"].tobytes(), reply.call["more"], 0
            for start, n in zip(reply.arrays["first"].tolist(), reply.arrays["bytes"].tolist(), strict=True):
                yield start, blob[at:at + n]
                first, at = start + 1, at + n

    def add_words(self, first_id: int, blob: bytes) -> None:
        """Do nothing: share_words() has stored them."""

    def share_words(self, segment: bytes) -> np.ndarray:
        """Return the store's ids of the words of a segment, uint32; new ones are stored first."""
        return self.connection.call("share-words", arrays={"segment": np.frombuffer(segment, np.uint8)}).arrays["ids"]


class RemoteShard:
    """One shard; each call asks its server. Calls from several threads take turns."""

    def __init__(self, connection: Connection, number: int) -> None:
        """Take the connection to the shard's server."""
        self.connection, self.shard = connection, number

    def fence(self) -> None:
        """Let the shard take nothing any more from earlier sessions."""
        self.connection.call("fence")

    def splits(self, job: str) -> dict[int, dict]:
        """As Shard.splits()."""
        return dict(calls.heard(self.connection, self.connection.call("splits", {"job": job})))

    def begin_apply(self, job: str, split: int, version: int, chunks: Sequence[tuple[bytes, int]], row: dict, *,
                    label: str | None = None) -> Callable[[], bool]:
        """Send a split on its way; what is returned waits until it is there, and returns what Shard.apply() does."""
        parts = [chunk_arrays(group) for group in grouped(chunks, lambda chunk: len(chunk[0]))]
        last = {"job": job, "split": split, "version": version, "row": row, "label": label, "staged": len(parts) - 1}

        def send() -> int:
            for number, part in enumerate(parts[:-1]):
                self.connection.call("stage", {"job": job, "split": split, "version": version, "part": number}, part)
            return self.connection.begin("apply", last, parts[-1])

        sent = send()

        def finish() -> bool:
            reply = self.connection.wait(sent).call
            while "missing" in reply:              # the server was started again in the middle
                reply = self.connection.wait(send()).call
            return reply["applied"]

        return finish

    def drop(self, job: str, version: int) -> None:
        """As Shard.drop()."""
        self.connection.call("drop", {"job": job, "version": version})

    def mark(self, labels: Iterable[str], version: int) -> None:
        """As Shard.mark()."""
        self.connection.call("mark", {"labels": list(labels), "version": version})

    def sweep(self, version: int, job: str | None) -> int:
        """As Shard.sweep()."""
        return self.connection.call("sweep", {"version": version, "job": job}).call["removed"]

    def run(self, function: Callable[..., T], *, here: Mapping[str, Any] | None = None, **arguments: Any) -> T:
        """As Shard.run(): `here` stays here, so means nothing there."""
        return calls.run(self.connection, function, arguments)

    def facts(self) -> dict:
        """Return its "generation", "file" and "live" [bytes], "runs" and "keys"."""
        return self.connection.call("facts").call

    @property
    def generation(self) -> int:
        """As Shard.generation."""
        return self.facts()["generation"]


class RemoteDirectory:
    """A store that a server serves, open. Made by open_place()."""

    elsewhere = True               # as StoreDirectory's

    def __init__(self, address: str, *, keys: str | Path | None = None, writable: bool = False, wait: float = 0.0,
                 command: str = "", make: dict[str, Any] | None = None, retry_s: float = 2.0, patience_s: float = 60.0,
                 client: bytes | None = None) -> None:
        """Connect, and begin a session if `writable`.

        Args:
            address: kvps://HOST:PORT, or kvps:///FOLDER/SOCKET, or ray://[RESOURCE@][HOST:PORT]/FOLDER.
            keys: our folder of keys, for a server that has some.
            wait: how long a writer waits for another one [s].
            command: what the writer is about to do, for the messages of others.
            make: "order", "shards" and "tokenizer" of the store, where there is none yet.
            retry_s, patience_s: as Connection's.
            client: 16 bytes, the name that a worker had before it was started again; what it has claimed is its own.

        Raises:
            Unreachable: no answer. StoreLocked: another client is writing. StoreError: there is no store yet.
        """
        self.address = self.path = address
        self.writable = writable
        self._options: dict[str, Any] = {"keys": keys, "retry_s": retry_s, "patience_s": patience_s}
        self._client, self._stack = client or os.urandom(16), contextlib.ExitStack()
        self._ended = threading.Event()
        self._keeping: threading.Thread | None = None
        self.connection = self._connected(endpoint(address), make=make is not None)
        try:
            facts = self._facts(make)
            self.identity = facts["identity"]
            self.root = RemoteRoot(self.connection, self.identity)
            self._places = [self._place(there) for there in facts["shards"]]
            self.shards = [RemoteShard(self._connected(place), number) for number, place in enumerate(self._places)]
            if writable:
                self._begin(command, wait)
        except BaseException:
            self.close()
            raise

    def _facts(self, make: dict[str, Any] | None) -> dict:
        """Return what the server says of the store, once there is one."""
        while True:
            try:
                facts = self.connection.call("store").call
            except ProtocolError as exc:
                raise StoreError(f"{self.address}: a server of another kind answers there, perhaps that of a shard; the address of "
                                 "the store is the one that kvps serve printed", path=self.address) from exc
            if "empty" not in facts:
                self.connection.retry_s = self._options["retry_s"]
                return facts
            if make is None:
                raise StoreError(f"{self.address}: there is no store yet; kvps train {self.address} makes it", path=self.address,
                                 empty=True)
            with contextlib.suppress(ProtocolError):           # another client was faster: there is nothing more to make
                self.connection.call("make", make)
            self.connection.retry_s = min(self.connection.retry_s, RETRY_S)        # its server ends, and others begin
            time.sleep(RETRY_S)

    def _connected(self, place: str, **more: bool) -> Connection:
        connection = connected(place, client=self._client, **self._options, **more)
        self._stack.callback(connection.close)
        return connection

    def _place(self, address: str) -> str:
        """Return where a shard is served; a server that other machines reach does not know by which name they do."""
        if address.startswith(AWAY):
            return address.removeprefix(AWAY)
        if address.startswith("#"):            # on Ray
            return self.connection.address + address
        host, _, _ = self.connection.address.removeprefix("tcp://").rpartition(":")
        return f"tcp://{host}:{address.rpartition(':')[2]}" if address.startswith("tcp://") else address

    # the session of a writer

    def _begin(self, command: str, wait: float) -> None:
        deadline = time.monotonic() + max(wait, GRACE_S)
        while True:
            try:
                epoch = self.connection.call("begin", {"command": command}).call["epoch"]
                break
            except StoreLocked as exc:
                if time.monotonic() > deadline and not getattr(exc, "silent_s", 0) > SILENT_S:
                    raise
                time.sleep(RETRY_S)
        self.take_part(epoch)
        for shard in self.shards:
            shard.fence()
        self._alive = self._connected(self.connection.address)
        self._alive.epoch, self._alive.retry_s, self._alive.patience_s = epoch, min(self._alive.retry_s, KEEP_ALIVE_S / 2), SILENT_S
        self._keeping = threading.Thread(target=self._keep_alive, args=(command,), name="session", daemon=True)
        self._keeping.start()

    def take_part(self, epoch: int) -> None:
        """Write in the session of this epoch: our own, or, of a worker, another client's."""
        for connection in (self.connection, *(shard.connection for shard in self.shards)):
            connection.epoch = epoch

    def _keep_alive(self, command: str) -> None:
        """Say that we are alive until the end; a server that is gone, or has given us up, is noticed by the work itself."""
        while not self._ended.wait(KEEP_ALIVE_S):
            with contextlib.suppress(KvpsError):
                self._alive.call("renew", {"command": command})

    # what StoreDirectory has

    def run(self, function: Callable[..., T], *, here: Mapping[str, Any] | None = None, **arguments: Any) -> T:
        """As StoreDirectory.run(): `here` stays here, so means nothing there."""
        return calls.run(self.connection, function, arguments)

    @property
    def spool(self) -> Path:
        """Where copies of text are kept that can be read only once: on this machine, in the user's cache."""
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("kvps")) / self.identity["uuid"]
        with files.reporting(folder):
            folder.mkdir(files.DIR_MODE, parents=True, exist_ok=True)
        return folder / "spool"

    def free_bytes(self) -> int:
        """As StoreDirectory.free_bytes()."""
        return self.connection.call("store").call["free_bytes"]

    def reseal(self) -> None:
        """As StoreDirectory.reseal()."""
        self.connection.call("reseal")

    def generations(self) -> list[int]:
        """As StoreDirectory.generations()."""
        return [shard.generation for shard in self.shards]

    def bytes(self) -> dict[str, int]:
        """As StoreDirectory.bytes()."""
        parts = [self.root.bytes(), *(shard.facts() for shard in self.shards)]
        return {key: sum(part[key] for part in parts) for key in ("file", "live")}

    def fence(self) -> None:
        """Take nothing any more of what was sent before now and is still on its way, in a session of ours."""
        self.take_part(self.connection.call("fence").call["epoch"])
        self._alive.epoch = self.connection.epoch
        for shard in self.shards:
            shard.fence()

    def new_shard(self, number: int) -> NewShard:
        """Begin to make a shard again that lies on another machine; in a session of ours."""
        place = self.root.state()["shards"][number]
        return NewShard(self._connected(self._places[number]), rebuild.new_identity(self.identity, number),
                        layout.later(place["dir"]), above=place["generation"] + rebuild.AHEAD, epoch=self.connection.epoch)

    def put_in_place(self, new: NewShard, n_words: int, version: int) -> None:
        """Let a shard that was made again be the one that the root names."""
        self.root.move_shard(new.shard, new.name, new.finish(n_words, version), away=True)
        self.fence()                           # under another epoch its server asks the root where it is

    def hasten(self) -> None:
        """Give up soon on servers that give no answer: the user wants to stop."""
        for connection in (self.connection, *(shard.connection for shard in self.shards)):
            connection.patience_s = min(connection.patience_s, HASTE_S)

    def wire_bytes(self) -> tuple[int, int]:
        """Return how many bytes of messages were sent and received, all connections together."""
        all_of_them = (self.connection, *(shard.connection for shard in self.shards))
        return sum(one.sent_bytes for one in all_of_them), sum(one.received_bytes for one in all_of_them)

    # what workers share

    def at_work(self) -> tuple[int, str | None]:
        """Return the epoch of the session that is at work, and the id of the job in it, if there is one."""
        reply = self.connection.call("join").call
        return reply["epoch"], reply["job"]

    def claim(self, job: str, split: int) -> bool:
        """Return whether we should count a split, and no other worker."""
        return self.connection.call("claim", {"job": job, "split": split}).call["yours"]

    def release(self) -> None:
        """Leave the splits that we have claimed and not counted to others."""
        self.connection.call("release")

    def close(self) -> None:
        """End the session, and close all connections."""
        with self._stack:
            self._ended.set()
            if self._keeping is not None:
                self._keeping.join()               # or it would begin the session again
                self._keeping = None
                with contextlib.suppress(KvpsError):
                    self.connection.patience_s = min(self.connection.patience_s, SILENT_S)
                    self.connection.call("end")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

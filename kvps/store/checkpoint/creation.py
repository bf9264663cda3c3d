"""Make a checkpoint of a committed version of a store, which may be at work.

    STEP 1  open a snapshot: all shards at one version, beside the root's rows of that version
    STEP 2  put the chunks and words that the depot does not have yet, each named by its hash
    STEP 3  make them durable, then write the description, which lists them: from here on there is a checkpoint

Killed before the end of step 3 there is none; what was put is used by the next one, or goes when that is done.
Nothing here keeps a writer from working: a checkpoint needs no owner lock, only that of its depot.
"""
from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from kvps.errors import ArgumentError, StoreError, StoreFull
from kvps.pools import spread
from kvps.store import files
from kvps.store import format as fmt
from kvps.store.checkpoint.catalog import Place, Progress, default_place, no_progress, read_all
from kvps.store.checkpoint.description import IDENTITY, KIND, STATE, Checkpoint, Kept, Object
from kvps.store.checkpoint.pruning import beyond, collect
from kvps.store.depot import WORKERS, Depot, object_name, open_depot
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.store.runs import Run, RunTotal
from kvps.store.shard import Snapshot
from kvps.units import check_name

VIEW_TRIES = 100                 # a retry means that a version was committed while the root's rows were read


@dataclasses.dataclass
class _View:
    """A store at one committed version."""

    snapshot: StoreSnapshot
    history: list[dict]
    inputs: dict[str, dict]
    labels: dict[str, dict]
    words: list[tuple[int, bytes]]


@contextlib.contextmanager
def _view(store: StoreDirectory) -> Iterator[_View]:
    """STEP 1: give the last committed version of a store with its root's rows, whatever a writer does meanwhile."""
    for _ in range(VIEW_TRIES):
        with store.snapshot() as snapshot:
            root = store.root
            history, inputs, labels = root.history(), root.inputs(), root.labels()
            words = [(first, segment) for first, segment in root.words() if first < snapshot.state["words"]]
            if store.root is root and root.state()["version"] == snapshot.version:
                yield _View(snapshot, history, inputs, labels, words)
                return
    raise StoreError(f"{store.path}: versions are committed faster than they can be read", path=str(store.path))


def create(store: StoreDirectory, name: str | None = None, *, to: Place | None = None, keep: int | None = None,
           wait: float = 0.0, progress: Progress = no_progress) -> dict:
    """Make a checkpoint of the last committed version of a store, which may be at work.

    Args:
        store: open, for reading or writing.
        name: "v" and the version in six digits by default.
        to: a directory or URL; STORE/checkpoints by default.
        keep: delete the oldest checkpoints of this store beyond so many.
        wait: for another process that makes or deletes checkpoints at this place [s].

    Returns:
        Checkpoint.summary() with "place", "existed" (the same version was there under this name: nothing was done) and
        "deleted" (names).

    Raises:
        StoreFull: make room and do it again: what is complete is not sent again.
        StoreError: another checkpoint has the name. CorruptionError: the store is damaged; there is no checkpoint.
    """
    if name is not None:
        check_name("checkpoint", name)
    if keep is not None and keep < 1:
        raise ArgumentError(f"{keep} checkpoints cannot be kept, expected 1 or more")
    depot = open_depot(default_place(store.path) if to is None else to, create=True)
    with depot.locked("checkpoint create", wait):
        depot.sweep()
        with _view(store) as view:
            made, existed = _create(store, view, depot, name, progress)
        deleted = [] if keep is None else beyond(depot, made, keep)
        if depot.has_lock and not deleted:
            collect(depot)
    return {**made.summary(), "place": depot.place, "existed": existed, "deleted": deleted}


def _create(store: StoreDirectory, view: _View, depot: Depot, name: str | None, progress: Progress) -> tuple[Checkpoint, bool]:
    """Steps 2 and 3; return the checkpoint and whether it was there."""
    version, uuid = view.snapshot.version, store.identity["uuid"]
    ledgers = _ledgers(store, view)
    name = name or _default_name(view, ledgers)
    earlier, damaged = read_all(depot)
    if name in damaged:
        raise damaged[name]
    for other in earlier:
        if other.name == name:
            if (other.uuid, other.state["version"], other.history, other.ledgers) != (
                    uuid, version, _plain(view.history), ledgers and _plain(ledgers)) or (
                    ledgers and _runs_of(other) != [[_identity(number, run) for run in snap.runs(version)]
                                                    for number, snap in enumerate(view.snapshot.shards)]):
                raise StoreError(f"{depot.place}: has a checkpoint {name} already, of version {other.state['version']} of store "
                                 f"{other.uuid}; choose another name, or delete that one first", path=depot.place)
            return other, True
    sender = _Sender(depot, progress, [other for other in earlier if other.uuid == uuid],
                     sum(run.bytes for snap in view.snapshot.shards for run in snap.runs(version))
                     + sum(len(segment) for _, segment in view.words))
    words, shards = sender.send(view, store.identity["order"])
    state = {field: view.snapshot.state[field] for field in STATE}
    identity = {k: v for k, v in store.identity.items() if k in (*IDENTITY, *KIND, "closed", "restored_from")}
    identity["shards"] = len(view.snapshot.shards)
    # Version 0 has no words yet: a store of it deals anew.
    routing = view.snapshot.routing if version else None
    made = Checkpoint(name, time.time(), uuid, identity, state, view.history, view.inputs, view.labels, words, shards,
                      sender.total, sender.new_bytes, routing, ledgers)
    data = made.pack()
    with _inread_all(depot, len(data)):
        depot.write_description(name, data, {found for found, _ in made.objects()} - sender.listed)
    if not depot.has_lock:
        gone = {found for found, _ in made.objects()} - depot.objects().keys()
        if gone:
            depot.remove_description(name)
            raise StoreError(f"{depot.place}: {len(gone)} objects were deleted while this checkpoint was made; run it again, and "
                             "let one process write there at a time", path=depot.place)
    return made, False


def _default_name(view: _View, ledgers: list[dict] | None) -> str:
    """Return v and the version; a table has none, so g and how many transactions its shards have seen."""
    if ledgers is None:
        return f"v{view.snapshot.version:06d}"
    return f"g{sum(snap.generation for snap in view.snapshot.shards):09d}"


def _ledgers(store: StoreDirectory, view: _View) -> list[dict] | None:
    """Return what a table's shards know of their clients, as of the snapshot; None for a store of n-grams."""
    if "table" not in store.identity:
        return None
    return [{"most": snap.most, "clients": snap.clients()} for snap in view.snapshot.shards]


def _runs_of(checkpoint: Checkpoint) -> list[list[tuple]]:
    return [[_identity(number, kept.run) for kept in runs] for number, runs in enumerate(checkpoint.shards)]


def _plain(rows: list[dict]) -> list[dict]:
    """Return rows as a description gives them back."""
    return fmt.unpack_row(b"", fmt.pack_row(b"", {"rows": rows}))["rows"]


@contextlib.contextmanager
def _inread_all(depot: Depot, needs: int) -> Iterator[None]:
    """Let a full disk say what is needed in all, and not for one file."""
    try:
        yield
    except StoreFull as exc:
        raise files.disk_full(depot.place, needs) from exc


class _Sender:
    """Puts what a depot does not have yet."""

    def __init__(self, depot: Depot, progress: Progress, earlier: list[Checkpoint], total: int) -> None:
        self.depot, self._progress, self.total = depot, progress, total
        # Objects that are there and whose entries in their folders are durable.
        self.listed = {name for other in earlier for name, _ in other.objects()}
        self._known = {_identity(number, kept.run): kept.objects
                       for other in earlier for number, runs in enumerate(other.shards) for kept in runs}
        self._have = depot.objects()
        self._done = self.new_bytes = 0

    def send(self, view: _View, order: int) -> tuple[list[tuple[int, Object]], list[list[Kept]]]:
        """STEP 2; return segments and runs as the description lists them."""
        words: list[tuple[int, Object]] = []
        shards: list[list[Kept]] = []
        with contextlib.closing(self._new(view, order, words, shards)) as new:
            for n_bytes in spread(self._put, new, WORKERS):
                self.new_bytes += n_bytes
                self._advance(n_bytes)
        return words, shards

    def _new(self, view: _View, order: int, words: list[tuple[int, Object]], shards: list[list[Kept]]) -> Iterator[Object]:
        """Yield what is to be put, and list everything in `words` and `shards`."""
        for first, segment in view.words:
            name = object_name(segment)
            words.append((first, (name, len(segment))))
            yield from self._unless_there(name, segment)
        for number, snap in enumerate(view.snapshot.shards):
            shards.append([])
            for run in snap.runs(view.snapshot.version):
                objects = self._known.get(_identity(number, run), [])
                if objects and all(self._have.get(name) == n_bytes for name, n_bytes in objects):
                    self._advance(run.bytes)
                else:
                    objects = []
                    for value in _values(snap, run, order):
                        name = object_name(value)
                        objects.append((name, len(value)))
                        yield from self._unless_there(name, value)
                shards[-1].append(Kept(dataclasses.replace(run, until=None), objects))

    def _unless_there(self, name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
        if self._have.get(name) == len(data):
            self._advance(len(data))
        else:
            self._have[name] = len(data)
            self.listed.discard(name)
            yield name, data

    def _put(self, item: tuple[str, bytes]) -> int:
        name, data = item
        with _inread_all(self.depot, self.total - self._done):
            self.depot.put(name, data)
        return len(data)

    def _advance(self, n_bytes: int) -> None:
        self._done += n_bytes
        self._progress(self._done, self.total)


def _identity(shard: int, run: Run) -> tuple:
    """Return what tells a run of one store from all others that it ever had."""
    return shard, run.id, run.digest, run.n_chunks, run.n_keys, run.bytes


def _values(snap: Snapshot, run: Run, order: int) -> Iterator[bytes]:
    """Yield the chunks of a run as they lie in LMDB, verified; CorruptionError unless they are all that the manifest says."""
    total = RunTotal()
    for index in range(run.n_chunks):
        key = fmt.chunk_key(run.id, index)
        payload, n_keys = snap.chunk(run, index)
        value = fmt.pack_chunk(key, order, n_keys, payload)
        payload.release()
        total.add(key, value, n_keys)
        yield value
    total.refuse_other(run, f"run {run.id} in the store")

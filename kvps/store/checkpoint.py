"""Checkpoints: a committed version of a store, kept in a depot and made into a store again.

    STEP 1  open a snapshot: all shards at one version, beside the root's rows of that version
    STEP 2  put the chunks and words that the depot does not have yet, each named by its hash
    STEP 3  make them durable, then write the description, which lists them: from here on there is a checkpoint

Killed before the end of step 3 there is none; what was put is used by the next one, or goes when that is done.
Nothing here keeps a writer from working: a checkpoint needs no owner lock, only that of its depot.
The bytes are described in CHECKPOINT.md.
"""
from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from kvps.errors import ArgumentError, CorruptionError, StoreError, StoreFull, VersionMismatch
from kvps.store import directory, files, lock, seal
from kvps.store import format as fmt
from kvps.store.depot import Depot, ahead, is_object_name, is_url, object_name, open_depot
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.store.root import FIRST_WORD, Root
from kvps.store.shard import DIRTY_BYTES, MOST, Run, Shard, Snapshot, _run_row
from kvps.store.transaction import Txn
from kvps.units import check_name

FOLDER = "checkpoints"           # STORE/checkpoints, where no other place is named
CHECKPOINT_FORMAT = 1            # do not change without a new section in CHECKPOINT.md
IDENTITY = ("order", "shards", "created")
KIND = ("tokenizer", "table")    # of a store of n-grams, of a table: one of them
STATE = ("version", "tokens", "sentences", "words")
VIEW_TRIES = 100                 # a retry means that a version was committed while the root's rows were read

Place = str | os.PathLike[str]
Progress = Callable[[int, int], None]          # (done, total) [bytes]
Object = tuple[str, int]                       # name, bytes
T = TypeVar("T")


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A run in a depot: what the manifest said about it, and its chunks in order."""

    run: Run
    objects: list[Object]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, as its description says."""

    name: str
    created: float                     # seconds since 1970
    uuid: str                          # of the store
    identity: dict                     # its order, shards, tokenizer (of a table: table), created
    state: dict                        # its version, tokens, sentences, words
    history: list[dict]
    inputs: dict[str, dict]
    labels: dict[str, dict]
    words: list[tuple[int, Object]]    # first id and object of each segment of the vocabulary
    shards: list[list[Kept]]           # the runs that readers of this version see
    bytes: int                         # of all its objects
    new_bytes: int                     # of those that it put
    ledgers: list[dict] | None = None  # of a table, by shard: its clients' rows and its "most"; None for a store of n-grams

    def objects(self) -> Iterator[Object]:
        """Yield every object that it needs."""
        for _, found in self.words:
            yield found
        for kept in self.runs():
            yield from kept.objects

    def runs(self) -> Iterator[Kept]:
        """Yield the runs of all shards."""
        for runs in self.shards:
            yield from runs

    def summary(self) -> dict:
        """Return what `kvps checkpoint list --json` prints."""
        return {"name": self.name, "version": self.state["version"], "created": self.created, "store": self.uuid,
                "tokens": self.state["tokens"], "sentences": self.state["sentences"], "bytes": self.bytes,
                "new_bytes": self.new_bytes}

    def pack(self) -> bytes:
        """Return the description (CHECKPOINT.md, "Description")."""
        row = {name: getattr(self, name) for name in ("name", "created", "uuid", "identity", "state", "history", "inputs",
                                                      "labels", "words", "bytes", "new_bytes")}
        if self.ledgers is not None:
            row["ledgers"] = self.ledgers
        row["shards"] = [[{**_run_row(kept.run), "objects": kept.objects} for kept in runs] for runs in self.shards]
        return fmt.pack_row(_key(self.name), {"checkpoint": CHECKPOINT_FORMAT, "format": fmt.FORMAT_VERSION, **row})


def _key(name: str) -> bytes:
    """Return what stands for a record's key in the checksum of a description: one under another name is refused."""
    return b"checkpoint " + name.encode()


def unpack(name: str, data: bytes, place: str) -> Checkpoint:
    """Return the checkpoint that a description at `place` describes.

    Raises:
        CorruptionError: it is damaged, not whole, or not of this name. VersionMismatch: a format of another kvps.
    """
    def damaged(what: str, found: object = None, expected: object = None) -> CorruptionError:
        return CorruptionError(f"{place}: {what}; checkpoint {name} is damaged: use another one, and delete it", path=place,
                               key=name, found=found, expected=expected)

    try:
        row = fmt.unpack_row(_key(name), data)
    except CorruptionError as exc:
        raise damaged(f"found {exc.found}, expected {exc.expected}", exc.found, exc.expected) from exc
    for field, ours in (("checkpoint", CHECKPOINT_FORMAT), ("format", fmt.FORMAT_VERSION)):
        if row.get(field) != ours:
            raise VersionMismatch(f"{place}: has {field} format {row.get(field)}, this kvps reads {ours}; use the kvps that "
                                  "wrote it", path=place, found=row.get(field), expected=ours)
    try:
        found = _from_row(row)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise damaged(f"a field is missing or not what it should be ({type(exc).__name__}: {exc})") from exc
    if found.name != name:
        raise damaged(f"describes {found.name}", found.name, name)
    return found


def _from_row(row: dict) -> Checkpoint:
    """Return a description's checkpoint; KeyError, TypeError or ValueError where a field is not what it should be."""
    identity, state = ({name: row[part][name] for name in names} for part, names in (("identity", IDENTITY), ("state", STATE)))
    for number in (*state.values(), row["bytes"], row["new_bytes"]):
        _natural(number)
    _natural(identity["order"], 2**8)
    if sum(kind in row["identity"] for kind in KIND) != 1:
        raise ValueError("neither a store of n-grams nor a table")
    ledgers = [_ledger(found) for found in row["ledgers"]] if "table" in row["identity"] else None
    if ledgers is not None and len(ledgers) != identity["shards"]:
        raise ValueError(f"{len(ledgers)} ledgers, expected {identity['shards']}")
    if len(row["shards"]) != identity["shards"] or not 1 <= identity["shards"] <= directory.MAX_SHARDS:
        raise ValueError(f"{len(row['shards'])} shards, expected {identity['shards']}")
    words = [(_natural(first, 2**32), _object(found)) for first, found in row["words"]]
    shards = [[_kept(run, state["version"]) for run in runs] for runs in row["shards"]]
    for kind, rows in ((fmt.INPUT, row["inputs"]), (fmt.LABEL, row["labels"])):
        for name in rows:
            fmt.named_key(kind, name)
    return Checkpoint(
        name=row["name"], created=float(row["created"]), uuid=str(row["uuid"]), identity={**row["identity"]}, state=state,
        history=[{**version, "version": _natural(version["version"], 2**32)} for version in row["history"]],
        inputs={digest: {**found} for digest, found in row["inputs"].items()},
        labels={label: {**found} for label, found in row["labels"].items()}, words=words, shards=shards, bytes=row["bytes"],
        new_bytes=row["new_bytes"], ledgers=ledgers)


def _ledger(row: dict) -> dict:
    for name, client in row["clients"].items():
        fmt.named_key(fmt.CLIENT, name)
        _natural(client["sequence"])
    return {"most": _natural(row["most"], MOST + 1), "clients": {name: {**client} for name, client in row["clients"].items()}}


def _kept(row: dict, version: int) -> Kept:
    run = Run(_natural(row["id"]), _natural(row["version"], version + 1), row["job"], _natural(row["chunks"]),
              _natural(row["keys"]), _natural(row["bytes"]), row["label"], None, row["digest"])
    objects = [_object(found) for found in row["objects"]]
    if len(objects) != run.n_chunks or sum(n_bytes for _, n_bytes in objects) != run.bytes:
        raise ValueError(f"run {run.id} has {len(objects)} objects, expected {run.n_chunks} of {run.bytes} bytes")
    return Kept(run, objects)


def _object(pair: list) -> Object:
    name, n_bytes = pair
    if not is_object_name(name):
        raise ValueError(f"{str(name)[:80]!r} is not the name of an object")
    return name, _natural(n_bytes)


def _natural(number: object, limit: int = 2**63) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < limit:
        raise ValueError(f"{str(number)[:80]} is not a number that can be here")
    return number


# Places

def default_place(store: Place) -> Path:
    """Return STORE/checkpoints; StoreError where it is a link that leads elsewhere."""
    place = Path(os.path.abspath(store)) / FOLDER
    files.refuse_symlink(place)
    return place


def depot_of(store: Place | None, to: Place | None = None, source: Place | None = None) -> tuple[Depot | None, str | None]:
    """Return the depot to look at, and the uuid of the store whose checkpoints alone are meant, None for all.

    Args:
        store: whose own folder is meant, where neither `to` nor `source` is given.
        to: where checkpoints of this store were put.
        source: a depot, whichever stores it has checkpoints of; stands in for a store that is gone.

    Returns:
        No depot where a store has never had a checkpoint.
    """
    if source is not None:
        return open_depot(source), None
    if store is None:
        raise ArgumentError("name a store, or a place with --from")
    path = Path(store)
    if to is not None:
        if not seal.exists(path):
            raise StoreError(f"{path}: no such store; give the place of its checkpoints with --from", path=str(path))
        return open_depot(to), seal.read(path)["uuid"]
    place = default_place(path)
    if files.exists(place):
        return open_depot(place), None
    if not seal.exists(path):
        raise StoreError(f"{path}: no such store, and no checkpoints in it", path=str(path))
    return None, None


def _opened(depot: Depot | Place | None) -> Depot | None:
    """Return the depot at a place that may be one already, None where there is no such folder."""
    if depot is None or isinstance(depot, Depot):
        return depot
    return open_depot(depot) if is_url(depot) or files.exists(depot) else None


def _read(depot: Depot, name: str) -> Checkpoint | None:
    """Return a checkpoint, None where there is none of this name."""
    data = depot.read_description(check_name("checkpoint", name))
    return None if data is None else unpack(name, data, depot.where_description(name))


def _all(depot: Depot) -> tuple[list[Checkpoint], dict[str, CorruptionError | VersionMismatch]]:
    """Return the checkpoints of a depot, oldest first, and what is wrong with those that cannot be read, by name."""
    sound, damaged = [], {}
    for name in depot.names():
        try:
            found = _read(depot, name)
        except (CorruptionError, VersionMismatch) as exc:
            damaged[name] = exc
        else:
            if found is not None:              # else deleted this instant
                sound.append(found)
    return sorted(sound, key=lambda found: (found.created, found.state["version"], found.name)), damaged


def _there(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"


# Create

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
        deleted = [] if keep is None else _beyond(depot, made, keep)
        if depot.has_lock and not deleted:
            _collect(depot)
    return {**made.summary(), "place": depot.place, "existed": existed, "deleted": deleted}


def _create(store: StoreDirectory, view: _View, depot: Depot, name: str | None, progress: Progress) -> tuple[Checkpoint, bool]:
    """Steps 2 and 3; return the checkpoint and whether it was there."""
    version, uuid = view.snapshot.version, store.identity["uuid"]
    ledgers = _ledgers(store, view)
    name = name or _default_name(view, ledgers)
    earlier, damaged = _all(depot)
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
    identity = {k: v for k, v in store.identity.items() if k in (*IDENTITY, *KIND, "restored_from")}
    made = Checkpoint(name, time.time(), uuid, identity, state, view.history, view.inputs, view.labels, words, shards,
                      sender.total, sender.new_bytes, ledgers)
    data = made.pack()
    with _in_all(depot, len(data)):
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


def _plain(rows: T) -> T:
    """Return rows as a description gives them back."""
    return fmt.unpack_row(b"", fmt.pack_row(b"", {"rows": rows}))["rows"]


@contextlib.contextmanager
def _in_all(depot: Depot, needs: int) -> Iterator[None]:
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
            for n_bytes in ahead(self._put, new):
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
        with _in_all(self.depot, self.total - self._done):
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
    total = _RunTotal(run)
    for index in range(run.n_chunks):
        key = fmt.chunk_key(run.id, index)
        payload, n_keys = snap.chunk(run, index)
        value = fmt.pack_chunk(key, order, n_keys, payload)
        payload.release()
        total.add(key, value, n_keys)
        yield value
    total.check(f"run {run.id} in the store")


class _RunTotal:
    """Adds the chunks of a run up and compares them with what the manifest says."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._keys = self._bytes = 0
        self._digest = "0" * 16

    def add(self, key: bytes, value: bytes, n_keys: int) -> None:
        """Add one chunk."""
        self._keys += n_keys
        self._bytes += len(value)
        self._digest = fmt.add_digest(self._digest, fmt.chunk_digest(key, value))

    def check(self, what: str, path: str | None = None) -> None:
        """Raise CorruptionError unless the chunks are those of the run."""
        found = (self._keys, self._bytes, self._digest)
        expected = (self._run.n_keys, self._run.bytes, self._run.digest)
        if found != expected:
            raise CorruptionError(f"{f'{path}: ' if path else ''}{what} has keys, bytes and digest {found}, expected {expected}; "
                                  "use a copy made earlier", path=path, key=f"run {self._run.id}", found=found,
                                  expected=expected)


# List, verify, delete

def listed(place: Depot | Place | None, only: str | None = None) -> list[dict]:
    """Return Checkpoint.summary() of each checkpoint, oldest first; {"name", "damaged": why} of those that cannot be read."""
    depot = _opened(place)
    if depot is None:
        return []
    sound, damaged = _all(depot)
    return [*(found.summary() for found in sound if only in (None, found.uuid)),
            *({"name": name, "damaged": str(exc)} for name, exc in damaged.items())]


def _named(depot: Depot | None, name: str, only: str | None, found: Checkpoint | None) -> Checkpoint:
    """Return `found`, unless it is none or of another store than the one meant."""
    if found is None:
        names = [row["name"] for row in listed(depot, only)]
        place = f"{depot.place}: " if depot else ""
        raise StoreError(f"{place}no checkpoint {name}; there are: {_there(names)}", path=depot and depot.place)
    if only not in (None, found.uuid):
        raise StoreError(f"{depot.place}: checkpoint {name} is of store {found.uuid}, not of {only}; name the place with --from "
                         "and no store", path=depot.place)
    return found


def verify(depot: Depot | None, name: str | None = None, *, only: str | None = None, wait: float = 0.0,
           progress: Progress = no_progress) -> list[dict]:
    """Read every object of one checkpoint, or of all, and compare it with its name.

    Returns:
        For each checkpoint {"name", "objects", "bytes", "findings"}, a finding being {"checkpoint", "path", "found",
        "expected", "message"}.
    """
    if name is not None:
        check_name("checkpoint", name)
    if depot is None:
        if name is not None:
            _named(None, name, None, None)
        return []
    with depot.locked("checkpoint verify", wait, shared=True):
        sound, damaged = _all(depot)
        if name is not None:
            if name not in damaged:
                sound = [_named(depot, name, only, next((found for found in sound if found.name == name), None))]
            damaged = {key: exc for key, exc in damaged.items() if key == name}
        chosen = [found for found in sound if (name is None or found.name == name) and only in (None, found.uuid)]
        wrong = _wrong_objects(depot, {found for checkpoint in chosen for found in checkpoint.objects()}, progress)
    rows = []
    for checkpoint in chosen:
        objects = dict.fromkeys(checkpoint.objects())
        findings = [_finding(checkpoint.name, wrong[found]) for found in objects if found in wrong]
        rows.append({"name": checkpoint.name, "objects": len(objects), "bytes": sum(n_bytes for _, n_bytes in objects),
                     "findings": findings})
    return rows + [{"name": key, "objects": 0, "bytes": 0, "findings": [_finding(key, exc)]} for key, exc in damaged.items()]


def _finding(name: str, exc: CorruptionError | VersionMismatch) -> dict:
    return {"checkpoint": name, "path": exc.path, "found": exc.found, "expected": exc.expected, "message": str(exc)}


def _wrong_objects(depot: Depot, objects: set[Object], progress: Progress) -> dict[Object, CorruptionError]:
    def look(found: Object) -> tuple[Object, CorruptionError | None]:
        try:
            depot.read(*found)
        except CorruptionError as exc:
            return found, exc
        return found, None

    wrong, done, total = {}, 0, sum(n_bytes for _, n_bytes in objects)
    for found, exc in ahead(look, sorted(objects)):
        if exc is not None:
            wrong[found] = exc
        done += found[1]
        progress(done, total)
    return wrong


def delete(place: Depot | Place | None, name: str, *, only: str | None = None, wait: float = 0.0) -> dict:
    """Delete a checkpoint, and every object that no other one needs.

    Returns:
        {"name", "freed_bytes", "blocked_by"}, the last being checkpoints that cannot be read: nobody knows what they need,
        so nothing is freed until they are deleted too.
    """
    check_name("checkpoint", name)
    depot = _opened(place)
    if depot is None:
        _named(None, name, None, None)
    with depot.locked("checkpoint delete", wait):
        sound, damaged = _all(depot)
        if name not in damaged:
            found = next((found for found in sound if found.name == name), None)
            if found is None:
                _collect(depot)            # perhaps it was deleted, but not to the end
            _named(depot, name, only, found)
        freed_bytes, blocked_by = _delete(depot, [name])
    return {"name": name, "freed_bytes": freed_bytes, "blocked_by": blocked_by}


def _beyond(depot: Depot, made: Checkpoint, keep: int) -> list[str]:
    """Delete the oldest checkpoints of a store that are too many, never the one just made; return their names."""
    ours = [found.name for found in _all(depot)[0] if found.uuid == made.uuid and found.name != made.name]
    gone = ours[:max(0, len(ours) + 1 - keep)]
    if gone:
        _delete(depot, gone)
    return gone


def _delete(depot: Depot, names: list[str]) -> tuple[int, list[str]]:
    """Delete checkpoints, then what no other one needs; return what _collect() does. REQUIRES the depot's lock."""
    for name in names:
        depot.remove_description(name)
    return _collect(depot)         # a kill in between leaves objects that nobody needs, for the next call


def tidy(place: Depot | Place | None, *, wait: float = 0.0) -> dict:
    """Remove what creations and deletions left that were killed; return {"freed_bytes", "blocked_by"} as delete()."""
    depot = _opened(place)
    if depot is None:
        return {"freed_bytes": 0, "blocked_by": []}
    with depot.locked("checkpoint delete", wait):
        depot.sweep()
        freed_bytes, blocked_by = _collect(depot)
    return {"freed_bytes": freed_bytes, "blocked_by": blocked_by}


def _collect(depot: Depot) -> tuple[int, list[str]]:
    """Remove objects that no checkpoint needs; return how many bytes, and the checkpoints that prevent it.

    REQUIRES: nobody makes a checkpoint meanwhile; the depot's lock sees to that, where it has one.
    """
    sound, damaged = _all(depot)
    if damaged:
        return 0, sorted(damaged)
    needed = {found for checkpoint in sound for found, _ in checkpoint.objects()}
    gone = {name: n_bytes for name, n_bytes in depot.objects().items() if name not in needed}
    depot.remove(sorted(gone))
    return sum(gone.values()), []


# Restore

def restore(depot: Depot | None, into: Place, name: str | None = None, version: int | None = None, *, wait: float = 0.0,
            force: bool = False, progress: Progress = no_progress) -> dict:
    """Make a store of a checkpoint, with another uuid; it is there as a whole or not at all.

    Args:
        into: must not exist, or be an empty directory.
        name, version: one of them; of several checkpoints of a version the newest.
        force: allow a network file system.

    Returns:
        {"path", "name", "version", "tokens", "sentences", "bytes", "store": the new uuid}.

    Raises:
        CorruptionError: an object is missing or damaged. StoreError: no such checkpoint; `into` is something already.
    """
    if (name is None) == (version is None):
        raise ArgumentError("a checkpoint is restored by its name or by a version: give one of them")
    if name is not None:
        check_name("checkpoint", name)
    target = Path(os.path.abspath(into))
    directory._refuse_occupied(target)
    directory._check_file_system(target.parent, force)
    if depot is None:
        _named(None, name or f"of version {version}", None, None)
    with depot.locked("checkpoint restore", wait, shared=True):
        chosen = _of_version(depot, version) if name is None else _named(depot, name, None, _read(depot, name))
        if files.free_bytes(target.parent) < chosen.bytes:
            raise files.disk_full(target, chosen.bytes)
        uuid = _restore(depot, chosen, target, progress)
    return {"path": str(target), "name": chosen.name, **{field: chosen.state[field] for field in STATE[:3]},
            "bytes": chosen.bytes, "store": uuid}


def _of_version(depot: Depot, version: int) -> Checkpoint:
    """Return the newest checkpoint of a version."""
    sound, damaged = _all(depot)
    found = [checkpoint for checkpoint in sound if checkpoint.state["version"] == version]
    if not found:
        there = [f"{checkpoint.state['version']} ({checkpoint.name})" for checkpoint in sound]
        there += [f"{name}, which is damaged" for name in damaged]
        raise StoreError(f"{depot.place}: no checkpoint of version {version}; there are: {_there(there)}", path=depot.place)
    if len({checkpoint.uuid for checkpoint in found}) > 1:
        names = _there(checkpoint.name for checkpoint in found)
        raise StoreError(f"{depot.place}: has checkpoints of version {version} of several stores; choose one by its name: {names}",
                         path=depot.place)
    return found[-1]


def _restore(depot: Depot, chosen: Checkpoint, target: Path, progress: Progress) -> str:
    """Write the store under a temporary name, and rename it; return its uuid."""
    directory.sweep_unfinished(target)
    temporary = target.with_name(f"{target.name}.tmp-{os.urandom(8).hex()}")
    files.make_dir(temporary)
    owner = None
    try:
        owner = lock.OwnerLock(temporary, command="checkpoint restore")
        uuid = os.urandom(16).hex()
        _write_store(depot, chosen, temporary, uuid, progress)
        directory._refuse_occupied(target)
        files.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(StoreError, OSError):
            files.remove_tree(temporary)
        raise
    finally:
        if owner is not None:
            owner.close()
    return uuid


def _write_store(depot: Depot, chosen: Checkpoint, folder: Path, uuid: str, progress: Progress) -> None:
    order, n_shards, done = chosen.identity["order"], chosen.identity["shards"], 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, chosen.bytes)

    files.make_dir(folder / directory.SHARDS)
    places = []
    for number, runs in enumerate(chosen.shards):
        name = f"{directory.SHARDS}/{number:04d}.0"
        identity = {"uuid": uuid, "shard": number, "shards": n_shards, "order": order}
        with contextlib.closing(Shard.create(folder / name, identity, map_bytes=directory.map_bytes(n_shards))) as shard, \
                contextlib.closing(_chunks(depot, runs, order, advance)) as chunks:
            _fill(shard, [kept.run for kept in runs], chunks, chosen.ledgers and chosen.ledgers[number])
            places.append({"dir": name, "generation": shard.generation})
        files.fsync_dir(folder / name)
    identity = {**chosen.identity, "uuid": uuid, "restored_from": {"uuid": chosen.uuid, "version": chosen.state["version"]}}
    root_name = f"{directory.ROOT}0"
    with contextlib.closing(Root.create(folder / root_name, identity, [place["dir"] for place in places])) as root:
        _fill_root(root, depot, chosen, places, advance)
        for inner in (folder / root_name, folder / directory.SHARDS):
            files.fsync_dir(inner)
        directory.seal_store(folder, root_name, root)
    files.fsync_dir(folder)


def _chunks(depot: Depot, runs: list[Kept], order: int, advance: Callable[[int], None]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of all chunks of a shard's runs, each compared with its name, its key and its run."""
    wanted = (found for kept in runs for found in kept.objects)
    with contextlib.closing(ahead(lambda found: depot.read(*found), wanted)) as values:
        for kept in runs:
            total = _RunTotal(kept.run)
            for index, (name, n_bytes) in enumerate(kept.objects):
                key, value = fmt.chunk_key(kept.run.id, index), next(values)
                _, n_keys, found = fmt.unpack_chunk(key, value, depot.where(name))
                if found != order:
                    raise fmt.damaged(depot.where(name), key, "order", found, order)
                total.add(key, value, n_keys)
                yield key, value
                advance(n_bytes)
            total.check(f"run {kept.run.id}", depot.place)


def _fill(shard: Shard, runs: list[Run], chunks: Iterator[tuple[bytes, bytes]], ledger: dict | None = None) -> None:
    """Write chunks under the keys that they had; the last transaction lists their runs, and has the ledger of a table."""
    done = False
    while not done:
        with shard._write() as (txn, manifest):
            done = _put_some(txn, chunks)
            if done:
                manifest["runs"] = [_run_row(run) for run in runs]
                manifest["next_run"] = max((run.id for run in runs), default=0) + 1
                if ledger is not None:
                    manifest["most"] = ledger["most"]
                    for name, row in ledger["clients"].items():
                        key = fmt.named_key(fmt.CLIENT, name)
                        txn.put(key, fmt.pack_row(key, row))


def _put_some(txn: Txn, pairs: Iterator[tuple[bytes, bytes]]) -> bool:
    """Put as much as one transaction should hold; return whether that was all."""
    while txn.dirty_bytes < DIRTY_BYTES:
        pair = next(pairs, None)
        if pair is None:
            return True
        txn.put(*pair)
    return False


def _fill_root(root: Root, depot: Depot, chosen: Checkpoint, places: list[dict], advance: Callable[[int], None]) -> None:
    """Write vocabulary and rows, then the state."""
    with contextlib.closing(_segments(depot, chosen, advance)) as segments:
        rows = _then(segments, _rows(chosen))
        done = False
        while not done:
            with root._write() as (txn, state):
                done = _put_some(txn, rows)
                if done:
                    state.update({**chosen.state, "shards": places})


def _then(*parts: Iterator[T]) -> Iterator[T]:
    for part in parts:
        yield from part


def _segments(depot: Depot, chosen: Checkpoint, advance: Callable[[int], None]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of the vocabulary; CorruptionError unless it has every id up to the state's once."""
    following = FIRST_WORD
    with contextlib.closing(ahead(lambda found: depot.read(*found), (found for _, found in chosen.words))) as segments:
        for (first, (name, n_bytes)), segment in zip(chosen.words, segments, strict=True):
            try:
                n_words = len(fmt.check_words(segment))
            except ValueError as exc:
                raise CorruptionError(f"{depot.where(name)}: {exc}; use another checkpoint", path=depot.where(name)) from exc
            _expect(depot, "the first word id of a segment", first, following)
            following += n_words
            key = fmt.numbered_key(fmt.WORDS, first)
            yield key, fmt.pack_blob(key, segment)
            advance(n_bytes)
    _expect(depot, "the number of word ids", following, chosen.state["words"])


def _expect(depot: Depot, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise CorruptionError(f"{depot.place}: {what} is {found}, expected {expected}; use another checkpoint", path=depot.place,
                              found=found, expected=expected)


def _rows(chosen: Checkpoint) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of history, inputs and labels."""
    for row in chosen.history:
        key = fmt.numbered_key(fmt.HISTORY, row["version"])
        yield key, fmt.pack_row(key, {field: value for field, value in row.items() if field != "version"})
    for kind, rows in ((fmt.INPUT, chosen.inputs), (fmt.LABEL, chosen.labels)):
        for name, row in rows.items():
            key = fmt.named_key(kind, name)
            yield key, fmt.pack_row(key, row)

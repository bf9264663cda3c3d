"""The description of a checkpoint: what it is, to bytes and back (CHECKPOINT.md, "Description").

Descriptions come from disks and object stores of others: every field is looked at before it is used.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kvps.errors import CorruptionError, VersionMismatch
from kvps.store import format as fmt
from kvps.store import layout
from kvps.store.depot import is_object_name
from kvps.store.runs import Run
from kvps.store.shard import MOST

CHECKPOINT_FORMAT = 1            # do not change without a new section in CHECKPOINT.md
IDENTITY = ("order", "shards", "created")
KIND = ("tokenizer", "table")    # of a store of n-grams, of a table: one of them
STATE = ("version", "tokens", "sentences", "words")

Object = tuple[str, int]                       # name, bytes


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
    routing: dict | None = None        # how n-grams are dealt to the shards
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
        for name in ("routing", "ledgers"):
            if getattr(self, name) is not None:
                row[name] = getattr(self, name)
        row["shards"] = [[{**kept.run.to_row(), "objects": kept.objects} for kept in runs] for runs in self.shards]
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
    except (KeyError, TypeError, ValueError, AttributeError, CorruptionError) as exc:
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
    if len(row["shards"]) != identity["shards"] or not 1 <= identity["shards"] <= layout.MAX_SHARDS:
        raise ValueError(f"{len(row['shards'])} shards, expected {identity['shards']}")
    words = [(_natural(first, 2**32), _object(found)) for first, found in row["words"]]
    routing = row.get("routing")
    if routing is not None:
        fmt.check_routing(routing, identity["shards"], state["words"])
    shards = [[_kept(run, state["version"]) for run in runs] for runs in row["shards"]]
    for kind, rows in ((fmt.INPUT, row["inputs"]), (fmt.LABEL, row["labels"])):
        for name in rows:
            fmt.named_key(kind, name)
    return Checkpoint(
        name=row["name"], created=float(row["created"]), uuid=str(row["uuid"]), identity={**row["identity"]}, state=state,
        history=[{**version, "version": _natural(version["version"], 2**32)} for version in row["history"]],
        inputs={digest: {**found} for digest, found in row["inputs"].items()},
        labels={label: {**found} for label, found in row["labels"].items()}, words=words, shards=shards, bytes=row["bytes"],
        new_bytes=row["new_bytes"], ledgers=ledgers, routing=routing)


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

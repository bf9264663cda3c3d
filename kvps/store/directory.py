"""A whole store on disk, opened and read as one: what layout.py names.

Which directory holds which shard is written in the root's state, and which holds the root in the seal, so each can be
replaced by another copy of itself in one step, while readers keep the old one.
"""
from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvps.errors import ArgumentError, CorruptionError, KvpsError, StoreError
from kvps.store import environment, files, layout, lock, seal
from kvps.store.root import Root
from kvps.store.shard import Run, Shard, Snapshot

UNLABELLED = "-"              # names text without a label where labels are chosen
VERIFY_TRIES = 3              # a file that is found unsound while somebody begins to write it is looked at again
SNAPSHOT_TRIES = 1000         # a retry means that a version was committed within the few microseconds of opening

T = TypeVar("T")


@dataclass
class StoreSnapshot:
    """A store at one committed version, perhaps only the text of some labels: every shard's state as its readers see it."""

    version: int
    state: dict                 # "tokens" and "sentences" are those of the labels chosen
    shards: list[Snapshot]
    labels: frozenset[str | None] | None = None      # None: all text; None among them: text without a label
    routing: dict | None = None                      # how n-grams are dealt to the shards, as Root.routing() has it

    @property
    def split(self) -> list[int]:
        """The words whose n-grams are split over shards."""
        return self.routing["split"] if self.routing else []

    def runs(self, shard: int) -> list[Run]:
        """Return the runs of a shard that make up this version of this text, oldest first."""
        return [run for run in self.shards[shard].runs(self.version) if self.labels is None or run.label in self.labels]

    def n_keys(self) -> int:
        """Return how many keys these runs have in all, before they are merged."""
        return sum(run.n_keys for shard in range(len(self.shards)) for run in self.runs(shard))


class Away:
    """Stands for a shard that lies on another machine, where nobody said how it is reached."""

    def __init__(self, path: Path, number: int) -> None:
        """Take the store's folder and the number of the shard."""
        self.path, self.shard = path, number

    def snapshot(self) -> Snapshot:
        """Refuse."""
        raise StoreError(f"{self.path}: shard {self.shard} lies on another machine; start kvps serve, and name its address in the "
                         "place of the folder", path=str(self.path), shard=self.shard)

    def close(self) -> None:
        """Do nothing."""


class StoreDirectory:
    """A store that is open. Made by open_store()."""

    elsewhere = False              # whether another process has the files

    def __init__(self, path: Path, writable: bool, owner: lock.OwnerLock | None,
                 away: Callable[[int, str], Shard] | None = None) -> None:
        """Open the root of the store at `path`; the lock is closed with the store, also if this fails.

        away: gives what reads a shard on another machine, from its number and the name of its directory there.
        """
        self.path, self.writable, self.lock = path, writable, owner
        self._away = away or (lambda number, name: Away(path, number))
        self.shards: list[Shard] = []
        self._names: list[str] = []
        self._turn = threading.Lock()
        self._root: Root | None = None
        self._root_name = ""
        self._seal: dict = {}
        self._seal_stamp: list[int] = []
        try:
            self._follow_root()
        except BaseException:
            if self._root is not None:
                self._root.close()
            raise

    @property
    def identity(self) -> dict:
        """What the root says of the store; "shards" is that of its last snapshot, or newer."""
        return self._root.identity

    @property
    def root(self) -> Root:
        """The root; a reader opens it anew when the writer has put another in its place."""
        if not self.writable and seal.stamp(self.path / seal.NAME) != self._seal_stamp:
            with self._turn:
                self._follow_root()
        return self._root

    def _follow_root(self) -> None:
        """Read the seal, and open the root that it names."""
        stamp = seal.stamp(self.path / seal.NAME)
        found = seal.read(self.path)
        if found["root"] != self._root_name:
            files.refuse_symlink(self.path / found["root"])
            root = self._sound(found, found["root"], lambda verify: Root.open(self.path / found["root"], self.writable,
                                                                              verify=verify))
            if self._root is not None:
                self._root.close()
            self._root, self._root_name = root, found["root"]
        self._seal, self._seal_stamp = found, stamp
        state = self._root.state()
        if self._root.identity["uuid"] != found["uuid"]:
            raise CorruptionError(f"{self.path}: root and seal are of different stores; put back a sound copy of the whole "
                                  "store", path=str(self.path), key="seal", found=found["uuid"],
                                  expected=self._root.identity["uuid"])
        if state["generation"] < found["generation"]:
            raise CorruptionError(f"{self.path}: went back in time: its root's generation is {state['generation']} (version "
                                  f"{state['version']}), expected at least {found['generation']} (version {found['version']}); "
                                  "keep a copy of the store, then run kvps recover", path=str(self.path), key="state",
                                  found=state["generation"], expected=found["generation"])

    def _sound(self, sealed: dict, name: str, open_it: Callable[[bool], T]) -> T:
        """Open an environment; one that has changed since it was sealed, and is not being written, is verified first."""
        data = self.path / name / layout.DATA
        for _ in range(VERIFY_TRIES):
            stamp = seal.stamp(data)
            known = sealed["files"].get(name)
            if known and stamp[0] < known[0]:
                raise CorruptionError(f"{data}: {stamp[0]} bytes, expected at least {known[0]}; the file was cut short: keep a "
                                      "copy of the store, then run kvps recover", path=str(data), found=stamp[0],
                                      expected=known[0])
            if stamp == known or not (self.writable or lock.owner(self.path) is None):
                break
            try:
                return open_it(True)
            except CorruptionError:
                # A writer may have begun in the meantime, and changed the file under our eyes.
                if self.writable or seal.stamp(data) == stamp:
                    raise
        return open_it(False)

    def follow(self) -> list[Shard]:
        """Open the shards that lie here, as the root names them now, and return them."""
        with self._turn:
            self._follow(self.root.state())
        return [shard for shard in self.shards if isinstance(shard, Shard)]

    def _follow(self, state: dict) -> None:
        """Open the shard directories that `state` names, and close those that were replaced; holding self._turn."""
        if len(state["shards"]) != self.identity["shards"]:
            self._root.read_identity()
        for number, place in enumerate(state["shards"]):
            name = place["dir"]
            if number < len(self._names) and self._names[number] == name:
                continue
            shard = (self._away(number, name) if place.get("away") else
                     self._open_shard(number, name, place["generation"]))
            if number < len(self.shards):
                self.shards[number].close()
            self.shards[number:number + 1] = [shard]
            self._names[number:number + 1] = [name]
        while len(self.shards) > len(state["shards"]):
            self.shards.pop().close()
            self._names.pop()

    def _open_shard(self, number: int, name: str, generation: int) -> Shard:
        folder = layout.shard_folder(self.path, number, name)
        files.refuse_symlink(folder)
        shard = self._sound(self._seal, name, lambda verify: Shard.open(
            folder, self.identity["uuid"], self.writable, shard=number, map_bytes=layout.map_bytes(self.identity["shards"]),
            verify=verify))
        shard.epoch = self._root.next_epoch if self.writable else 0
        if shard.generation < generation:
            found = shard.generation
            shard.close()
            raise CorruptionError(f"{folder}: shard {number} went back in time: its generation is {found}, expected at "
                                  f"least {generation}; keep a copy of the store, then run kvps recover",
                                  path=str(folder), key="manifest", found=found, expected=generation)
        return shard

    def reseal(self) -> None:
        """Write down how far the store has come, if that is not written down yet; of a writer."""
        names = [self._root_name, *(place["dir"] for place in self._root.state()["shards"] if "away" not in place)]
        if any(seal.stamp(self.path / name / layout.DATA) != self._seal["files"].get(name) for name in names):
            self._seal = seal.renew(self.path, self._root_name, self._root)

    @contextlib.contextmanager
    def snapshot(self, labels: Iterable[str] | None = None) -> Iterator[StoreSnapshot]:
        """Give the last committed version, whole, whatever a writer does meanwhile; one thread at a time.

        labels: only the text of these, "-" being text without a label; StoreError if there is none.
        """
        with contextlib.ExitStack() as stack:
            for _ in range(SNAPSHOT_TRIES):
                root = self.root
                state = root.state()
                rows = root.labels() if labels is not None else {}
                routing = root.routing()
                with contextlib.ExitStack() as attempt:
                    try:
                        with self._turn:
                            self._follow(state)
                            snaps = [attempt.enter_context(shard.snapshot()) for shard in self.shards]
                    except (StoreError, CorruptionError):
                        if self.root.state() == state:
                            raise
                        continue       # a shard moved between our two looks
                    if self.root is root and _committed(root.state()) == _committed(state):
                        stack.push(attempt.pop_all())
                        break
            else:
                raise StoreError(f"{self.path}: versions are committed faster than they can be read",
                                 path=str(self.path))
            if labels is None:
                yield StoreSnapshot(state["version"], state, snaps, routing=routing)
            else:
                own, chosen = self._of_labels(state, rows, labels)
                yield StoreSnapshot(state["version"], own, snaps, chosen, routing)

    def _of_labels(self, state: dict, rows: dict[str, dict], labels: Iterable[str]) -> tuple[dict, frozenset]:
        """Return the state with the totals of some labels, and the labels of their runs."""
        none = {name: state[name] - sum(row[name] for row in rows.values()) for name in ("tokens", "sentences")}
        chosen = dict.fromkeys(labels)
        if not chosen:
            raise ArgumentError(f"{self.path}: no label is named; name one at least, or leave them out for all of the text")
        for label in chosen:
            if label not in rows and not (label == UNLABELLED and none["sentences"]):
                raise StoreError(f"{self.path}: no text has the label {label}; the labels are {', '.join(rows) or '(none)'}",
                                 path=str(self.path))
        totals = [none if label == UNLABELLED else rows[label] for label in chosen]
        sums = {name: sum(row[name] for row in totals) for name in none}
        return {**state, **sums}, frozenset(None if label == UNLABELLED else label for label in chosen)

    def run(self, function: Callable[..., T], *, here: Mapping[str, Any] | None = None, **arguments: Any) -> T:
        """Return function(self, **arguments): work that is done where the store is, which may be elsewhere.

        here: further arguments, which mean something in this process only: threads, folders, progress.
        """
        return function(self, **arguments, **(here or {}))

    @property
    def spool(self) -> Path:
        """Where copies of text are kept that can be read only once, until their job is over."""
        return self.path / layout.SPOOL

    def free_bytes(self) -> int:
        """Return how much room there is for the store to grow [bytes]."""
        return files.free_bytes(self.path)

    def hasten(self) -> None:
        """Wait no longer than need be for servers: there are none."""

    def fence(self) -> None:
        """Take nothing any more of what was sent before now and is still on its way: nothing is, for we wait for each call."""

    def claim(self, job: str, split: int) -> bool:
        """Return whether we should count a split of a job, and no other worker: there is none."""
        return True

    def generations(self) -> list[int]:
        """Return each shard's generation, for Root.commit_job()."""
        return [shard.generation for shard in self.shards]

    def vacuum(self, *, root: bool = False) -> None:
        """Copy each shard into a new directory without its free pages, and remove the old one; with `root`, that too."""
        for number in range(len(self.shards)):
            old = self._names[number]
            name = layout.following(old)
            self._copied(name, self.shards[number].copy_to)
            self.root.move_shard(number, name, self.shards[number].generation)
            with self._turn:
                self._follow(self.root.state())
            files.remove_tree(self.path / old)
        if root:
            self._move_root(lambda target: self._root.copy_to(target))
        self.reseal()

    def take_over(self, names: Sequence[str], generations: Sequence[int], routing: dict | None) -> None:
        """Put other shards, which are durable, in the place of all that there are, and remove the old ones."""
        old = list(self._names)
        self.root.reshard([{"dir": name, "generation": n} for name, n in zip(names, generations, strict=True)], routing)
        with self._turn:
            self._follow(self.root.state())
        for name in old:
            files.remove_tree(self.path / name)
        self.reseal()

    def _move_root(self, copy_to: Callable[[Path], None]) -> None:
        old, name = self._root_name, layout.following(self._root_name)
        self._copied(name, copy_to)
        moved = Root.open(self.path / name, writable=True)
        moved.epoch = self._root.epoch
        self._seal = seal.renew(self.path, name, moved)        # from here on this is the root
        self._root.close()
        self._root, self._root_name = moved, name
        files.remove_tree(self.path / old)

    def _copied(self, name: str, copy_to: Callable[[Path], None]) -> None:
        """Make the directory `name` by copy_to(), durably."""
        folder = self.path / name
        files.remove_tree(folder)                     # what was killed half-way
        copy_to(folder)
        files.fsync_dir(folder)
        files.fsync_dir(folder.parent)

    def sweep_directories(self) -> None:
        """Remove what nobody needs: shards and roots that are not in force, and copies of text without a job."""
        with files.reporting(self.path / layout.SHARDS):
            folders = sorted([*(self.path / layout.SHARDS).iterdir(), *self.path.glob(f"{layout.ROOT}*")])
        kept = {self._root_name, *self._names}
        for folder in folders:
            if folder.relative_to(self.path).as_posix() not in kept and folder.is_dir() and not folder.is_symlink():
                files.remove_tree(folder)
        for unfinished in self.path.glob(f"{seal.NAME}.tmp-*"):
            files.remove_file(unfinished)
        if self._root.job() is None:
            files.remove_tree(self.path / layout.SPOOL)

    def bytes(self) -> dict[str, int]:
        """Return {"file", "live"} summed over the root and all shards [bytes]."""
        parts = [self.root.bytes(), *(shard.bytes() for shard in self.shards)]
        return {key: sum(part[key] for part in parts) for key in ("file", "live")}

    def close(self) -> None:
        """Close everything and let the next writer in; snapshots that are open stay readable."""
        try:
            if self.writable and self._root is not None and self._root.epoch:
                with contextlib.suppress(KvpsError):          # without a seal the next one to open looks more closely
                    self.reseal()
        finally:
            for shard in self.shards:
                shard.close()
            if self._root is not None:
                self._root.close()
            if self.lock is not None:
                self.lock.close()

    def __enter__(self) -> StoreDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _committed(state: dict) -> tuple[int, list[str]]:
    return state["version"], [place["dir"] for place in state["shards"]]


def _check_kind(store: StoreDirectory, table: bool | None) -> None:
    kind = store.identity.get("table")
    if table is False and kind is not None:
        raise StoreError(f"{store.path}: is a table ({kind.get('kind')}, keys of {kind.get('key_bytes')} bytes), not a store of "
                         "n-grams; kvps table pull and scan read it", path=str(store.path))
    if table and kind is None:
        raise StoreError(f"{store.path}: is a store of n-grams, not a table", path=str(store.path))


def open_store(path: str | Path, writable: bool = False, wait: float = 0.0, *, command: str = "",
               force: bool = False, table: bool | None = False, whole: bool = True) -> StoreDirectory:
    """Open a store; a writer takes the owner lock first, a reader takes none.

    Args:
        path: of the store's directory; it may itself be a symbolic link.
        writable: for the one writer.
        wait: how long a writer waits for the lock [s].
        command: what the writer is about to do, for the messages of others.
        force: allow a network file system.
        table: expect a table, and not a store of n-grams; None: either will do.
        whole: expect all shards to lie here.

    Raises:
        StoreError: `path` is no store, or may not be read; or is a table, or none, against what was expected; or lacks shards.
        StoreLocked: somebody else is writing.
        VersionMismatch: a format that this kvps does not read.
        CorruptionError: damaged.
    """
    path = Path(os.path.abspath(path))
    if not seal.exists(path):
        seal.refuse_old(path)
        raise seal.none_at(path)
    for inner in (path / seal.NAME, path / layout.SHARDS, path / lock.NAME):
        files.refuse_symlink(inner)
    if stat.S_IMODE(os.stat(path).st_mode) & stat.S_IWOTH:
        raise StoreError(f"{path}: everybody may write in it; chmod o-w it first", path=str(path))
    files.refuse_network(path, force)
    owner = None
    if writable:
        owner = lock.OwnerLock(path, wait_s=wait, command=command)
    elif not environment.can_register(path / seal.read(path)["root"]):
        # A reader that no writer can see is safe only while there is no writer.
        owner = lock.OwnerLock(path, shared=True)
    store = None
    try:
        store = StoreDirectory(path, writable, owner)
        _check_kind(store, table)
        if whole:
            with store.snapshot():
                pass
        else:
            store.follow()
        if writable:
            store.sweep_directories()
        return store
    except BaseException:
        if store is not None:
            store.close()
        elif owner is not None:
            owner.close()
        raise

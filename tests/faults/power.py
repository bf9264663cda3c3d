"""The states in which a power cut may leave a folder, made from a log of every call on it (faults.c).

What is durable after a cut: the bytes of a file that was synced since they were written, and the entries of a folder
that was synced since they changed. Anything else is there, or not, or in part:

- Of a file, each block (4096 or 512 bytes) is in one of the states that it went through since the last sync, and so is
  the length. A block that was not written within the length is zeros.
- Of a folder, each change (a file made, renamed, removed) since the folder's last sync has happened or has not; a rename
  happens as a whole. In the order of a journal (as ext4: everything up to some change, and any sync commits all that came
  before), or in no order at all.

A write through a descriptor of O_DSYNC is durable when it returns. What is written through memory maps is not recorded.
"""
from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from processes import damage_shard, summary

from faults import workloads
from faults.library import CREATED, DIRECTORY, NO_LENGTH, SYNCED, Call, Kind, Loaded, Op, read_log
from faults.server import forked
from faults.workloads import WORKLOADS, finish, fresh, in_child, run, same
from kvps.store.root import Root

SECTOR_BYTES, PAGE_BYTES = 512, 4096


@dataclasses.dataclass
class File:
    """A file: what is durable of it, and what has been done to it since."""

    durable: bytearray = dataclasses.field(default_factory=bytearray)
    current: bytearray = dataclasses.field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = dataclasses.field(default_factory=list)   # (offset, data); None: new length

    def write(self, offset: int, data: bytes, synced: bool) -> None:
        """Write bytes; synced: the pages that they lie on are durable at once."""
        _put(self.current, offset, data)
        if not synced:
            self.pending.append((offset, data))
        elif any(piece is None for _, piece in self.pending):
            self.sync()            # the new length is durable with it; to let all the rest be so too is simple, and rare
        else:
            start = offset // PAGE_BYTES * PAGE_BYTES
            end = -(-(offset + len(data)) // PAGE_BYTES) * PAGE_BYTES
            _put(self.durable, start, self.current[start:end])
            self.pending = [part for piece in self.pending for part in _outside(*piece, start, end)]

    def resize(self, length: int) -> None:
        """Cut or lengthen the file."""
        _resize(self.current, length)
        self.pending.append((length, None))

    def sync(self) -> None:
        """Make the file durable."""
        if self.pending:
            self.durable = bytearray(self.current)
            self.pending.clear()

    def after_cut(self, rng: random.Random, plan: Plan) -> bytes:
        """Return what may be found after a cut."""
        if not self.pending or plan.lost == 1:
            return bytes(self.durable)
        if plan.lost == 0:
            return bytes(self.current)
        touched: dict[int, int] = {}
        for offset, data in self.pending:
            for block in _blocks(offset, data, plan.block_bytes):
                touched[block] = touched.get(block, 0) + 1
        blocks = sorted(touched)
        if plan.single is not None and blocks:          # one block differs from all others
            odd = rng.choice(blocks)
            chosen = {block: touched[block] if (block == odd) == plan.single else 0 for block in blocks}
        else:
            chosen = {block: 0 if rng.random() < plan.lost else rng.randint(1, touched[block]) for block in blocks}
        found, state = bytearray(self.durable), bytearray(self.durable)
        lengths, seen = [len(self.durable)], dict.fromkeys(blocks, 0)
        for offset, data in self.pending:
            if data is None:
                _resize(state, offset)
            else:
                _put(state, offset, data)
            lengths.append(len(state))
            for block in _blocks(offset, data, plan.block_bytes):
                seen[block] += 1
                if seen[block] == chosen[block]:
                    start = block * plan.block_bytes
                    piece = state[start:start + plan.block_bytes]
                    _put(found, start, piece.ljust(plan.block_bytes, b"\0"))
        _resize(found, {"first": lengths[0], "last": lengths[-1], "any": rng.choice(lengths)}[plan.lengths])
        return bytes(found)


def _put(target: bytearray, offset: int, data: bytes) -> None:
    """Write bytes, zeros before them where the file is shorter."""
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset:offset + len(data)] = data


def _resize(target: bytearray, length: int) -> None:
    """Cut, or lengthen by zeros."""
    if len(target) > length:
        del target[length:]
    else:
        target.extend(bytes(length - len(target)))


def _outside(offset: int, data: bytes, start: int, end: int) -> list[tuple[int, bytes]]:
    """Return the parts of a write before and after a range."""
    parts = [(offset, data[:max(0, start - offset)]), (max(offset, end), data[max(0, end - offset):])]
    return [(place, part) for place, part in parts if part]


def _blocks(offset: int, data: bytes | None, block_bytes: int) -> Iterable[int]:
    """Return the numbers of the blocks that a write touches; none for a new length."""
    return range(offset // block_bytes, -(-(offset + len(data)) // block_bytes)) if data else ()


@dataclasses.dataclass
class Plan:
    """How much of what is not durable survives a cut."""

    block_bytes: int
    lost: float              # chance of each block of a file to be lost
    names_lost: float        # chance of each change of a folder to be lost
    single: bool | None      # True: just one block of a file survives; False: just one is lost
    lengths: str             # of files: "first", "last" or "any"
    journal: bool            # changes of folders keep their order

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        """Draw one."""
        return cls(block_bytes=rng.choice([SECTOR_BYTES, PAGE_BYTES]), lost=rng.choice([0, 0.1, 0.5, 0.5, 0.5, 0.9, 1]),
                   names_lost=rng.choice([0, 0.2, 0.5, 0.8, 1]), single=rng.choice([None, None, None, True, False]),
                   lengths=rng.choice(["first", "last", "any"]), journal=rng.random() < 0.5)


@dataclasses.dataclass
class Change:
    """One change of folders: entries that come and go together."""

    gone: tuple[int, str] | None              # (folder, name)
    made: tuple[int, str, int] | None         # (folder, name, what)

    @property
    def folders(self) -> set[int]:
        """The folders that it changes; a sync of one of them makes it durable."""
        return {where[0] for where in (self.gone, self.made) if where}

    def apply(self, folders: dict[int, dict[str, int]]) -> None:
        """Let it happen."""
        if self.gone:
            folders.setdefault(self.gone[0], {}).pop(self.gone[1], None)
        if self.made:
            folders.setdefault(self.made[0], {})[self.made[1]] = self.made[2]


class Disk:
    """A folder as a log tells it; empty at first. Numbers stand for files and folders: a number is never used again."""

    def __init__(self, inode: int) -> None:
        """Begin with the empty folder whose inode number is given."""
        self._numbers = {inode: 0}                      # inode -> number of what has it now
        self._next = 1
        self.files: dict[int, File] = {}
        self.folders: dict[int, dict[str, int]] = {0: {}}        # as they are durable: by number, name -> number
        self.pending: list[Change] = []                          # changes that are not, oldest first
        self.journaled = 0                                       # so many of them are, if there is a journal

    def _new(self, inode: int, is_dir: bool) -> int:
        """Return the number of a new, empty file or folder."""
        number = self._numbers[inode] = self._next
        self._next += 1
        if is_dir:
            self.folders[number] = {}
        else:
            self.files[number] = File()
        return number

    def apply(self, call: Call) -> None:
        """Let a call of the log happen."""
        if call.error or call.op == Op.MARK:
            return
        number = self._numbers.get(call.inode, -1)
        file = self.files.get(number)
        name, other = os.path.basename(call.path), os.path.basename(call.other)
        if call.op == Op.OPEN:
            if call.flags & CREATED:
                number = self._new(call.inode, False)
                if call.folder:                        # else a file without a name
                    self.pending.append(Change(None, (self._numbers[call.folder], name, number)))
            elif file and call.length != NO_LENGTH:
                file.resize(call.length)
        elif call.op == Op.MKDIR:
            number = self._new(call.inode, True)
            self.pending.append(Change(None, (self._numbers[call.folder], name, number)))
        elif call.op == Op.WRITE:
            file.write(call.offset, call.data, bool(call.flags & SYNCED))
            self.journaled = len(self.pending) if call.flags & SYNCED else self.journaled
        elif call.op == Op.TRUNCATE:
            file.resize(call.length)
        elif call.op == Op.ALLOCATE:
            file.resize(max(len(file.current), call.offset + call.length))
        elif call.op == Op.SYNC and number >= 0:
            if call.flags & DIRECTORY:
                self._sync_folder(number)
            else:
                file.sync()
            self.journaled = len(self.pending)
        elif call.op == Op.RENAME:
            self.pending.append(Change((self._numbers[call.folder], name), (self._numbers[call.target], other, number)))
        elif call.op == Op.LINK:
            self.pending.append(Change(None, (self._numbers[call.target], other, number)))
        elif call.op in (Op.UNLINK, Op.RMDIR):
            self.pending.append(Change((self._numbers[call.folder], name), None))

    def _sync_folder(self, number: int) -> None:
        """Make the entries of a folder durable, each in its order."""
        kept = []
        for change in self.pending:
            if number in change.folders:
                change.apply(self.folders)
            else:
                kept.append(change)
        self.pending = kept

    def folders_after_cut(self, rng: random.Random, plan: Plan) -> dict[int, dict[str, int]]:
        """Return the folders that may be found after a cut."""
        folders = {number: dict(entries) for number, entries in self.folders.items()}
        n_changes = len(self.pending)
        if plan.journal:
            first = self.journaled
            n_kept = {0: n_changes, 1: first}.get(plan.names_lost, rng.randint(first, n_changes))
            kept = [index < n_kept for index in range(n_changes)]
        else:
            kept = [rng.random() >= plan.names_lost for _ in self.pending]
        for change, happened in zip(self.pending, kept, strict=True):
            if happened:
                change.apply(folders)
        return folders

    def write(self, target: Path, rng: random.Random, plan: Plan) -> None:
        """Make the state after a cut in the folder `target`, which must not exist."""
        folders = self.folders_after_cut(rng, plan)
        made: dict[int, Path] = {}
        waiting = [(0, target)]
        while waiting:
            number, path = waiting.pop()
            path.mkdir(mode=0o700)
            for name, inner in sorted(folders[number].items()):
                place = path / name
                if inner in folders:
                    waiting.append((inner, place))
                elif inner in made:
                    os.link(made[inner], place)
                else:
                    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(fd, "wb") as file:
                        file.write(self.files[inner].after_cut(rng, plan))
                    made[inner] = place


# The commands of one log, all on one store; a number: killed at this part of its calls. DAMAGE is none: a shard is cut.
DAMAGE = "damage"
STORY = [("train", None), ("stdin", 0.6), ("abort", None), ("stdin", 0.75), ("resume", None), ("compact", None), ("vacuum", None),
         ("reshard", None),
         ("forget", None), ("purge", None), ("checkpoint", None), ("compile", None), ("label-more", None), ("keep-labels", None),
         (DAMAGE, None), ("recover", None), ("delete", None)]


@dataclasses.dataclass
class Moment:
    """What a user knows at a place of the log."""

    done: str | None = None          # the last workload that has ended
    current: str | None = None       # the one at work
    committed: bool = False          # its version was committed

    def after(self, mark: str) -> Moment:
        """Return the moment after a mark."""
        word, _, name = mark.partition(" ")
        if word == "begin":
            return Moment(self.done, name)
        if word == "done":
            return Moment(name)
        return Moment(self.done, self.current, True)


_calls: list[Call] = []
_inode = 0                       # of the folder
_disk: Disk | None = None        # after the first _position calls, told to a disk that lies, or to an honest one
_moment = Moment()
_position = 0
_lies = False


def record(folder: str, n_calls: dict[str, int]) -> list[int]:
    """Run the story in the folder of workloads.prepare(); return the place in the log at which each command begins."""
    disk, log = Path(folder) / "disk", Path(folder) / "power-log"
    fresh(WORKLOADS["train"], disk)
    loaded, inode = Loaded(), disk.stat().st_ino

    def begin(name: str, at: int) -> Callable[[], None]:
        def first() -> None:
            commit = Root.commit_job

            def marked(*arguments, **options) -> None:
                commit(*arguments, **options)
                loaded.mark("committed")

            Root.commit_job = marked
            loaded.arm(disk, at, Kind.KILL_BEFORE if at else Kind.NONE, log, data=True)
            loaded.mark(f"begin {name}")
        return first

    for name, part in STORY:
        if name == DAMAGE:
            in_child(lambda: _damage(loaded, begin(DAMAGE, 0), disk / "store"))
            workloads.remember_cut(disk / "store")
            continue
        workload = WORKLOADS[name]
        ended = run(workload, disk / "store", begin(name, int(part * n_calls[name]) if part else 0),
                    last=lambda: loaded.mark(f"done {name}"))      # noqa: B023 - called before the next turn
        assert ended.code == (-9 if part else 0), ended.err
        if not part:
            in_child(lambda: same(disk / "store", workload.holds))      # noqa: B023 - likewise
    _calls[:] = read_log(log)
    log.unlink()
    _restart(inode, False)
    return [place for place, call in enumerate(_calls) if call.path.startswith("begin ")] + [len(_calls)]


def _damage(loaded: Loaded, begin: Callable[[], None], store: Path) -> None:
    """Cut a shard, as durably as the rest of the log is."""
    begin()
    damage_shard(store, "cut")
    fd = os.open(next((store / "shards").glob("0000.*/data.mdb")), os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    loaded.mark(f"done {DAMAGE}")


def _restart(inode: int, lies: bool) -> None:
    """Go back to the beginning of the log."""
    global _inode, _disk, _moment, _position, _lies
    _inode, _disk, _moment, _position, _lies = inode, Disk(inode), Moment(), 0, lies


def cut(folder: str, position: int, seed: int | str, lies: bool) -> dict:
    """Cut the power after so many calls of the log, open what is left, end the work as a user would, and compare.

    lies: the disk does nothing when it is asked to sync.

    Returns:
        "moment": what was going on; "how": it was ended; "failure": None, or what is wrong.
    """
    global _moment, _position
    if position < _position or lies != _lies:
        _restart(_inode, lies)
    while _position < position:
        call = _calls[_position]
        _position += 1
        if call.op == Op.MARK:
            _moment = _moment.after(call.path)
        elif not lies:
            _disk.apply(call)
        elif call.op != Op.SYNC:
            _disk.apply(dataclasses.replace(call, flags=call.flags & ~SYNCED))
    rng = random.Random(seed)
    plan = Plan.draw(rng)
    disk = Path(folder) / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    _disk.write(disk, rng, plan)
    checked = forked(lambda: check(_moment, disk / "store", rng))
    failure = None
    if checked.code:
        failure = (f"cut after call {position} of {len(_calls)} ({_calls[position - 1] if position else 'none'}), seed {seed}, "
                   f"{plan}, {_moment}: exit {checked.code}: {checked.err}")
    return {"moment": _moment.current or f"after {_moment.done}", "how": checked.result, "failure": failure}


def check(moment: Moment, store: Path, rng: random.Random) -> str:
    """Assert that a store after a power cut holds what was acknowledged, and that the work can be ended; return how."""
    if DAMAGE in (moment.done, moment.current):
        if moment.current == DAMAGE:
            workloads._cut = b""                               # it may be whole yet
        return finish(WORKLOADS["recover"], store, rng)
    if moment.done or moment.committed:
        holds = WORKLOADS[moment.current if moment.committed else moment.done]
        version, _, _, pending = summary(store)
        assert version >= holds.version, "an acknowledged version is lost"
        assert not (moment.committed and pending)
    if moment.current:
        return finish(WORKLOADS[moment.current], store, rng)
    if moment.done:
        assert (version, pending) == (holds.version, False)
        same(store, holds.holds)
    return "nothing to do"

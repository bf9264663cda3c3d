"""Commands that change a store, what the store holds before and after, and how a user ends one that failed.

Runs in the server (server.py), which prepares every workload once. A new one is a line of WORKLOADS.
"""
from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from processes import contents, counted, damage_shard, summary, zipf_text

import kvps
from faults.library import CREATED, Kind, Loaded, read_log
from faults.server import Ended, cli, forked
from kvps.errors import KvpsError
from kvps.store import depot

ORDER, SHARDS = 3, 2
NEW = ("--order", ORDER, "--shards", SHARDS)
# One thread, so that the calls of a command have the same numbers every time; splits of 2 KiB.
WORK = ("--threads", 1, "--memory", "32K")
V1 = Path(__file__).parents[1] / "data" / "v1"        # stores of format 1


@dataclasses.dataclass(frozen=True)
class Workload:
    """A command, as data: STORE is the store, DEPOT a place with a checkpoint, ROWS keys and counts.

    A letter is a text, `-` the one of `stdin`.
    """

    name: str
    start: str | None            # the workload that leaves the store as this one finds it; None: there is none yet
    command: tuple               # what follows `kvps`
    version: int                 # that it leaves
    holds: str                   # the texts that are counted then
    is_job: bool = True          # it can be resumed and aborted
    repeat: int = 0              # exit code of the command given once more after it was done
    stdin: str = ""
    killed_at: float = 0         # the workload `start` is killed at this part of its calls, so that its job is pending
    anew: str | None = None      # the workload to run after the job was aborted, if it is another one
    models: bool = False         # it makes a compiled model
    then: tuple = ()             # a command that must end well when the work is ended
    deletes: str = ""            # the checkpoint that is gone then; `repeat` is meant for a store without it
    makes: str = ""              # the table that is there then; `repeat` is meant for a store that has it
    drops: str = ""              # the table that is gone then; `repeat` is meant for a store without it
    pushes: bool = False         # the rows are in table "t" then, each once
    finds: str = ""              # "damaged": a shard is cut when it begins; "old": a store of format 1; readers refuse both

    def arguments(self, store: Path) -> list[object]:
        """Return the command line."""
        return _paths(self.command, store)

    @property
    def base(self) -> Workload | None:
        """The last workload whose version is committed when this one begins."""
        start = WORKLOADS[self.start] if self.start else None
        return start.base if self.killed_at else start


def _paths(command: tuple, store: Path) -> list[object]:
    """Return a command line with the paths that its words stand for."""
    depot = _folder / "after-checkpoint" / "store" / "checkpoints"
    named = {"STORE": store, "DEPOT": depot, "ROWS": _folder / "rows"}
    return [named.get(part, _folder / part if part in TEXTS else part) for part in command]


WORKLOADS = {workload.name: workload for workload in [
    Workload("train", None, ("train", "STORE", "a", "c", *NEW, *WORK), 1, "ac"),
    Workload("train-stdin", None, ("train", "STORE", "-", *NEW, *WORK), 1, "c", stdin="c"),
    Workload("update", "train", ("update", "STORE", "b", *WORK), 2, "abc"),
    Workload("stdin", "train", ("update", "STORE", "-", *WORK), 2, "abc", stdin="b"),
    Workload("resume", "stdin", ("resume", "STORE", "--threads", 1), 2, "abc", killed_at=0.7, anew="update"),
    Workload("abort", "stdin", ("abort", "STORE"), 1, "ac", is_job=False, killed_at=0.7),
    Workload("forget", "update", ("forget", "STORE", "c", *WORK), 3, "ab", repeat=1),
    Workload("label", "train", ("update", "STORE", "b", "--label", "mon", *WORK), 2, "abc"),
    Workload("forget-label", "label", ("forget", "STORE", "--label", "mon", "--threads", 1), 3, "ac", repeat=1),
    Workload("purge", "forget", ("forget", "STORE", "--purge", "--threads", 1), 3, "ab", is_job=False),
    Workload("compact", "update", ("compact", "STORE", "--threads", 1), 2, "abc", is_job=False),
    Workload("vacuum", "update", ("compact", "STORE", "--vacuum", "--threads", 1), 2, "abc", is_job=False),
    Workload("reshard", "label", ("reshard", "STORE", "--shards", 3, "--threads", 1), 2, "abc", is_job=False),
    Workload("compile", "forget", ("compile", "STORE", "--threads", 1), 3, "ab", is_job=False, models=True),
    Workload("checkpoint", "forget", ("checkpoint", "create", "STORE", "x"), 3, "ab", is_job=False,
             then=("checkpoint", "verify", "STORE", "x")),
    Workload("label-more", "checkpoint", ("update", "STORE", "c", "--label", "mon", *WORK), 4, "abc"),
    Workload("keep-labels", "label-more", ("update", "STORE", "d", "--label", "tue", "--keep-labels", 1, *WORK), 5, "abd"),
    Workload("recover", "keep-labels", ("recover", "STORE", "--yes", *WORK), 5, "abd", is_job=False, finds="damaged"),
    Workload("delete", "keep-labels", ("checkpoint", "delete", "STORE", "x"), 5, "abd", is_job=False, repeat=1, deletes="x"),
    Workload("table", "train", ("table", "create", "STORE", "t", "--key-bytes", 8, "--shards", 2), 1, "ac", is_job=False, repeat=1,
             makes="t"),
    Workload("table-push", "table", ("table", "push", "STORE", "t", "ROWS", "--client", "me", "--batch", 40), 1, "ac",
             is_job=False, pushes=True),
    Workload("table-drop", "table-push", ("table", "drop", "STORE", "t"), 1, "ac", is_job=False, repeat=1, drops="t"),
    Workload("upgrade", None, ("upgrade", "STORE"), 4, "o", is_job=False, finds="old"),
    Workload("restore", None, ("checkpoint", "restore", "--from", "DEPOT", "x", "--into", "STORE"), 3, "ab", repeat=1),
]}
# Text a has more splits than runs may pile up before they are merged. Long words make many splits of few tokens.
TEXTS = {"a": (1, 300), "b": (2, 40), "c": (3, 40), "d": (4, 40)}        # seed, lines
OLD = "o"                                         # stands for the text of the store of format 1

_folder = Path()                                  # the texts, and a store after each workload
_texts: dict[str, bytes] = {}
_expected: dict[str, Counter] = {}                # what a store holds that holds these texts
_figures: dict[str, object] = {}                  # what a model of it says about text b
_rows: list[tuple[int, int]] = []                  # what is pushed to tables
_cut = b""                                        # what is in the file that was damaged, which must be kept


def prepare(folder: str) -> dict[str, list[tuple[int, bool]]]:
    """Run every workload once, undisturbed, in `folder`; return (Op, whether it makes a file) of the calls of each."""
    global _folder
    _folder = Path(folder)
    depot.WORKERS = 1                # the calls of a command have the same numbers every time
    for name, (seed, n_lines) in TEXTS.items():
        _texts[name] = zipf_text(seed, n_lines, n_words=200, words_per_line=8).replace(b"w", b"quite-a-word")
        (_folder / name).write_bytes(_texts[name])
    rng = random.Random(5)
    for _ in range(280):
        key, count = rng.randrange(60), rng.randrange(-3, 9)
        _rows.append((key, count))
    (_folder / "rows").write_text("".join(f"{key},{count}\n" for key, count in _rows))
    _texts[OLD] = (V1 / "a.txt").read_bytes() + b"the cat of stdin\n"
    for texts in ("", *(workload.holds for workload in WORKLOADS.values())):
        _expected[texts] = counted(b"".join(_texts[name] for name in texts), ORDER)
    found = {}
    for workload in WORKLOADS.values():
        if workload.killed_at:
            _pending(workload, int(workload.killed_at * len(found[workload.start])))
        disk, log = _folder / "disk", _folder / "log"
        store = fresh(workload, disk)
        ended = run(workload, store, lambda: Loaded().arm(disk, log=log))      # noqa: B023 - called before the next turn
        assert ended.code == 0, ended.err
        found[workload.name] = [(int(call.op), bool(call.flags & CREATED)) for call in read_log(log)]
        log.unlink()
        in_child(lambda: same(store, workload.holds))                          # noqa: B023 - likewise
        if workload.models:
            _figures[workload.holds] = figures(store)
        shutil.copytree(disk, _folder / f"after-{workload.name}")
    return found


def _pending(workload: Workload, at: int) -> None:
    """Make the store that a workload finds whose predecessor was killed."""
    killed = WORKLOADS[workload.start]
    disk = _folder / "disk"          # where it will be used: a job's record names the copy of stdin by its whole path
    store = fresh(killed, disk)
    ended = run(killed, store, lambda: Loaded().arm(disk, at, Kind.KILL_BEFORE))
    assert ended.code == -9
    assert in_child(lambda: summary(store)[3]), "no job is pending"
    shutil.copytree(disk, _folder / f"killed-{workload.name}")


def fresh(workload: Workload, disk: Path) -> Path:
    """Empty `disk`, put there the store that a workload starts from, if there is one, and return the store's path."""
    global _cut
    disk.mkdir(exist_ok=True)          # a disk of its own perhaps, which cannot be removed
    for entry in disk.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if workload.start:
        shutil.copytree(_folder / (f"killed-{workload.name}" if workload.killed_at else f"after-{workload.start}") / "store",
                        disk / "store")
    _cut = b""
    if workload.finds == "old":
        shutil.copytree(V1 / "idle", disk / "store")
    if workload.finds == "damaged":
        damage_shard(disk / "store", "cut")
        remember_cut(disk / "store")
    return disk / "store"


def remember_cut(store: Path) -> None:
    """Note what is in the damaged file of a store, which must not be lost."""
    global _cut
    _cut = next((store / "shards").glob("0000.*/data.mdb")).read_bytes()


def run(workload: Workload, store: Path, first: Callable[[], None], **more: Callable[[], None]) -> Ended:
    """Run a workload's command in a child, `first` before it; `more` as cli()."""
    return cli(workload.arguments(store), stdin=_texts.get(workload.stdin), first=first, **more)


def in_child(function: Callable[[], object]) -> object:
    """Return what a function returns in a child; AssertionError with its traceback, or its signal."""
    ended = forked(function)
    assert ended.code == 0, f"exit {ended.code}: {ended.err}"
    return ended.result


def same(store: Path, texts: str) -> None:
    """Assert that a store holds the counts of these texts and no others."""
    assert contents(store) == _expected[texts]


def readable(workload: Workload, store: Path) -> bool:
    """Return whether a store that readers refused at first is as it should be now, and assert that it is nothing else.

    Of a damaged shard nothing may be lost meanwhile.
    """
    assert not _cut or any(file.read_bytes() == _cut for file in store.rglob("data.mdb")), "the damaged shard is lost"
    try:
        same(store, workload.holds)
    except KvpsError:
        return False
    return True


def is_deleted(workload: Workload, store: Path) -> bool:
    """Return whether a workload has deleted its checkpoint."""
    if not workload.deletes:
        return False
    with kvps.open(store) as opened:
        return workload.deletes not in [found["name"] for found in opened.checkpoints()]


def is_made(workload: Workload, store: Path) -> bool:
    """Return whether a workload has made its table, or dropped it."""
    if not workload.makes and not workload.drops:
        return False
    with kvps.open(store) as opened:
        found = opened.tables()
    return workload.makes in found if workload.makes else workload.drops not in found


def pushed(store: Path) -> None:
    """Assert that table "t" holds every row once."""
    expected = Counter()
    for key, count in _rows:
        expected[key] += count
    with kvps.open(store) as opened, opened.table("t") as table:
        found = {key: count for keys, counts in table.scan() for key, count in zip(keys.tolist(), counts.tolist(), strict=True)}
    assert found == {key: count for key, count in expected.items() if count}


def figures(store: Path) -> object:
    """Return what the model of a store says about a text."""
    ended = cli(["perplexity", store, _folder / "b", "--threads", 1, "--json"])
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def fault(name: str, at: int, kind: int, seed: int | str) -> dict:
    """Let a workload's call number `at` go wrong, end the work as a user would, and compare.

    Returns:
        "fired": the call that went wrong, "" if there was none; "code": the command's exit code; "how": it was ended;
        "failure": None, or what is wrong with the outcome.
    """
    workload, kind = WORKLOADS[name], Kind(kind)
    disk = _folder / "disk"
    store = fresh(workload, disk)
    loaded = Loaded()
    ended = run(workload, store, lambda: loaded.arm(disk, at, kind))
    fired = loaded.fired()
    checked = forked(lambda: check(workload, store, kind if fired else Kind.NONE, ended, random.Random(seed)))
    failure = None
    if checked.code:
        failure = (f"{name}, {kind.name} at {at} ({fired}), seed {seed}: exit {ended.code}: {ended.err.strip()}\n"
                   f"then exit {checked.code}: {checked.err}")
    return {"fired": fired, "code": ended.code, "how": checked.result, "failure": failure}


def check(workload: Workload, store: Path, kind: Kind, ended: Ended, rng: random.Random) -> str:
    """Assert that a command ended as it may, and that its work can be ended; return how."""
    check_end(kind, ended, store.parent)
    if ended.code == 0:
        same(store, workload.holds)
    return finish(workload, store, rng)


def check_end(kind: Kind, ended: Ended, disk: Path) -> None:
    """Assert that a command ended with an exit code that it may have after this fault, and told why."""
    code, err = ended.code, ended.err
    if kind.kills:
        assert code == -9
        return
    assert code in ({0} if kind == Kind.NONE else {0, 1, 4}), f"exit {code}"
    assert "Traceback" not in err
    if code:
        assert err.count("\n") == 1, "the error is not one line"
        # The copy of stdin is called what the user calls it.
        assert str(disk) in err or err.startswith("kvps: -: "), "the error names no place"
        assert "unexpected" not in err, "nobody expected this error"
        assert "shows where" not in err, "nobody expected this error"
        if kind in (Kind.ENOSPC_ONCE, Kind.ENOSPC_EVER, Kind.SHORT_ENOSPC):
            assert (code, "disk full" in err) == (4, True), "a full disk is not called one"


def finish(workload: Workload, store: Path, rng: random.Random, how: str | None = None) -> str:
    """Assert that a store holds what it held before or after a workload, end the work, and compare; return how.

    how: "abort" and do it anew, "resume", "again" (the same command) or "nothing" (only where nothing is left to do); a
    random one by default.
    """
    base = workload.base
    version, before = (base.version, base.holds) if base else (0, "")
    done, pending = False, False
    if workload.finds and not readable(workload, store):
        how = "again"
    elif workload.start or store.exists():
        found, _, _, pending = summary(store)
        assert found in (version, workload.version)
        done = (workload.is_job and found == workload.version) or is_deleted(workload, store) \
            or is_made(workload, store)
        assert not (done and pending)
        # Readers never see half a job.
        same(store, workload.holds if done or workload.finds else before)
    how = how or rng.choice(["abort", "resume", "again", "nothing"])
    if not done and (how == "nothing" or not (pending and workload.is_job)):
        how = "again"                                          # there is nothing to resume or to abort
    command = workload
    if how == "abort" and pending:
        assert _cli(["abort", store]) == 0
        same(store, before)
        assert not summary(store)[3]
        command = WORKLOADS[workload.anew or workload.name]
    if how == "resume":
        assert _cli(["resume", store]) == 0
    elif how != "nothing":
        assert _cli(command.arguments(store), stdin=_texts.get(command.stdin)) == (command.repeat if done else 0)
    found, _, _, pending = summary(store)
    assert (found, pending) == (workload.version, False)
    same(store, workload.holds)
    assert not workload.finds or readable(workload, store)
    assert not workload.deletes or is_deleted(workload, store)
    assert not workload.drops or is_made(workload, store)
    if workload.models:
        assert figures(store) == _figures[workload.holds]
    if workload.pushes:
        pushed(store)
    if workload.then:
        assert _cli(_paths(workload.then, store)) == 0
    if done and how in ("resume", "nothing"):
        return f"{how} after it was done"
    # What a killed command left behind goes with the next job; a model's temporary file is let alone for a second.
    left = [path.name for path in store.rglob("*") if ".tmp" in path.name or path.name.startswith("spool")]
    assert not left or not workload.is_job or (done and workload.anew), f"left behind: {left}"
    beside = [entry for entry in store.parent.iterdir() if entry != store and (entry / "owner.lock").exists()]
    assert not beside, f"left beside the store: {beside}"
    return how


def _cli(arguments: list[object], **options) -> int:
    """Run a command without a fault and return its exit code; its error goes to ours."""
    ended = cli(arguments, first=lambda: Loaded().arm(None), **options)
    os.write(2, ended.err.encode())
    assert "Traceback" not in ended.err
    return ended.code

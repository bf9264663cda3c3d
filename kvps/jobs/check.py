"""Check a store: look at all of it, in a child process that damage may kill.

    fast       the structure: identity, seal, extents, pages, records, generations; what lies about
    checksums  and every checksum of every chunk, and what the chunks of a run add up to
    full       and every entry: order of keys, word ids, signs of counts, totals, compiled models, checkpoints

This module is both sides: check() in the caller's process reads lines of JSON that the child, `python -m
kvps.jobs.check`, writes, part after part. A child that dies, or says nothing for a minute, is a finding about the part it
was at; another one goes on.
"""
from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvps.errors import ArgumentError, CorruptionError, KvpsError, StoreError
from kvps.store import check as looks
from kvps.store import checkpoint, directory, layout, lock
from kvps.store.depot import open_depot
from kvps.store.findings import DAMAGE, LINK, Finding, Report, damage, warning

LEVELS = ("fast", "checksums", "full")
SILENCE_S = 60            # a child that reads says so every PULSE_S; one that is silent for so long will not end
PULSE_S = 1.0

Progress = Callable[[str, int, int | None], None]


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Show nothing."""


class Check:
    """One look at a store; iterate to have it done. Afterwards `version` and `n_shards` say what was looked at."""

    def __init__(self, path: str | Path, level: str = "checksums", *, quiet: bool = False, tables: bool = True,
                 progress: Progress = no_progress) -> None:
        """Note what to do.

        Args:
            path: of the store, perhaps a copy or one of somebody else.
            level: one of LEVELS.
            quiet: the caller holds the owner lock, so nobody else writes.
            tables: look at the tables of the store too.
            progress: called with (stage, done, total).

        Raises:
            StoreError: `path` is no store, or one of another format.
        """
        if level not in LEVELS:
            raise ArgumentError(f'the levels of a check are {", ".join(LEVELS)}, not "{level}"')
        self.path, self.level = Path(os.path.abspath(path)), level
        self.version: int | None = None        # None where the root cannot tell
        self.n_shards: int | None = None
        self._quiet, self._tables, self._progress = quiet, tables, progress
        looks.refuse_other(self.path)

    def __iter__(self) -> Iterator[Finding]:
        """Yield what is found."""
        yield from self._store()
        if self._tables:
            yield from self._of_tables()

    def _of_tables(self) -> Iterator[Finding]:
        """Yield what is found in the tables, each being a store directory with a writer of its own."""
        folder = self.path / layout.TABLES
        if folder.is_symlink() or not folder.is_dir():
            return
        for place in sorted(folder.iterdir()):
            if place.name == lock.NAME:            # of the server that serves them
                continue
            if ".tmp-" in place.name:
                yield warning("leftover", f"{place}: was not finished", path=str(place),
                              next="the next kvps table create removes it")
                continue
            if place.is_symlink():
                yield damage("root", f"{place}: is a symbolic link, which is not allowed inside a store", path=str(place),
                             found="a symbolic link", expected="the table itself", next=LINK)
                continue
            try:
                inner = Check(place, self.level, tables=False, progress=self._progress)
            except KvpsError as exc:
                yield damage("root", str(exc).partition("; ")[0], path=str(place), found="no table", expected="a table")
            else:
                yield from inner

    def _store(self) -> Iterator[Finding]:
        """Yield what is found in the store itself."""
        quiet = self._quiet
        if not quiet:
            writer = _writer(self.path)
            quiet = writer is None
            if writer is not None:
                yield warning("writer", f"{self.path}: process {writer.get('pid') or '(starting)'} is writing "
                              f"({writer.get('command') or 'kvps'}), so the pages of its files were not walked",
                              path=str(self.path))
        task = {"path": str(self.path), "level": self.level, "quiet": quiet, "done": [], "bad": []}
        while True:
            at, ended, fell = ["root"], False, ""
            with _child(task) as child:
                for line in _lines(child):
                    message = json.loads(line)
                    if "finding" in message:
                        finding = _from_json(message["finding"])
                        if finding.severity == DAMAGE and finding.shard is not None:
                            task["bad"].append(finding.shard)
                        yield finding
                    elif "at" in message:
                        at = message["at"]
                    elif "done" in message:
                        task["done"].append(message["done"])
                    elif "progress" in message:
                        self._progress(*message["progress"])
                    elif "error" in message:
                        raise StoreError(message["error"], path=str(self.path))
                    elif "store" in message:
                        self.version, self.n_shards = message["store"]
                    elif "fell" in message:
                        fell = message["fell"]
                    elif "end" in message:
                        ended = True
            if ended:
                return
            yield _died(self.path, at, fell or _ending(child.returncode))
            if at in task["done"]:             # it would die there again
                return
            task["done"].append(at)
            if at == ["root"]:
                return


def check(path: str | Path, level: str = "checksums") -> list[Finding]:
    """Return all that is found; see Check."""
    return list(Check(path, level))


def is_damaged(findings: list[Finding]) -> bool:
    """Return whether there is more than warnings."""
    return any(finding.severity == DAMAGE for finding in findings)


def _writer(path: Path) -> dict | None:
    with contextlib.suppress(StoreError):      # no lock file, or a link: nobody holds it
        return lock.owner(path)
    return None


@contextlib.contextmanager
def _child(task: dict) -> Iterator[subprocess.Popen]:
    """Start a child at work on a task; gives it with its stdout open."""
    ours = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: the folder that we happen to be in may hold modules of whoever made the store.
    with subprocess.Popen([sys.executable, "-P", "-m", "kvps.jobs.check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths}) as child:
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(task).encode("ascii"))
                child.stdin.close()
            yield child
            child.wait()
        except BaseException:
            child.kill()
            raise


def _lines(child: subprocess.Popen) -> Iterator[bytes]:
    """Yield what a child says, line by line; one that falls silent is killed, which is said in its place."""
    poll, rest = select.poll(), b""
    poll.register(child.stdout)
    while True:
        # Second by second, so that a computer that sleeps, or a user who stops us both, is no silence.
        if not any(poll.poll(1000) for _ in range(SILENCE_S)):
            child.kill()
            yield json.dumps({"fell": f"nothing was read for {SILENCE_S} s"}).encode("ascii")
            return
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _died(path: Path, at: list, why: str) -> Finding:
    part, *rest = at
    place = f"{path}: {f'shard {rest[0]}' if rest else 'the root'}" if part in ("root", "shards", "counts") else f"{path}: {part}"
    kind = {"shards": "shard", "models": "model", "checkpoints": "checkpoint"}.get(part, part)
    return damage(kind, f"{place}: reading it killed the process that looked ({why})", path=str(path),
                  shard=rest[0] if rest else None, found=why, expected="a sound file")


def _from_json(row: dict) -> Finding:
    return Finding(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})


# The child

_turn = threading.Lock()


def _say(**message: Any) -> None:
    with _turn:
        sys.stdout.write(json.dumps(message, default=str) + "\n")
        sys.stdout.flush()


def _pulse(over: threading.Event) -> None:
    """Say now and then that more of the files is read, as its pages show: a walk over a large one says nothing else."""
    before = None
    while not over.wait(PULSE_S):
        used = resource.getrusage(resource.RUSAGE_SELF)
        now = used.ru_minflt, used.ru_majflt, used.ru_inblock
        if now != before:
            _say(alive=True)
        before = now


def _ended(*place: object) -> None:
    _say(done=place)


def _tell(finding: Finding) -> None:
    _say(finding={name: getattr(finding, name) for name in Finding.__dataclass_fields__})


class _Look:
    """What the child does: the parts of a task that are not done."""

    def __init__(self, task: dict) -> None:
        self.path, self.level, self.quiet = Path(task["path"]), task["level"], task["quiet"]
        self.done, self.bad = task["done"], set(task["bad"])
        self.report = Report(_tell)

    def run(self) -> None:
        """Look at everything; what an earlier child said about the root is not said again."""
        again = ["root"] in self.done
        first = Report() if again else self.report
        _say(at=["root"])
        root = looks.look_at_root(self.path, first, quiet=self.quiet)
        if not again:
            looks.look_for_leftovers(self.path, root, self.report)
            _say(store=(root and root["state"]["version"], root and root["identity"]["shards"]))
            _ended("root")
        if root is None:
            return
        n_shards = root["identity"]["shards"]
        chunk_bytes = _Bytes("checksums")
        for number in range(n_shards):
            if self.begin("shards", number):
                looks.look_at_shard(self.path, number, root, self.report, quiet=self.quiet, chunks=self.level != "fast",
                                    progress=chunk_bytes.add)
                _ended("shards", number)
        if self.level == "full":
            self.look_inside(n_shards)

    def begin(self, *place: object) -> bool:
        """Return whether a part is still to be done, and say that we are at it."""
        if list(place) in self.done:
            return False
        _say(at=place)
        return True

    def look_inside(self, n_shards: int) -> None:
        """Decode everything, where the files are sound enough."""
        from kvps.jobs.counts import look_at_counts, look_at_models, look_at_table

        bad = self.bad | {finding.shard for finding in self.report.found if finding.severity == DAMAGE}
        try:
            with directory.StoreDirectory(self.path, False, None) as store, store.snapshot() as snapshot:
                look = look_at_table if "table" in store.identity else look_at_counts
                sound = look(store, snapshot, bad, self.report, self.begin, _ended, _progress_of("counts"))
                if look is look_at_counts and self.begin("models"):
                    look_at_models(store, snapshot, self.report, _progress_of("models"), walk=sound)
                    _ended("models")
        except (CorruptionError, StoreError) as exc:
            self.report.add(warning("counts", f"{self.path}: the counts were not looked at, because the store cannot be opened: "
                                    f"{str(exc).partition('; ')[0]}", path=str(self.path),
                                    next=str(exc).partition("; ")[2] or "look at the other findings"))
        if self.begin("checkpoints"):
            self.look_at_checkpoints()
            _ended("checkpoints")

    def look_at_checkpoints(self) -> None:
        """Verify the checkpoints that lie in the store."""
        place = self.path / layout.CHECKPOINTS
        if not place.is_dir() or place.is_symlink():
            return
        for row in checkpoint.verify(open_depot(place)):
            for found in row["findings"]:
                self.report.add(damage("checkpoint", found["message"].partition("; ")[0], path=found["path"],
                                       found=found["found"], expected=found["expected"]))


class _Bytes:
    """Progress of a stage whose parts are told one by one."""

    def __init__(self, stage: str) -> None:
        self._stage, self._done, self._told = stage, 0, 0

    def add(self, n_bytes: int) -> None:
        """Count, and say it every few megabytes."""
        self._done += n_bytes
        if self._done - self._told >= 1 << 24:
            self._told = self._done
            _say(progress=[self._stage, self._done, None])


def _progress_of(stage: str) -> Callable[[int, int | None], None]:
    return lambda done, total: _say(progress=[stage, done, total])


def _main() -> None:
    task = json.load(sys.stdin)
    over = threading.Event()
    pulse = threading.Thread(target=_pulse, args=(over,))
    pulse.start()
    try:
        _Look(task).run()
        _say(end=True)
    except (KvpsError, OSError) as exc:
        _say(error=str(exc))
    except Exception as exc:                   # what was read was not thought of
        _say(fell=f"{type(exc).__name__}: {exc}")
    finally:
        over.set()
        pulse.join()


if __name__ == "__main__":
    _main()

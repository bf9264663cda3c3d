"""Look at the files of a store without trusting them: findings, each with its place.

Nothing is changed. Files are walked with pread before LMDB maps them, and links are refused; what LMDB then reads may
still kill the process, so jobs/check.py calls all this in a child.

    look_at_root    seal, identity, state, job, history, inputs, labels, vocabulary; what lies about
    look_at_shard   identity, manifest, ledger; with `chunks`, the checksum of every chunk, and what runs add up to
"""
from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvps.errors import CorruptionError, KvpsError, StoreError, VersionMismatch
from kvps.store import directory, environment, extents, files, lock, seal
from kvps.store import format as fmt
from kvps.store.environment import Environment
from kvps.store.root import FIRST_WORD
from kvps.store.shard import Run, _orphans
from kvps.store.transaction import Txn

DAMAGE, WARNING = "damage", "warning"
PAGE_BYTES = 4096
KEPT = "damaged"             # STORE/damaged, see rebuild.py
MAX_PER_FILE = 20            # findings of one file's pages: one that is torn has thousands

RECOVER = "keep a copy of the store, then run kvps recover"
RESTORE = "restore a checkpoint: kvps checkpoint list, then kvps checkpoint restore STORE NAME --into DIR"
OLDER = f"{RESTORE}; or kvps recover --accept-older"
LINK = "put the real file there"
SWEPT = "the next writer removes it"
AGAIN = "delete it, it will be made again"
# What a finding's part asks for, unless it says so itself.
NEXT = {"seal": RECOVER, "root": RESTORE, "shard": RECOVER, "counts": RECOVER, "model": AGAIN, "leftover": SWEPT,
        "checkpoint": "delete that checkpoint and make another one", "writer": "run kvps check again when it is done"}
_PLACE = re.compile(r"run (\d+)(?: chunk (\d+))?")
_PAGE = re.compile(r"\bpage (\d+)")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    severity: str                  # "damage" or "warning"
    part: str                      # seal, root, shard, counts, model, checkpoint, leftover, writer
    what: str                      # in words: what was found where, and what was expected
    next: str                      # what to do
    path: str | None = None
    shard: int | None = None
    run: int | None = None
    chunk: int | None = None
    offset: int | None = None      # in the file [bytes], where that is known
    found: object = None
    expected: object = None

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.what}; {self.next}"

    def to_json(self) -> dict[str, Any]:
        """Return {"severity", "part", "message", ...} with what is known."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None and name != "what"}
        return {**known, "message": str(self)}


def damage(part: str, what: str, **more: Any) -> Finding:
    """Return a finding of damage."""
    return Finding(DAMAGE, part, what, more.pop("next", NEXT[part]), **more)


def warning(part: str, what: str, **more: Any) -> Finding:
    """Return a finding that takes nothing away from what the store holds."""
    return Finding(WARNING, part, what, more.pop("next", NEXT[part]), **more)


def of_error(part: str, exc: KvpsError, **more: Any) -> Finding:
    """Return the finding for an exception that says what is damaged; run and chunk are read from its key."""
    place = _PLACE.match(str(getattr(exc, "key", None) or ""))
    numbers = {name: int(text) for name, text in zip(("run", "chunk"), place.groups(), strict=True) if text} if place else {}
    page = _PAGE.search(str(getattr(exc, "found", None) or ""))
    if page and "offset" not in more:
        more["offset"] = int(page[1]) * PAGE_BYTES
    known = {name: getattr(exc, name, None) for name in ("path", "found", "expected")}
    return damage(part, str(exc).partition("; ")[0], **{**known, **numbers, **more})


class Report:
    """Collects what was found; `tell` hears of each finding at once."""

    def __init__(self, tell: Callable[[Finding], None] = lambda finding: None) -> None:
        self.found: list[Finding] = []
        self._tell = tell

    def add(self, finding: Finding) -> None:
        """Add one."""
        self.found.append(finding)
        self._tell(finding)

    @contextlib.contextmanager
    def guarding(self, part: str, **more: Any) -> Iterator[None]:
        """Turn an error of the block that tells of damage into a finding."""
        try:
            yield
        except (CorruptionError, VersionMismatch) as exc:
            self.add(of_error(part, exc, **more))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            # A record with a checksum that is right, which no kvps wrote.
            self.add(damage(part, f"a record is not of its kind ({type(exc).__name__}: {exc})", **more))


# Files, before LMDB sees them

def _is_link(report: Report, path: Path, part: str, **more: Any) -> bool:
    if not path.is_symlink():
        return False
    report.add(damage(part, f"{path}: is a symbolic link, which is not allowed inside a store", path=str(path),
                      found="a symbolic link", expected="the file itself", next=LINK, **more))
    return True


def _file_is_sound(report: Report, folder: Path, part: str, sealed: list[int] | None, quiet: bool, **more: Any) -> bool:
    """Look at a data file with pread alone; return whether LMDB may map it."""
    data = folder / "data.mdb"
    if any(_is_link(report, path, part, **more) for path in (folder, data, folder / "lock.mdb")):
        return False
    if not files.exists(data):
        report.add(damage(part, f"{data}: is missing", path=str(data), found="nothing", expected="an LMDB file", **more))
        return False
    before = len(report.found)
    with report.guarding(part, **more):
        extents.check(data)
        n_bytes = seal.stamp(data)[0]
        if sealed and n_bytes < sealed[0]:
            report.add(damage(part, f"{data}: {n_bytes} bytes, expected at least {sealed[0]}: the file was cut short",
                              path=str(data), offset=n_bytes, found=n_bytes, expected=sealed[0], **more))
        elif quiet:
            _walk(report, data, part, **more)
    return len(report.found) == before


def _walk(report: Report, data: Path, part: str, **more: Any) -> None:
    for what in environment.problems(data)[:MAX_PER_FILE]:
        page = _PAGE.search(what)
        report.add(damage(part, f"{data}: {what}", path=str(data), found=what, expected="a sound tree of pages",
                          offset=int(page[1]) * PAGE_BYTES if page else None, **more))


# The root

def roots(path: Path) -> list[str]:
    """Return the names of the folders of a store that may be its root, newest first."""
    found = [entry.name for entry in path.glob(f"{directory.ROOT}*") if entry.name[len(directory.ROOT):].isdigit()]
    return sorted(found, key=lambda name: int(name[len(directory.ROOT):]), reverse=True)


def root_name(path: Path) -> str:
    """Return the name of the root's folder: what the seal says, or else the newest one; CorruptionError if there is none."""
    with contextlib.suppress(CorruptionError, StoreError):
        return seal.read(path)["root"]
    if not (names := roots(path)):
        raise CorruptionError(f"{path}: has no root; {RESTORE}", path=str(path), found="nothing", expected="root.N")
    return names[0]


def look_at_root(path: Path, report: Report, *, quiet: bool) -> dict | None:
    """Look at the seal and the root.

    quiet: nobody is writing, so that pages can be walked.

    Returns:
        What look_at_shard() wants to know: "name", "identity", "state", "seal", "job", "words"; None where the root is
        not sound enough to tell.
    """
    for name in (directory.SHARDS, lock.NAME, directory.SPOOL, directory.TABLES, "models", "checkpoints", KEPT):
        _is_link(report, path / name, "root")
    sealed = None
    if not _is_link(report, path / seal.NAME, "seal"):
        if files.exists(path / seal.NAME):
            with report.guarding("seal"):
                sealed = seal.read(path)
        else:
            report.add(damage("seal", f"{path / seal.NAME}: is missing", path=str(path / seal.NAME), found="nothing",
                              expected="a seal"))
    names = [sealed["root"]] if sealed else roots(path)
    if not names:
        report.add(damage("root", f"{path}: has no root", path=str(path), found="nothing", expected="root.N"))
        return None
    name = names[0]
    before = len(report.found)
    stamps = (sealed or {}).get("files", {})
    if not _file_is_sound(report, path / name, "root", stamps.get(name), quiet):
        return None
    found: dict = {"name": name, "seal": sealed}
    with report.guarding("root"), contextlib.closing(Environment.open(path / name)) as env, env.read() as txn:
        _read_root(path, txn, env, report, found, sealed)
    return found if "state" in found and not any(finding.part == "root" and finding.severity == DAMAGE
                                                 for finding in report.found[before:]) else None


def _read_root(path: Path, txn: Txn, env: Environment, report: Report, found: dict, sealed: dict | None) -> None:
    where = str(env.data)
    identity = _required(txn, fmt.IDENTITY, where)
    fmt.check_identity(identity, where)
    state = _required(txn, fmt.STATE, where)
    if state.get("txn") != txn.id:
        raise fmt.damaged(where, fmt.STATE, "transaction id", state.get("txn"), txn.id)
    found |= {"identity": identity, "state": state}
    if len(state["shards"]) != identity["shards"]:
        raise fmt.damaged(where, fmt.STATE, "number of shards", len(state["shards"]), identity["shards"])
    if sealed and sealed["uuid"] != identity["uuid"]:
        report.add(damage("root", f"{where}: is of store {identity['uuid']}, expected {sealed['uuid']}", path=where,
                          found=identity["uuid"], expected=sealed["uuid"]))
    if sealed and state["generation"] < sealed["generation"]:
        report.add(damage("root", f"{where}: went back in time: generation {state['generation']} (version {state['version']}), "
                          f"expected at least {sealed['generation']} (version {sealed['version']})", path=where,
                          found=state["generation"], expected=sealed["generation"],
                          next=OLDER))
    value = txn.get(fmt.JOB)
    job = None
    if value is not None:
        with report.guarding("root"):
            job = fmt.unpack_row(fmt.JOB, value, where)
            if job["version"] != state["version"] + 1:
                raise fmt.damaged(where, fmt.JOB, "version", job["version"], state["version"] + 1)
    found["job"] = job and job["id"]
    with report.guarding("root"):
        _read_history(txn, where, state)
    with report.guarding("root"):
        _read_inputs(txn, where, state)
    with report.guarding("root"):
        found["words"] = _read_words(txn, where, state)
    if job is None:
        _look_for_spool(path, report)


def _required(txn: Txn, key: bytes, where: str) -> dict:
    value = txn.get(key)
    if value is None:
        raise fmt.damaged(where, key, "value", "none", "a record")
    return fmt.unpack_row(key, value, where)


def _read_history(txn: Txn, where: str, state: dict) -> None:
    """Each version has a row, and they add up to the totals."""
    tokens = sentences = number = 0
    for number, (key, value) in enumerate(txn.scan(fmt.HISTORY), 1):
        row = fmt.unpack_row(key, value, where)
        expected = fmt.numbered_key(fmt.HISTORY, number)
        if key != expected:
            raise fmt.damaged(where, key, "place", fmt.key_name(key), fmt.key_name(expected))
        tokens, sentences = tokens + row["tokens"], sentences + row["sentences"]
    for name, found, expected in (("versions in the history", number, state["version"]), ("tokens", state["tokens"], tokens),
                                  ("sentences", state["sentences"], sentences)):
        if found != expected:
            raise fmt.damaged(where, fmt.STATE, name, found, expected)


def _read_inputs(txn: Txn, where: str, state: dict) -> None:
    """Labels and inputs are readable, and agree with each other and the totals."""
    labels = {key[1:].decode(): fmt.unpack_row(key, value, where) for key, value in txn.scan(fmt.LABEL)}
    for name, row in labels.items():
        key = fmt.named_key(fmt.LABEL, name)
        if not 1 <= row["first"] <= row["last"] <= state["version"]:
            raise fmt.damaged(where, key, "versions", (row["first"], row["last"]), f"1 to {state['version']}")
        if row["sentences"] < 1 or row["tokens"] < 0:
            raise fmt.damaged(where, key, "tokens and sentences", (row["tokens"], row["sentences"]), "text")
    for name in ("tokens", "sentences"):
        total = sum(row[name] for row in labels.values())
        if total > state[name]:
            raise fmt.damaged(where, fmt.STATE, name, state[name], f"at least {total}, those of the labels")
    for key, value in txn.scan(fmt.INPUT):
        row = fmt.unpack_row(key, value, where)
        times = row["times"]
        if not times or any(not isinstance(n, int) or n < 1 for n in times.values()) or not times.keys() <= {"", *labels}:
            raise fmt.damaged(where, key, "times", times, "1 or more for each of its labels")
        if not 1 <= row["version"] <= state["version"]:
            raise fmt.damaged(where, key, "version", row["version"], f"1 to {state['version']}")


def _read_words(txn: Txn, where: str, state: dict) -> int:
    """Segments follow each other without a gap; return the first id that is not used."""
    following = FIRST_WORD
    for key, value in txn.scan(fmt.WORDS):
        first = int.from_bytes(key[1:])
        if first != following:
            raise fmt.damaged(where, key, "first id", first, following)
        try:
            following += len(fmt.check_words(fmt.unpack_blob(key, value, where)))
        except ValueError as exc:
            raise fmt.damaged(where, key, "contents", exc, "words and their lengths") from exc
    if following < state["words"]:
        raise fmt.damaged(where, fmt.WORDS, "number of word ids", following, f"at least {state['words']}")
    return following


# Shards

def shard_folder(path: Path, number: int, name: object) -> Path:
    """Return where the root says that a shard lies; CorruptionError where that is no place for a shard."""
    stem = f"{directory.SHARDS}/{number:04d}."
    if not isinstance(name, str) or not name.startswith(stem) or not name[len(stem):].isdigit():
        raise CorruptionError(f"{path}: shard {number} is said to be in {name}, expected {stem}N", path=str(path), key="state",
                              found=name, expected=f"{stem}N")
    return path / name


def look_at_shard(path: Path, number: int, root: dict, report: Report, *, quiet: bool, chunks: bool,
                  progress: Callable[[int], None] = lambda n_bytes: None) -> None:
    """Look at one shard; `root` is what look_at_root() returned.

    chunks: read every chunk.
    progress: called with the bytes of chunks read since the last call.
    """
    place = root["state"]["shards"][number]
    with report.guarding("shard", shard=number):
        folder = shard_folder(path, number, place["dir"])
        stamps = (root["seal"] or {}).get("files", {})
        if _file_is_sound(report, folder, "shard", stamps.get(place["dir"]), quiet, shard=number):
            size = directory.map_bytes(root["identity"]["shards"])
            with contextlib.closing(Environment.open(folder, map_bytes=size)) as env, env.read() as txn:
                _read_shard(txn, str(env.data), number, root, report, chunks, progress)


def _read_shard(txn: Txn, where: str, number: int, root: dict, report: Report, chunks: bool,
                progress: Callable[[int], None]) -> None:
    identity = _required(txn, fmt.IDENTITY, where)
    expected = {"uuid": root["identity"]["uuid"], "shard": number, "order": root["identity"]["order"],
                "shards": root["identity"]["shards"]}
    fmt.check_identity(identity, where, **expected)
    manifest = _required(txn, fmt.MANIFEST, where)
    if manifest.get("txn") != txn.id:
        raise fmt.damaged(where, fmt.MANIFEST, "transaction id", manifest.get("txn"), txn.id)
    least = root["state"]["shards"][number]["generation"]
    if manifest["generation"] < least:
        report.add(damage("shard", f"{where}: went back in time: generation {manifest['generation']}, expected at least {least}",
                          path=where, shard=number, found=manifest["generation"], expected=least))
    runs = [Run(row["id"], row["version"], row["job"], row["chunks"], row["keys"], row["bytes"], row["label"], row["until"],
                row["digest"]) for row in manifest["runs"]]
    ids = [run.id for run in runs]
    if len(set(ids)) != len(ids) or any(run.id >= manifest["next_run"] for run in runs):
        raise fmt.damaged(where, fmt.MANIFEST, "numbers of runs", ids, f"different ones below {manifest['next_run']}")
    for row in txn.scan(fmt.LEDGER):
        with report.guarding("shard", shard=number):
            fmt.unpack_row(*row, where)
    for key, value in txn.scan(fmt.CLIENT):
        with report.guarding("shard", shard=number):
            row = fmt.unpack_row(key, value, where)
            if not isinstance(row["sequence"], int) or row["sequence"] < 1:
                raise fmt.damaged(where, key, "sequence", row["sequence"], "1 or more")
    _look_for_leftovers(txn, where, number, root, runs, report)
    if chunks:
        for run in runs:
            _read_run(txn, where, number, identity["order"], run, report, progress)


def _look_for_leftovers(txn: Txn, where: str, number: int, root: dict, runs: list[Run], report: Report) -> None:
    version, job = root["state"]["version"], root["job"]
    # The ledger of the last job is there until the next one begins.
    counted = {"runs of jobs that are over": sum((run.version > version and run.job != job)
                                                 or (run.until is not None and run.until <= version) for run in runs),
               "chunks of runs that were not finished": sum(1 for _ in _orphans(txn, {run.id for run in runs}))}
    for what, n in counted.items():
        if n:
            report.add(warning("leftover", f"{where}: {n} {what}", path=where, shard=number, found=n, expected=0))


def _read_run(txn: Txn, where: str, number: int, order: int, run: Run, report: Report, progress: Callable[[int], None]) -> None:
    """Compare every chunk of a run with its checksum, and all of them with the manifest."""
    n_keys = n_bytes = 0
    digest, whole = "0" * 16, True
    for index in range(run.n_chunks):
        key = fmt.chunk_key(run.id, index)
        value = txn.view(key)
        with report.guarding("shard", shard=number, run=run.id, chunk=index):
            whole = False
            if value is None:
                raise fmt.damaged(where, key, "value", "none", f"chunk {index} of {run.n_chunks}")
            _, keys, found = fmt.unpack_chunk(key, value, where)
            if found != order:
                raise fmt.damaged(where, key, "order", found, order)
            n_keys, n_bytes = n_keys + keys, n_bytes + len(value)
            digest = fmt.add_digest(digest, fmt.chunk_digest(key, value))
            whole = True
            progress(len(value))
        if not whole:
            break
    after = txn.first_key(fmt.chunk_key(run.id, run.n_chunks))
    if after is not None and after.startswith(fmt.chunk_key(run.id, 0)[:9]):
        report.add(damage("shard", f"{where}: run {run.id} has more than the {run.n_chunks} chunks that the manifest lists",
                          path=where, shard=number, run=run.id, found=fmt.key_name(after), expected=f"{run.n_chunks} chunks"))
    if whole and (found := (n_keys, n_bytes, digest)) != (run.n_keys, run.bytes, run.digest):
        report.add(damage("shard", f"{where}: run {run.id} has keys, bytes and digest {found}, expected "
                          f"{(run.n_keys, run.bytes, run.digest)}", path=where, shard=number, run=run.id, found=found,
                          expected=(run.n_keys, run.bytes, run.digest)))


# What lies about

def look_for_leftovers(path: Path, root: dict | None, report: Report) -> None:
    """Look for folders that are not in force and files that were not finished; they do no harm."""
    kept = {root["name"], *(place["dir"] for place in root["state"]["shards"])} if root else None
    with files.reporting(path):
        folders = [*path.glob(f"{directory.ROOT}*"), *(path / directory.SHARDS).glob("*")]
        unfinished = list(path.glob("*.tmp-*"))
    for folder in sorted(folders):
        name = folder.relative_to(path).as_posix()
        if kept is not None and name not in kept:
            report.add(warning("leftover", f"{folder}: is not in force", path=str(folder)))
    for entry in sorted(unfinished):
        report.add(warning("leftover", f"{entry}: was not finished", path=str(entry)))
    if (path / KEPT).is_dir():
        report.add(warning("leftover", f"{path / KEPT}: what was replaced by kvps recover", path=str(path / KEPT),
                           next="remove it when it is of no use any more"))


def _look_for_spool(path: Path, report: Report) -> None:
    folder = path / directory.SPOOL
    if folder.is_dir() and not folder.is_symlink() and any(folder.iterdir()):
        report.add(warning("leftover", f"{folder}: copies of text, though no job is pending", path=str(folder),
                           next="kvps recover removes them"))


def refuse_other(path: Path) -> None:
    """Raise an error unless `path` is a store of our format, or what is left of one.

    Raises:
        StoreError: nothing of a store is there. VersionMismatch: a store of another format.
    """
    if seal.exists(path):
        try:
            seal.read(path)
        except VersionMismatch:
            raise
        except KvpsError:
            pass                   # a finding
        return
    if files.exists(path / "root" / "data.mdb"):
        raise VersionMismatch(f"{path}: is a store of format 1, this kvps reads {fmt.FORMAT_VERSION}; run kvps upgrade on it",
                              path=str(path), found=1, expected=fmt.FORMAT_VERSION)
    if not any((path / name / "data.mdb").exists() for name in roots(path)):
        what = "is not a kvps store: no seal, no root" if files.exists(path) else "no such store"
        raise StoreError(f"{path}: {what}", path=str(path))


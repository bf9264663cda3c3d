"""Look at the files of a store without trusting them: findings, each with its place.

Nothing is changed. Files are walked with pread before LMDB maps them, and links are refused; what LMDB then reads may
still kill the process, so jobs/check.py calls all this in a child.

    look_at_root    seal, identity, state, job, history, inputs, labels, vocabulary, routing; what lies about
    look_at_shard   identity, manifest, ledger; with `chunks`, the checksum of every chunk, and what runs add up to
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvps.errors import CorruptionError, KvpsError, StoreError, VersionMismatch
from kvps.store import environment, extents, files, layout, lock, records, seal
from kvps.store import format as fmt
from kvps.store.environment import Environment
from kvps.store.findings import DAMAGE, LINK, OLDER, RESTORE, Report, damage, page_offset, warning
from kvps.store.root import FIRST_WORD
from kvps.store.runs import Run, RunTotal
from kvps.store.shard import Snapshot, orphans
from kvps.store.transaction import Txn

MAX_PER_FILE = 20            # findings of one file's pages: one that is torn has thousands


# Files, before LMDB sees them

def _is_link(report: Report, path: Path, part: str, **more: Any) -> bool:
    if not path.is_symlink():
        return False
    report.add(damage(part, f"{path}: is a symbolic link, which is not allowed inside a store", path=str(path),
                      found="a symbolic link", expected="the file itself", next=LINK, **more))
    return True


def _file_is_sound(report: Report, folder: Path, part: str, sealed: list[int] | None, quiet: bool, **more: Any) -> bool:
    """Look at a data file with pread alone; return whether LMDB may map it."""
    data = folder / layout.DATA
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
        report.add(damage(part, f"{data}: {what}", path=str(data), found=what, expected="a sound tree of pages",
                          offset=page_offset(what), **more))


# The root

def root_name(path: Path) -> str:
    """Return the name of the root's folder: what the seal says, or else the newest one; CorruptionError if there is none."""
    with contextlib.suppress(CorruptionError, StoreError):
        return seal.read(path)["root"]
    if not (names := layout.roots(path)):
        raise CorruptionError(f"{path}: has no root; {RESTORE}", path=str(path), found="nothing", expected="root.N")
    return names[0]


def look_at_root(path: Path, report: Report, *, quiet: bool) -> dict | None:
    """Look at the seal and the root.

    quiet: nobody is writing, so that pages can be walked.

    Returns:
        What look_at_shard() wants to know: "name", "identity", "state", "seal", "job", "words"; None where the root is
        not sound enough to tell.
    """
    for name in (layout.SHARDS, lock.NAME, layout.TABLES, layout.SPOOL, layout.MODELS, layout.CHECKPOINTS, layout.KEPT):
        _is_link(report, path / name, "root")
    sealed = None
    if not _is_link(report, path / seal.NAME, "seal"):
        if files.exists(path / seal.NAME):
            with report.guarding("seal"):
                sealed = seal.read(path)
        else:
            report.add(damage("seal", f"{path / seal.NAME}: is missing", path=str(path / seal.NAME), found="nothing",
                              expected="a seal"))
    names = [sealed["root"]] if sealed else layout.roots(path)
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
    identity = records.required(txn, fmt.IDENTITY)
    fmt.check_identity(identity, where)
    state = records.current(txn, fmt.STATE)
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
    job = None
    with report.guarding("root"):
        job = records.row(txn, fmt.JOB)
        if job is not None and job["version"] != state["version"] + 1:
            raise fmt.damaged(where, fmt.JOB, "version", job["version"], state["version"] + 1)
    found["job"] = job and job["id"]
    with report.guarding("root"):
        _read_history(txn, where, state)
    with report.guarding("root"):
        _read_inputs(txn, where, state)
    with report.guarding("root"):
        found["words"] = _read_words(txn, where, state)
        if (table := records.row(txn, fmt.ROUTING)) is not None:
            fmt.check_routing(table, identity["shards"], found["words"], where)
    if job is None:
        _look_for_spool(path, report)


def _read_history(txn: Txn, where: str, state: dict) -> None:
    """Each version has a row, and they add up to the totals."""
    tokens = sentences = number = 0
    for number, (key, row) in enumerate(records.rows(txn, fmt.HISTORY), 1):
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
    labels = {key[1:].decode(): row for key, row in records.rows(txn, fmt.LABEL)}
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
    for key, row in records.rows(txn, fmt.INPUT):
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

def look_at_shard(path: Path, number: int, root: dict, report: Report, *, quiet: bool, chunks: bool,
                  progress: Callable[[int], None] = lambda n_bytes: None) -> None:
    """Look at one shard; `root` is what look_at_root() returned.

    chunks: read every chunk.
    progress: called with the bytes of chunks read since the last call.
    """
    place = root["state"]["shards"][number]
    if place.get("away"):
        report.add(warning("shard", f"{path}: shard {number} lies on another machine, so it was not looked at", path=str(path),
                           shard=number, next="start kvps serve, and check its address"))
        return
    with report.guarding("shard", shard=number):
        folder = layout.shard_folder(path, number, place["dir"])
        stamps = (root["seal"] or {}).get("files", {})
        if _file_is_sound(report, folder, "shard", stamps.get(place["dir"]), quiet, shard=number):
            size = layout.map_bytes(root["identity"]["shards"])
            with contextlib.closing(Environment.open(folder, map_bytes=size)) as env, env.read() as txn:
                _read_shard(txn, str(env.data), number, root, report, chunks, progress)


def look_at_snapshot(snapshot: Snapshot, number: int, root: dict, report: Report, *, chunks: bool) -> None:
    """Look at a shard that this process has open; `root` has "identity", "state" and "job"."""
    with report.guarding("shard", shard=number):
        _read_shard(snapshot.txn, snapshot.txn.where, number, root, report, chunks, lambda n_bytes: None)


def _read_shard(txn: Txn, where: str, number: int, root: dict, report: Report, chunks: bool,
                progress: Callable[[int], None]) -> None:
    identity = records.required(txn, fmt.IDENTITY)
    expected = {"uuid": root["identity"]["uuid"], "shard": number, "order": root["identity"]["order"],
                "shards": root["identity"]["shards"]}
    fmt.check_identity(identity, where, **expected)
    manifest = records.current(txn, fmt.MANIFEST)
    least = root["state"]["shards"][number]["generation"]
    if manifest["generation"] < least:
        report.add(damage("shard", f"{where}: went back in time: generation {manifest['generation']}, expected at least {least}",
                          path=where, shard=number, found=manifest["generation"], expected=least))
    runs = [Run.from_row(row) for row in manifest["runs"]]
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
               "chunks of runs that were not finished": sum(1 for _ in orphans(txn, {run.id for run in runs}))}
    for what, n in counted.items():
        if n:
            report.add(warning("leftover", f"{where}: {n} {what}", path=where, shard=number, found=n, expected=0))


def _read_run(txn: Txn, where: str, number: int, order: int, run: Run, report: Report, progress: Callable[[int], None]) -> None:
    """Compare every chunk of a run with its checksum, and all of them with the manifest."""
    total, whole = RunTotal(), True
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
            total.add(key, value, keys)
            whole = True
            progress(len(value))
        if not whole:
            break
    after = txn.first_key(fmt.chunk_key(run.id, run.n_chunks))
    if after is not None and after.startswith(fmt.chunk_key(run.id, 0)[:9]):
        report.add(damage("shard", f"{where}: run {run.id} has more than the {run.n_chunks} chunks that the manifest lists",
                          path=where, shard=number, run=run.id, found=fmt.key_name(after), expected=f"{run.n_chunks} chunks"))
    if whole and (different := total.differs(run)):
        found, expected = different
        report.add(damage("shard", f"{where}: run {run.id} has keys, bytes and digest {found}, expected {expected}", path=where,
                          shard=number, run=run.id, found=found, expected=expected))


# What lies about

def look_for_leftovers(path: Path, root: dict | None, report: Report) -> None:
    """Look for folders that are not in force and files that were not finished; they do no harm."""
    kept = {root["name"], *(place["dir"] for place in root["state"]["shards"])} if root else None
    with files.reporting(path):
        folders = [*path.glob(f"{layout.ROOT}*"), *(path / layout.SHARDS).glob("*")]
        unfinished = list(path.glob("*.tmp-*"))
    for folder in sorted(folders):
        name = folder.relative_to(path).as_posix()
        if kept is not None and name not in kept:
            report.add(warning("leftover", f"{folder}: is not in force", path=str(folder)))
    for entry in sorted(unfinished):
        report.add(warning("leftover", f"{entry}: was not finished", path=str(entry)))
    kept_folder = path / layout.KEPT
    if kept_folder.is_dir():
        report.add(warning("leftover", f"{kept_folder}: what was replaced by kvps recover", path=str(kept_folder),
                           next="remove it when it is of no use any more"))


def _look_for_spool(path: Path, report: Report) -> None:
    folder = path / layout.SPOOL
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
    seal.refuse_old(path)
    if not any((path / name / layout.DATA).exists() for name in layout.roots(path)):
        raise seal.none_at(path)


"""Where compiled models lie, and who makes them: found when fresh, otherwise made by one process while others wait.

A model's file is STORE/models/KIND-oORDER[-exact|-next][-lLABELS]-vVERSION.kvm (LABELS is a hash; -next is a followers file,
which lists what follows each context); a reader that cannot write
in STORE makes it in the user's cache folder instead. Files of older versions are removed once a newer one is there; who
has them mapped keeps them until it refreshes.
"""
from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from kvps.errors import ArgumentError, CorruptionError, StoreError, StoreLocked
from kvps.lm import container
from kvps.store import files, layout, lock
from kvps.store.directory import StoreDirectory
from kvps.units import check_order, thread_count

log = logging.getLogger("kvps")

T = TypeVar("T")

KINDS = ("kn", "raw")
FILE_NAME = re.compile(r"(?P<stem>(?:kn|raw)-o\d(?:-exact|-next)?(?:-l[0-9a-f]{16})?)-v(?P<version>\d+)\.kvm")
# How long to wait for another process that compiles: longer than any compilation.
WAIT_S = 24 * 3600.0


def ensure(store: StoreDirectory, *, kind: str = "kn", top: int | None = None, exact: bool = False, followers: bool = False,
           labels: Iterable[str] | None = None, stale: str = "wait", threads: int | None = None, scratch: Path | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Return the file of the compiled model of the store's last version, making it when there is none.

    Args:
        kind: "kn" or "raw".
        top: its highest order; the store's by default.
        exact: without fingerprints.
        followers: not the model but the file that lists what follows each context; of any model that is `exact` or not.
        labels: of only the text of these labels, as in StoreDirectory.snapshot().
        stale: what to do while another process makes it: "wait" for it, or "ok": go on with an older one.
        scratch: folder for temporary files; beside the model by default.
        progress: called with (keys read, keys in all).
    """
    if kind not in KINDS:
        raise ArgumentError(f'a compiled model is of kind {" or ".join(KINDS)}, not "{kind}"')
    order = store.identity["order"]
    top = order if top is None else check_order(top, order, store.path)
    if kind == "raw":
        top = order                            # raw counts of all orders serve every lower one
    labels = None if labels is None else sorted(set(labels))
    what = "-next" if followers else "-exact" if exact else ""
    stem = f"{kind}-o{top}{what}{f'-l{_hash(labels)}' if labels is not None else ''}"
    folder = _folder(store)
    if (fresh := _usable(folder, stem, store.root.state()["version"], store)) is not None:
        return fresh
    older = _newest(folder, stem, store)
    with turn(folder, wait=stale == "wait" or older is None) as mine:
        if not mine:
            return older
        with store.snapshot(labels) as snapshot:
            if (fresh := _usable(folder, stem, snapshot.version, store)) is not None:
                return fresh
            path = folder / f"{stem}-v{snapshot.version}.kvm"
            total = snapshot.n_keys()
            done = 0

            def advance(n: int) -> None:
                nonlocal done
                done += n
                progress(done, total)

            # Here: scoring with a model that is there needs none of it.
            if followers:
                from kvps.lm.followers import compile_followers as make
            else:
                from kvps.lm.compile import compile_model

                make = functools.partial(compile_model, exact=exact)
            from kvps.text.vocabulary import Vocabulary

            make(snapshot, Vocabulary(store.root.words()), path, kind=kind, top=top, threads=thread_count(threads),
                 scratch=scratch or folder, uuid=store.identity["uuid"], order=order, progress=advance)
        _remove_older(folder, stem, path)
        return path


def load(store: StoreDirectory, read: Callable[[Path], T], **options: object) -> T:
    """Return read(path) of the compiled model that ensure(store, **options) names.

    A file that another process replaced by a newer one between our two looks is looked for again; a damaged one is made
    again, once.
    """
    made_again = False
    while True:
        path = ensure(store, **options)
        try:
            return read(path)
        except StoreError:
            if path.exists():
                raise
        except CorruptionError as exc:
            if made_again or exc.path != str(path):
                raise
            log.warning("%s: damaged; it is made again now", path)
            made_again = True
            try:
                path.unlink(missing_ok=True)
            except OSError:                    # not ours to remove
                raise exc from None


def folders(store: StoreDirectory) -> list[Path]:
    """Return where compiled models of this store may lie."""
    return [store.path / layout.MODELS, _cache_folder(store)]


def user_folder() -> Path:
    """Return the user's cache folder, which may not be there yet."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("kvps"))


def _cache_folder(store: StoreDirectory) -> Path:
    return user_folder() / store.identity["uuid"]


def _hash(labels: list[str]) -> str:
    import hashlib

    return hashlib.blake2b(",".join(labels).encode(), digest_size=8).hexdigest()


def _folder(store: StoreDirectory) -> Path:
    """Return the folder of the store's models, made if need be."""
    folder = store.path / layout.MODELS
    if not folder.exists() and os.access(store.path, os.W_OK):
        with contextlib.suppress(StoreError):
            files.make_dir(folder)
    if os.access(folder, os.W_OK):
        files.refuse_symlink(folder)
        return folder
    folder = _cache_folder(store)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise files.os_error(exc, exc.filename or folder) from exc
    return folder


def _usable(folder: Path, stem: str, version: int, store: StoreDirectory) -> Path | None:
    """Return the model of this version in this folder, or in the store's own if that one cannot be written."""
    for place in dict.fromkeys((folder, store.path / layout.MODELS)):
        path = place / f"{stem}-v{version}.kvm"
        if path.exists() and _ours(path, store):
            return path
    return None


def _ours(path: Path, store: StoreDirectory) -> bool:
    try:
        meta, _ = container.read(path)
    except (CorruptionError, StoreError):
        return False
    return meta.get("format") == container.MODEL_FORMAT and meta.get("uuid") == store.identity["uuid"]


def _versions(folder: Path, stem: str) -> list[tuple[int, Path]]:
    with contextlib.suppress(FileNotFoundError):
        return sorted((int(match["version"]), entry) for entry in folder.iterdir()
                      if (match := FILE_NAME.fullmatch(entry.name)) and match["stem"] == stem)
    return []


def _newest(folder: Path, stem: str, store: StoreDirectory) -> Path | None:
    usable = [path for _, path in _versions(folder, stem) if _ours(path, store)]
    return usable[-1] if usable else None


def _remove_older(folder: Path, stem: str, path: Path) -> None:
    for _, other in _versions(folder, stem):
        if other != path:
            with contextlib.suppress(OSError):
                other.unlink()


@contextlib.contextmanager
def turn(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the right to compile in a folder; gives False where another process has it and we are not to wait."""
    try:
        held = lock.OwnerLock(folder, wait_s=WAIT_S if wait else 0.0, command="compile")
    except StoreLocked:
        if wait:
            raise
        yield False
        return
    try:
        # What a killed compilation left behind.
        for entry in folder.glob("*.kvm.tmp-*"):
            if time.time() - entry.stat().st_mtime > 1:
                entry.unlink(missing_ok=True)
        yield True
    finally:
        held.close()

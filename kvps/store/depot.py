"""Where checkpoints are put: a local directory, or any place that fsspec knows (an object store), named by a URL.

A depot has descriptions, one a checkpoint, and objects, named by the BLAKE2b-256 of their bytes and never changed.
Whatever is there under its name is whole: a local file is synced and then renamed, an object store takes it as one.
CHECKPOINT.md, "Depot".
"""
from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kvps.errors import CorruptionError, KvpsError, StoreError
from kvps.pools import spread
from kvps.store import files, lock
from kvps.units import check_name

OBJECTS = "objects"
SUFFIX = ".json"
MAX_DESCRIPTION_BYTES = 1 << 30           # 13 million chunks, of 3 TB
WORKERS = 4                               # they wait for the disk or the network, not for a CPU

_OBJECT = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FOLDER = re.compile(r"[0-9a-f]{2}", re.ASCII)
_LEFTOVER = re.compile(r".+\.tmp-[0-9a-f]{16}", re.ASCII)


def object_name(data: bytes) -> str:
    """Return the name of an object: its BLAKE2b-256 in hexadecimal."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def is_object_name(name: object) -> bool:
    """Return whether a text is what object_name() returns; nothing else becomes part of a path."""
    return isinstance(name, str) and _OBJECT.fullmatch(name) is not None


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URL and not a path."""
    return isinstance(place, str) and "://" in place


def open_depot(place: str | os.PathLike[str], *, create: bool = False) -> Depot:
    """Return the depot at a path or URL; `create` makes the last folder of a path.

    Raises:
        StoreError: it is not there or cannot be made; a URL needs fsspec or one of its drivers, which is not installed.
    """
    if not is_url(place):
        return LocalDepot(Path(os.path.abspath(place)), create=create)
    parts = urlsplit(str(place))
    if parts.scheme.lower() == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{place}: names another machine; write file:///PATH", path=str(place))
        return LocalDepot(Path(os.path.abspath(unquote(parts.path))), create=create)
    return RemoteDepot(str(place))


class Depot(abc.ABC):
    """What local and remote depots share: names, and what is said about objects that are not as they should be."""

    place: str             # for messages
    has_lock = False       # whether locked() keeps others away

    def where(self, name: str) -> str:
        """Return the path or URL of an object, for messages and findings."""
        return f"{self.place}/{OBJECTS}/{name[:2]}/{name}"

    def where_description(self, name: str) -> str:
        """Return the path or URL of a description."""
        return f"{self.place}/{name}{SUFFIX}"

    def read(self, name: str, n_bytes: int) -> bytes:
        """Return an object of so many bytes; CorruptionError where it is missing or not what its name says."""
        assert is_object_name(name)
        data = self._read(name, n_bytes)
        if data is None:
            raise self._damaged(name, "is missing", None, name)
        if len(data) != n_bytes:
            raise self._damaged(name, f"has {len(data)} bytes, expected {n_bytes}", len(data), n_bytes)
        found = object_name(data)
        if found != name:
            raise self._damaged(name, f"has the hash {found}, expected its name", found, name)
        return data

    def _damaged(self, name: str, what: str, found: object, expected: object) -> CorruptionError:
        return CorruptionError(f"{self.where(name)}: {what}; checkpoints that need it are damaged: use another one", key=name,
                               path=self.where(name), found=found, expected=expected)

    # what each kind of depot does in its own way

    @abc.abstractmethod
    def _read(self, name: str, n_bytes: int) -> bytes | None:
        """Return an object, or a byte more than `n_bytes` of it where it is longer; None where it is missing."""

    @abc.abstractmethod
    def locked(self, command: str, wait_s: float, *, shared: bool = False) -> contextlib.AbstractContextManager[object]:
        """Keep others from making or deleting checkpoints here; `shared` lets others read meanwhile."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the names of all checkpoints that are here."""

    @abc.abstractmethod
    def read_description(self, name: str) -> bytes | None:
        """Return a description, None where there is none."""

    @abc.abstractmethod
    def write_description(self, name: str, data: bytes, objects: Iterable[str]) -> None:
        """Write a description, after the objects that it refers to have become durable; at once or not at all."""

    @abc.abstractmethod
    def remove_description(self, name: str) -> None:
        """Remove a description, durably."""

    @abc.abstractmethod
    def objects(self) -> dict[str, int]:
        """Return the length of every object that is here [bytes]."""

    @abc.abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write an object, whole or not at all."""

    @abc.abstractmethod
    def remove(self, names: list[str]) -> None:
        """Remove objects; those that are missing are fine."""

    @abc.abstractmethod
    def sweep(self) -> None:
        """Remove what writers left that were killed; holding the lock."""


class LocalDepot(Depot):
    """A directory."""

    has_lock = True

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open the directory, or make it; its parent must be there."""
        self.path, self.place = path, str(path)
        self._turn = threading.Lock()
        self._checked: set[str] = set()          # folders of objects that are real folders
        if create and not os.path.lexists(path):
            files.make_dir(path)
            files.fsync_dir(path.parent)
        if not files.exists(path):
            raise StoreError(f"{path}: no such folder, so there are no checkpoints", path=str(path))
        if not path.is_dir():
            raise StoreError(f"{path}: is not a folder; checkpoints are kept in one", path=str(path))
        files.refuse_symlink(path / OBJECTS)

    def locked(self, command: str, wait_s: float, *, shared: bool = False) -> contextlib.AbstractContextManager[object]:
        """Hold the lock of the depot; a depot that nobody has ever written to is read without one."""
        if shared and not files.exists(self.path / lock.NAME):
            return contextlib.nullcontext()
        return contextlib.closing(lock.OwnerLock(self.path, wait_s=wait_s, command=command, shared=shared))

    def names(self) -> list[str]:
        """Return the names of all checkpoints that are here."""
        with files.reporting(self.path):
            return _checkpoint_names(os.listdir(self.path))

    def read_description(self, name: str) -> bytes | None:
        """Return a description, None where there is none."""
        return _whole(Path(self.where_description(name)), MAX_DESCRIPTION_BYTES)

    def write_description(self, name: str, data: bytes, objects: Iterable[str]) -> None:
        """Sync the folders of the objects, whose contents are synced already, then rename the description into place."""
        self._settle(objects)
        files.atomic_write(self.where_description(name), data)

    def remove_description(self, name: str) -> None:
        """Remove a description, durably."""
        path = self.where_description(name)
        with files.reporting(path):
            os.unlink(path)
        files.fsync_dir(self.path)

    def objects(self) -> dict[str, int]:
        """Return the length of every object that is here [bytes]; StoreError where one is a link."""
        found = {}
        for entry in self._entries():
            if is_object_name(entry.name) and entry.name.startswith(Path(entry.path).parent.name):
                files.refuse_symlink(entry.path)
                with files.reporting(entry.path):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        if not files.exists(self.path / OBJECTS):
            return
        with files.reporting(self.path / OBJECTS):
            folders = sorted(name for name in os.listdir(self.path / OBJECTS) if _FOLDER.fullmatch(name))
        for name in folders:
            folder = self.path / OBJECTS / name
            files.refuse_symlink(folder)
            with files.reporting(folder):
                yield from list(os.scandir(folder))

    def put(self, name: str, data: bytes) -> None:
        """Write an object and sync it; its name becomes durable with a description."""
        target = self._folder(name) / name
        temporary = target.with_name(f"{name}.tmp-{os.urandom(8).hex()}")
        fd = files.open_new(temporary)
        try:
            with files.reporting(temporary, len(data)), os.fdopen(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            with files.reporting(target):
                os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _folder(self, name: str) -> Path:
        folder = self.path / OBJECTS / name[:2]
        with self._turn:
            if folder.name not in self._checked:
                for place in (folder.parent, folder):
                    if not os.path.lexists(place):
                        files.make_dir(place)
                    files.refuse_symlink(place)
                self._checked.add(folder.name)
        return folder

    def _read(self, name: str, n_bytes: int) -> bytes | None:
        path = Path(self.where(name))
        files.refuse_symlink(path.parent)
        try:
            return _whole(path, n_bytes + 1)
        except StoreError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EIO:
                raise self._damaged(name, "cannot be read (input/output error)", "EIO", name) from exc
            raise

    def remove(self, names: list[str]) -> None:
        """Remove objects, durably; those that are missing are fine."""
        for name in names:
            path = self._folder(name) / name
            with files.reporting(path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._settle(names)

    def _settle(self, names: Iterable[str]) -> None:
        """Make the entries of objects durable."""
        folders = sorted({name[:2] for name in names})
        for folder in folders:
            files.fsync_dir(self.path / OBJECTS / folder)
        if folders:
            files.fsync_dir(self.path / OBJECTS)
            files.fsync_dir(self.path)

    def sweep(self) -> None:
        """Remove files that were not finished."""
        with files.reporting(self.path):
            paths = [entry.path for entry in os.scandir(self.path) if _LEFTOVER.fullmatch(entry.name)]
        for path in (*paths, *(entry.path for entry in self._entries() if _LEFTOVER.fullmatch(entry.name))):
            with files.reporting(path):
                os.unlink(path)


def _checkpoint_names(entries: Iterable[str]) -> list[str]:
    """Return the names of the checkpoints whose descriptions are among the entries of a folder."""
    found = []
    for entry in entries:
        if entry.endswith(SUFFIX):
            with contextlib.suppress(KvpsError):
                found.append(check_name("checkpoint", entry.removesuffix(SUFFIX)))
    return sorted(found)


def _whole(path: Path, at_most: int) -> bytes | None:
    """Return the contents of a file, no more than so many bytes; None where it is missing."""
    if not os.path.lexists(path):
        return None
    files.refuse_symlink(path)
    with files.reading(path) as fd, files.reporting(path):
        return files.read_exactly(fd, min(os.fstat(fd).st_size, at_most), 0)


class RemoteDepot(Depot):
    """A place that fsspec knows.

    It has no lock, so one process writes or deletes there at a time. It has no rename, so a description is written last,
    in one put, and its checksum tells one that is not whole.
    """

    def __init__(self, url: str) -> None:
        """Find the driver of the URL; nothing is made before the first put."""
        self.place = re.sub(r"(?<=://)[^/@]*@", "***@", url).rstrip("/")     # a password is not for messages
        try:
            import fsspec
        except ImportError as exc:
            raise StoreError(f'{self.place}: needs fsspec; run pip install "kvps[remote]"', path=self.place) from exc
        self._made: set[str] = set()
        with self._reporting():
            self._fs, root = fsspec.core.url_to_fs(url)
            self._root = root.rstrip("/")

    @contextlib.contextmanager
    def _reporting(self, path: str | None = None) -> Iterator[None]:
        """Turn whatever a driver raises into a StoreError that names the URL."""
        try:
            yield
        except KvpsError:
            raise
        except Exception as exc:
            detail = " ".join(str(exc).split()) or type(exc).__name__
            raise StoreError(f"{path or self.place}: {detail} ({type(exc).__name__}, fsspec)", path=path or self.place) from exc

    def locked(self, command: str, wait_s: float, *, shared: bool = False) -> contextlib.AbstractContextManager[object]:
        """Do nothing."""
        return contextlib.nullcontext()

    def _list(self, what: Callable[[], Any], empty: Any) -> Any:
        with self._reporting():
            self._fs.invalidate_cache()
            try:
                return what()
            except FileNotFoundError:
                return empty

    def names(self) -> list[str]:
        """Return the names of all checkpoints that are here."""
        paths = self._list(lambda: self._fs.ls(self._root or "/", detail=False), [])
        return _checkpoint_names(path.rstrip("/").rpartition("/")[2] for path in paths)

    def objects(self) -> dict[str, int]:
        """Return the length of every object that is here [bytes]; what was not put whole has another than it should."""
        found = self._list(lambda: self._fs.find(f"{self._root}/{OBJECTS}", detail=True), {})
        sizes = {path.rpartition("/")[2]: info.get("size") for path, info in found.items()}
        return {name: size for name, size in sizes.items() if is_object_name(name)}

    def _get(self, path: str, shown: str, at_most: int) -> bytes | None:
        with self._reporting(shown):
            try:
                return bytes(self._fs.cat_file(path, start=0, end=at_most))
            except FileNotFoundError:
                return None

    def _put(self, path: str, shown: str, data: bytes) -> None:
        folder = path.rpartition("/")[0]
        with self._reporting(shown):
            if folder not in self._made:
                self._fs.makedirs(folder, exist_ok=True)
                self._made.add(folder)
            self._fs.pipe_file(path, data)

    def _path(self, name: str) -> str:
        return f"{self._root}/{OBJECTS}/{name[:2]}/{name}"

    def _read(self, name: str, n_bytes: int) -> bytes | None:
        return self._get(self._path(name), self.where(name), n_bytes + 1)

    def read_description(self, name: str) -> bytes | None:
        """Return a description, None where there is none."""
        return self._get(f"{self._root}/{name}{SUFFIX}", self.where_description(name), MAX_DESCRIPTION_BYTES)

    def write_description(self, name: str, data: bytes, objects: Iterable[str]) -> None:
        """Write a description in one put."""
        self._put(f"{self._root}/{name}{SUFFIX}", self.where_description(name), data)

    def remove_description(self, name: str) -> None:
        """Remove a description."""
        self._remove(f"{self._root}/{name}{SUFFIX}", self.where_description(name))

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        self._put(self._path(name), self.where(name), data)

    def remove(self, names: list[str]) -> None:
        """Remove objects; those that are missing are fine."""
        for _ in spread(lambda name: self._remove(self._path(name), self.where(name)), names, WORKERS):
            pass

    def _remove(self, path: str, shown: str) -> None:
        with self._reporting(shown), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def sweep(self) -> None:
        """Do nothing: a put is there as a whole or not at all."""

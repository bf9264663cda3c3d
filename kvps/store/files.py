"""Every open, fsync, rename and mkdir of the store outside LMDB, so that faults can be injected in one place.

Directories are made 0700 and files 0600 whatever the umask allows.
Operating system errors leave as StoreError or StoreFull, with the path.
"""
from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvps.errors import KvpsError, StoreError, StoreFull
from kvps.units import memory_limit

DIR_MODE = 0o700
FILE_MODE = 0o600
STDOUT = "/dev/stdout"
MAX_LINKS = 40                 # as Linux follows
HUGE_PAGE = 1 << 21

# LMDB's and our own locks do not hold across machines, and rename or fsync may lie there.
NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs",
    "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs"})

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
REMOVE_TRIES = 20              # each follows somebody who made a file in the folder between two of our calls


def os_error(exc: OSError, path: str | Path, needs: int | None = None) -> KvpsError:
    """Return the exception of ours that says what `exc` means for `path`; `needs` is in bytes."""
    if exc.errno in FULL:
        return disk_full(path, needs)
    return StoreError(f"{path}: {exc.strerror or exc}", path=str(path))


def disk_full(path: str | Path, needs: int | None) -> StoreFull:
    """Return the StoreFull for a write of `needs` bytes (None: not known) near `path`."""
    has = free_bytes(path)
    wanted = "more space" if needs is None else f"{needs} bytes"
    return StoreFull(f"{path}: disk full: needs {wanted}, has {has}; make room and run the command again",
                     path=str(path), needs=needs, has=has)


def free_bytes(path: str | Path) -> int:
    """Return the bytes that an ordinary user may still write on the file system of `path` (or its nearest parent)."""
    place = Path(path)
    while True:
        try:
            found = os.statvfs(place)
        except FileNotFoundError:
            if place == place.parent:
                raise
            place = place.parent
            continue
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def reporting(path: str | Path, needs: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into an error of ours about `path`."""
    try:
        yield
    except OSError as exc:
        raise os_error(exc, path, needs) from exc


def exists(path: str | Path) -> bool:
    """Return whether something is there; StoreError if that cannot be told, for want of permission."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise os_error(exc, path) from exc
    return True


def make_dir(path: str | Path) -> None:
    """Make one directory, mode 0700; the caller syncs its parent."""
    with reporting(path):
        os.mkdir(path, DIR_MODE)


def open_new(path: str | Path, *, name: str | Path | None = None) -> int:
    """Create a file that must not exist, mode 0600, and return its descriptor for writing; `name`: for messages."""
    with reporting(name or path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)


def open_lock(path: str | Path, *, create: bool) -> int:
    """Open the lock file, made if need be, or for reading only where `create` is False; return its descriptor."""
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    with reporting(path):
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[int]:
    """Open a file for reading; gives its descriptor."""
    with reporting(path):
        # Without NONBLOCK a FIFO in the place of a file would let us wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise StoreError(f"{path}: is a FIFO, expected a file", path=str(path))
        yield fd
    finally:
        os.close(fd)


def fsync(fd: int, path: str | Path) -> None:
    """Make the contents of an open file durable."""
    with reporting(path):
        os.fsync(fd)


def fsync_dir(path: str | Path) -> None:
    """Make the entries of a directory durable: what was created, renamed or removed in it."""
    with reporting(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename within one file system and make it durable; an existing file or empty directory is replaced."""
    with reporting(target):
        os.rename(source, target)
    fsync_dir(Path(target).parent)


def atomic_write(path: str | Path, data: bytes | Iterable[bytes], *, private: bool = True, huge_pages: bool = False) -> None:
    """Write a whole file so that a crash leaves the old one or the new one; durable on return.

    private: mode 0600. Otherwise it is a file that leaves the store: what the user's umask makes of 0666, and not synced,
    since it can be made again. A link is followed then, and what is no file is written to as it is: see is_stream().
    huge_pages: write so that Linux keeps the file in huge pages, where it can (ext4 from 6.16 on, XFS, Btrfs): see map_file().
    """
    if not private:
        if is_stream(path):
            _write_through(path, data)
            return
        path = _behind(path)
    elif os.path.lexists(path) and not (os.path.islink(path) or os.path.isfile(path)):
        raise StoreError(f"{path}: is there already, and is no file", path=str(path))
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.urandom(8).hex()}")
    pieces = [data] if isinstance(data, bytes) else data
    fd = open_new(temporary, name=path)
    try:
        with reporting(path), os.fdopen(fd, "wb") as out:
            for piece in _chunks(pieces) if huge_pages else pieces:
                out.write(piece)
            out.flush()
            if not private:
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(out.fileno(), 0o666 & ~umask)
            if private:
                fsync(out.fileno(), path)
        rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes | bytearray | memoryview]:
    """Yield the same bytes in pieces of HUGE_PAGE each, but for the last."""
    rest = bytearray()
    for piece in pieces:
        view = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
        if rest or len(view) < HUGE_PAGE:
            taken = view[:HUGE_PAGE - len(rest)]
            rest += taken
            view = view[len(taken):]
            if len(rest) < HUGE_PAGE:
                continue
            yield rest
            rest = bytearray()
        whole = len(view) // HUGE_PAGE * HUGE_PAGE
        for at in range(0, whole, HUGE_PAGE):
            yield view[at:at + HUGE_PAGE]
        rest += view[whole:]
    yield rest


def is_stream(path: str | Path) -> bool:
    """Return whether what is to be written is no file that could be made anew: stdout, a pipe, a device."""
    try:
        return str(path) == STDOUT or not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _behind(path: str | Path) -> str | Path:
    """Return what a link leads to. Not of the folders before it, as realpath(): in /proc they may lead to other mounts."""
    for _ in range(MAX_LINKS):
        if not os.path.islink(path):
            return path
        with reporting(path):
            path = os.path.join(os.path.dirname(path), os.readlink(path))
    raise StoreError(f"{path}: more than {MAX_LINKS} links, one after another", path=str(path))


def _write_through(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    with reporting(path):
        # Of stdout the same open file, whose place others know.
        fd = os.dup(1) if str(path) == STDOUT else os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(fd, "wb") as out:
            for piece in [data] if isinstance(data, bytes) else data:
                out.write(piece)


def read_exactly(fd: int, count: int, offset: int) -> bytes:
    """Return up to `count` bytes from `offset`, fewer only at the end of the file."""
    pieces = []
    while count > 0 and (piece := os.pread(fd, count, offset)):
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return b"".join(pieces)


def preallocate(path: str | Path, length: int) -> None:
    """Give a file, made if need be, `length` bytes of real disk blocks.

    LMDB maps its lock file; on a full disk touching a hole of it would kill the process with SIGBUS.
    A file that has its blocks already is not opened: closing any descriptor of it would drop the locks that this
    process holds on it through LMDB.
    """
    try:
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size >= length and found.st_blocks * 512 >= found.st_size:
            return
    except FileNotFoundError:
        pass
    with reporting(path, length):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            os.posix_fallocate(fd, 0, length)
        finally:
            os.close(fd)


def extend(path: str | Path, length: int) -> None:
    """Lengthen a file to at least `length` bytes by a hole; it is never shortened."""
    with reporting(path, length):
        if os.stat(path).st_size < length:
            os.truncate(path, length)


def remove_tree(path: str | Path) -> None:
    """Remove a directory and everything in it, following no symbolic link, itself included; a missing one is fine.

    A reader that opens an LMDB environment at this moment makes its lock file anew, so the directory is looked through again.
    """
    path = Path(path)
    refuse_symlink(path)
    for tries_left in reversed(range(REMOVE_TRIES)):
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            return
        with reporting(path):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
            try:
                os.rmdir(path)
                return
            except OSError as exc:
                if exc.errno != errno.ENOTEMPTY or not tries_left:
                    raise


def remove_file(path: str | Path) -> None:
    """Remove a file; a missing one is fine."""
    with reporting(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def refuse_symlink(path: str | Path) -> None:
    """Raise StoreError if `path` is a symbolic link: a link could lead a store's writes to somebody else's file."""
    if os.path.islink(path):
        raise StoreError(f"{path}: is a symbolic link, which is not allowed inside a store; put the real file there",
                         path=str(path))


def file_system(path: str | Path) -> str:
    """Return the type of the file system that `path` lies on ("ext4", "nfs4"), or "" where it cannot be told."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, point, found, *_ = line.split(" ")
                point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):  # a later mount on the same point hides the earlier
                    best, kind = point, found
    except OSError:
        return ""
    return kind


def refuse_network(path: str | Path, force: bool) -> None:
    """Raise StoreError if `path` lies on a network file system, unless that is wanted (`force`)."""
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS and not force:
        raise StoreError(f"{path}: lies on a network file system ({kind}), where locks and syncs may not hold; "
                         "use a local disk", path=str(path))


@contextlib.contextmanager
def scratch(folder: str | Path) -> Iterator[int]:
    """Open a file without a name in `folder` for writing and reading; it vanishes with its descriptor."""
    import tempfile  # slow to import, and most commands need no scratch file

    with contextlib.ExitStack() as stack:
        with reporting(folder):
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        yield file.fileno()


def map_file(path: str | Path) -> mmap.mmap:
    """Map a whole file for reading here and there.

    Where Linux can, it reads the file in huge pages and maps it as such: look-ups all over it are faster by a sixth to a half.
    Not a file beyond half of the memory: where pages come and go, too much would be read.
    """
    with reading(path) as fd, reporting(path):
        mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        if HUGE_PAGE <= len(mapping) <= memory_limit() // 2 and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):     # a kernel without them
                mapping.madvise(mmap.MADV_HUGEPAGE)
        return mapping

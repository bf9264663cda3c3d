"""Refuse an LMDB file that its engine would open wrongly or die on: foreign, empty, or cut short.

LMDB opens a zero-length file as an empty database, and the first touch of a page behind the end of a file that was cut
kills the process with SIGBUS.
So the two meta pages are read here with pread, never through the map, before LMDB sees the file.
Numbers are in the byte order of the machine: an LMDB file does not travel between architectures.
"""
from __future__ import annotations

import os
import struct
from pathlib import Path

from kvps.errors import CorruptionError
from kvps.store import files

MAGIC = 0xBEEFC0DE
DATA_VERSION = 1            # LMDB 0.9; LMDB 1.0 writes 3
PAGE_HEADER_BYTES = 16
# After the page header: magic, version, address, map size, two trees of 48 bytes (free pages, main), last page, txn id.
META = struct.Struct("=IIQQ48s48sQQ")
TREE = struct.Struct("=IHHQQQQQ")   # pad (in the first tree: page size), flags, depth, three page counts, entries, root
NO_PAGE = 2**64 - 1
P_BRANCH, P_LEAF, P_OVERFLOW = 1, 2, 4
NODE_IS_BIG = 1             # the value lies on overflow pages, the node holds their first page number
TRIES = 100                 # a retry means that a version was committed while we looked
MAX_DEPTH = 32              # LMDB's own limit (CURSOR_STACK)


def check(path: str | Path) -> None:
    """Raise CorruptionError unless `path` is an LMDB 0.9 file that holds every page it refers to."""
    with files.reading(path) as fd:
        for _ in range(TRIES):
            metas = _metas(fd)
            try:
                return _check(fd, path, metas)
            except CorruptionError:
                if _metas(fd) == metas:            # else a writer was at work under our eyes
                    raise
        _check(fd, path, _metas(fd))


def _check(fd: int, path: str | Path, metas: list[tuple[int, int, list[int], int] | None]) -> None:
    file_bytes = os.fstat(fd).st_size              # after the metas were read: a writer lengthens the file first
    known = [meta for meta in metas if meta is not None]
    if not known:
        raise _refusal(path, f"{file_bytes} bytes without a valid LMDB meta page", "an LMDB 0.9 data file")
    page_bytes, last_page, roots, _ = max(known, key=lambda meta: meta[3])
    # The cheap rule. It raises false alarms (a transaction that puts and deletes the same value leaves its last
    # pages unwritten), so a shortfall is settled by walking the trees.
    if file_bytes >= (last_page + 1) * page_bytes:
        return
    walk = _Walk(fd, path, page_bytes, file_bytes)
    for root in roots:
        walk.page(root, 0)


def _refusal(path: str | Path, found: str, expected: str) -> CorruptionError:
    return CorruptionError(f"{path}: {found}, expected {expected}; the file was cut short or is something else: "
                           "put back a sound copy", path=str(path), found=found, expected=expected)


def _metas(fd: int) -> list[tuple[int, int, list[int], int] | None]:
    """Return (page bytes, last page, roots, transaction id) of each meta page, None for an invalid one."""
    first = _meta(fd, 0)
    # The second meta page lies behind the first; where that is lost, guess the system's page size.
    page_bytes = first[0] if first else os.sysconf("SC_PAGE_SIZE")
    return [first, _meta(fd, page_bytes)]


def _meta(fd: int, offset: int) -> tuple[int, int, list[int], int] | None:
    data = files.read_exactly(fd, META.size, offset + PAGE_HEADER_BYTES)
    if len(data) < META.size:
        return None
    magic, version, _, _, free, main, last_page, txn = META.unpack(data)
    page_bytes = TREE.unpack(free)[0]
    if magic != MAGIC or version != DATA_VERSION or not 256 <= page_bytes <= 32768 or page_bytes & (page_bytes - 1):
        return None
    return page_bytes, last_page, [TREE.unpack(free)[-1], TREE.unpack(main)[-1]], txn


class _Walk:
    """Visit every page that a tree refers to, reading only headers and nodes."""

    def __init__(self, fd: int, path: str | Path, page_bytes: int, file_bytes: int) -> None:
        self.fd, self.path, self.page_bytes, self.file_bytes = fd, path, page_bytes, file_bytes
        self.seen: set[int] = set()     # a loop of pages would never end

    def need(self, page: int, count: int = 1) -> None:
        """Raise CorruptionError if `count` pages from `page` do not end inside the file."""
        end = (page + count) * self.page_bytes
        if end > self.file_bytes:
            raise _refusal(self.path, f"{self.file_bytes} bytes", f"at least {end}")

    def page(self, number: int, depth: int) -> None:
        """Check one page of a tree and all below it."""
        if number == NO_PAGE:
            return
        self.need(number)
        data = files.read_exactly(self.fd, self.page_bytes, number * self.page_bytes)
        flags, lower = struct.unpack_from("=HH", data, 10)
        n_nodes = (lower - PAGE_HEADER_BYTES) // 2
        sound = flags & (P_BRANCH | P_LEAF) and depth <= MAX_DEPTH and number not in self.seen
        self.seen.add(number)
        if not sound or not 0 <= n_nodes * 2 <= self.page_bytes - 16:
            raise _refusal(self.path, f"page {number} with flags {flags:#x}", "a page of a tree")
        for offset in struct.unpack_from(f"={n_nodes}H", data, PAGE_HEADER_BYTES):
            if offset + 8 > self.page_bytes:
                raise _refusal(self.path, f"a node at offset {offset} of page {number}", "one inside the page")
            low, high, node_flags, key_bytes = struct.unpack_from("=HHHH", data, offset)
            if flags & P_BRANCH:
                self.page(low | high << 16 | node_flags << 32, depth + 1)
            elif node_flags & NODE_IS_BIG:
                self.overflow(data, offset + 8 + key_bytes)

    def overflow(self, data: bytes, offset: int) -> None:
        """Check the extent of a large value whose first page number is at `offset` of a leaf."""
        if offset + 8 > self.page_bytes:
            raise _refusal(self.path, f"a value at offset {offset} of its page", "one inside the page")
        first, = struct.unpack_from("=Q", data, offset)
        self.need(first)
        flags, n_pages = struct.unpack("=HI", files.read_exactly(self.fd, 6, first * self.page_bytes + 10))
        if flags != P_OVERFLOW:
            raise _refusal(self.path, f"page {first} with flags {flags:#x}", "the first page of a large value")
        self.need(first, n_pages)

"""Checksums of the pages of a file: made while it is written, compared page by page when it is first read.

A file of gigabytes is then opened in no time, and still no byte of it is used before its page was compared.
The hash and its cost: pages.hpp. Who uses it: kvps/lm/container.py.
"""
from kvps.errors import CorruptionError

cimport cython

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from kvps._pages cimport PAGE, page_sum, page_view, usable
from kvps._types cimport byte_t, index_t, uint32_t, uint64_t

PAGE_BYTES = PAGE


@cython.final
cdef class PageSums:
    """The checksums of what is written, piece by piece; `sums` are those of whole pages so far, 4 bytes each."""
    cdef byte_t[4096] rest
    cdef index_t n_rest
    cdef uint64_t n_pages
    cdef readonly bytearray sums

    def __cinit__(self):
        self.sums = bytearray()

    def add(self, const byte_t[::1] piece):
        """Take in the next bytes."""
        cdef index_t at = 0, n = piece.shape[0], take, i, whole
        cdef const byte_t* p
        if n == 0:
            return
        p = &piece[0]
        if self.n_rest:
            take = min(<index_t>PAGE - self.n_rest, n)
            memcpy(self.rest + self.n_rest, p, take)
            self.n_rest += take
            at = take
            if self.n_rest < <index_t>PAGE:
                return
            self._list(self.rest, 1)
            self.n_rest = 0
        whole = (n - at) // <index_t>PAGE
        self._list(p + at, whole)
        at += whole * <index_t>PAGE
        memcpy(self.rest, p + at, n - at)
        self.n_rest = n - at

    cdef int _list(self, const byte_t* p, index_t n) except -1:
        """Append the checksums of n pages."""
        cdef bytearray out = bytearray(4 * n)
        cdef byte_t* to = out
        cdef uint32_t found
        cdef index_t i
        with nogil:
            for i in range(n):
                found = page_sum(p + i * <index_t>PAGE, self.n_pages + <uint64_t>i)
                memcpy(to + 4 * i, &found, 4)
        self.sums += out
        self.n_pages += <uint64_t>n
        return 0


@cython.final
cdef class Pages:
    """The pages of a mapped file, and which of them were compared with their checksums; threads may share it.

    Kernels ask `usable` before they read, go on as if there was nothing where it says no, and call refuse_damage in the end.
    """
    def __cinit__(self, const byte_t[::1] file, const uint32_t[::1] sums, path):
        """Take a file in memory, the checksums of its first pages, and its name for messages."""
        if sums.shape[0] * <index_t>PAGE > file.shape[0] or sums.shape[0] == 0:
            raise ValueError(f"{sums.shape[0]} checksums of pages for {file.shape[0]} bytes")
        self.owner, self.path = (file, sums), str(path)
        self.view.seen = <byte_t*>calloc(sums.shape[0] // 8 + 1, 1)
        if self.view.seen == NULL:
            raise MemoryError(f"no memory for the marks of {sums.shape[0]} pages")
        self.view.base, self.view.n_pages, self.view.sums = &file[0], sums.shape[0], &sums[0]

    def __dealloc__(self):
        free(self.view.seen)

    def compare(self, const byte_t[::1] part):
        """Compare all pages of a part of the file now; raise CorruptionError where one is damaged."""
        with nogil:
            if part.shape[0]:
                usable(&self.view, &part[0], part.shape[0])
        self.refuse_damage()

    cdef int refuse_damage(self) except -1:
        """Raise CorruptionError if a damaged page was met."""
        cdef uint64_t page = self.view.damaged
        if page == 0:
            return 0
        where = f"page {page - 1} at offset {(page - 1) * PAGE}" if page <= self.view.n_pages else "a place outside of it"
        raise CorruptionError(f"{self.path}: {where} is damaged; delete this file, it will be made again", path=self.path,
                              key=page - 1 if page <= self.view.n_pages else None)


cdef class Paged:
    """What borrows arrays from an owner, and compares the pages of the file that they lie in, if they lie in one."""

    cdef int take(self, object owner, Pages pages) except -1:
        """Keep the owner of the arrays, and the pages of the file or None."""
        self.owner, self.pages, self.page = owner, pages, <page_view*>NULL if pages is None else &pages.view
        return 0

    cdef int compare(self, const void* p, uint64_t n_bytes) except -1:
        """Compare all pages of an array now; raise CorruptionError where one is damaged."""
        usable(self.page, p, n_bytes)
        return self.refuse_damage()

    cdef int refuse_damage(self) except -1:
        """Raise CorruptionError if a damaged page was met."""
        if self.pages is not None:
            self.pages.refuse_damage()
        return 0

# Pages of a mapped file, each compared with its checksum at first use; see pages.hpp.
from kvps._types cimport byte_t, uint32_t, uint64_t

cdef extern from "pages.hpp" namespace "kvps" nogil:
    const uint64_t PAGE
    ctypedef struct page_view:
        const byte_t* base
        uint64_t n_pages
        const uint32_t* sums
        byte_t* seen
        uint64_t damaged
    uint32_t page_sum(const byte_t* p, uint64_t number)
    bint usable(page_view* g, const void* p)
    bint usable(page_view* g, const void* p, uint64_t n)
    bint all_sound(page_view* g, const void* p, uint64_t n)

cdef class Pages:
    cdef page_view view
    cdef object owner, path
    cdef int refuse_damage(self) except -1

cdef class Paged:
    cdef object owner
    cdef Pages pages
    cdef page_view* page                   # of `pages`, or NULL
    cdef int take(self, object owner, Pages pages) except -1
    cdef int compare(self, const void* p, uint64_t n_bytes) except -1
    cdef int refuse_damage(self) except -1

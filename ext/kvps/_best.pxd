# What the kernels see of the search for the best next words; see _best.pyx.
from cpython.ref cimport PyObject

from kvps._followers cimport Followers, Workspace, source
from kvps._types cimport index_t, word_t, uint32_t, uint64_t

cdef struct part:
    # One model of those that are asked.
    PyObject* followers        # borrowed: Best owns it
    double weight
    const uint32_t* own        # its ids of our words, UNK of those that it lacks; NULL: they are ours
    const uint32_t* here       # our ids of its words; NULL: they are ours
    index_t n_here


cdef class Best:
    cdef object owner
    cdef part* parts
    cdef int n_parts
    cdef const uint32_t* ranks
    cdef const uint32_t* by_rank
    cdef readonly index_t n_words, n_room
    cdef readonly int order                # the highest one of all models
    cdef bint falling                      # what words get falls along every list

    cdef word_t here_of(self, const part* p, word_t word) noexcept nogil
    cdef int gather(self, Workspace ws, const word_t* last, int n) noexcept nogil
    cdef bint touch(self, Workspace ws, word_t word, bint drawn_from, index_t low, index_t high) noexcept nogil
    cdef void down_to(self, Workspace ws, source* s, double least, bint drawn_from, index_t low, index_t high) noexcept nogil
    cdef void touch_promising(self, Workspace ws, int n_sources, index_t k, bint drawn_from, index_t low, index_t high) noexcept nogil
    cdef double kth(self, Workspace ws, index_t k) noexcept nogil
    cdef void touch_frequent(self, Followers followers, Workspace ws, const word_t* last, int n, index_t low, index_t high,
                             uint64_t least) noexcept nogil
    cdef void add_up(self, Workspace ws, int n_sources) noexcept nogil
    cdef void mark(self, Workspace ws, const part* p, bint on) noexcept nogil
    cdef void add_marked(self, Followers followers, Workspace ws, const source* s, const uint64_t* marks) noexcept nogil
    cdef double probability(self, Workspace ws, word_t word) noexcept nogil
    cdef index_t search(self, Workspace ws, const word_t* last, int n, index_t k, bint drawn_from, index_t low, index_t high,
                        uint64_t least) noexcept nogil

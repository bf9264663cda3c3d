# What the kernels see of the lists of what follows a context; see _followers.pyx.
from kvps._pages cimport Paged
from kvps._smoothing cimport smoothing
from kvps._types cimport MAX_ORDER, byte_t, index_t, int64_t, word_t, uint32_t, uint64_t

cdef enum:
    NO_WORD = 0xFFFFFFFF

cdef struct numbers:
    # A column of numbers of 4 or 8 bytes.
    const byte_t* data
    bint wide

cdef struct level:
    # The contexts of one depth and their lists, context after context.
    const uint32_t* nodes      # c_d of each
    index_t n_nodes
    numbers children           # n_nodes + 1: where its contexts of the next depth begin; none at the deepest
    numbers followers          # n_nodes + 1: where its list begins
    const uint32_t* words
    const byte_t* codes
    index_t n_words
    const uint64_t* places     # of followers with LARGE_CODE, rising
    const uint64_t* large      # their values
    index_t n_large

cdef struct listing:
    # One context's list.
    int d
    index_t start, end
    index_t large              # the place of its first large value among all
    double den
    uint64_t n1, n2, n3
    double scale, gamma        # see shares()
    double coefficient         # by which what the words keep of their counts is multiplied

cdef struct source:
    # Words by what one list gives them, or the ground, the greatest first, as _best.pyx goes down them.
    int model
    listing x                  # of which the words from `at` on are left; of a ground d, start, end and coefficient
    const uint32_t* order      # the words of the ground, if it is that
    index_t at
    double next                # what the word at `at` gets

cdef struct candidate:
    double p
    uint32_t rank
    word_t word


cdef inline bint better(const candidate& a, const candidate& b) noexcept nogil:
    """Whether a comes before b: the more probable one, of equals the first in byte order."""
    return a.p > b.p or a.p == b.p and a.rank < b.rank


cdef extern from "<algorithm>" namespace "std" nogil:
    # As in libcpp.algorithm, which takes an exception of the comparison into account; ours raise none.
    void make_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept
    void push_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept
    void pop_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept
    void sort_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept


cdef class Workspace:
    cdef double* sums                      # per word; 0 but for those that are touched
    cdef word_t* touched
    cdef index_t n_touched
    cdef uint64_t* marks                   # bit per word: touched
    cdef uint64_t* theirs                  # the same by the ids of one of several models, while it is asked
    cdef candidate* heap
    cdef candidate* chosen
    cdef source* sources                   # of _best.pyx: the ground of each model, then the lists of all
    cdef index_t n_words, n_models
    cdef uint32_t mask                     # bits of marks and theirs, less 1: a power of two less 1, at least n_words
    cdef double scale                      # of the ground
    cdef bint alone                        # there is no context, so the ground is that of unigrams

    cdef bint marked(self, word_t word) noexcept nogil
    cdef void add(self, word_t word, double share, bint instead) noexcept nogil
    cdef void clear(self) noexcept nogil


cdef class Followers(Paged):
    cdef readonly int order
    cdef level levels[MAX_ORDER]
    cdef const uint64_t* starts
    cdef uint32_t n_parts
    cdef const uint32_t* parts
    cdef const uint32_t* ranks
    cdef readonly index_t n_words
    cdef smoothing rules
    cdef double kept_of[MAX_ORDER + 1][256]        # of a value below LARGE_CODE, by order
    cdef bint falling                              # what words get falls along a list
    # [0] after some context, [1] after none: each word's share of the ground, and the words by it, best first
    cdef const double* ground[2]
    cdef const uint32_t* by_ground[2]
    cdef index_t n_ground[2]

    cdef int use(self, numbers* c, column, index_t n) except -1
    cdef index_t search(self, int d, index_t low, index_t high, word_t word) noexcept nogil
    cdef bint bounds(self, const numbers* c, index_t node, index_t limit, index_t* start, index_t* end) noexcept nogil
    cdef bint list_of(self, int d, index_t node, listing* out) noexcept nogil
    cdef uint64_t value_at(self, const listing* x, index_t i) noexcept nogil
    cdef double kept_at(self, const listing* x, index_t i) noexcept nogil
    cdef uint64_t large_value(self, const listing* x, index_t i) noexcept nogil
    cdef int find(self, const word_t* last, int n, listing* lists) noexcept nogil
    cdef int weigh(self, const word_t* last, int n, listing* lists, double* scale) noexcept nogil
    cdef void sum_up(self, Workspace ws, const word_t* last, int n) noexcept nogil
    cdef double probability(self, Workspace ws, word_t word) noexcept nogil
    cdef int64_t rank_of(self, Workspace ws, word_t word, word_t* first) noexcept nogil
    cdef int refuse_shape(self, Workspace ws) except -1

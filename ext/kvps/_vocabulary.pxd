# Words <-> ids in flat arrays, the same for a table that grows and for one mapped from a file.
from kvps._pages cimport Paged, page_view
from kvps._types cimport byte_t, index_t, word_t, uint32_t, uint64_t

cdef struct vocab_view:
    # One moment of a table. A reader ignores slots of ids >= n_words: words added after the view was taken.
    const uint64_t* slots      # hash tag (high 32 bits) | id + 1; 0 is empty
    uint64_t mask              # slots - 1, slots a power of two
    const uint64_t* ends       # bytes of word i: blob[ends[i]:ends[i + 1]]
    const byte_t* blob
    uint64_t n_words
    page_view* pages           # of the mapped file that all this lies in, or NULL

cdef uint64_t hash_word(const byte_t* p, index_t n) noexcept nogil
cdef word_t find_word(const vocab_view* v, const byte_t* p, index_t n, uint64_t h) noexcept nogil
cdef index_t encode_lines(const vocab_view* v, const byte_t* text, index_t n, uint32_t* ids, index_t* n_sentences) noexcept nogil
cdef index_t encode_line(const vocab_view* v, const byte_t* text, index_t n, uint32_t* ids) noexcept nogil

cdef class FrozenWords(Paged):
    cdef vocab_view v
    cdef void compare_whole(self) noexcept nogil

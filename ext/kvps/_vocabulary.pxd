# Words <-> ids in flat arrays, the same for a table that grows and for one mapped from a file.
from kvps._pages cimport Paged, page_view
from kvps._types cimport byte_t, index_t, word_t, uint32_t, uint64_t

cdef struct word_slot:
    uint64_t key               # word_key(): the bytes of a short word, a hash of those of a longer one
    uint32_t number            # id + 1; 0 is an empty slot
    uint32_t n_bytes           # of the word

cdef struct vocab_view:
    # One moment of a table. A reader ignores slots of ids >= n_words: words added after the view was taken.
    const word_slot* slots
    uint64_t mask              # slots - 1, slots a power of two
    const uint64_t* ends       # bytes of word i: blob[ends[i]:ends[i + 1]]
    const byte_t* blob
    uint64_t n_words, n_bytes  # n_bytes: room of the blob
    page_view* pages           # of the mapped file that all this lies in, or NULL

cdef uint64_t word_key(const byte_t* p, index_t n) noexcept nogil
cdef word_t find_word(const vocab_view* v, const byte_t* p, index_t n, uint64_t key) noexcept nogil
cdef vocab_view view_of(const uint64_t[::1] slots, const uint64_t[::1] ends, const byte_t[::1] blob) except *
cdef index_t encode_lines(const vocab_view* v, const byte_t* text, index_t n, uint32_t* ids, index_t* n_sentences) noexcept nogil
cdef index_t encode_line(const vocab_view* v, const byte_t* text, index_t n, uint32_t* ids) noexcept nogil

cdef class FrozenWords(Paged):
    cdef vocab_view v
    cdef void compare_whole(self) noexcept nogil

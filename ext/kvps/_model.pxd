# What the kernels see of a compiled model; see _model.pyx.
from kvps._pages cimport Paged, page_view
from kvps._tally cimport by_sentence, tally
from kvps._types cimport MAX_ORDER, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t


cdef struct place:
    # Where a sentence stands: the words before the next one, the last first, and what look-ups need of them.
    word_t words[MAX_ORDER]
    uint32_t numbers[MAX_ORDER]    # numbers[d - 1]: of the last d words as a context, NONE if they are none
    int length                     # words that matter for what follows


cdef class Tables(Paged):
    cdef const uint64_t* unigrams          # values by word
    cdef const uint32_t* unigram_contexts  # per word: its number as a context, plus 1; 0: none
    cdef index_t n_words
    cdef uint64_t n_numbers                # numbers of contexts are below this
    cdef uint64_t seed
    cdef int order
    cdef word_t valueless                  # a word whose value does not count as one: <unk>, where it is given
    cdef bint gaps                         # n-grams may be listed without their last words
    cdef bint given                        # probabilities() gives log10, and a number tells whether there is a context; where
                                           # counts do not tell, what ends with </s> is none
    cdef const byte_t* table               # what most look-ups read
    cdef uint64_t table_bytes, n_asked     # tokens that were looked up in long texts
    cdef page_view* table_page             # of its pages; NULL once all were compared
    cdef bint ready                        # all is there that look-ups need
    cdef readonly bint exact               # without fingerprints

    cdef const byte_t* bucket_of(self, uint64_t hash) noexcept nogil
    cdef bint find_entry(self, uint64_t hash, const byte_t* bucket, uint64_t* value, uint32_t* number) noexcept nogil
    cdef void probabilities(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, double* p,
                            uint8_t* matched) noexcept nogil
    cdef void floats(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, float* p,
                     uint8_t* matched) noexcept nogil
    cdef float float_of(self, const uint64_t* values, const uint32_t* numbers, int longest, word_t word, int* matched) noexcept nogil
    cdef void look_block(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before,
                         uint64_t[:, ::1] values, uint64_t[:, :, ::1] totals, double[:, :, ::1] parts) noexcept
    cdef void share_out(self, const word_t* last, int n, const word_t* words, index_t n_words, double* p) noexcept nogil

    cdef void keep_table(self, const byte_t[::1] table)
    cdef int refuse_unknown(self, const uint32_t[::1] ids) except -1
    cdef void add_up(self, const word_t* ids, const uint8_t* history, index_t n, tally* t,
                     const by_sentence* rows) noexcept nogil
    cdef uint64_t hash_of(self, const word_t* last, int n) noexcept nogil
    cdef void find_contexts(self, const word_t* last, int n, uint64_t* chains, uint32_t* numbers) noexcept nogil
    cdef float step(self, const place* before, word_t word, place* after, int* matched) noexcept nogil
    cdef void score_tokens(self, const word_t* ids, const uint8_t* history, index_t n, float* out,
                           uint8_t* matched) noexcept nogil

# The compiled model; see _model.pyx.
from kvps._buckets cimport table
from kvps._pages cimport Paged
from kvps._smoothing cimport smoothing
from kvps._tally cimport by_sentence, tally
from kvps._types cimport MAX_ORDER, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t


cdef struct exact_rows:
    # Word rows of one order, part after part, each sorted; a part is what one walk yielded.
    const uint32_t* words
    const uint64_t* starts     # n_parts + 1 row numbers
    const uint64_t* values     # of n-grams
    const uint32_t* numbers    # of contexts


cdef struct weight:
    double scale, gamma        # of a context: by what to multiply what its n-grams keep, and what it leaves to the shorter one


cdef struct place:
    # Where a sentence stands: the words before the next one, the last first, and what look-ups need of them.
    word_t words[MAX_ORDER]
    uint32_t numbers[MAX_ORDER]    # numbers[d - 1]: of the totals of the last d words, NONE if they are no context
    int length                     # words that matter for what follows


cdef class Tables(Paged):
    cdef table entries
    cdef const uint64_t* unigrams
    cdef const uint32_t* unigram_contexts  # per word: number of its totals as a context, plus 1; 0: none
    cdef const uint64_t* escaped           # hashes of contexts whose totals have the highest code, sorted
    cdef const uint32_t* escaped_numbers
    cdef index_t n_escaped
    cdef const uint64_t* totals            # rows of 4
    cdef const uint64_t* large
    cdef index_t n_words, n_totals, n_large
    cdef uint64_t n_numbers                # numbers of totals are below this
    cdef uint64_t quarter
    cdef uint32_t unlisted                 # number of the totals of an n-gram that has none listed
    cdef uint64_t seed
    cdef int order
    cdef readonly bint exact
    cdef uint32_t n_parts
    cdef const uint32_t* parts             # per word: the part of what has it as its last context word; n_parts: any
    cdef exact_rows ngram_rows[MAX_ORDER + 1]
    cdef exact_rows context_rows[MAX_ORDER + 1]
    cdef smoothing rules
    cdef double unigram_total, uniform     # sum of unigram values; 1 / V
    cdef double unigram_gamma              # mass for the uniform distribution, times uniform
    cdef weight* weights                   # order rows of n_totals + 1, see weight_of()

    cdef weight* weight_of(self, int d, uint32_t number) noexcept nogil
    cdef index_t find_row(self, const exact_rows* r, const word_t* key, int n) noexcept nogil
    cdef index_t find_in_part(self, const exact_rows* r, uint32_t part, const word_t* key, int n) noexcept nogil
    cdef const byte_t* bucket_of(self, uint64_t hash) noexcept nogil
    cdef bint find_entry(self, uint64_t hash, const byte_t* bucket, uint64_t* value, uint32_t* number) noexcept nogil
    cdef uint32_t find_escaped(self, uint64_t hash) noexcept nogil
    cdef bint find_exactly(self, const word_t* ids, int n, uint64_t* value, uint32_t* number) noexcept nogil
    cdef void gather(self, const word_t* ids, const uint8_t* history, index_t start, index_t n, uint32_t* own_before,
                     uint64_t* values, uint32_t* numbers) noexcept nogil
    cdef void gather_rows(self, const word_t* ids, const uint8_t* history, index_t n, uint64_t* values,
                          uint32_t* own) noexcept nogil
    cdef void gather_hashes(self, const word_t* ids, const uint8_t* history, index_t n, uint64_t* values,
                            uint32_t* own) noexcept nogil
    cdef index_t read_slots(self, const table* t, int d, const word_t* ids, uint8_t* live, index_t n,
                            const uint64_t* hashes, const byte_t** buckets, uint64_t* values, uint32_t* own) noexcept nogil
    cdef void combine_block(self, const word_t* ids, const uint8_t* history, index_t n, const uint64_t* values,
                            const uint32_t* numbers, double* p) noexcept nogil
    cdef double combine(self, const uint64_t* values, const uint32_t* numbers, int longest) noexcept nogil
    cdef void take_apart(self, const uint64_t* values, const uint32_t* numbers, int longest, double* share,
                         double* discount, double* backoff) noexcept nogil
    cdef int longest_seen(self, const uint64_t* values, int longest) noexcept nogil
    cdef int refuse_unknown(self, const uint32_t[::1] ids) except -1
    cdef void add_up(self, const word_t* ids, const uint8_t* history, index_t n, tally* t,
                     const by_sentence* rows) noexcept nogil
    cdef uint64_t hash_of(self, const word_t* last, int n) noexcept nogil
    cdef void find_contexts(self, const word_t* last, int n, uint64_t* chains, uint32_t* numbers) noexcept nogil
    cdef void share_out(self, const word_t* last, int n, const word_t* words, index_t n_words, double* p) noexcept nogil
    cdef float float_of(self, const uint64_t* values, const uint32_t* numbers, int longest, word_t word,
                        int* matched) noexcept nogil
    cdef float step(self, const place* before, word_t word, place* after, int* matched) noexcept nogil
    cdef void score_tokens(self, const word_t* ids, const uint8_t* history, index_t n, float* out,
                           uint8_t* matched) noexcept nogil

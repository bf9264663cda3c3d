"""A compiled model made of counts: the loop that looks text up, order by order, and turns counts into probabilities.

Hash table: _buckets.pxd. Smoothings: kvps/lm/smoothing.py. Twin: tests/reference.py.
"""
cimport cython

from libc.math cimport log10
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from kvps._block cimport LANES, NONE, ROW, candidates, choose, longest_listed, no_bit, with_context
from kvps._buckets cimport (
    BUCKET, HIGHS, MARKS, ONES, after, bucket_at, fingerprint, has_marks, home, mark_of, partner, read_slot, table, tag_of)
from kvps._keys cimport bit_length, equal16, fetch, load64, lowest, mix, mul_high, u64
from kvps._model cimport Tables
from kvps._pages cimport Pages, usable
from kvps._rows cimport first_row
from kvps._smoothing cimport LIDSTONE, MODIFIED_KNESER_NEY, STUPID_BACKOFF, kept, shares, smoothing
from kvps._types cimport BOS, EOS, MAX_ORDER, byte_t, index_t, word_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    HUGE_PAGE = 1 << 21

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #ifndef MADV_HUGEPAGE
    #define MADV_HUGEPAGE MADV_NORMAL
    #endif
    """
    int madvise(void* p, size_t n, int advice)
    int MADV_HUGEPAGE

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void** p, size_t alignment, size_t n)


cdef struct exact_rows:
    # Word rows of one order, part after part, each sorted; a part is what one walk yielded.
    const uint32_t* words
    const uint64_t* starts     # n_parts + 1 row numbers
    const uint64_t* values     # of n-grams
    const uint32_t* numbers    # of contexts


cdef struct weight:
    double scale, gamma        # of a context: by what to multiply what its n-grams keep, and what it leaves to the shorter one


cdef void* allocated(size_t n) noexcept nogil:
    """Return room for n bytes, for free(), or NULL; in huge pages where that is worth it: look-ups all over it are faster then."""
    cdef void* p = NULL
    if n < HUGE_PAGE:
        return malloc(n)
    if posix_memalign(&p, HUGE_PAGE, (n + HUGE_PAGE - 1) // HUGE_PAGE * HUGE_PAGE) != 0:
        return NULL
    madvise(p, n, MADV_HUGEPAGE)           # advice: where the system has none, nothing is lost
    return p


@cython.final
cdef class CountTables(Tables):
    """A compiled model's counts, and its smoothing."""
    cdef table entries
    cdef const uint64_t* escaped           # hashes of contexts whose totals have the highest code, sorted
    cdef const uint32_t* escaped_numbers
    cdef index_t n_escaped
    cdef const uint64_t* totals            # rows of 4
    cdef const uint64_t* large
    cdef index_t n_totals, n_large
    cdef uint64_t quarter
    cdef uint32_t n_parts
    cdef const uint32_t* parts             # per word: the part of what has it as its last context word; n_parts: any
    cdef exact_rows ngram_rows[MAX_ORDER + 1]
    cdef exact_rows context_rows[MAX_ORDER + 1]
    cdef smoothing rules
    cdef double unigram_total, uniform     # sum of unigram values; 1 / V
    cdef double unigram_gamma              # mass for the uniform distribution, times uniform
    cdef weight* weights                   # order rows of n_totals + 1, see weight_of()

    def __cinit__(self, int order, unigrams, unigram_contexts, const uint64_t[::1] totals, const uint64_t[::1] large, *,
                 uint64_t seed, Pages pages=None):
        if totals.shape[0] % 4 or totals.shape[0] == 0:
            raise ValueError(f"order {order}, {totals.shape[0]} numbers for totals")
        self.owner += [totals, large]
        self.compare(&totals[0], 8 * totals.shape[0])
        if large.shape[0]:
            self.compare(&large[0], 8 * large.shape[0])
        self.totals, self.n_totals = &totals[0], totals.shape[0] // 4
        self.n_numbers = <uint64_t>self.n_totals
        self.n_large = large.shape[0]
        self.large = &large[0] if large.shape[0] else NULL

    def use_hashes(self, const byte_t[::1] entries, int code_bytes, int n_partitions, const uint64_t[::1] escaped,
                   const uint32_t[::1] escaped_numbers):
        """Answer look-ups from the hash table; `escaped` lists contexts whose totals' numbers have no code of their own."""
        cdef table* t = &self.entries
        if n_partitions < 1 or n_partitions & (n_partitions - 1) or entries.shape[0] == 0 \
                or entries.shape[0] % (BUCKET * n_partitions) or not 2 <= code_bytes <= 4 or escaped.shape[0] != escaped_numbers.shape[0]:
            raise ValueError(f"{entries.shape[0]} bytes for {n_partitions} partitions of buckets")
        self.keep_table(entries)
        self.owner += [escaped, escaped_numbers]
        t.data, t.n_buckets = &entries[0], entries.shape[0] // (BUCKET * n_partitions)
        t.partition_bits, t.slot_bytes = (n_partitions - 1).bit_length(), 4 + code_bytes
        t.n_slots = BUCKET // (5 + code_bytes)
        t.marked = has_marks(t.slot_bytes, t.n_slots)
        t.slot_bits = (1 << t.n_slots) - 1
        t.code_mask = (<uint64_t>1 << 8 * code_bytes) - 1
        t.listed = <uint64_t>1 << (8 * code_bytes - 1)
        self.quarter = t.listed >> 1
        self.n_escaped = escaped.shape[0]
        if self.n_escaped:
            self.compare(&escaped[0], 8 * self.n_escaped)
            self.compare(&escaped_numbers[0], 4 * self.n_escaped)
            self.escaped, self.escaped_numbers = &escaped[0], &escaped_numbers[0]

    def use_rows(self, const uint32_t[::1] parts, int n_parts, dict rows):
        """Answer look-ups from sorted rows instead, without fingerprints.

        parts: uint32 (n_words,), the part in which to look for what begins with a word, in context order; n_parts: in all.
        rows: ("ngrams", k) -> (words uint32 (n * k,), starts uint64 (n_parts + 1,), values uint64 (n,)) for orders 2 and up;
        ("contexts", d) -> (words uint32 (n * d,), starts, numbers uint32 (n,)) for depths 1 and up.
        """
        cdef const uint32_t[::1] words
        cdef const uint64_t[::1] starts, values
        cdef const uint32_t[::1] numbers
        cdef exact_rows* r
        cdef index_t i
        cdef bint sorted
        for (what, k), (w, s, v) in rows.items():
            words, starts = w, s
            r = &self.ngram_rows[<int>k] if what == "ngrams" else &self.context_rows[<int>k]
            r.words = &words[0] if words.shape[0] else NULL
            self.compare(&starts[0], 8 * starts.shape[0])
            sorted = True
            for i in range(starts.shape[0] - 1):
                sorted = sorted and starts[i] <= starts[i + 1]
            if not sorted or starts.shape[0] != n_parts + 1 or starts[n_parts] * <uint64_t>k != <uint64_t>words.shape[0]:
                raise ValueError(f"{what} of length {k}: {words.shape[0]} words, starts for {starts.shape[0] - 1} parts")
            r.starts = &starts[0]
            if what == "ngrams":
                values = v
                if values.shape[0] * <index_t>k != words.shape[0]:
                    raise ValueError(f"{values.shape[0]} values for {words.shape[0]} words of {what} of length {k}")
                r.values = &values[0] if values.shape[0] else NULL
            else:
                numbers = v
                if numbers.shape[0] * <index_t>k != words.shape[0]:
                    raise ValueError(f"{numbers.shape[0]} numbers for {words.shape[0]} words of {what} of length {k}")
                r.numbers = &numbers[0] if numbers.shape[0] else NULL
            self.owner.append((w, s, v))
        if parts.shape[0] != self.n_words:
            raise ValueError(f"{parts.shape[0]} parts for {self.n_words} words")
        self.compare(&parts[0], 4 * parts.shape[0])
        for i in range(parts.shape[0]):
            if parts[i] > <uint32_t>n_parts:
                raise ValueError(f"word {i} is in part {parts[i]} of {n_parts}")
        self.owner.append(parts)
        self.parts, self.n_parts, self.exact = &parts[0], n_parts, True

    def smooth(self, int kind, double value, discounts, double vocabulary):
        """Choose the smoothing.

        Args:
            value: gamma of Lidstone, d of absolute discounting and Kneser-Ney, alpha of stupid back-off.
            discounts: order + 1 rows of 4; [k][min(a, 3)] is taken off an adjusted count a of order k.
            vocabulary: V of the uniform distribution, |V| of Lidstone.
        """
        cdef int k, j
        cdef index_t i
        cdef index_t n_of[4]                       # words whose value is 0, 1, 2, 3 or more
        cdef double freed = 0
        cdef weight* weights
        if len(discounts) != self.order + 1 or any(len(row) != 4 for row in discounts):
            raise ValueError(f"discounts of {len(discounts)} rows for order {self.order}, of {[len(row) for row in discounts]}")
        weights = <weight*>allocated((self.n_totals + 1) * self.order * sizeof(weight))
        if weights == NULL:
            raise MemoryError(f"no memory for the weights of {self.n_totals} totals")
        free(self.weights)
        self.weights = weights
        for k in range(self.order):
            self.weight_of(k, NONE).scale, self.weight_of(k, NONE).gamma = 0, 1
        for k in range(1, self.order + 1):
            for j in range(4):
                self.rules.discount[k][j] = discounts[k][j] if j else 0        # what is not there keeps nothing
        self.rules.kind, self.rules.value, self.rules.vocabulary = kind, value, vocabulary
        self.unigram_total = 0
        for j in range(4):
            n_of[j] = 0
        for i in range(self.n_words):
            self.unigram_total += <double>self.unigrams[i]
            n_of[3 if self.unigrams[i] > 3 else self.unigrams[i]] += 1
        # Counted before it is multiplied: a sum in the order of ids would depend on how the text came, in its last bit.
        for j in range(1, 4):
            freed += self.rules.discount[1][j] * <double>n_of[j]
        self.uniform = 1.0 / vocabulary
        self.unigram_gamma = freed / self.unigram_total * self.uniform if self.unigram_total > 0 else self.uniform

        cdef const uint64_t* t
        cdef weight* w
        cdef double den
        for i in range(self.n_totals):
            t = self.totals + 4 * i
            den = <double>t[0] if t[0] > 0 else 1      # a context has a follower; 0 only where the file is damaged
            for k in range(1, self.order):
                w = self.weight_of(k, <uint32_t>i)
                shares(&self.rules, k + 1, den, t[1], t[2], t[3], &w.scale, &w.gamma)
        self.ready = True

    def __dealloc__(self):
        free(self.weights)

    cdef inline weight* weight_of(self, int d, uint32_t number) noexcept nogil:
        """The weights of a context of d words by the number of its totals, NONE among them."""
        return self.weights + d * (self.n_totals + 1) + <uint32_t>(number + 1)

    cdef index_t find_row(self, const exact_rows* r, const word_t* key, int n) noexcept nogil:
        """Return the row of n words in context order, or -1, as where a damaged page is met."""
        cdef uint32_t part = self.parts[key[0]]
        cdef index_t found = -1
        if part < self.n_parts:
            return self.find_in_part(r, part, key, n)
        for part in range(self.n_parts):
            found = self.find_in_part(r, part, key, n)
            if found >= 0:
                break
        return found

    cdef index_t find_in_part(self, const exact_rows* r, uint32_t part, const word_t* key, int n) noexcept nogil:
        """Return the row of n words in one part, or -1."""
        cdef index_t end = r.starts[part + 1], row = first_row(r.words, n, r.starts[part], end, key, n, False, self.page)
        if row < end and usable(self.page, r.words + row * n, 4 * n) and memcmp(r.words + row * n, key, 4 * n) == 0:
            return row
        return -1

    cdef const byte_t* bucket_of(self, uint64_t hash) noexcept nogil:
        cdef const table* t = &self.entries
        return bucket_at(t, hash, home(hash, t.partition_bits, t.n_buckets))

    cdef bint find_entry(self, uint64_t hash, const byte_t* bucket, uint64_t* value, uint32_t* number) noexcept nogil:
        """As Tables.find_entry(); a number is that of totals.

        An n-gram that is known and whose totals are not listed has (1, 1, 0, 0), number 0.
        """
        cdef const table* t = &self.entries
        cdef uint64_t f = fingerprint(hash), tag = (f & 255) * ONES, high = f >> 8, other = partner(f) >> 8
        cdef uint64_t differ, same, found_high, tried
        cdef uint32_t code, ngram = <uint32_t>NONE, totals_number = <uint32_t>NONE
        cdef uint64_t b = 0
        cdef byte_t mark = mark_of(f)
        cdef int s
        for tried in range(t.n_buckets + 1):
            if not usable(self.table_page, bucket):
                return False
            # The lowest eight tags at once: a byte of `differ` that is 0 leaves its highest bit in `same`. Bytes above such
            # a one may do so too; the comparison of the other 32 bits sorts them out.
            differ = load64(bucket) ^ tag
            same = (differ - ONES) & ~differ & HIGHS
            if t.n_slots == 9 and bucket[8] == <byte_t>f:
                code = read_slot(t, bucket, 8, &found_high)
                if found_high == high:
                    ngram = code
                elif found_high == other:
                    totals_number = code
            while same:
                s = (bit_length(<u64>(same & (~same + 1))) - 1) >> 3
                same &= same - 1
                if s < t.n_slots:
                    code = read_slot(t, bucket, s, &found_high)
                    if found_high == high and bucket[s] == <byte_t>f:
                        ngram = code
                    elif found_high == other and bucket[s] == <byte_t>f:
                        totals_number = code
            if ngram != <uint32_t>NONE and (not ngram & t.listed or totals_number != <uint32_t>NONE):
                break
            # Slots fill from the first to the last, so that the last one tells where there are no marks.
            if (bucket[MARKS] & mark if t.marked else bucket[t.n_slots - 1]) == 0:
                break
            b = after(b, tried, f, t.n_buckets)
            bucket = bucket_at(t, hash, b)
        if ngram == <uint32_t>NONE:
            return False
        code = ngram & <uint32_t>~t.listed
        if code < self.quarter:
            value[0] = code
        elif code - self.quarter < <uint64_t>self.n_large:
            value[0] = self.large[code - self.quarter]
        else:
            return False                       # damage must not lead outside the table
        number[0] = 0
        if ngram & t.listed:
            number[0] = totals_number if totals_number != t.code_mask else self.find_escaped(hash)
            if number[0] >= self.n_numbers:
                number[0] = 0                  # nor here
        return True

    cdef uint32_t find_escaped(self, uint64_t hash) noexcept nogil:
        """The number of totals that has no code of its own."""
        cdef index_t low = 0, high = self.n_escaped, middle
        while low < high:
            middle = (low + high) // 2
            if self.escaped[middle] < hash:
                low = middle + 1
            else:
                high = middle
        return self.escaped_numbers[low] if low < self.n_escaped else 0

    cdef bint find_exactly(self, const word_t* ids, int n, uint64_t* value, uint32_t* number) noexcept nogil:
        """The same by binary search, for the n words that end at *ids."""
        cdef word_t key[MAX_ORDER]
        cdef int j
        cdef index_t row
        for j in range(n - 1):
            key[j] = (ids - 1 - j)[0]
        key[n - 1] = ids[0]
        row = self.find_row(&self.ngram_rows[n], key, n)
        if row < 0 or not usable(self.page, &self.ngram_rows[n].values[row]):
            return False
        value[0] = self.ngram_rows[n].values[row]
        number[0] = <uint32_t>NONE
        if n < self.order:
            for j in range(n):
                key[j] = (ids - j)[0]
            row = self.find_row(&self.context_rows[n], key, n)
            if row >= 0 and usable(self.page, &self.context_rows[n].numbers[row]):
                number[0] = self.context_rows[n].numbers[row]
                if number[0] >= self.n_numbers:
                    number[0] = <uint32_t>NONE
        return True

    cdef void probabilities(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, double* p,
                            uint8_t* matched) noexcept nogil:
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        self.gather(ids, history, first, n, before, values, numbers)
        self.combine_block(ids + first, history + first, n, values, numbers, p)
        if matched != NULL:
            longest_listed(n, self.order, values, matched)

    cdef void floats(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, float* out,
                     uint8_t* matched) noexcept nogil:
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        cdef double p[LANES]
        cdef index_t i
        cdef int used
        self.gather(ids, history, first, n, before, values, numbers)
        self.combine_block(ids + first, history + first, n, values, numbers, p)
        longest_listed(n, self.order, values, matched)
        for i in range(n):
            if ids[first + i] == BOS:
                out[i] = self.float_of(values + i, numbers + i, min(history[first + i] + 1, self.order), BOS, &used)
            else:
                out[i] = <float>log10(p[i])

    cdef void gather(self, const word_t* ids, const uint8_t* history, index_t start, index_t n, uint32_t* before,
                     uint64_t* values, uint32_t* numbers) noexcept nogil:
        """Look up the n <= LANES tokens ids[start:start + n].

        history[start + i] is how many tokens before token i belong to its sentence (at most order - 1).
        before[k]: number of the totals of the k-gram that ends before `start`, NONE if it is no context; OUT the
        same for the last token.
        OUT values[(k - 1) * LANES + i]: of the k-gram that ends at token i, 0 if there is none.
        OUT numbers[d * LANES + i]: of the totals of its context of d words, NONE if that was never seen.
        """
        cdef uint32_t own[(MAX_ORDER + 1) * ROW]       # own[k * ROW + i + 1]: totals of the k-gram that ends at token i
        cdef index_t i
        cdef int d
        cdef word_t word
        cdef uint32_t number
        for d in range(1, self.order):
            memset(values + d * LANES, 0, n * sizeof(uint64_t))
            memset(own + (d + 1) * ROW + 1, 255, n * sizeof(uint32_t))     # NONE
        for d in range(1, self.order + 1):
            own[d * ROW] = before[d]
        for i in range(n):
            word = ids[start + i]
            values[i] = self.unigrams[word]
            number = self.unigram_contexts[word] - 1      # 0 - 1 is NONE
            own[ROW + i + 1] = number if number < self.n_numbers else <uint32_t>NONE
        if self.order > 1:
            for i in range(n):
                fetch(self.weight_of(1, own[ROW + i + 1]))
        if self.exact:
            self.gather_rows(ids + start, history + start, n, values, own)
        else:
            self.gather_hashes(ids + start, history + start, n, values, own)
        for d in range(1, self.order):
            for i in range(n):
                numbers[d * LANES + i] = own[d * ROW + i] | 0 - <uint32_t>(history[start + i] < d)
        for d in range(1, self.order + 1):
            before[d] = own[d * ROW + n]

    cdef void gather_rows(self, const word_t* ids, const uint8_t* history, index_t n, uint64_t* values,
                          uint32_t* own) noexcept nogil:
        """Look n-grams of 2 words and more up in sorted rows; values and own as in gather()."""
        cdef index_t i
        cdef int d
        for d in range(1, self.order):
            for i in range(n):
                if history[i] >= d and values[(d - 1) * LANES + i] > 0 and own[d * ROW + i] != <uint32_t>NONE:
                    self.find_exactly(ids + i, d + 1, &values[d * LANES + i], &own[(d + 1) * ROW + i + 1])
                    if ids[i] == EOS:
                        own[(d + 1) * ROW + i + 1] = <uint32_t>NONE

    cdef void gather_hashes(self, const word_t* ids, const uint8_t* history, index_t n, uint64_t* values,
                            uint32_t* own) noexcept nogil:
        """Look n-grams of 2 words and more up in the hash table, order by order; values and own as in gather().

        Each step is a short loop without branches that depend on what is found: many of its rounds are under way at once then,
        where guesses at branches would be wrong as often as not. Lines are fetched in loops that do nothing else: a fetch waits
        for its page to be found, and only others can be under way meanwhile. Tried, and no faster: groups of tokens that are
        each at another order, so that lines come while others are worked on; one long loop without branches (half as fast).
        A file in huge pages is looked up in 8 % faster, but took 0.6 s more to write: not worth it where models are made anew.
        """
        cdef uint64_t chain[LANES]
        cdef uint64_t hashes[LANES]
        cdef const byte_t* buckets[LANES]
        cdef uint8_t live[LANES]               # tokens whose n-grams may be known
        cdef index_t n_live = n, i, j
        cdef int d
        cdef table t = self.entries
        for i in range(n):
            chain[i] = self.seed
            live[i] = <uint8_t>i
        for d in range(1, self.order):
            # STEP 1: the context of d words is the d-gram before the token.
            n_live = with_context(live, n_live, own + d * ROW, history, d)
            # STEP 2: where would the (d + 1)-gram be?
            for j in range(n_live):
                i = live[j]
                chain[i] = mix(chain[i], (ids + i - d)[0])
                hashes[j] = mix(chain[i], ids[i])
            for j in range(n_live):
                buckets[j] = t.data + mul_high(hashes[j], t.n_buckets << t.partition_bits) * BUCKET
                fetch(buckets[j])
            # STEP 3: read.
            n_live = self.read_slots(&t, d, ids, live, n_live, hashes, buckets, values + d * LANES, own + (d + 1) * ROW + 1)

    cdef inline index_t read_slots(self, const table* t, int d, const word_t* ids, uint8_t* live, index_t n, const uint64_t* hashes,
                                   const byte_t** buckets, uint64_t* values, uint32_t* own) noexcept nogil:
        """Do what find_entry() does for (d + 1)-grams of n tokens; keep those in `live` that are there."""
        cdef candidates c
        cdef int spare = 8 * (8 - t.slot_bytes), marks_at = MARKS if t.marked else t.n_slots - 1
        cdef byte_t unmarked = 0 if t.marked else 255
        cdef uint32_t high, m, m2, last = <uint32_t>1 << (t.n_slots - 1)
        cdef uint64_t slot, slot2
        cdef uint8_t found[LANES]
        cdef uint8_t rest[LANES]               # places in `live` of those of which one bucket does not tell all
        cdef index_t j, i, n_found = 0, n_rest = 0
        cdef const byte_t* bucket
        cdef const byte_t* slots
        for j in range(n):
            bucket, high = buckets[j], <uint32_t>(hashes[j] >> 8)
            m = equal16(bucket, tag_of(hashes[j])) & t.slot_bits if usable(self.table_page, bucket) else 0
            m2 = m & (m - 1)
            # The eight bytes that end where a slot ends lie in its bucket. Where no tag matches the last slot is read, in vain.
            slots = bucket + t.n_slots + t.slot_bytes - 8
            slot = load64(slots + lowest(m | last) * t.slot_bytes) >> spare
            slot2 = load64(slots + lowest(m2 | last) * t.slot_bytes) >> spare
            c.differ[j], c.code[j] = <uint32_t>slot ^ high | no_bit(m), <uint32_t>(slot >> 32)
            c.differ2[j], c.code2[j] = <uint32_t>slot2 ^ high | no_bit(m2), <uint32_t>(slot2 >> 32)
            c.beyond[j] = bucket[marks_at] & (mark_of(tag_of(hashes[j])) | unmarked)
            c.third[j] = m2 & (m2 - 1)
        choose(&c, n, <uint32_t>t.listed, <uint32_t>self.quarter, <uint32_t>min(t.code_mask, self.n_numbers))
        for j in range(n):
            rest[n_rest] = <uint8_t>j
            n_rest += c.unclear[j] & 1
        for j in range(n_rest):
            fetch(bucket_at(t, hashes[rest[j]], after(0, 0, fingerprint(hashes[rest[j]]), t.n_buckets)))
        for j in range(n):
            i = live[j]
            values[i] = c.value[j]
            own[i] = c.number[j] | 0 - <uint32_t>(ids[i] == EOS)
            found[n_found] = <uint8_t>i
            n_found += c.found[j] & 1
        if d + 1 < self.order:
            for j in range(n_found):
                fetch(self.weight_of(d + 1, own[found[j]]))
        for j in range(n_rest):
            i = live[rest[j]]
            values[i], own[i] = 0, <uint32_t>NONE
            if self.find_entry(hashes[rest[j]], buckets[rest[j]], &values[i], &own[i]):
                found[n_found] = <uint8_t>i
                n_found += 1
            if ids[i] == EOS:
                own[i] = <uint32_t>NONE
        memcpy(live, found, n_found)
        return n_found

    cdef void combine_block(self, const word_t* ids, const uint8_t* history, index_t n, const uint64_t* values,
                            const uint32_t* numbers, double* p) noexcept nogil:
        """combine() of n tokens."""
        cdef index_t i
        cdef int d
        cdef int64_t a
        cdef const weight* w
        cdef const weight* weights
        cdef double total = self.unigram_total, gamma = self.unigram_gamma
        cdef const double* discount
        if self.rules.kind != MODIFIED_KNESER_NEY:
            for i in range(n):
                p[i] = self.combine(values + i, numbers + i, min(history[i] + 1, self.order))
            return
        for i in range(n):
            a = <int64_t>values[i]
            p[i] = gamma + (<double>a - self.rules.discount[1][3 if a > 3 else a]) / total if a > 0 else gamma
        for d in range(1, self.order):
            discount = self.rules.discount[d + 1]
            weights = self.weight_of(d, NONE)
            for i in range(n):
                a = <int64_t>values[d * LANES + i]
                w = weights + <uint32_t>(numbers[d * LANES + i] + 1)
                p[i] = p[i] * w.gamma + (<double>a - discount[3 if a > 3 else a]) * w.scale

    cdef inline double combine(self, const uint64_t* values, const uint32_t* numbers, int longest) noexcept nogil:
        """Return the probability of a token from what `gather` found; values and numbers step by LANES.

        longest: order of the longest n-gram asked for. Formulas and their sources: _smoothing.pxd.
        """
        cdef int d, top = longest
        cdef uint64_t a = values[0]
        cdef const weight* w
        cdef double p, den
        if self.rules.kind == LIDSTONE or self.rules.kind == STUPID_BACKOFF:
            p = 1
            if self.rules.kind == STUPID_BACKOFF:
                while top > 1 and values[(top - 1) * LANES] == 0:
                    p *= self.rules.value
                    top -= 1
            a = values[(top - 1) * LANES]
            den = self.unigram_total
            if top > 1:
                den = <double>self.totals[4 * <index_t>numbers[(top - 1) * LANES]] if numbers[(top - 1) * LANES] != <uint32_t>NONE else 0
            if self.rules.kind == LIDSTONE:
                den += self.rules.value * self.rules.vocabulary
                return (<double>a + self.rules.value) / den if den > 0 else 0
            return p * <double>a / den if den > 0 else 0
        if self.rules.kind == MODIFIED_KNESER_NEY:
            p = self.unigram_gamma
            if a > 0:
                p += kept(&self.rules, 1, a) / self.unigram_total
        else:
            p = <double>a / self.unigram_total if self.unigram_total > 0 else 0
        for d in range(1, longest):
            if numbers[d * LANES] == <uint32_t>NONE:
                break
            a = values[d * LANES]
            w = self.weight_of(d, numbers[d * LANES])
            p *= w.gamma
            if a > 0:
                p += kept(&self.rules, d + 1, a) * w.scale
        return p

    cdef void take_apart(self, const uint64_t* values, const uint32_t* numbers, int longest, double* share, double* discount,
                         double* backoff) noexcept nogil:
        """Fill in how `combine` comes to a probability; arguments as there.

        OUT share[k]: what the n-gram of order k gives to it, k = 0 being what all words get; they add up to the probability.
        discount[k]: what is taken off its count. backoff[d]: by what the context of d words multiplies what the shorter ones
        give; 1 where it was not seen. REQUIRES share and discount of 0, backoff of 1.
        """
        cdef int d, top = longest
        cdef double mass = 1, den
        cdef const weight* w
        if self.rules.kind == LIDSTONE or self.rules.kind == STUPID_BACKOFF:
            while self.rules.kind == STUPID_BACKOFF and top > 1 and values[(top - 1) * LANES] == 0:
                top -= 1
                backoff[top] = self.rules.value
                mass *= self.rules.value
            den = self.unigram_total
            if top > 1:
                den = <double>self.totals[4 * <index_t>numbers[(top - 1) * LANES]] if numbers[(top - 1) * LANES] != <uint32_t>NONE else 0
            if self.rules.kind == LIDSTONE:
                den += self.rules.value * self.rules.vocabulary
                share[0] = self.rules.value / den if den > 0 else 0
            share[top] = mass * <double>values[(top - 1) * LANES] / den if den > 0 else 0
            return
        top = 1
        while top < longest and numbers[top * LANES] != <uint32_t>NONE:
            top += 1
        for d in range(top - 1, 0, -1):
            w = self.weight_of(d, numbers[d * LANES])
            if values[d * LANES] > 0:
                share[d + 1] = mass * kept(&self.rules, d + 1, values[d * LANES]) * w.scale
                discount[d + 1] = <double>values[d * LANES] - kept(&self.rules, d + 1, values[d * LANES])
            backoff[d] = w.gamma
            mass *= w.gamma
        if self.rules.kind == MODIFIED_KNESER_NEY:
            share[0] = mass * self.unigram_gamma
            backoff[0] = self.unigram_gamma / self.uniform
            if values[0] > 0:
                share[1] = mass * kept(&self.rules, 1, values[0]) / self.unigram_total
                discount[1] = <double>values[0] - kept(&self.rules, 1, values[0])
        elif self.unigram_total > 0:
            share[1] = mass * <double>values[0] / self.unigram_total

    cdef inline int longest_seen(self, const uint64_t* values, int longest) noexcept nogil:
        """The order of the longest n-gram that ends at a token; 0 for an unknown word."""
        while longest > 0 and values[(longest - 1) * LANES] == 0:
            longest -= 1
        return longest

    cdef float float_of(self, const uint64_t* values, const uint32_t* numbers, int longest, word_t word,
                        int* matched) noexcept nogil:
        cdef int d
        cdef double p = 1
        matched[0] = max(self.longest_seen(values, longest), 1)
        if word == BOS:
            for d in range(1, longest):
                if numbers[d * LANES] == <uint32_t>NONE:
                    break
                p *= self.weight_of(d, numbers[d * LANES]).gamma
            return <float>log10(p)
        return <float>log10(self.combine(values, numbers, longest))

    def unigram_probabilities(self, double[::1] out):
        """Fill out[w], float64 (n_words,), with the probability of each word after no context."""
        cdef index_t w
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        if out.shape[0] != self.n_words or not self.ready:
            raise ValueError(f"room for {out.shape[0]} of {self.n_words} words")
        with nogil:
            for w in range(self.n_words):
                values[0] = self.unigrams[w]
                out[w] = self.combine(values, numbers, 1)

    cdef void share_out(self, const word_t* last, int n, const word_t* words, index_t n_words, double* p) noexcept nogil:
        cdef index_t first = 0, block, i, j, n_live
        cdef int d
        cdef uint64_t chains[MAX_ORDER + 1]
        cdef uint32_t known[MAX_ORDER + 1]
        cdef word_t asked[LANES]
        cdef uint8_t history[LANES]
        cdef uint64_t hashes[LANES]
        cdef const byte_t* buckets[LANES]
        cdef uint8_t live[LANES]
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        cdef uint32_t own[LANES]
        n = min(n, self.order - 1)
        self.find_contexts(last, n, chains, known)
        memset(history, n, LANES)
        memset(numbers, 255, sizeof(numbers))      # NONE
        for d in range(1, n + 1):
            for i in range(LANES):
                numbers[d * LANES + i] = known[d]
        while first < n_words:
            block = n_live = min(<index_t>LANES, n_words - first)
            for i in range(block):
                asked[i] = <word_t>(first + i) if words == NULL else words[first + i]
                values[i] = self.unigrams[asked[i]]
                live[i] = <uint8_t>i
            memset(values + LANES, 0, (self.order - 1) * LANES * sizeof(uint64_t))
            for d in range(1, n + 1):
                if known[d] == <uint32_t>NONE:
                    break
                for j in range(n_live):
                    hashes[j] = mix(chains[d], asked[live[j]])
                for j in range(n_live):
                    buckets[j] = self.bucket_of(hashes[j])
                    fetch(buckets[j])
                n_live = self.read_slots(&self.entries, self.order - 1, asked, live, n_live, hashes, buckets, values + d * LANES,
                                         own)
            self.combine_block(asked, history, block, values, numbers, p + first)
            first += block

    cdef void look_block(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before,
                         uint64_t[:, ::1] v, uint64_t[:, :, ::1] t, double[:, :, ::1] p) noexcept:
        cdef index_t i
        cdef int d, j
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        self.gather(ids, history, first, n, before, values, numbers)
        for i in range(n):
            for d in range(self.order):
                v[first + i, d] = values[d * LANES + i]
                if d > 0 and numbers[d * LANES + i] != <uint32_t>NONE:
                    for j in range(4):
                        t[first + i, d, j] = self.totals[4 * numbers[d * LANES + i] + j]
            self.take_apart(values + i, numbers + i, min(history[first + i] + 1, self.order), &p[0, first + i, 0],
                            &p[1, first + i, 0], &p[2, first + i, 0])

"""The compiled model: hash tables in cache-line buckets, and the loop that scores text with them.

A bucket is 64 bytes: as many slots of 5 + c bytes as fit, of a 40-bit fingerprint and a c-byte code (c = 2, 3 or 4).
The first bytes of a bucket are the tags of its slots, the lowest 8 bits of their fingerprints, so that all are compared
at once; behind them stand the slots, each the higher 32 bits of its fingerprint and its code. A tag of 0 is an empty slot.
The highest bits of a hash choose the partition, the next ones the bucket in it, the lowest 40 are the fingerprint.
A full bucket overflows into the next one of its partition; a look-up ends at the first empty slot.
An entry is an n-gram with the code of its count, or a context with the code of its totals; both are found by the hash of
their words as an n-gram, so what a token needs as an n-gram and what the next one needs as a context is one cache miss.
Layout of the file: kvps/lm/container.py. Smoothings: kvps/lm/smoothing.py. Twin: tests/reference.py.
"""
import numpy as np

cimport cython

from libc.math cimport log10
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from kvps._keys cimport bit_length, fetch, load32, load64, mix, mul_high, shard_of, u64
from kvps._types cimport BOS, EOS, MAX_ORDER, UNK, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t

cdef enum:
    BUCKET = 64
    NONE = 0xFFFFFFFF          # no such entry
    LANES = 128                # tokens looked up together, order by order: few enough for the first cache
    FULL = -2
    COLLISION = -3

cdef enum:
    ONES = 0x0101010101010101
    HIGHS = 0x8080808080808080
    FINGERPRINT = 0xFFFFFFFFFF

# Smoothings; numbers are private to this file and kvps/lm/smoothing.py.
cdef enum:
    MODIFIED_KNESER_NEY = 0
    KNESER_NEY = 1
    ABSOLUTE_DISCOUNTING = 2
    WITTEN_BELL = 3
    LIDSTONE = 4
    STUPID_BACKOFF = 5


def slots_per_bucket(int code_bytes):
    """Return how many slots of 5 + code_bytes bytes a bucket has."""
    return BUCKET // (5 + code_bytes)


cdef struct table:
    const byte_t* data
    uint64_t n_buckets         # per partition
    int partition_bits, slot_bytes, n_slots        # slot_bytes without the tag
    uint64_t code_mask, listed


cdef inline uint64_t home(uint64_t hash, int partition_bits, uint64_t n_buckets) noexcept nogil:
    """The bucket of a hash, counted within its partition."""
    return mul_high(hash << partition_bits, n_buckets)


cdef inline uint64_t fingerprint(uint64_t hash) noexcept nogil:
    cdef uint64_t f = hash & FINGERPRINT
    return f if f & 255 else f | 1         # a tag of 0 marks an empty slot


cdef inline uint64_t partner(uint64_t f) noexcept nogil:
    """The fingerprint under which the totals of an n-gram as a context stand, in the same chain of buckets."""
    return f ^ (<uint64_t>1 << 39)


cdef int insert(byte_t* region, uint64_t n_buckets, int partition_bits, int slot_bytes, uint64_t hash, uint64_t code,
                bint is_context) noexcept nogil:
    """Put one entry into its partition. Return 0, FULL or COLLISION (another entry answers to this fingerprint).

    The highest bit of an n-gram's code says that its totals as a context are listed: whichever of the two entries comes
    second finds the first one, on the way to an empty slot, and sets it.
    """
    cdef int s, free, n_slots = BUCKET // (slot_bytes + 1), n_low = 8 if n_slots > 8 else n_slots
    cdef uint64_t f = fingerprint(hash), other = partner(f) >> 8, b = home(hash, partition_bits, n_buckets), tried
    cdef uint64_t listed = <uint64_t>1 << (8 * (slot_bytes - 4) - 1), low = <uint64_t>HIGHS >> 8 * (8 - n_low)
    cdef uint64_t tag = (f & 255) * ONES, high = f >> 8, tags, same
    cdef uint32_t old
    cdef byte_t* bucket
    cdef byte_t* p
    if is_context:
        high, other = other, high
    for tried in range(n_buckets):
        bucket = region + b * BUCKET
        tags = load64(bucket)
        # Bytes that are 0 leave their highest bit, the lowest such byte for certain (see find_entry).
        same = (tags - ONES) & ~tags & low
        free = (bit_length(<u64>(same & (~same + 1))) - 1) >> 3 if same else 8
        tags ^= tag
        same = (tags - ONES) & ~tags & low
        if n_slots == 9 and free == 8 and bucket[8] == <byte_t>f:
            same |= 1                          # a mark below all others stands for the ninth slot
        while same:
            s = (bit_length(<u64>(same & (~same + 1))) - 1) >> 3
            if same & 1:
                s = 8
            same &= same - 1
            if bucket[s] != <byte_t>f:
                continue
            p = bucket + n_slots + s * slot_bytes
            old = load32(p)
            if old == high:
                return COLLISION
            if old == other:
                if is_context:
                    p[slot_bytes - 1] |= 0x80
                else:
                    code |= listed
        if free < n_low or (n_slots == 9 and bucket[8] == 0):
            p = bucket + n_slots + free * slot_bytes
            bucket[free] = <byte_t>f
            memcpy(p, &high, 4)
            memcpy(p + 4, &code, slot_bytes - 4)
            return 0
        b = b + 1 if b + 1 < n_buckets else 0
    return FULL


def fill(byte_t[::1] region, int partition_bits, int code_bytes, const byte_t[:, ::1] records, *,
         const uint64_t[::1] large_of=None, const uint64_t[::1] large=None, const uint32_t[::1] numbers=None, int part=0):
    """Insert records (hash, value; 12 bytes each) of one partition into its zeroed region of buckets.

    Args:
        numbers: the records are contexts, and the code of one is numbers[value], or the highest code if that is smaller.
            Without it they are n-grams: the code is the value where that is below a quarter of the code space, and
            otherwise that quarter plus its place in `large` (sorted). A value with its highest bit set stands for
            large_of[value - 2**31].
        part: 1 inserts only values of 2 and more, 2 only smaller ones, 0 all. What comes first is found first.

    Returns:
        True, or False when two entries share a fingerprint: build again with another seed.
    """
    cdef index_t i, low, high, middle, n = records.shape[0]
    cdef uint64_t n_buckets = region.shape[0] // BUCKET, hash, value, quarter = <uint64_t>1 << (8 * code_bytes - 2)
    cdef uint64_t escape = (quarter << 2) - 1
    cdef uint32_t v
    cdef int status = 0
    if region.shape[0] % BUCKET or n_buckets == 0 or records.shape[1] != 12 or not 2 <= code_bytes <= 4:
        raise ValueError(f"a region of {region.shape[0]} bytes, records of {records.shape[1]} bytes")
    with nogil:
        for i in range(n):
            hash, v = load64(&records[i, 0]), load32(&records[i, 8])
            if part == 1 and v < 2 or part == 2 and v >= 2:
                continue
            if numbers is not None:
                value = numbers[v] if numbers[v] < escape else escape
            else:
                value = v
                if v >> 31:
                    value = large_of[v & 0x7FFFFFFFu]
                if value >= quarter:
                    low, high = 0, large.shape[0]
                    while low < high:
                        middle = (low + high) // 2
                        if large[middle] < value:
                            low = middle + 1
                        else:
                            high = middle
                    value = quarter + <uint64_t>low
            status = insert(&region[0], n_buckets, partition_bits, 4 + code_bytes, hash, value, numbers is not None)
            if status != 0:
                break
    if status == FULL:
        raise ValueError(f"{n} records do not fit into {n_buckets} buckets")
    return status == 0


cdef inline const byte_t* bucket_at(const table* t, uint64_t hash, uint64_t b) noexcept nogil:
    cdef uint64_t p = hash >> (64 - t.partition_bits) if t.partition_bits > 0 else 0
    return t.data + (p * t.n_buckets + b) * BUCKET


cdef inline uint32_t read_slot(const table* t, const byte_t* bucket, int s, uint64_t* high) noexcept nogil:
    """Return the code of slot s; OUT the higher 32 bits of its fingerprint."""
    cdef uint64_t slot
    if s < 7:
        slot = load64(bucket + t.n_slots + s * t.slot_bytes)
    else:
        # The eighth and ninth slots may end with the bucket: read the eight bytes that end where they end.
        slot = load64(bucket + t.n_slots + (s + 1) * t.slot_bytes - 8) >> 8 * (8 - t.slot_bytes)
    high[0] = slot & 0xFFFFFFFFu
    return <uint32_t>(slot >> 32 & t.code_mask)


cdef struct exact_rows:
    # Sorted word rows of one order, shard after shard.
    const uint32_t* words
    const uint64_t* starts     # n_shards + 1 row numbers
    const uint64_t* values     # of n-grams
    const uint32_t* numbers    # of contexts


@cython.final
cdef class Tables:
    """A compiled model's arrays, borrowed from their owner, and its smoothing."""
    cdef object owner
    cdef table entries
    cdef const uint64_t* unigrams
    cdef const uint32_t* unigram_contexts  # per word: number of its totals as a context, plus 1; 0: none
    cdef const uint64_t* escaped           # hashes of contexts whose totals have the highest code, sorted
    cdef const uint32_t* escaped_numbers
    cdef index_t n_escaped
    cdef const uint64_t* totals            # rows of 4
    cdef const uint64_t* large
    cdef index_t n_words, n_totals, n_large
    cdef uint64_t quarter
    cdef uint64_t seed
    cdef int order
    cdef bint exact
    cdef uint32_t n_shards
    cdef exact_rows ngram_rows[MAX_ORDER + 1]
    cdef exact_rows context_rows[MAX_ORDER + 1]
    cdef int smoothing
    cdef double value                      # gamma, d or alpha of the smoothing
    cdef double discount[MAX_ORDER + 1][4]
    cdef double unigram_total, uniform     # sum of unigram values; 1 / V
    cdef double unigram_gamma              # mass for the uniform distribution, times uniform
    cdef double vocabulary                 # |V| of Lidstone
    cdef double* weights                   # per totals: 1 / den, then for each depth d >= 1 the mass gamma of its back-off

    def __cinit__(self, int order, const uint64_t[::1] unigrams, const uint32_t[::1] unigram_contexts,
                  const uint64_t[:, ::1] totals, const uint64_t[::1] large, uint64_t seed):
        if (not 1 <= order <= MAX_ORDER or unigrams.shape[0] < 3 or totals.shape[1] != 4
                or unigram_contexts.shape[0] != unigrams.shape[0]):
            raise ValueError(f"order {order}, {unigrams.shape[0]} unigrams, totals of {totals.shape[1]} columns")
        self.owner = [unigrams, unigram_contexts, totals, large]
        self.unigram_contexts = &unigram_contexts[0]
        self.order, self.seed = order, seed
        self.unigrams, self.n_words = &unigrams[0], unigrams.shape[0]
        self.totals, self.n_totals = &totals[0, 0], totals.shape[0]
        self.n_large = large.shape[0]
        self.large = &large[0] if large.shape[0] else NULL
        self.exact = False

    def use_hashes(self, const byte_t[::1] entries, int code_bytes, int n_partitions, const uint64_t[::1] escaped,
                   const uint32_t[::1] escaped_numbers):
        """Answer look-ups from the hash table; `escaped` lists contexts whose totals' numbers have no code of their own."""
        cdef table* t = &self.entries
        if n_partitions < 1 or entries.shape[0] == 0 or entries.shape[0] % (BUCKET * n_partitions) or not 2 <= code_bytes <= 4 \
                or escaped.shape[0] != escaped_numbers.shape[0]:
            raise ValueError(f"{entries.shape[0]} bytes for {n_partitions} partitions of buckets")
        self.owner += [entries, escaped, escaped_numbers]
        t.data, t.n_buckets = &entries[0], entries.shape[0] // (BUCKET * n_partitions)
        t.partition_bits, t.slot_bytes = (n_partitions - 1).bit_length(), 4 + code_bytes
        t.n_slots = BUCKET // (5 + code_bytes)
        t.code_mask = (<uint64_t>1 << 8 * code_bytes) - 1
        t.listed = <uint64_t>1 << (8 * code_bytes - 1)
        self.quarter = t.listed >> 1
        self.n_escaped = escaped.shape[0]
        if self.n_escaped:
            self.escaped, self.escaped_numbers = &escaped[0], &escaped_numbers[0]

    def use_rows(self, int n_shards, dict rows):
        """Answer look-ups from sorted rows instead, without fingerprints.

        rows: ("ngrams", k) -> (words uint32 (n, k), starts uint64 (n_shards + 1,), values uint64 (n,)) for orders 2 and up;
        ("contexts", d) -> (words uint32 (n, d), starts, numbers uint32 (n,)) for depths 1 and up.
        """
        cdef const uint32_t[:, ::1] words
        cdef const uint64_t[::1] starts, values
        cdef const uint32_t[::1] numbers
        cdef exact_rows* r
        for (what, k), (w, s, v) in rows.items():
            words, starts = w, s
            r = &self.ngram_rows[<int>k] if what == "ngrams" else &self.context_rows[<int>k]
            r.words = &words[0, 0] if words.shape[0] else NULL
            r.starts = &starts[0]
            if starts.shape[0] != n_shards + 1 or starts[n_shards] != <uint64_t>words.shape[0] or words.shape[1] != k:
                raise ValueError(f"{what} of length {k}: {words.shape[0]} rows, starts for {starts.shape[0] - 1} shards")
            if what == "ngrams":
                values = v
                r.values = &values[0] if values.shape[0] else NULL
            else:
                numbers = v
                r.numbers = &numbers[0] if numbers.shape[0] else NULL
            self.owner.append((w, s, v))
        self.n_shards, self.exact = n_shards, True

    def smooth(self, int smoothing, double value, const double[:, ::1] discounts, double vocabulary):
        """Choose the smoothing.

        Args:
            value: gamma of Lidstone, d of absolute discounting and Kneser-Ney, alpha of stupid back-off.
            discounts: float64 (order + 1, 4); [k, min(a, 3)] is taken off an adjusted count a of order k.
            vocabulary: V of the uniform distribution, |V| of Lidstone.
        """
        cdef int k, j
        cdef index_t i
        cdef double kept = 0
        if discounts.shape[0] != self.order + 1 or discounts.shape[1] != 4:
            raise ValueError(f"discounts of shape {discounts.shape[0]}, {discounts.shape[1]} for order {self.order}")
        for k in range(1, self.order + 1):
            for j in range(4):
                self.discount[k][j] = discounts[k, j]
        self.smoothing, self.value, self.vocabulary = smoothing, value, vocabulary
        self.unigram_total = 0
        for i in range(self.n_words):
            self.unigram_total += <double>self.unigrams[i]
            kept += self.discount[1][3 if self.unigrams[i] > 3 else self.unigrams[i]]
        self.uniform = 1.0 / vocabulary
        self.unigram_gamma = kept / self.unigram_total * self.uniform if self.unigram_total > 0 else self.uniform

        free(self.weights)
        self.weights = <double*>malloc(self.n_totals * self.order * sizeof(double))
        if self.weights == NULL:
            raise MemoryError(f"no memory for the weights of {self.n_totals} totals")
        cdef const uint64_t* t
        cdef double den, types
        for i in range(self.n_totals):
            t = self.totals + 4 * i
            den = <double>t[0] if t[0] > 0 else 1      # a context has a follower; 0 only where the file is damaged
            types = <double>(t[1] + t[2] + t[3])
            self.weights[i * self.order] = 1 / den
            for k in range(1, self.order):
                if smoothing == MODIFIED_KNESER_NEY:
                    self.weights[i * self.order + k] = (
                        self.discount[k + 1][1] * <double>t[1] + self.discount[k + 1][2] * <double>t[2]
                        + self.discount[k + 1][3] * <double>t[3]) / den
                elif smoothing == WITTEN_BELL:
                    self.weights[i * self.order] = 1 / (types + den)
                    self.weights[i * self.order + k] = types / (types + den)
                else:
                    self.weights[i * self.order + k] = value * types / den

    def __dealloc__(self):
        free(self.weights)

    cdef index_t find_row(self, const exact_rows* r, const word_t* key, int n) noexcept nogil:
        """Return the row of n words in context order, or -1."""
        cdef uint32_t shard = shard_of(key[0], self.n_shards)
        cdef index_t low = r.starts[shard], high = r.starts[shard + 1], end = high, middle
        cdef int k, order
        cdef const uint32_t* row
        while low < high:
            middle = (low + high) // 2
            row = r.words + middle * n
            order = 0
            for k in range(n):
                if row[k] != key[k]:
                    order = -1 if row[k] < key[k] else 1
                    break
            if order < 0:
                low = middle + 1
            elif order > 0:
                high = middle
            else:
                return middle
        return -1

    cdef inline const byte_t* bucket_of(self, uint64_t hash) noexcept nogil:
        cdef const table* t = &self.entries
        return bucket_at(t, hash, home(hash, t.partition_bits, t.n_buckets))

    cdef bint find_entry(self, uint64_t hash, const byte_t* bucket, uint64_t* value, uint32_t* number) noexcept nogil:
        """Look an n-gram up, from its home bucket on: OUT its value, and the number of its totals as a context.

        False: there is none. An n-gram that is known and whose totals are not listed has (1, 1, 0, 0), number 0.
        """
        cdef const table* t = &self.entries
        cdef uint64_t f = fingerprint(hash), tag = (f & 255) * ONES, high = f >> 8, other = partner(f) >> 8
        cdef uint64_t differ, same, found_high, tried
        cdef uint32_t code, ngram = <uint32_t>NONE, totals_number = <uint32_t>NONE
        cdef int s
        for tried in range(t.n_buckets):
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
            if bucket[t.n_slots - 1] == 0:     # slots fill from the first to the last
                break
            bucket = bucket + BUCKET
            if bucket == self.partition_end(hash):
                bucket = bucket_at(t, hash, 0)
        if ngram == <uint32_t>NONE:
            return False
        code = ngram & <uint32_t>~t.listed
        value[0] = code if code < self.quarter else self.large[code - self.quarter]
        number[0] = 0
        if ngram & t.listed:
            number[0] = totals_number if totals_number != t.code_mask else self.find_escaped(hash)
            if number[0] >= <uint64_t>self.n_totals:
                number[0] = 0                  # damage must not lead outside the table
        return True

    cdef inline const byte_t* partition_end(self, uint64_t hash) noexcept nogil:
        return bucket_at(&self.entries, hash, self.entries.n_buckets)

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
        if row < 0:
            return False
        value[0] = self.ngram_rows[n].values[row]
        number[0] = <uint32_t>NONE
        if n < self.order:
            for j in range(n):
                key[j] = (ids - j)[0]
            row = self.find_row(&self.context_rows[n], key, n)
            if row >= 0:
                number[0] = self.context_rows[n].numbers[row]
        return True

    cdef void gather(self, const word_t* ids, const uint8_t* history, index_t start, index_t n, uint32_t* own_before,
                     uint64_t* values, uint32_t* numbers) noexcept nogil:
        """Look up the n <= LANES tokens ids[start:start + n], order by order, prefetching a whole order ahead.

        history[start + i] is how many tokens before token i belong to its sentence (at most order - 1).
        own_before[k]: number of the totals of the k-gram that ends before `start`, NONE if it is no context; OUT the
        same for the last token.
        OUT values[(k - 1) * LANES + i]: of the k-gram that ends at token i, 0 if there is none.
        OUT numbers[d * LANES + i]: of the totals of its context of d words, NONE if that was never seen.
        """
        cdef uint64_t chain[LANES]
        cdef uint64_t grams[LANES]
        cdef const byte_t* buckets[LANES]
        cdef uint32_t own[LANES + 1]       # own[i + 1]: totals of the n-gram of the order at hand that ends at token i
        cdef index_t todo[LANES]
        cdef index_t i, j, n_todo
        cdef int d
        cdef word_t word
        own[0] = own_before[1]
        for i in range(n):
            word = ids[start + i]
            values[i] = self.unigrams[word] if word != UNK else 0
            own[i + 1] = self.unigram_contexts[word] - 1      # 0 - 1 is NONE
            chain[i] = self.seed
        own_before[1] = own[n]
        for d in range(1, self.order):
            # STEP 1: the context of d words is the d-gram before the token; where would the (d + 1)-gram be?
            n_todo = 0
            for i in range(n):
                numbers[d * LANES + i] = own[i] if history[start + i] >= d else <uint32_t>NONE
                if numbers[d * LANES + i] != <uint32_t>NONE and values[(d - 1) * LANES + i] > 0:
                    chain[i] = mix(chain[i], ids[start + i - d])
                    grams[i] = mix(chain[i], ids[start + i])
                    todo[n_todo] = i
                    n_todo += 1
                    if not self.exact:
                        buckets[i] = self.bucket_of(grams[i])
                        fetch(buckets[i])
            # STEP 2: read.
            own[0] = own_before[d + 1]
            for i in range(n):
                values[d * LANES + i] = 0
                own[i + 1] = <uint32_t>NONE
            for j in range(n_todo):
                i = todo[j]
                if self.exact:
                    self.find_exactly(ids + start + i, d + 1, &values[d * LANES + i], &own[i + 1])
                else:
                    self.find_entry(grams[i], buckets[i], &values[d * LANES + i], &own[i + 1])
                if ids[start + i] == EOS:
                    own[i + 1] = <uint32_t>NONE
                elif own[i + 1] != <uint32_t>NONE:
                    fetch(self.weights + own[i + 1] * <index_t>self.order)
            own_before[d + 1] = own[n]

    cdef inline double combine(self, const uint64_t* values, const uint32_t* numbers, int longest) noexcept nogil:
        """Return the probability of a token from what `gather` found; values and numbers step by LANES.

        longest: order of the longest n-gram asked for.
        Sources: modified Kneser-Ney, Chen and Goodman 1998 section 3, interpolated as lmplz does; the others as nltk.lm.
        """
        cdef int d, top = longest
        cdef uint64_t a = values[0]
        cdef const double* w
        cdef double p, den, kept
        if self.smoothing == LIDSTONE or self.smoothing == STUPID_BACKOFF:
            p = 1
            if self.smoothing == STUPID_BACKOFF:
                while top > 1 and values[(top - 1) * LANES] == 0:
                    p *= self.value
                    top -= 1
            a = values[(top - 1) * LANES]
            den = self.unigram_total
            if top > 1:
                den = <double>self.totals[4 * <index_t>numbers[(top - 1) * LANES]] if numbers[(top - 1) * LANES] != <uint32_t>NONE else 0
            if self.smoothing == LIDSTONE:
                den += self.value * self.vocabulary
                return (<double>a + self.value) / den if den > 0 else 0
            return p * <double>a / den if den > 0 else 0
        if self.smoothing == MODIFIED_KNESER_NEY:
            p = self.unigram_gamma
            if a > 0:
                p += (<double>a - self.discount[1][3 if a > 3 else a]) / self.unigram_total
        else:
            p = <double>a / self.unigram_total if self.unigram_total > 0 else 0
        for d in range(1, longest):
            if numbers[d * LANES] == <uint32_t>NONE:
                break
            a = values[d * LANES]
            w = self.weights + numbers[d * LANES] * <index_t>self.order
            p *= w[d]
            if a > 0:
                if self.smoothing == MODIFIED_KNESER_NEY:
                    kept = <double>a - self.discount[d + 1][3 if a > 3 else a]
                elif self.smoothing == WITTEN_BELL:
                    kept = <double>a
                else:
                    kept = <double>a - self.value if <double>a > self.value else 0
                p += kept * w[0]
        return p

    cdef inline int longest_seen(self, const uint64_t* values, int longest) noexcept nogil:
        """The order of the longest n-gram that ends at a token; 0 for an unknown word."""
        while longest > 0 and values[(longest - 1) * LANES] == 0:
            longest -= 1
        return longest

    def score(self, const uint32_t[::1] ids, const uint8_t[::1] history, double[::1] out, uint8_t[::1] matched):
        """Score tokens.

        Args:
            ids: uint32 (n,), sentence after sentence (<s> words </s>) or n-gram after n-gram.
            history: uint8 (n,), how many tokens before each one belong to it, at most order - 1.
            out: float64 (n,), OUT, log10 of the probability; 0 for <s> without history.
            matched: uint8 (n,), OUT, the order of the longest n-gram seen.
        """
        cdef index_t n = ids.shape[0], start, i, block
        cdef int d, longest
        cdef uint32_t own_before[MAX_ORDER + 2]
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        if history.shape[0] != n or out.shape[0] < n or matched.shape[0] < n:
            raise ValueError(f"{n} ids, {history.shape[0]} histories, room for {out.shape[0]} results")
        for d in range(MAX_ORDER + 2):
            own_before[d] = <uint32_t>NONE
        with nogil:
            start = 0
            while start < n:
                block = n - start if n - start < LANES else LANES
                self.gather(&ids[0], &history[0], start, block, own_before, values, numbers)
                for i in range(block):
                    if ids[start + i] == BOS and history[start + i] == 0:
                        out[start + i], matched[start + i] = 0, 1
                        continue
                    longest = history[start + i] + 1 if history[start + i] < self.order else self.order
                    out[start + i] = log10(self.combine(values + i, numbers + i, longest))
                    matched[start + i] = <uint8_t>self.longest_seen(values + i, longest)
                start += block

    def sums(self, const uint32_t[::1] ids, const uint8_t[::1] history):
        """Score text and add up; arguments as `score`.

        Return (tokens, OOVs, sum of log10 p, the part of it of OOVs, tokens of probability 0, OOVs of probability 0);
        the sums leave tokens of probability 0 out.
        """
        cdef index_t n = ids.shape[0], start = 0, i, block, tokens = 0, oov = 0, zero = 0, zero_oov = 0
        cdef int d, longest
        cdef uint32_t own_before[MAX_ORDER + 2]
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        cdef double p, total = 0, total_oov = 0, product = 1
        if history.shape[0] != n:
            raise ValueError(f"{n} ids, {history.shape[0]} histories")
        for d in range(MAX_ORDER + 2):
            own_before[d] = <uint32_t>NONE
        with nogil:
            while start < n:
                block = n - start if n - start < LANES else LANES
                self.gather(&ids[0], &history[0], start, block, own_before, values, numbers)
                for i in range(block):
                    if ids[start + i] == BOS and history[start + i] == 0:
                        continue
                    longest = history[start + i] + 1 if history[start + i] < self.order else self.order
                    p = self.combine(values + i, numbers + i, longest)
                    tokens += 1
                    if ids[start + i] == UNK:
                        oov += 1
                        if p > 0:
                            total_oov += log10(p)
                        else:
                            zero_oov += 1
                    if p > 0:
                        # One logarithm for many tokens: the product is taken while it is far from underflow.
                        if p < 1e-100:
                            total += log10(p)
                        else:
                            product *= p
                            if product < 1e-200:
                                total += log10(product)
                                product = 1
                    else:
                        zero += 1
                start += block
        return tokens, oov, total + log10(product), total_oov, zero, zero_oov

    def look(self, const uint32_t[::1] ids, const uint8_t[::1] history):
        """Return what the model knows of each token: (values uint64 (n, order), totals uint64 (n, order, 4)).

        values[i, k - 1] is that of the k-gram that ends at token i; totals[i, d] those of its context of d words.
        """
        cdef index_t n = ids.shape[0], start = 0, i, block
        cdef int d, j
        cdef uint32_t own_before[MAX_ORDER + 2]
        cdef uint64_t values[MAX_ORDER * LANES]
        cdef uint32_t numbers[MAX_ORDER * LANES]
        v_array, t_array = np.zeros((n, self.order), np.uint64), np.zeros((n, self.order, 4), np.uint64)
        cdef uint64_t[:, ::1] v = v_array
        cdef uint64_t[:, :, ::1] t = t_array
        for d in range(MAX_ORDER + 2):
            own_before[d] = <uint32_t>NONE
        while start < n:
            block = n - start if n - start < LANES else LANES
            self.gather(&ids[0], &history[0], start, block, own_before, values, numbers)
            for i in range(block):
                for d in range(self.order):
                    v[start + i, d] = values[d * LANES + i]
                    if d > 0 and numbers[d * LANES + i] != <uint32_t>NONE:
                        for j in range(4):
                            t[start + i, d, j] = self.totals[4 * numbers[d * LANES + i] + j]
            start += block
        return v_array, t_array


def histories(const uint32_t[::1] ids, int order, uint8_t[::1] out):
    """Fill out[i] with how many tokens before token i belong to its sentence, at most order - 1; <s> starts one."""
    cdef index_t i
    cdef int h = 0
    if out.shape[0] < ids.shape[0]:
        raise ValueError(f"room for {out.shape[0]} of {ids.shape[0]} histories")
    with nogil:
        for i in range(ids.shape[0]):
            if ids[i] == BOS:
                h = 0
            out[i] = <uint8_t>h
            if h < order - 1:
                h += 1

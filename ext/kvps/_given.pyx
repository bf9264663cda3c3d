"""A compiled model made of what an ARPA file gives: probabilities and back-offs. Its table of n-grams, filled and looked up.

The table is buckets of 64 bytes, one cache line, of five n-grams each: their fingerprints, their probabilities, their
back-offs, all 32 bits, so that all five are compared at once and what is found lies beside it; then 3 bits more of each
fingerprint, and 16 marks. A fingerprint is the lowest 35 bits of a hash, of which the lower 32 are not 0; 0 is an empty slot.
The highest bits of a hash choose the partition, the next ones the bucket in it. An n-gram that finds its bucket full goes to
a second one that its fingerprint chooses, and from there on to the next that has room. Wherever it passes by it leaves a
mark, one of sixteen; a look-up ends at a bucket without its mark.
A probability is the bits of -log10 p as a float32, with the highest bit set where the n-gram is a context: there are longer
ones that begin with it, or it has a back-off. A back-off is the bits of its log10 as a float32, those of 0, never of -0, where
there is none.
"""
cimport cython

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from kvps._block cimport LANES, NONE, ROW, all_if
from kvps._buckets cimport BUCKET, home
from kvps._given cimport CONTEXT, float_in, log10_in, power10
from kvps._keys cimport equal5, fetch, load32, load64, lowest, mix, mul_high
from kvps._model cimport Tables
from kvps._pages cimport Pages, page_view, usable
from kvps._types cimport BOS, MAX_ORDER, UNK, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t

cdef enum:
    N_SLOTS = 5
    MORE_BITS = 3              # of a fingerprint, behind the slots
    MARKS_AT = 16              # bit of the first mark; there are as many as fit
    NO_CONTEXT = 0x80000000    # the back-off of what is no context: -0, which changes no sum
    FULL = -2
    COLLISION = -3

SLOTS = N_SLOTS

ctypedef fused real:
    float
    double


cdef struct bucket:
    uint32_t prints[N_SLOTS]
    uint32_t codes[N_SLOTS]
    uint32_t backoffs[N_SLOTS]
    uint32_t rest


cdef inline uint32_t print_of(uint64_t hash) noexcept nogil:
    """The lower bits of a fingerprint."""
    cdef uint32_t low = <uint32_t>hash
    return low | <uint32_t>(low == 0)


cdef inline uint32_t more_of(uint64_t hash) noexcept nogil:
    """The higher ones."""
    return <uint32_t>(hash >> 32) & ((1 << MORE_BITS) - 1)


cdef inline uint32_t mark_of(uint64_t hash) noexcept nogil:
    """The mark of a hash, as a bit of bucket.rest."""
    return <uint32_t>1 << MARKS_AT << <int>(hash & 15)


cdef inline uint64_t after(uint64_t hash, uint64_t b, uint64_t tried, uint64_t n_buckets) noexcept nogil:
    """The bucket to try after bucket b of a partition, which was number `tried` from 0 on."""
    if tried == 0:
        return (hash & 0xFFFFFFFFu) * n_buckets >> 32
    return b + 1 if b + 1 < n_buckets else 0


cdef inline bint is_of(const bucket* at, int s, uint64_t hash) noexcept nogil:
    """Whether slot s has the n-gram with a hash."""
    return at.prints[s] == print_of(hash) and at.rest >> MORE_BITS * s & ((1 << MORE_BITS) - 1) == more_of(hash)


# ---- filling

cdef int insert(bucket* region, uint64_t n_buckets, int partition_bits, uint64_t hash, uint32_t code, uint32_t backoff) noexcept nogil:
    """Put an n-gram into its partition. Return 0, FULL or COLLISION (another one answers to its fingerprint)."""
    cdef uint64_t b = home(hash, partition_bits, n_buckets), tried
    cdef bucket* at
    cdef int s
    for tried in range(n_buckets + 1):
        at = region + b
        for s in range(N_SLOTS):
            if at.prints[s] == 0:
                at.prints[s], at.codes[s], at.backoffs[s] = print_of(hash), code, backoff
                at.rest |= more_of(hash) << MORE_BITS * s
                return 0
            if is_of(at, s, hash):
                return COLLISION
        at.rest |= mark_of(hash)
        b = after(hash, b, tried, n_buckets)
    return FULL


cdef bucket* look_up(bucket* region, uint64_t n_buckets, int partition_bits, uint64_t hash, page_view* page, int* slot) noexcept nogil:
    """The bucket of an n-gram in its partition, OUT its slot; NULL: there is none, or a damaged page was met."""
    cdef uint64_t b = home(hash, partition_bits, n_buckets), tried
    cdef int s
    for tried in range(n_buckets + 1):
        if not usable(page, region + b):
            break
        for s in range(N_SLOTS):
            if is_of(region + b, s, hash):
                slot[0] = s
                return region + b
        if not region[b].rest & mark_of(hash):
            break
        b = after(hash, b, tried, n_buckets)
    return NULL


def fill(byte_t[::1] region, int partition_bits, const byte_t[:, ::1] records):
    """Insert records of one partition into its zeroed region of buckets.

    records: uint8 (n, 16): hash, bits of -log10 p plus 1, bits of log10 of the back-off. What comes first is found first.

    Return True, or False when two n-grams share a fingerprint: build again with another seed.
    """
    cdef index_t i, n = records.shape[0]
    cdef uint64_t n_buckets = region.shape[0] // BUCKET
    cdef uint32_t code, backoff
    cdef int status = 0
    if region.shape[0] % BUCKET or n_buckets == 0 or records.shape[1] != 16:
        raise ValueError(f"a region of {region.shape[0]} bytes, records of {records.shape[1]} bytes")
    with nogil:
        for i in range(n):
            code, backoff = load32(&records[i, 8]) - 1, load32(&records[i, 12])
            if backoff << 1 != 0:
                code |= <uint32_t>CONTEXT
            else:
                backoff = 0                    # not -0
            status = insert(<bucket*>&region[0], n_buckets, partition_bits, load64(&records[i, 0]), code, backoff)
            if status != 0:
                break
    if status == FULL:
        raise ValueError(f"{n} records do not fit into {n_buckets} buckets")
    return status == 0


def link(byte_t[::1] region, int partition_bits, const byte_t[:, ::1] records):
    """Look up what longer n-grams of a filled partition are made of.

    records: uint8 (n, 12): hash and number; 0: the last words of an n-gram, all but one; other numbers: the first ones, which
    are made a context.

    Return (number of the first context that is not there, or 0; whether all the others are there).
    """
    cdef index_t i, n = records.shape[0]
    cdef uint64_t n_buckets = region.shape[0] // BUCKET
    cdef uint32_t number, missing = 0
    cdef bucket* at
    cdef int s = 0
    cdef bint closed = True
    if region.shape[0] % BUCKET or n_buckets == 0 or records.shape[1] != 12:
        raise ValueError(f"a region of {region.shape[0]} bytes, records of {records.shape[1]} bytes")
    with nogil:
        for i in range(n):
            at = look_up(<bucket*>&region[0], n_buckets, partition_bits, load64(&records[i, 0]), NULL, &s)
            number = load32(&records[i, 8])
            if number == 0:
                closed = closed and at != NULL
            elif at != NULL:
                at.codes[s] |= <uint32_t>CONTEXT
            else:
                missing = number
                break
    return missing, closed


# ---- looking up

cdef struct unigram:
    uint32_t code              # of <unk> for it and for what is not listed
    uint32_t backoff           # or NO_CONTEXT


cdef inline uint32_t either(uint32_t first, uint32_t a, uint32_t b) noexcept nogil:
    """a or b, by whether all bits of `first` are set or none, without a branch."""
    return (a & first) | (b & ~first)


cdef inline uint32_t number_of(uint32_t backoff) noexcept nogil:
    """The number of a context, as Tables have it, by its back-off."""
    return NONE if backoff == NO_CONTEXT else backoff


cdef inline uint32_t backoff_of(uint32_t number) noexcept nogil:
    """The reverse."""
    return NO_CONTEXT if number == NONE else number if number << 1 != 0 else 0


cdef inline void fill_with(uint32_t* p, index_t n, uint32_t x) noexcept nogil:
    cdef index_t i
    for i in range(n):
        p[i] = x


cdef inline void back_off(index_t n, const uint32_t* backoffs, real* p) noexcept nogil:
    """Add to the log10 probabilities of n tokens the back-offs of their contexts of one length, the shorter ones' before.

    That is the order of KenLM, which in float32 decides on the last bit.
    """
    cdef index_t i
    for i in range(n):
        p[i] += <real>float_in(backoffs[i])


@cython.final
cdef class GivenTables(Tables):
    """What an ARPA file gives: the values of words are the bits of -log10 p plus 1, numbers of contexts the bits of back-offs."""
    cdef uint64_t n_buckets                # of a partition
    cdef int partition_bits
    cdef unigram* words                    # by id

    def __cinit__(self, int order, unigrams, unigram_contexts, const byte_t[::1] entries, int n_partitions, bint closed, *,
                  uint64_t seed, Pages pages=None):
        if n_partitions < 1 or n_partitions & (n_partitions - 1) or entries.shape[0] == 0 or entries.shape[0] % (BUCKET * n_partitions):
            raise ValueError(f"{entries.shape[0]} bytes for {n_partitions} partitions of buckets")
        self.keep_table(entries)
        self.n_buckets = entries.shape[0] // (BUCKET * n_partitions)
        self.partition_bits = (n_partitions - 1).bit_length()
        self.n_numbers, self.valueless = <uint64_t>1 << 32, UNK
        self.gaps, self.given, self.ready = not closed, True, True
        cdef index_t w
        self.words = <unigram*>malloc(self.n_words * sizeof(unigram))
        if self.words == NULL:
            raise MemoryError(f"no memory for {self.n_words} words")
        for w in range(self.n_words):
            self.words[w].code = <uint32_t>((self.unigrams[w] if self.unigrams[w] > 0 else self.unigrams[UNK]) - 1)
            self.words[w].backoff = backoff_of(self.unigram_contexts[w] - 1)       # 0 - 1 is NONE

    def __dealloc__(self):
        free(self.words)

    cdef inline const bucket* at(self, uint64_t hash) noexcept nogil:
        return <const bucket*>(self.table + mul_high(hash, self.n_buckets << self.partition_bits) * BUCKET)

    cdef const byte_t* bucket_of(self, uint64_t hash) noexcept nogil:
        return <const byte_t*>self.at(hash)

    cdef inline bucket* partition_of(self, uint64_t hash) noexcept nogil:
        return <bucket*>self.table + (hash >> (64 - self.partition_bits) if self.partition_bits else 0) * self.n_buckets

    cdef bint find(self, uint64_t hash, uint32_t* code, uint32_t* number) noexcept nogil:
        """Look an n-gram up: OUT its code and its back-off as a context, NONE if it is none. False as find_entry()."""
        cdef int s = 0
        cdef const bucket* at = look_up(self.partition_of(hash), self.n_buckets, self.partition_bits, hash, self.table_page, &s)
        if at == NULL:
            return False
        code[0] = at.codes[s]
        number[0] = at.backoffs[s] if at.codes[s] & <uint32_t>CONTEXT else <uint32_t>NONE
        return True

    cdef bint find_entry(self, uint64_t hash, const byte_t* first, uint64_t* value, uint32_t* number) noexcept nogil:
        cdef uint32_t code
        if not self.find(hash, &code, number):
            return False
        value[0] = <uint64_t>(code & <uint32_t>~CONTEXT) + 1
        return True

    cdef void probabilities(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, double* p,
                            uint8_t* matched) noexcept nogil:
        score_block(self, ids + first, history + first, n, before, p, matched)

    cdef void floats(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, float* p,
                     uint8_t* matched) noexcept nogil:
        score_block(self, ids + first, history + first, n, before, p, matched)

    cdef float float_of(self, const uint64_t* values, const uint32_t* numbers, int longest, word_t word, int* matched) noexcept nogil:
        cdef int d
        cdef float p = log10_in(<uint32_t>(values[0] if values[0] > 0 else self.unigrams[UNK]) - 1)
        matched[0] = 1
        for d in range(1, longest):
            if values[d * LANES] > 0:
                p, matched[0] = log10_in(<uint32_t>values[d * LANES] - 1), d + 1
            elif numbers[d * LANES] != <uint32_t>NONE:
                p += float_in(numbers[d * LANES])
        return p

    cdef void share_out(self, const word_t* last, int n, const word_t* words, index_t n_words, double* p) noexcept nogil:
        cdef index_t first = 0, block, i, j, n_live
        cdef int d
        cdef uint64_t chains[MAX_ORDER + 1]
        cdef uint32_t known[MAX_ORDER + 1]
        cdef word_t asked[LANES]
        cdef uint8_t live[LANES]
        cdef uint64_t hashes[LANES]
        cdef const bucket* buckets[LANES]
        cdef uint32_t unused[LANES]
        cdef double log10_p[LANES + 1]
        n = min(n, self.order - 1)
        self.find_contexts(last, n, chains, known)
        while first < n_words:
            block = n_live = min(<index_t>LANES, n_words - first)
            for i in range(block):
                asked[i] = <word_t>(first + i) if words == NULL else words[first + i]
                log10_p[i] = log10_in(self.words[asked[i]].code)
                live[i] = <uint8_t>i
            for d in range(1, n + 1):
                if known[d] == NONE and not self.gaps:
                    break
                if known[d] == NONE:
                    continue                       # a longer context may be listed all the same
                if self.gaps:
                    n_live = block                 # as may a longer n-gram
                    for i in range(block):
                        live[i] = <uint8_t>i
                for j in range(n_live):
                    hashes[j] = mix(chains[d], asked[live[j]])
                    buckets[j] = self.at(hashes[j])
                    fetch(buckets[j])
                for i in range(block):
                    log10_p[i] += float_in(known[d])
                n_live = read(self, live, n_live, hashes, buckets, log10_p, unused)
            for i in range(block):
                p[first + i] = power10(log10_p[i]) if asked[i] != BOS else 0
            first += block

    def backoffs(self, const uint32_t[::1] context):
        """Return by depth from 0 on what the context of so many last words multiplies the probabilities of shorter ones by.

        float64 (n + 1,), 1 where there is no such context.
        """
        cdef int d, n = <int>min(context.shape[0], <index_t>self.order - 1)
        cdef uint64_t chains[MAX_ORDER + 1]
        cdef uint32_t numbers[MAX_ORDER + 1]
        import numpy as np  # here: scoring text does without it

        out_array = np.ones(n + 1)
        cdef double[::1] out = out_array
        self.refuse_unknown(context)
        if n > 0:
            self.find_contexts(&context[0] + context.shape[0] - 1, n, chains, numbers)
            for d in range(1, n + 1):
                if numbers[d] != <uint32_t>NONE:
                    out[d] = power10(float_in(numbers[d]))
        self.refuse_damage()
        return out_array

    def backoffs_of(self, const uint32_t[:, ::1] rows):
        """Return log10 of the back-offs of n-grams, float32 (n,); 0 where there is none.

        rows: uint32 (n, k) of word ids, k below the order of the model.
        """
        cdef index_t i, n = rows.shape[0]
        cdef int k = <int>rows.shape[1]
        cdef uint32_t code, number
        import numpy as np  # here: scoring text does without it

        if not 1 <= k < self.order:
            raise ValueError(f"{k}-grams of a model of order {self.order}")
        backoffs = np.zeros(n, np.float32)
        if n == 0:
            return backoffs
        self.refuse_unknown(np.asarray(rows).reshape(-1))
        cdef float[::1] out = backoffs
        with nogil:
            for i in range(n):
                number = <uint32_t>NONE
                if k == 1:
                    number = self.unigram_contexts[rows[i, 0]] - 1
                else:
                    self.find(self.hash_of(&rows[i, k - 1], k), &code, &number)
                if number != <uint32_t>NONE:
                    out[i] = float_in(number)
        self.refuse_damage()
        return backoffs

    cdef void look_block(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before,
                         uint64_t[:, ::1] values, uint64_t[:, :, ::1] totals, double[:, :, ::1] parts) noexcept:
        """One token after another: who wants to know how has time."""
        cdef index_t i
        cdef int d, top
        cdef double mass
        cdef uint32_t code, number
        cdef uint64_t chains[MAX_ORDER + 1]
        cdef uint32_t numbers[MAX_ORDER + 1]
        for i in range(first, first + n):
            top = min(history[i], self.order - 1)
            self.find_contexts(ids + i - 1, top, chains, numbers)
            mass = 1
            for d in range(top, -1, -1):
                code = self.words[ids[i]].code
                if d == 0 or numbers[d] != NONE and self.find(mix(chains[d], ids[i]), &code, &number):
                    parts[0, i, d + 1] = mass * power10(log10_in(code))
                    break
                if numbers[d] != NONE:
                    parts[2, i, d] = power10(float_in(numbers[d]))
                    mass *= parts[2, i, d]


cdef inline index_t read(GivenTables t, uint8_t* live, index_t n, const uint64_t* hashes, const bucket** buckets, real* p,
                         uint32_t* own) noexcept nogil:
    """Look up an n-gram for each of n tokens in `live`; keep those there that have one.

    OUT p and own, by token: its log10 probability, where there is one; its back-off, or NO_CONTEXT. p has room for LANES + 1:
    what is not there has its place, too. Short and without branches that depend on what is found: many rounds are under way at
    once then.
    """
    cdef uint8_t kept[LANES]
    cdef uint8_t rest[LANES]               # places in `live` of those of which one bucket does not tell all
    cdef index_t j, i, n_kept = 0, n_rest = 0
    cdef const bucket* at
    cdef uint32_t same, there, code, number
    cdef bint found
    cdef int s
    for j in range(n):
        i, at = live[j], buckets[j]
        same = equal5(at.prints, print_of(hashes[j])) if usable(t.table_page, at) else 0
        s = lowest(same | 1 << (N_SLOTS - 1))          # where none is the same the last one is read, in vain
        found = (same != 0) & (((at.rest >> MORE_BITS * s ^ more_of(hashes[j])) & ((1 << MORE_BITS) - 1)) == 0)
        there, code = all_if(found), at.codes[s]
        p[either(there, <uint32_t>i, LANES)] = <real>log10_in(code)
        there &= 0 - (code >> 31)
        own[i] = either(there, at.backoffs[s], NO_CONTEXT)
        rest[n_rest] = <uint8_t>j
        n_rest += (not found) & ((same != 0) | ((at.rest & mark_of(hashes[j])) != 0))
        kept[n_kept] = <uint8_t>i
        n_kept += found
    for j in range(n_rest):
        fetch(t.partition_of(hashes[rest[j]]) + after(hashes[rest[j]], 0, 0, t.n_buckets))
    for j in range(n_rest):
        i = live[rest[j]]
        if t.find(hashes[rest[j]], &code, &number):
            p[i], own[i] = <real>log10_in(code), backoff_of(number)
            kept[n_kept] = <uint8_t>i
            n_kept += 1
    memcpy(live, kept, n_kept)
    return n_kept


cdef inline void score_block(GivenTables t, const word_t* ids, const uint8_t* history, index_t n, uint32_t* before, real* out,
                             uint8_t* matched) noexcept nogil:
    """Do what probabilities() and floats() do, from the first token on, which differ in their precision alone.

    Order by order: all tokens back off, then those get their probability that have an n-gram of this order.
    """
    cdef uint32_t own[(MAX_ORDER + 1) * ROW]       # own[k * ROW + i + 1]: back-off of the k-gram that ends at token i
    cdef uint64_t chain[LANES]
    cdef uint64_t hashes[LANES]
    cdef const bucket* buckets[LANES]
    cdef uint8_t live[LANES]               # tokens whose n-grams may be listed
    cdef uint8_t firsts[LANES]             # tokens without history
    cdef index_t n_live = n, n_firsts = 0, i, j, left
    cdef int d
    cdef real p[LANES + 1]
    cdef uint32_t* contexts
    for d in range(1, t.order + 1):
        own[d * ROW] = backoff_of(before[d])
    for d in range(2, t.order + 1):
        fill_with(own + d * ROW + 1, n, NO_CONTEXT)
    for i in range(n):
        p[i] = log10_in(t.words[ids[i]].code)
        own[ROW + i + 1] = t.words[ids[i]].backoff
        chain[i] = t.seed
        live[i] = <uint8_t>i
        firsts[n_firsts] = <uint8_t>i
        n_firsts += history[i] == 0
    if matched != NULL:
        for i in range(n):
            matched[i] = ids[i] != UNK
    for d in range(1, t.order):
        if t.gaps:
            n_live = n
            for i in range(n):
                live[i] = <uint8_t>i
                chain[i] = mix(chain[i], (ids + i - d)[0] if history[i] >= d else 0)
        contexts = own + d * ROW
        for j in range(n_firsts):
            contexts[firsts[j]] = NO_CONTEXT       # it is another sentence's
        # Every n-gram that is listed has its first words listed, which are the context.
        left = 0
        for j in range(n_live):
            i = live[j]
            live[left] = <uint8_t>i
            left += contexts[i] != NO_CONTEXT
        n_live = left
        for j in range(n_live):
            i = live[j]
            if not t.gaps:
                chain[i] = mix(chain[i], (ids + i - d)[0])
            hashes[j] = mix(chain[i], ids[i])
            buckets[j] = t.at(hashes[j])
            fetch(buckets[j])
        back_off(n, contexts, p)
        n_live = read(t, live, n_live, hashes, buckets, p, contexts + ROW + 1)
        if matched != NULL:
            for j in range(n_live):
                matched[live[j]] = <uint8_t>(d + 1)
    for d in range(1, t.order + 1):
        before[d] = number_of(own[d * ROW + n])
    memcpy(out, p, n * sizeof(real))

# Hash tables in cache-line buckets: the layout, and what both building and looking up need.
#
# A bucket is 64 bytes: as many slots of 5 + c bytes as fit, of a 40-bit fingerprint and a c-byte code (c = 2, 3 or 4).
# The first bytes of a bucket are the tags of its slots, the lowest 8 bits of their fingerprints, so that all are compared
# at once; behind them stand the slots, each the higher 32 bits of its fingerprint and its code. A tag of 0 is an empty slot.
# The highest bits of a hash choose the partition, the next ones the bucket in it, the lowest 40 are the fingerprint.
# An entry that finds its home bucket full goes to a second home that its fingerprint chooses, and from there on to the next
# bucket that has room. Wherever it passes by it leaves a mark, one of eight in the last byte of the bucket; a look-up ends
# at a bucket without its mark. (Going on to the next bucket from the first one on would make chains: at nine tenths full
# an absent n-gram cost 7.5 buckets then, and costs 1.2 now.) Buckets of 8 slots have no byte left for marks: there a
# look-up ends at a bucket with an empty slot.
# An entry is an n-gram with the code of its count, or a context with the code of its totals; both are found by the hash of
# their words as an n-gram, so what a token needs as an n-gram and what the next one needs as a context is one cache miss.
from kvps._keys cimport load64, mul_high
from kvps._types cimport byte_t, uint32_t, uint64_t

cdef enum:
    BUCKET = 64                # bytes: one cache line
    ONES = 0x0101010101010101
    HIGHS = 0x8080808080808080
    FINGERPRINT = 0xFFFFFFFFFF
    PARTNER = 0x80000000       # by what the higher 32 bits of the fingerprints of an n-gram and of its totals differ
    MARKS = BUCKET - 1         # the byte of a bucket for marks

cdef struct table:
    const byte_t* data
    uint64_t n_buckets         # per partition
    int partition_bits, slot_bytes, n_slots        # slot_bytes without the tag
    uint64_t code_mask, listed
    uint32_t slot_bits         # a bit per slot
    bint marked                # buckets have marks


cdef inline uint64_t home(uint64_t hash, int partition_bits, uint64_t n_buckets) noexcept nogil:
    """The bucket of a hash, counted within its partition."""
    return mul_high(hash << partition_bits, n_buckets)


cdef inline uint64_t fingerprint(uint64_t hash) noexcept nogil:
    cdef uint64_t f = hash & FINGERPRINT
    return f if f & 255 else f | 1         # a tag of 0 marks an empty slot


cdef inline byte_t tag_of(uint64_t hash) noexcept nogil:
    """The lowest byte of the fingerprint."""
    cdef byte_t tag = <byte_t>hash
    return tag | <byte_t>(tag == 0)


cdef inline uint64_t partner(uint64_t f) noexcept nogil:
    """The fingerprint under which the totals of an n-gram as a context stand, in the same chain of buckets."""
    return f ^ (<uint64_t>PARTNER << 8)


cdef inline bint has_marks(int slot_bytes, int n_slots) noexcept nogil:
    """Whether a bucket has a byte to spare; slot_bytes is without the tag."""
    return n_slots * (slot_bytes + 1) < BUCKET


cdef inline byte_t mark_of(uint64_t f) noexcept nogil:
    """The mark that entries with this fingerprint, and their partners, leave in buckets that they pass."""
    return <byte_t>(1 << (f & 7))


cdef inline uint64_t after(uint64_t b, uint64_t tried, uint64_t f, uint64_t n_buckets) noexcept nogil:
    """The bucket to try after bucket b, which was number `tried` from 0 on; the same for an entry and its partner."""
    if tried == 0:
        return (f >> 8 & 0x7FFFFFFFu) * n_buckets >> 31
    return b + 1 if b + 1 < n_buckets else 0


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

"""Fill the hash table of a compiled model. Layout of buckets: _buckets.pxd."""
from libc.string cimport memcpy

from kvps._buckets cimport BUCKET, HIGHS, MARKS, ONES, after, fingerprint, has_marks, home, mark_of, partner
from kvps._keys cimport bit_length, load32, load64, u64
from kvps._types cimport byte_t, index_t, uint32_t, uint64_t

cdef enum:
    FULL = -2
    COLLISION = -3


def slots_per_bucket(int code_bytes):
    """Return how many slots of 5 + code_bytes bytes a bucket has."""
    return BUCKET // (5 + code_bytes)


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
    cdef bint marked = has_marks(slot_bytes, n_slots)
    cdef byte_t mark = mark_of(f)
    cdef uint32_t old
    cdef byte_t* bucket
    cdef byte_t* p
    if is_context:
        high, other = other, high
    for tried in range(n_buckets + 1):
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
        if marked:
            bucket[MARKS] |= mark
        b = after(b, tried, f, n_buckets)
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

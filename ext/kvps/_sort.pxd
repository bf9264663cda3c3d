# Sort packed keys of any width.
from libc.string cimport memcpy, memset

from kvps._keys cimport bit_length, packed_t, shr
from kvps._types cimport index_t, uint64_t

cdef enum:
    DIGIT_BITS = 8             # of a radix pass: 256 counters and their streams stay in the first cache
    SMALL = 24                 # keys that insertion sort orders faster than another pass


cdef inline void sort_keys(packed_t* a, packed_t* tmp, index_t n) noexcept nogil:
    """Sort n keys by MSD radix; tmp is scratch of the same length. Skips bits that all keys share."""
    cdef index_t i, j, start
    cdef index_t ends[1 << DIGIT_BITS]
    cdef packed_t key, differ
    cdef int shift, digit
    if n <= SMALL:
        for i in range(1, n):
            key = a[i]
            j = i
            while j > 0 and key < a[j - 1]:
                a[j] = a[j - 1]
                j -= 1
            a[j] = key
        return
    differ = a[0] ^ a[1]
    for i in range(2, n):
        differ = differ | (a[0] ^ a[i])
    shift = bit_length(differ)
    if shift == 0:
        return
    shift = shift - DIGIT_BITS if shift > DIGIT_BITS else 0
    memset(ends, 0, sizeof(ends))
    for i in range(n):
        ends[<uint64_t>shr(a[i], shift) & ((1 << DIGIT_BITS) - 1)] += 1
    start = 0
    for digit in range(1 << DIGIT_BITS):
        j = ends[digit]
        ends[digit] = start
        start += j
    for i in range(n):
        digit = <uint64_t>shr(a[i], shift) & ((1 << DIGIT_BITS) - 1)
        tmp[ends[digit]] = a[i]
        ends[digit] += 1
    memcpy(a, tmp, n * sizeof(packed_t))
    if shift == 0:
        return
    start = 0
    for digit in range(1 << DIGIT_BITS):
        if ends[digit] - start > 1:
            sort_keys(a + start, tmp + start, ends[digit] - start)
        start = ends[digit]

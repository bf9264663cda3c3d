"""Write rows of n-grams as text: lines of an ARPA file, and of a count listing."""
import numpy as np

from libc.string cimport memcpy

from kvps._types cimport byte_t, index_t, uint32_t, uint64_t

cdef enum:
    NUMBER_BYTES = 24          # longest number written: a sign, 20 digits, a point
    SHORT = 16                 # words up to this long are copied as 16 bytes, without a call; what is too much is written over

cdef byte_t PAIRS[200]         # "00", "01", ... "99"
for _i in range(100):
    PAIRS[2 * _i], PAIRS[2 * _i + 1] = 48 + _i // 10, 48 + _i % 10


cdef inline byte_t* put_integer(byte_t* p, uint64_t x) noexcept nogil:
    cdef byte_t digits[20]
    cdef int n = 0
    while True:
        digits[n] = <byte_t>(48 + x % 10)
        x //= 10
        n += 1
        if x == 0:
            break
    while n > 0:
        n -= 1
        p[0] = digits[n]
        p += 1
    return p


cdef inline byte_t* put_log10(byte_t* p, double x) noexcept nogil:
    """Write a log10 probability with seven decimals, trailing zeros left out; the error is at most 5e-8.

    The logarithm of 0 is written as -99, as ARPA files have it (a context whose discounts are 0 has such a back-off).
    """
    cdef uint64_t scaled
    cdef uint32_t whole, fraction
    if not x > -99:
        x = -99
    if x < 0:
        p[0] = 45
        x = -x
        scaled = <uint64_t>(x * 1e7 + 0.5)
        if scaled > 0:
            p += 1
    else:
        scaled = <uint64_t>(x * 1e7 + 0.5)
    whole = <uint32_t>(scaled // 10000000)         # up to 99
    fraction = <uint32_t>(scaled - <uint64_t>whole * 10000000)
    if whole >= 10:
        p[0] = PAIRS[2 * whole]
        p += 1
    p[0] = PAIRS[2 * whole + 1]
    p += 1
    if fraction == 0:
        return p
    p[0] = 46
    memcpy(p + 1, PAIRS + 2 * (fraction // 100000), 2)
    memcpy(p + 3, PAIRS + 2 * (fraction // 1000 % 100), 2)
    memcpy(p + 5, PAIRS + 2 * (fraction // 10 % 100), 2)
    p[7] = <byte_t>(48 + fraction % 10)
    p += 7
    while p[0] == 48:
        p -= 1
    return p + 1


cdef inline byte_t* put_words(byte_t* p, const uint32_t* row, int k, const uint64_t* ends, const byte_t* blob,
                              uint64_t n_blob) noexcept nogil:
    cdef int j
    cdef uint64_t start, size
    for j in range(k):
        if j > 0:
            p[0] = 32
            p += 1
        start = ends[row[j]]
        size = ends[row[j] + 1] - start
        if size <= SHORT and start + SHORT <= n_blob:
            memcpy(p, blob + start, SHORT)
        else:
            memcpy(p, blob + start, size)
        p += size
    return p


cdef index_t room_for(const uint32_t[:, ::1] rows, int k, const uint64_t[::1] ends, index_t per_line) except -1:
    """How many bytes writing the lines of rows of k words may touch; ValueError for a number without a word."""
    cdef index_t i, total = SHORT
    cdef int j
    cdef uint32_t most = 0
    with nogil:
        for i in range(rows.shape[0]):
            for j in range(k):
                if rows[i, j] > most:
                    most = rows[i, j]
    if rows.shape[0] and <index_t>most + 1 >= ends.shape[0]:
        raise ValueError(f"word {most} of {ends.shape[0] - 1}")
    with nogil:
        for i in range(rows.shape[0]):
            total += per_line + k
            for j in range(k):
                total += ends[rows[i, j] + 1] - ends[rows[i, j]]
    return total


def arpa_lines(const uint32_t[:, ::1] rows, const uint32_t[::1] order, const float[::1] log10_backoff,
               const uint64_t[::1] ends, const byte_t[::1] blob):
    """Return the lines `log10_p TAB words [TAB log10_backoff]` of an ARPA file, uint8.

    Args:
        rows: uint32 (n, k + 1), words in text order and log10 p as float32.
        order: uint32 (n,), in which order to write the rows.
        log10_backoff: float32 (n,), in that order; None at the highest order.
        ends, blob: of the words that the rows' numbers mean.
    """
    cdef index_t i, n = order.shape[0], row
    cdef int k = <int>rows.shape[1] - 1
    cdef bint has_backoff = log10_backoff is not None
    if rows.shape[0] != n or k < 1 or (has_backoff and log10_backoff.shape[0] != n):
        raise ValueError(f"{rows.shape[0]} rows, an order of {n}")
    out_array = np.empty(room_for(rows, k, ends, 2 * NUMBER_BYTES + 3), np.uint8)
    if n == 0:
        return out_array[:0]
    cdef byte_t[::1] out = out_array
    cdef byte_t* p = &out[0]
    with nogil:
        for i in range(n):
            row = order[i]
            p = put_log10(p, (<const float*>&rows[row, k])[0])
            p[0] = 9
            p = put_words(p + 1, &rows[row, 0], k, &ends[0], &blob[0], blob.shape[0])
            if has_backoff:
                p[0] = 9
                p = put_log10(p + 1, log10_backoff[i])
            p[0] = 10
            p += 1
    return out_array[:p - &out[0]]


def join_backoffs(const uint32_t[:, ::1] rows, const uint32_t[::1] order, const uint32_t[:, ::1] contexts,
                  const uint32_t[::1] context_order, float default, uint32_t eos):
    """Return the back-off of each n-gram, float32 (n,), in the order given: both lists are sorted, so one pass joins them.

    An n-gram that is no listed context has `default`, and 0 if it ends in `eos` (nothing follows it).
    """
    cdef index_t i, m = 0, n = order.shape[0]
    cdef int k = <int>rows.shape[1] - 1, j, less
    cdef const uint32_t* row
    cdef const uint32_t* context
    if contexts.shape[1] != k + 1 or context_order.shape[0] != contexts.shape[0] or rows.shape[0] != n:
        raise ValueError(f"{n} rows of {k} words, {contexts.shape[0]} contexts of {contexts.shape[1] - 1}")
    out_array = np.empty(n, np.float32)
    cdef float[::1] out = out_array
    with nogil:
        for i in range(n):
            row = &rows[order[i], 0]
            out[i] = default if row[k - 1] != eos else 0
            while m < contexts.shape[0]:
                context = &contexts[context_order[m], 0]
                less = 0
                for j in range(k):
                    if context[j] != row[j]:
                        less = -1 if context[j] < row[j] else 1
                        break
                if less > 0:
                    break
                m += 1
                if less == 0:
                    out[i] = (<const float*>context)[k]
                    break
    return out_array


def count_lines(const uint32_t[:, ::1] rows, const uint32_t[::1] order, const uint64_t[::1] counts,
                const uint64_t[::1] ends, const byte_t[::1] blob):
    """Return the lines `words TAB count`, uint8; arguments as arpa_lines."""
    cdef index_t i, n = order.shape[0], row
    cdef int k = <int>rows.shape[1]
    if rows.shape[0] != n or counts.shape[0] < n:
        raise ValueError(f"{rows.shape[0]} rows, an order of {n}, {counts.shape[0]} counts")
    out_array = np.empty(room_for(rows, k, ends, NUMBER_BYTES + 2), np.uint8)
    if n == 0:
        return out_array[:0]
    cdef byte_t[::1] out = out_array
    cdef byte_t* p = &out[0]
    with nogil:
        for i in range(n):
            row = order[i]
            p = put_words(p, &rows[row, 0], k, &ends[0], &blob[0], blob.shape[0])
            p[0] = 9
            p = put_integer(p + 1, counts[row])
            p[0] = 10
            p += 1
    return out_array[:p - &out[0]]

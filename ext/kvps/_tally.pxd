# Sums over tokens, and columns of them by sentence.
from libc.math cimport isinf, log10

from kvps._types cimport index_t, int64_t


cdef struct tally:
    # Sums over tokens; those of log10 probabilities leave tokens of probability 0 out.
    index_t tokens, oov, zero, zero_oov
    double total, total_oov, product       # total is without `product`


cdef inline void start(tally* t) noexcept nogil:
    t.tokens = t.oov = t.zero = t.zero_oov = 0
    t.total, t.total_oov, t.product = 0, 0, 1


cdef inline void count(tally* t, double p, bint unknown) noexcept nogil:
    """Add a token of probability p."""
    t.tokens += 1
    if unknown:
        t.oov += 1
        if p > 0:
            t.total_oov += log10(p)
        else:
            t.zero_oov += 1
    if p <= 0:
        t.zero += 1
    # One logarithm for many tokens: the product is taken while it is far from underflow.
    elif p < 1e-100:
        t.total += log10(p)
    else:
        t.product *= p
        if t.product < 1e-200:
            t.total += log10(t.product)
            t.product = 1


cdef inline void count_log10(tally* t, double log10_p, bint unknown) noexcept nogil:
    """Add a token of which the logarithm is known."""
    cdef bint zero = isinf(log10_p)
    t.tokens += 1
    if zero or unknown:                        # rare
        t.oov += unknown
        t.zero += zero
        t.zero_oov += zero and unknown
        if zero:
            return
        t.total_oov += log10_p
    t.total += log10_p


cdef struct by_sentence:
    # Columns of n rows, one after another.
    index_t n
    int64_t* counts            # tokens, OOVs, tokens of probability 0, OOVs of probability 0
    double* logs               # sums of log10 p, of those of OOVs


cdef inline void write_row(const by_sentence* out, index_t row, const tally* t) noexcept nogil:
    if 0 <= row < out.n:
        out.counts[row], out.counts[out.n + row] = t.tokens, t.oov
        out.counts[2 * out.n + row], out.counts[3 * out.n + row] = t.zero, t.zero_oov
        out.logs[row], out.logs[out.n + row] = t.total + log10(t.product), t.total_oov

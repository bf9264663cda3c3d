# The smoothings as the kernels know them: what an n-gram keeps of its count, and how a context shares out its mass.
# Names and parameters: kvps/lm/smoothing.py. Sources: modified Kneser-Ney, Chen and Goodman 1998 section 3, interpolated
# as lmplz does; the others as nltk.lm.
from kvps._types cimport MAX_ORDER, uint64_t

# Numbers are private to the kernels and kvps/lm/smoothing.py.
cdef enum:
    MODIFIED_KNESER_NEY = 0
    KNESER_NEY = 1
    ABSOLUTE_DISCOUNTING = 2
    WITTEN_BELL = 3
    LIDSTONE = 4
    STUPID_BACKOFF = 5

cdef struct smoothing:
    int kind
    double value                           # gamma of Lidstone, d of (absolute) discounting, alpha of stupid back-off
    double vocabulary                      # V of the uniform distribution, |V| of Lidstone
    double discount[MAX_ORDER + 1][4]      # [k][min(a, 3)] is taken off an adjusted count a of order k


cdef inline double kept(const smoothing* s, int order, uint64_t a) noexcept nogil:
    """What is left of a count a of an n-gram of some order, to be divided by what its context has in all."""
    if s.kind == MODIFIED_KNESER_NEY:
        return <double>a - s.discount[order][3 if a > 3 else a]
    if s.kind == KNESER_NEY or s.kind == ABSOLUTE_DISCOUNTING:
        return <double>a - s.value if <double>a > s.value else 0
    return <double>a


cdef inline void shares(const smoothing* s, int order, double den, uint64_t n1, uint64_t n2, uint64_t n3, double* scale,
                        double* gamma) noexcept nogil:
    """OUT by what to multiply what the n-grams of a context keep, and the mass that it leaves to the shorter context.

    order: of its n-grams. den: the sum of their counts; n1, n2, n3: how many have the count 1, 2, 3 or more.
    """
    cdef double types = <double>(n1 + n2 + n3)
    if s.kind == WITTEN_BELL:
        scale[0] = 1 / (types + den)
        gamma[0] = types / (types + den)
        return
    scale[0] = 1 / den
    if s.kind == MODIFIED_KNESER_NEY:
        gamma[0] = (s.discount[order][1] * <double>n1 + s.discount[order][2] * <double>n2
                    + s.discount[order][3] * <double>n3) / den
    else:
        gamma[0] = s.value * types / den

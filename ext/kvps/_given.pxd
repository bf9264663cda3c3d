# Probabilities and back-offs as the file of an imported model has them; see _given.pyx.
from libc.math cimport exp

from kvps._types cimport uint32_t

cdef enum:
    CONTEXT = 0x80000000       # in the code of an n-gram: it is a context


cdef inline float float_in(uint32_t bits) noexcept nogil:
    return (<float*>&bits)[0]


cdef inline float log10_in(uint32_t code) noexcept nogil:
    """The log10 probability of an n-gram."""
    return -float_in(code & <uint32_t>~CONTEXT)


cdef inline double power10(double x) noexcept nogil:
    return exp(x * 2.302585092994045684)   # ln 10

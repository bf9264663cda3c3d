from kvps._types cimport index_t, uint32_t, uint64_t

cdef struct totals:
    # What a context knows: the sum of its values, and how many of its words have value 1, 2, 3 or more.
    uint64_t den, n1, n2, n3

cdef enum:
    NO_TUPLE = 0xFFFFFFFF

cdef class TotalsTable:
    cdef totals* items
    cdef uint64_t* uses        # how often contexts with these totals occur in the text
    cdef uint32_t* slots
    cdef index_t n, room, n_slots
    cdef uint32_t number(self, const totals* t) noexcept nogil
    cdef void use(self, uint32_t number, uint64_t n) noexcept nogil

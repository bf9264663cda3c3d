"""The totals of contexts, each distinct one once: (sum, N1, N2, N3+), numbered in order of appearance."""
import numpy as np

cimport cython
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from kvps._keys cimport mix
from kvps._types cimport index_t, uint32_t, uint64_t


@cython.final
cdef class TotalsTable:
    """Distinct context totals, numbered in order of appearance; number 0 is (1, 1, 0, 0), which most contexts have."""
    def __cinit__(self):
        self.room, self.n_slots = 1024, 4096
        self.items = <totals*>malloc(self.room * sizeof(totals))
        self.uses = <uint64_t*>calloc(self.room, 8)
        self.slots = <uint32_t*>malloc(self.n_slots * 4)
        if self.items == NULL or self.slots == NULL or self.uses == NULL:
            raise MemoryError("no memory for context totals")
        memset(self.slots, 255, self.n_slots * 4)
        cdef totals t
        t.den = t.n1 = 1
        t.n2 = t.n3 = 0
        self.number(&t)

    def __dealloc__(self):
        free(self.items)
        free(self.uses)
        free(self.slots)

    def __len__(self):
        return self.n

    cdef uint32_t number(self, const totals* t) noexcept nogil:
        """Return the number of these totals; NO_TUPLE when memory ran out."""
        cdef uint64_t at
        cdef uint32_t i
        cdef index_t n_slots, room
        cdef uint32_t* slots
        cdef totals* items
        cdef uint64_t* uses
        if 2 * (self.n + 1) > self.n_slots:
            n_slots = 4 * self.n_slots
            slots = <uint32_t*>malloc(n_slots * 4)
            if slots == NULL:
                return <uint32_t>NO_TUPLE
            memset(slots, 255, n_slots * 4)
            for i in range(<uint32_t>self.n):
                at = hash_totals(&self.items[i]) & (n_slots - 1)
                while slots[at] != <uint32_t>NO_TUPLE:
                    at = (at + 1) & (n_slots - 1)
                slots[at] = i
            free(self.slots)
            self.slots, self.n_slots = slots, n_slots
        if self.n == self.room:
            room = 2 * self.room
            items = <totals*>realloc(self.items, room * sizeof(totals))
            if items == NULL:
                return <uint32_t>NO_TUPLE
            self.items = items
            uses = <uint64_t*>realloc(self.uses, room * 8)
            if uses == NULL:
                return <uint32_t>NO_TUPLE
            self.uses, self.room = uses, room
        at = hash_totals(t) & (self.n_slots - 1)
        while True:
            i = self.slots[at]
            if i == <uint32_t>NO_TUPLE:
                break
            if self.items[i].den == t.den and self.items[i].n1 == t.n1 and self.items[i].n2 == t.n2 and self.items[i].n3 == t.n3:
                return i
            at = (at + 1) & (self.n_slots - 1)
        self.slots[at] = <uint32_t>self.n
        self.items[self.n] = t[0]
        self.uses[self.n] = 0
        self.n += 1
        return <uint32_t>(self.n - 1)

    cdef void use(self, uint32_t number, uint64_t n) noexcept nogil:
        self.uses[number] += n

    def numbers(self, const uint64_t[:, ::1] rows, const uint64_t[::1] uses):
        """Return the numbers of rows (den, n1, n2, n3), adding those that are new, and their uses to all."""
        out_array = np.empty(rows.shape[0], np.uint32)
        cdef uint32_t[::1] out = out_array
        cdef index_t i
        for i in range(rows.shape[0]):
            out[i] = self.number(<const totals*>&rows[i, 0])
            if out[i] == <uint32_t>NO_TUPLE:
                raise MemoryError("no memory for context totals")
            self.uses[out[i]] += uses[i]
        return out_array

    def rows(self):
        """Return all totals, uint64 (n, 4): den, n1, n2, n3."""
        return np.asarray(<uint64_t[:self.n, :4]><uint64_t*>self.items).copy()

    def all_uses(self):
        """Return how often contexts with each of the totals occur, uint64 (n,)."""
        return np.asarray(<uint64_t[:self.n]>self.uses).copy()


cdef inline uint64_t hash_totals(const totals* t) noexcept nogil:
    return mix(mix(t.den, t.n1), t.n2 << 32 ^ t.n3)

# Blocks of tokens that are looked up together: loops without branches that depend on what is found.
#
# Arrays of a block have a row of LANES for each order. What a bucket says of many look-ups is worked out in vectors, since a
# branch would be guessed wrong as often as not.
from kvps._buckets cimport PARTNER
from kvps._types cimport index_t, uint8_t, uint32_t, uint64_t

cdef enum:
    NONE = 0xFFFFFFFF          # no such entry
    LANES = 192                # tokens of a block: few enough for the first cache
    ROW = LANES + 1            # numbers of totals of n-grams of one order that end at each of them, and before the first


cdef inline index_t with_context(uint8_t* live, index_t n, const uint32_t* own, const uint8_t* history, int d) noexcept nogil:
    """Keep of some tokens of a block those that have a context of d words; own[i]: the number of its totals."""
    cdef index_t i, j, left = 0
    for j in range(n):
        i = live[j]
        live[left] = <uint8_t>i
        left += <index_t>(history[i] >= d) & <index_t>(own[i] != <uint32_t>NONE)
    return left


cdef inline uint32_t no_bit(uint32_t x) noexcept nogil:
    """1 where x, below 2**31, is 0."""
    return (x - 1) >> 31


cdef inline uint32_t all_if(bint x) noexcept nogil:
    """All bits, or none."""
    return 0 - <uint32_t>x


cdef struct candidates:
    # Of look-ups, each in one bucket: the slots with its tag, and what they say.
    uint32_t differ[LANES]         # by what the first slot's fingerprint differs from that wanted: 0, PARTNER, or it is another's
    uint32_t code[LANES]
    uint32_t differ2[LANES]        # the same of the second slot
    uint32_t code2[LANES]
    uint32_t third[LANES]          # not 0: there are more slots
    uint32_t beyond[LANES]         # not 0: the entry may stand in another bucket
    uint32_t value[LANES]          # OUT; 0 where there is no n-gram
    uint32_t number[LANES]         # OUT, of the totals, NONE where it is no context
    uint32_t found[LANES]          # OUT, all bits: the n-gram is there, and no more is to be known of it
    uint32_t unclear[LANES]        # OUT, all bits: this bucket does not tell all


cdef inline void choose(candidates* c, index_t n, uint32_t listed_bit, uint32_t quarter, uint32_t limit) noexcept nogil:
    """Fill in the OUT of n candidates. All at once: compilers make vectors of this."""
    cdef uint32_t ngram, totals, known, totals_known, listed, is_it, is_it2, done
    cdef index_t j
    for j in range(n):
        is_it, is_it2 = all_if(c.differ[j] == 0), all_if(c.differ2[j] == 0)
        ngram, known = (c.code[j] & is_it) | (c.code2[j] & is_it2), is_it | is_it2
        is_it, is_it2 = all_if(c.differ[j] == PARTNER), all_if(c.differ2[j] == PARTNER)
        totals, totals_known = (c.code[j] & is_it) | (c.code2[j] & is_it2), is_it | is_it2
        listed = all_if((ngram & listed_bit) != 0)
        ngram &= ~listed_bit
        totals &= listed
        done = all_if(c.beyond[j] == 0) | (known & (~listed | totals_known))
        done &= all_if(c.third[j] == 0) & all_if(ngram < quarter) & all_if(totals < limit)
        c.value[j] = ngram
        c.number[j] = totals | ~known
        c.found[j], c.unclear[j] = known & done, ~done


cdef inline void longest_listed(index_t n, int order, const uint64_t* values, uint8_t* out) noexcept nogil:
    """Fill out with the order of the longest n-gram that ends at each of n tokens; 0 for an unknown word."""
    cdef index_t i
    cdef int d
    for i in range(n):
        out[i] = values[i] > 0
    for d in range(1, order):
        for i in range(n):
            out[i] = <uint8_t>max(out[i], (d + 1) * (values[d * LANES + i] > 0))

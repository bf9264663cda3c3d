"""Check text before words are made of it. The rules: The Unicode Standard, table 3-7, "Well-Formed UTF-8 Byte Sequences"."""
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from kvps._types cimport byte_t, index_t

cdef enum:
    ALL_VALID = -1

cdef uint64_t HIGH_BITS = 0x8080808080808080


cdef inline bint follows(const byte_t* text, index_t i, index_t n) noexcept nogil:
    """Return whether text[i] exists and is a continuation byte."""
    return i < n and (text[i] & 0xC0) == 0x80


cdef index_t find_invalid(const byte_t* text, index_t n) noexcept nogil:
    """Return where the first ill-formed sequence of text[0:n] begins, or ALL_VALID. O(n), 8 ASCII bytes at a time."""
    cdef index_t i = 0
    cdef uint64_t eight
    cdef byte_t lead, low, high
    while i < n:
        while i + 8 <= n:
            memcpy(&eight, text + i, 8)  # a load that need not be aligned
            if eight & HIGH_BITS:
                break
            i += 8
        # At most 8 bytes until the next wide test; a sequence may reach beyond them.
        while i < n and text[i] < 0x80:
            i += 1
        while i < n and text[i] >= 0x80:
            lead = text[i]
            if lead < 0xC2:  # a stray continuation byte, or an overlong form of ASCII
                return i
            if lead < 0xE0:
                if not follows(text, i + 1, n):
                    return i
                i += 2
            elif lead < 0xF0:
                low = 0xA0 if lead == 0xE0 else 0x80   # below: overlong
                high = 0x9F if lead == 0xED else 0xBF  # above: surrogates
                if i + 1 >= n or text[i + 1] < low or text[i + 1] > high or not follows(text, i + 2, n):
                    return i
                i += 3
            elif lead < 0xF5:
                low = 0x90 if lead == 0xF0 else 0x80   # below: overlong
                high = 0x8F if lead == 0xF4 else 0xBF  # above: beyond U+10FFFF
                if (i + 1 >= n or text[i + 1] < low or text[i + 1] > high
                        or not follows(text, i + 2, n) or not follows(text, i + 3, n)):
                    return i
                i += 4
            else:
                return i
    return ALL_VALID


def first_invalid_utf8(const byte_t[::1] text not None):
    """Return the index at which `text` stops being UTF-8 (UnicodeDecodeError.start), or -1 where it is. Releases the GIL."""
    cdef index_t n = text.shape[0]
    cdef index_t found = ALL_VALID
    if n:
        with nogil:
            found = find_invalid(&text[0], n)
    return found

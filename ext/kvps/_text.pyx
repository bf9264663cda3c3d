"""Check text before words are made of it, lay sentences one after another, and make words of characters.

The rules of the check: The Unicode Standard, table 3-7, "Well-Formed UTF-8 Byte Sequences".
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy

from kvps._types cimport byte_t, index_t
from kvps._utf8 cimport plain, utf8

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


def join_lines(list sentences not None, index_t first, index_t limit):
    """Return (bytes, end): sentences[first:end], each with a newline behind it, as far as they are plain.

    Stops before what is no str, has a newline or cannot be UTF-8, and before there are more bytes than `limit`, but for the
    first sentence.
    """
    cdef index_t end = first, n = 0, i
    cdef Py_ssize_t size
    cdef const char* p
    cdef char* out
    cdef list lines = []
    cdef bytes joined
    while end < len(sentences):
        line = plain(sentences[end])
        if line is None:
            break
        p = utf8(line, &size)
        if n and n + size >= limit:
            break
        lines.append(line)
        n += size + 1
        end += 1
    joined = PyBytes_FromStringAndSize(NULL, n)
    out = PyBytes_AS_STRING(joined)
    for i, line in enumerate(lines):
        p = utf8(line, &size)
        if size and memchr(p, 10, size) != NULL:       # here, where it is read once for both
            return joined[:out - PyBytes_AS_STRING(joined)], first + i
        memcpy(out, p, size)
        out[size] = 10
        out += size + 1
    return joined, end


# ---- characters as words ----------------------------------------------------------------------------------------

cdef enum:
    ONE = 0                    # a word of its own
    RUN = 1                    # Latin letters and digits: words of as many as stand together
    MARK = 2                   # goes with the character before it
    BLANK = 3                  # parts words and vanishes
    NEWLINE = 4

cdef byte_t ASCII[128]
for _i in range(128):
    _c = chr(_i)
    ASCII[_i] = NEWLINE if _c == "\n" else BLANK if _c in "\0\t\v\f\r " else RUN if _c.isalnum() else ONE

# First and last code point of each range beyond ASCII that is not ONE, in order. Do not change: stores hold counts made with it.
RANGES = (
    (0x85, 0x85, BLANK), (0xA0, 0xA0, BLANK), (0xAA, 0xAA, RUN), (0xBA, 0xBA, RUN), (0xC0, 0xD6, RUN), (0xD8, 0xF6, RUN),
    (0xF8, 0x2AF, RUN), (0x300, 0x36F, MARK), (0x1680, 0x1680, BLANK), (0x1AB0, 0x1AFF, MARK), (0x1DC0, 0x1DFF, MARK),
    (0x1E00, 0x1EFF, RUN), (0x2000, 0x200B, BLANK), (0x2028, 0x2029, BLANK), (0x202F, 0x202F, BLANK), (0x205F, 0x205F, BLANK),
    (0x20D0, 0x20FF, MARK), (0x2C60, 0x2C7F, RUN), (0x3000, 0x3000, BLANK), (0x3099, 0x309A, MARK), (0xA722, 0xA787, RUN),
    (0xA78B, 0xA7FF, RUN), (0xAB30, 0xAB5A, RUN), (0xFB00, 0xFB06, RUN), (0xFE00, 0xFE0F, MARK), (0xFE20, 0xFE2F, MARK),
    (0xFEFF, 0xFEFF, BLANK), (0xFF10, 0xFF19, RUN), (0xFF21, 0xFF3A, RUN), (0xFF41, 0xFF5A, RUN), (0xE0100, 0xE01EF, MARK))

cdef byte_t KINDS[0x10000]     # of code points: all ranges but the last lie within
for _first, _last, _kind in RANGES:
    for _i in range(_first, min(_last + 1, 0x10000)):
        KINDS[_i] = _kind


cdef inline byte_t kind_of(const byte_t* p, index_t* length) noexcept nogil:
    """Return what the well-formed character at p is, and its length in bytes."""
    cdef uint32_t code
    if p[0] < 0x80:
        length[0] = 1
        return ASCII[p[0]]
    if p[0] < 0xE0:
        length[0] = 2
        return KINDS[(<uint32_t>p[0] & 0x1F) << 6 | (p[1] & 0x3F)]
    if p[0] < 0xF0:
        length[0] = 3
        return KINDS[(<uint32_t>p[0] & 0x0F) << 12 | (<uint32_t>p[1] & 0x3F) << 6 | (p[2] & 0x3F)]
    length[0] = 4
    code = (<uint32_t>p[0] & 0x07) << 18 | (<uint32_t>p[1] & 0x3F) << 12 | (<uint32_t>p[2] & 0x3F) << 6 | (p[3] & 0x3F)
    return MARK if 0xE0100 <= code <= 0xE01EF else ONE


cdef index_t part_characters(const byte_t* text, index_t n, byte_t* out) noexcept nogil:
    """Write the lines of text with a space between words, at most 2 n bytes; return how many. O(n)."""
    cdef index_t i = 0, j = 0, k, length = 0
    cdef byte_t kind
    cdef bint begun = False    # whether the line has a word
    cdef bint adjacent = False # whether a word ends right before us
    cdef bint running = False  # and is made of Latin letters or digits
    while i < n:
        kind = kind_of(text + i, &length)
        if kind == NEWLINE:
            out[j] = c'\n'
            j += 1
            begun = adjacent = running = False
        elif kind == BLANK:
            adjacent = running = False
        else:
            if begun and not (running if kind == RUN else adjacent and kind == MARK):
                out[j] = c' '
                j += 1
            for k in range(length):
                out[j + k] = text[i + k]
            j += length
            begun = adjacent = True
            running = kind == RUN or (running and kind == MARK)
        i += length
    return j


def characters(const byte_t[::1] text not None):
    """Return lines made of characters as words, as bytes. Releases the GIL.

    A character is a word; Latin letters and digits that stand together are one; blanks vanish, Unicode's too; a combining
    mark or variation selector belongs to the character before it.

    text: UTF-8, well-formed: see first_invalid_utf8().
    """
    cdef index_t n = text.shape[0], written
    cdef byte_t* out
    if n == 0:
        return b""
    out = <byte_t*>malloc(2 * n)
    if out == NULL:
        raise MemoryError(f"no memory for {2 * n} bytes of text")
    try:
        with nogil:
            written = part_characters(&text[0], n, out)
        return <bytes>out[:written]
    finally:
        free(out)

"""Check text before words are made of it, and lay sentences one after another.

The rules: The Unicode Standard, table 3-7, "Well-Formed UTF-8 Byte Sequences".
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcpy

from kvps._types cimport byte_t, index_t

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)

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


cdef const char* text_of(line, Py_ssize_t* n) except NULL:
    """Return the bytes of a bytes, or of a str of ASCII, and how many."""
    if isinstance(line, bytes):
        n[0] = PyBytes_GET_SIZE(line)
        return PyBytes_AS_STRING(line)
    return PyUnicode_AsUTF8AndSize(line, n)


def join_lines(list sentences not None, index_t first, index_t limit):
    """Return (bytes, end): sentences[first:end], each with a newline behind it, as far as they are plain.

    Stops before what is no str, has a newline or cannot be UTF-8, and before there are more bytes than `limit`, but for the
    first sentence.
    """
    cdef index_t end = first, n = 0
    cdef Py_ssize_t size
    cdef const char* p
    cdef char* out
    cdef list lines = []                       # str of ASCII, or bytes: a str would keep its UTF-8 for good
    cdef bytes joined
    while end < len(sentences) and isinstance(sentences[end], str):
        line = sentences[end]
        if not PyUnicode_IS_ASCII(line):
            try:
                line = (<str>line).encode()
            except UnicodeEncodeError:
                break
        p = text_of(line, &size)
        if n and n + size >= limit or size and memchr(p, 10, size) != NULL:
            break
        lines.append(line)
        n += size + 1
        end += 1
    joined = PyBytes_FromStringAndSize(NULL, n)
    out = PyBytes_AS_STRING(joined)
    for line in lines:
        p = text_of(line, &size)
        memcpy(out, p, size)
        out[size] = 10
        out += size + 1
    return joined, end

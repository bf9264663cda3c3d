"""Read lines of n-gram counts, `w1 ... wk TAB count`, as `kvps dump --sorted` writes them: one blank between words, and each
line after the one before it in byte order. Compared with what was written in tests/property/test_from_counts.py.
"""
import numpy as np

from libc.string cimport memchr, memcmp

from kvps._types cimport BOS, EOS, MAX_ORDER, byte_t, count_t, index_t, word_t, uint64_t
from kvps._vocabulary cimport find_word, vocab_view, view_of, word_key

cdef enum:
    NO_WORD = 0xFFFFFFFF
    # What may be wrong with a line; the texts are in PROBLEMS.
    WORDS = 1
    NO_COUNT = 2
    TOO_LARGE = 3
    UNKNOWN_WORD = 4
    MARK = 5
    TWICE = 6
    UNSORTED = 7

PROBLEMS = {
    WORDS: "expected that number of words, with one space between, and a tab",
    NO_COUNT: "expected a whole number above 0 after the tab, and nothing else",
    TOO_LARGE: "the count is more than a store can hold, 2**62",
    UNKNOWN_WORD: "has a word that is not among the 1-grams",
    MARK: "<s> begins an n-gram and </s> ends one, and both stand nowhere else",
    TWICE: "this n-gram is listed twice in a row",
    UNSORTED: "expected n-grams in byte order, each line after the one before it",
}

cdef uint64_t MAX_COUNT = <uint64_t>1 << 62


cdef int read_line(const byte_t* p, const byte_t* end, int k, const vocab_view* words, word_t* ids, count_t* count) noexcept nogil:
    """Take one line without its newline apart; return 0 or what is wrong."""
    cdef const byte_t* start
    cdef uint64_t number = 0
    cdef int j
    for j in range(k):
        start = p
        while p < end and p[0] != 32 and p[0] != 9 and p[0] != 13 and p[0] != 0:
            p += 1
        if p == start or p == end or p[0] != (9 if j == k - 1 else 32):
            return WORDS
        ids[j] = find_word(words, start, p - start, word_key(start, p - start))
        if ids[j] == <word_t>NO_WORD:
            return UNKNOWN_WORD
        if (ids[j] == BOS and j > 0) or (ids[j] == EOS and j < k - 1):
            return MARK
        p += 1
    if p == end or not 49 <= p[0] <= 57:
        return NO_COUNT
    while p < end and 48 <= p[0] <= 57:
        number = 10 * number + <uint64_t>(p[0] - 48)           # below 11 * 2**62: does not wrap
        if number > MAX_COUNT:
            return TOO_LARGE
        p += 1
    if p != end:
        return NO_COUNT
    count[0] = <count_t>number
    return 0


cdef int compared(const byte_t* a, index_t n_a, const byte_t* b, index_t n_b) noexcept nogil:
    """Compare two n-grams, each with its tab: below 0, 0 or above 0."""
    cdef int found = memcmp(a, b, n_a if n_a < n_b else n_b)
    return found if found != 0 else (n_a > n_b) - (n_a < n_b)


cdef index_t read_block(const byte_t* data, index_t size, int k, const vocab_view* words, const byte_t* before, index_t n_before,
                        word_t* ids, count_t* counts, index_t* last, index_t* n_last, int* problem) noexcept nogil:
    """Read all lines; return how many are right, and OUT where the last of them begins and how long its n-gram is."""
    cdef const byte_t* newline
    cdef const byte_t* tab
    cdef index_t n = 0, at = 0, length
    cdef int order
    while at < size:
        newline = <const byte_t*>memchr(data + at, 10, size - at)
        problem[0] = read_line(data + at, newline, k, words, ids + n * k, counts + n)
        if problem[0] != 0:
            break
        tab = <const byte_t*>memchr(data + at, 9, newline - data - at)
        length = tab - data - at + 1
        if n_before > 0:
            order = compared(before, n_before, data + at, length)
            if order >= 0:
                problem[0] = TWICE if order == 0 else UNSORTED
                break
        before, n_before = data + at, length
        last[0], n_last[0] = at, length
        n += 1
        at = newline - data + 1
    return n


def read_counts(const byte_t[::1] text, int k, slots, ends, blob, bytes before=b""):
    """Read whole lines of k-grams.

    Args:
        text: each line ends with a newline.
        slots, ends, blob: the words, as WordTable.frozen() has them.
        before: what the last call returned, or b"".

    Returns:
        (lines read, what is wrong with the line after them or 0, ids uint32 (n, k) in text order, counts int64 (n,), the n-gram
        of the last line with its tab).
    """
    cdef vocab_view words = view_of(slots, ends, blob)
    cdef index_t n = 0, size = text.shape[0], room = size // (2 * k + 2) + 1, last = 0, n_last = 0
    cdef int problem = 0
    cdef const byte_t* earlier = before
    cdef index_t n_earlier = len(before)
    if not 1 <= k <= MAX_ORDER:
        raise ValueError(f"{k}-grams: those of 1 to {MAX_ORDER} words can be read")
    if size == 0 or text[size - 1] != 10:
        raise ValueError("expected whole lines")
    ids, counts = np.empty((room, k), np.uint32), np.empty(room, np.int64)
    cdef word_t[:, ::1] ids_view = ids
    cdef count_t[::1] counts_view = counts
    with nogil:
        n = read_block(&text[0], size, k, &words, earlier, n_earlier, &ids_view[0, 0], &counts_view[0], &last, &n_last, &problem)
    return n, problem, ids[:n], counts[:n], bytes(text[last:last + n_last]) if n else before

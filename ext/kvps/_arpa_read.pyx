"""Read the n-gram lines of an ARPA file: `log10_p TAB w1 ... wk [TAB log10_backoff]`, as KenLM accepts them.

Words end at TAB, CR, LF or a space, several of which count as one; exactly one TAB stands before the first word. Blanks
may stand before a number, and lines of blanks before a line. The highest order has no back-off, or 0. Hashes of n-grams:
_statistics.pyx.
"""
import numpy as np

from libc.math cimport INFINITY, fabs, isinf, pow
from libc.string cimport memchr

from kvps._keys cimport mix
from kvps._types cimport MAX_ORDER, byte_t, index_t, word_t, uint32_t, uint64_t
from kvps._vocabulary cimport find_word, vocab_view, view_of, word_key

cdef enum:
    NO_WORD = 0xFFFFFFFF
    # What may be wrong with a line; the texts are in PROBLEMS.
    NO_PROBABILITY = 1
    NO_TAB = 2
    POSITIVE = 3
    TOO_FEW = 4
    NO_BACKOFF = 5
    HIGHEST_BACKOFF = 6
    INFINITE_BACKOFF = 7
    UNKNOWN_WORD = 8
    BLANK = 9                  # nothing: the next line is to be looked at

PROBLEMS = {
    NO_PROBABILITY: "expected a log10 probability at its begin; is the number of n-grams in the header right?",
    NO_TAB: "expected a tab after the probability",
    POSITIVE: "expected a log10 probability of at most 0",
    TOO_FEW: "expected another number of words",
    NO_BACKOFF: "expected a tab and a log10 back-off, or nothing, after the words",
    HIGHEST_BACKOFF: "n-grams of the highest order have no back-off",
    INFINITE_BACKOFF: "expected a finite back-off",
    UNKNOWN_WORD: "has a word that is not among the 1-grams",
}
BLANK_LINE = BLANK


cdef struct fields:
    float log10_p, backoff
    const byte_t* word[MAX_ORDER]
    index_t size[MAX_ORDER]


cdef inline bint is_blank(byte_t c) noexcept nogil:
    return c == 32 or c == 9 or c == 13


cdef const byte_t* read_number(const byte_t* p, const byte_t* end, double* out) noexcept nogil:
    """Read a decimal number, with blanks before it; return what follows it, NULL if there is none."""
    cdef double mantissa = 0
    cdef int digits = 0, shift = 0, exponent = 0
    cdef bint negative = False, exponent_negative = False
    while p < end and is_blank(p[0]):
        p += 1
    if p < end and (p[0] == 45 or p[0] == 43):
        negative = p[0] == 45
        p += 1
    if end - p >= 3 and p[0] == 105 and p[1] == 110 and p[2] == 102:       # "inf"
        out[0] = -INFINITY if negative else INFINITY
        return p + 3
    while p < end and 48 <= p[0] <= 57:
        mantissa = 10 * mantissa + (p[0] - 48)
        digits += 1
        p += 1
    if p < end and p[0] == 46:
        p += 1
        while p < end and 48 <= p[0] <= 57:
            if shift < 300:                    # what comes behind is below every float
                mantissa = 10 * mantissa + (p[0] - 48)
                shift += 1
            digits += 1
            p += 1
    if digits == 0:
        return NULL
    if p < end and (p[0] == 101 or p[0] == 69):
        p += 1
        if p < end and (p[0] == 45 or p[0] == 43):
            exponent_negative = p[0] == 45
            p += 1
        if p >= end or not 48 <= p[0] <= 57:
            return NULL
        while p < end and 48 <= p[0] <= 57:
            if exponent < 10000:
                exponent = 10 * exponent + (p[0] - 48)
            p += 1
        if exponent_negative:
            exponent = -exponent
    if mantissa != 0 and exponent != shift:
        # Two steps, so that what is between stays within a double.
        mantissa = mantissa / pow(10, shift) * pow(10, exponent)           # 10 ** shift is not 0
    out[0] = -mantissa if negative else mantissa
    return p


cdef int read_line(const byte_t* p, const byte_t* end, int k, bint highest, fields* f) noexcept nogil:
    """Take one line without its newline apart; return 0 or what is wrong."""
    cdef double number = 0
    cdef int j
    f.log10_p = f.backoff = 0
    if end > p and (end - 1)[0] == 13:
        end -= 1
    while p < end and is_blank(p[0]):
        p += 1
    if p == end:
        return BLANK
    p = read_number(p, end, &number)
    if p == NULL:
        return NO_PROBABILITY
    if p >= end or p[0] != 9:
        return NO_TAB
    if not number <= 0:
        return POSITIVE
    f.log10_p = <float>number
    for j in range(k):
        while p < end and is_blank(p[0]):
            p += 1
        f.word[j] = p
        while p < end and not is_blank(p[0]):
            p += 1
        f.size[j] = p - f.word[j]
        if f.size[j] == 0:
            return TOO_FEW
    if p == end:
        return 0
    if p[0] != 9:
        return NO_BACKOFF
    p = read_number(p, end, &number)
    if p != end:                               # NULL too
        return NO_BACKOFF
    f.backoff = <float>number
    if isinf(f.backoff):
        return INFINITE_BACKOFF
    return HIGHEST_BACKOFF if highest and f.backoff != 0 else 0


cdef inline uint32_t bits_of(float x) noexcept nogil:
    return (<uint32_t*>&x)[0]


cdef inline uint32_t code_of(float log10_p) noexcept nogil:
    """What a model file has for a probability: the bits of its absolute value, plus 1, so that 0 is none."""
    return bits_of(<float>fabs(log10_p)) + 1


def read_unigrams(const byte_t[::1] text, index_t limit, table, bint highest, list codes, list backoffs):
    """Read up to `limit` whole lines of the 1-grams, adding words to a WordTable.

    As in KenLM, of lines for one word the first counts, but the last for <unk>, which <UNK> is too.

    codes, backoffs: by word id, -1 where nothing is known yet; OUT code_of() the probability, and the bits of the back-off.

    Return (lines read, bytes read, what is wrong with the line there, BLANK_LINE or 0).
    """
    cdef const byte_t* data = &text[0]
    cdef const byte_t* newline
    cdef index_t n = 0, at = 0, word
    cdef int problem = 0
    cdef fields f
    while n < limit and at < text.shape[0]:
        newline = <const byte_t*>memchr(data + at, 10, text.shape[0] - at)
        if newline == NULL:
            break
        problem = read_line(data + at, newline, 1, highest, &f)
        if problem != 0:
            break
        name = f.word[0][:f.size[0]]
        word = 0 if name == b"<UNK>" else table.add(name)
        if word == len(codes):
            codes.append(-1)
            backoffs.append(0)
        if codes[word] < 0 or word == 0:
            codes[word], backoffs[word] = code_of(f.log10_p), bits_of(f.backoff)
        n += 1
        at = newline - data + 1
    return n, at, problem


cdef index_t read_block(const byte_t* data, index_t size, index_t limit, int k, bint highest, uint64_t start,
                        const vocab_view* words, uint64_t* hashes, uint32_t* codes, uint64_t* parents, uint64_t* endings,
                        word_t* rows, index_t* n_bytes, int* problem) noexcept nogil:
    """Read lines of order k; return how many."""
    cdef const byte_t* newline
    cdef index_t n = 0
    cdef int j
    cdef uint64_t h
    cdef word_t ids[MAX_ORDER]
    cdef fields f
    while n < limit and n_bytes[0] < size:
        newline = <const byte_t*>memchr(data + n_bytes[0], 10, size - n_bytes[0])
        if newline == NULL:
            break
        problem[0] = read_line(data + n_bytes[0], newline, k, highest, &f)
        for j in range(k):
            if problem[0] != 0:
                break
            if f.size[j] == 5 and f.word[j][0] == 60 and f.word[j][1] == 85 and f.word[j][2] == 78 and f.word[j][3] == 75 \
                    and f.word[j][4] == 62:
                ids[j] = 0                     # <UNK>
                continue
            ids[j] = find_word(words, f.word[j], f.size[j], word_key(f.word[j], f.size[j]))
            if ids[j] == <word_t>NO_WORD:
                problem[0] = UNKNOWN_WORD
        if problem[0] != 0:
            break
        parents[n] = ids[0]
        if k > 2:
            h = start
            for j in range(k - 3, -1, -1):
                h = mix(h, ids[j])
            parents[n] = mix(h, ids[k - 2])
        h = start
        for j in range(k - 2, 0, -1):
            h = mix(h, ids[j])
        endings[n] = mix(h, ids[k - 1]) if k > 2 else ids[1]
        hashes[n] = mix(mix(h, ids[0]), ids[k - 1])
        codes[2 * n], codes[2 * n + 1] = code_of(f.log10_p), bits_of(f.backoff)
        for j in range(k):
            rows[n * k + j] = ids[j]
        n += 1
        n_bytes[0] = newline - data + 1
    return n


def read_ngrams(const byte_t[::1] text, index_t limit, int k, bint highest, uint64_t start, slots, ends, blob):
    """Read up to `limit` whole lines of k-grams, k of 2 and more.

    Args:
        start: the hash of the empty context.
        slots, ends, blob: the words, as WordTable.frozen() has them.

    Return (lines read, bytes read, what is wrong with the line there, BLANK_LINE or 0, arrays); the arrays, by n-gram: hashes,
    uint64; code_of() the probability and bits of the back-off, uint32 (n * 2,); hashes of the n-grams that are their contexts and
    of those of all their words but the first, uint64 (where these are words, their ids); words, uint32 (n * k,).
    """
    cdef vocab_view words = view_of(slots, ends, blob)
    cdef index_t room = min(limit, text.shape[0] // (2 * k + 2) + 1), n, n_bytes = 0
    cdef int problem = 0
    if not 2 <= k <= MAX_ORDER:
        raise ValueError(f"{k}-grams: only those of 2 to {MAX_ORDER} words are read here")
    sizes = (1, 2, 1, 1, k)
    arrays = [np.empty(room * size, dtype) for size, dtype in zip(sizes, (np.uint64, np.uint32, np.uint64, np.uint64, np.uint32),
                                                                  strict=True)]
    cdef uint64_t[::1] hashes = arrays[0], parents = arrays[2], endings = arrays[3]
    cdef uint32_t[::1] codes = arrays[1], rows = arrays[4]
    with nogil:
        n = read_block(&text[0], text.shape[0], room, k, highest, start, &words, &hashes[0], &codes[0], &parents[0], &endings[0],
                       &rows[0], &n_bytes, &problem)
    return n, n_bytes, problem, [array[:n * size] for size, array in zip(sizes, arrays, strict=True)]

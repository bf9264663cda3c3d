"""Sort n-grams by their text, and write them: lines of an ARPA file, and of a count listing.

An n-gram is a key in text order: the numbers of its words w1, ..., wk, and in the lowest 32 bits a number of its own.
"""
import numpy as np

cimport cython

from libc.math cimport isinf
from libc.string cimport memcpy

from kvps._keys cimport VALUE_BITS, fetch, low32, packed_t, shl, shr, text_key_words64, u64, u128, u256, wide
from kvps._sort cimport sort_keys
from kvps._types cimport byte_t, index_t, uint32_t, uint64_t

cdef enum:
    PIECE_BYTES = 1 << 20      # of lines, where words are not longer
    NUMBER_BYTES = 24          # longest number written: a sign, 20 digits, a point
    MAX_DECIMALS = 20          # of a number that was read: of what is smaller still, less is right than a float has
    AHEAD = 8                  # lines: words are fetched before they are needed
    SLOT = 16                  # bytes of a slot, copied without a call; what is too much is written over
    LONG = 255
    LARGE = 1 << 31            # marks a count that is the place of a larger one

cdef byte_t PAIRS[200]         # "00", "01", ... "99"
for _i in range(100):
    PAIRS[2 * _i], PAIRS[2 * _i + 1] = 48 + _i // 10, 48 + _i % 10


cdef inline byte_t* put_integer(byte_t* p, uint64_t x) noexcept nogil:
    cdef byte_t digits[20]
    cdef int n = 0
    while True:
        digits[n] = <byte_t>(48 + x % 10)
        x //= 10
        n += 1
        if x == 0:
            break
    while n > 0:
        n -= 1
        p[0] = digits[n]
        p += 1
    return p


cdef inline byte_t* put_log10(byte_t* p, double x) noexcept nogil:
    """Write a log10 probability with seven decimals, trailing zeros left out; the error is at most 5e-8.

    The logarithm of 0 is written as -99, as ARPA files have it (a context whose discounts are 0 has such a back-off).
    """
    cdef uint64_t scaled
    cdef uint32_t whole, fraction
    if not x > -99:
        x = -99
    if x < 0:
        p[0] = 45
        x = -x
        scaled = <uint64_t>(x * 1e7 + 0.5)
        if scaled > 0:
            p += 1
    else:
        scaled = <uint64_t>(x * 1e7 + 0.5)
    whole = <uint32_t>(scaled // 10000000)         # up to 99
    fraction = <uint32_t>(scaled - <uint64_t>whole * 10000000)
    if whole >= 10:
        p[0] = PAIRS[2 * whole]
        p += 1
    p[0] = PAIRS[2 * whole + 1]
    p += 1
    if fraction == 0:
        return p
    p[0] = 46
    memcpy(p + 1, PAIRS + 2 * (fraction // 100000), 2)
    memcpy(p + 3, PAIRS + 2 * (fraction // 1000 % 100), 2)
    memcpy(p + 5, PAIRS + 2 * (fraction // 10 % 100), 2)
    p[7] = <byte_t>(48 + fraction % 10)
    p += 7
    while p[0] == 48:
        p -= 1
    return p + 1


cdef byte_t* put_float(byte_t* p, float given) noexcept nogil:
    """Write a number with as few decimals as it takes to read the same float again."""
    cdef double x = given, scale = 1
    cdef uint64_t scaled
    cdef byte_t digits[MAX_DECIMALS]
    cdef int n = 0, exponent = 0, i
    if x < 0:
        p[0] = 45
        p += 1
        x = -x
    if isinf(x):
        p[0], p[1], p[2] = 105, 110, 102       # "inf"
        return p + 3
    while x >= 1e9:
        x /= 10
        exponent += 1
    scaled = <uint64_t>(x + 0.5)
    # A float has nine digits that matter, so `scaled` stays within 64 bits.
    while n < MAX_DECIMALS and <float>(<double>scaled / scale) != <float>x:
        n += 1
        scale *= 10
        scaled = <uint64_t>(x * scale + 0.5)
    for i in range(n):
        digits[i] = <byte_t>(48 + scaled % 10)
        scaled //= 10
    p = put_integer(p, scaled)
    if n > 0:
        p[0] = 46
        p += 1
    while n > 0:
        n -= 1
        p[0] = digits[n]
        p += 1
    if exponent > 0:
        p[0] = 101
        p = put_integer(p + 1, exponent)
    return p


cdef inline byte_t* put_number(byte_t* p, uint32_t bits, bint exact) noexcept nogil:
    cdef float value = (<float*>&bits)[0]
    return put_float(p, value) if exact else put_log10(p, value)


cdef struct strings:
    # Words by number: a slot of 16 bytes holds a word of up to 15 and its length; LONG: it is in the blob.
    const byte_t* slots
    const uint64_t* ends
    const byte_t* blob
    index_t n
    bint missing               # OUT: a number had no word


cdef inline byte_t* put_word(byte_t* p, const byte_t* end, strings* words, uint32_t number) noexcept nogil:
    """Write a word; NULL if it is long and does not fit, or missing. A short one takes 16 bytes of room."""
    cdef const byte_t* slot = words.slots + SLOT * <index_t>number
    cdef uint64_t start, size
    if <index_t>number >= words.n:
        words.missing = True
        return NULL
    if slot[SLOT - 1] != LONG:
        memcpy(p, slot, SLOT)
        return p + slot[SLOT - 1]
    start = words.ends[number]
    size = words.ends[number + 1] - start
    if <uint64_t>(end - p) < size:
        return NULL
    memcpy(p, words.blob + start, size)
    return p + size


cdef inline byte_t* put_words(byte_t* p, const byte_t* end, strings* words, packed_t key, int k, int bits) noexcept nogil:
    """Write the k words of a key, with blanks between; NULL if they do not fit before `end`."""
    cdef int j
    cdef uint32_t mask = <uint32_t>((<uint64_t>1 << bits) - 1)
    for j in range(k - 1, -1, -1):
        if end - p < SLOT + 1:
            return NULL
        p = put_word(p, end, words, low32(shr(key, VALUE_BITS + j * bits)) & mask)
        if p == NULL:
            return NULL
        if j > 0:
            p[0] = 32
            p += 1
    return p


cdef index_t arpa_block(const packed_t* keys, index_t n, const packed_t* contexts, index_t n_contexts, int k, int bits,
                        bint has_backoff, float default, uint32_t eos, bint exact, strings* words,
                        index_t* done, index_t* joined, byte_t* out, index_t room) noexcept nogil:
    """Write lines from keys[*done] on until the room ends; return the bytes written, and move *done and *joined on."""
    cdef byte_t* p = out
    cdef const byte_t* end = out + room - 2 * NUMBER_BYTES - 3
    cdef byte_t* q
    cdef int j
    cdef packed_t ngram
    cdef float none = 0
    cdef uint32_t backoff, mask = <uint32_t>((<uint64_t>1 << bits) - 1)
    while done[0] < n:
        if p >= end:
            break
        if n - done[0] > AHEAD:                # its last words are anywhere, the others mostly those of the line before
            for j in range(2):
                fetch(words.slots + SLOT * <index_t>(low32(shr(keys[done[0] + AHEAD], VALUE_BITS + j * bits)) & mask))
        q = put_number(p, low32(keys[done[0]]), exact)
        q[0] = 9
        q = put_words(q + 1, end, words, keys[done[0]], k, bits)
        if q == NULL:
            break
        if has_backoff:
            # Both lists are sorted, so one pass joins them.
            ngram = shr(keys[done[0]], VALUE_BITS)
            backoff = (<uint32_t*>&default)[0] if low32(ngram) & mask != eos else (<uint32_t*>&none)[0]
            while joined[0] < n_contexts and shr(contexts[joined[0]], VALUE_BITS) < ngram:
                joined[0] += 1
            if joined[0] < n_contexts and shr(contexts[joined[0]], VALUE_BITS) == ngram:
                backoff = low32(contexts[joined[0]])
            q[0] = 9
            q = put_number(q + 1, backoff, exact)
        q[0] = 10
        p = q + 1
        done[0] += 1
    return p - out


cdef index_t count_block(const packed_t* keys, index_t n, const uint64_t* large, index_t n_large, int k, int bits,
                         strings* words, const uint32_t[::1] last, index_t* done, byte_t* out, index_t room) noexcept nogil:
    """Write lines from keys[*done] on until the room ends; return the bytes written, and move *done on."""
    cdef byte_t* p = out
    cdef const byte_t* end = out + room - NUMBER_BYTES - 2 - SLOT
    cdef byte_t* q
    cdef uint32_t number, value, mask = <uint32_t>((<uint64_t>1 << bits) - 1)
    while done[0] < n:
        if p >= end:
            break
        q = p
        if k > 1:
            q = put_words(p, end, words, shr(keys[done[0]], bits), k - 1, bits)
            if q == NULL:
                break
            q[0] = 32
            q += 1
        if end - q < SLOT:
            break
        number = low32(shr(keys[done[0]], VALUE_BITS)) & mask
        value = low32(keys[done[0]])
        if <index_t>number >= last.shape[0] or (value & LARGE and <index_t>(value & (LARGE - 1)) >= n_large):
            words.missing = True
            break
        q = put_word(q, end, words, last[number])
        if q == NULL:
            break
        q[0] = 9
        q = put_integer(q + 1, large[value & (LARGE - 1)] if value & LARGE else value)
        q[0] = 10
        p = q + 1
        done[0] += 1
    return p - out


@cython.final
cdef class Strings:
    """Words by number, as the lines of n-grams need them.

    Args:
        ends, blob: word i is blob[ends[i]:ends[i + 1]].
    """
    cdef strings words
    cdef object owner

    def __cinit__(self, const uint64_t[::1] ends, const byte_t[::1] blob):
        cdef index_t i, n = ends.shape[0] - 1
        cdef uint64_t size
        if n < 0 or <index_t>ends[n] > blob.shape[0]:
            raise ValueError(f"the ends of {n} words, and {blob.shape[0]} bytes")
        slots = np.zeros((n + 1, SLOT), np.uint8)
        cdef byte_t[:, ::1] view = slots
        for i in range(n):
            if ends[i + 1] < ends[i]:
                raise ValueError(f"word {i} ends before it begins")
            size = ends[i + 1] - ends[i]
            view[i, SLOT - 1] = LONG
            if size < SLOT:
                memcpy(&view[i, 0], &blob[0] + ends[i], size)
                view[i, SLOT - 1] = <byte_t>size
        self.owner = (slots, ends, blob)
        self.words.slots, self.words.ends, self.words.n = &view[0, 0], &ends[0], n
        self.words.blob = &blob[0] if blob.shape[0] else NULL


def text_key_width(int k, int bits):
    """Return how many uint64 one key in text order takes, 1, 2 or 4: k words of `bits` each and a number of 32 bits."""
    cdef index_t width = text_key_words64(k, bits)
    if not 1 <= k or not 2 <= bits <= 32 or width > 4:
        raise ValueError(f"{k} words of {bits} bits and a number do not fit into a key of 256 bits")
    return width


def text_key_bytes(int k, int bits):
    """Return how many bytes hold all that is in such a key."""
    return (k * bits + VALUE_BITS + 7) // 8


cdef void pack_rows(const uint32_t[:, ::1] rows, const uint32_t[::1] values, int bits, packed_t* keys) noexcept nogil:
    cdef index_t i, j
    for i in range(rows.shape[0]):
        keys[i] = 0
        for j in range(rows.shape[1]):
            keys[i] = shl(keys[i], bits) | <packed_t>rows[i, j]
        keys[i] = shl(keys[i], VALUE_BITS) | <packed_t>values[i]


def pack_text_keys(const uint32_t[:, ::1] rows, const uint32_t[::1] values, int bits):
    """Return the keys of rows of words, uint32 (n, k) below 2**bits, and their numbers: uint64 (n * width,)."""
    cdef index_t n = rows.shape[0], width = text_key_width(<int>rows.shape[1], bits)
    if values.shape[0] != n:
        raise ValueError(f"{n} rows, {values.shape[0]} values")
    keys_array = np.empty(n * width, np.uint64)
    if n == 0:
        return keys_array
    cdef uint64_t[::1] keys = keys_array
    with nogil:
        if width == 1:
            pack_rows[u64](rows, values, bits, <u64*>&keys[0])
        elif width == 2:
            pack_rows[u128](rows, values, bits, <u128*>&keys[0])
        else:
            pack_rows[u256](rows, values, bits, <u256*>&keys[0])
    return keys_array


def sort_text_keys(uint64_t[::1] keys, int k, int bits):
    """Sort keys in text order, in place."""
    cdef index_t width = text_key_width(k, bits), n = keys.shape[0] // width
    if keys.shape[0] != n * width:
        raise ValueError(f"{keys.shape[0]} words of keys, each of {width}")
    if n == 0:
        return
    cdef uint64_t[::1] scratch = np.empty(n * width, np.uint64)
    with nogil:
        if width == 1:
            sort_keys[u64](<u64*>&keys[0], <u64*>&scratch[0], n)
        elif width == 2:
            sort_keys[u128](<u128*>&keys[0], <u128*>&scratch[0], n)
        else:
            sort_keys[u256](<u256*>&keys[0], <u256*>&scratch[0], n)


@cython.final
cdef class _Text:
    """The room that lines are written to, piece by piece: pieces of like size are memory that is used again, large ones are not."""
    cdef list pieces
    cdef byte_t[::1] room

    def __cinit__(self, index_t n, int k):
        self.pieces = []
        self.room = np.empty(min(n * (SLOT * k + 2 * NUMBER_BYTES + 8) + 256, PIECE_BYTES), np.uint8)

    cdef int more(self, index_t used, strings* words) except -1:
        """Keep what is written and make new room."""
        if words.missing:
            raise ValueError(f"a number without a word: there are {words.n}")
        room = np.asarray(self.room)
        if used:
            self.pieces.append(room[:used])
        self.room = np.empty(len(room) if used else 2 * len(room), np.uint8)
        return 0

    cdef list whole(self, index_t used):
        return [*self.pieces, np.asarray(self.room)[:used]]


def arpa_lines(const uint64_t[::1] keys, const uint64_t[::1] contexts, int k, int bits, float default, uint32_t eos,
               Strings words, *, bint exact=False):
    """Return the lines `log10_p TAB words [TAB log10_backoff]` of an ARPA file, a list of uint8.

    Args:
        keys: sorted keys in text order, with log10 p as float32.
        contexts: the same of those among them that are contexts, with log10 of the back-off; None at the highest order.
        default: the back-off of n-grams that are not among `contexts`; those that end in `eos` have 0.
        exact: with as many decimals as read back as the same floats, instead of seven.
    """
    cdef index_t width = text_key_width(k, bits), n = keys.shape[0] // width, n_contexts = 0, used, done = 0, joined = 0
    cdef bint has_backoff = contexts is not None
    cdef const uint64_t* data = &keys[0] if n else NULL
    cdef const uint64_t* data_contexts = NULL
    if keys.shape[0] != n * width or (has_backoff and contexts.shape[0] % width):
        raise ValueError(f"{keys.shape[0]} words of keys, each of {width}")
    if has_backoff and contexts.shape[0]:
        n_contexts, data_contexts = contexts.shape[0] // width, &contexts[0]
    cdef strings text = words.words
    cdef _Text out = _Text(n, k)
    while True:
        with nogil:
            if width == 1:
                used = arpa_block[u64](<const u64*>data, n, <const u64*>data_contexts, n_contexts, k, bits, has_backoff, default,
                                       eos, exact, &text, &done, &joined, &out.room[0], out.room.shape[0])
            elif width == 2:
                used = arpa_block[u128](<const u128*>data, n, <const u128*>data_contexts, n_contexts, k, bits, has_backoff,
                                        default, eos, exact, &text, &done, &joined, &out.room[0], out.room.shape[0])
            else:
                used = arpa_block[u256](<const u256*>data, n, <const u256*>data_contexts, n_contexts, k, bits, has_backoff,
                                        default, eos, exact, &text, &done, &joined, &out.room[0], out.room.shape[0])
        if done == n:
            return out.whole(used)
        out.more(used, &text)


def count_lines(const uint64_t[::1] keys, const uint64_t[::1] large, int k, int bits, Strings words, const uint32_t[::1] last):
    """Return the lines `words TAB count`, a list of uint8.

    Args:
        keys: keys in text order, with the count, or 2**31 and the place of the count in `large`.
        last: uint32, what the number of the last word of a key means as a number of `words`.
    """
    cdef index_t width = text_key_width(k, bits), n = keys.shape[0] // width, used, done = 0
    cdef const uint64_t* data = &keys[0] if n else NULL
    cdef const uint64_t* counts = &large[0] if large.shape[0] else NULL
    if keys.shape[0] != n * width:
        raise ValueError(f"{keys.shape[0]} words of keys, each of {width}")
    cdef strings text = words.words
    cdef _Text out = _Text(n, k)
    while True:
        with nogil:
            if width == 1:
                used = count_block[u64](<const u64*>data, n, counts, large.shape[0], k, bits, &text, last, &done,
                                        &out.room[0], out.room.shape[0])
            elif width == 2:
                used = count_block[u128](<const u128*>data, n, counts, large.shape[0], k, bits, &text, last, &done,
                                         &out.room[0], out.room.shape[0])
            else:
                used = count_block[u256](<const u256*>data, n, counts, large.shape[0], k, bits, &text, last, &done,
                                         &out.room[0], out.room.shape[0])
        if done == n:
            return out.whole(used)
        out.more(used, &text)


cdef inline u256 ngram_at(const uint64_t* keys, index_t i, index_t width, int drop) noexcept nogil:
    """The words of key i, without its lowest `drop` bits."""
    if width == 1:
        return shr(wide((<const u64*>keys)[i]), drop)
    if width == 2:
        return shr(wide((<const u128*>keys)[i]), drop)
    return shr((<const u256*>keys)[i], drop)


def raise_to_longer(const uint64_t[::1] keys, float[::1] weights, int k, const uint64_t[::1] longer, const float[::1] longer_weights,
                    int bits):
    """Let no k-gram have a lower weight than a longer n-gram of which it is the context.

    Args:
        keys, longer: sorted keys in text order of k-grams and of (k + 1)-grams, whose contexts are among the keys.
        weights, longer_weights: float32, by place in these; `weights` is changed.
    """
    cdef index_t width = text_key_width(k, bits), longer_width = text_key_width(k + 1, bits), i = 0, j
    cdef index_t n = weights.shape[0], n_longer = longer_weights.shape[0]
    cdef u256 context
    if keys.shape[0] != n * width or longer.shape[0] != n_longer * longer_width:
        raise ValueError(f"{keys.shape[0]} words of keys for {n} weights, {longer.shape[0]} for {n_longer}")
    with nogil:
        for j in range(n_longer):
            context = ngram_at(&longer[0], j, longer_width, VALUE_BITS + bits)
            while i < n and ngram_at(&keys[0], i, width, VALUE_BITS) != context:
                i += 1
            if i == n:
                break
            if weights[i] < longer_weights[j]:
                weights[i] = longer_weights[j]
    if i == n and n_longer:
        raise ValueError("an n-gram without its context")

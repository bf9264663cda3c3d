"""Runs of sorted (key, count): encode to chunk payloads, decode, merge. Grammar: kvps/store/FORMAT.md, "Chunk payload".

    payload  := entry* restart* n_restarts
    entry    := head [count] word*
    head     := 1 byte: shared << 4 | small     shared: leading words equal to the previous key's, 0 at a restart
                                                small: the count if 1..15, 0: a zigzag varint count follows
    word     := varint; the first one after `shared` is the difference to the previous key's word
                (at a restart the word itself), the others are the words themselves
    restart  := u32 offset in the payload of every RESTART_INTERVAL-th entry, from the first on
    n_restarts := u32

All integers are little-endian; a varint has 7 bits a byte, lowest first. Twin: tests/reference.py.
"""
import numpy as np

cimport cython

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from kvps._keys cimport bit_length, key_words64, load32, load64, low32, lowest, packed_t, shl, shr, u64, u128, u256
from kvps._types cimport MAX_ORDER, byte_t, count_t, index_t, word_t, uint32_t, uint64_t

cdef enum:
    RESTART_INTERVAL = 1024    # do not change: stored. A pull of one key decodes this many at most
    ENTRY_BYTES = 1 + 10 + 5 * 8   # longest entry: head, count, eight words
    BLOCK = RESTART_INTERVAL   # keys a merge decodes from one run at a time: 24 KiB of keys and counts
    MAX_SOURCES = 4096
    ERR_ENTRY = -2             # bytes that are no entry
    ERR_ORDER = -3             # keys not strictly increasing
    ERR_OVERFLOW = -4          # a sum of counts beyond 62 bits

COUNT_LIMIT = 1 << 62


cdef inline byte_t* put_varint(byte_t* p, uint64_t x) noexcept nogil:
    while x >= 128:
        p[0] = <byte_t>(x | 128)
        p += 1
        x >>= 7
    p[0] = <byte_t>x
    return p + 1


cdef index_t encode_keys(
    const packed_t* keys, const uint32_t* counts32, const count_t* counts64, index_t n, int order, int bits, bint negate,
    byte_t* out, index_t chunk_bytes,                # OUT
    index_t* chunk_ends, index_t* chunk_keys,        # OUT, per chunk: end in out, keys in it
) noexcept nogil:
    """Encode strictly increasing keys to chunks of at most chunk_bytes; counts come as 32 or 64 bits. Return the number of chunks."""
    cdef index_t i = 0, j, start, n_chunks = 0, in_chunk, n_restarts
    cdef byte_t* p = out
    cdef byte_t* chunk = out
    cdef uint32_t restarts[8192]
    cdef byte_t shared_of[257]
    cdef word_t words[MAX_ORDER]
    cdef int shared, k
    cdef count_t c
    cdef packed_t key, previous
    cdef uint32_t mask = <uint32_t>((<uint64_t>1 << bits) - 1)
    for k in range(order * bits + 1):
        # the highest differing bit k lies in word order - 1 - (k - 1) // bits, counted from the front
        shared_of[k] = <byte_t>(order - 1 - (k - 1) // bits) if k > 0 else <byte_t>order
    previous = 0
    while i < n:
        chunk = p
        in_chunk = 0
        n_restarts = 0
        while i < n and p - chunk + ENTRY_BYTES + 4 * (n_restarts + 2) <= chunk_bytes:
            key = keys[i]
            c = counts64[i] if counts64 != NULL else <count_t>counts32[i]
            if negate:
                c = -c
            if in_chunk % RESTART_INTERVAL == 0:
                if n_restarts == 8192:
                    break
                restarts[n_restarts] = <uint32_t>(p - chunk)
                n_restarts += 1
                shared = 0
                previous = 0
            else:
                shared = shared_of[bit_length(key ^ previous)]
            if 1 <= c <= 15:
                p[0] = <byte_t>(shared << 4 | c)
                p += 1
            else:
                p[0] = <byte_t>(shared << 4)
                p = put_varint(p + 1, <uint64_t>c << 1 ^ <uint64_t>(c >> 63))
            k = bits * (order - 1 - shared)
            p = put_varint(p, (low32(shr(key, k)) & mask) - (low32(shr(previous, k)) & mask))
            while k > 0:
                k -= bits
                p = put_varint(p, (low32(shr(key, k)) & mask))
            previous = key
            in_chunk += 1
            i += 1
        memcpy(p, restarts, 4 * n_restarts)
        p += 4 * n_restarts
        restarts[0] = <uint32_t>n_restarts
        memcpy(p, restarts, 4)
        p += 4
        chunk_ends[n_chunks] = p - out
        chunk_keys[n_chunks] = in_chunk
        n_chunks += 1
    return n_chunks


def encode(const uint64_t[::1] keys, counts, int order, int bits, index_t chunk_bytes, byte_t[::1] out, *, bint negate=False):
    """Encode sorted keys as chunk payloads.

    Args:
        keys: uint64, packed keys (key_width words each), strictly increasing.
        counts: uint32 or int64, one per key, none 0.
        chunk_bytes: the longest payload allowed, at least 4096.
        out: uint8 scratch, at least `encoded_room(n keys)` long.
        negate: store the negated counts (text is being removed).

    Returns:
        list of (payload: bytes, n_keys).
    """
    cdef index_t width = key_words64(order, bits), n = keys.shape[0] // width, n_chunks, i, start = 0
    cdef const uint32_t[::1] counts32 = None
    cdef const count_t[::1] counts64 = None
    if counts.dtype == np.uint32:
        counts32 = counts
    else:
        counts64 = counts
    if counts.shape[0] != n or out.shape[0] < encoded_room(n) or chunk_bytes < 4096:
        raise ValueError(f"{n} keys, {counts.shape[0]} counts, {out.shape[0]} bytes of room, chunks of {chunk_bytes} bytes")
    if n == 0:
        return []
    cdef const uint32_t* c32 = &counts32[0] if counts32 is not None else NULL
    cdef const count_t* c64 = &counts64[0] if counts64 is not None else NULL
    # A chunk but the last is full up to one entry, and an entry takes at least 2 bytes.
    most = n * ENTRY_BYTES // (chunk_bytes - 2 * ENTRY_BYTES - 8) + 2
    ends_array, sizes_array = np.empty(most, np.intp), np.empty(most, np.intp)
    cdef index_t[::1] ends = ends_array, sizes = sizes_array
    with nogil:
        if width == 1:
            n_chunks = encode_keys[u64](<const u64*>&keys[0], c32, c64, n, order, bits, negate, &out[0], chunk_bytes, &ends[0], &sizes[0])
        elif width == 2:
            n_chunks = encode_keys[u128](<const u128*>&keys[0], c32, c64, n, order, bits, negate, &out[0], chunk_bytes, &ends[0], &sizes[0])
        else:
            n_chunks = encode_keys[u256](<const u256*>&keys[0], c32, c64, n, order, bits, negate, &out[0], chunk_bytes, &ends[0], &sizes[0])
    chunks = []
    for i in range(n_chunks):
        chunks.append((<bytes>(&out[0])[start:ends[i]], sizes[i]))
        start = ends[i]
    return chunks


def encoded_room(index_t n):
    """Return how many bytes encoding n keys may take at most."""
    return n * ENTRY_BYTES + 4 * (n // RESTART_INTERVAL + 8) + 8 * (n * ENTRY_BYTES // 3000 + 2)


# ---- decoding and merging --------------------------------------------------------------------------------------

cdef struct source:
    # One run being read: the chunk at hand, and a block of decoded keys.
    const byte_t* at
    const byte_t* end          # of the entries of the chunk
    index_t left               # entries of the chunk not decoded yet
    index_t since_restart      # entries since the last restart
    word_t words[MAX_ORDER]    # the previous key
    index_t head, n            # place in the block, and its length
    bint done                  # no further chunk
    void* keys                 # packed keys of the block
    count_t* counts


cdef int get_varint(const byte_t** at, const byte_t* end, uint64_t* x) noexcept nogil:
    cdef const byte_t* p = at[0]
    cdef uint64_t value = 0
    cdef int shift = 0
    while p < end and shift < 64:
        value |= <uint64_t>(p[0] & 127) << shift
        p += 1
        if (p - 1)[0] < 128:
            at[0] = p
            x[0] = value
            return 0
        shift += 7
    return ERR_ENTRY


cdef int decode_block(source* s, int order, int bits, uint64_t limit, packed_t* keys) noexcept nogil:
    """Decode up to BLOCK keys, of ids below `limit`, of the chunk at hand. Return 0, ERR_ENTRY or ERR_ORDER."""
    cdef index_t n = 0
    cdef int shared, k
    cdef uint64_t x
    cdef byte_t head
    cdef packed_t key, before = 0
    cdef bint first = s.n == 0
    if not first:
        before = keys[s.n - 1]                         # of the block, perhaps of the chunk, that was read before
    while n < BLOCK and s.left > 0:
        if s.at >= s.end:
            return ERR_ENTRY
        head = s.at[0]
        s.at += 1
        shared = head >> 4
        if s.since_restart == RESTART_INTERVAL:
            s.since_restart = 0
        if head & 15:
            s.counts[n] = head & 15
        else:
            if get_varint(&s.at, s.end, &x) != 0 or x > <uint64_t>1 << 63:       # zigzag of 2**62
                return ERR_ENTRY
            s.counts[n] = <count_t>(x >> 1) ^ -<count_t>(x & 1)
        if shared >= order or (s.since_restart == 0 and shared != 0):
            return ERR_ENTRY
        if s.at < s.end and s.at[0] < 128:             # most differences take one byte
            x = s.at[0]
            s.at += 1
        elif get_varint(&s.at, s.end, &x) != 0:
            return ERR_ENTRY
        if s.since_restart > 0:
            if x == 0:
                return ERR_ORDER
            if x >= limit:                             # before the sum, which could come round
                return ERR_ENTRY
            x += s.words[shared]
        if x >= limit:
            return ERR_ENTRY
        s.words[shared] = <word_t>x
        for k in range(shared + 1, order):
            if s.at < s.end and s.at[0] < 128:
                x = s.at[0]
                s.at += 1
            elif get_varint(&s.at, s.end, &x) != 0:
                return ERR_ENTRY
            if x >= limit:
                return ERR_ENTRY
            s.words[k] = <word_t>x
        key = 0
        for k in range(order):
            key = shl(key, bits) | <packed_t>s.words[k]
        if n == 0 and not first and not before < key:
            return ERR_ORDER                           # within a block, which a restart begins, differences see to it
        keys[n] = key
        n += 1
        s.left -= 1
        s.since_restart += 1
    if s.left == 0 and s.at != s.end:
        return ERR_ENTRY
    s.head = 0
    s.n = n
    return 0


cdef inline uint64_t varint_value(uint64_t x) noexcept nogil:
    """The number of a varint of at most five bytes, the others of x being 0."""
    x = (x & <uint64_t>0x007f007f007f007f) | (x & <uint64_t>0x7f007f007f007f00) >> 1
    return (x & 0x3fff) | (x >> 2 & 0xfffc000) | (x >> 4 & <uint64_t>0x3fff0000000)


cdef inline int verify_short(const byte_t* p, int order, uint64_t limit, word_t* words) noexcept nogil:
    """Look at an entry that is no restart as verify_entries() does, if its count is small and its words take 8 bytes at most.

    p: 9 bytes can be read. Return its length, 0 where it is of another kind, or an error. Where it ends is known before its
    words are: the next entry need not wait for them.
    """
    cdef int shared = p[0] >> 4, n = order - shared, last, k
    cdef uint64_t ones = <uint64_t>0x0101010101010101, tops = <uint64_t>0x8080808080808080      # of each byte
    cdef uint64_t x = load64(p + 1), ends = ~x & tops, nth, value
    if not p[0] & 15 or n <= 0:
        return 0
    nth = (ends >> 7) * ones ^ <uint64_t>n * ones      # a byte is 0 where n words have ended; of the first one it is sure
    nth = (nth - ones) & ~nth & tops
    if nth == 0:
        return 0
    for k in range(shared, order):
        last = lowest(ends)
        if last >= 40:
            return ERR_ENTRY
        value = varint_value(x & ((<uint64_t>2 << last) - 1))
        if value >= limit:
            return ERR_ENTRY
        if k == shared:
            if value == 0:
                return ERR_ORDER
            value += words[k]
            if value >= limit:
                return ERR_ENTRY
        words[k] = <word_t>value
        x >>= last + 1                                 # 8 bytes of one word are refused above
        ends >>= last + 1
    return 2 + (lowest(nth) >> 3)


cdef int verify_entries(source* s, int order, uint64_t limit, index_t* n) noexcept nogil:
    """Look at all entries of the chunk at hand, as decode_block() does, and at their counts; add how many there were to n."""
    cdef const byte_t* p = s.at
    cdef const byte_t* end = s.end
    cdef index_t left = s.left, since = s.since_restart
    cdef int shared, k, status
    cdef uint64_t x
    cdef word_t before[MAX_ORDER]
    cdef bint first = n[0] == 0
    cdef byte_t head
    while left > 0:
        if since == RESTART_INTERVAL:
            since = 0
        if since > 0 and end - p >= 9:
            status = verify_short(p, order, limit, s.words)
            if status < 0:
                return status
            if status > 0:
                p += status
                n[0] += 1
                left -= 1
                since += 1
                continue
        if p >= end:
            return ERR_ENTRY
        head = p[0]
        p += 1
        shared = head >> 4
        if shared >= order or (since == 0 and shared != 0):
            return ERR_ENTRY
        if not head & 15:
            if get_varint(&p, end, &x) != 0 or x > <uint64_t>1 << 63 or x == 0:
                return ERR_ENTRY
        if p < end and p[0] < 128:
            x = p[0]
            p += 1
        elif get_varint(&p, end, &x) != 0:
            return ERR_ENTRY
        if since > 0:
            if x == 0:
                return ERR_ORDER
            if x >= limit:
                return ERR_ENTRY
            x += s.words[shared]
        else:
            memcpy(before, s.words, sizeof(before))
        if x >= limit:
            return ERR_ENTRY
        s.words[shared] = <word_t>x
        for k in range(shared + 1, order):
            if p < end and p[0] < 128:
                x = p[0]
                p += 1
            elif get_varint(&p, end, &x) != 0:
                return ERR_ENTRY
            if x >= limit:
                return ERR_ENTRY
            s.words[k] = <word_t>x
        if since == 0:
            if not first:                              # elsewhere differences see to the order
                k = 0
                while k < order and before[k] == s.words[k]:
                    k += 1
                if k == order or before[k] > s.words[k]:
                    return ERR_ORDER
            first = False
        n[0] += 1
        left -= 1
        since += 1
    s.at, s.left, s.since_restart = p, left, since
    return 0 if p == end else ERR_ENTRY


REASONS = {ERR_ENTRY: "bytes that are no entry", ERR_ORDER: "keys out of order", ERR_OVERFLOW: "a sum of counts beyond 2**62"}


cdef struct merging:
    # A k-way merge between two calls.
    source* sources
    int* alive                 # live sources, sorted by their head key
    int n_sources, order, bits
    uint64_t limit             # above all ids
    int starving               # the source that needs a chunk (or is damaged), or -1
    bint pending               # a key taken, whose sum may not be complete yet
    count_t total


cdef index_t merge_block(merging* m, packed_t* pending, packed_t* out, count_t* out_counts, index_t room) noexcept nogil:
    """Merge until `room` keys are written, all sources are done, or one needs its next chunk.

    Keys whose counts add up to 0 vanish. Return the number of keys written, or an error.
    """
    cdef index_t n = 0
    cdef int i, j, k = 0, status, best
    cdef source* s
    cdef packed_t key
    m.starving = -1
    # STEP 1: give every source a head, and sort the sources by it. Runs are few: insertion beats a tournament tree.
    for i in range(m.n_sources):
        s = &m.sources[i]
        if s.done:
            continue
        if s.head == s.n:
            if s.left == 0:
                m.starving = i
                return 0
            status = decode_block(s, m.order, m.bits, m.limit, <packed_t*>s.keys)
            if status != 0:
                m.starving = i
                return status
        key = (<packed_t*>s.keys)[s.head]
        j = k
        while j > 0 and key < (<packed_t*>m.sources[m.alive[j - 1]].keys)[m.sources[m.alive[j - 1]].head]:
            m.alive[j] = m.alive[j - 1]
            j -= 1
        m.alive[j] = i
        k += 1
    # STEP 2: take the smallest key, add it to the pending one or write that one out.
    while k > 0 and n < room:
        best = m.alive[0]
        s = &m.sources[best]
        key = (<packed_t*>s.keys)[s.head]
        if m.pending and key == pending[0]:
            m.total += s.counts[s.head]
            if m.total > (<count_t>1 << 62) or m.total < -(<count_t>1 << 62):
                m.starving = best
                return ERR_OVERFLOW
        else:
            if m.pending and m.total != 0:
                out[n] = pending[0]
                out_counts[n] = m.total
                n += 1
            pending[0], m.total, m.pending = key, s.counts[s.head], True
        s.head += 1
        # STEP 3: put the source back where its next key belongs.
        if s.head == s.n:
            if s.left == 0:
                m.starving = best
                return n
            status = decode_block(s, m.order, m.bits, m.limit, <packed_t*>s.keys)
            if status != 0:
                m.starving = best
                return status
        if k > 1:
            key = (<packed_t*>s.keys)[s.head]
            j = 1
            while j < k and (<packed_t*>m.sources[m.alive[j]].keys)[m.sources[m.alive[j]].head] < key:
                m.alive[j - 1] = m.alive[j]
                j += 1
            m.alive[j - 1] = best
    if k == 0 and m.pending and n < room:
        if m.total != 0:
            out[n] = pending[0]
            out_counts[n] = m.total
            n += 1
        m.pending = False
    return n


@cython.final
cdef class Merge:
    """The sum of several runs, read as blocks of strictly increasing keys.

    `fetch(source, chunk)` gives chunk number `chunk` of a source as (payload, n_keys), or None after the last; it may
    start at any chunk. Payloads are borrowed while their chunk is being read. `fail(source, chunk, reason)` makes
    the exception for bytes that are no entries. Ids are below `n_words`, or at least fit the bits.
    """
    cdef merging m
    cdef object fetch, fail
    cdef list chunks, payloads
    cdef void* memory
    cdef void* pending
    cdef index_t width

    def __cinit__(self, int n_sources, int order, int bits, fetch, fail, *, first_chunks=None, n_words=None):
        cdef index_t i, block
        cdef byte_t* p
        if not 1 <= order <= MAX_ORDER or not 2 <= bits <= 32 or not 0 <= n_sources <= MAX_SOURCES:
            raise ValueError(f"{n_sources} sources of order {order} with {bits} bits a word")
        self.width = key_words64(order, bits)
        self.fetch, self.fail = fetch, fail
        self.chunks = list(first_chunks) if first_chunks is not None else [0] * n_sources
        self.payloads = [None] * n_sources
        block = BLOCK * (8 * self.width + 8)
        # 16-byte alignment: the compiler moves 128-bit keys with aligned loads
        self.memory = malloc(64 + n_sources * (block + ((sizeof(source) + 15) // 16) * 16 + 16))
        if self.memory == NULL:
            raise MemoryError(f"no memory to merge {n_sources} runs")
        self.pending = <void*>(((<size_t>self.memory + 15) // 16) * 16)
        p = <byte_t*>self.pending + 32
        self.m.sources = <source*>(p + n_sources * block)
        self.m.alive = <int*>(<byte_t*>self.m.sources + n_sources * sizeof(source))
        self.m.n_sources, self.m.order, self.m.bits, self.m.pending = n_sources, order, bits, False
        self.m.limit = <uint64_t>1 << bits
        if n_words is not None and <uint64_t>n_words < self.m.limit:
            self.m.limit = n_words
        for i in range(n_sources):
            self.m.sources[i].keys = p + i * block
            self.m.sources[i].counts = <count_t*>(p + i * block + BLOCK * 8 * self.width)
            self.m.sources[i].left = self.m.sources[i].head = self.m.sources[i].n = 0
            self.m.sources[i].done = False
        for i in range(n_sources):
            self._next_chunk(i)

    def __dealloc__(self):
        free(self.memory)

    def close(self):
        """Let go of the payloads that are borrowed; the merge cannot be read any further."""
        cdef int i
        self.payloads = [None] * self.m.n_sources
        for i in range(self.m.n_sources):
            self.m.sources[i].done = True

    cdef int _next_chunk(self, int i) except -1:
        cdef const byte_t[::1] view
        cdef uint32_t n_restarts
        cdef source* s = &self.m.sources[i]
        got = self.fetch(i, self.chunks[i])
        if got is None:
            s.done = True
            self.payloads[i] = None
            return 0
        payload, n_keys = got
        view = payload
        if view.shape[0] < 8:
            raise self.fail(i, self.chunks[i], f"a payload of {view.shape[0]} bytes")
        n_restarts = load32(&view[view.shape[0] - 4])
        if n_keys < 1 or 4 * (<index_t>n_restarts + 1) > view.shape[0] \
                or n_restarts != (n_keys + RESTART_INTERVAL - 1) // RESTART_INTERVAL:
            raise self.fail(i, self.chunks[i], f"{n_restarts} restarts for {n_keys} keys")
        s.at, s.end = &view[0], &view[0] + view.shape[0] - 4 * (<index_t>n_restarts + 1)
        s.left, s.since_restart = n_keys, RESTART_INTERVAL
        self.payloads[i] = view
        self.chunks[i] += 1
        return 0

    def verify(self):
        """Read the only source to its end, for its faults alone; return how many keys it has."""
        cdef source* s = &self.m.sources[0]
        cdef int status = 0
        cdef index_t n = 0
        if self.m.n_sources != 1:
            raise ValueError(f"{self.m.n_sources} sources")
        while not s.done:
            with nogil:
                if s.left > 0:
                    status = verify_entries(s, self.m.order, self.m.limit, &n)
            if status != 0:
                raise self.fail(0, self.chunks[0] - 1, REASONS[status])
            self._next_chunk(0)
        return n

    def read(self, uint64_t[::1] keys, count_t[::1] counts):
        """Fill keys (packed, key_width words each) and counts (int64) with the next block.

        Return how many keys were written; 0 means that all runs are read. Sums of 0 are left out.
        """
        cdef index_t n, filled = 0, room = counts.shape[0]
        if room < 1 or keys.shape[0] < room * self.width:
            raise ValueError(f"{room} counts need {room * self.width} words of keys, got {keys.shape[0]}")
        while True:
            with nogil:
                if self.width == 1:
                    n = merge_block[u64](&self.m, <u64*>self.pending, <u64*>&keys[0] + filled, &counts[0] + filled, room - filled)
                elif self.width == 2:
                    n = merge_block[u128](&self.m, <u128*>self.pending, <u128*>&keys[0] + filled, &counts[0] + filled, room - filled)
                else:
                    n = merge_block[u256](&self.m, <u256*>self.pending, <u256*>&keys[0] + filled, &counts[0] + filled, room - filled)
            if n < 0:
                raise self.fail(self.m.starving, self.chunks[self.m.starving] - 1, REASONS[n])
            filled += n
            if self.m.starving < 0:
                return filled
            self._next_chunk(self.m.starving)


def first_key(const byte_t[::1] payload, int order):
    """Return the first key of a chunk as a tuple of word ids, context order; None where the bytes are no entry."""
    cdef const byte_t* at
    cdef const byte_t* end
    cdef uint64_t x
    if payload.shape[0] < 2:
        return None
    at, end = &payload[0] + 1, &payload[0] + payload.shape[0]
    if payload[0] >> 4:
        return None
    if payload[0] & 15 == 0 and get_varint(&at, end, &x) != 0:
        return None
    words = []
    for _ in range(order):
        if get_varint(&at, end, &x) != 0 or x >> 32:
            return None
        words.append(x)
    return tuple(words)


def pack(const uint32_t[:, ::1] words, int bits):
    """Return the packed keys of rows of word ids, uint64 (n * key_width,)."""
    cdef index_t i, n = words.shape[0]
    cdef int k, order = <int>words.shape[1]
    cdef index_t width = key_words64(order, bits)
    out_array = np.zeros(n * width, np.uint64)
    cdef uint64_t[::1] out = out_array
    cdef u128 a
    cdef u256 b
    for i in range(n):
        if width == 1:
            for k in range(order):
                out[i] = shl(<u64>out[i], bits) | words[i, k]
        elif width == 2:
            a = 0
            for k in range(order):
                a = shl(a, bits) | <u128>words[i, k]
            (<u128*>&out[2 * i])[0] = a
        else:
            b = 0
            for k in range(order):
                b = shl(b, bits) | <u256>words[i, k]
            (<u256*>&out[4 * i])[0] = b
    return out_array


def unpack(const uint64_t[::1] keys, int order, int bits):
    """Return the word ids of packed keys, uint32 (n, order)."""
    cdef index_t width = key_words64(order, bits), i, n = keys.shape[0] // width
    cdef int k
    cdef uint64_t mask = (<uint64_t>1 << bits) - 1
    out_array = np.empty((n, order), np.uint32)
    cdef uint32_t[:, ::1] out = out_array
    for i in range(n):
        for k in range(order):
            if width == 1:
                out[i, k] = <uint32_t>(low32(shr(<u64>keys[i], bits * (order - 1 - k))) & mask)
            elif width == 2:
                out[i, k] = <uint32_t>(low32(shr((<const u128*>&keys[2 * i])[0], bits * (order - 1 - k))) & mask)
            else:
                out[i, k] = <uint32_t>(low32(shr((<const u256*>&keys[4 * i])[0], bits * (order - 1 - k))) & mask)
    return out_array

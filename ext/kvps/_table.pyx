"""Keys of a table: batches packed, split by shard, sorted and added up; sums looked up in the chunks of runs.

A key of K bytes is ceil(K / 4) big-endian words of 32 bits, the last one filled with NUL bytes, packed as n-grams are
(keys.hpp), so that the order of keys is the order of their bytes. Runs have the grammar of _runs.pyx.
Twins: tests/reference.py arranged(), looked_up().
"""
import numpy as np

from libc.string cimport memset

from kvps._keys cimport fetch, key_words64, load32, load64, low32, mix, mul_high, packed_t, shl, shr, store, u64, u128, u256
from kvps._sort cimport sort_keys
from kvps._types cimport MAX_ORDER, byte_t, count_t, index_t, word_t, uint32_t, uint64_t

cdef extern from *:
    # Sums of up to 2**31 counts of 64 bits, exact whatever their order.
    ctypedef long long wide_t "__int128"

cdef enum:
    WORD_BITS = 32
    SHARD_SEED = 0x6b767073    # "kvps"; do not change: stored
    RESTART_INTERVAL = 1024    # as in _runs.pyx: stored
    LOOK_AHEAD = 32            # keys whose entries are fetched before the first is decoded
    ERR_ENTRY = -2             # bytes that are no entry
    ERR_ORDER = -3             # keys not strictly increasing
    ERR_OVERFLOW = -4          # a sum of counts beyond 62 bits

MOST = 1 << 62                 # no sum is above it, or below its negative
MOST_KEYS = (1 << 31) - 1      # of one batch: their numbers take 32 bits


cdef inline word_t word_at(const byte_t* p, int key_bytes, int k, bint native) noexcept nogil:
    """Word k of a key: of its bytes, or of an integer of 4 or 8 bytes."""
    cdef int i, first = 4 * k
    cdef word_t w = 0
    if native:
        return <word_t>(load64(p) >> (32 - 32 * k)) if key_bytes == 8 else load32(p)
    for i in range(first, first + 4):
        w = w << 8 | (p[i] if i < key_bytes else 0)
    return w


cdef inline uint32_t shard_of_key(const byte_t* p, int key_bytes, int order, bint native, uint32_t n_shards) noexcept nogil:
    """The shard of a key, by all of it; do not change: stored tables rely on it (FORMAT.md, "Tables")."""
    cdef uint64_t h = SHARD_SEED
    cdef int k
    for k in range(order):
        h = mix(word_at(p, key_bytes, k, native), h)
    return <uint32_t>mul_high(h, n_shards)


cdef inline void store_key(uint64_t* at, packed_t key, int width) noexcept nogil:
    store(at, key, width)


cdef inline packed_t key_at(const byte_t* p, int key_bytes, int n_words, bint native, packed_t key) noexcept nogil:
    """The first words of a key, all of them of an integer; `key` is 0 and says how wide the result is."""
    cdef int k
    if native:
        return <packed_t>(load64(p) if key_bytes == 8 else load32(p))
    for k in range(n_words):
        key = shl(key, WORD_BITS) | <packed_t>word_at(p, key_bytes, k, False)
    return key


cdef inline bint are_sorted(const byte_t* raw, index_t n, int key_bytes, int order, bint native, packed_t before) noexcept nogil:
    """Whether keys are in order already; where they are not, the first few tell."""
    cdef index_t i
    cdef packed_t key
    for i in range(n):
        key = key_at(raw + i * key_bytes, key_bytes, order, native, <packed_t>0)
        if key < before:
            return False
        before = key
    return True


cdef void arrange_keys(
    const byte_t* raw, index_t n, int key_bytes, int order, bint native, uint32_t n_shards,
    packed_t* records, packed_t* scratch, uint64_t* small, uint64_t* small_scratch,   # n each; small for 8 words only
    uint64_t* keys, uint32_t* places,                     # OUT, sorted within each shard, shard after shard
    index_t* ends,                                        # OUT, n_shards: keys up to and with shard s
) noexcept nogil:
    """Sort keys, and say where each one stood; equal ones stay in their order."""
    cdef index_t i, j, start, stop, width = key_words64(order, WORD_BITS)
    cdef uint32_t shard, place
    cdef int n_words = order if order < MAX_ORDER else MAX_ORDER - 1
    cdef packed_t record, top
    cdef const byte_t* p
    # STEP 1: where each shard begins.
    memset(ends, 0, n_shards * sizeof(index_t))
    if n_shards > 1:
        for i in range(n):
            places[i] = shard_of_key(raw + i * key_bytes, key_bytes, order, native, n_shards)
            ends[places[i]] += 1
        start = 0
        for shard in range(n_shards):
            j = ends[shard]
            ends[shard] = start
            start += j
    # STEP 2: what comes sorted, as from the clients of a server, is only dealt out.
    if are_sorted(raw, n, key_bytes, order, native, <packed_t>0):
        for i in range(n):
            p = raw + i * key_bytes
            shard = shard_of_key(p, key_bytes, order, native, n_shards) if n_shards > 1 else 0
            store_key(keys + ends[shard] * width, key_at(p, key_bytes, order, native, <packed_t>0), <int>width)
            places[ends[shard]] = <uint32_t>i
            ends[shard] += 1
        return
    # STEP 3: make records, key above number, and deal them out. A key of 8 words leaves its last one behind.
    for i in range(n):
        record = key_at(raw + i * key_bytes, key_bytes, n_words, native, <packed_t>0)
        shard = places[i] if n_shards > 1 else 0
        records[ends[shard]] = shl(record, WORD_BITS) | <packed_t><uint64_t>i
        ends[shard] += 1
    # STEP 4: sort each shard; numbers take part, which keeps equal keys in their order.
    start = 0
    for shard in range(n_shards):
        sort_keys(records + start, scratch + start, ends[shard] - start)
        start = ends[shard]
    if order < MAX_ORDER:
        for i in range(n):
            places[i] = low32(records[i])
            store_key(keys + i * width, shr(records[i], WORD_BITS), <int>width)
        return
    # STEP 5: of keys that are equal up to the word left behind, sort those words with their numbers.
    start = 0
    for shard in range(n_shards):
        while start < ends[shard]:
            top = shr(records[start], WORD_BITS)
            stop = start
            while stop < ends[shard] and shr(records[stop], WORD_BITS) == top:
                place = low32(records[stop])
                small[stop] = <uint64_t>word_at(raw + <index_t>place * key_bytes, key_bytes, MAX_ORDER - 1, native) << WORD_BITS | place
                stop += 1
            if stop - start > 1:
                sort_keys(<u64*>small + start, <u64*>small_scratch + start, stop - start)
            for i in range(start, stop):
                places[i] = <uint32_t>small[i]
                store_key(keys + i * width, shl(top, WORD_BITS) | <packed_t>(small[i] >> WORD_BITS), <int>width)
            start = stop


def order_of(int key_bytes):
    """Return how many words a key of so many bytes takes."""
    if not 1 <= key_bytes <= 4 * MAX_ORDER:
        raise ValueError(f"keys of {key_bytes} bytes, expected 1 to {4 * MAX_ORDER}")
    return (key_bytes + 3) // 4


def arrange(const byte_t[::1] raw, int key_bytes, int n_shards, *, bint native):
    """Sort the keys of a batch within their shards.

    Args:
        raw: uint8, the keys one after another.
        native: they are unsigned integers of this machine, of 4 or 8 bytes; otherwise bytes, compared as bytes.

    Returns:
        (keys: uint64, packed, key_width words each, shard after shard; places: uint32, where each stood in `raw`;
        ends: int64 (n_shards,), keys up to and with shard s). Equal keys are in the order in which they stood.
    """
    cdef int order = order_of(key_bytes)
    cdef index_t n = raw.shape[0] // key_bytes, width = key_words64(order, WORD_BITS)
    cdef index_t record_words = 1 if order == 1 else 2 if order <= 3 else 4
    if n * key_bytes != raw.shape[0] or n_shards < 1 or (native and key_bytes != 4 and key_bytes != 8):
        raise ValueError(f"{raw.shape[0]} bytes are no keys of {key_bytes} bytes, for {n_shards} shards")
    if n > MOST_KEYS:
        raise ValueError(f"a batch of {n} keys is too long: at most {MOST_KEYS}")
    key_array, place_array = np.empty(n * width, np.uint64), np.empty(n, np.uint32)
    end_array = np.zeros(n_shards, np.int64)
    if n == 0:
        return key_array, place_array, end_array
    cdef uint64_t[::1] keys = key_array
    cdef uint32_t[::1] places = place_array
    cdef index_t[::1] ends = end_array
    # 128-bit keys are moved with aligned loads, and NumPy aligns to 16 bytes.
    cdef uint64_t[::1] records = np.empty(n * record_words, np.uint64), scratch = np.empty(n * record_words, np.uint64)
    cdef uint64_t[::1] small = np.empty(n if order == MAX_ORDER else 1, np.uint64)
    cdef uint64_t[::1] small_scratch = np.empty(small.shape[0], np.uint64)
    with nogil:
        if record_words == 1:
            arrange_keys[u64](&raw[0], n, key_bytes, order, native, n_shards, <u64*>&records[0], <u64*>&scratch[0],
                              &small[0], &small_scratch[0], &keys[0], &places[0], &ends[0])
        elif record_words == 2:
            arrange_keys[u128](&raw[0], n, key_bytes, order, native, n_shards, <u128*>&records[0], <u128*>&scratch[0],
                               &small[0], &small_scratch[0], &keys[0], &places[0], &ends[0])
        else:
            arrange_keys[u256](&raw[0], n, key_bytes, order, native, n_shards, <u256*>&records[0], <u256*>&scratch[0],
                               &small[0], &small_scratch[0], &keys[0], &places[0], &ends[0])
    return key_array, place_array, end_array


cdef index_t combine_keys(
    packed_t* keys, const uint32_t* places, const count_t* deltas, index_t step,   # step 0: one delta for all
    index_t* ends, index_t n_shards, count_t* counts, uint64_t* greatest,          # OUT counts, greatest
) noexcept nogil:
    """Add the deltas of equal keys, in place; sums of 0 vanish. Return the number of keys left, or ERR_OVERFLOW."""
    cdef index_t i = 0, n = 0, shard
    cdef wide_t total, most = <wide_t>1 << 62
    cdef uint64_t size
    cdef packed_t key
    greatest[0] = 0
    for shard in range(n_shards):
        while i < ends[shard]:
            key = keys[i]
            total = 0
            while i < ends[shard] and keys[i] == key:
                total += deltas[<index_t>places[i] * step]
                i += 1
            if total > most or total < -most:
                ends[0] = i - 1                            # for the message
                return ERR_OVERFLOW
            if total != 0:
                keys[n] = key
                counts[n] = <count_t>total
                size = <uint64_t>(total if total > 0 else -total)
                if size > greatest[0]:
                    greatest[0] = size
                n += 1
        ends[shard] = n
    return n


def combine(uint64_t[::1] keys, const uint32_t[::1] places, const count_t[::1] deltas, index_t[::1] ends, int order):
    """Add up what arrange() sorted; `keys` and `ends` are changed in place.

    Args:
        deltas: int64, one per key of the batch in its own order, or a single one for all.

    Returns:
        (counts: int64, one per key left; the greatest of their absolute values). After an overflow the sign is turned:
        (None, the place in the batch of a key whose sum does not fit in 62 bits).
    """
    cdef index_t width = key_words64(order, WORD_BITS), n = places.shape[0], left, step = 0 if deltas.shape[0] == 1 else 1
    cdef uint64_t greatest = 0
    if keys.shape[0] != n * width or ends.shape[0] < 1 or ends[ends.shape[0] - 1] != n or deltas.shape[0] not in (1, n):
        raise ValueError(f"{keys.shape[0]} words of keys, {n} places, {deltas.shape[0]} deltas, {ends.shape[0]} ends")
    count_array = np.empty(n, np.int64)
    if n == 0:
        return count_array, 0
    cdef count_t[::1] counts = count_array
    with nogil:
        if width == 1:
            left = combine_keys[u64](<u64*>&keys[0], &places[0], &deltas[0], step, &ends[0], ends.shape[0], &counts[0], &greatest)
        elif width == 2:
            left = combine_keys[u128](<u128*>&keys[0], &places[0], &deltas[0], step, &ends[0], ends.shape[0], &counts[0], &greatest)
        else:
            left = combine_keys[u256](<u256*>&keys[0], &places[0], &deltas[0], step, &ends[0], ends.shape[0], &counts[0], &greatest)
    if left < 0:
        return None, places[ends[0]]
    return count_array[:left], greatest


# ---- looking keys up -------------------------------------------------------------------------------------------

cdef struct cursor:
    # An entry of a chunk, decoded, and where the next one begins.
    const byte_t* at
    const byte_t* end
    word_t words[MAX_ORDER]
    count_t count


cdef inline int varint(cursor* c, uint64_t* x) noexcept nogil:
    cdef uint64_t value = 0
    cdef int shift = 0
    while c.at < c.end and shift < 64:
        value |= <uint64_t>(c.at[0] & 127) << shift
        c.at += 1
        if (c.at - 1)[0] < 128:
            x[0] = value
            return 0
        shift += 7
    return ERR_ENTRY


cdef inline int next_entry(cursor* c, int order, bint restart) noexcept nogil:
    """Decode one entry. Return 0, ERR_ENTRY or ERR_ORDER."""
    cdef int shared, k
    cdef uint64_t x = 0
    cdef byte_t head
    if c.at >= c.end:
        return ERR_ENTRY
    head = c.at[0]
    c.at += 1
    shared = head >> 4
    if head & 15:
        c.count = head & 15
    else:
        if varint(c, &x) != 0 or x > <uint64_t>1 << 63:
            return ERR_ENTRY
        c.count = <count_t>(x >> 1) ^ -<count_t>(x & 1)
    if shared >= order or (restart and shared != 0) or varint(c, &x) != 0 or x >> 32:
        return ERR_ENTRY
    if not restart:
        if x == 0:
            return ERR_ORDER
        x += c.words[shared]
        if x >> 32:
            return ERR_ENTRY
    c.words[shared] = <word_t>x
    for k in range(shared + 1, order):
        if varint(c, &x) != 0 or x >> 32:
            return ERR_ENTRY
        c.words[k] = <word_t>x
    return 0


cdef inline packed_t packed_words(const word_t* words, int order, packed_t key) noexcept nogil:
    cdef int k
    for k in range(order):
        key = shl(key, WORD_BITS) | <packed_t>words[k]
    return key


cdef index_t mark_entries(const byte_t* payload, index_t n_bytes, index_t n_keys, int order, index_t interval,
                          packed_t* keys, uint32_t* after, count_t* counts) noexcept nogil:
    """Walk a chunk, and note every interval-th entry: key, where the next one begins, count. Return how many, or an error."""
    cdef cursor c
    cdef index_t i, n = 0
    cdef int status
    cdef packed_t key = 0
    c.at, c.end = payload, payload + n_bytes
    for i in range(n_keys):
        status = next_entry(&c, order, i % RESTART_INTERVAL == 0)
        if status != 0:
            return status
        if i % interval == 0:
            key = packed_words(c.words, order, <packed_t>0)
            if n > 0 and not keys[n - 1] < key:
                return ERR_ORDER               # in between, differences see to it, but for restarts
            keys[n] = key
            after[n] = <uint32_t>(c.at - payload)
            counts[n] = c.count
            n += 1
    return n if c.at == c.end else ERR_ENTRY


cdef index_t entry_bytes(const byte_t[::1] payload, index_t n_keys) noexcept:
    """Bytes of the entries of a chunk, or ERR_ENTRY where its restarts are not those of so many keys."""
    cdef index_t n_restarts, n_bytes = payload.shape[0]
    if n_bytes < 8 or n_keys < 1:
        return ERR_ENTRY
    n_restarts = load32(&payload[n_bytes - 4])
    if n_restarts != (n_keys + RESTART_INTERVAL - 1) // RESTART_INTERVAL or 4 * (n_restarts + 1) >= n_bytes:
        return ERR_ENTRY
    return n_bytes - 4 * (n_restarts + 1)


def marks(const byte_t[::1] payload, index_t n_keys, int order, index_t interval):
    """Return what look_up() needs to know of a chunk, every interval-th entry (a power of 2 up to 1024) decoded.

    Returns:
        (keys: uint64, packed; after: uint32, where the entry behind each begins; counts: int64), or None where the bytes
        are no entries in order.
    """
    cdef index_t width = key_words64(order, WORD_BITS), n_bytes = entry_bytes(payload, n_keys), n, room
    if not 1 <= order <= MAX_ORDER or interval < 1 or RESTART_INTERVAL % interval:
        raise ValueError(f"order {order}, every {interval}th entry")
    if n_bytes < 2 * n_keys:                   # an entry takes 2 bytes or more: no memory for what cannot be there
        return None
    room = (n_keys + interval - 1) // interval
    key_array, after_array, count_array = np.empty(room * width, np.uint64), np.empty(room, np.uint32), np.empty(room, np.int64)
    cdef uint64_t[::1] keys = key_array
    cdef uint32_t[::1] after = after_array
    cdef count_t[::1] counts = count_array
    with nogil:
        if width == 1:
            n = mark_entries[u64](&payload[0], n_bytes, n_keys, order, interval, <u64*>&keys[0], &after[0], &counts[0])
        elif width == 2:
            n = mark_entries[u128](&payload[0], n_bytes, n_keys, order, interval, <u128*>&keys[0], &after[0], &counts[0])
        else:
            n = mark_entries[u256](&payload[0], n_bytes, n_keys, order, interval, <u256*>&keys[0], &after[0], &counts[0])
    return None if n < 0 else (key_array, after_array, count_array)


cdef int look_up_keys(
    const byte_t* payload, index_t n_bytes, index_t n_keys, int order, index_t interval,
    const packed_t* keys, const uint32_t* after, const count_t* counts, index_t n_marks,
    const packed_t* asked, index_t n, count_t* sums,       # IN asked, increasing; IN and OUT sums
) noexcept nogil:
    """Add the counts of the keys asked for. Return 0, ERR_ENTRY, ERR_ORDER or ERR_OVERFLOW."""
    cdef cursor c
    cdef index_t i, j, start = 0, low = 0, high, middle, step, left = 0, mark = -1
    cdef index_t marks_of[LOOK_AHEAD]
    cdef int k, status
    cdef packed_t key = 0
    c.count = 0
    while start < n and asked[start] < keys[0]:
        start += 1                                 # below the first key of the chunk
    while start < n:
        # STEP 1: for some keys, the last mark that is not above each, looked for ever further from the one before; what is
        # there to be decoded is on its way into the cache while the others are looked for.
        for j in range(min(n - start, LOOK_AHEAD)):
            i = start + j
            step = 1
            while low + step < n_marks and not asked[i] < keys[low + step]:
                low += step
                step *= 2
            high = low + step if low + step < n_marks else n_marks
            while high - low > 1:
                middle = (low + high) // 2
                if asked[i] < keys[middle]:
                    high = middle
                else:
                    low = middle
            marks_of[j] = low
            fetch(payload + after[low])
        # STEP 2: decode from each, or go on where we are.
        for j in range(min(n - start, LOOK_AHEAD)):
            i = start + j
            if marks_of[j] != mark:
                mark = marks_of[j]
                key = keys[mark]
                for k in range(order):
                    c.words[k] = low32(shr(key, WORD_BITS * (order - 1 - k)))
                c.count = counts[mark]
                c.at, c.end = payload + after[mark], payload + n_bytes
                left = n_keys - mark * interval - 1
                if left > interval - 1:
                    left = interval - 1
            while left > 0 and key < asked[i]:
                status = next_entry(&c, order, False)
                if status != 0:
                    return status
                key = packed_words(c.words, order, <packed_t>0)
                left -= 1
            if key == asked[i]:
                if c.count > 0:
                    if sums[i] > (<count_t>1 << 62) - c.count:
                        return ERR_OVERFLOW
                elif sums[i] < -(<count_t>1 << 62) - c.count:
                    return ERR_OVERFLOW
                sums[i] += c.count
        start += LOOK_AHEAD
    return 0


def look_up(const byte_t[::1] payload, index_t n_keys, int order, index_t interval, const uint64_t[::1] keys,
            const uint32_t[::1] after, const count_t[::1] counts, const uint64_t[::1] asked, count_t[::1] sums):
    """Add the counts that a chunk has for some keys to `sums`.

    Args:
        keys, after, counts: what marks() returned for this chunk and interval.
        asked: uint64, packed keys, increasing; equal ones allowed.
        sums: int64, one per key asked for.

    Returns:
        None, or in words what is wrong with the bytes.
    """
    cdef index_t width = key_words64(order, WORD_BITS), n = sums.shape[0], n_bytes = entry_bytes(payload, n_keys), i
    cdef index_t n_marks = after.shape[0]
    cdef int status = 0
    if asked.shape[0] != n * width or keys.shape[0] != n_marks * width or counts.shape[0] != n_marks \
            or not 1 <= order <= MAX_ORDER or interval < 1 or n_marks != (n_keys + interval - 1) // interval:
        raise ValueError(f"{asked.shape[0]} words of keys asked for, {n} sums, {n_marks} marks of {n_keys} keys")
    if n == 0 or n_marks == 0:
        return None
    for i in (0, n_marks - 1):
        if n_bytes < 0 or after[i] > n_bytes:
            return "bytes that are no entry"
    with nogil:
        if width == 1:
            status = look_up_keys[u64](&payload[0], n_bytes, n_keys, order, interval, <const u64*>&keys[0], &after[0], &counts[0],
                                       n_marks, <const u64*>&asked[0], n, &sums[0])
        elif width == 2:
            status = look_up_keys[u128](&payload[0], n_bytes, n_keys, order, interval, <const u128*>&keys[0], &after[0], &counts[0],
                                        n_marks, <const u128*>&asked[0], n, &sums[0])
        else:
            status = look_up_keys[u256](&payload[0], n_bytes, n_keys, order, interval, <const u256*>&keys[0], &after[0], &counts[0],
                                        n_marks, <const u256*>&asked[0], n, &sums[0])
    return {0: None, ERR_ENTRY: "bytes that are no entry", ERR_ORDER: "keys out of order",
            ERR_OVERFLOW: "a sum of counts beyond 2**62"}[status]


cdef void lower_bounds_of(const packed_t* keys, index_t n, const packed_t* bounds, index_t m, index_t* out) noexcept nogil:
    cdef index_t i, low, high, middle
    for i in range(m):
        low, high = 0, n
        while low < high:
            middle = (low + high) // 2
            if keys[middle] < bounds[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = low


def lower_bounds(const uint64_t[::1] keys, const uint64_t[::1] bounds, int order):
    """Return for each bound how many of the packed keys, which are increasing, are below it; int64."""
    cdef index_t width = key_words64(order, WORD_BITS), n = keys.shape[0] // width, m = bounds.shape[0] // width
    out_array = np.zeros(m, np.int64)
    cdef index_t[::1] out = out_array
    if n == 0 or m == 0:
        return out_array
    with nogil:
        if width == 1:
            lower_bounds_of[u64](<const u64*>&keys[0], n, <const u64*>&bounds[0], m, &out[0])
        elif width == 2:
            lower_bounds_of[u128](<const u128*>&keys[0], n, <const u128*>&bounds[0], m, &out[0])
        else:
            lower_bounds_of[u256](<const u256*>&keys[0], n, <const u256*>&bounds[0], m, &out[0])
    return out_array

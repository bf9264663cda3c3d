"""Count the n-grams of a batch: word ids -> keys, split by shard, sorted, equal ones combined.

Keys are packed (keys.hpp) in context order (w[n-1], ..., w1, wn); `<s>` pads the left.
Twins: tests/reference.py windows().
"""
import numpy as np

from kvps._router import homes as homes_of

from kvps._keys cimport key_words64, packed_t, shard_of_pair, shl, shr, u64, u128, u256
from kvps._sort cimport sort_keys
from kvps._types cimport BOS, EOS, MAX_ORDER, index_t, word_t, uint32_t, uint64_t

cdef enum:
    BUCKETS = 2048             # target number of buckets of the first scatter: their write streams fit the second-level TLB
    SPLIT = 1 << 30            # marks, in the place of a split word, its number among these


cdef inline index_t slot_of(const uint32_t* bucket_of, word_t router, word_t before, index_t n_words, uint32_t n_shards) noexcept nogil:
    """The place of a key's bucket: that of its routing word, or of one shard's part of it where that is split."""
    cdef uint32_t found = bucket_of[router]
    if found & <uint32_t>SPLIT:
        return n_words + <index_t>(found ^ <uint32_t>SPLIT) * n_shards + shard_of_pair(router, before, n_shards)
    return router


cdef index_t count_keys(
    const word_t* ids, index_t n_ids, int order, int bits, uint32_t n_shards,
    const uint32_t* homes,                                  # one per word of the vocabulary, see kvps._router
    packed_t* keys, packed_t* tmp, uint32_t* counts,        # OUT keys, counts: n_ids long; tmp: scratch
    uint32_t* bucket_of, index_t n_words,                   # scratch, one per word, and n_shards per split word
    index_t* bucket_ends,                                   # scratch, BUCKETS + 2 n_shards + n_words // 1 long at most
    index_t* shard_ends,                                    # OUT, n_shards: distinct keys up to and with shard s
) noexcept nogil:
    """Count the n-grams of sentences that end in </s>; one loop over the batch per step. Return the distinct ones."""
    cdef index_t i, j, slot, start, n_out, target = n_ids // BUCKETS + 1, n_buckets, room
    cdef uint32_t shard, bucket
    cdef word_t router, before, w
    cdef packed_t pads, context, key
    cdef int top = bits * (order - 2)
    # STEP 1: how often each word routes a key. The router is the word before the predicted one (order 1: the word).
    for i in range(n_words):
        if homes[i] >= n_shards:
            bucket_of[i] = <uint32_t>SPLIT | (homes[i] - n_shards)
    router = before = BOS
    for i in range(n_ids):
        w = ids[i]
        bucket_of[slot_of(bucket_of, w if order == 1 else router, before, n_words, n_shards)] += 1
        before = BOS if w == EOS else router
        router = BOS if w == EOS else w
    # STEP 2: words -> buckets, in id order within a shard and shard after shard, so that buckets in a row are sorted.
    n_buckets = 0
    start = 0
    for shard in range(n_shards):
        room = 0
        for i in range(n_words):
            if homes[i] == shard:
                slot = i
            elif homes[i] >= n_shards:
                slot = n_words + <index_t>(homes[i] - n_shards) * n_shards + shard
            else:
                continue
            j = bucket_of[slot]
            if j == 0:
                continue
            if room < j:
                bucket_ends[n_buckets] = start
                n_buckets += 1
                room = target
            room -= j
            start += j
            bucket_of[slot] = <uint32_t>(n_buckets - 1)
        shard_ends[shard] = n_buckets
    # STEP 3: make the keys and scatter them; bucket_ends go from starts to ends.
    pads = 0
    for i in range(order - 1):
        pads = shl(pads, bits) | <packed_t>BOS
    context = pads
    router = before = BOS
    for i in range(n_ids):
        w = ids[i]
        bucket = bucket_of[slot_of(bucket_of, w if order == 1 else router, before, n_words, n_shards)]
        keys[bucket_ends[bucket]] = shl(context, bits) | <packed_t>w
        bucket_ends[bucket] += 1
        if w == EOS:
            context = pads
            router = before = BOS
        else:
            if order > 1:
                context = shr(context, bits) | shl(<packed_t>w, top)
            before = router
            router = w
    # STEP 4: sort each bucket while it is in cache, and combine equal keys in place.
    n_out = 0
    start = 0
    i = 0
    for shard in range(n_shards):
        while i < shard_ends[shard]:
            sort_keys(keys + start, tmp, bucket_ends[i] - start)
            while start < bucket_ends[i]:
                key = keys[start]
                j = start + 1
                while j < bucket_ends[i] and keys[j] == key:
                    j += 1
                keys[n_out] = key
                counts[n_out] = <uint32_t>(j - start)
                n_out += 1
                start = j
            i += 1
        shard_ends[shard] = n_out
    return n_out


def count(const uint32_t[::1] ids, int order, int bits, index_t n_words, int n_shards,
          uint64_t[::1] keys, uint64_t[::1] scratch, uint32_t[::1] counts, homes=None):
    """Count the n-grams of a batch.

    Args:
        ids: uint32 (n,), sentences that end in </s>, every id < n_words <= 2**bits.
        keys: uint64, OUT, at least n * key_width(order, bits); filled with the distinct keys, sorted within each
            shard, shard after shard.
        scratch: as long as keys.
        counts: uint32, OUT, at least n; the count of each distinct key.
        homes: uint32 (n_words,), the shard of each routing word, as kvps._router.homes() has it; by hash by default. Words
            can be split from order 3 on.

    Returns:
        int64 (n_shards,): distinct keys up to and with shard s.
    """
    cdef index_t width = key_words64(order, bits), n = ids.shape[0]
    if not 1 <= order <= MAX_ORDER or not 2 <= bits <= 32 or n_words > <index_t>1 << bits or n_shards < 1:
        raise ValueError(f"order {order}, {bits} bits, {n_words} words, {n_shards} shards")
    if keys.shape[0] < n * width or scratch.shape[0] < n * width or counts.shape[0] < n:
        raise ValueError(f"{n} ids need {n * width} words of keys and scratch and {n} counts, got "
                         f"{keys.shape[0]}, {scratch.shape[0]} and {counts.shape[0]}")
    if n >= <index_t>1 << 30:
        raise ValueError(f"a batch of {n} ids is too long: at most 2**30 - 1")
    if homes is None:
        none = np.empty(0, np.uint32)
        homes = homes_of(n_words, n_shards, none, none, none)
    cdef const uint32_t[::1] home = homes
    cdef index_t n_split = max(0, int(homes.max(initial=0)) + 1 - n_shards)
    if home.shape[0] != n_words or (n_split and order < 3):
        raise ValueError(f"{home.shape[0]} homes, {n_split} of them split, for {n_words} words and order {order}")
    shard_ends = np.zeros(n_shards, np.int64)
    if n == 0:
        return shard_ends
    cdef index_t[::1] ends = shard_ends
    cdef uint32_t[::1] bucket_of = np.zeros(n_words + n_split * n_shards, np.uint32)
    # Each bucket but the last of a shard holds more than half the target, or a single word: two per target suffice.
    cdef index_t[::1] bucket_ends = np.empty(2 * BUCKETS + 2 * n_shards + 2, np.intp)
    with nogil:
        if width == 1:
            count_keys[u64](&ids[0], n, order, bits, n_shards, &home[0], <u64*>&keys[0], <u64*>&scratch[0], &counts[0],
                            &bucket_of[0], n_words, &bucket_ends[0], &ends[0])
        elif width == 2:
            count_keys[u128](&ids[0], n, order, bits, n_shards, &home[0], <u128*>&keys[0], <u128*>&scratch[0], &counts[0],
                             &bucket_of[0], n_words, &bucket_ends[0], &ends[0])
        else:
            count_keys[u256](&ids[0], n, order, bits, n_shards, &home[0], <u256*>&keys[0], <u256*>&scratch[0], &counts[0],
                             &bucket_of[0], n_words, &bucket_ends[0], &ends[0])
    return shard_ends


def key_width(int order, int bits):
    """Return how many uint64 one packed key takes: 1, 2 or 4."""
    return key_words64(order, bits)

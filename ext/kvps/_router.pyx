"""The shard of an n-gram: by the hash of the word that routes it, by a table, or by the hash of two words.

What is stored relies on it (FORMAT.md, "Routing"). Twin: tests/reference.py shard_of().
"""
import numpy as np

from kvps.errors import CorruptionError

from kvps._keys cimport key_words64, low32, packed_t, shard_of, shard_of_pair, shr, u64, u128, u256
from kvps._types cimport MAX_ORDER, index_t, word_t, uint32_t, uint64_t


def homes(index_t n_words, uint32_t n_shards, const uint32_t[::1] words, const uint32_t[::1] shards, const uint32_t[::1] split):
    """Return where the n-grams of each routing word are.

    Args:
        n_words: ids are below this; words beyond are left out.
        n_shards: how many there are.
        words, shards: uint32 (n,), words and the shards that they are dealt to.
        split: uint32 (m,), words whose n-grams are in the shards of their pairs.

    Returns:
        uint32 (n_words,): the shard of a word, or n_shards + j for split[j].
    """
    cdef index_t i
    out = np.empty(n_words, np.uint32)
    cdef uint32_t[::1] home = out
    if shards.shape[0] != words.shape[0] or n_shards < 1:
        raise ValueError(f"{words.shape[0]} words and {shards.shape[0]} of {n_shards} shards")
    with nogil:
        for i in range(n_words):
            home[i] = shard_of(<word_t>i, n_shards)
        for i in range(words.shape[0]):
            if <index_t>words[i] < n_words:
                home[words[i]] = shards[i]
        for i in range(split.shape[0]):
            if <index_t>split[i] < n_words:
                home[split[i]] = n_shards + <uint32_t>i
    return out


cdef index_t find_shards(const packed_t* keys, index_t n, int order, int bits, const uint32_t* home, index_t n_words,
                         uint32_t n_shards, uint32_t* out) noexcept nogil:
    """Write the shard of each key; return n, or the number of the first key with a word beyond the vocabulary."""
    cdef index_t i
    cdef int first = bits * (order - 1), second = bits * (order - 2)
    cdef uint32_t mask = <uint32_t>((<uint64_t>1 << bits) - 1)
    cdef word_t word
    for i in range(n):
        word = low32(shr(keys[i], first)) & mask
        if <index_t>word >= n_words:
            return i
        out[i] = home[word]
        if out[i] >= n_shards:                 # order 3 and up
            out[i] = shard_of_pair(word, low32(shr(keys[i], second)) & mask, n_shards)
    return n


def shards_of(const uint64_t[::1] keys, int order, int bits, const uint32_t[::1] home, uint32_t n_shards):
    """Return the shard of each packed key, uint32 (n,).

    home: as homes() has it; with split words from order 3 on only.

    Raises:
        CorruptionError: a key has a word beyond the vocabulary.
    """
    if not 1 <= order <= MAX_ORDER or not 2 <= bits <= 32 or n_shards < 1:
        raise ValueError(f"order {order}, {bits} bits, {n_shards} shards")
    cdef index_t width = key_words64(order, bits), n = keys.shape[0] // width, done = 0
    out = np.empty(n, np.uint32)
    cdef uint32_t[::1] shards = out
    if n and home.shape[0]:
        with nogil:
            if width == 1:
                done = find_shards[u64](<const u64*>&keys[0], n, order, bits, &home[0], home.shape[0], n_shards, &shards[0])
            elif width == 2:
                done = find_shards[u128](<const u128*>&keys[0], n, order, bits, &home[0], home.shape[0], n_shards, &shards[0])
            else:
                done = find_shards[u256](<const u256*>&keys[0], n, order, bits, &home[0], home.shape[0], n_shards, &shards[0])
    if done < n:
        raise CorruptionError(f"an n-gram has a word beyond the {home.shape[0]} of the vocabulary: the root and the shards are "
                              "not of one store, or of different times; put back a sound copy of the whole store")
    return out

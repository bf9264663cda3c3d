# Packed keys of three widths as one fused type; see keys.hpp.
from kvps._types cimport byte_t, index_t, word_t, uint32_t, uint64_t

cdef extern from "keys.hpp" namespace "kvps" nogil:
    # To Cython these are integers (of different names, or it would take them for one type); C++ supplies the operators.
    ctypedef unsigned long long u64 "uint64_t"
    ctypedef unsigned long u128 "kvps::u128"
    ctypedef unsigned int u256 "kvps::u256"
    uint64_t mix(uint64_t a, uint64_t b)
    uint64_t mul_high(uint64_t a, uint64_t b)
    int lowest(uint32_t x)
    int lowest(uint64_t x)
    uint32_t equal16(const void* p, byte_t b)
    uint32_t equal5(const uint32_t* p, uint32_t x)
    uint64_t load64(const void* p)
    uint32_t load32(const void* p)

cdef extern from "keys.hpp" nogil:
    void fetch "KVPS_FETCH"(const void* p)

ctypedef fused packed_t:
    u64
    u128
    u256

cdef extern from "keys.hpp" namespace "kvps" nogil:
    u64 shl(u64 x, int bits)
    u128 shl(u128 x, int bits)
    u256 shl(u256 x, int bits)
    u64 shr(u64 x, int bits)
    u128 shr(u128 x, int bits)
    u256 shr(u256 x, int bits)
    int bit_length(u64 x)
    int bit_length(u128 x)
    int bit_length(u256 x)
    uint32_t low32(u64 x)
    uint32_t low32(u128 x)
    uint32_t low32(u256 x)
    u256 wide(u64 x)
    u256 wide(u128 x)
    u256 wide(u256 x)
    void store(void* at, u64 x, int width)
    void store(void* at, u128 x, int width)
    void store(void* at, u256 x, int width)
    void to_bytes(void* at, u64 x)
    void to_bytes(void* at, u128 x)
    void to_bytes(void* at, u256 x)
    void from_bytes(const void* at, u64* x)
    void from_bytes(const void* at, u128* x)
    void from_bytes(const void* at, u256* x)


cdef inline index_t key_words64(int order, int bits) noexcept nogil:
    """64-bit words of one packed key: 1, 2 or 4."""
    if order * bits <= 64:
        return 1
    return 2 if order * bits <= 128 else 4


# Keys in text order (w1, ..., wk) carry a number in their lowest bits, so that sorting moves it along.
cdef enum:
    VALUE_BITS = 32


cdef inline index_t text_key_words64(int k, int bits) noexcept nogil:
    """64-bit words of one key of k words and a number: 1, 2 or 4; more than 4 do not exist."""
    cdef int total = k * bits + VALUE_BITS
    if total <= 64:
        return 1
    return 2 if total <= 128 else 4 if total <= 256 else 8


cdef inline uint32_t shard_of(word_t word, uint32_t n_shards) noexcept nogil:
    """The shard of an n-gram by the word that routes it; do not change: stored stores rely on it."""
    return <uint32_t>mul_high(mix(word, 0x6b767073), n_shards)


cdef inline uint32_t shard_of_pair(word_t word, word_t before, uint32_t n_shards) noexcept nogil:
    """The shard of an n-gram whose routing word is split, by that and the word before it; likewise."""
    return <uint32_t>mul_high(mix(before, mix(word, 0x6b767073)), n_shards)

// Packed n-gram keys of 64, 128 and 256 bits, and the bit tricks that Cython cannot spell.
//
// A key holds n word ids of b bits, the first word of the context order in the highest bits, so that the
// order of keys is the order of their word sequences. Cython kernels are written once over a fused type of
// the three widths; this header makes all three look like unsigned integers (shift, or, and, xor, compare).
//
//   bit_length(x)      position of the highest set bit, 0 for 0
//   mix(a, b)          64 bits of hash from two (multiply to 128 bits, fold); equal on every machine
//   fetch(p)           prefetch for reading. A macro: gcc 12 drops calls of an inline function that only prefetches
//   load64, load32     unaligned little-endian loads
//   lowest(x)          position of the lowest set bit, x not 0
//   equal16(p, b)      a bit for each of the 16 bytes at p: is it b?
//   equal5(p, x)       a bit for each of the 5 numbers at p: is it x?
//   wide               a key of any width as the widest
//   store              a key where a narrower one is expected
//   to_bytes, from_bytes   a key as bytes, lowest first
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace kvps {

typedef unsigned __int128 u128;

struct u256 {
  u128 hi, lo;     // in memory: hi first
  u256() = default;
  u256(uint64_t x) : hi(0), lo(x) {}
  u256(u128 h, u128 l) : hi(h), lo(l) {}
  explicit operator uint64_t() const { return (uint64_t)lo; }
  explicit operator uint32_t() const { return (uint32_t)lo; }
};

inline u256 operator|(u256 a, u256 b) { return u256(a.hi | b.hi, a.lo | b.lo); }
inline u256 operator&(u256 a, u256 b) { return u256(a.hi & b.hi, a.lo & b.lo); }
inline u256 operator^(u256 a, u256 b) { return u256(a.hi ^ b.hi, a.lo ^ b.lo); }
inline bool operator<(u256 a, u256 b) { return a.hi != b.hi ? a.hi < b.hi : a.lo < b.lo; }
inline bool operator==(u256 a, u256 b) { return a.hi == b.hi && a.lo == b.lo; }
inline bool operator!=(u256 a, u256 b) { return !(a == b); }

// Shifts by the width or more give 0 for every key type (plain C++ leaves that undefined).
inline uint64_t shl(uint64_t x, int s) { return s >= 64 ? 0 : x << s; }
inline uint64_t shr(uint64_t x, int s) { return s >= 64 ? 0 : x >> s; }
inline u128 shl(u128 x, int s) { return s >= 128 ? 0 : x << s; }
inline u128 shr(u128 x, int s) { return s >= 128 ? 0 : x >> s; }
inline u256 shl(u256 x, int s) {
  if (s == 0) return x;
  if (s >= 128) return u256(shl(x.lo, s - 128), 0);
  return u256((x.hi << s) | (x.lo >> (128 - s)), x.lo << s);
}
inline u256 shr(u256 x, int s) {
  if (s == 0) return x;
  if (s >= 128) return u256(0, shr(x.hi, s - 128));
  return u256(x.hi >> s, (x.lo >> s) | (x.hi << (128 - s)));
}

inline int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }
inline int bit_length(u128 x) {
  uint64_t h = (uint64_t)(x >> 64);
  return h ? 64 + bit_length(h) : bit_length((uint64_t)x);
}
inline int bit_length(u256 x) { return x.hi ? 128 + bit_length(x.hi) : bit_length(x.lo); }

inline uint32_t low32(uint64_t x) { return (uint32_t)x; }
inline uint32_t low32(u128 x) { return (uint32_t)x; }
inline uint32_t low32(u256 x) { return (uint32_t)x.lo; }

inline u256 wide(uint64_t x) { return u256(x); }
inline u256 wide(u128 x) { return u256((u128)0, x); }
inline u256 wide(u256 x) { return x; }

// Write the lowest `width` 64-bit words of a key where a key of that width is expected.
inline void store(void* at, uint64_t x, int) { memcpy(at, &x, 8); }
inline void store(void* at, u128 x, int width) { if (width < 2) memcpy(at, &x, 8); else memcpy(at, &x, 16); }
inline void store(void* at, u256 x, int width) { if (width < 4) store(at, x.lo, width); else memcpy(at, &x, 32); }

// The bytes of a key, lowest first, all 8, 16 or 32 of them.
inline void to_bytes(void* at, uint64_t x) { memcpy(at, &x, 8); }
inline void to_bytes(void* at, u128 x) { memcpy(at, &x, 16); }
inline void to_bytes(void* at, u256 x) { memcpy(at, &x.lo, 16); memcpy((char*)at + 16, &x.hi, 16); }
inline void from_bytes(const void* at, uint64_t* x) { memcpy(x, at, 8); }
inline void from_bytes(const void* at, u128* x) { memcpy(x, at, 16); }
inline void from_bytes(const void* at, u256* x) { memcpy(&x->lo, at, 16); memcpy(&x->hi, (const char*)at + 16, 16); }

inline uint64_t mix(uint64_t a, uint64_t b) {
  u128 p = (u128)(a ^ 0x9e3779b97f4a7c15ull) * (b ^ 0xd6e8feb86659fd93ull);
  return (uint64_t)p ^ (uint64_t)(p >> 64);
}

inline uint64_t mul_high(uint64_t a, uint64_t b) { return (uint64_t)(((u128)a * b) >> 64); }

inline int lowest(uint32_t x) { return __builtin_ctz(x); }
inline int lowest(uint64_t x) { return __builtin_ctzll(x); }

inline uint32_t equal16(const void* p, uint8_t b) {
#if defined(__SSE2__)
  return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8((char)b)));
#else
  uint32_t found = 0;
  for (int i = 0; i < 16; i++) found |= (uint32_t)(((const uint8_t*)p)[i] == b) << i;
  return found;
#endif
}

inline uint32_t equal5(const uint32_t* p, uint32_t x) {
  uint32_t found = (uint32_t)(p[4] == x) << 4;
#if defined(__SSE2__)
  __m128i same = _mm_cmpeq_epi32(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi32((int)x));
  return found | (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(same));
#else
  for (int i = 0; i < 4; i++) found |= (uint32_t)(p[i] == x) << i;
  return found;
#endif
}

inline uint64_t load64(const void* p) { uint64_t x; memcpy(&x, p, 8); return x; }
inline uint32_t load32(const void* p) { uint32_t x; memcpy(&x, p, 4); return x; }

}  // namespace kvps

// Into the second-level cache: more lines can be on their way there than into the first.
#define KVPS_FETCH(p) __builtin_prefetch((const void*)(p), 0, 2)

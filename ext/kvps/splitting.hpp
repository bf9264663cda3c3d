// Where words begin and end, 64 bytes of text at a time.
//
//   splitter s = {text, n, kind}       kind: LINES parts words at NUL, TAB, LF, CR and space, BLANKS at white space of ASCII
//   word_begin(&s, at)                 place of the first byte from `at` on that is part of a word, n if there is none
//   word_end(&s, at)                   place of the first separator from `at` on, n if there is none
//   short_word(p, n)                   all bytes of a word of at most 8 bytes in one number, which tells it from others of n bytes
//   short_word(x, n)             the same of eight bytes that begin with the word, n > 0
//   first_bytes(x, n)            what tells n of eight bytes from others, n > 0
//   same_word(p, q, n)                 memcmp(p, q, n) == 0
//
// A byte by byte loop would guess the end of each word wrong; here a guess is wrong where 64 bytes end.
#pragma once
#include "keys.hpp"

namespace kvps {

enum { LINES = 0, BLANKS = 1 };

struct splitter {
  const uint8_t* text;
  int64_t n;
  int kind;
  int64_t base;              // of the window; bit i of `separators` tells of text[base + i]
  uint64_t separators;
};

inline uint64_t separators_at(const uint8_t* p, int kind) {
#if defined(__SSE2__)
  uint64_t found = 0;
  for (int i = 0; i < 4; i++) {
    __m128i x = _mm_loadu_si128((const __m128i*)p + i), y;
    if (kind == LINES) {
      y = _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(9)), _mm_cmpeq_epi8(x, _mm_set1_epi8(10)));
      y = _mm_or_si128(y, _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(13)), _mm_cmpeq_epi8(x, _mm_setzero_si128())));
    } else {
      y = _mm_sub_epi8(x, _mm_set1_epi8(9));
      y = _mm_cmpeq_epi8(_mm_min_epu8(y, _mm_set1_epi8(4)), y);        // 9 to 13
    }
    y = _mm_or_si128(y, _mm_cmpeq_epi8(x, _mm_set1_epi8(32)));
    found |= (uint64_t)(uint32_t)_mm_movemask_epi8(y) << 16 * i;
  }
  return found;
#else
  uint64_t found = 0;
  for (int i = 0; i < 64; i++) {
    uint8_t c = p[i];
    bool is = c == 32 || (kind == LINES ? c == 0 || c == 9 || c == 10 || c == 13 : c >= 9 && c <= 13);
    found |= (uint64_t)is << i;
  }
  return found;
#endif
}

// Move the window so that it begins at `at`; behind the text there are separators.
inline void move_window(splitter* s, int64_t at) {
  s->base = at;
  if (s->n - at >= 64) {
    s->separators = separators_at(s->text + at, s->kind);
  } else {
    uint8_t rest[64];
    memset(rest, 32, 64);
    memcpy(rest, s->text + at, (size_t)(s->n - at));
    s->separators = separators_at(rest, s->kind);
  }
}

// The first place from `at` on whose bit differs from `skipped` (all bits 0, or all 1).
inline int64_t next_place(splitter* s, int64_t at, uint64_t skipped) {
  while (at < s->n) {
    if ((uint64_t)(at - s->base) >= 64) move_window(s, at);
    uint64_t bits = (s->separators ^ skipped) >> (at - s->base);
    if (bits) {
      at += __builtin_ctzll(bits);
      return at < s->n ? at : s->n;
    }
    at = s->base + 64;
  }
  return s->n;
}

inline splitter splitting(const uint8_t* text, int64_t n, int kind) { return splitter{text, n, kind, -64, 0}; }
inline int64_t word_begin(splitter* s, int64_t at) { return next_place(s, at, ~(uint64_t)0); }
inline int64_t word_end(splitter* s, int64_t at) { return next_place(s, at, 0); }

inline uint64_t short_word(const uint8_t* p, int64_t n) {
  if (n >= 4) return (uint64_t)load32(p) | (uint64_t)load32(p + n - 4) << 32;
  return n > 0 ? (uint64_t)p[0] | (uint64_t)p[n >> 1] << 8 | (uint64_t)p[n - 1] << 16 : 0;
}

// The same of the first n of the eight bytes of x, 1 <= n <= 8: without a branch, since lengths cannot be guessed.
inline uint64_t short_word(uint64_t x, int64_t n) {
  uint64_t four = (x & 0xffffffff) | (x >> (8 * (n - 4) & 63)) << 32;
  uint64_t less = (x & 255) | (x >> 8 * (n >> 1) & 255) << 8 | (x >> 8 * (n - 1) & 255) << 16;
  uint64_t is_four = 0 - (uint64_t)(n >= 4);
  return (four & is_four) | (less & ~is_four);
}

// The n lowest of eight bytes, 1 <= n <= 8.
inline uint64_t first_bytes(uint64_t x, int64_t n) { return x << 8 * (8 - n); }

inline bool same_word(const uint8_t* p, const uint8_t* q, int64_t n) {
  if (n <= 8) return short_word(p, n) == short_word(q, n);
  for (int64_t i = 0; i + 8 < n; i += 8)
    if (load64(p + i) != load64(q + i)) return false;
  return load64(p + n - 8) == load64(q + n - 8);
}

}  // namespace kvps

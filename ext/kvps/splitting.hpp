// Words of a text and ends of its lines, 64 bytes of text at a time; and the bytes of a short word as a number.
//
//   splitter s = splitting(text, n, kind)     kind: LINES parts words at NUL, TAB, LF, CR and space, BLANKS at white space of ASCII
//   split_some(&s, starts, lengths)           the words that end in the next 64 bytes, and for LINES the ends of lines, as words
//                                             of length 0; how many, at most SPLIT_ROOM, for which there must be room
//   s.at <= s.n                               whether there is more
//   first_bytes(p, n)                         n bytes, 0 <= n <= 8, in one number, the first one lowest, zeros behind the last
//   first_bytes(x, n)                         the same of eight bytes that begin with them, 1 <= n <= 8
//
// A loop over bytes or words would guess the end of each wrong; here a guess is wrong once in 64 bytes.
#pragma once
#include "keys.hpp"

namespace kvps {

enum { LINES = 0, BLANKS = 1 };

// An end of line may follow each word, and 32 words end in 64 bytes; what stands before the first may be a word of its own.
enum { SPLIT_ROOM = 66 };

struct splitter {
  const uint8_t* text;
  int64_t n;
  int kind;
  int64_t at;                // of the next 64 bytes
  int64_t start;             // behind the last separator
};

struct separators {          // bit i tells of byte i
  uint64_t any, newlines;    // newlines: of LINES only
};

inline separators separators_at(const uint8_t* p, int kind) {
  separators found = {0, 0};
#if defined(__SSE2__)
  for (int i = 0; i < 4; i++) {
    __m128i x = _mm_loadu_si128((const __m128i*)p + i), y, newline = _mm_setzero_si128();
    if (kind == LINES) {
      newline = _mm_cmpeq_epi8(x, _mm_set1_epi8(10));
      y = _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(9)), newline);
      y = _mm_or_si128(y, _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(13)), _mm_cmpeq_epi8(x, _mm_setzero_si128())));
    } else {
      y = _mm_sub_epi8(x, _mm_set1_epi8(9));
      y = _mm_cmpeq_epi8(_mm_min_epu8(y, _mm_set1_epi8(4)), y);        // 9 to 13
    }
    y = _mm_or_si128(y, _mm_cmpeq_epi8(x, _mm_set1_epi8(32)));
    found.any |= (uint64_t)(uint32_t)_mm_movemask_epi8(y) << 16 * i;
    found.newlines |= (uint64_t)(uint32_t)_mm_movemask_epi8(newline) << 16 * i;
  }
#else
  for (int i = 0; i < 64; i++) {
    uint8_t c = p[i];
    bool is = c == 32 || (kind == LINES ? c == 0 || c == 9 || c == 10 || c == 13 : c >= 9 && c <= 13);
    found.any |= (uint64_t)is << i;
    found.newlines |= (uint64_t)(kind == LINES && c == 10) << i;
  }
#endif
  return found;
}

inline splitter splitting(const uint8_t* text, int64_t n, int kind) { return splitter{text, n, kind, 0, 0}; }

inline int64_t split_some(splitter* s, int64_t* starts, int64_t* lengths) {
  separators found;
  if (s->n - s->at >= 64) {
    found = separators_at(s->text + s->at, s->kind);
  } else {
    // Behind the text stands a blank, or the newline that its last line lacks.
    uint8_t rest[64];
    size_t n_rest = (size_t)(s->n - s->at);
    memset(rest, s->kind == LINES && s->n > 0 && s->text[s->n - 1] != 10 ? 10 : 32, 64);
    if (n_rest > 0) memcpy(rest, s->text + s->at, n_rest);
    found = separators_at(rest, s->kind);
    found.any &= ((uint64_t)2 << n_rest) - 1;
  }
  int64_t k = 0, start = s->start;
  for (uint64_t left = found.any; left != 0; left &= left - 1) {
    int bit = lowest(left);
    int64_t place = s->at + bit;
    starts[k] = start;
    lengths[k] = place - start;
    k += place > start;
    starts[k] = place;
    lengths[k] = 0;
    k += found.newlines >> bit & 1;
    start = place + 1;
  }
  s->start = start;
  s->at += 64;
  return k;
}

inline uint64_t first_bytes(const uint8_t* p, int64_t n) {
  // Bytes that are read twice fall on themselves.
  if (n >= 4) return (uint64_t)load32(p) | (uint64_t)load32(p + n - 4) << 8 * (n - 4);
  return n > 0 ? (uint64_t)p[0] | (uint64_t)p[n >> 1] << 8 * (n >> 1) | (uint64_t)p[n - 1] << 8 * (n - 1) : 0;
}

inline uint64_t first_bytes(uint64_t x, int64_t n) { return x << (8 * (8 - n) & 63) >> (8 * (8 - n) & 63); }

}  // namespace kvps

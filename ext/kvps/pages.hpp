// Checksums of the pages of a mapped file, each compared when the page is first used.
//
//   page_sum(p, i)        32 bits of hash from the 4096 bytes at p and the number of the page: a page that turns up in the
//                         place of another one is noticed too; equal on every machine that is little-endian
//   usable(g, p)          whether the page of p lies in the file and is sound; otherwise it is noted in g->damaged
//   usable(g, p, n)       the same of n bytes from p on
//   all_sound(g, p, n)    whether all pages of these are sound; notes no damage, which may never matter
//   Without a view (null), of what lies in no file, everything is usable.
//
// Costs: one compare and one bit where the page was used before, 0.3 us where not. Threads may share a view: two that meet
// a page at the same time both hash it, and the bit is set atomically.
#pragma once
#include "keys.hpp"

namespace kvps {

const uint64_t PAGE = 4096;

struct page_view {
  const uint8_t* base;       // of the file
  uint64_t n_pages;
  const uint32_t* sums;      // of each page
  uint8_t* seen;             // a bit per page: compared, and found sound
  uint64_t damaged;          // number of a damaged page, plus 1; 0: none was met
};

inline uint32_t page_sum(const uint8_t* p, uint64_t number) {
  // Four chains of multiplications at once: one alone would wait for its latency.
  uint64_t h[4] = {number, number + 1, number + 2, number + 3};
  for (uint64_t i = 0; i < PAGE; i += 64)
    for (int lane = 0; lane < 4; lane++)
      h[lane] = mix(h[lane] ^ load64(p + i + 16 * lane), load64(p + i + 16 * lane + 8));
  return (uint32_t)mix(mix(h[0], h[1]), mix(h[2], h[3]));
}

// The slow path: outside the file, or not compared yet.
__attribute__((noinline, unused)) static bool compare_page(page_view* g, uint64_t page) {
  if (page < g->n_pages && page_sum(g->base + page * PAGE, page) == g->sums[page]) {
    __atomic_fetch_or(&g->seen[page >> 3], (uint8_t)(1 << (page & 7)), __ATOMIC_RELAXED);
    return true;
  }
  __atomic_store_n(&g->damaged, page < g->n_pages ? page + 1 : ~(uint64_t)0, __ATOMIC_RELAXED);
  return false;
}

inline bool usable(page_view* g, const void* p) {
  if (g == nullptr) return true;
  uint64_t page = ((uint64_t)p - (uint64_t)g->base) / PAGE;     // before the file: a huge number
  if (page < g->n_pages && (__atomic_load_n(&g->seen[page >> 3], __ATOMIC_RELAXED) >> (page & 7) & 1)) return true;
  return compare_page(g, page);
}

inline bool usable(page_view* g, const void* p, uint64_t n) {
  if (g == nullptr || n == 0) return true;
  uint64_t first = ((uint64_t)p - (uint64_t)g->base) / PAGE, room = g->n_pages * PAGE;
  if (first >= g->n_pages || n > room || (uint64_t)p - (uint64_t)g->base > room - n) return compare_page(g, ~(uint64_t)0);
  uint64_t last = ((uint64_t)p - (uint64_t)g->base + n - 1) / PAGE;
  for (uint64_t page = first; page <= last; page++)
    if (!usable(g, g->base + page * PAGE)) return false;
  return true;
}

inline bool all_sound(page_view* g, const void* p, uint64_t n) {
  if (g == nullptr || n == 0) return true;
  uint64_t at = (uint64_t)p - (uint64_t)g->base, room = g->n_pages * PAGE;      // before the file: a huge number
  if (at > room || n > room - at) return false;
  for (uint64_t page = at / PAGE; page <= (at + n - 1) / PAGE; page++) {
    if (__atomic_load_n(&g->seen[page >> 3], __ATOMIC_RELAXED) >> (page & 7) & 1) continue;
    if (page_sum(g->base + page * PAGE, page) != g->sums[page]) return false;
    __atomic_fetch_or(&g->seen[page >> 3], (uint8_t)(1 << (page & 7)), __ATOMIC_RELAXED);
  }
  return true;
}

}  // namespace kvps

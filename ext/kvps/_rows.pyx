"""Sorted rows of words: those that begin with some words, and the best of them."""
from kvps._given cimport log10_in, power10
from kvps._pages cimport Pages, page_view, usable
from kvps._rows cimport first_row
from kvps._types cimport index_t, word_t, int64_t, uint32_t, uint64_t

cdef extern from "<algorithm>" namespace "std" nogil:
    void push_heap(uint64_t*, uint64_t*) noexcept
    void pop_heap(uint64_t*, uint64_t*) noexcept
    void sort_heap(uint64_t*, uint64_t*) noexcept


cdef index_t rows_with(const word_t* rows, index_t width, index_t n_rows, const word_t* wanted, int n, page_view* page,
                       index_t* end) noexcept nogil:
    """Return the first of sorted rows that begin with n words, OUT the end of these; their pages are compared."""
    cdef index_t first = first_row(rows, width, 0, n_rows, wanted, n, False, page), low = first
    # Most contexts have few rows: look near by first.
    end[0] = min(first + 1, n_rows)
    while end[0] < n_rows and first_row(rows, width, end[0] - 1, end[0], wanted, n, True, page) == end[0]:
        low, end[0] = end[0], min(first + 2 * (end[0] - first), n_rows)
    end[0] = first_row(rows, width, low, end[0], wanted, n, True, page)
    if end[0] > first:
        usable(page, rows + width * first, 4 * width * (end[0] - first))
    return first


def find_rows(const uint32_t[:, ::1] rows, const uint32_t[::1] wanted, Pages pages not None):
    """Return (first, end) of the rows that begin with some words.

    rows: uint32, sorted; the pages that are read are compared. Raises CorruptionError where one is damaged.
    """
    cdef index_t first, end
    if not 1 <= wanted.shape[0] <= rows.shape[1]:
        raise ValueError(f"{wanted.shape[0]} words of rows of {rows.shape[1]}")
    if rows.shape[0] == 0:
        return 0, 0
    with nogil:
        first = rows_with(&rows[0, 0], rows.shape[1], rows.shape[0], &wanted[0], <int>wanted.shape[0], &pages.view, &end)
    pages.refuse_damage()
    return first, end


cdef index_t best_of(const word_t* row, index_t width, index_t n, index_t m, uint64_t* keys, uint32_t* words,
                     uint32_t* last) noexcept nogil:
    """Fill words and last with the last columns of the min(m, n) best of n rows; return how many. keys: room for m.

    row: the last column of the first one.
    """
    cdef index_t i, found = 0
    cdef uint64_t key
    for i in range(n):
        key = <uint64_t>row[i * width] << 32 | <uint64_t>i
        if found < m:
            keys[found] = key
            found += 1
            push_heap(keys, keys + found)
        elif key < keys[0]:                        # better than the worst of the best
            pop_heap(keys, keys + m)
            keys[m - 1] = key
            push_heap(keys, keys + m)
    sort_heap(keys, keys + found)
    for i in range(found):
        last[i] = <uint32_t>(keys[i] >> 32)
        words[i] = row[<index_t><uint32_t>keys[i] * width - 1]
    return found


def best_rows(lists, const uint32_t[:, ::1] contexts, const int64_t[::1] lengths, const double[:, ::1] weights, index_t m,
              Pages pages not None):
    """Return of the rows that begin with each context the m with the smallest last columns, of equal ones the first.

    lists: by depth from 1 on, rows as of find_rows(), in context order: of depth d the last d words of a context, the last one
        first, then the next word and the bits of -log10 p as a float32, plus 1.
    contexts: uint32 (n, depths), the last word first. lengths: int64 (n,), how many of them there are.
    weights: float64 (n, depths + 1), by what p of each depth is multiplied.

    Returns:
        (next words, uint32; the context of each, int64; of each context a bound of p times its weight of all others that are
        listed, float64 (n,)).
    """
    cdef index_t first, end, i, k, found, n = contexts.shape[0], n_lists = len(lists), at = 0
    cdef int d
    cdef const uint32_t[:, ::1] rows
    import numpy as np  # here: scoring text does without it

    if not (n_lists <= contexts.shape[1] and lengths.shape[0] == weights.shape[0] == n and weights.shape[1] == n_lists + 1
            and m >= 1):
        raise ValueError(f"{n} contexts of {contexts.shape[1]} words, {lengths.shape[0]} lengths, {n_lists} lists")
    words_array, which_array, others_array = np.empty(n * n_lists * m + 1, np.uint32), np.empty(n * n_lists * m, np.int64), np.zeros(n)
    cdef uint32_t[::1] words = words_array, last = np.empty(m + 1, np.uint32)
    cdef uint64_t[::1] keys = np.empty(m + 1, np.uint64)
    cdef int64_t[::1] which = which_array
    cdef double[::1] others = others_array
    for d in range(1, n_lists + 1):
        rows = lists[d - 1]
        if rows.shape[1] != d + 2:
            raise ValueError(f"rows of {rows.shape[1]} at depth {d}")
        if rows.shape[0] == 0:
            continue
        with nogil:
            for i in range(n):
                if lengths[i] < d:
                    continue
                first = rows_with(&rows[0, 0], d + 2, rows.shape[0], &contexts[i, 0], d, &pages.view, &end)
                if pages.view.damaged or end == first:
                    continue
                # One more, which tells how probable those can be that are left out.
                found = best_of(&rows[first, d + 1], d + 2, end - first, m + 1, &keys[0], &words[at], &last[0])
                if found > m:
                    found = m
                    others[i] = max(others[i], weights[i, d] * power10(log10_in(last[m] - 1)))
                for k in range(found):
                    which[at + k] = i
                at += found
    pages.refuse_damage()
    return words_array[:at], which_array[:at], others_array

"""Sorted rows of words: those that begin with some words, and the best of them."""
from libc.stdlib cimport free, malloc

from kvps._pages cimport Pages, page_view, usable
from kvps._rows cimport first_row
from kvps._types cimport index_t, word_t, uint32_t, uint64_t

cdef extern from "<algorithm>" namespace "std" nogil:
    void partial_sort(uint64_t*, uint64_t*, uint64_t*) noexcept


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


def best_rows(const uint32_t[:, ::1] rows, const uint32_t[::1] wanted, index_t m, Pages pages not None):
    """Return of the rows that begin with some words the m with the smallest last columns, of equal ones the first.

    Arguments as those of find_rows().

    Returns:
        (their last columns but one, their last columns), uint32, the smallest first; fewer where there are fewer.
    """
    cdef index_t first, end, i, n, width = rows.shape[1]
    cdef const word_t* row
    cdef uint64_t* keys
    import numpy as np  # here: scoring text does without it

    if not (1 <= wanted.shape[0] <= width - 2 and m >= 1):
        raise ValueError(f"the {m} best of rows of {width} that begin with {wanted.shape[0]} words")
    if rows.shape[0] == 0:
        return np.empty(0, np.uint32), np.empty(0, np.uint32)
    first = rows_with(&rows[0, 0], width, rows.shape[0], &wanted[0], <int>wanted.shape[0], &pages.view, &end)
    pages.refuse_damage()
    n = end - first
    m = min(m, n)
    words_array, last_array = np.empty(m, np.uint32), np.empty(m, np.uint32)
    if m == 0:
        return words_array, last_array
    cdef uint32_t[::1] words = words_array, last = last_array
    keys = <uint64_t*>malloc(n * sizeof(uint64_t))
    if keys == NULL:
        raise MemoryError(f"no memory for {n} rows")
    with nogil:
        row = &rows[first, width - 1]
        for i in range(n):
            keys[i] = <uint64_t>row[i * width] << 32 | <uint64_t>i
        partial_sort(keys, keys + m, keys + n)
        for i in range(m):
            last[i] = <uint32_t>(keys[i] >> 32)
            words[i] = row[<index_t><uint32_t>keys[i] * width - 1]
        free(keys)
    return words_array, last_array

# Sorted rows of words.
from kvps._pages cimport page_view, usable
from kvps._types cimport index_t, word_t


cdef inline index_t first_row(const word_t* rows, index_t width, index_t low, index_t high, const word_t* wanted, int n, bint above,
                       page_view* page) noexcept nogil:
    """The first of sorted rows of some width, from `low` to `high`, that begins with n words or more, `above`: with more.

    Anything in that range where a damaged page is met.
    """
    cdef index_t middle
    cdef const word_t* row
    cdef int k
    while low < high:
        middle = (low + high) // 2
        row = rows + middle * width
        if not usable(page, row, 4 * n):
            return low
        k = 0
        while k < n and row[k] == wanted[k]:
            k += 1
        if above if k == n else row[k] < wanted[k]:
            low = middle + 1
        else:
            high = middle
    return low

# C types shared by every kernel.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint8_t byte_t
ctypedef uint32_t word_t       # vocabulary id; stored with 32 bits on disk
ctypedef int64_t count_t       # occurrences of one n-gram; negative while text is removed
ctypedef Py_ssize_t index_t    # every length and every loop index

cdef enum:
    UNK = 0                    # id of <unk>; do not change: stored
    BOS = 1                    # id of <s>; do not change: stored
    EOS = 2                    # id of </s>; do not change: stored
    FIRST_WORD = 3             # id of the first word of the text; do not change: stored
    MAX_ORDER = 8              # 8 ids of 32 bits fill the widest key, 256 bits
    LARGE_CODE = 255           # of a follower whose count stands in a list of its own

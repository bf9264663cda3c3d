"""Deal records into partitions through a file, so that each partition can later be worked on in cache.

Records are appended to small buffers, one per partition; a full buffer goes to the end of the file in one write, so the
page cache does the rest and resident memory stays flat.
"""
import os

import numpy as np

cimport cython

from libc.errno cimport errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from kvps._keys cimport VALUE_BITS, from_bytes, low32, packed_t, shl, shr, text_key_words64, to_bytes, u64, u128, u256
from kvps._types cimport byte_t, index_t, uint16_t, uint32_t, uint64_t

cdef extern from "unistd.h" nogil:
    ssize_t c_pwrite "pwrite"(int fd, const void* data, size_t n, long long offset)
    ssize_t c_pread "pread"(int fd, void* data, size_t n, long long offset)

cdef enum:
    ERR_MEMORY = -2
    ERR_WRITE = -3
    ERR_PARTITION = -4
    SLACK = 32                 # bytes at the end of a buffer: a key is written whole, and its upper part written over

cdef struct block:
    uint64_t offset
    uint32_t n_bytes
    uint32_t partition


@cython.final
cdef class Spill:
    """Partitioned records of record_bytes each, in the file `fd` that this spill owns from offset 0 on.

    One thread adds; after `finish`, any thread reads.
    """
    cdef int fd
    cdef index_t n_partitions, record_bytes, buffer_bytes, stride
    cdef byte_t* buffers
    cdef uint32_t* used
    cdef block* blocks
    cdef index_t n_blocks, blocks_room
    cdef uint64_t end
    cdef uint64_t* counts
    cdef int error
    cdef object order, starts

    def __cinit__(self, int fd, index_t n_partitions, index_t record_bytes, index_t buffer_bytes=16384):
        cdef index_t i
        if n_partitions < 1 or record_bytes < 1 or buffer_bytes < record_bytes or n_partitions > 65536:
            raise ValueError(f"{n_partitions} partitions of {record_bytes}-byte records in {buffer_bytes}-byte buffers")
        self.fd, self.n_partitions, self.record_bytes = fd, n_partitions, record_bytes
        self.buffer_bytes = buffer_bytes // record_bytes * record_bytes
        self.stride = self.buffer_bytes + SLACK
        self.buffers = <byte_t*>malloc(n_partitions * self.stride)
        self.used = <uint32_t*>malloc(n_partitions * 4)
        self.counts = <uint64_t*>malloc(n_partitions * 8)
        if self.buffers == NULL or self.used == NULL or self.counts == NULL:
            raise MemoryError(f"no memory for {n_partitions} buffers of {self.buffer_bytes} bytes")
        for i in range(n_partitions):
            self.used[i] = 0
            self.counts[i] = 0

    def __dealloc__(self):
        free(self.buffers)
        free(self.used)
        free(self.counts)
        free(self.blocks)

    cdef int flush(self, index_t p) noexcept nogil:
        """Write the buffer of partition p to the end of the file."""
        cdef index_t done = 0, n = self.used[p], wrote, room
        cdef block* blocks
        if self.n_blocks == self.blocks_room:
            room = 2 * self.blocks_room + 256
            blocks = <block*>realloc(self.blocks, room * sizeof(block))
            if blocks == NULL:
                return ERR_MEMORY
            self.blocks, self.blocks_room = blocks, room
        while done < n:
            wrote = c_pwrite(self.fd, self.buffers + p * self.stride + done, n - done, self.end + done)
            if wrote <= 0:
                self.error = errno
                return ERR_WRITE
            done += wrote
        self.blocks[self.n_blocks].offset = self.end
        self.blocks[self.n_blocks].n_bytes = <uint32_t>n
        self.blocks[self.n_blocks].partition = <uint32_t>p
        self.n_blocks += 1
        self.end += n
        self.used[p] = 0
        return 0

    cdef int _check(self, int status) except -1:
        if status == ERR_MEMORY:
            raise MemoryError("no memory to list spilled blocks")
        if status == ERR_PARTITION:
            raise ValueError(f"a word without a partition, or a partition beyond {self.n_partitions - 1}")
        if status == ERR_WRITE:
            raise OSError(self.error, os.strerror(self.error))
        return 0

    def add_hashed(self, const uint64_t[::1] hashes, const uint32_t[::1] values):
        """Add records of a hash and its values to the partitions that the highest bits of the hash name.

        values: uint32, those of each hash one after another, as many as make a record of record_bytes.
        """
        cdef index_t i, p, n = hashes.shape[0], width = self.record_bytes - 8
        cdef int status = 0, bits = (self.n_partitions - 1).bit_length()
        cdef byte_t* at
        if width <= 0 or 4 * values.shape[0] != n * width or self.n_partitions != 1 << bits or self.buffers == NULL:
            raise ValueError(f"{n} hashes and {values.shape[0]} values for records of {self.record_bytes} bytes in "
                             f"{self.n_partitions} partitions")
        with nogil:
            for i in range(n):
                p = hashes[i] >> (64 - bits) if bits else 0
                if self.used[p] + self.record_bytes > self.buffer_bytes:
                    status = self.flush(p)
                    if status != 0:
                        break
                at = self.buffers + p * self.stride + self.used[p]
                memcpy(at, &hashes[i], 8)
                memcpy(at + 8, &values[i * width // 4], width)
                self.used[p] += self.record_bytes
                self.counts[p] += 1
        self._check(status)

    def add_keys(self, const uint64_t[::1] keys, int k, int bits, const uint16_t[::1] partition_of):
        """Add keys in text order of k words; the first word's number names the partition.

        Args:
            keys: uint64, n * width; kept as the bytes that they have, of record_bytes that hold k * bits + 32 bits.
            partition_of: uint16, by number of the first word.
        """
        cdef index_t width = text_key_words64(k, bits), n
        cdef int status
        if width > 4 or k < 1 or keys.shape[0] % width or 8 * self.record_bytes < k * bits + VALUE_BITS or self.buffers == NULL \
                or self.record_bytes > 8 * width:
            raise ValueError(f"{keys.shape[0]} words of keys of {k} numbers of {bits} bits, in {self.record_bytes} bytes")
        n = keys.shape[0] // width
        if n == 0:
            return
        with nogil:
            if width == 1:
                status = deal[u64](self, <const u64*>&keys[0], n, bits * (k - 1) + VALUE_BITS, partition_of)
            elif width == 2:
                status = deal[u128](self, <const u128*>&keys[0], n, bits * (k - 1) + VALUE_BITS, partition_of)
            else:
                status = deal[u256](self, <const u256*>&keys[0], n, bits * (k - 1) + VALUE_BITS, partition_of)
        self._check(status)

    def finish(self):
        """Write what is left in the buffers and free them."""
        cdef index_t p
        cdef int status = 0
        with nogil:
            for p in range(self.n_partitions):
                if self.used[p] > 0:
                    status = self.flush(p)
                    if status != 0:
                        break
        self._check(status)
        free(self.buffers)
        self.buffers = NULL
        owners = np.array([self.blocks[p].partition for p in range(self.n_blocks)], np.int64)
        self.order = np.argsort(owners, kind="stable")
        self.starts = np.searchsorted(owners[self.order], np.arange(self.n_partitions + 1))

    def sizes(self):
        """Return how many records each partition has, uint64 (n_partitions,)."""
        return np.asarray(<uint64_t[:self.n_partitions]>self.counts).copy()

    def read(self, index_t partition, out=None):
        """Return the records of a partition, uint8 (n, record_bytes), in the order in which they were added; in `out`."""
        if out is None:
            out = np.empty((self.counts[partition], self.record_bytes), np.uint8)
        cdef byte_t[:, ::1] view = out
        if view.shape[0] != <index_t>self.counts[partition] or view.shape[1] != self.record_bytes:
            raise ValueError(f"room for {view.shape[0]} records of {view.shape[1]} bytes, need {self.counts[partition]} "
                             f"of {self.record_bytes}")
        self._read(partition, &view[0, 0] if view.shape[0] else NULL)
        return out

    def read_keys(self, index_t partition, uint64_t[::1] keys):
        """Fill `keys`, uint64, with the keys of a partition, in the order in which they were added."""
        cdef index_t n = self.counts[partition], width, size = self.record_bytes
        if n == 0 and keys.shape[0] == 0:
            return
        width = keys.shape[0] // n if n else 0
        if keys.shape[0] != n * width or width not in (1, 2, 4) or size > 8 * width:
            raise ValueError(f"room for {keys.shape[0]} words of keys, need {n} keys of {size} bytes")
        cdef byte_t[::1] raw = np.empty(n * size + SLACK, np.uint8)
        self._read(partition, &raw[0])
        with nogil:
            if width == 1:
                widen[u64](&raw[0], n, size, <u64*>&keys[0])
            elif width == 2:
                widen[u128](&raw[0], n, size, <u128*>&keys[0])
            else:
                widen[u256](&raw[0], n, size, <u256*>&keys[0])

    cdef int _read(self, index_t partition, byte_t* data) except -1:
        cdef index_t i, got, b
        cdef int failed = 0
        for i in self.order[self.starts[partition]:self.starts[partition + 1]].tolist():
            with nogil:
                b = 0
                while b < self.blocks[i].n_bytes:
                    got = c_pread(self.fd, data + b, self.blocks[i].n_bytes - b, self.blocks[i].offset + b)
                    if got <= 0:
                        failed = 1
                        break
                    b += got
                data += b
            if failed:
                raise OSError(errno, f"a spilled block of {self.blocks[i].n_bytes} bytes could not be read back")
        return 0


cdef int deal(Spill s, const packed_t* keys, index_t n, int shift, const uint16_t[::1] partition_of) noexcept nogil:
    """Append keys to the buffers of their partitions; 0, or the code of an error."""
    cdef index_t i, p
    cdef uint32_t first
    cdef int status
    for i in range(n):
        first = low32(shr(keys[i], shift))
        if <index_t>first >= partition_of.shape[0] or partition_of[first] >= s.n_partitions:
            return ERR_PARTITION
        p = partition_of[first]
        if s.used[p] + s.record_bytes > s.buffer_bytes:
            status = s.flush(p)
            if status != 0:
                return status
        to_bytes(s.buffers + p * s.stride + s.used[p], keys[i])
        s.used[p] += <uint32_t>s.record_bytes
        s.counts[p] += 1
    return 0


cdef void widen(const byte_t* records, index_t n, index_t size, packed_t* keys) noexcept nogil:
    """Keys from records of their lowest `size` bytes; as many bytes as a key has may be read at each."""
    cdef index_t i
    cdef int rest = <int>(8 * (<index_t>sizeof(packed_t) - size))
    for i in range(n):
        from_bytes(records + i * size, &keys[i])
        keys[i] = shr(shl(keys[i], rest), rest)

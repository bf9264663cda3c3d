"""The counts of a store as sorted streams: the runs of a shard merged, block by block."""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from kvps._ngrams import key_width
from kvps._runs import Merge, encode, encoded_room, first_key, unpack
from kvps.errors import CorruptionError, DataError
from kvps.store.format import CHUNK_HEADER_BYTES
from kvps.store.runs import Run
from kvps.store.shard import Snapshot

# Keys of a block: 16,384 keys of 16 bytes and their counts stay in the second-level cache.
BLOCK_KEYS = 16384
# 64 pages less the header of an LMDB overflow page (16 bytes) and ours: no page is wasted.
CHUNK_BYTES = 64 * 4096 - 16 - CHUNK_HEADER_BYTES


def bits_for(n_words: int) -> int:
    """Return how many bits a word id takes where ids are below n_words."""
    return max(2, (n_words - 1).bit_length())


def n_words_of(identity: dict, state: dict) -> int:
    """Return how many word ids there may be in the keys of a store, or of a table."""
    return 1 << 32 if "table" in identity else state["words"]


@dataclasses.dataclass
class Block:
    """Sorted packed keys (uint64, `width` words each) and their counts (int64); valid until the next block is read."""

    keys: np.ndarray
    counts: np.ndarray


def merged(snapshot: Snapshot, runs: list[Run], order: int, bits: int, first_chunks: list[int] | None = None) -> Iterator[Block]:
    """Yield the sum of some runs of a shard, keys strictly increasing, sums of 0 left out.

    first_chunks: per run, where to begin reading; the first keys are then those of some runs only.
    """
    return merged_shards([(snapshot, run) for run in runs], order, bits, first_chunks)


def merged_shards(sources: list[tuple[Snapshot, Run]], order: int, bits: int,
                  first_chunks: list[int] | None = None) -> Iterator[Block]:
    """Yield the sum of some runs, each of the shard whose snapshot stands with it; as merged()."""
    def fetch(source: int, index: int) -> tuple[memoryview, int] | None:
        snapshot, run = sources[source]
        return snapshot.chunk(run, index) if index < run.n_chunks else None

    def damaged(source: int, index: int, reason: str) -> CorruptionError:
        key = f"run {sources[source][1].id} chunk {index}"
        return CorruptionError(f"{key}: {reason}", key=key, found=reason, expected="sorted entries")

    yield from _blocks(Merge(len(sources), order, bits, fetch, damaged, first_chunks=first_chunks), key_width(order, bits))


def merged_chunks(runs: list[list[tuple[bytes, int]]], order: int, bits: int) -> Iterator[Block]:
    """Yield the sum of some runs that were just encoded and lie in memory; as merged()."""
    def fetch(run: int, index: int) -> tuple[bytes, int] | None:
        return runs[run][index] if index < len(runs[run]) else None

    def damaged(run: int, index: int, reason: str) -> DataError:
        return DataError(f"the counts of a text cannot be added up: {reason}", found=reason)

    yield from _blocks(Merge(len(runs), order, bits, fetch, damaged), key_width(order, bits))


def _blocks(merge: Merge, width: int) -> Iterator[Block]:
    keys, counts = np.empty(BLOCK_KEYS * width, np.uint64), np.empty(BLOCK_KEYS, np.int64)
    try:
        while n := merge.read(keys, counts):
            yield Block(keys[:n * width], counts[:n])
    finally:
        merge.close()


def merged_below(snapshot: Snapshot, runs: list[Run], order: int, bits: int, prefixes: list[tuple[int, ...]]) -> Iterator[Block]:
    """Yield what merged() yields, but only keys that begin with one of some prefixes, in order, none of which begins another.

    Chunks that hold none of them are not read, but for the few that tell where to begin.
    """
    width = key_width(order, bits)
    for prefix in prefixes:
        first = [chunk_of(snapshot, run, order, prefix) for run in runs]
        with contextlib.closing(merged(snapshot, runs, order, bits, first)) as blocks:
            for block in blocks:
                ours = unpack(block.keys, order, bits)[:, :len(prefix)]
                i = np.flatnonzero((ours == np.array(prefix, np.uint32)).all(axis=1))
                if len(i):
                    yield Block(block.keys[i[0] * width:(i[-1] + 1) * width], block.counts[i[0]:i[-1] + 1])
                if tuple(ours[-1].tolist()) > prefix:
                    break


def chunk_of(snapshot: Snapshot, run: Run, order: int, prefix: tuple[int, ...]) -> int:
    """Return the last chunk of a run that begins before all keys with a prefix, or 0."""
    low, high = 0, run.n_chunks - 1
    while low < high:
        middle = (low + high + 1) // 2
        key = first_key(snapshot.chunk(run, middle)[0], order)
        if key is not None and key < prefix:
            low = middle
        else:
            high = middle - 1
    return low


def verify_chunks(chunks: list[tuple[bytes, int]], order: int, n_words: int) -> None:
    """Raise DataError unless chunks from outside are those of one run: sorted, as many keys as they say, of ids below n_words."""
    def fetch(_: int, index: int) -> tuple[memoryview, int] | None:
        return (memoryview(chunks[index][0]), chunks[index][1]) if index < len(chunks) else None

    def damaged(_: int, index: int, reason: str) -> DataError:
        return DataError(f"chunk {index} of a run that was sent is not one: {reason}", found=reason)

    merge = Merge(1, order, bits_for(n_words), fetch, damaged, n_words=n_words)
    try:
        merge.verify()
    finally:
        merge.close()


def encoded(blocks: Iterator[Block], order: int, bits: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[bytes, int]]:
    """Yield the chunks (payload, number of keys) of a stream of blocks."""
    width = key_width(order, bits)
    # A chunk holds some 50,000 keys: gather a few chunks' worth, so that short last chunks are rare.
    room = 16 * BLOCK_KEYS
    keys, counts = np.empty(room * width, np.uint64), np.empty(room, np.int64)
    out = np.empty(encoded_room(room), np.uint8)
    n = 0
    for block in blocks:
        m = len(block.counts)
        if n + m > room:
            done = 0
            chunks = encode(keys[:n * width], counts[:n], order, bits, chunk_bytes, out)
            for payload, n_keys in chunks[:-1]:
                yield payload, n_keys
                done += n_keys
            # The last chunk is not full: its keys wait for the next ones.
            keys[:(n - done) * width] = keys[done * width:n * width].copy()
            counts[:n - done] = counts[done:n].copy()
            n -= done
        keys[n * width:(n + m) * width] = block.keys
        counts[n:n + m] = block.counts
        n += m
    yield from encode(keys[:n * width], counts[:n], order, bits, chunk_bytes, out)

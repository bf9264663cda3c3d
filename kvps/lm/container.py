"""The file of a compiled model: named arrays, each at a multiple of 4096 bytes, then a description, then a trailer.

    file        := section* description trailer
    description := JSON {"meta": {...}, "sections": {name: [offset, type, items]}}        type: B u8, I u32, Q u64
    trailer     := offset u64, length u32, crc32 u32 of the description, magic "KVPSMDL2"        (little-endian)

Sections of a model in hashes (code bytes, partitions and seed stand in meta; buckets: ext/kvps/_model.pyx):
    unigrams u64 (n_words,)         value per word id
    slots u64, ends u64, blob u8    words -> ids, ids -> bytes: kvps._vocabulary.FrozenWords
    totals u64 (n, 4)               distinct (sum, N1, N2, N3+) of contexts
    unigram_contexts u32            per word id: number of its totals as a context, plus 1; 0: none
    large u64                       values beyond the direct codes, sorted
    entries u8                      buckets
    escaped u64, escaped_numbers u32   hashes, sorted, and totals of contexts whose number is beyond the codes
An exact model has, instead of the buckets, for k = 2..order: ngrams.k u32 (n, k) in context order, ngrams.k.starts u64
(first row of each shard), ngrams.k.values u64; and for d = 1..order - 1 contexts.d, contexts.d.starts, contexts.d.numbers.

The file is written under another name and renamed, so that a file that is there is whole. It can be deleted at any
time: it holds nothing that the store does not hold. Its format may change with any release; one of another format is
made again.
"""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvps.errors import CorruptionError
from kvps.store import files

MAGIC = b"KVPSMDL2"
MODEL_FORMAT = 3               # of what the sections mean; a model of another one is made again
ALIGN = 4096
ITEM_BYTES = {"B": 1, "I": 4, "Q": 8}
_TRAILER = struct.Struct("<QII8s")


def write(path: Path, meta: dict, sections: Iterable[tuple[str, str, int, Iterable]]) -> None:
    """Write a model file atomically; a section is (name, type, number of items, pieces of its bytes in order)."""
    def pieces() -> Iterator[bytes]:
        offset, listed = 0, {}
        for name, kind, n_items, parts in sections:
            yield bytes(-offset % ALIGN)
            offset += -offset % ALIGN
            listed[name] = [offset, kind, n_items]
            start = offset
            for part in parts:
                view = memoryview(part).cast("B") if len(part) else b""
                yield view
                offset += len(view)
            assert offset - start == n_items * ITEM_BYTES[kind], name
        description = json.dumps({"meta": meta, "sections": listed}, sort_keys=True).encode()
        yield description
        yield _TRAILER.pack(offset, len(description), zlib.crc32(description), MAGIC)

    files.atomic_write(path, pieces())


def read(path: Path) -> tuple[dict, dict[str, memoryview]]:
    """Map a model file; return (meta, its arrays by name, rows one after another, which keep it mapped)."""
    mapping = files.map_file(path)
    if len(mapping) < _TRAILER.size:
        raise CorruptionError(f"{path}: {len(mapping)} bytes are no compiled model; delete it", path=str(path))
    offset, length, crc, magic = _TRAILER.unpack_from(mapping, len(mapping) - _TRAILER.size)
    description = mapping[offset:offset + length]
    if magic != MAGIC or offset + length + _TRAILER.size != len(mapping) or zlib.crc32(description) != crc:
        raise CorruptionError(f"{path}: is no compiled model, or damaged; delete it, it will be made again", path=str(path),
                              found=magic, expected=MAGIC)
    record = json.loads(description)
    arrays = {}
    for name, (start, kind, n_items) in record["sections"].items():
        arrays[name] = memoryview(mapping)[start:start + n_items * ITEM_BYTES[kind]].cast(kind)
    return record["meta"], arrays

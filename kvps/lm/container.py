"""The file of a compiled model: named arrays, each at a multiple of 4096 bytes, then a description, then a trailer.

    file        := section* sums description trailer
    sums        := checksum u32 of each page of 4096 bytes before it (ext/kvps/pages.hpp), crc32 u32 of these
    description := JSON {"meta": {...}, "sections": {name: [offset, type, items]}}        type: B u8, I u32, Q u64
    trailer     := offset u64, length u32, crc32 u32 of the description, magic "KVPSMDL3"        (little-endian)

Nothing is used before its checksum was compared: the description when the file is mapped, `sums` when it is opened for
look-ups, a page when the first look-up comes to it. So a file of any size is opened in no time, and its damage is told
when it would matter. Bytes that change in memory after that are not noticed; look-ups stay inside the arrays even then.

Sections of a model in hashes (code bytes, partitions and seed stand in meta; buckets: ext/kvps/_buckets.pxd):
    unigrams u64 (n_words,)         value per word id
    slots u64 (n, 2), ends u64, blob u8    words -> ids (a slot: ext/kvps/_vocabulary.pxd), ids -> bytes: FrozenWords
    totals u64 (n, 4)               distinct (sum, N1, N2, N3+) of contexts
    unigram_contexts u32            per word id: number of its totals as a context, plus 1; 0: none
    large u64                       values beyond the direct codes, sorted
    entries u8                      buckets
    escaped u64, escaped_numbers u32   hashes, sorted, and totals of contexts whose number is beyond the codes
    sums u32                        see above
An exact model has, instead of the buckets, for k = 2..order: ngrams.k u32 (n, k) in context order, ngrams.k.starts u64
(first row of each part), ngrams.k.values u64; for d = 1..order - 1 contexts.d, contexts.d.starts, contexts.d.numbers; and
parts u32 (n_words,), the part of what begins with a word, or their number where that may be any.
An imported model ("arpa") has of these the words, and `entries` of its own (ext/kvps/_given.pyx). Its unigrams are the bits of
-log10 p as a float32, plus 1, its unigram_contexts the bits of log10 of back-offs, plus 1; 0: no context. The ids of words follow
their probabilities; numbers u32 (n_words,) tells their order in the ARPA file. "closed" in meta says
whether of all n-grams the last words are listed too. It may have for k = 2..order: listed.k u32 (n, k + 1), its n-grams in
context order, sorted, and their probabilities as those of words.

The file is written under another name and renamed, so that a file that is there is whole. That of a store can be deleted
at any time: it holds nothing that the store does not hold. Its format may change with any release; one of another format is
made again.
"""
from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kvps._pages import PAGE_BYTES, Pages, PageSums
from kvps.errors import ArgumentError, CorruptionError
from kvps.store import files

MAGIC = b"KVPSMDL3"
KENLM = b"mmap lm http://kheafield.com/code"       # begins a file of KenLM's build_binary
MODEL_FORMAT = 9               # of what the sections mean; a model of another one is made again
ALIGN = PAGE_BYTES
ITEM_BYTES = {"B": 1, "I": 4, "Q": 8}
_TRAILER = struct.Struct("<QII8s")


def write(path: Path, meta: dict, sections: Iterable[tuple[str, str, int, Iterable]]) -> None:
    """Write a model file atomically; a section is (name, type, number of items, pieces of its bytes in order)."""
    def pieces() -> Iterator[bytes]:
        offset, listed, sums = 0, {}, PageSums()
        for name, kind, n_items, parts in sections:
            listed[name] = [offset, kind, n_items]
            start = offset
            for part in parts:
                view = memoryview(part).cast("B") if len(part) else b""
                sums.add(view)
                yield view
                offset += len(view)
            assert offset - start == n_items * ITEM_BYTES[kind], name
            padding = bytes(-offset % ALIGN)
            sums.add(padding)
            yield padding
            offset += len(padding)
        listed["sums"] = [offset, "I", len(sums.sums) // 4 + 1]
        yield sums.sums
        yield struct.pack("<I", zlib.crc32(sums.sums))
        offset += len(sums.sums) + 4
        description = json.dumps({"meta": meta, "sections": listed}, sort_keys=True).encode()
        yield description
        yield _TRAILER.pack(offset, len(description), zlib.crc32(description), MAGIC)

    files.atomic_write(path, pieces(), huge_pages=True)


def read(path: Path) -> tuple[dict, dict[str, memoryview]]:
    """Map a model file; return (meta, its arrays by name, rows one after another, which keep it mapped).

    Only meta has been compared with its checksum; for the arrays see `pages`. "file" is the file as a whole.
    """
    try:
        mapping = files.map_file(path)
    except ValueError as exc:                  # an empty file
        raise _refusal(path, b"") from exc
    if len(mapping) < _TRAILER.size:
        raise _refusal(path, mapping[:])
    offset, length, crc, magic = _TRAILER.unpack_from(mapping, len(mapping) - _TRAILER.size)
    description = mapping[offset:offset + length]
    if magic != MAGIC or offset + length + _TRAILER.size != len(mapping) or zlib.crc32(description) != crc:
        raise _refusal(path, magic)
    record = json.loads(description)
    arrays = {"file": memoryview(mapping)}
    for name, (start, kind, n_items) in record["sections"].items():
        arrays[name] = arrays["file"][start:start + n_items * ITEM_BYTES[kind]].cast(kind)
    return record["meta"], arrays


def is_model(path: str | os.PathLike[str]) -> bool:
    """Return whether a file ends as a model's does."""
    with files.reading(path) as fd, files.reporting(path):
        size = os.fstat(fd).st_size
        return os.pread(fd, len(MAGIC), max(0, size - len(MAGIC))) == MAGIC


def refuse_others(path: Path, what: str = "model", is_one: Callable[[Path], bool] = is_model) -> None:
    """Raise ArgumentError where something is that is no model: a model is written over a model alone, a mixture over a mixture."""
    if os.path.lexists(path) and not (path.is_file() and is_one(path)):
        raise ArgumentError(f"{path}: exists, and is no {what}; name another file")


def begins(path: str | os.PathLike[str], n_bytes: int) -> bytes:
    """Return the first bytes of a file, to tell whose it is."""
    with files.reading(path) as fd, files.reporting(path):
        return os.pread(fd, n_bytes, 0)


def pages(path: Path, arrays: dict[str, memoryview]) -> Pages:
    """Return the pages of a model file, for kernels to compare before they read; raise CorruptionError if sums are damaged."""
    sums = arrays["sums"]
    if zlib.crc32(sums[:-1]) != sums[-1]:
        raise _refusal(path, zlib.crc32(sums[:-1]), sums[-1])
    return Pages(arrays["file"], sums[:-1], path)


def _refusal(path: Path, found: object, expected: object = MAGIC) -> CorruptionError:
    return CorruptionError(f"{path}: is no compiled model, or damaged; delete it: that of a store is made again, "
                           "an imported one is yours to import again", path=str(path),
                           found=found, expected=expected)

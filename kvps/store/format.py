"""Bytes <-> values of every record in a store: pure functions, no input or output.

The grammar is FORMAT.md; each function names its section.
Every checksum is zlib's CRC-32 over the LMDB key and then the record, so that a record found under another key is
refused like a damaged one.
"""
from __future__ import annotations

import hashlib
import json
import struct
import zlib

from kvps.errors import CorruptionError, VersionMismatch

FORMAT_VERSION = 2        # do not change without a new section in FORMAT.md and a store in tests/data/
CHUNK_VERSION = 1         # of chunks alone
LIB_VERSION = "0.9"       # LMDB's data format; recorded, because LMDB 1.0 cannot read it
CHUNK_MAGIC = b"kvCh"
CHUNK_HEADER = struct.Struct("<4sHBBIIII")  # magic, version, order, zero, n_keys, payload bytes, zero, crc
CHUNK_HEADER_BYTES = CHUNK_HEADER.size
CRC = struct.Struct("<I")
RUN_CHUNK = struct.Struct(">QI")            # big-endian, so that LMDB's byte order is the numbers' order

# First byte of a key in a shard. Do not change: stored.
IDENTITY = b"i"
MANIFEST = b"m"
LEDGER = b"l"
CLIENT = b"c"             # of a table alone
CHUNK = b"r"              # the greatest, so that chunks are appended at the end of the tree
# First byte of a key in the root, besides IDENTITY. Do not change: stored.
STATE = b"s"
JOB = b"j"
HISTORY = b"h"
INPUT = b"d"
WORDS = b"v"
LABEL = b"b"
ROUTING = b"t"

MAX_NAME_BYTES = 255      # a key is at most 511 bytes in LMDB
_CRC_OFFSET = CHUNK_HEADER_BYTES - CRC.size


def damaged(path: str | None, key: bytes, what: str, found: object, expected: object) -> CorruptionError:
    """Return the error for a record that is not what FORMAT.md says."""
    name = key_name(key)
    place = f"{path}: " if path else ""
    return CorruptionError(f"{place}{name}: {what} {found}, expected {expected}; the store is damaged: "
                           "keep a copy of it, and train again or use a copy made earlier",
                           path=path, key=name, found=found, expected=expected)


def key_name(key: bytes) -> str:
    """Return a key in words, for messages: "run 3 chunk 0", "ledger entry of job x, split 2", "manifest"."""
    kind, rest = key[:1], key[1:]
    if kind == CHUNK and len(rest) == RUN_CHUNK.size:
        run, index = RUN_CHUNK.unpack(rest)
        return f"run {run} chunk {index}"
    if kind == LEDGER and len(rest) > 8:
        return f"ledger entry of job {rest[:-8].decode('utf-8', 'backslashreplace')}, split {int.from_bytes(rest[-8:])}"
    if kind == CLIENT and rest:
        return f"ledger entry of client {rest.decode('utf-8', 'backslashreplace')}"
    if kind in (HISTORY, WORDS) and len(rest) == 4:
        return f"{'history of version' if kind == HISTORY else 'words from id'} {int.from_bytes(rest)}"
    names = {IDENTITY: "identity", MANIFEST: "manifest", STATE: "state", JOB: "job record", ROUTING: "routing table"}
    return names.get(key, f"record {key!r}")


# Keys: FORMAT.md, "Keys"

def chunk_key(run: int, index: int) -> bytes:
    """Return the key of one chunk; keys of a run are in the order of its chunks."""
    return CHUNK + RUN_CHUNK.pack(run, index)


def ledger_key(job: str, split: int) -> bytes:
    """Return the key of the ledger entry of one split of one job."""
    return named_key(LEDGER, job) + split.to_bytes(8)


def named_key(kind: bytes, name: str) -> bytes:
    """Return `kind` and a name of 1 to 255 bytes."""
    encoded = name.encode()
    if not 1 <= len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"the name {name[:40]!r} has {len(encoded)} bytes, expected 1 to {MAX_NAME_BYTES}")
    return kind + encoded


def numbered_key(kind: bytes, number: int) -> bytes:
    """Return `kind` and a number below 2**32, ordered as the numbers are."""
    return kind + number.to_bytes(4)


# Values: FORMAT.md, "Blobs and rows"

def pack_blob(key: bytes, body: bytes) -> bytes:
    """Return `body` behind its checksum."""
    return CRC.pack(zlib.crc32(body, zlib.crc32(key))) + body


def unpack_blob(key: bytes, value: bytes | memoryview, path: str | None = None) -> memoryview:
    """Return the body of a blob, borrowed from `value`, or raise CorruptionError."""
    view = memoryview(value)
    if len(view) < CRC.size:
        raise damaged(path, key, "length", len(view), f"at least {CRC.size}")
    body = view[CRC.size:]
    stored, = CRC.unpack_from(view)
    found = zlib.crc32(body, zlib.crc32(key))
    if found != stored:
        raise damaged(path, key, "checksum", f"{found:#010x}", f"{stored:#010x}")
    return body


def pack_row(key: bytes, row: dict) -> bytes:
    """Return a small record: its checksum, then JSON with sorted keys."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # File names that are not UTF-8 come from the system as lone surrogates and must survive.
    return pack_blob(key, text.encode("utf-8", "surrogatepass"))


def unpack_row(key: bytes, value: bytes | memoryview, path: str | None = None) -> dict:
    """Return a small record, or raise CorruptionError."""
    body = bytes(unpack_blob(key, value, path))
    try:
        row = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as exc:
        raise damaged(path, key, "contents", "no JSON", "a JSON object") from exc
    if not isinstance(row, dict):
        raise damaged(path, key, "contents", type(row).__name__, "a JSON object")
    return row


# Chunks: FORMAT.md, "Chunk"

def pack_chunk(key: bytes, order: int, n_keys: int, payload: bytes) -> bytes:
    """Return the value of a chunk: header and payload; the payload's grammar is the kernel's."""
    header = CHUNK_HEADER.pack(CHUNK_MAGIC, CHUNK_VERSION, order, 0, n_keys, len(payload), 0, 0)[:_CRC_OFFSET]
    crc = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(key)))
    return b"".join((header, CRC.pack(crc), payload))


def unpack_chunk(key: bytes, value: bytes | memoryview, path: str | None = None, *,
                 trusted: bool = False) -> tuple[memoryview, int, int]:
    """Return (payload, number of keys, order); the payload is borrowed from `value`.

    trusted: the caller has compared the checksum of these bytes before; not now.

    Raises:
        CorruptionError: the checksum, magic or length is wrong. Checked in full at every call, unless `trusted`.
        VersionMismatch: an intact chunk of another format.
    """
    view = memoryview(value)
    if len(view) < CHUNK_HEADER_BYTES:
        raise damaged(path, key, "length", len(view), f"at least {CHUNK_HEADER_BYTES}")
    magic, version, order, zero_a, n_keys, n_bytes, zero_b, stored = CHUNK_HEADER.unpack_from(view)
    payload = view[CHUNK_HEADER_BYTES:]
    found = stored if trusted else zlib.crc32(payload, zlib.crc32(view[:_CRC_OFFSET], zlib.crc32(key)))
    if found != stored:
        raise damaged(path, key, "checksum", f"{found:#010x}", f"{stored:#010x}")
    if magic != CHUNK_MAGIC or n_bytes != len(payload):
        raise damaged(path, key, "header", f"{bytes(magic)!r} and {len(payload)} bytes",
                      f"{CHUNK_MAGIC!r} and {n_bytes} bytes")
    if version != CHUNK_VERSION or zero_a or zero_b:
        raise VersionMismatch(f"{path or 'chunk'}: {key_name(key)} has format {version}, expected {CHUNK_VERSION}; "
                              "use a newer kvps", path=path, found=version, expected=CHUNK_VERSION)
    return payload, n_keys, order


def chunk_digest(key: bytes, value: bytes | memoryview) -> int:
    """Return the 64 bits that a chunk adds to its run's digest; they stand on its header, whose checksum covers the rest."""
    return int.from_bytes(hashlib.blake2b(key + bytes(value[:CHUNK_HEADER_BYTES]), digest_size=8).digest(), "little")


def add_digest(total: str, more: int) -> str:
    """Return a run's digest with one more chunk: the sum modulo 2**64, in hexadecimal."""
    return f"{(int(total, 16) + more) % 2**64:016x}"


# Identity: FORMAT.md, "Identity"

def check_identity(identity: dict, path: str, **expected: object) -> None:
    """Raise VersionMismatch for another format, or CorruptionError where a field is not as expected."""
    for field, ours in (("format", FORMAT_VERSION), ("lib_version", LIB_VERSION)):
        found = identity.get(field)
        if found != ours:
            older = isinstance(found, int) and isinstance(ours, int) and found < ours
            way = "run kvps upgrade on its store" if older else "use the kvps that wrote it, or a newer one"
            raise VersionMismatch(f"{path}: has {field} {found}, this kvps reads {ours}; {way}",
                                  path=path, found=found, expected=ours)
    for field, wanted in expected.items():
        if identity.get(field) != wanted:
            raise damaged(path, IDENTITY, field, identity.get(field), wanted)


# Routing: FORMAT.md, "Routing"

def check_routing(row: dict, n_shards: int, n_words: int, path: str | None = None) -> dict:
    """Return a routing table, or raise CorruptionError where it is none for so many shards and words."""
    try:
        dealt, split = row["words"], row["split"]
        words = [*(word for word, _ in dealt), *split]
        numbers = [*words, *(shard for _, shard in dealt)]
        sound = (all(isinstance(number, int) and number >= 0 for number in numbers) and len(set(words)) == len(words)
                 and max(words, default=0) < n_words and all(shard < n_shards for _, shard in dealt))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise damaged(path, ROUTING, "contents", str(row)[:80], f"words below {n_words}, each once, of shards below {n_shards}")
    return row


# Vocabulary: FORMAT.md, "Words"

def pack_words(words: list[bytes]) -> bytes:
    """Return a segment of the vocabulary: how many words, their lengths, their bytes."""
    lengths = [len(word) for word in words]
    return struct.pack(f"<I{len(words)}I", len(words), *lengths) + b"".join(words)


def check_words(segment: bytes | memoryview) -> tuple[int, ...]:
    """Return the words' lengths [bytes]; ValueError unless it has a word or more and they fill it exactly."""
    n_words = struct.unpack_from("<I", segment)[0] if len(segment) >= 4 else 0
    start = 4 + 4 * n_words
    if not n_words or start > len(segment):
        raise ValueError(f"a segment of {len(segment)} bytes cannot hold {n_words} words")
    lengths = struct.unpack_from(f"<{n_words}I", segment, 4)
    if (end := start + sum(lengths)) != len(segment):
        raise ValueError(f"the {n_words} words of a segment end at byte {end}, expected {len(segment)}")
    return lengths


def unpack_words(segment: bytes) -> list[bytes]:
    """Return the words of a segment, in id order."""
    lengths = check_words(segment)
    words, end = [], 4 + 4 * len(lengths)
    for length in lengths:
        words.append(bytes(segment[end:end + length]))
        end += length
    return words

"""Messages between clients and shard servers, as bytes; no sockets. PROTOCOL.md describes every byte.

A message is two frames: a header of 64 bytes, and a body of a JSON object followed by raw arrays.
Nothing is ever unpickled, no length is believed before it is checked, and nothing is allocated for what is only claimed.
"""
from __future__ import annotations

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvps.errors import KvpsError

MAGIC = b"kvPS"
VERSION = 1
REQUEST, REPLY, ERROR, WORKING = 1, 2, 3, 4
KINDS = {REQUEST: "request", REPLY: "reply", ERROR: "error", WORKING: "working on it"}
HEADER = struct.Struct("<4sBBHIQ16sQQQI")      # PROTOCOL.md, "Header"; the last number is the checksum
HEADER_BYTES = HEADER.size
MAX_BODY_BYTES = 16 << 20
MAX_JSON_BYTES = 1 << 20
MAX_ARRAYS = 64
MAX_DIMENSIONS = 2
ALIGN = 8
DTYPES = {name: np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f4", "<f8")}


class ProtocolError(KvpsError):
    """A message is not what PROTOCOL.md says: `found` against `expected`."""

    facts = ("field", "found", "expected")


@dataclasses.dataclass
class Message:
    """One message.

    A reply or an error has the number, client and sequence of the request that it answers.
    """

    kind: int
    number: int                            # of the request, chosen by its sender
    call: dict[str, Any]                   # JSON: of a request the function's name under "call", and its arguments
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)     # to be sent, also lists of bytes
    client: bytes = bytes(16)              # who sends requests under these numbers; zeros: nobody in particular
    sequence: int = 0                      # of a change: 1, 2, 3, ... for each client and shard; 0: no change
    epoch: int = 0                         # of the client: a later one ends an earlier one


def pack(message: Message) -> list[bytes]:
    """Return the two frames of a message.

    Raises:
        ProtocolError: it has more bytes than a message may have, or arrays of other kinds.
    """
    listed, pieces, at = [], [], 0
    for name, array in message.arrays.items():
        if isinstance(array, list):            # pieces of one array of bytes
            n_bytes = sum(map(len, array))
            listed.append([name, "<u1", [n_bytes]])
            pieces += [bytes(-at % ALIGN), *array]
            at += -at % ALIGN + n_bytes
            continue
        data = np.ascontiguousarray(array)
        dtype = data.dtype.newbyteorder("<").str.replace("|", "<")
        if dtype not in DTYPES or data.ndim > MAX_DIMENSIONS:
            raise ProtocolError(f"array {name}: {data.dtype} of {data.ndim} dimensions cannot be sent", field=name,
                                found=data.dtype.str, expected=", ".join(DTYPES))
        listed.append([name, dtype, list(data.shape)])
        pieces += [bytes(-at % ALIGN), data.astype(DTYPES[dtype], copy=False).reshape(-1).view(np.uint8)]
        at += -at % ALIGN + data.nbytes
    # A surrogate alone, as names that are no UTF-8 have, becomes an escape, which JSON takes.
    text = json.dumps([message.call, listed], separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "backslashreplace")
    text += b" " * (-(len(text) + 4) % ALIGN)
    body = b"".join([struct.pack("<I", len(text)), text, *pieces])
    if len(text) > MAX_JSON_BYTES or len(body) > MAX_BODY_BYTES or len(listed) > MAX_ARRAYS:
        raise ProtocolError(f"a message of {len(body)} bytes ({len(text)} of JSON, {len(listed)} arrays) is too large: send "
                            "smaller batches", field="body", found=len(body), expected=f"at most {MAX_BODY_BYTES}")
    head = HEADER.pack(MAGIC, VERSION, message.kind, 0, message.epoch, message.number, message.client, message.sequence,
                       len(body), 0, 0)[:-4]
    return [head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))), body]


def unpack(frames: Sequence[bytes | memoryview]) -> Message:
    """Return the message of two frames; its arrays are views of the second one, and read-only.

    Raises:
        ProtocolError: any byte is not as it must be.
    """
    if len(frames) != 2:
        raise _bad("frames", len(frames), 2)
    head, body = memoryview(frames[0]).cast("B"), memoryview(frames[1]).cast("B").toreadonly()
    if len(head) != HEADER_BYTES:
        raise _bad("header", f"{len(head)} bytes", HEADER_BYTES)
    magic, version, kind, zero, epoch, number, client, sequence, n_body, zeros, crc = HEADER.unpack(head)
    if magic != MAGIC:
        raise _bad("magic", magic, MAGIC)
    if version != VERSION:
        raise _bad("version", version, VERSION)
    if kind not in KINDS:
        raise _bad("kind", kind, "1 to 4")
    if zero or zeros:
        raise _bad("reserved fields", (zero, zeros), 0)
    if n_body != len(body) or n_body > MAX_BODY_BYTES:
        raise _bad("body", f"{len(body)} bytes", f"the {n_body} that the header says, and at most {MAX_BODY_BYTES}")
    found = zlib.crc32(body, zlib.crc32(head[:-4]))
    if found != crc:
        raise _bad("checksum", found, crc)
    call, listed, at = _json(body)
    return Message(kind, number, call, _arrays(listed, body, at), client, sequence, epoch)


def number_of(frames: Sequence[bytes | memoryview]) -> tuple[int, bytes]:
    """Return (number, client) of a message that may be damaged, for an answer; zeros where there is no header."""
    if frames and len(frames[0]) == HEADER_BYTES:
        fields = HEADER.unpack(frames[0])
        return fields[5], fields[6]
    return 0, bytes(16)


def _json(body: memoryview) -> tuple[dict, list, int]:
    """Return (call, list of arrays, where the arrays begin)."""
    if len(body) < 4:
        raise _bad("body", f"{len(body)} bytes", "4 or more")
    n, = struct.unpack_from("<I", body)
    if n > len(body) - 4 or n > MAX_JSON_BYTES or (n + 4) % ALIGN:
        raise _bad("JSON", f"{n} bytes", f"at most {min(len(body) - 4, MAX_JSON_BYTES)}, ending at a multiple of {ALIGN}")
    try:
        value = json.loads(bytes(body[4:4 + n]), parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise _bad("JSON", exc, "a list of call and arrays") from exc
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], dict) and isinstance(value[1], list)):
        raise _bad("JSON", type(value).__name__, "a list of an object and a list")
    if len(value[1]) > MAX_ARRAYS:
        raise _bad("arrays", len(value[1]), f"at most {MAX_ARRAYS}")
    return value[0], value[1], 4 + n


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _arrays(listed: list, body: memoryview, at: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    start = at
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[1], str)
                and isinstance(entry[2], list) and len(entry[2]) <= MAX_DIMENSIONS
                and all(type(n) is int and 0 <= n <= MAX_BODY_BYTES for n in entry[2])):
            raise _bad("array", entry, "[name, dtype, [lengths]]")
        name, kind, shape = entry
        if kind not in DTYPES or name in arrays:
            raise _bad("array", f"{name} {kind}", "another name, and one of " + ", ".join(DTYPES))
        at += -(at - start) % ALIGN
        n_bytes = math.prod(shape) * DTYPES[kind].itemsize
        if n_bytes > len(body) - at:
            raise _bad(f"array {name}", f"{n_bytes} bytes", f"at most the {max(0, len(body) - at)} that follow")
        arrays[name] = np.frombuffer(body[at:at + n_bytes], DTYPES[kind]).reshape(shape)
        at += n_bytes
    if at != len(body):
        raise _bad("body", f"{len(body) - at} bytes after the last array", "none")
    return arrays


def _bad(field: str, found: object, expected: object) -> ProtocolError:
    text = str(found)
    shown = text if len(text) <= 200 else text[:200] + "..."
    return ProtocolError(f"not a message of kvps: {field} {shown}, expected {expected}", field=field, found=shown,
                         expected=expected)

"""Push a file of keys and counts to a table: lines -> batches -> CountTable.push().

With a client the batches are numbered, and each carries a digest of everything up to its end: the same call again adds
nothing twice, and one with another input, or other batches, is refused before it adds anything.
"""
from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from kvps.errors import ArgumentError, DataError, StoreError
from kvps.ps.table import CountTable

KEY_TYPES = ("uint", "hex", "text")
FORMATS = ("csv", "jsonl")
DEFAULT_BATCH = 100_000        # keys; a push costs two syncs of the disk, whatever its size
MAX_LINE_BYTES = 1 << 20       # a key has 32 bytes at most, but a JSON object may have other fields
_COUNT = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_UINT = re.compile(r"[0-9]{1,78}", re.ASCII)
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*", re.ASCII)


def key_of(text: str | int, key_type: str, key_bytes: int, *, part: bool = False) -> bytes:
    """Return the key that a user wrote, or with `part` the beginning of one.

    Raises:
        ValueError: in words what is wrong with it.
    """
    if key_type == "uint":
        written = str(text)
        if _UINT.fullmatch(written) is None or int(written) >> 8 * key_bytes:
            raise ValueError(f"the key {_shown(written)} is no number from 0 to 2**{8 * key_bytes} - 1")
        return int(written).to_bytes(key_bytes)
    if not isinstance(text, str):
        raise ValueError(f"the key {_shown(str(text))} is a number, expected text")
    if key_type == "hex":
        if _HEX.fullmatch(text) is None or (len(text) > 2 * key_bytes if part else len(text) != 2 * key_bytes):
            raise ValueError(f"the key {_shown(text)} is not {'at most ' if part else ''}{2 * key_bytes} hexadecimal digits")
        return bytes.fromhex(text)
    try:
        key = text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"the key {_shown(text)} is not UTF-8") from exc
    if len(key) > key_bytes or b"\0" in key:
        found = f"{len(key)} bytes" if len(key) > key_bytes else "a NUL"
        raise ValueError(f"the key {_shown(text)} has {found}, expected at most {key_bytes} bytes without NUL")
    return key if part else key.ljust(key_bytes, b"\0")


def shown_keys(keys: np.ndarray, key_type: str) -> Iterator[str | int]:
    """Yield keys, as a table gives them, as a user writes them; DataError where one is no text."""
    if keys.ndim == 1:
        rows = keys.astype(keys.dtype.newbyteorder(">")).view(np.uint8).reshape(len(keys), -1)
        if key_type == "uint":
            yield from keys.tolist()
            return
    else:
        rows = keys
    for row in rows:
        key = row.tobytes()
        if key_type == "uint":
            yield int.from_bytes(key)
        elif key_type == "hex":
            yield key.hex()
        else:
            try:
                yield key.rstrip(b"\0").decode()
            except UnicodeDecodeError as exc:
                raise DataError(f"the key 0x{key.hex()} is no text; show it with --key-type hex") from exc


def _shown(text: str) -> str:
    return f'"{text}"' if len(text) <= 80 else f'"{text[:80]}..."'


def rows(stream: BinaryIO, name: str, layout: str, key_type: str, key_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield (line, key, count) of each line that is not blank; DataError names the line that cannot be read."""
    parse = _parse_csv if layout == "csv" else _parse_json
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if not text.strip():
                continue
            key, count = parse(text)
            yield number, key_of(key, key_type, key_bytes), count
        except UnicodeDecodeError as exc:
            raise DataError(f"{name}: line {number} is not UTF-8 at its byte {exc.start}", path=name, line=number) from exc
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{name}: line {number}: {exc}", path=name, line=number) from exc


def _parse_csv(text: str) -> tuple[str, int]:
    if '"' in text:
        try:
            fields = next(csv.reader([text], strict=True))
        except csv.Error as exc:
            raise ValueError(f"is no CSV: {exc}") from exc
    else:
        fields = text.split(",")
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields, expected key,count (a key with a comma goes between double quotes)")
    return fields[0], _count(fields[1])


def _parse_json(text: str) -> tuple[str | int, int]:
    try:
        row = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"is no JSON: {exc}") from exc
    if not isinstance(row, dict) or "key" not in row or "count" not in row:
        raise ValueError('is no object with "key" and "count"')
    key, count = row["key"], row["count"]
    if not isinstance(key, (str, int)) or isinstance(key, bool):
        raise ValueError(f'"key" is {json.dumps(key)[:80]}, expected text or a number')
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f'"count" is {json.dumps(count)[:80]}, expected a whole number')
    return key, _in_range(count)


def _count(text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise ValueError(f"the count {_shown(text)} is no whole number")
    return _in_range(int(text))


def _in_range(count: int) -> int:
    if abs(count) > 1 << 62:
        raise ValueError(f"the count {count} is beyond 2**62")
    return count


def push_rows(table: CountTable, found: Iterable[tuple[int, bytes, int]], *, name: str, batch: int = DEFAULT_BATCH,
              client: str | None = None, progress: Callable[[int], None] = lambda rows: None) -> dict:
    """Push rows (line, key, count) in batches.

    Args:
        name: of the input, for messages.
        batch: rows of each push.
        client: makes it restartable: called again with the same rows, batch and client, it adds what is missing.
        progress: called with the rows done since the last call.

    Returns:
        {"rows", "batches", "already": how many of the batches had arrived before}.

    Raises:
        DataError: a row cannot be read, or a count gets too large; the message says what was added.
        StoreError: a client's rows are not those of an earlier call.
    """
    if batch < 1:
        raise ArgumentError(f"batches of {batch} rows are not possible, expected 1 or more")
    last = table.client(client)["sequence"] if client is not None else 0
    digest = hashlib.blake2b(digest_size=16)
    n_rows = n_batches = already = last_line = 0
    try:
        for lines, keys, counts in _batches(found, batch, table.key_bytes):
            n_batches += 1
            digest.update(keys)
            digest.update(counts.astype("<i8"))
            if n_batches < last:
                already += 1
            else:
                already += not (table.push(keys, counts, client=client, sequence=n_batches, note=digest.hexdigest())
                                if client is not None else table.push(keys, counts))
            n_rows, last_line = n_rows + lines[0], lines[1]
            progress(lines[0])
    except DataError as exc:
        added = f"lines 1 to {last_line} are added" if n_rows else "nothing is added"
        again = "; run the same command again when it is mended" if client is not None else ", the others are not" if n_rows else ""
        facts = {field: value for field, value in vars(exc).items() if value is not None}
        raise DataError(f"{exc}; {added}{again}", **{"path": name, **facts}) from exc
    if n_batches < last:
        raise StoreError(f"{name}: has {n_batches} batches of {batch} rows, but client {client} has pushed {last}; give the same "
                         "input and --batch, or another --client", path=name, found=n_batches, expected=last)
    return {"rows": n_rows, "batches": n_batches, "already": already}


def _batches(found: Iterable[tuple[int, bytes, int]], batch: int,
             key_bytes: int) -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
    """Yield ((how many rows, line of the last one), keys, counts)."""
    source = iter(found)
    while some := list(itertools.islice(source, batch)):
        keys = np.frombuffer(b"".join(key for _, key, _ in some), np.uint8).reshape(len(some), key_bytes)
        yield (len(some), some[-1][0]), keys, np.array([count for _, _, count in some], np.int64)

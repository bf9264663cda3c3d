"""Keys of a table and their counts: arrays of the user <-> packed keys of the kernels (kvps._table).

Packed: uint64, key_width words a key; a key of K bytes is ceil(K / 4) big-endian words of 32 bits, the last one filled
with NUL bytes, so that packed keys are ordered as their bytes are.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvps._ngrams import key_width
from kvps._runs import pack, unpack
from kvps._table import order_of
from kvps.errors import ArgumentError

MAX_KEY_BYTES = 32
BITS = 32                  # of a word of a key
INTEGERS = {4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}

Keys = np.ndarray | Sequence[bytes] | Sequence[int]


@dataclass(frozen=True)
class Part:
    """What a push brings to one shard: keys (packed, increasing), their counts (none 0), the greatest size of these."""

    shard: int
    keys: np.ndarray
    counts: np.ndarray
    most: int


def check_key_bytes(key_bytes: object) -> int:
    """Return a width of keys that a table can have, or raise ArgumentError."""
    if not isinstance(key_bytes, int) or isinstance(key_bytes, bool) or not 1 <= key_bytes <= MAX_KEY_BYTES:
        raise ArgumentError(f"keys of {key_bytes} bytes are not possible, expected 1 to {MAX_KEY_BYTES}")
    return key_bytes


def expected(key_bytes: int) -> str:
    """Say which keys a table takes."""
    integers = f"{INTEGERS[key_bytes]} (n,), " if key_bytes in INTEGERS else ""
    return f"{integers}uint8 (n, {key_bytes}) or a list of bytes, {key_bytes} each"


def raw_keys(keys: Keys, key_bytes: int) -> tuple[np.ndarray, bool]:
    """Return the bytes of some keys, uint8 (n * key_bytes,), and whether they are integers of this machine.

    Raises:
        ArgumentError: not keys of this table.
    """
    if isinstance(keys, np.ndarray):
        if keys.ndim == 1 and keys.dtype == INTEGERS.get(key_bytes):
            return np.ascontiguousarray(keys).view(np.uint8), True
        if keys.ndim == 2 and keys.dtype == np.uint8 and keys.shape[1] == key_bytes:
            return np.ascontiguousarray(keys).reshape(-1), False
        raise ArgumentError(f"keys are {keys.dtype} {keys.shape}, expected {expected(key_bytes)}")
    if isinstance(keys, (str, bytes, bytearray, memoryview)) or not isinstance(keys, Sequence):
        raise ArgumentError(f"keys are one {type(keys).__name__}, expected {expected(key_bytes)}")
    if key_bytes in INTEGERS and keys and all(isinstance(key, (int, np.integer)) and not isinstance(key, bool) for key in keys):
        try:
            return np.array(keys, INTEGERS[key_bytes]).view(np.uint8), True
        except (OverflowError, ValueError) as exc:
            raise ArgumentError(f"a key is below 0 or beyond {8 * key_bytes} bits") from exc
    for number, key in enumerate(keys):
        if not isinstance(key, bytes) or len(key) != key_bytes:
            found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise ArgumentError(f"key {number} is {found}, expected {expected(key_bytes)}")
    return np.frombuffer(b"".join(keys), np.uint8), False


def count_array(deltas: np.ndarray | Sequence[int] | int, n_keys: int) -> np.ndarray:
    """Return int64 (n_keys,), or (1,) for one number that stands for all; ArgumentError where they are no such numbers."""
    if isinstance(deltas, (int, np.integer)) and not isinstance(deltas, bool):
        if not -(1 << 63) <= deltas < 1 << 63:
            raise ArgumentError(f"the count {deltas} does not fit in 64 bits")
        return np.array([deltas], np.int64)
    try:
        array = np.asarray(deltas)
        if array.size == 0:
            array = array.astype(np.int64)
    except (OverflowError, ValueError) as exc:
        raise ArgumentError("the counts are no array of numbers") from exc
    if array.ndim != 1 or array.dtype == bool or not np.can_cast(array.dtype, np.int64, "safe"):
        raise ArgumentError(f"counts are {array.dtype} {array.shape}, expected int64 ({n_keys},) or one int")
    if len(array) != n_keys:
        raise ArgumentError(f"{n_keys} keys with {len(array)} counts: expected as many, or one int for all")
    return np.ascontiguousarray(array, np.int64)


def user_keys(packed: np.ndarray, key_bytes: int) -> np.ndarray:
    """Return packed keys as arrays of the user: uint64 (n,), which are the packed ones, uint32 (n,), or uint8 (n, key_bytes)."""
    if key_bytes in INTEGERS:
        return packed.astype(INTEGERS[key_bytes], copy=False)
    words = unpack(np.ascontiguousarray(packed), order_of(key_bytes), BITS)
    return words.astype(">u4").view(np.uint8).reshape(len(words), -1)[:, :key_bytes].copy()


def words_of(key: bytes, key_bytes: int) -> tuple[int, ...]:
    """Return the words of a key, or of the least key that begins with some bytes."""
    whole = key.ljust(4 * order_of(key_bytes), b"\0")
    return tuple(int.from_bytes(whole[at:at + 4]) for at in range(0, len(whole), 4))


def packed_key(key: bytes, key_bytes: int) -> np.ndarray:
    """Return one packed key."""
    return pack(np.array([words_of(key, key_bytes)], np.uint32), BITS)


def width_of(key_bytes: int) -> int:
    """Return how many uint64 a packed key takes."""
    return key_width(order_of(key_bytes), BITS)


def shown(packed: np.ndarray, key_bytes: int) -> str:
    """Return one packed key for a message."""
    key = user_keys(packed, key_bytes)[0]
    return str(key) if key_bytes in INTEGERS else f"0x{key.tobytes().hex()}"

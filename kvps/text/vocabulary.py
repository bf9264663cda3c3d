"""The vocabulary of a store in memory: words as bytes <-> ids, in the order in which they were first seen.

Ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`. An id is never used again for another word.
Which words are alive (their count is above 0) is a question of the counts, not of this table.
A segment is how the table is stored: see kvps/store/FORMAT.md, "Vocabulary segment".
"""
from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable

import numpy as np

from kvps._vocabulary import WordTable, encode
from kvps.errors import CorruptionError, VocabularyFull

SPECIALS = (b"<unk>", b"<s>", b"</s>")
UNK, BOS, EOS, FIRST_WORD = 0, 1, 2, 3

# A segment is one LMDB value; longer lists of new words are split.
SEGMENT_BYTES = 1 << 20


class Vocabulary:
    """A growing table of words, and how far it has been stored."""

    def __init__(self, segments: Iterable[tuple[int, bytes]] = ()) -> None:
        """Load stored segments (first id, segment)."""
        self.table = WordTable()
        for word in SPECIALS:
            self.table.add(word)
        for first, segment in segments:
            if first != len(self.table):
                raise CorruptionError(f"vocabulary segment starts at word {first}, expected {len(self.table)}",
                                      key=first, found=first, expected=len(self.table))
            self.table.load(*unpack_segment(segment))
        self._stored = len(self.table)
        self._storing = threading.Lock()

    def __len__(self) -> int:
        return len(self.table)

    def encode(self, text: bytes, ids: np.ndarray, *, skip_reserved: bool) -> tuple[int, int, int]:
        """Turn text into ids, adding new words; see kvps._vocabulary.encode."""
        try:
            return encode(self.table, text, ids, skip_reserved=skip_reserved)
        except OverflowError as exc:
            raise VocabularyFull(f"{exc}; no more different words can be stored") from exc

    def store_new(self, write: Callable[[int, bytes], None]) -> None:
        """Hand the words that are not stored yet to `write(first id, segment)`; they are stored when it returns."""
        with self._storing:
            while self._stored < len(self.table):
                lengths, words = self.table.slice(self._stored)
                ends = np.cumsum(lengths, dtype=np.int64)
                n = max(1, int(np.searchsorted(ends + 4 * np.arange(1, len(ends) + 1), SEGMENT_BYTES)))
                write(self._stored, pack_segment(lengths[:n], words[:int(ends[n - 1])]))
                self._stored += n


def pack_segment(lengths: np.ndarray, words: bytes) -> bytes:
    """Return a segment: the number of words, their lengths (uint32), their bytes one after another."""
    return struct.pack("<I", len(lengths)) + lengths.astype("<u4").tobytes() + words


def unpack_segment(segment: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return (lengths uint32 (n,), bytes uint8) of a segment."""
    n = struct.unpack_from("<I", segment)[0] if len(segment) >= 4 else -1
    if n < 0 or len(segment) < 4 + 4 * n:
        raise CorruptionError(f"vocabulary segment of {len(segment)} bytes says it holds {n} words", found=n)
    lengths = np.frombuffer(segment, "<u4", n, 4).astype(np.uint32)
    words = np.frombuffer(segment, np.uint8, offset=4 + 4 * n)
    if int(lengths.sum(dtype=np.uint64)) != words.size:
        raise CorruptionError(f"vocabulary segment: lengths add up to {int(lengths.sum(dtype=np.uint64))} bytes, "
                              f"found {words.size}", found=words.size)
    return lengths, words

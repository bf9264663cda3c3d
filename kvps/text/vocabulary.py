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

from kvps._vocabulary import WordTable, encode, translate
from kvps.errors import CorruptionError, VocabularyFull

SPECIALS = (b"<unk>", b"<s>", b"</s>")
UNK, BOS, EOS, FIRST_WORD = 0, 1, 2, 3

# A segment is one LMDB value; longer lists of new words are split.
SEGMENT_BYTES = 1 << 20


def text_of_word(word: bytes) -> str:
    """Return a word as a str; bytes that are no UTF-8, as ARPA files of others have them, as surrogateescape does."""
    return word.decode("utf-8", "surrogateescape")


class Vocabulary:
    """A growing table of words, and how far it has been stored.

    One process that counts alone gives new words their ids in the order in which it meets them. Where several count into
    one store, it has a table of its own, asks for the ids that the words have in the store, and gives out only those.
    """

    def __init__(self, segments: Iterable[tuple[int, bytes]] = (), share: Callable[[bytes], np.ndarray] | None = None, *,
                 closed: bool = False) -> None:
        """Load stored segments (first id, segment).

        share: takes words that are new here, as a segment, stores those that the store does not have, and returns the ids
            of all, uint32. None: the ids of this table are the store's.
        closed: text adds no words; those that are not here are <unk>.
        """
        self.table = WordTable()
        self._share, self._closed = share, closed
        for word in SPECIALS:
            self.table.add(word)
        for first, segment in segments:
            if first != len(self.table):
                raise CorruptionError(f"vocabulary segment starts at word {first}, expected {len(self.table)}",
                                      key=first, found=first, expected=len(self.table))
            self.table.load(*unpack_segment(segment))
        self._stored = len(self.table)
        self._storing = threading.Lock()
        self._ids = np.arange(self._stored, dtype=np.uint32)           # the store's id of each word here
        self._n_ids, self._same = self._stored, True                   # above all of them; whether they are our own

    def __len__(self) -> int:
        """Return a number above all ids that were given out."""
        return len(self.table) if self._share is None else self._n_ids

    def encode(self, text: bytes, ids: np.ndarray, *, skip_reserved: bool) -> tuple[int, int, int]:
        """Turn text into ids, adding new words; see kvps._vocabulary.encode."""
        try:
            found = encode(self.table, text, ids, skip_reserved=skip_reserved, closed=self._closed)
        except OverflowError as exc:
            raise VocabularyFull(f"{exc}; no more different words can be stored") from exc
        if self._share is not None:
            self.store_new(lambda first, segment: None)
            if not self._same:
                translate(ids[:found[0]], self._ids)
        return found

    def _learn(self, first: int, segment: bytes) -> None:
        """Take the store's ids for words from our `first` on; holding self._storing."""
        ids = self._share(segment)
        self._n_ids = max(self._n_ids, int(ids.max()) + 1)
        self._same = self._same and np.array_equal(ids, np.arange(first, first + len(ids), dtype=np.uint32))
        self._ids = np.concatenate([self._ids, ids])

    def store_new(self, write: Callable[[int, bytes], None]) -> None:
        """Hand the words that are not stored yet to `write(first id, segment)`; they are stored when it returns.

        Where ids are shared, `share` gets them, and `write` nothing.
        """
        if self._share is not None:            # also words that another thread has just met, and will ask for
            write = self._learn
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

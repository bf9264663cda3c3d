"""One input: what it is, what identifies it, and its text in splits that can be taken up again anywhere.

A split is a byte range of the decompressed stream. Its bounds depend only on where it begins and how long it is asked
to be, so a job that stopped after one goes on exactly there. How bytes are read is streams.py's business, what JSON and
NLTK hold documents.py's.
"""
from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from kvps.errors import ArgumentError, DataError, InputGone
from kvps.text import urls
from kvps.text.documents import counted_text, nltk_documents, nltk_files
from kvps.text.streams import BLOCK_BYTES, DEFAULT_MAX_RATIO, RATIO_FREE_BYTES, IteratorStream, failures_named, open_stream

MAX_LINE_BYTES = 32 << 20  # a sentence has to fit into memory several times over; real ones stay below a megabyte

_PROBE_BYTES = 64 << 10

# Do not change: stored in job records.
KINDS = (
    "text",   # a sentence a line
    "words",  # a line is the words of a sentence, joined by one space: no tokenizer may touch them
    "jsonl",  # a JSON object a line, a field of which is text
    "nltk",   # a document of an NLTK corpus a line
)


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of an input's text: `data` is what stands in bytes [start, end) of the stream, in whole lines.

    For jsonl the range is that of the records and `data` their text. Only the last line of an input may lack its
    newline. `raw` is how many bytes of the file itself (compressed, where it is) were read from `start` to `end`: for
    showing progress. `times` says how often each line of `data` counts; None: once.
    """

    start: int
    end: int
    data: bytes
    input: Input = field(repr=False, compare=False)
    raw: int = field(default=0, compare=False)
    times: array[int] | None = field(default=None, repr=False)

    def locate(self, index: int) -> tuple[int, int]:
        """Return (line, byte offset) in the decompressed stream of data[index]; the line counts from 1.

        Reads the input again up to there: for error messages. For jsonl the place is that of the record.
        """
        return self.input._locate(self, index)


@dataclass(frozen=True)
class Input:
    """One source of sentences, as resolve() and spool() make them; holds no open file.

    Attributes:
        name: as the user gave it, for messages.
        path: absolute, or a URL; of the NLTK corpus for kind "nltk".
        kind: one of KINDS.
        options: "compression" (gz, bz2, xz, zst) and, with it, "max_ratio" (see open_stream); for jsonl "field" and
            "newline", and "count_field" where one says how often a record counts; for nltk "corpus".
    """

    name: str
    path: str
    kind: str = "text"
    options: dict[str, str | int] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, object]:
        """Return what from_json() takes: plain types only."""
        return {"name": self.name, "path": self.path, "kind": self.kind, "options": dict(self.options)}

    @classmethod
    def from_json(cls, record: dict[str, object]) -> Input:
        """Return the Input that to_json() described; DataError where its kind is unknown."""
        if record["kind"] not in KINDS:
            raise DataError(f"{record['name']}: unknown kind of input: {record['kind']}", path=record["name"])
        return cls(record["name"], record["path"], record["kind"], dict(record["options"]))

    @property
    def size(self) -> int:
        """Return the length of the raw file in bytes (compressed, where it is); of all documents for nltk."""
        return self.fingerprint()["size"]

    def fingerprint(self) -> dict[str, int]:
        """Return {"size": bytes, "mtime_ns": ...}: a cheap hint that the input may have changed; digest() tells."""
        with failures_named(self.name):
            if self.kind == "nltk":
                path, size = nltk_files(self.options["corpus"])
                return {"size": size, "mtime_ns": os.stat(path).st_mtime_ns}
            if urls.is_url(self.path):
                return urls.fingerprint(self.path)
            found = os.stat(self.path)
        return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def file(self) -> list[int] | None:
        """Return device and number of the file, which tell it from others of this machine; None for what is none."""
        if self.kind == "nltk" or urls.is_url(self.path):
            return None
        with failures_named(self.name):
            found = os.stat(self.path)
        return [found.st_dev, found.st_ino]

    def hasher(self):
        """Return the hash object behind digest(), fed with all but the bytes."""
        choices = ""
        if self.kind == "words":
            choices = "kvps words\n"
        elif self.kind == "jsonl":
            choices = f"kvps jsonl {self.options['newline']} {self.options['field']}\n"
            if "count_field" in self.options:  # no newline is in it, and so a digest is that of one choice only
                choices = f"kvps jsonl counted {self.options['count_field']!r}\n{choices}"
        return hashlib.blake2b(choices.encode("utf-8", "surrogatepass"), digest_size=32)

    def digest(self) -> str:
        """Return the hex BLAKE2b-256 of the raw file; of the produced text for nltk.

        Kinds and choices that make other counts of the same bytes (words; a jsonl's fields and newline) are hashed before
        them. Streams, and releases the GIL.
        """
        hasher = self.hasher()
        with failures_named(self.name), self._open() if self.kind == "nltk" else urls.open_file(self.path) as file:
            while block := file.read(BLOCK_BYTES):
                hasher.update(block)
        return hasher.hexdigest()

    def probe(self) -> None:
        """Refuse at once what shows in the beginning that it cannot be used: a bomb, or a first line without an end.

        Reads to the end of the first line and, of a compressed file, as much as has to become RATIO_FREE_BYTES of text:
        some 80 KiB. What comes later is met by splits().

        Raises:
            InputGone, DataError: as splits().
        """
        if self.kind == "nltk":
            return
        enough = RATIO_FREE_BYTES // self._max_ratio if "compression" in self.options and self._max_ratio else 0
        with failures_named(self.name, self.options.get("compression")), self._open() as stream:
            n_bytes, ended = 0, False
            while not ended or stream.raw_at(n_bytes) <= enough:
                block = stream.read1(_PROBE_BYTES)
                if not block:
                    return
                ended = ended or b"\n" in block[:MAX_LINE_BYTES + 1 - n_bytes]
                n_bytes += len(block)
                if not ended and n_bytes > MAX_LINE_BYTES:
                    self._refuse_long_line(0)

    def splits(self, split_bytes: int, start: int = 0) -> Iterator[Split]:
        """Yield the text from `start` on in Splits, each cut after the first newline at or after `split_bytes`.

        Memory is bounded by split_bytes and one line. A split of a jsonl input may have no data.

        Args:
            split_bytes: 1 or more.
            start: 0, or the `end` of any split. Plain files are not read before it; others are read and dropped.

        Raises:
            InputGone: the file is not there, or has become shorter than `start`.
            DataError: it cannot be read, is cut short or damaged, unpacks to too much (open_stream), or has a line longer
                than MAX_LINE_BYTES.
        """
        if split_bytes < 1 or start < 0:
            raise ArgumentError(f"a split has 1 byte or more and begins at 0 or later, not {split_bytes} at {start}")
        with failures_named(self.name, self.options.get("compression")), self._open() as stream:
            self._skip(stream, start)
            place = stream.raw_at if self.kind != "nltk" else int  # NLTK's text has no file of its own
            raw_start = place(start)
            while data := stream.read(split_bytes):
                if len(data) == split_bytes:
                    data = self._whole_line(stream, start, data)
                end = start + len(data)
                long_line = _long_line(data)
                if long_line is not None:
                    self._refuse_long_line(start + long_line)
                raw_end = place(end)
                text, times = self._text(data, start)
                yield Split(start, end, text, self, raw_end - raw_start, times)
                start, raw_start = end, raw_end

    def _whole_line(self, stream: BinaryIO, start: int, data: bytes) -> bytes:
        """Return `data`, which begins at byte `start` of the stream, with the rest of the line that follows."""
        begun = data.rfind(b"\n") + 1
        room = MAX_LINE_BYTES + 1 - (len(data) - begun)
        pieces = [data]
        # In pieces, so that a line that is too long is held only once.
        while room > 0 and (piece := stream.readline(min(room, BLOCK_BYTES))):
            pieces.append(piece)
            room -= len(piece)
            if piece.endswith(b"\n"):
                return b"".join(pieces)
        if room <= 0:
            earlier = _long_line(data)
            self._refuse_long_line(start + (begun if earlier is None else earlier))
        return b"".join(pieces)

    @property
    def _max_ratio(self) -> int:
        # A job record that an earlier version wrote has none.
        return self.options.get("max_ratio", DEFAULT_MAX_RATIO)

    def _open(self) -> BinaryIO:
        if self.kind == "nltk":
            return io.BufferedReader(IteratorStream(nltk_documents(self.options["corpus"])), BLOCK_BYTES)
        return open_stream(self.path, self.options.get("compression"), name=self.name, max_ratio=self._max_ratio)

    def _skip(self, stream: BinaryIO, start: int) -> None:
        if start == 0:
            return
        if self.kind != "nltk" and "compression" not in self.options:
            reached = min(start, stream.seek(0, os.SEEK_END))
            stream.seek(reached)
        else:
            reached = 0
            while reached < start and (dropped := stream.read(min(BLOCK_BYTES, start - reached))):
                reached += len(dropped)
        if reached < start:
            raise InputGone(f"{self.name}: has only {reached} bytes of text now, but {start} had been read; put the "
                            "earlier file back, then go on with `kvps resume`", path=self.name, offset=reached)

    def _text(self, data: bytes, start: int) -> tuple[bytes, array[int] | None]:
        """Return the sentences of a piece of the stream that begins at byte `start`, and how often each counts, as in a Split."""
        if self.kind != "jsonl":
            return data, None
        texts, times = [], array("q")
        for line_index, line in enumerate(data.split(b"\n")):
            try:
                text, n = self._record(line)
            except ValueError as error:
                number = self._line_number(start) + line_index
                raise DataError(f"{self.name}: line {number}: {error}", path=self.name, line=number) from error
            texts.append(text)
            times.extend([n] * text.count(b"\n"))
        return b"".join(texts), times if "count_field" in self.options else None

    def _record(self, line: bytes) -> tuple[bytes, int]:
        return counted_text(line, self.options["field"], self.options["newline"], self.options.get("count_field"))

    def _locate(self, split: Split, index: int) -> tuple[int, int]:
        """Return the line and offset that Split.locate describes."""
        if self.kind != "jsonl":
            return self._line_number(split.start) + split.data.count(b"\n", 0, index), split.start + index
        produced, offset = 0, split.start
        first = self._line_number(split.start)
        with failures_named(self.name, self.options.get("compression")), self._open() as stream:
            self._skip(stream, split.start)
            lines = stream.read(split.end - split.start).split(b"\n")
        for line_index, line in enumerate(lines):
            produced += len(self._record(line)[0])
            if produced > index:
                return first + line_index, offset
            offset += len(line) + 1
        return first + len(lines) - 1, split.end

    def _line_number(self, offset: int) -> int:
        """Return the number, from 1, of the line that byte `offset` of the stream stands in."""
        newlines = 0
        with self._open() as stream:
            while offset > 0 and (block := stream.read(min(BLOCK_BYTES, offset))):
                newlines += block.count(b"\n")
                offset -= len(block)
        return newlines + 1

    def _refuse_long_line(self, offset: int) -> None:
        line = self._line_number(offset)
        raise DataError(f"{self.name}: line {line} is longer than {MAX_LINE_BYTES >> 20} MiB; kvps takes one sentence "
                        "a line: break the text into lines", path=self.name, line=line, offset=offset)


def _long_line(data: bytes) -> int | None:
    """Return where the first line longer than MAX_LINE_BYTES begins, or None. Looks at one byte range per 32 MiB."""
    begin = 0
    while begin + MAX_LINE_BYTES < len(data):
        newline = data.rfind(b"\n", begin, begin + MAX_LINE_BYTES + 1)
        if newline < 0:
            return begin
        begin = newline + 1
    return None

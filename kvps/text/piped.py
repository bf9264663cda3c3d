"""Text that is read once, as it comes: stdin and pipes, for what only passes text through and never reads it again."""
from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NoReturn

from kvps.errors import ArgumentError, DataError
from kvps.text.corpus import read_once, resolve
from kvps.text.inputs import MAX_LINE_BYTES, Input
from kvps.text.streams import BLOCK_BYTES, IteratorStream, Stream


class Piped(Input):
    """A stream of lines with the interface of an Input, of which splits() may be called once."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        super().__init__(name, "", "text")
        object.__setattr__(self, "_stream", stream)
        object.__setattr__(self, "_lines", {0: 1})         # start of each split so far: the number of its first line

    def _open(self) -> BinaryIO:
        return Stream(IteratorStream(iter(lambda: self._stream.read1(BLOCK_BYTES), b"")), BLOCK_BYTES)

    def _text(self, data: bytes, start: int) -> tuple[bytes, None]:
        self._lines[start + len(data)] = self._lines[start] + data.count(b"\n")
        return data, None

    def _line_number(self, offset: int) -> int:
        return self._lines[offset]

    def _refuse_long_line(self, offset: int) -> NoReturn:
        raise DataError(f"{self.name}: the line at byte {offset} is longer than {MAX_LINE_BYTES >> 20} MiB; kvps takes one "
                        "sentence a line: break the text into lines", path=self.name, offset=offset)


def passing(arguments: Iterable[str], *, records: bool = False, **choices: str | int) -> list[Input]:
    """Return the inputs that the arguments name, as resolve() does, but with stdin and pipes read as they come.

    records: the lines of .jsonl files are wanted as they are, not the text in them.
    choices: as those of resolve(). A stream is taken for lines of text, or with `records` of JSON.
    """
    found: list[Input] = []
    for argument in arguments:
        if not read_once(argument):
            found += resolve([argument], **choices)
        elif argument == "-" and any(isinstance(source, Piped) and source.name == "-" for source in found):
            raise ArgumentError("stdin (-) can be read only once")
        else:
            stream = sys.stdin.buffer if argument == "-" else open(argument, "rb")  # noqa: SIM115 - open while it is read
            found.append(Piped(argument, stream))
    return [_lines(source) for source in found] if records else found


def _lines(source: Input) -> Input:
    """Return an input of JSON lines as one of plain lines."""
    if source.kind == "nltk":
        raise ArgumentError(f"{source.name}: has no records; name a file of JSON lines")
    if source.kind != "jsonl":
        return source
    return Input(source.name, source.path, "text", {name: source.options[name] for name in ("compression", "max_ratio")
                                                    if name in source.options})


def stdin_lines() -> Iterator[str]:
    r"""Yield each line of stdin as soon as it is there, without its \n or \r\n; bytes that are not UTF-8 as surrogates."""
    for line in sys.stdin.buffer:
        yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def numbered_lines(source: Input, n_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line without its newline) of an input of plain lines, of which so many bytes are read at once."""
    number = 0
    for split in source.splits(n_bytes):
        lines = split.data.split(b"\n")
        for line in lines if lines[-1] else lines[:-1]:
            number += 1
            yield number, line

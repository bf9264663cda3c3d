"""Keep text that can be read only once - stdin, pipes, Python iterables - as a file, so that a job can be resumed.

Spooled files are named by content: the same text is kept once. Whoever owns the folder removes them.
"""
from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kvps.errors import ArgumentError
from kvps.store import files
from kvps.text.inputs import Input
from kvps.text.streams import BLOCK_BYTES, failures_named
from kvps.text.tokenize import SEPARATORS

_SEPARATOR = re.compile(f"[{SEPARATORS}\n]")


class TheirError(Exception):
    """Carries an exception of the user's iterable past our own error handling."""


def spool(sentences: Iterable[str | list[str] | tuple[str, ...]], folder: str | Path) -> Input:
    """Write sentences to `folder`, one a line, and return them as an Input; durable on return.

    All sentences are str (the store's tokenizer will make words of them), or all are lists or tuples of words (taken as
    they are: the Input has kind "words").

    Raises:
        ArgumentError: a bare str or bytes; a sentence of another type, or with a newline in it; a word that is empty or
            contains NUL, TAB, CR, space or newline; text that Unicode cannot encode. Nothing is left behind.
    """
    if isinstance(sentences, (str, bytes, bytearray)):
        raise ArgumentError(f"expected an iterable of sentences, not one {type(sentences).__name__}; put it in a list")
    lines = sentence_lines(sentences)
    theirs = None
    try:
        first = list(itertools.islice(lines, 1))
        kind = first[0][0] if first else "text"
        return _keep(_blocks(itertools.chain(first, lines), kind), folder, "(iterable)", kind)
    except TheirError as error:
        theirs = error.__cause__
    raise theirs


def spool_stream(stream: BinaryIO, folder: str | Path, name: str) -> Input:
    """Copy a binary stream to `folder` and return it as an Input called `name`; durable on return."""
    def pieces() -> Iterator[bytes]:
        with failures_named(name):
            while block := stream.read(BLOCK_BYTES):
                yield block

    return _keep(pieces(), folder, name, "text")


def sentence_lines(sentences: Iterable) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, line with its newline) of each sentence, checked; sentences are numbered from 1 in messages.

    An exception of the iterable itself comes as the cause of a TheirError.
    """
    try:
        iterator = iter(sentences)
    except TypeError as error:
        raise ArgumentError(f"expected an iterable of sentences, got {type(sentences).__name__}") from error
    number = 0
    while True:
        number += 1
        try:
            sentence = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise TheirError from error
        line = sentence_line(sentence, number).encode() + b"\n"
        yield "text" if isinstance(sentence, str) else "words", line


def _blocks(lines: Iterable[tuple[str, bytes]], kind: str) -> Iterator[bytes]:
    """Yield the lines, all of which must be of `kind`, in blocks worth a write."""
    block, n_bytes = [], 0
    for number, (found, line) in enumerate(lines, 1):
        if found != kind:
            raise ArgumentError(f"sentence {number}: str and lists of words are mixed; give all in one form")
        block.append(line)
        n_bytes += len(line)
        if n_bytes >= BLOCK_BYTES:
            yield b"".join(block)
            block, n_bytes = [], 0
    yield b"".join(block)


def sentence_line(sentence: str | list[str] | tuple[str, ...], number: int) -> str:
    """Return the line, without its newline, of a sentence that a program gave; it can be encoded as UTF-8.

    Raises:
        ArgumentError: as spool(); the message calls it sentence `number`.
    """
    if isinstance(sentence, str):
        if "\n" in sentence:
            raise ArgumentError(f"sentence {number} has a newline in it; give each line as a sentence of its own")
        line = sentence
    elif isinstance(sentence, (list, tuple)):
        line = _join(sentence, number)
    else:
        raise ArgumentError(f"sentence {number} is {type(sentence).__name__}, not str or a list of words")
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(f"sentence {number} is not valid Unicode: {error.reason}") from error
    return line


def _join(words: list[str] | tuple[str, ...], number: int) -> str:
    """Return the words joined by a space; ArgumentError names the first one that would not come back as one word."""
    for word in words:
        if not isinstance(word, str):
            raise ArgumentError(f"sentence {number}: a word is {type(word).__name__}, not str: {word!r}")
    line = " ".join(words)
    # One look at the whole sentence; word by word only where it shows something.
    if "" in words or line.count(" ") != len(words) - bool(words) or _SEPARATOR.search(line.replace(" ", "")):
        bad = next(word for word in words if not word or _SEPARATOR.search(word))
        raise ArgumentError(f"sentence {number}: the word {bad!r} is empty or has a separator in it")
    return line


def _keep(pieces: Iterator[bytes], folder: str | Path, name: str, kind: str) -> Input:
    """Write pieces to a file named by their digest, atomically, and return it as an Input."""
    folder = Path(os.path.abspath(folder))
    hasher = Input(name, "", kind).hasher()

    def hashed() -> Iterator[bytes]:
        for piece in pieces:
            hasher.update(piece)
            yield piece

    if not folder.is_dir():
        files.make_dir(folder)
        files.fsync_dir(folder.parent)
    temporary = folder / f"spool-{os.urandom(8).hex()}.tmp"
    files.atomic_write(temporary, hashed())
    target = folder / f"{hasher.hexdigest()}.txt"
    files.rename(temporary, target)
    return Input(name, str(target), kind)

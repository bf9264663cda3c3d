"""The bytes of one input as a buffered stream, plain or decompressed within limits, with every failure named; compressed output.

A compressed file is unpacked once, never what comes out of it again, and in small steps, so that a few kilobytes that
claim to be terabytes are refused before they take memory. Codecs are imported when a file needs them. What the bytes
mean, and where they are cut, is inputs.py's business.
"""
from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from kvps.errors import DataError, InputGone
from kvps.text.urls import failure, is_url, open_file

BLOCK_BYTES = 1 << 20  # read and hashed at once: large enough that system calls do not show, small enough for a cache
SUFFIXES = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}

# What may come out of a compressed file, per byte of it. Text shrinks three- to tenfold, repetitive logs up to a
# hundredfold; gz can reach 1,032, zstd 32,768 and bz2 more than a million.
DEFAULT_MAX_RATIO = 200
# The ratio is looked at after so much text: before it, nothing can do harm, and a short file may well repeat one line.
RATIO_FREE_BYTES = 16 << 20
# What a decoder may ask for: zstd's largest level (--ultra -22) needs all of it, xz -9 a quarter.
ZSTD_WINDOW_BYTES = 128 << 20
XZ_MEMORY_BYTES = 256 << 20

STEP_BYTES = 16 << 10  # raw bytes given to a decoder at once; the ratio is known to that precision
PIECE_BYTES = 1 << 20  # of text that a decoder may give at once, where it can be told
# zstandard's decoder cannot be told: a step can become 32,768 times as long at worst, that is 16 MiB.
ZSTD_STEP_BYTES = 512


class IteratorStream(io.RawIOBase):
    """A raw stream over an iterator of bytes objects; empty ones are allowed."""

    def __init__(self, pieces: Iterator[bytes], close: Callable[[], None] = lambda: None):
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._close = close

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer) -> int:
        """Fill `buffer` from the current piece; return the bytes written, 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def close(self) -> None:
        """Close what the pieces come from."""
        if not self.closed:
            self._close()
        super().close()


class Stream(io.BufferedReader):
    """The text of a file, which is its bytes."""

    def raw_at(self, offset: int) -> int:
        """Return how many bytes of the file had to be read for the text before `offset`, which must not fall."""
        return offset


class UnpackedStream(Stream):
    """The text of a compressed file."""

    def __init__(self, file: BinaryIO, name: str, compression: str, max_ratio: int):
        self._steps: deque[tuple[int, int]] = deque()  # (end in the text, end in the file) of pieces, oldest first
        self._raw = 0
        self._produced = 0
        pieces = self._within(_pieces(self._blocks(file), compression), name, max_ratio)
        super().__init__(IteratorStream(pieces, file.close), BLOCK_BYTES)

    def raw_at(self, offset: int) -> int:
        """Return how many bytes of the file had to be read for the text before `offset`, which must not fall."""
        while len(self._steps) > 1 and self._steps[0][0] < offset:
            self._steps.popleft()
        return self._steps[0][1] if self._steps and offset else 0

    def _blocks(self, file: BinaryIO) -> Iterator[bytes]:
        while block := file.read(STEP_BYTES):
            self._raw += len(block)
            yield block

    def _within(self, pieces: Iterator[bytes], name: str, max_ratio: int) -> Iterator[bytes]:
        """Pass pieces on, as long as they are not too much for the bytes of the file that were read for them."""
        for piece in pieces:
            self._produced += len(piece)
            if max_ratio and self._produced > max(RATIO_FREE_BYTES, max_ratio * self._raw):
                raise DataError(
                    f"{name}: its first {self._raw} bytes unpack to {self._produced} or more, {self._produced // self._raw} times "
                    f"as many, expected at most {max_ratio} times: it may be a decompression bomb; if the text repeats "
                    "itself that much, pass --max-ratio N (0 for no limit)", path=name, offset=self._produced,
                    found=self._produced // self._raw, expected=max_ratio)
            if self._steps and self._steps[-1][1] == self._raw:
                self._steps.pop()
            self._steps.append((self._produced, self._raw))
            yield piece


def open_stream(path: str, compression: str | None, *, name: str | None = None,
                max_ratio: int = DEFAULT_MAX_RATIO) -> Stream:
    """Return the decompressed bytes of a file as a buffered stream, which the caller closes.

    REQUIRES: opened and read inside failures_named(). A file of 0 bytes is an empty text under every name.

    Args:
        path: of the file.
        compression: gz, bz2, xz or zst; None for a plain file.
        name: of the input, for messages.
        max_ratio: refuse (DataError) text that is so many times as long as what was read of the file, once
            RATIO_FREE_BYTES of it are there; 0 for no limit.
    """
    file = open_file(path)
    try:
        if compression is None or file.seek(0, os.SEEK_END) == file.seek(0):
            return Stream(file, BLOCK_BYTES)
        return UnpackedStream(file, name or path, compression, max_ratio)
    except BaseException:
        file.close()
        raise


def compression_of(path: str | os.PathLike[str]) -> str | None:
    """Return how a file is compressed, by its name: gz, bz2, xz or zst; None for a plain one."""
    return SUFFIXES.get(os.path.splitext(os.fspath(path))[1])


def packed(pieces: Iterable[bytes], compression: str | None) -> Iterator[bytes]:
    """Yield the bytes of a compressed file of some text; the text itself where it is None."""
    if compression is None:
        yield from pieces
        return
    encoder = _encoder(compression)
    for piece in pieces:
        yield encoder.compress(piece)
    yield encoder.flush()


def _encoder(compression: str):
    """Return an encoder of one stream, with the interface of bz2.BZ2Compressor."""
    if compression == "gz":
        import zlib

        return zlib.compressobj(6, wbits=16 + zlib.MAX_WBITS)  # 16: with gzip's header and trailer
    if compression == "bz2":
        import bz2

        return bz2.BZ2Compressor()
    if compression == "zst":
        import zstandard

        return zstandard.ZstdCompressor().compressobj()
    import lzma

    return lzma.LZMACompressor()


def _pieces(blocks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Yield the text of compressed blocks; EOFError where they end too early.

    A file may have several streams one after the other, and zeros behind each; anything else there is damage.
    """
    if compression == "zst":
        yield from _zstd_pieces(blocks)
        return
    decoder = None
    for block in blocks:
        rest = block
        while rest:
            if decoder is None:
                rest = rest.lstrip(b"\0")  # padding; no stream begins with a zero
                if not rest:
                    break
                decoder = _decoder(compression)
            yield decoder.decompress(rest, PIECE_BYTES)
            rest = b""
            while not (decoder.eof or decoder.needs_input):
                yield decoder.decompress(b"", PIECE_BYTES)
            if decoder.eof:
                rest = decoder.unused_data
                decoder = None
    if decoder is not None:
        raise EOFError("the last stream is cut short")


def _decoder(compression: str):
    """Return a decoder of one stream, with the interface of bz2.BZ2Decompressor."""
    if compression == "gz":
        return _GzipDecoder()
    if compression == "bz2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)


class _GzipDecoder:
    """One member of a .gz file; zlib verifies its checksum and length."""

    def __init__(self):
        import zlib

        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)  # 16: with gzip's header and trailer
        self._full = False  # the last piece may have been cut at its limit: more may come without input

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._full

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(piece) == max_length or bool(self._zlib.unconsumed_tail)
        return piece


def _zstd_pieces(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the decompressed frames of a .zst file, one after the other; EOFError where the last one is cut short.

    zstandard's own stream_reader ends silently where a file is cut, so frames are followed by hand.
    """
    import zstandard

    frame = None
    for block in blocks:
        rest = memoryview(block)
        while rest:
            if frame is None:
                frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
            step = rest[:ZSTD_STEP_BYTES]
            rest = rest[len(step):]
            yield frame.decompress(step)
            if frame.eof:
                # What the frame did not use lies within this step, before `rest`.
                unused = len(frame.unused_data)
                rest = memoryview(block)[len(block) - len(rest) - unused:]
                frame = None
    if frame is not None:
        raise EOFError("the last frame is cut short")


@contextmanager
def failures_named(name: str, compression: str | None = None) -> Iterator[None]:
    """Turn what reading the input `name` can raise into errors that name it and the way out.

    Raises:
        InputGone: the file is not there any more.
        DataError: it cannot be read, or what it holds is cut short, damaged, not of the kind its name says, or wants more
            memory to unpack than the limits above.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except EOFError as error:
        raise DataError(f"{name}: the .{compression} data ends too early: the file is cut short; "
                        "fetch or make it again", path=name) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputGone(f"{name}: the file is gone; put it back, then go on with `kvps resume`", path=name) from error
    except OSError as error:
        if error.errno is None:  # bz2 reports damage so
            raise _damaged(name, compression, error) from error
        raise DataError(f"{name}: cannot read it: {os.strerror(error.errno)}", path=name) from error
    except Exception as error:
        # zlib.error, LZMAError and ZstdError, named without importing their modules.
        if type(error).__module__.split(".")[0] in ("zlib", "_lzma", "zstandard"):
            raise _damaged(name, compression, error) from error
        if is_url(name):                   # what its driver raises
            raise failure(name, error) from error
        raise


def _damaged(name: str, compression: str | None, error: Exception) -> DataError:
    text = str(error)
    # As liblzma's wrapper and zstd have it.
    if "Memory usage limit exceeded" in text or "requires too much memory" in text:
        limit = XZ_MEMORY_BYTES if compression == "xz" else ZSTD_WINDOW_BYTES
        return DataError(f"{name}: wants more memory to be unpacked than the {limit >> 20} MiB that kvps gives a .{compression} "
                         "file; unpack it and compress it again with a smaller window", path=name, expected=limit)
    return DataError(f"{name}: damaged, or not a .{compression} file ({error}); fetch or make it again, "
                     "or rename it if it is not compressed", path=name)

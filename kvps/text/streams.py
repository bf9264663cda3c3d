"""The bytes of one input as a buffered stream, plain or decompressed, with every failure named.

Codecs are imported when a file needs them. What the bytes mean, and where they are cut, is corpus.py's business.
"""
from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from kvps.errors import DataError, InputGone

BLOCK_BYTES = 1 << 20  # read and hashed at once: large enough that system calls do not show, small enough for a cache
SUFFIXES = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}

# A 2 KiB step of zstd can grow to 64 MiB at worst (its ratio is at most 32,768), which keeps memory bounded.
ZSTD_STEP_BYTES = 2048


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


def open_stream(path: str, compression: str | None) -> BinaryIO:
    """Return the decompressed bytes of a file as a buffered stream, which the caller closes.

    REQUIRES: opened and read inside failures_named(). A file of 0 bytes is an empty text under every name.
    """
    if compression is None or os.stat(path).st_size == 0:
        return open(path, "rb", buffering=BLOCK_BYTES)
    if compression == "gz":
        import gzip
        return gzip.open(path, "rb")
    if compression == "bz2":
        import bz2
        return bz2.open(path, "rb")
    if compression == "xz":
        import lzma
        return lzma.open(path, "rb")
    file = open(path, "rb", buffering=0)  # noqa: SIM115 - the stream closes it
    return io.BufferedReader(IteratorStream(_zstd_pieces(file), file.close), BLOCK_BYTES)


def _zstd_pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the decompressed frames of a .zst file, one after the other; EOFError where the last one is cut short.

    zstandard's own stream_reader ends silently where a file is cut, so frames are followed by hand.
    """
    import zstandard

    frame = None
    while block := file.read(BLOCK_BYTES):
        rest = memoryview(block)
        while rest:
            if frame is None:
                frame = zstandard.ZstdDecompressor().decompressobj()
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
        DataError: it cannot be read, or what it holds is cut short, damaged, or not of the kind its name says.
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
        if error.errno is None:  # gzip and bz2 report damage so
            raise _damaged(name, compression, error) from error
        raise DataError(f"{name}: cannot read it: {os.strerror(error.errno)}", path=name) from error
    except Exception as error:
        # zlib.error, LZMAError and ZstdError, named without importing their modules.
        if type(error).__module__.split(".")[0] in ("zlib", "_lzma", "zstandard"):
            raise _damaged(name, compression, error) from error
        raise


def _damaged(name: str, compression: str | None, error: Exception) -> DataError:
    return DataError(f"{name}: damaged, or not a .{compression} file ({error}); fetch or make it again, "
                     "or rename it if it is not compressed", path=name)

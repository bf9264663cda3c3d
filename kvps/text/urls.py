"""Text at a URL: found and opened with fsspec, which knows object stores and much else; file:///PATH is a file like any other."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from kvps.errors import ArgumentError, DataError


def is_url(name: str) -> bool:
    """Return whether a name is a URL and not a path."""
    return "://" in name


def as_path(name: str) -> str:
    """Return the path that file:///PATH names; anything else as it is. ArgumentError where it names another machine."""
    parts = urlsplit(name) if name[:7].lower() == "file://" else None
    if parts is None:
        return name
    if parts.netloc not in ("", "localhost"):
        raise ArgumentError(f"{name}: names another machine; write file:///PATH")
    return unquote(parts.path)


def find(url: str) -> Iterator[str]:
    """Yield the files that a URL names, sorted: itself, those that match it as a glob, or those below it.

    Raises:
        DataError: there is none, or they cannot be listed.
    """
    fs, path = _filesystem(url)
    try:
        fs.invalidate_cache()
        if fs.isfile(path):
            found = [path]
        elif fs.isdir(path):
            found = [one for one in fs.find(path) if not _hidden(one.removeprefix(path))]
        else:
            found = [one for one in fs.glob(path) if fs.isfile(one)]
    except Exception as exc:               # what a driver raises is its own business
        raise failure(url, exc) from exc
    if not found:
        raise DataError(f"{url}: no file is there", path=url)
    for one in sorted(found):
        yield fs.unstrip_protocol(one)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def open_file(path: str) -> BinaryIO:
    """Open a file, or what is at a URL, which is read from where it is; errors are the system's, or its driver's."""
    if not is_url(path):
        return open(path, "rb", buffering=0)
    fs, path = _filesystem(path)
    return fs.open(path, "rb")


def fingerprint(url: str) -> dict[str, int]:
    """Return "size" and, in the place of a file's time, "mtime_ns": a number that changes with what its driver says of it."""
    fs, path = _filesystem(url)
    fs.invalidate_cache()
    size, said = fs.info(path)["size"], fs.ukey(path)
    return {"size": size, "mtime_ns": int.from_bytes(hashlib.blake2b(str(said).encode(), digest_size=7).digest())}


def failure(name: str, exc: Exception) -> DataError:
    """Return the error that tells what a driver raised."""
    detail = " ".join(str(exc).split()) or type(exc).__name__
    return DataError(f"{name}: cannot read it: {detail} ({type(exc).__name__}, fsspec)", path=name)


def _filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's (file system, path) of a URL; DataError where there is no driver."""
    if urlsplit(url).password is not None:
        raise ArgumentError("a password in a URL would be kept in the store and its history; give it to the driver of that kind of "
                            "place in another way")
    try:
        import fsspec
    except ImportError as exc:
        raise DataError(f'{url}: needs fsspec; run pip install "kvps[remote]"', path=url) from exc
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as exc:               # a driver that is not installed, or that cannot connect
        raise failure(url, exc) from exc

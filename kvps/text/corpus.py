"""From what a user names to a list of inputs: files, folders, globs, stdin, JSON lines, NLTK corpora.

What one input is stands in inputs.py; this module finds them. It is the front door of the room: Input, Split and spool
are to be had here too.
"""
from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from kvps.errors import ArgumentError, DataError
from kvps.text.documents import nltk_corpus, nltk_files
from kvps.text.inputs import KINDS, MAX_LINE_BYTES, Input, Split
from kvps.text.spool import spool, spool_stream
from kvps.text.streams import DEFAULT_MAX_RATIO, SUFFIXES
from kvps.text.urls import as_path, find, is_url

__all__ = ["DEFAULT_MAX_RATIO", "KINDS", "MAX_LINE_BYTES", "Input", "Split", "read_once", "resolve", "spool"]

# Their members' names and headers would be counted as text.
_CONTAINERS = (".tar", ".tgz", ".zip", ".7z", ".rar", ".parquet", ".pdf")


def resolve(
    arguments: Iterable[str | Path],
    *,
    field: str = "text",
    newline: str = "split",
    count_field: str | None = None,
    max_ratio: int = DEFAULT_MAX_RATIO,
    spool_dir: str | Path | None = None,
    stdin: BinaryIO | None = None,
) -> list[Input]:
    """Return the inputs that the arguments name, in their order; a folder's or a glob's files sorted by path.

    Args:
        arguments: a file (plain, .gz, .bz2, .xz, .zst), a folder (searched to the bottom, hidden files left out), a
            glob, `-` for stdin, FILE.jsonl[.gz|...], or nltk:NAME. An existing file is taken as it is before its name
            is read as a glob. Files, folders and globs may be URLs that fsspec knows.
        field: of .jsonl records, the one that holds the text.
        newline: what a newline within it does: "split" ends a sentence, "space" separates words.
        count_field: of .jsonl records, the one that says how often the text counts; all inputs are such files then.
        max_ratio: how many times as long as a compressed file its text may be; 0 for no limit.
        spool_dir: where stdin and named pipes are copied to first, so that the job can be resumed.
        stdin: binary stream instead of sys.stdin.

    Raises:
        ArgumentError: stdin twice or with nowhere to spool it, an unknown `newline`, a `max_ratio` below 0, or an input that
            has no fields to count by.
        DataError: nothing is there, it cannot be read, a folder or glob holds no file, or a file's beginning shows that
            it cannot be used (Input.probe).
    """
    if newline not in ("split", "space"):
        raise ArgumentError(f'a newline within a field is "split" or "space", not "{newline}"')
    if max_ratio < 0:
        raise ArgumentError(f"a text cannot be {max_ratio} times as long as its file; 0 lifts the limit")
    inputs = []
    seen_stdin = False
    for argument in arguments:
        name = as_path(os.fsdecode(argument))
        if "\0" in name:
            raise ArgumentError(f"{name}: no file can have a NUL in its name")
        if name == "-":
            if seen_stdin:
                raise ArgumentError("stdin (-) can be read only once")
            seen_stdin = True
            inputs.append(_spooled(stdin or sys.stdin.buffer, spool_dir, "-"))
        elif name.startswith("nltk:"):
            corpus = name.removeprefix("nltk:")
            nltk_corpus(corpus)
            inputs.append(Input(name, nltk_files(corpus)[0], "nltk", {"corpus": corpus}))
        elif is_url(name):
            inputs += [_text(url, url, field, newline, max_ratio) for url in find(name)]
        else:
            for path in _find(name):
                inputs.append(_file(path, field, newline, max_ratio, spool_dir))
    return inputs if count_field is None else [_counted(found, count_field) for found in inputs]


def _counted(found: Input, field: str) -> Input:
    """Return an input of JSON lines whose records say in a field how often they count."""
    if found.kind != "jsonl":
        raise ArgumentError(f"{found.name}: has no field {field} to count by; --count-field is for .jsonl files")
    return replace(found, options={**found.options, "count_field": field})


def read_once(argument: str | Path) -> bool:
    """Return whether an argument is stdin or a pipe: resolving it reads it, and needs a spool_dir."""
    name = os.fsdecode(argument)
    try:
        return name == "-" or stat.S_ISFIFO(os.stat(name).st_mode)
    except (OSError, ValueError):
        return False


def _find(name: str) -> Iterator[str]:
    """Yield the files that a path or a glob names."""
    if not os.path.lexists(name) and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True), key=os.fsencode)
        if not matches:
            raise DataError(f"{name}: no file matches", path=name)
        for match in matches:
            # A ** lists both a folder and what is in it: only the files, then.
            if not ("**" in name and os.path.isdir(match)):
                yield from _walk(match)
    else:
        yield from _walk(name)


def _walk(name: str) -> Iterator[str]:
    """Yield `name`, or the files below it, sorted, if it is a folder."""
    if not os.path.isdir(name):
        yield name
        return

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read the folder: {error.strerror}", path=error.filename) from error

    found = []
    for folder, folders, names in os.walk(name, onerror=fail):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        for entry in folders:
            path = os.path.join(folder, entry)
            if os.path.islink(path):  # followed, it could lead round in circles; left out, text would be missing
                raise DataError(f"{path}: a link to a folder; name that folder as an input of its own", path=path)
        found += [os.path.join(folder, entry) for entry in names if not entry.startswith(".")]
    if not found:
        raise DataError(f"{name}: the folder holds no file (hidden ones are left out)", path=name)
    yield from sorted(found, key=os.fsencode)


def _file(name: str, field: str, newline: str, max_ratio: int, spool_dir: str | Path | None) -> Input:
    """Return the Input of one file, after a look whether it can be read."""
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}", path=name) from error
    if stat.S_ISFIFO(mode):
        try:
            with open(name, "rb") as stream:
                return _spooled(stream, spool_dir, name)
        except OSError as error:
            raise DataError(f"{name}: cannot read it: {error.strerror}", path=name) from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{name}: not a file, a folder or a pipe", path=name)
    if not os.access(name, os.R_OK):
        raise DataError(f"{name}: cannot read it: permission denied", path=name)
    return _text(name, os.path.abspath(name), field, newline, max_ratio)


def _text(name: str, path: str, field: str, newline: str, max_ratio: int) -> Input:
    """Return the Input that a file is by its name, after a look at its beginning."""
    base = name.lower()
    options = {}
    for suffix, compression in SUFFIXES.items():
        if base.endswith(suffix):
            base = base.removesuffix(suffix)
            options = {"compression": compression, "max_ratio": max_ratio}
            break
    if base.endswith(_CONTAINERS):
        raise DataError(f"{name}: is an archive, not text; unpack it first", path=name)
    if base.endswith(".jsonl"):
        found = Input(name, path, "jsonl", {**options, "field": field, "newline": newline})
    else:
        found = Input(name, path, "text", options)
    found.probe()
    return found


def _spooled(stream: BinaryIO, spool_dir: str | Path | None, name: str) -> Input:
    if spool_dir is None:
        raise ArgumentError(f"{name}: can be read only once, and no folder is given to keep it in; save it to a file")
    return spool_stream(stream, spool_dir, name)

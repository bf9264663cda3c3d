"""Texts inside other things: the records of JSON lines, the documents of an NLTK corpus.

Both become UTF-8 lines, one sentence each. nltk and json are imported when such an input is read.
"""
from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvps.errors import DataError

if TYPE_CHECKING:
    import json

MAX_TIMES = 2**32 - 1  # a record counts so often at most; a float has all digits of it


@functools.cache
def _decoder() -> json.JSONDecoder:
    """Return what reads records."""
    import json

    # Python refuses integers of more than 4,300 digits, but no number as a float; and none of them is the text we want.
    return json.JSONDecoder(parse_int=float)


def record_text(line: bytes, field: str, newline: str) -> bytes:
    r"""Return the text of one JSON record, every line of it ended by \n; b"" for a blank line.

    Bytes and escapes that are not Unicode pass through as bytes that are not UTF-8: the tokenizer decides about them.

    Args:
        line: one line of the file.
        field: the name whose value is the text.
        newline: what a newline in the text does: "split" ends a sentence (one at the end of the text ends no second
            one), "space" separates words.

    Raises:
        ValueError: the message says what is wrong with the record; the caller knows where it stands.
    """
    return text_of(record, field, newline) if (record := record_of(line)) is not None else b""


def counted_text(line: bytes, field: str, newline: str, count_field: str | None) -> tuple[bytes, int]:
    """Return the text of one JSON record as record_text(), and how often it counts; no text where that is 0 times."""
    record = record_of(line)
    if record is None:
        return b"", 0
    times = 1 if count_field is None else times_of(record, count_field)
    text = text_of(record, field, newline)
    return (text if times else b""), times


def times_of(record: dict, field: str) -> int:
    """Return the count in a record; ValueError unless it is a whole number from 0 to MAX_TIMES."""
    if field not in record:
        raise ValueError(f'no field "{field}", which --count-field names')
    value = record[field]
    if not isinstance(value, float):
        raise ValueError(f'field "{field}" is not a number, and cannot say how often the text counts')
    if not (0 <= value <= MAX_TIMES and value == int(value)):
        shown = int(value) if abs(value) < 2**53 and value == int(value) else value
        raise ValueError(f'field "{field}" is {shown}; a text counts a whole number of times, from 0 to {MAX_TIMES}')
    return int(value)


def record_of(line: bytes) -> dict | None:
    """Return one JSON record, its numbers as float; None for a blank line. Raises as record_text()."""
    import json

    if not line.strip(b" \t\r"):
        return None
    try:
        record = _decoder().decode(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def text_of(record: dict, field: str, newline: str) -> bytes:
    """Return the text of a record, as record_text()."""
    if field not in record:
        raise ValueError(f'no field "{field}"; name the one that holds the text with --field')
    text = record[field]
    if not isinstance(text, str):
        raise ValueError(f'field "{field}" is not a string; name the one that holds the text with --field')
    if newline == "space":
        text = text.replace("\n", " ")
    if not text.endswith("\n"):
        text += "\n"
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def document_of(record: dict, field: str, newline: str) -> bytes:
    """Return the text of a record as cc_net reads a document; b"" where there is none: no such field, null, or an empty text.

    A newline stands between two sentences, so that after one at the end of the text there is an empty one. Raises as text_of().
    """
    if record.get(field) in (None, ""):
        return b""
    text = text_of(record, field, newline)
    return text + b"\n" if newline == "split" and record[field].endswith("\n") else text


def with_fields(line: bytes, record: dict, fields: Mapping[str, float | None]) -> bytes:
    """Return the line of a record with these fields, otherwise byte for byte as it was.

    One that the record has already gets its new value where it stands; the others come at the end.
    """
    import json

    body = line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r").decode("utf-8", "surrogateescape")
    if not fields.keys().isdisjoint(record):
        body = _replaced(body, fields)
    added = {name: value for name, value in fields.items() if name not in record}
    for number, (name, value) in enumerate(added.items()):
        body = f"{body[:-1]}{', ' if record or number else ''}{json.dumps(name)}: {json.dumps(value)}}}"
    return body.encode("utf-8", "surrogateescape")


def _replaced(body: str, fields: Mapping[str, float | None]) -> str:
    """Return a JSON object, which record_of() has read, with other values of some of its fields."""
    import json

    read, pieces, kept, at = _decoder().raw_decode, [], 0, _past(body, 1)
    while body[at] != "}":
        name, at = read(body, at)
        begin = _past(body, at)
        _, end = read(body, begin)
        if name in fields:
            pieces += [body[kept:begin], json.dumps(fields[name])]
            kept = end
        at = _past(body, end)
    return "".join([*pieces, body[kept:]])


def _past(body: str, at: int) -> int:
    """Return where the next name, value or } of a JSON object begins."""
    while body[at] in " \t\r:,":
        at += 1
    return at


def nltk_corpus(name: str):
    """Return the reader of an installed NLTK corpus.

    Raises:
        DataError: there is no such corpus, it is not installed, or it has no words.
    """
    import nltk.corpus

    shown = f"nltk:{name}"
    corpus = getattr(nltk.corpus, name, None) if name.isidentifier() and not name.startswith("_") else None
    if corpus is None:
        raise DataError(f"{shown}: NLTK knows no corpus of this name; try nltk:reuters or nltk:brown", path=shown)
    try:
        words = getattr(corpus, "words", None)
        fileids = corpus.fileids() if words is not None else []
    except LookupError as error:
        raise DataError(f"{shown}: the corpus is not installed; get it with `python -m nltk.downloader {name}` "
                        "(and set NLTK_DATA where it lies elsewhere)", path=shown) from error
    except (OSError, AttributeError) as error:
        raise DataError(f"{shown}: NLTK cannot read it: {error}", path=shown) from error
    if not fileids:
        raise DataError(f"{shown}: it has no documents made of words", path=shown)
    return corpus


def nltk_documents(name: str) -> Iterator[bytes]:
    """Yield each document of a corpus as one line: its words joined by a space, newlines in a word made spaces."""
    corpus = nltk_corpus(name)
    for fileid in corpus.fileids():
        yield " ".join(corpus.words(fileid)).replace("\n", " ").encode("utf-8", "surrogatepass") + b"\n"


def nltk_files(name: str) -> tuple[str, int]:
    """Return where a corpus lies (its folder or zip file) and how many bytes its documents have."""
    corpus = nltk_corpus(name)
    archive = getattr(corpus.root, "zipfile", None)
    place = archive.filename if archive is not None else str(corpus.root)
    return os.path.abspath(place), sum(path.file_size() for path in corpus.abspaths())


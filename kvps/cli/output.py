"""What the commands print: lines of text, or JSON objects, one a line, in UTF-8 whatever the terminal's encoding."""
from __future__ import annotations

import json
import sys
import time


def write(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    sys.stdout.buffer.write(data)


def say(text: str) -> None:
    """Write a line of text to stdout."""
    write(text.encode("utf-8", "surrogateescape") + b"\n")


def tell(record: dict, text: str, as_json: bool, *, began: float | None = None) -> None:
    """Print what a command did, as an object or as text; with the time since it began [s of time.monotonic()], if given."""
    if began is not None:
        elapsed_s = time.monotonic() - began
        record, text = {**record, "elapsed_s": round(elapsed_s, 3)}, f"{text} ({elapsed_s:.1f} s)"
    if as_json:
        emit(record)
    else:
        say(text)


def many(n: int, things: str) -> str:
    """Return "1 token" or "2,000 tokens" for n and "tokens"."""
    return f"{n:,} {things if n != 1 else things.removesuffix('s')}"


def name_warnings(*, notes: bool = False) -> None:
    """Let the library's warnings, which go to stderr where nobody has set up logging, say whose they are; `notes` too."""
    import logging

    class Named(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"kvps: {'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}"

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Named())
        if notes:
            logging.lastResort.setLevel(logging.INFO)
            logging.getLogger("kvps").setLevel(logging.INFO)


def emit(record: dict) -> None:
    """Write one JSON object and a newline to stdout."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    write(line.encode("utf-8", "backslashreplace") + b"\n")

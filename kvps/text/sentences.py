"""Lines to sentences, by their ends: 。！？ and . ! ?, for --split-sentences.

Do not change what is split: stores hold counts made with it.
"""
from __future__ import annotations

import re

_BLANK = "[^\\S\n]|[\0\u200b\ufeff]"
_CLOSING = "\"'”’»«›‹)\\]}）］｝」』】〉》〕"
_OPENING = "\"'“‘«»‹›„‚([{（［｛「『【〈《〔¿¡—–-"
_END = re.compile(f"([.!?．。！？｡]++)[{_CLOSING}]*+((?:{_BLANK})*+)")
_WIDE = re.compile("[。！？｡]")
# Before a name: titles, and initials but I.
_TITLE = re.compile(r"(?<!\w)(?:Mr|Mrs|Ms|Messrs|Dr|Prof|St|Rev|Hon|Capt|Col|Gen|Lt|Sgt|[A-HJ-Z])\Z")
_TITLE_LENGTH = 7              # of the longest, and a character before it


def split(text: str) -> str:
    r"""Return text in which every sentence has a line of its own.

    A line is parted after a run of 。！？ with the closing quotes and brackets behind it; and after one of . ! ? where a blank
    follows, and then no lower-case letter. A single . after a title (Mr, Dr, St) or an initial ends nothing. Where a line
    is parted its blanks go. A line stays at least one line.
    """
    return _END.sub(_parted, text)


def count(text: str) -> list[int]:
    """Return how many lines split() makes of each line of a text; what follows the last newline is one if there is something."""
    lines = text.split("\n")
    return [split(line).count("\n") + 1 for line in (lines if lines[-1] else lines[:-1])]


def _parted(found: re.Match) -> str:
    """Return the end of a sentence with its newline, or what was found as it was."""
    end, blanks, after = found[1], found[2], found.string[found.end():found.end() + 1]
    if after in ("", "\n"):
        return found[0]
    if not _WIDE.search(end):
        if not blanks or _begins(found.string, found.end()).islower():
            return found[0]
        if end == "." and _TITLE.search(found.string[max(0, found.start() - _TITLE_LENGTH):found.start()]):
            return found[0]
    return found[0][:len(found[0]) - len(blanks)] + "\n"


def _begins(text: str, at: int) -> str:
    """Return the first character from `at` on that opens no quote or bracket, or "" at the end of the line."""
    while at < len(text) and text[at] in _OPENING:
        at += 1
    return text[at:at + 1]

"""Texts for `kvps quickstart`: one sentence a line, cut into text to train on, more text, and held-out text."""
from __future__ import annotations

import dataclasses
import re

HELD_OUT_EVERY = 10            # every tenth topic or document is held out where the corpus has no parts of its own
MORE_SHARE = 0.1               # of the training text, that comes later

# A full stop, or one and what closes it, before a capital ends a sentence.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?:])|(?<=[.!?:][\")\]]))\s+(?=[\"(]?[A-Z])")
# Tables, headings, grammars and code are not sentences.
_NOT_PROSE = re.compile(r"::=|^\s*(?:>>>|\.\.\.)|[=*~^+|-]{4}", re.MULTILINE)


@dataclasses.dataclass
class Sample:
    """Lines of text, and the options that say how words are made of them."""

    about: str
    train: list[str]
    more: list[str]
    heldout: list[str]
    options: list[str]


def python_documentation() -> Sample:
    """Return CPython's documentation as `help()` shows it, which every Python has."""
    from pydoc_data.topics import topics

    train, heldout, seen = [], [], set()
    for number, (_, text) in enumerate(sorted(topics.items())):
        for line in sentences(text):
            if line not in seen:       # topics repeat each other; what is held out must be new
                seen.add(line)
                (heldout if number % HELD_OUT_EVERY == 0 else train).append(line)
    options = ["--tokenizer", "wordpunct", "--lowercase"]
    return _cut("CPython's documentation (pydoc_data.topics)", train, heldout, options)


def sentences(text: str) -> list[str]:
    """Return the sentences of a page of documentation; headings, tables, grammars and code are left out."""
    found = []
    for paragraph in text.split("\n\n"):
        prose = " ".join(paragraph.split()).lstrip("*• ")
        if not _NOT_PROSE.search(paragraph) and prose.endswith((".", ":", "!", "?")) and prose.count(" ") >= 3:
            found += _SENTENCE_END.split(prose)
    return found


def nltk_corpus(name: str) -> Sample:
    """Return the documents of an NLTK corpus, words joined by spaces.

    Reuters has parts of its own, training/ and test/; of other corpora every tenth document is held out.

    Raises:
        DataError: the corpus is not installed; the message says how to get it.
    """
    from kvps.text import documents

    corpus = documents.nltk_corpus(name)
    names = corpus.fileids()
    parts = any(fileid.startswith("test/") for fileid in names)
    train, heldout = [], []
    for number, fileid in enumerate(names):
        held = fileid.startswith("test/") if parts else number % HELD_OUT_EVERY == 0
        (heldout if held else train).append(" ".join(corpus.words(fileid)).replace("\n", " "))
    return _cut(f"NLTK's corpus {name}", train, heldout, [])


def _cut(about: str, train: list[str], heldout: list[str], options: list[str]) -> Sample:
    first = len(train) - int(len(train) * MORE_SHARE)
    return Sample(about, train[:first], train[first:], heldout, options)

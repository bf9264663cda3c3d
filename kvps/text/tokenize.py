r"""Text to canonical text: lines of words with one separator between them, which the counting kernel reads.

Lines end at \n and nowhere else, and the n-th line stays the n-th. The separators are lmplz's NUL, TAB, CR and space,
never Unicode's: U+0085 and U+00A0 are parts of words.
"""
from __future__ import annotations

import functools
import importlib
import operator
import re
from collections.abc import Callable
from pathlib import Path

from kvps._text import first_invalid_utf8
from kvps.errors import ArgumentError, DataError

BUILT_IN = ("whitespace", "char", "wordpunct")
SEPARATORS = "\0\t\r "  # of words; do not change: stores hold counts made with them

_NO_SEPARATORS = str.maketrans("", "", SEPARATORS)
_SEPARATOR = re.compile(f"[{SEPARATORS}\n]")
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}

# (line from 1 or None, byte offset) of a byte of the data
Locate = Callable[[int], tuple[int | None, int]]


class Tokenizer:
    """Makes words of text in one of the known ways, always the same for one store.

    Attributes:
        spec: "whitespace", "char", "wordpunct" or "MODULE:FUNC".
        lowercase: whether words are lower-cased (str.lower) after they are made.
    """

    def __init__(self, spec: str, lowercase: bool, function: Callable[[str], list[str]] | None):
        self.spec = spec
        self.lowercase = lowercase
        self._function = function

    @classmethod
    def from_spec(cls, spec: str, lowercase: bool = False, *, trusted: bool = False) -> Tokenizer:
        """Return the tokenizer that `spec` names.

        Args:
            spec: "whitespace", "char", "wordpunct", or "MODULE:FUNC" for a function from a line to a list of words.
            lowercase: lower-case the words.
            trusted: the user named `spec` on this call. A MODULE:FUNC that only a store names is never imported:
                whoever wrote the store could run any code.

        Raises:
            ArgumentError: unknown, not importable, not callable, or MODULE:FUNC and not trusted.
        """
        if spec in BUILT_IN:
            return cls(spec, bool(lowercase), None)
        module, _, path = spec.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
            raise ArgumentError(f'unknown tokenizer "{spec}": choose one of {", ".join(BUILT_IN)}, or MODULE:FUNC')
        if not trusted:
            raise ArgumentError(f'the tokenizer "{spec}" is code of yours: name it again with --tokenizer {spec}')
        try:
            function = operator.attrgetter(path)(importlib.import_module(module))
        except Exception as error:  # importing runs any code, so any exception
            raise ArgumentError(f'cannot import the tokenizer "{spec}": {type(error).__name__}: {error}') from error
        if not callable(function):
            raise ArgumentError(f'the tokenizer "{spec}" is not a function')
        return cls(spec, bool(lowercase), function)

    @classmethod
    def from_json(cls, record: dict[str, object], *, trusted: bool = False) -> Tokenizer:
        """Return the tokenizer that a store recorded; `trusted` as in from_spec()."""
        return cls.from_spec(record["tokenizer"], record["lowercase"], trusted=trusted)

    def for_kind(self, kind: str) -> Tokenizer:
        """Return what makes words of an input of this kind; those that Python gave one by one, "words", are words already."""
        return PLAIN if kind == "words" else self

    def to_json(self) -> dict[str, object]:
        """Return what a store records: {"tokenizer": spec, "lowercase": bool}."""
        return {"tokenizer": self.spec, "lowercase": self.lowercase}

    def spec_string(self) -> str:
        """Return the options that name this tokenizer, for messages: "--tokenizer char --lowercase"."""
        return f"--tokenizer {self.spec}" + (" --lowercase" if self.lowercase else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.spec, self.lowercase))

    def __repr__(self) -> str:
        return f"Tokenizer.from_spec({self.spec!r}, {self.lowercase})"

    def prepare(
        self,
        data: bytes,
        *,
        errors: str = "strict",
        name: str = "(text)",
        first_line: int | None = None,
        offset: int = 0,
        locate: Locate | None = None,
    ) -> bytes:
        """Return canonical text with as many lines as `data`; `data` itself where nothing has to change.

        Args:
            data: whole lines; the last may lack its newline.
            errors: "strict" refuses bytes that are not UTF-8, "replace" makes each ill-formed sequence U+FFFD.
            name: of the input, for messages.
            first_line: the number of the first line, where known.
            offset: of data[0] in the input.
            locate: Split.locate, which says exactly where a byte of `data` stands; instead of the two above.

        Raises:
            DataError: bytes that are not UTF-8 (strict), or a word of MODULE:FUNC's or wordpunct's that is empty or has
                a separator in it; with line and offset.
        """
        if errors not in ("strict", "replace"):
            raise ArgumentError(f'encoding errors are "strict" or "replace", not "{errors}"')

        def place(index: int) -> tuple[int | None, int]:
            if locate is not None:
                return locate(index)
            line = None if first_line is None else first_line + data.count(b"\n", 0, index)
            return line, offset + index

        invalid = first_invalid_utf8(data)
        if invalid >= 0 and errors == "strict":
            hint = next((_packed_hint(name, suffix) for magic, suffix in _MAGIC.items() if offset == 0 and data.startswith(magic)),
                        "convert it, or pass --encoding-errors replace")
            raise _refusal(name, place(invalid), f"not UTF-8 (byte 0x{data[invalid]:02x}); {hint}")
        if self.spec == "whitespace" and not self.lowercase:
            return data if invalid < 0 else data.decode("utf-8", "replace").encode()

        text = data.decode("utf-8", "replace")

        def refuse(line_index: int, what: str) -> DataError:
            # Counted in bytes of `data`, since a replacement changes lengths but never the number of lines.
            begin = 0
            for _ in range(line_index):
                begin = data.index(b"\n", begin) + 1
            return _refusal(name, place(begin), what)

        if self.spec == "char":
            text = _one_line_each(" ".join(text.translate(_NO_SEPARATORS)))
        elif self.spec == "wordpunct":
            # White space for regex has all our separators in it but NUL, which would be punctuation.
            if "\0" in text:
                raise refuse(text.count("\n", 0, text.index("\0")), "a NUL byte in text for --tokenizer wordpunct")
            text = _one_line_each(" ".join(_wordpunct_findall()(text)))
        elif self._function is not None:
            text = self._call(text, refuse)
        # Lower-casing the words one by one or together is the same: a space is no neighbour that str.lower heeds.
        return (text.lower() if self.lowercase else text).encode()

    def _call(self, text: str, refuse: Callable[[int, str], DataError]) -> str:
        """Return the lines of `text` made of the words that MODULE:FUNC returns."""
        lines = text.split("\n")
        n_lines = len(lines) - (lines[-1] == "")  # what follows the last newline is no line
        for line_index, line in enumerate(lines[:n_lines]):
            try:
                words = self._function(line)
                joined = " ".join(words)
                joined.encode()  # a lone surrogate must be found here, where the line is known
            except Exception as error:  # the user's code may raise anything, and must not end us without a place
                raise refuse(line_index, f"tokenizer {self.spec} failed: {type(error).__name__}: {error}") from error
            if isinstance(words, str) or not isinstance(words, (list, tuple)):
                raise refuse(line_index, f"tokenizer {self.spec} returned {type(words).__name__}, not a list of str")
            bad = next((word for word in words if not word or _SEPARATOR.search(word)), None)
            if bad is not None:
                raise refuse(line_index, f"tokenizer {self.spec} returned the word {bad!r}, which is empty or has a "
                                         "separator (NUL, TAB, CR, space, newline) in it")
            lines[line_index] = joined
        return "\n".join(lines)


PLAIN = Tokenizer.from_spec("whitespace")


def store_tokenizer(path: str | Path, recorded: dict, spec: str | None = None, lowercase: bool | None = None) -> Tokenizer:
    """Return the tokenizer that the store at `path` has recorded.

    spec, lowercase: only to name it again, since a recorded MODULE:FUNC is imported only where the user has named it on
    this call; ArgumentError if they name another one.
    """
    if spec is None and not lowercase:
        return Tokenizer.from_json(recorded)
    named = Tokenizer.from_spec(spec or recorded["tokenizer"], bool(lowercase) if lowercase is not None else recorded["lowercase"],
                                trusted=spec is not None)
    if named.to_json() != recorded:
        raise ArgumentError(f"{path}: was made with tokenizer {shown(recorded)}, not {shown(named.to_json())}; "
                            "leave the option away")
    return named


def shown(recorded: dict) -> str:
    """Return a recorded tokenizer as people read it."""
    return recorded["tokenizer"] + (" --lowercase" if recorded["lowercase"] else "")


@functools.cache
def _wordpunct_findall() -> Callable[[str], list[str]]:
    r"""Return the function from text to its words and newlines as nltk.tokenize.wordpunct_tokenize makes them.

    NLTK 3.10 compiles r"\w+|[^\w\s]+" with the regex package, for which combining marks belong to words (for re they do
    not) and U+001C to U+001F are no white space. The newline is kept so that a whole split is done at once.
    """
    import regex

    return regex.compile(r"\w+|[^\w\s]+|\n").findall


def _packed_hint(name: str, suffix: str) -> str:
    """Return what to do about an input whose text begins as a compressed file does."""
    if name.lower().endswith(tuple(_MAGIC.values())):
        return f"what it unpacks to looks like a {suffix} file, and is never unpacked a second time: unpack it once before"
    return f"it looks like a {suffix} file: give it that ending"


def _one_line_each(spaced: str) -> str:
    """Return words and newlines that were joined by spaces without the spaces around the newlines."""
    return spaced.replace(" \n", "\n").replace("\n ", "\n")


def _refusal(name: str, place: tuple[int | None, int], what: str) -> DataError:
    line, offset = place
    where = f"byte {offset}" if line is None else f"line {line} (byte {offset})"
    return DataError(f"{name}: {where}: {what}", path=name, line=line, offset=offset)

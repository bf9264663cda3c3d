r"""Text to canonical text: lines of words with one separator between them, which the counting kernel reads.

Lines end at \n and nowhere else, and the n-th line stays the n-th. The separators are lmplz's NUL, TAB, CR and space,
never Unicode's: U+0085 and U+00A0 are parts of words.
"""
from __future__ import annotations

import functools
import importlib
import operator
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvps._text import characters, first_invalid_utf8
from kvps.errors import ArgumentError, DataError
from kvps.text import libraries, sentences

BUILT_IN = ("whitespace", "char", "wordpunct")
FORMS = ("NFC", "NFKC")
BLANK_PIECE = "\u2581"    # what sentencepiece writes for a blank
SEPARATORS = "\0\t\r "  # of words; do not change: stores hold counts made with them

_SEPARATOR = re.compile(f"[{SEPARATORS}\n]")
_BETWEEN_WORDS = re.compile(f"[{SEPARATORS}\n]+")
# how a compressed file begins, and the ending of its name
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}

_RECORDED = {"tokenizer": str, "lowercase": bool, "normalize": str, "split_sentences": bool, "digest": str}

# (line from 1 or None, byte offset) of a byte of the data
Locate = Callable[[int], tuple[int | None, int]]
# Names a tokenizer: see Tokenizer.from_spec().
Spec = str | Callable[[str], Any]


class Tokenizer:
    """Makes words of text in one of the known ways, always the same for one store.

    Text is parted into sentences, then normalised, then made words, and these are lower-cased; all but the words on request.

    Attributes:
        spec: "whitespace", "char", "wordpunct", "sentencepiece:FILE", "hf:PATH", "jieba" or "MODULE:FUNC".
        lowercase: whether words are lower-cased (str.lower) after they are made.
        normalize: "NFC" or "NFKC", the Unicode form that text is brought into; None: it stays as it is.
        split_sentences: whether a line is parted where a sentence ends (kvps.text.sentences).
        digest: of what the words are made with, hex; None where that is kvps itself, or MODULE:FUNC.
    """

    def __init__(self, spec: str, lowercase: bool, *, normalize: str | None = None, split_sentences: bool = False,
                 digest: str | None = None, function: Callable[[str], Any] | None = None,
                 library: libraries.Function | None = None) -> None:
        self.spec, self.lowercase, self.normalize, self.split_sentences = spec, lowercase, normalize, split_sentences
        self.digest = digest
        self._function, self._library = function, library

    @classmethod
    def from_spec(cls, spec: Spec, lowercase: bool = False, *, normalize: str | None = None, split_sentences: bool = False,
                  digest: str | None = None, trusted: bool = False) -> Tokenizer:
        """Return the tokenizer that `spec` names.

        Args:
            spec: "whitespace", "char", "wordpunct", "sentencepiece:FILE", "hf:PATH" (a tokenizer.json, or the folder that it is
                in), "jieba", "MODULE:FUNC" for a function from a line to its words (a list of str, a Doc of spaCy, or an
                Encoding of Hugging Face), or that function itself, if it can be imported by its name.
            lowercase: lower-case the words.
            normalize: "NFC" or "NFKC".
            split_sentences: part lines where a sentence ends.
            digest: of what sentencepiece, hf and jieba make words with, where it has to be a certain one.
            trusted: the user named `spec` on this call. A MODULE:FUNC that only a store names is never imported:
                whoever wrote the store could run any code.

        Raises:
            ArgumentError: unknown, not importable, not callable, not installed, or MODULE:FUNC and not trusted.
        """
        if normalize is not None and normalize not in FORMS:
            raise ArgumentError(f'text is normalised to {" or ".join(FORMS)}, not "{normalize}"')
        how: dict[str, Any] = {"lowercase": bool(lowercase), "normalize": normalize, "split_sentences": bool(split_sentences)}
        if callable(spec):
            spec, trusted = _importable_name(spec), True
        if spec in BUILT_IN:
            return cls(spec, **how)
        if libraries.kind_of(spec) is not None:
            spec = libraries.absolute(spec)
            library, digest = libraries.load(spec, digest)
            return cls(spec, **how, digest=digest, library=library)
        module, _, path = spec.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
            raise ArgumentError(f'unknown tokenizer "{spec}": choose one of {", ".join(BUILT_IN)}, jieba, sentencepiece:FILE, '
                                "hf:PATH, or MODULE:FUNC")
        if not trusted:
            raise ArgumentError(f'the tokenizer "{spec}" is code of yours: name it again with --tokenizer {spec}')
        try:
            function = operator.attrgetter(path)(importlib.import_module(module))
        except Exception as error:  # importing runs any code, so any exception
            raise ArgumentError(f'cannot import the tokenizer "{spec}": {type(error).__name__}: {error}') from error
        if not callable(function):
            raise ArgumentError(f'the tokenizer "{spec}" is not a function')
        return cls(spec, **how, function=function)

    @classmethod
    def from_json(cls, record: dict[str, Any], *, spec: Spec | None = None, lowercase: bool | None = None,
                  trusted: bool = False) -> Tokenizer:
        """Return the tokenizer that a store recorded; `trusted` as in from_spec(). spec and lowercase take the place of its own."""
        return cls.from_spec(spec or record["tokenizer"], record["lowercase"] if lowercase is None else lowercase,
                             normalize=record.get("normalize"), split_sentences=record.get("split_sentences", False),
                             digest=record.get("digest"), trusted=trusted)

    def for_kind(self, kind: str) -> Tokenizer:
        """Return what makes words of an input of this kind; those that Python gave one by one, "words", are words already."""
        return PLAIN if kind == "words" else self

    def to_json(self) -> dict[str, Any]:
        """Return what a store records: {"tokenizer": spec, "lowercase": bool}, and of the other attributes those that are set."""
        more = {"normalize": self.normalize, "split_sentences": self.split_sentences, "digest": self.digest}
        return {"tokenizer": self.spec, "lowercase": self.lowercase, **{name: value for name, value in more.items() if value}}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and shown(self.to_json()) == shown(other.to_json())

    def __hash__(self) -> int:
        return hash(shown(self.to_json()))

    def __repr__(self) -> str:
        return f"<Tokenizer {shown(self.to_json())}>"

    def joined(self, words: Sequence[str]) -> str:
        """Return words as people write them: in Chinese without blanks, pieces of sentencepiece as the words that they make."""
        if self.spec in ("char", "jieba"):
            return "".join(" " + word if before and b" " not in characters((before[-1] + word[0]).encode()) else word
                           for before, word in zip(("", *words), words, strict=False))
        if libraries.kind_of(self.spec) == "sentencepiece":
            return "".join(words).replace(BLANK_PIECE, " ").strip(" ")
        return " ".join(words)

    def sentences_of(self, data: bytes) -> list[int] | None:
        """Return how many lines prepare() makes of each line of `data`; None where it is one of each."""
        return sentences.count(data.decode("utf-8", "replace")) if self.split_sentences else None

    def line_of(self, data: bytes, line_index: int) -> int:
        """Return which line of `data`, from 0, a line that prepare() makes of it comes from."""
        for number, made in enumerate(self.sentences_of(data) or ()):
            if line_index < made:
                return number
            line_index -= made
        return line_index

    def prepare(
        self,
        data: bytes,
        *,
        errors: str | None = None,
        name: str = "(text)",
        first_line: int | None = None,
        offset: int = 0,
        locate: Locate | None = None,
    ) -> bytes:
        """Return canonical text, with as many lines as `data` unless sentences are split; `data` itself where nothing changes.

        Args:
            data: whole lines; the last may lack its newline.
            errors: "strict" refuses bytes that are not UTF-8, "replace" makes each ill-formed sequence U+FFFD; None is "strict"
                where the user has no choice, so that none is offered.
            name: of the input, for messages.
            first_line: the number of the first line, where known.
            offset: of data[0] in the input.
            locate: Split.locate, which says exactly where a byte of `data` stands; instead of the two above.

        Raises:
            DataError: bytes that are not UTF-8, or a word of MODULE:FUNC's or wordpunct's that is empty or has
                a separator in it; with line and offset.
        """
        if errors not in (None, "strict", "replace"):
            raise ArgumentError(f'encoding errors are "strict" or "replace", not "{errors}"')

        def place(index: int) -> tuple[int | None, int]:
            if locate is not None:
                return locate(index)
            line = None if first_line is None else first_line + data.count(b"\n", 0, index)
            return line, offset + index

        invalid = first_invalid_utf8(data)
        if invalid >= 0 and errors != "replace":
            hint = next((_packed_hint(name, suffix) for magic, suffix in MAGIC.items() if offset == 0 and data.startswith(magic)),
                        "convert it, or pass --encoding-errors replace" if errors else "convert it first")
            raise _refusal(name, place(invalid), f"not UTF-8 (byte 0x{data[invalid]:02x}); {hint}")
        if self.spec == "whitespace" and not (self.lowercase or self.normalize or self.split_sentences):
            return data if invalid < 0 else data.decode("utf-8", "replace").encode()
        if self.spec == "char" and invalid < 0 and not (self.lowercase or self.normalize or self.split_sentences):
            return characters(data)

        text = data.decode("utf-8", "replace")

        def refuse(line_index: int, what: str) -> DataError:
            # Counted in bytes of `data`, since a replacement changes lengths but never the number of lines.
            begin = 0
            for _ in range(self.line_of(data, line_index)):
                begin = data.index(b"\n", begin) + 1
            return _refusal(name, place(begin), what)

        if self.split_sentences:
            text = sentences.split(text)       # first: NFKC makes ! of the full-width one, which ends a sentence without a blank
        if self.normalize is not None:
            text = unicodedata.normalize(self.normalize, text)
        if self.spec == "char":
            made = characters(text.encode())
            return made.decode().lower().encode() if self.lowercase else made
        if self.spec == "wordpunct":
            # White space for regex has all our separators in it but NUL, which would be punctuation.
            if "\0" in text:
                raise refuse(text.count("\n", 0, text.index("\0")), "a NUL byte in text for --tokenizer wordpunct")
            text = _one_line_each(" ".join(_wordpunct_findall()(text)))
        elif self._function is not None:
            text = self._call(text, refuse)
        elif self._library is not None:
            text = self._made(text, name)
        # Lower-casing the words one by one or together is the same: a space is no neighbour that str.lower heeds.
        return (text.lower() if self.lowercase else text).encode()

    def _made(self, text: str, name: str) -> str:
        """Return the lines of `text` made of the words that a library finds."""
        ended = text.endswith("\n")
        try:
            return "\n".join(self._library(text.removesuffix("\n").split("\n"))) + "\n" * ended if text else text
        except Exception as error:  # a library may raise anything too
            raise DataError(f"{name}: tokenizer {self.spec} failed: {type(error).__name__}: {error}", path=name) from error

    def _call(self, text: str, refuse: Callable[[int, str], DataError]) -> str:
        """Return the lines of `text` made of the words that MODULE:FUNC returns."""
        lines = text.split("\n")
        n_lines = len(lines) - (lines[-1] == "")  # what follows the last newline is no line
        for line_index, line in enumerate(lines[:n_lines]):
            try:
                words = _words_of(self._function(line))
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


def listed_words(text: str) -> list[str]:
    """Return the words of a list, which stand between separators or on lines of their own."""
    return [word for word in _BETWEEN_WORDS.split(text) if word]


class Assumed(dict):
    """The record of a tokenizer that nobody has named: an ARPA file does not say what made its words."""


def store_tokenizer(path: str | Path, recorded: dict, spec: Spec | None = None, lowercase: bool | None = None) -> Tokenizer:
    """Return the tokenizer that the store at `path` has recorded.

    spec, lowercase: only to name it again, since a recorded MODULE:FUNC is imported only where the user has named it on
    this call, and a recorded file may lie elsewhere now; ArgumentError if they name another one.
    """
    if spec is None and not lowercase:
        return Tokenizer.from_json(recorded)
    named = Tokenizer.from_json({**recorded, "digest": None}, spec=spec, lowercase=lowercase, trusted=spec is not None)
    if shown(named.to_json()) != shown(recorded):
        if isinstance(recorded, Assumed):
            raise ArgumentError(f"{path}: does not say what made its words, so that they stand between separators; name it once: "
                                f"kvps import OUT {path} --tokenizer {shown({**named.to_json(), 'digest': None})}, then name OUT")
        raise ArgumentError(f"{path}: was made with tokenizer {shown(recorded)}, not {shown(named.to_json())}; "
                            "leave the option away")
    return named


def recordable(record: object) -> dict[str, Any]:
    """Return what a client wants recorded of a store's tokenizer; ArgumentError where it is no such record."""
    if not (isinstance(record, dict) and {"tokenizer", "lowercase"} <= record.keys() <= _RECORDED.keys()
            and all(type(value) is _RECORDED[name] for name, value in record.items())):
        raise ArgumentError(f"a store is made with a tokenizer, which {record!r:.200} does not describe")
    return record


def shown(recorded: dict) -> str:
    """Return a recorded tokenizer as people read it; equal for two that make the same words, wherever their files lie."""
    spec = recorded["tokenizer"]
    if recorded.get("digest"):
        spec = f"{spec.partition(':')[0]} (digest {recorded['digest']})"
    return "".join([spec, " --lowercase" if recorded["lowercase"] else "",
                    f" --normalize {recorded['normalize']}" if recorded.get("normalize") else "",
                    " --split-sentences" if recorded.get("split_sentences") else ""])


def _importable_name(function: Callable) -> str:
    """Return "MODULE:FUNC" of a function that a program gave; ArgumentError where that does not lead to it."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    try:
        if module != "__main__" and operator.attrgetter(path)(sys.modules[module]) is function:
            return f"{module}:{path}"
    except (AttributeError, KeyError, TypeError):
        pass
    raise ArgumentError(f"the tokenizer {function!r} cannot be imported by a name, so no other program could open the store again; "
                        'define it as a function in a module of yours, and give that or "MODULE:FUNC"')


def _words_of(found: Any) -> Any:
    """Return the words in what a user's function returned, where it is a Doc of spaCy or an Encoding of Hugging Face."""
    if isinstance(found, (list, tuple)):
        return found
    if isinstance(getattr(found, "tokens", None), list):
        return found.tokens
    if hasattr(found, "text") and hasattr(found, "__iter__"):
        return [token.text for token in found if token.text.strip()]
    return found


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
    if name.lower().endswith(tuple(MAGIC.values())):
        return f"what it unpacks to looks like a {suffix} file, and is never unpacked a second time: unpack it once before"
    return f"it looks like a {suffix} file: give it that ending"


def _one_line_each(spaced: str) -> str:
    """Return words and newlines that were joined by spaces without the spaces around the newlines."""
    return spaced.replace(" \n", "\n").replace("\n ", "\n")


def _refusal(name: str, place: tuple[int | None, int], what: str) -> DataError:
    line, offset = place
    where = f"byte {offset}" if line is None else f"line {line} (byte {offset})"
    return DataError(f"{name}: {where}: {what}", path=name, line=line, offset=offset)

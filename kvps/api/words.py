"""Words as a program gives and takes them: sentences, n-grams, and the vocabulary of a store."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvps._vocabulary import WordTable
from kvps.errors import ArgumentError, StoreError
from kvps.lm import listing
from kvps.lm.model import CompiledModel
from kvps.lm.smoothing import GIVEN
from kvps.text.spool import sentence_line
from kvps.text.tokenize import SEPARATORS
from kvps.text.vocabulary import FIRST_WORD, SPECIALS, text_of_word
from kvps.text.vocabulary import Vocabulary as WordsOfStore

if TYPE_CHECKING:
    from kvps.ps.remote_store import RemoteDirectory

_SPECIALS = tuple(word.decode() for word in SPECIALS)

Sentence = str | list[str] | tuple[str, ...]     # to be tokenised, or words as they are
Ngram = str | Sequence[str]                      # words between blanks, or a list of words


def words_of(ngram: Ngram, number: int) -> list[str]:
    """Return the words of an n-gram: a text split at separators, or a list of words; checked, for messages the `number`-th."""
    if isinstance(ngram, str):
        for separator in SEPARATORS:
            ngram = ngram.replace(separator, " ")
        words = [word for word in ngram.split(" ") if word]
    else:
        words = list(listed(ngram, "words"))
    sentence_line(words, number)
    return words


def listed(given: Any, what: str) -> Iterable[Any]:
    """Return what was given, a str alone or an iterable, as an iterable; ArgumentError, which says of `what`, if it is neither."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, (bytes, bytearray)):
        raise ArgumentError(f"expected a str or an iterable of {what}, not {type(given).__name__}; decode it")
    try:
        return iter(given)
    except TypeError as error:
        raise ArgumentError(f"expected a str or an iterable of {what}, not {type(given).__name__}") from error


def checked(text: Any, what: str) -> str:
    """Return a text that can be encoded as UTF-8; ArgumentError, which says `what` it is, for anything else."""
    if not isinstance(text, str):
        raise ArgumentError(f"{what} is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} is not valid Unicode: {error.reason}") from error
    return text


class Vocabulary(Mapping[str, int]):
    """The words of one version that are in its text, in byte order, each with its count; `version` says which.

    `<s>`, `</s>` and `<unk>` are not among them. Those of an imported model have no counts.
    """

    version: int

    def id(self, word: str) -> int:
        """Return the number of a word, which the store never gives to another one; 0, 1 and 2 are `<unk>`, `<s>` and `</s>`.

        Raises:
            KeyError: it is not among the words.
        """
        if word in _SPECIALS:
            return _SPECIALS.index(word)
        found = self._find(word)
        if found is None:
            raise KeyError(word)
        return found

    def word(self, number: int) -> str:
        """Return the word that has a number; KeyError where none of the words has it."""
        if 0 <= number < FIRST_WORD:
            return _SPECIALS[number]
        found = self._named(number) if number > 0 else None
        if found is None:
            raise KeyError(number)
        return found

    def __contains__(self, word: object) -> bool:
        return self._find(word) is not None

    @abstractmethod
    def _find(self, word: object) -> int | None:
        """Return the number of a word; None where it is not among the words."""

    @abstractmethod
    def _named(self, number: int) -> str | None:
        """Return the word with a number from FIRST_WORD on; None where none has it."""


class LocalVocabulary(Vocabulary):
    """The words of a compiled model."""

    def __init__(self, model: CompiledModel, path: object) -> None:
        """Take a model of order 1, whose values are raw counts, or an imported model; `path` is for messages."""
        self._model, self._path = model, path
        self._counted = model.smoothing is not GIVEN
        self._sorted: list[str] | None = None
        self.version = model.version

    def _find(self, word: object) -> int | None:
        found = self._model.words.get(word.encode("utf-8", "surrogatepass")) if isinstance(word, str) else None
        return found if found is not None and found >= FIRST_WORD and self._there(found) else None

    def _named(self, number: int) -> str | None:
        return text_of_word(self._model.words.word(number)) if number < len(self._model.words) and self._there(number) else None

    def _there(self, number: int) -> bool:
        return not self._counted or bool(self._model.unigrams[number])

    def __getitem__(self, word: str) -> int:
        found = self._find(word)
        if found is None:
            raise KeyError(word)
        if not self._counted:
            raise StoreError(f"{self._path}: was imported, and its words have no counts", path=str(self._path))
        return self._model.unigrams[found]

    def __iter__(self) -> Iterator[str]:
        if self._sorted is None:
            ids = range(FIRST_WORD, len(self._model.words))
            if self._counted:
                ids = (np.flatnonzero(np.asarray(self._model.unigrams)[FIRST_WORD:]) + FIRST_WORD).tolist()
            self._sorted = [text_of_word(word) for word in sorted(self._model.words.word(i) for i in ids)]
        return iter(self._sorted)

    def __len__(self) -> int:
        return self._model.statistics.vocabulary if self._counted else len(self._model.words) - FIRST_WORD


class FetchedVocabulary(Vocabulary):
    """The words of a store elsewhere, all of them fetched."""

    def __init__(self, store: RemoteDirectory) -> None:
        """Fetch them and their counts; their numbers are fetched when first asked for."""
        self._store = store
        self.version, before = -1, None
        while self.version != before:          # it may be written to meanwhile
            before = store.root.state()["version"]
            lines = b"".join(store.run(listing.dump, k=1, in_order=True)).decode().split("\n")[:-1]
            self.version = store.root.state()["version"]
        rows = (line.split("\t") for line in lines)
        self._counts = {word: int(count) for word, count in rows if word not in _SPECIALS}
        self._table: WordTable | None = None

    def _numbers(self) -> WordTable:
        if self._table is None:
            self._table = WordsOfStore(self._store.root.words()).table
        return self._table

    def _find(self, word: object) -> int | None:
        return self._numbers().get(word.encode()) if isinstance(word, str) and word in self._counts else None

    def _named(self, number: int) -> str | None:
        word = self._numbers().word(number).decode() if number < len(self._numbers()) else None
        return word if word in self._counts else None

    def __contains__(self, word: object) -> bool:
        return word in self._counts

    def __getitem__(self, word: str) -> int:
        return self._counts[word]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

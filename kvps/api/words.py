"""Words as a program gives and takes them: sentences, n-grams, and the vocabulary of a store."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kvps.lm.model import CompiledModel
from kvps.text.spool import sentence_line
from kvps.text.tokenize import SEPARATORS
from kvps.text.vocabulary import FIRST_WORD

Sentence = str | list[str] | tuple[str, ...]     # to be tokenised, or words as they are
Ngram = str | Sequence[str]                      # words between blanks, or a list of words


def words_of(ngram: Ngram, number: int) -> list[str]:
    """Return the words of an n-gram: a text split at separators, or a list of words, checked."""
    if isinstance(ngram, str):
        for separator in SEPARATORS:
            ngram = ngram.replace(separator, " ")
        return [word for word in ngram.split(" ") if word]
    words = list(ngram)
    sentence_line(words, number)
    return words


class Vocabulary(Mapping[str, int]):
    """The words of one version that are in its text, in byte order, each with its count; `version` says which.

    `<s>`, `</s>` and `<unk>` are not among them.
    """

    def __init__(self, model: CompiledModel) -> None:
        """Take a compiled model of order 1, whose values are raw counts."""
        self._model = model
        self._sorted: list[str] | None = None
        self.version: int = model.version

    def __getitem__(self, word: str) -> int:
        found = self._model.words.get(word.encode("utf-8", "surrogatepass")) if isinstance(word, str) else None
        count = self._model.unigrams[found] if found is not None and found >= FIRST_WORD else 0
        if count == 0:
            raise KeyError(word)
        return count

    def __iter__(self) -> Iterator[str]:
        if self._sorted is None:
            ids = np.flatnonzero(np.asarray(self._model.unigrams)[FIRST_WORD:]) + FIRST_WORD
            self._sorted = [word.decode() for word in sorted(self._model.words.word(i) for i in ids.tolist())]
        return iter(self._sorted)

    def __len__(self) -> int:
        return self._model.statistics.vocabulary

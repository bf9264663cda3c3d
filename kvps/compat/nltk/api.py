"""What nltk.lm.api has: the interface of models, over our counters, and that of smoothings, as it is."""
from __future__ import annotations

from os import PathLike

from nltk.lm import api
from nltk.lm.api import Smoothing

from kvps.compat.nltk.counter import NgramCounter
from kvps.compat.nltk.vocabulary import Vocabulary
from kvps.errors import ArgumentError

__all__ = ["LanguageModel", "Smoothing"]


class LanguageModel(api.LanguageModel):
    """What all models have in common: where their vocabulary and their counts are."""

    def __init__(self, order: int, vocabulary: Vocabulary | None = None, counter: NgramCounter | None = None, *,
                 path: str | PathLike[str] | None = None) -> None:
        """Take nltk's arguments; `path` names the folder of the vocabulary and the counter that are not given."""
        if path is not None and vocabulary is not None and counter is not None:
            raise ArgumentError("a path says where vocabulary and counter are: give at most one of them with it")
        super().__init__(order, Vocabulary(path=path) if vocabulary is None else vocabulary,
                         NgramCounter(path=path) if counter is None else counter)

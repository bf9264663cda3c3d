"""nltk.lm's models over counters without a bound, and kept in a folder where `path` names one."""
from __future__ import annotations

from collections import Counter, defaultdict
from os import PathLike

from nltk.lm import api, models, smoothing

from kvps.compat.nltk.counter import NgramCounter
from kvps.compat.nltk.vocabulary import Vocabulary
from kvps.errors import ArgumentError


class LanguageModel(api.LanguageModel):
    """What all models have in common: where their vocabulary and their counts are."""

    def __init__(self, order: int, vocabulary: Vocabulary | None = None, counter: NgramCounter | None = None, *,
                 path: str | PathLike[str] | None = None) -> None:
        """Take nltk's arguments; `path` names the folder of the vocabulary and the counter that are not given."""
        if path is not None and vocabulary is not None and counter is not None:
            raise ArgumentError("a path says where vocabulary and counter are: give at most one of them with it")
        super().__init__(order, Vocabulary(path=path) if vocabulary is None else vocabulary,
                         NgramCounter(path=path) if counter is None else counter)


class KneserNey(smoothing.KneserNey):
    """nltk's, with continuation counts that are looked up; they are made again after an update of the counter."""

    def __init__(self, vocabulary: Vocabulary, counter: NgramCounter, order: int, discount: float = 0.1, **kwargs: object) -> None:
        """Take nltk's arguments."""
        super().__init__(vocabulary, counter, order, discount, **kwargs)
        self._found: dict[int, dict[tuple[str, ...], Counter]] = {}
        self._updates = -1

    def _continuation_counts(self, word: str, context: tuple[str, ...] = ()) -> tuple[int, int]:
        updates = getattr(self.counts, "updates", None)
        if updates is None:                    # a counter of nltk's own
            return super()._continuation_counts(word, context)
        if updates != self._updates:
            self._found, self._updates = {}, updates
        length = len(context)
        if length not in self._found:
            self._found[length] = made = defaultdict(Counter)
            for longer, counts in self.counts[length + 2].items():
                made[longer[1:]].update([follower for follower, count in counts.items() if count > 0])
        types = self._found[length].get(tuple(context))
        return (types[word], types.total()) if types else (0, 0)


class MLE(models.MLE, LanguageModel):
    """nltk.lm.MLE."""


class Lidstone(models.Lidstone, LanguageModel):
    """nltk.lm.Lidstone."""


class Laplace(models.Laplace, LanguageModel):
    """nltk.lm.Laplace."""


class StupidBackoff(models.StupidBackoff, LanguageModel):
    """nltk.lm.StupidBackoff."""


class WittenBellInterpolated(models.WittenBellInterpolated, LanguageModel):
    """nltk.lm.WittenBellInterpolated."""


class AbsoluteDiscountingInterpolated(models.AbsoluteDiscountingInterpolated, LanguageModel):
    """nltk.lm.AbsoluteDiscountingInterpolated."""


class KneserNeyInterpolated(models.KneserNeyInterpolated, LanguageModel):
    """nltk.lm.KneserNeyInterpolated, whose continuation counts are looked up."""

    def __init__(self, order: int, discount: float = 0.1, **kwargs: object) -> None:
        """Take nltk's arguments, and `path`."""
        super().__init__(order, discount, **kwargs)
        self.estimator = KneserNey(self.vocab, self.counts, order=order, discount=discount)

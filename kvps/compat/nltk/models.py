"""nltk.lm's models over counters without a bound, and kept in a folder where `path` names one."""
from __future__ import annotations

from nltk.lm import models

from kvps.compat.nltk.api import LanguageModel
from kvps.compat.nltk.smoothing import KneserNey


class MLE(models.MLE, LanguageModel):
    """nltk.lm.MLE."""


class Lidstone(models.Lidstone, LanguageModel):
    """nltk.lm.Lidstone."""


class Laplace(models.Laplace, LanguageModel):
    """nltk.lm.Laplace."""


class StupidBackoff(models.StupidBackoff, LanguageModel):
    """nltk.lm.StupidBackoff."""


class InterpolatedLanguageModel(models.InterpolatedLanguageModel, LanguageModel):
    """nltk.lm.models.InterpolatedLanguageModel."""


class WittenBellInterpolated(models.WittenBellInterpolated, InterpolatedLanguageModel):
    """nltk.lm.WittenBellInterpolated."""


class AbsoluteDiscountingInterpolated(models.AbsoluteDiscountingInterpolated, InterpolatedLanguageModel):
    """nltk.lm.AbsoluteDiscountingInterpolated."""


class KneserNeyInterpolated(models.KneserNeyInterpolated, InterpolatedLanguageModel):
    """nltk.lm.KneserNeyInterpolated, whose continuation counts are looked up."""

    def __init__(self, order: int, discount: float = 0.1, **kwargs: object) -> None:
        """Take nltk's arguments, and `path`."""
        super().__init__(order, discount, **kwargs)
        self.estimator = KneserNey(self.vocab, self.counts, order=order, discount=discount)

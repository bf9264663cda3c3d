"""nltk.lm over kvps: `from kvps.compat.nltk import MLE` in the place of `from nltk.lm import MLE`.

    train, words = padded_everygram_pipeline(3, sentences)
    model = KneserNeyInterpolated(3, path="reuters.lm")        # a folder: without path all is in memory, as in nltk
    model.fit(train, words)
    model.perplexity(test)

The classes are nltk's own but for what counts, and have its results. What differs:

- There is no bound of ten million n-grams, unless counter.MAX_NGRAMS is set to one.
- With path=, counts and vocabulary are on disk: fit() and update() are durable when they return, all or nothing, and the
  same path given again goes on with them. Words are str then, n-grams have 1 to 8 of them, and only contexts that are
  asked for are read. Where nltk keeps the order in which words came, such as of equal counts, that of the table counts.
- KneserNeyInterpolated looks continuation counts up; nltk goes through all contexts for each of them.
"""
from kvps.compat.nltk.counter import NgramCounter
from kvps.compat.nltk.models import (
    MLE,
    AbsoluteDiscountingInterpolated,
    KneserNeyInterpolated,
    Laplace,
    Lidstone,
    StupidBackoff,
    WittenBellInterpolated,
)
from kvps.compat.nltk.vocabulary import Vocabulary

__all__ = ["MLE", "AbsoluteDiscountingInterpolated", "KneserNeyInterpolated", "Laplace", "Lidstone", "NgramCounter",
           "StupidBackoff", "Vocabulary", "WittenBellInterpolated"]

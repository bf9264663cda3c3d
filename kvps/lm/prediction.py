"""How well a model foresees a text: perplexity and its relatives, which orders were seen, and the next word as a prediction.

The prediction is made before each word and each </s> from what stands before it: of all words but <s> and <unk>, the most
probable first, those of equal probability in byte order. An unknown word is never foreseen.
"""
from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from kvps.lm.scorer import Score
from kvps.pools import spread

if TYPE_CHECKING:
    from kvps.lm.foresight import Foresight

NO_WORD = 0xFFFFFFFF
AT = (1, 5, 10)


@dataclasses.dataclass
class Evaluation:
    """What was found of a text. Tokens are words and one </s> a sentence; shares are of all tokens."""

    score: Score
    hits: np.ndarray                       # int64 (order + 1,): tokens by the order of the longest n-gram that was seen
    within: np.ndarray                     # int64 (3,): tokens that are among the best 1, 5 and 10 words
    reciprocal: float                      # the sum over tokens of 1 / place
    # int64 (n_words,), by word: how often it stands there, was the best one, and both
    true: np.ndarray
    predicted: np.ndarray
    right: np.ndarray

    @classmethod
    def empty(cls, n_words: int, order: int) -> Evaluation:
        """Return that of no text."""
        return cls(Score(), np.zeros(order + 1, np.int64), np.zeros(len(AT), np.int64), 0.0,
                   *(np.zeros(n_words, np.int64) for _ in range(3)))

    def __iadd__(self, other: Evaluation) -> Evaluation:
        for field in dataclasses.fields(self):
            setattr(self, field.name, operator.iadd(getattr(self, field.name), getattr(other, field.name)))
        return self

    @property
    def cross_entropy_bits(self) -> float:
        """-log2 of the probability per token; infinite where a token has probability 0."""
        return math.log2(perplexity) if (perplexity := self.score.perplexity) > 0 else math.nan

    @property
    def oov_rate(self) -> float:
        """The share of unknown words."""
        return self._share(self.score.oov)

    @property
    def accuracy(self) -> dict[int, float]:
        """The share of tokens that are among the best 1, 5 and 10 words, by that number."""
        return {k: self._share(n) for k, n in zip(AT, self.within.tolist(), strict=True)}

    @property
    def mean_reciprocal_rank(self) -> float:
        """The mean of 1 / place of each token among all words; 0 for one that is unknown or has probability 0."""
        return self._share(self.reciprocal)

    @property
    def macro(self) -> tuple[float, float, float]:
        """Precision, recall and F1 of the best word, as means over the words that stand there or were the best one.

        A word's precision is 0 if it was never the best one, its recall if it never stands there; all unknown words are one.
        """
        words = np.flatnonzero(self.true + self.predicted)
        if not len(words):
            return math.nan, math.nan, math.nan
        right, true, predicted = self.right[words], self.true[words], self.predicted[words]
        return (math.fsum(right / np.maximum(predicted, 1)) / len(words), math.fsum(right / np.maximum(true, 1)) / len(words),
                math.fsum(2 * right / (true + predicted)) / len(words))

    def as_dict(self) -> dict:
        """Return what `kvps evaluate --json` prints; infinite and undefined figures are None."""
        precision, recall, f1 = self.macro
        figures = {"oov_rate": self.oov_rate, "cross_entropy_bits": self.cross_entropy_bits,
                   **{f"accuracy_at_{k}": share for k, share in self.accuracy.items()},
                   "mean_reciprocal_rank": self.mean_reciprocal_rank, "macro_precision": precision, "macro_recall": recall,
                   "macro_f1": f1}
        return {**self.score.as_dict(), **{name: x if math.isfinite(x) else None for name, x in figures.items()},
                "hits": {str(order): n for order, n in enumerate(self.hits.tolist())}}

    def _share(self, n: float) -> float:
        return n / self.score.tokens if self.score.tokens else math.nan


def evaluate(model: Foresight, texts: Iterable[bytes], threads: int = 1) -> Evaluation:
    """Return how well a model foresees pieces of tokenised text; the same for any number of threads."""
    total = model.evaluate(b"")
    for part in spread(model.evaluate, texts, threads):
        total += part
    return total


def evaluated(model: Foresight, text: bytes) -> Evaluation:
    """Return how well a model foresees tokenised text."""
    if not text:
        return Evaluation.empty(model.n_words, model.order)
    ids, matched, places, first = model.foreseen(text)
    foreseen = places > 0
    known = first[first != NO_WORD]

    def tally(words: np.ndarray) -> np.ndarray:
        return np.bincount(words, minlength=model.n_words)

    return Evaluation(model.score_text(text), np.bincount(matched, minlength=model.order + 1),
                      np.array([np.count_nonzero(places[foreseen] <= k) for k in AT]), math.fsum(1 / places[foreseen]),
                      tally(ids), tally(known), tally(ids[first == ids]))

"""What nltk.lm.smoothing has: two smoothings as they are, and Kneser-Ney with continuation counts that are looked up."""
from __future__ import annotations

from collections import Counter, defaultdict

from nltk.lm import smoothing
from nltk.lm.smoothing import AbsoluteDiscounting, WittenBell

from kvps.compat.nltk.counter import NgramCounter
from kvps.compat.nltk.vocabulary import Vocabulary

__all__ = ["AbsoluteDiscounting", "KneserNey", "WittenBell"]


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

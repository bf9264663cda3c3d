"""Models mixed: linear interpolation, p(w | h) = sum of weight_i p_i(w | h), over the words of all of them.

A model gives 0 to a word that it lacks and another one has; what it gives to <unk> stays with <unk>, which stands for the words
that no model has. Each model reads a context its own way, words that it lacks as <unk>. So the probabilities of the union's
words and <unk> sum to the weighted sum of the models' own sums: to 1.

Weights are found by expectation maximisation on a development text (Jelinek and Mercer 1980): each model's weight becomes the
mean over the tokens of its share in their probability, until the perplexity falls no more.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvps._vocabulary import FrozenWords, WordTable
from kvps.errors import ArgumentError
from kvps.lm.best import BestWords
from kvps.lm.explain import ExplainedWord
from kvps.lm.foresight import Choices, Promising, Whole, sorted_words
from kvps.lm.mixture import MixtureFile
from kvps.lm.model import columns_of, columns_of_words, rows_of
from kvps.lm.prediction import NO_WORD
from kvps.lm.scorer import Score
from kvps.lm.smoothing import DEFAULT, MIXED
from kvps.lm.statistics import Statistics
from kvps.text.vocabulary import BOS, SPECIALS, UNK

# Of the mean log-likelihood of a token, in nats: less than a millionth of the perplexity.
TOLERANCE = 1e-9
MAX_STEPS = 10_000
TRIES = 1000                   # to draw a word that is neither <s> nor <unk>


class Component(NamedTuple):
    """One model of a mixture: anything that answers as a CompiledModel does."""

    name: str
    weight: float
    model: Any


class MixedModel(Whole):
    """Models that answer as one."""

    smoothing = MIXED

    def __init__(self, place: MixtureFile, open_part: Callable[[Any, dict[str, Any]], Any], *, following: bool = False) -> None:
        """Open the models of a mixture.

        open_part: takes one of its places and {"smoothing", "order", "labels", "exact"}. following: so that they know next words.
        """
        self.path, self.follows = place.path, following
        self.parts = [Component(part.model, part.weight, open_part(opened, {
            "smoothing": part.smoothing or DEFAULT, "order": part.order, "labels": part.labels, "exact": part.exact}))
            for part, opened in zip(place.parts, place.places, strict=True)]
        for part in self.parts:
            refuse_scores(part.name, part.model)
        self.order = max(part.model.order for part in self.parts)
        self.version = sum(part.model.version for part in self.parts)

    @property
    def statistics(self) -> Statistics:
        """Refuse: what was counted, the models know."""
        raise ArgumentError(f"{self.path}: is a mixture, and has no statistics of its own; ask its models")

    def vocabulary(self) -> dict[str, np.ndarray]:
        """As CompiledModel.vocabulary(): the words of all models."""
        return columns_of_words([self.words.word(i) for i in range(self.n_words)], np.ones(self.n_words, bool))

    # Scores

    def score_tokens(self, text: bytes) -> dict[str, np.ndarray]:
        """As CompiledModel.score_tokens(); of the ids only those of <unk> and </s> mean something."""
        found = [part.model.score_tokens(text) for part in self.parts]
        p = shares(found) @ np.array([part.weight for part in self.parts])
        with np.errstate(divide="ignore"):
            return {"ids": functools.reduce(np.maximum, (tokens["ids"] for tokens in found)), "log10": np.log10(p),
                    "matched": self._matched(found)}

    def matched(self, text: bytes) -> np.ndarray:
        """As Whole.matched()."""
        return self._matched([part.model.score_tokens(text) for part in self.parts])

    def _matched(self, found: list[dict[str, np.ndarray]]) -> np.ndarray:
        return functools.reduce(np.maximum, (tokens["matched"] for tokens in found))

    def score_columns(self, text: bytes) -> dict[str, np.ndarray]:
        """As CompiledModel.score_columns()."""
        tokens = self.score_tokens(text)
        return columns_of(tokens["ids"], tokens["log10"])

    def score_sentences(self, text: bytes) -> list[Score]:
        """As CompiledModel.score_sentences()."""
        return rows_of(self.score_columns(text))

    def score_text(self, text: bytes) -> Score:
        """As Scorer.score_text()."""
        return Score(**{name: column.sum().item() for name, column in self.score_columns(text).items()})

    def score_words(self, text: bytes) -> Iterator[list[tuple[bytes, int, float, int, bool]]]:
        """As CompiledModel.score_words()."""
        log10_p = iter(self.score_tokens(text)["log10"].tolist())
        for sentence in zip(*(part.model.score_words(text) for part in self.parts), strict=True):
            yield [(words[0], max(ids), next(log10_p), max(orders), all(oov))
                   for words, ids, _, orders, oov in (zip(*same, strict=True) for same in zip(*sentence, strict=True))]

    def log10(self, word: str, context: Sequence[str]) -> float:
        """As CompiledModel.log10()."""
        asked = np.array([self.ids_of([*context[max(0, len(context) - self.order + 1):], word])], np.uint32)
        return float(self.score_rows(asked)[0])

    def score_rows(self, rows: np.ndarray) -> np.ndarray:
        """As CompiledModel.score_rows(), of the ids of all words together."""
        p, known = np.zeros(len(rows)), rows[:, -1] == UNK
        for part, own in zip(self.parts, self.union.own, strict=True):
            theirs = own[rows]
            there = known | (theirs[:, -1] != UNK)
            p += part.weight * np.where(there, 10 ** part.model.score_rows(theirs), 0)
        with np.errstate(divide="ignore"):
            return np.log10(p)

    def shares_of(self, contexts: Sequence[np.ndarray], which: np.ndarray, words: np.ndarray) -> np.ndarray:
        """As CompiledModel.shares_of()."""
        p = np.zeros(len(words))
        for part, own in zip(self.parts, self.union.own, strict=True):
            theirs = own[words]
            there = (theirs != UNK) | (words == UNK)
            p[there] += part.weight * part.model.shares_of([own[context] for context in contexts], which[there], theirs[there])
        return p

    def explain(self, text: bytes) -> Iterator[list[ExplainedWord]]:
        """As CompiledModel.explain(): what the n-grams of all models give, each by its weight."""
        for sentence in zip(*(part.model.explain(text) for part in self.parts), strict=True):
            yield [self._explained(same) for same in zip(*sentence, strict=True)]

    def _explained(self, words: Sequence[ExplainedWord]) -> ExplainedWord:
        oov = all(word.oov for word in words)
        weights = [part.weight if oov or not word.oov else 0.0 for part, word in zip(self.parts, words, strict=True)]
        p = math.fsum(weight * word.probability for weight, word in zip(weights, words, strict=True))
        longest = max(words, key=lambda word: word.order)
        return longest._replace(
            log10=math.log10(p) if p > 0 else -math.inf, probability=p, oov=oov,
            parts=[found._replace(share=weight * found.share, model=part.name)
                   for part, weight, word in zip(self.parts, weights, words, strict=True) for found in word.parts])

    # Next words

    @functools.cached_property
    def union(self) -> Union:
        """The words of all models together."""
        return Union([part.model.vocabulary() for part in self.parts])

    @property
    def words(self) -> FrozenWords:         # type: ignore[override]
        """The words of all models."""
        return self.union.words

    @property
    def n_words(self) -> int:               # type: ignore[override]
        """How many there are."""
        return len(self.union.by_rank)

    n_next = n_words

    @property
    def ranks(self) -> np.ndarray:          # type: ignore[override]
        """The place of each in byte order."""
        return self.union.ranks

    @property
    def by_rank(self) -> np.ndarray:        # type: ignore[override]
        """The words in byte order."""
        return self.union.by_rank

    def ids_of(self, words: Sequence[str | bytes]) -> list[int]:
        """As Foresight.ids_of()."""
        return [self.words.get(word.encode() if isinstance(word, str) else word) or UNK for word in words]

    def distribution_of(self, context: Sequence[int]) -> np.ndarray:
        """As Foresight.distribution_of()."""
        out = np.zeros(self.n_words)
        for i, (part, alive, ours) in enumerate(zip(self.parts, self.union.alive, self.union.ours, strict=True)):
            out[ours] += part.weight * part.model.distribution_of(self._read_by(i, context))[alive]
        return out

    def mass(self, context: Sequence[int], low: int, high: int) -> float:
        """As Foresight.mass()."""
        return math.fsum(part.weight * part.model.mass(self._read_by(i, context), *self._range_of(i, low, high))
                         for i, part in enumerate(self.parts))

    def extend(self, contexts: Sequence[Sequence[int]], k: int, low: int, high: int,
               min_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Whole.extend(); at once where the followers of all models are listed."""
        if min_count or self._best_of_all is None:
            return super().extend(contexts, k, low, high, min_count)
        return self._best_of_all.find(contexts, k, (low, high))

    @functools.cached_property
    def _best_of_all(self) -> BestWords | None:
        """The search in the lists of all models, unless one has none."""
        if not all(hasattr(part.model, "followers") for part in self.parts):
            return None
        return BestWords([(part.model.followers, part.weight, own, here)
                          for part, own, here in zip(self.parts, self.union.own, self.union.here, strict=True)],
                         self.ranks, self.by_rank)

    def promising(self, contexts: Sequence[Sequence[int]], m: int, places: tuple[int, int],
                  without: tuple[int, ...]) -> Promising | None:
        """As Whole.promising(): the best words of each model, and <unk>."""
        n = len(contexts)
        words, which = [np.full(n, UNK, np.uint32)], [np.arange(n)]
        start, others = np.zeros(n), np.zeros(n)
        if BOS not in without:                 # as a next word <s> has the probability that it scores, or 0
            if self.order == 1 or not all(contexts):
                return None                    # where nothing stands before it, it scores 1
            start = self.shares_of([self._asked(context) for context in contexts], which[0], np.full(n, BOS, np.uint32))
        for i, part in enumerate(self.parts):
            asked = [self._read_by(i, context) for context in contexts]
            ids, p, found = part.model.extend(asked, m, *self._range_of(i, *places), 0)
            there = np.arange(ids.shape[1]) < found[:, None]
            words.append(self.union.here[i][ids[there]])
            which.append(np.nonzero(there)[0])
            others += part.weight * np.where(found == m, p[:, -1], 0)
        return Promising(np.concatenate(words), np.concatenate(which), np.maximum(start, others))

    def drawn(self, said: Sequence[int], random: np.random.Generator, choices: Choices) -> int | None:
        """As Whole.drawn(): as the distribution is, by a model that is drawn by its weight."""
        if choices == Choices(1.0, None, None) and all(hasattr(part.model, "draw_word") for part in self.parts):
            for _ in range(TRIES):
                i = int(np.searchsorted(self._reached, random.random(), "right"))
                word = self.parts[i].model.draw_word(self._read_by(i, said), int(random.integers(1 << 63)))
                if word != NO_WORD:
                    return int(self.union.here[i][word])
        return super().drawn(said, random, choices)        # perhaps <unk> has nearly all there is

    @functools.cached_property
    def _reached(self) -> np.ndarray:
        """The sums of the weights of the models up to each, but for the last one, which has the rest."""
        return np.cumsum([part.weight for part in self.parts])[:-1]

    def _read_by(self, i: int, context: Sequence[int]) -> list[int]:
        """Return the words of a context that matter, by the ids of model i."""
        own = self.union.own[i]
        return [int(own[word]) for word in context[max(0, len(context) - self.order + 1):]]

    def _range_of(self, i: int, low: int, high: int) -> tuple[int, int]:
        """Return the places in byte order that the words of model i have in it of those with places in [low, high) here."""
        here, own = self._places[i]
        first, end = np.searchsorted(here, (low, high)).tolist()
        return (int(own[first]), int(own[end - 1]) + 1) if first < end else (0, 0)

    @functools.cached_property
    def _places(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of the words of each model, in byte order, their places here and in the model."""
        return [(np.sort(self.ranks[ours]).astype(np.int64), np.sort(part.model.ranks[alive]))
                for part, alive, ours in zip(self.parts, self.union.alive, self.union.ours, strict=True)]


class Union:
    """The words of several models together.

    Attributes:
        table: of the words, whose ids these are.
        own[i]: uint32, by id of the union, the id that model i has for the word; <unk> where it lacks it.
        alive[i], ours[i]: the ids of the words of model i, and those that they have in the union.
        here[i]: uint32, by id of model i, the id that its word has in the union.
    """

    def __init__(self, vocabularies: list[dict[str, np.ndarray]]) -> None:
        """Take what CompiledModel.vocabulary() says of each."""
        self.table = table = WordTable()
        for word in SPECIALS:
            table.add(word)
        self.alive, self.ours = [], []
        for found in vocabularies:
            blob, ends = found["words"].tobytes(), np.cumsum(found["lengths"], dtype=np.int64)
            alive = np.flatnonzero(found["alive"])
            starts, stops = (ends - found["lengths"])[alive].tolist(), ends[alive].tolist()
            self.alive.append(alive)
            self.ours.append(np.array([table.add(blob[start:stop]) for start, stop in zip(starts, stops, strict=True)], np.int64))
        n = len(table)
        self.own, self.here = [], []
        for alive, ours in zip(self.alive, self.ours, strict=True):
            own, here = np.zeros(n, np.uint32), np.zeros(int(alive[-1]) + 1, np.uint32)
            own[ours], here[alive] = alive, ours
            self.own.append(own)
            self.here.append(here)
        self.by_rank, self.ranks = sorted_words([table.word(i) for i in range(n)])
        self.words = FrozenWords(*table.frozen(np.ones(n, np.uint8)))

    def __len__(self) -> int:
        return len(self.table)



def refuse_scores(name: str, model: Any) -> None:
    """Raise ArgumentError unless a model gives probabilities."""
    if model.smoothing.name == "stupid-backoff":
        raise ArgumentError(f"{name}: stupid-backoff gives scores, which cannot be mixed; choose another smoothing")


def shares(found: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the probability that each model gives to each token, float64 (n, n_models), of what score_tokens() says of each."""
    ids = np.stack([tokens["ids"] for tokens in found], axis=1)
    p = 10 ** np.stack([tokens["log10"] for tokens in found], axis=1)
    return np.where((ids == UNK) & (ids != UNK).any(axis=1, keepdims=True), 0, p)


def best_weights(p: np.ndarray) -> np.ndarray:
    """Return the weights, float64 (n_models,), by which the probability of all tokens is greatest.

    p: float64 (n, n_models), the probability that each model gives to each token; a token that all give 0 does not count.
    """
    p = p[p.any(axis=1)]
    weights = np.full(p.shape[1], 1 / p.shape[1])
    before = -math.inf
    for _ in range(MAX_STEPS if len(p) else 0):
        mixed = p @ weights
        now = float(np.log(mixed).mean())
        if now - before < TOLERANCE:
            break
        before = now
        weights = weights * (p / mixed[:, None]).mean(axis=0)
        weights /= weights.sum()
    return weights

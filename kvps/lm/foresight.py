"""What a model that knows next words does with them, whatever it knows them from.

Foresight is what the commands ask of such a model: next words, completions, drawn sentences, predictions. A model whose
followers are listed in a file (followers.py) answers from its lists. One without such lists, Whole, makes the distribution
over all words, and takes from it what is asked for: right, but slower by the size of the vocabulary. Where it can name words
that are promising, and say how probable others can be at most, the best ones come without that.
"""
from __future__ import annotations

import abc
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvps._model import histories
from kvps._rows import best_rows, find_rows
from kvps._vocabulary import FrozenWords, encode_frozen
from kvps.errors import ArgumentError
from kvps.lm import completion, container, prediction
from kvps.lm.model import CompiledModel
from kvps.lm.scorer import Score
from kvps.lm.smoothing import DEFAULT, Smoothing
from kvps.pools import spread
from kvps.text.vocabulary import BOS, EOS, UNK, text_of_word
from kvps.units import MAX_DRAWN_WORDS, check_number

# Contexts answered at once, and words that one answer may have.
CONTEXTS, WORDS = 64, 1 << 20
SENTENCES = 32                         # drawn at once
FEW = 100                              # words that are looked up one by one before all are: so many, or this part of all
ROUNDED = 1 + 1e-9                     # probabilities that come two ways may differ so much
GROUP = 64                             # shares whose maximum is taken, to leave most of them out
MAX_WORDS = 100                        # of a drawn sentence, unless more are wanted
# How a drawn sentence ended: max_words came, </s> came, no word has a probability.
CUT, ENDED, NOTHING = 0, 1, 2


class NextWords(NamedTuple):
    """The best next words after a context, best first, those of equal probability in byte order."""

    words: list[str]
    probabilities: np.ndarray              # float64 (k,)
    cumulative: np.ndarray                 # float64 (k,): of each word and those before it


class Drawn(NamedTuple):
    """A sentence that was drawn: its words after the prompt, and whether it came to its </s>."""

    words: list[str]
    ended: bool


class Choices(NamedTuple):
    """How words are drawn."""

    temperature: float
    top_k: int | None
    top_p: float | None


class Promising(NamedTuple):
    """Words that are likely the best ones after some contexts."""

    words: np.ndarray                      # some may be there twice
    which: np.ndarray                      # int64, the context of each
    others: np.ndarray                     # float64, of each context: no other word is more probable


def check_draws(count: int, temperature: float, top_k: int | None, top_p: float | None, seed: int, max_words: int) -> None:
    """Raise ArgumentError unless sentences can be drawn so; see Model.generate()."""
    check_number("a count", count, 0)
    check_number("a top k", 1 if top_k is None else top_k, 1)
    check_number("a number of words", max_words, 1, MAX_DRAWN_WORDS)
    check_number("a seed", seed, 0, (1 << 64) - 1)
    for name, value, most in (("temperature", temperature, math.inf), ("top p", 1.0 if top_p is None else top_p, 1.0)):
        if not isinstance(value, Real) or not (0 < value <= most and value < math.inf):
            raise ArgumentError(f"a {name} of {value!r:.40} is not possible: expected a number above 0"
                                f"{', at most 1' if most == 1 else ''}")


class Foresight(abc.ABC):
    """A model that knows next words."""

    follows: bool                          # True
    order: int
    smoothing: Smoothing
    words: FrozenWords
    n_words: int                           # ids are below it
    n_next: int                            # words that may come, <s> and <unk> among them
    ranks: np.ndarray                      # uint32 (n_words,): the place of each word in byte order
    by_rank: np.ndarray                    # uint32 (n_words,): the words in it
    spelled: np.ndarray                    # int64, the places of those that it has bytes of: not those of a store without counts

    @abc.abstractmethod
    def ids_of(self, words: Sequence[str | bytes]) -> list[int]:
        """Return the ids of words; an unknown one is <unk>."""

    @abc.abstractmethod
    def score_text(self, text: bytes) -> Score:
        """Return the sums over tokenised text."""

    @abc.abstractmethod
    def distribution_of(self, context: Sequence[int]) -> np.ndarray:
        """Return the probability of each word id after a context of ids, float64 (n_words,)."""

    @abc.abstractmethod
    def mass(self, context: Sequence[int], low: int, high: int) -> float:
        """Return the probability that the next word is one of those whose place in byte order is in [low, high)."""

    @abc.abstractmethod
    def top(self, contexts: Sequence[Sequence[int]], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the k best next words after each of n contexts of word ids.

        Returns:
            (ids uint32 (n, k), probabilities float64 (n, k), how many there are int64 (n,)); see NextWords.
        """

    @abc.abstractmethod
    def extend(self, contexts: Sequence[Sequence[int]], k: int, low: int, high: int,
               min_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As top(), of words that may go on with a text: neither <s> nor <unk>.

        low, high: only words whose place in byte order is in [low, high).
        min_count: only words of at least this count, as the smoothing has it, after the longest context that was seen; 0: any.
        """

    @abc.abstractmethod
    def draw(self, start: list[int], seed: int, first: int, n: int, max_words: int,
             choices: Choices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw n sentences that go on from `start`, the first one having the number `first`.

        Returns:
            (words uint32 (n, max_words), how many each has int64 (n,), how each ended uint8 (n,)).
        """

    @abc.abstractmethod
    def foreseen(self, text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return of each token of tokenised text its id, the order of the longest n-gram seen, its place, and the best word.

        The place is that among all words but <s> and <unk>, from 1 on; 0 for an unknown word and one of probability 0. The best
        word is prediction.NO_WORD where none has a probability.
        """

    def refuse_scores(self) -> None:
        """Raise ArgumentError unless the smoothing gives probabilities."""
        if self.smoothing.name == "stupid-backoff":
            raise ArgumentError("stupid-backoff gives scores, not a distribution over the next word; choose another smoothing")

    def distribution(self, context: Sequence[str]) -> np.ndarray:
        """Return the probability of each word id after a context, float64 (n_words,)."""
        return self.distribution_of(self.ids_of(context))

    def next_words(self, contexts: Iterable[Sequence[str]], k: int | None, threads: int = 1) -> Iterator[NextWords]:
        """Yield the k best next words after each context, all with k None; words that cannot come are left out.

        Raises:
            ArgumentError: stupid back-off, which gives scores and no distribution.
        """
        self.refuse_scores()
        k = min(k or self.n_words, self.n_next)
        rows = [self.ids_of(context) for context in contexts]
        size = max(1, min(CONTEXTS, WORDS // k))
        parts = [rows[i:i + size] for i in range(0, len(rows), size)]
        for answer in spread(lambda part: self.top(part, k), parts, threads):
            yield from self._named(*answer)

    def complete(self, typed: Sequence[str], partial: str, k: int = 10, *, beam: int = completion.BEAM,
                 max_words: int = completion.MAX_WORDS, min_count: int = 0) -> list[completion.Completion]:
        """Return the k most probable completions of a text; see completion.complete()."""
        return completion.complete(self, typed, partial, k, beam=beam, max_words=max_words, min_count=min_count)

    def evaluate(self, text: bytes) -> prediction.Evaluation:
        """Return how well tokenised text is foreseen."""
        return prediction.evaluated(self, text)

    def generate(self, prompt: Sequence[str], count: int, *, temperature: float = 1.0, top_k: int | None = None,
                 top_p: float | None = None, seed: int = 0, max_words: int = MAX_WORDS, threads: int = 1,
                 first: int = 0) -> Iterator[Drawn]:
        """Yield `count` sentences that begin with a prompt, drawn word by word; see Model.generate().

        Sentence i depends on the seed and i alone, not on how many there are or on the number of threads; `first` is the
        number of the first one.
        """
        self.refuse_scores()
        check_draws(count, temperature, top_k, top_p, seed, max_words)
        start, choices, end = [BOS, *self.ids_of(prompt)], Choices(temperature, top_k, top_p), first + count

        def drawn(at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return self.draw(start, seed, at, min(SENTENCES, end - at), max_words, choices)

        for rows, lengths, ends in spread(drawn, range(first, end, SENTENCES), threads):
            for row, n, how in zip(rows, lengths.tolist(), ends.tolist(), strict=True):
                words = [text_of_word(self.words.word(i)) for i in row[:n].tolist()]
                if how == NOTHING:
                    raise ArgumentError(f"{self.smoothing} gives no word a probability after "
                                        f"{' '.join(['<s>', *prompt, *words])!r}")
                yield Drawn(words, how == ENDED)

    def _named(self, ids: np.ndarray, p: np.ndarray, found: np.ndarray) -> Iterator[NextWords]:
        for row, shares, n in zip(ids, p, found.tolist(), strict=True):
            yield NextWords([text_of_word(self.words.word(i)) for i in row[:n].tolist()], shares[:n], np.cumsum(shares[:n]))


class Whole(Foresight):
    """Next words from the distribution over all words: for models that have no lists of what follows a context."""

    @functools.cached_property
    def spelled(self) -> np.ndarray:       # type: ignore[override]
        """The places of all words."""
        return np.arange(self.n_words)

    def mass(self, context: Sequence[int], low: int, high: int) -> float:
        """As Foresight.mass()."""
        return math.fsum(self.in_range(context, low, high).tolist())

    def top(self, contexts: Sequence[Sequence[int]], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.top()."""
        return self._best(contexts, k, (0, self.n_words))

    def extend(self, contexts: Sequence[Sequence[int]], k: int, low: int, high: int,
               min_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.extend(); there are no counts, so min_count is refused."""
        if min_count:
            raise ArgumentError(f"words that were seen {min_count} times: this model has no counts; that takes a store")
        return self._best(contexts, k, (low, high), without=(UNK, BOS))

    def draw(self, start: list[int], seed: int, first: int, n: int, max_words: int,
             choices: Choices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.draw()."""
        words, lengths, ends = np.zeros((n, max_words), np.uint32), np.zeros(n, np.int64), np.zeros(n, np.uint8)
        for i in range(n):
            random = np.random.default_rng([seed, first + i])
            said = list(start)
            for length in range(max_words):
                word = self.drawn(said, random, choices)
                if word is None or word == EOS:
                    ends[i] = NOTHING if word is None else ENDED
                    break
                words[i, length], lengths[i] = word, length + 1
                said.append(word)
        return words, lengths, ends

    def drawn(self, said: Sequence[int], random: np.random.Generator, choices: Choices) -> int | None:
        """Return a word drawn after what was said, or None where no word has a probability."""
        if choices.top_k is not None:
            ids, p, found = self.extend([said], min(choices.top_k, self.n_words), 0, self.n_words, 0)
            words, shares = ids[0, :found[0]], p[0, :found[0]]
        else:
            p = self.in_order(said).copy()     # nothing depends on ids
            p[self.ranks[[UNK, BOS]]] = 0
            best = slice(None) if choices.top_p is None else _first(p, len(p))
            words, shares = self.by_rank[best], p[best]
        if choices.temperature != 1 and len(shares):
            shares = (shares / max(shares.max(), 1e-300)) ** (1 / choices.temperature)
        reached = np.cumsum(shares)
        if choices.top_p is not None and len(reached):
            reached = reached[:int(np.searchsorted(reached, choices.top_p * reached[-1])) + 1]
        if not len(reached) or reached[-1] <= 0:
            return None
        return int(words[min(int(np.searchsorted(reached, random.random() * reached[-1], "right")), len(reached) - 1)])

    def foreseen(self, text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.foreseen()."""
        ids = np.empty(2 * len(text) + 2, np.uint32)
        ids = ids[:encode_frozen(self.words, np.frombuffer(text, np.uint8), ids)[0]]
        history = np.empty(len(ids), np.uint8)
        histories(ids, self.order, history)
        tokens = np.flatnonzero((ids != BOS) | (history > 0))
        places, first = np.zeros(len(tokens), np.int64), np.full(len(tokens), prediction.NO_WORD, np.uint32)
        for i, at in enumerate(tokens.tolist()):
            p = self.distribution_of(ids[at - int(history[at]):at].tolist())
            p[[UNK, BOS]] = 0
            word = int(ids[at])
            if p[word] > 0:
                places[i] = 1 + np.count_nonzero(p > p[word]) + np.count_nonzero(self.ranks[p == p[word]] < self.ranks[word])
            best = np.flatnonzero(p == p.max())
            if p[best[0]] > 0:
                first[i] = best[np.argmin(self.ranks[best])]
        return ids[tokens], self.matched(text), places, first

    @abc.abstractmethod
    def matched(self, text: bytes) -> np.ndarray:
        """Return the order of the longest n-gram seen at each token of tokenised text, uint8."""

    def in_order(self, context: Sequence[int]) -> np.ndarray:
        """Return distribution_of() by the place of the words in byte order."""
        return self.distribution_of(context)[self.by_rank]

    def in_range(self, context: Sequence[int], low: int, high: int) -> np.ndarray:
        """Return in_order() of the words from place `low` to `high`."""
        return self.in_order(context)[low:high]

    @abc.abstractmethod
    def shares_of(self, contexts: Sequence[np.ndarray], which: np.ndarray, words: np.ndarray) -> np.ndarray:
        """As CompiledModel.shares_of()."""

    def promising(self, contexts: Sequence[Sequence[int]], m: int, places: tuple[int, int],
                  without: tuple[int, ...]) -> Promising | None:
        """Return words that are likely the m best ones after each context, of those in a range of places and without some.

        None: there is no fast way to find some.
        """
        return None

    def _best(self, contexts: Sequence[Sequence[int]], k: int, places: tuple[int, int],
              without: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, k = len(contexts), min(k, self.n_words)
        ids, p, found = np.zeros((n, k), np.uint32), np.zeros((n, k)), np.zeros(n, np.int64)

        def answer(i: int, best: np.ndarray, shares: np.ndarray) -> None:
            ids[i, :len(best)], p[i, :len(best)], found[i] = best, shares, len(best)

        # STEP 1: the best of some words are the best of all where no other word can be better (Fagin, Lotem and Naor 2001).
        left, m, most = list(range(n)), k + k // 2, min(self.n_words - 1, max(FEW, self.n_words // FEW))
        while left and m <= most and (some := self.promising([contexts[i] for i in left], m, places, without)):
            ranked = self._ranked([contexts[i] for i in left], some, without)
            rows, left, m = list(zip(left, ranked, some.others.tolist(), strict=True)), [], 8 * m
            for i, (best, shares), others in rows:
                if others == 0 or (len(best) >= k and shares[k - 1] > others * ROUNDED):
                    answer(i, best[:k], shares[:k])
                else:
                    left.append(i)
        # STEP 2: the distribution over all words, of what is left.
        among = self.by_rank[slice(*places)]
        for i in left:
            shares = self.in_range(contexts[i], *places).copy()
            gone = self.ranks[list(without)].astype(np.int64) - places[0]
            shares[gone[(gone >= 0) & (gone < len(shares))]] = 0
            first = _first(shares, k)
            answer(i, among[first], shares[first])
        return ids, p, found

    def _ranked(self, contexts: Sequence[Sequence[int]], some: Promising,
                without: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return of each context its words without some, and their probabilities, best first; none of probability 0."""
        which, words = np.divmod(np.unique(some.which * self.n_words + some.words), self.n_words)
        for word in without:
            which, words = which[words != word], words[words != word]
        p = self.shares_of([self._asked(context) for context in contexts], which, words.astype(np.uint32))
        order = np.lexsort((self.ranks[words], -p, which))
        order = order[p[order] > 0]
        words, p, which = words[order], p[order], which[order]
        bounds = np.searchsorted(which, np.arange(len(contexts) + 1)).tolist()
        return [(words[first:end], p[first:end]) for first, end in itertools.pairwise(bounds)]

    def _asked(self, context: Sequence[int]) -> np.ndarray:
        """Return the words of a context that matter, uint32."""
        return np.array(context[max(0, len(context) - self.order + 1):], np.uint32)


def _first(shares: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k greatest shares above 0, the greatest first, of equal ones the first one first."""
    least, n = 0.0, len(shares) // GROUP
    if 0 < k <= n:                             # each of k groups has one that is as great as the least of their maxima
        maxima = shares[:n * GROUP].reshape(GROUP, n).max(axis=0)
        least = np.partition(maxima, n - k)[n - k]
    there = np.flatnonzero(shares >= least) if least > 0 else np.flatnonzero(shares)
    if k < len(there):
        there = there[shares[there] >= np.partition(shares[there], len(there) - k)[len(there) - k]]
    return there[np.argsort(-shares[there], kind="stable")][:k]


class ImportedModel(CompiledModel, Whole):
    """An imported model. Where its file lists the n-grams, these are what follows a context; otherwise every word is asked for."""

    follows = True

    def __init__(self, path: Path, smoothing: str | Smoothing = DEFAULT, order: int | None = None) -> None:
        """Map a file; arguments as those of CompiledModel."""
        super().__init__(path, smoothing, order)
        self.n_words = self.n_next = len(self.unigrams)
        self.by_rank, self.ranks = sorted_words([self.words.word(i) for i in range(self.n_words)])
        _, arrays = container.read(path)
        self._pages = container.pages(path, arrays)
        self._lists = [np.frombuffer(arrays[f"listed.{k}"], np.uint32).reshape(-1, k + 1)
                       for k in range(2, self.order + 1) if f"listed.{k}" in arrays]
        self._listed = len(self._lists) == self.order - 1
        self._alone = _probabilities((np.asarray(self.unigrams) - 1).astype(np.uint32))[self.by_rank]
        self._alone[self.ranks[BOS]] = 0
        self._places = self.ranks.astype(np.intp)      # what indexing takes without a copy
        self._latest: tuple[tuple[bytes, int, int] | None, np.ndarray] = None, np.empty(0)

    def distribution_of(self, context: Sequence[int]) -> np.ndarray:
        """As Foresight.distribution_of(); <s> is given, never predicted."""
        if self._listed:
            return self.in_order(context)[self.ranks]
        out = np.empty(self.n_words)
        self.tables.distribution(self._asked(context), out)
        return out

    def in_order(self, context: Sequence[int]) -> np.ndarray:
        """As Whole.in_order()."""
        return self.in_range(context, 0, self.n_words) if self._listed else super().in_order(context)

    def in_range(self, context: Sequence[int], low: int, high: int) -> np.ndarray:
        """As Whole.in_range()."""
        if not self._listed:
            return super().in_range(context, low, high)
        asked = (self._asked(context).tobytes(), low, high)
        about, latest = self._latest
        if about == asked:                     # a completion asks twice
            return latest
        (last_first,), (length,), (weights,) = self._by_depth([context])
        out = self._alone[low:high] * weights[0]
        for depth, weight in enumerate(weights[1:length + 1].tolist(), 1):
            rows = self._lists[depth - 1]
            first, end = find_rows(rows, last_first[:depth], self._pages)
            places, bits = self._places.take(rows[first:end, -2]), rows[first:end, -1]
            if len(out) < self.n_words:
                within = np.flatnonzero((places >= low) & (places < high))
                places, bits = places[within] - low, bits[within]
            out[places] = weight * _probabilities(bits - np.uint32(1))
        if low <= self.ranks[BOS] < high:
            out[self.ranks[BOS] - low] = 0
        out.flags.writeable = False
        self._latest = asked, out
        return out

    def _by_depth(self, contexts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (words, lengths, weights) of contexts.

        words: uint32 (n, order), those that matter, the last one first; lengths: int64 (n,), how many there are.
        weights: float64 (n, order), by depth d what the words that are listed after the last d words are multiplied by: the
            back-offs of longer contexts.
        """
        n = len(contexts)
        last_first, lengths, backoffs = np.zeros((n, self.order), np.uint32), np.zeros(n, np.int64), np.ones((n, self.order + 1))
        for i, context in enumerate(contexts):
            words = self._asked(context)
            lengths[i] = len(words)
            last_first[i, :len(words)] = words[::-1]
            backoffs[i, :len(words) + 1] = self.tables.backoffs(words)
        return last_first, lengths, np.ascontiguousarray(np.cumprod(backoffs[:, :0:-1], axis=1)[:, ::-1])

    @functools.cached_property
    def _best_alone(self) -> np.ndarray:
        """The words by their probability after no context."""
        return self.by_rank[np.argsort(-self._alone, kind="stable")]

    def promising(self, contexts: Sequence[Sequence[int]], m: int, places: tuple[int, int],
                  without: tuple[int, ...]) -> Promising | None:
        """As Whole.promising(): the heads of the lists of all depths. Only where all words may come, and there are lists."""
        if not self._listed or places != (0, self.n_words):
            return None
        last_first, lengths, weights = self._by_depth(contexts)
        words, which, others = best_rows(self._lists, last_first, lengths, weights, m, self._pages)
        alone, left_out = self._best_alone[:m], self._best_alone[m:m + 1]
        if len(left_out):
            others = np.maximum(others, weights[:, 0] * self._alone[self.ranks[left_out[0]]])
        every = np.arange(len(contexts))
        return Promising(np.concatenate([words, np.tile(alone, len(every))]),
                         np.concatenate([which, np.repeat(every, len(alone))]), others)

    def matched(self, text: bytes) -> np.ndarray:
        """As Whole.matched()."""
        return self.score_tokens(text)["matched"]


def _probabilities(bits: np.ndarray) -> np.ndarray:
    """Return the probabilities, float64, of the bits of -log10 p as a float32, uint32."""
    return np.exp(-math.log(10) * np.ascontiguousarray(bits).view(np.float32).astype(np.float64))


def sorted_words(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return (the ids of words in byte order, the place of each in it), uint32."""
    by_rank = np.array(sorted(range(len(words)), key=words.__getitem__), np.uint32)
    ranks = np.empty(len(words), np.uint32)
    ranks[by_rank] = np.arange(len(words), dtype=np.uint32)
    return by_rank, ranks

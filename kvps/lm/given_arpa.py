"""Write an imported model as an ARPA file again: the same numbers, or fewer orders, words or n-grams.

The probabilities of n-grams that stay are those of the model. Where some go, the back-off of their context is what is left after
it over what that leaves there,

    backoff(h) = (sum(h) - sum of p(w | h)) / (sum(h') - sum of p(w | h'))    over the words w that stay listed after h

in which sum(h) is what all words had after h together, 1 in a proper model, h' is h without its first word, and p(w | h') is that
of the new file: so contexts sum to what they did. Words that go leave their probability, where they stand alone, to <unk>.

What an n-gram is worth: pruning.py, but without counts: the share of its context in the text is the probability of these words
in the model, as SRILM has it, a sentence beginning as often as one ends, and no order is favoured. Kneser-Ney's shorter n-grams do
not say how often words occur; a store, which has counts, prunes better (of a model of order 3 with 52,000 n-grams 20,000 were kept,
with a perplexity of 179 instead of 169).

    STEP 1  by entropy: weights of all n-grams, and the threshold
    STEP 2  the list of each order, the shortest first, by which the n-grams of a context stand together: choose, add up, and
            deal what stays by first word into partitions through scratch files
    STEP 3  as of any model: sort, join n-grams with their back-offs, write (arpa.py)

Where n-grams go, 16 bytes of each below the highest order that stays, and 32 of each context, are kept in memory.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import pack_text_keys
from kvps.errors import ArgumentError
from kvps.lm.arpa import WINDOW, Choices, Estimates, marked, written
from kvps.lm.given import NO_LOG, ROUNDING, ByHash, Given
from kvps.lm.model import CompiledModel
from kvps.lm.opening import ModelFile, load
from kvps.lm.ordered import Partitions, Words
from kvps.lm.pruning import Weights
from kvps.lm.smoothing import DEFAULT, parse
from kvps.pools import Pool
from kvps.ps.runs import bits_for
from kvps.text.streams import compression_of, packed
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD, UNK, Vocabulary
from kvps.units import thread_count


def export(place: ModelFile, path: str | Path, *, order: int | None = None, choices: Choices | None = None,
           threads: int | None = None, scratch: Path | None = None, write: Callable[[bytes], object] | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write an imported model to an ARPA file, compressed as its name says; as arpa.export().

    Raises:
        ArgumentError: a choice that takes counts.
    """
    chosen = choices or Choices()
    top = place.identity["order"] if order is None else order
    if chosen != Choices(limit_vocab=chosen.limit_vocab, prune_entropy=chosen.prune_entropy, prune_to=chosen.prune_to):
        raise ArgumentError(f"{place.path}: was imported, and has no counts for {chosen}")
    chosen.cuts(top)                           # refuses what is not possible
    if os.path.exists(path) and any(os.path.samefile(path, own) for own in (place.path, place.file)):
        raise ArgumentError(f"{os.fspath(path)}: is the model itself; name another file for the ARPA file")
    model = load(place, CompiledModel, parse(DEFAULT), order)
    threads = thread_count(threads)

    def pieces() -> Iterator[bytes]:
        with Pool(threads) as pool, contextlib.ExitStack() as stack:
            made = _Given(place, model, top, chosen, pool, stack, scratch or place.file.absolute().parent)
            yield json.dumps({"version": model.version, "order": top, "smoothing": str(model.smoothing),
                              "ngrams": made.sizes}).encode() + b"\n"
            lines = made.file(WINDOW * threads, progress)
            yield from packed(lines, compression_of(path))

    return written(pieces(), path, write)


class _Given(Estimates):
    """The probabilities and back-offs of an imported model, in partitions."""

    exact = True

    def __init__(self, place: ModelFile, model: CompiledModel, top: int, choices: Choices, pool: ThreadPoolExecutor,
                 stack: contextlib.ExitStack, scratch: Path) -> None:
        """Run steps 1 and 2."""
        vocabulary, n_words = Vocabulary(), len(model.unigrams)
        for i in range(FIRST_WORD, n_words):
            vocabulary.table.add(model.words.word(i))
        self._place, self._model, self.top, self.pool = place, model, top, pool
        self.words, self.bits = Words(vocabulary), bits_for(n_words)
        self._default_of = lambda k: 0.0
        self.alive = np.ones(n_words, bool) if choices.limit_vocab is None else marked(vocabulary, choices.limit_vocab) > 0
        self._given = given = Given(place, model)
        self._log10_p = given.log10_p.copy()
        self._thin_p = np.where(self.alive, given.p, 0)
        self._thin_p[UNK] += given.p[~self.alive].sum()
        if not self.alive.all():
            if self._thin_p[UNK] > 1 + ROUNDING:
                raise ArgumentError(f"{place.path}: <unk> would get a probability of {self._thin_p[UNK]:.6g}, that of all words "
                                    "that go: the file is no distribution (kvps audit), so its vocabulary cannot be limited")
            self._log10_p[UNK] = min(0.0, math.log10(self._thin_p[UNK])) if self._thin_p[UNK] > 0 else -math.inf
        self.sizes = {1: int(self.alive.sum())}
        self.unigram_backoffs = np.zeros(n_words, np.float32)
        self.ngrams, self.contexts = {}, {}
        if top == 1:
            return
        sizes = {k: sum(map(len, place.listed(k))) for k in range(2, top + 1)}
        mass = given.p.copy()
        mass[BOS] = given.p[EOS]               # a sentence begins as often as one ends
        mass = mass[self.words.by_rank]

        def dealt(holder: contextlib.ExitStack, orders: range) -> dict[int, Partitions]:
            # As many partitions in each order, so that n-grams meet their contexts.
            return {k: Partitions(holder, k, self.bits, max(sizes.values()), 1, mass, scratch) for k in orders}

        weights, threshold = None, 0.0
        if choices.by_entropy:
            weights = Weights(stack, np.array([[0, 0, *sizes.values()]]), top, scratch)
            with contextlib.ExitStack() as meanwhile:
                numbers = dealt(meanwhile, range(2, top + 1))
                for k, part in numbers.items():
                    n = 0
                    for rows, log10_p in self._given.listed(k):
                        weights.put(0, k, self._worth(rows, log10_p))
                        self._add(part, rows, np.arange(n, n + len(rows), dtype=np.uint32))
                        n += len(rows)
                    part.finish(0)
                weights.raise_all(numbers, self.bits, pool)
            threshold = (math.log1p(choices.prune_entropy) if choices.prune_to is None
                         else weights.threshold_for(choices.prune_to - self.sizes[1]))
        self.ngrams, self.contexts = dealt(stack, range(2, top + 1)), dealt(stack, range(2, top))
        if weights is None and self.alive.all():
            self._take_all()
        else:
            self._take_some(lambda k, rows, n: self.alive[rows].all(axis=1) if weights is None
                            else weights.of(0)[k][n:n + len(rows)] >= threshold)
        for part in (*self.ngrams.values(), *self.contexts.values()):
            part.finish(0)
        self.sizes |= {k: part.n_keys() for k, part in self.ngrams.items()}

    def log10_of_words(self) -> np.ndarray:
        """As Estimates.log10_of_words()."""
        return self._log10_p

    def _take_all(self) -> None:
        """Run step 2 where nothing goes."""
        self.unigram_backoffs = self._given.backoffs(np.arange(len(self.alive), dtype=np.uint32).reshape(-1, 1))
        for k, part in self.ngrams.items():
            for rows, log10_p in self._given.listed(k):
                self._add(part, rows, log10_p)
                if k < self.top:
                    backoffs = self._given.backoffs(rows).astype(np.float32)
                    self._add(self.contexts[k], rows[backoffs != 0], backoffs[backoffs != 0])

    def _take_some(self, kept_of: Callable[[int, np.ndarray, int], np.ndarray]) -> None:
        """Run step 2; kept_of: which n-grams stay, of the order, some of them, and the number of the first of these."""
        self._kept, self._backoffs = ({k: ByHash() for k in range(1, self.top)} for _ in range(2))
        for k in range(2, self.top + 1):
            n = 0
            for rows, log10_p in self._given.by_context(k):
                kept = kept_of(k, rows, n)
                n += len(rows)
                self._add(self.ngrams[k], rows[kept], log10_p[kept])
                if k < self.top:
                    self._kept[k].add(rows[kept], 10.0 ** log10_p[kept].astype(np.float64))
                contexts, backoffs = self._renormalised(rows, log10_p, kept)
                self._backoffs[k - 1].add(contexts, 10.0 ** backoffs)
                if k == 2:
                    self.unigram_backoffs[contexts[:, 0]] = backoffs
                else:
                    some = np.abs(backoffs) > 1e-9
                    self._add(self.contexts[k - 1], contexts[some], backoffs[some].astype(np.float32))
            self._given.done(k)
            for numbers in (self._backoffs[k - 1], *([self._kept[k]] if k < self.top else [])):
                numbers.sort()

    def _renormalised(self, rows: np.ndarray, log10_p: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return those contexts of n-grams that stay, and log10 of their back-offs, float64."""
        found = self._given.add_up(rows, log10_p)
        thin = np.zeros(len(rows))
        thin[kept] = self._thin(rows[kept, 1:])
        gone = found.total(np.where(kept, 0, 10.0 ** log10_p.astype(np.float64)))
        left = gone + 10.0 ** found.backoffs * found.rest
        below = self._given.sums_after(found.contexts[:, 1:], self._backoffs) - found.total(thin)
        stay = self.alive[found.contexts[:, 0]] if rows.shape[1] == 2 else self._kept[rows.shape[1] - 1].get(found.contexts)[0]
        if (lost := np.flatnonzero(stay & (below <= ROUNDING) & (gone > ROUNDING))).size:
            words = b" ".join(self._model.words.word(int(i)) for i in found.contexts[lost[0]]).decode("utf-8", "backslashreplace")
            raise ArgumentError(f"{self._place.path}: after {words!r} all words that stay are listed, <unk> too, so that nothing "
                                "can get what the others had; limit the vocabulary of the store")
        with np.errstate(divide="ignore", invalid="ignore"):
            backoffs = np.where(left <= 0, NO_LOG, np.log10(left / below))
        # Where every word is listed, nothing backs off; where nothing has changed, neither has what is left.
        same = (np.add.reduceat(~kept, found.starts) == 0) & (np.abs(found.lower - found.total(thin)) < 1e-12)
        return found.contexts[stay], np.where(same | (below <= ROUNDING), found.backoffs, backoffs)[stay]

    def _thin(self, rows: np.ndarray) -> np.ndarray:
        """Return p(last word | the words before it) in what is written, float64, of n-grams below the one at work."""
        if rows.shape[1] == 1:
            return self._thin_p[rows[:, 0]]
        found, p = self._kept[rows.shape[1]].get(rows)
        there, backoffs = self._backoffs[rows.shape[1] - 1].get(rows[:, :-1])
        return np.where(found, p, np.where(there, backoffs, 1) * self._thin(rows[:, 1:]))

    def _worth(self, rows: np.ndarray, log10_p: np.ndarray) -> np.ndarray:
        """Return what n-grams are worth, float32."""
        n, k = rows.shape
        found, _ = self._model.score_ids(rows.reshape(-1), np.tile(np.arange(k, dtype=np.uint8), n))
        before = found.reshape(n, k)[:, :-1]
        before[rows[:, 0] == BOS, 0] = self._log10_p[EOS]
        p, share = 10.0 ** log10_p.astype(np.float64), 10.0 ** before.sum(axis=1)
        backed = 10.0 ** (self._given.backoffs(rows[:, :-1]) + self._given.lower(rows))
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where((p > backed) & (share > 0), share * p * np.log(p / backed), 0)
        return worth.astype(np.float32)

    def _add(self, partitions: Partitions, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Add n-grams of word ids, in text order, with numbers of 32 bits."""
        if len(rows):
            partitions.add(0, pack_text_keys(np.ascontiguousarray(self.words.rank[rows]), numbers.view(np.uint32), self.bits))

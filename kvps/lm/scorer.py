"""A compiled file and a smoothing: sums over text. What a score of text needs, and nothing more.

This module and what it imports do without NumPy, whose import takes longer than scoring a few hundred thousand words.
Scores of single sentences and words: model.py.
"""
from __future__ import annotations

import dataclasses
import math
import mmap
from pathlib import Path

from kvps._counted import CountTables
from kvps._given import GivenTables
from kvps._model import Tables, histories
from kvps._vocabulary import FrozenWords, encode_frozen
from kvps.errors import ArgumentError
from kvps.lm import container
from kvps.lm.smoothing import DEFAULT, GIVEN, Smoothing, parse
from kvps.lm.statistics import Statistics

# Buffers for longer texts than this are not kept for the next one.
KEPT_BYTES = 4 << 20


@dataclasses.dataclass
class Score:
    """Sums over sentences. Tokens are words plus one </s> a sentence."""

    sentences: int = 0
    tokens: int = 0
    oov: int = 0
    log10_probability: float = 0.0             # of the tokens whose probability is not 0
    log10_oov: float = 0.0                     # the part of it that belongs to OOVs
    zero_probability_tokens: int = 0
    zero_oov: int = 0

    def __iadd__(self, other: Score) -> Score:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    @property
    def perplexity(self) -> float:
        """10 ** (-log10 probability / tokens); infinite where a token has probability 0."""
        if self.tokens == 0:
            return math.nan
        return math.inf if self.zero_probability_tokens else 10 ** (-self.log10_probability / self.tokens)

    @property
    def perplexity_excluding_oov(self) -> float:
        """The same over the tokens that are in the vocabulary (what SRILM calls ppl)."""
        known = self.tokens - self.oov
        if known == 0:
            return math.nan
        if self.zero_probability_tokens > self.zero_oov:
            return math.inf
        return 10 ** (-(self.log10_probability - self.log10_oov) / known)

    def as_dict(self) -> dict:
        """Return what `kvps perplexity --json` prints; infinite and undefined perplexities are None."""
        def finite(x: float) -> float | None:
            return x if math.isfinite(x) else None

        return {"sentences": self.sentences, "tokens": self.tokens, "oov": self.oov, "perplexity": finite(self.perplexity),
                "perplexity_excluding_oov": finite(self.perplexity_excluding_oov),
                "log10_probability": None if self.zero_probability_tokens else self.log10_probability,
                "zero_probability_tokens": self.zero_probability_tokens}


class Scorer:
    """One compiled file with one smoothing, and sums over text. Immutable: many threads may score at once."""

    def __init__(self, path: Path, smoothing: str | Smoothing = DEFAULT, order: int | None = None) -> None:
        """Map a compiled file.

        Args:
            path: of the file; of the kind that the smoothing needs. One that was imported has its own.
            order: score with n-grams up to this one; a Kneser-Ney file has the order it was made for.
        """
        meta, arrays = container.read(path)
        self.path = path
        self.smoothing = parse(smoothing)
        if meta["kind"] == GIVEN.kind:
            self.smoothing = GIVEN
        self.statistics = Statistics.from_json(meta["statistics"])
        self.order = min(order or meta["order"], meta["order"])
        self.version = self.statistics.version
        if meta["kind"] != self.smoothing.kind or (meta["kind"] == "kn" and self.order != meta["order"]):
            raise ArgumentError(f"{path}: a model of kind {meta['kind']} and order {meta['order']} cannot answer "
                                f"{self.smoothing} of order {self.order}")
        self._idle: list[tuple[memoryview, memoryview]] = []       # buffers of threads that scored before
        self._pages = pages = container.pages(path, arrays)
        self._numbers = arrays.get("numbers")
        self.words = FrozenWords(arrays["slots"], arrays["ends"], arrays["blob"], pages)
        self.unigrams = arrays["unigrams"]
        self.tables: Tables
        if self.smoothing == GIVEN:
            self.tables = GivenTables(self.order, arrays["unigrams"], arrays["unigram_contexts"], arrays["entries"],
                                      meta["partitions"], meta["closed"], seed=meta["seed"], pages=pages)
            return
        self.tables = counts = CountTables(self.order, arrays["unigrams"], arrays["unigram_contexts"], arrays["totals"],
                                           arrays.get("large", memoryview(b"").cast("Q")), seed=meta["seed"], pages=pages)
        if meta["exact"]:
            counts.use_rows(arrays["parts"], meta["parts"], _rows(arrays, self.order))
        else:
            counts.use_hashes(arrays["entries"], meta["code_bytes"], meta["partitions"], arrays["escaped"],
                              arrays["escaped_numbers"])
        vocabulary = self.statistics.vocabulary + (2 if self.smoothing.name == "modified-kneser-ney" else 3)
        self.discounts = (self.statistics.discounts_or_warn() if self.smoothing.name == "modified-kneser-ney"
                          else [[0.0] * 4] * (self.order + 1))
        counts.smooth(self.smoothing.number, self.smoothing.kernel_value, self.discounts, float(vocabulary))

    def score_text(self, text: bytes) -> Score:
        """Return the sums over tokenised text."""
        if not text:
            return Score()
        ids, history = buffers = self._buffers(len(text))
        n, n_sentences = encode_frozen(self.words, text, ids)
        histories(ids[:n], self.order, history)
        score = Score(n_sentences, *self.tables.sums(ids[:n], history[:n]))
        self._keep(buffers, text)
        return score

    def number(self, word: int) -> int:
        """Return which word of the ARPA file that a model was imported from one of ours is, from 0 on; of others its id."""
        if self._numbers is None:
            return word
        self._pages.compare(self._numbers[word:word + 1].cast("B"))
        return self._numbers[word]

    def _buffers(self, n_bytes: int) -> tuple[memoryview, memoryview]:
        """Return room for the ids and the histories of a text."""
        try:
            buffers = self._idle.pop()
        except IndexError:
            buffers = memoryview(b""), memoryview(b"")
        if len(buffers[0]) < (need := 2 * n_bytes + 2):    # a line without a word is <s> </s>
            buffers = memoryview(mmap.mmap(-1, 4 * need)).cast("I"), memoryview(mmap.mmap(-1, need))
        return buffers

    def _keep(self, buffers: tuple[memoryview, memoryview], text: bytes) -> None:
        """Take the room for a text back."""
        if len(text) <= KEPT_BYTES:
            self._idle.append(buffers)


def _rows(arrays: dict, order: int) -> dict:
    """Return the exact rows as CountTables.use_rows takes them."""
    rows = {("ngrams", k): (arrays[f"ngrams.{k}"], arrays[f"ngrams.{k}.starts"], arrays[f"ngrams.{k}.values"])
            for k in range(2, order + 1)}
    return rows | {("contexts", d): (arrays[f"contexts.{d}"], arrays[f"contexts.{d}.starts"], arrays[f"contexts.{d}.numbers"])
                   for d in range(1, order)}

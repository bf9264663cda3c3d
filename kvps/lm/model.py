"""A model that answers: a compiled file and a smoothing, scoring sentences, n-grams and text."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kvps._model import Tables, histories
from kvps._vocabulary import FrozenWords, encode_frozen
from kvps.errors import ArgumentError
from kvps.lm import container
from kvps.lm.smoothing import Smoothing, parse
from kvps.lm.statistics import Statistics
from kvps.text.spool import TheirError, sentence_lines
from kvps.text.vocabulary import EOS, UNK

# Sentences scored in one call of the kernel; bounds memory at some 50 bytes per byte of text.
BATCH_BYTES = 1 << 20


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


class CompiledModel:
    """One compiled file with one smoothing. Immutable: many threads may score at once."""

    def __init__(self, path: Path, smoothing: str | Smoothing = "modified-kneser-ney", order: int | None = None) -> None:
        """Map a compiled file.

        Args:
            path: of the file; of the kind that the smoothing needs.
            order: score with n-grams up to this one (raw counts only; a Kneser-Ney file has the order it was made for).
        """
        meta, arrays, self._mapping = container.read(path)
        self.path = path
        self.smoothing = parse(smoothing)
        self.statistics = Statistics.from_json(meta["statistics"])
        self.order = min(order or meta["order"], meta["order"])
        self.version = self.statistics.version
        if meta["kind"] != self.smoothing.kind or (meta["kind"] == "kn" and self.order != meta["order"]):
            raise ArgumentError(f"{path}: a model of kind {meta['kind']} and order {meta['order']} cannot answer "
                                f"{self.smoothing} of order {self.order}")
        self.words = FrozenWords(arrays["slots"], arrays["ends"], arrays["blob"])
        self.unigrams = arrays["unigrams"]
        self.tables = Tables(self.order, arrays["unigrams"], arrays["unigram_contexts"], arrays["totals"],
                             arrays.get("large", np.empty(0, np.uint64)), meta["seed"])
        if meta["exact"]:
            self.tables.use_rows(meta["shards"], _rows(arrays, self.order))
        else:
            self.tables.use_hashes(arrays["entries"], meta["code_bytes"], meta["partitions"], arrays["escaped"],
                                   arrays["escaped_numbers"])
        vocabulary = self.statistics.vocabulary + (2 if self.smoothing.name == "modified-kneser-ney" else 3)
        self.discounts = (self.statistics.discounts_or_warn() if self.smoothing.name == "modified-kneser-ney"
                          else np.zeros((self.order + 1, 4)))
        self.tables.smooth(self.smoothing.number, self.smoothing.kernel_value, self.discounts, float(vocabulary))

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (ids, histories, number of sentences) of tokenised text, each sentence <s> words </s>."""
        room = np.empty(2 * len(text) + 2, np.uint32)
        n, n_sentences = encode_frozen(self.words, np.frombuffer(text, np.uint8), room)
        ids = room[:n]
        history = np.empty(n, np.uint8)
        histories(ids, self.order, history)
        return ids, history, n_sentences

    def score_text(self, text: bytes) -> Score:
        """Return the sums over tokenised text."""
        if not text:
            return Score()
        ids, history, n_sentences = self.encode(text)
        return Score(n_sentences, *self.tables.sums(ids, history))

    def score_ids(self, ids: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (log10 probability float64 (n,), order of the longest n-gram seen uint8 (n,)) of each token."""
        log10_p, matched = np.empty(len(ids)), np.empty(len(ids), np.uint8)
        self.tables.score(ids, history, log10_p, matched)
        return log10_p, matched

    def score_words(self, text: bytes) -> Iterator[list[tuple[bytes, int, float, int, bool]]]:
        """Yield, per sentence of tokenised text, (word, id, log10 probability, matched order, is OOV) of each token."""
        ids, history, _ = self.encode(text)
        log10_p, matched = self.score_ids(ids, history)
        ends = np.flatnonzero(ids == EOS)
        start = 0
        for end, line in zip(ends.tolist(), text.split(b"\n"), strict=False):
            words = [word for word in line.replace(b"\0", b" ").replace(b"\t", b" ").replace(b"\r", b" ").split(b" ") if word]
            span = slice(start + 1, end + 1)
            yield [(word, i, p, m, i == UNK) for word, i, p, m in zip([*words, b"</s>"], ids[span].tolist(), log10_p[span].tolist(),
                                                                     matched[span].tolist(), strict=True)]
            start = end + 1

    def score_sentences(self, text: bytes) -> list[Score]:
        """Return one Score per line of tokenised text."""
        ids, history, _ = self.encode(text)
        log10_p, _ = self.score_ids(ids, history)
        ends = np.flatnonzero(ids == EOS) + 1
        starts = np.concatenate([[0], ends[:-1]])
        return [_summed(ids[a + 1:b], log10_p[a + 1:b], 1) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    def ids_of(self, words: Sequence[str | bytes]) -> list[int]:
        """Return the ids of words; an unknown one is <unk>."""
        encoded = (word.encode() if isinstance(word, str) else word for word in words)
        return [self.words.get(word) or UNK for word in encoded]

    def log10(self, word: str, context: Sequence[str]) -> float:
        """Return log10 p(word | context); the context may begin with "<s>", and only its last order - 1 words count."""
        return float(self.log10_ngrams([(*context, word)])[0])

    def log10_ngrams(self, ngrams: Sequence[Sequence[str]]) -> np.ndarray:
        """Return log10 p(last word | the words before it) of each n-gram, float64 (n,)."""
        rows = [self.ids_of(ngram[-self.order:]) for ngram in ngrams]
        ids = np.array([i for row in rows for i in row], np.uint32)
        history = np.array([k for row in rows for k in range(len(row))], np.uint8)
        log10_p, _ = self.score_ids(ids, history)
        return log10_p[np.cumsum([len(row) for row in rows]) - 1]


def batches(sentences: Iterable[str | Sequence[str]]) -> Iterator[tuple[str, bytes]]:
    """Yield sentences as batches of lines, (kind, bytes): "text" is still to be tokenised, "words" is not."""
    kind, batch, size, theirs = "text", [], 0, None
    try:
        for this, line in sentence_lines(sentences):
            if batch and (this != kind or size >= BATCH_BYTES):
                yield kind, b"".join(batch)
                batch, size = [], 0
            kind = this
            batch.append(line)
            size += len(line)
    except TheirError as error:
        theirs = error.__cause__
    if theirs is not None:
        raise theirs
    if batch:
        yield kind, b"".join(batch)


def _summed(ids: np.ndarray, log10_p: np.ndarray, n_sentences: int) -> Score:
    oov = ids == UNK
    zero = np.isneginf(log10_p)
    finite = np.where(zero, 0.0, log10_p)
    return Score(n_sentences, len(ids), int(oov.sum()), float(finite.sum()), float(finite[oov].sum()), int(zero.sum()),
                 int((zero & oov).sum()))


def _rows(arrays: dict, order: int) -> dict:
    """Return the exact rows as Tables.use_rows takes them."""
    rows = {("ngrams", k): (arrays[f"ngrams.{k}"], arrays[f"ngrams.{k}.starts"], arrays[f"ngrams.{k}.values"])
            for k in range(2, order + 1)}
    return rows | {("contexts", d): (arrays[f"contexts.{d}"], arrays[f"contexts.{d}.starts"], arrays[f"contexts.{d}.numbers"])
                   for d in range(1, order)}

"""A model that answers: a compiled file and a smoothing, scoring sentences, words and n-grams."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kvps._model import histories
from kvps._vocabulary import encode_frozen
from kvps.lm.scorer import Score, Scorer
from kvps.text.spool import TheirError, sentence_lines
from kvps.text.vocabulary import EOS, UNK

# Sentences scored in one call of the kernel; bounds memory at some 50 bytes per byte of text.
BATCH_BYTES = 1 << 20


class CompiledModel(Scorer):
    """A compiled file with a smoothing that answers for each sentence, word and n-gram."""

    def encode(self, text: bytes) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (ids, histories, number of sentences) of tokenised text, each sentence <s> words </s>."""
        room = np.empty(2 * len(text) + 2, np.uint32)
        n, n_sentences = encode_frozen(self.words, np.frombuffer(text, np.uint8), room)
        ids = room[:n]
        history = np.empty(n, np.uint8)
        histories(ids, self.order, history)
        return ids, history, n_sentences

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

    def score_columns(self, text: bytes) -> dict[str, np.ndarray]:
        """Return the fields of the Score of each line of tokenised text, by name: int64 (n,), the log10 ones float64."""
        ids, history, n = self.encode(text)
        log10_p, _ = self.score_ids(ids, history)
        ends = np.flatnonzero(ids == EOS)
        starts = np.concatenate([[0], ends[:-1] + 1])[:n]      # of <s>, which has log10 p 0 and is no token
        oov, zero = ids == UNK, np.isneginf(log10_p)
        log10_p[zero] = 0

        def sums(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(values, starts) if n else values[:0]

        return {"sentences": np.ones(n, np.int64), "tokens": ends - starts, "oov": sums(oov.astype(np.int64)),
                "log10_probability": sums(log10_p), "log10_oov": sums(np.where(oov, log10_p, 0.0)),
                "zero_probability_tokens": sums(zero.astype(np.int64)), "zero_oov": sums((zero & oov).astype(np.int64))}

    def score_sentences(self, text: bytes) -> list[Score]:
        """Return one Score per line of tokenised text."""
        return rows_of(self.score_columns(text))

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


def rows_of(columns: dict[str, np.ndarray]) -> list[Score]:
    """Return the Scores that score_columns() gives as arrays."""
    rows = zip(*(columns[field.name].tolist() for field in dataclasses.fields(Score)), strict=True)
    return [Score(*row) for row in rows]

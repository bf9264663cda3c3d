"""A model that answers: a compiled file and a smoothing, scoring sentences, words and n-grams."""
from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kvps._model import histories
from kvps._text import join_lines
from kvps._vocabulary import encode_frozen
from kvps.errors import ArgumentError
from kvps.lm.explain import ExplainedWord, explain
from kvps.lm.scorer import Score, Scorer
from kvps.pools import spread
from kvps.text.spool import sentence_line
from kvps.text.vocabulary import BOS, EOS, UNK

# Sentences scored in one call of the kernel; bounds memory at some 50 bytes per byte of text.
BATCH_BYTES = 1 << 18
CHUNK = 4096                   # sentences taken from an iterable at once
LIST = 1 << 16                 # and from a list


class CompiledModel(Scorer):
    """A compiled file with a smoothing that answers for each sentence, word and n-gram."""

    follows = False                            # whether it knows next words: kvps.lm.foresight

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

    def score_tokens(self, text: bytes) -> dict[str, np.ndarray]:
        """Return of each token of tokenised text, words and one </s> a sentence, "ids", "log10" and "matched"; see score_ids()."""
        ids, history, _ = self.encode(text)
        log10_p, matched = self.score_ids(ids, history)
        tokens = (ids != BOS) | (history > 0)
        return {"ids": ids[tokens], "log10": log10_p[tokens], "matched": matched[tokens]}

    def score_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return log10 p(last word | the words before it) of n-grams of word ids, uint32 (n, k): float64 (n,)."""
        rows = np.ascontiguousarray(rows[:, -self.order:], np.uint32)
        log10_p, _ = self.score_ids(rows.reshape(-1), np.tile(np.arange(rows.shape[1], dtype=np.uint8), len(rows)))
        return log10_p[rows.shape[1] - 1::rows.shape[1]]

    def shares_of(self, contexts: Sequence[np.ndarray], which: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return the probability of each word after contexts[which], float64 (n,).

        contexts: uint32 each, of the words that matter. which: int64 (n,), rising. words: uint32 (n,).
        """
        if self.tables.exact:
            return shares_by_rows(self, contexts, which, words)
        p = np.empty(len(words))
        ends = np.cumsum([len(context) for context in contexts], dtype=np.int64)
        self.tables.shares(np.concatenate(contexts), ends, words, np.searchsorted(which, np.arange(len(contexts) + 1)), p)
        return p

    def vocabulary(self) -> dict[str, np.ndarray]:
        """Return the "words" by id, uint8, their "lengths", uint32, and which ids are "alive", uint8: no others are predicted."""
        alive = np.asarray(self.unigrams) > 0
        alive[[UNK, BOS, EOS]] = True
        return columns_of_words([self.words.word(i) for i in range(len(alive))], alive)

    def explain(self, text: bytes) -> Iterator[list[ExplainedWord]]:
        """Yield the words of each line of tokenised text with what their probabilities are made of; see kvps.lm.explain."""
        return explain(self, text)

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
        ids, history = buffers = self._buffers(len(text))
        n_ids, n = encode_frozen(self.words, text, ids)
        histories(ids[:n_ids], self.order, history)
        counts, logs = np.empty((4, n), np.int64), np.empty((2, n))
        self.tables.sums_by_sentence(ids[:n_ids], history[:n_ids], counts, logs)
        self._keep(buffers, text)
        return {"sentences": np.ones(n, np.int64), "tokens": counts[0], "oov": counts[1], "log10_probability": logs[0],
                "log10_oov": logs[1], "zero_probability_tokens": counts[2], "zero_oov": counts[3]}

    def score_line(self, sentence: str) -> float | None:
        """Return the log10 probability of a sentence of words between separators; None where score_columns() has to see it."""
        return self.tables.score_line(self.words, sentence)

    def score_lines(self, sentences: list, threads: int) -> np.ndarray | None:
        """Return score_line() of each sentence, float64 (n,); None where score_columns() has to see one."""
        scores = np.empty(len(sentences))
        parts = [(first, scores[first:first + CHUNK]) for first in range(0, len(sentences), CHUNK)]
        done = spread(lambda part: self.tables.score_lines(self.words, sentences, *part), parts, threads)
        return scores if all(n == len(part) for n, (_, part) in zip(done, parts, strict=True)) else None

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


def batches(sentences: Iterable[str | Sequence[str]]) -> Iterator[tuple[str, int, bytes]]:
    """Yield sentences as batches of lines, (kind, number of the first, bytes): "text" is still to be tokenised, "words" is not."""
    kind, batch, size, first, line = "text", [], 0, 1, 1
    for this, n, lines in _lines(sentences):
        if batch and (this != kind or size + len(lines) > BATCH_BYTES):
            yield kind, first, b"".join(batch)
            batch, size, first = [], 0, line
        kind = this
        batch.append(lines)
        size += len(lines)
        line += n
    if batch:
        yield kind, first, b"".join(batch)


def _lines(sentences: Iterable[str | Sequence[str]]) -> Iterator[tuple[str, int, bytes]]:
    """Yield (kind, how many, lines): as many sentences as can be taken together, or one that needs a closer look."""
    try:
        iterator = iter(sentences)
    except TypeError as error:
        raise ArgumentError(f"expected an iterable of sentences, got {type(sentences).__name__}") from error
    before = 0
    most = LIST if isinstance(sentences, list) else CHUNK
    while chunk := list(itertools.islice(iterator, most)):
        at = 0
        while at < len(chunk):
            lines, end = join_lines(chunk, at, BATCH_BYTES)
            if end == at:
                lines = sentence_line(chunk[at], before + at + 1).encode() + b"\n"
                yield "text" if isinstance(chunk[at], str) else "words", 1, lines
                at += 1
            else:
                yield "text", end - at, lines
                at = end
        before += len(chunk)


def columns_of_words(words: Sequence[bytes], alive: np.ndarray) -> dict[str, np.ndarray]:
    """Return what CompiledModel.vocabulary() does, of words by id and whether they are alive, bool."""
    return {"words": np.frombuffer(b"".join(words), np.uint8), "lengths": np.array([len(word) for word in words], np.uint32),
            "alive": alive.astype(np.uint8)}


def shares_by_rows(model: Any, contexts: Sequence[np.ndarray], which: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return what CompiledModel.shares_of() does, of anything that has score_rows()."""
    p = np.empty(len(words))
    for length in set(map(len, contexts)):
        same = np.array([len(context) == length for context in contexts])[which]
        before = np.array([context if len(context) == length else np.zeros(length) for context in contexts], np.uint32)
        p[same] = 10 ** model.score_rows(np.column_stack([before[which[same]], words[same]]))
    return p


def columns_of(ids: np.ndarray, log10_p: np.ndarray, given: int = 0) -> dict[str, np.ndarray]:
    """Return the fields of the Score of each sentence, by name: int64 (n,), the log10 ones float64.

    given: how many tokens at the beginning of each sentence, of log10 p 0, do not count: 1 where <s> is there.
    """
    ends = np.flatnonzero(ids == EOS)
    n = len(ends)
    starts = np.concatenate([[0], ends[:-1] + 1])[:n]
    oov, zero = ids == UNK, np.isneginf(log10_p)
    log10_p = np.where(zero, 0, log10_p)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts) if n else values[:0]

    return {"sentences": np.ones(n, np.int64), "tokens": ends - starts + 1 - given, "oov": sums(oov.astype(np.int64)),
            "log10_probability": sums(log10_p), "log10_oov": sums(np.where(oov, log10_p, 0.0)),
            "zero_probability_tokens": sums(zero.astype(np.int64)), "zero_oov": sums((zero & oov).astype(np.int64))}


def rows_of(columns: dict[str, np.ndarray]) -> list[Score]:
    """Return the Scores that score_columns() gives as arrays."""
    rows = zip(*(columns[field.name].tolist() for field in dataclasses.fields(Score)), strict=True)
    return [Score(*row) for row in rows]

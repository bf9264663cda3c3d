"""Scores of text under a model: inputs read, tokenised and scored by several threads, results in the order of the text."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kvps.errors import DataError
from kvps.lm.scorer import Score, Scorer
from kvps.pools import Pool, windowed
from kvps.text.corpus import Input, Split
from kvps.text.documents import document_of, record_of
from kvps.text.tokenize import Tokenizer

if TYPE_CHECKING:
    from kvps.lm.model import CompiledModel

# Text scored in one call of the kernel. Small, so that its arrays (some 20 bytes per byte) are reused from the cache.
SPLIT_BYTES = 1 << 19


def perplexity(model: Scorer, inputs: list[Input], tokenizer: Tokenizer, *, threads: int = 1,
               encoding_errors: str = "strict", progress: Callable[[int], None] = lambda n: None) -> Score:
    """Return the sums over all sentences of the inputs; the same to the last bit for any number of threads.

    progress: called with the bytes scored since the last call, as they lie on disk.
    """
    def score(task: tuple[Input, Split]) -> tuple[Score, int]:
        source, split = task
        return model.score_text(_text(source, split, tokenizer, encoding_errors)), split.raw

    total = Score()
    with Pool(threads) as pool:
        for part, n_bytes in windowed(pool, score, _splits(inputs), 2 * threads):
            total += part
            progress(n_bytes)
    return total


def per_sentence(model: CompiledModel, inputs: list[Input], tokenizer: Tokenizer, *, threads: int = 1,
                 encoding_errors: str = "strict") -> Iterator[tuple[bytes, Score]]:
    """Yield (tokenised line, its Score) of every sentence."""
    def score(task: tuple[Input, Split]) -> list[tuple[bytes, Score]]:
        text = _text(*task, tokenizer, encoding_errors)
        return list(zip(text.split(b"\n"), model.score_sentences(text), strict=False))

    return _scored(inputs, score, threads)


def per_word(model: CompiledModel, inputs: list[Input], tokenizer: Tokenizer, *, threads: int = 1,
             encoding_errors: str = "strict") -> Iterator[tuple[bytes, list[tuple[bytes, int, float, int, bool]]]]:
    """Yield (tokenised line, what CompiledModel.score_words() says of its tokens) of every sentence."""
    def score(task: tuple[Input, Split]) -> list:
        text = _text(*task, tokenizer, encoding_errors)
        return list(zip(text.split(b"\n"), model.score_words(text), strict=False))

    return _scored(inputs, score, threads)


def per_record(model: CompiledModel, inputs: list[Input], tokenizer: Tokenizer, *, field: str, newline: str = "split",
               threads: int = 1, encoding_errors: str = "strict") -> Iterator[tuple[bytes, dict, float]]:
    """Yield (line, record, perplexity) of every record of JSON lines, blank lines left out.

    The perplexity is that of the record's text as a document: 10 ** (-sum of log10 p / number of tokens) over its sentences,
    between which there are newlines, each with its </s>. So it is in cc_net's perplexity.py (DocLM). Infinite where a token has
    probability 0; nan of a record without text, which cc_net does not score.

    Args:
        inputs: of plain lines, each a JSON object (kvps.text.piped.passing).
        field: of a record, the one that holds the text.
        newline: what a newline within it does: "split" ends a sentence, "space" separates words.
    """
    def score(task: tuple[Input, Split]) -> list[tuple[bytes, dict, float]]:
        source, split = task
        found, texts, place = [], [], 0
        for line in split.data.split(b"\n"):
            try:
                if (record := record_of(line)) is not None:
                    text = document_of(record, field, newline)
                    found.append((line, record))
                    texts.append(tokenizer.prepare(text, errors=encoding_errors, name=source.name,
                                                   locate=lambda _, place=place: split.locate(place)))
            except ValueError as error:
                number, offset = split.locate(place)
                raise DataError(f"{source.name}: line {number}: {error}", path=source.name, line=number, offset=offset) from error
            place += len(line) + 1
        return [(*both, p) for both, p in zip(found, document_perplexities(model, texts), strict=True)]

    return _scored(inputs, score, threads)


def document_perplexities(model: CompiledModel, documents: list[bytes]) -> list[float]:
    """Return the perplexity of each document, whose tokenised sentences all end with a newline; nan of one without any."""
    return [found.perplexity for found in document_scores(model, documents)]


def document_scores(model: CompiledModel, documents: list[bytes]) -> list[Score]:
    """Return the tokens and log10 probability of each document, whose tokenised sentences all end with a newline."""
    columns = model.score_columns(b"".join(documents))
    found, start = [], 0
    for document in documents:
        here = slice(start, start + document.count(b"\n"))
        sums = (columns[name][here].sum().item() for name in ("tokens", "log10_probability", "zero_probability_tokens"))
        tokens, log10_p, zero = sums
        found.append(Score(tokens=tokens, log10_probability=log10_p, zero_probability_tokens=zero))
        start = here.stop
    return found


def _scored(inputs: list[Input], function: Callable, threads: int) -> Iterator:
    """Yield all that a function gives for the splits of the inputs, in their order, several threads at work."""
    with Pool(threads) as pool:
        for rows in windowed(pool, function, _splits(inputs), 2 * threads):
            yield from rows


def texts(inputs: list[Input], tokenizer: Tokenizer, encoding_errors: str = "strict") -> Iterator[bytes]:
    """Yield the tokenised text of the inputs, split by split."""
    for source, split in _splits(inputs):
        yield _text(source, split, tokenizer, encoding_errors)


def _splits(inputs: list[Input]) -> Iterator[tuple[Input, Split]]:
    for source in inputs:
        for split in source.splits(SPLIT_BYTES):
            yield source, split


def _text(source: Input, split: Split, tokenizer: Tokenizer, encoding_errors: str) -> bytes:
    return tokenizer.for_kind(source.kind).prepare(split.data, errors=encoding_errors, name=source.name, locate=split.locate)

"""Perplexity of text under a model: inputs read, tokenised and scored by several threads, sums in the order of the text."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kvps.lm.pools import windowed
from kvps.lm.scorer import Score, Scorer
from kvps.text.corpus import Input, Split
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
    with ThreadPoolExecutor(threads) as pool:
        for part, n_bytes in windowed(pool, score, _splits(inputs), 2 * threads):
            total += part
            progress(n_bytes)
    return total


def per_sentence(model: CompiledModel, inputs: list[Input], tokenizer: Tokenizer, *,
                 encoding_errors: str = "strict") -> Iterator[tuple[bytes, Score]]:
    """Yield (tokenised line, its Score) of every sentence."""
    for source, split in _splits(inputs):
        text = _text(source, split, tokenizer, encoding_errors)
        yield from zip(text.split(b"\n"), model.score_sentences(text), strict=False)


def _splits(inputs: list[Input]) -> Iterator[tuple[Input, Split]]:
    for source in inputs:
        for split in source.splits(SPLIT_BYTES):
            yield source, split


def _text(source: Input, split: Split, tokenizer: Tokenizer, encoding_errors: str) -> bytes:
    return tokenizer.for_kind(source.kind).prepare(split.data, errors=encoding_errors, name=source.name, locate=split.locate)

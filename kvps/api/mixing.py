"""Models together: mixed to one, or compared as classes of documents."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

from kvps.api.words import Sentence
from kvps.errors import ArgumentError
from kvps.jobs import mix as mixing
from kvps.lm.model import batches
from kvps.lm.smoothing import DEFAULT
from kvps.text.tokenize import Tokenizer


def mix(out: str | PathLike[str], models: Sequence[str | PathLike[str]], dev: Iterable[Sentence], *,
        smoothing: str | Sequence[str] = DEFAULT, order: int | Sequence[int | None] | None = None,
        labels: Iterable[str] | None = None, exact: bool = False, stale: str = "wait", tokenizer: str | None = None,
        threads: int | None = None) -> dict[str, Any]:
    """Write the mixture of models, by linear interpolation, that foresees some sentences best; load(out) opens it.

    The file names the models, it copies nothing: what a store learns, the mixture knows. A model gives 0 to a word that it lacks
    and another one has. Where no mixture is better than a model alone, that one has all the weight.

    Args:
        out: a new file, or one to be replaced.
        models: directories of stores, addresses, and files of imported models, all with the same tokenizer.
        dev: each a str, that the tokenizer makes words of, or a list of words.
        smoothing, order: one for all models, or one for each; an imported model has its own smoothing.
        labels, exact, stale, tokenizer, threads: as in load().

    Returns:
        {"path", "perplexity" of the sentences (None: infinite), "tokens", "sentences", "models": of each "model", "weight",
        "smoothing", "order", and "perplexity" alone}.

    Raises:
        ArgumentError: models that cannot be mixed. DataError: there are no sentences.
    """
    if isinstance(models, (str, bytes, PathLike)) or isinstance(dev, (str, bytes)):
        raise ArgumentError("expected a list of models, and an iterable of sentences; put one in a list")
    return mixing.mix(out, models, lambda words: tokenised(dev, words), smoothing=_each(smoothing), order=_each(order),
                      labels=None if labels is None else list(labels), exact=exact, stale=stale, tokenizer=tokenizer,
                      threads=threads)


def tokenised(sentences: Iterable[Sentence], words: Tokenizer) -> Iterator[bytes]:
    """Yield the lines of sentences, a batch at a time."""
    line = 1
    for kind, text in batches(sentences):
        yield words.prepare(text, name="(iterable)", first_line=line) if kind == "text" else text
        line += text.count(b"\n")


def _each(values: Any) -> list[Any]:
    """Return a list of what is one for all, or one for each."""
    return [values] if values is None or isinstance(values, (str, int)) else list(values)

"""Why a sentence has the probability that it has: what each order of n-grams gives to each word.

With the interpolated smoothings, p(w | h) = share(h w) + backoff(h) p(w | h'): written out, a sum over orders, in which the
share of each is multiplied by the back-offs of all longer contexts. Formulas: ext/kvps/_smoothing.pxd.
"""
from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kvps.lm.smoothing import GIVEN
from kvps.text.vocabulary import text_of_word

if TYPE_CHECKING:
    from kvps.lm.model import CompiledModel


class Part(NamedTuple):
    """What the n-gram of one order gives to the probability of a word."""

    order: int                             # 0: what all words get alike
    ngram: str
    count: int | None                      # adjusted or raw, as the smoothing has it; 0 if it was not seen
    discount: float | None                 # taken off the count
    total: int | None                      # the counts of all words after its context; all three None: an imported model has none
    backoff: float                         # by what its context multiplies what shorter n-grams give; 1: context not seen
    share: float                           # of the probability; those of all orders add up to it
    model: str = ""                        # whose n-gram it is, of those that are mixed

    def shown(self) -> str:
        """Return what people read of the n-gram."""
        return (f"{self.model}: " if self.model else "") + (self.ngram or "(any word)")

    def as_dict(self) -> dict:
        """Return what `kvps explain --json` prints of it."""
        return {name: value for name, value in self._asdict().items() if value or name != "model"}


class ExplainedWord(NamedTuple):
    """A word of a sentence, with its probability and what that is made of."""

    word: str
    log10: float                           # of the probability
    probability: float
    order: int                             # of the longest n-gram that was seen
    ngram: str                             # that one
    oov: bool
    parts: list[Part]                      # the longest n-gram that the model could have first


def explain(model: CompiledModel, text: bytes) -> Iterator[list[ExplainedWord]]:
    """Yield, for each line of tokenised text, its words with what their probabilities are made of; </s> is the last.

    An imported model has probabilities, and no counts: the longest n-gram that is listed gives all of it, times the back-offs
    of the longer contexts.
    """
    ids, history, _ = model.encode(text)
    values, totals, (shares, discounts, backoffs) = model.tables.look(ids, history)
    counted = model.smoothing != GIVEN
    unigrams = int(np.asarray(model.unigrams).sum(dtype=np.uint64)) if counted else 0
    at = 0
    for tokens in model.score_words(text):
        words = ["<s>", *(text_of_word(word) for word, *_ in tokens)]
        found = []
        for i, (_, _, log10, order, oov) in enumerate(tokens, 1):
            row = at + i
            most = min(i, model.order - 1) + 1             # words of the longest n-gram
            parts = []
            for k in range(most, 0, -1):
                counts = (int(values[row, k - 1]), float(discounts[row, k]),
                          int(totals[row, k - 1, 0]) if k > 1 else unigrams) if counted else (None, None, None)
                parts.append(Part(k, " ".join(words[i - k + 1:i + 1]), *counts, float(backoffs[row, k - 1]), float(shares[row, k])))
            if counted:
                parts.append(Part(0, "", 0, 0.0, 0, 1.0, float(shares[row, 0])))
            found.append(ExplainedWord(words[i], log10, 10 ** log10, order, " ".join(words[i - order + 1:i + 1]) if order else "",
                                       oov, parts))
        yield found
        at += len(words)


def as_dict(words: list[ExplainedWord]) -> dict:
    """Return what `kvps explain --json` prints of a sentence; the log10 of a probability of 0 is None."""
    def finite(x: float) -> float | None:
        return x if math.isfinite(x) else None

    return {"sentence": " ".join(word.word for word in words[:-1]),
            "log10_probability": finite(sum(word.log10 for word in words)),
            "words": [word._asdict() | {"log10": finite(word.log10), "parts": [part.as_dict() for part in word.parts]}
                      for word in words]}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/2.2 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222 }}
.w {{ padding: .25em .35em; margin: .05em; border-radius: .3em; position: relative; cursor: default }}
.oov {{ outline: 2px dashed #333 }}
.w table {{ display: none; position: absolute; left: 0; top: 2em; z-index: 1; background: #fff; border: 1px solid #999;
  border-collapse: collapse; font: 13px/1.5 ui-monospace, monospace; box-shadow: 0 2px 8px #0004; white-space: nowrap }}
.w:hover table {{ display: table }}
td, th {{ padding: .1em .6em; text-align: right; font-weight: normal }}
td:first-child, th:first-child {{ text-align: left }}
th {{ border-bottom: 1px solid #999 }}
small {{ color: #666 }}
</style></head><body><h1>{title}</h1>
<p><small>The darker a word, the less the model expected it. Point at one to see what its probability is made of; a dashed
word is not in the vocabulary. {facts}</small></p>
"""
# log10 p at which a word is as dark as can be.
DARKEST = -6.0


def heat_map(sentences: Iterable[list[ExplainedWord]], title: str, facts: str) -> Iterator[bytes]:
    """Yield a page of HTML, whole in itself, in which each word's colour says how little it was expected."""
    yield _PAGE.format(title=html.escape(title), facts=html.escape(facts)).encode()
    for words in sentences:
        line = "".join(_span(word) for word in words)
        yield f"<p>{line} <small>{sum(word.log10 for word in words):.3f}</small></p>\n".encode("utf-8", "backslashreplace")
    yield b"</body></html>\n"


def _span(word: ExplainedWord) -> str:
    heat = min(1.0, max(word.log10, DARKEST) / DARKEST)
    rows = "".join(f"<tr><td>{html.escape(part.shown())}</td><td>{part.count or ''}</td>"
                   f"<td>{'' if part.discount is None else format(part.discount, '.4g')}</td><td>{part.total or ''}</td>"
                   f"<td>{part.backoff:.4g}</td><td>{part.share:.4g}</td></tr>" for part in word.parts)
    return (f'<span class="w{" oov" if word.oov else ""}" style="background:hsl({48 - 48 * heat:.0f} 95% {96 - 40 * heat:.0f}%)">'
            f"{html.escape(word.word)}<table><tr><th>log10 p {word.log10:.4f}</th><th>count</th><th>discount</th><th>of</th>"
            f"<th>back-off</th><th>gives</th></tr>{rows}</table></span> ")

"""Mix models: find the weights by which they foresee a development text best, and write down the mixture."""
from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from kvps.errors import ArgumentError, DataError
from kvps.jobs.models import model_at
from kvps.lm import container, mixture, opening
from kvps.lm.mixed import best_weights, refuse_scores, shares
from kvps.lm.model import CompiledModel
from kvps.lm.smoothing import DEFAULT, GIVEN
from kvps.pools import spread
from kvps.text.tokenize import Tokenizer, shown, store_tokenizer
from kvps.text.vocabulary import EOS, UNK
from kvps.units import thread_count

log = logging.getLogger("kvps")

T = TypeVar("T")


def mix(out: str | os.PathLike[str], models: Sequence[str | os.PathLike[str]], dev: Callable[[Tokenizer], Iterable[bytes]], *,
        smoothing: Sequence[str] = (DEFAULT,), order: Sequence[int | None] = (None,), labels: Sequence[str] | None = None,
        anyway: bool = False, exact: bool = False, stale: str = "wait", tokenizer: str | None = None, threads: int | None = None,
        scratch: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the mixture of models that foresees a text best.

    Weights come from expectation maximisation; each model alone is tried too, by the perplexity that it has by itself, and is
    taken where the mixture is not better. That can be because more words are unknown to it: then <unk> costs it less than the words
    cost the mixture. Models of weight 0 are left out of the file.

    Args:
        models: stores, addresses and imported models, of one tokenizer.
        dev: takes that tokenizer, and yields the development text, tokenised, piece by piece.
        smoothing, order: of each model, or one for all; imported models have their own smoothing.
        anyway: leave it to the mixture even so.
        labels, exact, stale, threads, scratch, progress: as those of model_at().
        tokenizer: only to name the models' MODULE:FUNC again.

    Returns:
        {"path", "perplexity" (None: infinite), "tokens", "sentences", "models": each "model", "weight", "smoothing", "order" and
        "perplexity" alone}.
    """
    out = Path(out)
    container.refuse_others(out, "mixture", mixture.is_mixture)
    if not 1 <= len(models) <= mixture.MAX_MODELS:
        raise ArgumentError(f"{len(models)} models cannot be mixed: between 1 and {mixture.MAX_MODELS} can")
    smoothings, orders = each(smoothing, len(models), "smoothings"), each(order, len(models), "orders")
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(opening.open_model_place(model)) for model in models]
        recorded = places[0].identity["tokenizer"]
        for place in places:
            mixture.refuse_mixture(place)
            if place.identity["tokenizer"] != recorded:
                raise ArgumentError(f"{place.path}: has tokenizer {shown(place.identity['tokenizer'])}, and {places[0].path} "
                                    f"{shown(recorded)}; only models with the same one can be mixed")
        words = store_tokenizer(places[0].path, recorded, tokenizer)
        opened = [model_at(place, name, top, kind=CompiledModel, exact=exact and not isinstance(place, opening.ModelFile),
                           labels=labels, stale=stale, threads=threads, scratch=scratch, progress=progress)
                  for place, name, top in zip(places, smoothings, orders, strict=True)]
        for place, model in zip(places, opened, strict=True):
            refuse_scores(str(place.path), model)

        def look(text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
            found = [model.score_tokens(text) for model in opened]
            unknown = np.stack([tokens["ids"] == UNK for tokens in found], axis=1)
            return (shares(found), np.stack([tokens["log10"] for tokens in found], axis=1),
                    np.append(unknown.sum(axis=0), unknown.all(axis=1).sum()), int(np.count_nonzero(found[0]["ids"] == EOS)))

        parts = list(spread(look, dev(words), thread_count(threads)))
    if not any(len(p) for p, *_ in parts):
        raise DataError("the development text is empty: weights cannot be found")
    p, alone = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    n_unknown = sum(part[2] for part in parts)
    weights = best_weights(p)
    with np.errstate(divide="ignore"):
        mixed = perplexity(np.log10(p @ weights))
    by_themselves = [perplexity(column) for column in alone.T]
    best = int(np.argmin(by_themselves))
    if by_themselves[best] <= mixed and finite(by_themselves[best]) and len(models) > 1 and not anyway:
        log.warning("%s alone has perplexity %.4f, with %d unknown words; the mixture has %.4f, with %d: that one has all the "
                    "weight, unless you mix anyway", models[best], by_themselves[best], n_unknown[best], mixed, n_unknown[-1])
        mixed, weights = by_themselves[best], np.arange(len(models)) == best
    weights = np.where(weights < 1e-12, 0.0, weights)
    weights /= weights.sum()
    facts = {"perplexity": finite(mixed), "tokens": len(p), "sentences": sum(part[3] for part in parts)}
    listed = [{"model": str(model), "weight": weight, "smoothing": str(ready.smoothing), "order": ready.order,
               "perplexity": finite(own)}
              for model, ready, weight, own in zip(models, opened, weights.tolist(), by_themselves, strict=True)]
    mixture.write(out, recorded, [
        mixture.Part(mixture.name_of(out, model), weight, None if ready.smoothing == GIVEN else str(ready.smoothing), ready.order,
                     None if labels is None else list(labels), exact and ready.smoothing != GIVEN)
        for model, ready, weight in zip(models, opened, weights.tolist(), strict=True) if weight > 0], facts)
    return {"path": os.fspath(out), **facts, "models": listed}


def each(values: Sequence[T], n: int, what: str) -> list[T]:
    """Return one value for each of n models: one for all is repeated."""
    if len(values) not in (1, n):
        raise ArgumentError(f"{len(values)} {what} for {n} models: give one, or one for each")
    return list(values) * (n if len(values) == 1 else 1)


def perplexity(log10_p: np.ndarray) -> float:
    """Return the perplexity of tokens of these log10 probabilities."""
    return float(10 ** -log10_p.mean()) if np.isfinite(log10_p).all() else float("inf")


def finite(x: float) -> float | None:
    """Return a number as JSON has it: None where it is infinite."""
    return x if np.isfinite(x) else None

"""Models that answer elsewhere: RemoteModel asks, and the functions below it answer where the store is."""
from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvps.errors import StoreError
from kvps.lm import cache
from kvps.lm.model import CompiledModel, rows_of
from kvps.lm.scorer import Score
from kvps.lm.smoothing import parse
from kvps.lm.statistics import Statistics
from kvps.store.directory import StoreDirectory

if TYPE_CHECKING:
    from kvps.ps.remote_store import RemoteDirectory

MAX_MODELS = 8                 # that a server keeps open


class RemoteModel:
    """One version of a store that a server serves, seen through a smoothing; answers as CompiledModel does."""

    def __init__(self, store: RemoteDirectory, smoothing: str, order: int | None = None, *, exact: bool = False,
                 labels: Sequence[str] | None = None, stale: str = "wait") -> None:
        """Have the model made, if need be, and opened there; arguments as those of kvps.load()."""
        self._store = store
        self.smoothing = parse(smoothing)
        self._asked: dict[str, Any] = {"smoothing": str(self.smoothing), "order": order, "exact": exact,
                                       "labels": None if labels is None else sorted(set(labels))}
        facts = store.run(open_model, **self._asked, stale=stale)
        self.order, self.version = facts["order"], facts["version"]
        self.statistics = Statistics.from_json(facts["statistics"])
        self._asked["version"] = self.version

    def score_text(self, text: bytes) -> Score:
        """Return the sums over tokenised text."""
        return Score(**self._store.run(score_text, **self._asked, text=text)) if text else Score()

    def score_columns(self, text: bytes) -> dict[str, np.ndarray]:
        """Return the fields of the Score of each line, an array each."""
        return self._store.run(score_sentences, **self._asked, text=text)

    def score_sentences(self, text: bytes) -> list[Score]:
        """Return one Score per line of tokenised text."""
        return rows_of(self.score_columns(text))

    def score_words(self, text: bytes) -> Iterator[list[tuple[bytes, int, float, int, bool]]]:
        """Yield what CompiledModel.score_words() does."""
        for sentence in self._store.run(score_words, **self._asked, text=text):
            yield [(word.encode("utf-8", "surrogateescape"), i, -np.inf if p is None else p, matched, oov)
                   for word, i, p, matched, oov in sentence]

    def log10(self, word: str, context: Sequence[str]) -> float:
        """Return log10 p(word | context)."""
        found = self._store.run(log10, **self._asked, word=word, context=list(context))
        return -np.inf if found is None else found


# Where the store is. The models that were opened last are kept: by store, version and what was asked.
_models: OrderedDict[tuple, CompiledModel] = OrderedDict()


def open_model(store: StoreDirectory, *, smoothing: str, order: int | None, exact: bool, labels: list[str] | None,
               stale: str) -> dict:
    """Make the compiled model of the last version if need be, and open it; return "order", "version" and "statistics"."""
    chosen = parse(smoothing)
    model = cache.load(store, lambda path: CompiledModel(path, chosen, order), kind=chosen.kind, top=order, exact=exact,
                       labels=labels, stale=stale)
    _models[_key(store, smoothing, order, exact, labels, model.version)] = model
    while len(_models) > MAX_MODELS:
        _models.popitem(last=False)
    return {"order": model.order, "version": model.version, "statistics": model.statistics.to_json()}


def _key(store: StoreDirectory, smoothing: str, order: int | None, exact: bool, labels: list[str] | None, version: int) -> tuple:
    return str(store.path), smoothing, order, exact, None if labels is None else tuple(labels), version


def _opened(store: StoreDirectory, asked: dict[str, Any]) -> CompiledModel:
    key = _key(store, **asked)
    model = _models.get(key)
    if model is None:                          # the server was started again, or many others were opened since
        version = asked.pop("version")
        found = open_model(store, **asked, stale="wait")["version"]
        if found != version:
            raise StoreError(f"{store.path}: version {version} is gone, version {found} has come; run the command again",
                             path=str(store.path))
        model = _models[key]
    return model


def score_text(store: StoreDirectory, *, text: np.ndarray, **asked: Any) -> dict:
    """Return the Score of tokenised text as a dict."""
    return dataclasses.asdict(_opened(store, asked).score_text(text.tobytes()))


def score_sentences(store: StoreDirectory, *, text: np.ndarray, **asked: Any) -> dict:
    """Return the fields of the Score of each line, an array each."""
    return _opened(store, asked).score_columns(text.tobytes())


def score_words(store: StoreDirectory, *, text: np.ndarray, **asked: Any) -> list:
    """Return what CompiledModel.score_words() yields; the log10 of a probability of 0 is None."""
    return [[(word.decode("utf-8", "surrogateescape"), i, p if np.isfinite(p) else None, matched, oov)
             for word, i, p, matched, oov in sentence] for sentence in _opened(store, asked).score_words(text.tobytes())]


def log10(store: StoreDirectory, *, word: str, context: list[str], **asked: Any) -> float | None:
    """Return log10 p(word | context), None for that of 0."""
    found = _opened(store, asked).log10(word, context)
    return found if np.isfinite(found) else None

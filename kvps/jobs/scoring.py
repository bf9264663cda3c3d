"""Models that answer elsewhere: RemoteModel asks, and the functions below it answer where the store is."""
from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvps.errors import StoreError
from kvps.lm import cache
from kvps.lm.completion import BEAM, Completion
from kvps.lm.completion import MAX_WORDS as MAX_ADDED
from kvps.lm.explain import ExplainedWord, Part
from kvps.lm.followers import FollowingModel, load_following
from kvps.lm.foresight import MAX_WORDS, Drawn, NextWords, check_draws
from kvps.lm.model import CompiledModel, rows_of, shares_by_rows
from kvps.lm.prediction import Evaluation
from kvps.lm.scorer import Score
from kvps.lm.smoothing import parse
from kvps.lm.statistics import Statistics
from kvps.store.directory import StoreDirectory
from kvps.units import MAX_BEAM, check_number

if TYPE_CHECKING:
    from kvps.ps.remote_store import RemoteDirectory

MAX_MODELS = 8                 # that a server keeps open
# Asked for at once, so that no answer is long: contexts, or words after one; and words of drawn sentences.
CONTEXTS, DRAWN_WORDS = 256, 1 << 16
TALLIES = ("true", "predicted", "right")


class RemoteModel:
    """One version of a store that a server serves, seen through a smoothing; answers as CompiledModel and Foresight do."""

    follows = True

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

    def score_tokens(self, text: bytes) -> dict[str, np.ndarray]:
        """As CompiledModel.score_tokens()."""
        return self._store.run(score_tokens, **self._asked, text=text)

    def score_rows(self, rows: np.ndarray) -> np.ndarray:
        """As CompiledModel.score_rows()."""
        return self._store.run(score_rows, **self._asked, rows=np.ascontiguousarray(rows, np.uint32))["log10"]

    def shares_of(self, contexts: Sequence[np.ndarray], which: np.ndarray, words: np.ndarray) -> np.ndarray:
        """As CompiledModel.shares_of()."""
        return shares_by_rows(self, contexts, which, words)

    def vocabulary(self) -> dict[str, np.ndarray]:
        """As CompiledModel.vocabulary()."""
        return self._store.run(vocabulary, **self._asked)

    def explain(self, text: bytes) -> Iterator[list[ExplainedWord]]:
        """As CompiledModel.explain()."""
        for words in self._store.run(explain, **self._asked, text=text):
            yield [ExplainedWord(word, -np.inf if p is None else p, *rest, [Part(*part) for part in parts])
                   for word, p, *rest, parts in words]

    def distribution_of(self, context: Sequence[int]) -> np.ndarray:
        """As Foresight.distribution_of(); the ids are those of vocabulary()."""
        return self._store.run(distribution, **self._asked, context=[int(word) for word in context])["p"]

    def mass(self, context: Sequence[int], low: int, high: int) -> float:
        """As Foresight.mass()."""
        return self._store.run(mass, **self._asked, context=[int(word) for word in context], low=low, high=high)

    def extend(self, contexts: Sequence[Sequence[int]], k: int, low: int, high: int,
               min_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.extend()."""
        found = self._store.run(extend, **self._asked, contexts=[[int(word) for word in context] for context in contexts], k=k,
                                low=low, high=high, min_count=min_count)
        return found["ids"], found["p"], found["found"]

    def draw_word(self, context: Sequence[int], seed: int) -> int:
        """As FollowingModel.draw_word()."""
        return self._store.run(draw_word, **self._asked, context=[int(word) for word in context], seed=seed)

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """The place of each word in byte order, uint32."""
        return self._store.run(ranks, **self._asked)["ranks"]

    def next_words(self, contexts: Iterable[Sequence[str]], k: int | None, threads: int = 1) -> Iterator[NextWords]:
        """As Foresight.next_words()."""
        left, size = iter(contexts), CONTEXTS if k is not None and k <= CONTEXTS else 1
        while some := list(itertools.islice(left, size)):
            for words, p in self._store.run(next_words, **self._asked, contexts=[list(context) for context in some], k=k):
                yield NextWords(words, np.array(p), np.cumsum(p))

    def complete(self, typed: Sequence[str], partial: str, k: int = 10, *, beam: int = BEAM, max_words: int = MAX_ADDED,
                 min_count: int = 0) -> list[Completion]:
        """As Foresight.complete()."""
        return [Completion(*row) for row in self._store.run(
            complete, **self._asked, typed=list(typed), partial=partial, k=k, beam=beam, max_words=max_words, min_count=min_count)]

    def generate(self, prompt: Sequence[str], count: int, *, temperature: float = 1.0, top_k: int | None = None,
                 top_p: float | None = None, seed: int = 0, max_words: int = MAX_WORDS, threads: int = 1,
                 first: int = 0) -> Iterator[Drawn]:
        """As Foresight.generate()."""
        check_draws(count, temperature, top_k, top_p, seed, max_words)     # here: no message has every number
        some = max(1, DRAWN_WORDS // max(1, max_words))
        for at in range(0, max(count, 1), some):
            for row in self._store.run(generate, **self._asked, prompt=list(prompt), count=min(some, count - at),
                                       temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_words=max_words,
                                       first=first + at):
                yield Drawn(*row)

    def evaluate(self, text: bytes) -> Evaluation:
        """As Foresight.evaluate()."""
        found = self._store.run(foresee, **self._asked, text=text)
        tallies = {name: np.zeros(found["n_words"], np.int64) for name in TALLIES}
        for name, tally in tallies.items():
            tally[found["words"]] = found[name]
        return Evaluation(Score(**found["score"]), found["hits"].copy(), found["within"].copy(), found["reciprocal"], **tallies)


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
            raise _gone(store, version, found)
        model = _models[key]
    return model


def _following(store: StoreDirectory, asked: dict[str, Any]) -> FollowingModel:
    """Return the model that was opened as one that knows next words."""
    model = _opened(store, dict(asked))
    if not model.follows:
        version, key = asked["version"], _key(store, **asked)
        model = load_following(store, asked["smoothing"], asked["order"], exact=asked["exact"], labels=asked["labels"])
        if model.version != version:
            raise _gone(store, version, model.version)
        _models[key] = model
    assert isinstance(model, FollowingModel)       # of a store
    return model


def _gone(store: StoreDirectory, version: int, found: int) -> StoreError:
    return StoreError(f"{store.path}: version {version} is gone, version {found} has come; run the command again",
                      path=str(store.path))


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


def score_tokens(store: StoreDirectory, *, text: np.ndarray, **asked: Any) -> dict:
    """Return what CompiledModel.score_tokens() does."""
    return _opened(store, asked).score_tokens(text.tobytes())


def score_rows(store: StoreDirectory, *, rows: np.ndarray, **asked: Any) -> dict:
    """Return the log10 probability of the last word of each row of word ids."""
    return {"log10": _opened(store, asked).score_rows(rows)}


def vocabulary(store: StoreDirectory, **asked: Any) -> dict:
    """Return what CompiledModel.vocabulary() does."""
    return _opened(store, asked).vocabulary()


def explain(store: StoreDirectory, *, text: np.ndarray, **asked: Any) -> list:
    """Return what CompiledModel.explain() yields, as lists; the log10 of a probability of 0 is None."""
    return [[[word.word, word.log10 if np.isfinite(word.log10) else None, *word[2:]] for word in words]
            for words in _opened(store, asked).explain(text.tobytes())]


def distribution(store: StoreDirectory, *, context: list[int], **asked: Any) -> dict:
    """Return the probability of each word id after a context of ids."""
    return {"p": _following(store, asked).distribution_of(context)}


def ranks(store: StoreDirectory, **asked: Any) -> dict:
    """Return the place of each word in byte order."""
    return {"ranks": _following(store, asked).ranks}


def mass(store: StoreDirectory, *, context: list[int], low: int, high: int, **asked: Any) -> float:
    """Return the probability that the next word is one of a range in byte order."""
    return _following(store, asked).mass(context, low, high)


def extend(store: StoreDirectory, *, contexts: list[list[int]], k: int, low: int, high: int, min_count: int, **asked: Any) -> dict:
    """Return what Foresight.extend() does."""
    ids, p, found = _following(store, asked).extend(contexts, k, low, high, min_count)
    return {"ids": ids, "p": p, "found": found}


def draw_word(store: StoreDirectory, *, context: list[int], seed: int, **asked: Any) -> int:
    """Return a word id drawn after a context of ids."""
    return _following(store, asked).draw_word(context, seed)


def next_words(store: StoreDirectory, *, contexts: list[list[str]], k: int | None, **asked: Any) -> list:
    """Return the words and probabilities of what Foresight.next_words() yields."""
    return [[found.words, found.probabilities.tolist()] for found in _following(store, asked).next_words(contexts, k)]


def complete(store: StoreDirectory, *, typed: list[str], partial: str, k: int, beam: int, max_words: int, min_count: int,
             **asked: Any) -> list:
    """Return what Foresight.complete() does."""
    check_number("a min count", min_count, 0)
    check_number("a beam", beam, 1, MAX_BEAM)
    return _following(store, asked).complete(typed, partial, k, beam=beam, max_words=max_words, min_count=min_count)


def generate(store: StoreDirectory, *, prompt: list[str], count: int, temperature: float, top_k: int | None, top_p: float | None,
             seed: int, max_words: int, first: int, **asked: Any) -> list:
    """Return what Foresight.generate() yields."""
    return list(_following(store, asked).generate(prompt, count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                                                  max_words=max_words, first=first))


def foresee(store: StoreDirectory, *, text: np.ndarray, **asked: Any) -> dict:
    """Return what Foresight.evaluate() does, of the words only those that are there."""
    found = _following(store, asked).evaluate(text.tobytes())
    words = np.flatnonzero(found.true + found.predicted)
    return {"n_words": len(found.true), "score": dataclasses.asdict(found.score), "hits": found.hits, "within": found.within,
            "reciprocal": found.reciprocal, "words": words, **{name: getattr(found, name)[words] for name in TALLIES}}


# What a client may have run here.
FUNCTIONS = (open_model, score_text, score_sentences, score_words, score_tokens, score_rows, log10, vocabulary, explain,
             distribution, ranks, mass, extend, draw_word, next_words, complete, generate, foresee)

"""A Model: one version of a store seen through a smoothing, which answers with probabilities."""
from __future__ import annotations

import functools
import itertools
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, overload

import numpy as np

from kvps.api.words import FetchedVocabulary, LocalVocabulary, Ngram, Sentence, Vocabulary, checked, listed, words_of
from kvps.errors import ArgumentError, StoreError
from kvps.jobs.models import model_at
from kvps.lm import cache, completion, mixture, opening
from kvps.lm.completion import Completion
from kvps.lm.evaluate import document_perplexities
from kvps.lm.explain import ExplainedWord
from kvps.lm.followers import context_of
from kvps.lm.foresight import MAX_WORDS, Foresight, NextWords
from kvps.lm.model import BATCH_BYTES, CompiledModel, batches
from kvps.lm.prediction import Evaluation
from kvps.lm.prediction import evaluate as measured
from kvps.lm.rescore import Hypothesis, check_feature, hypothesis, rescored
from kvps.lm.scorer import Score
from kvps.lm.smoothing import DEFAULT, parse
from kvps.lm.statistics import Statistics
from kvps.pools import spread
from kvps.text.tokenize import PLAIN, Spec, Tokenizer, store_tokenizer
from kvps.units import MANY, MAX_BEAM, check_labels, check_number, is_whole, thread_count

DEFAULT_SMOOTHING = DEFAULT

R = TypeVar("R")


class WordScore(NamedTuple):
    """One token of a sentence: its log10 probability, and the order of the longest n-gram that was seen."""

    word: str
    log10: float
    order: int
    oov: bool


def load(model: str | PathLike[str], smoothing: str = DEFAULT_SMOOTHING, order: int | None = None, exact: bool = False,
         stale: str = "wait", *, labels: Iterable[str] | None = None, tokenizer: Spec | None = None,
         threads: int | None = None) -> Model:
    """Open a store's last version as a model, compiling it where that has not been done yet, or an ARPA file, or a mixture.

    Args:
        model: a store's directory; the address of a server, where it is then compiled and asked; an ARPA file, read once and
            kept in the user's cache folder, or the file of an imported model, which take neither smoothing nor exact nor
            labels; or that of a mixture, which takes no order either.
        smoothing: NAME or NAME:VALUE: modified-kneser-ney (mkn), kneser-ney (kn), absolute-discounting (ad),
            witten-bell (wb), lidstone:0.1, laplace, mle, stupid-backoff:0.4.
        order: highest order used; the store's by default.
        exact: answer without fingerprints, from larger and slower tables.
        stale: while another process compiles, "wait" for it, or "ok": take an older version.
        labels: use only the text of these labels, "-" being text without one.
        tokenizer: as in open().
        threads: for compiling, and for answering where many are asked for; by default the CPUs that affinity and cgroup allow.

    Raises:
        ArgumentError: a smoothing, order or tokenizer that is not possible; otherwise as open().
    """
    parse(smoothing)
    store = opening.open_model_place(model)
    try:
        return Model(store, smoothing, order, exact=exact, stale=stale, labels=labels, tokenizer=tokenizer,
                     threads=threads)
    except BaseException:
        store.close()
        raise


class Model:
    """A store's version with a smoothing, or an imported model, ready to score. A context manager."""

    def __init__(self, directory: Any, smoothing: str, order: int | None, *, exact: bool, stale: str,
                 labels: Iterable[str] | None, tokenizer: Spec | None, threads: int | None) -> None:
        """Take over an open directory; arguments as in load()."""
        if stale not in ("wait", "ok"):
            raise ArgumentError(f'a stale model is "ok" or to "wait" for, not "{stale}"')
        if tokenizer is not None:
            store_tokenizer(directory.path, directory.identity["tokenizer"], tokenizer)
        self.path: Path = directory.path
        self._directory, self._named = directory, tokenizer
        self._smoothing, self._highest = parse(smoothing), order
        self._exact, self._stale, self._threads = exact, stale, thread_count(threads)
        self._labels = check_labels(labels)
        self._turn = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._compiled: Any = self._open()

    def _open(self, *, following: bool = False) -> Any:
        how: dict[str, Any] = {"exact": self._exact, "labels": self._labels, "stale": self._stale, "threads": self._threads}
        return model_at(self._directory, self._smoothing, self._highest, kind=CompiledModel, following=following, **how)

    def refresh(self) -> bool:
        """Switch to the store's last version; return whether that is another one than before.

        Calls that are at work in other threads end with the version they began with.
        """
        with self._turn:
            before = self._model()
            if before.version == self._directory.root.state()["version"]:
                return False
            self._compiled = after = self._open(following=before.follows)
            return after.version != before.version

    @property
    def version(self) -> int:
        """The version of the store that answers."""
        return self._model().version

    @property
    def order(self) -> int:
        """The highest order used."""
        return self._model().order

    @property
    def smoothing(self) -> str:
        """NAME or NAME:VALUE of the smoothing; "back-off" of an imported model."""
        return str(self._model().smoothing)

    @property
    def statistics(self) -> Statistics:
        """Sizes and counts of counts of the version that answers."""
        return self._model().statistics

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that the model knows and their counts in the text that it was made of.

        Raises:
            StoreError: the store has another version by now; refresh() first.
        """
        model, kept = self._model(), self._vocabulary
        if kept is None or kept.version != model.version:
            kept = self._words(model)
            if kept.version != model.version:
                raise StoreError(f"{self.path}: version {model.version} answers, and the store has version {kept.version}; "
                                 "refresh() the model", path=str(self.path))
            self._vocabulary = kept
        return kept

    def _words(self, model: CompiledModel) -> Vocabulary:
        if isinstance(self._directory, mixture.MixtureFile):
            raise StoreError(f"{self.path}: a mixture has the words of its models; ask them", path=str(self.path))
        if isinstance(self._directory, opening.ModelFile):
            return LocalVocabulary(model, self.path)
        if self._directory.elsewhere:
            if self._labels is not None:
                raise StoreError(f"{self.path}: the words of some labels are looked up in the files of a store; open its folder, "
                                 "where it lies", path=str(self.path))
            return FetchedVocabulary(self._directory)
        counts = cache.load(self._directory, lambda path: CompiledModel(path, "kneser-ney"), top=1, labels=self._labels,
                            threads=self._threads)
        return LocalVocabulary(counts, self.path)

    @overload
    def score(self, sentences: str) -> float: ...

    @overload
    def score(self, sentences: Iterable[Sentence]) -> np.ndarray: ...

    def score(self, sentences: Sentence | Iterable[Sentence]) -> float | np.ndarray:
        """Return the log10 probability of each sentence with its </s>, float64 (n,); of one str, a float.

        sentences: each a str, that the store's tokenizer makes words of, or a list of words. -inf where a token has
            probability 0. A str that the store splits into sentences has the sum of theirs.
        """
        model = self._model()
        plain = isinstance(model, CompiledModel) and self._plain
        if isinstance(sentences, str):
            found = model.score_line(sentences) if plain else None
            return float(self._scores(model, [sentences])[0]) if found is None else found
        if not isinstance(sentences, list):
            return self._scores(model, listed(sentences, "sentences"))
        scores = model.score_lines(sentences, self._threads) if plain else None
        return self._scores(model, sentences) if scores is None else scores

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether sentences are words between separators, with nothing to be done to them."""
        return bool(self._directory.identity["tokenizer"] == PLAIN.to_json())

    def _scores(self, model: CompiledModel, sentences: Iterable[Sentence]) -> np.ndarray:
        def score(text: bytes, parts: list[int] | None) -> np.ndarray:
            found = model.score_columns(text)
            scores = np.where(found["zero_probability_tokens"] > 0, -np.inf, found["log10_probability"])
            return scores if parts is None else np.add.reduceat(scores, np.cumsum([0, *parts[:-1]]))

        return np.concatenate([np.empty(0), *self._spread(score, sentences)])

    @overload
    def score_words(self, sentences: str) -> list[WordScore]: ...

    @overload
    def score_words(self, sentences: Iterable[Sentence]) -> list[list[WordScore]]: ...

    def score_words(self, sentences: Sentence | Iterable[Sentence]) -> list[WordScore] | list[list[WordScore]]:
        """Return a list of WordScore per sentence, </s> being its last; of one str, its list alone."""
        model = self._model()

        def score(text: bytes, parts: list[int] | None) -> list[list[WordScore]]:
            return _joined(([WordScore(word.decode(), p, order, oov) for word, _, p, order, oov in tokens]
                            for tokens in model.score_words(text)), parts)

        found = list(itertools.chain.from_iterable(self._spread(score, listed(sentences, "sentences"))))
        return found[0] if isinstance(sentences, str) else found

    @overload
    def perplexities(self, documents: str) -> float: ...

    @overload
    def perplexities(self, documents: Iterable[str]) -> np.ndarray: ...

    def perplexities(self, documents: str | Iterable[str]) -> float | np.ndarray:
        """Return the perplexity of each document over all of its sentences, float64 (n,); of one str, a float.

        documents: each a str with newlines between its sentences, so that one at its end is followed by an empty sentence; each
            has its </s>. As cc_net defines it; inf where a token has probability 0, nan of "", which cc_net does not score.
        """
        if isinstance(documents, str):
            return float(self.perplexities([documents])[0])
        model, words = self._model(), self._tokenizer
        texts = (checked(document, f"document {i}") and document + "\n"
                 for i, document in enumerate(listed(documents, "documents"), 1))

        def score(batch: tuple[int, list[str]]) -> list[float]:
            return document_perplexities(model, [words.prepare(text.encode(), name=f"document {i}", first_line=1)
                                                 for i, text in enumerate(batch[1], batch[0])])

        return np.array([*itertools.chain.from_iterable(spread(score, _numbered(texts), self._threads))],
                        np.float64)

    @overload
    def explain(self, sentences: str) -> list[ExplainedWord]: ...

    @overload
    def explain(self, sentences: Iterable[Sentence]) -> list[list[ExplainedWord]]: ...

    def explain(self, sentences: Sentence | Iterable[Sentence]) -> list[ExplainedWord] | list[list[ExplainedWord]]:
        """Return a list of ExplainedWord per sentence, </s> being its last; of one str, its list alone.

        An ExplainedWord has word, log10, probability, order, ngram, oov, and parts: for each order what its n-gram gives to the
        probability, the longest first. The shares of the parts add up to the probability; those of a mixture say of which model
        they are.
        """
        model = self._model()
        found = list(itertools.chain.from_iterable(self._spread(
            lambda text, parts: _joined(model.explain(text), parts), listed(sentences, "sentences"))))
        return found[0] if isinstance(sentences, str) else found

    @overload
    def rescore(self, hypotheses: Iterable[str], feature: str = "kvps", weight: float = 1.0, *,
                field: str = "text") -> Iterator[str]: ...

    @overload
    def rescore(self, hypotheses: Iterable[Mapping[str, Any]], feature: str = "kvps", weight: float = 1.0, *,
                field: str = "text") -> Iterator[dict[str, Any]]: ...

    def rescore(self, hypotheses: Iterable[str | Mapping[str, Any]], feature: str = "kvps", weight: float = 1.0, *,
                field: str = "text") -> Iterator[str | dict[str, Any]]:
        """Yield the hypotheses of n-best lists with a feature more and new scores, each list's best first.

        The feature is the natural logarithm of the probability of a text with its </s>, -inf where that is 0. The score grows by
        weight times it, or times what it changed by where it is there already. Hypotheses in a row with the same id are a list;
        those of equal score stay in their order. Memory is bounded by some lists.

        Args:
            hypotheses: each a line of Moses, `id ||| text ||| features ||| score`, or of JSON, or a dict with "id", the text, and
                "score" or none; given back as what it was. Blank lines are passed over.
            feature: its name; a field of a dict or of JSON, where infinite is null.
            weight: of the feature in the score.
            field: of a dict or of JSON, the one that holds the text.

        Raises:
            ArgumentError: a feature's name or weight that is not possible; what is neither line nor dict.
            DataError: a line or dict that is no hypothesis, or a score that is no finite number, also one of a text of probability
                0 where weight is not 0; `line` says which, from 1.
        """
        check_feature(feature, weight, field)
        if isinstance(hypotheses, (str, Mapping)):
            raise ArgumentError("expected an iterable of hypotheses, not a single one; put it in a list")
        found = (_hypothesis(given, feature, field, number) for number, given in enumerate(listed(hypotheses, "hypotheses"), 1))
        return rescored(self._model(), found, self._tokenizer, weight=weight, threads=self._threads)

    def evaluate(self, sentences: Sentence | Iterable[Sentence]) -> Score:
        """Return tokens, OOVs, log10 probability, and perplexity with and without OOVs, of all sentences together."""
        model, total = self._model(), Score()
        for part in self._spread(lambda text, _: model.score_text(text), listed(sentences, "sentences")):
            total += part
        return total

    def measure(self, sentences: Sentence | Iterable[Sentence]) -> Evaluation:
        """Return how well the model foresees all sentences together, each next word being predicted from those before.

        An Evaluation has score (what evaluate() returns), hits (int64 (order + 1,), tokens by the order of the longest n-gram
        that was seen), oov_rate, cross_entropy_bits, accuracy (at 1, 5 and 10), mean_reciprocal_rank, and macro: precision,
        recall and F1 of the best word, as means over the words. Takes some 0.1 ms a word; on all threads.

        Raises:
            StoreError: as next().
        """
        return measured(self._following(), (self._prepared(batch)[0] for batch in batches(listed(sentences, "sentences"))),
                        self._threads)

    def perplexity(self, sentences: Sentence | Iterable[Sentence]) -> float:
        """Return the perplexity of sentences: tokens are words and one </s> each; inf where one has probability 0."""
        return self.evaluate(sentences).perplexity

    def log10(self, word: str, context: Ngram = ()) -> float:
        """Return log10 p(word | context); a context may begin with "<s>", its last order - 1 words count.

        context: words between blanks, or a list of words; never tokenised. Without one "<s>" is given, and log10 p is 0.
        """
        return self._model().log10(*words_of([checked(word, "a word")], 1), words_of(context, 1))

    @overload
    def next(self, contexts: str, k: int | None = 10) -> NextWords: ...

    @overload
    def next(self, contexts: Iterable[Ngram], k: int | None = 10) -> list[NextWords]: ...

    def next(self, contexts: Ngram | Iterable[Ngram], k: int | None = 10) -> NextWords | list[NextWords]:
        """Return the k best next words after each context, as a list of NextWords; of one str, its NextWords alone.

        NextWords has words, probabilities float64 (k,) and cumulative float64 (k,), best first, equal ones in byte order; all
        words that can come with k None: then the probabilities add up to 1, if the model is a distribution there (mle after a
        context that was not seen, and ARPA files that leave <s> or <unk> out, are not). The first call makes a file in the
        store's models.

        contexts: each a str, that the store's tokenizer makes words of, or a list of words. The first word may be "<s>"; the
            last order - 1 count.

        Raises:
            ArgumentError: k below 1, or stupid back-off, which gives scores and no distribution.
            StoreError: the store has another version by now, refresh() first.
        """
        if k is not None and not is_whole(k, 1, MANY):
            raise ArgumentError(f"the number of words is 1 or more, or None for all, not {k!r:.40}")
        model = self._following()
        asked = [context_of(checked(context, f"context {i}"), self._tokenizer) if isinstance(context, str) else words_of(context, i)
                 for i, context in enumerate(listed(contexts, "contexts"), 1)]
        found = list(model.next_words(asked, k, self._threads))
        return found[0] if isinstance(contexts, str) else found

    @overload
    def complete(self, texts: str, k: int = 10, *, min_count: int = 0, max_words: int = completion.MAX_WORDS,
                 beam: int = completion.BEAM) -> list[Completion]: ...

    @overload
    def complete(self, texts: Iterable[str], k: int = 10, *, min_count: int = 0, max_words: int = completion.MAX_WORDS,
                 beam: int = completion.BEAM) -> list[list[Completion]]: ...

    def complete(self, texts: str | Iterable[str], k: int = 10, *, min_count: int = 0, max_words: int = completion.MAX_WORDS,
                 beam: int = completion.BEAM) -> list[Completion] | list[list[Completion]]:
        """Return a list of the k most probable Completions of each text, best first; of one str, its list alone.

        A text is the beginning of a sentence, as it is being typed: where it does not end with a blank, its last word may be half
        there. A Completion has text (all of it), probability (that it goes on so, given what was typed), and ended.

        Args:
            min_count: each word that is added counts so much or more after the longest part of what stands before it that was
                seen at all (at most order - 1 words), so that rare sentences never come up: so often it was seen there; but with
                (modified) Kneser-Ney, where that part is shorter and does not begin the sentence, with so many different words
                before the two, which is never more. 0: any word may come.
            max_words: that are added. beam: how many beginnings go on at once, up to 1,000; see kvps.lm.completion.

        Raises:
            ArgumentError: a number that is not possible, or stupid back-off. StoreError: as next().
        """
        check_number("a number of completions", k, 1)
        check_number("a min count", min_count, 0)
        check_number("a beam", beam, 1, MAX_BEAM)
        model, words = self._following(), self._tokenizer

        def answer(text: str) -> list[Completion]:
            typed, partial = completion.split_typed(text, context_of(checked(text, "a text"), words, from_begin=True))
            found = model.complete(typed, partial, k, beam=beam, max_words=max_words, min_count=min_count)
            return [row._replace(text=words.joined(row.text.split(" "))) for row in found]

        if isinstance(texts, str):
            return answer(texts)
        return list(spread(answer, listed(texts, "texts"), self._threads))

    def generate(self, prompt: Ngram = "", count: int = 1, *, temperature: float = 1.0, top_k: int | None = None,
                 top_p: float | None = None, seed: int | None = None, max_words: int = MAX_WORDS) -> list[str]:
        """Return sentences that begin with a prompt, drawn word by word from the model until </s>.

        <s> and <unk> are never drawn; their share is that of all others. The same seed gives the same sentences, whatever the
        number of threads, and the first ones of a larger count.

        Args:
            prompt: of each sentence its beginning; a str, that the store's tokenizer makes words of, or a list of words.
            count: how many sentences.
            temperature: each word is drawn by the power 1 / temperature of its probability.
            top_k: only the k best words are drawn from.
            top_p: only the best words are, those that have this share of the probability, after temperature and top_k.
            seed: from 0 to 2**64 - 1; by default another one each time.
            max_words: that are drawn for a sentence that does not end, up to a million.

        Raises:
            ArgumentError: a number that is not possible, stupid back-off, or no word has a probability (MLE).
            StoreError: as next().
        """
        model, words = self._following(), self._tokenizer
        begun = context_of(checked(prompt, "a prompt"), words, from_begin=True) if isinstance(prompt, str) else words_of(prompt, 1)
        drawn = model.generate(begun, count, temperature=temperature, top_k=top_k, top_p=top_p, max_words=max_words,
                               seed=secrets.randbits(64) if seed is None else seed, threads=self._threads)
        return [words.joined([*begun, *sentence.words]) for sentence in drawn]

    def close(self) -> None:
        """Let go of the compiled model and the store."""
        with self._turn:
            self._compiled = None
            self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        model = self._compiled
        what = "closed" if model is None else f"{self.smoothing}, order {model.order}, version {model.version}"
        return f"<kvps.Model {str(self.path)!r}, {what}>"

    def _model(self) -> CompiledModel:
        model = self._compiled
        if model is None:
            raise StoreError(f"{self.path}: the model is closed", path=str(self.path))
        return model

    def _following(self) -> Foresight:
        """Return the model with what follows each context, which is opened when it is first asked for."""
        with self._turn:
            model = self._model()
            if not model.follows:
                made = self._open(following=True)
                if made.version != model.version:
                    raise StoreError(f"{self.path}: version {model.version} answers, and the store has version {made.version}; "
                                     "refresh() the model", path=str(self.path))
                self._compiled = model = made
            return model

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """What makes words of text; lists of words do without."""
        return store_tokenizer(self.path, self._directory.identity["tokenizer"], self._named)

    def _spread(self, function: Callable[[bytes, list[int] | None], R], sentences: Iterable[Sentence]) -> Iterator[R]:
        """Yield function(text, parts) of each batch of sentences, in order, all threads at work; see _prepared()."""
        return spread(lambda batch: function(*self._prepared(batch)), batches(sentences), self._threads)

    def _prepared(self, batch: tuple[str, int, bytes]) -> tuple[bytes, list[int] | None]:
        """Return the tokenised lines of a batch, and how many lines each str has become; None where it is one of each."""
        kind, line, text = batch
        if kind == "words":
            return text, None
        return self._tokenizer.prepare(text, name="(iterable)", first_line=line), self._tokenizer.sentences_of(text)


def _numbered(documents: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield documents a batch at a time, with the number of the first."""
    batch: list[str] = []
    n_characters = 0
    for number, document in enumerate(documents, 1):
        batch.append(document)
        n_characters += len(document) + 1
        if n_characters >= BATCH_BYTES:
            yield number - len(batch) + 1, batch
            batch, n_characters = [], 0
    if batch:
        yield number - len(batch) + 1, batch


def _hypothesis(given: str | Mapping[str, Any], feature: str, field: str, number: int) -> Hypothesis | None:
    """Return the hypothesis of a line or dict, which is given back as such."""
    if isinstance(given, Mapping):
        return hypothesis(given, feature, field, "(iterable)", number)
    line = checked(given, f"hypothesis {number}").removesuffix("\n")
    if "\n" in line:
        raise ArgumentError(f"hypothesis {number} is one line, found a newline in {line!r:.80}")
    found = hypothesis(line.encode(), feature, field, "(iterable)", number)
    if found is not None:
        written = found.line
        found.line = lambda feature, score: written(feature, score).decode()
    return found


def _joined(rows: Iterable[list[R]], parts: list[int] | None) -> list[list[R]]:
    """Return the rows of tokens with those of one str together, which the store's tokenizer has made so many sentences of."""
    if parts is None:
        return list(rows)
    left = iter(rows)
    return [list(itertools.chain.from_iterable(itertools.islice(left, n))) for n in parts]

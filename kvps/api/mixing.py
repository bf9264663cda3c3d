"""Models together: mixed to one, or compared as classes of documents."""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, overload

from kvps.api.words import Sentence, checked, listed
from kvps.errors import ArgumentError
from kvps.jobs import classify as classifying
from kvps.jobs import mix as mixing
from kvps.lm.classify import Classified, Confusion, Document
from kvps.lm.model import batches
from kvps.lm.smoothing import DEFAULT
from kvps.text.tokenize import Tokenizer
from kvps.units import check_labels, thread_count


def mix(out: str | PathLike[str], models: Sequence[str | PathLike[str]], dev: Iterable[Sentence], *,
        smoothing: str | Sequence[str] = DEFAULT, order: int | Sequence[int | None] | None = None,
        anyway: bool = False, labels: Iterable[str] | None = None, exact: bool = False, stale: str = "wait",
        tokenizer: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """Write the mixture of models, by linear interpolation, that foresees some sentences best; load(out) opens it.

    The file names the models, it copies nothing: what a store learns, the mixture knows. A model gives 0 to a word that it lacks
    and another one has. Where a model alone has a lower perplexity than the mixture, it has all the weight.

    Args:
        out: a new file, or one to be replaced.
        models: directories of stores, addresses, ARPA files and imported models, all with the same tokenizer.
        dev: each a str, that the tokenizer makes words of, or a list of words.
        smoothing, order: one for all models, or one for each; an imported model has its own smoothing.
        anyway: mix even so. A model to which more words are unknown may have a lower perplexity for that alone.
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
                      anyway=anyway, labels=check_labels(labels), exact=exact, stale=stale, tokenizer=tokenizer,
                      threads=thread_count(threads))


class Classifier:
    """Tells documents apart by a model for each class. A context manager, usable from several threads.

    Attributes:
        labels: the names of the classes.
    """

    def __init__(self, models: Mapping[str, str | PathLike[str]], *, prior: Mapping[str, float] | str | None = None,
                 smoothing: str = DEFAULT, order: int | None = None, labels: Iterable[str] | None = None, exact: bool = False,
                 stale: str = "wait", tokenizer: str | None = None, threads: int | None = None) -> None:
        """Open the models.

        Args:
            models: by class, the directory of a store, an address, an ARPA file, or the file of an imported model or of a mixture.
            prior: how probable each class is, by name, in any unit; "uniform"; by default as many sentences as its store has.
            smoothing, order, exact, stale, tokenizer, threads: as in load(), of all models.
            labels: as in load(), of all models: not the classes, but the parts of a store's text.

        Raises:
            ArgumentError: fewer than two classes; priors that are not possible, or not known by default.
        """
        self._threads = thread_count(threads)
        self._stack = contextlib.ExitStack()
        self._classes = self._stack.enter_context(classifying.classes(
            models, prior, smoothing=smoothing, order=order, labels=check_labels(labels), exact=exact,
            stale=stale, tokenizer=tokenizer, threads=threads))
        self.labels: list[str] = self._classes.labels

    @overload
    def classify(self, documents: str) -> Classified: ...

    @overload
    def classify(self, documents: Iterable[str]) -> list[Classified]: ...

    def classify(self, documents: str | Iterable[str]) -> Classified | list[Classified]:
        """Return the Classified of each document; of one str, its alone.

        A Classified has label (of the most probable class), probability (of it, given the document), and log10: by class, that of
        its prior times the document's probability, all classes giving theirs to the same words (kvps.lm.classify).

        documents: each a str; a newline ends a sentence, and each sentence has its </s>.
        """
        found = [row for _, row in self._classify((document, None) for document in listed(documents, "documents"))]
        return found[0] if isinstance(documents, str) else found

    def evaluate(self, documents: Iterable[tuple[str, str]]) -> Confusion:
        """Return how well documents, each given with its true class, are told apart.

        A Confusion has labels, counts by (true, found) class, accuracy, macro (precision, recall and F1 as means over the classes),
        and of(label): documents, precision, recall and f1 of one class.
        """
        result = Confusion(list(self.labels))
        for document, found in self._classify(listed(documents, "documents with their classes")):
            result.add(str(document.label), found.label)
        return result

    def _classify(self, documents: Iterable[tuple[str, str | None]]) -> Iterator[tuple[Document, Classified]]:
        return self._classes.classify(
            (_document(row, f"document {i}") for i, row in enumerate(documents, 1)), self._threads)

    def close(self) -> None:
        """Let go of the models."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _document(row: Any, place: str) -> Document:
    if not isinstance(row, (tuple, list)) or len(row) != 2:
        raise ArgumentError(f"{place} is {type(row).__name__}, not a pair of text and class")
    text, label = checked(row[0], place), row[1]
    return Document((text if text.endswith("\n") else text + "\n").encode(), label, place)


def tokenised(sentences: Iterable[Sentence], words: Tokenizer) -> Iterator[bytes]:
    """Yield the lines of sentences, a batch at a time."""
    for kind, line, text in batches(sentences):
        yield words.prepare(text, name="(iterable)", first_line=line) if kind == "text" else text


def _each(values: Any) -> list[Any]:
    """Return a list of what is one for all, or one for each."""
    return [values] if values is None or isinstance(values, (str, int)) else list(values)

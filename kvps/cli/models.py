"""MODEL arguments: from what the user names to a model that scores."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvps.cli.output import name_warnings
from kvps.cli.progress import Progress
from kvps.jobs.models import model_at
from kvps.lm import opening
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import parse
from kvps.text.corpus import Input, read_once, resolve
from kvps.text.tokenize import Tokenizer, store_tokenizer


@contextlib.contextmanager
def compiled(path: str, progress: Progress, kind: type[Scorer] = Scorer, *, following: bool = False, tokenizer: str | None,
             order: int | None, smoothing: str, labels: list[str] | None, threads: int | None, exact: bool, stale: str,
             temp: str | None) -> Iterator[tuple[Any, Tokenizer]]:
    """Give a model that answers as a `kind` does, made if need be, and the tokenizer.

    following: one that knows next words.
    tokenizer: only to name the model's MODULE:FUNC again.
    """
    name_warnings()
    chosen = parse(smoothing)
    with opening.open_model_place(path, progress.stage("importing")) as place:
        words = store_tokenizer(place.path, place.identity["tokenizer"], tokenizer)
        yield model_at(place, chosen, order, kind=kind, following=following, exact=exact, labels=labels, stale=stale,
                       threads=threads, scratch=temp and Path(temp), progress=progress.stage("compiling")), words


@contextlib.contextmanager
def readable(arguments: tuple[str, ...], temp: str | None, **choices: str | int) -> Iterator[list[Input]]:
    """Give the inputs that the arguments name; stdin and pipes are kept in a scratch folder meanwhile."""
    if not any(read_once(argument) for argument in arguments):
        yield resolve(arguments, **choices)
        return
    import tempfile  # slow to import

    with tempfile.TemporaryDirectory(prefix="kvps-", dir=temp) as folder:
        yield resolve(arguments, spool_dir=folder, **choices)


def total_bytes(inputs: list[Input]) -> int | None:
    """Return how many bytes the inputs have, as they lie on disk; None where NLTK makes the text."""
    return None if any(source.kind == "nltk" for source in inputs) else sum(source.size for source in inputs)

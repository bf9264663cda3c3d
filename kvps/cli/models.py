"""MODEL arguments: from what the user names to a model that scores."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kvps.cli.output import name_warnings
from kvps.cli.progress import Progress
from kvps.errors import ArgumentError
from kvps.lm import opening
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import parse
from kvps.ps.places import address
from kvps.text.corpus import Input, read_once, resolve
from kvps.text.tokenize import Tokenizer, store_tokenizer

if TYPE_CHECKING:
    from kvps.jobs.scoring import RemoteModel

S = TypeVar("S", bound=Scorer)


@contextlib.contextmanager
def compiled(path: str, progress: Progress, kind: type[S] = Scorer, *, following: bool = False, tokenizer: str | None,
             order: int | None, smoothing: str, labels: list[str] | None, threads: int | None, exact: bool, stale: str,
             temp: str | None) -> Iterator[tuple[S | RemoteModel, Tokenizer]]:
    """Give a model as a `kind`, made if need be, or one that a server answers for, and the tokenizer.

    following: a FollowingModel is wanted, for next words; it is none that a server answers for.
    tokenizer: only to name the model's MODULE:FUNC again.
    """
    name_warnings()
    if following and address(path) is not None:
        raise ArgumentError(f"{path}: next words are looked up in the files of a store; name its folder, where it lies")
    chosen = parse(smoothing)
    with opening.open_model_place(path) as store:
        words = store_tokenizer(store.path, store.identity["tokenizer"], tokenizer)
        if address(path) is not None:
            from kvps.jobs.scoring import RemoteModel  # with NumPy, whose import takes longer than scoring some sentences

            yield RemoteModel(store, smoothing, order, exact=exact, labels=labels, stale=stale), words
            return
        how = {"exact": exact, "labels": labels, "stale": stale, "threads": threads, "scratch": temp and Path(temp),
               "progress": progress.stage("compiling")}
        if following:
            from kvps.lm.followers import load_following

            model = load_following(store, chosen, order, **how)
        else:
            model = opening.load(store, kind, chosen, order, **how)
    yield model, words


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

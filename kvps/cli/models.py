"""MODEL arguments: from what the user names to a model that scores. Today a MODEL is a store."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from kvps.cli.output import name_warnings
from kvps.cli.progress import Progress
from kvps.lm import cache, container
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import parse
from kvps.lm.statistics import Statistics
from kvps.store.directory import StoreDirectory, open_store
from kvps.text.corpus import Input, read_once, resolve
from kvps.text.tokenize import Tokenizer, store_tokenizer

S = TypeVar("S", bound=Scorer)


def compiled(path: str, progress: Progress, kind: type[S] = Scorer, *, tokenizer: str | None, order: int | None, smoothing: str,
             labels: list[str] | None, threads: int | None, exact: bool, stale: str, temp: str | None) -> tuple[S, Tokenizer]:
    """Return the compiled model of a store as a `kind`, made if need be, and the store's tokenizer.

    tokenizer: only to name the store's MODULE:FUNC again.
    """
    name_warnings()
    chosen = parse(smoothing)
    with open_store(path) as store:
        words = store_tokenizer(store.path, store.identity["tokenizer"], tokenizer)
        model = cache.load(store, lambda made: kind(made, chosen, order), kind=chosen.kind, top=order, exact=exact, labels=labels,
                           stale=stale, threads=threads, scratch=temp and Path(temp),
                           progress=progress.stage("compiling"))
        return model, words


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


def label_sizes(store: StoreDirectory) -> dict[str, dict]:
    """Return each label's tokens, sentences, first and last version, and the bytes of its runs."""
    labels = store.root.labels()
    with store.snapshot() as snapshot:
        runs = [run for shard in range(len(snapshot.shards)) for run in snapshot.runs(shard)]
    return {name: {**row, "bytes": sum(run.bytes for run in runs if run.label == name)} for name, row in labels.items()}


def statistics(path: str, *, threads: int | None, stale: str) -> dict:
    """Return what `kvps stats --json` prints."""
    from kvps.ps.tables import listed

    with open_store(path) as store, Progress(["compiling"], unit=" n-grams") as progress:
        meta, _ = cache.load(store, container.read, threads=threads, stale=stale,
                                progress=progress.stage("compiling"))
        known = Statistics.from_json(meta["statistics"])
        n_bytes, identity, labels, tables = store.bytes(), store.identity, label_sizes(store), listed(store.path)
    table, fallen = known.discounts()
    return {
        "order": known.order, "version": known.version, "tokens": known.tokens, "sentences": known.sentences,
        "vocabulary": known.vocabulary, "shards": identity["shards"],
        "bytes": n_bytes["file"], "live_bytes": n_bytes["live"], "labels": labels, "tables": tables,
        **identity["tokenizer"],
        "ngrams": {str(k): n for k, n in known.ngrams.items()},
        "t": {str(k): t for k, t in known.t.items()},
        "discounts": {str(k): table[k][1:] for k in known.ngrams},
        "fallback": {str(k): reason for k, reason in fallen.items()}}

"""Make damaged shards again, in new folders: from a checkpoint, then from the text counted since (store/rebuild.py)."""
from __future__ import annotations

import contextlib
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from kvps.errors import CorruptionError, KvpsError, StoreError
from kvps.jobs.counting import count_splits, split_bytes
from kvps.jobs.dealing import deal
from kvps.jobs.lost_text import Finder, Text
from kvps.jobs.recover_plan import Base, Options
from kvps.ps.merging import tidy
from kvps.ps.router import Router
from kvps.store import layout, rebuild
from kvps.store.directory import StoreDirectory
from kvps.store.root import Root
from kvps.store.shard import Shard
from kvps.text.tokenize import Tokenizer, store_tokenizer
from kvps.text.vocabulary import Vocabulary


class _UnknownWords(StoreError):
    """A text has words that the root does not know: they were purged."""


def remake(store: StoreDirectory, numbers: Sequence[int], bases: Sequence[Base], finder: Finder, options: Options) -> None:
    """Put new shards in the place of some; try one base after another, each from the beginning.

    Raises:
        InputGone, CorruptionError, StoreError: no base helps; it says what was wrong with the last one that was tried, or
            what text the first one lacks.
    """
    words = None
    reason: KvpsError | None = None
    for base in bases:
        if missing := finder.missing(base.texts):
            reason = reason or finder.error(missing)
            continue
        if base.texts and words is None:
            words = store_tokenizer(store.path, store.identity["tokenizer"], options.tokenizer)
        try:
            with base.depot.locked("recover", 60.0, shared=True) if base.depot else contextlib.nullcontext():
                _make(store, numbers, base, words, finder, options)
            return
        except (CorruptionError, _UnknownWords) as exc:
            reason = exc
    raise reason


def _make(store: StoreDirectory, numbers: Sequence[int], base: Base, words: Tokenizer | None, finder: Finder,
          options: Options) -> None:
    version, order = store.root.state()["version"], store.identity["order"]
    vocabulary = Vocabulary(store.root.words(), closed="closed" in store.identity)
    made: dict[int, Shard] = {}
    try:
        for number in numbers:
            made[number] = store.new_shard(number) if store.elsewhere else rebuild.begin(store.path, store.root, number)
        if base.checkpoint is not None:
            _fill(store, base, made, len(vocabulary))
        _count(store, base.texts, words, vocabulary, made, version, finder, options)
        for number in numbers:
            if store.elsewhere:
                store.put_in_place(made[number], len(vocabulary), version)
                continue
            tidy(made[number], order=order, n_words=len(vocabulary), version=version, job=None)
            made[number].sweep(version, None)
            rebuild.finish(store.path, store.root, made.pop(number))
    finally:
        for shard in made.values():
            shard.close()


def _fill(store: StoreDirectory, base: Base, made: dict[int, Shard], n_words: int) -> None:
    """Take over what a checkpoint has for some shards; if it is of before a reshard, from all of its shards."""
    checkpoint, routing = base.checkpoint, store.root.routing()
    if (len(checkpoint.shards), checkpoint.routing) == (store.identity["shards"], routing):
        for shard in made.values():
            rebuild.fill(shard, base.depot, checkpoint, base.gone_labels)
        return
    router = Router(store.identity["shards"], routing)
    with tempfile.TemporaryDirectory() if store.elsewhere else contextlib.nullcontext(store.path / layout.SHARDS) as scratch:
        for number in range(len(checkpoint.shards)):
            with rebuild.old_shard(Path(scratch), store.root, base.depot, checkpoint, number, base.gone_labels) as old, \
                    old.snapshot() as snapshot:
                deal(snapshot, snapshot.all_runs(), store.identity["order"], n_words, router, made, lambda n: None)


def _count(store: StoreDirectory, texts: list[Text], words: Tokenizer | None, vocabulary: Vocabulary, made: dict[int, Shard],
           version: int, finder: Finder, options: Options) -> None:
    """Count text into the new shards alone."""
    how = options.job
    target = types.SimpleNamespace(
        identity=store.identity, root=_KnownWords(store.path, store.root), claim=lambda job, split: True, hasten=store.hasten,
        elsewhere=False,
        shards=[made.get(number) or _Nowhere(number) for number in range(store.identity["shards"])])
    total, done = sum(abs(text.times) * finder.find(text).size for text in texts), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        how.progress("counting", done, total)

    for number, text in enumerate(texts):
        inputs = [finder.find(text)] * abs(text.times)
        job = {"id": f"recover-{number}", "version": version, "command": "forget" if text.times < 0 else "update",
               "label": text.label, "reserved": text.reserved, "encoding_errors": text.encoding_errors,
               "split_bytes": split_bytes(how.memory, how.threads, words.spec, inputs[0].size)}
        count_splits(target, vocabulary, words, job, inputs, threads=how.threads, progress=advance)


class _Nowhere:
    """Stands for a shard that is sound: it takes nothing."""

    def __init__(self, number: int) -> None:
        self.shard = number

    def splits(self, job: str) -> dict[int, dict]:
        return {}

    def begin_apply(self, *_: object, **__: object) -> Callable[[], bool]:
        return lambda: True

    def run(self, *_: object, **__: object) -> None:
        return None


class _KnownWords:
    """Stands for a root that takes no word: text that was counted has none that it does not know."""

    def __init__(self, path: Path, root: Root) -> None:
        self._path, self._root = path, root

    def routing(self) -> dict | None:
        return self._root.routing()

    def next_word(self) -> int:
        return self._root.next_word()

    def add_words(self, first_id: int, blob: bytes) -> None:
        raise _UnknownWords(f"{self._path}: text that was taken away since the checkpoint has words that were purged since, so "
                            "its counts cannot be told; give the text that is counted now with --input", path=str(self._path))

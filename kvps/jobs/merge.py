"""Add the counts of stores to a new one, exactly: as if their texts had been counted together.

A store's words get their ids in the vocabulary of the new one; the rest is as for all counts that come from elsewhere
(assemble.py). A store whose vocabulary is limited is made in the same way: there, words may share an id (limit.py).
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kvps._runs import unpack
from kvps.errors import ArgumentError, DataError
from kvps.jobs.assemble import MAX_COUNT, Assembly, Progress, Some, history_row
from kvps.jobs.dealing import gathered_keys
from kvps.jobs.train import DEFAULT_SHARDS, check_shape
from kvps.ps.places import address
from kvps.ps.runs import bits_for, merged
from kvps.store import creation
from kvps.store import format as fmt
from kvps.store.directory import StoreDirectory, StoreSnapshot, open_store
from kvps.store.runs import by_label
from kvps.text.tokenize import shown
from kvps.text.vocabulary import Vocabulary
from kvps.units import thread_count


def merge(out: str | Path, stores: Sequence[str | Path], *, weights: Sequence[int] | None = None, shards: int = DEFAULT_SHARDS,
          threads: int | None = None, progress: Progress = lambda stage, done, total: None) -> dict:
    """Make a store `out` whose counts are the sums of those of others, each times its weight.

    Args:
        stores: folders; of one order, tokenizer and kind of vocabulary. The same one may come twice.
        weights: whole numbers from 1 on, one for each; 1 by default.
        shards: of the new store.
        progress: called with the stage, "dealing" or "merging", and (n-grams done, in all).

    Returns:
        {"path", "version", "order", "tokens", "sentences", "ngrams": distinct ones of the highest order}.
    """
    refuse_addresses(out, *stores)
    out, chosen = Path(os.path.abspath(out)), [1] * len(stores) if weights is None else list(weights)
    if not stores or len(chosen) != len(stores) or not all(isinstance(weight, int) and weight >= 1 for weight in chosen):
        raise ArgumentError(f"expected a weight for each of {len(stores)} stores, a whole number of 1 or more, found {chosen}")
    creation.refuse_place(out, force=False)
    with contextlib.ExitStack() as stack:
        sources = [Source(stack, stack.enter_context(open_store(store)), weight)
                   for store, weight in zip(stores, chosen, strict=True)]
        first = sources[0].store
        for source in sources[1:]:
            for what, of in (("order", lambda store: store.identity["order"]),
                             ("tokenizer", lambda store: shown(store.identity["tokenizer"])),
                             ("vocabulary", lambda store: "closed" if "closed" in store.identity else "open")):
                if of(source.store) != of(first):
                    raise ArgumentError(f"{source.store.path}: its {what} is {of(source.store)}, that of {first.path} is "
                                        f"{of(first)}; only counts of one kind add up")
            if "closed" in first.identity and source.all_words() != sources[0].all_words():
                raise ArgumentError(f"{source.store.path}: its closed vocabulary is not that of {first.path}, so words of one are "
                                    "<unk> in the other; give both one vocabulary by kvps limit first")
        check_shape(first.identity["order"], shards)
        vocabulary = Vocabulary()
        for source in sources:
            source.ids = np.array([vocabulary.table.add(source.words.word(i)) for i in range(len(source.words))], np.uint32)
        identity = {name: first.identity[name] for name in ("tokenizer", "closed") if name in first.identity}
        return assembled(out, sources, vocabulary, identity, "merge", [
            f"{source.store.path} (version {source.snapshot.version}, merged {source.weight} times)" for source in sources],
            shards, threads, progress)


def refuse_addresses(*places: str | Path) -> None:
    """Raise ArgumentError where one of some places is that of a server."""
    for place in places:
        if address(place) is not None:
            raise ArgumentError(f"{place}: this works on the files of stores; name folders")


class Source:
    """A store whose counts go into another, at its last version."""

    def __init__(self, stack: contextlib.ExitStack, store: StoreDirectory, weight: int = 1) -> None:
        self.store, self.weight = store, weight
        self.snapshot: StoreSnapshot = stack.enter_context(store.snapshot())
        self.inputs, self.labels = store.root.inputs(), store.root.labels()
        self.words = Vocabulary(store.root.words()).table
        self.ids = np.empty(0, np.uint32)      # in the new store, of each word; the same one for several is fine

    def all_words(self) -> set[bytes]:
        """Return the words, whatever their counts."""
        return {self.words.word(i) for i in range(len(self.words))}

    def parts(self) -> list[Callable[[], Iterator[Some]]]:
        """Return what gives the n-grams of each shard."""
        return [lambda number=number: self._ngrams(number) for number in range(len(self.snapshot.shards))]

    def _ngrams(self, number: int) -> Iterator[Some]:
        order, bits = self.store.identity["order"], bits_for(len(self.words))
        for label, runs in by_label(self.snapshot.runs(number)).items():
            with contextlib.closing(merged(self.snapshot.shards[number], runs, order, bits)) as blocks:
                for keys, counts in gathered_keys(blocks):
                    if self.weight > 1 and int(counts.max()) > MAX_COUNT // self.weight:
                        raise DataError(f"{self.store.path}: a count of {int(counts.max())} times {self.weight} is more than a "
                                        f"store can hold, {MAX_COUNT}")
                    yield label, self.ids[unpack(keys.reshape(-1), order, bits)], counts * self.weight


def assembled(out: Path, sources: list[Source], vocabulary: Vocabulary, identity: dict, command: str, names: list[str],
              shards: int, threads: int | None, progress: Progress) -> dict:
    """Make a store of some sources, whose ids are set; return what merge() does.

    names: of the sources, for the history.
    """
    totals = {name: sum(source.weight * source.snapshot.state[name] for source in sources) for name in ("tokens", "sentences")}
    made = Assembly(sources[0].store.identity["order"], shards, vocabulary, threads=thread_count(threads), progress=progress,
                    total=sum(source.snapshot.n_keys() for source in sources))

    def rows() -> Iterator[tuple[bytes, bytes]]:
        yield history_row(command, [{"name": name, "digest": source.store.identity["uuid"]}
                                    for name, source in zip(names, sources, strict=True)], totals)
        yield from _known(sources)

    made.make(out, [part for source in sources for part in source.parts()], rows, lambda: totals, command=command,
              identity=identity)
    return {"path": str(out), "version": 1, "order": made.order, **totals, "ngrams": made.n_keys}


def _known(sources: list[Source]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of the inputs and labels of all sources."""
    inputs: dict[str, dict[str, int]] = {}
    labels: dict[str, dict[str, int]] = {}
    for source in sources:
        for digest, row in source.inputs.items():
            times = inputs.setdefault(digest, {})
            for label, n in row["times"].items():
                times[label] = times.get(label, 0) + n * source.weight
        for name, row in source.labels.items():
            label = labels.setdefault(name, {"tokens": 0, "sentences": 0, "first": 1, "last": 1})
            for what in ("tokens", "sentences"):
                label[what] += row[what] * source.weight
    for digest, times in inputs.items():
        key = fmt.named_key(fmt.INPUT, digest)
        yield key, fmt.pack_row(key, {"times": times, "version": 1})
    for name, row in labels.items():
        key = fmt.named_key(fmt.LABEL, name)
        yield key, fmt.pack_row(key, row)

"""Add the counts of stores to a new one, exactly: as if their texts had been counted together.

    STEP 1  one vocabulary: the ids of each store in the new one
    STEP 2  deal: read each shard of each store, a part at a time, give the words their new ids, sort, and add the part to staging
            shards, one beside each new one
    STEP 3  merge: the runs of a staging shard into one a label, in the new shard; the staging shard goes
    STEP 4  the root: vocabulary, totals, inputs and labels

All of this under a temporary name, which the last step changes: killed before it, there is no new store, and what was begun
goes when the same store is made again.
"""
from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import pack_text_keys, sort_text_keys, text_key_width
from kvps._runs import encode, encoded_room, pack, unpack
from kvps.errors import ArgumentError, DataError
from kvps.jobs.dealing import gathered_keys
from kvps.jobs.train import DEFAULT_SHARDS, check_shape
from kvps.lm.pools import gathered
from kvps.ps.router import Router
from kvps.ps.runs import CHUNK_BYTES, Block, bits_for, encoded, merged
from kvps.store import creation, files, layout, rebuild
from kvps.store import format as fmt
from kvps.store.directory import StoreDirectory, StoreSnapshot, open_store
from kvps.store.root import Root
from kvps.store.runs import by_label
from kvps.store.shard import Shard
from kvps.text.tokenize import shown
from kvps.text.vocabulary import Vocabulary
from kvps.units import cpu_count

MAX_COUNT = 1 << 62            # of one n-gram, as everywhere

Progress = Callable[[str, int, int], None]     # (stage, done, total) [n-grams]


def merge(out: str | Path, stores: Sequence[str | Path], *, weights: Sequence[int] | None = None, shards: int = DEFAULT_SHARDS,
          threads: int | None = None, progress: Progress = lambda stage, done, total: None) -> dict:
    """Make a store `out` whose counts are the sums of those of others, each times its weight.

    Args:
        stores: folders; of one order and tokenizer. The same one may come twice.
        weights: whole numbers from 1 on, one for each; 1 by default.
        shards: of the new store.
        progress: called with the stage, "dealing" or "merging", and (n-grams done, in all).

    Returns:
        {"path", "version", "order", "tokens", "sentences", "ngrams": distinct ones of the highest order}.
    """
    out, chosen = Path(os.path.abspath(out)), list(weights or [1] * len(stores))
    if not stores or len(chosen) != len(stores) or any(weight < 1 for weight in chosen):
        raise ArgumentError(f"expected one weight of 1 or more for each of {len(stores)} stores, found {chosen}")
    creation.refuse_place(out, force=False)
    with contextlib.ExitStack() as stack:
        sources = [_Source(stack, stack.enter_context(open_store(store)), weight)
                   for store, weight in zip(stores, chosen, strict=True)]
        first = sources[0].store
        for source in sources[1:]:
            for what, of in (("order", lambda store: store.identity["order"]),
                             ("tokenizer", lambda store: shown(store.identity["tokenizer"]))):
                if of(source.store) != of(first):
                    raise ArgumentError(f"{source.store.path}: its {what} is {of(source.store)}, that of {first.path} is "
                                        f"{of(first)}; only counts of one kind add up")
        check_shape(first.identity["order"], shards)
        made = _Merge(sources, shards, threads or cpu_count(), progress)
        creation.make_store(out, {"order": made.order, "shards": shards, "created": time.time(),
                                  "tokenizer": first.identity["tokenizer"]},
                            command="merge", fill_shard=made.fill_shard, fill_root=made.fill_root)
    return {"path": str(out), "version": 1, "order": made.order, "tokens": made.totals["tokens"],
            "sentences": made.totals["sentences"], "ngrams": made.n_keys}


class _Source:
    """A store that is added, at its last version."""

    def __init__(self, stack: contextlib.ExitStack, store: StoreDirectory, weight: int) -> None:
        self.store, self.weight = store, weight
        self.snapshot: StoreSnapshot = stack.enter_context(store.snapshot())
        self.inputs, self.labels = store.root.inputs(), store.root.labels()
        self.words = Vocabulary(store.root.words()).table
        self.ids = np.empty(0, np.uint32)


class _Merge:
    """One merge: what fills the new shards and the root."""

    def __init__(self, sources: list[_Source], n_shards: int, threads: int, progress: Progress) -> None:
        """Run step 1."""
        self.sources, self.n_shards, self.threads, self._tell = sources, n_shards, threads, progress
        self.order = sources[0].store.identity["order"]
        self.vocabulary = Vocabulary()
        table = self.vocabulary.table
        for source in sources:
            source.ids = np.array([table.add(source.words.word(i)) for i in range(len(source.words))], np.uint32)
        self.n_words = len(self.vocabulary)
        self.bits = bits_for(self.n_words)
        self.totals = {name: sum(source.weight * source.snapshot.state[name] for source in sources)
                       for name in ("tokens", "sentences")}
        self.n_keys = 0
        self._total, self._done, self._turn = sum(source.snapshot.n_keys() for source in sources), 0, threading.Lock()
        self._staging: list[Path] = []

    def advance(self, stage: str, n: int) -> None:
        """Say that so many more n-grams of a stage are done."""
        with self._turn:
            self._done += n
            self._tell(stage, self._done, self._total)

    def fill_shard(self, shard: Shard) -> None:
        """Run step 3 for one shard, and step 2 before the first."""
        if not self._staging:
            self._staging = [shard.path.parent / (layout.first_shard(number).rpartition("/")[2] + rebuild.UNFINISHED)
                             for number in range(self.n_shards)]
            self.deal(shard.identity["uuid"])
        with contextlib.closing(Shard.open(self._staging[shard.shard], shard.identity["uuid"])) as staged, \
                staged.snapshot() as snapshot:
            for label, runs in by_label(snapshot.all_runs()).items():
                with contextlib.closing(merged(snapshot, runs, self.order, self.bits)) as blocks:
                    shard.add_run(encoded(self.counted(blocks), self.order, self.bits), 1, label)
        self.n_keys += sum(run.n_keys for run in shard.runs())
        files.remove_tree(self._staging[shard.shard])

    def counted(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass blocks on and tell of them."""
        for block in blocks:
            yield block
            self.advance("merging", len(block.counts))

    # STEP 2

    def deal(self, uuid: str) -> None:
        """Fill the staging shards."""
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(self.threads) as pool:
            targets = []
            for number, folder in enumerate(self._staging):
                identity = {"uuid": uuid, "shard": number, "shards": self.n_shards, "order": self.order}
                targets.append(stack.enter_context(contextlib.closing(
                    Shard.create(folder, identity, map_bytes=layout.map_bytes(self.n_shards)))))
            gathered(pool, lambda place: self.deal_shard(*place, targets),
                     [(source, number) for source in self.sources for number in range(len(source.snapshot.shards))])
        self._done = 0

    def deal_shard(self, source: _Source, number: int, targets: list[Shard]) -> None:
        """Add what one shard of a store has to the staging shards."""
        bits, router = bits_for(len(source.words)), Router(self.n_shards)
        for label, runs in by_label(source.snapshot.runs(number)).items():
            with contextlib.closing(merged(source.snapshot.shards[number], runs, self.order, bits)) as blocks:
                for keys, counts in gathered_keys(blocks):
                    if source.weight > 1 and int(counts.max()) > MAX_COUNT // source.weight:
                        raise DataError(f"{source.store.path}: a count of {int(counts.max())} times {source.weight} is more than a "
                                        f"store can hold, {MAX_COUNT}")
                    rows = source.ids[unpack(keys.reshape(-1), self.order, bits)]
                    places = _sorted_places(rows, self.bits)
                    keys = pack(rows[places], self.bits)
                    counts = counts[places] * source.weight
                    width = len(keys) // len(counts)
                    shards = router.shards(keys, self.order, self.bits, self.n_words)
                    places = np.argsort(shards.astype(np.uint16), kind="stable")
                    ends = np.cumsum(np.bincount(shards, minlength=self.n_shards)).tolist()
                    for target, start, end in zip(targets, [0, *ends], ends, strict=False):
                        if start < end:
                            ours = places[start:end]
                            target.add_run(encode(keys.reshape(-1, width)[ours].reshape(-1), counts[ours], self.order, self.bits,
                                                  CHUNK_BYTES, np.empty(encoded_room(end - start), np.uint8)), 1, label)
                    self.advance("dealing", len(counts))

    # STEP 4

    def fill_root(self, root: Root, generations: list[int]) -> None:
        """Write the root."""
        root.fill(self._rows(), {"version": 1, **self.totals, "words": self.n_words}, generations)

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of the vocabulary, and of history, inputs and labels."""
        segments: list[tuple[int, bytes]] = []
        self.vocabulary.store_new(lambda first, segment: segments.append((first, segment)))
        for first, segment in segments:
            key = fmt.numbered_key(fmt.WORDS, first)
            yield key, fmt.pack_blob(key, segment)
        now = time.time()
        # No text by which the counts could be made again: recovery looks for these in vain, and says so.
        merged_from = [{"name": f"{source.store.path} (version {source.snapshot.version}, merged {source.weight} times)",
                        "digest": source.store.identity["uuid"]} for source in self.sources]
        key = fmt.numbered_key(fmt.HISTORY, 1)
        yield key, fmt.pack_row(key, {"command": "merge", "label": None, "gone_labels": [], "reserved": "error",
                                      "encoding_errors": "strict", "started": now, "time": now, "job": os.urandom(16).hex(),
                                      "inputs": merged_from, **self.totals})
        inputs: dict[str, dict[str, int]] = {}
        labels: dict[str, dict[str, int]] = {}
        for source in self.sources:
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


def _sorted_places(rows: np.ndarray, bits: int) -> np.ndarray:
    """Return the permutation that sorts rows of word ids."""
    k = rows.shape[1]
    try:
        width = text_key_width(k, bits)
    except ValueError:                         # wider than the keys that our own sort takes
        return np.lexsort(rows.T[::-1])
    keys = pack_text_keys(rows, np.arange(len(rows), dtype=np.uint32), bits)
    sort_text_keys(keys, k, bits)
    return (keys.reshape(-1, width)[:, 2 if width == 4 else 0] & np.uint64(0xFFFFFFFF)).astype(np.int64)

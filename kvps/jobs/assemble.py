"""Make a new store of counts that come from elsewhere: from other stores (merge, limit) or from files (train --from-counts).

    STEP 1  one vocabulary (the caller's)
    STEP 2  deal: read the n-grams of each part, some at a time, sort them, add those up that are equal, and add them to
            staging shards, one beside each new one
    STEP 3  merge: the runs of a staging shard into one a label, in the new shard; the staging shard goes
    STEP 4  the root: vocabulary, totals, history, inputs and labels (the caller's)

All of this under a temporary name, which the last step changes: killed before it, there is no new store, and what was begun
goes when the same store is made again.
"""
from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import pack_text_keys, sort_text_keys, text_key_width
from kvps._runs import encode, encoded_room, pack
from kvps.jobs.train import check_shape
from kvps.pools import gathered
from kvps.ps.router import Router
from kvps.ps.runs import CHUNK_BYTES, Block, bits_for, encoded, merged
from kvps.store import creation, files, layout, rebuild
from kvps.store import format as fmt
from kvps.store.root import Root
from kvps.store.runs import by_label
from kvps.store.shard import Shard
from kvps.text.vocabulary import Vocabulary

MAX_COUNT = 1 << 62            # of one n-gram, as everywhere

Progress = Callable[[str, int, int], None]     # (stage, done, total) [n-grams]
# Of some n-grams: label, ids of their words in context order uint32 (n, order), counts int64 (n,).
Some = tuple[str | None, np.ndarray, np.ndarray]


class Assembly:
    """The counts of one new store, from parts that are read side by side."""

    def __init__(self, order: int, shards: int, vocabulary: Vocabulary, *, total: int, threads: int,
                 progress: Progress = lambda stage, done, total: None) -> None:
        """Prepare.

        Args:
            vocabulary: of the new store, complete.
            total: about how many n-grams the parts have, for `progress`.
        """
        check_shape(order, shards)
        self.order, self.n_shards, self.vocabulary, self.threads = order, shards, vocabulary, threads
        self.n_words = len(vocabulary)
        self.bits = bits_for(self.n_words)
        self.n_keys = 0
        self._progress, self._total, self._done, self._turn = progress, total, 0, threading.Lock()
        self._staging: list[Path] = []

    def make(self, out: Path, parts: Sequence[Callable[[], Iterable[Some]]], rows: Callable[[], Iterable[tuple[bytes, bytes]]],
             totals: Callable[[], dict[str, int]], *, command: str, identity: dict,
             verify: Callable[[Path], None] = lambda folder: None) -> None:
        """Run steps 2 to 4.

        Args:
            out: where the store is to be; refuse_place() has nothing against it.
            parts: each gives n-grams when it is called, the same ones perhaps several times; equal ones add up.
            rows, totals: (key, value) of the root but the vocabulary, and its tokens and sentences; called after step 3.
            command: for the messages of others.
            identity: tokenizer, and what else the root is to know.
            verify: called with the folder before it takes its name; what it raises leaves nothing behind.
        """
        def fill_shard(shard: Shard) -> None:
            if not self._staging:
                self._staging = [shard.path.parent / (layout.first_shard(number).rpartition("/")[2] + rebuild.UNFINISHED)
                                 for number in range(self.n_shards)]
                self._deal(shard.identity["uuid"], parts)
            self._merge(shard)

        def fill_root(root: Root, generations: list[int]) -> None:
            root.fill(itertools.chain(self._words(), rows()), {"version": 1, **totals(), "words": self.n_words}, generations)

        creation.make_store(out, {"order": self.order, "shards": self.n_shards, "created": time.time(), **identity},
                            command=command, fill_shard=fill_shard, fill_root=fill_root, verify=verify)

    def _advance(self, stage: str, n: int) -> None:
        with self._turn:
            self._done += n
            self._progress(stage, self._done, max(self._done, self._total))

    # STEP 2

    def _deal(self, uuid: str, parts: Sequence[Callable[[], Iterable[Some]]]) -> None:
        """Fill the staging shards."""
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(self.threads) as pool:
            targets = []
            for number, folder in enumerate(self._staging):
                identity = {"uuid": uuid, "shard": number, "shards": self.n_shards, "order": self.order}
                targets.append(stack.enter_context(contextlib.closing(
                    Shard.create(folder, identity, map_bytes=layout.map_bytes(self.n_shards)))))
            gathered(pool, lambda part: self._deal_part(part, targets), parts)
        self._done = 0

    def _deal_part(self, part: Callable[[], Iterable[Some]], targets: list[Shard]) -> None:
        """Add what a part has to the staging shards."""
        router = Router(self.n_shards)
        for label, rows, counts in part():
            keys, counts = self._combined(rows, counts)
            width = len(keys) // len(counts) if len(counts) else 1
            shards = router.shards(keys, self.order, self.bits, self.n_words)
            places = np.argsort(shards.astype(np.uint16), kind="stable")
            ends = np.cumsum(np.bincount(shards, minlength=self.n_shards)).tolist()
            for target, start, end in zip(targets, [0, *ends], ends, strict=False):
                if start < end:
                    ours = places[start:end]
                    target.add_run(encode(keys.reshape(-1, width)[ours].reshape(-1), counts[ours], self.order, self.bits,
                                          CHUNK_BYTES, np.empty(encoded_room(end - start), np.uint8)), 1, label)
            self._advance("dealing", len(rows))

    def _combined(self, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return packed keys, strictly increasing, and the sums of their counts."""
        places = _sorted_places(rows, self.bits)
        rows, counts = rows[places], counts[places]
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        if not first.all():
            # No sum wraps: all of a store's counts add up to at most 2**62 tokens, of files the reader sees to it.
            rows, counts = rows[first], np.add.reduceat(counts, np.flatnonzero(first))
        return pack(rows, self.bits), counts

    # STEP 3

    def _merge(self, shard: Shard) -> None:
        """Fill one shard."""
        with contextlib.closing(Shard.open(self._staging[shard.shard], shard.identity["uuid"])) as staged, \
                staged.snapshot() as snapshot:
            for label, runs in by_label(snapshot.all_runs()).items():
                with contextlib.closing(merged(snapshot, runs, self.order, self.bits)) as blocks:
                    shard.add_run(encoded(self._counted(blocks), self.order, self.bits), 1, label)
        self.n_keys += sum(run.n_keys for run in shard.runs())
        files.remove_tree(self._staging[shard.shard])

    def _counted(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass blocks on and tell of them."""
        for block in blocks:
            yield block
            self._advance("merging", len(block.counts))

    # STEP 4

    def _words(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of the vocabulary."""
        segments: list[tuple[int, bytes]] = []
        self.vocabulary.store_new(lambda first, segment: segments.append((first, segment)))
        for first, segment in segments:
            key = fmt.numbered_key(fmt.WORDS, first)
            yield key, fmt.pack_blob(key, segment)


def history_row(command: str, inputs: list[dict], totals: dict[str, int]) -> tuple[bytes, bytes]:
    """Return (key, value) of the history of a store's only version; of its inputs {"name", "digest"}.

    There is no text in it by which the counts could be made again: recovery looks for the names in vain, and says so.
    """
    now = time.time()
    key = fmt.numbered_key(fmt.HISTORY, 1)
    return key, fmt.pack_row(key, {"command": command, "label": None, "gone_labels": [], "reserved": "error",
                                   "encoding_errors": "strict", "started": now, "time": now, "job": os.urandom(16).hex(),
                                   "inputs": inputs, **totals})


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

"""Look into the counts: list all n-grams of one order, or look a few up. Exact: straight from the runs."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import count_lines, pack_text_keys
from kvps._statistics import Walk
from kvps.errors import ArgumentError
from kvps.lm.ordered import Partitions, Words, text_order
from kvps.lm.walks import folded, summed_unigrams, walk_all, walk_shard
from kvps.pools import Pool, gathered, windowed
from kvps.ps.runs import bits_for, merged
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.text.vocabulary import Vocabulary
from kvps.units import check_order, thread_count

MAX_SEEKS = 256                # n-grams that are looked up one by one; for more, one scan is as fast


def dump(store: StoreDirectory, k: int, *, in_order: bool = False, labels: list[str] | None = None, threads: int | None = None,
         scratch: Path | None = None) -> Iterator[bytes]:
    """Yield the lines `w1 ... wk TAB raw count` of every k-gram, in blocks.

    The n-grams of a sentence are the windows of `<s> w1 ... wk </s>`.

    Args:
        in_order: in byte order of the lines; otherwise in no order that means anything.
        labels: of only the text of these, as in StoreDirectory.snapshot().
        scratch: folder for temporary files when sorting; the store's own by default.
    """
    order = store.identity["order"]
    check_order(k, order, store.path)
    threads = thread_count(threads)
    with store.snapshot(labels) as snapshot, Pool(threads) as pool, contextlib.ExitStack() as stack:
        vocabulary = Vocabulary(store.root.words())
        words = Words(vocabulary)
        lines = _Lines(words, k, bits_for(len(vocabulary)))
        if k == 1:
            counts = _unigrams(snapshot, order, len(vocabulary), pool)
            ids = np.flatnonzero(counts).astype(np.uint32)
            if in_order:
                ids = ids[np.argsort(words.last_rank[ids])]
            yield lines.text(lines.keys(ids.reshape(-1, 1), counts[ids]))
            return
        if not in_order:
            walks = []
            for shard in range(len(snapshot.shards)):
                for rows, values in _rows(snapshot, shard, order, k, len(vocabulary), walks):
                    yield lines.text(lines.keys(rows, values))
            yield lines.text(lines.keys(*_split_rows(order, k, len(vocabulary), walks)))
            return
        n_keys = snapshot.n_keys()
        mass = _unigrams(snapshot, order, len(vocabulary), pool)[words.by_rank]
        n_shards, walks = len(snapshot.shards), []
        partitions = Partitions(stack, k, lines.bits, n_keys, n_shards + 1, mass, scratch or store.path)

        def collect(shard: int) -> None:
            for rows, values in _rows(snapshot, shard, order, k, len(vocabulary), walks):
                partitions.add(shard, lines.keys(rows, values))
            partitions.finish(shard)

        gathered(pool, collect, range(n_shards))
        partitions.add(n_shards, lines.keys(*_split_rows(order, k, len(vocabulary), walks)))
        partitions.finish(n_shards)
        yield from windowed(pool, lambda partition: lines.text(partitions.read(partition)), range(partitions.n), 2 * threads)


class _Lines:
    """The lines of k-grams, by way of keys whose order is the byte order of the lines.

    A key has 32 bits for a count; one of LARGE and more stands in a list, and the key has its place there.
    """

    LARGE = 1 << 31

    def __init__(self, words: Words, k: int, bits: int) -> None:
        self.words, self.k, self.bits = words, k, bits
        self._strings = words.strings(words.by_rank)
        # The last word stands before a tab and the others before a blank, so it has ranks of its own.
        self._last = words.rank[words.by_last_rank]
        self._large: list[int] = []
        self._lock = threading.Lock()

    def keys(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the keys of rows of word ids in context order and their counts."""
        ranks = np.empty_like(rows)
        for i, column in enumerate(text_order(self.k)):
            ranks[:, i] = (self.words.rank if i < self.k - 1 else self.words.last_rank)[rows[:, column]]
        large = np.flatnonzero(values >= self.LARGE)
        if len(large):
            with self._lock:
                start = len(self._large)
                self._large += values[large].tolist()
            values = values.copy()
            values[large] = self.LARGE + start + np.arange(len(large), dtype=np.uint64)
        return pack_text_keys(ranks, values.astype(np.uint32), self.bits)

    def text(self, keys: np.ndarray) -> bytes:
        """Return the lines of keys."""
        large = np.array(self._large, np.uint64)
        return b"".join(count_lines(keys, large, self.k, self.bits, self._strings, self._last))


def _rows(snapshot: StoreSnapshot, shard: int, order: int, k: int, n_words: int,
          walks: list[Walk]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the k-grams (context order) of a shard and their raw counts, but not what its walk sets aside; keep that."""
    walk = Walk(order, k, bits_for(n_words), n_words, raw=True, rows_of=(k,), split=snapshot.split)
    walks.append(walk)
    snap = snapshot.shards[shard]
    with contextlib.closing(merged(snap, snap.runs(snapshot.version), order, bits_for(n_words))) as blocks:
        for block in blocks:
            walk.feed(block.keys, block.counts)
            yield walk.take_rows(k)
    walk.finish()
    yield walk.take_rows(k)


def _split_rows(order: int, k: int, n_words: int, walks: list[Walk]) -> tuple[np.ndarray, np.ndarray]:
    """Return the k-grams that all walks have set aside, and their raw counts."""
    return folded(walks, Walk(order, k, bits_for(n_words), n_words, raw=True, rows_of=(k,))).take_rows(k)


def _unigrams(snapshot: StoreSnapshot, order: int, n_words: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """Return the raw count of every word, uint64 (n_words,); <s> has one for each </s>."""
    return summed_unigrams(walk_all(snapshot, order, n_words, 1, pool))[1]


def counts(store: StoreDirectory, ngrams: Sequence[str | Sequence[str]]) -> list[dict]:
    """Return {"ngram", "order", "raw", "adjusted"} of each n-gram, a text of words between blanks or a list of words.

    raw: how often it occurs among the windows of the sentences; adjusted: what Kneser-Ney counts in its place, seen from
    the store's highest order. Both are 0 for n-grams that do not occur. Only the parts of the counts are read that answer;
    words alone, or very many n-grams, take a scan of them all.
    """
    order = store.identity["order"]
    texts = [ngram.split(" ") if isinstance(ngram, str) else list(ngram) for ngram in ngrams]
    texts = [[word for word in words if word] for words in texts]
    for ngram, words in zip(ngrams, texts, strict=True):
        if not 1 <= len(words) <= order:
            raise ArgumentError(f"{ngram!r} has {len(words)} words; {store.path} has n-grams of 1 to {order}")
    with store.snapshot() as snapshot, Pool(thread_count()) as pool:
        vocabulary = Vocabulary(store.root.words())
        n_words, bits = len(vocabulary), bits_for(len(vocabulary))
        ids = [[vocabulary.table.get(word.encode()) for word in words] for words in texts]
        asked: dict[int, set[tuple[int, ...]]] = {}
        for row in ids:
            if None not in row:
                asked.setdefault(len(row), set()).add((*row[-2::-1], row[-1]) if len(row) > 1 else tuple(row))

        below = None if 1 in asked else _prefixes(asked)
        if below is not None and len(below) > MAX_SEEKS:
            below = None

        wanted = {k: np.unique(np.array([row[-1] for row in rows], np.uint32)) for k, rows in asked.items() if k > 1}
        raw: dict[tuple[int, ...], int] = {}
        adjusted: dict[tuple[int, ...], int] = {}

        def begun(split: Sequence[int] = ()) -> list[Walk]:
            return [Walk(order, order, bits, n_words, raw=kind, rows_of=tuple(wanted), split=split) for kind in (True, False)]

        def take(walks: list[Walk]) -> None:
            for walk, found in zip(walks, (raw, adjusted), strict=True):
                for k, last in wanted.items():
                    rows, values = walk.take_rows(k)
                    for i in np.flatnonzero(np.isin(rows[:, -1], last)).tolist():
                        if (row := tuple(rows[i].tolist())) in asked[k]:
                            found[row] = int(values[i])

        def look(shard: int) -> list[Walk]:
            walks = begun(snapshot.split)
            walk_shard(snapshot, shard, order, n_words, walks, lambda: take(walks), below=below)
            return walks

        looked = gathered(pool, look, range(len(snapshot.shards)))
        looked.append([folded(walks, walk) for walks, walk in zip(zip(*looked, strict=True), begun(), strict=True)])
        take(looked[-1])
        unigrams, raw_words = summed_unigrams([adjusted_walk for _, adjusted_walk in looked])
        results = []
        for words, row in zip(texts, ids, strict=True):
            if None in row:
                pair = 0, 0
            elif len(row) == 1:
                pair = int(raw_words[row[0]]), int(unigrams[row[0]])
            else:
                key = (*row[-2::-1], row[-1])
                pair = raw.get(key, 0), adjusted.get(key, 0)
            results.append({"ngram": " ".join(words), "order": len(row), "raw": pair[0], "adjusted": pair[1]})
        return results


def _prefixes(asked: dict[int, set[tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Return the contexts of n-grams, in context order and sorted, without those that begin with another."""
    kept: list[tuple[int, ...]] = []
    for prefix in sorted({row[:-1] for rows in asked.values() for row in rows}):
        if not kept or prefix[:len(kept[-1])] != kept[-1]:
            kept.append(prefix)
    return kept

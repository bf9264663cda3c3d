"""Look into the counts: list all n-grams of one order, or look a few up. Exact: straight from the runs."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import count_lines
from kvps._statistics import Walk
from kvps.errors import ArgumentError
from kvps.lm.ordered import Partitions, Words, gathered, text_order, windowed
from kvps.lm.runs import bits_for, merged
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.text.vocabulary import BOS, EOS, UNK, Vocabulary
from kvps.units import cpu_count


def dump(store: StoreDirectory, k: int, *, in_order: bool = False, threads: int | None = None,
         scratch: Path | None = None) -> Iterator[bytes]:
    """Yield the lines `w1 ... wk TAB raw count` of every k-gram, in blocks.

    The n-grams of a sentence are the windows of `<s> w1 ... wk </s>`.

    Args:
        in_order: in byte order of the lines; otherwise in no order that means anything.
        scratch: folder for temporary files when sorting; the store's own by default.
    """
    order = store.identity["order"]
    if not 1 <= k <= order:
        raise ArgumentError(f"order {k} is not possible: {store.path} has orders 1 to {order}")
    threads = threads or cpu_count()
    with store.snapshot() as snapshot, ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as stack:
        vocabulary = Vocabulary(store.root.words())
        words = Words(vocabulary)
        if k == 1:
            counts = _unigrams(snapshot, order, len(vocabulary), pool)
            rows = np.flatnonzero(counts).astype(np.uint32).reshape(-1, 1)
            yield from _lines(words, rows, counts[rows[:, 0]], in_order)
            return
        if not in_order:
            for shard in range(len(snapshot.shards)):
                for rows, values in _rows(snapshot, shard, order, k, len(vocabulary)):
                    yield from _lines(words, np.ascontiguousarray(rows[:, text_order(k)]), values, False)
            return
        n_keys = sum(run.n_keys for shard in snapshot.shards for run in shard.runs(snapshot.version))
        partitions = Partitions(stack, words, k, n_keys, len(snapshot.shards), _unigrams(snapshot, order, len(vocabulary), pool),
                                scratch or store.path, values=True)

        def collect(shard: int) -> None:
            for rows, values in _rows(snapshot, shard, order, k, len(vocabulary)):
                partitions.add(shard, rows, values)
            partitions.finish(shard)

        gathered(pool, collect, range(len(snapshot.shards)))
        for block in windowed(pool, lambda p: list(_lines(words, *partitions.read(p), True)), range(partitions.n), 2 * threads):
            yield from block


def _lines(words: Words, rows: np.ndarray, values: np.ndarray, in_order: bool) -> Iterator[bytes]:
    if len(rows):
        order = words.line_order(rows) if in_order else np.arange(len(rows), dtype=np.uint32)
        yield count_lines(rows, order, values, words.ends, words.blob).tobytes()


def _rows(snapshot: StoreSnapshot, shard: int, order: int, k: int, n_words: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the k-grams (context order) of a shard and their raw counts."""
    walk = Walk(order, k, bits_for(n_words), n_words, raw=True, rows_of=(k,))
    snap = snapshot.shards[shard]
    with contextlib.closing(merged(snap, snap.runs(snapshot.version), order, bits_for(n_words))) as blocks:
        for block in blocks:
            walk.feed(block.keys, block.counts)
            yield walk.take_rows(k)
    walk.finish()
    yield walk.take_rows(k)


def _unigrams(snapshot: StoreSnapshot, order: int, n_words: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """Return the raw count of every word, uint64 (n_words,); <s> has one for each </s>."""
    def count(shard: int) -> np.ndarray:
        walk = Walk(order, 1, bits_for(n_words), n_words)
        snap = snapshot.shards[shard]
        with contextlib.closing(merged(snap, snap.runs(snapshot.version), order, bits_for(n_words))) as blocks:
            for block in blocks:
                walk.feed(block.keys, block.counts)
        return walk.unigram_values()[1]

    counts = sum(gathered(pool, count, range(len(snapshot.shards))))
    counts[BOS] = counts[EOS]
    return counts


def counts(store: StoreDirectory, ngrams: Sequence[str | Sequence[str]]) -> list[dict]:
    """Return {"ngram", "order", "raw", "adjusted"} of each n-gram, a text of words between blanks or a list of words.

    raw: how often it occurs among the windows of the sentences; adjusted: what Kneser-Ney counts in its place, seen from
    the store's highest order. Both are 0 for n-grams that do not occur. One scan of the counts answers all.
    """
    order = store.identity["order"]
    texts = [ngram.split(" ") if isinstance(ngram, str) else list(ngram) for ngram in ngrams]
    texts = [[word for word in words if word] for words in texts]
    for ngram, words in zip(ngrams, texts, strict=True):
        if not 1 <= len(words) <= order:
            raise ArgumentError(f"{ngram!r} has {len(words)} words; {store.path} has n-grams of 1 to {order}")
    with store.snapshot() as snapshot, ThreadPoolExecutor(cpu_count()) as pool:
        vocabulary = Vocabulary(store.root.words())
        n_words, bits = len(vocabulary), bits_for(len(vocabulary))
        ids = [[vocabulary.table.get(word.encode()) for word in words] for words in texts]
        asked: dict[int, set[tuple[int, ...]]] = {}
        for row in ids:
            if None not in row:
                asked.setdefault(len(row), set()).add((*row[-2::-1], row[-1]) if len(row) > 1 else tuple(row))

        def look(shard: int) -> tuple[dict, dict, np.ndarray, np.ndarray]:
            raw, adjusted = ({}, {})
            snap = snapshot.shards[shard]
            wanted = {k: np.unique(np.array([row[-1] for row in rows], np.uint32)) for k, rows in asked.items() if k > 1}
            walks = [(Walk(order, order, bits, n_words, raw=True, rows_of=tuple(wanted)), raw),
                     (Walk(order, order, bits, n_words, rows_of=tuple(wanted)), adjusted)]

            def take() -> None:
                for walk, found in walks:
                    for k, last in wanted.items():
                        rows, values = walk.take_rows(k)
                        for i in np.flatnonzero(np.isin(rows[:, -1], last)).tolist():
                            if (row := tuple(rows[i].tolist())) in asked[k]:
                                found[row] = int(values[i])

            with contextlib.closing(merged(snap, snap.runs(snapshot.version), order, bits)) as blocks:
                for block in blocks:
                    for walk, _ in walks:
                        walk.feed(block.keys, block.counts)
                    take()
            for walk, _ in walks:
                walk.finish()
            take()
            values, raw_words = walks[1][0].unigram_values()
            return raw, adjusted, values, raw_words

        looked = gathered(pool, look, range(len(snapshot.shards)))
        raw, adjusted = ({row: n for part in looked for row, n in part[which].items()} for which in (0, 1))
        unigrams, raw_words = (sum(part[which] for part in looked) for which in (2, 3))
        raw_words[BOS] = raw_words[EOS]
        unigrams[[UNK, BOS]] = 0
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

"""Write a model as an ARPA file: modified Kneser-Ney, unpruned, streamed, sorted by string.

The format is what lmplz writes and KenLM, SRILM and pyctcdecode read: log10 probability, TAB, words, and below the
highest order TAB and log10 back-off for every n-gram, 0 where it is no context.

    STEP 1  a walk for the statistics: discounts and unigram probabilities need all shards
    STEP 2  a walk that estimates every n-gram and context, dealt by first word into partitions through scratch files
    STEP 3  each order's partitions, one after another: sort, join n-grams with their back-offs, write
"""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import arpa_lines, pack_text_keys
from kvps._statistics import Walk
from kvps.errors import ArgumentError
from kvps.lm.ordered import Partitions, Words
from kvps.lm.pools import gathered, windowed
from kvps.lm.statistics import Statistics
from kvps.lm.walks import split_sums, survey, walk_shard
from kvps.ps.runs import bits_for
from kvps.store import files
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD, UNK, Vocabulary
from kvps.units import cpu_count

BITS = 32                    # of a word's number where it stands alone


def export(store: StoreDirectory, path: str | Path, *, order: int | None = None, labels: Iterable[str] | None = None,
           threads: int | None = None, scratch: Path | None = None,
           write: Callable[[bytes], object] | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the store's last version to an ARPA file, gzipped where its name ends in .gz.

    Args:
        write: takes the file's pieces instead of `path`.
        order, labels, threads, scratch, progress: as arpa_file()'s.

    Returns:
        {"path", "version", "order", "ngrams": {order: n}, "bytes": written}.
    """
    n_bytes = 0

    def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal n_bytes
        for piece in pieces:
            n_bytes += len(piece)
            yield piece

    with contextlib.closing(store.run(arpa_file, order=order, labels=None if labels is None else list(labels),
                                      compress=os.fspath(path).endswith(".gz"),
                                      here={"threads": threads, "scratch": scratch, "progress": progress})) as pieces:
        head = b""
        while b"\n" not in head:
            head += bytes(next(pieces))
        line, _, rest = head.partition(b"\n")
        facts = json.loads(line)
        out = counted(itertools.chain([rest] if rest else [], pieces))
        if write is not None:
            for piece in out:
                write(piece)
        else:
            files.atomic_write(path, out, private=False)
    return {"path": os.fspath(path), "version": facts["version"], "order": facts["order"],
            "ngrams": {int(k): n for k, n in facts["ngrams"].items()}, "bytes": n_bytes}


def arpa_file(store: StoreDirectory, *, order: int | None = None, labels: Iterable[str] | None = None, compress: bool = False,
              threads: int | None = None, scratch: Path | None = None,
              progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[bytes]:
    """Yield a line of JSON, {"version", "order", "ngrams"}, and then the ARPA file of the store's last version in pieces.

    Args:
        order: highest order, at most the store's.
        labels: only the text of these, as in StoreDirectory.snapshot().
        compress: gzip the file, not the line before it.
        scratch: folder for temporary files, the store's own by default: of each n-gram and context the bits of its word ids,
            and 4 bytes.
        progress: called with (n-grams written, n-grams in all).
    """
    stored = store.identity["order"]
    top = stored if order is None else order
    if not 1 <= top <= stored:
        raise ArgumentError(f"order {top} is not possible: {store.path} has orders 1 to {stored}")
    with store.snapshot(labels) as snapshot, ThreadPoolExecutor(threads or cpu_count()) as pool, contextlib.ExitStack() as stack:
        model = _Estimates(store, snapshot, top, pool, stack, scratch or store.path)
        yield json.dumps({"version": snapshot.version, "order": top, "ngrams": model.statistics.ngrams}).encode() + b"\n"
        pieces = model.file(2 * (threads or cpu_count()), progress)
        yield from _gzipped(pieces) if compress else pieces


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    compress = zlib.compressobj(6, wbits=31)       # 31: with a gzip header
    for piece in pieces:
        yield compress.compress(piece)
    yield compress.flush()


class _Estimates:
    """The probabilities and back-offs of one version, in partitions."""

    def __init__(self, store: StoreDirectory, snapshot: StoreSnapshot, top: int, pool: ThreadPoolExecutor,
                 stack: contextlib.ExitStack, scratch: Path) -> None:
        """Run steps 1 and 2."""
        vocabulary = Vocabulary(store.root.words())
        stored, n_words, n_shards = store.identity["order"], len(vocabulary), len(snapshot.shards)
        self.top, self.pool, self.words, self.bits = top, pool, Words(vocabulary), bits_for(n_words)
        self.statistics, self.unigrams, walks = survey(snapshot, stored, n_words, top, pool)
        sums = split_sums(walks)
        del walks
        self.discounts = np.array(self.statistics.discounts_or_warn())
        self.unigram_p = unigram_probabilities(self.statistics, self.unigrams, self.discounts)
        mass = self.unigrams.copy()
        mass[BOS] = self.statistics.sentences
        mass = mass[self.words.by_rank]
        ngrams = self.statistics.ngrams
        self.ngrams = {k: Partitions(stack, k, self.bits, ngrams[k], n_shards + 1, mass, scratch) for k in range(2, top + 1)}
        # Contexts are dealt as the n-grams that they are, so that both meet in one partition.
        self.contexts = {k: Partitions(stack, k, self.bits, ngrams[k], n_shards + 1, mass, scratch) for k in range(2, top)}
        self.unigram_backoffs = np.zeros(n_words)

        def estimate(shard: int) -> np.ndarray:
            """Walk over a shard, or, n_shards, over the bigrams of split words."""
            walk = Walk(stored, top, self.bits, n_words, split=snapshot.split if shard < n_shards else ())
            walk.estimate(self.discounts, self.unigram_p, self.words.rank, *sums)

            def drain() -> None:
                for k, part in self.ngrams.items():
                    keys, contexts = walk.take_estimates(k)
                    part.add(shard, keys)
                    if k in self.contexts:
                        self.contexts[k].add(shard, contexts)

            if shard < n_shards:
                walk_shard(snapshot, shard, stored, n_words, [walk], drain)
            else:
                walk.fold(*sums)
                drain()
            for part in (*self.ngrams.values(), *self.contexts.values()):
                part.finish(shard)
            return walk.unigram_backoffs_log10()

        if top > 1:
            self.unigram_backoffs = sum(gathered(pool, estimate, range(n_shards + 1)))

    def file(self, window: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
        """Run step 3: yield the file in pieces."""
        ngrams, words = self.statistics.ngrams, self.words
        total, written = sum(ngrams.values()), ngrams[1]
        strings = words.strings(words.by_rank)
        eos = int(words.rank[EOS])
        yield b"\\data\\\n" + b"".join(b"ngram %d=%d\n" % (k, n) for k, n in ngrams.items())
        yield b"\n\\1-grams:\n"
        yield self._unigrams()
        progress(written, total)
        for k, part in self.ngrams.items():
            yield b"\n\\%d-grams:\n" % k
            # An n-gram that was seen before one word only, and once: D1 of the next order, over 1.
            default = float(np.log10(self.discounts[k + 1, 1])) if k < self.top else 0.0

            def lines(partition: int, k: int = k, part: Partitions = part, default: float = default) -> tuple[memoryview, int]:
                contexts = self.contexts[k].read(partition) if k < self.top else None
                keys = part.read(partition)
                return memoryview(arpa_lines(keys, contexts, k, self.bits, default, eos, strings)), len(keys) // part.width

            for text, n in windowed(self.pool, lines, range(part.n), window):
                yield text
                written += n
                progress(written, total)
        yield b"\n\\end\\\n"

    def _unigrams(self) -> memoryview:
        """The unigram section: <unk>, <s> and </s> first, then the words in byte order."""
        log10_p = np.log10(self.unigram_p)
        log10_p[BOS] = 0
        alive = np.flatnonzero(self.unigrams[FIRST_WORD:]).astype(np.uint32) + FIRST_WORD
        alive = alive[np.argsort(self.words.rank[alive])]
        ids = np.concatenate([np.array([UNK, BOS, EOS], np.uint32), alive])
        return memoryview(arpa_lines(_keys(log10_p[ids]), _keys(self.unigram_backoffs[ids]) if self.top > 1 else None, 1,
                                     BITS, 0.0, 0, self.words.strings(ids)))


def _keys(numbers: np.ndarray) -> np.ndarray:
    """Return keys of one word, 0, 1, 2, ..., with these numbers as float32."""
    places = np.arange(len(numbers), dtype=np.uint32).reshape(-1, 1)
    return pack_text_keys(places, numbers.astype(np.float32).view(np.uint32), BITS)


def unigram_probabilities(statistics: Statistics, unigrams: np.ndarray, discounts: np.ndarray) -> np.ndarray:
    """Return p(w) of every word id, float64: (a - D(a)) / sum + gamma / V, so gamma / V for <unk> and words gone.

    Without any text gamma is 1.
    """
    total = float(unigrams.sum())
    off = discounts[1][np.minimum(unigrams, 3)]
    gamma = (off.sum() / total if total else 1.0) / (statistics.vocabulary + 2)        # V: the words, </s> and <unk>
    return (unigrams - off) / max(total, 1.0) + gamma

"""Write a model as an ARPA file: modified Kneser-Ney, unpruned, streamed, sorted by string.

The format is what lmplz writes and KenLM, SRILM and pyctcdecode read: log10 probability, TAB, words, and below the
highest order TAB and log10 back-off for every n-gram, 0 where it is no context.
"""
from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import arpa_lines
from kvps._statistics import Walk
from kvps.lm import cache
from kvps.lm.model import CompiledModel
from kvps.lm.ordered import Partitions, Words, gathered, windowed
from kvps.lm.runs import bits_for, merged
from kvps.store import files
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD, UNK, Vocabulary
from kvps.units import cpu_count


def export(store: StoreDirectory, path: str | Path, *, order: int | None = None, threads: int | None = None,
           scratch: Path | None = None, write: Callable[[bytes], object] | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the store's last version to an ARPA file, gzipped where its name ends in .gz.

    Args:
        order: highest order, at most the store's.
        scratch: folder for temporary files (4 bytes a word of every n-gram); the store's own by default.
        write: takes the file's pieces instead of `path`.
        progress: called with (n-grams written, n-grams in all).

    Returns:
        {"path", "version", "order", "ngrams": {order: n}, "bytes": written}.
    """
    threads = threads or cpu_count()
    scratch = scratch or store.path
    model_path = cache.ensure(store, kind="kn", top=order, threads=threads, scratch=scratch)
    model = CompiledModel(model_path)
    with store.snapshot() as snapshot:
        if snapshot.version != model.version:      # a writer was quicker than we: start again from its version
            return export(store, path, order=order, threads=threads, scratch=scratch, write=write, progress=progress)
        n_bytes = 0

        def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
            nonlocal n_bytes
            for piece in pieces:
                n_bytes += len(piece)
                yield piece

        pieces = _file(store, snapshot, model, threads, scratch, progress)
        with contextlib.closing(pieces):
            out = counted(_gzipped(pieces) if os.fspath(path).endswith(".gz") else pieces)
            if write is not None:
                for piece in out:
                    write(piece)
            else:
                files.atomic_write(path, out, private=False)
    return {"path": os.fspath(path), "version": model.version, "order": model.order, "ngrams": model.statistics.ngrams,
            "bytes": n_bytes}


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    compress = zlib.compressobj(6, wbits=31)       # 31: with a gzip header
    for piece in pieces:
        yield compress.compress(piece)
    yield compress.flush()


def _file(store: StoreDirectory, snapshot: StoreSnapshot, model: CompiledModel, threads: int, scratch: Path,
          progress: Callable[[int, int], None]) -> Iterator[bytes]:
    """Yield the file in pieces."""
    top, n_shards, stored = model.order, len(snapshot.shards), store.identity["order"]
    ngrams = model.statistics.ngrams
    total, written = sum(ngrams.values()), 0
    vocabulary = Vocabulary(store.root.words())
    # The model was compiled at this version; words that a job at work has added since come after its last id.
    n_words = len(vocabulary)
    words = Words(vocabulary)
    mass = np.zeros(n_words, np.uint64)
    mass[:len(model.unigrams)] = model.unigrams
    mass[BOS] = model.statistics.sentences

    yield b"\\data\\\n" + b"".join(b"ngram %d=%d\n" % (k, n) for k, n in ngrams.items())
    yield b"\n\\1-grams:\n"
    yield _unigrams(model, words)
    written += ngrams[1]
    progress(written, total)
    with ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as stack:
        parts = {k: Partitions(stack, words, k, ngrams[k], n_shards, mass, scratch, values=False) for k in range(2, top + 1)}

        def collect(shard: int) -> None:
            walk = Walk(stored, top, bits_for(n_words), n_words, rows_of=tuple(parts))
            snap = snapshot.shards[shard]
            with contextlib.closing(merged(snap, snap.runs(snapshot.version), stored, bits_for(n_words))) as blocks:
                for block in blocks:
                    walk.feed(block.keys, block.counts)
                    for k, part in parts.items():
                        part.add(shard, *walk.take_rows(k))
            walk.finish()
            for k, part in parts.items():
                part.add(shard, *walk.take_rows(k))
                part.finish(shard)

        if parts:
            gathered(pool, collect, range(n_shards))
        for k, part in parts.items():
            yield b"\n\\%d-grams:\n" % k

            def lines(partition: int, part: Partitions = part) -> tuple[bytes, int]:
                rows, _ = part.read(partition)
                log10_p, log10_backoff = np.empty(len(rows)), np.empty(len(rows))
                model.tables.score_known(rows, log10_p, log10_backoff)
                text = arpa_lines(rows, words.line_order(rows), log10_p, log10_backoff if part.k < top else None, words.ends,
                                  words.blob)
                return memoryview(text), len(rows)

            for text, n in windowed(pool, lines, range(part.n), 2 * threads):
                yield text
                written += n
                progress(written, total)
    yield b"\n\\end\\\n"


def _unigrams(model: CompiledModel, words: Words) -> bytes:
    """The unigram section: <unk>, <s> and </s> first, then the words in byte order."""
    n = len(model.unigrams)
    ids = np.arange(n, dtype=np.uint32)
    log10_p, _ = model.score_ids(ids, np.zeros(n, np.uint8))
    log10_p[BOS] = 0
    backoff = np.zeros(n)
    if model.order > 1:
        totals = model.tables.unigram_totals()
        listed = totals[:, 0] > 0
        gamma = totals[listed, 1:] @ model.discounts[2, 1:] / totals[listed, 0]
        backoff[listed] = np.log10(gamma)
    alive = np.flatnonzero(model.unigrams[FIRST_WORD:]).astype(np.uint32) + FIRST_WORD
    alive = alive[np.argsort(words.last_rank[alive])]
    rows = np.concatenate([np.array([UNK, BOS, EOS], np.uint32), alive]).reshape(-1, 1)
    lines = arpa_lines(rows, np.arange(len(rows), dtype=np.uint32), log10_p[rows[:, 0]],
                       backoff[rows[:, 0]] if model.order > 1 else None, words.ends, words.blob)
    return lines.tobytes()

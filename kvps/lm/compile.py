"""Make a compiled model from one version of a store: one walk over every shard, then hash tables filled in cache.

Kinds: "kn" holds adjusted counts (Kneser-Ney and modified Kneser-Ney of one highest order), "raw" raw counts of every
order. Both hold integers only, so a smoothing is chosen, and its discounts computed, when the model is loaded.

    STEP 1  walk: each shard yields (hash, value) per n-gram and (hash, totals) per context that is not (1, 1, 0, 0);
            they are dealt by hash into partitions, through scratch files; so does the walk over what split words have
    STEP 2  each partition's records go into its buckets, which fit the cache, and the buckets to the model's file

A context's totals are an entry of their own beside that of the same words as an n-gram, rather than a part of it: then
no join between shards is needed, and entries are shorter. Most contexts have been seen once; they need no entry, because
a context that is known as an n-gram and not listed has totals (1, 1, 0, 0).
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kvps._buckets import fill, slots_per_bucket
from kvps._spill import Spill
from kvps._statistics import Walk, chain_start
from kvps._totals import TotalsTable
from kvps.lm import container
from kvps.lm.walks import folded, statistics_of, summed_unigrams, walk_shard
from kvps.pools import Pool, gathered, windowed
from kvps.ps.router import Router
from kvps.ps.runs import bits_for
from kvps.store import files
from kvps.store.directory import StoreSnapshot
from kvps.text.vocabulary import BOS, EOS, UNK, Vocabulary

KINDS = ("kn", "raw")
BUCKET_BYTES = 64
RECORD_BYTES = 12              # hash, value
# 64 Ki records fill some 512 KiB of buckets: a partition stays in the second-level cache while it is filled.
PARTITION_RECORDS = 1 << 16
MAX_PARTITIONS = 4096
# Fuller tables are smaller and slower: at 0.92 an absent n-gram costs 1.2 cache lines.
LOAD = 0.92


_KINDS = {size: kind for kind, size in container.ITEM_BYTES.items()}


class SeedCollision(Exception):
    """Two entries share a bucket chain and a 40-bit fingerprint; another seed will part them."""


def compile_model(snapshot: StoreSnapshot, vocabulary: Vocabulary, path: Path, *, kind: str, top: int, exact: bool = False,
                  threads: int = 1, scratch: Path, uuid: str, order: int, progress: Callable[[int], None] = lambda n: None) -> None:
    """Write the compiled model of a snapshot to `path`.

    Args:
        kind: "kn" or "raw".
        top: highest order of the model, at most the store's.
        exact: hold sorted rows instead of fingerprints: larger and slower.
        scratch: folder for temporary files, about 12 bytes per n-gram.
        progress: called with the number of keys read since the last call.
    """
    for seed in range(8):
        try:
            return _compile(snapshot, vocabulary, path, kind, top, exact, threads, scratch, uuid, order, progress, seed)
        except SeedCollision:
            continue
        except OSError as exc:               # from the kernel that writes the scratch files, which have no name
            raise files.os_error(exc, scratch) from exc
    raise AssertionError("eight seeds in a row collided: the hash is broken")


def _compile(snapshot: StoreSnapshot, vocabulary: Vocabulary, path: Path, kind: str, top: int, exact: bool, threads: int,
             scratch: Path, uuid: str, order: int, progress: Callable[[int], None], seed: int) -> None:
    n_words, n_shards = len(vocabulary), len(snapshot.shards)
    bits = bits_for(n_words)
    n_keys = snapshot.n_keys()
    # Measured on running text: a model has 2.5 n-grams per distinct 5-gram; the top order bounds what there can be.
    expected = n_keys * max(1, min(top, 3))
    n_partitions = 1
    while n_partitions * PARTITION_RECORDS < expected and n_partitions < MAX_PARTITIONS:
        n_partitions *= 2

    with contextlib.ExitStack() as stack:
        descriptors = [(stack.enter_context(files.scratch(scratch)), stack.enter_context(files.scratch(scratch)))
                       for _ in range(0 if exact else n_shards + 1)]
        pool = stack.enter_context(Pool(threads))

        # STEP 1: walk the shards, and what their walks set aside.
        def begun(number: int, split: Sequence[int] = ()) -> _Walked:
            walk = Walk(order, top, bits, n_words, raw=kind == "raw", hashes=not exact,
                        rows_of=range(2, top + 1) if exact else (), contexts=exact, seed=seed, split=split)
            return _Walked(walk, [Spill(fd, n_partitions, RECORD_BYTES) for fd in descriptors[number]] if not exact else [])

        def walk(shard: int) -> _Walked:
            result = begun(shard, snapshot.split)
            walk_shard(snapshot, shard, order, n_words, [result.walk], result.drain, progress)
            result.finish()
            return result

        walked = gathered(pool, walk, range(n_shards))
        rest = begun(n_shards)
        folded([w.walk for w in walked], rest.walk)
        rest.drain()
        rest.finish()
        walked.append(rest)
        walks = [w.walk for w in walked]
        unigrams, raw = summed_unigrams(walks)
        statistics = statistics_of(snapshot, top, walks, unigrams, raw)
        if kind == "raw":
            unigrams = raw
        alive = (raw > 0).astype(np.uint8)
        alive[[UNK, BOS, EOS]] = 1
        slots, ends, blob = vocabulary.table.frozen(alive)
        table = TotalsTable()
        numbers = [table.numbers(w.walk.table.rows(), w.walk.table.all_uses()) for w in walked]
        # What is asked for most gets the smallest numbers; (1, 1, 0, 0) keeps number 0.
        ranked = np.concatenate([[0], 1 + np.argsort(-table.all_uses()[1:].astype(np.int64), kind="stable")])
        rank = np.empty(len(ranked), np.uint32)
        rank[ranked] = np.arange(len(ranked), dtype=np.uint32)
        numbers = [rank[n] for n in numbers]
        unigram_contexts = np.zeros(n_words, np.uint32)
        for w, n in zip(walked, numbers, strict=True):
            local = w.walk.unigram_context_numbers()
            unigram_contexts[local > 0] = n[local[local > 0] - 1] + 1

        meta = {"format": container.MODEL_FORMAT, "kind": kind, "order": top, "exact": exact, "seed": chain_start(seed),
                "uuid": uuid, "parts": len(walks), "statistics": statistics.to_json()}
        sections = [section(name, array) for name, array in (
            ("unigrams", unigrams), ("unigram_contexts", unigram_contexts), ("slots", slots), ("ends", ends), ("blob", blob),
            ("totals", table.rows()[ranked]))]
        if exact:
            # What begins with a word that is split may be in any part.
            parts = np.minimum(Router(n_shards, snapshot.routing).homes(n_words), n_shards)
            parts[parts == n_shards] = len(walks)
            sections += [section("parts", parts), *_exact_sections(walked, numbers, top)]
            container.write(path, meta, sections)
            return

        # STEP 2: fill the buckets.
        large_of = [w.walk.large_values() for w in walked]
        large = np.unique(np.concatenate([np.array(sorted(set().union(*(w.large for w in walked))), np.uint64), *large_of]))
        code_bytes = next(n for n in (2, 3, 4) if np.count_nonzero(large >= 1 << (8 * n - 2)) <= 1 << (8 * n - 2))
        large = large[large >= 1 << (8 * code_bytes - 2)]
        sizes = sum(spill.sizes() for w in walked for spill in w.spills)
        n_buckets = max(1, int(np.ceil(int(sizes.max()) / (slots_per_bucket(code_bytes) * LOAD))))
        escape = (1 << 8 * code_bytes) - 1
        escaped: list[tuple[np.ndarray, np.ndarray]] = []

        def region(partition: int) -> np.ndarray:
            out = np.zeros(n_buckets * BUCKET_BYTES, np.uint8)
            bits = (n_partitions - 1).bit_length()
            ngrams, contexts = ([w.spills[which].read(partition) for w in walked] for which in (0, 1))
            # The frequent n-grams first: they are asked for most, and are then found in the first slots.
            for part, kind_records in ((1, ngrams), (0, contexts), (2, ngrams)):
                for shard, records in enumerate(kind_records):
                    extra = {"numbers": numbers[shard]} if part == 0 else {"large_of": large_of[shard], "large": large}
                    if len(records) and not fill(out, bits, code_bytes, records, part=part, **extra):
                        raise SeedCollision
            for shard, records in enumerate(contexts):
                own = numbers[shard][np.ascontiguousarray(records[:, 8:]).view(np.uint32).reshape(-1)]
                beyond = own >= escape
                if beyond.any():
                    escaped.append((np.ascontiguousarray(records[beyond, :8]).view(np.uint64).reshape(-1), own[beyond]))
            return out

        meta |= {"partitions": n_partitions, "code_bytes": code_bytes}

        def written() -> Iterator:
            yield from sections
            yield section("large", large)
            yield ("entries", "B", n_buckets * BUCKET_BYTES * n_partitions,
                   windowed(pool, region, range(n_partitions), 2 * threads))
            hashes = np.concatenate([np.empty(0, np.uint64), *(h for h, _ in escaped)])
            own = np.concatenate([np.empty(0, np.uint32), *(n for _, n in escaped)])
            order_ = np.argsort(hashes)
            yield section("escaped", hashes[order_])
            yield section("escaped_numbers", own[order_])

        container.write(path, meta, written())


class _Walked:
    """One walk and what it yielded."""

    def __init__(self, walk: Walk, spills: list[Spill]) -> None:
        self.walk, self.spills = walk, spills
        self.large: set[int] = set()           # values that may be beyond the direct codes, below 2**31

    def finish(self) -> None:
        """Say that there is no more."""
        for spill in self.spills:
            spill.finish()

    def drain(self) -> None:
        """Move what the walk has emitted to the spills."""
        if self.spills:
            hashes, values, context_hashes, numbers = self.walk.take_hashes()
            self.spills[0].add_hashed(hashes, values)
            self.spills[1].add_hashed(context_hashes, numbers)
            big = values[(values >= 1 << 14) & (values < 1 << 31)]
            if len(big):
                self.large.update(big.tolist())


def section(name: str, array: np.ndarray) -> tuple[str, str, int, Iterable]:
    """Return an array as a section of a model file."""
    return name, _KINDS[array.dtype.itemsize], array.size, [np.ascontiguousarray(array).reshape(-1).view(np.uint8)]


def _exact_sections(walked: list[_Walked], numbers: list[np.ndarray], top: int) -> list:
    """Rows of every order and depth, part after part, each sorted."""
    sections = []
    for k in range(2, top + 1):
        rows, values = zip(*(w.walk.take_rows(k) for w in walked), strict=True)
        sections += _rows_sections(f"ngrams.{k}", rows, "values", values)
        rows, locals_ = zip(*(w.walk.take_contexts(k - 1) for w in walked), strict=True)
        sections += _rows_sections(f"contexts.{k - 1}", rows, "numbers",
                                   [numbers[shard][local] for shard, local in enumerate(locals_)])
    return sections


def _rows_sections(name: str, rows: Iterable[np.ndarray], what: str, values: Iterable[np.ndarray]) -> list:
    starts = np.cumsum([0, *(len(r) for r in rows)]).astype(np.uint64)
    return [section(name, np.concatenate(rows)), section(f"{name}.starts", starts),
            section(f"{name}.{what}", np.concatenate(values))]

"""Write a model as an ARPA file: any smoothing that such a file can hold, pruned or not; streamed, sorted by string.

The format is what lmplz writes and KenLM, SRILM and pyctcdecode read: log10 probability, TAB, words, and below the
highest order TAB and log10 back-off for every n-gram, 0 where it is no context.

    STEP 1  a walk for the statistics: discounts and unigram probabilities need all shards
    STEP 2  a walk that estimates every n-gram and context, dealt by first word into partitions through scratch files
    STEP 3  each order's partitions, one after another: sort, join n-grams with their back-offs, write
"""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import arpa_lines, pack_text_keys
from kvps._statistics import Walk
from kvps.errors import ArgumentError
from kvps.lm.ordered import Partitions, Words
from kvps.lm.pruning import Weights
from kvps.lm.smoothing import DEFAULT, parse
from kvps.lm.statistics import FALLBACK
from kvps.lm.walks import split_sums, survey, walk_shard
from kvps.pools import Pool, gathered, windowed
from kvps.ps.runs import bits_for
from kvps.store import files
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.text.streams import SUFFIXES, compression_of, packed
from kvps.text.tokenize import listed_words
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD, UNK, Vocabulary
from kvps.units import check_order, thread_count

log = logging.getLogger("kvps")

BITS = 32                    # of a word's number where it stands alone
KENLM_ORDER = 6              # the highest that KenLM reads unless it is built for more
WINDOW = 4                   # partitions of each thread at work or waiting to be written: those of frequent words are large


@dataclasses.dataclass(frozen=True)
class Choices:
    """What of a model goes into an ARPA file, in plain types; the names and meanings are lmplz's.

    Attributes:
        smoothing: NAME[:VALUE].
        prune: by order, the last one for all higher ones too: leave out n-grams whose raw count is at most this.
        limit_vocab: leave out n-grams with words that are not in this text (words between separators, as in text that is
            counted; bytes that are no UTF-8 as surrogateescape has them).
        interpolate_unigrams: mix unigrams with the uniform distribution; otherwise <unk> gets all that is discounted.
        vocab_pad: take the vocabulary for at least this large.
        prune_entropy: leave out n-grams without which the perplexity rises by less than this, relatively; as SRILM's -prune.
        prune_to: leave out n-grams by the same measure until no more than so many are left; words stay.
        fallback: discounts of orders that have none of their own, D1, D2, D3+; empty: these are refused.
    """

    smoothing: str = DEFAULT
    prune: tuple[int, ...] = ()
    limit_vocab: str | None = None
    interpolate_unigrams: bool = True
    vocab_pad: int = 0
    prune_entropy: float = 0.0
    prune_to: int | None = None
    fallback: tuple[float, ...] = FALLBACK

    def __post_init__(self) -> None:
        """Take what JSON makes of it; ArgumentError where it is something else."""
        object.__setattr__(self, "prune", tuple(self.prune) if isinstance(self.prune, (list, tuple)) else self.prune)
        object.__setattr__(self, "fallback", tuple(self.fallback) if isinstance(self.fallback, (list, tuple)) else self.fallback)
        kinds = {"smoothing": str, "prune": tuple, "limit_vocab": (str, type(None)), "interpolate_unigrams": bool, "vocab_pad": int,
                 "prune_entropy": (int, float), "prune_to": (int, type(None)), "fallback": tuple}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind) or (name == "prune" and not all(isinstance(n, int) for n in self.prune)):
                raise ArgumentError(f"{name}: {getattr(self, name)!r:.80} is not possible")

    @property
    def by_entropy(self) -> bool:
        """Whether n-grams are pruned by relative entropy."""
        return self.prune_entropy > 0 or self.prune_to is not None

    def cuts(self, top: int) -> list[int] | None:
        """Return the bounds of raw counts by order 0 to top, None where nothing is pruned; refuse what makes no sense."""
        given = list(self.prune)
        if any(a > b for a, b in itertools.pairwise(given)) or any(not 0 <= cut < 1 << 32 for cut in given):
            raise ArgumentError(f"pruning by {','.join(map(str, given))} is not possible: each order's bound is at least that of "
                                "the order below, and none is negative")
        if len(given) > top:
            raise ArgumentError(f"{len(given)} bounds for a model of order {top}")
        if self.vocab_pad < 0:
            raise ArgumentError(f"a vocabulary of {self.vocab_pad} words")
        if self.vocab_pad and not self.interpolate_unigrams:
            raise ArgumentError("a padded vocabulary is for unigrams that are interpolated: choose one of --vocab-pad and "
                                "--no-interpolate-unigrams")
        if not 0 <= self.prune_entropy < math.inf:
            raise ArgumentError(f"pruning by a relative entropy of {self.prune_entropy:g} is not possible, expected 0 or more")
        if self.prune_to is not None and self.prune_to < 1:
            raise ArgumentError(f"pruning to {self.prune_to} n-grams is not possible, expected 1 or more")
        if len(self.fallback) not in (0, 3) or not all(isinstance(d, (int, float)) and 0 <= d <= k
                                                       for k, d in enumerate(self.fallback, 1)):
            raise ArgumentError(f"fallback discounts {', '.join(map(str, self.fallback))} are not possible: the one of count k "
                                "is a number from 0 to k, k being 1, 2 and 3")
        if self.by_entropy and (any(given) or self.limit_vocab is not None or (self.prune_entropy and self.prune_to)):
            raise ArgumentError("n-grams are pruned by counts and vocabulary, by entropy, or to a number: choose one")
        if not any(given) and self.limit_vocab is None:
            return None
        given = given or [0]
        return [0, *given, *[given[-1]] * (top - len(given))]


def export(store: StoreDirectory, path: str | Path, *, order: int | None = None, labels: Iterable[str] | None = None,
           choices: Choices | None = None, threads: int | None = None, scratch: Path | None = None,
           write: Callable[[bytes], object] | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the store's last version to an ARPA file, compressed as its name says (.gz, .bz2, .xz, .zst).

    Args:
        write: takes the file's pieces instead of `path`.
        order, labels, choices, threads, scratch, progress: as arpa_file()'s.

    Returns:
        {"path", "version", "order", "smoothing", "ngrams": {order: n}, "bytes": written}.
    """
    pieces = store.run(arpa_file, order=order, labels=None if labels is None else list(labels),
                       choices=dataclasses.asdict(choices or Choices()), compress=compression_of(path),
                       here={"threads": threads, "scratch": scratch, "progress": progress})
    return written(pieces, path, write)


def written(pieces: Iterator[bytes], path: str | Path, write: Callable[[bytes], object] | None = None) -> dict:
    """Write what arpa_file() yields; as export()."""
    n_bytes = 0

    def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal n_bytes
        for piece in pieces:
            n_bytes += len(piece)
            yield piece

    with contextlib.closing(pieces):
        head = b""
        while b"\n" not in head:
            head += bytes(next(pieces))
        line, _, rest = head.partition(b"\n")
        facts = json.loads(line)
        if facts["order"] > KENLM_ORDER:
            log.warning("order %d: KenLM reads it only where it was built with KENLM_MAX_ORDER=%d or more, %d by default",
                        facts["order"], facts["order"], KENLM_ORDER)
        out = counted(itertools.chain([rest] if rest else [], pieces))
        if write is not None:
            for piece in out:
                write(piece)
        else:
            files.atomic_write(path, out, private=False)
    return {"path": os.fspath(path), **facts, "ngrams": {int(k): n for k, n in facts["ngrams"].items()}, "bytes": n_bytes}


def arpa_file(store: StoreDirectory, *, order: int | None = None, labels: Iterable[str] | None = None,
              choices: dict | None = None, compress: str | None = None, threads: int | None = None, scratch: Path | None = None,
              progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[bytes]:
    """Yield a line of JSON, {"version", "order", "smoothing", "ngrams"}, and then the ARPA file of the last version in pieces.

    Args:
        order: highest order, at most the store's.
        labels: only the text of these, as in StoreDirectory.snapshot().
        choices: the fields of Choices.
        compress: the file, not the line before it: gz, bz2, xz or zst.
        scratch: folder for temporary files, the store's own by default: of each n-gram and context the bits of its word ids,
            and 4 bytes.
        progress: called with (n-grams written, n-grams in all).
    """
    stored = store.identity["order"]
    top = stored if order is None else check_order(order, stored, store.path)
    if compress not in (None, *SUFFIXES.values()):
        raise ArgumentError(f"compression {compress!r:.80} is not possible: expected {', '.join(SUFFIXES.values())}, or none")
    try:
        chosen = Choices(**(choices or {}))
    except TypeError as exc:                   # from elsewhere
        raise ArgumentError(f"choices: {exc}") from exc
    threads = thread_count(threads)
    with store.snapshot(labels) as snapshot, Pool(threads) as pool, contextlib.ExitStack() as stack:
        model = Estimates(store, snapshot, top, chosen, pool, stack, scratch or store.path)
        yield json.dumps({"version": snapshot.version, "order": top, "smoothing": str(model.smoothing),
                          "ngrams": model.sizes}).encode() + b"\n"
        pieces = model.file(WINDOW * threads, progress)
        yield from packed(pieces, compress)


class Estimates:
    """The probabilities and back-offs of one version, in partitions."""

    exact = False              # numbers are written with seven decimals

    def __init__(self, store: StoreDirectory, snapshot: StoreSnapshot, top: int, choices: Choices, pool: ThreadPoolExecutor,
                 stack: contextlib.ExitStack, scratch: Path) -> None:
        """Run steps 1 and 2."""
        self.smoothing = parse(choices.smoothing)
        self.smoothing.back_off_discounts([])          # refuses what is not possible before anything is done
        if self.smoothing.name != DEFAULT and (choices.vocab_pad or not choices.interpolate_unigrams):
            raise ArgumentError(f"{self.smoothing} mixes no uniform distribution into its unigrams: a padded vocabulary and "
                                "unigrams without interpolation are for modified-kneser-ney")
        cuts = choices.cuts(top)
        vocabulary = Vocabulary(store.root.words())
        stored, n_words, n_shards = store.identity["order"], len(vocabulary), len(snapshot.shards)
        self.top, self.pool, self.words, self.bits = top, pool, Words(vocabulary), bits_for(n_words)
        self._raws = cuts is not None or choices.by_entropy
        modified, raw = self.smoothing.name == DEFAULT, self.smoothing.kind == "raw"
        statistics, unigrams, occurs, walks = survey(snapshot, stored, n_words, top, pool, raw=raw, raws=self._raws)
        sums = split_sums(walks)
        sizes = np.array([walk.counts_of_counts()[:top + 1, 0] for walk in walks], np.int64)
        del walks
        discounts, types = self.smoothing.back_off_discounts(
            statistics.discounts_or_warn(choices.fallback) if modified else [[0.0] * 4] * (top + 1))
        self.discounts, self._types = np.array(discounts), types
        allowed = np.ones(n_words, np.uint8) if choices.limit_vocab is None else marked(vocabulary, choices.limit_vocab)
        self.alive = (occurs > (cuts[1] if cuts else 0)) & (allowed > 0)
        self.alive[:FIRST_WORD] = True                 # the specials are never pruned
        self.unigram_p = _unigram_probabilities(
            occurs if raw else unigrams, self.discounts[1] if modified else np.zeros(4), self.alive,
            choices.vocab_pad if modified and choices.interpolate_unigrams else None)
        mass = unigrams.copy()
        mass[BOS] = statistics.sentences
        mass = mass[self.words.by_rank]
        expected = statistics.ngrams
        self.sizes = {1: int(self.alive.sum())}
        self.ngrams: dict[int, Partitions] = {}
        self.contexts: dict[int, Partitions] = {}
        self._default_of = self._default if not choices.by_entropy else lambda k: 0.0
        self.unigram_backoffs = np.zeros(n_words)
        if top == 1:
            return

        def dealt(holder: contextlib.ExitStack, orders: range, n_ngrams: dict[int, int]) -> dict[int, Partitions]:
            return {k: Partitions(holder, k, self.bits, n_ngrams[k], n_shards + 1, mass, scratch) for k in orders}

        def walked(number: int, prepare: Callable[[Walk], object], drain: Callable[[Walk], object]) -> Walk:
            """Walk over a shard, or, n_shards, over the bigrams of split words."""
            walk = Walk(stored, top, self.bits, n_words, raw=raw, raws=self._raws,
                        split=snapshot.split if number < n_shards else ())
            walk.estimate(self.discounts, self.unigram_p, self.words.rank, *sums, types=types, cuts=cuts, kept=allowed)
            prepare(walk)
            if number < n_shards:
                walk_shard(snapshot, number, stored, n_words, [walk], lambda: drain(walk))
            else:
                walk.fold(*sums)
                drain(walk)
            return walk

        weights, threshold = None, 0.0
        if choices.by_entropy:
            weights = Weights(stack, sizes, top, scratch)
            with contextlib.ExitStack() as meanwhile:
                # As many partitions in each order, so that n-grams meet their contexts.
                numbers = dealt(meanwhile, range(2, top + 1), dict.fromkeys(expected, max(expected.values())))

                def weigh(number: int) -> None:
                    def drain(walk: Walk) -> None:
                        for k, part in numbers.items():
                            part.add(number, walk.take_estimates(k)[0])
                            weights.put(number, k, walk.take_weights(k))

                    walked(number, lambda walk: walk.weigh(float(occurs[EOS:].sum()), weights.first[number].tolist()), drain)
                    for part in numbers.values():
                        part.finish(number)

                gathered(pool, weigh, range(n_shards + 1))
                weights.raise_all(numbers, self.bits, pool)
            threshold = (math.log1p(choices.prune_entropy) if choices.prune_to is None
                         else weights.threshold_for(choices.prune_to - self.sizes[1]))

        def prepare(number: int, walk: Walk) -> None:
            if weights is not None:
                walk.thin_out(weights.of(number), weights.of(n_shards)[2], threshold)

        self.ngrams = dealt(stack, range(2, top + 1), expected)
        # Contexts are dealt as the n-grams that they are, so that both meet in one partition.
        self.contexts = dealt(stack, range(2, top), expected)

        def estimate(number: int) -> np.ndarray:
            def drain(walk: Walk) -> None:
                for k, part in self.ngrams.items():
                    keys, contexts = walk.take_estimates(k)
                    part.add(number, keys)
                    if k in self.contexts:
                        self.contexts[k].add(number, contexts)

            walk = walked(number, lambda walk: prepare(number, walk), drain)
            for part in (*self.ngrams.values(), *self.contexts.values()):
                part.finish(number)
            return walk.unigram_backoffs_log10()

        self.unigram_backoffs = sum(gathered(pool, estimate, range(n_shards + 1)))
        self.sizes |= {k: part.n_keys() for k, part in self.ngrams.items()}

    def file(self, window: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
        """Run step 3: yield the file in pieces."""
        ngrams, words = self.sizes, self.words
        total, written = sum(ngrams.values()), ngrams[1]
        strings = words.strings(words.by_rank)
        eos = int(words.rank[EOS])
        yield b"\\data\\\n" + b"".join(b"ngram %d=%d\n" % (k, n) for k, n in ngrams.items())
        yield b"\n\\1-grams:\n"
        yield from map(memoryview, self._unigrams())
        progress(written, total)
        for k, part in self.ngrams.items():
            yield b"\n\\%d-grams:\n" % k
            # Of an n-gram that was seen before one word only, and once.
            default = self._default_of(k) if k < self.top else 0.0

            def lines(partition: int, k: int = k, part: Partitions = part,
                      default: float = default) -> tuple[list[np.ndarray], int]:
                contexts = self.contexts[k].read(partition) if k < self.top else None
                keys = part.read(partition)
                pieces = arpa_lines(keys, contexts, k, self.bits, default, eos, strings, exact=self.exact)
                return pieces, len(keys) // part.width

            for pieces, n in windowed(self.pool, lines, range(part.n), window):
                yield from map(memoryview, pieces)
                written += n
                progress(written, total)
            for done in (part, self.contexts.get(k)):
                if done is not None:
                    self.pool.submit(done.close)           # to give large files up takes a while
        yield b"\n\\end\\\n"

    def _default(self, k: int) -> float:
        """Return log10 of the back-off of a context of k words of which Walk.estimate() says nothing: one follower, once."""
        with np.errstate(divide="ignore"):             # a discount of 0
            return float(np.log10((self.discounts[k + 1, 1] + self._types) / (1 + self._types)))

    def log10_of_words(self) -> np.ndarray:
        """Return log10 p of each word id; <s> is given."""
        with np.errstate(divide="ignore"):             # <unk> may have none
            log10_p = np.log10(self.unigram_p)
        log10_p[BOS] = 0
        return log10_p

    def _unigrams(self) -> list[np.ndarray]:
        """The unigram section: <unk>, <s> and </s> first, then the words in byte order."""
        log10_p = self.log10_of_words()
        alive = np.flatnonzero(self.alive[FIRST_WORD:]).astype(np.uint32) + FIRST_WORD
        alive = alive[np.argsort(self.words.rank[alive])]
        ids = np.concatenate([np.array([UNK, BOS, EOS], np.uint32), alive])
        return arpa_lines(_keys(log10_p[ids]), _keys(self.unigram_backoffs[ids]) if self.top > 1 else None, 1, BITS, 0.0, 0,
                          self.words.strings(ids), exact=self.exact)


def _keys(numbers: np.ndarray) -> np.ndarray:
    """Return keys of one word, 0, 1, 2, ..., with these numbers as float32."""
    places = np.arange(len(numbers), dtype=np.uint32).reshape(-1, 1)
    return pack_text_keys(places, numbers.astype(np.float32).view(np.uint32), BITS)


def marked(vocabulary: Vocabulary, text: str) -> np.ndarray:
    """Return uint8 by word id: 1 for the specials, and for the words of a text."""
    marks = np.zeros(len(vocabulary), np.uint8)
    marks[:FIRST_WORD] = 1
    found = (vocabulary.table.get(word.encode("utf-8", "surrogateescape")) for word in listed_words(text))
    marks[[word for word in found if word is not None]] = 1
    return marks


def _unigram_probabilities(values: np.ndarray, discounts: np.ndarray, kept: np.ndarray, vocab_pad: int | None) -> np.ndarray:
    """Return p(w) of every word id, float64: (a - D(a)) / sum + gamma / V, so gamma / V for <unk> and words gone.

    gamma is what was discounted and what is not kept, V the number of words that are, with </s> and <unk>, at least
    vocab_pad. Without that <unk> alone gets gamma. Without any text gamma is 1. Only in a closed vocabulary <unk> has a count.
    """
    total = float(values.sum())
    off = np.where(kept, discounts[np.minimum(values, 3)], values)
    gamma = off.sum() / total if total else 1.0
    own = (values - off) / max(total, 1.0)
    if vocab_pad is None:
        own[UNK] += gamma
        return own
    return own + gamma / max(vocab_pad, int(kept[FIRST_WORD:].sum()) + 2)

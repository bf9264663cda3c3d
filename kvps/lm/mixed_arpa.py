"""Write a mixture as an ARPA file: the n-grams of its models together, each with the mixture's own probability.

Of an n-gram that is listed the file has the weighted sum. Of one that is not it has, as such files do, the back-off of its
context times the probability after the shorter one; back-offs are what is left after a context over what that leaves there,

    backoff(h) = (1 - sum of p(w | h)) / (1 - sum of p(w | h'))    over the words w listed after h; h' = h without its first word

so that contexts sum to 1 as those of the mixture do. That takes every n-gram's shorter ending to be listed, as it is in stores;
of an imported model that lacks one it is added.

    STEP 1  each model lists its n-grams; those of all are dealt by first word into partitions through scratch files
    STEP 2  from the highest order down, each partition: sort, drop what is there twice, score, add up by context
    STEP 3  as of any model: sort, join n-grams with their back-offs, write (arpa.py)
"""
from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kvps._arpa import pack_text_keys
from kvps._vocabulary import FrozenWords, WordTable, encode_frozen
from kvps.errors import ArgumentError, StoreError
from kvps.lm.arpa import Estimates, written
from kvps.lm.listing import dump
from kvps.lm.mixed import MixedModel
from kvps.lm.mixture import MixtureFile
from kvps.lm.opening import ModelFile
from kvps.lm.ordered import Partitions, Words, text_order, unpacked
from kvps.lm.smoothing import GIVEN
from kvps.pools import Pool, windowed
from kvps.ps.runs import bits_for
from kvps.text.streams import compression_of, packed
from kvps.text.vocabulary import BOS, EOS, SPECIALS, UNK
from kvps.units import thread_count

NOT_PREDICTED = -99.0          # log10 of a back-off of 0


def export(place: MixtureFile, model: MixedModel, path: str | Path, *, order: int | None = None, threads: int | None = None,
           scratch: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write an open mixture to an ARPA file, compressed as its name says; as arpa.export().

    Raises:
        StoreError: a store of it got another version meanwhile.
    """
    top = model.order if order is None else order
    if not 1 <= top <= model.order:
        raise ArgumentError(f"order {top} is not possible: {place.path} has orders 1 to {model.order}")
    threads = thread_count(threads)

    def pieces() -> Iterator[bytes]:
        with Pool(threads) as pool, contextlib.ExitStack() as stack:
            made = _Mixed(place, model, top, pool, 2 * threads, stack, scratch or place.path.absolute().parent)
            yield json.dumps({"version": model.version, "order": top, "smoothing": str(model.smoothing),
                              "ngrams": made.sizes}).encode() + b"\n"
            lines = made.file(2 * threads, progress)
            yield from packed(lines, compression_of(path))

    return written(pieces(), path)


class _Mixed(Estimates):
    """The probabilities and back-offs of a mixture, in partitions."""

    def __init__(self, place: MixtureFile, model: MixedModel, top: int, pool: ThreadPoolExecutor, window: int,
                 stack: contextlib.ExitStack, scratch: Path) -> None:
        """Run steps 1 and 2."""
        n_words = len(model.union)
        self._model, self.top, self.pool = model, top, pool
        self.words, self.bits = Words(model.union), bits_for(n_words)
        self.alive = np.ones(n_words, bool)
        self.unigram_p = model.distribution_of([])
        self.unigram_backoffs = np.zeros(n_words)
        self.sizes = {1: n_words}
        self._default_of = lambda k: 0.0
        mass = self.unigram_p.copy()
        mass[BOS] = mass[EOS]
        mass = mass[self.words.by_rank]
        # As many partitions in each order, so that n-grams meet their contexts.
        expected = max([1, *(sum(part.model.statistics.ngrams.get(k, 0) for part in model.parts) for k in range(2, top + 1))])

        def dealt(holder: contextlib.ExitStack, orders: range) -> dict[int, Partitions]:
            return {k: Partitions(holder, k, self.bits, expected, 1, mass, scratch) for k in orders}

        self.ngrams, self.contexts = dealt(stack, range(2, top + 1)), dealt(stack, range(2, top))
        with contextlib.ExitStack() as meanwhile:
            found, reader = dealt(meanwhile, range(2, top + 1)), _Reader(model)
            for i, (wanted, part, opened) in enumerate(zip(place.parts, model.parts, place.places, strict=True)):
                ids = model.union.here[i]
                for k in range(2, min(top, part.model.order) + 1):
                    for rows in _listed(opened, wanted.labels, reader, ids, k):
                        self._add(found[k], rows, np.zeros(len(rows), np.float32))
                if opened.root.state()["version"] != part.model.version:
                    raise StoreError(f"{opened.path}: got another version meanwhile; export again", path=str(opened.path))
            closed = all(part.model.smoothing != GIVEN for part in model.parts)
            for k in range(top, 1, -1):
                found[k].finish(0)
                for rows, p, contexts, backoffs in windowed(pool, lambda i, k=k: self._estimated(found[k], k, i), range(found[k].n),
                                                            window):
                    self._add(self.ngrams[k], rows, p)
                    if k == 2:
                        self.unigram_backoffs[contexts[:, 0]] = backoffs
                    else:
                        self._add(self.contexts[k - 1], contexts, backoffs)
                    if k > 2 and not closed:
                        self._add(found[k - 1], rows[:, 1:], np.zeros(len(rows), np.float32))
        for part in (*self.ngrams.values(), *self.contexts.values()):
            part.finish(0)
        self.sizes |= {k: part.n_keys() for k, part in self.ngrams.items()}

    def _add(self, partitions: Partitions, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Add n-grams of word ids, in text order, with float32 numbers."""
        if len(rows):
            partitions.add(0, pack_text_keys(np.ascontiguousarray(self.words.rank[rows]), numbers.view(np.uint32), self.bits))

    def _estimated(self, partitions: Partitions, k: int, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the n-grams of a partition, each once, their log10 p, their contexts, and the log10 back-offs of these."""
        ranks = unpacked(partitions.read(i), k, self.bits)
        differ = (ranks[1:] != ranks[:-1])
        ranks = ranks[np.concatenate([np.ones(min(len(ranks), 1), bool), differ.any(axis=1)])]
        rows = self.words.by_rank[ranks]
        if not len(rows):
            return rows, np.empty(0, np.float32), rows[:, :-1], np.empty(0, np.float32)
        log10_p = self._model.score_rows(rows)
        starts = np.flatnonzero(np.concatenate([[True], (ranks[1:, :-1] != ranks[:-1, :-1]).any(axis=1)]))
        left = 1 - np.add.reduceat(10 ** log10_p, starts)
        below = 1 - np.add.reduceat(10 ** self._model.score_rows(rows[:, 1:]), starts)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Where every word is listed, nothing backs off.
            backoffs = np.where(below <= 1e-12, 0.0, np.where(left <= 0, NOT_PREDICTED, np.log10(left / below)))
        return rows, log10_p.astype(np.float32), rows[starts, :-1], backoffs.astype(np.float32)


def _listed(place: Any, labels: list[str] | None, words: _Reader, ids: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Yield the k-grams of one model as ids of the union, uint32 (n, k).

    ids: uint32, by the model's own id.
    """
    if isinstance(place, ModelFile):
        for some in place.listed(k):
            yield ids[some[:, text_order(k)]]
    else:
        for block in _whole_lines(place.run(dump, k=k, labels=labels)):
            yield words.rows(block, k)


def _whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        data = rest + bytes(block)
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if end:
            yield data[:end]


class _Reader:
    """Turns the lines of dump() into ids of the union; here <s>, </s> and <unk> are words like others."""

    def __init__(self, model: MixedModel) -> None:
        table = WordTable()
        for i in range(len(SPECIALS)):             # in the place of the specials: no text has these
            table.add(b"\n%d" % i)
        for i in range(len(model.union)):
            table.add(model.union.table.word(i))
        self._words = FrozenWords(*table.frozen(np.ones(len(table), np.uint8)))

    def rows(self, lines: bytes, k: int) -> np.ndarray:
        """Return the n-grams of which all words are known."""
        ids = np.empty(2 * len(lines) + 2, np.uint32)
        ids = ids[:encode_frozen(self._words, np.frombuffer(lines, np.uint8), ids)[0]]
        rows = ids.reshape(-1, k + 3)[:, 1:k + 1]      # <s>, the words, the count, </s>
        return np.ascontiguousarray(rows[(rows != UNK).all(axis=1)] - np.uint32(len(SPECIALS)))

"""Relative-entropy pruning (Stolcke 1998): what each n-gram is worth, and which ones stay.

An n-gram is worth what it has in the relative entropy between the model and the one without it,

    weight(h w) = p(h) p(w | h) log(p(w | h) / (gamma(h) p(w | h')))

where p(h) is the share of the context in the text, its count discounted as in the model; three times that for bigrams,
and for trigrams below the highest order what 0.3 tokens of text make up more.
An n-gram has to stay where it is the context of a longer one that stays; so its weight is raised to theirs, and then one
threshold decides for every n-gram by itself.

The departures from Stolcke were measured (novels, 16 M tokens, order 3, 3.5 M of 9.1 M n-grams kept; the cut-offs 0,0,1,
which keep as many, give a held-out perplexity of 99.64): as he has it, with shares of the text, 100.80; with discounted
ones 100.47; without what the other words gain by a higher back-off 100.14; with bigrams three times, on which all that is
pruned falls back, 99.38. Of order 5, with as many as 0,0,0,1,1 leave, trigrams seen once were missed: all of them stay
there. With what they are worth more the perplexity is 0.1 % below that of the cut-offs, without 0.1 to 0.2 % above, on two
held-out texts; as good, but worse where fewer stay, were several times a trigram's share, and discounts of higher orders
for contexts made next to no difference, nor did contexts that share the weight of the n-grams that need them.

    STEP 1  a walk weighs the n-grams; their numbers are dealt as text into partitions, as n-grams are for a file
    STEP 2  in each partition, where n-grams and their contexts meet, weights are raised to those of longer n-grams
    STEP 3  the threshold: given, or found so that a number of n-grams stays

Weights are kept in a scratch file, 4 bytes each, in the order of the walks; the walk that follows reads them so.
"""
from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._arpa import raise_to_longer
from kvps.errors import ArgumentError
from kvps.lm.ordered import Partitions
from kvps.pools import gathered
from kvps.store import files

INFINITE_BITS = 0x7F800000     # of a float32
MAX_NGRAMS = 1 << 32           # of one order: their numbers have 32 bits


class Weights:
    """A weight for each n-gram of order 2 and up, by order, walk, and place in what the walk yields.

    Attributes:
        first[walk][k]: number of the first n-gram of order k of a walk.
    """

    def __init__(self, stack: contextlib.ExitStack, sizes: np.ndarray, top: int, scratch: Path) -> None:
        """Make room; sizes[walk, k]: n-grams of order k that a walk yields."""
        self.top, self._by_order = top, {}
        ends = np.cumsum(sizes, axis=0, dtype=np.int64)
        self.first = ends - sizes
        for k in range(2, top + 1):
            n = int(ends[-1, k])
            if n >= MAX_NGRAMS:
                raise ArgumentError(f"{n:,} {k}-grams are too many to prune by entropy; prune by counts")
            fd = stack.enter_context(files.scratch(scratch))
            with files.reporting(scratch, 4 * n):
                os.posix_fallocate(fd, 0, 4 * n + 4)           # a hole would end us where the disk is full
                self._by_order[k] = np.frombuffer(mmap.mmap(fd, 4 * n + 4), np.float32)[:n]
        self._sizes = sizes
        self._written = np.zeros_like(self.first)

    def put(self, walk: int, k: int, weights: np.ndarray) -> None:
        """Add the next weights of a walk."""
        start = self.first[walk, k] + self._written[walk, k]
        self._by_order[k][start:start + len(weights)] = weights
        self._written[walk, k] += len(weights)

    def of(self, walk: int) -> list[np.ndarray | None]:
        """Return the weights of a walk by order from 0 on, as Walk.thin_out() takes them."""
        return [None, None, *(self._by_order[k][self.first[walk, k]:self.first[walk, k] + self._sizes[walk, k]]
                              for k in range(2, self.top + 1))]

    def raise_all(self, partitions: dict[int, Partitions], bits: int, pool: ThreadPoolExecutor) -> None:
        """Raise the weights of contexts to those of the n-grams that need them.

        partitions: by order, of equally many partitions by first word, the numbers of the n-grams.
        """
        def raise_one(partition: int) -> None:
            longer, longer_weights = None, None
            for k in range(self.top, 1, -1):
                keys = partitions[k].read(partition)
                numbers = keys[::partitions[k].width] if partitions[k].width < 4 else keys[2::4]
                places = (numbers & np.uint64(0xFFFFFFFF)).astype(np.int64)
                weights = self._by_order[k][places]
                if longer is not None:
                    raise_to_longer(keys, weights, k, longer, longer_weights, bits)
                    self._by_order[k][places] = weights
                longer, longer_weights = keys, weights

        gathered(pool, raise_one, range(partitions[2].n))

    def threshold_for(self, n_kept: int) -> float:
        """Return the least threshold at which at most so many n-grams stay."""
        # The bits of floats from 0 on are in their order: count by the upper half, then within one such by the lower.
        bits = [weights.view(np.uint32) for weights in self._by_order.values()]
        high, above = _first_within(lambda chunk: chunk >> 16, bits, n_kept)
        if high == 0:
            return 0.0
        low, _ = _first_within(lambda chunk: chunk[chunk >> 16 == high - 1] & 0xFFFF, bits, n_kept - above)
        return float(np.array(min(((high - 1) << 16) + low, INFINITE_BITS), np.uint32).view(np.float32))


def _first_within(part: Callable[[np.ndarray], np.ndarray], arrays: list[np.ndarray], most: int) -> tuple[int, int]:
    """Return the least number from which on at most so many are found, and how many are found above it."""
    counts = np.zeros(1 << 16, np.int64)
    for array in arrays:
        for start in range(0, len(array), 1 << 20):
            counts += np.bincount(part(array[start:start + (1 << 20)]), minlength=1 << 16)
    from_here_on = np.cumsum(counts[::-1])[::-1]
    number = int(np.searchsorted(-from_here_on, -most))
    return number, int(from_here_on[number]) if number < 1 << 16 else 0

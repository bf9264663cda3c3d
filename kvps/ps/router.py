"""Which shard an n-gram goes to: by the hash of its routing word, but for the words that are heavy.

The routing word is the last one of the context (of order 1: the word), so that a shard has all n-grams of a context. Some
words have so many that shards would differ: a routing table, in the root (FORMAT.md, "Routing"), deals these out, the
heaviest first, each to the shard that has least. A word that alone would fill much of a shard is split: its n-grams go by
the hash of the last two words, and what needs all of its contexts is summed over the shards (lm/walks.py).
"""
from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kvps._router import homes, shards_of
from kvps._runs import unpack
from kvps.text.vocabulary import BOS

# The hash spreads what is left well: 16 shards of novels are within 0.1 % of each other.
MAX_DEALT = 1024
# Each split word is one list more to be summed; only some words of a language can be that heavy.
MAX_SPLIT = 256
SPLIT_ABOVE = 0.5              # of the mean shard: what is dealt in larger pieces does not come out even
MIN_SPLIT = 64                 # n-grams; fewer are no matter


class Router:
    """Tells the shards of n-grams; immutable."""

    def __init__(self, n_shards: int, table: Mapping | None = None) -> None:
        """Take the number of shards, and a routing table as Root.routing() has it."""
        dealt = np.array((table or {}).get("words", []), np.uint32).reshape(-1, 2)
        self.n_shards = n_shards
        self._words, self._shards = np.ascontiguousarray(dealt[:, 0]), np.ascontiguousarray(dealt[:, 1])
        self._split = np.array((table or {}).get("split", []), np.uint32)

    def homes(self, n_words: int) -> np.ndarray:
        """Return the shard of each routing word, n_shards and above for those that are split; uint32 (n_words,)."""
        return homes(n_words, self.n_shards, self._words, self._shards, self._split)

    def shards(self, keys: np.ndarray, order: int, bits: int, n_words: int) -> np.ndarray:
        """Return the shard of each packed key, uint32 (n,); CorruptionError where a word is beyond the vocabulary."""
        return shards_of(keys, order, bits, self.homes(n_words), self.n_shards)


def weigh(keys: np.ndarray, order: int, bits: int, weights: np.ndarray) -> None:
    """Add to the weight of each routing word how many of some sorted keys it has."""
    if len(keys) == 0:
        return
    routers = unpack(keys, order, bits)[:, 0]
    starts = np.concatenate([[0], np.flatnonzero(routers[1:] != routers[:-1]) + 1])
    weights[routers[starts]] += np.diff(np.concatenate([starts, [len(routers)]]))


def parts(keys: np.ndarray, order: int, bits: int, n_words: int, n_shards: int, split: Sequence[int]) -> np.ndarray:
    """Return how many of those of some keys that these words route each shard gets if they are split, int64 (n_shards,)."""
    ours = np.isin(unpack(keys, order, bits)[:, 0], split)
    chosen = np.ascontiguousarray(keys.reshape(len(ours), -1)[ours]).reshape(-1)
    return np.bincount(Router(n_shards, {"split": split}).shards(chosen, order, bits, n_words), minlength=n_shards)


def plan(weights: np.ndarray, n_shards: int, order: int, parts_of: Callable[[Sequence[int]], np.ndarray]) -> dict | None:
    """Return a routing table that makes shards even, or None where hashing is all there is to do.

    Args:
        weights: int64 (n_words,), how many distinct n-grams each word routes.
        parts_of: of some words that are split, how many of their n-grams each shard gets, int64 (n_shards,).
    """
    if n_shards == 1 or order == 1 or not weights.any():
        return None
    heaviest = np.argsort(-weights, kind="stable")[:MAX_DEALT + MAX_SPLIT]
    heaviest = heaviest[weights[heaviest] > 0].tolist()
    share = max(MIN_SPLIT, SPLIT_ABOVE * float(weights.sum()) / n_shards)
    # All sentences begin with the same two words, as far as contexts go.
    split = [word for word in heaviest if weights[word] > share and word != BOS][:MAX_SPLIT] if order > 2 else []
    dealt = [word for word in heaviest if word not in split][:MAX_DEALT]
    rest = weights.copy()
    rest[[*split, *dealt]] = 0
    loads = np.bincount(Router(n_shards).homes(len(weights)), rest, n_shards).astype(np.int64)
    if split:
        loads += parts_of(split)
    shards = [(load, shard) for shard, load in enumerate(loads.tolist())]
    heapq.heapify(shards)
    table = []
    for word in dealt:
        load, shard = shards[0]
        heapq.heapreplace(shards, (load + int(weights[word]), shard))
        table.append([word, shard])
    return {"words": sorted(table), "split": sorted(split)}

"""What follows a context: a file beside the compiled model that lists it, and a model that knows next words from it.

Hash buckets cannot list. So a second file has the trie of contexts, from the last word back (as the store's keys are
sorted), and for each context the words that were seen after it with their counts: those of the compiled model of the same
stem and version, adjusted or raw. It is made by the same walk when next words are first asked for, and may be deleted.

The file is a container (container.py) with the sections, for each depth d from 1 to order - 1, parts one after another:
    nodes.d u32                     the word c_d of each context, in context order
    children.d u32|u64 (n + 1,)     where its contexts of depth d + 1 begin; none for the last depth
    followers.d u32|u64 (n + 1,)    where its list begins in
    words.d u32, codes.d u8         the words, by value, the greatest first, then in byte order; values below 255, else 255
    places.d u64, large.d u64       which followers of this depth have larger values, and these
and starts u64 (n_parts + 1,), where the contexts of depth 1 of each part begin, a part being what one walk yielded; parts
u32 (n_words,), the part of what begins with a word, or their number where that may be any; ranks u32 (n_words,), the place
of each word in byte order.

Measured (16.5 M tokens of novels, order 5, two cores): range scans in the runs of a store took 20 to 30 ms a context and up
to 160 ms, the ten best words from this file 0.1 ms.
"""
from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kvps._drawing import draw_word, generate
from kvps._followers import Followers
from kvps._statistics import Walk
from kvps.errors import ArgumentError
from kvps.lm import cache, container
from kvps.lm.best import BestWords
from kvps.lm.foresight import Choices, Foresight, ImportedModel, sorted_words
from kvps.lm.model import CompiledModel
from kvps.lm.opening import ModelFile, load
from kvps.lm.smoothing import DEFAULT, Smoothing, parse
from kvps.lm.walks import folded, statistics_of, summed_unigrams, walk_shard
from kvps.pools import Pool, gathered
from kvps.ps.router import Router
from kvps.ps.runs import bits_for
from kvps.store import files
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.text.tokenize import SEPARATORS, Tokenizer
from kvps.text.vocabulary import BOS, EOS, UNK, Vocabulary

COLUMNS = ("nodes", "children", "followers", "words", "codes", "places", "large")
STARTS = ("children", "followers")     # collected as how many, stored as where they begin
KINDS = {"codes": "B", "places": "Q", "large": "Q"}
# What a walk may hold before it goes to its scratch file.
DRAIN_BYTES = 4 << 20
PIECE_BYTES = 1 << 20                  # read back at once


# Making the file

def compile_followers(snapshot: StoreSnapshot, vocabulary: Vocabulary, path: Path, *, kind: str, top: int, threads: int = 1,
                      scratch: Path, uuid: str, order: int, progress: Callable[[int], None] = lambda n: None) -> None:
    """Write the followers file of a snapshot to `path`; arguments as those of compile_model().

    Memory is bounded by the vocabulary and DRAIN_BYTES a thread; the scratch files take as much as the file.
    """
    n_words, n_shards = len(vocabulary), len(snapshot.shards)
    bits = bits_for(n_words)
    _, ranks = sorted_words([vocabulary.table.word(i) for i in range(n_words)])
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Pool(threads))
        parts = [_Part(stack.enter_context(files.scratch(scratch)), top, scratch) for _ in range(n_shards + 1)]

        def begun(split: Sequence[int] = ()) -> Walk:
            walk = Walk(order, top, bits, n_words, raw=kind == "raw", split=split)
            walk.list_followers(ranks)
            return walk

        def look(shard: int) -> Walk:
            walk = begun(snapshot.split)
            walk_shard(snapshot, shard, order, n_words, [walk], lambda: parts[shard].drain(walk), progress)
            parts[shard].drain(walk, at_least=1)
            return walk

        walks = gathered(pool, look, range(n_shards))
        walks.append(folded(walks, begun()))
        parts[-1].drain(walks[-1], at_least=1)
        statistics = statistics_of(snapshot, top, walks, *summed_unigrams(walks))
        homes = np.minimum(Router(n_shards, snapshot.routing).homes(n_words), n_shards).astype(np.uint32)
        homes[homes == n_shards] = len(parts)
        starts = np.cumsum([0, *(part.n_items(1, "nodes") if top > 1 else 0 for part in parts)]).astype(np.uint64)
        meta = {"format": container.MODEL_FORMAT, "kind": kind, "order": top, "exact": False, "uuid": uuid,
                "statistics": statistics.to_json()}
        container.write(path, meta, _sections(parts, top, {"starts": starts, "parts": homes, "ranks": ranks}))


class _Part:
    """What one walk lists, in a scratch file."""

    def __init__(self, fd: int, top: int, folder: Path) -> None:
        self._fd, self._top, self._folder, self._end = fd, top, folder, 0
        self._pieces: dict[tuple[int, str], list[tuple[int, int]]] = {}    # (offset, bytes) of each column

    def drain(self, walk: Walk, at_least: int = DRAIN_BYTES) -> None:
        """Move what the walk has listed to the file, if that is so many bytes."""
        if walk.followers_bytes() < at_least:
            return
        with files.reporting(self._folder):
            for depth in range(1, self._top):
                for name, column in zip(COLUMNS, walk.take_followers(depth), strict=True):
                    data = memoryview(column).cast("B") if len(column) else memoryview(b"")
                    self._pieces.setdefault((depth, name), []).append((self._end, len(data)))
                    while len(data):
                        written = os.pwrite(self._fd, data, self._end)
                        self._end += written
                        data = data[written:]

    def n_items(self, depth: int, name: str) -> int:
        """Return how many numbers a column has."""
        return sum(n for _, n in self._pieces.get((depth, name), [])) // container.ITEM_BYTES[KINDS.get(name, "I")]

    def read(self, depth: int, name: str) -> Iterator[np.ndarray]:
        """Yield a column in pieces."""
        dtype = {"B": np.uint8, "I": np.uint32, "Q": np.uint64}[KINDS.get(name, "I")]
        for offset, n_bytes in self._pieces.get((depth, name), []):
            for at in range(offset, offset + n_bytes, PIECE_BYTES):
                with files.reporting(self._folder):
                    yield np.frombuffer(files.read_exactly(self._fd, min(PIECE_BYTES, offset + n_bytes - at), at), dtype)


def _sections(parts: list[_Part], top: int, arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, str, int, Iterable]]:
    for depth in range(1, top):
        totals = {name: [part.n_items(depth, name) for part in parts] for name in COLUMNS}
        below = {"children": sum(part.n_items(depth + 1, "nodes") for part in parts), "followers": sum(totals["words"])}
        for name in COLUMNS:
            n = sum(totals[name])
            if name in STARTS:
                if name == "followers" or depth < top - 1:
                    kind = "I" if below[name] < 1 << 32 else "Q"
                    yield f"{name}.{depth}", kind, n + 1, _starts(parts, depth, name, np.uint32 if kind == "I" else np.uint64)
                continue
            before = np.cumsum([0, *totals["words"]]).tolist()
            yield f"{name}.{depth}", KINDS.get(name, "I"), n, (
                memoryview(piece + np.uint64(before[i]) if name == "places" else piece)
                for i, part in enumerate(parts) for piece in part.read(depth, name))
    for name, array in arrays.items():
        yield name, "Q" if array.dtype.itemsize == 8 else "I", len(array), [memoryview(array)]


def _starts(parts: list[_Part], depth: int, name: str, dtype: type) -> Iterator[memoryview]:
    """Yield where what belongs to each context begins, of how many there are; and where the last ends."""
    at = 0
    yield memoryview(np.zeros(1, dtype))
    for part in parts:
        for piece in part.read(depth, name):
            ends = at + np.cumsum(piece, dtype=np.uint64).astype(np.int64)
            at = int(ends[-1])
            yield memoryview(ends.astype(dtype))


# Using it

class OtherVersion(Exception):
    """The two files are of different versions of the store."""


class FollowingModel(CompiledModel, Foresight):
    """A CompiledModel that knows which words follow a context, and how probable each is."""

    follows = True

    def __init__(self, path: Path, listing: Path, smoothing: str | Smoothing = DEFAULT,
                 order: int | None = None) -> None:
        """Map a compiled file and its followers file; arguments as those of CompiledModel."""
        super().__init__(path, smoothing, order)
        meta, arrays = container.read(listing)
        if meta["statistics"]["version"] != self.version:
            raise OtherVersion
        levels = [tuple(arrays.get(f"{name}.{depth}") for name in COLUMNS) for depth in range(1, meta["order"])]
        self.ranks = np.frombuffer(arrays["ranks"], np.uint32)
        pages = container.pages(listing, arrays)
        pages.compare(arrays["ranks"].cast("B"))
        self.n_words = len(self.ranks)
        self.by_rank = np.empty(self.n_words, np.uint32)
        self.by_rank[self.ranks] = np.arange(self.n_words, dtype=np.uint32)
        self.followers = Followers(self.order, levels, arrays["starts"], arrays["parts"], arrays["ranks"], pages)
        self._drawing: tuple[float, tuple[np.ndarray, np.ndarray]] | None = None
        alone = np.empty(self.n_words)
        self.tables.unigram_probabilities(alone)
        there = np.asarray(self.unigrams) > 0
        there[[UNK, BOS, EOS]] = True
        if self.smoothing.name == "modified-kneser-ney":
            there[BOS] = False                     # it is given, never predicted
        alone[~there] = 0
        self.alone = alone
        # After a context that was not seen, Lidstone has all words alike.
        self.ground = there.astype(np.float64) if self.smoothing.number == parse("laplace").number else alone
        ids = np.flatnonzero(there).astype(np.uint32)
        self.by_ground = [ids[np.lexsort((self.ranks[ids], -ground[ids]))] for ground in (self.ground, self.alone)]
        self.n_next = len(ids)
        self.spelled = np.sort(self.ranks[ids])
        vocabulary = self.statistics.vocabulary + (2 if self.smoothing.name == "modified-kneser-ney" else 3)
        self.followers.smooth(self.smoothing.number, self.smoothing.kernel_value, self.discounts, float(vocabulary),
                              list(zip((self.ground, self.alone), self.by_ground, strict=True)))
        self.best = BestWords([(self.followers, 1.0, None, None)], self.ranks, self.by_rank)

    def distribution_of(self, context: Sequence[int]) -> np.ndarray:
        """As Foresight.distribution_of()."""
        out = np.empty(self.n_words)
        with self.best.spaces.one() as space:
            self.followers.distribution(space, np.array(context, np.uint32), out)
        return out

    def mass(self, context: Sequence[int], low: int, high: int) -> float:
        """As Foresight.mass()."""
        out = np.empty(high - low)
        with self.best.spaces.one() as space:
            self.followers.distribution(space, np.array(context, np.uint32), out, self.by_rank[low:high])
        return math.fsum(out.tolist())

    def top(self, contexts: Sequence[Sequence[int]], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.top()."""
        return self.best.find(contexts, k, (0, self.n_words), drawn_from=False)

    def extend(self, contexts: Sequence[Sequence[int]], k: int, low: int, high: int,
               min_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.extend()."""
        return self.best.find(contexts, k, (low, high), min_count)

    def draw(self, start: list[int], seed: int, first: int, n: int, max_words: int,
             choices: Choices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.draw()."""
        words, lengths, ends = np.empty((n, max_words), np.uint32), np.empty(n, np.int64), np.empty(n, np.uint8)
        top_p = 1.0 if choices.top_p is None else choices.top_p
        with self.best.spaces.one() as space:
            generate(self.best.best, space, np.array(start, np.uint32), seed, first, max_words, choices.temperature,
                     choices.top_k or 0, top_p, *self._shares(choices.temperature), words, lengths, ends)
        return words, lengths, ends

    def draw_word(self, context: Sequence[int], seed: int) -> int:
        """Return a word drawn after a context; prediction.NO_WORD where it would be <s> or <unk>, or there is none."""
        return draw_word(self.followers, np.array(context, np.uint32), self._shares(1.0)[0], seed)

    def _shares(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Return what drawing needs of the ground; kept for the temperature that was asked for last."""
        kept = self._drawing
        if kept is None or kept[0] != temperature:
            alone = int(self.order == 1)
            ground, by_ground = (self.ground, self.alone)[alone], self.by_ground[alone]
            tempered = ground.copy()
            tempered[[UNK, BOS]] = 0
            there = tempered > 0
            tempered[there] = (tempered[there] / tempered.max(initial=0)) ** (1 / temperature)
            kept = self._drawing = temperature, (np.cumsum(ground[by_ground]), np.append(tempered, math.fsum(tempered)))
        return kept[1]

    def foreseen(self, text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As Foresight.foreseen()."""
        ids, history, _ = self.encode(text)
        _, matched = self.score_ids(ids, history)
        places, first = np.empty(len(ids), np.int64), np.empty(len(ids), np.uint32)
        with self.best.spaces.one() as space:
            self.followers.places(space, ids, history, places, first)
        tokens = (ids != BOS) | (history > 0)
        return ids[tokens], matched[tokens], places[tokens], first[tokens]


def context_of(text: str, tokenizer: Tokenizer, *, from_begin: bool = False) -> list[str]:
    """Return the words of a context that is written as text; the first may be "<s>", the others the tokenizer makes.

    Of several sentences, where the tokenizer parts them, it is the last one that counts, with its "<s>".

    from_begin: the words are to be the first of a sentence, so that its "<s>" need not be named.
    """
    if "\n" in text:
        raise ArgumentError(f"a context is one line, found a newline in {text!r}")
    first, _, rest = text.lstrip(SEPARATORS).partition(" ")
    begun = first == "<s>"
    line = tokenizer.prepare((rest if begun else text).encode("utf-8", "surrogateescape") + b"\n", name="context").decode()
    earlier, _, last = line.removesuffix("\n").rpartition("\n")
    return ["<s>"] * (begun or (earlier != "" and not from_begin)) + [word for word in re.split(f"[{SEPARATORS}]+", last) if word]


def load_following(store: StoreDirectory | ModelFile, smoothing: str | Smoothing = DEFAULT, order: int | None = None, *,
                   exact: bool = False, **options: object) -> FollowingModel | ImportedModel:
    """Return the last version of a store, or an imported model, as a model that knows next words; files are made if need be.

    exact, options: as those of cache.ensure().
    """
    chosen = parse(smoothing)
    if isinstance(store, ModelFile):
        return load(store, ImportedModel, chosen, order, exact=exact, **options)
    options |= {"kind": chosen.kind, "top": order}
    while True:
        try:
            return cache.load(store, lambda path: cache.load(
                store, lambda listing: FollowingModel(path, listing, chosen, order), followers=True, **options),
                exact=exact, **options)
        except OtherVersion:                   # the store moved on, or only an older one of the two may be waited for
            options["stale"] = "wait"

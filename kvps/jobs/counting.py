"""Count the splits of a job into the shards: read, tokenise, count, encode, apply; several splits at once.

Each shard records a split in the transaction that adds its counts, so a job that is started again counts only what is
missing, whatever killed it.
"""
from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np

from kvps._ngrams import count, key_width
from kvps._runs import encode, encoded_room
from kvps.errors import DataError, InputGone
from kvps.ps.merging import tidy
from kvps.ps.router import Router, parts, plan, weigh
from kvps.ps.runs import CHUNK_BYTES, bits_for, encoded, merged_chunks
from kvps.store.directory import StoreDirectory
from kvps.text.corpus import Input, Split
from kvps.text.tokenize import Tokenizer
from kvps.text.vocabulary import EOS, Vocabulary

# Memory of one worker, in bytes per byte of its split: the text, and for each of its tokens an id (4), its key twice
# (16 + 16), its count (4) and its share of encoded chunks (6). Words of running text take 5.5 bytes with their blank,
# characters and parts of words 2 or 3.
BYTES_PER_SPLIT_BYTE = {"char": 32, "sentencepiece": 32, "hf": 32, "default": 16}
# Longer splits gain nothing (4 M tokens repeat 16 % of their 5-grams), and two of this length use 350 MB.
MAX_SPLIT_BYTES = 12 << 20
MIN_SPLIT_BYTES = 64 << 10
# Not worth a transaction in every shard (some 5 ms each) of its own.
SMALL_SPLIT_BYTES = 1 << 20
# Of text that is looked at to deal heavy words to shards, in pieces from all over the first split.
SAMPLE_BYTES = 2 << 20
SAMPLE_PIECES = 16
# How often it is looked whether others have counted what they claimed [s]: at first, and while nothing happens at most.
LOOK_S, LOOK_MOST_S = 0.03, 0.5


def split_bytes(memory_bytes: int, threads: int, tokenizer: str, text_bytes: int) -> int:
    """Return how long a split may be so that `threads` workers stay within the memory, and all have as much to do.

    text_bytes: of all inputs as they lie on disk; where they are compressed there will be more splits, that is all.
    """
    per_byte = BYTES_PER_SPLIT_BYTE.get(tokenizer.partition(":")[0], BYTES_PER_SPLIT_BYTE["default"])
    longest = max(MIN_SPLIT_BYTES, min(MAX_SPLIT_BYTES, memory_bytes // threads // per_byte))
    rounds = -(-text_bytes // (longest * threads))
    return max(min(longest, SMALL_SPLIT_BYTES), -(-text_bytes // max(1, rounds * threads)))


@dataclasses.dataclass
class Task:
    """One split of a job, numbered across the job's inputs."""

    number: int
    input: int
    split: Split
    seen: dict          # the input's fingerprint once the split was read


def tasks(inputs: list[Input], length: int, done: dict[int, dict]) -> Iterator[Task]:
    """Yield the splits that are not done; `done` holds the ledger rows of splits that every shard has."""
    number = 0
    for index, source in enumerate(inputs):
        start = 0
        # What is done from the beginning of an input on need not be read again.
        while number in done and done[number]["input"] == index:
            start = done[number]["end"]
            number += 1
        for split in source.splits(length, start):
            if number not in done:
                yield Task(number, index, split, source.fingerprint())
            number += 1


def raw_bytes(row: dict) -> int:
    """Return how many bytes of its input, as it lies on disk, the split of a ledger row took."""
    return row.get("raw", row["end"] - row["start"])


class Worker:
    """The buffers of one thread, reused from split to split: fresh memory is dear."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def _room(self, name: str, n: int, dtype: type) -> np.ndarray:
        """Return an array of at least n items, the same one as long as it is long enough."""
        array = self._arrays.get(name)
        if array is None or len(array) < n:
            self._arrays.pop(name, None)
            array = self._arrays[name] = np.empty(n + n // 8, dtype)
        return array

    def count(self, text: bytes, order: int, router: Router, vocabulary: Vocabulary, skip_reserved: bool, negate: bool,
              times: np.ndarray | None = None) -> tuple[int, int, int, list[list[tuple[bytes, int]]]]:
        """Return (tokens without </s>, sentences, offset of a reserved word or -1, chunks of each shard).

        times: int64 (sentences,), how often each sentence counts; once by default.
        """
        ids, n_sentences, reserved = self._ids(text, vocabulary, skip_reserved)
        n_words = len(vocabulary)
        if times is None or reserved >= 0:
            return len(ids) - n_sentences, n_sentences, reserved, self._chunks(ids, order, router, n_words, negate)
        # As a sum of powers of two: the sentences that have the same bit in their numbers are counted together.
        lengths = np.diff(np.flatnonzero(ids == EOS), prepend=-1)
        of_ids, runs = np.repeat(times, lengths), []
        for bit in range(int(times.max(initial=0)).bit_length()):
            runs.append(self._chunks(ids[of_ids >> bit & 1 == 1], order, router, n_words, negate, bit))
        bits = bits_for(n_words)
        chunks = [list(encoded(merged_chunks(list(parts), order, bits), order, bits)) for parts in zip(*runs, strict=True)]
        return int(((lengths - 1) * times).sum()), int(times.sum()), reserved, chunks or [[] for _ in range(router.n_shards)]

    def _chunks(self, ids: np.ndarray, order: int, router: Router, n_words: int, negate: bool,
                shift: int = 0) -> list[list[tuple[bytes, int]]]:
        """Return the chunks of each shard, of the n-grams of some ids; each counts 2 ** shift times."""
        bits, ends = self._keys(ids, order, router, n_words)
        # The sort is done with its scratch: the chunks are written there.
        keys, scratch, counts = (self._arrays[name] for name in ("keys", "scratch", "counts"))
        width, chunks, start = key_width(order, bits), [], 0
        for end in ends.tolist():
            out, here = scratch.view(np.uint8), counts[start:end]
            if len(out) < encoded_room(end - start):
                out = self._room("out", encoded_room(end - start), np.uint8)
            if shift:
                here = here.astype(np.int64) << shift
            chunks.append(encode(keys[start * width:end * width], here, order, bits, CHUNK_BYTES, out, negate=negate))
            start = end
        return chunks

    def routing(self, text: bytes, order: int, n_shards: int, vocabulary: Vocabulary, skip_reserved: bool) -> dict | None:
        """Return the routing table that deals the n-grams of a text evenly."""
        ids, _, _ = self._ids(text, vocabulary, skip_reserved)
        bits, ends = self._keys(ids, order, Router(1), len(vocabulary))
        keys = self._arrays["keys"][:int(ends[-1]) * key_width(order, bits)]
        weights = np.zeros(len(vocabulary), np.int64)
        weigh(keys, order, bits, weights)
        return plan(weights, n_shards, order, lambda split: parts(keys, order, bits, len(vocabulary), n_shards, split))

    def _ids(self, text: bytes, vocabulary: Vocabulary, skip_reserved: bool) -> tuple[np.ndarray, int, int]:
        """Return the ids of a text, in self's array "ids"; how many sentences; and -1, or where a reserved word is: then no ids."""
        data = np.frombuffer(text, np.uint8)
        ids = self._room("ids", len(data) + 1, np.uint32)
        n_ids, n_sentences, reserved = vocabulary.encode(data, ids, skip_reserved=skip_reserved)
        if reserved >= 0:
            n_ids = n_sentences = 0
        return ids[:n_ids], n_sentences, reserved

    def _keys(self, ids: np.ndarray, order: int, router: Router, n_words: int) -> tuple[int, np.ndarray]:
        """Count n-grams into self's arrays "keys" and "counts", shard after shard; return bits a word and each shard's end."""
        bits = bits_for(n_words)
        keys, scratch = (self._room(name, len(ids) * key_width(order, bits), np.uint64) for name in ("keys", "scratch"))
        counts = self._room("counts", len(ids), np.uint32)
        return bits, count(ids, order, bits, n_words, router.n_shards, keys, scratch, counts, router.homes(n_words))


def choose_routing(store: StoreDirectory, tokenizer: Tokenizer, inputs: list[Input], length: int, skip_reserved: bool) -> None:
    """Deal the heavy words of a store to its shards, by the first split of its first job, and record that for ever.

    REQUIRES that no job is pending: of a store at version 0 nothing is counted then, and no other process counts. Later
    the table does not change, however often the job is killed, begun again or rolled back: an n-gram has one shard.

    length: of a split.
    """
    n_shards, order = len(store.shards), store.identity["order"]
    if n_shards == 1 or order == 1 or store.root.state()["version"] > 0 or store.root.routing() is not None:
        return
    vocabulary = Vocabulary(store.root.words(), store.root.share_words, closed="closed" in store.identity)
    try:
        first = next(tasks(inputs, length, {}), None)
        if first is None:
            return
        text = tokenizer.for_kind(inputs[first.input].kind).prepare(_sample(first.split.data), errors="replace")
    except (DataError, InputGone):             # counting says it, and where
        return
    table = Worker().routing(text, order, n_shards, vocabulary, skip_reserved)
    if table is not None:
        vocabulary.store_new(store.root.add_words)
        store.root.set_routing(table)


def _sample(data: bytes) -> bytes:
    """Return some of the lines of a split."""
    if len(data) <= SAMPLE_BYTES:
        return data
    pieces = []
    for number in range(SAMPLE_PIECES):
        start = data.find(b"\n", number * len(data) // SAMPLE_PIECES) + 1
        pieces.append(data[start:data.rfind(b"\n", start, start + SAMPLE_BYTES // SAMPLE_PIECES) + 1])
    return b"".join(pieces)


def count_splits(store: StoreDirectory, vocabulary: Vocabulary, tokenizer: Tokenizer, job: dict, inputs: list[Input], *,
                 threads: int, progress: Callable[[int], None], seen_as: list[tuple[dict, dict]] | None = None,
                 others: Callable[[float], bool] | None = None) -> None:
    """Apply every split of a job that some shard does not have yet; other workers may have claimed some of them.

    seen_as: of each input, its fingerprint here and the one that the job's record has for the same text; of a worker elsewhere.
    others: of a client that has others count for it, waits so many seconds for them, and says whether they are done; what
        they leave is counted here.
    `progress` is called with the bytes counted since the last call, as they lie on disk. An exception in one worker, or
    an interrupt, lets the others finish their splits and is raised then: nothing is half done.
    """
    counting = _Counting(store, vocabulary, tokenizer, job, inputs, threads, progress, seen_as)
    while others is not None and not others(LOOK_MOST_S):
        counting.look()
    counting.run()


class _Counting:
    """The splits of one job, counted by this process."""

    def __init__(self, store: StoreDirectory, vocabulary: Vocabulary, tokenizer: Tokenizer, job: dict, inputs: list[Input],
                 threads: int, progress: Callable[[int], None], seen_as: list[tuple[dict, dict]] | None) -> None:
        self._store, self._vocabulary, self._tokenizer, self._job, self._inputs = store, vocabulary, tokenizer, job, inputs
        self._threads, self._progress, self._seen_as = threads, progress, seen_as
        self._router = Router(len(store.shards), store.root.routing())
        self._idle: list[Worker] = []
        self._stop = threading.Event()
        self._tidying = [threading.Lock() for _ in store.shards]
        self._told: set[int] = set()           # splits whose bytes progress has been told of

    def run(self) -> None:
        """Count, and wait for the splits that others count."""
        left, wait_s = self._pass(None), LOOK_S
        while left:
            time.sleep(wait_s)
            done = self._done()
            wait_s = min(LOOK_MOST_S, 1.5 * wait_s) if left.isdisjoint(done) else LOOK_S
            left = {number for number in left if number not in done}
            ours = {number for number in left if self._store.claim(self._job["id"], number)}
            if ours:
                left = self._pass(ours) | left - ours

    def look(self) -> None:
        """Tell progress what others have counted."""
        self._done()

    def _done(self) -> dict[int, dict]:
        """Return the ledger rows of the splits that every shard has."""
        ledgers = [shard.splits(self._job["id"]) for shard in self._store.shards]
        everywhere = set(ledgers[0]).intersection(*ledgers[1:])
        done = {number: ledgers[0][number] for number in everywhere}
        for number, row in done.items():
            self._tell(number, row)
        return done

    def _tell(self, number: int, row: dict) -> None:
        if number not in self._told:
            self._told.add(number)
            self._progress(raw_bytes(row))

    def _pass(self, ours: set[int] | None) -> set[int]:
        """Count the splits that are ours, None being all that nobody has claimed; return the others."""
        done, left = self._done(), set()
        # Where shards are elsewhere, the next split is counted while this one is on its way; here a thread does it all.
        with ThreadPoolExecutor(self._threads) as pool, ThreadPoolExecutor(self._threads) as landing:
            running: set[Future] = set()

            def land(at_most: int) -> None:
                """Wait until so many splits are at work or on their way."""
                nonlocal running
                while len(running) > at_most:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        result = future.result()
                        if callable(result):
                            running.add(landing.submit(result))
                        else:
                            self._tell(*result)

            try:
                for task in tasks(self._inputs, self._job["split_bytes"], done):
                    if not (self._store.claim(self._job["id"], task.number) if ours is None else task.number in ours):
                        left.add(task.number)
                        continue
                    running.add(pool.submit(self._work, task))
                    del task               # the text lives as long as its split is being counted
                    land(self._threads * (2 if self._store.elsewhere else 1) - 1)
                land(0)
            except BaseException:
                self._stop.set()
                self._store.hasten()
                raise
        return left if ours is None else set()

    def _work(self, task: Task) -> tuple[int, dict] | Callable[[], tuple[int, dict]]:
        """Count one split; return its number and its row in the ledger, or, where it is on its way, what waits for it."""
        job, order, shards = self._job, self._store.identity["order"], self._store.shards
        row = {"input": task.input, "start": task.split.start, "end": task.split.end, "raw": task.split.raw}
        if self._stop.is_set():
            return task.number, row
        worker = self._idle.pop() if self._idle else Worker()
        try:
            split, source = task.split, self._inputs[task.input]
            tokenizer = self._tokenizer.for_kind(source.kind)
            text = tokenizer.prepare(split.data, errors=job["encoding_errors"], name=source.name, locate=split.locate)
            skip = job["reserved"] == "skip"
            tokens, sentences, reserved, chunks = worker.count(text, order, self._router, self._vocabulary, skip,
                                                               job["command"] == "forget", _times(split, tokenizer))
            if reserved >= 0:
                raise _reserved_word(text, reserved, tokenizer, split, source.name)
            self._vocabulary.store_new(self._store.root.add_words)
            # words: a root that knows fewer has lost some that this split's n-grams are made of
            seen = task.seen
            if self._seen_as is not None and seen == self._seen_as[task.input][0]:
                seen = self._seen_as[task.input][1]
            row |= {"tokens": tokens, "sentences": sentences, "words": len(self._vocabulary), "seen": seen,
                    "time": time.time()}
            sent = [shard.begin_apply(job["id"], task.number, job["version"], shard_chunks, row, label=job["label"])
                    for shard, shard_chunks in zip(shards, chunks, strict=True)]
            number = task.number
            return (lambda: self._land(number, row, sent)) if self._store.elsewhere else self._land(number, row, sent)
        finally:
            self._idle.append(worker)

    def _land(self, number: int, row: dict, sent: list[Callable[[], bool]]) -> tuple[int, dict]:
        """Wait until a split is in all shards, and merge where runs have become many."""
        job = self._job
        for shard, finish in zip(self._store.shards, sent, strict=True):
            finish()
            if self._tidying[shard.shard].acquire(blocking=False):      # else another worker is at it
                try:
                    # the root's number of words: splits of other workers have ids that we do not know of
                    shard.run(tidy, order=self._store.identity["order"], n_words=self._store.root.next_word(),
                              version=job["version"], job=job["id"])
                finally:
                    self._tidying[shard.shard].release()
        return number, row


def _times(split: Split, tokenizer: Tokenizer) -> np.ndarray | None:
    """Return how often each sentence of a split counts, which the tokenizer may have made of a part of a line; None: once."""
    if split.times is None:
        return None
    times, parts = np.frombuffer(split.times, np.int64), tokenizer.sentences_of(split.data)
    return times if parts is None else np.repeat(times, parts)


def _reserved_word(text: bytes, offset: int, tokenizer: Tokenizer, split: Split, name: str) -> DataError:
    line = tokenizer.line_of(split.data, text.count(b"\n", 0, offset))
    word = text[offset:].split(b"\n", 1)[0].split()[0].decode("utf-8", "replace")
    # Within the line the tokenizer may have moved the word.
    begin = 0
    for _ in range(line):
        begin = split.data.index(b"\n", begin) + 1
    number, place = split.locate(begin)
    return DataError(f'{name}: line {number}: the word "{word}" is reserved; remove it, or use --reserved skip to treat it as '
                     "white space", path=name, line=number, offset=place)

"""Make a store of counts in Google's n-gram text format, as `kvps export --counts` writes it (kvps/lm/google.py).

    STEP 1  the 1-grams are the vocabulary
    STEP 2  read all files: those of the highest order, and n-grams that begin with <s>, are what a store holds (assemble.py)
    STEP 3  before the store takes its name, export every order of it again and compare that with the files, byte by byte: so
            counts of lower orders that do not follow from the higher ones, and n-grams out of order or twice, are found
    STEP 4  look whether every n-gram is followed as often as it occurs (kvps/lm/balance.py)

What is found is refused with file and line, and there is no store. A cycle of n-grams that no sentence enters is not found:
it does no harm. The counts do not tell which texts they come from, so text of theirs is not known as counted already; it is
forgotten as exactly as any.
"""
from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kvps._counts_read import PROBLEMS, read_counts
from kvps.errors import ArgumentError, DataError
from kvps.jobs.assemble import MAX_COUNT, Assembly, Progress, Some, history_row
from kvps.jobs.train import DEFAULT_SHARDS, MAX_ORDER
from kvps.lm.balance import unbalanced
from kvps.lm.listing import dump
from kvps.lm.ordered import text_order
from kvps.store import creation
from kvps.store.directory import StoreDirectory, open_store
from kvps.text.corpus import DEFAULT_MAX_RATIO, Input, resolve
from kvps.text.tokenize import Tokenizer
from kvps.text.vocabulary import BOS, EOS, SPECIALS, UNK, Vocabulary
from kvps.units import thread_count

SPLIT_BYTES = 4 << 20          # of a file, read at once: some 40 MB with what sorting takes


def train_from_counts(out: str | Path, arguments: Sequence[str | Path], *, order: int | None = None, shards: int = DEFAULT_SHARDS,
                      tokenizer: str = "whitespace", lowercase: bool = False, normalize: str | None = None,
                      split_sentences: bool = False, max_ratio: int = DEFAULT_MAX_RATIO,
                      threads: int | None = None, scratch: Path | None = None,
                      progress: Progress = lambda stage, done, total: None) -> dict:
    """Make a store of counts; where they have <unk>, its vocabulary is closed.

    Args:
        arguments: folders as `kvps export --counts` makes them, or files of n-grams of one order each; those of one order in
            their order. Of files named `total` and `*.idx` only the names are looked at.
        order: expected; what the files have by default.
        tokenizer, lowercase: of text that is added later.
        max_ratio: as in resolve().
        scratch: folder for temporary files; beside the counts by default.
        progress: called with a stage and (n-grams done, in all).

    Raises:
        DataError: the counts are not those of any text; `path` and `line` tell where that shows.

    Returns:
        {"command", "version", "tokens", "sentences", "inputs": how many files, "already": {}}.
    """
    out = Path(os.path.abspath(out))
    words = Tokenizer.from_spec(tokenizer, lowercase, normalize=normalize, split_sentences=split_sentences, trusted=True)
    creation.refuse_place(out, force=False)
    counts = _Counts(resolve(arguments, max_ratio=max_ratio), order)
    identity = {"tokenizer": words.to_json()} | ({"closed": True} if counts.closed else {})
    made = Assembly(counts.order, shards, counts.vocabulary, total=0, threads=thread_count(threads), progress=progress)
    made.make(out, counts.parts(), lambda: [history_row("train", counts.history, counts.totals)], lambda: counts.totals,
              command="train", identity=identity, verify=lambda folder: counts.verify(folder, threads, scratch, progress))
    return {"command": "train", "version": 1, **counts.totals, "inputs": len(counts.history), "already": {}}


@dataclasses.dataclass
class _File:
    """A file of k-grams."""

    input: Input
    k: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number of the first line, whole lines)."""
        line = 1
        for split in self.input.splits(SPLIT_BYTES):
            data = split.data if split.data.endswith(b"\n") else split.data + b"\n"
            yield line, data
            line += data.count(b"\n")

    def refusal(self, line: int, what: str) -> DataError:
        """Return the error about a line."""
        return DataError(f"{self.input.name}: line {line}: {what}", path=self.input.name, line=line)


class _Counts:
    """The files."""

    def __init__(self, inputs: Iterable[Input], order: int | None) -> None:
        """Find out which orders there are, and run step 1."""
        self.files: dict[int, list[_File]] = {}
        self._indexes: dict[int, str] = {}     # an order without any n-gram has nothing else
        self.history = []
        for item in inputs:
            base = os.path.basename(item.name)
            if base == "total":
                continue
            if (index := re.fullmatch(r"([1-8])gm\.idx", base)) is not None:
                self._indexes[int(index[1])] = item.name
                continue
            if item.kind != "text":
                raise DataError(f"{item.name}: is no file of n-grams with their counts", path=item.name)
            k = _order_of(item)
            self.files.setdefault(k, []).append(_File(item, k))
            self.history.append({"name": item.name, "digest": f"counts {item.digest()}"})
        if not self.files:
            raise DataError("no file of n-grams with their counts")
        top = max(self.files)
        self.order, first = max([top, *self._indexes]), self.files[top][0].input.name
        missing = [k for k in range(1, self.order + 1) if k not in self.files and k not in self._indexes]
        if missing:
            raise DataError(f"{first}: has {top}-grams, and no file has {' or '.join(f'{k}-grams' for k in missing)}; a "
                            "store needs those of all orders", path=first)
        if order not in (None, self.order):
            raise ArgumentError(f"{first}: is with {self.order}-grams, so the store will be of order {self.order}, not {order}")
        self._tokens, self._sentences, self.closed, self._turn = 0, 0, False, threading.Lock()
        self.vocabulary = Vocabulary()
        for file in self.files.get(1, []):
            self._add_words(file)
        self._frozen = self.vocabulary.table.frozen(np.ones(len(self.vocabulary), np.uint8))

    @property
    def totals(self) -> dict[str, int]:
        """The tokens and sentences that the counts add up to, once all is read."""
        return {"tokens": self._tokens, "sentences": self._sentences}

    def _add_words(self, file: _File) -> None:
        table = self.vocabulary.table
        for first, data in file.lines():
            for i, line in enumerate(data.split(b"\n")[:-1]):
                word = line.partition(b"\t")[0]
                try:
                    word.decode()
                except UnicodeDecodeError as exc:
                    raise file.refusal(first + i, f"not UTF-8 (byte 0x{word[exc.start]:02x})") from exc
                table.add(word)
                self.closed = self.closed or word == SPECIALS[UNK]

    # STEP 2

    def parts(self) -> list[Callable[[], Iterator[Some]]]:
        """Return what gives the n-grams of each file; those of the highest order first, which take longest."""
        return [lambda file=file: self._ngrams(file) for k in sorted(self.files, reverse=True) for file in self.files[k]]

    def _ngrams(self, file: _File) -> Iterator[Some]:
        before, k = b"", file.k
        for first, data in file.lines():
            n, problem, ids, counts, before = read_counts(np.frombuffer(data, np.uint8), k, *self._frozen, before)
            if problem:
                line = data.split(b"\n", n + 1)[n]
                shown = line[:60].decode("utf-8", "backslashreplace") + ("..." if len(line) > 60 else "")
                raise file.refusal(first + n, f"{PROBLEMS[problem]}: found {shown!r} among the {k}-grams")
            if self.order == 1:
                ours = ids[:, 0] != BOS
            elif k == self.order:
                ours = np.ones(n, bool)
            else:                              # the beginning of a sentence, and shorter than others
                ours = (ids[:, 0] == BOS) & (k > 1)
            ids, counts = ids[ours], counts[ours]
            if not len(counts):
                continue
            rows = np.full((len(ids), self.order), BOS, np.uint32)
            rows[:, :k - 1] = ids[:, text_order(k)[:-1]] if k > 1 else ids[:, :0]
            rows[:, -1] = ids[:, -1]
            ended = ids[:, -1] == EOS
            # As two halves, which do not wrap.
            for last, name in ((ended, "_sentences"), (~ended, "_tokens")):
                chosen = counts[last]
                self._add(file, name, (int((chosen >> 31).sum()) << 31) + int((chosen & 0x7FFFFFFF).sum()))
            yield None, rows, counts

    def _add(self, file: _File, name: str, n: int) -> None:
        with self._turn:                       # files are read side by side
            setattr(self, name, getattr(self, name) + n)
        if self._tokens + self._sentences > MAX_COUNT:
            name = file.input.name
            raise DataError(f"{name}: the counts add up to more than a store can hold, {MAX_COUNT}", path=name)

    # STEPS 3 and 4

    def verify(self, folder: Path, threads: int | None, scratch: Path | None, progress: Progress) -> None:
        """Raise DataError unless the new store has the counts of the files, of every order, and they are those of a text."""
        with open_store(folder) as store:
            for k in range(1, self.order + 1):
                progress("comparing", k, self.order)
                self._compare(store, k, threads, scratch)
            with store.snapshot() as snapshot:
                wrong = unbalanced(snapshot, self.order, len(self.vocabulary))
        for found in wrong[:1]:
            gram = b" ".join(self.vocabulary.table.word(i) for i in found.ids)
            k = len(found.ids)
            for file in self.files.get(k, []):
                for first, data in file.lines():
                    at = (b"\n" + data).find(b"\n" + gram + b"\t")
                    if at >= 0:
                        raise file.refusal(first + data.count(b"\n", 0, at),
                                           f"{gram.decode()!r} occurs {found.count} times, but the {k + 1}-grams that begin with "
                                           f"it {found.followed} times; only </s> is followed by nothing")

    def _compare(self, store: StoreDirectory, k: int, threads: int | None, scratch: Path | None) -> None:
        """Compare the files of an order with what the store has of it."""
        blocks = dump(store, k, in_order=True, threads=threads, scratch=scratch)
        rest = b""
        name = self._indexes.get(k, "")
        for file in self.files.get(k, []):
            name = file.input.name
            for first, data in file.lines():
                while len(rest) < len(data) and (block := next(blocks, None)) is not None:
                    rest += bytes(block)
                if not rest.startswith(data):
                    self._refuse(file, first, data, rest)
                rest = rest[len(data):]
        while not rest and (block := next(blocks, None)) is not None:
            rest = bytes(block)
        if rest:
            line = rest.partition(b"\n")[0]
            raise DataError(f"{name}: ends before {_shown(line)}, which follows from the n-grams of other orders", path=name)

    def _refuse(self, file: _File, first: int, data: bytes, rest: bytes) -> None:
        """Raise the error about the first line of `data` with which `rest` does not go on."""
        ours, theirs = data.split(b"\n"), [*rest.split(b"\n"), b""]
        i = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b or i == len(theirs) - 2)
        what = _shown(theirs[i]) if theirs[i] else "the end"
        raise file.refusal(first + i, f"found {_shown(ours[i])}, but {what} is what follows from the n-grams of "
                           "other orders; are the counts complete, and the files in byte order?")


def _shown(line: bytes) -> str:
    text = line[:80].decode("utf-8", "backslashreplace")
    return repr(text + ("..." if len(line) > 80 else "")).replace("\\t", " ")


def _order_of(item: Input) -> int:
    """Return how many words the first line of a file has before its tab."""
    for split in item.splits(1):
        gram, tab, _ = split.data.partition(b"\n")[0].partition(b"\t")
        k = gram.count(b" ") + 1
        if not tab or not 1 <= k <= MAX_ORDER:
            raise DataError(f"{item.name}: line 1: expected an n-gram of 1 to {MAX_ORDER} words, a tab and a count",
                            path=item.name, line=1)
        return k
    raise DataError(f"{item.name}: is empty", path=item.name)

"""Make a model of an ARPA file: the compiled form, with the probabilities and back-offs of the file instead of counts.

Read as KenLM reads it, in any order of its lines, one pass, bounded memory; any order from 1 on. Every n-gram's context
(all its words but the last) has to be listed, as KenLM wants it; its last words need not be.

    STEP 1  the 1-grams become the vocabulary; longer n-grams are dealt by hash into partitions through scratch files:
            (hash, log10 p, log10 back-off) of each, (hash, line) of its context, (hash, 0) of all its words but the first
    STEP 2  each partition's records go into its buckets, and the buckets to the model's file; an n-gram that is the context
            of others is marked, so that scoring looks no longer one up behind those that are not. Where the last words of all
            are listed too, as in what lmplz writes, it need not look behind those that are not listed either

Layout of the file: container.py; of the probabilities: ext/kvps/_arpa_read.pyx `code_of`.
"""
from __future__ import annotations

import abc
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kvps._arpa import pack_text_keys
from kvps._arpa_read import BLANK_LINE, PROBLEMS, read_ngrams, read_unigrams
from kvps._given import SLOTS, fill, link
from kvps._spill import Spill
from kvps._statistics import chain_start
from kvps._vocabulary import WordTable
from kvps.errors import ArgumentError, DataError
from kvps.lm import container
from kvps.lm.compile import BUCKET_BYTES, MAX_PARTITIONS, PARTITION_RECORDS, SeedCollision, section
from kvps.lm.ordered import Partitions, unpacked
from kvps.lm.statistics import Statistics
from kvps.pools import Pool, windowed
from kvps.ps.runs import bits_for
from kvps.store import files
from kvps.text.streams import DEFAULT_MAX_RATIO, compression_of, failures_named, open_stream
from kvps.text.tokenize import Tokenizer
from kvps.text.vocabulary import BOS, EOS, FIRST_WORD, SPECIALS, UNK

log = logging.getLogger("kvps")

MAX_ORDER = 8                  # as a store's
MAX_LINE_BYTES = 32 << 20      # as of a text: a line has to fit into memory several times over
BLOCK_BYTES = 1 << 20
LOAD = 0.8                     # of buckets of 5 slots, which overflow sooner than those of 9 in a store's models
NGRAM_BYTES = 16               # of a record: hash, probability, back-off
PART_BYTES = 12                # hash, line
SHORTEST_LINE = 6              # of an n-gram: "0\ta b\n"
MISSING_UNK = 100.0            # KenLM takes -100 for log10 p of an <unk> that is not listed


def import_arpa(source: str | Path, path: Path, *, tokenizer: Tokenizer, max_ratio: int = DEFAULT_MAX_RATIO,
                list_ngrams: bool = True, threads: int = 1, scratch: Path | None = None,
                progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the model file `path` from an ARPA file, plain or compressed (.gz, .bz2, .xz, .zst).

    Args:
        tokenizer: what makes words of the text that the model is to score; recorded.
        max_ratio: as in open_stream().
        list_ngrams: the model file has a list of the n-grams too, 4 bytes for each of their words and 4 more.
        scratch: folder for temporary files, some 40 bytes per n-gram; that of `path` by default.
        progress: called with (bytes read, bytes in all), as they lie on disk.

    Raises:
        DataError: the file is not as KenLM accepts it; `line` tells where. ArgumentError: `path` is that file.

    Returns:
        {"path", "order", "ngrams": {order: n}, "bytes": of the model file}.
    """
    if path.exists() and os.path.exists(source) and path.samefile(source):
        raise ArgumentError(f"{path}: is the ARPA file itself; name another file for its model")
    for seed in range(8):
        with contextlib.suppress(SeedCollision), contextlib.ExitStack() as stack:
            made = _Import(stack, os.fspath(source), seed, max_ratio, scratch or path.absolute().parent, list_ngrams, progress)
            return made.write(path, tokenizer, threads)
    raise AssertionError("eight seeds in a row collided: the hash is broken")


class _Lines:
    """The lines of a file: one at a time, or many as one block. `line` is the number of the last one taken."""

    def __init__(self, name: str, max_ratio: int, stack: contextlib.ExitStack, progress: Callable[[int, int], None]) -> None:
        compression = compression_of(name)
        if not os.path.exists(name):
            raise DataError(f"{name}: there is no such file", path=name)
        stack.enter_context(failures_named(name, compression))
        self.name, self.line = name, 0
        self._total = os.stat(name).st_size
        self.at_most = self._total * (max(max_ratio, 1) if compression else 1)         # bytes of text, roughly
        self._stream = stack.enter_context(open_stream(name, compression, max_ratio=max_ratio))
        self._progress, self._read, self._ended = progress, 0, False
        self._data, self._at, self._end = b"", 0, 0    # whole lines: data[at:end]

    def refusal(self, what: str, line: int | None = None) -> DataError:
        """Return the error about a line; the one after the last one taken by default."""
        line = self.line + 1 if line is None else line
        return DataError(f"{self.name}: line {line}: {what}", path=self.name, line=line)

    def block(self) -> memoryview:
        """Return the next lines, at least one, not taken yet; nothing at the end of the file."""
        while self._at == self._end and not self._ended:
            rest = self._data[self._end:]
            if len(rest) > MAX_LINE_BYTES:
                raise self.refusal(f"is longer than {MAX_LINE_BYTES >> 20} MiB")
            piece = self._stream.read(BLOCK_BYTES)
            self._read += len(piece)
            self._progress(self._stream.raw_at(self._read), self._total)
            if not piece:
                self._ended = True
                piece = b"\n" if rest else b""
            self._data, self._at = rest + piece, 0
            self._end = self._data.rfind(b"\n", len(rest)) + 1 or 0
        return memoryview(self._data)[self._at:self._end]

    def take(self, n_bytes: int, n_lines: int) -> None:
        """Go on behind the first lines of the block."""
        self._at += n_bytes
        self.line += n_lines

    def skip_blank(self) -> None:
        """Take lines of nothing but white space, of which there may be very many."""
        while block := self.block():
            text = bytes(block)
            rest = text.lstrip()
            end = text.rfind(b"\n", 0, len(text) - len(rest)) + 1
            self.take(end, text.count(b"\n", 0, end))
            if rest:
                return

    def next(self) -> bytes | None:
        """Take one line, without what stands for its end; None at the end of the file."""
        block = self.block()
        if not block:
            return None
        end = self._data.index(b"\n", self._at)
        line = self._data[self._at:end]
        self.take(end + 1 - self._at, 1)
        return line.rstrip(b"\r")


def _shown(line: bytes | None) -> str:
    if line is None:
        return "the end of the file"
    return repr(line[:60].decode("utf-8", "backslashreplace")) + ("..." if len(line) > 60 else "")


class _Reader(abc.ABC):
    """One pass over a file: the header, then read()."""

    def __init__(self, stack: contextlib.ExitStack, name: str, seed: int, max_ratio: int,
                 progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Open it and read the header."""
        self.start = chain_start(seed)
        self.lines = _Lines(name, max_ratio, stack, progress)
        self.sizes = self._header()
        self.order = len(self.sizes)

    @abc.abstractmethod
    def take(self, k: int, first_line: int, hashes: np.ndarray, codes: np.ndarray, parents: np.ndarray, endings: np.ndarray,
             rows: np.ndarray) -> None:
        """Get what read_ngrams() made of lines of order k."""

    def read(self) -> None:
        """Read all the n-grams."""
        self._unigrams()
        for k in range(2, self.order + 1):
            self._ngrams(k)
        if (line := self._after_blanks()) != b"\\end\\":
            raise self.lines.refusal(f"expected \\end\\ after the n-grams that the header counts, found {_shown(line)}",
                                     self.lines.line)
        if (line := self._after_blanks()) is not None:
            raise self.lines.refusal(f"expected nothing after \\end\\, found {_shown(line)}", self.lines.line)

    def _after_blanks(self) -> bytes | None:
        """Take the next line that is not blank."""
        self.lines.skip_blank()
        return self.lines.next()

    def _header(self) -> list[int]:
        """Read what stands before the 1-grams: the numbers of n-grams."""
        while (line := self._after_blanks()) is not None and line.startswith(b"#"):
            pass
        if line != b"\\data\\":
            if line is not None and line.startswith(container.KENLM):
                raise self.lines.refusal("is a binary file of KenLM; import the ARPA file that it was made from", self.lines.line)
            raise self.lines.refusal(f"is no ARPA file: expected \\data\\, found {_shown(line)}", max(self.lines.line, 1))
        sizes: list[int] = []
        while (line := self.lines.next()) is not None and line.strip():
            found = re.fullmatch(rb"ngram +\+?(\d{1,3})=[ \t]*\+?(\d{1,18})(\D.*)?", line)     # what follows is ignored
            if found is None or int(found[1]) != len(sizes) + 1:
                raise self.lines.refusal(f"expected ngram {len(sizes) + 1}=COUNT, or a blank line, found {_shown(line)}",
                                         self.lines.line)
            sizes.append(int(found[2]))
        if not sizes:
            raise self.lines.refusal("expected ngram 1=COUNT", self.lines.line)
        if len(sizes) > MAX_ORDER:
            raise self.lines.refusal(f"is of order {len(sizes)}; kvps reads orders up to {MAX_ORDER}", self.lines.line)
        return sizes

    def _section(self, k: int, take: Callable[[np.ndarray, int], tuple[int, int, int]]) -> None:
        """Read the n-grams of an order: take(lines, how many are left) reads some."""
        line = self._after_blanks()
        if line != b"\\%d-grams:" % k:
            raise self.lines.refusal(f"expected \\{k}-grams: after the {k - 1}-grams that the header counts, found {_shown(line)}",
                                     max(self.lines.line, 1))
        left = self.sizes[k - 1]
        while left:
            block = self.lines.block()
            if not block:
                raise self.lines.refusal(f"the file ends {left:,} {k}-grams before what its header says", self.lines.line)
            n, n_bytes, problem = take(np.frombuffer(block, np.uint8), left)
            self.lines.take(n_bytes, n)
            left -= n
            if problem:
                line = self.lines.next()
            if problem and problem != BLANK_LINE:
                raise self.lines.refusal(f"{PROBLEMS[problem]}: found {_shown(line)}, number {self.sizes[k - 1] - left + 1:,} of "
                                         f"{self.sizes[k - 1]:,} {k}-grams", self.lines.line)

    def _unigrams(self) -> None:
        table, highest = WordTable(), self.order == 1
        for word in SPECIALS:
            table.add(word)
        codes, backoffs = [-1] * len(SPECIALS), [0] * len(SPECIALS)
        self._section(1, lambda text, left: read_unigrams(text, left, table, highest, codes, backoffs))
        for word in (BOS, EOS):
            if codes[word] < 0:
                raise self.lines.refusal(f"expected {SPECIALS[word].decode()} among the 1-grams", self.lines.line)
        self.sizes[0] = sum(code >= 0 for code in codes)       # a line for a word that was there says nothing
        if codes[UNK] < 0:
            log.warning("%s: has no <unk>; log10 p of unknown words is -100, as in KenLM", self.lines.name)
            codes[UNK] = int(np.float32(MISSING_UNK).view(np.uint32)) + 1
        # What text asks for most has the lowest ids, and so lies together.
        listed = np.array(codes, np.uint64)
        by_probability = np.argsort(listed[FIRST_WORD:], kind="stable") + FIRST_WORD
        self.numbers = np.concatenate([np.arange(FIRST_WORD), by_probability]).astype(np.uint32)
        self.codes, self.backoffs = listed[self.numbers], np.array(backoffs, np.uint32)[self.numbers]
        self.words = table.in_order(self.numbers).frozen(np.ones(len(codes), np.uint8))
        self.is_context = self.backoffs << 1 != 0          # of either sign; more words are found to be with the 2-grams

    def _ngrams(self, k: int) -> None:
        def take(text: np.ndarray, left: int) -> tuple[int, int, int]:
            n, n_bytes, problem, arrays = read_ngrams(text, left, k, k == self.order, self.start, *self.words)
            self.take(k, self.lines.line + 1, *arrays)
            return n, n_bytes, problem

        self._section(k, take)


class _Finder(_Reader):
    """A pass that looks where the n-gram with some hash is listed: `found` has the lines."""

    def find(self, hash: int) -> list[int]:
        """Return the lines."""
        self._hash, self._found = hash, []
        self.read()
        return self._found

    def take(self, k: int, first_line: int, hashes: np.ndarray, *rest: np.ndarray) -> None:
        """Look at some lines."""
        self._found += (first_line + np.flatnonzero(hashes == np.uint64(self._hash))).tolist()


class _Import(_Reader):
    """One attempt to make a model, with one seed."""

    def __init__(self, stack: contextlib.ExitStack, name: str, seed: int, max_ratio: int, scratch: Path,
                 list_ngrams: bool, progress: Callable[[int, int], None]) -> None:
        """Run step 1."""
        super().__init__(stack, name, seed, max_ratio, progress)
        self._seed, self._max_ratio, self._scratch = seed, max_ratio, scratch
        # A header may claim anything: no more n-grams are expected than the file has room for.
        expected = min(sum(self.sizes[1:]), self.lines.at_most // SHORTEST_LINE)
        self.n_partitions = 1
        while self.n_partitions * PARTITION_RECORDS < expected and self.n_partitions < MAX_PARTITIONS:
            self.n_partitions *= 2
        self._stack, self._list_ngrams = stack, list_ngrams
        self._listed: dict[int, Partitions] = {}
        self._ngrams_dealt, self._parts_dealt = (Spill(stack.enter_context(files.scratch(scratch)), self.n_partitions, n_bytes)
                                                 for n_bytes in (NGRAM_BYTES, PART_BYTES))
        self.read()
        with files.reporting(scratch):
            self._ngrams_dealt.finish()
            self._parts_dealt.finish()
        for k in range(2, self.order + 1) if list_ngrams else ():
            self._partitions(k).finish(0)

    def take(self, k: int, first_line: int, hashes: np.ndarray, codes: np.ndarray, parents: np.ndarray, endings: np.ndarray,
             rows: np.ndarray) -> None:
        """Deal n-grams into the partitions."""
        with files.reporting(self._scratch):
            if self._list_ngrams:
                in_order = np.ascontiguousarray(rows.reshape(-1, k)[:, [*range(k - 2, -1, -1), k - 1]])
                keys = pack_text_keys(in_order, codes[::2].copy(), bits_for(len(self.codes)))
                self._partitions(k).add(0, keys)
            self._ngrams_dealt.add_hashed(hashes, codes)
            if k == 2:                 # every word is among the 1-grams
                self.is_context[parents] = True
            else:
                lines = np.arange(first_line, first_line + len(parents))
                self._parts_dealt.add_hashed(parents, np.minimum(lines, 0xFFFFFFFF).astype(np.uint32))
                self._parts_dealt.add_hashed(endings, np.zeros(len(endings), np.uint32))

    def write(self, path: Path, tokenizer: Tokenizer, threads: int) -> dict:
        """Run step 2: write the model file."""
        n_buckets = max(1, int(np.ceil(int(self._ngrams_dealt.sizes().max()) / (SLOTS * LOAD))))
        bits = (self.n_partitions - 1).bit_length()

        def region(partition: int) -> np.ndarray:
            out = np.zeros(n_buckets * BUCKET_BYTES, np.uint8)
            with files.reporting(self._scratch):
                ngrams, parts = self._ngrams_dealt.read(partition), self._parts_dealt.read(partition)
            # Shorter n-grams come before longer ones: what is asked for most is in the first bucket then.
            if not fill(out, bits, ngrams):
                self._refuse_twice(ngrams)
                raise SeedCollision
            line, closed = link(out, bits, parts)
            if line:
                raise self.lines.refusal("the context of this n-gram (all its words but the last) is not listed", line)
            if not closed:
                meta["closed"] = False
            return out

        ngrams = dict(enumerate(self.sizes, 1))
        slots, ends, blob = self.words
        statistics = Statistics(self.order, 0, 0, 0, len(self.codes) - FIRST_WORD, ngrams, {})
        meta = {"format": container.MODEL_FORMAT, "kind": "arpa", "order": self.order, "exact": False, "seed": self.start,
                "partitions": self.n_partitions, "closed": True, "tokenizer": tokenizer.to_json(),
                "statistics": statistics.to_json()}
        with Pool(threads) as pool:
            def written() -> Iterator:
                # 0 stands for a word that is no context; the bits of no finite back-off are 2**32 - 1.
                contexts = np.where(self.is_context, self.backoffs + np.uint32(1), np.uint32(0))
                for name, array in (("unigrams", self.codes), ("unigram_contexts", contexts), ("numbers", self.numbers),
                                    ("slots", slots), ("ends", ends), ("blob", blob)):
                    yield section(name, array)
                for k, part in self._listed.items():
                    yield f"listed.{k}", "I", part.n_keys() * (k + 1), self._rows(k, part)
                yield ("entries", "B", n_buckets * BUCKET_BYTES * self.n_partitions,
                       windowed(pool, region, range(self.n_partitions), 2 * threads))

            container.write(path, meta, written())
        return {"path": os.fspath(path), "order": self.order, "ngrams": ngrams, "bytes": path.stat().st_size}

    def _partitions(self, k: int) -> Partitions:
        """Return those of the list of k-grams."""
        if k not in self._listed:
            mass = 10.0 ** -(self.codes - 1).astype(np.uint32).view(np.float32).astype(np.float64)
            mass[BOS] = mass[EOS]              # it is given, with probability 1
            expected = min(self.sizes[k - 1], self.lines.at_most // SHORTEST_LINE)
            self._listed[k] = Partitions(self._stack, k, bits_for(len(mass)), expected, 1, mass, self._scratch)
        return self._listed[k]

    def _rows(self, k: int, part: Partitions) -> Iterator[np.ndarray]:
        """Yield the list of k-grams with their probabilities."""
        for i in range(part.n):
            keys = part.read(i)
            codes = keys.reshape(-1, part.width)[:, 0] & np.uint64(0xFFFFFFFF)
            yield np.column_stack([unpacked(keys, k, bits_for(len(self.codes))), codes.astype(np.uint32)]).reshape(-1)

    def _refuse_twice(self, records: np.ndarray) -> None:
        """Raise DataError if an n-gram is there twice, for then no seed parts the two."""
        hashes = np.sort(np.ascontiguousarray(records[:, :8]).view(np.uint64).reshape(-1))
        twice = np.flatnonzero(hashes[1:] == hashes[:-1])
        if len(twice):
            with contextlib.ExitStack() as stack:
                lines = _Finder(stack, self.lines.name, self._seed, self._max_ratio).find(int(hashes[twice[0]]))
            raise self.lines.refusal(f"this n-gram is listed twice; it is also on line {lines[0]}", lines[1])

"""query: score the sentences on stdin; prints what KenLM's prints, byte for byte but for vocabulary ids.

A model is an ARPA file, a model made by our build_binary or `kvps import`, or the folder of a store. The id of a word is its
place among the 1-grams of the ARPA file, where <unk>, <s> and </s> have 0, 1 and 2.
"""
from __future__ import annotations

import getopt
import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kvps.compat import kenlm
from kvps.errors import DataError

USAGE = """Usage: query [-b] [-n] [-v summary|sentence|word] [-l lazy|populate|read|parallel] lm_file
-b: Do not buffer output.
-n: Do not wrap the input in <s> and </s>.
-v summary|sentence|word: Print statistics at this level.
   Can be used multiple times: -v summary -v sentence -v word
-l lazy|populate|read|parallel: No effect; a model is mapped.

Each word in the output is formatted as:
  word=vocab_id ngram_length log10(p(word|context))
where ngram_length is the length of n-gram matched.  A vocab_id of 0 indicates
the unknown word. Sentence-level output includes log10 probability of the
sentence and OOV count."""
LEVELS = {"2": (True, True, True), "1": (False, True, True), "0": (False, False, True)}     # word, sentence, summary
NAMES = ("word", "sentence", "summary")


def main(arguments: Sequence[str]) -> int:
    """Do what query does; return its exit code."""
    wanted, wrapped, flush = [False] * 3, True, False
    try:
        options, names = getopt.getopt(arguments, "bnv:l:")
        for option, value in options:
            if option == "-v" and value in LEVELS:
                wanted = [*LEVELS[value]]
            elif option == "-v" and value in NAMES:
                wanted[NAMES.index(value)] = True
            elif option == "-v" or (option == "-l" and value not in ("lazy", "populate", "read", "parallel")):
                raise getopt.GetoptError(value)
            wrapped, flush = wrapped and option != "-n", flush or option == "-b"
    except getopt.GetoptError:
        names = []
    if len(names) != 1:
        print(USAGE, file=sys.stderr)
        return 1
    try:
        model = kenlm.Model(names[0])
    except OSError as exc:
        raise DataError(str(exc), path=names[0]) from exc
    query(model, sys.stdin.buffer, sys.stdout.buffer.write, sys.stdout.buffer.flush if flush else lambda: None, wrapped,
          wanted if any(wanted) else [True] * 3)
    return 0


def query(model: kenlm.Model, lines: Iterator[bytes], write: Callable[[bytes], object], flush: Callable[[], object],
          wrapped: bool, wanted: Sequence[bool]) -> None:
    """Score lines and print."""
    words_too, sentences_too, summary_too = wanted
    single = struct.Struct("f")
    total = total_oov = 0.0
    n_oov = n_tokens = 0
    ids: dict[bytes, int] = {}
    for line in lines:
        whole = line.endswith(b"\n")           # text after the last newline gets no </s>, and no line of its own
        words = line.split()
        tokens = model.tokens(line, wrapped, wrapped and whole)
        if wrapped and whole:
            words.append(b"</s>")
        if words_too and words:
            for word in words:
                if word not in ids:
                    ids[word] = model.word_id(word)
            # KenLM's log10 of a probability of 1 is -0.
            write(b"".join(b"%s=%d %d %s\t" % (word, ids[word], length, shown(p or -0.0).encode())
                           for word, (p, length, _) in zip(words, tokens, strict=True)))
        sum_ = 0.0
        for p, _, oov in tokens:
            sum_ = single.unpack(single.pack(sum_ + p))[0]     # query adds up in float32
            if oov:
                total_oov += p
        n_tokens += len(tokens)
        if whole:
            n_here = sum(oov for _, _, oov in tokens)
            if sentences_too:
                write(b"Total: %s OOV: %d\n" % (shown(sum_).encode(), n_here))
            total += sum_
            n_oov += n_here
        flush()
    if summary_too:
        write(b"Perplexity including OOVs:\t%s\nPerplexity excluding OOVs:\t%s\nOOVs:\t%d\nTokens:\t%d\n" % (
            _perplexity(total, n_tokens).encode(), _perplexity(total - total_oov, n_tokens - n_oov).encode(), n_oov, n_tokens))


def shown(p: float) -> str:
    """Return a float32 as double-conversion shows it, with as few digits as tell it from others."""
    return _plain(str(np.float32(p)))


def _perplexity(total: float, n: int) -> str:
    if n == 0:
        return "NaN"
    try:
        return _plain(repr(math.pow(10.0, -(total / n))))
    except OverflowError:
        return "inf"


def _plain(text: str) -> str:
    """Return a number without what Python adds, in double-conversion's form: exponents below -6 and from 21 on only."""
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        sign, digits, at = mantissa.startswith("-"), mantissa.lstrip("-").replace(".", ""), int(exponent)
        if mantissa.endswith(".0"):
            digits = digits[:-1]
        if -7 < at < 21:
            text = "0." + "0" * (-at - 1) + digits if at < 0 else digits.ljust(at + 1, "0")
            if at >= 0 and len(digits) > at + 1:
                text = f"{digits[:at + 1]}.{digits[at + 1:]}"
            return "-" * sign + text
        return "-" * sign + digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{at}"
    return text.removesuffix(".0").replace("nan", "NaN")

"""lmplz: text to an ARPA file with modified Kneser-Ney, by way of a store that is made for it and goes afterwards."""
from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kvps.errors import ArgumentError, DataError
from kvps.jobs.train import Options, check_shape, run_inputs
from kvps.lm.arpa import Choices, export
from kvps.lm.statistics import FALLBACK
from kvps.store import files
from kvps.store.creation import create_store
from kvps.store.directory import StoreDirectory, open_store
from kvps.text.corpus import Input, read_once, resolve
from kvps.text.streams import SUFFIXES
from kvps.text.tokenize import MAGIC, PLAIN, Tokenizer
from kvps.units import cpu_count, parse_bytes

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class _Bytes(Tokenizer):
    """Words as lmplz has them: whatever bytes stand between separators, UTF-8 or not."""

    def prepare(self, data: bytes, **how: object) -> bytes:
        """Return the text as it is."""
        return data


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End as lmplz does."""
        raise ArgumentError(message)


def _boolean(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise argparse.ArgumentTypeError(f"the argument ('{text}') is invalid")
    return text.lower() in _TRUE


def _size(text: str) -> int:
    """Return a size as GNU sort reads it: without a unit in KiB."""
    return parse_bytes(f"{text}K" if text.isdigit() else text)


def _refused(why: str) -> Callable[[str], NoReturn]:
    def refuse(text: str) -> NoReturn:
        raise argparse.ArgumentTypeError(why)
    return refuse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("lmplz", description="Builds language models with modified Kneser-Ney smoothing: KenLM's lmplz, by kvps. "
                     "The corpus is read from stdin, the ARPA file is written to stdout.")
    add = parser.add_argument
    add("-o", "--order", type=int, required=True, help="Order of the model, 1 to 8")
    add("--interpolate_unigrams", type=_boolean, nargs="?", const=True, default=True, metavar="arg",
        help="Interpolate the unigrams (default) as opposed to giving lots of mass to <unk>")
    add("--skip_symbols", action="store_true", help="Treat <s>, </s>, and <unk> as whitespace")
    add("-T", "--temp_prefix", default=os.environ.get("TMPDIR") or "/tmp/", metavar="arg", help="Temporary file prefix")
    add("-S", "--memory", type=_size, default="80%", metavar="arg", help="Memory for the text that is being counted")
    add("--vocab_pad", type=int, default=0, metavar="arg", help="Take the vocabulary for at least so large")
    add("--text", metavar="arg", help="Read text from a file instead of stdin")
    add("--arpa", metavar="arg", help="Write ARPA to a file instead of stdout")
    add("--prune", nargs="+", default=[], metavar="arg", help="Prune n-grams with count less than or equal to the given threshold")
    add("--limit_vocab_file", default="", metavar="arg", help="Prune n-grams with words that are not in this file")
    add("--discount_fallback", nargs="*", metavar="arg", help="Discounts of orders that have none of their own: 0.5 1 1.5")
    add("--verbose_header", action="store_true", help="Begin the ARPA file with what it was made of")
    add("--renumber", action="store_true", help="No effect: n-grams are sorted by their words")
    for name in ("minimum_block", "sort_block", "block_count", "vocab_estimate"):
        add(f"--{name}", metavar="arg", help="No effect")
    add("--intermediate", type=_refused("KenLM's intermediate files cannot be written"), metavar="arg", help="Not possible")
    add("--collapse_values", nargs=0, action=_Collapse, help="Not possible")
    return parser


class _Collapse(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> NoReturn:
        """Refuse it."""
        parser.error("--collapse_values: probabilities and back-offs cannot be collapsed into one value")


def main(arguments: Sequence[str]) -> int:
    """Do what lmplz does; return its exit code."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        print(_parser().format_help(), file=sys.stderr)
        return 1
    asked = _parser().parse_args(arguments)
    check_shape(asked.order, 1)
    choices = _choices(asked)
    choices.cuts(asked.order)                  # refuses what makes no sense, before anything is read
    prefix = asked.temp_prefix
    folder, start = (prefix, "lmplz") if os.path.isdir(prefix) else os.path.split(prefix)
    with files.reporting(Path(folder or ".")), tempfile.TemporaryDirectory(prefix=start, dir=folder or ".") as scratch:
        text = _input(asked.text, Path(scratch))
        create_store(place := Path(scratch) / "counts", asked.order, min(4, cpu_count()), PLAIN.to_json(), force=True)
        options = Options(reserved="skip" if asked.skip_symbols else "error", memory=asked.memory)
        with open_store(place, writable=True, command="train") as store:
            print(f"=== 1/2 Counting n-grams ===\nReading {text.name}", file=sys.stderr)
            done = _count(store, text, options)
            print(f"Unigram tokens {done['tokens']}\n=== 2/2 Writing the ARPA model ===", file=sys.stderr)
            with _output(asked.arpa) as out:
                if asked.verbose_header:
                    out.write(f"# Input file: {text.path if asked.text else text.name}\n# Token count: {done['tokens']}\n"
                              "# Smoothing: Modified Kneser-Ney\n".encode("utf-8", "surrogateescape"))
                made = export(store, "-", choices=choices, write=out.write)
        for order, n in made["ngrams"].items():
            print(order, n, file=sys.stderr)
    return 0


def _count(store: StoreDirectory, text: Input, options: Options) -> dict:
    """Count a text; what is said of it names lmplz's options."""
    if text.size == 0:
        raise DataError(f"{text.name}: no text to count", path=text.name)
    try:
        return run_inputs(store, "train", [text], _Bytes("whitespace", lowercase=False), options)
    except DataError as exc:
        raise DataError(str(exc).replace("--reserved skip", "--skip_symbols"), path=exc.path, line=exc.line) from exc


def _choices(asked: argparse.Namespace) -> Choices:
    """Return what of the model is to be written."""
    try:
        prune = tuple(int(bound) for bound in asked.prune)
        given = None if asked.discount_fallback is None else [float(d) for d in asked.discount_fallback] or [*FALLBACK]
    except ValueError as exc:
        raise ArgumentError(f"Bad number: {exc}") from exc
    if given is not None:
        if len(given) > 3:
            raise ArgumentError("Specify at most three fallback discounts: 1, 2, and 3+")
        given += [given[-1]] * (3 - len(given))
    vocabulary = asked.limit_vocab_file or None
    if vocabulary is not None:
        with files.reporting(Path(vocabulary)):
            vocabulary = Path(vocabulary).read_text("utf-8", "surrogateescape")
    if asked.vocab_pad and not asked.interpolate_unigrams:
        raise ArgumentError("--vocab_pad requires --interpolate_unigrams be on")
    return Choices(prune=prune, limit_vocab=vocabulary, interpolate_unigrams=asked.interpolate_unigrams, vocab_pad=asked.vocab_pad,
                   fallback=tuple(given or ()))


def _input(name: str | None, scratch: Path) -> Input:
    """Return the text; a file is text whatever its name, and unpacked where it begins as a compressed one does."""
    if name is None or read_once(name):
        found = resolve(["-" if name is None else name], spool_dir=scratch / "text")[0]
    else:
        found = Input(name, os.path.abspath(name))
        resolve([found.path])                  # says what is wrong with it
    with open(found.path, "rb") as file:
        begins = file.read(max(map(len, MAGIC)))
    packed = [SUFFIXES[ending] for magic, ending in MAGIC.items() if begins.startswith(magic)]
    return dataclasses.replace(found, options={"compression": packed[0], "max_ratio": 0}) if packed else found


def _output(name: str | None):
    """Return what the ARPA file is written to."""
    if name is None:
        return open(os.dup(sys.stdout.fileno()), "wb")
    with files.reporting(Path(name)):
        return open(name, "wb")

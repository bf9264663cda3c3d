"""kvps score: log10 probabilities of sentences and words, and perplexities of JSON records."""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from kvps.cli import options

if TYPE_CHECKING:
    from kvps.lm.scorer import Score


@click.command("score")
@options.store(written=False, name="model")
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--words", is_flag=True,
              help="A line per word: word, log10 probability, matched order, oov; a blank line ends a sentence.")
@click.option("--add", metavar="NAME", help="Read JSON lines, and write each record with its text's perplexity added as NAME.")
@click.option("--below", type=float, metavar="X", help="Read JSON lines, and write only records whose perplexity is below X.")
@click.option("--above", type=float, metavar="Y", help="Likewise, above Y.")
@options.scoring
@options.tokenizer
@options.reading
def command(model: str, inputs: tuple[str, ...], words: bool, add: str | None, below: float | None, above: float | None,
            tokenizer: str | None, encoding_errors: str, field: str, newline: str, max_ratio: int, as_json: bool,
            **choices: object) -> None:
    """Print the log10 probability of every sentence, word or JSON record.

    Use it to rank sentences, to see which words a model did not expect, or to filter documents. INPUT is what `kvps train
    --help` says; without one, stdin is read, as it comes. Prints log10 probability and sentence with a tab between.

    --add, --below and --above take JSON lines (.jsonl, .gz, .zst, or from stdin), and pass each record through as it is. Its
    perplexity is that of its text in --field, over all sentences with one </s> each, as cc_net computes it; null is infinite.
    A newline at the end of a text is followed by an empty sentence, and a record without text (no such field, null, or "") passes
    as it is, unscored, whatever --below and --above say: so it is in cc_net. But words are those that MODEL knows; cc_net counts
    them by Python's split(), which parts at U+00A0, U+2028, VT and other blanks too.

    \b
    Example:
      kvps score novels.kvps heldout.txt
      echo "to be or not to be" | kvps score novels.kvps --words
      kvps score novels.kvps web.jsonl.zst --field text --add perplexity --below 900 > kept.jsonl
    """
    from kvps.cli.models import compiled
    from kvps.cli.progress import Progress
    from kvps.lm import evaluate
    from kvps.lm.model import CompiledModel
    from kvps.text.piped import passing
    from kvps.units import cpu_count

    records = add is not None or below is not None or above is not None
    if records and words:
        raise click.UsageError("--words is for sentences, --add, --below and --above are for JSON records: not both")
    if add == field:
        raise click.UsageError(f"--add {add} would take the place of the text; choose another name, or another --field")
    if add == "":
        raise click.UsageError("--add needs a name for the field")
    for name, bound in (("below", below), ("above", above)):
        if bound is not None and math.isnan(bound):
            raise click.UsageError(f"--{name} takes a number, found {bound}")
    found = passing(inputs or ("-",), records=records, field=field, newline=newline, max_ratio=max_ratio)
    how = {"threads": choices["threads"] or cpu_count(), "encoding_errors": encoding_errors}
    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, CompiledModel, tokenizer=tokenizer, **choices) as (ready, made)):
        if records:
            rows = evaluate.per_record(ready, found, made, field=field, newline=newline, **how)
            _write(_passed(rows, add, below, above, field))
        elif words:
            _write(_words(line, tokens, as_json) for line, tokens in evaluate.per_word(ready, found, made, **how))
        else:
            _write(_sentence(line, score, as_json) for line, score in evaluate.per_sentence(ready, found, made, **how))


def _write(lines: Iterator[bytes]) -> None:
    from kvps.cli.output import write

    for line in lines:
        write(line + b"\n")


def _passed(rows: Iterator[tuple[bytes, dict, float]], add: str | None, below: float | None, above: float | None,
            field: str) -> Iterator[bytes]:
    """Yield the records that are to pass, with what is to be added."""
    import logging

    from kvps.cli.output import many
    from kvps.text.documents import with_fields

    unscored = 0
    for line, record, perplexity in rows:
        if math.isnan(perplexity):
            unscored += 1
            yield line
        elif (below is None or perplexity < below) and (above is None or perplexity > above):
            yield line if add is None else with_fields(line, record, {add: _finite(perplexity)})
    if unscored:
        logging.getLogger("kvps").warning('%s passed unscored: no text in the field "%s"', many(unscored, "records"), field)


def _sentence(line: bytes, score: Score, as_json: bool) -> bytes:
    log10_p = None if score.zero_probability_tokens else score.log10_probability
    if as_json:
        return _json({"sentence": _text(line), "log10_probability": log10_p, "tokens": score.tokens, "oov": score.oov})
    return f"{_shown(log10_p)}\t".encode() + line


def _words(line: bytes, tokens: list[tuple[bytes, int, float, int, bool]], as_json: bool) -> bytes:
    if as_json:
        return _json({"sentence": _text(line), "log10_probability": _finite(sum(p for _, _, p, _, _ in tokens)),
                      "words": [{"word": _text(word), "log10": _finite(p), "order": order, "oov": oov}
                                for word, _, p, order, oov in tokens]})
    return b"".join(word + f"\t{_shown(_finite(p))}\t{order}\t{'oov' if oov else ''}\n".encode()
                    for word, _, p, order, oov in tokens)


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _shown(log10_p: float | None) -> str:
    return "-infinite" if log10_p is None else f"{log10_p:.6f}"


def _text(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")


def _json(record: dict) -> bytes:
    import json

    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")

"""kvps counts: raw and adjusted counts of n-grams."""
from __future__ import annotations

import sys

import click

from kvps.cli import options


@click.command("counts")
@options.store(written=False)
@click.argument("ngrams", nargs=-1, required=True, metavar="NGRAM...")
@options.json
def command(store: str, ngrams: tuple[str, ...], as_json: bool) -> None:
    """Show raw and adjusted counts of n-grams of any order.

    Use it to look a few n-grams up; one argument is one n-gram, so put its words between quotes; - reads lines from
    stdin. Raw is how often the words occur in a row in <s> w1 ... wk </s>, adjusted is what Kneser-Ney counts
    instead: below the highest order the number of different words in front. Both are 0 for what does not occur.
    Prints n-gram, raw, adjusted with tabs between. The whole store is read once, however many n-grams are asked.

    \b
    Example:
      kvps counts novels.kvps "the white whale" "<s> call me" whale
      kvps counts novels.kvps --json - < ngrams.txt
    """
    from kvps.cli.output import emit, say
    from kvps.lm.listing import counts
    from kvps.ps.places import open_place

    asked = []
    for ngram in ngrams:
        asked += _lines() if ngram == "-" else [_unicode(ngram)]
    with open_place(store) as opened:
        for row in opened.run(counts, ngrams=asked):
            if as_json:
                emit(row)
            else:
                say(f"{row['ngram']}\t{row['raw']}\t{row['adjusted']}")


def _unicode(ngram: str) -> str:
    """Return an argument that is UTF-8; Python lets others through as half characters."""
    from kvps.errors import ArgumentError

    try:
        ngram.encode()
    except UnicodeEncodeError as exc:
        raise ArgumentError(f'"{ngram}" is not UTF-8') from exc
    return ngram


def _lines() -> list[str]:
    """Return the lines of stdin."""
    from kvps.errors import DataError

    data = sys.stdin.buffer.read()
    try:
        return data.decode().removesuffix("\n").split("\n") if data else []
    except UnicodeDecodeError as exc:
        raise DataError(f"stdin: not UTF-8 at byte {exc.start}", path="-", offset=exc.start) from exc

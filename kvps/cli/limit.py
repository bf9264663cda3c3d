"""kvps limit: a store of another one with a closed vocabulary."""
from __future__ import annotations

import time

import click

from kvps.cli import options


@click.command("limit")
@click.argument("output", metavar="OUT")
@click.argument("store", metavar="STORE")
@click.option("--vocab", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="Keep the words of this file, which stand between white space.")
@click.option("--min-count", type=int, metavar="N", help="Keep the words that occur N times or more.")
@click.option("--shards", type=int, metavar="N", help="Of the new store; as many as STORE has by default.")
@options.threads
@options.json
def command(output: str, store: str, vocab: str | None, min_count: int | None, shards: int | None, threads: int | None,
            as_json: bool) -> None:
    """Make a store of STORE in which all other words are <unk>.

    Use it for a closed vocabulary, as a speech recogniser has, or to learn what comes beside rare words: OUT is what counting
    the text with <unk> in the place of all other words would have made. Then <unk> has counts like a word, and its share
    of what unseen words get as everywhere. The vocabulary of OUT stays closed: text that is added or forgotten later has
    <unk> for words that are not in it. STORE stays as it is. (To leave n-grams out of one ARPA file as lmplz
    does, see kvps export --limit-vocab.) Killed, there is no OUT: give the same command again.

    \b
    Example:
      kvps limit news.20k.kvps news.kvps --vocab words.20k.txt
      kvps limit news.often.kvps news.kvps --min-count 3
    """
    from kvps.cli.output import many, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.limit import limit, words_of_file

    if (vocab is None) == (min_count is None):
        raise click.UsageError("give --vocab FILE or --min-count N, one of them")
    began = time.monotonic()
    with Progress(["dealing", "merging"], unit=" n-grams") as progress:
        made = limit(output, store, words=None if vocab is None else words_of_file(vocab), min_count=min_count, shards=shards,
                     threads=threads, progress=progress)
    tell(made, f"{output}: {many(made['vocabulary'], 'words')}; {made['unknown']:,} of {many(made['tokens'], 'tokens')} are <unk>",
         as_json, began=began)

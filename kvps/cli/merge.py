"""kvps merge: add the counts of stores."""
from __future__ import annotations

import time

import click

from kvps.cli import options


def _weights(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return [int(weight) for weight in value.split(",")] if value else None
    except ValueError:
        raise click.BadParameter("expected whole numbers with commas between, such as 1,3") from None


@click.command("merge")
@click.argument("output", metavar="OUT")
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option("--weights", metavar="W1,W2,...", callback=_weights,
              help="Whole numbers, one for each STORE: its counts are added so often. By default 1.")
@click.option("--shards", type=int, default=4, show_default=True, metavar="N", help="Of the new store.")
@options.threads
@options.json
def command(output: str, stores: tuple[str, ...], weights: list[int] | None, shards: int, threads: int | None,
            as_json: bool) -> None:
    """Add the counts of stores to a new one, exactly.

    Use it when text was counted apart, on several machines or by source: OUT is what counting all of it into one store
    would have made. The stores stay as they are; they have one order and one tokenizer. Labels stay, and text that was
    counted is known. Needs room for three times the counts. Killed, there is no OUT: give the same command again.

    \b
    Example:
      kvps merge all.kvps news.kvps novels.kvps
      kvps merge mostly-news.kvps news.kvps novels.kvps --weights 3,1
    """
    from kvps.cli.output import many, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.merge import merge

    began = time.monotonic()
    with Progress(["dealing", "merging"], unit=" n-grams") as progress:
        made = merge(output, stores, weights=weights, shards=shards, threads=threads, progress=progress)
    tell(made, f"{output}: {many(made['tokens'], 'tokens')} in {many(made['sentences'], 'sentences')}, "
         f"{many(made['ngrams'], 'n-grams')} of order {made['order']}", as_json, began=began)

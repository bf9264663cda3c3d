"""kvps dump: every n-gram of one order with its raw count."""
from __future__ import annotations

import contextlib
from pathlib import Path

import click

from kvps.cli import options


@click.command("dump")
@options.store(written=False)
@click.option("-o", "--order", type=int, required=True, metavar="K", help="1 to the store's order.")
@click.option("--sorted", "in_order", is_flag=True, help="In byte order; otherwise in no order that means anything.")
@options.threads
@options.temp
@options.json
def command(store: str, order: int, in_order: bool, threads: int | None, temp: str | None, as_json: bool) -> None:
    """Print every K-gram with its raw count: w1 ... wK<TAB>count.

    Use it to take the counts to another program, or to compare stores: with --sorted, equal counts give equal bytes,
    whatever the order of updates, the number of shards or threads.
    The n-grams of a sentence are the windows of <s> w1 ... wk </s>.

    \b
    Example:
      kvps dump novels.kvps --order 3 --sorted > novels.3grams
      kvps dump novels.kvps --order 1 | sort -t"$(printf '\\t')" -k2 -nr | head
    """
    from kvps.cli.output import emit, write
    from kvps.lm.listing import dump
    from kvps.ps.places import open_place

    with open_place(store) as opened, contextlib.closing(
            opened.run(dump, k=order, in_order=in_order, here={"threads": threads, "scratch": temp and Path(temp)})) as blocks:
        for block in blocks:
            if not as_json:
                write(block)
                continue
            for line in block.splitlines():
                ngram, _, count = line.rpartition(b"\t")
                emit({"ngram": ngram.decode("utf-8", "backslashreplace"), "count": int(count)})

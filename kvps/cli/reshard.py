"""kvps reshard: other shards for the same counts."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("reshard")
@options.store_folder(written=True)
@click.option("--shards", type=int, required=True, metavar="N", help="How many there are to be, 1 to 1024.")
@options.threads
@options.wait
@options.json
def command(store: str, shards: int, threads: int | None, wait: float, as_json: bool) -> None:
    """Give a store another number of shards; no count changes.

    Use it when a store has outgrown its shards, or they have become unequal: the n-grams of frequent words are dealt so
    that all are of like size, by the counts as they are now; with the number that a store has already this is done
    anew. Needs room for three times the counts, and no interrupted job. Killed, it has not begun, or is done: give the
    same command again. Readers may go on meanwhile.

    \b
    Example:
      kvps reshard novels.kvps --shards 16
    """
    import time

    from kvps.cli.output import many, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.reshard import reshard
    from kvps.store.directory import open_store
    from kvps.units import cpu_count

    began = time.monotonic()
    with open_store(store, writable=True, wait=wait, command="reshard") as opened, \
            Progress(["weighing", "dealing", "merging"], unit=" n-grams") as progress:
        result = reshard(opened, shards, threads=threads or cpu_count(), progress=progress)
    tell(result, f"{store}: {many(result['ngrams'], 'n-grams')} in {many(shards, 'shards')} "
         f"({many(result['shards_before'], 'shards')} before); the largest has {result['largest']:.3f} of the mean", as_json,
         began=began)

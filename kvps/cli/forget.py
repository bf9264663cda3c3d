"""kvps forget: remove text from a store, exactly."""
from __future__ import annotations

import time
from pathlib import Path

import click

from kvps.cli import options


@click.command("forget")
@options.store(written=True)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--label", metavar="NAME", help="Without INPUT: all text of this label. With it: INPUT was added under this label.")
@options.keep_labels
@click.option("--purge", is_flag=True, help="Leave no byte of it in any file of the store: rewrites the store.")
@click.option("--checkpoints", is_flag=True, help="With --purge: delete the checkpoints in the store too, which may hold it.")
@click.option("--receipt", metavar="FILE", type=click.Path(dir_okay=False), help="Write down what was removed, as JSON.")
@options.tokenizer
@options.counting
def command(store: str, inputs: tuple[str, ...], label: str | None, keep_labels: int | None, purge: bool, checkpoints: bool,
            receipt: str | None, tokenizer: str | None, as_json: bool, **settings: object) -> None:
    """Remove text from a store, exactly.

    Use it when text has to go: afterwards every count is what it would be if the text had never been added. Text that
    was not added is refused, and the store stays as it is. What cannot be told: text that was never added, but all of
    whose n-grams occur often enough in text that was; so a removal proves that counts were subtracted, not that the
    document had once been added. INPUT is what `kvps train --help` says; give the text with the same options as when it
    was added.

    Text that was added under a label goes without the text: --label NAME, or --keep-labels N for all but the newest N
    labels.

    Without --purge the words themselves, freed pages and older compiled models stay in the store's files for a while, as
    the command says. With it (also alone, later) they are gone: words that no text has any more lose their letters, and
    every file is written anew.

    \b
    Example:
      kvps forget novels.kvps chapter12.txt
      kvps forget queries.kvps --label 2026-11-23 --purge --receipt removed.json
      kvps forget queries.kvps --keep-labels 30
    """
    from kvps.cli.jobs import running, show
    from kvps.cli.output import emit, say
    from kvps.jobs import removal
    from kvps.units import format_bytes

    if not (inputs or label or keep_labels or purge):
        raise click.UsageError("name what to forget: INPUT, --label NAME or --keep-labels N; or --purge alone")
    if checkpoints and not purge:
        raise click.UsageError("--checkpoints deletes what --purge lists: give both")
    began = time.monotonic()
    with running("forget", **settings, label=label, keep_labels=keep_labels) as chosen:
        result = removal.remove(store, inputs, tokenizer=tokenizer, options=chosen, purge=purge, checkpoints=checkpoints,
                                receipt=receipt and Path(receipt))
    if as_json:
        emit({**result, "elapsed_s": round(time.monotonic() - began, 3)})
        return
    show(result, store, began, as_json)
    for gone in result.get("labels", []):
        say(f"{store}: label {gone} is gone")
    if result["purged"]:
        sizes = result["purged"]["bytes"]
        say(f"{store}: purged, {result['purged']['words']:,} words; {format_bytes(sizes['before'])} before, "
            f"{format_bytes(sizes['after'])} now")
    for sentence in result["remains"]:
        say(f"may still hold it: {sentence}")

"""kvps forget: remove text from a store, exactly."""
from __future__ import annotations

import time

import click

from kvps.cli import options


@click.command("forget")
@options.store(written=True)
@options.inputs
@options.tokenizer
@options.counting
def command(store: str, inputs: tuple[str, ...], tokenizer: str | None, as_json: bool,
            **settings: object) -> None:
    """Remove text from a store, exactly.

    Use it when text has to go: afterwards every count is what it would be if the text had never been added. Text that
    was not added is refused, and the store stays as it is. What cannot be told: text that was never added, but all of
    whose n-grams occur often enough in text that was. INPUT is what `kvps train --help` says; give the text with the
    same options as when it was added.

    \b
    Example:
      kvps forget novels.kvps chapter12.txt
    """
    from kvps.cli.jobs import running, show
    from kvps.jobs.train import forget

    began = time.monotonic()
    with running("forget", **settings) as chosen:
        result = forget(store, inputs, tokenizer=tokenizer, options=chosen)
    show(result, store, began, as_json)

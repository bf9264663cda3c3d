"""kvps update: add text to a store."""
from __future__ import annotations

import time

import click

from kvps.cli import options


@click.command("update")
@options.store(written=True)
@options.inputs
@options.tokenizer
@options.again
@options.labelled
@options.dry_run
@options.counting
def command(store: str, inputs: tuple[str, ...], tokenizer: str | None, dry_run: bool, as_json: bool,
            **settings: object) -> None:
    """Add text to a store.

    Use it whenever new text has come: the cost is that of the new text, whatever the store holds already.
    Inputs that are counted already are left out, unless --again is given.
    INPUT is what `kvps train --help` says; --tokenizer is only needed to name a MODULE:FUNC again, or a file that has moved.
    With --dry-run it says how much disk it would need, and does nothing.

    \b
    Example:
      kvps update novels.kvps chapter12.txt
    """
    from kvps.cli.jobs import running, show, show_plan
    from kvps.jobs.train import Options, plan, update

    if dry_run:
        show_plan(plan(store, inputs, options=Options(**settings)), as_json)
        return
    began = time.monotonic()
    with running("update", **settings) as chosen:
        result = update(store, inputs, tokenizer=tokenizer, options=chosen)
    show(result, store, began, as_json)

"""kvps resume: go on with the job that was interrupted."""
from __future__ import annotations

import time

import click

from kvps.cli import options


@click.command("resume")
@options.store(written=True)
@options.tokenizer
@options.threads
@options.wait
@options.json
def command(store: str, tokenizer: str | None, as_json: bool, **settings: object) -> None:
    """Go on with the job that was interrupted.

    Use it after Ctrl-C, a full disk, a kill or a power cut: what is counted already is not counted again, and the
    result is that of a job that was never interrupted. With nothing to resume it says so and ends with exit code 0.

    \b
    Example:
      kvps resume novels.kvps
    """
    from kvps.cli.jobs import running, show
    from kvps.cli.output import emit, say
    from kvps.jobs.train import resume

    began = time.monotonic()
    with running("resume", **settings) as chosen:
        result = resume(store, tokenizer=tokenizer, options=chosen)
    if result is not None:
        show({**result, "resumed": True}, store, began, as_json)
    elif as_json:
        emit({"resumed": False})
    else:
        say(f"{store}: nothing to resume")

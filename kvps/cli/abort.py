"""kvps abort: roll back the job that was interrupted."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("abort")
@options.store(written=True)
@options.wait
@options.json
def command(store: str, wait: float, as_json: bool) -> None:
    """Roll back the job that was interrupted.

    Use it when the text of an interrupted train, update or forget turned out to be wrong, or is gone for good: the
    store is then as it was before that job. A job that is running is not touched: stop it first.

    \b
    Example:
      kvps abort novels.kvps
    """
    from kvps.cli.output import emit, say
    from kvps.jobs.train import abort

    result = abort(store, wait=wait)
    if as_json:
        emit({"aborted": result is not None, **(result or {})})
    elif result is None:
        say(f"{store}: nothing to abort")
    else:
        say(f"{store}: the {result['command']} is rolled back; version {result['version']}")

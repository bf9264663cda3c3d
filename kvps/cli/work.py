"""kvps work: help a job of a served store."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("work")
@options.store(written=False)
@options.tokenizer
@options.threads
@click.option("--wait", type=float, default=60.0, show_default=True, metavar="SECONDS", help="Wait so long for a job to begin.")
@options.json
def command(store: str, tokenizer: str | None, threads: int | None, wait: float, as_json: bool) -> None:
    """Count a part of the text of a train, update or forget that is at work at ADDRESS, until it is over.

    Use it to let several processes or machines count one text: start the command at one of them and this at the others,
    in any order. Parts are taken one after another by whoever is free, and each counts once, so a worker may be killed
    or started twice. Workers need the inputs under the same paths; they are told by their content. STORE is an address.

    \b
    Example:
      kvps train kvps://server:7070 /shared/novels.txt
      kvps work kvps://server:7070
    """
    from kvps.cli.output import name_warnings, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.work import work
    from kvps.ps.places import address
    from kvps.units import cpu_count

    name_warnings()
    there = address(store)
    if there is None:
        raise click.UsageError(f"{store}: workers share a store through its server; name its address, kvps://HOST:PORT")
    with Progress(["counting"]) as progress:
        done = work(there, tokenizer=tokenizer, threads=threads or cpu_count(), wait=wait,
                    progress=progress.counter("counting", None))
    if done is None:
        tell({"worked": False}, f"{store}: no job came within {wait:g} s", as_json)
    else:
        tell({"worked": True, **done}, f"{store}: helped the {done['command']}; version {done['version']}", as_json)

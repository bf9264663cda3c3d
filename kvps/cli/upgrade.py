"""kvps upgrade: carry a store of an older format forward."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("upgrade")
@options.store_folder(written=False)
@options.wait
@options.json
def command(store: str, wait: float, as_json: bool) -> None:
    """Carry a store of an older format to the one of this kvps.

    Use it when a command says that a store is of an older format. The counts stay where they are, so it takes little
    time and space; every checksum is compared first, and nothing is changed where one is wrong. It can be killed and run
    again. The older kvps cannot read the store afterwards: keep a copy if it has to. An interrupted job can be resumed
    as before. A store that has our format is left alone.

    \b
    Example:
      kvps upgrade novels.kvps
    """
    from kvps.cli.output import tell
    from kvps.cli.progress import Progress
    from kvps.jobs.upgrade import upgrade

    with Progress(["carrying"], unit=" shards") as progress:
        found = upgrade(store, wait=wait, progress=progress.stage("carrying"))
    done = found["from"] == found["to"]
    tell(found, f"{store}: is of format {found['to']} already" if done else
         f"{store}: format {found['to']}, was {found['from']}; version {found['version']} as before", as_json)

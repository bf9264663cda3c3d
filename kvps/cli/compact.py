"""kvps compact: merge the runs of a store."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("compact")
@options.store(written=True)
@click.option("--vacuum", is_flag=True,
              help="Give the free space back to the file system too; needs room for a copy of one shard.")
@options.threads
@options.wait
@options.json
def command(store: str, vacuum: bool, threads: int | None, wait: float, as_json: bool) -> None:
    """Merge the runs of a store into one per shard.

    Use it after many updates, before a store is copied or put away; jobs merge by themselves what has become many.
    Counts do not change, and readers may go on meanwhile. Without --vacuum the space that becomes free is kept for
    later text.

    \b
    Example:
      kvps compact novels.kvps --vacuum
    """
    from kvps.cli.output import many, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.compact import compact
    from kvps.ps.places import address, open_place
    from kvps.units import cpu_count, format_bytes

    if vacuum and address(store) is not None:
        raise click.UsageError("--vacuum writes files anew that a server has open: stop it, and name the folder")
    with open_place(store, writable=True, wait=wait, command="compact", table=None) as opened, \
            Progress(["merging"], unit=" n-grams") as progress:
        result = compact(opened, threads=threads or cpu_count(), vacuum=vacuum, progress=progress.stage("merging"))
    before, now = result["bytes_before"], result["bytes"]
    tell(result, f"{store}: merged {many(result['merged_runs'], 'runs')}; {format_bytes(before['file'])} before, "
         f"{format_bytes(now['file'])} now, {format_bytes(now['live'])} of it in use", as_json)

"""kvps servers: what the servers of a store are doing."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("servers")
@options.store(written=False)
@click.option("--stop", is_flag=True, help="End the actors of a store on Ray, so that its folder can be written to again.")
@options.json
def command(store: str, stop: bool, as_json: bool) -> None:
    """Show the servers of a store: state, load, lag, memory and bytes.

    Use it to see whether all are up and which is busy. Load is the share of its life that a server was at work, waiting
    are requests that have come and are not answered yet, lag is how long one that changes something takes. A server that
    gives no answer within a few seconds is shown as down. STORE is an address.

    \b
    Example:
      kvps servers kvps://server:7070
      watch -n 5 kvps servers kvps://server:7070
    """
    from kvps.cli.output import emit, say, tell
    from kvps.jobs.servers import servers
    from kvps.ps.places import RAY, address
    from kvps.units import format_bytes

    there = address(store)
    if there is None:
        raise click.UsageError(f"{store}: name the address of the server, kvps://HOST:PORT")
    if stop:
        if not there.startswith(RAY):
            raise click.UsageError(f"{store}: --stop is for a store on Ray; kvps serve ends with SIGTERM")
        from kvps.ps.ray import end_actors

        ended = end_actors(there)
        tell({"stopped": ended}, f"{store}: {'stopped' if ended else 'nothing to stop'}", as_json)
        return
    rows = servers(there)
    if as_json:
        for row in rows:
            emit(row)
        return
    say(f"{'server':8} {'state':5} {'pid':>8} {'up':>9} {'load':>5} {'waiting':>7} {'lag':>8} {'memory':>8} {'requests':>9} "
        f"{'errors':>7} {'bytes':>8} {'keys':>14}")
    for row in rows:
        if row["state"] == "down":
            say(f"{row['server']:8} down  {row['error']}")
            continue
        keys = f"{row['keys']:,}" if "keys" in row else ""
        say(f"{row['server']:8} up    {row['pid']:>8} {row['up_s']:>8.0f}s {row['load']:>5.0%} {row['waiting']:>7} "
            f"{row['lag_s']:>7.3f}s {format_bytes(row['rss_bytes']):>8} {row['requests']:>9,} {row['errors']:>7,} "
            f"{format_bytes(row['bytes']):>8} {keys:>14}")

"""kvps status: what is going on with a store."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("status")
@options.store(written=False)
@options.json
def command(store: str, as_json: bool) -> None:
    """Tell whether a store is idle, running (being written) or interrupted.

    Use it to look after a long job from another terminal, or to see what a crash has left. It only reads.
    The remaining time is that of counting, at the pace of the running process so far.

    \b
    Example:
      kvps status novels.kvps
      watch -n 5 kvps status novels.kvps
    """
    from kvps.cli.output import emit, say
    from kvps.jobs.status import status

    found = status(store)
    if as_json:
        emit(found)
        return
    say(f"{found['store']}: version {found['version']}, {_state(found)}")
    if found["done_bytes"] is not None:
        say(_progress(found))


def _state(found: dict) -> str:
    if found["state"] == "running":
        return f"running: {found['command'] or 'kvps'}, process {found['pid'] or '(starting)'}"
    if found["state"] == "interrupted":
        return f"interrupted: {found['command']}; go on with kvps resume, or roll it back with kvps abort"
    return "idle"


def _progress(found: dict) -> str:
    """Return how much of the text is counted, and how long the rest takes."""
    from kvps.units import format_bytes

    done, total, remaining_s = found["done_bytes"], found["total_bytes"], found["remaining_s"]
    line = f"counted {format_bytes(done)}"
    if total:
        line += f" of {format_bytes(total)} ({100 * done / total:.0f}%)"
    if remaining_s is not None:
        minutes, seconds = divmod(round(remaining_s), 60)
        line += f", about {f'{minutes} min ' if minutes else ''}{seconds} s left"
    return line

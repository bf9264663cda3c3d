"""kvps history: what has happened to a store."""
from __future__ import annotations

import time

import click

from kvps.cli import options


@click.command("history")
@options.store(written=False)
@options.json
def command(store: str, as_json: bool) -> None:
    """List the versions of a store: when, by which command, what each added.

    Use it to see which text a store holds and since when, or which version to restore from a checkpoint. Oldest first;
    tokens and sentences are what the version added, below 0 what it took away.

    \b
    Example:
      kvps history novels.kvps
      kvps history novels.kvps --json | jq .version
    """
    from kvps.cli.output import emit, say
    from kvps.jobs.history import history
    from kvps.ps.places import open_place

    with open_place(store) as opened:
        rows = opened.run(history)
    if as_json:
        for row in rows:
            emit(row)
        return
    if not rows:
        say(f"{store}: no version yet")
        return
    say(f"{'version':>7} {'committed':19} {'command':8} {'tokens':>14} {'sentences':>12}  inputs")
    for row in rows:
        say(f"{row['version']:>7} {moment(row['time'])} {row['command']:8} {row['tokens']:>+14,} {row['sentences']:>+12,}  "
            f"{_what(row)}")


def moment(seconds: float) -> str:
    """Return a time, in seconds since 1970, as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _what(row: dict) -> str:
    """Return the inputs and labels of a version in words."""
    from kvps.errors import one_line

    names = [one_line(item["name"]) for item in row["inputs"]]
    text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if row["label"] is not None:
        text += f" [{row['label']}]"
    if row["gone_labels"]:
        text += f" without the labels {', '.join(row['gone_labels'])}"
    return text.strip()

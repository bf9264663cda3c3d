"""kvps compile: make the compiled model of a store now."""
from __future__ import annotations

import time
from pathlib import Path

import click

from kvps.cli import options


@click.command("compile")
@options.store(written=False)
@options.scoring
def command(store: str, order: int | None, smoothing: str, labels: list[str] | None, threads: int | None, exact: bool,
            stale: str, temp: str | None, as_json: bool) -> None:
    """Make the compiled model of a store now.

    Use it to have the work done before the first question: commands that need a compiled model make one by themselves
    when the store has moved on. modified-kneser-ney and kneser-ney share a model per order, all other smoothings
    share one.

    \b
    Example:
      kvps compile novels.kvps
      kvps compile novels.kvps --smoothing witten-bell
    """
    from kvps.cli.output import tell
    from kvps.cli.progress import Progress
    from kvps.jobs.served import compile_model
    from kvps.lm.smoothing import parse
    from kvps.ps.places import open_place
    from kvps.units import format_bytes

    began = time.monotonic()
    kind = parse(smoothing).kind
    with open_place(store) as opened, Progress(["compiling"], unit=" n-grams") as progress:
        made = opened.run(compile_model, kind=kind, order=order, exact=exact, labels=labels, stale=stale, here={
            "threads": threads, "scratch": temp and Path(temp), "progress": progress.stage("compiling")})
    tell({"path": made["path"], "kind": kind, "bytes": made["bytes"]}, f"{made['path']}: {format_bytes(made['bytes'])}", as_json,
         began=began)

"""What train, update, forget and resume share: their options as the library takes them, and their result in words."""
from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from kvps.cli.output import emit, many, name_warnings, say
from kvps.cli.progress import Progress
from kvps.jobs.estimate import in_words
from kvps.jobs.train import Options

DONE = {"train": "added", "update": "added", "forget": "removed"}


@contextlib.contextmanager
def running(command: str, **options: object) -> Iterator[Options]:
    """Give the library's options, with progress on stderr while the block runs."""
    name_warnings(notes=sys.stderr is not None and sys.stderr.isatty())
    stages = ["counting", "verifying"] if command == "forget" else ["counting"]
    with Progress(stages, unit=" n-grams") as progress:
        yield Options(**options, progress=progress)


def show(result: dict, store: str, began: float, as_json: bool) -> None:
    """Print the result of a job that began at time.monotonic() `began`."""
    elapsed_s = time.monotonic() - began
    if as_json:
        emit({**result, "elapsed_s": round(elapsed_s, 3)})
        return
    for name, version in result["already"].items():
        say(f"{name}: already counted in version {version}")
    if result["inputs"]:
        amounts = [many(abs(result[name]), name) for name in ("tokens", "sentences", "inputs")]
        say(f"{store}: version {result['version']}, {DONE[result['command']]} {amounts[0]} in {amounts[1]} "
            f"from {amounts[2]} ({elapsed_s:.1f} s)")


def show_plan(found: dict, as_json: bool) -> None:
    """Print what a job would need."""
    if as_json:
        emit({"dry_run": True, **found})
        return
    say(f"{found['store']}: {in_words(found)}")
    for assumption in found["assumptions"]:
        say(f"  assumed: {assumption}")

"""kvps check: look for damage."""
from __future__ import annotations

import time

import click

from kvps.cli import options

DAMAGED = 3


@click.command("check")
@options.store(written=False)
@click.option("--fast", "level", flag_value="fast", help="Only the structure: seconds, even for a large store.")
@click.option("--full", "level", flag_value="full", help="Decode every count too, and compare totals, models and checkpoints.")
@options.json
@click.pass_context
def command(ctx: click.Context, store: str, level: str | None, as_json: bool) -> None:
    """Look for damage in a store, and change nothing.

    Use it after a crash of the machine, before a copy is trusted, or from time to time: disks rot. Without options every
    checksum is compared. The store may be damaged in any way, somebody else's, or at work; what kills the process that
    reads it is a finding too. Warnings are about what lies about and does no harm.

    Exit code 0: sound. 3: damaged; each finding says what to do.

    \b
    Example:
      kvps check novels.kvps
      kvps check novels.kvps --full --json
    """
    from kvps.cli.output import emit, many, say
    from kvps.cli.progress import Progress
    from kvps.jobs.check import Check
    from kvps.jobs.served import ServedCheck
    from kvps.ps.places import address
    from kvps.store.findings import DAMAGE

    began = time.monotonic()
    number = {"damage": 0, "warning": 0}
    with Progress(["checksums", "counts", "models"] if level == "full" else ["checksums"], unit=" ") as progress:
        there = address(store)
        look = Check(store, level or "checksums", progress=progress) if there is None else ServedCheck(there, level or "checksums")
        for finding in (found if there is not None else found.to_json() for found in look):
            number[finding["severity"]] += 1
            if as_json:
                emit(finding)
            else:
                say(f"{finding['severity']}: {finding['message']}")
    elapsed_s = round(time.monotonic() - began, 3)
    if as_json:
        emit({"store": store, "level": look.level, "version": look.version, "shards": look.n_shards, "damage": number["damage"],
              "warnings": number["warning"], "elapsed_s": elapsed_s})
    else:
        what = f"{many(number[DAMAGE], 'findings')} of damage" if number["damage"] else "sound"
        more = f", {many(number['warning'], 'warnings')}" if number["warning"] else ""
        say(f"{store}: {what}{more}; version {look.version}, checked: {look.level} ({elapsed_s:.1f} s)")
    if number[DAMAGE]:
        ctx.exit(DAMAGED)

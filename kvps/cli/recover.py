"""kvps recover: make a damaged store sound again."""
from __future__ import annotations

import sys
import time

import click

from kvps.cli import options
from kvps.cli.check import DAMAGED


@click.command("recover")
@options.store(written=False)
@click.option("--dry-run", is_flag=True, help="Only show the plan; exit code 3 where there is damage.")
@click.option("--from", "source", metavar="DIR_OR_URL", help="Where checkpoints of this store are, besides those in it.")
@click.option("--input", "inputs", multiple=True, metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="Text that was counted and is not where it was; told by its content. May be given several times.")
@click.option("--accept-older", is_flag=True, help="Go on from a root that went back in time; what came after it is lost.")
@click.option("--full", is_flag=True, help="Look at every count first, as kvps check --full.")
@click.option("--yes", is_flag=True, help="Do not ask before the plan is carried out.")
@options.tokenizer
@options.threads
@options.memory
@options.wait
@options.json
@click.pass_context
def command(ctx: click.Context, store: str, dry_run: bool, source: str | None, inputs: tuple[str, ...], accept_older: bool,
            full: bool, yes: bool, tokenizer: str | None, threads: int | None, memory: str, wait: float, as_json: bool) -> None:
    """Make a damaged store sound again, after showing how.

    Use it when kvps check found damage. A damaged or missing shard is made again from the newest checkpoint and the text
    counted since, or from text alone; files that are not where they were are named, and asked for with --input. The
    damaged shard is kept in STORE/damaged. The seal is made again from the root, damaged compiled models are removed,
    what dead writers left is cleared. An interrupted job is kept for kvps resume, or rolled back where its text is gone.
    A damaged root needs a checkpoint of the whole store: the message has the command. At an address, shards on other
    machines whose disks are lost are made again.

    \b
    Example:
      kvps recover novels.kvps --dry-run
      kvps recover novels.kvps --from s3://backups/novels --input chapter12.txt --yes
    """
    from kvps.cli.output import emit, say
    from kvps.cli.progress import Progress
    from kvps.errors import ArgumentError
    from kvps.jobs import recover
    from kvps.jobs.recover_away import AwayRecovery
    from kvps.jobs.train import Options
    from kvps.ps.places import address

    began = time.monotonic()
    with Progress(["checksums", "counting"], unit=" ") as progress:
        job = Options(threads=threads, memory=memory, progress=progress)
        chosen = recover.Options(source=source, inputs=inputs, accept_older=accept_older, full=full, tokenizer=tokenizer, job=job)
        place = address(store)
        with recover.Recovery(store, chosen, wait=wait) if place is None else AwayRecovery(place, chosen, wait=wait) as found:
            plan = found.plan
            if not as_json:
                for number, step in enumerate(plan.steps, 1):
                    say(f"{number}. {step}")
                for text in plan.missing:
                    say(f"needs: {text.shown}; give it with --input FILE")
            steps = [{"kind": step.kind, "what": step.what, "why": step.why} for step in plan.steps]
            if dry_run:
                if as_json:
                    emit({"dry_run": True, "store": store, "damaged": plan.damaged, "steps": steps,
                          "missing": [{"name": text.name, "digest": text.digest} for text in plan.missing]})
                elif not plan.steps:
                    say(f"{store}: nothing to recover")
                if plan.damaged:
                    ctx.exit(DAMAGED)
                return
            changes = bool(plan.kinds - {"resume"})
            if changes and not plan.missing and not yes:
                if as_json or not sys.stdin.isatty():
                    raise ArgumentError(f"{store}: the plan has {len(steps)} steps; give --yes to have it carried out")
                click.confirm("Carry it out?", abort=True, err=True)
            result = found.run() if changes else {"store": store, "version": None, "rebuilt": [], "resumable": bool(steps)}
    if as_json:
        emit({**result, "store": store, "steps": steps, "elapsed_s": round(time.monotonic() - began, 3)})
    elif changes:
        more = "; kvps resume goes on with the interrupted job" if result["resumable"] else ""
        say(f"{store}: sound, version {result['version']}{more} ({time.monotonic() - began:.1f} s)")
    else:
        say(f"{store}: nothing to recover")

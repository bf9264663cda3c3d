"""kvps audit: verify a model on itself."""
from __future__ import annotations

import time

import click

from kvps.cli import options
from kvps.cli.check import DAMAGED


@click.command("audit")
@click.argument("model", metavar="MODEL")
@options.order
@options.smoothing
@click.option("--contexts", type=int, default=20, show_default=True, metavar="N",
              help="Of each length, how many contexts to add the probabilities of all words up after.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Chooses them.")
@click.option("--full", is_flag=True, help="Look at every n-gram and every context too.")
@options.threads
@options.temp
@options.json
@click.pass_context
def command(ctx: click.Context, model: str, order: int | None, smoothing: str, contexts: int, seed: int, full: bool,
            threads: int | None, temp: str | None, as_json: bool) -> None:
    """Verify a model on itself: contexts sum to 1, counts agree over orders, and counts of counts with the counts.

    Use it when a model is to be trusted: kvps check compares bytes with checksums, this compares what they mean. All
    counts are read once; of contexts some are chosen, and the probabilities of every word after them are added up. With
    --full the count of every n-gram in the model is compared with the store, and every context is added up. MODEL is the
    folder of a store, a file that kvps import made, or an ARPA file, of whose probabilities contexts are added up.
    --full takes far less time for a context, so that more than a few hundred are looked at sooner with it.

    Exit code 0: sound. 3: damaged; each finding says what to do.

    \b
    Example:
      kvps audit novels.kvps
      kvps audit novels.kvps --full --json
      kvps audit novels.kvps --smoothing witten-bell --contexts 100 --seed 7
    """
    from pathlib import Path

    from kvps.cli.output import emit, many, name_warnings, say
    from kvps.cli.progress import Progress
    from kvps.jobs.audit import TAKES, audit
    from kvps.ps.places import address
    from kvps.store.findings import DAMAGE

    if address(model) is not None:
        raise click.UsageError(f"{model}: is an address; {TAKES}")
    began = time.monotonic()
    name_warnings()
    with Progress(["compiling", "counts", "models", "sums", "n-grams"], unit=" ") as progress:
        found = audit(model, smoothing=smoothing, order=order, contexts=contexts, seed=seed, full=full, threads=threads,
                      scratch=temp and Path(temp), progress=progress,
                      tell=lambda finding: emit(finding.to_json()) if as_json else say(f"{finding.severity}: {finding}"))
    elapsed_s = round(time.monotonic() - began, 3)
    n_damage, error = sum(finding.severity == DAMAGE for finding in found.findings), found.largest_error
    if as_json:
        emit({"model": model, "version": found.version, "order": found.order, "smoothing": found.smoothing, "full": full,
              "seed": seed, "contexts": found.contexts, "largest_error": error if error < float("inf") else None,
              "damage": n_damage, "elapsed_s": elapsed_s})
    else:
        what = f"{many(n_damage, 'findings')} of damage" if n_damage else "sound"
        say(f"{model}: {what}; version {found.version}, {found.smoothing} of order {found.order}, "
            f"{many(found.contexts, 'contexts')} add up to 1 within {error:.2g} ({elapsed_s:.1f} s)")
    if not found.sound:
        ctx.exit(DAMAGED)

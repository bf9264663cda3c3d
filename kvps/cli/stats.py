"""kvps stats: sizes, n-grams, counts of counts and discounts of a store."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("stats")
@options.store(written=False)
@options.threads
@options.stale
@options.json
def command(store: str, threads: int | None, stale: str, as_json: bool) -> None:
    """Show what a store holds, and the discounts of modified Kneser-Ney.

    Use it to see how much text is in a store, or to compare with lmplz: n-grams are counted as lmplz counts them, the
    three special words among the unigrams; t is [t1, t2, t3, t4], how many n-grams have adjusted count 1 to 4;
    discounts are [D1, D2, D3+]. An order whose discounts cannot be computed has the fallback ones and is listed so.
    Makes the compiled model where there is none.

    \b
    Example:
      kvps stats novels.kvps
      kvps stats novels.kvps --json | jq .ngrams
    """
    from kvps.cli.output import emit
    from kvps.cli.progress import Progress
    from kvps.jobs.stats import statistics
    from kvps.ps.places import open_place

    with open_place(store) as opened, Progress(["compiling"], unit=" n-grams") as progress:
        record = opened.run(statistics, stale=stale, here={"threads": threads, "progress": progress.stage("compiling")})
    if as_json:
        emit(record)
    else:
        _show(record)


def _show(record: dict) -> None:
    from kvps.cli.output import say
    from kvps.text.tokenize import shown
    from kvps.units import format_bytes

    for name in ("order", "version", "tokens", "sentences", "vocabulary", "shards"):
        say(f"{name:12} {record[name]:>16,}")
    say(f"{'bytes':12} {format_bytes(record['bytes']):>16} ({format_bytes(record['live_bytes'])} in use)")
    say(f"{'tokenizer':12} {shown(record):>16}")
    if record["closed"]:
        say(f"{'closed':12} {'yes':>16} (other words are <unk>)")
    for label, row in record["labels"].items():
        say(f"label {label}: {row['tokens']:,} tokens, versions {row['first']} to {row['last']}, {format_bytes(row['bytes'])}")
    for name, row in record["tables"].items():
        say(f"table {name}: {row.get('damaged') or format_bytes(row['bytes'])}")
    say(f"{'order':5} {'n-grams':>14} {'t1':>14} {'t2':>12} {'t3':>12} {'t4':>12} {'D1':>7} {'D2':>7} {'D3+':>7}")
    for k, n in record["ngrams"].items():
        t = " ".join(f"{count:>{width},}" for count, width in zip(record["t"][k], (14, 12, 12, 12), strict=True))
        d = " ".join(f"{discount:7.4f}" for discount in record["discounts"][k])
        say(f"{k:>5} {n:>14,} {t} {d}{' fallback' if k in record['fallback'] else ''}")

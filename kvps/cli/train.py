"""kvps train: count text into a new store."""
from __future__ import annotations

import time

import click

from kvps.cli import options


@click.command("train")
@options.store(written=True)
@options.inputs
@click.option("-o", "--order", type=int, default=5, show_default=True, metavar="N",
              help="Longest n-grams to count, 1 to 8.")
@click.option("--shards", type=int, default=4, show_default=True, metavar="N",
              help="Parts of the store; kvps reshard changes them.")
@click.option("--from-counts", is_flag=True,
              help="The inputs are counts of n-grams of all orders, in Google's format: what kvps export --counts writes.")
@options.tokenizer
@options.words
@options.again
@options.labelled
@options.dry_run
@options.counting
@click.pass_context
def command(ctx: click.Context, store: str, inputs: tuple[str, ...], order: int, shards: int, from_counts: bool,
            tokenizer: str | None, lowercase: bool, normalize: str | None, split_sentences: bool, dry_run: bool, as_json: bool,
            **settings: object) -> None:
    """Count text into a new store.

    Use it once per store; later text is added with `kvps update`.
    Given again after an interruption it goes on, given again after it was done it says so and changes nothing.
    With --dry-run it says how much disk it would need, and does nothing.

    An INPUT is a file with a sentence a line (plain, .gz, .bz2, .xz, .zst), a folder, a glob, a URL of these that
    fsspec knows (s3://BUCKET/NAME), - for stdin, a .jsonl file (see --field), or nltk:NAME.

    With --from-counts an INPUT is a folder that `kvps export --counts` made, or a file of lines "w1 ... wk TAB count" in
    byte order, with <s> and </s>. All orders are needed, and counts that no text has are refused with file and line.
    Text is added to such a store and forgotten as always. Killed, there is no store: give the same command again.
    The store records how words are made (--tokenizer, --lowercase, --normalize, --split-sentences), and all that is done
    with it does the same. MODULE:FUNC is code, and has to be named each time.

    \b
    Example:
      kvps train novels.kvps novels.txt more/*.txt.gz -o 5 --lowercase
      zcat old.gz | kvps train old.kvps - -S 512M --json
      kvps train again.kvps novels.counts --from-counts
    """
    from kvps.cli.jobs import running, show, show_plan
    from kvps.jobs.train import Options, plan, train

    if from_counts:
        words = {"tokenizer": tokenizer or "whitespace", "lowercase": lowercase, "normalize": normalize,
                 "split_sentences": split_sentences}
        _from_counts(ctx, store, inputs, order, shards, words, settings, as_json)
        return
    if dry_run:
        show_plan(plan(store, inputs, order=order, shards=shards, options=Options(**settings)), as_json)
        return
    began = time.monotonic()
    with running("train", **settings) as chosen:
        result = train(store, inputs, order=order, shards=shards, tokenizer=tokenizer or "whitespace",
                       lowercase=lowercase, normalize=normalize, split_sentences=split_sentences, options=chosen)
    show(result, store, began, as_json)


def _from_counts(ctx: click.Context, store: str, inputs: tuple[str, ...], order: int, shards: int, words: dict, settings: dict,
                 as_json: bool) -> None:
    from pathlib import Path

    from kvps.cli.jobs import show
    from kvps.cli.progress import Progress
    from kvps.jobs.from_counts import train_from_counts
    from kvps.ps.places import address

    if address(store) is not None:
        raise click.UsageError(f"{store}: --from-counts makes the files of a store; name a folder")
    given = {name for name in (*settings, "order", "dry_run")
             if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
    for name in ("again", "label", "keep_labels", "dry_run", "memory", "reserved", "encoding_errors", "field", "newline",
                 "count_field", "wait"):
        if name in given:
            raise click.UsageError(f"--{name.replace('_', '-')} is for text, not for --from-counts")
    began = time.monotonic()
    with Progress(["dealing", "merging", "comparing"], unit=" n-grams") as progress:
        result = train_from_counts(store, inputs, order=order if "order" in given else None, shards=shards,
                                   **words, max_ratio=settings["max_ratio"],
                                   threads=settings["threads"], scratch=settings["temp"] and Path(settings["temp"]),
                                   progress=progress)
    show(result, store, began, as_json)

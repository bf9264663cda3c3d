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
@options.tokenizer
@options.words
@options.again
@options.labelled
@options.dry_run
@options.counting
def command(store: str, inputs: tuple[str, ...], order: int, shards: int, tokenizer: str | None, lowercase: bool,
            normalize: str | None, split_sentences: bool, dry_run: bool, as_json: bool, **settings: object) -> None:
    """Count text into a new store.

    Use it once per store; later text is added with `kvps update`.
    Given again after an interruption it goes on, given again after it was done it says so and changes nothing.
    With --dry-run it says how much disk it would need, and does nothing.

    An INPUT is a file with a sentence a line (plain, .gz, .bz2, .xz, .zst), a folder, a glob, a URL of these that
    fsspec knows (s3://BUCKET/NAME), - for stdin, a .jsonl file (see --field), or nltk:NAME.

    The store records how words are made (--tokenizer, --lowercase, --normalize, --split-sentences), and all that is done
    with it does the same. MODULE:FUNC is code, and has to be named each time.

    \b
    Example:
      kvps train novels.kvps novels.txt more/*.txt.gz -o 5 --lowercase
      zcat old.gz | kvps train old.kvps - -S 512M --json
    """
    from kvps.cli.jobs import running, show, show_plan
    from kvps.jobs.train import Options, plan, train

    if dry_run:
        show_plan(plan(store, inputs, order=order, shards=shards, options=Options(**settings)), as_json)
        return
    began = time.monotonic()
    with running("train", **settings) as chosen:
        result = train(store, inputs, order=order, shards=shards, tokenizer=tokenizer or "whitespace",
                       lowercase=lowercase, normalize=normalize, split_sentences=split_sentences, options=chosen)
    show(result, store, began, as_json)

"""kvps import: make a model of an ARPA file."""
from __future__ import annotations

import time
from pathlib import Path

import click

from kvps.cli import options


@click.command("import")
@click.argument("output", metavar="OUT", type=click.Path(dir_okay=False))
@click.argument("source", metavar="MODEL.arpa[.gz|.zst]", type=click.Path(exists=True, dir_okay=False))
@options.tokenizer
@options.words
@click.option("--max-ratio", type=int, default=200, show_default=True, metavar="N",
              help="Refuse a compressed file whose text is more than N times as long; 0 for no limit.")
@click.option("--list-ngrams/--no-list-ngrams", default=True, show_default=True,
              help="Keep a list of the n-grams too, 4 bytes for each of their words and 4 more: next words and completions come "
                   "fast, and kvps export needs it. Scoring does not.")
@options.threads
@options.temp
@options.json
def command(output: str, source: str, tokenizer: str | None, lowercase: bool, normalize: str | None, split_sentences: bool,
            max_ratio: int, list_ngrams: bool, threads: int | None, temp: str | None, as_json: bool) -> None:
    """Make a model of an ARPA file, to score text with.

    Use it for models of KenLM, SRILM and others. OUT is one file, which can be used wherever MODEL stands; it cannot be
    updated, and its smoothing is that of the ARPA file. The file may have any order up to 8, and its n-grams may stand
    in any order.

    --tokenizer, --lowercase, --normalize and --split-sentences say what makes words of the text to be scored: what the
    model was trained with.

    \b
    Example:
      kvps import news.kvm news.arpa.gz
      kvps perplexity news.kvm heldout.txt
    """
    from kvps.cli.output import many, name_warnings, tell
    from kvps.cli.progress import Progress
    from kvps.lm import container
    from kvps.lm.arpa_read import import_arpa
    from kvps.text.tokenize import Tokenizer
    from kvps.units import cpu_count, format_bytes

    began = time.monotonic()
    name_warnings()
    container.refuse_others(Path(output))
    with Progress(["importing"]) as progress:
        words = Tokenizer.from_spec(tokenizer or "whitespace", lowercase, normalize=normalize, split_sentences=split_sentences,
                                    trusted=True)
        made = import_arpa(source, Path(output), tokenizer=words, max_ratio=max_ratio, list_ngrams=list_ngrams,
                           threads=threads or cpu_count(),
                           scratch=temp and Path(temp), progress=progress.stage("importing"))
    tell(made, f"{output}: order {made['order']}, {many(sum(made['ngrams'].values()), 'n-grams')}, {format_bytes(made['bytes'])}",
         as_json, began=began)

"""kvps export: write the model as an ARPA file."""
from __future__ import annotations

import time
from pathlib import Path

import click

from kvps.cli import options


@click.command("export")
@options.store(written=False, name="model")
@click.argument("output", metavar="OUT.arpa[.gz]", type=click.Path(dir_okay=False))
@options.order
@options.labels
@options.threads
@options.temp
@options.json
def command(model: str, output: str, order: int | None, labels: list[str] | None, threads: int | None,
            temp: str | None, as_json: bool) -> None:
    """Write the model as an ARPA file: modified Kneser-Ney, unpruned.

    Use it to take a model to KenLM, SRILM, a speech recogniser or a decoder. The file is sorted by words, written as
    it is computed, and takes its name when it is complete; a name that ends in .gz is compressed.

    \b
    Example:
      kvps export novels.kvps novels.arpa.gz
      kvps export novels.kvps novels.o3.arpa -o 3
    """
    from kvps.cli.output import many, name_warnings, tell
    from kvps.cli.progress import Progress
    from kvps.lm.arpa import export
    from kvps.ps.places import open_place
    from kvps.units import format_bytes

    began = time.monotonic()
    name_warnings()
    with open_place(model) as store, Progress(["exporting"], unit=" n-grams") as progress:
        result = export(store, output, order=order, labels=labels, threads=threads, scratch=temp and Path(temp),
                        progress=progress.stage("exporting"))
    n_ngrams = many(sum(result["ngrams"].values()), "n-grams")
    tell(result, f"{output}: version {result['version']}, order {result['order']}, {n_ngrams}, {format_bytes(result['bytes'])}",
         as_json, began=began)

"""kvps export: write the model as an ARPA file, or its counts."""
from __future__ import annotations

import time
from pathlib import Path

import click

from kvps.cli import options


def _bounds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(bound) for bound in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter("expected numbers with commas between, such as 0,0,1") from None


@click.command("export")
@options.store(written=False, name="model")
@click.argument("output", metavar="OUT.arpa[.gz|.zst]", type=click.Path(allow_dash=True))
@options.order
@click.option("--smoothing", default="modified-kneser-ney", show_default=True, metavar="NAME[:VALUE]",
              help="modified-kneser-ney (mkn), kneser-ney (kn), absolute-discounting (ad), witten-bell (wb).")
@click.option("--prune", metavar="C1,C2,...", callback=_bounds,
              help="By order, the last one for all higher ones: leave out n-grams that occur so often or less.")
@click.option("--prune-entropy", type=float, default=0.0, metavar="X",
              help="Leave out n-grams worth less than this, about the part by which perplexity rises without: 1e-8. Bigrams count "
                   "for three in a store, so that thresholds of other tools leave other sizes; --prune-to says the size itself.")
@click.option("--prune-to", type=int, metavar="N", help="Leave out the n-grams worth least, until N are left; words stay.")
@click.option("--limit-vocab", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="Leave out n-grams with words that are not in this file.")
@click.option("--interpolate-unigrams/--no-interpolate-unigrams", default=True, show_default=True,
              help="Mix unigrams with the uniform distribution, or give <unk> what they lose.")
@click.option("--vocab-pad", type=int, default=0, metavar="N", help="Take the vocabulary for at least so large.")
@click.option("--counts", is_flag=True, help="Write raw counts instead, as Google's n-grams: OUT is a new folder.")
@options.labels
@options.threads
@options.temp
@options.json
def command(model: str, output: str, order: int | None, smoothing: str, prune: tuple[int, ...], prune_entropy: float,
            prune_to: int | None, limit_vocab: str | None, interpolate_unigrams: bool, vocab_pad: int, counts: bool,
            labels: list[str] | None, threads: int | None, temp: str | None, as_json: bool) -> None:
    """Write the model as an ARPA file, or its counts.

    Use it to take a model to KenLM, SRILM, a speech recogniser or a decoder. The file is sorted by words, written as
    it is computed, compressed as its name says (.gz, .bz2, .xz, .zst), and takes its name when it is complete; - is stdout.
    Pruning and vocabulary are lmplz's: counts are those of the text, the mass of what is left out goes to the back-offs, no
    discount changes. At the same size --prune-to mostly leaves a better model than --prune does.

    Of a mixture it has the n-grams of its models together, each with the probability that the mixture gives to it. An imported
    model or ARPA file is written with its own numbers, or less of it: -o, --prune-to, --prune-entropy and --limit-vocab; new
    back-offs let its contexts add up to what they did.

    \b
    Example:
      kvps export novels.kvps novels.arpa.gz
      kvps export novels.kvps novels.o3.arpa -o 3 --prune 0,0,1
      kvps export novels.kvps small.arpa --prune-to 1000000
      kvps export news.arpa.gz news.small.arpa --prune-to 1000000
      kvps export novels.kvps novels.counts --counts
    """
    from kvps.cli.output import many, name_warnings, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.export import export
    from kvps.lm.arpa import Choices
    from kvps.store import files
    from kvps.units import format_bytes

    began = time.monotonic()
    name_warnings()
    if output == "-" and not counts:
        output = files.STDOUT
    vocabulary = None if limit_vocab is None else Path(limit_vocab).read_text("utf-8", "surrogateescape")
    choices = Choices(smoothing, prune, vocabulary, interpolate_unigrams, vocab_pad, prune_entropy, prune_to)
    with Progress(["exporting"], unit=" orders" if counts else " n-grams") as progress:
        result = export(model, output, order=order, choices=choices, counts=counts, labels=labels, threads=threads,
                        scratch=temp and Path(temp), progress=progress.stage("exporting"))
    if files.is_stream(output) and not counts:
        return
    n_ngrams = many(sum(result["ngrams"].values()), "n-grams")
    tell(result, f"{output}: version {result['version']}, order {result['order']}, {n_ngrams}, {format_bytes(result['bytes'])}",
         as_json, began=began)

"""kvps mix: weights by which models together foresee a text best."""
from __future__ import annotations

import time
from pathlib import Path

import click

from kvps.cli import options


def _orders(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int | None]:
    try:
        return [int(order) if order else None for order in value.split(",")] if value else [None]
    except ValueError:
        raise click.BadParameter("expected one whole number, or one for each MODEL with commas between, such as 5,3") from None


@click.command("mix")
@click.argument("output", metavar="OUT", type=click.Path(dir_okay=False))
@options.stores("models", "MODEL...")
@click.option("--dev", "inputs", multiple=True, required=True, metavar="TEXT", help="The development text; may be given again.")
@click.option("-o", "--order", metavar="K[,K...]", callback=_orders,
              help="Highest n-gram order to use, of all or of each MODEL; its own by default.")
@click.option("--smoothing", default="modified-kneser-ney", show_default=True, metavar="NAME[,NAME...]",
              help="Of all or of each MODEL, as kvps perplexity has them; an imported one takes the default.")
@click.option("--anyway", is_flag=True, help="Mix even where a model alone has a lower perplexity on TEXT.")
@options.labels
@options.threads
@options.exact
@options.stale
@options.temp
@options.json
@options.tokenizer
@options.reading
def command(output: str, models: tuple[str, ...], inputs: tuple[str, ...], order: list[int | None], smoothing: str,
            anyway: bool, labels: list[str] | None, threads: int | None, exact: bool, stale: str, temp: str | None,
            tokenizer: str | None, encoding_errors: str, field: str, newline: str, max_ratio: int, as_json: bool) -> None:
    """Mix models: find the weights by which they foresee a text best.

    Use it to bring a model of little text of the right kind together with one of much text of another. MODEL is a store, an
    address, or a file made by `kvps import`; all have one tokenizer. OUT is a small file that names them with their weights,
    and stands wherever MODEL may: nothing is copied, and what a store learns, the mixture knows. Paths in it are those from its
    folder. `kvps export OUT FILE.arpa` makes one ARPA file of it.

    The probability of a word is the weighted sum of what the models give to it, nothing where one lacks a word that another
    has. Each model alone is tried too: the mixture's perplexity on TEXT is never above the best one's. But a model to which more
    words are unknown may have a lower one for that alone, since <unk> is less rare than they are: a warning says so, and --anyway
    mixes. Prints weight, perplexity alone, and model, with tabs between.

    \b
    Example:
      kvps mix both.mix letters.kvps novels.kvps --dev heldout.txt
      kvps mix both.mix novels.kvps news.kvm --dev heldout.txt --smoothing witten-bell,mkn
    """
    from kvps.cli.models import readable
    from kvps.cli.output import name_warnings, say, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.mix import mix
    from kvps.lm import evaluate

    began = time.monotonic()
    name_warnings()
    with (readable(inputs, temp, field=field, newline=newline, max_ratio=max_ratio) as found,
          Progress(["compiling"], unit=" n-grams") as progress):
        made = mix(output, models, lambda words: evaluate.texts(found, words, encoding_errors), smoothing=smoothing.split(","),
                   order=order, anyway=anyway, labels=labels, exact=exact, stale=stale, tokenizer=tokenizer, threads=threads,
                   scratch=temp and Path(temp), progress=progress.stage("compiling"))
    for row in () if as_json else made["models"]:
        say(f"{row['weight']:.6f}\t{_shown(row['perplexity'])}\t{row['model']}")
    tell(made, f"{output}: perplexity {_shown(made['perplexity'])} of {made['tokens']:,} tokens", as_json, began=began)


def _shown(perplexity: float | None) -> str:
    return "infinite" if perplexity is None else f"{perplexity:.4f}"

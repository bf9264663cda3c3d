"""kvps rescore: the model's opinion of n-best lists."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("rescore")
@options.store(written=False, name="model")
@click.argument("lists", nargs=-1, metavar="[NBEST]...")
@click.option("--feature", default="kvps", show_default=True, metavar="NAME", help="The feature that is added or replaced.")
@click.option("--weight", type=float, default=1.0, show_default=True, metavar="W",
              help="Add W times the feature to the score of a hypothesis.")
@options.scoring
@options.tokenizer
@options.encoding_errors
@options.field
@options.max_ratio
def command(model: str, lists: tuple[str, ...], feature: str, weight: float, tokenizer: str | None, encoding_errors: str,
            field: str, max_ratio: int, as_json: bool, **choices: object) -> None:
    """Add the model's opinion to n-best lists, best first.

    Use it to rerank what a speech recogniser or translation system offers. NBEST has lines of Moses (id ||| text ||| features
    ||| score) or JSON ("id", the text in --field, "score"), also compressed; without one, stdin is read. Lines in a row with
    the same id are a list. Each gets the natural logarithm of its probability as a feature, its score grows by --weight times
    that, or times what it changed by where the feature is there, and lists are sorted by it. What was JSON stays JSON.

    The feature of a text of probability 0, which some smoothings give to unknown words, is -inf, null in JSON. Such a text has no
    score and is refused with its line, but with --weight 0: then scores stay as they are. Where -inf or null is there already,
    the score is taken to have no part of it. Other numbers that are not finite are refused.

    \b
    Example:
      kvps rescore novels.kvps lattice.nbest --weight 0.4 > reranked.nbest
      kvps rescore novels.kvps hypotheses.jsonl.gz --feature lm
    """
    from kvps.cli.models import compiled
    from kvps.cli.output import write
    from kvps.cli.progress import Progress
    from kvps.lm.model import CompiledModel
    from kvps.lm.rescore import check_feature, rescore
    from kvps.text.piped import passing
    from kvps.units import cpu_count

    check_feature(feature, weight, field)      # before a model is made
    found = passing(lists or ("-",), records=True, field=field, max_ratio=max_ratio)
    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, CompiledModel, tokenizer=tokenizer, **choices) as (ready, words)):
        for line in rescore(ready, found, words, name=feature, weight=weight, field=field,
                            threads=choices["threads"] or cpu_count(), encoding_errors=encoding_errors):
            write(line + b"\n")

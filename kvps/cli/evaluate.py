"""kvps evaluate: how well models foresee a text."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("evaluate")
@options.store(written=False, name="model")
@options.inputs
@click.option("--by-order", is_flag=True, help="Each order from 1 to --order, side by side.")
@options.order
@click.option("--smoothing", default="modified-kneser-ney", show_default=True, metavar="NAME[:VALUE]|all",
              help="As kvps perplexity has them; all: every one, side by side.")
@options.labels
@options.threads
@options.exact
@options.stale
@options.temp
@options.json
@options.tokenizer
@options.reading
def command(model: str, inputs: tuple[str, ...], by_order: bool, order: int | None, smoothing: str, tokenizer: str | None,
            encoding_errors: str, field: str, newline: str, max_ratio: int, as_json: bool, **choices: object) -> None:
    """Measure how well models foresee a text.

    Use it to choose an order and a smoothing: all are views of the one store. Beside perplexity it counts by which order each
    word was matched, and takes the most probable next word for a prediction: how often it is right (accuracy at 1, 5 and 10),
    the mean reciprocal rank of the word that came, and precision, recall and F1 as means over the words that
    stand there or were foreseen. A word that the model does not know is never foreseen; all of these are one word.

    \b
    Example:
      kvps evaluate novels.kvps heldout.txt
      kvps evaluate novels.kvps heldout.txt --by-order
      kvps evaluate novels.kvps heldout.txt --smoothing all --json
    """
    from kvps.cli.models import compiled, readable
    from kvps.cli.output import emit
    from kvps.cli.progress import Progress
    from kvps.lm import evaluate, prediction
    from kvps.units import cpu_count

    views, rows = _views(model, smoothing, order, by_order), []
    with readable(inputs, choices["temp"], field=field, newline=newline, max_ratio=max_ratio) as found:
        for name, top in views:
            with (Progress(["compiling"], unit=" n-grams") as progress,
                  compiled(model, progress, following=True, tokenizer=tokenizer, order=top, smoothing=name,
                           **choices) as (ready, words)):
                texts = evaluate.texts(found, words, encoding_errors)
                result = prediction.evaluate(ready, texts, choices["threads"] or cpu_count())
                facts = {"smoothing": str(ready.smoothing), "order": ready.order, "version": ready.version}
            rows.append(facts | result.as_dict())
            if as_json:
                emit(rows[-1])
    if not as_json:
        _show(rows)


def _views(model: str, smoothing: str, order: int | None, by_order: bool) -> list[tuple[str, int | None]]:
    """Return the smoothings and orders that are to be compared; those that there are not are refused before any is measured."""
    from kvps.errors import ArgumentError
    from kvps.lm import opening
    from kvps.lm.mixture import MixtureFile
    from kvps.lm.smoothing import ALL

    if not by_order and smoothing != "all":
        return [(smoothing, order)]
    with opening.open_model_place(model) as opened:
        top = opened.identity["order"]
        if smoothing == "all" and isinstance(opened, (opening.ModelFile, MixtureFile)):
            raise ArgumentError(f"{model}: has the probabilities that it was made with; --smoothing all takes a store")
    if order is not None and not 1 <= order <= top:
        raise ArgumentError(f"order {order} is not possible: {model} has orders 1 to {top}")
    orders = range(1, (order or top) + 1) if by_order else [order]
    return [(name, k) for name in (ALL if smoothing == "all" else [smoothing]) for k in orders]


def _show(rows: list[dict]) -> None:
    """Print the figures of each model as a column."""
    from kvps.cli.output import say

    orders = max(rows, key=lambda row: len(row["hits"]))["hits"]
    rows = [{**row, **{f"matched by order {k}": row["hits"].get(k, "") for k in orders}} for row in rows]
    shown = {name: [_shown(name, row) for row in rows] for name in rows[0] if name != "hits"}
    widths = [max(len(values[i]) for values in shown.values()) for i in range(len(rows))]
    for name, values in shown.items():
        say(f"{name.replace('_', ' '):26}" + "".join(f" {value:>{width}}" for value, width in zip(values, widths, strict=True)))


def _shown(name: str, row: dict) -> str:
    value = row[name]
    if value is None:
        return "infinite" if row["tokens"] else "undefined"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.6f}"

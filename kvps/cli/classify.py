"""kvps classify: which of several models documents are from."""
from __future__ import annotations

from pathlib import Path

import click

from kvps.cli import options


def _prior(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, float] | str | None:
    if value is None or value == "uniform":
        return value
    try:
        return {label: float(p) for label, _, p in (part.rpartition("=") for part in value.split(","))}
    except ValueError:
        raise click.BadParameter("expected uniform, or a number for each class, such as ham=0.9,spam=0.1") from None


@click.command("classify")
@options.stores("models", "[LABEL=]MODEL...")
@click.option("--input", "inputs", multiple=True, default=("-",), metavar="INPUT", help="The documents; stdin by default.")
@click.option("--field", metavar="NAME", help="Read JSON lines, of which this field is the text; text by default.")
@click.option("--label-field", metavar="NAME", help="Read JSON lines, of which this field says the class, and print how well "
                                                    "they are told apart.")
@click.option("--prior", metavar="LABEL=P,...|uniform", callback=_prior,
              help="How probable each class is; by default as many sentences as its store has.")
@options.scoring
@options.tokenizer
@options.encoding_errors
@options.max_ratio
def command(models: tuple[str, ...], inputs: tuple[str, ...], field: str | None, label_field: str | None,
            prior: dict[str, float] | str | None, temp: str | None, tokenizer: str | None, encoding_errors: str, max_ratio: int,
            as_json: bool, **choices: object) -> None:
    """Tell which of several models documents are from.

    Use it to sort documents into classes: train a store on the text of each. MODEL is a store, an address, or a file made by
    `kvps import` or `kvps mix`, for the class LABEL; without one, its name without what follows the first dot. A document is a
    line, or a record of JSON lines (.jsonl, or with --field or --label-field), in whose text newlines end sentences. Prints the
    class, how probable it is given the document, and log10 of each class's share in the document, with tabs between, in the
    order of the models. A word that a class does not know is there as probable as one of all words of all classes.

    With --label-field prints what became of the documents of each class instead: accuracy, precision, recall and F1, of each
    class and as means over the classes, and how often one class was taken for another.

    \b
    Example:
      kvps classify ham=ham.kvps spam=spam.kvps < mails.txt
      kvps classify earn.kvps acq.kvps crude.kvps --input test.jsonl --label-field topic --prior uniform
    """
    from kvps.cli.output import emit, name_warnings, say
    from kvps.jobs.classify import classes, documents
    from kvps.lm.classify import Confusion
    from kvps.text.piped import passing
    from kvps.units import cpu_count

    name_warnings()
    records = field is not None or label_field is not None or all(".jsonl" in name for name in inputs)
    found = passing(inputs, records=records, max_ratio=max_ratio)
    with classes(_named(models), prior, tokenizer=tokenizer, scratch=temp and Path(temp), **choices) as ready:
        confusion = Confusion(list(ready.labels))
        read = documents(found, records=records, field=field or "text", label_field=label_field)
        for document, row in ready.classify(read, choices["threads"] or cpu_count(), encoding_errors):
            if document.label is not None:
                confusion.add(document.label, row.label)
            elif as_json:
                emit({"label": row.label, "probability": _finite(row.probability),
                      "log10": {label: _finite(p) for label, p in row.log10.items()}})
            else:
                say("\t".join([row.label, f"{row.probability:.6f}", *(f"{p:.4f}" for p in row.log10.values())]))
    if label_field is not None:
        if as_json:
            emit(confusion.as_dict())
        else:
            _show(confusion.as_dict())


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Return the models by label."""
    import os

    from kvps.cli.options import place

    named: dict[str, str] = {}
    for model in models:
        label, _, path = model.partition("=")
        if not path or os.path.exists(model):
            label, path = os.path.basename(os.path.normpath(model)).split(".")[0] or model, model
        if label in named:
            raise click.UsageError(f"{label}: two models for one class; name them, LABEL=MODEL")
        named[label] = place(path)
    return named


def _show(figures: dict) -> None:
    """Print the figures as text."""
    from kvps.cli.output import say

    for name in ("documents", "accuracy", "macro_precision", "macro_recall", "macro_f1"):
        value = figures[name]
        shown = "undefined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6f}"
        say(f"{name.replace('_', ' '):26} {shown}")
    say("")
    say("\t".join(["class", "documents", "precision", "recall", "f1", "taken for"]))
    for label, row in figures["classes"].items():
        taken = ", ".join(f"{other} {n:,}" for other, n in sorted(figures["confusion"][label].items(), key=lambda pair: -pair[1]))
        say("\t".join([label, f"{row['documents']:,}", *(f"{row[name]:.4f}" for name in ("precision", "recall", "f1")), taken]))


def _finite(x: float) -> float | None:
    return x if abs(x) < float("inf") else None

"""kvps explain: what the probabilities of a sentence are made of."""
from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kvps.cli import options

if TYPE_CHECKING:
    from kvps.lm.explain import ExplainedWord

BAR = 24                                   # characters of a bar
COLOURS = ("bright_black", "blue", "cyan", "green", "yellow", "magenta", "red", "bright_blue", "bright_red")


@click.command("explain")
@options.store(written=False, name="model")
@click.argument("sentences", nargs=-1, required=True, metavar="SENTENCE...")
@click.option("--html", "page", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True),
              help="Write a heat map as a page of HTML; - is stdout.")
@options.scoring
@options.tokenizer
def command(model: str, sentences: tuple[str, ...], page: str | None, tokenizer: str | None, as_json: bool,
            **choices: object) -> None:
    """Show why a sentence has its probability: what each order of n-grams gives to each word.

    Use it to see why a sentence is unlikely. One argument is one sentence; - reads lines from stdin. For each word there is a
    line per order: the n-gram, its count, the discount, the count of all words after its context, the back-off of that
    context, and what the order gives to the probability of the word, also as a bar. What the orders give adds up to it; order
    0 is what all words get. An imported model has no counts: the longest n-gram that it lists gives all, times back-offs. Of a
    mixture there are the n-grams of each model, by its weight.

    \b
    Example:
      kvps explain novels.kvps "to be or not to be"
      kvps explain novels.kvps --html why.html - < heldout.txt
    """
    from kvps.cli.models import compiled
    from kvps.cli.output import emit, say
    from kvps.cli.progress import Progress
    from kvps.lm.explain import as_dict, heat_map
    from kvps.lm.model import CompiledModel
    from kvps.store import files

    texts = [sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape") for text in sentences]
    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, CompiledModel, tokenizer=tokenizer, **choices) as (ready, made)):
        text = b"".join(made.prepare(text.removesuffix(b"\n") + b"\n", name="sentence") for text in texts)
        found = ready.explain(text)
        if page is not None:
            page = files.STDOUT if page == "-" else page
            files.atomic_write(page, heat_map(found, f"{model}", f"{ready.smoothing}, order {ready.order}."), private=False)
            if not files.is_stream(page):
                say(f"{page}: written") if not as_json else emit({"path": page})
            return
        for words in found:
            if as_json:
                emit(as_dict(words))
            else:
                _show(words)


def _show(words: list[ExplainedWord]) -> None:
    """Print a table of one sentence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=" ".join(word.word for word in words[:-1]), caption=f"log10 p {sum(word.log10 for word in words):.6f}")
    for name in ("word", "log10 p", "order", "n-gram", "count", "discount", "of", "back-off", "gives", "its part"):
        table.add_column(name, justify="left" if name in ("word", "n-gram", "its part") else "right", no_wrap=name != "n-gram")
    for word in words:
        for row, part in enumerate(word.parts):
            known = part.order > 0
            style = "bold" if known and part.order == word.order else "dim" if part.share == 0 else ""
            filled = round(BAR * part.share / word.probability) if word.probability > 0 else 0
            table.add_row(Text(word.word + (" (oov)" if word.oov else "") if row == 0 else ""),
                          f"{word.log10:.4f}" if row == 0 else "", str(part.order), Text(part.shown()),
                          f"{part.count:,}" if known else "", f"{part.discount:.4f}" if part.discount else "",
                          f"{part.total:,}" if known else "", f"{part.backoff:.4f}" if known else "", f"{part.share:.3g}",
                          Text("█" * filled, style=COLOURS[part.order]), style=style, end_section=row == len(word.parts) - 1)
    width = None if sys.stdout.isatty() else 160           # a file has none
    Console(file=sys.stdout, width=width, highlight=False).print(table)

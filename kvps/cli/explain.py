"""kvps explain: what the probabilities of a sentence are made of."""
from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kvps.cli import options

if TYPE_CHECKING:
    from kvps.lm.explain import ExplainedWord

COLUMNS = ("word", "log10 p", "order", "n-gram", "count", "discount", "of", "back-off", "gives", "its part")
BAR, LEAST = 24, 8                         # characters of a bar, and of what has to give way in a narrow terminal
NARROW = 130                               # characters of a terminal: below it what can be told from the rest is left out
FILE_WIDTH = 160
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
    from kvps.text.piped import stdin_lines

    lines = [line for text in sentences for line in (stdin_lines() if text == "-" else [text])]
    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, CompiledModel, tokenizer=tokenizer, **choices) as (ready, made)):
        text = b"".join(made.prepare(line.encode("utf-8", "surrogateescape") + b"\n", name="sentence") for line in lines)
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
                _show(words, None if sys.stdout.isatty() else FILE_WIDTH)


def _show(words: list[ExplainedWord], width: int | None) -> None:
    """Print a table of one sentence; width: characters, None: as wide as the terminal."""
    from rich.box import HEAVY_HEAD, SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows, styles, last = [], [], []
    for word in words:
        for i, part in enumerate(word.parts):
            known = part.order > 0
            counted = known and part.count is not None
            rows.append([word.word + (" (oov)" if word.oov else "") if i == 0 else "", f"{word.log10:.4f}" if i == 0 else "",
                         str(part.order), part.shown(), f"{part.count:,}" if counted else "",
                         f"{part.discount:.4f}" if part.discount else "", f"{part.total:,}" if counted else "",
                         f"{part.backoff:.4f}" if known else "", f"{part.share:.3g}", ""])
            styles.append("bold" if known and part.order == word.order else "dim" if part.share == 0 else "")
            last.append(i == len(word.parts) - 1)
    console = Console(file=sys.stdout, width=width, highlight=False)
    narrow = console.width < NARROW
    shown = [i for i, name in enumerate(COLUMNS) if not (narrow and name in ("order", "of"))]
    widths = [max(map(cell_len, (name, *column))) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)]
    room = console.width - sum(widths[i] + (1 if narrow else 3) for i in shown[:-1] if COLUMNS[i] != "n-gram") - 4
    ngram = min(widths[COLUMNS.index("n-gram")], max(room - BAR, room // 2, LEAST))
    bar = max(min(room - ngram, BAR), LEAST)
    table = Table(title=" ".join(word.word for word in words[:-1]), caption=f"log10 p {sum(word.log10 for word in words):.6f}",
                  box=SIMPLE_HEAD if narrow else HEAVY_HEAD, padding=(0, 1 - narrow), pad_edge=not narrow)
    for i in shown:
        name = COLUMNS[i]
        table.add_column(name, justify="left" if name in ("word", "n-gram", "its part") else "right", overflow="fold",
                         width={"n-gram": ngram, "its part": bar}.get(name), no_wrap=name != "n-gram")
    parts = [(part, word.probability) for word in words for part in word.parts]
    for row, style, is_last, (part, probability) in zip(rows, styles, last, parts, strict=True):
        row[-1] = Text("█" * round(bar * part.share / probability if probability > 0 else 0), style=COLOURS[part.order])
        table.add_row(*(Text(row[i]) if isinstance(row[i], str) else row[i] for i in shown), style=style, end_section=is_last)
    console.print(table)

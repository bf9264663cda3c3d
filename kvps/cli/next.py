"""kvps next: what comes after a context."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("next")
@options.store(written=False, name="model")
@click.argument("contexts", nargs=-1, required=True, metavar="CONTEXT...")
@click.option("-k", "--top", "k", type=click.IntRange(min=0), default=10, show_default=True, metavar="N",
              help="The N most probable words; 0: all that can come.")
@options.scoring
@options.tokenizer
def command(model: str, contexts: tuple[str, ...], k: int, tokenizer: str | None, as_json: bool, **choices: object) -> None:
    """Show the words that may come after a context, and how probable each is.

    Use it to see what a model expects, or for suggestions; one argument is one context, so put its words between quotes; -
    reads lines from stdin. "<s>" begins a sentence. Prints probability, the sum so far, and the word, with tabs between, and
    the context before them where there are several. Over all words the sum is 1.

    The first call over a store makes a file beside the compiled model that lists what follows each context. A model
    imported with --no-list-ngrams has none, and asks for every word.

    \b
    Example:
      kvps next novels.kvps "the white" "<s> call"
      kvps next novels.kvps --top 0 --json "once upon a" | jq .words
    """
    from kvps.cli.models import compiled
    from kvps.cli.output import emit, say
    from kvps.cli.progress import Progress
    from kvps.lm.followers import context_of
    from kvps.text.piped import stdin_lines
    from kvps.units import cpu_count

    asked = [line for context in contexts for line in (stdin_lines() if context == "-" else [context])]
    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, following=True, tokenizer=tokenizer, **choices) as (ready, words)):
        rows = ready.next_words([context_of(text, words) for text in asked], k or None, choices["threads"] or cpu_count())
        for context, found in zip(asked, rows, strict=True):
            listed = list(zip(found.words, found.probabilities.tolist(), found.cumulative.tolist(), strict=True))
            if as_json:
                emit({"context": context, "words": [{"word": word, "probability": p, "cumulative": total}
                                                    for word, p, total in listed]})
                continue
            for word, p, total in listed:
                say(f"{context + chr(9) if len(asked) > 1 else ''}{p:.6g}\t{total:.6f}\t{word}")

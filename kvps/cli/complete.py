"""kvps complete: how a text that is being typed may go on."""
from __future__ import annotations

import sys

import click

from kvps.cli import options
from kvps.units import MANY, MAX_BEAM


@click.command("complete")
@options.store(written=False, name="model")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("-k", "--top", "k", type=int, default=10, show_default=True, metavar="N", help="The N most probable completions.")
@click.option("--min-count", type=click.IntRange(0, MANY), default=0, show_default=True, metavar="N",
              help="Only words that count N or more after what stands before them (above): rare sentences never come up.")
@click.option("--max-words", type=int, default=5, show_default=True, metavar="N", help="Add at most N words.")
@click.option("--beam", type=click.IntRange(1, MAX_BEAM), default=5, show_default=True, metavar="N",
              help="How many beginnings go on at once: more finds more, and takes longer.")
@options.scoring
@options.tokenizer
def command(model: str, texts: tuple[str, ...], k: int, min_count: int, max_words: int, beam: int, tokenizer: str | None,
            as_json: bool, **choices: object) -> None:
    """Complete a text that is being typed.

    Use it for the suggestions of a search box, from a store of queries. TEXT is the beginning of a sentence; where it does not
    end with a blank, its last word may be half there. - reads lines from stdin and answers each at once. Prints the
    probability that the text goes on so, given what was typed, and the text, with a tab between.

    With --min-count N a word is added only if it counts N or more after the longest part of what stands before it that was
    seen at all, of at most order - 1 words. What counts is how often it was seen there; but with modified-kneser-ney and
    kneser-ney, where that part is shorter and does not begin the sentence, how many different words were seen before the two,
    as these smoothings count. That is never more, so what was seen fewer than N times never comes up with any smoothing.

    \b
    Example:
      kvps complete queries.kvps "how to ma"
      kvps complete queries.kvps "how to ma" --min-count 20 --json
    """
    from kvps.cli.models import compiled
    from kvps.cli.output import emit, say
    from kvps.cli.progress import Progress
    from kvps.lm.completion import split_typed
    from kvps.lm.followers import context_of
    from kvps.text.piped import stdin_lines

    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, following=True, tokenizer=tokenizer, **choices) as (ready, words)):
        for argument in texts:
            for text in stdin_lines() if argument == "-" else [argument]:
                typed, partial = split_typed(text, context_of(text, words, from_begin=True))
                found = [row._replace(text=words.joined(row.text.split(" "))) for row in ready.complete(
                    typed, partial, k, beam=beam, max_words=max_words, min_count=min_count)]
                if as_json:
                    emit({"text": text, "completions": [row._asdict() for row in found]})
                for row in () if as_json else found:
                    say(f"{row.probability:.6g}\t{row.text}")
                sys.stdout.flush()

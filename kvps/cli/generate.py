"""kvps generate: sentences drawn from a model."""
from __future__ import annotations

import click

from kvps.cli import options
from kvps.units import MANY, MAX_DRAWN_WORDS


@click.command("generate")
@options.store(written=False, name="model")
@click.option("--prompt", default="", metavar="TEXT", help="The beginning of each sentence.")
@click.option("--count", type=click.IntRange(min=0), default=1, show_default=True, metavar="N", help="How many sentences.")
@click.option("--temperature", type=float, default=1.0, show_default=True, metavar="T",
              help="Below 1 more of what is probable, above 1 more of what is not.")
@click.option("--top-k", type=click.IntRange(1, MANY), metavar="K", help="Draw from the K best words only.")
@click.option("--top-p", type=float, metavar="P", help="Draw from the best words only that have this share, after --top-k.")
@click.option("--seed", type=int, metavar="SEED", help="The same seed gives the same sentences.")
@click.option("--max-words", type=click.IntRange(1, MAX_DRAWN_WORDS), default=100, show_default=True, metavar="N",
              help="Cut longer sentences off.")
@options.scoring
@options.tokenizer
def command(model: str, prompt: str, count: int, temperature: float, top_k: int | None, top_p: float | None, seed: int | None,
            max_words: int, tokenizer: str | None, as_json: bool, **choices: object) -> None:
    """Draw sentences from a model.

    Use it to see what a model has learned, or for text that looks like its own. A sentence is drawn word by word until its
    end; <s> and <unk> are never drawn. Sentence i of a seed is the same whatever --count and --threads are.

    \b
    Example:
      kvps generate novels.kvps --prompt "the white" --count 3
      kvps generate novels.kvps --count 1000 --seed 7 --top-k 40 --top-p 0.9 --json
    """
    import secrets

    from kvps.cli.models import compiled
    from kvps.cli.output import emit, say
    from kvps.cli.progress import Progress
    from kvps.lm.followers import context_of
    from kvps.units import cpu_count

    seed = secrets.randbits(63) if seed is None else seed
    with (Progress(["compiling"], unit=" n-grams") as progress,
          compiled(model, progress, following=True, tokenizer=tokenizer, **choices) as (ready, made)):
        begun = context_of(prompt, made, from_begin=True)
        for drawn, ended in ready.generate(begun, count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                                           max_words=max_words, threads=choices["threads"] or cpu_count()):
            text = made.joined([*begun, *drawn])
            if as_json:
                emit({"text": text, "words": len(drawn), "ended": ended, "seed": seed})
            else:
                say(text)

"""kvps perplexity: score text with a model."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("perplexity")
@options.store(written=False, name="model")
@options.inputs
@click.option("--per-sentence", is_flag=True, help="One line per sentence instead of the sum over all.")
@options.scoring
@options.tokenizer
@options.reading
def command(model: str, inputs: tuple[str, ...], per_sentence: bool, tokenizer: str | None, encoding_errors: str,
            field: str, newline: str, max_ratio: int, as_json: bool, **choices: object) -> None:
    """Score text with a model.

    Use it to compare models on held-out text, or text with one model: the lower the perplexity, the better the model
    expected the text. Tokens are words plus one </s> a sentence. MODEL is a store, or a file made by
    `kvps import` or `kvps mix`; INPUT is what `kvps train --help` says.

    --per-sentence prints log10 probability, tokens, OOVs, perplexity and the sentence, with tabs between.

    \b
    Example:
      kvps perplexity novels.kvps heldout.txt
      kvps perplexity novels.kvps heldout.txt --smoothing witten-bell -o 3 --json
      echo "to be or not to be" | kvps perplexity novels.kvps -
    """
    from kvps.cli.models import compiled, readable, total_bytes
    from kvps.cli.output import emit
    from kvps.cli.progress import Progress
    from kvps.lm import evaluate
    from kvps.lm.scorer import Scorer
    from kvps.units import cpu_count

    kind = Scorer
    if per_sentence:
        from kvps.lm.model import CompiledModel as kind
    with (Progress(["compiling", "scoring"], unit=" n-grams") as progress,
          compiled(model, progress, kind, tokenizer=tokenizer, **choices) as (ready, words),
          readable(inputs, choices["temp"], field=field, newline=newline, max_ratio=max_ratio) as found):
        facts = {"smoothing": str(ready.smoothing), "order": ready.order, "version": ready.version}
        if per_sentence:
            for line, score in evaluate.per_sentence(ready, found, words, threads=choices["threads"] or cpu_count(),
                                                      encoding_errors=encoding_errors):
                _show_sentence(line, score.as_dict(), as_json)
            return
        score = evaluate.perplexity(ready, found, words, threads=choices["threads"] or cpu_count(),
                                    encoding_errors=encoding_errors,
                                    progress=progress.counter("scoring", total_bytes(found)))
    if as_json:
        emit({**score.as_dict(), **facts})
    else:
        _show(score.as_dict(), facts)


def _show(score: dict, facts: dict) -> None:
    from kvps.cli.output import say

    for name, value in (*score.items(), *facts.items()):
        if name == "zero_probability_tokens" and not value:
            continue
        if name.startswith("perplexity") or name == "log10_probability":
            value = ("-" if name == "log10_probability" and value is None else "") + _number(value, score)
        say(f"{name.replace('_', ' '):26} {f'{value:,}' if isinstance(value, int) else value}")


def _number(value: float | None, score: dict) -> str:
    """Return a figure as text; None stands for infinite, or for undefined where there are no tokens."""
    if value is None:
        return "infinite" if score["zero_probability_tokens"] else "undefined"
    return f"{value:.6f}"


def _show_sentence(line: bytes, score: dict, as_json: bool) -> None:
    from kvps.cli.output import emit, write

    if as_json:
        emit({"sentence": line.decode("utf-8", "backslashreplace"), **score})
        return
    log10_p = score["log10_probability"]
    figures = ["-infinite" if log10_p is None else _number(log10_p, score), str(score["tokens"]),
               str(score["oov"]), _number(score["perplexity"], score)]
    write("\t".join(figures).encode() + b"\t" + line + b"\n")

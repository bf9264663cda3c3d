"""kvps quickstart: the main job on real text, each step as the command that a user would type."""
from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvps.cli import Call

if TYPE_CHECKING:
    from kvps.cli.samples import Sample


@click.command("quickstart")
@click.argument("folder", metavar="[DIR]", default="kvps-quickstart")
@click.option("--corpus", metavar="nltk:NAME", help="A corpus of NLTK instead, such as nltk:reuters.")
@click.pass_obj
def command(call: Call, folder: str, corpus: str | None) -> None:
    """See the main job on real text, step by step.

    Use it to try kvps: trains a model of order 3 on CPython's own documentation, adds text, removes it again and
    scores text that was held out, with several smoothings. Each step is shown as the command to type and then run, in
    a few seconds. Texts and store stay in DIR (kvps-quickstart by default), so that the commands can be tried again.

    With nltk:reuters it trains on the training documents and scores the test documents, a document a sentence.

    \b
    Example:
      kvps quickstart
      kvps quickstart --corpus nltk:reuters /tmp/reuters
    """
    from kvps.cli import main
    from kvps.cli.output import say

    sample = _sample(corpus)
    say(f"# {sample.about}: {len(sample.train):,} + {len(sample.more):,} lines to train on, "
        f"{len(sample.heldout):,} held out")
    texts = _written(Path(folder), sample)
    store = str(Path(folder) / "store")
    call.store = store
    for why, arguments in _steps(store, texts, sample.options):
        say(f"\n# {why}\n$ {_program()} {shlex.join(arguments)}")
        sys.stdout.flush()
        main.main(arguments, standalone_mode=False)
    say(f"\n# The store is {os.path.abspath(store)}; the texts lie beside it. Remove the folder when you are done.")


def _steps(store: str, texts: dict[str, str], options: list[str]) -> list[tuple[str, list[str]]]:
    """Return why and what: the arguments of each command."""
    score = ["perplexity", store, texts["heldout"]]
    return [
        ("Count text into a new store.", ["train", store, texts["train"], "-o", "3", *options]),
        ("How well does the model expect text that it has not seen? Lower is better.", score),
        ("More text has come: only the new text is counted.", ["update", store, texts["more"]]),
        ("The model follows the store.", score),
        ("Other smoothings are other views of the same counts. Witten-Bell gives unknown words (oov) no probability.",
         [*score, "--smoothing", "witten-bell"]),
        ("Laplace gives some to everything, and far too much of it.", [*score, "--smoothing", "laplace"]),
        ("Stupid back-off gives scores rather than probabilities; with --json for programs.",
         [*score, "--smoothing", "stupid-backoff", "--json"]),
        ("The text that came later has to go again, exactly.", ["forget", store, texts["more"]]),
        ("This is the model of version 1 again, to the last digit.", score),
        ("What the store holds now.", ["stats", store])]


def _sample(corpus: str | None) -> Sample:
    from kvps.cli import samples

    if corpus is None:
        return samples.python_documentation()
    if not corpus.startswith("nltk:"):
        raise click.BadParameter(f'"{corpus}" is no corpus of NLTK; write nltk:reuters', param_hint="--corpus")
    return samples.nltk_corpus(corpus.removeprefix("nltk:"))


def _written(folder: Path, sample: Sample) -> dict[str, str]:
    """Write the texts, where they are not there already, and return their paths by name."""
    from kvps.errors import ArgumentError
    from kvps.store import files

    paths = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "more", "heldout"):
        path = folder / f"{name}.txt"
        data = "".join(f"{line}\n" for line in getattr(sample, name)).encode()
        if not path.exists():
            files.atomic_write(path, data, private=False)
        elif path.read_bytes() != data:
            raise ArgumentError(f"{path}: is there with another text; name another folder: kvps quickstart DIR")
        paths[name] = str(path)
    return paths


def _program() -> str:
    """Return how this program is to be called again: "kvps" where the shell finds just this one by that name."""
    called = Path(sys.argv[0])
    if called.name != "kvps":
        return f"{shlex.quote(sys.executable)} -m kvps"
    found = shutil.which("kvps")
    return "kvps" if found and called.exists() and os.path.samefile(found, called) else shlex.quote(str(called))

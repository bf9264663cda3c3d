"""kvps kenlm-tools: executables with the names and options of KenLM's programs."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("kenlm-tools")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@options.json
def command(folder: str, as_json: bool) -> None:
    """Write lmplz, query and build_binary to DIR: KenLM's programs, by kvps.

    Use it to run scripts that call KenLM, unchanged: put DIR into PATH before KenLM's. lmplz writes the ARPA files that
    KenLM's writes, sorted by words; query prints what KenLM's prints, of ARPA files, stores and what build_binary makes,
    which is a model of kvps. Options are KenLM's (lmplz --help); those that only tune memory are taken, and those that
    kvps cannot honour are refused by name. A binary file of KenLM cannot be read: name the ARPA file.
    DIR is made where it does not exist; other files of these names are not overwritten.

    \b
    Example:
      kvps kenlm-tools ~/kenlm-bin
      export PATH=~/kenlm-bin:$PATH
      lmplz -o 5 -S 80% -T /tmp --prune 0 0 1 --text news.txt --arpa news.arpa
      build_binary trie news.arpa news.kvm
      query -v summary news.kvm < heldout.txt
    """
    import shlex
    import sys
    from pathlib import Path

    from kvps.cli.kenlm import TOOLS
    from kvps.cli.output import emit, say
    from kvps.errors import ArgumentError
    from kvps.store import files

    mark = "# Made by kvps kenlm-tools."
    out = Path(folder)
    with files.reporting(out):
        out.mkdir(parents=True, exist_ok=True)
    for tool in TOOLS:
        path = out / tool
        with files.reporting(path):
            if path.exists() and mark.encode() not in path.read_bytes()[:200]:
                raise ArgumentError(f"{path}: exists already, and is not ours; name another folder")
    for tool in TOOLS:
        path = out / tool
        text = f'#!/bin/sh\n{mark}\nexec {shlex.quote(sys.executable)} -m kvps.cli.kenlm {tool} "$@"\n'
        files.atomic_write(path, text.encode(), private=False)
        with files.reporting(path):
            path.chmod(0o755)
        if as_json:
            emit({"file": str(path)})
    if not as_json:
        say(f"{out}: {', '.join(TOOLS)}")

"""The command line: `kvps COMMAND STORE ...`, one module per command, named like it.

A command parses, opens, makes one call of the library and prints. This module has the group, which imports a command's
module only when it is called, and the one place where exceptions become a line and an exit code (failure.py).
stdout is data, stderr is progress and messages.
"""
from __future__ import annotations

import dataclasses
import importlib
import os
import sys

# A thread pool for linear algebra, which is never used here, would cost CPU at every start. Before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from kvps.cli.stopping import stoppable

# Listed here, so that the help imports no command; test_cli.py compares them with what the commands say themselves.
COMMANDS = {
    "train": "Count text into a new store.",
    "update": "Add text to a store.",
    "forget": "Remove text from a store, exactly.",
    "resume": "Go on with the job that was interrupted.",
    "abort": "Roll back the job that was interrupted.",
    "status": "Tell whether a store is idle, running (being written) or interrupted.",
    "history": "List the versions of a store: when, by which command, what each added.",
    "table": "Make, list, fill and read the tables of a store.",
    "checkpoint": "Make, list, verify, delete and restore checkpoints of a store.",
    "perplexity": "Score text with a model.",
    "score": "Print the log10 probability of every sentence, word or JSON record.",
    "next": "Show the words that may come after a context, and how probable each is.",
    "generate": "Draw sentences from a model.",
    "explain": "Show why a sentence has its probability: what each order of n-grams gives to each word.",
    "evaluate": "Measure how well models foresee a text.",
    "classify": "Tell which of several models documents are from.",
    "complete": "Complete a text that is being typed.",
    "rescore": "Add the model's opinion to n-best lists, best first.",
    "mix": "Mix models: find the weights by which they foresee a text best.",
    "export": "Write the model as an ARPA file, or its counts.",
    "import": "Make a model of an ARPA file, to score text with.",
    "compile": "Make the compiled model of a store now.",
    "compact": "Merge the runs of a store into one per shard.",
    "merge": "Add the counts of stores to a new one, exactly.",
    "limit": "Make a store of STORE in which all other words are <unk>.",
    "reshard": "Give a store another number of shards; no count changes.",
    "stats": "Show what a store holds, and the discounts of modified Kneser-Ney.",
    "counts": "Show raw and adjusted counts of n-grams of any order.",
    "dump": "Print every K-gram with its raw count: w1 ... wK<TAB>count.",
    "serve": "Serve a store to other processes and machines, until SIGTERM or Ctrl-C.",
    "work": "Count a part of the text of a train, update or forget that is at work at ADDRESS, until it is over.",
    "servers": "Show the servers of a store: state, load, lag, memory and bytes.",
    "keygen": "Make the keys of a server in DIR, and those of clients, which the server then lets in.",
    "check": "Look for damage in a store, and change nothing.",
    "audit": "Verify a model on itself: contexts sum to 1, counts agree over orders, and counts of counts with the counts.",
    "recover": "Make a damaged store sound again, after showing how.",
    "upgrade": "Carry a store of an older format to the one of this kvps.",
    "kenlm-tools": "Write lmplz, query and build_binary to DIR: KenLM's programs, by kvps.",
    "quickstart": "See the main job on real text, step by step.",
}


@dataclasses.dataclass
class Call:
    """One call of the program: what an error report needs to know about it."""

    arguments: list[str]
    store: str | None = None       # the store that the command writes to
    debug: bool = False

    @property
    def json(self) -> bool:
        """Whether --json was given; looked up in the arguments, since parsing them may be what failed."""
        end = self.arguments.index("--") if "--" in self.arguments else None
        return "--json" in self.arguments[:end]


class Program(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command, or return None where there is none of this name."""
        return importlib.import_module(f"kvps.cli.{name.replace('-', '_')}").command if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: list[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, **extra: object) -> object:
        """Run the program and exit with its code; with standalone_mode=False, return, and let exceptions through."""
        arguments = list(sys.argv[1:] if args is None else args)
        call = Call(arguments)
        if not standalone_mode or "_KVPS_COMPLETE" in os.environ:
            return super().main(arguments, "kvps", complete_var, standalone_mode, obj=call, **extra)
        with stoppable() as stopped:
            try:
                with self.make_context("kvps", arguments, obj=call, **extra) as ctx:
                    self.invoke(ctx)
                if sys.stdout is not None:
                    sys.stdout.flush()     # here, where a reader that is gone can still be noticed
                code = 0
            except BaseException as exc:
                from kvps.cli.failure import report

                code = report(stopped[0].with_traceback(exc.__traceback__) if stopped else exc, call)
        sys.exit(code)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import kvps

        click.echo(f"kvps {kvps.__version__}")
        ctx.exit()


@click.command(cls=Program, name="kvps", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_obj
def main(call: Call, debug: bool) -> None:
    """N-gram language models that you can train, update, forget and query.

    A STORE is a folder that holds the n-gram counts of all text added to it.
    `kvps COMMAND --help` has an example for each command; begin with `kvps quickstart`.

    \b
    Example:
      kvps train novels.kvps novels.txt -o 5
      kvps perplexity novels.kvps heldout.txt

    Exit codes: 0 done, 1 failed, 2 usage, 3 damaged, 4 stopped but resumable, 5 locked, 130 Ctrl-C.
    """
    call.debug = debug

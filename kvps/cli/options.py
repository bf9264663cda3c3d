"""Options and arguments that commands share, as decorators."""
from __future__ import annotations

import os
from collections.abc import Callable

import click

from kvps.cli import Call

Decorator = Callable[[Callable], Callable]


def _all(*decorators: Decorator) -> Decorator:
    """Return one decorator that applies several; the help shows their options in this order."""
    def apply(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function
    return apply


def place(value: str) -> str:
    """Return a folder as it is, and the address of a server with the keys that --keys names."""
    from kvps.ps.places import RAY, Address, address

    cluster = click.get_current_context().meta.get("ray")
    if cluster is not None:
        if address(value) is not None:
            raise click.UsageError(f"{value}: with --ray STORE is a folder")
        return Address(f"{RAY}{cluster}{os.path.abspath(value)}")
    return value if address(value) is None else Address(value, click.get_current_context().meta.get("keys"))


def _place(ctx: click.Context, param: click.Parameter, value: str) -> str:
    return place(value)


def _written_place(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Note which store is written to, for the report of a failure."""
    store = place(value)
    if isinstance(ctx.obj, Call):
        ctx.obj.store = store
    return store


def _keys(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Keep our folder of keys for the argument that names a store."""
    ctx.meta["keys"] = value


def _ray(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Keep the cluster for the argument that names a store."""
    if value and not value.rpartition(":")[2].isdigit() and not value.endswith("@"):
        raise click.UsageError(f"--ray {value}: is no address of a cluster, [RESOURCE@]HOST:PORT; for the cluster of this machine, "
                               "give --ray alone and last")
    ctx.meta["ray"] = value


def _split_labels(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    chosen = [label for label in value.split(",") if label]
    if not chosen:
        raise click.BadParameter("expected labels with commas between, such as 2025-01,2025-02; leave it out for all of the text")
    return chosen


keys = click.option("--keys", metavar="DIR", type=click.Path(file_okay=False), envvar="KVPS_KEYS", is_eager=True,
                    expose_value=False, callback=_keys, help="Our keys, for a server (kvps://HOST:PORT) that has some.")


ray = click.option("--ray", metavar="[ADDRESS]", is_flag=False, flag_value="", is_eager=True, expose_value=False, callback=_ray,
                   help="Count on a Ray cluster, [RESOURCE@]HOST:PORT, by --threads tasks; without ADDRESS, given last, on that of "
                        "this machine.")


def store(*, written: bool, name: str = "store") -> Decorator:
    """Return the argument STORE, a folder or an address, of a command that writes to it or only reads."""
    return _all(click.argument(name, callback=_written_place if written else _place), keys)


def stores(name: str, metavar: str) -> Decorator:
    """Return the argument that names several stores or models that are only read."""
    def places(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(place(one) for one in value)

    return _all(click.argument(name, nargs=-1, required=True, metavar=metavar, callback=places), keys)


def store_folder(*, written: bool) -> Decorator:
    """Return the argument STORE of a command that works on the files of a store, as store() otherwise."""
    def folder(ctx: click.Context, param: click.Parameter, value: str) -> str:
        from kvps.ps.places import address

        if address(value) is not None:
            raise click.UsageError(f"{value}: this works on the files of a store; stop its servers, and name its folder")
        return _written_place(ctx, param, value) if written else value

    return click.argument("store", callback=folder)


inputs = click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
threads = click.option("--threads", type=click.IntRange(min=1), metavar="N",
                       help="Threads; by default the CPUs that affinity and cgroup allow.")
json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, errors too.")
wait = click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait so long for another writer.")
FOLDER = click.Path(exists=True, file_okay=False, writable=True)
temp = click.option("-T", "--temp", metavar="DIR", type=FOLDER, help="Folder for scratch files.")
memory = click.option("-S", "--memory", metavar="SIZE", default="1G", show_default=True,
                      help="For the text being counted: 512M, 2G, 80%.")
tokenizer = click.option("--tokenizer", metavar="SPEC",
                         help="whitespace, char, wordpunct, jieba, sentencepiece:FILE, hf:PATH or MODULE:FUNC.")
# How text becomes words, besides the tokenizer; what makes a store or a model records it.
words = _all(
    click.option("--lowercase", is_flag=True, help="Lower-case the words."),
    click.option("--normalize", type=click.Choice(["NFC", "NFKC"]), help="Bring text into this Unicode form first."),
    click.option("--split-sentences", is_flag=True, help="End sentences at 。！？ and . ! ? too, not only at newlines."))
dry_run = click.option("--dry-run", is_flag=True, help="Only say how much disk this would need, and what is free.")
again = click.option("--again", is_flag=True, help="Count inputs that are counted already once more.")
exact = click.option("--exact", is_flag=True,
                     help="A compiled model without fingerprints: larger, slower, no chance of a false match.")
stale = click.option("--stale", type=click.Choice(["ok", "wait"]), default="wait", show_default=True,
                     help="While another process compiles: use an older model, or wait.")

encoding_errors = click.option("--encoding-errors", type=click.Choice(["strict", "replace"]), default="strict", show_default=True,
                               help="Bytes that are not UTF-8: refuse, or read as U+FFFD.")
field = click.option("--field", default="text", show_default=True, metavar="NAME", help="The text's field in .jsonl records.")
max_ratio = click.option("--max-ratio", type=int, default=200, show_default=True, metavar="N",
                         help="Refuse compressed files whose text is more than N times as long; 0 for no limit.")
reading = _all(
    encoding_errors, field,
    click.option("--newline", type=click.Choice(["split", "space"]), default="split", show_default=True,
                 help="A newline inside a field: ends a sentence, or is a space."),
    max_ratio)
reserved = click.option("--reserved", type=click.Choice(["error", "skip"]), default="error", show_default=True,
                        help="<s>, </s>, <unk> in the text: refuse, or skip them.")

keep_labels = click.option("--keep-labels", type=int, metavar="N",
                           help="Forget the oldest labels until N are left: a sliding window.")
labelled = _all(
    click.option("--label", metavar="NAME", help="Keep the counts of this text apart: kvps forget --label NAME removes it."),
    keep_labels)

# What train, update and forget have in common, besides how they make words.
counting = _all(
    threads, memory, ray,
    click.option("-T", "--temp", metavar="DIR", type=FOLDER,
                 help="Folder for the copy of stdin that makes the job resumable; in STORE by default."),
    reserved, reading,
    click.option("--count-field", metavar="NAME",
                 help="A record counts as often as this field of .jsonl records says, a whole number; by default once."),
    wait, json)

order = click.option("-o", "--order", type=int, metavar="K",
                     help="Highest n-gram order to use; the store's by default.")
smoothing = click.option("--smoothing", default="modified-kneser-ney", show_default=True, metavar="NAME[:VALUE]",
                         help="modified-kneser-ney (mkn), kneser-ney (kn), absolute-discounting (ad), "
                              "witten-bell (wb), lidstone:0.1, laplace, mle, stupid-backoff:0.4.")
labels = click.option("--labels", metavar="A,B", callback=_split_labels,
                      help="Only the text of these labels; - is text without one.")
scoring = _all(order, smoothing, labels, threads, exact, stale, temp, json)

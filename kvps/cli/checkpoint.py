"""kvps checkpoint: a group of commands that make, list, verify, delete and restore checkpoints."""
from __future__ import annotations

import time

import click

from kvps.cli import options

to = click.option("--to", metavar="PLACE", help="Folder or URL of the checkpoints; STORE/checkpoints by default.")
source = click.option("--from", "source", metavar="PLACE",
                      help="Folder or URL of checkpoints, in the place of STORE: for when the store is gone.")
wait = click.option("--wait", type=float, default=0.0, metavar="SECONDS",
                    help="Wait so long for another process that makes or deletes checkpoints there.")


@click.group("checkpoint")
def command() -> None:
    """Make, list, verify, delete and restore checkpoints of a store.

    Use it to keep a store safe: a checkpoint is a committed version, taken while jobs run and readers read. Only what a
    place does not have yet is sent, so a daily checkpoint costs what changed. A place is a folder, best on another disk,
    or a URL that fsspec knows (pip install "kvps[remote]" and the driver, such as s3fs).

    \b
    Example:
      kvps checkpoint create novels.kvps --to /backup/novels --keep 7
      kvps checkpoint list novels.kvps --to /backup/novels
      kvps checkpoint verify --from /backup/novels
      kvps checkpoint restore --from /backup/novels v000012 --into novels.kvps
    """


def _place(arguments: tuple[str, ...], source: str | None, *, named: bool | None) -> tuple[str | None, str | None]:
    """Return (store, name) of a command's arguments; `named`: it needs a name, or (None) may have one."""
    expected = ([] if source else ["STORE"]) + ([] if named is False else ["NAME"])
    least = len(expected) - (named is None)
    if not least <= len(arguments) <= len(expected):
        given = "no argument" if not arguments else " ".join(arguments)
        shown = " ".join(f"[{word}]" if word == "NAME" and named is None else word for word in expected) or "no argument"
        raise click.UsageError(f"expected {shown}{' beside --from' if source else ''}, got {given}")
    rest = list(arguments)
    store = None if source else rest.pop(0)
    return store, rest[0] if rest else None


def _depot(store: str | None, to: str | None, source: str | None) -> tuple:
    from kvps.store.checkpoint import depot_of

    if to is not None and source is not None:
        raise click.UsageError("--to is the place of a store's checkpoints, --from stands in for a store: give one of them")
    return depot_of(store, to, source)


def _there(store: str | None, to: str | None) -> str | None:
    """Return the address of a server that keeps the checkpoints itself, or None for a folder."""
    from kvps.ps.places import address

    if store is None or address(store) is None:
        return None
    if to is not None:
        raise click.UsageError("a server keeps the checkpoints of its store in the store; to put them elsewhere, run this on its "
                               "machine with the folder in the place of the address")
    return options.place(store)


@command.command("create")
@options.store(written=False)
@click.argument("name", required=False, metavar="[NAME]")
@to
@click.option("--keep", type=click.IntRange(min=1), metavar="N",
              help="Delete the oldest checkpoints of this store beyond N; by default all stay.")
@wait
@options.json
def create(store: str, name: str | None, to: str | None, keep: int | None, wait: float, as_json: bool) -> None:
    """Make a checkpoint of the last committed version.

    Use it every day, from cron: jobs and readers go on meanwhile, and what an interrupted one has sent is not sent again.
    NAME is v and the version by default. The same version under the same name is made once. The tables of a store are
    not in its checkpoints: each has its own, of STORE/tables/NAME, where NAME is g and a number that rises.

    \b
    Example:
      kvps checkpoint create novels.kvps --to /backup/novels --keep 7
      kvps checkpoint create novels.kvps before-the-purge --to s3://bucket/novels
      kvps checkpoint create novels.kvps/tables/clicks --to /backup/clicks
    """
    from kvps.cli.output import say, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.served import make_checkpoint
    from kvps.ps.places import open_place
    from kvps.ps.tables import names
    from kvps.store.checkpoint import create
    from kvps.store.directory import open_store
    from kvps.units import format_bytes

    began = time.monotonic()
    if (there := _there(store, to)) is not None:
        with open_place(there) as opened:
            made, left_out = opened.run(make_checkpoint, name=name, keep=keep, wait=wait), []
    else:
        with open_store(store, table=None) as opened, Progress(["copying"]) as progress:
            made = create(opened, name, to=to, keep=keep, wait=wait, progress=progress.stage("copying"))
            left_out = names(opened.path)
    what = f"{made['place']}: checkpoint {made['name']} of version {made['version']}"
    if made["existed"] and not as_json:
        say(f"{what} was there")
    else:
        tell(made, f"{what}, {format_bytes(made['bytes'])}, {format_bytes(made['new_bytes'])} of it new", as_json, began=began)
    for gone in () if as_json else made["deleted"]:
        say(f"{made['place']}: deleted checkpoint {gone}")
    if left_out:
        click.echo(f"kvps: the tables {', '.join(left_out)} are not in it; kvps checkpoint create {store}/tables/NAME keeps one",
                   err=True)


@command.command("list")
@click.argument("arguments", nargs=-1, metavar="STORE")
@options.keys
@to
@source
@options.json
def list_(arguments: tuple[str, ...], to: str | None, source: str | None, as_json: bool) -> None:
    """List checkpoints, oldest first.

    Use it to see which versions can be restored, and what each has cost.

    \b
    Example:
      kvps checkpoint list novels.kvps
      kvps checkpoint list --from s3://bucket/novels
    """
    from kvps.cli.history import moment
    from kvps.cli.output import emit, say
    from kvps.jobs.served import list_checkpoints
    from kvps.ps.places import open_place
    from kvps.store.checkpoint import listed
    from kvps.units import format_bytes

    store, _ = _place(arguments, source, named=False)
    if (there := _there(store, to)) is not None:
        with open_place(there) as opened:
            rows = opened.run(list_checkpoints)
    else:
        rows = listed(*_depot(store, to, source))
    if as_json:
        for row in rows:
            emit(row)
        return
    if not rows:
        say(f"{store or source}: no checkpoints")
        return
    width = max(len("name"), *(len(row["name"]) for row in rows))
    say(f"{'name':{width}} {'version':>7} {'created':19} {'tokens':>16} {'bytes':>8} {'new':>8}")
    for row in rows:
        if "damaged" in row:
            say(f"{row['name']:{width}} damaged: {row['damaged']}")
        else:
            say(f"{row['name']:{width}} {row['version']:>7} {moment(row['created'])} {row['tokens']:>16,} "
                f"{format_bytes(row['bytes']):>8} {format_bytes(row['new_bytes']):>8}")


@command.command("verify")
@click.argument("arguments", nargs=-1, metavar="STORE [NAME]")
@options.keys
@to
@source
@wait
@options.json
def verify(arguments: tuple[str, ...], to: str | None, source: str | None, wait: float, as_json: bool) -> None:
    """Read checkpoints as a whole and compare every byte with its hash.

    Use it now and then, and before you rely on a checkpoint; without NAME all are read, and what several share is read
    once. Ends with 3 if something is missing or damaged, and names it.

    \b
    Example:
      kvps checkpoint verify novels.kvps
      kvps checkpoint verify --from /backup/novels v000012
    """
    from kvps.cli.output import many, say, tell
    from kvps.cli.progress import Progress
    from kvps.errors import CorruptionError
    from kvps.jobs.served import verify_checkpoints
    from kvps.ps.places import open_place
    from kvps.store.checkpoint import verify
    from kvps.units import format_bytes

    store, name = _place(arguments, source, named=None)
    if (there := _there(store, to)) is not None:
        with open_place(there) as opened:
            rows, place = opened.run(verify_checkpoints, name=name, wait=wait), store
    else:
        depot, only = _depot(store, to, source)
        place = depot and depot.place
        with Progress(["verifying"], unit="B") as progress:
            rows = verify(depot, name, only=only, wait=wait, progress=progress.stage("verifying"))
    for row in rows:
        found = many(len(row["findings"]), "findings") if row["findings"] else "sound"
        lines = [f"{row['name']}: {many(row['objects'], 'objects')}, {format_bytes(row['bytes'])}: {found}",
                 *(f"  {finding['message']}" for finding in row["findings"])]
        tell(row, "\n".join(lines), as_json)
    if not rows and not as_json:
        say(f"{store or source}: no checkpoints")
    damaged = [row["name"] for row in rows if row["findings"]]
    if damaged:
        raise CorruptionError(f"{place}: {len(damaged)} of {many(len(rows), 'checkpoints')} damaged: {', '.join(damaged)}; "
                              "use another one", path=place)


@command.command("delete")
@click.argument("arguments", nargs=-1, metavar="STORE NAME")
@options.keys
@to
@source
@wait
@options.json
def delete(arguments: tuple[str, ...], to: str | None, source: str | None, wait: float, as_json: bool) -> None:
    """Delete a checkpoint, and what no other one needs.

    Use it to get space back, or when text has to go from checkpoints too; other checkpoints stay whole.

    \b
    Example:
      kvps checkpoint delete novels.kvps v000012
      kvps checkpoint delete --from /backup/novels v000012
    """
    from kvps.cli.output import tell
    from kvps.jobs.served import delete_checkpoint
    from kvps.ps.places import open_place
    from kvps.store.checkpoint import delete
    from kvps.units import format_bytes

    store, name = _place(arguments, source, named=True)
    if (there := _there(store, to)) is not None:
        with open_place(there) as opened:
            gone, place = opened.run(delete_checkpoint, name=name, wait=wait), store
    else:
        depot, only = _depot(store, to, source)
        gone = delete(depot, name, only=only, wait=wait)
        place = depot.place
    if gone["blocked_by"]:
        others = ", ".join(gone["blocked_by"])
        freed = f"; nothing is free again before {others} is deleted too, which cannot be read and may need it"
    else:
        freed = f", {format_bytes(gone['freed_bytes'])} are free again"
    tell(gone, f"{place}: deleted checkpoint {name}{freed}", as_json)


@command.command("restore")
@click.argument("arguments", nargs=-1, metavar="STORE [NAME]")
@click.option("--version", type=click.IntRange(min=0), metavar="N",
              help="The newest checkpoint of this version, instead of a name.")
@click.option("--into", required=True, metavar="DIR", help="The store to make: a folder that does not exist, or is empty.")
@source
@wait
@options.json
def restore(arguments: tuple[str, ...], version: int | None, into: str, source: str | None, wait: float, as_json: bool) -> None:
    """Make a store of a checkpoint.

    Use it when a store is lost or damaged, or to go back to an earlier version; what is there stays as it is. Counts,
    history, inputs and labels are those of the checkpoint, and updates and forgetting go on from there. A job that was
    pending is not part of a checkpoint: its command is to be given again.

    \b
    Example:
      kvps checkpoint restore novels.kvps v000012 --into restored.kvps
      kvps checkpoint restore --from s3://bucket/novels --version 12 --into novels.kvps
    """
    from kvps.cli.output import many, tell
    from kvps.cli.progress import Progress
    from kvps.store.checkpoint import restore

    store, name = _place(arguments, source, named=version is None)
    depot, _ = _depot(store, None, source)
    began = time.monotonic()
    with Progress(["restoring"], unit="B") as progress:
        made = restore(depot, into, name, version, wait=wait, progress=progress.stage("restoring"))
    tell(made, f"{made['path']}: version {made['version']}, {many(made['tokens'], 'tokens')}, restored from checkpoint "
         f"{made['name']}", as_json, began=began)

"""kvps table: a group of commands for the tables of a store, keys with 64-bit sums that are no n-grams."""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

import click

from kvps.cli import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvps.api import CountTable, Store
    from kvps.ps.remote import RemoteTables

key_type = click.option("--key-type", type=click.Choice(["uint", "hex", "text"]), default="uint", show_default=True,
                        help="How keys are written: a number, two digits a byte, or text with NUL bytes behind it.")
name = click.argument("name")


@click.group("table")
def command() -> None:
    """Make, list, fill and read the tables of a store.

    Use it for sums that are no n-grams: clicks, co-occurrences, features. A table maps keys of a fixed width to 64-bit
    sums. It lies in the store, and a push that has returned is on disk; it can be written while jobs of the store run.
    STORE may be the address of a server, kvps://HOST:PORT or kvps:///FOLDER/SOCKET (see kvps serve).

    \b
    Example:
      kvps table create novels.kvps clicks --key-bytes 8
      kvps table push novels.kvps clicks clicks.csv --client 2026-11-25
      kvps table scan novels.kvps clicks --start 1000 --stop 2000
      kvps table drop novels.kvps clicks
    """


def _tables(store: str) -> Store | RemoteTables:
    """Open a store for reading, or connect to the server of one; both give tables in the same words."""
    from kvps.ps.places import address

    if (there := address(store)) is not None:
        from kvps.ps.remote import RemoteTables

        return RemoteTables(there, keys=there.keys)
    from kvps.api import open as open_store

    return open_store(store)


@contextlib.contextmanager
def _table(store: str, name: str, *, writable: bool = False, wait: float = 0.0) -> Iterator[CountTable]:
    """Open one table; `writable` keeps other writers away meanwhile."""
    from kvps.ps.places import address

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(_tables(store))
        if address(store) is None and writable:
            from kvps.ps.tables import open_table

            yield stack.enter_context(open_table(opened.path, name, writable=True, wait=wait))
        else:
            yield stack.enter_context(opened.table(name))


@command.command("list")
@options.store(written=False)
@options.json
def list_(store: str, as_json: bool) -> None:
    """List the tables of a store.

    Use it to see which there are, and what they take on disk. Entries count a key once for each run that it is in.

    \b
    Example:
      kvps table list novels.kvps
    """
    from kvps.cli.output import emit, many, say
    from kvps.units import format_bytes

    with _tables(store) as tables:
        found = tables.tables()
    for row in found.values():
        if as_json:
            emit(row)
        elif "damaged" in row:
            say(f"{row['name']}: {row['damaged']}")
        else:
            say(f"{row['name']}: {row['kind']}, keys of {many(row['key_bytes'], 'bytes')}, {many(row['entries'], 'entries')} in "
                f"{many(row['runs'], 'runs')}, {many(row['shards'], 'shards')}, {format_bytes(row['bytes'])}")


@command.command("create")
@options.store(written=False)
@name
@click.option("--key-bytes", type=int, required=True, metavar="K", help="Width of the keys, 1 to 32.")
@click.option("--shards", type=int, default=1, show_default=True, metavar="S",
              help="Into how many parts the keys are split, 1 to 64; fixed for the life of the table.")
@options.json
def create(store: str, name: str, key_bytes: int, shards: int, as_json: bool) -> None:
    """Make an empty table.

    Use it once for each kind of thing that is counted. 8 bytes hold a number below 2**64 or a hash.

    \b
    Example:
      kvps table create novels.kvps clicks --key-bytes 8
    """
    from kvps.cli.output import tell

    with _tables(store) as tables:
        tables.create_table(name, "count", key_bytes, shards)
        with tables.table(name) as table:
            row = table.stats()
    tell(row, f"{store}: made table {name}, keys of {key_bytes} bytes", as_json)


@command.command("drop")
@options.store(written=False)
@name
@options.wait
@options.json
def drop(store: str, name: str, wait: float, as_json: bool) -> None:
    """Delete a table and everything in it.

    Use it when its sums are of no use any more. Nothing is asked, and there is no way back: checkpoints of the table go
    too, but for those made with --to.

    \b
    Example:
      kvps table drop novels.kvps clicks
    """
    from kvps.cli.output import tell
    from kvps.ps.places import address

    with _tables(store) as tables:
        if address(store) is None:
            tables.drop_table(name, wait=wait)
        else:
            tables.drop_table(name)
    tell({"dropped": name}, f"{store}: deleted table {name}", as_json)


@command.command("push")
@options.store(written=False)
@name
@click.argument("source", default="-", metavar="[INPUT]")
@click.option("--format", "layout", type=click.Choice(["csv", "jsonl"]),
              help='Lines key,count, or {"key": ..., "count": ...}; by the name of INPUT if not given, else csv.')
@key_type
@click.option("--batch", type=click.IntRange(min=1), default=100_000, show_default=True, metavar="N", help="Rows of each push.")
@click.option("--client", metavar="ID", help="Number the pushes, so that the same command again adds nothing twice.")
@options.wait
@options.json
def push(store: str, name: str, source: str, layout: str | None, key_type: str, batch: int, client: str | None, wait: float,
         as_json: bool) -> None:
    """Add the counts of a file, or of stdin, to a table.

    Use it with --client, a name for this input that no other one has: after a kill the same command goes on. Without it
    a command that is run again adds everything again. Counts may be negative; a count that gets 0 is gone. INPUT may be
    compressed (.gz, .bz2, .xz, .zst). A line that cannot be read ends the command; it says what is added.

    \b
    Example:
      kvps table push novels.kvps clicks clicks.csv --client 2026-11-25
      zcat log.gz | cut -f 3 | sort | uniq -c | awk '{print $2 "," $1}' | kvps table push novels.kvps pages --key-type text
    """
    from kvps.cli.output import many, tell
    from kvps.cli.progress import Progress
    from kvps.jobs.pushing import push_rows, rows

    began = time.monotonic()
    shown = "stdin" if source == "-" else source
    stem = source.rpartition(".")[0] if source.endswith((".gz", ".bz2", ".xz", ".zst")) else source
    layout = layout or ("jsonl" if stem.endswith((".jsonl", ".ndjson")) else "csv")
    with _table(store, name, writable=True, wait=wait) as table, \
            Progress(["pushing"], unit=" rows") as progress, _stream(source, shown) as stream:
        done = push_rows(table, rows(stream, shown, layout, key_type, table.key_bytes), name=shown, batch=batch,
                         client=client, progress=progress.counter("pushing", None))
    before = f", {done['already']:,} of them before" if done["already"] else ""
    tell({"table": name, **done}, f"{store}: added {many(done['rows'], 'rows')} to table {name} in {done['batches']:,} "
         f"{'batch' if done['batches'] == 1 else 'batches'}{before}", as_json, began=began)


@contextlib.contextmanager
def _stream(source: str, shown: str) -> Iterator[BinaryIO]:
    """Give the bytes of a file, unpacked, or of stdin."""
    from kvps.errors import DataError
    from kvps.text.streams import SUFFIXES, failures_named, open_stream

    if source == "-":
        yield sys.stdin.buffer
        return
    if not os.path.isfile(source):
        raise DataError(f"{source}: {'is no file' if os.path.exists(source) else 'no such file'}", path=source)
    compression = next((kind for suffix, kind in SUFFIXES.items() if source.endswith(suffix)), None)
    with failures_named(shown, compression), open_stream(source, compression) as stream:
        yield stream


@command.command("pull")
@options.store(written=False)
@name
@click.argument("asked", nargs=-1, required=True, metavar="KEY...")
@key_type
@options.json
def pull(store: str, name: str, asked: tuple[str, ...], key_type: str, as_json: bool) -> None:
    """Show the counts of keys, 0 for those that have none.

    Use it to look keys up; - reads them from stdin, one a line. Prints key,count in the order asked.

    \b
    Example:
      kvps table pull novels.kvps clicks 17 4711
      kvps table pull novels.kvps pages --key-type text --json - < pages.txt
    """
    import numpy as np

    from kvps.errors import ArgumentError
    from kvps.jobs.pushing import key_of

    wanted = [line for key in asked for line in (_lines() if key == "-" else [key])]
    with _table(store, name) as table:
        try:
            raw = b"".join(key_of(key, key_type, table.key_bytes) for key in wanted)
        except ValueError as exc:
            raise ArgumentError(str(exc)) from exc
        counts = table.pull(np.frombuffer(raw, np.uint8).reshape(-1, table.key_bytes))
    _show(((int(key) if key_type == "uint" else key for key in wanted), counts.tolist()), as_json)


def _lines() -> Iterator[str]:
    from kvps.errors import DataError

    try:
        return iter(sys.stdin.buffer.read().decode().splitlines())
    except UnicodeDecodeError as exc:
        raise DataError(f"stdin: not UTF-8 at byte {exc.start}", path="-", offset=exc.start) from exc


@command.command("scan")
@options.store(written=False)
@name
@click.option("--prefix", metavar="KEY", help="Only keys that begin so; of hex and text keys.")
@click.option("--start", metavar="KEY", help="Only keys from here on.")
@click.option("--stop", metavar="KEY", help="Only keys below this one.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="No more than N keys.")
@key_type
@options.json
def scan(store: str, name: str, prefix: str | None, start: str | None, stop: str | None, limit: int | None, key_type: str,
         as_json: bool) -> None:
    """Print keys and their counts, key,count, in the order of the keys.

    Use it to see a table or a part of it, of one instant, or to carry it to another table: what is printed can be
    pushed. The order is that of the keys' bytes, and so that of numbers.

    \b
    Example:
      kvps table scan novels.kvps clicks --start 1000 --stop 2000
      kvps table scan novels.kvps pages --key-type text --prefix /about --limit 10 --json
    """
    from kvps.errors import ArgumentError
    from kvps.jobs.pushing import key_of, shown_keys

    if prefix is not None and key_type == "uint":
        raise click.UsageError("--prefix is of hex or text keys; give --start and --stop for numbers")
    with _table(store, name) as table:
        try:
            first, last, begin = (None if key is None else key_of(key, key_type, table.key_bytes, part=True)
                                  for key in (start, stop, prefix))
        except ValueError as exc:
            raise ArgumentError(str(exc)) from exc
        left = sys.maxsize if limit is None else limit
        for keys, counts in table.scan(begin or b"", start=first, stop=last):
            if left <= 0:
                break
            _show((shown_keys(keys[:left], key_type), counts[:left].tolist()), as_json)
            left -= len(keys)


def _show(columns: tuple, as_json: bool) -> None:
    """Print keys and counts."""
    import csv

    from kvps.cli.output import emit, write

    if as_json:
        for key, count in zip(*columns, strict=True):
            emit({"key": key, "count": count})
        return

    class Lines:
        @staticmethod
        def write(line: str) -> None:
            write(line.encode("utf-8", "surrogateescape"))

    csv.writer(Lines, lineterminator="\n").writerows(zip(*columns, strict=True))

"""kvps serve: serve the tables of a store to other processes and machines."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("serve")
@options.store(written=False)
@click.option("--bind", metavar="ADDRESS", help="ipc:///FOLDER/SOCKET or tcp://HOST:PORT; STORE/socket if not given.")
@click.option("--keys", metavar="DIR", type=click.Path(file_okay=False), help="Folder of keys, made by kvps keygen.")
@options.threads
@options.json
def command(store: str, bind: str | None, keys: str | None, threads: int | None, as_json: bool) -> None:
    """Serve the tables of a store to other processes and machines, until SIGTERM or Ctrl-C.

    Use it where several processes count into one table at once, or from other machines. The server is the writer of
    the tables that it has opened. It serves tables only: commands for n-grams open STORE as a folder, also meanwhile.
    An address that other machines can reach needs keys. Clients name the address as kvps://HOST:PORT, or as
    kvps:///FOLDER/SOCKET.

    \b
    Example:
      kvps serve novels.kvps --bind tcp://127.0.0.1:7070
      kvps table push kvps://127.0.0.1:7070 clicks clicks.csv --client 2026-11-25
    """
    import contextlib
    import os
    import signal
    import sys
    from pathlib import Path

    from kvps.cli.output import name_warnings, tell
    from kvps.ps.server import Server
    from kvps.ps.serving import TableService
    from kvps.store.directory import open_store
    from kvps.units import cpu_count

    name_warnings()
    path = Path(os.path.abspath(store))
    with open_store(path):
        pass
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(contextlib.closing(TableService(path)))
        server = Server(bind or f"ipc://{path}/socket", service.functions(), keys=keys, threads=threads or cpu_count())
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: server.stop()))
        address = f"kvps://{server.address.partition('://')[2]}"
        tell({"store": store, "address": address}, f"{store}: serving at {address}", as_json)
        sys.stdout.flush()
        server.run()

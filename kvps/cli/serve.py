"""kvps serve: serve a store to other processes and machines."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("serve")
@click.argument("store")
@click.option("--bind", metavar="ADDRESS", help="ipc:///FOLDER/SOCKET or tcp://HOST:PORT; STORE/socket if not given.")
@click.option("--keys", metavar="DIR", type=click.Path(file_okay=False), help="Folder of keys, made by kvps keygen.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="P",
              help="Answer Prometheus there, at the host of --bind, or only this machine.")
@options.threads
@options.wait
@options.json
def command(store: str, bind: str | None, keys: str | None, metrics_port: int | None, threads: int | None, wait: float,
            as_json: bool) -> None:
    """Serve a store to other processes and machines, until SIGTERM or Ctrl-C.

    Use it where several processes or machines count into one store, or ask it. There is a process for each shard and one
    for the rest, which are started again if they die. They are the writers of the store: other commands name the address
    in the place of STORE, kvps://HOST:PORT or kvps:///FOLDER/SOCKET; commands that only read may also name the folder.
    With a port, the shards take the ports that follow it. An address that other machines can reach needs keys. Where
    there is no store yet, the first kvps train ADDRESS makes it.

    \b
    Example:
      kvps serve novels.kvps --bind tcp://127.0.0.1:7070
      kvps update kvps://127.0.0.1:7070 chapter12.txt
      kvps table push kvps://127.0.0.1:7070 clicks clicks.csv --client 2026-11-25
    """
    import contextlib
    import os
    import signal
    import sys
    from pathlib import Path

    from kvps.cli.output import name_warnings, tell
    from kvps.jobs.serve import Starter

    name_warnings()
    path = Path(os.path.abspath(store))
    if bind is None and not path.exists():
        raise click.UsageError(f"{store}: no such store; to serve one that a client will make, say where: --bind ADDRESS")
    with contextlib.ExitStack() as stack:
        starter = stack.enter_context(contextlib.closing(Starter(path, bind or f"ipc://{path}/socket", keys=keys, threads=threads,
                                                                 wait=wait)))
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: starter.stop()))
        if not starter.start():
            return
        if metrics_port is not None:
            from kvps.jobs.metrics import serve_metrics

            host = "127.0.0.1"
            if bind is not None and bind.startswith("tcp://"):
                host = bind.removeprefix("tcp://").rpartition(":")[0].strip("[]")
            port, end = serve_metrics(metrics_port, host, starter.servers)
            stack.callback(end)
            tell({"store": store, "metrics_port": port}, f"{store}: metrics at port {port}", as_json)
        address = f"kvps://{starter.address.partition('://')[2]}"
        tell({"store": store, "address": address}, f"{store}: serving at {address}", as_json)
        sys.stdout.flush()
        starter.run()

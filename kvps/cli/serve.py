"""kvps serve: serve a store to other processes and machines."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("serve")
@click.argument("store")
@click.option("--bind", metavar="ADDRESS", help="ipc:///FOLDER/SOCKET or tcp://HOST:PORT; STORE/socket if not given.")
@click.option("--keys", metavar="DIR", type=click.Path(file_okay=False), help="Folder of keys, made by kvps keygen.")
@click.option("--shard", "shards", type=click.IntRange(0, 1023), multiple=True, metavar="I",
              help="Serve shard I of the store at --root, kept in the folder STORE, which is made. May be given several times.")
@click.option("--root", metavar="ADDRESS", help="Of the store whose shards --shard names.")
@click.option("--away", multiple=True, metavar="I=ADDRESS",
              help="Shard I is served there, by --shard; it goes there first if it is still here. May be given several times.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="P",
              help="Answer Prometheus there, at the host of --bind, or only this machine.")
@options.threads
@options.wait
@options.json
def command(store: str, bind: str | None, keys: str | None, shards: tuple[int, ...], root: str | None, away: tuple[str, ...],
            metrics_port: int | None, threads: int | None, wait: float, as_json: bool) -> None:
    """Serve a store to other processes and machines, until SIGTERM or Ctrl-C.

    Use it where several processes or machines count into one store, or ask it. There is a process for each shard and one
    for the rest, which are started again if they die. They are the writers of the store: other commands name the address
    in the place of STORE, kvps://HOST:PORT or kvps:///FOLDER/SOCKET; commands that only read may also name the folder.
    With a port, the shards take the ports that follow it. An address that other machines can reach needs keys. Where
    there is no store yet, the first kvps train ADDRESS makes it.

    A store's shards may lie on the disks of several machines: start kvps serve with --shard on each of these, then kvps
    serve with --away where the store is. If such a disk is lost, start it there with an empty folder, and kvps recover
    ADDRESS makes its shards again.

    \b
    Example:
      kvps serve novels.kvps --bind tcp://127.0.0.1:7070
      kvps update kvps://127.0.0.1:7070 chapter12.txt
      kvps table push kvps://127.0.0.1:7070 clicks clicks.csv --client 2026-11-25
      kvps serve shards --shard 3 --root kvps://10.0.0.1:7070 --bind tcp://10.0.0.2:7073 --keys keys
      kvps serve novels.kvps --away 3=kvps://10.0.0.2:7073 --bind tcp://10.0.0.1:7070 --keys keys
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
    if bool(shards) != bool(root) or (shards and (away or bind is None)) or len(set(shards)) < len(shards):
        raise click.UsageError("--shard, each once, goes with --root and --bind, and without --away")
    if bind is None and not path.exists():
        raise click.UsageError(f"{store}: no such store; to serve one that a client will make, say where: --bind ADDRESS")
    with contextlib.ExitStack() as stack:
        starter = stack.enter_context(contextlib.closing(Starter(path, bind or f"ipc://{path}/socket", keys=keys, threads=threads,
                                                                 wait=wait, away=_places(away), shards=shards, root=root)))
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
        for number, place in starter.homes().items() or [(None, starter.address)]:
            address = f"kvps://{place.partition('://')[2]}"
            what, shard = ("", {}) if number is None else (f" shard {number}", {"shard": number})
            tell({"store": store, **shard, "address": address}, f"{store}:{what} serving at {address}", as_json)
        sys.stdout.flush()
        starter.run()


def _places(away: tuple[str, ...]) -> dict[int, str]:
    """Return the addresses of shards by their numbers."""
    found = {}
    for item in away:
        number, equals, address = item.partition("=")
        if not equals or not number.isdigit() or int(number) in found:
            raise click.UsageError(f"--away {item}: expected I=ADDRESS, once for each shard")
        found[int(number)] = address
    return found

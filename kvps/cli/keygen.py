"""kvps keygen: make the keys of a server and its clients."""
from __future__ import annotations

import click

from kvps.cli import options


@click.command("keygen")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.argument("clients", nargs=-1, metavar="[CLIENT]...")
@options.json
def command(folder: str, clients: tuple[str, ...], as_json: bool) -> None:
    """Make the keys of a server in DIR, and those of clients, which the server then lets in.

    Use it before kvps serve at an address that other machines can reach. Run again with other names it adds clients to
    the same server. Give DIR to kvps serve with --keys, and carry DIR/client-NAME to the client, who names it with
    --keys. Who may no longer come in: remove DIR/clients/NAME and start the server again.

    \b
    Example:
      kvps keygen keys worker1 worker2
      kvps serve novels.kvps --bind tcp://0.0.0.0:7070 --keys keys
      kvps table list kvps://server:7070 --keys client-worker1
    """
    from kvps.cli.output import tell
    from kvps.ps import curve
    from kvps.ps.server import new_pair

    for path in curve.make(folder, list(clients), new_pair):
        tell({"file": str(path)}, str(path), as_json)

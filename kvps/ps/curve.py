"""Key files for connections to servers: CURVE pairs, written and read with care; no sockets.

    KEYS/server.secret      the server's pair
    KEYS/server.public      its public key, for clients
    KEYS/clients/NAME       public keys of the clients that may come in, one file each

A client has a folder of its own, with client.secret and the server.public that it expects to meet.
The servers of one store that are on several machines have copies of one KEYS, and let each other in.
A file holds one line: the public key as Z85 text (40 characters), in secret files a blank and the secret key.
"""
from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from kvps.errors import ArgumentError, StoreError
from kvps.store import files
from kvps.units import check_name

SERVER, CLIENT, SERVER_PUBLIC, CLIENTS = "server.secret", "client.secret", "server.public", "clients"
_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)


def make(folder: str | Path, clients: list[str], new_pair: Callable[[], tuple[bytes, bytes]]) -> list[Path]:
    """Make a server's keys in `folder`, if they are not there, and those of some clients, each in folder/NAME.

    Args:
        clients: names; each gets folder/client-NAME with what it needs, and is put on the allow-list.
        new_pair: returns (public, secret) as Z85 text.

    Returns:
        The files written.
    """
    folder = Path(folder)
    for path in (folder, folder / CLIENTS):
        with files.reporting(path):
            path.mkdir(mode=files.DIR_MODE, parents=True, exist_ok=True)
    written = []
    if not (folder / SERVER).exists():
        public, secret = new_pair()
        written += [_write(folder / SERVER, public + b" " + secret), _write(folder / SERVER_PUBLIC, public)]
    public = load_public(folder / SERVER_PUBLIC)
    for name in clients:
        check_name("client", name)
        own = folder / f"client-{name}"
        files.make_dir(own)
        mine, secret = new_pair()
        written += [_write(own / CLIENT, mine + b" " + secret), _write(own / SERVER_PUBLIC, public),
                    _write(folder / CLIENTS / name, mine)]
    return written


def own_secret(folder: str | Path) -> Path:
    """Return the file of a client's pair; where these are a server's keys its own, for servers of one store ask each other.

    Raises:
        ArgumentError: it has neither.
    """
    for name in (CLIENT, SERVER):
        if (Path(folder) / name).exists():
            return Path(folder) / name
    raise ArgumentError(f"{folder}: is no folder of a client's keys: no {CLIENT} in it; kvps keygen makes one for each client, "
                        "client-NAME")


def load_secret(path: str | Path) -> tuple[bytes, bytes]:
    """Return (public, secret) of a secret file, which nobody but its owner may read."""
    with files.reporting(path):
        mode = os.stat(path).st_mode
        text = Path(path).read_text(encoding="ascii", errors="replace").split()
    if stat.S_IMODE(mode) & 0o077:
        raise StoreError(f"{path}: others may read this secret key (mode {stat.S_IMODE(mode):03o}); chmod 600 it, and make new "
                         "keys if somebody did", path=str(path))
    if len(text) != 2 or not all(map(_KEY.fullmatch, text)):
        raise StoreError(f"{path}: holds no pair of keys; make one with kvps keygen", path=str(path))
    return text[0].encode(), text[1].encode()


def load_public(path: str | Path) -> bytes:
    """Return the public key of a file."""
    with files.reporting(path):
        text = Path(path).read_text(encoding="ascii", errors="replace").strip()
    if _KEY.fullmatch(text) is None:
        raise StoreError(f"{path}: holds no public key; make one with kvps keygen", path=str(path))
    return text.encode()


def allowed(folder: str | Path) -> set[bytes]:
    """Return the public keys of an allow-list."""
    with files.reporting(folder):
        return {load_public(path) for path in sorted(Path(folder).iterdir()) if not path.name.startswith(".")}


def _write(path: Path, line: bytes) -> Path:
    """Write a new file that only its owner may read."""
    fd = files.open_new(path)
    try:
        with files.reporting(path):
            os.write(fd, line + b"\n")
        files.fsync(fd, path)
    finally:
        os.close(fd)
    return path

"""Where a store is: a folder of this machine, or the address of a server or of an actor on Ray; opened, all give the same."""
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvps.store.directory import StoreDirectory, open_store

if TYPE_CHECKING:
    from kvps.ps.remote_store import RemoteDirectory

SCHEME = "kvps://"
RAY = "ray://"
KEYS = "KVPS_KEYS"             # names our folder of keys, where nobody else does


class Address(str):
    """kvps://HOST:PORT or kvps:///FOLDER/SOCKET, with our folder of keys for the server there, or None; or ray://... (ray.py)."""

    keys: str | None

    def __new__(cls, text: str, keys: str | None = None) -> Address:
        """Take the address as it is written."""
        made = super().__new__(cls, text)
        made.keys = keys or os.environ.get(KEYS)
        return made


def address(place: str | Path) -> Address | None:
    """Return the address that a place is, or None for a folder."""
    if isinstance(place, Address):
        return place
    return Address(place) if isinstance(place, str) and place.startswith((SCHEME, RAY)) else None


def open_place(place: str | Path, writable: bool = False, wait: float = 0.0, *, command: str = "",
               table: bool | None = False, make: dict[str, Any] | None = None,
               patience_s: float = 60.0) -> StoreDirectory | RemoteDirectory:
    """Open the store in a folder or behind a server; as open_store(), and Unreachable where a server gives no answer.

    make: "order", "shards" and "tokenizer" of the store that a server is to make where it has none yet.
    patience_s: how long a server is asked again that gives no answer [s].
    """
    there = address(place)
    if there is None:
        return open_store(place, writable, wait, command=command, table=table)
    from kvps.ps.remote_store import RemoteDirectory

    return RemoteDirectory(there, keys=there.keys, writable=writable, wait=wait, command=command, make=make,
                           patience_s=patience_s)

"""Where the parts of a store lie, and how much of a process's addresses each may take.

    STORE/seal  STORE/owner.lock  STORE/root.G  STORE/shards/NNNN.G  STORE/spool  STORE/models  STORE/checkpoints  STORE/damaged
    STORE/tables/NAME, each laid out as a store   STORE/nltk (kvps/compat/nltk/kept.py)

The number G goes up when a root or a shard is replaced by another copy of itself.
"""
from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from kvps.errors import CorruptionError
from kvps.store.environment import MAP_BYTES

ROOT = "root."                # and a number
SHARDS = "shards"
DATA = "data.mdb"             # LMDB's, in the folder of a root or a shard
TABLES = "tables"             # each a directory like that of a store (kvps/ps/tables.py)
SPOOL = "spool"               # where a job keeps copies of text that can be read only once
MODELS = "models"             # compiled models
CHECKPOINTS = "checkpoints"   # where no other place is named
KEPT = "damaged"              # what kvps recover has replaced

MAX_SHARDS = 1024
ADDRESS_BYTES = 62 << 40      # a process has 128 TiB of addresses on x86-64; all shards of a store share half of it


def map_bytes(n_shards: int) -> int:
    """Return the length of each shard's memory map."""
    return min(MAP_BYTES, ADDRESS_BYTES // n_shards // 4096 * 4096)


def first_root() -> str:
    """Return the name of the first root's folder."""
    return f"{ROOT}0"


def first_shard(number: int) -> str:
    """Return the name of the first folder of a shard."""
    return f"{SHARDS}/{number:04d}.0"


def following(name: str) -> str:
    """Return the name of the folder that replaces one of a root or a shard."""
    stem, _, number = name.rpartition(".")
    return f"{stem}.{int(number) + 1}"


def later(name: str) -> str:
    """Return the name of a folder that comes after one of a shard, and that nobody has had."""
    stem, _, number = name.rpartition(".")
    return f"{stem}.{int(number) + 1 + secrets.randbelow(1 << 30)}"


def next_shards(names: Sequence[str], n_shards: int) -> list[str]:
    """Return the names of folders of other shards in the place of all that there are; no shard of this store has had one.

    names: of those that there are. The greatest of their numbers never falls.
    """
    number = 1 + max(int(name.rpartition(".")[2]) for name in names)
    return [f"{SHARDS}/{shard:04d}.{number}" for shard in range(n_shards)]


def roots(path: Path) -> list[str]:
    """Return the names of the folders of a store that may be its root, newest first."""
    found = [entry.name for entry in path.glob(f"{ROOT}*") if entry.name[len(ROOT):].isdigit()]
    return sorted(found, key=lambda name: int(name[len(ROOT):]), reverse=True)


def shard_folder(path: Path, number: int, name: object) -> Path:
    """Return where the root says that a shard lies; CorruptionError where that is no place for a shard."""
    stem = f"{SHARDS}/{number:04d}."
    number_ = name[len(stem):] if isinstance(name, str) and name.startswith(stem) else ""
    if not (number_.isascii() and number_.isdecimal()):
        raise CorruptionError(f"{path}: shard {number} is said to be in {name}, expected {stem}N", path=str(path), key="state",
                              found=name, expected=f"{stem}N")
    return path / name

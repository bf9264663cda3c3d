"""Models made of ARPA files, kept in the user's cache folder, so that a file is read once.

CACHE/arpa/PATH-CONTENT.kvm: hashes of the file's path, and of what it holds as far as that can be told in an instant: its
inode, length and times, its first and last bytes. A file that changed is made into a model again, and the older one goes.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from kvps.errors import CorruptionError, StoreError
from kvps.lm import cache, container
from kvps.store import files
from kvps.units import cpu_count

LOOKED_AT_BYTES = 1 << 16          # at both ends


def model_of(path: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Return the model file of an ARPA file, making it where there is none.

    progress: called with (bytes read, bytes in all) meanwhile.

    Raises:
        DataError: the file is not as KenLM accepts it. StoreError: it cannot be read, or nothing can be written.
    """
    source = Path(path).resolve()
    folder = cache.user_folder() / "arpa"
    with files.reporting(source):
        stem, content = _digests(source)
    with files.reporting(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = folder / f"{stem}-{content}.kvm"
    if not _usable(made):
        with cache.turn(folder, wait=True):
            if not _usable(made):
                # Here: a model that is there needs none of it.
                from kvps.lm.arpa_read import import_arpa
                from kvps.text.tokenize import Tokenizer

                import_arpa(source, made, tokenizer=Tokenizer.from_spec("whitespace", False), threads=cpu_count(),
                            progress=progress)
                for other in folder.glob(f"{stem}-*.kvm"):
                    if other != made:
                        with contextlib.suppress(OSError):
                            other.unlink()
    return made


def _digests(source: Path) -> tuple[str, str]:
    """Return what names a path, and what names the file that is there."""
    import hashlib  # here: it takes longer than the rest

    with open(source, "rb") as file:
        about = os.fstat(file.fileno())
        ends = [file.read(LOOKED_AT_BYTES)]
        file.seek(max(0, about.st_size - LOOKED_AT_BYTES))
        ends.append(file.read(LOOKED_AT_BYTES))
    facts = f"{about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} ".encode()
    return (hashlib.blake2b(os.fsencode(source), digest_size=8).hexdigest(),
            hashlib.blake2b(b"".join([facts, *ends]), digest_size=16).hexdigest())


def _usable(path: Path) -> bool:
    try:
        meta, _ = container.read(path)
    except (CorruptionError, StoreError):
        return False
    return meta.get("format") == container.MODEL_FORMAT

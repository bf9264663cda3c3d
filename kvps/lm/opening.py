"""Open a MODEL: a store, of which a compiled model is made, the file of an imported model, or that of a mixture."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kvps.errors import ArgumentError, VersionMismatch
from kvps.lm import cache, container
from kvps.lm.mixture import BEGINS, MixtureFile
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import Smoothing
from kvps.ps.places import address, open_place
from kvps.store.directory import StoreDirectory

if TYPE_CHECKING:
    import numpy as np

    from kvps.ps.remote_store import RemoteDirectory

S = TypeVar("S", bound=Scorer)
LISTED = 1 << 16               # n-grams read at once


class ModelFile:
    """A model file that stands where a store may: it has a path, an identity and one version, 0, and is never written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at the description of a file."""
        self.path = Path(path)
        meta, _ = container.read(self.path)
        if meta["format"] != container.MODEL_FORMAT or meta["kind"] != "arpa":
            raise VersionMismatch(f"{path}: a model of kind {meta['kind']} and format {meta['format']}, expected an imported "
                                  f"one of format {container.MODEL_FORMAT}; name the store, or import it again", path=str(path),
                                  found=meta["format"], expected=container.MODEL_FORMAT)
        self.identity = {"order": meta["order"], "tokenizer": meta["tokenizer"]}
        self.root = self

    def state(self) -> dict[str, int]:
        """Return {"version": 0}."""
        return {"version": 0}

    def listed(self, k: int) -> Iterator[np.ndarray]:
        """Yield the list of k-grams, uint32 (n, k + 1), some at once; ArgumentError where there is none."""
        import numpy as np  # here: scoring text does without it

        _, arrays = container.read(self.path)
        if f"listed.{k}" not in arrays:
            raise ArgumentError(f"{self.path}: does not list its n-grams; import it again with --list-ngrams")
        pages, rows = container.pages(self.path, arrays), arrays[f"listed.{k}"]
        for at in range(0, len(rows), (k + 1) * LISTED):
            some = rows[at:at + (k + 1) * LISTED]
            pages.compare(some.cast("B"))
            yield np.frombuffer(some, np.uint32).reshape(-1, k + 1)

    def close(self) -> None:
        """Do nothing: the model keeps the file mapped."""

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_model_place(path: str | os.PathLike[str]) -> StoreDirectory | RemoteDirectory | ModelFile | MixtureFile:
    """Open what a MODEL argument names: a store's folder, a server's address, the file of an imported model or of a mixture."""
    if address(path) is None and os.path.isfile(path):
        return MixtureFile(path, open_model_place) if container.begins(path, 1) == BEGINS else ModelFile(path)
    return open_place(path)


def load(place: StoreDirectory | ModelFile, kind: Callable[[Path, Smoothing, int | None], S], smoothing: Smoothing,
         order: int | None, *, exact: bool = False, labels: Iterable[str] | None = None, stale: str = "wait",
         threads: int | None = None, scratch: Path | None = None,
         progress: Callable[[int, int], None] = lambda done, total: None) -> S:
    """Return the model of an open place as a `kind`; other arguments as those of cache.ensure()."""
    if isinstance(place, ModelFile):
        top = place.identity["order"]
        if exact or labels is not None:
            raise ArgumentError(f"{place.path}: was imported; it has no {'labels' if labels is not None else 'exact form'}")
        if order is not None and not 1 <= order <= top:
            raise ArgumentError(f"order {order} is not possible: {place.path} has orders 1 to {top}")
        return kind(place.path, smoothing, order)
    return cache.load(place, lambda made: kind(made, smoothing, order), kind=smoothing.kind, top=order, exact=exact, labels=labels,
                      stale=stale, threads=threads, scratch=scratch, progress=progress)

"""Open a MODEL: a store, of which a compiled model is made, an ARPA file or the imported model of one, or the file of a mixture."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kvps.errors import ArgumentError, CorruptionError, DataError, VersionMismatch
from kvps.lm import arpa_cache, cache, container
from kvps.lm.mixture import MixtureFile, is_mixture
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import DEFAULT, Smoothing
from kvps.ps.places import address, open_place
from kvps.store.directory import StoreDirectory
from kvps.text.streams import SUFFIXES
from kvps.text.tokenize import Assumed
from kvps.units import check_order

if TYPE_CHECKING:
    import numpy as np

    from kvps.ps.remote_store import RemoteDirectory

S = TypeVar("S", bound=Scorer)
LISTED = 1 << 16               # n-grams read at once
LOOKED_AT_BYTES = 1 << 12      # of a file, to tell what it is
ARPA = (b"\\", b"#")           # begin an ARPA file, behind blanks


class ModelFile:
    """A model file that stands where a store may: it has a path, an identity and one version, 0, and is never written.

    Attributes:
        path: what was named. file: the model; another one where an ARPA file was named.
        lists: whether it has lists of its n-grams.
    """

    def __init__(self, path: str | os.PathLike[str], file: Path | None = None) -> None:
        """Look at the description of a file."""
        self.path = Path(path)
        self.file = file or self.path
        meta, arrays = container.read(self.file)
        if meta["format"] != container.MODEL_FORMAT or meta["kind"] != "arpa":
            raise VersionMismatch(f"{path}: a model of kind {meta['kind']} and format {meta['format']}, expected an imported "
                                  f"one of format {container.MODEL_FORMAT}; name the store, or import it again", path=str(path),
                                  found=meta["format"], expected=container.MODEL_FORMAT)
        self.identity = {"order": meta["order"], "tokenizer": Assumed(meta["tokenizer"]) if file else meta["tokenizer"]}
        self.lists = meta["order"] == 1 or "listed.2" in arrays
        self.root = self

    def state(self) -> dict[str, int]:
        """Return {"version": 0}."""
        return {"version": 0}

    def need_lists(self) -> None:
        """Raise ArgumentError where there are no lists."""
        if not self.lists:
            raise ArgumentError(f"{self.path}: does not list its n-grams; import it again without --no-list-ngrams")

    def listed(self, k: int) -> Iterator[np.ndarray]:
        """Yield the list of k-grams, uint32 (n, k + 1), some at once; ArgumentError where there is none."""
        import numpy as np  # here: scoring text does without it

        self.need_lists()
        _, arrays = container.read(self.file)
        pages, rows = container.pages(self.file, arrays), arrays[f"listed.{k}"]
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


def open_model_place(path: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda done, total: None) \
        -> StoreDirectory | RemoteDirectory | ModelFile | MixtureFile:
    """Open what a MODEL argument names: a store's folder, a server's address, the file of an imported model or of a mixture.

    Or an ARPA file: its model is kept in the user's cache folder.

    Args:
        progress: called with (bytes read, bytes in all) while that is made.

    Raises:
        CorruptionError: the file is none of these. DataError: it is a binary file of KenLM, or not as an ARPA file has to be.
    """
    if address(path) is not None or not os.path.isfile(path):
        return open_place(path)
    if container.is_model(path):               # first: it may begin with any bytes
        return ModelFile(path)
    if is_mixture(path):
        return MixtureFile(path, open_model_place)
    if container.begins(path, len(container.KENLM)) == container.KENLM:
        raise DataError(f"{path}: is a binary file of KenLM; name the ARPA file that it was made of", path=str(path))
    if os.path.splitext(path)[1] not in SUFFIXES and container.begins(path, LOOKED_AT_BYTES).lstrip()[:1] not in ARPA:
        raise CorruptionError(f"{path}: is no model, or a damaged one (import it again), and no ARPA file: line 1 is not \\data\\",
                              path=str(path))
    return ModelFile(path, arpa_cache.model_of(path, progress))


def load(place: StoreDirectory | ModelFile, kind: Callable[[Path, Smoothing, int | None], S], smoothing: Smoothing,
         order: int | None, *, exact: bool = False, labels: Iterable[str] | None = None, stale: str = "wait",
         threads: int | None = None, scratch: Path | None = None,
         progress: Callable[[int, int], None] = lambda done, total: None) -> S:
    """Return the model of an open place as a `kind`; other arguments as those of cache.ensure()."""
    if isinstance(place, ModelFile):
        top = place.identity["order"]
        if exact or labels is not None:
            raise ArgumentError(f"{place.path}: was imported; it has no {'labels' if labels is not None else 'exact form'}")
        if smoothing.name != DEFAULT:
            raise ArgumentError(f"{place.path}: was imported with its probabilities, and cannot answer {smoothing}; a smoothing "
                                "needs a store's counts")
        if order is not None:
            check_order(order, top, place.path)
        return kind(place.file, smoothing, order)
    return cache.load(place, lambda made: kind(made, smoothing, order), kind=smoothing.kind, top=order, exact=exact, labels=labels,
                      stale=stale, threads=threads, scratch=scratch, progress=progress)

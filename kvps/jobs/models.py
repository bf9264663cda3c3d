"""Models, wherever what they are made of lies: one call opens a store, an imported model, an address or a mixture."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvps.errors import ArgumentError
from kvps.lm import opening
from kvps.lm.mixture import MixtureFile
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import DEFAULT, Smoothing, parse
from kvps.ps.places import address

if TYPE_CHECKING:
    from kvps.ps.remote_store import RemoteDirectory
    from kvps.store.directory import StoreDirectory

    Place = StoreDirectory | RemoteDirectory | opening.ModelFile | MixtureFile


def model_at(place: Place, smoothing: str | Smoothing = DEFAULT, order: int | None = None, *, kind: type[Scorer] = Scorer,
             following: bool = False, exact: bool = False, labels: Iterable[str] | None = None, stale: str = "wait",
             threads: int | None = None, scratch: Path | None = None,
             progress: Callable[[int, int], None] = lambda done, total: None) -> Any:
    """Return the model of an open place: a `kind`, or something that answers as it does.

    Args:
        kind: what is made of the files of this machine. following: a model that knows next words instead (kvps.lm.foresight).
        smoothing, order, exact, labels, stale, threads, scratch, progress: as those of cache.ensure(); an imported model has its
            own smoothing, and a mixture says all of it.
    """
    here = {"threads": threads, "scratch": scratch, "progress": progress}
    # What only some of them need is imported here: NumPy takes longer than scoring some sentences.
    if isinstance(place, MixtureFile):
        from kvps.lm.mixed import MixedModel

        if exact or labels is not None or order is not None or parse(smoothing).name != DEFAULT:
            raise ArgumentError(f"{place.path}: is a mixture, which says the smoothing, order and labels of each of its models")
        return MixedModel(place, lambda part, how: model_at(part, **how, following=following, stale=stale, **here,
                                                            kind=_compiled_model()), following=following)
    how = {"exact": exact, "labels": labels, "stale": stale}
    if address(place.path) is not None:
        from kvps.jobs.scoring import RemoteModel

        return RemoteModel(place, str(parse(smoothing)), order, **how)
    if following:
        from kvps.lm.followers import load_following

        return load_following(place, parse(smoothing), order, **how, **here)
    return opening.load(place, kind, parse(smoothing), order, **how, **here)


def _compiled_model() -> type[Scorer]:
    from kvps.lm.model import CompiledModel

    return CompiledModel

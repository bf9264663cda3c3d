"""Write a MODEL for other tools: as an ARPA file, or its counts as Google's n-grams."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from kvps.errors import ArgumentError
from kvps.jobs.models import model_at
from kvps.lm import arpa, given_arpa, google, mixed_arpa, opening
from kvps.lm.arpa import Choices
from kvps.lm.mixture import MixtureFile
from kvps.units import thread_count


def export(model: str | os.PathLike[str], out: str | os.PathLike[str], *, order: int | None = None, choices: Choices | None = None,
           counts: bool = False, labels: Iterable[str] | None = None, threads: int | None = None, scratch: Path | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the last version of a store, an imported model, or a mixture, to an ARPA file, compressed as its name says.

    Args:
        model: a store's folder, an address, an imported model, or the file of a mixture.
        order: highest order, at most the model's, which is the default.
        choices: what of a store goes into the ARPA file; of an imported model those that take no counts.
        counts: write raw counts instead, to a new folder (kvps.lm.google).
        labels: only the text of these; of a store's ARPA file.
        scratch: folder for temporary files, the store's own by default.
        progress: called with (n-grams written, n-grams in all); with `counts` of orders.

    Returns:
        {"path", "version", "order", "smoothing" (not with `counts`), "ngrams": {order: n}, "bytes": written}.

    Raises:
        ArgumentError: what is not possible, or is for another kind of model. StoreError: a store of the mixture changed meanwhile.
    """
    choices = choices or Choices()
    given = [field.name for field in dataclasses.fields(choices) if getattr(choices, field.name) != field.default]
    given += ["labels"] if labels is not None else []
    named = f"--{given[0].replace('_', '-')}" if given else "--counts"
    if counts and given:
        raise ArgumentError(f"{named} is for ARPA files, not for --counts")
    if not counts and os.path.isdir(out):
        raise ArgumentError(f"{out}: is a folder, expected the name of a file")
    how = {"order": order, "threads": thread_count(threads), "scratch": scratch, "progress": progress}
    with opening.open_model_place(model) as store:
        if isinstance(store, opening.ModelFile):
            if refused := [name for name in ("labels", "smoothing", "prune", "interpolate_unigrams", "vocab_pad") if name in given]:
                named = f"--{refused[0].replace('_', '-')}"
            if counts or refused:
                raise ArgumentError(f"{named} takes counts, which {model} does not have: it was imported; --prune-to, "
                                    "--prune-entropy, --limit-vocab and -o leave out n-grams of it")
            return given_arpa.export(store, out, choices=choices, **how)
        if isinstance(store, MixtureFile):
            if counts or given:
                raise ArgumentError(f"{named} is for stores: {model} is a mixture")
            return mixed_arpa.export(store, model_at(store, following=True, threads=threads, scratch=scratch), out, **how)
        if counts:
            return google.export_counts(store, out, **how)
        return arpa.export(store, out, labels=labels, choices=choices, **how)

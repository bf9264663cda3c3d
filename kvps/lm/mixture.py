"""The file of a mixture: a JSON object that names models, with the weight and the smoothing of each.

    {"kvps_mixture": 1,                                    format; do not change: stored
     "tokenizer": {"tokenizer": ..., "lowercase": ...},    of all the models
     "models": [{"model": PATH or address, "weight": ..., "smoothing": NAME[:VALUE] or null, "order": ...,
                 "labels": [...] or null, "exact": false}, ...],
     "dev": {"perplexity": ..., "tokens": ..., "sentences": ...},      of the text that the weights were chosen by
     "crc32": ...}                                         of the rest as JSON with sorted keys and no blanks

A path is that from the file's folder, so that a folder with all of it can be moved. A smoothing of null is that of an
imported model. Weights are above 0 and add up to 1. Nothing is copied: what a store learns, the mixture knows.
"""
from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvps.errors import ArgumentError, CorruptionError, VersionMismatch
from kvps.lm import container
from kvps.ps.places import address
from kvps.store import files
from kvps.text.tokenize import shown

MIXTURE_FORMAT = 1
MAX_BYTES = 1 << 20
MAX_MODELS = 64
BEGINS = b"{"                  # by which the file is told from that of an imported model


@dataclasses.dataclass(frozen=True)
class Part:
    """One model of a mixture, as its file has it."""

    model: str                             # path from the file's folder, or address
    weight: float
    smoothing: str | None
    order: int | None
    labels: list[str] | None = None
    exact: bool = False


def is_mixture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as that of a mixture does."""
    return container.begins(path, len(BEGINS)) == BEGINS


class MixtureFile:
    """The file of a mixture, standing where a store may: it has a path, an identity and a version, and is never written.

    Attributes:
        parts: of the file. places: what they name, open.
    """

    def __init__(self, path: str | os.PathLike[str], open_place: Callable[[str], Any]) -> None:
        """Read the file, and open the places that it names."""
        self.path = Path(path)
        row = _read(self.path)
        self.parts = [Part(**part) for part in row["models"]]
        self.places: list[Any] = []
        self.root = self
        try:
            for part in self.parts:
                place = open_place(place_of(self.path, part.model))
                self.places.append(place)
                refuse_mixture(place)
                if (found := place.identity["tokenizer"]) != row["tokenizer"]:
                    raise ArgumentError(f"{self.path}: was mixed of models with tokenizer {shown(row['tokenizer'])}, and "
                                        f"{place.path} has {shown(found)} now")
        except BaseException:
            self.close()
            raise
        self.identity = {"order": max(part.order or place.identity["order"]
                                      for part, place in zip(self.parts, self.places, strict=True)), "tokenizer": row["tokenizer"]}

    def state(self) -> dict[str, int]:
        """Return its "version": the versions of its stores added up, which grows when one of them does."""
        return {"version": sum(place.root.state()["version"] for place in self.places)}

    def close(self) -> None:
        """Close the places."""
        for place in self.places:
            place.close()

    def __enter__(self) -> MixtureFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def refuse_mixture(place: Any) -> None:
    """Raise ArgumentError if an open place is a mixture itself."""
    if isinstance(place, MixtureFile):
        raise ArgumentError(f"{place.path}: is a mixture; name the models that it is made of")


def place_of(path: Path, model: str) -> str:
    """Return what a file at `path` means by a model."""
    return model if address(model) is not None else os.path.normpath(path.absolute().parent / model)


def name_of(path: Path, place: str | os.PathLike[str]) -> str:
    """Return how a file at `path` names a place."""
    return str(place) if address(place) is not None else os.path.relpath(os.path.abspath(place), path.absolute().parent)


def write(path: Path, tokenizer: dict, parts: list[Part], dev: dict) -> None:
    """Write a mixture's file."""
    row = {"kvps_mixture": MIXTURE_FORMAT, "tokenizer": tokenizer, "dev": dev,
           "models": [dataclasses.asdict(part) for part in parts]}
    files.atomic_write(path, (json.dumps({**row, "crc32": _sum(row)}, indent=1) + "\n").encode(), private=False)


def _sum(row: dict) -> int:
    return zlib.crc32(json.dumps(row, sort_keys=True, separators=(",", ":")).encode())


def _read(path: Path) -> dict:
    def damaged(what: str) -> CorruptionError:
        return CorruptionError(f"{path}: is no mixture, or damaged ({what}); make it again with kvps mix", path=str(path))

    with files.reading(path) as fd, files.reporting(path):
        data = os.pread(fd, MAX_BYTES + 1, 0)
    if len(data) > MAX_BYTES:
        raise damaged(f"longer than {MAX_BYTES >> 20} MiB")
    try:
        row = json.loads(data)
        if not isinstance(row, dict) or row.pop("crc32", None) != _sum(row):
            raise ValueError("its checksum is another one")
    except (ValueError, RecursionError) as exc:
        raise damaged(str(exc)[:80]) from exc
    if row.get("kvps_mixture") != MIXTURE_FORMAT:
        raise VersionMismatch(f"{path}: a mixture of format {row.get('kvps_mixture')}, this kvps reads {MIXTURE_FORMAT}; make it "
                              "again with kvps mix", path=str(path), found=row.get("kvps_mixture"), expected=MIXTURE_FORMAT)
    try:
        weights = [Part(**part).weight for part in row["models"]]
        if not 1 <= len(weights) <= MAX_MODELS or min(weights) <= 0 or abs(math.fsum(weights) - 1) > 1e-9:
            raise ValueError(f"{len(weights)} weights that add up to {math.fsum(weights):g}")
        shown(row["tokenizer"])
    except (KeyError, TypeError, ValueError) as exc:
        raise damaged(str(exc)[:80]) from exc
    return row

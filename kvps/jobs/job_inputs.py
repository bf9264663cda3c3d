"""The inputs of a job in its record, and the copies of text that can be read only once.

Those copies lie in the store, and are recorded by their place in it, so that a store can be moved with a job that is
pending. All other paths are absolute, and so were the copies' once.
"""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from kvps.errors import KvpsError
from kvps.store import files
from kvps.store.directory import StoreDirectory
from kvps.store.layout import SPOOL
from kvps.text.corpus import Input
from kvps.text.urls import is_url


def spool_folder(store: StoreDirectory, temp: str | Path | None) -> Path:
    """Return the folder, of this store alone, for copies of stdin and of iterables until their job is over."""
    if temp is None:
        return store.spool
    return Path(os.path.abspath(temp)) / f"kvps-{SPOOL}-{store.identity['uuid']}"


def drop_spool(store: StoreDirectory, folder: str | Path) -> None:
    """Remove the copies in a folder, perhaps one that a job recorded, once no job needs them."""
    folder = Path(os.path.join(store.path, folder))
    if folder != store.spool and folder.name != f"kvps-{SPOOL}-{store.identity['uuid']}":
        return                     # not a folder of ours, whatever the record says
    if folder.is_dir() and not folder.is_symlink():
        files.remove_tree(folder)


def recorded(store: StoreDirectory, path: str | Path) -> str:
    """Return a path as a record has it: what lies where copies do by its place in the store."""
    if is_url(str(path)):
        return str(path)
    path, spool = Path(path), store.spool
    return str(path.relative_to(store.path) if spool in (path, path.parent) and spool.is_relative_to(store.path) else path)


def to_records(store: StoreDirectory, inputs: Sequence[Input], digests: Sequence[str], prints: Sequence[dict]) -> list[dict]:
    """Return what a job's record says of its inputs, their digests and their fingerprints."""
    return [{"input": dataclasses.replace(item, path=recorded(store, item.path)).to_json(), "digest": digest, "fingerprint": found}
            for item, digest, found in zip(inputs, digests, prints, strict=True)]


def from_record(path: Path, record: dict) -> Input:
    """Return an input of which a job or the history of the store at `path` has a record."""
    item = Input.from_json(record)
    return item if is_url(item.path) else dataclasses.replace(item, path=os.path.join(path, item.path))


def gone_text(path: Path, job: dict) -> str | None:
    """Return the name of an input of a job that is not there any more, or has changed; None where all are there."""
    for row in job["inputs"]:
        item = from_record(path, row["input"])
        try:
            there = item.fingerprint() == row["fingerprint"] or item.digest() == row["digest"]
        except (KvpsError, OSError, LookupError):
            there = False
        if not there:
            return item.name
    return None


def job_bytes(job: dict) -> int | None:
    """Return how many bytes a job has to read, as they lie on disk; None where NLTK makes the text."""
    if any(row["input"]["kind"] == "nltk" for row in job["inputs"]):
        return None
    return sum(row["fingerprint"]["size"] for row in job["inputs"])

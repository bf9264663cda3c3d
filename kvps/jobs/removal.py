"""The whole of a removal: forget text or labels, purge what is left of them, write a receipt."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvps.errors import ArgumentError
from kvps.jobs import purge as purging
from kvps.jobs import train as jobs
from kvps.ps.places import address, open_place
from kvps.store import checkpoint
from kvps.store.directory import StoreDirectory


def remove(path: str | Path, arguments: Sequence[str | Path] = (), *, tokenizer: str | None = None,
           options: jobs.Options | None = None, purge: bool = False, checkpoints: bool = False,
           receipt: Path | None = None) -> dict:
    """Take text away from a store: the inputs, or all text of options.label, or that of the oldest labels; or only purge.

    Returns what jobs.update() does, and "purged" (what purging.purge() says, or None) and "remains" (sentences).
    """
    options = options or jobs.Options()
    if purge and address(path) is not None:
        raise ArgumentError(f"{path}: a purge writes the files of the store anew, which its servers have open; stop them, and "
                            "purge the folder")
    here = {"threads": options.threads}
    with open_place(path, writable=True, wait=options.wait, command="forget") as store:
        before = store.run(purging.sizes, here=here) if receipt else None
        result = _forget(store, arguments, tokenizer, options)
        purged = purging.purge(store, threads=options.threads) if purge else None
        held = store.run(purging.checkpoints_of)
        if checkpoints:
            place, _ = checkpoint.depot_of(store.path)
            for name in held:
                checkpoint.delete(place, name)
            checkpoint.tidy(place)                 # what an earlier deletion left that was killed
            held = []
        left = store.run(purging.remains, purged=purge, checkpoints=held)
        if receipt:
            purging.write_receipt(receipt, store, result, before, store.run(purging.sizes, here=here), left, purged)
    return {**result, "purged": purged, "remains": left}


def _forget(store: StoreDirectory, arguments: Sequence[str | Path], tokenizer: str | None, options: jobs.Options) -> dict:
    if arguments:
        return jobs.run_arguments(store, "forget", arguments, tokenizer, None, options)
    labels = [options.label] if options.label else []
    return jobs.run_forget_labels(store, labels, options)

"""The whole of a removal: forget text or labels, purge what is left of them, write a receipt."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvps.jobs import purge as purging
from kvps.jobs import train as jobs
from kvps.store import checkpoint
from kvps.store.directory import StoreDirectory, open_store


def remove(path: str | Path, arguments: Sequence[str | Path] = (), *, tokenizer: str | None = None,
           options: jobs.Options | None = None, purge: bool = False, checkpoints: bool = False,
           receipt: Path | None = None) -> dict:
    """Take text away from a store: the inputs, or all text of options.label, or that of the oldest labels; or only purge.

    Returns what jobs.update() does, and "purged" (what purging.purge() says, or None) and "remains" (sentences).
    """
    options = options or jobs.Options()
    with open_store(path, writable=True, wait=options.wait, command="forget") as store:
        before = purging.sizes(store, options.threads) if receipt else None
        result = _forget(store, arguments, tokenizer, options)
        purged = purging.purge(store, threads=options.threads) if purge else None
        held = purging.checkpoints_of(store)
        if checkpoints:
            place, _ = checkpoint.depot_of(store.path)
            for name in held:
                checkpoint.delete(place, name)
            checkpoint.tidy(place)                 # what an earlier deletion left that was killed
            held = []
        left = purging.remains(store, purge, held)
        if receipt:
            purging.write_receipt(receipt, store, result, before, purging.sizes(store, options.threads), left, purged)
    return {**result, "purged": purged, "remains": left}


def _forget(store: StoreDirectory, arguments: Sequence[str | Path], tokenizer: str | None, options: jobs.Options) -> dict:
    if arguments:
        return jobs.run_arguments(store, "forget", arguments, tokenizer, None, options)
    labels = [options.label] if options.label else []
    return jobs.run_forget_labels(store, labels, options)

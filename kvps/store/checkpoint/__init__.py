"""Checkpoints: a committed version of a store, kept in a depot and made into a store again.

In the order of reading: description.py (what one is, in bytes), catalog.py (which there are), creation.py, verification.py,
pruning.py, restoration.py. Where they are put is depot.py's business; the bytes are described in CHECKPOINT.md.
"""
from kvps.store.checkpoint.catalog import default_place, depot_of, listed, read_all
from kvps.store.checkpoint.creation import create
from kvps.store.checkpoint.description import Checkpoint, unpack
from kvps.store.checkpoint.pruning import delete, tidy
from kvps.store.checkpoint.restoration import fill_shard, restore
from kvps.store.checkpoint.verification import verify

__all__ = ["Checkpoint", "create", "default_place", "delete", "depot_of", "fill_shard", "listed", "read_all", "restore", "tidy",
           "unpack", "verify"]

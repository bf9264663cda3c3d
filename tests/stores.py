"""Stores in folders of their own, for properties that hold of many."""
import contextlib
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import kvps
from kvps.ps import router


@contextlib.contextmanager
def new_store(order, shards=2, share=0.5):
    """Give an empty store in a folder of its own, whose words are split when they have more than a share of a shard."""
    folder = Path(tempfile.mkdtemp(prefix="kvps-store-"))
    try:
        with (mock.patch.object(router, "MIN_SPLIT", 1), mock.patch.object(router, "SPLIT_ABOVE", share),
              kvps.create(folder / "store", order=order, shards=shards) as store):
            yield store
    finally:
        shutil.rmtree(folder)

"""The counts of a store in the text format of Google's n-grams ("Web 1T"), as SRILM and others read it.

    OUT/1gms/vocab.gz, OUT/1gms/total     words and their counts; how many words there are in all
    OUT/2gms/2gm-0000.gz, ... 2gm.idx     10 million lines a file; of each file its name, TAB, its first n-gram
    ...

A line is `w1 ... wk TAB count`, in byte order. N-grams are those of `<s> w1 ... wm </s>`, as `kvps dump` lists them.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kvps.errors import ArgumentError
from kvps.lm.listing import dump
from kvps.store import files
from kvps.store.directory import StoreDirectory
from kvps.text.streams import packed
from kvps.units import check_order

FILE_LINES = 10_000_000


def export_counts(store: StoreDirectory, out: str | Path, *, order: int | None = None, threads: int | None = None,
                  scratch: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write the raw counts of all n-grams up to an order to a new folder, which takes its name when it is complete.

    Args:
        order: highest order, at most the store's, which is the default.
        threads, scratch: as those of dump().
        progress: called with (orders written, orders in all).

    Returns:
        {"path", "version", "order", "ngrams": {order: n}, "bytes": written}.
    """
    stored = store.identity["order"]
    top = stored if order is None else check_order(order, stored, store.path)
    out = Path(os.path.abspath(out))
    if files.exists(out):
        raise ArgumentError(f"{out}: exists already; name a new folder")
    made = out.with_name(f"{out.name}.tmp-{os.urandom(8).hex()}")
    files.make_dir(made)
    version, ngrams, n_bytes = store.root.state()["version"], {}, 0
    try:
        for k in range(1, top + 1):
            folder = made / f"{k}gms"
            files.make_dir(folder)
            lines = _Cut(store.run(dump, k=k, in_order=True, here={"threads": threads, "scratch": scratch}))
            index = []
            while lines.more():
                name = f"{k}gm-{len(index):04}.gz" if k > 1 else "vocab.gz"
                index.append(f"{name}\t".encode() + lines.first())
                files.atomic_write(folder / name, packed(lines.some(FILE_LINES if k > 1 else None), "gz"), private=False)
                n_bytes += (folder / name).stat().st_size
            if k > 1:
                files.atomic_write(folder / f"{k}gm.idx", b"".join(line + b"\n" for line in index), private=False)
            else:
                files.atomic_write(folder / "total", b"%d\n" % lines.total, private=False)
            ngrams[k] = lines.n
            progress(k, top)
        if store.root.state()["version"] != version:
            raise ArgumentError(f"{store.path}: was changed meanwhile, so the orders do not agree; export again")
        files.rename(made, out)
    except BaseException:
        files.remove_tree(made)
        raise
    return {"path": str(out), "version": version, "order": top, "ngrams": ngrams, "bytes": n_bytes}


class _Cut:
    """Blocks of lines, given out in parts of so many lines; counts them, and for words adds the counts up."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""
        self.n = self.total = 0

    def more(self) -> bool:
        """Return whether there are lines left."""
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._block = bytes(block)
        return True

    def first(self) -> bytes:
        """Return the n-gram of the next line."""
        return self._block[:self._block.index(b"\t")]

    def some(self, most: int | None) -> Iterator[bytes]:
        """Yield the next lines, at most so many."""
        left = most
        while (left is None or left > 0) and self.more():
            n, block = self._block.count(b"\n"), self._block
            if left is not None and n > left:
                end = 0
                for _ in range(left):
                    end = block.index(b"\n", end) + 1
                n, block = left, block[:end]
            self._block = self._block[len(block):]
            self.n += n
            left = None if left is None else left - n
            if most is None:
                self.total += sum(int(line.rpartition(b"\t")[2]) for line in block.split(b"\n")[:-1]
                                  if not line.startswith(b"<s>\t"))
            yield block

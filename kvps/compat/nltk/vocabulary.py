"""The vocabulary of a model: nltk's, and one that is kept on disk."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from os import PathLike

import numpy as np
from nltk.lm import Vocabulary as Theirs

from kvps.compat.nltk.kept import Kept


class Vocabulary(Theirs):
    """nltk.lm.Vocabulary; with `path`, its counts are those of a folder, and update() adds to them durably."""

    def __init__(self, counts: Iterable[str] | Mapping[str, int] | None = None, unk_cutoff: int = 1, unk_label: str = "<UNK>", *,
                 path: str | PathLike[str] | None = None) -> None:
        """Take nltk's arguments; counts are added to what the folder has."""
        self._kept: Kept | None = None
        super().__init__(None, unk_cutoff, unk_label)
        if path is not None:
            kept = Kept(path)
            super().update(kept.word_counts())
            self._kept = kept
        if counts is not None:
            self.update(counts)

    def update(self, *counter_args: object, **counter_kwargs: object) -> None:
        """Add counts, given as to collections.Counter; durable on return where there is a path."""
        if self._kept is None:
            super().update(*counter_args, **counter_kwargs)
            return
        added = Counter(*counter_args, **counter_kwargs)
        with self._kept.update() as change:
            ids = np.array([change.ids[word] for word in added], np.uint32)
            change.add("words", ids.reshape(-1, 1), np.array(list(added.values()), np.int64))
        if change.stale:
            self.counts.clear()
            added = self._kept.word_counts()
        super().update(added)

    def __reduce_ex__(self, protocol: int) -> tuple | str:
        if self._kept is None:
            return super().__reduce_ex__(protocol)
        return _again, (self._kept.path, self._cutoff, self.unk_label)


def _again(path: PathLike[str], unk_cutoff: int, unk_label: str) -> Vocabulary:
    return Vocabulary(None, unk_cutoff, unk_label, path=path)

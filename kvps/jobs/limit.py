"""Make a store of another one in which the words outside a vocabulary are `<unk>`: as if its text had been counted so.

The new store's vocabulary is closed: what text it counts later adds no words to it, and text that it has counted is forgotten
exactly. `<unk>` has counts there like any word, and its share of the uniform distribution as everywhere.
"""
from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps.errors import ArgumentError, DataError
from kvps.jobs.assemble import Progress
from kvps.jobs.merge import Source, assembled, refuse_addresses
from kvps.lm.walks import summed_unigrams, walk_all
from kvps.store import creation, files
from kvps.store.directory import open_store
from kvps.text.tokenize import SEPARATORS, listed_words
from kvps.text.vocabulary import FIRST_WORD, SPECIALS, UNK, Vocabulary
from kvps.units import thread_count


def limit(out: str | Path, store: str | Path, *, words: Iterable[str] | None = None, min_count: int | None = None,
          shards: int | None = None, threads: int | None = None, progress: Progress = lambda stage, done, total: None) -> dict:
    """Make a store `out` of the last version of another one, with a closed vocabulary.

    Args:
        words: that stay, whether they are in the text or not; or
        min_count: words that occur so often stay.
        shards: of the new store; by default as many as the other one has.
        progress: called with the stage, "dealing" or "merging", and (n-grams done, in all).

    Returns:
        {"path", "version", "order", "tokens", "sentences", "ngrams": distinct ones of the highest order, "vocabulary": words that
        stay, "unknown": tokens that are <unk>}.
    """
    if (words is None) == (min_count is None):
        raise ArgumentError("expected a vocabulary or a minimum count, one of them")
    if isinstance(words, (str, bytes)):
        raise ArgumentError(f"expected a list of words, got one {type(words).__name__}; put it in a list")
    if min_count is not None and min_count < 1:
        raise ArgumentError(f"a minimum count of {min_count} is not possible, expected 1 or more")
    refuse_addresses(out, store)
    out = Path(os.path.abspath(out))
    creation.refuse_place(out, force=False)
    with contextlib.ExitStack() as stack:
        source = Source(stack, stack.enter_context(open_store(store)))
        n_words, order = len(source.words), source.store.identity["order"]
        with ThreadPoolExecutor(thread_count(threads)) as pool:
            _, counts = summed_unigrams(walk_all(source.snapshot, order, n_words, 1, pool))
        named = set() if words is None else {word_bytes(word) for word in words} - set(SPECIALS)
        vocabulary = Vocabulary()
        source.ids = np.full(n_words, UNK, np.uint32)
        source.ids[:FIRST_WORD] = np.arange(FIRST_WORD)
        for i in range(FIRST_WORD, n_words):
            word = source.words.word(i)
            if word in named if min_count is None else counts[i] >= min_count:
                source.ids[i] = vocabulary.table.add(word)
        unknown = int(counts[source.ids == UNK].sum())
        for word in sorted(named):
            vocabulary.table.add(word)
        n_left = len(vocabulary) - FIRST_WORD
        identity = {"tokenizer": source.store.identity["tokenizer"], "closed": True}
        name = f"{source.store.path} (version {source.snapshot.version}, limited to {n_left} words)"
        made = assembled(out, [source], vocabulary, identity, "limit", [name], shards or source.store.identity["shards"], threads,
                         progress)
    return {**made, "vocabulary": n_left, "unknown": unknown}


def words_of_file(path: str | Path) -> list[str]:
    """Return the words of a file."""
    with files.reporting(Path(path)):
        data = Path(path).read_bytes()
    try:
        return listed_words(data.decode())
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8 (byte 0x{data[exc.start]:02x})", path=os.fspath(path), line=line,
                        offset=exc.start) from exc


def word_bytes(word: str) -> bytes:
    """Return the bytes of a word that a text can have."""
    try:
        encoded = word.encode()
    except (AttributeError, UnicodeEncodeError) as exc:
        raise ArgumentError(f"{word!r:.80} is no word") from exc
    if not encoded or re.search(f"[{SEPARATORS}\n]", word):
        raise ArgumentError(f"{word!r:.80} is empty or has a separator (NUL, TAB, CR, space, newline) in it")
    return encoded

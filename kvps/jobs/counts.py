"""The last part of a full check: decode every run, add the counts up, compare them with what root and models say."""
from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvps._router import shards_of
from kvps._runs import unpack
from kvps._table import arrange
from kvps.lm import cache, container
from kvps.lm.walks import statistics_of, summed_unigrams, walk_all
from kvps.ps.router import Router
from kvps.ps.runs import bits_for, merged
from kvps.store import layout
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.store.findings import Report, damage
from kvps.store.runs import Run, by_label
from kvps.store.shard import Snapshot
from kvps.text.vocabulary import BOS, EOS, UNK

Told = Callable[[int, int | None], None]


def look_at_counts(store: StoreDirectory, snapshot: StoreSnapshot, bad: Collection[int], report: Report,
                   begin: Callable[..., bool], ended: Callable[..., None], progress: Told) -> bool:
    """Decode every run of a snapshot, and compare the totals of each label with those of the root.

    bad: shards to leave out; the totals cannot be told then.
    begin, ended: called with ("counts", shard) before and after each; begin says whether to look.

    Returns:
        Whether all of it was looked at and is sound.
    """
    order, n_words = store.identity["order"], store.root.next_word()
    homes = Router(len(snapshot.shards), snapshot.routing).homes(n_words)
    labels, version = store.root.labels(), store.root.state()["version"]
    total, done = sum(run.n_keys for snap in snapshot.shards for run in snap.all_runs()), 0
    sums: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
    before, whole = len(report.found), True

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    for number, snap in enumerate(snapshot.shards):
        if number in bad or not begin("counts", number):
            whole = False
            continue
        data = store.path / snapshot.state["shards"][number]["dir"] / "data.mdb"
        look = _Look(data, number, snap, order, n_words, report, advance, homes, len(snapshot.shards), "closed" in store.identity)
        for label, found in look.sums(snapshot.version).items():
            sums[label] += found
        ended("counts", number)
    if not whole or len(report.found) > before:
        return False
    if version == snapshot.version:            # else a writer has gone on, and these are the labels of another version
        expected = {name: (row["tokens"], row["sentences"]) for name, row in labels.items()}
        expected[None] = tuple(snapshot.state[name] - sum(row[name] for row in labels.values()) for name in ("tokens", "sentences"))
        for label in {**expected, **sums}:
            found = tuple(sums[label].tolist())
            if found != expected.get(label, (0, 0)):
                text = f"the text of label {label}" if label is not None else "the text without a label" if labels else "the text"
                report.add(damage("counts", f"{store.path}: the counts of {text} add up to {found[0]} tokens and {found[1]} "
                                  f"sentences, expected {expected.get(label, (0, 0))}", path=str(store.path), found=found,
                                  expected=expected.get(label, (0, 0))))
    return len(report.found) == before


class _Look:
    """One shard."""

    def __init__(self, data: Path, shard: int, snap: Snapshot, order: int, n_words: int, report: Report,
                 advance: Callable[[int], None], homes: np.ndarray, n_shards: int, closed: bool) -> None:
        self.homes, self.n_shards, self.closed = homes, n_shards, closed
        self.data, self.shard, self.snap, self.order, self.n_words = str(data), shard, snap, order, n_words
        self.report, self.advance = report, advance

    def sums(self, version: int) -> dict[str | None, np.ndarray]:
        """Return (tokens, sentences) of each label, after a look at every run alone."""
        alone = {run.id: self.alone(run) for run in self.snap.all_runs()}
        found = {}
        for label, runs in by_label(self.snap.runs(version)).items():
            if all(alone[run.id] is not None for run in runs):
                # Counts that are taken away lie in a run of their own; only the sum tells whether they were there.
                if len(runs) > 1 or alone[runs[0].id][2]:
                    self.together(label, runs)
                found[label] = sum(alone[run.id][:2] for run in runs)
        return found

    def alone(self, run: Run) -> np.ndarray | None:
        """Decode one run; return (tokens, sentences, how many counts are below 0), None where that cannot be done."""
        found, n, strangers, bits = np.zeros(3, np.int64), 0, 0, bits_for(self.n_words)
        with self.report.guarding("shard", shard=self.shard, run=run.id, path=self.data), \
                contextlib.closing(merged(self.snap, [run], self.order, bits)) as blocks:
            for block in blocks:
                rows = unpack(block.keys, self.order, bits)
                self.check_words(run, rows)
                strangers += int(np.count_nonzero(shards_of(block.keys, self.order, bits, self.homes, self.n_shards) != self.shard))
                last = rows[:, -1] == EOS
                found += block.counts[~last].sum(), block.counts[last].sum(), np.count_nonzero(block.counts < 0)
                n += len(block.counts)
                self.advance(len(block.counts))
            if strangers:
                self.add(run, f"has {strangers} n-grams that do not belong to this shard", strangers, 0)
            if n != run.n_keys:                # the merge leaves sums of 0 out
                self.add(run, f"has {run.n_keys - n} n-grams with a count of 0", run.n_keys - n, 0)
            return found
        return None

    def check_words(self, run: Run, rows: np.ndarray) -> None:
        """Ids are those of words; <s> is never predicted, </s> never a context; <unk> is in n-grams of a closed vocabulary only."""
        if (greatest := int(rows.max(initial=0))) >= self.n_words:
            self.add(run, f"has the word id {greatest}, expected below {self.n_words}", greatest, self.n_words)
        if (not self.closed and (rows == UNK).any()) or (rows[:, -1] == BOS).any() or (rows[:, :-1] == EOS).any():
            self.add(run, "has an n-gram that no sentence makes", "a special word out of its place", "words")

    def together(self, label: str | None, runs: list[Run]) -> None:
        """Look for counts below 0 in the sum of some runs."""
        below = 0
        with self.report.guarding("shard", shard=self.shard, path=self.data), \
                contextlib.closing(merged(self.snap, runs, self.order, bits_for(self.n_words))) as blocks:
            for block in blocks:
                below += int(np.count_nonzero(block.counts < 0))
                self.advance(0)
        if below:
            of = f" of label {label}" if label is not None else ""
            self.report.add(damage("shard", f"{self.data}: {below} n-grams{of} have counts below 0", path=self.data,
                                   shard=self.shard, found=below, expected=0))

    def add(self, run: Run, what: str, found: object, expected: object) -> None:
        """Report damage of a run."""
        self.report.add(damage("shard", f"{self.data}: run {run.id} {what}", path=self.data, shard=self.shard, run=run.id,
                               found=found, expected=expected))


def look_at_table(store: StoreDirectory, snapshot: StoreSnapshot, bad: Collection[int], report: Report,
                  begin: Callable[..., bool], ended: Callable[..., None], progress: Told) -> bool:
    """Decode every run of a table: its keys are of the table's width, and in the shard where they belong; as look_at_counts()."""
    key_bytes, n_shards, order = store.identity["table"]["key_bytes"], store.identity["shards"], store.identity["order"]
    total, done, before = snapshot.n_keys(), 0, len(report.found)
    for number, snap in enumerate(snapshot.shards):
        if number in bad or not begin("counts", number):
            continue
        data = str(store.path / snapshot.state["shards"][number]["dir"] / "data.mdb")
        for run in snap.runs(snapshot.version):
            n = strangers = 0
            with report.guarding("shard", shard=number, run=run.id, path=data), \
                    contextlib.closing(merged(snap, [run], order, 32)) as blocks:
                for block in blocks:
                    raw = unpack(block.keys, order, 32).astype(">u4").view(np.uint8).reshape(len(block.counts), -1)
                    _, _, ends = arrange(np.ascontiguousarray(raw[:, :key_bytes]).reshape(-1), key_bytes, n_shards, native=False)
                    ours = int(ends[number] - (ends[number - 1] if number else 0))
                    strangers += max(len(raw) - ours, int(np.count_nonzero(raw[:, key_bytes:].any(axis=1))))
                    n += len(raw)
                    done += len(raw)
                    progress(done, total)
                for what, found in (("keys that do not belong to this shard, or to this table", strangers),
                                    ("keys with a count of 0", run.n_keys - n)):
                    if found:
                        report.add(damage("shard", f"{data}: run {run.id} has {found} {what}", path=data, shard=number, run=run.id,
                                          found=found, expected=0))
        with report.guarding("shard", shard=number, path=data), \
                contextlib.closing(merged(snap, snap.runs(snapshot.version), order, 32)) as blocks:
            for _ in blocks:                   # no sum leaves 62 bits
                pass
        ended("counts", number)
    return len(report.found) == before


# Compiled models

def look_at_models(store: StoreDirectory, snapshot: StoreSnapshot, report: Report, progress: Told, *, walk: bool = True) -> None:
    """Compare every page of the compiled models with its checksum, and their counts of counts with the store's own."""
    fresh: dict[tuple[str, int], list[tuple[Path, dict]]] = defaultdict(list)
    folder = store.path / layout.MODELS
    for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
        name = cache.FILE_NAME.fullmatch(path.name)
        if name is None:
            continue
        with report.guarding("model", path=str(path)):
            meta, arrays = container.read(path)
            if meta.get("format") != container.MODEL_FORMAT:
                continue                       # of another release: made again when it is asked for
            sums = container.pages(path, arrays)
            sums.compare(arrays["file"][:4096 * (len(arrays["sums"]) - 1)])
            if "-l" not in name["stem"] and int(name["version"]) == snapshot.version and meta["uuid"] == store.identity["uuid"]:
                fresh[meta["kind"], meta["order"]].append((path, meta))
    if walk:
        for (kind, top), models in fresh.items():
            _compare(store, snapshot, kind, top, models, report, progress)


def _compare(store: StoreDirectory, snapshot: StoreSnapshot, kind: str, top: int, models: list[tuple[Path, dict]], report: Report,
             progress: Told) -> None:
    order, n_words, done, total = store.identity["order"], store.root.next_word(), 0, snapshot.n_keys()

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    with ThreadPoolExecutor(1) as pool:
        walks = walk_all(snapshot, order, n_words, top, pool, raw=kind == "raw", progress=advance)
    expected = statistics_of(snapshot, top, walks, *summed_unigrams(walks)).to_json()
    expected = {name: _plain(value) for name, value in expected.items()}
    for path, meta in models:
        for name, wanted in expected.items():
            if (found := _plain(meta["statistics"][name])) != wanted:
                report.add(damage("model", f"{path}: {name} {found}, expected {wanted}", path=str(path), found=found,
                                  expected=wanted))


def _plain(value: object) -> object:
    """Return a value as JSON gives it back."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value

"""Verify a model on itself: that its contexts sum to 1, that counts agree over orders, and counts of counts with the counts.

    STEP 1  compare every page of compiled models with its checksum; make the model where there is none
    STEP 2  walk over all counts: is every n-gram followed as often as it occurs (kvps/lm/balance.py)? On the way, contexts are
            chosen by a seeded hash
    STEP 3  compare the counts of counts that compiled models state with the counts
    STEP 4  add up the probabilities of all words after the chosen contexts (kvps/lm/audit.py)
    STEP 5  full: of every n-gram compare the count in the model with the store's, and of every context the sum with 1

Of an imported model steps 4 and 5 are possible, where it lists its n-grams (otherwise step 4, after single words): in step 5 every
context is added up. Words alone may have less than 1 together there: a file that is of a smoothing that counts <s>, or of a padded
vocabulary, does not list all that has a probability. Then contexts may lack as much.
"""
from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvps.errors import ArgumentError, StoreError
from kvps.jobs.counts import look_at_models
from kvps.lm import audit as sums
from kvps.lm import opening
from kvps.lm.balance import unbalanced
from kvps.lm.given import Given
from kvps.lm.mixture import MixtureFile
from kvps.lm.model import CompiledModel
from kvps.lm.smoothing import DEFAULT, GIVEN, HAVE_BACKOFFS, parse
from kvps.store.directory import StoreSnapshot
from kvps.store.findings import DAMAGE, Finding, Report, damage, warning
from kvps.text.vocabulary import BOS, EOS, Vocabulary, text_of_word

CONTEXTS = 20                  # of each length
TOLERANCE = 1e-9
GIVEN_TOLERANCE = 1e-4         # the probabilities of an ARPA file have some seven digits each
MOST = 10                      # findings of a kind that are told one by one
ORIGIN = "these are the counts of no text: restore a checkpoint, or make the store anew from its text"

TAKES = "an audit takes the folder of a store, a file that kvps import made, or an ARPA file"
SHORT = "the rest belongs to words that the file does not list: <s> where it is counted, or those of a padded vocabulary"

Progress = Callable[[str, int, int], None]     # (stage, done, total)


@dataclasses.dataclass
class Audit:
    """What was looked at, and what was found."""

    version: int
    order: int                             # of the model
    smoothing: str
    contexts: int                          # whose probabilities were added up
    largest_error: float                   # of these sums
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        """Whether there is no finding of damage."""
        return all(finding.severity != DAMAGE for finding in self.findings)


def audit(path: str | Path, *, smoothing: str = DEFAULT, order: int | None = None, contexts: int = CONTEXTS, seed: int = 0,
          full: bool = False, threads: int | None = None, scratch: Path | None = None,
          tell: Callable[[Finding], None] = lambda finding: None, progress: Progress = lambda stage, done, total: None) -> Audit:
    """Verify the model that a store's last version, or an imported file, is.

    Args:
        path: of the store, of a model that was imported, or of an ARPA file.
        smoothing, order: of the model.
        contexts: how many of each length to look at; the same ones for the same seed.
        full: look at all n-grams and contexts too, of a smoothing with back-offs.
        tell: called with each finding at once.
        progress: called with (stage, done, total).

    Raises:
        ArgumentError: a smoothing that is no distribution, or whose contexts cannot all be looked at; numbers that are not
            possible. StoreError: the store changed meanwhile.
    """
    chosen = parse(smoothing)
    if chosen.name == "stupid-backoff":
        raise ArgumentError("stupid-backoff gives scores, whose sum means nothing; choose another smoothing")
    if contexts < 1 or not 0 <= seed < 1 << 64:
        raise ArgumentError(f"{contexts} contexts with the seed {seed} are not possible")
    if full and chosen.name not in HAVE_BACKOFFS:
        raise ArgumentError(f"not all contexts of {chosen} can be looked at, which takes back-offs; leave --full (full=True) out, "
                            f"or choose {', '.join(HAVE_BACKOFFS)}")
    report = Report(tell)
    with opening.open_model_place(path) as store:
        if not isinstance(store, opening.ModelFile) and not os.path.isdir(path):
            raise ArgumentError(f"{path}: is {'a mixture' if isinstance(store, MixtureFile) else 'an address'}; {TAKES}")
        if not isinstance(store, opening.ModelFile):
            with store.snapshot() as snapshot:         # before one that is damaged is made again
                look_at_models(store, snapshot, report, lambda done, total: None, walk=False)
        model = opening.load(store, CompiledModel, chosen, order, threads=threads, scratch=scratch,
                             progress=lambda done, total: progress("compiling", done, total))
        look = _Look(str(path), model, report, contexts, seed, progress)
        if isinstance(store, opening.ModelFile):
            if full:
                store.need_lists()
            look.model_path = look.path        # and not that of what is in the cache
            look.sums(look.given_contexts(store))
            if full:
                look.everything_given(store)
        else:
            with store.snapshot() as snapshot:
                if snapshot.version != model.version:
                    raise StoreError(f"{store.path}: was changed meanwhile; audit it again", path=str(store.path))
                look.vocabulary = Vocabulary(store.root.words())
                sample = look.counts(snapshot, store.identity["order"])
                told = {str(finding) for finding in report.found}
                again = Report(lambda finding: None if str(finding) in told else report.add(finding))
                look_at_models(store, snapshot, again, lambda done, total: progress("models", done, total))
                look.sums(sample.contexts(model.order))
                if full:
                    look.everything(snapshot, store.identity["order"])
    return Audit(model.version, model.order, str(model.smoothing), look.n_contexts, look.worst, report.found)


class _Look:
    """One audit."""

    def __init__(self, path: str, model: CompiledModel, report: Report, contexts: int, seed: int, progress: Progress) -> None:
        self.path, self.model, self.report, self.progress = path, model, report, progress
        self.model_path, self.least = str(model.path), 1.0         # what words have together at least
        self.sample = sums.Sample(contexts, seed)
        self.vocabulary: Vocabulary | None = None          # of the store
        self.tolerance = GIVEN_TOLERANCE if model.smoothing == GIVEN else TOLERANCE
        self.n_contexts, self.worst, self._told = 0, 0.0, collections.Counter()

    def words(self, ids: tuple[int, ...]) -> str:
        """Return words as people read them."""
        word = self.model.words.word if self.vocabulary is None else self.vocabulary.table.word
        return " ".join(text_of_word(word(i)) for i in ids)

    def given_contexts(self, place: opening.ModelFile) -> list[tuple[int, ...]]:
        """Return contexts of an imported model, chosen by the seed, <s> among them; </s> is followed by nothing."""
        words, lists = sums.words_of(self.model), Given(place, self.model)
        self.sample.take(words[words > EOS].reshape(-1, 1))
        for k in range(2, self.model.order if place.lists else 2):
            for rows, _ in lists.listed(k):
                self.sample.take(rows[rows[:, -1] != EOS])
        first, *others = self.sample.contexts(self.model.order)
        return [first, (BOS,), *others] if self.model.order > 1 else [first]

    def counts(self, snapshot: StoreSnapshot, order: int) -> sums.Sample:
        """Run step 2."""
        total, done = snapshot.n_keys(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.progress("counts", min(done, total), total)

        with self.report.guarding("counts", path=self.path):
            for found in unbalanced(snapshot, order, len(self.vocabulary), advance, self.sample.take):
                k = len(found.ids)
                self.report.add(damage("counts", f"{self.path}: {self.words(found.ids)!r} occurs {found.count} times, but the "
                                       f"{k + 1}-grams that begin with it {found.followed} times", path=self.path,
                                       found=found.followed, expected=found.count, next=ORIGIN))
        return self.sample

    def sums(self, contexts: list[tuple[int, ...]]) -> None:
        """Run step 4."""
        words = sums.words_of(self.model)
        for number, context in enumerate(contexts, 1):
            with self.guarding():
                total = sums.sum_after(self.model, context, words)
                self.n_contexts += 1
                if not context and self.model.smoothing == GIVEN and self.tolerance < 1 - total < 1:
                    self.least = total
                    self.report.add(warning("model", f"{self.model_path}: the probabilities of words alone add up to {total:.6g}",
                                            path=self.model_path, found=total, expected=1.0, next=SHORT))
                self.summed(context, total)
            self.progress("sums", number, len(contexts))

    def everything(self, snapshot: StoreSnapshot, order: int) -> None:
        """Run step 5."""
        total, done = snapshot.n_keys(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.progress("n-grams", min(done, total), total)

        with self.guarding():
            n, worst = sums.every_context(self.model, snapshot, order, len(self.vocabulary), self.tolerance, self.off, advance)
            self.n_contexts, self.worst = n + 1, float(np.maximum(self.worst, worst))     # and that of no words

    def everything_given(self, place: opening.ModelFile) -> None:
        """Run step 5 for an imported model."""
        lists = Given(place, self.model)
        total, done = sum(self.model.statistics.ngrams[k] for k in range(2, self.model.order + 1)), 0
        self.n_contexts = 1                    # that of no words
        with self.guarding():
            for k in range(2, self.model.order + 1):
                for rows, log10_p in lists.by_context(k):
                    found = lists.add_up(rows, log10_p)
                    self.n_contexts += len(found.sums)
                    self.worst = float(np.maximum(self.worst, np.abs(found.sums - 1).max()))
                    low, high = self.least - self.tolerance, 1 + self.tolerance
                    for i in np.flatnonzero(~((low <= found.sums) & (found.sums <= high))).tolist():
                        self.summed(tuple(found.contexts[i].tolist()), float(found.sums[i]))
                    done += len(rows)
                    self.progress("n-grams", min(done, total), total)
                lists.done(k)

    def summed(self, context: tuple[int, ...], total: float) -> None:
        """Take note of what all words have together after a context."""
        error = abs(total - 1)
        self.worst = error if math.isnan(error) else max(self.worst, error)
        if not self.least - self.tolerance <= total <= 1 + self.tolerance:
            self.off(sums.Off(context, "sum", total, 1.0))

    def guarding(self) -> contextlib.AbstractContextManager[None]:
        """Make damage that a look meets a finding."""
        return self.report.guarding("model", path=self.model_path)

    def off(self, found: sums.Off) -> None:
        """Report a sum, a total or a count that is not what it should be."""
        self._told[found.what] += 1
        if self._told[found.what] > MOST + 1:
            return
        more = {"path": self.model_path, "found": found.found, "expected": found.expected}
        if self.model.smoothing == GIVEN:
            more["next"] = "its ARPA file is no distribution: estimate it again"
        if self._told[found.what] > MOST:
            what = "and more that are not told one by one"
        elif found.what == "count":
            what = f"{self.words(found.ids)!r} has the count {found.found:g}, expected {found.expected:g}"
        elif found.what in sums.TOTALS:
            what = f"has {found.found:g} {found.what} after {self.words(found.ids)!r}, expected {found.expected:g}"
        else:
            after = f"after {self.words(found.ids)!r}" if found.ids else "of words alone"
            least = f"{self.least:.6g} to " if self.least < 1 else ""
            what = f"the probabilities {after} add up to {found.found:.12g}, expected {least}1"
        self.report.add(damage("model", f"{self.model_path}: {what}", **more))

"""The public interface against a model of three lines: counters that are added to and taken from, whatever happens.

Hypothesis makes up histories: train, update, forget what is there and what is not, with labels and without, forget labels,
purge, compact, reopen, be interrupted by an exception or by kill -9 at any step, resume, abort, do it again. After each
change the store must hold what the counters hold, and its models, also of some labels, must score as the textbook does.
"""
import dataclasses
import math
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import reference
from forks import ForkServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from processes import environment, summary

import kvps
from kvps.jobs import counting

# Few words and short sentences, so that n-grams repeat and counts come back to zero.
SENTENCE = st.lists(st.sampled_from(["a", "b", "c", "\u732b"]), max_size=4).map(" ".join)
TEXT = st.lists(SENTENCE, min_size=1, max_size=4)
LABEL = st.sampled_from([None, None, "x", "y", "z"])
KEEP = st.sampled_from([None, None, 1, 2])
HELDOUT = ["a b c", "b b", "", "c unheard-of a \u732b"]
SMOOTHINGS = {"modified-kneser-ney": None, "kneser-ney": "kneser_ney", "witten-bell": "witten_bell", "laplace": "laplace"}
PART, WHEN = st.integers(0, 999), st.sampled_from(["before", "after"])
# About how many calls of the store's functions a command makes with one shard, and with each further one.
CALLS = {"update": (470, 230), "forget": (490, 250), "compact": (330, 200), "resume": (350, 200), "abort": (200, 90)}
SPLIT_BYTES = 4                       # each sentence is a split, and a run, of its own
MINIMAL = {"memory": "16b", "threads": 1}


class Interrupted(Exception):
    """What the test throws into a job."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job does: adds or takes away a text, if there is one, and takes away labels."""

    command: str
    text: list | None
    label: str | None = None
    gone: tuple = ()

    @property
    def sign(self):
        """Whether it adds or takes away."""
        return -1 if self.command == "forget" else 1


@dataclasses.dataclass
class Part:
    """The text of one label, or that without one: counts by order, (tokens, sentences), the first and last version."""

    counts: dict
    size: tuple = (0, 0)
    first: int = 0
    last: int = 0


def counts_of(text, order):
    """Return {n: Counter of the windows of n words} of a list of sentences."""
    sentences = [sentence.split() for sentence in text]
    return {n: reference.raw_counts(sentences, n) for n in range(1, order + 1)}


def size_of(text):
    """Return (tokens, sentences) of a text."""
    return sum(len(sentence.split()) for sentence in text), len(text)


class Machine(RuleBasedStateMachine):
    """A store, and what it should hold.

    `parts` are the counts by label, None for text without one; `counts` and `size` are their sums. A text that is added or
    removed changes one part and `times`; a label that goes takes both with it.
    """

    server = None                      # a ForkServer, set for the run
    met = None                         # a Counter of what happened in all examples, set for the run

    def __init__(self):
        """Begin with a folder; the store comes with `made`."""
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvps-stateful-"))
        self.path = self.folder / "store"
        self.store = None
        self.writable = False          # whether it is open as the one writer
        self.version = 0
        self.parts = {}
        self.times = {}                # by label, how often each text counts as added
        self.pending = None            # the Job that was interrupted
        self.fresh = False             # whether anything has happened since the store was last looked at

    @initialize(order=st.integers(1, 4), shards=st.integers(1, 3))
    def made(self, order, shards):
        """A new store is empty."""
        self.order, self.shards = order, shards
        self.parts[None] = Part(counts_of([], order))
        self.store = kvps.create(self.path, order=order, shards=shards)
        self.fresh = True

    def teardown(self):
        """Close and remove it."""
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)

    # the model

    def sum_of(self, labels=None):
        """Return (counts by order, size) of the text of some labels, of all by default."""
        parts = [part for label, part in self.parts.items() if labels is None or (label or "-") in labels]
        counts = {n: sum((part.counts[n] for part in parts), Counter()) for n in range(1, self.order + 1)}
        return counts, tuple(map(sum, zip((0, 0), *(part.size for part in parts), strict=True)))

    @property
    def counts(self):
        """All counts by order."""
        return self.sum_of()[0]

    @property
    def size(self):
        """Tokens and sentences."""
        return self.sum_of()[1]

    @property
    def labels(self):
        """The labels that have text, oldest first."""
        there = [(part.first, label) for label, part in self.parts.items() if label is not None]
        return [label for _, label in sorted(there)]

    def added(self, text):
        """Return whether a text counts as added, under any label."""
        return any(times[tuple(text)] for times in self.times.values())

    def removable(self, text, label=None):
        """Return whether each n-gram of a text is there often enough: all that forget can know."""
        part = self.parts.get(label)
        return part is not None and all(part.counts[n] >= grams for n, grams in counts_of(text, self.order).items())

    def possible(self, job):
        """Return whether a job can commit."""
        return job.command != "forget" or job.text is None or self.removable(job.text, job.label)

    def beyond(self, keep, label=None):
        """Return the labels that go where so many are kept, of which `label` has new text."""
        there = self.labels + ([label] if label is not None and label not in self.labels else [])
        return tuple(old for old in there[:max(0, len(there) - keep)] if old != label) if keep is not None else ()

    def apply(self, job):
        """Change the model as a job that commits changes the store."""
        self.version += 1
        if job.text is not None:
            part = self.parts.setdefault(job.label, Part(counts_of([], self.order), first=self.version))
            for n, grams in counts_of(job.text, self.order).items():
                for gram, count in grams.items():
                    part.counts[n][gram] += job.sign * count
                part.counts[n] = +part.counts[n]
            part.size = tuple(mine + job.sign * theirs for mine, theirs in zip(part.size, size_of(job.text), strict=True))
            part.last = self.version
            if job.label is not None and part.size == (0, 0):
                del self.parts[job.label]
            times = self.times.setdefault(job.label, Counter())
            times[tuple(job.text)] = max(0, times[tuple(job.text)] + job.sign)
        for label in job.gone:
            del self.parts[label]
            self.times.pop(label, None)
        self.pending = None
        self.fresh = True

    def committed(self, job, change):
        """Compare what a job said with what it should have done, and do it."""
        before = self.size
        self.apply(job)
        self.met[job.command if job.text is not None else "forget labels", "done"] += 1
        if job.gone:
            self.met["labels", "gone"] += 1
        assert change["command"] == job.command
        assert (change["version"], change["inputs"]) == (self.version, int(job.text is not None))
        assert (change["tokens"], change["sentences"]) == tuple(now - then for now, then in zip(self.size, before, strict=True))
        assert tuple(change.get("labels", ())) == job.gone

    def call(self, job, **options):
        """Call train, update or forget."""
        with mock.patch.object(counting, "MIN_SPLIT_BYTES", SPLIT_BYTES):
            return getattr(self.store, job.command)(job.text, **MINIMAL, label=job.label, **options)

    # jobs that nobody disturbs

    @precondition(lambda self: self.pending is None)
    @rule(text=TEXT, again=st.booleans(), label=LABEL, keep=KEEP)
    def update(self, text, again, label, keep):
        """A text is added, unless it is counted already and not to be counted again; the oldest labels go."""
        job = Job("update", text, label, self.beyond(keep, label))
        change = self.call(job, again=again, keep_labels=keep)
        if self.added(text) and not again:
            assert change["inputs"] == 0
            assert list(change["already"]) == ["(iterable)"]
        else:
            self.committed(job, change)

    @precondition(lambda self: self.pending is None)
    @rule(text=TEXT)
    def train(self, text):
        """Train is for the first text; later it is refused, and changes nothing."""
        job = Job("train", text)
        if self.version and not self.added(text):
            with pytest.raises(kvps.StoreError, match="trained already"):
                self.call(job)
        elif self.version:
            assert self.call(job)["inputs"] == 0
        else:
            self.committed(job, self.call(job))
        self.fresh = True

    @precondition(lambda self: self.pending is None)
    @rule(text=TEXT, label=LABEL)
    def forget(self, text, label):
        """A text is removed if all its n-grams are there, under this label; otherwise it is refused, and nothing changes."""
        job = Job("forget", text, label)
        if self.possible(job):
            self.committed(job, self.call(job))
        else:
            with pytest.raises(kvps.DataError, match="would have count"):
                self.call(job)
            self.met["forget", "refused"] += 1
            self.fresh = True

    @precondition(lambda self: self.pending is None and any(+times for times in self.times.values()))
    @rule(data=st.data())
    def forget_what_was_added(self, data):
        """A text that was added is removed; what was forgotten otherwise may have taken some of it away."""
        there = [(label or "", text) for label, times in self.times.items() for text in +times]
        label, text = data.draw(st.sampled_from(sorted(there)))
        self.forget(list(text), label or None)

    @precondition(lambda self: self.pending is None)
    @rule(label=LABEL, keep=KEEP)
    def forget_labels(self, label, keep):
        """All text of a label goes without the text, and that of the oldest labels; where there is none it is refused."""
        chosen = [label] if label is not None else []
        if label is not None and label not in self.labels:
            with pytest.raises(kvps.StoreError, match="no text has the label"):
                self.store.forget_labels(chosen, keep_labels=keep, **MINIMAL)
            self.fresh = True
            return
        others = [old for old in self.labels if old != label]
        gone = (*chosen, *(others[:max(0, len(others) - keep)] if keep is not None else ()))
        change = self.store.forget_labels(chosen, keep_labels=keep, **MINIMAL)
        if gone:
            self.committed(Job("forget", None, gone=gone), change)
        else:
            assert (change["version"], change["tokens"], change["labels"]) == (self.version, 0, [])

    @rule(how=st.sampled_from(["compact", "vacuum", "purge"]))
    def compact(self, how):
        """To compact changes no version and no count, with a pending job or without; so does a purge, but only without."""
        if how != "purge":
            assert self.store.compact(vacuum=how == "vacuum", threads=1)["version"] == self.version
        elif self.pending is None:
            self.store.purge(threads=1)
        else:
            with pytest.raises(kvps.StoreError, match="was interrupted"):
                self.store.purge(threads=1)
        self.met[how, "done" if self.pending is None else "pending"] += 1
        self.fresh = True

    @rule(writable=st.booleans())
    def reopen(self, writable):
        """A store that is closed and opened again is the same."""
        self.store.close()
        self.store = kvps.open(self.path, writable=writable)
        self.writable = writable
        self.fresh = True

    # jobs that are disturbed

    @precondition(lambda self: self.pending is None)
    @rule(command=st.sampled_from(["update", "forget"]), text=TEXT, label=LABEL, keep=KEEP, after=st.integers(0, 5))
    def interrupted(self, command, text, label, keep, after):
        """An exception in the middle of a job leaves it pending, unless it was over by then."""
        def progress(*_):
            nonlocal after
            after -= 1
            if after < 0:
                raise Interrupted

        job = Job(command, text, label, self.beyond(keep, label) if command == "update" else ())
        options = {"again": True, "keep_labels": keep} if command == "update" else {}
        try:
            change = self.call(job, progress=progress, **options)
        except Interrupted:
            self.pending = job
            self.met[f"{command} interrupted", "pending"] += 1
        except kvps.DataError:
            assert not self.possible(job)
        else:
            self.committed(job, change)
        self.fresh = True

    @precondition(lambda self: self.pending is None)
    @rule(command=st.sampled_from(["update", "forget", "compact"]), text=TEXT, label=LABEL, keep=KEEP, part=PART, when=WHEN,
          flag=st.booleans())
    def killed(self, command, text, label, keep, part, when, flag):
        """kill -9 at any step of a command leaves the version before, with or without a pending job, or the one after."""
        labelled, job = ["--label", label] if label is not None else [], None
        if command == "update":
            job = Job("update", text, label, self.beyond(keep, label))
            more = ["--again", *labelled, *(["--keep-labels", keep] if keep is not None else [])]
            arguments = ["update", self.path, *self.inputs(text, more)]
        elif command == "forget":
            job = Job("forget", text, label)
            arguments = ["forget", self.path, *self.inputs(text, [*labelled, *(["--purge"] if flag else [])])]
        else:
            arguments = ["compact", self.path, "--threads", 1, *(["--vacuum"] if flag else [])]
        self.kill(command, arguments, job, part, when)

    @precondition(lambda self: self.pending is None)
    @rule(purge=st.booleans(), part=PART, when=WHEN)
    def killed_in_a_removal(self, purge, part, when):
        """So it does when it takes away a label, or purges, or both."""
        gone, words = tuple(self.labels[:1]), ["--purge"] if purge or not self.labels else []
        arguments = ["forget", self.path, "--threads", 1, *(word for label in gone for word in ("--label", label)), *words]
        self.kill("forget labels" if gone else "purge", arguments, Job("forget", None, gone=gone) if gone else None, part, when)

    def kill(self, command, arguments, job, part, when):
        """Kill a command of the command line, and follow what it has done; job: what it does to the counts, if it does."""
        possible = job is None or self.possible(job)
        done = self.under_fire(arguments, part, when, check=0 if possible else 1)
        version, (found, pending) = self.version, self.looked_at()
        assert found in (version, version + (possible and job is not None))
        if found > self.version:
            assert not pending
            self.apply(job)
        elif pending:
            assert job is not None
            self.pending = job
        else:
            assert job is None or done.code != 0
        if done.code == -signal.SIGKILL:
            self.met[f"{command} killed", "committed" if found > version else "pending" if pending else "as before"] += 1
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule(command=st.sampled_from(["resume", "abort"]), part=PART, when=WHEN)
    def killed_on_the_way_back(self, command, part, when):
        """kill -9 at any step of resume or abort leaves the job pending, or done, or rolled back."""
        possible = command == "abort" or self.possible(self.pending)
        options = [] if command == "abort" else ["--threads", 1]
        done = self.under_fire([command, self.path, *options], part, when, check=0 if possible else 1)
        found, pending = self.looked_at()
        if done.code == -signal.SIGKILL:
            self.met[f"{command} killed", "pending" if pending else "done"] += 1
        if found > self.version:
            assert command == "resume" and possible and not pending
            self.apply(self.pending)
        elif not pending:
            assert command == "abort" or not possible
            self.pending = None
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule()
    def resume(self):
        """A resumed job is done as if nothing had been; one that must be refused is refused then, and rolled back."""
        if not self.possible(self.pending):
            with pytest.raises(kvps.DataError, match="would have count"):
                self.store.resume(**MINIMAL)
            self.pending = None
        else:
            self.committed(self.pending, self.store.resume(**MINIMAL))
        assert self.store.resume(**MINIMAL) is None
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule()
    def abort(self):
        """An aborted job leaves nothing."""
        assert self.store.abort() == {"command": self.pending.command, "version": self.version}
        assert self.store.abort() is None
        self.pending = None
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule(command=st.sampled_from(["update", "forget"]), text=TEXT, label=LABEL, data=st.data())
    def another_job(self, command, text, label, data):
        """While a job is pending, another is refused, be it the same text under another label, and changes nothing."""
        if self.pending.text is not None and data.draw(st.booleans()):
            text = self.pending.text
        if (command, text, label) == (self.pending.command, self.pending.text, self.pending.label):
            return
        with pytest.raises(kvps.StoreError, match="was interrupted"):
            self.call(Job(command, text, label))
        self.fresh = True

    def inputs(self, text, more):
        """Return the arguments of a command line that counts a text."""
        file = self.folder / "text"
        file.write_bytes("".join(sentence + "\n" for sentence in text).encode())
        return [file, "--memory", "16b", "--threads", 1, *more]

    def under_fire(self, arguments, part, when, check):
        """Run a command in a process of its own, which is killed before or after one of its steps.

        part: how far it has come by then, in thousandths; it may have less to do than others and be over.
        """
        self.store.close()
        first, further = CALLS[arguments[0]]
        number = 1 + part * (first + further * (self.shards - 1)) // 1000
        done = self.server.run(*arguments, step=("*", when, number), split_bytes=SPLIT_BYTES, check=check)
        self.store, self.writable = kvps.open(self.path), False
        return done

    def looked_at(self):
        """Return (version, whether a job is pending) of the store."""
        version, tokens, sentences, pending = summary(self.path)
        status = self.store.status()
        assert status["version"] == version
        assert status["state"] == ("running" if self.writable else "interrupted" if pending else "idle")
        if version == self.version:
            assert (tokens, sentences) == self.size
        return version, pending

    # what must hold

    @invariant()
    def holds(self):
        """The store holds what the model holds, by every way of asking."""
        if not self.fresh:
            return
        self.fresh = False
        store = self.store
        assert self.looked_at() == (self.version, self.pending is not None)
        assert store.version == self.version
        counts, size = self.sum_of()
        for n in range(1, self.order + 1):
            listed = list(store.dump(n, threads=1))
            assert len(dict(listed)) == len(listed)
            assert dict(listed) == counts[n]
        asked = [("a",), ("unheard-of",), *([("<s>", "a")] if self.order > 1 else [])]
        assert store.counts(asked) == [counts[len(gram)][gram] for gram in asked]
        words = {gram[0]: count for gram, count in counts[1].items() if gram[0] not in ("<s>", "</s>")}
        assert dict(store.vocabulary) == words
        assert list(store.labels.items()) == [
            (label, dict(zip(("tokens", "sentences", "first", "last"), (*part.size, part.first, part.last), strict=True)))
            for label in self.labels for part in [self.parts[label]]]
        self.statistics_are(counts, size, words)
        if size[1]:
            self.scores_are(counts, size)
        self.labels_are()

    def statistics_are(self, counts, size, words):
        """Sizes and counts of counts are those of the counters."""
        found = self.store.statistics
        assert (found.order, found.version) == (self.order, self.version)
        assert (found.tokens, found.sentences, found.vocabulary) == (*size, len(words))
        with mock.patch.object(reference, "raw_counts", lambda counts, n: counts[n]):
            adjusted = reference.adjusted_counts(counts, self.order)
        for n, grams in adjusted.items():
            assert found.t[n] == reference.counts_of_counts(grams)[1:]

    def labels_are(self):
        """A model of some labels is one of their text alone; which ones changes from time to time."""
        there = [*(["-"] if self.parts[None].size[1] else []), *(label for label in self.labels if self.parts[label].size[1])]
        if not self.labels or not there:
            return
        chosen = [label for number, label in enumerate(there) if (self.version + self.size[0]) >> number & 1] or there[-1:]
        self.met["labels", "scored"] += 1
        self.scores_are(*self.sum_of(chosen), labels=chosen)

    def scores_are(self, counts, size, labels=None):
        """Each sentence scores as the sum of its tokens in the textbook, with a smoothing that changes from time to time."""
        names = sorted(SMOOTHINGS)
        name = names[(self.version + size[0]) % len(names)]
        if name == "kneser-ney" and self.order == 1:
            name = "laplace"
        # The twins ask for the counts of sentences in one place; they get ours, which may be of no sentences any more.
        with mock.patch.object(reference, "raw_counts", lambda counts, n: counts[n]):
            if SMOOTHINGS[name] is None:
                twin = reference.ModifiedKneserNey(counts, self.order).p
            else:
                twin = getattr(reference.Nltk(counts, self.order), SMOOTHINGS[name])
        with self.store.model(name, labels=labels, threads=1) as model:
            assert model.version == self.version
            for sentence, score in zip(HELDOUT, model.score(HELDOUT).tolist(), strict=True):
                words = ("<s>", *sentence.split(), "</s>")
                p = [twin(words[i], words[max(0, i - self.order + 1):i]) for i in range(1, len(words))]
                expected = math.fsum(map(math.log10, p)) if all(p) else -math.inf
                assert score == pytest.approx(expected, rel=1e-9, abs=1e-9), (name, sentence, labels)


@pytest.fixture(scope="module")
def server():
    """A process that forks the commands that are killed."""
    with ForkServer(environment()) as server:
        yield server


COVERED = [(["update killed", "forget killed"], "pending"), (["update killed", "forget killed"], "as before"),
           (["compact killed"], "as before"), (["resume killed", "abort killed"], "pending"),
           (["update interrupted", "forget interrupted"], "pending"), (["forget"], "done"), (["forget"], "refused"),
           (["forget labels"], "done"), (["labels"], "gone"), (["labels"], "scored"), (["purge"], "done"),
           (["purge"], "pending"), (["purge killed", "forget labels killed"], "as before")]


@pytest.mark.parametrize("n_examples", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_store_is_its_counters(server, n_examples):
    """Whatever is done to a store and happens to it, it holds what counters in plain Python hold."""
    with mock.patch.object(Machine, "server", server), mock.patch.object(Machine, "met", Counter()) as met:
        run_state_machine_as_test(Machine, settings=settings(
            max_examples=n_examples, stateful_step_count=12, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]))
    print(", ".join(f"{what} {how}: {n}" for (what, how), n in sorted(met.items())))
    rare = [(whats, how) for whats, how in COVERED if sum(met[what, how] for what in whats) < n_examples / 100]
    # Fifty histories may leave some things out by chance; two thousand do not.
    assert len(rare) <= (4 if n_examples < 1000 else 0), rare

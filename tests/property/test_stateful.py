"""The public interface against a model of three lines: counters that are added to and taken from, whatever happens.

Hypothesis makes up histories: train, update, forget what is there and what is not, compact, reopen, be interrupted by an
exception or by kill -9 at any step, resume, abort, do it again. After each change the store must hold what the counters
hold, and its models must score as the textbook does.
"""
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
HELDOUT = ["a b c", "b b", "", "c unheard-of a \u732b"]
SMOOTHINGS = {"modified-kneser-ney": None, "kneser-ney": "kneser_ney", "witten-bell": "witten_bell", "laplace": "laplace"}
PART, WHEN = st.integers(0, 999), st.sampled_from(["before", "after"])
# About how many calls of the store's functions a command makes with one shard, and with each further one.
CALLS = {"update": (470, 230), "forget": (490, 250), "compact": (330, 200), "resume": (350, 200), "abort": (200, 90)}
SPLIT_BYTES = 4                       # each sentence is a split, and a run, of its own
MINIMAL = {"memory": "16b", "threads": 1}


class Interrupted(Exception):
    """What the test throws into a job."""


def counts_of(text, order):
    """Return {n: Counter of the windows of n words} of a list of sentences."""
    sentences = [sentence.split() for sentence in text]
    return {n: reference.raw_counts(sentences, n) for n in range(1, order + 1)}


def size_of(text):
    """Return (tokens, sentences) of a text."""
    return sum(len(sentence.split()) for sentence in text), len(text)


class Machine(RuleBasedStateMachine):
    """A store, and what it should hold.

    `counts` are all counts by order; a text that is added or removed changes them, `times` and `size`. Counts that are
    kept apart by a label have their place here too: a Counter each, whose sum `counts` is.
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
        self.size = (0, 0)
        self.times = Counter()         # how often each text counts as added
        self.pending = None            # (command, text) of an interrupted job
        self.fresh = False             # whether anything has happened since the store was last looked at

    @initialize(order=st.integers(1, 4), shards=st.integers(1, 3))
    def made(self, order, shards):
        """A new store is empty."""
        self.order, self.shards = order, shards
        self.counts = counts_of([], order)
        self.store = kvps.create(self.path, order=order, shards=shards)
        self.fresh = True

    def teardown(self):
        """Close and remove it."""
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)

    # the model

    def removable(self, text):
        """Return whether each n-gram of a text is there often enough: all that forget can know."""
        return all(Counter(self.counts[n]) >= grams for n, grams in counts_of(text, self.order).items())

    def apply(self, command, text):
        """Change the model as a job that commits changes the store."""
        sign = -1 if command == "forget" else 1
        for n, grams in counts_of(text, self.order).items():
            for gram, count in grams.items():
                self.counts[n][gram] += sign * count
            self.counts[n] = +self.counts[n]
        self.size = tuple(mine + sign * theirs for mine, theirs in zip(self.size, size_of(text), strict=True))
        self.times[tuple(text)] = max(0, self.times[tuple(text)] + sign)
        self.version += 1
        self.pending = None
        self.fresh = True

    def committed(self, command, text, change):
        """Compare what a job said with what it should have done, and do it."""
        self.apply(command, text)
        sign = -1 if command == "forget" else 1
        tokens, sentences = size_of(text)
        self.met[command, "done"] += 1
        assert change["command"] == command
        assert (change["version"], change["inputs"]) == (self.version, 1)
        assert (change["tokens"], change["sentences"]) == (sign * tokens, sign * sentences)

    def call(self, command, text, **options):
        """Call train, update or forget."""
        with mock.patch.object(counting, "MIN_SPLIT_BYTES", SPLIT_BYTES):
            return getattr(self.store, command)(text, **MINIMAL, **options)

    # jobs that nobody disturbs

    @precondition(lambda self: self.pending is None)
    @rule(text=TEXT, again=st.booleans())
    def update(self, text, again):
        """A text is added, unless it is counted already and not to be counted again."""
        change = self.call("update", text, again=again)
        if self.times[tuple(text)] and not again:
            assert change["inputs"] == 0
            assert list(change["already"]) == ["(iterable)"]
        else:
            self.committed("update", text, change)

    @precondition(lambda self: self.pending is None)
    @rule(text=TEXT)
    def train(self, text):
        """Train is for the first text; later it is refused, and changes nothing."""
        if self.version and not self.times[tuple(text)]:
            with pytest.raises(kvps.StoreError, match="trained already"):
                self.call("train", text)
        elif self.version:
            assert self.call("train", text)["inputs"] == 0
        else:
            self.committed("train", text, self.call("train", text))
        self.fresh = True

    @precondition(lambda self: self.pending is None)
    @rule(text=TEXT)
    def forget(self, text):
        """A text is removed if all its n-grams are there; otherwise it is refused, and nothing changes."""
        if self.removable(text):
            self.committed("forget", text, self.call("forget", text))
        else:
            with pytest.raises(kvps.DataError, match="would have count"):
                self.call("forget", text)
            self.met["forget", "refused"] += 1
            self.fresh = True

    @precondition(lambda self: self.pending is None and +self.times)
    @rule(data=st.data())
    def forget_what_was_added(self, data):
        """A text that was added is removed; what was forgotten otherwise may have taken some of it away."""
        self.forget(list(data.draw(st.sampled_from(sorted(+self.times)))))

    @rule(vacuum=st.booleans())
    def compact(self, vacuum):
        """To compact changes no version and no count, with a pending job or without."""
        assert self.store.compact(vacuum=vacuum, threads=1)["version"] == self.version
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
    @rule(command=st.sampled_from(["update", "forget"]), text=TEXT, after=st.integers(0, 5))
    def interrupted(self, command, text, after):
        """An exception in the middle of a job leaves it pending, unless it was over by then."""
        def progress(*_):
            nonlocal after
            after -= 1
            if after < 0:
                raise Interrupted

        options = {"again": True} if command == "update" else {}
        try:
            change = self.call(command, text, progress=progress, **options)
        except Interrupted:
            self.pending = command, text
            self.met[f"{command} interrupted", "pending"] += 1
        except kvps.DataError:
            assert command == "forget" and not self.removable(text)
        else:
            self.committed(command, text, change)
        self.fresh = True

    @precondition(lambda self: self.pending is None)
    @rule(command=st.sampled_from(["update", "forget", "compact"]), text=TEXT, part=PART, when=WHEN, data=st.data())
    def killed(self, command, text, part, when, data):
        """kill -9 at any step of a command leaves the version before, with or without a pending job, or the one after."""
        again = ["--again"] if command == "update" else []
        arguments = [command, self.path, *self.inputs(text, again)] if command != "compact" else [
            command, self.path, "--threads", 1, *data.draw(st.sampled_from([[], ["--vacuum"]]))]
        possible = command != "forget" or self.removable(text)
        done = self.under_fire(arguments, part, when, check=0 if possible else 1)
        version, (found, pending) = self.version, self.looked_at()
        assert found in (version, version + (possible and command != "compact"))
        if found > self.version:
            assert not pending
            self.apply(command, text)
        elif pending:
            assert command != "compact"
            self.pending = command, text
        else:
            assert command == "compact" or done.code != 0
        if done.code == -signal.SIGKILL:
            self.met[f"{command} killed", "committed" if found > version else "pending" if pending else "as before"] += 1
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule(command=st.sampled_from(["resume", "abort"]), part=PART, when=WHEN)
    def killed_on_the_way_back(self, command, part, when):
        """kill -9 at any step of resume or abort leaves the job pending, or done, or rolled back."""
        possible = command == "abort" or self.pending[0] != "forget" or self.removable(self.pending[1])
        options = [] if command == "abort" else ["--threads", 1]
        done = self.under_fire([command, self.path, *options], part, when, check=0 if possible else 1)
        found, pending = self.looked_at()
        if done.code == -signal.SIGKILL:
            self.met[f"{command} killed", "pending" if pending else "done"] += 1
        if found > self.version:
            assert command == "resume" and possible and not pending
            self.apply(*self.pending)
        elif not pending:
            assert command == "abort" or not possible
            self.pending = None
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule()
    def resume(self):
        """A resumed job is done as if nothing had been; one that must be refused is refused then, and rolled back."""
        command, text = self.pending
        if command == "forget" and not self.removable(text):
            with pytest.raises(kvps.DataError, match="would have count"):
                self.store.resume(**MINIMAL)
            self.pending = None
        else:
            self.committed(command, text, self.store.resume(**MINIMAL))
        assert self.store.resume(**MINIMAL) is None
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule()
    def abort(self):
        """An aborted job leaves nothing."""
        assert self.store.abort() == {"command": self.pending[0], "version": self.version}
        assert self.store.abort() is None
        self.pending = None
        self.fresh = True

    @precondition(lambda self: self.pending is not None)
    @rule(command=st.sampled_from(["update", "forget"]), text=TEXT)
    def another_job(self, command, text):
        """While a job is pending, another is refused, and changes nothing."""
        if (command, text) == self.pending or (command == "update" and self.times[tuple(text)]):
            return
        with pytest.raises(kvps.StoreError, match="was interrupted"):
            self.call(command, text)
        self.fresh = True

    def inputs(self, text, again):
        """Return the arguments of a command line that counts a text."""
        file = self.folder / "text"
        file.write_bytes("".join(sentence + "\n" for sentence in text).encode())
        return [file, "--memory", "16b", "--threads", 1, *again]

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
        for n in range(1, self.order + 1):
            listed = list(store.dump(n, threads=1))
            assert len(dict(listed)) == len(listed)
            assert dict(listed) == self.counts[n]
        asked = [("a",), ("unheard-of",), *([("<s>", "a")] if self.order > 1 else [])]
        assert store.counts(asked) == [self.counts[len(gram)][gram] for gram in asked]
        words = {gram[0]: count for gram, count in self.counts[1].items() if gram[0] not in ("<s>", "</s>")}
        assert dict(store.vocabulary) == words
        self.statistics_are(words)
        if self.size[1]:
            self.scores_are()

    def statistics_are(self, words):
        """Sizes and counts of counts are those of the counters."""
        found = self.store.statistics
        assert (found.order, found.version) == (self.order, self.version)
        assert (found.tokens, found.sentences, found.vocabulary) == (*self.size, len(words))
        with mock.patch.object(reference, "raw_counts", lambda counts, n: counts[n]):
            adjusted = reference.adjusted_counts(self.counts, self.order)
        for n, grams in adjusted.items():
            assert found.t[n] == reference.counts_of_counts(grams)[1:]

    def scores_are(self):
        """Each sentence scores as the sum of its tokens in the textbook, with a smoothing that changes from time to time."""
        names = sorted(SMOOTHINGS)
        name = names[(self.version + self.size[0]) % len(names)]
        if name == "kneser-ney" and self.order == 1:
            name = "laplace"
        # The twins ask for the counts of sentences in one place; they get ours, which may be of no sentences any more.
        with mock.patch.object(reference, "raw_counts", lambda counts, n: counts[n]):
            if SMOOTHINGS[name] is None:
                twin = reference.ModifiedKneserNey(self.counts, self.order).p
            else:
                twin = getattr(reference.Nltk(self.counts, self.order), SMOOTHINGS[name])
        with self.store.model(name, threads=1) as model:
            assert model.version == self.version
            for sentence, score in zip(HELDOUT, model.score(HELDOUT).tolist(), strict=True):
                words = ("<s>", *sentence.split(), "</s>")
                p = [twin(words[i], words[max(0, i - self.order + 1):i]) for i in range(1, len(words))]
                expected = math.fsum(map(math.log10, p)) if all(p) else -math.inf
                assert score == pytest.approx(expected, rel=1e-9, abs=1e-9), (name, sentence)


@pytest.fixture(scope="module")
def server():
    """A process that forks the commands that are killed."""
    with ForkServer(environment()) as server:
        yield server


@pytest.mark.parametrize("n_examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_store_is_its_counters(server, n_examples):
    """Whatever is done to a store and happens to it, it holds what counters in plain Python hold."""
    with mock.patch.object(Machine, "server", server), mock.patch.object(Machine, "met", Counter()) as met:
        run_state_machine_as_test(Machine, settings=settings(
            max_examples=n_examples, stateful_step_count=12, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]))
    print(", ".join(f"{what} {how}: {n}" for (what, how), n in sorted(met.items())))
    for whats, how in ((["update killed", "forget killed"], "pending"), (["update killed", "forget killed"], "as before"),
                       (["compact killed"], "as before"), (["resume killed", "abort killed"], "pending"),
                       (["update interrupted", "forget interrupted"], "pending"), (["forget"], "done"), (["forget"], "refused")):
        assert sum(met[what, how] for what in whats) >= n_examples / 100, (whats, how)

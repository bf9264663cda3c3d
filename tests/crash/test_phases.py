"""kill -9 inside each phase, at random times and steps, with 1, 4 and 16 shards: nothing lost, nothing double.

A phase is a command that writes. To add one, add a line to PHASES; what it needs is built by running it once.
Phases of a store that cannot be read (damaged, or of an older format) begin with what readers refuse, and end with what is
right: in between there is nothing else to be read.
The marker of forks.py, which outlives the process, proves that the kill fell inside: after the first step of the
command in the store and before its return.
"""
import dataclasses
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from forks import ForkServer
from processes import contents, counted, damage_shard, environment, summary, zipf_text

import kvps
from kvps.errors import KvpsError

pytestmark = pytest.mark.crash

ORDER = 3
MEMORY = ("--memory", "64K")
SHARDS = (1, 4, 16)
SPLIT_BYTES = {1: 1024, 4: 2048, 16: 4096}       # many small splits, but no more transactions than a second has room for
TEXTS = {"a": (1, 600), "b": (2, 500), "c": (3, 300), "d": (4, 200)}  # name: (seed, lines)
V1 = Path(__file__).parents[1] / "data" / "v1"
DAMAGES = ("deleted", "cut", "a bit", "empty")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A command that is killed, and what the store that it writes holds before and after it.

    In `command`, SHAPE stands for what a new store is made with; "store" and "copy" are paths in the folder of the kill;
    a, b, c and d are the texts, and `old` is what the store of format 1 in tests/data holds.
    """

    name: str
    command: tuple[str, ...]
    start: str | None                # the phase that leaves the folder it starts from; None: an empty one
    before: str | None               # which texts the store holds before; None: there is no store
    after: str                       # and after
    commits: bool = True             # whether it makes a new version, as a job that can be resumed and rolled back
    refused_again: bool = False      # whether the command, given again when it is done, is refused
    result: str = "store"            # what it writes: "store" or "copy"
    then: tuple[str, ...] = ()       # a command that must end well right after the kill, and when all is done
    deletes: str = ""                # the checkpoint that is gone afterwards
    first: tuple[str, ...] = ()      # a command that prepares the folder that it starts from
    pushes: bool = False             # the rows are in table "t" afterwards, each once
    unreadable: str = ""             # why readers refuse the store that it finds: "damaged" or "old"
    shards: tuple[int, ...] = SHARDS


SHAPE = "--shape"
VERIFY = ("checkpoint", "verify", "store")
PHASES = (
    Phase("train", ("train", "store", "a", "c", SHAPE, *MEMORY), None, None, "ac"),
    Phase("update", ("update", "store", "b", *MEMORY), "train", "ac", "abc"),
    Phase("forget", ("forget", "store", "c", *MEMORY), "update", "abc", "ab", refused_again=True),
    Phase("update --label", ("update", "store", "b", "--label", "mon", *MEMORY), "train", "ac", "abc"),
    Phase("forget --label", ("forget", "store", "--label", "mon"), "update --label", "abc", "ac", refused_again=True),
    Phase("forget --purge", ("forget", "store", "c", "--purge", *MEMORY), "update", "abc", "ab", refused_again=True),
    Phase("compact", ("compact", "store"), "update", "abc", "abc", commits=False),
    Phase("compact --vacuum", ("compact", "store", "--vacuum"), "update", "abc", "abc", commits=False),
    Phase("reshard", ("reshard", "store", "--shards", "3"), "update --label", "abc", "abc", commits=False),
    Phase("reshard again", ("reshard", "store", "--shards", "8"), "reshard", "abc", "abc", commits=False, shards=(4,)),
    Phase("forget --label, resharded", ("forget", "store", "--label", "mon"), "reshard again", "abc", "ac", refused_again=True,
          shards=(4,)),
    Phase("checkpoint create", ("checkpoint", "create", "store", "x"), "forget", "ab", "ab", commits=False, then=VERIFY),
    Phase("checkpoint restore", ("checkpoint", "restore", "store", "x", "--into", "copy"), "checkpoint create", None, "ab",
          commits=False, refused_again=True, result="copy"),
    Phase("checkpoint create --keep", ("checkpoint", "create", "store", "y", "--keep", "1"), "checkpoint create", "ab", "ab",
          commits=False, then=VERIFY),
    Phase("checkpoint create, labels", ("checkpoint", "create", "store", "x"), "update --label", "abc", "abc", commits=False,
          then=VERIFY),
    Phase("update --keep-labels", ("update", "store", "d", "--label", "tue", "--keep-labels", "1", *MEMORY),
          "checkpoint create, labels", "abc", "acd"),
    Phase("checkpoint create, more", ("checkpoint", "create", "store", "y"), "update --keep-labels", "acd", "acd", commits=False,
          then=VERIFY),
    Phase("checkpoint delete", ("checkpoint", "delete", "store", "x"), "checkpoint create, more", "acd", "acd", commits=False,
          refused_again=True, then=VERIFY, deletes="x"),
    Phase("table push", ("table", "push", "store", "t", "rows", "--client", "me", "--batch", "50"), "train", "ac", "ac",
          commits=False, first=("table", "create", "store", "t", "--key-bytes", "8", "--shards", "2"), pushes=True, shards=(1,)),
    Phase("recover", ("recover", "store", "--yes", *MEMORY), "update --keep-labels", "acd", "acd", commits=False,
          unreadable="damaged"),
    Phase("upgrade", ("upgrade", "store"), None, "old", "old", commits=False, unreadable="old", shards=(2,)),
)


@dataclasses.dataclass
class Stage:
    """A phase with a number of shards, once it has run undisturbed."""

    phase: Phase
    shards: int
    start: Path | None               # the folder that it is run in a copy of
    versions: tuple[int | None, int]  # of the store before and after
    seconds: float                   # how long it takes
    calls: dict[str, int]            # its steps, and how often each comes
    folders: int                     # how many it leaves


class Kills:
    """Stages, the server that runs them, and what the stores must hold."""

    def __init__(self, folder, server):
        """Write the texts and run every phase once to its end, for each number of shards."""
        self.folder, self.server = folder, server
        texts = {name: zipf_text(seed, lines, n_words=300, words_per_line=8) for name, (seed, lines) in TEXTS.items()}
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        rng = random.Random(5)
        self.rows = [(rng.randrange(99), rng.randrange(-3, 9)) for _ in range(600)]
        (folder / "rows").write_text("".join(f"{key},{count}\n" for key, count in self.rows))
        asked = {phase.before for phase in PHASES if phase.before is not None} | {phase.after for phase in PHASES}
        self.counts = {names: counted(b"".join(texts[name] for name in names), ORDER) for names in asked - {"old"}}
        self.counts["old"] = counted((V1 / "a.txt").read_bytes() + b"the cat of stdin\n", ORDER)
        self.stages = {}
        for phase in PHASES:
            for shards in phase.shards:
                self.stages[phase.name, shards] = self._stage(phase, shards)

    def _stage(self, phase, shards):
        """Run a phase to its end, once counted and once timed, and keep what it leaves."""
        start = self.folder / f"{phase.start}.{shards}" if phase.start else None
        stage = Stage(phase, shards, start, (None, 0), 0.0, {}, 0)
        if phase.first:
            stage.start = self.place(stage, f"{phase.name}.{shards}.start")
            self.run(stage, stage.start, *phase.first)
        place = self.place(stage, f"{phase.name}.{shards}")
        store = place / phase.result
        before = summary(store)[0] if store.exists() and not phase.unreadable else None
        if phase.unreadable == "damaged":
            damage_shard(store, "a bit", 0)
        done = self.run(stage, place, profile=True)
        stage.versions, stage.calls = (before, summary(store)[0]), done.calls
        stage.folders = n_folders(store)
        assert contents(store) == self.counts[phase.after]
        timed = self.place(stage, "timed")
        if phase.unreadable == "damaged":
            damage_shard(timed / phase.result, "cut", 0)
        stage.seconds = self.run(stage, timed).seconds
        shutil.rmtree(timed)
        return stage

    def place(self, stage, name):
        """Return a new folder in which a stage can be run."""
        place = self.folder / name
        if stage.start:
            shutil.copytree(stage.start, place)
        else:
            place.mkdir()
            if stage.phase.unreadable == "old":
                shutil.copytree(V1 / "idle", place / "store")
        return place

    def run(self, stage, place, *command, **options):
        """Run a command, that of the phase by default, in a folder."""
        words = []
        for word in command or stage.phase.command:
            if word == SHAPE:
                words += ["--order", ORDER, "--shards", stage.shards]
            elif word in ("store", "copy"):
                words.append(place / word)
            else:
                words.append(self.folder / word if word in (*TEXTS, "rows") else word)
        return self.server.run(*words, split_bytes=SPLIT_BYTES.get(stage.shards, 2048), **options)

    def moment(self, stage, rng):
        """Return when to kill: at a random time, or at a random one of the calls of a random step."""
        if rng.random() < 0.5:
            return {"delay_s": rng.uniform(0, stage.seconds)}
        name = rng.choice(sorted(stage.calls))
        return {"step": (name, rng.choice(("before", "after")), rng.randint(1, stage.calls[name]))}

    def kill(self, stage, rng):
        """Kill one phase, see what is left, finish it the way a user would, and compare.

        Returns whether it was killed inside the phase, what state that left, the step that had begun last, and how it
        was finished.
        """
        phase = stage.phase
        place = self.place(stage, "kill")
        store = place / phase.result
        kept = self.damage(stage, store, rng) if phase.unreadable == "damaged" else []
        moment = self.moment(stage, rng)
        killed = self.run(stage, place, **moment)
        assert are_there(store, kept)
        if phase.then:
            self.run(stage, place, *phase.then)
        state = self.left(stage, store)
        if state == "in the job" and rng.random() < 0.3:       # the way back dies too
            self.run(stage, place, rng.choice(("resume", "abort")), phase.result, check=None, **self.moment(stage, rng))
            state = self.left(stage, store)
        how = self.finish(stage, place, state, rng)

        told = f"{phase.name} with {stage.shards} shards, {moment}, left {state}, then {how}"
        if phase.then:
            self.run(stage, place, *phase.then)
        assert contents(store) == self.counts[phase.after], told
        version, _, _, pending = summary(store)
        assert not pending, told
        # To abort and do it again makes the same version; nothing makes another.
        assert version == stage.versions[1], told
        assert n_folders(store) == stage.folders, told
        assert are_there(store, kept), told
        assert phase.deletes not in checkpoints(store), told
        assert not phase.pushes or in_table(store) == self.sums(), told
        # What creations left is gone, but for folders that were made this instant and are still empty.
        assert [entry.name for entry in place.iterdir() if ".tmp-" in entry.name and any(entry.iterdir())] == [], told
        shutil.rmtree(place)
        return killed.code == -signal.SIGKILL and killed.inside, state, killed.last, how

    def sums(self):
        """Return what the rows add up to."""
        sums = Counter()
        for key, count in self.rows:
            sums[key] += count
        return {key: count for key, count in sums.items() if count}

    def damage(self, stage, store, rng):
        """Damage one shard or two of a store, each in one way; return what is in the files that are damaged now."""
        numbers = rng.sample(range(stage.shards), min(stage.shards, rng.randint(1, 2)))
        for number in numbers:
            damage_shard(store, rng.choice(DAMAGES), number)
        return [file.read_bytes() for number in numbers for file in (store / "shards").glob(f"{number:04d}.*/data.mdb")]

    def left(self, stage, store):
        """Return in what state a store is, and assert that readers see the one version or the other, whole."""
        phase = stage.phase
        if not store.exists():
            return "no store"
        if phase.unreadable and not readable(store):
            return "unreadable"
        version, _, _, pending = summary(store)
        if not phase.commits:
            assert (version, pending) == (stage.versions[1], False)
            assert contents(store) == self.counts[phase.after]
            return "deleted" if phase.deletes and phase.deletes not in checkpoints(store) else "whole"
        done = version == stage.versions[1]
        assert done or version == (stage.versions[0] or 0)
        assert contents(store) == (self.counts[phase.after] if done else self.counts[phase.before] if phase.before else {})
        assert not (done and pending)
        return "after the commit" if done else "in the job" if pending else "before the job"

    def finish(self, stage, place, state, rng):
        """Bring a phase to its end; return how."""
        phase = stage.phase
        if phase.commits and state != "no store":
            how = rng.choice(("again", "resume", "abort"))
            if how != "again":
                self.run(stage, place, how, phase.result)
                state = self.left(stage, place / phase.result)
                assert state != "in the job"
                if how == "abort":
                    assert state in ("before the job", "after the commit")
        else:
            how = "again"
        done = state in ("after the commit", "deleted") or (state == "whole" and phase.refused_again and not phase.deletes)
        if done and phase.refused_again:
            refused = self.run(stage, place, check=1)
            assert refused.err.count("\n") == 1
        else:
            text = self.run(stage, place).out
            assert not done or "already counted" in text
        return how


def n_folders(path):
    """Return how many folders there are in a store, but those put aside: what a dead writer began must not stay."""
    return sum(entry.is_dir() for entry in path.rglob("*") if "damaged" not in entry.relative_to(path).parts)


def in_table(store):
    """Return what table "t" of a store holds."""
    with kvps.open(store) as opened, opened.table("t") as table:
        return {key: count for keys, counts in table.scan() for key, count in zip(keys.tolist(), counts.tolist(), strict=True)}


def readable(store):
    """Return whether readers take a store for a sound one."""
    try:
        contents(store)
    except KvpsError:
        return False
    return True


def are_there(store, kept):
    """Return whether there still is a data file with each of these contents in a store, wherever."""
    found = [file.read_bytes() for file in store.rglob("data.mdb")] if kept else []
    return all(each in found for each in kept)


def checkpoints(store):
    """Return the names of the checkpoints that lie in a store."""
    with kvps.open(store) as opened:
        return [found["name"] for found in opened.checkpoints()]


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """Every phase with every number of shards, run once undisturbed."""
    with ForkServer(environment()) as server:
        yield Kills(tmp_path_factory.mktemp("phases"), server)


def kill_each(kills, seed, times):
    """Kill each phase `times` times for each of SHARDS; print and return how many kills fell inside each."""
    inside = Counter()
    print(f"seed {seed}")
    for (name, shards), stage in kills.stages.items():
        states, steps = Counter(), set()
        n_kills = times * len(SHARDS) // len(stage.phase.shards)
        for number in range(n_kills):
            hit, state, last, _ = kills.kill(stage, random.Random(f"{seed} {name} {shards} {number}"))
            if hit:
                states[state] += 1
                steps.add(last)
        inside[name] += states.total()
        print(f"{name}, shards {shards}: {states.total()} of {n_kills} killed inside, in {len(steps)} different steps;",
              ", ".join(f"{state}: {n}" for state, n in sorted(states.items())), flush=True)
    return inside


def test_killed_inside_each_phase(kills, seed):
    """50 kills, spread over phases and numbers of shards, leave stores that go on to the counts of an undisturbed run."""
    inside = kill_each(kills, seed, 1)

    assert all(inside[phase.name] >= 1 for phase in PHASES), inside


@pytest.mark.slow
def test_killed_2000_times(kills, seed):
    """So do 2,000 that fell inside a phase, at least 100 inside each."""
    inside = kill_each(kills, seed, -(-2250 // len(kills.stages)))       # one in twenty comes too late

    assert sum(inside.values()) >= 2000
    assert all(inside[phase.name] >= 100 for phase in PHASES), inside

"""kill -9 at any time: what is left can be resumed, and holds each n-gram once.

Here processes are started and killed as a user's would be; test_phases.py kills many more, in forked children.
"""
import dataclasses
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from processes import contents, counted, kill_after, refused, run, summary, zipf_text

from kvps.store import format as fmt
from kvps.store.directory import open_store

pytestmark = pytest.mark.crash

ORDER = 3
MEMORY = ("--memory", "64K")
SHARDS = 2


@dataclasses.dataclass
class Stage:
    """A command, the store it starts from, and what the store holds before and after it."""

    command: str
    start: Path | None                 # None: there is no store yet
    inputs: list[str]
    before: Counter | None
    after: Counter
    seconds: float                     # how long it takes when nobody disturbs it

    def arguments(self, store):
        """Return the command line."""
        new = ("--order", ORDER, "--shards", SHARDS) if self.command == "train" else ()
        work = MEMORY if self.command in ("train", "update", "forget") else ()
        return (self.command, store, *self.inputs, *new, *work)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Train, update, compact and forget, each run once to its end."""
    folder = tmp_path_factory.mktemp("stages")
    texts = {}
    for name, seed, lines in (("a", 1, 2000), ("b", 2, 1700), ("c", 3, 700)):
        texts[name] = zipf_text(seed, lines)
        (folder / name).write_bytes(texts[name])
    a, b, c = (str(folder / name) for name in "abc")
    after_train = counted(texts["a"] + texts["c"], ORDER)
    after_update = counted(texts["a"] + texts["c"] + texts["b"], ORDER)
    after_forget = counted(texts["a"] + texts["b"], ORDER)
    made, previous = {}, None
    for command, inputs, before, after in (
            ("train", [a, c], None, after_train), ("update", [b], after_train, after_update),
            ("compact", [], after_update, after_update), ("forget", [c], after_update, after_forget)):
        stage = Stage(command, previous, inputs, before, after, 0.0)
        store = folder / f"after-{command}"
        if previous:
            shutil.copytree(previous, store)
        run(*stage.arguments(store), small=True)
        assert contents(store) == after
        stage.seconds = seconds(stage, folder / "timed")
        made[command], previous = stage, store
    return made


def seconds(stage, store):
    """Return how long an undisturbed run takes, from a warm cache."""
    if stage.start:
        shutil.copytree(stage.start, store)
    began = time.monotonic()
    run(*stage.arguments(store), small=True)
    found = time.monotonic() - began
    shutil.rmtree(store)
    return found


def finish(stage, store, rng):
    """Bring a killed command to its end the way a user would; return how: "resume" or the command's name."""
    committed = store.exists() and summary(store)[0] == stage_version(stage)
    if stage.command == "compact":
        run(*stage.arguments(store), small=True)
        return "compact"
    if store.exists() and rng.random() < 0.5:
        pending = summary(store)[3]
        run("resume", store, small=True)
        if pending or committed:
            return "resume"
    if stage.command == "forget" and committed:
        # To forget it once more is refused: it is not there.
        refused(*stage.arguments(store), small=True)
    else:
        run(*stage.arguments(store), small=True)
    return stage.command


def stage_version(stage):
    """Return the version that the command commits."""
    return {"train": 1, "update": 2, "compact": 2, "forget": 3}[stage.command]


def kill_once(stage, store, rng):
    """Kill a command at a random time, perhaps its resumption too, finish it, and compare; return what was hit."""
    if stage.start:
        shutil.copytree(stage.start, store)
    hit = kill_after(rng.uniform(0.3, 0.95) * stage.seconds, *stage.arguments(store), small=True)
    if not store.exists():
        where = "before the store"
    else:
        version, _, _, pending = summary(store)
        done = version == stage_version(stage)
        where = "in the job" if pending else "after its commit" if done else "before the job"
        if version:
            # Readers see a committed version, whichever.
            assert contents(store) == (stage.after if done else stage.before)
        if pending and rng.random() < 0.4:
            kill_after(rng.uniform(0.1, 1.0) * stage.seconds, "resume", store, small=True)
    how = finish(stage, store, rng)
    assert contents(store) == stage.after, f"{stage.command} killed {where}, then {how}"
    assert not summary(store)[3]
    if stage.command in ("train", "update"):
        assert "already counted" in run(*stage.arguments(store)).stdout
    return where if hit else "not"


def test_killed_at_random_times(stages, tmp_path, seed):
    """Eight commands killed at random times leave stores that resume to the counts of an uninterrupted run."""
    hits = Counter()
    for number, command in enumerate(["train", "update", "forget", "train", "update", "forget", "update", "compact"]):
        store = tmp_path / "store"
        hits[command, kill_once(stages[command], store, random.Random(f"{seed} {number}"))] += 1
        shutil.rmtree(store)
    print(f"seed {seed}:", ", ".join(f"{command} killed {where}: {n}" for (command, where), n in sorted(hits.items())))


ROOT, SHARD = "kvps.store.root:Root", "kvps.store.shard:Shard"
STEPS = [
    ("train", "before kvps.store.files:rename 1"),         # the store is whole, under another name
    ("train", "after kvps.store.files:rename 1"),
    ("train", f"before {ROOT}.begin_job 1"),
    ("train", f"after {ROOT}.begin_job 1"),
    ("train", f"after {ROOT}.add_words 3"),
    ("train", f"after {SHARD}.apply 1"),                   # one shard has the split, the other not
    ("train", f"before {SHARD}.apply 42"),
    ("train", f"after {SHARD}.replace 2"),                 # runs of the job are merged
    ("train", f"before {ROOT}.commit_job 1"),
    ("train", f"after {ROOT}.commit_job 1"),
    ("update", f"after {SHARD}.apply 33"),
    ("update", f"before {SHARD}.replace 1"),
    ("update", f"after {ROOT}.commit_job 1"),
    ("forget", f"after {SHARD}.apply 5"),
    ("forget", "before kvps.jobs.train:refuse_negative 1"),
    ("forget", f"before {ROOT}.commit_job 1"),
    ("forget", f"after {ROOT}.commit_job 1"),
    ("compact", f"after {SHARD}.replace 1"),
]


@pytest.mark.parametrize(("command", "step"), STEPS, ids=[" ".join(step).replace("kvps.store.", "") for step in STEPS])
def test_killed_at_a_step(stages, tmp_path, rng, command, step):
    """A command killed just before or after a step of the protocol leaves a store that resumes to the same counts."""
    stage, store = stages[command], tmp_path / "store"
    if stage.start:
        shutil.copytree(stage.start, store)
    run(*stage.arguments(store), "--threads", 1, stop_at=f"SIGKILL {step}", check=-9)

    finish(stage, store, rng)

    assert contents(store) == stage.after
    assert not summary(store)[3]


VACUUM_STEPS = [f"before {ROOT}.move_shard 1", f"after {ROOT}.move_shard 1", f"before {ROOT}.move_shard 2",
                f"after {SHARD}.copy_to 2"]


@pytest.mark.parametrize("step", VACUUM_STEPS, ids=[step.replace("kvps.store.", "") for step in VACUUM_STEPS])
def test_vacuum_killed_at_a_step(stages, tmp_path, step):
    """A vacuum killed at any step leaves a sound store, and the next one leaves no file of the first."""
    stage, store = stages["compact"], tmp_path / "store"
    shutil.copytree(stage.start, store)
    run("compact", store, "--vacuum", stop_at=f"SIGKILL {step}", check=-9)

    assert contents(store) == stage.after
    run("compact", store, "--vacuum")

    assert contents(store) == stage.after
    assert len(list((store / "shards").iterdir())) == SHARDS


def test_compile_killed(stages, tmp_path, rng):
    """A compilation killed at random times leaves no half model: the next one scores as if nothing had been."""
    store, heldout = tmp_path / "store", tmp_path / "heldout"
    heldout.write_bytes(zipf_text(9, 200))
    shutil.copytree(stages["update"].start, store)
    began = time.monotonic()
    expected = run("perplexity", store, heldout, "--json").stdout
    seconds = time.monotonic() - began
    for _ in range(3):
        shutil.rmtree(store / "models")
        kill_after(rng.uniform(0.2, 1.0) * seconds, "compile", store)
        assert run("perplexity", store, heldout, "--json").stdout == expected


def test_half_made_stores_are_removed(stages, tmp_path):
    """What a train that was killed while it made the store left behind goes with the next train of that store."""
    stage, store = stages["train"], tmp_path / "store"
    run(*stage.arguments(store), stop_at="SIGKILL before kvps.store.files:rename 1", check=-9)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("store.tmp-")]

    run(*stage.arguments(store), small=True)

    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_root_that_lost_words(stages, tmp_path):
    """A job whose root lost words that its counts stand on, as after a lost sync, is counted anew when it is resumed."""
    stage, store = stages["train"], tmp_path / "store"
    run(*stage.arguments(store), stop_at=f"SIGKILL before {ROOT}.commit_job 1", check=-9)
    with open_store(store, writable=True) as opened:
        first, _ = list(opened.root.words())[-1]
        with opened.root._write() as (txn, _):
            txn.delete(fmt.numbered_key(fmt.WORDS, first))

    run("resume", store, small=True)

    assert contents(store) == stage.after

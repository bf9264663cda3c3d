"""Shards: runs, ledger, sweeping, replacing, and what is left when things go wrong in between."""
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvps.errors import CorruptionError, StoreError, VersionMismatch
from kvps.store import files, transaction
from kvps.store import format as fmt
from kvps.store.environment import Environment
from kvps.store.records import put_current, required
from kvps.store.shard import Shard

IDENTITY = {"uuid": "u" * 32, "shard": 0, "shards": 1, "order": 3}


@pytest.fixture
def made(tmp_path):
    """A new shard, writable."""
    new = Shard.create(tmp_path / "shard", IDENTITY)
    yield new
    new.close()


def contents(open_shard, version=2**32):
    """Return the payloads of every run that `version` sees, run by run."""
    with open_shard.snapshot() as snap:
        return [[bytes(payload) for payload, _ in snap.chunks(run)] for run in snap.runs(version)]


def records(open_shard):
    """Return every key in the file."""
    with open_shard._env.read() as txn:
        return [key for key, _ in txn.scan(b"")]


def test_apply_writes_run_and_ledger(made):
    """A split's chunks become one run, with its ledger row, and both survive closing."""
    assert made.apply("job", 0, 1, [(b"one", 2), (b"two", 3)], {"words": 5})
    made.close()
    again = Shard.open(made.path, IDENTITY["uuid"])

    run, = again.runs()
    assert (run.version, run.job, run.n_chunks, run.n_keys) == (1, "job", 2, 5)
    assert run.bytes == 2 * (3 + fmt.CHUNK_HEADER_BYTES)
    assert contents(again) == [[b"one", b"two"]]
    assert again.splits("job") == {0: {"words": 5}}
    again.close()


def test_apply_twice_is_once(made):
    """The same split a second time changes nothing, not even the generation."""
    made.apply("job", 7, 1, [(b"one", 1)], {})
    before = made.generation

    assert not made.apply("job", 7, 1, [(b"other", 9)], {"other": 1})
    assert contents(made) == [[b"one"]]
    assert made.splits("job") == {7: {}}
    assert made.generation == before


def test_apply_without_chunks(made):
    """A split that has nothing for this shard leaves a ledger row and no run."""
    assert made.apply("job", 1, 1, [], {"n": 0})
    assert made.runs() == []
    assert made.splits("job") == {1: {"n": 0}}


def test_splits_of_other_jobs(made):
    """The ledger of a job does not show that of a job whose name begins alike."""
    made.apply("job", 1, 1, [], {"a": 1})
    made.apply("job12345678", 2, 1, [], {"b": 1})

    assert made.splits("job") == {1: {"a": 1}}
    assert made.splits("jo") == {}


def test_apply_in_several_transactions(made, monkeypatch):
    """A run longer than one transaction may be is written in several, and appears whole."""
    monkeypatch.setattr(transaction, "DIRTY_BYTES", 10_000)
    before = made.generation
    chunks = [(bytes([number]) * 4000, 1) for number in range(9)]
    made.apply("job", 0, 1, iter(chunks), {})

    assert contents(made) == [[payload for payload, _ in chunks]]
    assert made.generation - before > 2


def test_apply_that_fails_half_way(made, monkeypatch):
    """When the chunks' source fails nothing is visible, and sweep removes what was written."""
    monkeypatch.setattr(transaction, "DIRTY_BYTES", 10_000)

    def source():
        for number in range(6):
            yield bytes([number]) * 4000, 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made.apply("job", 0, 1, source(), {})
    assert made.runs() == []
    assert made.splits("job") == {}
    assert any(key.startswith(fmt.CHUNK) for key in records(made))

    assert made.sweep(0, "job") > 0
    assert records(made) == [fmt.IDENTITY, fmt.MANIFEST]
    made.apply("job", 0, 1, [(b"again", 1)], {})
    assert made.runs()[0].id > 1          # the number of the unfinished run is not used again


def test_runs_of_a_version(made):
    """Readers of a version do not see runs of later ones."""
    made.apply("a", 0, 1, [(b"first", 1)], {})
    made.apply("b", 0, 2, [(b"second", 1)], {})

    assert contents(made, 0) == []
    assert contents(made, 1) == [[b"first"]]
    assert contents(made, 2) == [[b"first"], [b"second"]]


def test_sweep_keeps_the_pending_job(made):
    """Sweeping keeps committed runs and the pending job's work, and removes other jobs' runs and ledger rows."""
    made.apply("done", 0, 1, [(b"done", 1)], {})
    made.apply("dead", 0, 2, [(b"dead", 1)], {})
    made.apply("pending", 0, 2, [(b"pending", 1)], {"x": 1})
    made.sweep(1, "pending")

    assert contents(made) == [[b"done"], [b"pending"]]
    assert made.splits("pending") == {0: {"x": 1}}
    assert made.splits("done") == made.splits("dead") == {}

    made.sweep(1, None)
    assert contents(made) == [[b"done"]]
    before = made.generation
    assert made.sweep(1, None) == 0       # nothing to do writes nothing
    assert made.generation == before


def test_drop_keeps_what_is_committed(made):
    """Rolling back a job keeps committed runs, even those that a job of the same name wrote."""
    made.apply("job", 0, 1, [(b"committed", 1)], {})
    made.sweep(1, None)
    made.apply("job", 0, 2, [(b"pending", 1)], {})
    made.drop("job", 1)

    assert contents(made) == [[b"committed"]]
    assert made.splits("job") == {}


def test_replace(made):
    """A merge takes the place of its runs; readers who came before still see the old ones."""
    for split in range(3):
        made.apply("job", split, 1, [(b"%d" % split, 1)], {})
    first, second, third = made.runs()
    with made.snapshot() as old:
        made.replace([first.id, second.id], 1, [(b"0+1", 2)])

        assert [bytes(old.chunk(run, 0)[0]) for run in old.runs(1)] == [b"0", b"1", b"2"]
    assert contents(made) == [[b"2"], [b"0+1"]]
    assert made.runs()[1].job == "job"
    assert third in made.runs()
    assert sum(key.startswith(fmt.CHUNK) for key in records(made)) == 2


def test_replace_by_nothing(made):
    """Runs whose counts cancel out vanish."""
    made.apply("a", 0, 1, [(b"+1", 1)], {})
    made.apply("b", 0, 2, [(b"-1", 1)], {})
    made.replace([run.id for run in made.runs()], 2, [])

    assert made.runs() == []


def test_replace_of_several_jobs(made):
    """A run merged from several jobs belongs to none, so that no job's rollback removes it."""
    made.apply("a", 0, 1, [(b"a", 1)], {})
    made.apply("b", 0, 2, [(b"b", 1)], {})
    made.replace([run.id for run in made.runs()], 2, [(b"ab", 2)])
    made.drop("b", 2)

    assert made.runs()[0].job is None
    assert contents(made) == [[b"ab"]]


def test_replace_reads_from_a_snapshot(made, monkeypatch):
    """The chunks of a merge may come from a snapshot of the same shard while it is written."""
    monkeypatch.setattr(transaction, "DIRTY_BYTES", 3000)
    for split in range(4):
        made.apply("job", split, 1, [(bytes([split]) * 2000, 1)], {})
    with made.snapshot() as snap:
        runs = snap.runs(1)
        made.replace([run.id for run in runs], 1, ((bytes(snap.chunk(run, 0)[0]), 1) for run in runs))

    assert contents(made) == [[bytes([split]) * 2000 for split in range(4)]]


def test_replace_of_unknown_run(made):
    """Replacing a run that is not there is refused and changes nothing."""
    with pytest.raises(StoreError, match="no run 5"):
        made.replace([5], 1, [(b"x", 1)])
    assert made.runs() == []


def test_payload_is_not_copied_and_ends_with_the_snapshot(made):
    """A payload lies in LMDB's map, is read-only, and cannot be read after its snapshot."""
    made.apply("job", 0, 1, [(b"x" * 5000, 1)], {})
    with made.snapshot() as snap:
        payload, n_keys = snap.chunk(snap.runs(1)[0], 0)
        assert (len(payload), n_keys, payload.readonly) == (5000, 1, True)
    with pytest.raises(ValueError, match="released"):
        payload[0]


def test_damaged_chunk(made):
    """A bit flipped in a chunk's page is noticed when the chunk is read, and the message says which."""
    made.apply("job", 0, 1, [(b"A" * 9000, 1)], {})
    made.close()
    data = bytearray(made._env.data.read_bytes())
    data[data.index(b"A" * 9000) + 4321] ^= 4
    made._env.data.write_bytes(data)
    again = Shard.open(made.path)

    with again.snapshot() as snap, pytest.raises(CorruptionError, match="run 1 chunk 0: checksum") as caught:
        snap.chunk(snap.runs(1)[0], 0)
    assert caught.value.path == str(made._env.data)
    again.close()


def test_missing_chunk(made):
    """A chunk that the manifest lists and the file does not have is damage."""
    made.apply("job", 0, 1, [(b"A", 1)], {})
    with made._env.write() as txn:
        txn.delete(fmt.chunk_key(1, 0))
        put_current(txn, fmt.MANIFEST, required(txn, fmt.MANIFEST))

    with made.snapshot() as snap, pytest.raises(CorruptionError, match="chunk 0: value none, expected chunk 0 of 1"):
        snap.chunk(snap.runs(1)[0], 0)


def test_manifest_of_another_state(made):
    """A manifest that another transaction than the last one wrote is refused."""
    with made._env.write() as txn:
        txn.put(fmt.LEDGER + b"foreign!!", b"")

    with pytest.raises(CorruptionError, match="manifest: transaction id 1, expected 2"):
        made.snapshot()
    with pytest.raises(CorruptionError, match="manifest: transaction id"):
        Shard.open(made.path)


def rewrite_identity(made, **changes):
    """Give a shard another identity, with a sound checksum, as another kvps would write it."""
    row = {**made.identity, **changes}
    with made._env.write() as txn:
        txn.put(fmt.IDENTITY, fmt.pack_row(fmt.IDENTITY, row))
        put_current(txn, fmt.MANIFEST, required(txn, fmt.MANIFEST))


@pytest.mark.parametrize("changes", [{"format": 3}, {"format": None}, {"lib_version": "1.0"}])
def test_unknown_format(made, changes):
    """A shard of a format that this kvps does not read is refused as such, not as damaged."""
    rewrite_identity(made, **changes)

    with pytest.raises(VersionMismatch, match="use the kvps that wrote it, or a newer one"):
        Shard.open(made.path)


def test_foreign_identity(made):
    """A shard of another store, or another shard of this one, is refused."""
    with pytest.raises(CorruptionError, match="uuid"):
        Shard.open(made.path, "v" * 32)
    with pytest.raises(CorruptionError, match="shard 0, expected 3"):
        Shard.open(made.path, IDENTITY["uuid"], shard=3)


def test_no_identity(tmp_path):
    """An LMDB file that is sound but holds no store is refused."""
    env = Environment.create(tmp_path / "env")
    with env.write() as txn:
        txn.put(b"k", b"v")
    env.close()

    with pytest.raises(CorruptionError, match="identity: value none"):
        Shard.open(tmp_path / "env")


def test_opening_for_reading(made):
    """A shard opened for reading refuses every change."""
    reader = Shard.open(made.path)

    with pytest.raises(StoreError, match="for reading"):
        reader.apply("job", 0, 1, [], {})
    reader.close()


def test_copy(made, tmp_path):
    """A copy holds the same runs and ledger without free pages, and its generation is no lower."""
    made.apply("job", 0, 1, [(b"x" * 50_000, 1)], {"a": 1})
    made.apply("job", 1, 1, [(b"y" * 50_000, 1)], {})
    made.replace([1], 1, [(b"z" * 100, 1)])
    made.copy_to(tmp_path / "copy")
    copy = Shard.open(tmp_path / "copy", IDENTITY["uuid"], writable=True)

    assert contents(copy) == contents(made) == [[b"y" * 50_000], [b"z" * 100]]
    assert copy.splits("job") == made.splits("job")
    assert copy.generation >= made.generation
    assert copy.bytes()["file"] < made.bytes()["file"]
    copy.apply("job", 2, 1, [(b"w", 1)], {})
    copy.close()


def test_growth_under_rewrites(made, rng):
    """Rewriting runs again and again keeps the file within 3 times what is live."""
    for split in range(16):
        made.apply("job", split, 1, [(rng.randbytes(20_000), 1)], {})
    for _ in range(150):
        old = made.runs()[:2]
        made.replace([run.id for run in old], 1, [(rng.randbytes(rng.randrange(10_000, 30_000)), 1)])
        made.apply("job", made.generation + 100, 1, [(rng.randbytes(20_000), 1)], {})

    assert made.bytes()["file"] < 3 * made.bytes()["live"]


class ShardMachine(RuleBasedStateMachine):
    """A shard beside two dicts: visible runs and ledger rows; reopening at any time changes nothing."""

    chunk = st.tuples(st.binary(min_size=1, max_size=3000), st.integers(0, 5))
    jobs = st.sampled_from(["a", "ab", "job"])

    @initialize()
    def start(self):
        """Make an empty shard at version 0."""
        self.folder = tempfile.mkdtemp()
        self.shard = Shard.create(f"{self.folder}/shard", IDENTITY)
        self.committed = 0
        self.runs = {}           # id -> (version, job, payloads)
        self.ledger = {}         # (job, split) -> row
        self.generation = 0

    def note(self, version, job, chunks):
        """Add to the model the run that the shard has just listed, if there was anything to list."""
        if chunks:
            number = max(run.id for run in self.shard.runs())
            assert number not in self.runs
            self.runs[number] = (version, job, [payload for payload, _ in chunks])

    @rule(job=jobs, split=st.integers(0, 3), chunks=st.lists(chunk, max_size=3))
    def apply(self, job, split, chunks):
        """Apply a split, perhaps for the second time."""
        new = (job, split) not in self.ledger
        row = {"chunks": len(chunks)}
        assert self.shard.apply(job, split, self.committed + 1, chunks, row) is new
        if new:
            self.ledger[job, split] = row
            self.note(self.committed + 1, job, chunks)

    @rule(job=jobs)
    def drop(self, job):
        """Roll a job back."""
        self.shard.drop(job, self.committed)
        self.runs = {n: run for n, run in self.runs.items() if run[1] != job or run[0] <= self.committed}
        self.ledger = {key: row for key, row in self.ledger.items() if key[0] != job}

    @rule(job=st.none() | jobs)
    def sweep(self, job):
        """Sweep for a pending job, or for none."""
        self.shard.sweep(self.committed, job)
        self.runs = {n: run for n, run in self.runs.items()
                     if run[0] <= self.committed or (job is not None and run[1] == job)}
        self.ledger = {key: row for key, row in self.ledger.items() if key[0] == job}

    @rule()
    def commit(self):
        """Commit the pending version."""
        self.committed += 1

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), chunks=st.lists(chunk, max_size=2))
    def replace(self, data, chunks):
        """Merge some runs of one side of the commit line."""
        side = data.draw(st.booleans())
        choice = [n for n, run in self.runs.items() if (run[0] <= self.committed) is side]
        if not choice:
            return
        old = data.draw(st.lists(st.sampled_from(choice), min_size=1, unique=True))
        version = max(self.runs[n][0] for n in old)
        jobs = {self.runs[n][1] for n in old}
        self.shard.replace(old, version, chunks)
        for number in old:
            del self.runs[number]
        self.note(version, jobs.pop() if len(jobs) == 1 else None, chunks)

    @rule(at=st.integers(0, 3))
    def fail(self, at):
        """Let a long apply die after some of its transactions."""
        def source():
            yield from [(b"lost" * 1000, 1)] * at
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            self.shard.apply("doomed", 0, self.committed + 1, source(), {})

    @rule()
    def reopen(self):
        """Close and open again."""
        self.shard.close()
        self.shard = Shard.open(f"{self.folder}/shard", IDENTITY["uuid"], writable=True)

    @rule()
    def copy(self):
        """Go on with a compact copy."""
        self.shard.copy_to(f"{self.folder}/copy")
        self.shard.close()
        files.remove_tree(f"{self.folder}/shard")
        files.rename(f"{self.folder}/copy", f"{self.folder}/shard")
        self.shard = Shard.open(f"{self.folder}/shard", IDENTITY["uuid"], writable=True)

    @invariant()
    def equal(self):
        """The shard shows what the model says, at every version, and its generation never falls."""
        if not hasattr(self, "shard"):
            return
        for version in (0, self.committed, self.committed + 1):
            with self.shard.snapshot() as snap:
                found = {run.id: (run.version, run.job, [bytes(p) for p, _ in snap.chunks(run)])
                         for run in snap.runs(version)}
            assert found == {n: run for n, run in self.runs.items() if run[0] <= version}
        for job in ("a", "ab", "job"):
            assert self.shard.splits(job) == {key[1]: row for key, row in self.ledger.items() if key[0] == job}
        assert self.shard.generation >= self.generation
        self.generation = self.shard.generation

    def teardown(self):
        """After a last sweep the file holds nothing that the model does not know."""
        self.sweep(None)
        n_chunks = sum(len(run[2]) for run in self.runs.values())
        assert len(records(self.shard)) == 2 + n_chunks
        self.shard.close()
        files.remove_tree(self.folder)


@pytest.fixture(autouse=True, scope="module")
def small_transactions():
    """Let a few kilobytes fill a transaction, so that runs of the state machine span several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "DIRTY_BYTES", 9000)
        yield


TestShardMachine = ShardMachine.TestCase
TestShardMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

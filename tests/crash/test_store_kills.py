"""kill -9 at any instant of applying, merging, committing and vacuuming leaves a store that goes on exactly."""
import subprocess
import sys
import time

import pytest

from kvps.store.creation import create_store
from kvps.store.directory import open_store

pytestmark = pytest.mark.crash

N_SPLITS = 4
# Goes on from whatever is there, for ever: finish the pending job or begin the next, merge, vacuum now and then.
WRITER = """
import sys
from kvps.store import transaction
from kvps.store.directory import open_store
transaction.DIRTY_BYTES = 20_000
def payload(version, split, number, part):
    return (b"%d %d %d %d " % (version, split, number, part)) * 1500
with open_store(sys.argv[1], writable=True, wait=10) as store:
    print("in", flush=True)
    while True:
        version = store.root.state()["version"] + 1
        job = f"job {version}"
        if store.root.job() is None:
            for each in store.shards:
                each.sweep(version - 1, None)
            store.root.begin_job({"id": job})
        for each in store.shards:
            each.sweep(version - 1, job)
            for split in range(4):
                chunks = [(payload(version, split, each.shard, part), 1) for part in range(3)]
                each.apply(job, split, version, iter(chunks), {"split": split})
        store.root.commit_job(version, 4, 1, {}, {}, generations=store.generations())
        for each in store.shards:
            with each.snapshot() as snap:
                runs = [run for run in snap.runs(version) if run.n_chunks < 40][:8]
                each.replace([run.id for run in runs], version,
                             ((bytes(p), n) for run in runs for p, n in snap.chunks(run)))
        if version % 3 == 0:
            store.vacuum()
"""


def check(path):
    """Assert that the store at its committed version holds every chunk of every version exactly once."""
    with open_store(path) as store, store.snapshot() as snap:
        for shard in snap.shards:
            number = snap.shards.index(shard)
            found = sorted(bytes(payload).split(b" ", 4)[:4] for run in shard.runs(snap.version)
                           for payload, _ in shard.chunks(run))
            assert found == sorted([b"%d" % version, b"%d" % split, b"%d" % number, b"%d" % part]
                                   for version in range(1, snap.version + 1) for split in range(N_SPLITS)
                                   for part in range(3))
        assert snap.state["tokens"] == N_SPLITS * snap.version
        assert len(store.root.history()) == snap.version
        return snap.version


@pytest.mark.parametrize("n_kills", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_killed_writer(tmp_path, rng, n_kills):
    """After each kill -9 the committed version is whole, and the next writer goes on from there."""
    path = tmp_path / "store"
    create_store(path, 3, 2, {})
    version = 0
    for _ in range(n_kills):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "in\n"
            time.sleep(rng.random() * 0.3)
            assert process.poll() is None
            process.kill()
        found = check(path)
        assert found >= version
        version = found
    assert version
    names = sorted(folder.name for folder in (path / "shards").iterdir())
    assert len(names) <= 3            # a vacuum that was killed leaves one directory too many, until a writer comes

    open_store(path, writable=True).close()
    assert len(list((path / "shards").iterdir())) == 2

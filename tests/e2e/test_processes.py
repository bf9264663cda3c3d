"""Many processes on one store: readers beside a writer, and one compiled model for all."""
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import contents, counted, environment, go_on, refused, run, run_json, start, stopped, tree, zipf_text

import kvps

ORDER = 3
COMPILING = "SIGSTOP before kvps.lm.compile:compile_model 1"

# Sums a store's counts, over and over, until STORE.stop is there: every top-order key ends in one word or </s>, so
# their sum is tokens + sentences, unless shards of different versions are mixed. Prints the versions it saw.
READER = """
import sys, os
from kvps.ps.runs import bits_for, merged
from kvps.store.directory import open_store
path, seen, rounds = sys.argv[1], [], 0
with open_store(path) as store:
    while not os.path.exists(path + ".stop") or not rounds:
        with store.snapshot() as snapshot:
            total = 0
            for shard in snapshot.shards:
                bits = bits_for(store.root.next_word())
                for block in merged(shard, shard.runs(snapshot.version), store.identity["order"], bits):
                    assert (block.counts > 0).all(), "a count below 1"
                    total += int(block.counts.sum())
                del block
            expected = snapshot.state["tokens"] + snapshot.state["sentences"]
            assert total == expected, f"version {snapshot.version}: counts add up to {total}, expected {expected}"
            if not seen or seen[-1] != snapshot.version:
                seen.append(snapshot.version)
        rounds += 1
assert seen == sorted(seen)
print(*seen)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with texts a, b and heldout, and a store trained on a."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed, lines in (("a", 1, 1500), ("b", 2, 1000), ("heldout", 3, 100)):
        (folder / name).write_bytes(zipf_text(seed, lines))
    run("train", folder / "store", folder / "a", "--order", ORDER)
    return folder


@pytest.fixture
def store(made, tmp_path):
    """A copy of that store."""
    return shutil.copytree(made / "store", tmp_path / "store")


def test_readers_beside_a_writer(made, store):
    """Six processes that read while one adds, forgets, compacts and vacuums see whole versions, in order."""
    readers = [subprocess.Popen([sys.executable, "-c", READER, str(store)], env=environment(), stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for _ in range(6)]
    try:
        for _ in range(2):
            run("update", store, made / "b", "--memory", "64K", small=True)
            run("compact", store)
            run("forget", store, made / "b", "--memory", "64K", small=True)
            run("compact", store, "--vacuum")
    finally:
        store.with_name("store.stop").touch()
        answers = [reader.communicate(timeout=60) for reader in readers]
    for reader, (out, err) in zip(readers, answers, strict=True):
        assert reader.returncode == 0, err
        assert int(out.split()[-1]) <= 5
    # Two slow cores let nobody see every version; all of them together saw several.
    assert len({version for out, _ in answers for version in out.split()}) >= 3
    assert contents(store) == counted((made / "a").read_bytes(), ORDER)


def test_scoring_beside_a_writer(made, store):
    """Commands that score while versions and models come and go answer for one of the versions, never in between."""
    scores = {}
    text = made / "heldout"
    processes = []
    for number in range(4):
        command = "update" if number % 2 == 0 else "forget"
        processes += [start("perplexity", store, text, "--json") for _ in range(3)]
        run(command, store, made / "b")
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        answer = json.loads(out)
        scores.setdefault(answer["version"] % 2, set()).add(answer["log10_probability"])

    assert set(scores) <= {0, 1}
    for values in scores.values():
        assert len(values) == 1


def test_model_is_compiled_once(made, store):
    """Of four commands that need a model at once, one makes it; the others wait and use the same file."""
    first = stopped("perplexity", store, made / "heldout", "--json", stop_at=COMPILING)
    others = [start("perplexity", store, made / "heldout", "--json") for _ in range(3)]
    time.sleep(1.5)
    assert all(process.poll() is None for process in others), "somebody did not wait"

    code, expected, err = go_on(first)
    assert code == 0, err
    model, = (store / "models").glob("*.kvm")
    made_at = model.stat().st_mtime_ns, model.stat().st_ino
    for process in others:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, expected), err

    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in (store / "models").glob("*.kvm")] == [made_at]


def test_compiling_process_killed_while_others_wait(made, store):
    """When the process that compiles is killed, one of those who wait takes over."""
    first = stopped("compile", store, stop_at=COMPILING)
    waiting = [start("perplexity", store, made / "heldout", "--json") for _ in range(2)]
    time.sleep(0.5)

    first.kill()
    first.communicate()
    answers = [(process.communicate(timeout=60), process.returncode) for process in waiting]

    assert [code for _, code in answers] == [0, 0], answers
    assert answers[0][0][0] == answers[1][0][0]


def test_older_model_while_the_new_one_is_made(made, store):
    """While a newer model is made, --stale ok answers of the older version at once."""
    old = run_json("perplexity", store, made / "heldout")
    run("update", store, made / "b")
    process = stopped("compile", store, stop_at=COMPILING)
    try:
        assert run_json("perplexity", store, made / "heldout", "--stale", "ok") == old
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)

    new = run_json("perplexity", store, made / "heldout", "--stale", "ok")

    assert (old["version"], new["version"]) == (1, 2)
    assert new["perplexity"] != old["perplexity"]


def test_older_models_go(made, store):
    """A newer model takes the place of the older one; models of another kind stay until theirs is newer."""
    run("compile", store)
    run("perplexity", store, made / "heldout", "--smoothing", "mle")
    run("update", store, made / "b")
    run("compile", store)

    assert sorted(path.name for path in (store / "models").glob("*.kvm")) == ["kn-o3-v2.kvm", "raw-o3-v1.kvm"]


def locked_away(store):
    """Take away the right to write in a store."""
    for path in (*store.rglob("*"), store):
        path.chmod(0o500 if path.is_dir() else 0o400)


@pytest.fixture
def read_only_store(store):
    """The store, without the right to write in it until the test is over."""
    locked_away(store)
    yield store
    for path in (store, *store.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_model_in_the_cache_folder(made, read_only_store, tmp_path):
    """Who cannot write in STORE compiles once, into the cache folder, and changes no byte of the store."""
    expected = run_json("perplexity", made / "store", made / "heldout")
    before, cache = tree(read_only_store), tmp_path / "cache"
    options = {"plain": True, "env": {"XDG_CACHE_HOME": str(cache)}}

    answers = [run_json("perplexity", read_only_store, made / "heldout", **options)]
    model, = cache.rglob("*.kvm")
    made_at = model.stat().st_mtime_ns
    answers.append(run_json("perplexity", read_only_store, made / "heldout", **options))

    assert answers == [expected, expected]
    assert model.stat().st_mtime_ns == made_at
    assert model.is_relative_to(cache / "kvps")
    assert model.stat().st_mode & 0o077 == 0
    assert tree(read_only_store) == before


def test_no_cache_folder_either(made, read_only_store, tmp_path):
    """Who can write neither in STORE nor in the cache folder is told so, in one line with the place."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)

    message = refused("perplexity", read_only_store, made / "heldout", plain=True, env={"XDG_CACHE_HOME": str(closed)})

    assert str(closed) in message
    assert "ermission denied" in message


def test_model_in_the_store_is_used_by_who_cannot_write(made, store, tmp_path):
    """A model that is in STORE is used by those who cannot write there: nothing is made in the cache folder."""
    run("compile", store)
    locked_away(store)
    cache = tmp_path / "cache"

    answer = run_json("perplexity", store, made / "heldout", plain=True, env={"XDG_CACHE_HOME": str(cache)})

    assert answer["version"] == 1
    assert not list(cache.rglob("*.kvm"))
    for path in (store, *store.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_model_replaced_between_two_looks(made, store):
    """A command whose model's file is replaced by a newer one before it is mapped answers of the newer version."""
    run("compile", store)
    # The first reading checks that the file is ours, the second one is the model's.
    mapping = "SIGSTOP before kvps.lm.container:read 2"
    process = stopped("perplexity", store, made / "heldout", "--json", stop_at=mapping)
    run("update", store, made / "b")
    run("compile", store)

    code, out, err = go_on(process)

    assert code == 0, err
    assert json.loads(out)["version"] == 2


def test_model_refreshed(made, store):
    """A model answers of its version while others write and compile, and of theirs once it is refreshed."""
    sentences = (made / "heldout").read_text().splitlines()[:20]
    with kvps.load(store) as model, kvps.open(store) as opened:
        first = model.score(sentences).tolist()
        assert model.refresh() is False
        run("update", store, made / "b")
        run("compile", store)
        assert (model.version, opened.version) == (1, 2)
        assert model.score(sentences).tolist() == first

        assert model.refresh() is True

        assert model.version == 2
        second = model.score(sentences).tolist()
        assert second != first
        run("forget", store, made / "b")
        assert model.refresh() is True                     # compiles by itself
        assert model.version == 3
        assert model.score(sentences) == pytest.approx(first, rel=1e-12)


def test_writers_of_a_store_that_is_open_for_reading(made, store):
    """A store that stays open for reading follows what other processes commit, also where a vacuum moves its files."""
    with kvps.open(store) as opened:
        before = opened.count("w1 w2")
        run("update", store, made / "b")
        more = opened.count("w1 w2")
        run("compact", store, "--vacuum")
        assert opened.count("w1 w2") == more > before
        run("forget", store, made / "b")

        assert opened.count("w1 w2") == before
        assert opened.version == 3


@pytest.mark.parametrize("command", ["stats", "status", "perplexity", "counts", "dump", "export"])
def test_reading_commands_change_no_byte(made, store, tmp_path, command):
    """What only reads leaves every byte of a store as it is, but for the model that it may compile."""
    rest = {"perplexity": [made / "heldout"], "counts": ["w1"], "dump": ["--order", 2], "export": [tmp_path / "arpa"]}
    shutil.rmtree(store / "models", ignore_errors=True)
    before = tree(store)

    run(command, store, *rest.get(command, []))

    shutil.rmtree(store / "models", ignore_errors=True)
    assert tree(store) == before

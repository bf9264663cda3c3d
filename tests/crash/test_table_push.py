"""kill -9 during a push from a file: the same command again adds what is missing, and nothing twice."""
import csv
import random
import time
from collections import Counter

import pytest
from processes import kill_after, refused, run, run_json, start

import kvps

pytestmark = pytest.mark.crash

N_ROWS, BATCH = 6000, 250
STEPS = ["kvps.store.shard:Shard.push", "kvps.store.shard:Shard.replace", "kvps.store.records:put_current",
         "kvps.store.transaction:Txn.commit", "kvps.store.transaction:Txn.put",
         "kvps.store.seal:write", "kvps.store.root:Root.claim", "kvps.store.root:Root.note_generations"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Return a file of keys and counts, and what they add up to after each batch."""
    rng = random.Random(1)
    path, sums, after = tmp_path_factory.mktemp("rows") / "rows.csv", Counter(), [Counter()]
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        for number in range(1, N_ROWS + 1):
            key, count = rng.choice([rng.randrange(50), rng.randrange(10**6)]), rng.randrange(-3, 9)
            out.writerow([key, count])
            sums[key] += count
            if number % BATCH == 0:
                after.append(Counter({key: count for key, count in sums.items() if count}))
    return path, after


def contents(path):
    """Return what the table holds."""
    found = Counter()
    with kvps.open(path) as store, store.table("t") as table:
        for keys, counts in table.scan():
            found.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
    return found


def sound(path):
    """Assert that a store and its tables have no damage."""
    assert [found for found in kvps.check(path, "full") if found.severity == "damage"] == []


def made(tmp_path, shards):
    """Return a new store with an empty table, and the command that pushes to it."""
    kvps.create(tmp_path / "s").close()
    run("table", "create", tmp_path / "s", "t", "--key-bytes", "8", "--shards", shards)
    return tmp_path / "s"


def command(path, rows, *more):
    """Return the command that pushes the rows."""
    return ("table", "push", path, "t", rows, "--client", "me", "--batch", BATCH, *more)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("n_kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_times(tmp_path, rng, rows, shards, n_kills):
    """However often the command is killed, each batch is there as a whole in each shard, and in the end once."""
    (tmp_path / "trial").mkdir()
    path, trial, after = made(tmp_path, shards), made(tmp_path / "trial", shards), rows[1]
    began = time.monotonic()
    run(*command(trial, rows[0]))
    seconds = time.monotonic() - began
    for _ in range(n_kills):
        if not kill_after(seconds * rng.uniform(0.3, 1.0), *command(path, rows[0])):
            break
        found = contents(path)
        if shards == 1:
            assert found in after
    sound(path)
    assert run_json(*command(path, rows[0]))["rows"] == N_ROWS
    assert contents(path) == after[-1]
    assert run_json(*command(path, rows[0]))["already"] == len(after) - 1
    assert contents(path) == after[-1]
    sound(path)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(tmp_path, rng, rows, step):
    """Killed before or after any step of a push, a merge or the end, the same command goes on."""
    path, after = made(tmp_path, 2), rows[1]
    fell = 0
    for number in (1, rng.randrange(2, 12), rng.randrange(12, 40)):
        at = f"SIGKILL {rng.choice(['before', 'after'])} {step} {number}"
        with start(*command(path, rows[0]), stop_at=at) as process:
            process.communicate(timeout=120)
        fell += process.returncode == -9
    assert fell
    assert run_json(*command(path, rows[0]))["rows"] == N_ROWS
    assert contents(path) == after[-1]
    sound(path)


def test_another_file_under_the_same_client(tmp_path, rows):
    """After a kill, another input, other batches or a shorter input are refused before anything is added."""
    path, after = made(tmp_path, 2), rows[1]
    with start(*command(path, rows[0]), stop_at="SIGKILL after kvps.store.shard:Shard.push 11") as process:
        process.communicate(timeout=120)
    assert process.returncode == -9
    before = contents(path)
    lines = rows[0].read_text().splitlines(keepends=True)
    for name, text, more in (("changed", ["5,5\n", *lines[1:]], ()), ("short", lines[:300], ()),
                             ("batches", lines, ("--batch", "300"))):
        (tmp_path / name).write_text("".join(text))
        assert "give the same input" in refused(*command(path, tmp_path / name, *more))
        assert contents(path) == before
    run(*command(path, rows[0]))
    assert contents(path) == after[-1]


def test_a_line_that_cannot_be_read(tmp_path, rows):
    """A bad line ends the command with its number; mended, the same command adds the rest once."""
    path, after = made(tmp_path, 2), rows[1]
    lines = rows[0].read_text().splitlines(keepends=True)
    (tmp_path / "rows").write_text("".join([*lines[:3000], "oops\n", *lines[3001:]]))

    message = refused(*command(path, tmp_path / "rows"))
    assert "line 3001: 1 fields" in message and "lines 1 to 3000 are added; run the same command again" in message
    assert contents(path) == after[12]
    (tmp_path / "rows").write_text("".join(lines))
    assert run_json(*command(path, tmp_path / "rows"))["already"] == 12
    assert contents(path) == after[-1]


@pytest.mark.parametrize("step", ["kvps.store.seal:renew", "kvps.store.shard:Shard.create", "kvps.store.files:rename",
                                  "kvps.store.files:make_dir"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_a_table_is_made(tmp_path, step, when):
    """A table whose making was killed is there as a whole or not at all, and the command again ends well or says that it is."""
    kvps.create(tmp_path / "s").close()
    create = ("table", "create", tmp_path / "s", "t", "--key-bytes", "8")
    with start(*create, stop_at=f"SIGKILL {when} {step} 1") as process:
        process.communicate(timeout=120)
    assert process.returncode == -9
    sound(tmp_path / "s")
    again = run(*create, check=None)
    assert again.returncode == 0 or "has a table t already" in again.stderr
    assert run("table", "push", tmp_path / "s", "t", input="1,1\n").returncode == 0
    assert contents(tmp_path / "s") == {1: 1}

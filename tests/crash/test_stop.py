"""A job that is stopped politely, rolled back, or met by others while it runs."""
import contextlib
import os
import shutil
import signal
import time

import pytest
from processes import (
    contents,
    counted,
    go_on,
    refused,
    run,
    run_json,
    start,
    stopped,
    summary,
    tree,
    until_stopped,
    zipf_text,
)

from kvps.store import format as fmt
from kvps.store import records
from kvps.store.directory import open_store

pytestmark = pytest.mark.crash

ORDER = 3
SMALL = ("--memory", "64K", "--threads", 1)
MIDDLE = "after kvps.store.shard:Shard.apply 21"


@pytest.fixture
def texts(tmp_path):
    """Two files of text: (path, bytes) each."""
    found = []
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).write_bytes(zipf_text(seed, 2500))
        found.append((tmp_path / name, zipf_text(seed, 2500)))
    return found


@pytest.fixture
def store(tmp_path, texts):
    """A store trained on the first text."""
    run("train", tmp_path / "store", texts[0][0], "--order", ORDER)
    return tmp_path / "store"


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 4)])
@pytest.mark.parametrize("again", ["resume", "repeat"])
def test_stopped_by_a_signal(store, texts, name, code, again):
    """Ctrl-C ends a job with exit 130 and SIGTERM with exit 4; both say how to go on, and both ways to go on work."""
    command = ("update", store, texts[1][0], *SMALL)
    message = refused(*command, stop_at=f"{name} {MIDDLE}", code=code)
    assert "resume" in message
    assert summary(store)[0] == 1
    assert summary(store)[3]

    run(*(("resume", store) if again == "resume" else command), small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)


def test_first_train_stopped_by_a_signal(tmp_path, texts):
    """A train that is stopped before its first commit resumes too."""
    store = tmp_path / "store"
    refused("train", store, texts[0][0], "--order", ORDER, *SMALL, stop_at=f"SIGINT {MIDDLE}", code=130)
    assert summary(store)[0] == 0

    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1], ORDER)


def test_abort_rolls_back(store, texts):
    """Abort leaves the counts of before, no job and no ledger; the same text can be counted afterwards."""
    before = contents(store)
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)

    run("abort", store)

    assert contents(store) == before
    assert summary(store)[3] is False
    assert "nothing" in run("resume", store).stdout.lower()
    run("update", store, texts[1][0])
    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)


def test_abort_killed_in_the_middle(store, texts):
    """An abort that is killed is done by the next abort."""
    before = contents(store)
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)
    run("abort", store, stop_at="SIGKILL after kvps.store.shard:Shard.drop 2", check=-9)

    run("abort", store)

    assert contents(store) == before
    assert summary(store)[3] is False


def test_resume_after_a_half_abort(store, texts):
    """An abort that was killed can be changed one's mind about: resume counts again what was dropped."""
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)
    run("abort", store, stop_at="SIGKILL after kvps.store.shard:Shard.drop 2", check=-9)

    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)


def test_root_that_forgot_the_job(store, texts):
    """A root put back to the time before an interrupted job is refused, not taken for a store without a job."""
    root = store / "root.0" / "data.mdb"
    before = root.read_bytes()
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)
    root.write_bytes(before + bytes(max(0, root.stat().st_size - len(before))))

    for command in ("resume", "stats"):
        assert "went back in time" in run(command, store, check=3).stderr


def test_nothing_to_resume_or_abort(store):
    """Resume and abort with nothing to do say so, exit 0 and change no byte."""
    before = tree(store)

    assert "nothing" in run("resume", store).stdout.lower()
    assert "nothing" in run("abort", store).stdout.lower()
    assert tree(store) == before


def test_another_command_while_a_job_is_interrupted(store, texts):
    """Another job is refused while one is interrupted, and names resume and abort."""
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)

    for command in (("forget", store, texts[0][0]), ("update", store, texts[0][0], "--again")):
        message = refused(*command)
        assert "kvps resume" in message
        assert "kvps abort" in message
    run("resume", store)
    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)


def test_same_command_resumes_where_a_part_was_counted_before(store, texts):
    """A command of which one input was counted earlier resumes too when it is given again."""
    command = ("update", store, texts[0][0], texts[1][0], *SMALL)
    run(*command, stop_at=f"SIGKILL {MIDDLE}", check=-9)

    run(*command, small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)


def test_changed_input_is_refused_on_resume(store, texts):
    """An input that is not what it was stops the resumption with exit 4; with the old text back it goes on."""
    path, text = texts[1]
    run("update", store, path, *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)
    path.write_bytes(text.replace(b"w1 ", b"w2 "))
    message = refused("resume", store, code=4)
    assert str(path) in message
    assert "kvps resume" in message
    path.unlink()
    assert str(path) in refused("resume", store, code=4)

    path.write_bytes(text)
    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1] + text, ORDER)


@pytest.fixture
def changing(tmp_path):
    """A store trained on one line, and a text longer than any buffer: it is read in the course of its job."""
    text = zipf_text(5, 50_000)
    (tmp_path / "line").write_bytes(b"w1 w2\n")
    (tmp_path / "long").write_bytes(text)
    run("train", tmp_path / "short", tmp_path / "line", "--order", ORDER, "--shards", 1)
    return tmp_path / "short", tmp_path / "long", text


LONG_SPLITS = {"KVPS_SPLIT_BYTES": str(200 << 10)}
EARLY, LATE = "SIGSTOP after kvps.store.shard:Shard.apply 2", "SIGKILL after kvps.store.shard:Shard.apply 10"


def put_back(path, text, stamps):
    """Write the old text again, and its old time stamps, as a restored backup has them."""
    path.write_bytes(text)
    os.utime(path, ns=stamps)


@pytest.mark.parametrize("times", ["restored", "new"])
def test_input_changed_for_a_while(changing, times):
    """Text that changed while its job ran, and was put back before the job is resumed, is counted as it was."""
    store, path, text = changing
    stamps = path.stat().st_atime_ns, path.stat().st_mtime_ns
    process = stopped("update", store, path, *SMALL, stop_at=f"{EARLY};{LATE}", env=LONG_SPLITS)
    path.write_bytes(text.replace(b"w1 ", b"w3 "))
    assert go_on(process)[0] == -signal.SIGKILL
    put_back(path, text, stamps) if times == "restored" else path.write_bytes(text)

    run("resume", store)

    assert contents(store) == counted(text + b"w1 w2\n", ORDER)


def test_input_changed_while_it_is_counted(changing):
    """Text that changes under its job is not committed (exit 4), and with the old text back the job goes on."""
    store, path, text = changing
    process = stopped("update", store, path, *SMALL, stop_at=EARLY, env=LONG_SPLITS)
    path.write_bytes(text.replace(b"w1 ", b"w3 "))
    code, _, err = go_on(process)
    assert (code, err.count("\n")) == (4, 1)
    assert str(path) in err
    assert str(path) in refused("resume", store, code=4)
    assert summary(store)[0] == 1

    path.write_bytes(text)
    run("resume", store)

    assert contents(store) == counted(text + b"w1 w2\n", ORDER)


def test_input_changed_and_put_back_while_it_is_counted(changing):
    """Text that changes and changes back within its job is noticed (exit 4); the job is resumed from the beginning."""
    store, path, text = changing
    stop = f"{EARLY};{LATE.replace('SIGKILL', 'SIGSTOP')}"
    stamps = path.stat().st_atime_ns, path.stat().st_mtime_ns
    process = stopped("update", store, path, *SMALL, stop_at=stop, env=LONG_SPLITS)
    path.write_bytes(text.replace(b"w1 ", b"w3 "))
    process.send_signal(signal.SIGCONT)
    until_stopped(process, stop)
    put_back(path, text, stamps)
    code, _, err = go_on(process)
    assert (code, err.count("\n")) == (4, 1)
    assert "kvps resume" in err

    run("resume", store)

    assert contents(store) == counted(text + b"w1 w2\n", ORDER)


def test_touched_input_resumes(store, texts):
    """An input that only has a new time stamp is the same input."""
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)
    os.utime(texts[1][0])

    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)


def test_second_writer_is_turned_away(store, texts):
    """While a job runs, a second writer ends with exit 5 and a line that names the process; with --wait it waits."""
    process = stopped("update", store, texts[1][0], *SMALL, stop_at=f"SIGSTOP {MIDDLE}")
    for command in (("update", store, texts[0][0]), ("forget", store, texts[0][0]), ("resume", store), ("abort", store),
                    ("compact", store)):
        message = refused(*command, code=5)
        assert str(process.pid) in message
        assert "--wait" in message
    waiting = start("forget", store, texts[0][0], "--wait", 60)
    assert go_on(process)[0] == 0
    out, err = waiting.communicate(timeout=60)

    assert waiting.returncode == 0, out + err
    assert contents(store) == counted(texts[1][1], ORDER)


def test_train_that_takes_its_store_away_again(tmp_path, texts):
    """A train that failed removes the store that it made while it holds the lock: nobody's text can be in it by then."""
    (tmp_path / "bad").write_bytes(b"good line\n\xff\n")
    good = ("train", tmp_path / "store", texts[0][0], "--order", ORDER)
    process = stopped("train", tmp_path / "store", tmp_path / "bad", "--order", ORDER,
                      stop_at="SIGSTOP before kvps.store.files:remove_tree 1")
    refused(*good, code=5)
    waiting = start(*good, "--wait", 60)
    time.sleep(0.5)
    assert go_on(process)[0] == 1
    waiting.communicate(timeout=60)

    run(*good)

    assert contents(tmp_path / "store") == counted(texts[0][1], ORDER)


def until_it_waits(process, store):
    """Wait until a process has the lock file of the store that is there now open."""
    lock = os.stat(store / "owner.lock")
    for _ in range(3000):
        for entry in os.listdir(f"/proc/{process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"/proc/{process.pid}/fd/{entry}"), lock):
                    return
        time.sleep(0.02)
    raise AssertionError("it does not wait")


def test_lock_of_a_store_that_was_removed(tmp_path, texts):
    """Who waits for a store that is removed meanwhile, and made anew, waits for the new one's lock."""
    store = tmp_path / "store"
    run("train", store, texts[0][0], "--order", ORDER)
    first = stopped("update", store, texts[1][0], *SMALL, stop_at=f"SIGSTOP {MIDDLE}")
    waiting = start("update", store, texts[1][0], "--wait", 60)
    until_it_waits(waiting, store)
    shutil.rmtree(store)
    run("train", store, texts[0][0], "--order", ORDER)
    second = stopped("forget", store, texts[0][0], *SMALL, stop_at=f"SIGSTOP {MIDDLE}")
    first.kill()
    first.communicate()
    until_it_waits(waiting, store)
    assert waiting.poll() is None
    assert go_on(second)[0] == 0
    out, err = waiting.communicate(timeout=60)

    assert waiting.returncode == 0, out + err
    assert contents(store) == counted(texts[1][1], ORDER)


def test_readers_while_a_job_runs(store, texts, tmp_path):
    """While a job runs every reading command answers, of the last committed version, and status says who works."""
    heldout = tmp_path / "heldout"
    heldout.write_bytes(zipf_text(9, 50))
    asked = (("stats", store), ("counts", store, "w1 w2"), ("perplexity", store, heldout),
             ("perplexity", store, heldout, "--smoothing", "mle"))
    before = [run_json(*command) for command in asked]
    dump = run("dump", store, "--order", 2, "--sorted").stdout
    process = stopped("update", store, texts[1][0], *SMALL, stop_at=f"SIGSTOP {MIDDLE}")
    try:
        during = [run_json(*command) for command in asked]
        status = run_json("status", store)
        during_dump = run("dump", store, "--order", 2, "--sorted").stdout
    finally:
        code, _, _ = go_on(process)

    assert code == 0
    for answer in (*before, *during):          # the store has grown, and no two commands take the same time
        for name in ("bytes", "live_bytes", "elapsed_s"):
            answer.pop(name, None)
    assert during == before
    assert during_dump == dump
    assert status["state"] == "running"
    assert status["pid"] == process.pid
    assert status["version"] == 1


def test_status_of_an_interrupted_job(store, texts):
    """Status tells idle from interrupted, how much is done, and leaves the store alone."""
    assert run_json("status", store)["state"] == "idle"
    run("update", store, texts[1][0], *SMALL, stop_at=f"SIGKILL {MIDDLE}", check=-9)
    before = tree(store)

    status = run_json("status", store)

    assert status["state"] == "interrupted"
    assert 0 < status["done_bytes"] < status["total_bytes"] == os.path.getsize(texts[1][0])
    assert tree(store) == before


def test_stdin_is_resumed_from_its_copy(store, texts):
    """Text from stdin is copied first, so that its job can be resumed; the copy goes with the job."""
    run("update", store, "-", *SMALL, input=texts[1][1].decode(), stop_at=f"SIGKILL {MIDDLE}", check=-9)

    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)
    assert not (store / "spool").exists()


def test_stdin_is_copied_to_the_folder_for_temporary_files(store, texts, tmp_path):
    """With --temp the copy of stdin lies there, serves the resumption, and goes with the job."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    run("update", store, "-", *SMALL, "--temp", folder, input=texts[1][1].decode(), stop_at=f"SIGKILL {MIDDLE}", check=-9)
    assert [path.name[:11] for path in folder.iterdir()] == ["kvps-spool-"]
    assert not (store / "spool").exists()

    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("finish", ["resume", "abort", "recover"])
def test_a_store_that_is_moved_with_the_copy_of_stdin(store, texts, tmp_path, finish):
    """A store can be moved while a job is pending: it has its copy of stdin with it."""
    run("update", store, "-", *SMALL, input=texts[1][1].decode(), stop_at=f"SIGKILL {MIDDLE}", check=-9)
    moved = store.rename(tmp_path / "elsewhere")

    run(finish, moved, *(["--yes"] if finish == "recover" else []), small=True)
    if finish == "recover":
        assert summary(moved)[3]               # its text is there, so the job is not rolled back
        run("resume", moved, small=True)

    assert contents(moved) == counted(texts[0][1] + (b"" if finish == "abort" else texts[1][1]), ORDER)
    assert not (moved / "spool").exists()


def test_a_record_with_the_whole_path_of_its_copy(store, texts):
    """A record that names the copy of stdin by its whole path, as they once did, is resumed too."""
    run("update", store, "-", *SMALL, input=texts[1][1].decode(), stop_at=f"SIGKILL {MIDDLE}", check=-9)
    with open_store(store, writable=True) as opened:
        job = opened.root.job()
        assert not os.path.isabs(job["spool"]) and not os.path.isabs(job["inputs"][0]["input"]["path"])
        job["spool"] = str(store / job["spool"])
        job["inputs"][0]["input"]["path"] = str(store / job["inputs"][0]["input"]["path"])
        with opened.root._write() as (txn, _):
            records.put(txn, fmt.JOB, job)

    run("resume", store, small=True)

    assert contents(store) == counted(texts[0][1] + texts[1][1], ORDER)
    assert not (store / "spool").exists()

"""A whole store: made at once, opened by one writer and many readers, seen at one version, refused when it is none."""
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kvps.errors import CorruptionError, StoreError, StoreLocked, VersionMismatch
from kvps.jobs.check import check
from kvps.jobs.upgrade import upgrade
from kvps.store import environment, files, layout, lock
from kvps.store import format as fmt
from kvps.store.creation import create_store
from kvps.store.directory import open_store

TOKENIZER = {"name": "whitespace"}


@pytest.fixture
def path(tmp_path):
    """The place of a new store of order 3 with 3 shards."""
    place = tmp_path / "store"
    create_store(place, 3, 3, TOKENIZER)
    return place


def open_files(place):
    """Return the data files below `place` that this process has mapped; other tests may hold some elsewhere."""
    return [handle.data for handle in environment._handles.values() if handle.path.is_relative_to(place)]


def run_job(store, name, payload):
    """Commit one version that adds a run with this payload to every shard."""
    version = store.root.state()["version"] + 1
    store.root.begin_job({"id": name})
    for shard in store.shards:
        shard.apply(name, 0, version, [(payload, 1)], {})
    store.root.commit_job(version, 1, 1, {"job": name}, {}, generations=store.generations())


def seen(store):
    """Return the version, and each shard's payloads at it."""
    with store.snapshot() as snap:
        return snap.version, [[bytes(payload) for run in shard.runs(snap.version) for payload, _ in shard.chunks(run)]
                              for shard in snap.shards]


def python(code, *args, **options):
    """Start a Python process that runs `code`."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, **options)


def test_create_and_open(path):
    """A new store opens at version 0 with its order, shards and tokenizer, and nothing lies beside it."""
    with open_store(path) as store:
        assert seen(store) == (0, [[], [], []])
        assert store.identity["order"] == 3
        assert store.identity["tokenizer"] == TOKENIZER
        assert {shard.identity["uuid"] for shard in store.shards} == {store.identity["uuid"]}
    assert list(path.parent.iterdir()) == [path]


def test_nobody_else_may_enter(path):
    """Every directory of a store is 0700 and every file 0600."""
    for folder, _, names in os.walk(path):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def test_create_in_an_empty_folder(tmp_path):
    """An empty folder that exists becomes the store."""
    (tmp_path / "store").mkdir()
    create_store(tmp_path / "store", 2, 1, TOKENIZER)

    open_store(tmp_path / "store").close()


def test_create_over_something_else(tmp_path, path):
    """A folder with something in it, a file, a link and a store are refused and left as they were."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(StoreError, match="is something else"):
            create_store(tmp_path / name, 3, 1, TOKENIZER)
    with pytest.raises(StoreError, match="is a store already"):
        create_store(path, 3, 1, TOKENIZER)

    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder", "link", "store"]
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("shards", [0, -1, 1025])
def test_impossible_number_of_shards(tmp_path, shards):
    """No shards, or more than a process can map, are refused."""
    with pytest.raises(StoreError, match="expected 1 to 1024"):
        create_store(tmp_path / "store", 3, shards, TOKENIZER)


def test_create_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """When the last step of a creation fails, nothing is left."""
    def refuse(*_):
        raise StoreError("no")
    monkeypatch.setattr(files, "rename", refuse)
    with pytest.raises(StoreError, match="no"):
        create_store(tmp_path / "store", 3, 2, TOKENIZER)

    assert list(tmp_path.iterdir()) == []
    assert not open_files(tmp_path)


def test_create_without_permission(tmp_path):
    """A place whose parent is missing or is a file gives one line with the place."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "none" / "store", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match=str(place.parent)):
            create_store(place, 3, 1, TOKENIZER)


def test_leftover_of_a_killed_creation(tmp_path):
    """What a killed creation left is removed by the next; what another process is still making is not."""
    leftover = tmp_path / "store.tmp-dead"
    leftover.mkdir()
    (leftover / lock.NAME).touch()
    busy = tmp_path / "store.tmp-busy"
    busy.mkdir()
    held = lock.OwnerLock(busy)
    young = tmp_path / "store.tmp-young"
    young.mkdir()
    create_store(tmp_path / "store", 3, 1, TOKENIZER)
    held.close()

    assert sorted(found.name for found in tmp_path.iterdir()) == ["store", "store.tmp-busy", "store.tmp-young"]


def test_open_of_what_is_no_store(tmp_path):
    """A missing place, a folder without a store, and a file, which may be a model, are refused in one line."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="no such store"):
        open_store(tmp_path / "none")
    with pytest.raises(StoreError, match=r"is not a kvps store: no seal"):
        open_store(tmp_path)
    for call in (lambda: open_store(tmp_path / "file", writable=True), lambda: check(tmp_path / "file"),
                 lambda: upgrade(tmp_path / "file")):
        with pytest.raises(StoreError, match="is a file, expected the folder of a store; a model in a file has no counts"):
            call()


def test_open_of_a_newer_store(path):
    """A store of a newer format is refused by its version, also by a writer, who lets the lock go."""
    with open_store(path, writable=True) as store, store.root._write() as (txn, _):
        txn.put(fmt.IDENTITY, fmt.pack_row(fmt.IDENTITY, {**store.identity, "format": 7}))

    for writable in (False, True, True):
        with pytest.raises(VersionMismatch, match="format 7"):
            open_store(path, writable=writable)
    assert not open_files(path)


def test_open_with_a_shard_missing(path):
    """A store that lacks a shard is refused with the shard's place."""
    shutil.rmtree(path / "shards" / "0001.0")

    with pytest.raises(StoreError, match=r"0001\.0"):
        open_store(path)


def test_open_with_shards_exchanged(path):
    """Two shards that changed places are noticed."""
    one, two = path / "shards" / "0001.0", path / "shards" / "0002.0"
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)

    with pytest.raises(CorruptionError, match="shard 2, expected 1"):
        open_store(path)


def test_shard_of_another_store(path, tmp_path):
    """A shard of another store is refused, though number and order are right."""
    create_store(tmp_path / "other", 3, 3, TOKENIZER)
    shutil.rmtree(path / "shards" / "0000.0")
    shutil.copytree(tmp_path / "other" / "shards" / "0000.0", path / "shards" / "0000.0")

    with pytest.raises(CorruptionError, match="uuid"):
        open_store(path)


def test_shard_that_went_back_in_time(path):
    """A shard put back from an older copy is noticed, for the root knows how far it had come."""
    shutil.copytree(path / "shards" / "0001.0", path.parent / "old")
    with open_store(path, writable=True) as store:
        run_job(store, "a", b"x")
    shutil.rmtree(path / "shards" / "0001.0")
    shutil.move(path.parent / "old", path / "shards" / "0001.0")

    with pytest.raises(CorruptionError, match="shard 1 went back in time|cut short"):
        open_store(path)


@pytest.mark.parametrize("inner", ["root.0", "seal", "shards", "owner.lock", "shards/0000.0", "root.0/data.mdb", "root.0/lock.mdb",
                                   "shards/0002.0/data.mdb"])
def test_symlinks_inside_are_refused(path, inner):
    """A symbolic link in place of any part of a store is refused; the store itself may be reached by one."""
    (path.parent / "alias").symlink_to(path)
    open_store(path.parent / "alias").close()
    (path / inner).rename(path.parent / "real")
    (path / inner).symlink_to(path.parent / "real")

    with pytest.raises(StoreError, match="symbolic link"):
        open_store(path)


def test_world_writable_store(path):
    """A store that everybody may write in is refused."""
    path.chmod(0o777)

    with pytest.raises(StoreError, match="chmod o-w"):
        open_store(path)


def test_network_file_system(path, monkeypatch):
    """A network file system is refused unless forced."""
    monkeypatch.setattr(files, "file_system", lambda place: "nfs4")

    with pytest.raises(StoreError, match=r"network file system \(nfs4\)"):
        open_store(path)
    with pytest.raises(StoreError, match="network"):
        create_store(path.parent / "new", 3, 1, TOKENIZER)
    open_store(path, force=True).close()


def test_file_system_of_a_folder():
    """The type of a well-known file system is told."""
    if not os.path.ismount("/proc"):
        pytest.skip("needs /proc")
    assert files.file_system("/proc/self") == "proc"


def test_second_writer(path):
    """A second writer is refused in one line that names the first; a reader is not."""
    with open_store(path, writable=True, command="train"):
        with pytest.raises(StoreLocked, match=rf"process {os.getpid()} on .* \(train\)") as caught:
            open_store(path, writable=True)
        assert caught.value.pid == os.getpid()
        assert lock.owner(path)["command"] == "train"
        open_store(path).close()
    assert lock.owner(path) is None
    open_store(path, writable=True).close()


def test_writer_waits(path):
    """A writer who is willing to wait gets the lock when it comes free."""
    first = open_store(path, writable=True)
    timer = threading.Timer(0.5, first.close)
    timer.start()
    open_store(path, writable=True, wait=20).close()
    timer.join()


@pytest.mark.crash
def test_killed_writer_holds_nothing(path):
    """A writer that was killed no longer holds the store."""
    code = ("import sys, time; from kvps.store.directory import open_store\n"
            "store = open_store(sys.argv[1], writable=True); print('in', flush=True); time.sleep(60)")
    with python(code, path) as process:
        assert process.stdout.readline() == "in\n"
        assert lock.owner(path)["pid"] == process.pid
        with pytest.raises(StoreLocked, match=f"process {process.pid} "):
            open_store(path, writable=True)
        process.kill()
        process.wait()

    open_store(path, writable=True).close()


def test_forked_child_does_not_hold_the_lock(path):
    """A child forked by a writer does not keep the store locked after the writer has closed it."""
    store = open_store(path, writable=True)
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    try:
        store.close()
        open_store(path, writable=True).close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_readers_see_the_committed_version(path):
    """Half a job is never seen; a snapshot keeps its version while others are committed."""
    with open_store(path, writable=True) as writer, open_store(path) as reader:
        run_job(writer, "a", b"A")
        with reader.snapshot() as old:
            writer.root.begin_job({"id": "b"})
            writer.shards[0].apply("b", 0, 2, [(b"B", 1)], {})
            assert seen(reader) == (1, [[b"A"]] * 3)
            for shard in writer.shards[1:]:
                shard.apply("b", 0, 2, [(b"B", 1)], {})
            writer.root.commit_job(2, 0, 0, {}, {}, generations=writer.generations())
            assert seen(reader) == (2, [[b"A", b"B"]] * 3)
            assert old.version == 1
            assert [len(shard.runs(old.version)) for shard in old.shards] == [1] * 3


def test_snapshot_while_versions_are_committed(path):
    """Readers in threads and in another process always find every shard at the same version."""
    code = ("import sys; sys.path.insert(0, sys.argv[2])\n"
            "from test_store import seen\n"
            "from kvps.store.directory import open_store\n"
            "with open_store(sys.argv[1]) as store:\n"
            "    while True:\n"
            "        version, shards = seen(store)\n"
            "        assert shards == [[b'%d' % v for v in range(1, version + 1)]] * 3, (version, shards)\n"
            "        if version == 40: break\n")
    failures = []

    def read():
        with open_store(path) as store:
            version = 0
            while version < 40:
                version, shards = seen(store)
                if shards != [[b"%d" % v for v in range(1, version + 1)]] * 3:
                    failures.append((version, shards))

    threads = [threading.Thread(target=read) for _ in range(3)]
    with python(code, path, Path(__file__).parent) as process, open_store(path, writable=True) as writer:
        for thread in threads:
            thread.start()
        for version in range(1, 41):
            run_job(writer, f"job{version}", b"%d" % version)
        for thread in threads:
            thread.join()
        assert process.wait(60) == 0
    assert not failures


def test_vacuum(path):
    """Vacuum makes the files as long as what is live, removes the old ones, and readers follow."""
    with open_store(path, writable=True) as writer, open_store(path) as reader:
        for number in range(4):
            run_job(writer, f"j{number}", bytes([number]) * 100_000)
        for shard in writer.shards:
            shard.replace([run.id for run in shard.runs()][:3], 3, [(b"merged", 1)])
        before = seen(reader)
        with reader.snapshot() as old:
            writer.vacuum()
            payload = bytes(old.shards[0].chunk(old.shards[0].runs(4)[0], 0)[0])
            assert payload == b"\3" * 100_000
        shard_bytes = [shard.bytes() for shard in writer.shards]

        assert seen(reader) == seen(writer) == before
        assert all(found["file"] <= found["live"] + 2 * 4096 for found in shard_bytes)
        assert sorted(folder.name for folder in (path / "shards").iterdir()) == ["0000.1", "0001.1", "0002.1"]
        run_job(writer, "after", b"after")
        assert seen(reader)[1][2][-1] == b"after"
        writer.vacuum()
        assert seen(reader)[0] == 5
    assert not open_files(path)


def test_leftover_of_a_killed_vacuum(path):
    """A copy of a shard that no root record names is removed by the next writer, not by readers."""
    (path / "shards" / "0001.1").mkdir()
    (path / "shards" / "0001.1" / "data.mdb").write_bytes(b"half")
    open_store(path).close()
    assert (path / "shards" / "0001.1").exists()
    open_store(path, writable=True).close()

    assert sorted(folder.name for folder in (path / "shards").iterdir()) == ["0000.0", "0001.0", "0002.0"]


def test_root_that_names_a_place_outside(path):
    """A shard's place that leads out of the store is refused, though its record is sound."""
    with open_store(path, writable=True) as store:
        store.root.move_shard(1, "../../elsewhere", 0)

    with pytest.raises(CorruptionError, match="shard 1 is said to be in"):
        open_store(path)


def test_store_that_was_copied_with_holes(path, tmp_path):
    """A copy whose lock files are missing, or are only holes, opens and gets real ones."""
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "root.0" / "lock.mdb").unlink()
    hole = copy / "shards" / "0000.0" / "lock.mdb"
    hole.unlink()
    hole.touch(0o600)
    os.truncate(hole, environment.LOCK_BYTES)
    with open_store(copy) as store:
        assert seen(store)[0] == 0

    for found in (hole, copy / "root.0" / "lock.mdb"):
        assert found.stat().st_blocks * 512 >= environment.LOCK_BYTES


def test_bytes_sums_all_files(path):
    """A store's bytes are those of its data files."""
    with open_store(path) as store:
        assert store.bytes()["file"] == sum(found.stat().st_size for found in path.rglob("data.mdb"))
        assert 0 < store.bytes()["live"] <= store.bytes()["file"]


def test_closed_store(path):
    """A store that was closed says so."""
    store = open_store(path)
    store.close()

    with pytest.raises(StoreError, match="is closed"), store.snapshot():
        pass


def test_many_shards_fit_the_address_space():
    """All maps of a store together stay below half of a process's addresses."""
    for n_shards in (1, 4, 63, 64, 1024):
        assert n_shards * layout.map_bytes(n_shards) <= 62 << 40
        assert layout.map_bytes(n_shards) % 4096 == 0


def test_opening_is_fast(path):
    """A store of a few shards opens, with its state read, in under 20 ms at best of five."""
    def once():
        start = time.perf_counter()
        with open_store(path) as store:
            store.root.state()
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.020


READ_AS_NOBODY = """
import os, sys
from kvps.errors import KvpsError
from kvps.store.directory import open_store
open_store(sys.argv[1]).close()      # lmdb imports on opening, and nobody may be unable to read where it is installed
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    with open_store(sys.argv[1]) as store, store.snapshot() as snap:
        print(snap.version, store.root._env.registered)
except KvpsError as exc:
    print(exc)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_reader_without_permission_to_write(tmp_path):
    """A reader who may not write in the folder reads, unless a writer is at work, and then says so."""
    with tempfile.TemporaryDirectory() as public:     # pytest's own folders are closed to others
        os.chmod(public, 0o755)
        place = Path(public) / "store"
        create_store(place, 3, 1, TOKENIZER)
        for found in [place, *place.rglob("*")]:
            found.chmod(0o755 if found.is_dir() else 0o644)

        with python(READ_AS_NOBODY, place) as process:
            assert process.stdout.read() == "0 False\n"
        with open_store(place, writable=True, command="train"), python(READ_AS_NOBODY, place) as process:
            assert "is using it (train)" in process.stdout.read()
        place.chmod(0o700)
        with python(READ_AS_NOBODY, place) as process:
            assert "ermission denied" in process.stdout.read()


# The seal, and writers' epochs

def put_back(data, old):
    """Put an older copy of a data file in its place, as long as the one there, for a rollback shortens no file."""
    size = data.stat().st_size
    shutil.copyfile(old, data)
    os.truncate(data, max(size, data.stat().st_size))


def test_root_that_went_back_in_time(path, tmp_path):
    """A root that lost its last version is noticed by the seal beside it, by readers and writers."""
    shutil.copyfile(path / "root.0" / "data.mdb", tmp_path / "old")
    with open_store(path, writable=True) as store:
        run_job(store, "a", b"x")
    put_back(path / "root.0" / "data.mdb", tmp_path / "old")

    for writable in (False, True):
        with pytest.raises(CorruptionError, match="went back in time"):
            open_store(path, writable=writable)
    assert not open_files(path)


def test_version_is_sealed_before_the_store_is_closed(path, tmp_path):
    """A version is sealed when its job says so, not only when the writer leaves."""
    shutil.copyfile(path / "root.0" / "data.mdb", tmp_path / "old")
    with open_store(path, writable=True) as store:
        run_job(store, "a", b"x")
        store.reseal()
        shutil.copyfile(path / "seal", tmp_path / "seal")
    shutil.copyfile(tmp_path / "seal", path / "seal")
    put_back(path / "root.0" / "data.mdb", tmp_path / "old")

    with pytest.raises(CorruptionError, match="went back in time"):
        open_store(path)


def test_seal_that_is_missing_or_damaged(path):
    """A store without its seal is no store, and one whose seal is damaged says so; a newer one is refused as such."""
    sealed = (path / "seal").read_bytes()
    (path / "seal").write_bytes(sealed[:-3] + b"xyz")
    with pytest.raises(CorruptionError, match="seal"):
        open_store(path)
    (path / "seal").write_bytes(fmt.pack_row(b"seal", {"format": 9, "root": "root.0"}))
    with pytest.raises(VersionMismatch, match="has format 9"):
        open_store(path)
    (path / "seal").write_bytes(fmt.pack_row(b"seal", {"format": 2, "root": "../root.0"}))
    with pytest.raises(CorruptionError, match=r"expected root\.N"):
        open_store(path)
    (path / "seal").unlink()
    with pytest.raises(StoreError, match="no seal"):
        open_store(path)
    os.mkfifo(path / "seal")                       # nobody will ever write to it
    with pytest.raises(StoreError, match="is a FIFO"):
        open_store(path)


@pytest.mark.parametrize("name", ["root.0", "shards/0001.0"])
def test_pages_are_verified_when_the_file_has_changed(path, name):
    """A page that would lead LMDB astray is found before the file is mapped, once the file is not as it was sealed."""
    data = path / name / "data.mdb"
    damaged = bytearray(data.read_bytes())
    page = damaged.rindex(b"\x02\x00", 8192 + 10) - 10 & ~4095      # a leaf
    damaged[page + 16:page + 18] = b"\xff\xff"                       # where its first node begins
    data.write_bytes(damaged)

    with pytest.raises(CorruptionError, match=r"data\.mdb"):
        open_store(path)
    assert not open_files(path)


def test_second_writer_ends_the_first(path):
    """Where the owner lock fails (its file was removed), the writer who came first can write no more, to root or shard."""
    with open_store(path, writable=True) as first:
        run_job(first, "a", b"x")
        (path / lock.NAME).unlink()
        code = ("import sys; from kvps.store.directory import open_store\n"
                "with open_store(sys.argv[1], writable=True) as second:\n"
                "    second.root.begin_job({'id': 'b'}); second.shards[0].apply('b', 0, 2, [(b'y', 1)], {})")
        with python(code, path) as process:
            assert process.wait(60) == 0

        with pytest.raises(StoreLocked, match="taken the store over"):
            first.root.clear_job()
        with pytest.raises(StoreLocked, match="taken the store over"):
            first.shards[0].apply("a", 1, 2, [(b"z", 1)], {})
    with open_store(path, writable=True) as store:
        assert store.root.job() == {"id": "b"}


def test_labels_end_with_a_version(path):
    """Runs that are marked are seen by readers until the version is committed, and come back when the job is dropped."""
    with open_store(path, writable=True) as store:
        run_job(store, "a", b"x")
        store.root.begin_job({"id": "b"})
        shard = store.shards[0]
        shard.apply("b", 0, 2, [(b"y", 1)], {}, label="mon")
        store.root.commit_job(2, 2, 1, {}, {"d": 1}, generations=store.generations(), label="mon")
        assert store.root.labels() == {"mon": {"first": 2, "last": 2, "sentences": 1, "tokens": 2}}

        store.root.begin_job({"id": "c"})
        shard.mark(["mon"], 3)
        assert seen(store)[1][0] == [b"x", b"y"]
        shard.drop("c", 2)
        assert [run.until for run in shard.runs()] == [None, None]
        shard.mark(["mon"], 3)
        store.root.commit_job(3, 0, 0, {}, {}, generations=store.generations(), gone_labels=["mon"])
        assert seen(store)[1][0] == [b"x"]
        assert store.root.labels() == {}
        assert store.root.counted("d") is None
        assert store.root.state()["tokens"] == 1
        assert shard.sweep(3, None) == 3             # the chunk, and the ledger rows of jobs a and b
        assert [run.label for run in shard.runs()] == [None]


def test_a_link_in_the_place_of_a_copy_of_text(path, tmp_path):
    """A writer that cleans up follows no link out of the store."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter").touch()
    (path / "spool").symlink_to(tmp_path / "precious")

    with pytest.raises(StoreError, match="symbolic link"):
        open_store(path, writable=True)
    assert (tmp_path / "precious" / "letter").exists()

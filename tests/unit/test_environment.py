"""The environment: LMDB's errors mapped, files checked before LMDB sees them, lifetimes of maps and views."""
import errno
import itertools
import os
import resource
import stat
import struct
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from kvps.errors import CorruptionError, KvpsError, StoreError, StoreFull
from kvps.store import environment, extents, files
from kvps.store.environment import ERRORS, Environment, mapped


@pytest.fixture
def env(tmp_path):
    """A new environment, writable, holding one small and one large value."""
    made = Environment.create(tmp_path / "env")
    with made.write() as txn:
        txn.put(b"small", b"1")
        txn.put(b"large", bytes(range(256)) * 64)
    yield made
    made.close()


def classes_of_lmdb():
    """Return every exception class that py-lmdb exports."""
    return {found for found in vars(lmdb).values() if isinstance(found, type) and issubclass(found, lmdb.Error)}


def test_every_lmdb_error_is_mapped():
    """Each exception class of py-lmdb has an entry, so a new one cannot slip through."""
    assert set(ERRORS) == classes_of_lmdb()


@pytest.mark.parametrize("kind", sorted(classes_of_lmdb(), key=lambda found: found.__name__))
def test_mapped_error_names_the_file(kind, tmp_path):
    """Whatever LMDB raises becomes one of ours (or MemoryError) whose message begins with the path."""
    error = mapped(kind("what", 0), tmp_path)

    assert isinstance(error, (KvpsError, MemoryError))
    assert str(error).startswith(str(tmp_path))


def test_full_disk_reported_as_eio(tmp_path, monkeypatch):
    """EIO on a disk without room is StoreFull with numbers; with room it is an error of the disk."""
    error = lmdb.Error("write", 5)
    error.code = 5
    monkeypatch.setattr(files, "free_bytes", lambda path: 100)
    full = mapped(error, tmp_path, needs=5000)
    monkeypatch.setattr(files, "free_bytes", lambda path: 1 << 30)
    broken = mapped(error, tmp_path, needs=5000)

    assert isinstance(full, StoreFull)
    assert full.needs == 5000
    assert type(broken) is StoreError


def test_create_modes(env):
    """The directory is 0700 and its files 0600; the lock file has all its blocks."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in env.path.iterdir()}
    lock = (env.path / "lock.mdb").stat()

    assert stat.S_IMODE(env.path.stat().st_mode) == 0o700
    assert modes == {"data.mdb": 0o600, "lock.mdb": 0o600}
    assert lock.st_blocks * 512 >= lock.st_size >= environment.LOCK_BYTES


def test_engine_is_chosen_here(tmp_path):
    """LMDB_DEFAULT_LIB_VERSION in the user's environment does not change the format of a store."""
    code = ("import sys; from kvps.store.environment import Environment; e = Environment.create(sys.argv[1])\n"
            "with e.write() as t: t.put(b'k', b'v')")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "env")], check=True,
                   env={**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"})

    extents.check(tmp_path / "env" / "data.mdb")     # knows LMDB 0.9 only


def test_write_is_all_or_nothing(env):
    """An exception in the block of a write rolls everything back."""
    with pytest.raises(ZeroDivisionError), env.write() as txn:
        txn.put(b"small", b"2")
        raise ZeroDivisionError

    with env.read() as txn:
        assert txn.get(b"small") == b"1"


def test_scan_and_ends(env):
    """scan gives the pairs of a prefix in order; first_key and last_key find its ends."""
    with env.write() as txn:
        for key in (b"p2", b"p1", b"p", b"q", b"o"):
            txn.put(key, key.upper())
    with env.read() as txn:
        assert list(txn.scan(b"p")) == [(b"p", b"P"), (b"p1", b"P1"), (b"p2", b"P2")]
        assert txn.last_key(b"p") == b"p2"
        assert txn.first_key(b"p1") == b"p1"
        assert txn.first_key(b"t") is None
        assert txn.last_key(b"a") is None
        assert txn.last_key(b"s") == b"small"


def test_delete_of_absent_key(env):
    """Deleting tells whether the key was there."""
    with env.write() as txn:
        assert txn.delete(b"small")
        assert not txn.delete(b"small")
        assert txn.get(b"small") is None


def test_reader_may_not_write(env):
    """An opening for reading refuses to write, although the process shares one map."""
    reader = Environment.open(env.path)

    with pytest.raises(StoreError, match="for reading"), reader.write():
        pass
    reader.close()


def test_two_openings_share_one_map(env):
    """A second opening in one process works, and outlives the first."""
    second = Environment.open(env.path, writable=True)
    env.close()
    with second.write() as txn:
        txn.put(b"small", b"3")
    with second.read() as txn:
        assert txn.get(b"small") == b"3"
    second.close()

    with pytest.raises(StoreError, match="closed"), second.read():
        pass


def test_snapshot_outlives_close(env):
    """Closing an environment leaves an open transaction readable; the file is unmapped after it."""
    txn = env.begin()
    view = txn.lend(txn.view(b"large"))
    env.close()

    assert bytes(view[:3]) == b"\0\1\2"
    txn.close()
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert env.path not in [handle.path for handle in environment._handles.values()]


def test_view_in_use_at_the_end(env):
    """A transaction refuses to end while an array or slice of its view is alive, and ends once that is gone."""
    for use in (lambda view: np.frombuffer(view, np.uint8), lambda view: view[:300], memoryview,
                lambda view: np.asarray(view)[5:], lambda view: view.cast("I")[:]):
        txn = env.begin()
        view = txn.lend(txn.view(b"large"))
        held = use(view)
        with pytest.raises(StoreError, match="1 views of a snapshot are still in use"):
            txn.close()
        assert len(held) >= 300
        del held
        txn.close()


def test_view_in_use_does_not_hide_the_error(env):
    """When a block fails while a view is held, its own exception comes out."""
    held = []
    with pytest.raises(ZeroDivisionError), env.read() as txn:
        held.append(np.frombuffer(txn.lend(txn.view(b"large")), np.uint8))
        raise ZeroDivisionError
    with env.write() as txn:
        txn.put(b"large", b"gone")

    assert held[0][255] == 255       # the page is kept, because the transaction is


def test_closed_transaction(env):
    """A transaction that has ended says so."""
    txn = env.begin()
    txn.close()
    txn.close()

    with pytest.raises(StoreError, match="snapshot is closed"):
        txn.get(b"small")


def test_impossible_key(env):
    """An empty key is refused by LMDB and reported as ours."""
    with pytest.raises(StoreError, match="length"), env.write() as txn:
        txn.put(b"", b"x")


def test_forked_child_must_open_again(env):
    """In a forked child the parent's environment refuses to work, and a new opening works."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with env.read():
                pass
        except StoreError:
            fresh = Environment.open(env.path)
            with fresh.read() as txn:
                code = 0 if txn.get(b"small") == b"1" else 2
        finally:
            os._exit(code)

    assert os.waitpid(pid, 0)[1] == 0
    with env.write() as txn:
        txn.put(b"small", b"4")


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"no store " * 2000, bytes(8192)])
def test_foreign_file(tmp_path, content):
    """An empty file, which LMDB would open as a new database, and a foreign one are refused."""
    folder = tmp_path / "env"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(content)

    with pytest.raises(CorruptionError, match=r"expected an LMDB 0\.9 data file"):
        Environment.open(folder)
    assert (folder / "data.mdb").read_bytes() == content


def test_missing_file(tmp_path):
    """An environment that is not there is not made by opening it."""
    with pytest.raises(StoreError, match="No such file"):
        Environment.open(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_symlink_is_refused(env, tmp_path):
    """A data file that is a symbolic link is refused."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "data.mdb").symlink_to(env.data)
    env.close()

    with pytest.raises(StoreError, match="symbolic link"):
        Environment.open(folder)


def test_every_truncation_is_refused(env):
    """A file cut at any page boundary, or beside one, is refused before LMDB can die on it."""
    env.close()
    whole = env.data.read_bytes()
    for length in range(0, len(whole), 4096):
        for cut in {max(length - 1, 0), length, min(length + 1, len(whole) - 1)}:
            env.data.write_bytes(whole[:cut])
            with pytest.raises(CorruptionError):
                Environment.open(env.path)
    env.data.write_bytes(whole)
    Environment.open(env.path).close()


def test_shortfall_without_damage(env, monkeypatch, rng):
    """A file that is shorter than its last page number says, but holds every page in use, is opened."""
    monkeypatch.setattr(files, "extend", lambda path, length: None)
    found = 0
    for _ in range(300):
        with env.write() as txn:
            txn.put(b"kept%d" % rng.randrange(4), bytes(rng.randrange(20_000)))
            txn.put(b"zz", bytes(rng.randrange(20_000)))
            txn.delete(b"zz")
        if os.stat(env.data).st_size < (env._handle.env.info()["last_pgno"] + 1) * 4096:
            found += 1
            extents.check(env.data)

    assert found


def test_file_is_as_long_as_its_page_numbers_say(env, rng):
    """After every commit the file has its full length, so the cheap check suffices when it is opened."""
    for _ in range(100):
        with env.write() as txn:
            txn.put(b"kept%d" % rng.randrange(4), bytes(rng.randrange(20_000)))
            txn.put(b"zz", bytes(rng.randrange(20_000)))
            txn.delete(b"zz")

        assert os.stat(env.data).st_size >= (env._handle.env.info()["last_pgno"] + 1) * 4096


def test_walk_ends_on_a_loop(env):
    """A tree whose pages form a loop is refused, not followed for ever."""
    with env.write() as txn:
        for number in range(2000):
            txn.put(b"n%05d" % number, bytes(50))
    last = env._handle.env.info()["last_pgno"]
    env.close()
    data = bytearray(env.data.read_bytes())
    for page in range(2, last + 1):
        start = page * 4096
        if struct.unpack_from("=H", data, start + 10)[0] == extents.P_BRANCH:
            node, = struct.unpack_from("=H", data, start + 16)
            struct.pack_into("=HH", data, start + node, page & 0xFFFF, page >> 16)
    env.data.write_bytes(data[:-1])

    with pytest.raises(CorruptionError):
        Environment.open(env.path)


@pytest.fixture
def short_files():
    """Give a function that limits how long this process may make a file [bytes]; lifted at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fail_a_commit(env, short_files):
    """Try to commit 1 MB where the file may not grow; return the error."""
    length = os.stat(env.data).st_size
    short_files(length)
    with pytest.raises(StoreError) as caught, env.write() as txn:
        txn.put(b"more", bytes(1 << 20))
    short_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    return caught.value


def test_commit_fails_for_want_of_space(env, short_files, monkeypatch):
    """After a full disk the old state is there, and writing goes on once there is room."""
    monkeypatch.setattr(files, "FULL", {errno.EFBIG})
    error = fail_a_commit(env, short_files)

    assert isinstance(error, StoreFull)
    assert error.needs > 1 << 20
    assert error.has == pytest.approx(files.free_bytes(env.data), abs=1 << 30)      # others write to this disk too
    with env.write() as txn:
        assert txn.get(b"more") is None
        txn.put(b"more", b"now")
    with env.read() as txn:
        assert txn.get(b"more") == b"now"


def test_commit_fails_otherwise(env, short_files):
    """After a write error that is no full disk, this process reads on but writes only after a new opening."""
    error = fail_a_commit(env, short_files)

    assert type(error) is StoreError
    with env.read() as txn:
        assert txn.get(b"small") == b"1"
    with pytest.raises(StoreError, match="earlier write failed"), env.write():
        pass
    env.close()
    again = Environment.open(env.path, writable=True)
    with again.write() as txn:
        txn.put(b"more", b"now")
    again.close()


def test_commit_fails_under_a_snapshot(env, short_files, monkeypatch):
    """A snapshot that is open when a commit fails stays readable; writing waits until it is closed."""
    monkeypatch.setattr(files, "FULL", {errno.EFBIG})
    txn = env.begin()
    fail_a_commit(env, short_files)

    assert txn.get(b"small") == b"1"
    with pytest.raises(StoreError, match="close the open snapshots"), env.write():
        pass
    txn.close()
    with env.write() as again:
        again.put(b"small", b"5")


def test_file_replaced_under_us(env):
    """A data file that was replaced while open is not written to: LMDB would commit into a file without a name."""
    other = env.data.with_name("other")
    other.write_bytes(env.data.read_bytes())
    other.rename(env.data)

    with pytest.raises(StoreError, match="was replaced"), env.write():
        pass


def test_copy_is_compact_and_private(env, tmp_path):
    """A copy has the same records, no free pages, and mode 0600."""
    for number in range(20):
        with env.write() as txn:
            txn.put(b"large", bytes([number]) * 100_000)
    env.copy_to(tmp_path / "copy")
    copy = Environment.open(tmp_path / "copy")

    assert stat.S_IMODE(copy.data.stat().st_mode) == 0o600
    assert copy.bytes()["file"] < env.bytes()["file"]
    with copy.read() as txn:
        assert txn.get(b"large") == bytes([19]) * 100_000
    copy.close()


def test_bytes_counts_live_pages(env):
    """Live bytes are the pages in use: they fall when a value is deleted, the file stays."""
    before = env.bytes()
    with env.write() as txn:
        txn.delete(b"large")
    after = env.bytes()

    assert before["live"] - after["live"] == 5 * 4096       # 16 KiB and LMDB's 16 bytes before them
    assert after["file"] >= before["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written(env):
    """Without permission to write, an environment opens for reading, unregistered, and refuses writers."""
    env.close()
    for path in env.path.iterdir():
        path.chmod(0o400)
    env.path.chmod(0o500)
    try:
        reader = Environment.open(env.path)
        with reader.read() as txn:
            assert txn.get(b"small") == b"1"
        assert not reader.registered
        reader.close()
        with pytest.raises(StoreError, match="permission denied"):
            Environment.open(env.path, writable=True)
    finally:
        env.path.chmod(0o700)


def test_reader_that_loses_its_turn_while_it_begins(env):
    """A snapshot is never given under the number of a commit that was overtaken while it began: it begins again."""
    handle = env._live()
    real, late = handle.env, [2]

    class Slow:
        """LMDB for a reader that gets no turn, twice, between beginning and its next step."""

        def __getattr__(self, name):
            """Return what LMDB has of this name."""
            return getattr(real, name)

        def info(self):
            """Return LMDB's own, late: a commit has come meanwhile."""
            if late[0]:
                late[0] -= 1
                with real.begin(write=True) as txn:
                    txn.put(b"k", b"%d" % late[0])
            return real.info()

    handle.env = Slow()
    try:
        with env.read() as txn:
            assert txn.get(b"k") == b"0"
            assert txn.id == real.info()["last_txnid"]
    finally:
        handle.env = real
    assert late == [0]


def test_file_that_grows_while_it_is_looked_at(env, monkeypatch):
    """A file that a writer lengthens between our looks at its length and at its metas is not taken for one cut short."""
    original, grown = extents._metas, []

    def metas(fd):
        if not grown:
            grown.append(True)
            with env.write() as txn:
                txn.put(b"large", bytes(1 << 20))
        return original(fd)

    monkeypatch.setattr(extents, "_metas", metas)
    extents.check(env.data)
    assert grown


def test_walk_that_a_writer_overtakes(env, monkeypatch):
    """A walk that finds what cannot be because a writer went on meanwhile is made again; else it is damage."""
    original, calls = extents._check, []

    def check(fd, path, metas):
        calls.append(metas)
        if len(calls) == 1:
            with env.write() as txn:
                txn.put(b"k", b"v")
            raise CorruptionError("overtaken")
        return original(fd, path, metas)

    monkeypatch.setattr(extents, "_check", check)
    extents.check(env.data)
    assert len(calls) == 2
    os.truncate(env.data, 4096)
    with pytest.raises(CorruptionError, match="cut short"):
        extents.check(env.data)


def test_file_that_goes_while_it_is_opened(env, tmp_path, monkeypatch):
    """A file that its writer removes in the instant in which a reader opens it is an error of ours, which readers try again."""
    path = env.path
    env.close()
    real = lmdb.Environment

    def opened(*arguments, **options):
        found = real(*arguments, **options)
        (path / "data.mdb").unlink()
        return found

    monkeypatch.setattr(lmdb, "Environment", opened)
    with pytest.raises(StoreError, match="No such file"):
        Environment.open(path)


def test_folder_that_fills_while_it_is_removed(env, monkeypatch):
    """A lock file that a reader makes in a folder that is being removed goes with it."""
    path, real = env.path, os.rmdir
    env.close()
    came = iter([True, True, False])

    def rmdir(folder):
        if next(came):
            (path / "lock.mdb").touch()
        real(folder)

    monkeypatch.setattr(os, "rmdir", rmdir)
    files.remove_tree(path)
    assert not path.exists()
    assert next(came, None) is None


def test_files_in_huge_pages(tmp_path, rng):
    """A file that is written for huge pages holds the same bytes; each write but the last is of one such page."""
    page = files.HUGE_PAGE
    for _ in range(20):
        pieces = [rng.randbytes(1) * rng.choice([0, 1, 70_000, page - 1, page, page + 1, 3 * page + 5])
                  for _ in range(rng.randrange(6))]
        files.atomic_write(tmp_path / "file", iter(pieces), huge_pages=True)
        assert (tmp_path / "file").read_bytes() == b"".join(pieces)
        assert {len(piece) for piece in list(files._chunks(pieces))[:-1]} <= {page}


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
@pytest.mark.parametrize(("n_bytes", "memory", "asked"), [(files.HUGE_PAGE, 1 << 40, True), (files.HUGE_PAGE - 1, 1 << 40, False),
                                                          (2 * files.HUGE_PAGE, 4 * files.HUGE_PAGE - 1, False)])
def test_mapped_in_huge_pages(n_bytes, memory, asked, tmp_path, monkeypatch):
    """A file is mapped for huge pages where it fills one and there is memory for twice its size."""
    path = tmp_path / "file"
    path.write_bytes(bytes(n_bytes))
    monkeypatch.setattr(files, "memory_limit", lambda: memory)
    mapping = files.map_file(path)

    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    flags = next(line for line in itertools.dropwhile(lambda line: not line.endswith(str(path)), lines)
                 if line.startswith("VmFlags"))

    assert ("hg" in flags.split()) == asked
    assert len(mapping) == n_bytes

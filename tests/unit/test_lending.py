"""A lent owner lock: processes that nobody has forked hold it together, one for each part, and end with the lender."""
import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
from processes import environment

from kvps.errors import StoreLocked
from kvps.store import lending
from kvps.store.lending import Lender, borrowed
from kvps.store.lock import OwnerLock

BORROW = """
import sys, time
from pathlib import Path
from kvps.store.lending import borrowed
with borrowed(Path(sys.argv[1]), int(sys.argv[2])):
    print("has it", flush=True)
    if sys.argv[3] == "stay":
        time.sleep(60)
    sys.stdin.read()
print("gave it back", flush=True)
"""


@contextlib.contextmanager
def borrower(folder, part, how="leave"):
    """Give a process that asks for the lock, and kill it in the end."""
    with subprocess.Popen([sys.executable, "-c", BORROW, folder, str(part), how], env=environment(), text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def has_it(process):
    """Wait until a borrower has the lock; return whether it has."""
    return process.stdout.readline() == "has it\n"


def stand_still(process):
    """Stop a process, all of its threads."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


@pytest.fixture
def folder(tmp_path):
    """A folder whose path no socket could have."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    return deep


@pytest.fixture
def owner(folder):
    """The lock of the folder, held."""
    lock = OwnerLock(folder, command="test")
    yield lock
    lock.close()


def test_a_borrower_keeps_the_lock(folder, owner):
    """The lock is held as long as a process has it that it was lent to, also after the owner's end; who stands still holds it."""
    lender = Lender(folder, owner)
    with borrower(folder, 0, "stay") as one, borrower(folder, 1, "stay") as two:
        assert has_it(one) and has_it(two)
        stand_still(one)
        lender.close()                     # as when its process is killed
        owner.close()
        assert two.wait(20) == 1
        with pytest.raises(StoreLocked):
            OwnerLock(folder)
        one.send_signal(signal.SIGCONT)
        assert one.wait(20) == 1
        OwnerLock(folder).close()
    assert not os.path.lexists(folder / lending.SOCKET)


def test_giving_back(folder, owner):
    """A borrower that gives the lock back goes on, and the lock is the owner's alone."""
    with contextlib.closing(Lender(folder, owner)), borrower(folder, 0) as process:
        assert has_it(process)
        assert process.communicate(timeout=20)[0] == "gave it back\n"
        assert process.returncode == 0
        with borrower(folder, 0) as again:
            assert has_it(again)


def test_one_process_a_part(folder, owner, monkeypatch):
    """A second process for a part ends the first, and has the lock when that is gone; not before."""
    with contextlib.closing(Lender(folder, owner)), borrower(folder, 3, "stay") as first:
        assert has_it(first)
        stand_still(first)
        monkeypatch.setattr(lending, "WAIT_S", 0.3)
        with pytest.raises(StoreLocked, match="part 3"), borrowed(folder, 3):
            raise AssertionError("two have it")
        monkeypatch.undo()
        first.send_signal(signal.SIGCONT)
        with borrower(folder, 3) as second:
            assert has_it(second) and first.wait(20) == 1


def test_nobody_lends(folder, owner):
    """Where there is no lender, or only the socket of one that was killed, nothing is lent; the next one lends again."""
    with pytest.raises(StoreLocked, match="nobody lends"), borrowed(folder, 0):
        raise AssertionError("somebody has it")
    with socket.socket(socket.AF_UNIX) as dead, lending._short(folder) as path:
        dead.bind(path)
    with pytest.raises(StoreLocked, match="nobody lends"), borrowed(folder, 0):
        raise AssertionError("somebody has it")
    with contextlib.closing(Lender(folder, owner)), borrower(folder, 0) as process:
        assert has_it(process)

"""A process with the library of faults.c in it that has imported kvps, and forks a child for every command.

A script; server.Server starts it and asks it to call functions of this folder's modules, which use cli() and forked().
A command takes a tenth of the time that it takes as a program of its own, and nothing of one reaches the next.
"""
from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.library import preloaded

TIMEOUT_S = 60
ROOMY_BYTES = 256 << 20


class Server:
    """The process, as the tests see it; a context manager."""

    def __init__(self) -> None:
        """Start it."""
        from processes import environment

        tests = Path(__file__).parent.parent
        env = environment(**preloaded())
        env["PYTHONPATH"] = os.pathsep.join([str(tests), env["PYTHONPATH"]])
        self._process = subprocess.Popen([sys.executable, "-m", "faults.server"], env=env, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)

    def call(self, function: str, *arguments: Any, timeout: float = 2 * TIMEOUT_S) -> Any:
        """Return what the function MODULE:NAME of this folder returns there; all of it is JSON."""
        line = json.dumps([function, arguments]) + "\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        answer, deadline = b"", time.monotonic() + timeout
        while not answer.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{function}{arguments} takes longer than {timeout} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 20)
            assert piece, f"the server ended in {function}{arguments}: exit {self._process.wait()}"
            answer += piece
        error, result = json.loads(answer)
        if error:
            raise AssertionError(f"{function}{arguments}\n{error}")
        return result

    def __enter__(self) -> Server:
        """Give the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def scratch(fallback: Path) -> Iterator[Path]:
    """Give a folder in memory where there is room, so that syncs cost nothing; else one in `fallback`."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOMY_BYTES
    folder = Path(tempfile.mkdtemp(prefix="kvps-faults-", dir=memory if roomy else fallback)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclasses.dataclass
class Ended:
    """How a child ended: its exit code, or minus the signal; what it wrote; what its function returned."""

    code: int
    out: str
    err: str
    result: Any = None


def forked(function: Callable[[], Any], *, stdin: bytes | None = None) -> Ended:
    """Call a function, which returns JSON, in a child.

    The exit code is 0, or what SystemExit says; 70 after another exception, with its traceback on stderr.
    """
    fds = [os.memfd_create(name) for name in ("in", "out", "err", "result")]
    try:
        os.write(fds[0], stdin or b"")
        os.lseek(fds[0], 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _child(function, fds)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err, result = (os.pread(fd, 1 << 24, 0) for fd in fds[1:])
    finally:
        for fd in fds:
            os.close(fd)
    return Ended(code, out.decode(errors="replace"), err.decode(errors="replace"), json.loads(result) if result else None)


def _child(function: Callable[[], Any], fds: list[int]) -> None:
    """Become the child: never returns."""
    code = 70
    try:
        signal.alarm(TIMEOUT_S)       # nothing here takes so long; SIGALRM ends what hangs
        for fd, target in zip(fds, range(3), strict=False):
            os.dup2(fd, target)
        result = function()
        if result is not None:
            os.write(fds[3], json.dumps(result).encode())
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1 if exc.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def cli(arguments: list[object], *, stdin: bytes | None = None, first: Callable[[], None] = lambda: None,
        last: Callable[[], None] = lambda: None) -> Ended:
    """Run `kvps ARGUMENTS` in a child.

    first and last are called in the child, before the command and after it has ended well.
    """
    from kvps.cli import main

    def command() -> None:
        first()
        try:
            main([str(argument) for argument in arguments], "kvps")
        except SystemExit as exc:
            if not exc.code:
                last()
            raise

    return forked(command, stdin=stdin)


def _import_everything() -> None:
    """Import what commands import when they run, so that no child has to."""
    import kvps.cli
    from kvps.jobs import counting

    for name in kvps.cli.COMMANDS:
        importlib.import_module(f"kvps.cli.{name.replace('-', '_')}")
    for name in ("kvps.cli.failure", "kvps.cli.jobs", "kvps.cli.output", "kvps.cli.progress", "kvps.jobs.train",
                 "kvps.jobs.compact", "kvps.jobs.verify", "kvps.store.directory", "numpy", "processes"):
        importlib.import_module(name)
    # As driver.py does: a job over a few kilobytes then has many steps.
    counting.MIN_SPLIT_BYTES = 2048


def serve() -> None:
    """Answer calls until stdin ends."""
    answers = os.dup(1)
    os.dup2(2, 1)
    _import_everything()
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        name, arguments = json.loads(line)
        module, _, function = name.partition(":")
        try:
            answer = [None, getattr(importlib.import_module(f"faults.{module}"), function)(*arguments)]
        except Exception:
            answer = [traceback.format_exc(), None]
        data = json.dumps(answer).encode() + b"\n"
        while data:
            data = data[os.write(answers, data):]


if __name__ == "__main__":
    serve()

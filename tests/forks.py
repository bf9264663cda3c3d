"""kvps commands in forked processes, killed at a chosen step or time: many a second, for no Python is started for each.

ForkServer starts this file as a script, which imports all of kvps once and then forks a child for every command. The
child is a process like any other: it runs `kvps.cli.main` with its own descriptors, threads and LMDB environments, and
SIGKILL ends it wherever it is.

A step is the begin or the end of a call of any function of kvps.store and kvps.jobs, found by looking through the
modules, so that new ones are steps by themselves. The child counts its steps in memory that it shares with the server:
that is the phase marker. It is "inside" from its first step until the command returns, and the marker outlives it.
"""
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import itertools
import json
import mmap
import os
import pkgutil
import select
import signal
import struct
import subprocess
import sys
import time
from collections import Counter

TIMEOUT_S = 120                      # for one command; longer than any takes
LAYERS = ("kvps.store.", "kvps.jobs.")
# Pure functions of bytes and errors: no moment that another process could see.
NO_STEPS = ("kvps.store.format", "kvps.store.extents")
# Libraries that a test environment need not have.
NEED = {"kvps.ps.ray": "ray", "kvps.jobs.on_ray": "ray", "kvps.compat.pyctcdecode": "pyctcdecode",
        "kvps.compat.flashlight": "flashlight"}
MARKER = struct.Struct("<QQ120s")    # steps so far, whether inside, name of the step that began last


@dataclasses.dataclass
class Done:
    """How a command ended."""

    code: int                        # as of subprocess: negative where a signal ended it
    out: str
    err: str
    steps: int                       # how many it had come to
    inside: bool                     # whether it ended between its first step and its return
    last: str                        # the step that began last
    seconds: float                   # from its first step to its end
    calls: dict[str, int]            # of each step, where asked for with `profile`


class ForkServer:
    """A process that has kvps imported and runs commands in children of its own; a context manager."""

    def __init__(self, environment):
        """Start it; `environment` as for subprocess."""
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env=environment)

    def run(self, *arguments, step=None, delay_s=None, split_bytes=2048, profile=False, text=None, check=0):
        """Run `kvps ARGUMENTS`; kill it where that is asked for.

        Args:
            step: (name, "before" or "after", number): SIGKILL just before or after so many calls of this function ("*": of
                any).
            delay_s: SIGKILL so long after the first step, if it still runs.
            split_bytes: length of a split, at least; None: as users have it.
            profile: count the calls of every step.
            text: what it reads from stdin; None: that is /dev/null.
            check: the exit code that it must have, unless it is killed; None: any.
        """
        request = {"arguments": [str(argument) for argument in arguments], "step": step, "delay_s": delay_s,
                   "split_bytes": split_bytes, "profile": profile, "text": text}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the fork server ended with code {self._process.wait(TIMEOUT_S)}"
        reply = json.loads(line)
        assert "error" not in reply, f"{reply['error']}: {arguments}"
        done = Done(**reply)
        assert "Traceback" not in done.err, done.err
        asked_for = step is not None or delay_s is not None
        if not (asked_for and done.code == -signal.SIGKILL):
            assert check in (None, done.code), f"exit {done.code}, expected {check}: {arguments}\n{done.out}{done.err}"
        return done

    def __enter__(self):
        """Return itself."""
        return self

    def __exit__(self, *_):
        """End the server."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(TIMEOUT_S)


# What follows runs in the server and in its children.

class Marker:
    """The phase marker: written by the child, read by the server after its death."""

    def __init__(self):
        """Make it, empty."""
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._numbers = itertools.count(1)       # its next() is atomic
        self._calls = itertools.count(1)         # of the function to die at
        self.begun = None            # descriptor to which the first step writes a byte
        self.step = None             # (name, when, number) at which to die
        self.profile = None          # Counter of calls, where asked for

    def pass_by(self, name, when):
        """Count one step, and die if it is the one."""
        number = next(self._numbers)
        self._shared[:MARKER.size] = MARKER.pack(number, 1, name.encode()[:120])
        if number == 1 and self.begun is not None:
            os.write(self.begun, b"x")
        if when == "before" and self.profile is not None:
            self.profile[name] += 1
        mine = self.step is not None and self.step[0] in (name, "*") and self.step[1] == when
        if mine and next(self._calls) == self.step[2]:
            os.kill(os.getpid(), signal.SIGKILL)

    def leave(self):
        """Say that the command has returned."""
        steps, _, name = MARKER.unpack_from(self._shared)
        self._shared[:MARKER.size] = MARKER.pack(steps, 0, name)

    def read(self):
        """Return (steps, whether inside, name of the last step)."""
        steps, inside, name = MARKER.unpack_from(self._shared)
        return steps, bool(inside), name.rstrip(b"\0").decode()

    def close(self):
        """Give the memory back."""
        self._shared.close()


marker = None                        # of this process, while it runs a command


def counted(function, name):
    """Return a function that passes two steps around each call."""
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if marker is None:
            return function(*args, **kwargs)
        marker.pass_by(name, "before")
        result = function(*args, **kwargs)
        marker.pass_by(name, "after")
        return result
    return wrapped


def import_all():
    """Import every module of kvps, the command line first, which sets what numpy reads when it is imported."""
    import kvps.cli

    modules = [kvps.cli]
    for found in pkgutil.walk_packages(kvps.__path__, "kvps."):
        needs = NEED.get(found.name)
        if not found.name.endswith("__main__") and (needs is None or importlib.util.find_spec(needs) is not None):
            modules.append(importlib.import_module(found.name))
    return modules


def wrap_steps(modules):
    """Make every function and method of the layers that are watched a step, wherever it is known by name."""
    replaced = {}
    for module in modules:
        if not module.__name__.startswith(LAYERS) or module.__name__ in NO_STEPS:
            continue
        for name, thing in list(vars(module).items()):
            if getattr(thing, "__module__", None) != module.__name__ or name.startswith("__"):
                continue
            if inspect.isfunction(thing):
                replaced[thing] = counted(thing, f"{module.__name__}:{name}")
            elif inspect.isclass(thing):
                wrap_methods(thing, f"{module.__name__}:{name}")
    for module in modules:
        for name, thing in list(vars(module).items()):
            if inspect.isfunction(thing) and thing in replaced:
                setattr(module, name, replaced[thing])


def wrap_methods(owner, name):
    """Make each method of a class a step; special methods and properties are none."""
    for attribute, thing in list(vars(owner).items()):
        if attribute.startswith("__"):
            continue
        kind = type(thing) if isinstance(thing, (classmethod, staticmethod)) else None
        function = thing.__func__ if kind else thing
        if inspect.isfunction(function):
            wrapped = counted(function, f"{name}.{attribute}")
            setattr(owner, attribute, kind(wrapped) if kind else wrapped)


def child(request, mine, given, out, err, calls):
    """Run a command and end this process; what it calls is counted into the file `calls` where asked for."""
    global marker

    from kvps.cli import main
    from kvps.jobs import counting

    code = 70
    try:
        os.dup2(given, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        if request["split_bytes"] is not None:
            counting.MIN_SPLIT_BYTES = request["split_bytes"]
        mine.step = tuple(request["step"]) if request["step"] else None
        mine.profile = Counter() if request["profile"] else None
        marker = mine
        try:
            main(request["arguments"])
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
        mine.leave()
        marker = None
        if mine.profile is not None:
            os.write(calls, json.dumps(mine.profile).encode())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve(request):
    """Run one command in a child and return the reply."""
    mine = Marker()
    begun, mine.begun = os.pipe()
    if request["text"] is None:
        given = os.open(os.devnull, os.O_RDONLY)
    else:
        given = os.memfd_create("in")
        os.pwrite(given, request["text"].encode(), 0)
    files = [os.memfd_create(name) for name in ("out", "err", "calls")]
    pid = os.fork()
    if pid == 0:
        os.close(begun)
        child(request, mine, given, *files)
    os.close(mine.begun)
    try:
        code, seconds = watch(pid, begun, request["delay_s"])
        steps, inside, last = mine.read()
        out, err, calls = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in files)
    finally:
        for file in (begun, given, *files):
            os.close(file)
        mine.close()
    if code is None:
        return {"error": f"took more than {TIMEOUT_S} s, its last step being {last}"}
    return {"code": code, "out": out, "err": err, "steps": steps, "inside": inside, "last": last, "seconds": seconds,
            "calls": json.loads(calls or "{}")}


def watch(pid, begun, delay_s):
    """Wait for a child, or kill it in time; return (its code, None if it took too long; seconds from its first step)."""
    process = os.pidfd_open(pid)
    try:
        ended, started = select.poll(), select.poll()
        ended.register(process, select.POLLIN)
        for file in (process, begun):
            started.register(file, select.POLLIN)
        too_long = not started.poll(1000 * TIMEOUT_S)
        began = time.monotonic()
        if too_long or not ended.poll(1000 * (TIMEOUT_S if delay_s is None else delay_s)):
            too_long = too_long or delay_s is None
            os.kill(pid, signal.SIGKILL)             # at worst a zombie by now: it is ours to wait for
        _, status = os.waitpid(pid, 0)
        return None if too_long else os.waitstatus_to_exitcode(status), time.monotonic() - began
    finally:
        os.close(process)


if __name__ == "__main__":
    wrap_steps(import_all())
    replies = os.dup(1)
    for text in sys.stdin:
        os.write(replies, json.dumps(serve(json.loads(text))).encode() + b"\n")

"""kvps in processes of its own: start it, stop it, see what it left. What tests/crash and tests/e2e share."""
import atexit
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from forks import ForkServer
from reference import read_sentences

import kvps.errors
from kvps._runs import unpack
from kvps.ps.runs import bits_for, merged
from kvps.store.directory import open_store
from kvps.store.format import CHUNK_MAGIC
from kvps.text.vocabulary import Vocabulary

DRIVER = Path(__file__).with_name("driver.py")
# Longer than anything here takes, shorter than anybody's patience.
TIMEOUT_S = 120


def environment(**more):
    """Return the environment of a child: it imports the same kvps as we do, and writes the same text everywhere."""
    ours = str(Path(kvps.errors.__file__).parent.parent)
    packages = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": packages, "LC_ALL": "C.UTF-8", **more}


class Served:
    """`kvps serve` in a process of its own, which can be killed and comes again at its address."""

    def __init__(self, store, *options):
        """Start it and wait until it serves."""
        self.command = [sys.executable, "-m", "kvps", "serve", str(store), *map(str, options)]
        self.start()

    def start(self):
        """Start it once more."""
        self.process = subprocess.Popen(self.command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.out = []
        while not any("serving at kvps://" in line for line in self.out):
            self.out.append(self.process.stdout.readline())
            assert self.out[-1], self.process.stderr.read()
        self.address = self.out[-1].split()[-1]

    def end(self, number=signal.SIGTERM):
        """Send a signal and return (exit code, what it wrote to stderr)."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def __enter__(self):
        """Return it."""
        return self

    def __exit__(self, *_):
        """Let it end as a user would."""
        code, err = self.end()
        assert code == 0
        assert [line for line in err.splitlines() if "refused a client" not in line] == []
        assert len(err.splitlines()) <= 1


def start(*arguments, small=False, stop_at=None, plain=False, **popen):
    """Start `kvps ARGUMENTS` and return its Popen, stdout and stderr being pipes of text.

    small: through driver.py, with splits of 2 KiB and one thread's memory.
    stop_at: what driver.py does at which step; implies `small`.
    plain: without root's capabilities, so that permissions hold for us as they do for anybody.
    """
    extra = popen.pop("env", {})
    if stop_at:
        extra = {**extra, "KVPS_STOP_AT": stop_at}
    program = [str(DRIVER)] if small or stop_at else ["-m", "kvps"]
    command = [*(without_privileges() if plain else []), sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(**extra), text=True, **{
        "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen})


@functools.cache
def prepared():
    """Return (a process that has kvps imported, the surroundings that it has): its children start in a tenth of the time."""
    server = ForkServer(environment())
    atexit.register(server.__exit__)
    return server, surroundings()


def surroundings():
    """Return what a child inherits: folder and environment, without what pytest tells of itself."""
    return os.getcwd(), {name: value for name, value in environment().items() if not name.startswith("PYTEST_")}


_turn = threading.Lock()             # for the prepared process, which runs one command at a time


def run(*arguments, check=0, **options):
    """Run `kvps ARGUMENTS` to its end and return the CompletedProcess; its exit code must be `check` (None: any).

    input: what it reads from stdin. With no other options of start() than `small`, it is a child of the prepared process,
    where that is free and as we are.
    """
    done = None
    if options.keys() <= {"small", "input"} and _turn.acquire(blocking=False):
        try:
            server, theirs = prepared()
            if theirs == surroundings():
                found = server.run(*arguments, split_bytes=2048 if options.get("small") else None, text=options.get("input"),
                                   check=None)
                done = subprocess.CompletedProcess(arguments, found.code, found.out, found.err)
        finally:
            _turn.release()
    if done is None:
        done = _run_anew(*arguments, **options)
    assert "Traceback" not in done.stderr, done.stderr
    assert check in (None, done.returncode), f"exit {done.returncode}, expected {check}: {arguments}\n{done.stdout}{done.stderr}"
    return done


def _run_anew(*arguments, **options):
    text = options.pop("input", None)
    if text is not None:
        options["stdin"] = subprocess.PIPE
    with start(*arguments, **options) as process:
        try:
            out, err = process.communicate(text, timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_json(*arguments, **options):
    """Run `kvps ARGUMENTS --json` and return the object that it prints."""
    return json.loads(run(*arguments, "--json", **options).stdout)


def refused(*arguments, code=1, **options):
    """Run a command that must fail with this exit code, and return its message, which is one line."""
    done = run(*arguments, check=code, **options)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, f"exit {code} with {len(lines)} lines: {done.stderr}"
    return lines[0]


def stopped(*arguments, stop_at, **options):
    """Start a command that stops itself at a step (SIGSTOP) and return its Popen once it stands still."""
    return until_stopped(start(*arguments, stop_at=stop_at, **options), stop_at)


def until_stopped(process, stop_at):
    """Wait until a process stands still and return it."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        process.returncode = os.waitstatus_to_exitcode(status)
        raise AssertionError(f"did not come to {stop_at}: exit {process.returncode}\n{process.stderr.read()}")
    return process


def go_on(process):
    """Let a stopped process run to its end; return (exit code, stdout, stderr)."""
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def kill_after(delay_s, *arguments, **options):
    """Start a command and kill -9 it after some time; return whether it was still running."""
    process = start(*arguments, **options)
    try:
        _, err = process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return process.returncode == -signal.SIGKILL
    assert process.returncode == 0, err
    return False


@functools.cache
def without_privileges():
    """Return the beginning of a command that runs the rest of it as an ordinary user, or skip the test."""
    if os.getuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions, and setpriv, which would give that up, is not installed")
    return ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


def zipf_text(seed, n_lines, n_words=2000, words_per_line=12):
    """Return lines of words w0, w1, ... drawn by Zipf's law, as bytes."""
    rng = random.Random(seed)
    cumulated = list(itertools.accumulate(1 / rank for rank in range(1, n_words + 1)))
    words = [f"w{i}" for i in range(n_words)]
    lines = (" ".join(rng.choices(words, cum_weights=cumulated, k=words_per_line)) for _ in range(n_lines))
    return "".join(line + "\n" for line in lines).encode()


def counted(text, order):
    """Return what a store of this order holds of a text: each word and </s> with up to order - 1 words before it."""
    counts = Counter()
    for sentence in read_sentences(text):
        padded = ("<s>", *sentence, "</s>")
        for end in range(2, len(padded) + 1):
            counts[padded[max(0, end - order):end]] += 1
    return counts


def contents(path):
    """Return what a store holds, as counted(), read key by key with every checksum verified."""
    with open_store(path) as store, store.snapshot() as snapshot:
        vocabulary = Vocabulary(store.root.words())
        words = [vocabulary.table.word(i).decode() for i in range(len(vocabulary))]
        order, bits = store.identity["order"], bits_for(len(vocabulary))
        counts = Counter()
        for shard in snapshot.shards:
            blocks = merged(shard, shard.runs(snapshot.version), order, bits)
            try:
                for block in blocks:
                    for row, count in zip(unpack(block.keys, order, bits).tolist(), block.counts.tolist(), strict=True):
                        *context, word = row
                        if 1 in context:                       # further pads stand for nothing
                            context = context[:context.index(1) + 1]
                        counts[tuple(words[i] for i in (*reversed(context), word))] = count
            finally:
                blocks.close()
        return counts


def summary(path):
    """Return (version, tokens, sentences, whether a job is pending) of a store."""
    with open_store(path) as store:
        state = store.root.state()
        return state["version"], state["tokens"], state["sentences"], store.root.job() is not None


def damage_shard(store, kind, number=0):
    """Damage a shard: "deleted", "cut" in half, "empty", or "a bit" of each of its chunks."""
    data = next((store / "shards").glob(f"{number:04d}.*")) / "data.mdb"
    if kind == "deleted":
        shutil.rmtree(data.parent)
    elif kind == "a bit":
        pages, at = bytearray(data.read_bytes()), -1
        while (at := pages.find(CHUNK_MAGIC, at + 1)) >= 0:
            pages[at + 99] ^= 4
        data.write_bytes(pages)
    else:
        os.truncate(data, 0 if kind == "empty" else data.stat().st_size // 2)


def tree(path):
    """Return the contents of every file of a store but its lock files: to tell whether any byte has changed."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(Path(path).rglob("*"))
            if file.is_file() and file.name not in ("lock.mdb", "owner.lock")}

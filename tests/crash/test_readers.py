"""One writer and 32 readers: each reader sees committed versions only, each of them whole; and what it costs to go on.

The writer says which counts a version will have before it makes it. A reader that finds a version that nobody has
spoken of, or other counts than were said, has seen what it must not see.
"""
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from forks import ForkServer
from processes import contents, counted, environment, run, zipf_text

import kvps

pytestmark = pytest.mark.crash

ORDER = 3
HELDOUT = ["w0 w1 w2", "w3 unheard-of w0 w5", "w1 w0"]
TEXTS = {"base": (1, 120), "x": (2, 40), "y": (3, 60)}                # name: (seed, lines)
# What the writer does over and over, and which texts the store holds then.
CYCLE = [(("update", "x"), "base x"), (("update", "y"), "base x y"), (("compact",), "base x y"), (("forget", "x"), "base y"),
         (("compact", "--vacuum"), "base y"), (("forget", "y"), "base")]

# Arguments: the store, the file of versions, the file of expectations, seconds, the seed. Prints one JSON object a reader.
READERS = """
import json, os, random, sys, threading, time
import kvps
from kvps.lm import cache, compile, listing, model          # imported once, before the processes are forked
path, versions, expected, seconds, seed = sys.argv[1:]
expected = json.load(open(expected))

def digest(pairs):
    import hashlib
    return hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest()

class Reader:
    def __init__(self, name):
        self.name, self.rng, self.said = name, random.Random(f"{seed} {name}"), {}
        self.seen, self.dumps, self.scores, self.wrong = set(), 0, 0, None
        self.newest = {"store": 0, "model": 0}         # a model that need not wait may be older than the store

    def texts(self, version):
        # What the writer said that this version holds.
        if version not in self.said:
            for line in open(versions).read().splitlines():
                number, _, names = line.partition(" ")
                self.said[int(number)] = names
        return self.said[version]

    def see(self, what, version):
        assert version >= self.newest[what], f"version {version} of the {what} after {self.newest[what]}"
        self.newest[what] = version
        self.seen.add(version)

    def look(self, store, model):
        if self.rng.random() < 0.5:
            before = store.version
            self.see("store", before)
            found = digest(store.dump(store.order, threads=1))
            after = store.version
            self.see("store", after)
            possible = [expected[self.texts(version)]["digest"] for version in range(before, after + 1)]
            assert found in possible, f"counts of none of the versions {before} to {after}"
            self.dumps += 1
        else:
            model.refresh()
            self.see("model", model.version)
            scores = model.score(expected["heldout"]).tolist()
            assert scores == expected[self.texts(model.version)]["scores"], f"scores of version {model.version}: {scores}"
            self.scores += 1

    def run(self, deadline):
        try:
            with kvps.open(path) as store, store.model(stale=self.rng.choice(["ok", "wait"]), threads=1) as model:
                # On a busy machine neither a reader nor the writer may have had enough turns by then.
                while time.monotonic() < deadline or (time.monotonic() < deadline + 60
                                                      and (self.dumps + self.scores < 2 or len(self.seen) < 3)):
                    self.look(store, model)
        except BaseException as exc:
            self.wrong = f"{type(exc).__name__}: {exc}"

    def result(self):
        return {"name": self.name, "versions": len(self.seen), "dumps": self.dumps, "scores": self.scores,
                "wrong": self.wrong}

def process(names, deadline):
    readers = [Reader(name) for name in names]
    if len(readers) == 1:
        readers[0].run(deadline)
    else:
        threads = [threading.Thread(target=reader.run, args=(deadline,)) for reader in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for reader in readers:
        os.write(1, (json.dumps(reader.result()) + "\\n").encode())

deadline = time.monotonic() + float(seconds)
groups = [[f"thread {g}.{n}" for n in range(8)] for g in range(2)] + [[f"process {n}"] for n in range(16)]
children = []
for names in groups:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            process(names, deadline)
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
sys.exit(any(codes))
"""


@dataclasses.dataclass
class Written:
    """A store that holds the text `base`, and what each of its versions will hold."""

    folder: object
    expected: dict                   # texts: digest of the counts, scores of HELDOUT

    @property
    def store(self):
        """Its path."""
        return self.folder / "store"


def digest(pairs):
    """Return a digest of (n-gram, count) pairs in any order."""
    return hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest()


@pytest.fixture
def written(tmp_path):
    """A store of 4 shards, and what must be found in it: made by counting the texts together, each in a store of its own."""
    texts = {name: zipf_text(seed, lines, n_words=80, words_per_line=6) for name, (seed, lines) in TEXTS.items()}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    expected = {"heldout": HELDOUT}
    for names in {names for _, names in CYCLE}:
        fresh = tmp_path / f"fresh {names}"
        text = b"".join(texts[name] for name in names.split())
        with kvps.create(fresh, order=ORDER, shards=1) as store:
            store.train(text.decode().splitlines())
            full = [(gram, count) for gram, count in counted(text, ORDER).items() if len(gram) == ORDER]
            assert dict(store.dump(ORDER)) == dict(full)
            with store.model() as model:
                expected[names] = {"digest": digest(full), "scores": model.score(HELDOUT).tolist()}
        shutil.rmtree(fresh)
    assert len({value["digest"] for name, value in expected.items() if name != "heldout"}) == len(expected) - 1
    (tmp_path / "expected").write_text(json.dumps(expected))
    run("train", tmp_path / "store", tmp_path / "base", "--order", ORDER, "--shards", 4)
    (tmp_path / "versions").write_text("1 base\n")
    return Written(tmp_path, expected)


def write_until(readers, written, server):
    """Go through the cycle until the readers are done; return (commands, last version)."""
    version, done = 1, 0
    with (written.folder / "versions").open("a") as said:
        for (command, *more), names in itertools.cycle(CYCLE):
            if readers.poll() is not None:
                return done, version
            if command != "compact":
                version += 1
                said.write(f"{version} {names}\n")
                said.flush()
            words = [written.folder / word if word in TEXTS else word for word in more]
            server.run(command, written.store, *words)
            done += 1


@pytest.mark.parametrize("seconds", [8, pytest.param(600, marks=pytest.mark.slow)])
def test_one_writer_and_32_readers(written, seed, seconds):
    """Readers in 16 threads and 16 processes see committed versions only, each whole, while a writer goes on and on."""
    program = [sys.executable, "-c", READERS, written.store, written.folder / "versions", written.folder / "expected",
               str(seconds), str(seed)]
    # Files, for in ten minutes more is said, in warnings above all, than a pipe holds that nobody reads.
    with (ForkServer(environment()) as server, open(written.folder / "out", "w+") as out_file,
          open(written.folder / "err", "w+") as err_file,
          subprocess.Popen(program, env=environment(), stdout=out_file, stderr=err_file, start_new_session=True) as readers):
        try:
            done, version = write_until(readers, written, server)
            readers.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(readers.pid, signal.SIGKILL)
    out, err = ((written.folder / name).read_text() for name in ("out", "err"))
    found = [json.loads(line) for line in out.splitlines()]

    assert readers.returncode == 0, err
    assert {reader["name"]: reader["wrong"] for reader in found if reader["wrong"]} == {}
    assert len(found) == 32
    totals = {name: sum(reader[name] for reader in found) for name in ("dumps", "scores")}
    print(f"{done} commands, {version} versions; {totals}; each reader saw {min(r['versions'] for r in found)} to "
          f"{max(r['versions'] for r in found)} versions")
    assert all(reader["dumps"] + reader["scores"] >= 2 for reader in found)
    assert min(totals.values()) >= 16
    assert max(reader["versions"] for reader in found) >= 3
    names = dict(line.split(" ", 1) for line in (written.folder / "versions").read_text().splitlines())[str(version)]
    assert contents(written.store) == counted(b"".join((written.folder / name).read_bytes() for name in names.split()), ORDER)


# Arguments: the store, folder of the texts, cycles. Prints one JSON object.
CYCLES = """
import json, pathlib, sys
import kvps
def used():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    file_bytes = sum(file.stat().st_size for file in pathlib.Path(path).rglob("data.mdb"))
    return {"file": file_bytes, **{name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")}}
path, folder, cycles = sys.argv[1:]
seen = {}
with kvps.open(path, writable=True) as store, store.model(threads=1) as model:
    for number in range(int(cycles)):
        text = f"{folder}/{'xyz'[number % 3]}"
        store.update_files([text], threads=1)
        if number % 5 == 0:
            model.refresh()
            model.score("w0 w1 w2")
        store.forget_files([text], threads=1)
        if number == int(cycles) // 5 or number == int(cycles) - 1:
            seen[number] = used()
    print(json.dumps({"early": min(seen.items())[1], "late": max(seen.items())[1], "version": store.version}))
"""


@pytest.mark.parametrize("cycles", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_thousand_cycles(tmp_path, cycles):
    """After many updates by a twentieth, each forgotten again, the file is at most 2.5 times what lives in it.

    It does not grow from some point on, and neither does the memory of the process that does all this.
    """
    for name, seed, lines in (("base", 1, 4000), ("x", 2, 200), ("y", 3, 150), ("z", 4, 250)):
        (tmp_path / name).write_bytes(zipf_text(seed, lines))
    store = tmp_path / "store"
    run("train", store, tmp_path / "base", "--order", ORDER, "--shards", 2)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CYCLES, store, tmp_path, str(cycles)], env=environment(), check=True,
                          capture_output=True, text=True, timeout=100 + cycles)
    found = json.loads(done.stdout)
    stats = json.loads(run("stats", store, "--json").stdout)
    print(f"{cycles} cycles in {time.monotonic() - began:.1f} s: file {stats['bytes']}, live {stats['live_bytes']}, {found}")

    assert found["version"] == 1 + 2 * cycles
    assert contents(store) == counted((tmp_path / "base").read_bytes(), ORDER)
    assert stats["bytes"] <= 2.5 * stats["live_bytes"]
    # The history grows by two rows of some 600 bytes a cycle; for the rest, a fifth of 1,000 cycles has met everything.
    assert found["late"]["file"] <= (1.1 if cycles == 1000 else 2) * found["early"]["file"] + 1500 * cycles
    # Mapped pages of the file are resident too, as long as the system has room for them.
    assert found["late"]["RssAnon"] <= 1.05 * found["early"]["RssAnon"] + (4 << 20)
    assert found["late"]["VmRSS"] <= 1.05 * found["early"]["VmRSS"] + stats["bytes"] + (4 << 20)

"""Damage a store in one place, read it as a user would, see what comes of it; many times. Run by crash/test_damage.py.

    python tests/damage.py FOLDER --seed N --first A --stop B --step S [--verbose]

FOLDER has what `prepare` of the test made: stores to damage (idle, pending), each with an older version of itself beside it
(idle-older, ...), and heldout text. Trial number i of a seed is always the same damage, so that one can be looked at alone:
--first i --stop i+1 --verbose. Prints the count of each outcome as a line of JSON, and the trials that went wrong.

Each trial runs in a forked child, which goes on with the next one while it lives: a signal or a hang costs a fork only.
A worker has stores of its own, in a folder that it removes: it patches a file in place and puts it back afterwards.
"""
import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import kvps
from kvps.errors import KvpsError
from kvps.lm import listing
from kvps.store.directory import open_store

PAGE = 4096
# A trial takes a tenth of a second, and some seconds where the machine has other work and the disk is slow to sync.
HANG_S = 30.0
STORES = ("idle", "idle", "idle", "pending")
MORE = ["w1 w2 w3 a new one", "w2 w2 w2"]
MODELS = {"kn": {}, "raw": {"smoothing": "witten-bell"}, "exact": {"exact": True}}
KINDS = {"bit": 50, "byte": 15, "zero page": 6, "swapped pages": 6, "stale page": 6, "cut": 8, "cut at a page": 6, "empty": 1,
         "gone": 1, "longer": 2, "stale file": 2}


def digest(path):
    """Return [version, tokens, hash of every n-gram of the highest order with its count] of a store."""
    with open_store(path) as store:
        found = hashlib.sha256()
        with contextlib.closing(listing.dump(store, store.identity["order"], threads=1)) as blocks:
            for block in blocks:
                found.update(block)
        state = store.root.state()
        return [state["version"], state["tokens"], found.hexdigest()]


def scores(path, kind, lines):
    """Return what a model of a store says about text."""
    with kvps.load(path, threads=1, **MODELS[kind]) as model:
        return [model.version, repr(model.perplexity(lines)), repr(model.score(lines).tolist())]


def write(path, name):
    """Change a store the way a user would."""
    with kvps.open(path) as store:
        if name == "pending":
            store.resume()
        else:
            store.update(MORE)


def is_bad(outcome):
    """Return whether an outcome must not be; such a one begins with a word in capitals."""
    return outcome.split(" ")[0].rstrip(":").isupper()


class Damage:
    """One damage, chosen at random: of which file, what, where."""

    def __init__(self, store, older, rng):
        """Choose. Structural pages are few among the pages of a store, and most of what can go wrong: half go there."""
        every = sorted(str(file.relative_to(store)) for file in store.rglob("*") if file.is_file())
        data = [name for name in every if name.endswith("data.mdb")]
        models = [name for name in every if name.endswith(".kvm")]
        others = [name for name in every if name not in data and name not in models]
        self.name = rng.choice(rng.choices([data, models or data, others or data], weights=[82, 9, 9])[0])
        self.path, self.kind = store / self.name, rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        self.before = self.path.read_bytes()
        self.old = (older / self.name).read_bytes() if (older / self.name).exists() else b""
        if self.kind in ("stale page", "stale file") and self.old in (b"", self.before):
            self.kind = "bit"
        self.after = self.damaged(bytearray(self.before), rng)

    def place(self, rng):
        """Return an offset."""
        n, where = len(self.before), rng.random()
        if where < 0.2:
            return rng.randrange(min(n, 2 * PAGE))
        if where < 0.6 and self.name.endswith("data.mdb"):
            pages = [page for page in range(0, n - PAGE + 1, PAGE) if struct.unpack_from("=H", self.before, page + 10)[0] & 3]
            if pages:
                page = rng.choice(pages)
                # The header and the first nodes' offsets as often as all the rest.
                return page + rng.randrange(rng.choice([64, PAGE]))
        if where < 0.7:
            return n - 1 - rng.randrange(min(n, 512))
        return rng.randrange(n)

    def damaged(self, data, rng):
        """Return the bytes of the file afterwards, None: there is no file."""
        if self.kind == "gone":
            return None
        if self.kind == "empty" or not data:
            return b""
        at = self.place(rng)
        page = at // PAGE * PAGE
        if self.kind == "bit":
            data[at] ^= 1 << rng.randrange(8)
        elif self.kind == "byte":
            data[at] = rng.randrange(256)
        elif self.kind == "zero page":
            data[page:page + PAGE] = bytes(len(data[page:page + PAGE]))
        elif self.kind == "swapped pages":
            other = self.place(rng) // PAGE * PAGE
            mine, theirs = data[page:page + PAGE], data[other:other + PAGE]
            if len(mine) == len(theirs):
                data[page:page + PAGE], data[other:other + PAGE] = theirs, mine
        elif self.kind == "stale page":
            differ = [i for i in range(0, min(len(data), len(self.old)), PAGE) if data[i:i + PAGE] != self.old[i:i + PAGE]]
            page = rng.choice(differ or [0])
            data[page:page + PAGE] = self.old[page:page + PAGE]
        elif self.kind == "cut":
            del data[at:]
        elif self.kind == "cut at a page":
            del data[max(0, page + rng.choice([-1, 0, 0, 1])):]
        elif self.kind == "longer":
            data += rng.randbytes(rng.choice([1, 100, PAGE, 5 * PAGE])) if rng.random() < 0.5 else bytes(rng.choice([1, PAGE]))
        elif self.kind == "stale file":
            data[:] = self.old
        return bytes(data)

    def apply(self):
        """Damage the file."""
        if self.after is None:
            self.path.unlink()
        else:
            self.overwrite(self.after)

    def undo(self):
        """Make the file what it was."""
        self.overwrite(self.before)

    def overwrite(self, data):
        """Give the file these bytes, in place."""
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.write(data)
            file.truncate()

    def __str__(self):
        """Say where it is."""
        places = [i for i, (a, b) in enumerate(zip(self.before, self.after or b"", strict=False)) if a != b]
        return f"{self.kind}, {self.name}, at {places[0] if places else '-'}, {len(self.before)} bytes before"

    @property
    def of(self):
        """What kind of file it is."""
        name = Path(self.name)
        if name.suffix == ".mdb":
            return f"{name.parts[0].split('.')[0]}/*/{name.name}"
        return f"*{name.suffix}" if name.suffix else name.name


class Worker:
    """Trials on stores of its own."""

    def __init__(self, folder, home):
        """Copy the stores and note what they hold."""
        self.folder, self.home = folder, home
        self.lines = (folder / "heldout").read_text().splitlines()
        self.right, self.old, self.changed, self.told = {}, {}, {}, {}
        for name in sorted(set(STORES)):
            self.fresh(name)
            self.right[name] = digest(home / name)
            self.told[name] = {kind: scores(home / name, kind, self.lines) for kind in MODELS if name == "idle"}
            write(home / name, name)
            self.changed[name] = digest(home / name)
            self.old[name] = digest(folder / f"{name}-older")
            self.fresh(name)

    def fresh(self, name):
        """Put a whole store back."""
        shutil.rmtree(self.home / name, ignore_errors=True)
        shutil.copytree(self.folder / name, self.home / name)

    def trial(self, number, seed):
        """Return (what was damaged, outcome, details)."""
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(STORES)
        store = self.home / name
        damage = Damage(store, self.folder / f"{name}-older", rng)
        changing = rng.random() < 0.04
        damage.apply()
        remade = True
        try:
            outcome, remade = self.outcome(store, name, damage, changing)
            details = f"{name}{' changed' if changing else ''}, {damage}" if is_bad(outcome) else ""
            return f"{damage.of}: {damage.kind}", outcome, details
        finally:
            if changing or remade:
                self.fresh(name)
            else:
                damage.undo()

    def outcome(self, store, name, damage, changing):
        """Read a damaged store; return (what came of it, whether it must be made anew)."""
        refused, found = [], []
        right = [self.right[name]]

        def attempt(function, *arguments):
            try:
                return function(*arguments)
            except KvpsError as exc:
                assert str(exc), "an error without a message"
                refused.append(type(exc).__name__)
                return None

        inode = damage.path.stat().st_ino if damage.path.exists() else None
        if changing:
            attempt(write, store, name)
            # A change that was refused may have been done all the same, one that was not must have been.
            right = [self.changed[name]] if not refused else [self.right[name], self.changed[name]]
        found = attempt(digest, store)
        wrong = found is not None and found not in right
        if not changing and name == "idle":
            kind = "kn"
            if damage.name.endswith(".kvm"):
                kind = "raw" if "raw" in damage.name else "exact" if "exact" in damage.name else "kn"
            told = attempt(scores, store, kind, self.lines)
            if told is not None and told != self.told[name][kind] and not wrong:
                return "WRONG scores", True
        remade = inode is None or not damage.path.exists() or damage.path.stat().st_ino != inode
        if wrong:
            went_back = found == self.old[name] or (changing and found == self.right[name]) or found[0] < self.right[name][0]
            return "WENT BACK silently" if went_back else "WRONG counts", True
        return " and ".join(sorted(set(refused))) or "right", remade


def forked(worker, numbers, seed, verbose):
    """Run trials in children, each as long as it lives; yield (number, what, outcome, details)."""
    numbers = list(numbers)
    at = 0
    while at < len(numbers):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                for number in numbers[at:]:
                    os.write(writer, f"{json.dumps(number)}\n".encode())
                    try:
                        result = worker.trial(number, seed)
                    except BaseException:
                        if verbose:
                            traceback.print_exc()
                        lines = traceback.format_exc().strip().splitlines()
                        result = ["?", f"FELL {lines[-1].split(':')[0]}", f"{lines[-1]} {lines[-3].strip()}"]
                    os.write(writer, f"{json.dumps(result)}\n".encode())
            finally:
                os._exit(0)
        os.close(writer)
        pending, current, hung = b"", None, False
        while True:
            if not select.select([reader], [], [], HANG_S)[0]:
                os.kill(child, signal.SIGKILL)
                hung = True
            piece = b"" if hung else os.read(reader, 1 << 16)
            *lines, pending = (pending + piece).split(b"\n")
            for line in map(json.loads, lines):
                if isinstance(line, int):
                    current = line
                else:
                    yield (current, *line)
                    current, at = None, at + 1
            if not piece:
                break
        os.close(reader)
        _, status = os.waitpid(child, 0)
        if current is not None:
            for name in set(STORES):
                worker.fresh(name)
            outcome = "HANG" if hung else f"SIGNAL {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "EXIT"
            rng = random.Random(f"{seed} {current}")
            name = rng.choice(STORES)
            damage = Damage(worker.home / name, worker.folder / f"{name}-older", rng)
            yield current, f"{damage.of}: {damage.kind}", outcome, f"{name}, {damage}"
            at += 1


def main():
    """Run trials and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("seed", "first", "stop", "step"):
        parser.add_argument(f"--{name}", type=int, default=1 if name == "step" else 0)
    parser.add_argument("--verbose", action="store_true", help="tracebacks on stderr")
    options = parser.parse_args()
    logging.disable()
    outcomes, bad = Counter(), []
    with tempfile.TemporaryDirectory(prefix="kvps-damage-", dir=options.folder) as home:
        worker = Worker(options.folder, Path(home))
        numbers = range(options.first, options.stop, options.step)
        for number, what, outcome, details in forked(worker, numbers, options.seed, options.verbose):
            outcomes[f"{what}: {outcome}"] += 1
            if is_bad(outcome):
                bad.append([number, outcome, details])
    json.dump({"outcomes": outcomes, "bad": bad}, sys.stdout)


if __name__ == "__main__":
    main()

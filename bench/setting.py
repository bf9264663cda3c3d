"""What a benchmark is given: texts, work space, the commands of kvps and of its peers; and how it reports figures."""
import contextlib
import functools
import itertools
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from bench import measure, text

BENCHMARKS = {}  # name: (one line of meaning, function of a Setting), in the order of definition


def benchmark(name, meaning):
    """Return a decorator that lists a function under `name`."""
    def enter(function):
        BENCHMARKS[name] = (meaning, function)
        return function
    return enter


@dataclass
class Setting:
    """One call of `python -m bench`.

    Paths that `scratch` gives are new and below `work`; they vanish at the end of the benchmark.
    """

    work: Path
    train: Path
    heldout: Path
    full: bool
    order: int
    runs: int
    seed: int
    json: TextIO | None
    running: str = ""  # the benchmark's name
    _scratch: list = field(default_factory=list)
    _numbers: itertools.count = field(default_factory=itertools.count)

    def scratch(self, name):
        """Return a path that does not exist yet, for a file, a store or a directory."""
        path = self.work / f"run.{os.getpid()}.{next(self._numbers)}.{name}"
        self._scratch.append(path)
        return path

    def drop(self, *paths):
        """Delete files and directories, existing or not."""
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def clean(self):
        """Delete everything that was made within."""
        try:
            yield
        finally:
            self.drop(*self._scratch)
            self._scratch.clear()

    def kvps(self, *arguments, **options):
        """Run one command of kvps as a user would and return its Run."""
        return measure.run([sys.executable, "-m", "kvps", *arguments], cwd=self.work, **options)

    def unchecked_kvps(self, *arguments, **options):
        """Run one command of kvps with checksums off and return its Run."""
        script = Path(__file__).with_name("children.py")
        return measure.run([sys.executable, "-P", script, "unchecked", *arguments], cwd=self.work, **options)

    def train_kvps(self, store, source, *options, order=None, **more):
        """Train a store and return the Run; progress goes where stderr goes."""
        return self.kvps("train", store, source, "-o", str(order or self.order), *options, **more)

    def child(self, *arguments, **options):
        """Run one of `children.py`'s jobs; return what it printed, decoded from JSON, and its Run."""
        script = Path(__file__).with_name("children.py")
        run = measure.run([sys.executable, "-P", script, *arguments], cwd=self.work, **options)
        return json.loads(run.stdout), run

    def peer(self, *names):
        """Tell whether all these programs are on PATH, saying so when they are not."""
        missing = [name for name in names if not shutil.which(name)]
        if missing:
            print(f"  (no {', '.join(missing)} on PATH: measured without)")
        return not missing

    def lmplz(self, source, arpa, order=None):
        """Estimate an ARPA file with KenLM and return the Run; fallback discounts matter on small texts only."""
        memory = "4G" if self.full else "200M"
        return measure.run(["lmplz", "-o", str(order or self.order), "-S", memory, "-T", self.work,
                            "--discount_fallback", "--text", source, "--arpa", arpa], cwd=self.work)

    def build_binary(self, arpa, model):
        """Make KenLM's probing model, its default, and return the Run."""
        return measure.run(["build_binary", arpa, model], cwd=self.work)

    def kenlm_model(self, source):
        """Estimate and build KenLM's model of a text from scratch; return (path of the model, Run of both steps)."""
        arpa, model = self.scratch("arpa"), self.scratch("binary")
        run = self.lmplz(source, arpa) + self.build_binary(arpa, model)
        self.drop(arpa)
        return model, run

    def warm(self, path):
        """Read a file once, so that it comes from the page cache for every contender alike."""
        with open(path, "rb") as stream:
            while stream.read(1 << 20):
                pass

    def figure(self, name, values, *, better=None, goal=None):
        """Print one figure and write it to the JSON file.

        Args:
            name: with its unit at the end, as in `train_s`.
            values: {contender: number or list of numbers, one a round}; kvps first.
            better: "more" if a greater number is better, "less" if a smaller one is: then each other contender is
                compared, pair by pair, as "N times", above 1 where kvps is better. None: no comparison.
            goal: what was asked of the full size, in words.
        """
        values = {who: value if isinstance(value, list) else [value] for who, value in values.items()}
        ours, *others = values
        compared = {}
        for other in others if better else ():
            pair = (values[other], values[ours]) if better == "less" else (values[ours], values[other])
            compared[other] = measure.pair_ratios(*pair)
        asked = f"   (asked: {goal})" if goal and self.full else ""
        for i, (who, numbers) in enumerate(values.items()):
            ratio = f"   kvps is {_show(compared[who])} times better" if who in compared else ""
            label, note = (name, asked) if i == 0 else ("", "")
            print(f"  {label:<40} {who:<20} {_show(measure.Summary.of(numbers))}{ratio}{note}", flush=True)
        if self.json:
            print(json.dumps({
                "benchmark": self.running, "figure": name, "values": values, "goal": goal,
                "summary": {who: vars(measure.Summary.of(numbers)) for who, numbers in values.items()},
                "times_better": {who: vars(ratio) for who, ratio in compared.items()},
            }), file=self.json, flush=True)

    @functools.cached_property
    def sentences(self):
        """The number of sentences in the training text."""
        return text.count_lines(self.train)


def _show(summary):
    """Return "median [least .. greatest]", the range only if there is one."""
    middle, least, greatest = (f"{n:,.0f}" if abs(n) >= 10_000 else f"{n:.4g}" for n in vars(summary).values())
    return middle if least == greatest else f"{middle} [{least} .. {greatest}]"


def times(runs, attribute="wall_s"):
    """Return {contender: [attribute of each Run]} of what measure.interleave returned."""
    return {who: [getattr(run, attribute) for run in contender] for who, contender in runs.items()}

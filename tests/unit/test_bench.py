"""The benchmarks do not rot: each runs once at its small size; their arithmetic is checked by itself."""
import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
NAMES = ["train", "arpa", "linear", "memory", "query", "startup", "sizes", "update", "nltk", "recovery", "checksums", "table",
         "served", "workers", "ray", "skew", "next", "score", "complete"]
QUICK = ("train", "query", "table", "served")      # run by default; the others with --slow


def bench(*arguments, **environment):
    """Run `python -m bench` from the checkout, without development data, and return the finished process."""
    environment = os.environ | {"KVPS_SHARED": os.devnull} | environment
    return subprocess.run([sys.executable, "-m", "bench", *map(str, arguments)], cwd=CHECKOUT, env=environment,
                          capture_output=True, text=True, timeout=300)


@pytest.fixture
def measure(monkeypatch):
    """Return the module bench.measure, which is imported from the checkout."""
    monkeypatch.syspath_prepend(CHECKOUT)
    return importlib.import_module("bench.measure")


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """Return a work directory that all runs share, so that the text is generated once."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="session")
def command_line(work):
    """Skip where there is no kvps command to be measured."""
    found = subprocess.run([sys.executable, "-c", "import kvps.cli"], cwd=work, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("kvps.cli cannot be imported: " + (found.stderr.strip().splitlines() or ["no message"])[-1])


def test_bench_lists_every_benchmark():
    """Without a name every benchmark is listed with one line of meaning, and this file runs all of them."""
    listed = bench().stdout.splitlines()

    assert sorted(line.split()[0] for line in listed) == sorted(NAMES)
    assert all(re.fullmatch(r"\w+ +\S.{20,}", line) for line in listed)


def test_bench_refuses_unknown_name():
    """A name that is no benchmark's is a usage error, before anything is measured."""
    refused = bench("trian")

    assert refused.returncode == 2
    assert "trian" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_bench_runs(name, work, tmp_path, command_line):
    """Each benchmark runs at its small size, says on what, and gives finite figures of kvps."""
    if name == "ray":
        pytest.importorskip("ray", reason='needs ray: pip install "kvps[ray]"')
    out = tmp_path / "out.jsonl"
    done = bench(name, "--size", "small", "--runs", 1, "--work", work, "--json", out)
    environment, *figures = map(json.loads, out.read_text().splitlines())

    assert done.returncode == 0, done.stdout + done.stderr
    assert {"seed", "train_bytes", "warnings"} <= environment["environment"].keys()
    assert figures
    for figure in figures:
        assert figure["benchmark"] == name
        for values in figure["values"].values():
            assert values and all(math.isfinite(value) for value in values), figure
    assert not list(work.glob("run.*"))  # nothing is left behind


def test_env_describe(monkeypatch, tmp_path):
    """The machine, the build and the revision are described without any kvps being run."""
    monkeypatch.syspath_prepend(CHECKOUT)
    facts, warnings = importlib.import_module("bench.env").describe(tmp_path)

    assert {"cpu", "cores", "caches", "memory_bytes", "disk", "disk_free_bytes", "python", "numpy", "lmdb", "liblmdb",
            "compiler", "peers", "revision", "dirty", "busy"} <= facts.keys()
    assert facts["cores"] >= 1
    assert all(isinstance(warning, str) for warning in warnings)


def test_env_finds_debug_build(monkeypatch, tmp_path):
    """The compiler's own record in a kernel tells its flags, of which the last optimisation level counts."""
    monkeypatch.syspath_prepend(CHECKOUT)
    env = importlib.import_module("bench.env")
    (tmp_path / "_kernel.so").write_bytes(b"\x7fELF\0GNU C++17 12.2.0 -O3 -g -O0 -fPIC\0rest")

    assert env.compiler([tmp_path]) == ("GNU C++17 12.2.0 -O3 -g -O0 -fPIC", "-O0")
    assert env.compiler([]) == ("unknown", None)


def test_measure_cpu_and_memory(measure, tmp_path):
    """A child that works and fills memory shows at least the CPU time it saw itself, and the memory it filled."""
    code = "import time\nx = bytearray(b'x') * 50_000_000\nwhile time.process_time() < 0.1: pass\nprint(len(x))"
    run = measure.run([sys.executable, "-c", code], cwd=tmp_path, anon=True)

    assert run.stdout == "50000000\n"
    assert run.wall_s > 0
    assert run.cpu_s >= 0.1
    assert run.peak_rss_bytes >= run.peak_anon_bytes >= 50_000_000


def test_measure_failure(measure, tmp_path):
    """A command that fails is an error that holds the end of what it said."""
    with pytest.raises(measure.CommandFailed, match="code 3: went wrong"):
        measure.run(["sh", "-c", "echo went wrong >&2; exit 3"], cwd=tmp_path)


def test_measure_stdin_and_stdout_files(measure, tmp_path):
    """A command can read from one file and write to another."""
    (tmp_path / "in").write_text("some text")
    run = measure.run(["cat"], cwd=tmp_path, stdin=tmp_path / "in", stdout=tmp_path / "out")

    assert (tmp_path / "out").read_text() == "some text"
    assert run.stdout == ""


def test_measure_interleave(measure):
    """Contenders take turns, and one that is not there is left out."""
    order = []
    runs = measure.interleave(2, {"a": lambda: order.append("a"), "b": lambda: order.append("b"), "gone": None})

    assert order == ["a", "b", "a", "b"]
    assert list(runs) == ["a", "b"]


def test_measure_run_addition(measure):
    """Times of steps add; a peak is that of the greater step."""
    steps = measure.Run(1, 2, 30, None, "a") + measure.Run(4, 5, 6, 7, "b")

    assert steps == measure.Run(5, 7, 30, 7, "b")


def test_measure_ratios(measure):
    """Ratios are taken pair by pair: a round in which the machine was slow counts for both."""
    assert measure.pair_ratios([10, 100, 30], [1, 10, 2]) == measure.Summary(10, 10, 15)


@pytest.mark.parametrize("exponent", [0.5, 1, 1.05, 2])
def test_measure_growth_exponent(measure, exponent):
    """The exponent of an exact power is found, whatever its factor."""
    sizes = [1, 2, 4, 8]

    assert measure.growth_exponent(sizes, [3 * size**exponent for size in sizes]) == pytest.approx(exponent)


def test_generated_text_is_replayable(monkeypatch, tmp_path):
    """The same seed generates the same text, another seed another, and the end of it is held out."""
    monkeypatch.syspath_prepend(CHECKOUT)
    monkeypatch.setenv("KVPS_SHARED", os.devnull)
    text = importlib.import_module("bench.text")
    monkeypatch.setattr(text, "SMALL_SENTENCES", 130)
    texts = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        train, heldout, _ = text.prepare(tmp_path / folder, None, None, "small", seed)
        texts.append((train.read_bytes(), heldout.read_bytes()))

    assert texts[0] == texts[1] != texts[2]
    assert (texts[0][0].count(b"\n"), texts[0][1].count(b"\n")) == (128, 2)
    assert all(part.endswith(b"\n") for part in texts[0])

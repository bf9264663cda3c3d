"""Compressed text that unpacks to far too much, and lines without an end: refused at once, in one line and little memory."""
import bz2
import gzip
import json
import lzma
import os
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter

import pytest
import zstandard
from processes import TIMEOUT_S, contents, counted, environment, refused, run, run_json, start, summary, zipf_text

ORDER = 2
TEXT = zipf_text(1, 100, n_words=100)
# What the promise says, for this test's CPU time and for memory beyond that of a command that is refused for a reason
# that costs nothing.
LIMIT_S = 2.0
LIMIT_BYTES = 64 << 20

COMPRESS = {"gz": lambda data: gzip.compress(data, 6), "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
BLOCK = 8 << 20
LINES, LINE = b"a b c\n" * (BLOCK // 6), b"x" * BLOCK
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# A zstd block of 3 + 1 bytes that stands for 128 KiB of the letter a.
RLE_BLOCK = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"a"


def packed(data, ending):
    """Return a function that makes a file of 128 times as much data, 1 GiB if it is a block, and returns its path."""
    def make(folder):
        path = folder / f"bomb.{ending}"
        piece = COMPRESS[ending.split(".")[-1]](data)
        with path.open("wb") as file:
            for _ in range(128):
                file.write(piece)
        return path
    return make


def written(name, data):
    """Return a function that writes a file into a folder and returns its path."""
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name
    return make


def one_line(folder):
    """Make a file of 1 GiB, which takes no disk, without a newline."""
    with (folder / "line.txt").open("wb") as file:
        file.truncate(1 << 30)
    return folder / "line.txt"


def wide_xz():
    """Return an .xz file that asks for a dictionary of 512 MiB."""
    data = bytearray(lzma.compress(TEXT))
    header_bytes = (data[12] + 1) * 4
    place = data.index(b"\x21\x01", 12, 12 + header_bytes) + 2       # LZMA2, one byte of properties: the dictionary
    data[place] = 34
    data[12 + header_bytes - 4:12 + header_bytes] = struct.pack("<I", zlib.crc32(data[12:12 + header_bytes - 4]))
    return bytes(data)


RATIO = ["200 times", "--max-ratio"]
# What it is: (how to make it, what the message must have in it beside the input's name)
BOMBS = {
    **{f"1 GiB of lines as .{ending}": (packed(LINES, ending), RATIO) for ending in COMPRESS},
    **{f"1 GiB without a newline as .{ending}": (packed(LINE, ending), RATIO) for ending in COMPRESS},
    "json lines": (packed(b'{"text": "a"}\n' * (BLOCK // 14), "jsonl.gz"), RATIO),
    "gz in gz": (written("twice.gz.gz", gzip.compress(gzip.compress(LINES) * 128)), ["line 1", "unpack it once before"]),
    "zstd of 32,768:1": (written("runs.zst", ZSTD_MAGIC + b"\x00\x50" + RLE_BLOCK * 8192), RATIO),
    "zstd that claims 32 TiB": (written("claim.zst", ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", 32 << 40) + RLE_BLOCK * 100),
                                ["128 MiB", "smaller window"]),
    "zstd with a window of 1 GiB": (written("wide.zst", ZSTD_MAGIC + b"\x00\xa0" + RLE_BLOCK * 100),
                                    ["128 MiB", "smaller window"]),
    "xz with a dictionary of 512 MiB": (written("wide.xz", wide_xz()), ["256 MiB", "smaller window"]),
    "a line of 1 GiB": (one_line, ["line 1", "32 MiB", "lines"]),
}


# Runs kvps and says in the end what it used. The system's own figure of a child's memory begins with that of its parent.
METER = """
import atexit, os, runpy, sys
def tell():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(sum(os.times()[:2]), int(peak.split()[1]) << 10, file=sys.__stdout__)
atexit.register(tell)
sys.argv[0] = "kvps"
runpy.run_module("kvps", run_name="__main__")
"""


def measured(*arguments):
    """Run a command that prints nothing; return (exit code, stderr, seconds of CPU, greatest resident memory in bytes)."""
    done = subprocess.run([sys.executable, "-c", METER, *map(str, arguments)], env=environment(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    cpu_s, n_bytes = done.stdout.split()
    return done.returncode, done.stderr, float(cpu_s), int(n_bytes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a compiled model."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_bytes(TEXT)
    run("train", folder / "store", folder / "text", "--order", ORDER)
    run("compile", folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def baseline(store):
    """Return how much memory a command takes that is refused for a missing input."""
    return {command: measured(command, store, store / "missing")[3] for command in ("train", "update", "perplexity")}


@pytest.mark.parametrize("what", BOMBS)
def test_bomb(store, baseline, tmp_path, what):
    """A bomb is refused within two seconds and 64 MiB by whoever reads it, and leaves no store and no count."""
    make, expected = BOMBS[what]
    bomb = make(tmp_path)
    before = summary(store)

    for command, place in (("train", tmp_path / "new"), ("update", store), ("perplexity", store)):
        code, err, cpu_s, n_bytes = measured(command, place, bomb)
        assert (code, err.count("\n")) == (1, 1), err
        for fragment in (str(bomb), *expected):
            assert fragment in err
        assert cpu_s < LIMIT_S
        assert n_bytes < baseline[command] + LIMIT_BYTES
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [bomb.name]
    assert summary(store) == before


def test_refusal_as_json(store, tmp_path):
    """For programs the refusal says how many times as long the text is, and what was allowed."""
    bomb = packed(LINES, "gz")(tmp_path)

    answer = json.loads(run("update", store, bomb, "--max-ratio", 77, "--json", check=1).stdout)

    assert (answer["error"], answer["path"], answer["expected"]) == ("DataError", str(bomb), 77)
    assert answer["found"] > 77


def test_bomb_behind_good_text(store, tmp_path):
    """A bomb that begins like any text is met while it is counted: what is counted is rolled back, in little memory."""
    rng = random.Random(1)
    good = b"".join(rng.randbytes(30).hex().encode() + b"\n" for _ in range(3000))
    (tmp_path / "late.gz").write_bytes(gzip.compress(good) + gzip.compress(LINES) * 32)
    before = contents(store), summary(store)

    code, err, _, n_bytes = measured("update", store, tmp_path / "late.gz", "--max-ratio", 50, "--threads", 1, "--memory", "16M")

    assert (code, err.count("\n")) == (1, 1)
    assert "50 times" in err
    assert (contents(store), summary(store)) == before
    # Splits of 1 MiB take 16 MiB while they are counted.
    assert n_bytes < 128 << 20


REPEATED = b"GET /index.html 200 OK\n"
TIMES = (17 << 20) // len(REPEATED)


def expected_counts():
    """Return what a store holds of the log that repeats itself."""
    return Counter({ngram: count * TIMES for ngram, count in counted(REPEATED, ORDER).items()})


@pytest.mark.parametrize("ratio", [0, 2000])
def test_log_that_repeats_itself(tmp_path, ratio):
    """Text that is as repetitive as a bomb is refused with the option that admits it, and counted with that option."""
    (tmp_path / "log.gz").write_bytes(gzip.compress(REPEATED * TIMES))
    command = ("train", tmp_path / "store", tmp_path / "log.gz", "--order", ORDER)

    assert "--max-ratio" in refused(*command)
    run(*command, "--max-ratio", ratio)

    assert contents(tmp_path / "store") == expected_counts()
    assert run_json("perplexity", tmp_path / "store", tmp_path / "log.gz", "--max-ratio", ratio)["sentences"] == TIMES


@pytest.mark.parametrize("again", ["resume", "the same command without the option"])
def test_ratio_outlives_an_interruption(tmp_path, again):
    """A job goes on with the ratio that it was begun with, whoever goes on with it."""
    store = tmp_path / "store"
    (tmp_path / "log.gz").write_bytes(gzip.compress(REPEATED * TIMES))
    command = ("train", store, tmp_path / "log.gz", "--order", ORDER)
    with start(*command, "--max-ratio", 0, stop_at="SIGKILL before kvps.store.shard:Shard.apply 40") as process:
        process.communicate(timeout=TIMEOUT_S)
    assert summary(store)[3]
    assert run_json("status", store)["done_bytes"] > 0

    if again == "resume":
        run("resume", store)
    else:
        os.rename(tmp_path / "log.gz", tmp_path / "elsewhere.gz")
        refused("train", store, tmp_path / "elsewhere.gz", "--order", ORDER)       # told before the store is looked at
        run("train", store, tmp_path / "elsewhere.gz", "--order", ORDER, "--max-ratio", 1500)

    assert contents(store) == expected_counts()
    assert summary(store)[3] is False


def test_impossible_ratio(store):
    """A ratio below 0 is a usage error."""
    assert "-1" in refused("update", store, store / "root", "--max-ratio", -1, code=2)

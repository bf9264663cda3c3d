"""Make the stores of this folder with a kvps that writes format 1 (the last commit before "Store format 2"). A script.

    mkdir /tmp/v1; PYTHONPATH=OLD_CHECKOUT python tests/data/v1/make.py /tmp/v1; cp -r /tmp/v1/* tests/data/v1

idle: a train, an update, a forget, and text from stdin. pending: an update that was killed after two of its splits.
*.dump is what `kvps dump --order 3 --sorted` says, of pending once it was resumed.
"""
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = ["the", "cat", "dog", "sat", "on", "mat", "log", "saw", "a", "bird", "and", "fish", "in", "house", "tree", "that", "ran",
         "to"]


def text(seed, n_lines, extra=""):
    """Return lines of a few words."""
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 7)) + [extra][:len(extra)]) + "\n" for _ in range(n_lines))


def kvps(*arguments, check=True, **more):
    """Run the old kvps."""
    return subprocess.run([sys.executable, "-m", "kvps", *arguments], check=check, capture_output=True, text=True, **more)


def killed():
    """Run `kvps` with splits of 1 KiB, and die without a word when the third one is applied."""
    from kvps.cli import main
    from kvps.jobs import counting
    from kvps.store.shard import Shard

    counting.MIN_SPLIT_BYTES = 1024
    apply, calls = Shard.apply, []

    def fatal(*arguments, **more):
        calls.append(1)
        if len(calls) > 2:
            os._exit(9)
        return apply(*arguments, **more)

    Shard.apply = fatal
    main(sys.argv[2:])


def make(folder):
    """Write everything to a folder."""
    os.chdir(folder)
    for name, content in (("a.txt", text(1, 40)), ("b.txt", text(2, 25, "é")), ("c.txt", text(3, 120, "new"))):
        Path(name).write_text(content, encoding="utf-8")
    for name in ("idle", "pending"):
        shutil.rmtree(name, ignore_errors=True)
    kvps("train", "idle", "a.txt", "-o", "3", "--shards", "2")
    kvps("update", "idle", "b.txt")
    kvps("update", "idle", "-", input="the cat of stdin\n")
    kvps("forget", "idle", "b.txt")
    Path("idle.dump").write_text(kvps("dump", "idle", "--order", "3", "--sorted").stdout, encoding="utf-8")
    kvps("train", "pending", "a.txt", "-o", "3", "--shards", "1")
    subprocess.run([sys.executable, os.path.join(HERE, "make.py"), "killed", "update", "pending", "c.txt", "--threads", "1",
                    "-S", "1K"], check=False)
    shutil.copytree("pending", "whole")
    kvps("resume", "whole")
    Path("pending.dump").write_text(kvps("dump", "whole", "--order", "3", "--sorted").stdout, encoding="utf-8")
    shutil.rmtree("whole")
    for file in (*Path().rglob("lock.mdb"), *Path().rglob("owner.lock")):
        file.unlink()                          # they hold nothing
    for folder_name in ("idle/models", "pending/models"):
        shutil.rmtree(folder_name, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        killed()
    else:
        make(sys.argv[1])

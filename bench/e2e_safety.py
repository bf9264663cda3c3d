"""End to end, what safety costs: how soon a store is ready after kill -9, and what checksums take."""
import json
import signal
import subprocess
import sys
import time

from bench import measure, text
from bench.setting import benchmark, times

TARGET_BYTES, MOST_UPDATES = 10**9, 12  # of the store that is killed at full size; a short text ends before that
# Counts a file into a store, and kills itself as soon as half of it is there.
KILLED = """
import os, signal, sys
import kvps
def progress(stage, done, total):
    if 2 * done >= total:
        os.kill(os.getpid(), signal.SIGKILL)
with kvps.open(sys.argv[1], writable=True) as store:
    store.update_files([sys.argv[2]], again=True, memory=sys.argv[3], progress=progress)
"""
# Opens a store as its writer, scores a sentence with the model that was compiled before, counts one n-gram.
READY = """
import json, sys, time
from kvps import open  # which imports what it needs
start = time.perf_counter()
with open(sys.argv[1], writable=True) as store:
    opened = time.perf_counter()
    with store.model() as model:
        model.score("the")
        scored = time.perf_counter()
    store.count("the")
    counted = time.perf_counter()
    print(json.dumps({"version": store.version, "open_s": opened - start, "score_s": scored - opened,
                      "count_s": counted - scored}))
"""


@benchmark("recovery", "seconds from kill -9 in the middle of a job to a store that is open and answers")
def recovery(setting):
    """Train and compile; then kill an update in the middle, open the store in a new process, score, and count.

    At full size the text is counted again and again until the store has TARGET_BYTES. The compiled model of the committed
    version is there, as it is where models are served; a raw count reads the whole store and stands by itself.
    """
    store, half = setting.scratch("store"), setting.scratch("half.txt")
    text.cut(setting.train, half, 0, 1 / 2)
    setting.warm(setting.train)
    setting.train_kvps(store, setting.train)
    for _ in range(MOST_UPDATES if setting.full else 0):
        if store_bytes(store) >= TARGET_BYTES:
            break
        setting.kvps("update", store, setting.train, "--again")
    setting.kvps("compile", store)
    version = _status(setting, store)["version"]
    sizes, parts, found = [], [], []
    for _ in range(setting.runs):
        parts.append(_killed(setting, store, half))
        sizes.append(store_bytes(store))
        start = time.perf_counter()
        run = measure.run([sys.executable, "-P", "-c", READY, store], cwd=setting.work)
        found.append({"process_s": time.perf_counter() - start, **json.loads(run.stdout)})
        if found[-1]["version"] != version:
            raise measure.CommandFailed(f"{store} is at version {found[-1]['version']}, expected {version}")
        setting.kvps("abort", store)
    ready = [one["open_s"] + one["score_s"] for one in found]
    setting.figure("store_bytes", {"kvps": sizes})
    setting.figure("killed_at_percent_of_its_job", {"kvps": parts})
    setting.figure("ready_s", {"kvps": ready}, goal="at most 1 s for 1 GB")
    if setting.full:  # a small store takes what a process takes
        setting.figure("ready_s_per_gb", {"kvps": [s / (n / 1e9) for s, n in zip(ready, sizes, strict=True)]})
    setting.figure("open_s", {"kvps": [one["open_s"] for one in found]})
    setting.figure("first_score_s", {"kvps": [one["score_s"] for one in found]})
    setting.figure("first_count_s", {"kvps": [one["count_s"] for one in found]})
    setting.figure("with_start_of_python_s", {"kvps": [one["process_s"] - one["count_s"] for one in found]})


def store_bytes(store):
    """Return the length of all data files of a store."""
    return sum(path.stat().st_size for path in store.rglob("data.mdb"))


def _status(setting, store):
    """Return what kvps status says."""
    return json.loads(setting.kvps("status", store, "--json").stdout)


def _killed(setting, store, source):
    """Kill -9 an update in the middle; return how many percent of its text were in the store."""
    memory = "1G" if setting.full else "64K"  # a small text in small parts
    process = subprocess.run([sys.executable, "-P", "-c", KILLED, store, source, memory], cwd=setting.work, check=False,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = _status(setting, store)
    if process.returncode != -signal.SIGKILL or status["state"] != "interrupted":
        raise measure.CommandFailed(f"an update that was to be killed ended with code {process.returncode}, {status['state']}")
    return 100 * status["done_bytes"] / status["total_bytes"]


@benchmark("checksums", "training and the store's size with checksums and without: what they cost")
def checksums(setting):
    """Train, read everything once (dump), compile: with checksums, and with the same code that takes all of them for 0.

    The fields of the checksums stay where they are, so bytes differ by nothing; they are 4 of every record, which is 256 KiB
    for counts.
    """
    setting.warm(setting.train)
    bytes_of = {}
    steps = {"kvps": [], "without checksums": []}

    def contender(name, command):
        def ours():
            store, lines = setting.scratch("store"), setting.scratch("lines")
            steps[name].append([command("train", store, setting.train, "-o", str(setting.order)),
                                command("dump", store, "--order", "1", stdout=lines), command("compile", store)])
            bytes_of[name] = store_bytes(store)
            setting.drop(store, lines)
            return steps[name][-1][0]
        return ours

    measure.interleave(setting.runs, {"kvps": contender("kvps", setting.kvps),
                                      "without checksums": contender("without checksums", setting.unchecked_kvps)})
    seconds = {}
    for number, step in enumerate(("train", "dump", "compile")):
        for unit in ("wall_s", "cpu_s"):
            seconds[step, unit] = times({name: [runs[number] for runs in all_runs] for name, all_runs in steps.items()}, unit)
            setting.figure(f"{step}_{unit}", seconds[step, unit])
    setting.figure("store_bytes", bytes_of)
    for unit in ("wall_s", "cpu_s"):
        pairs = zip(*seconds["train", unit].values(), strict=True)
        setting.figure(f"train_{unit}_percent_for_checksums", {"kvps": [100 * (on / off - 1) for on, off in pairs]},
                       goal="at most 10")
    on, off = bytes_of.values()
    setting.figure("store_bytes_percent_for_checksums", {"kvps": 100 * (on / off - 1)}, goal="at most 2")

"""Jobs that need libraries or memory: run by the benchmarks as processes of their own, each printing one JSON object.

- `reuters OUT LIMIT`: write the documents of NLTK's Reuters corpus to OUT, one a line (LIMIT 0: all)
- `nltk FILE ORDER`: fit nltk.lm's MLE on the lines of FILE
- `kvps FILE ORDER STORE`: train a new store on FILE through the Python interface
- `kenlm MODEL FILE`: score the lines of FILE with kenlm.Model
- `score WHO MODEL FILE`: score the lines of FILE from Python, as one list and one by one, with "kvps", "compat" or "kenlm"
- `complete MODEL FILE`: complete the beginnings of the lines of FILE one by one; milliseconds, median and 99th percentile
- `table STORE N BATCH SEED`: fill a table with N keys, then push and pull batches; milliseconds, medians
- `rows FOLDER N BATCH SEED`: the same with an LMDB row a key
- `served STORE N BATCH SEED TRANSPORT`: the same with `kvps serve`, over "ipc" or, with keys, "tcp"; then several clients at once
- `workers FOLDER FILE ORDER TRANSPORT`: train over servers in FOLDER with two workers, over "ipc" or, with keys, "tcp"
- `cluster FOLDER FILE ORDER SHARDS TASKS`: train in a Ray cluster of two CPUs, with so many shards and tasks
- `skew STORE`: deal the n-grams of a store to more and more shards
- `redis FOLDER N BATCH SEED CLIENT`: the same with a redis-server, asked by "bytes" that NumPy lays out, or by "redis-py"
- `unchecked ARGUMENTS`: the command line of kvps, with every checksum of a store taken for 0: for measuring what they cost
"""
import contextlib
import itertools
import json
import sys
import time

SHARDS = (4, 16, 64, 100, 256, 800)
COMPLETED = 1000           # lines of which beginnings are completed
CLIENTS, EACH = 4, 8       # that push at once, and how many batches
PASSES = 5                 # over a text that is scored


def reuters(out, limit):
    """Write the corpus; documents is 0 when it is not installed."""
    from nltk.corpus import reuters as corpus
    try:
        fileids = corpus.fileids()
    except LookupError:
        return {"documents": 0}
    fileids = fileids[:int(limit) or None]
    with open(out, "w", encoding="utf-8") as lines:
        for fileid in fileids:
            print(*corpus.words(fileid), file=lines)
    return {"documents": len(fileids)}


def nltk(file, order):
    """Fit as the tutorial does, but with the one pad at each side that kvps has too."""
    from nltk.lm import MLE
    from nltk.util import everygrams
    with open(file, encoding="utf-8") as lines:
        documents = [line.split(" ") for line in lines.read().removesuffix("\n").split("\n")]
    start = time.perf_counter()
    padded = [["<s>", *document, "</s>"] for document in documents]
    model = MLE(int(order))
    model.fit((everygrams(document, max_len=int(order)) for document in padded), itertools.chain.from_iterable(padded))
    return {"fit_s": time.perf_counter() - start, "ngrams": model.counts.N()}


def kvps(file, order, store):
    """Create a store and count the file into it."""
    from kvps import create  # which imports what it needs, as nltk's import above does
    start = time.perf_counter()
    with create(store, order=int(order)) as opened:
        opened.update_files([file])
    return {"fit_s": time.perf_counter() - start}


def kenlm(model, file):
    """Score each line, with <s> and </s>."""
    import kenlm as library
    opened = library.Model(model)
    with open(file, encoding="utf-8", newline="\n") as lines:
        return {"log10_probability": sum(opened.score(line.rstrip("\n")) for line in lines)}


def score(who, model, file):
    """Return tokens per second of CPU, medians, of one list of lines ("batch") and of a call a line ("each")."""
    import statistics
    with open(file, encoding="utf-8", newline="\n") as lines:
        sentences = [line.rstrip("\n") for line in lines]
    if who == "kvps":
        from kvps import load
        opened = load(model, threads=1)
        many = opened.score
    elif who == "compat":
        from kvps.compat import kenlm as ours
        opened = ours.Model(model)
        many = opened.score_many
    else:
        import kenlm as library
        opened = library.Model(model)

        def many(sentences):
            return [opened.score(sentence) for sentence in sentences]

    def each():
        return [opened.score(sentence) for sentence in sentences]

    found = {"log10_probability": float(sum(many(sentences)))}
    each()
    tokens = sum(len(sentence.split()) + 1 for sentence in sentences)
    for name, call in (("batch", lambda: many(sentences)), ("each", each)):
        times = []
        for _ in range(PASSES):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        found[name] = tokens / max(statistics.median(times), 1e-9)
    return found


def complete(model, file):
    """Return the median and the 99th percentile of single calls, after a pass over half of them: what a search box waits for.

    A beginning is one to four words of a line and up to three letters of the next word.
    """
    import random

    import numpy as np

    from kvps import load
    rng, typed = random.Random(1), []
    with open(file, encoding="utf-8", newline="\n") as lines:
        for words in (line.split() for line in lines):
            if len(words) > 4 and len(typed) < COMPLETED:
                n = rng.randint(1, 4)
                typed.append(" ".join([*words[:n], words[n][:rng.randint(0, 3)]]))
    with load(model) as opened:
        opened.complete(typed[:len(typed) // 2])
        times = []
        for text in typed:
            start = time.perf_counter()
            opened.complete(text)
            times.append(time.perf_counter() - start)
    return {"median": 1e3 * float(np.median(times)), "p99": 1e3 * float(np.percentile(times, 99))}


def _batches(n_keys, batch, seed, push, pull, others=()):
    """Fill, push and pull; return the median of each in milliseconds. Pushes and pulls are of random keys of the table.

    others: what pushes for other clients; all of them push at once in the end, and a batch takes its part of that time.
    """
    import concurrent.futures

    import numpy as np
    rng = np.random.default_rng(int(seed))
    keys, batch = rng.integers(0, 2**64, int(n_keys), np.uint64), int(batch)
    found = {"fill": [], "push": [], "pull": [], "pull_few": []}

    def timed(name, call, chosen):
        start = time.perf_counter()
        counts = call(chosen)
        found[name].append(1e3 * (time.perf_counter() - start))
        return counts

    for at in range(0, len(keys), batch):
        timed("fill", push, keys[at:at + batch])
    pushed = rng.choice(keys, batch)
    pull(pushed)                               # what was filled is looked at for the first time
    for _ in range(5):
        timed("push", push, pushed)
        counts = timed("pull", pull, pushed)
        timed("pull_few", pull, rng.choice(keys, 100))
    assert int(counts.min()) >= 6 and int(pull(keys[:batch]).min()) >= 1
    if others:
        work = [[rng.choice(keys, batch) for _ in range(EACH)] for _ in others]
        with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
            start = time.perf_counter()
            list(pool.map(lambda push, batches: [push(some) for some in batches], others, work))
            found["push_together"] = [1e3 * (time.perf_counter() - start) / (len(others) * EACH)]
    return {name: float(np.mean(times) if name == "fill" else np.median(times)) for name, times in found.items()}


def table(store, n_keys, batch, seed):
    """Work on a table of one shard."""
    import os

    from kvps import create, open
    create(store).close()
    with open(store, writable=True) as opened, opened.table("t", kind="count", key_bytes=8) as made:
        found = _batches(n_keys, batch, seed, made.push, made.pull)
        data = opened.path / "tables" / "t" / "shards" / "0000.0" / "data.mdb"
        return {**found, "bytes": os.stat(data).st_size / int(n_keys)}


def rows(folder, n_keys, batch, seed):
    """Work on one LMDB row a key: a transaction a batch, its keys sorted first, which is what LMDB likes best."""
    import os

    import lmdb
    import numpy as np
    os.mkdir(folder)
    env = lmdb.open(folder, map_size=1 << 40, writemap=False)

    def push(keys):
        found, counts = np.unique(keys, return_counts=True)
        with env.begin(write=True) as txn, txn.cursor() as cursor:
            for key, count in zip(found.tolist(), counts.tolist(), strict=True):
                name = key.to_bytes(8)
                before = cursor.get(name)
                cursor.put(name, (count + (int.from_bytes(before, "little") if before else 0)).to_bytes(8, "little"))

    def pull(keys):
        order = np.argsort(keys)
        counts = np.empty(len(keys), np.int64)
        with env.begin() as txn, txn.cursor() as cursor:
            found = [cursor.get(key.to_bytes(8), b"") for key in keys[order].tolist()]
        counts[order] = [int.from_bytes(value, "little") for value in found]
        return counts

    found = _batches(n_keys, batch, seed, push, pull)
    size = os.stat(os.path.join(folder, "data.mdb")).st_size
    env.close()
    return {**found, "bytes": size / int(n_keys)}


@contextlib.contextmanager
def _server(command, ready):
    """Run a server; give the line in which it says that it is ready, by this word."""
    import subprocess
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stdout if ready in line), None)
            assert line, f"{command[0]} ended with code {process.wait()}"
            yield line
        finally:
            process.terminate()


@contextlib.contextmanager
def _served(store, socket, transport):
    """Serve a store over "ipc", at a socket, or "tcp" with keys; give (address, our folder of keys or None)."""
    from pathlib import Path
    command, keys = [sys.executable, "-m", "kvps", "serve", store, "--bind", f"ipc://{socket}"], None
    if transport == "tcp":
        import zmq

        from kvps.ps import curve
        folder = Path(f"{socket}.keys")
        curve.make(folder, ["bench"], zmq.curve_keypair)
        command[-1:] = ["tcp://127.0.0.1:0", "--keys", folder]
        keys = folder / "client-bench"
    with _server(command, "serving at") as line:
        yield line.split()[-1], keys


def served(store, n_keys, batch, seed, transport):
    """Work on a table of one shard in a server of its own."""
    from kvps import connect, create
    create(store).close()
    with _served(store, f"{store}/socket", transport) as (address, keys), contextlib.ExitStack() as stack:
        tables = [stack.enter_context(connect(address, keys=keys)).table("t", kind="count", key_bytes=8)
                  for _ in range(1 + CLIENTS)]
        return _batches(n_keys, batch, seed, tables[0].push, tables[0].pull, [table.push for table in tables[1:]])


def workers(folder, file, order, transport):
    """Train a new store over servers of 4 shards with two workers of one thread each; return the seconds it took."""
    import subprocess
    from pathlib import Path

    from kvps import create
    create(Path(folder, "store"), order=int(order), shards=4).close()
    kvps = [sys.executable, "-m", "kvps"]
    with _served(Path(folder, "store"), Path(folder, "sock"), transport) as (address, keys):
        given = [] if keys is None else ["--keys", keys]
        with subprocess.Popen([*kvps, "work", address, "--threads", "1", *given], stdout=subprocess.DEVNULL) as helper:
            time.sleep(1)                      # it waits for a job then, as a worker on another machine does
            began = time.perf_counter()
            subprocess.run([*kvps, "train", address, file, "-o", order, "--threads", "1", *given], check=True,
                           stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - began
            helper.terminate()                 # which may have come too late to help with a short text
    return {"seconds": seconds}


def cluster(folder, file, order, shards, tasks):
    """Train a new store of so many shards on Ray by so many tasks; return the seconds it took, and those of the cluster's start."""
    import os
    import subprocess
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster
    began = time.perf_counter()
    head = {"num_cpus": 2, "object_store_memory": 1 << 30, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    started = time.perf_counter()
    try:
        there = f"ray://{nodes.address}{folder}/store"
        subprocess.run([sys.executable, "-m", "kvps", "train", there, file, "-o", order, "--shards", shards, "--threads", tasks],
                       check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    finally:
        nodes.shutdown()
    return {"seconds": seconds, "start_s": started - began}


def skew(store):
    """Deal the n-grams of a store to so many shards, by hash alone and by a routing table; the largest over the mean."""
    import numpy as np

    from kvps import open as open_store
    from kvps.ps.router import Router, parts, plan, weigh
    from kvps.ps.runs import bits_for, merged
    with open_store(store) as opened, opened._reader().snapshot() as snapshot:
        order, n_words = opened.order, snapshot.state["words"]
        bits, weights, keys = bits_for(n_words), np.zeros(n_words, np.int64), []
        for number, shard in enumerate(snapshot.shards):
            for block in merged(shard, snapshot.runs(number), order, bits):
                weigh(block.keys, order, bits, weights)
                keys.append(block.keys.copy())
    keys = np.concatenate(keys)
    found = {}
    for n_shards in SHARDS:
        table = plan(weights, n_shards, order, lambda split, n=n_shards: parts(keys, order, bits, n_words, n, split))
        loads = [np.bincount(Router(n_shards, chosen).shards(keys, order, bits, n_words), minlength=n_shards)
                 for chosen in (None, table)]
        found[n_shards] = [float(load.max() / load.mean()) for load in loads]
    return {"largest_over_mean": found, "heaviest_word": float(weights.max() / weights.sum())}


def redis(folder, n_keys, batch, seed, client):
    """Work on one hash whose fields are the keys: HINCRBY, one after another without waiting, and HMGET."""
    import os
    os.mkdir(folder)
    path = os.path.join(folder, "socket")
    options = {"dir": folder, "unixsocket": path, "port": 0, "save": "", "appendonly": "yes", "appendfsync": "everysec",
               "auto-aof-rewrite-percentage": 0}        # which would take a core from it now and then
    command = ["redis-server", *itertools.chain(*((f"--{name}", value) for name, value in options.items()))]
    opened = {"bytes": _redis_bytes, "redis-py": _redis_py}[client]
    with _server(command, "eady to accept connections"), contextlib.ExitStack() as stack:
        calls = [opened(path, stack) for _ in range(1 + CLIENTS)]
        return _batches(n_keys, batch, seed, *calls[0], [push for push, _ in calls[1:]])


def _redis_py(path, stack):
    """Return push and pull over redis-py."""
    import numpy as np
    import redis as library
    client = stack.enter_context(library.Redis(unix_socket_path=path))

    def push(keys):
        with client.pipeline(transaction=False) as pipeline:
            for key in keys.tolist():
                pipeline.hincrby("t", key.to_bytes(8), 1)
            pipeline.execute()

    def pull(keys):
        found = client.hmget("t", [key.to_bytes(8) for key in keys.tolist()])
        return np.array([int(count or 0) for count in found], np.int64)

    return push, pull


def _redis_bytes(path, stack):
    """Return push and pull over a socket: what is sent is laid out as an array, so that the server alone takes time."""
    import socket

    import numpy as np
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(path)

    def laid_out(before, keys, after):
        laid = np.tile(np.frombuffer(before + bytes(8) + after, np.uint8), (len(keys), 1))
        laid[:, len(before):len(before) + 8] = keys.view(np.uint8).reshape(-1, 8)
        return laid

    def lines(n):
        pieces = []
        while n > 0:
            pieces.append(connection.recv(1 << 20))
            assert pieces[-1], "the server has gone"
            n -= pieces[-1].count(b"\n")
        return b"".join(pieces)

    def push(keys):
        connection.sendall(laid_out(b"*4\r\n$7\r\nHINCRBY\r\n$1\r\nt\r\n$8\r\n", keys, b"\r\n$1\r\n1\r\n"))
        answer = lines(len(keys))
        assert answer.count(b":") == len(keys)

    def pull(keys):
        connection.sendall(b"*%d\r\n$5\r\nHMGET\r\n$1\r\nt\r\n" % (len(keys) + 2))
        connection.sendall(laid_out(b"$8\r\n", keys, b"\r\n"))
        found = lines(1 + 2 * len(keys)).split(b"\r\n")[2::2]     # of keys that are all there: a length, a number
        return np.array(list(map(int, found)), np.int64)

    return push, pull


def unchecked(*arguments):
    """Run a command that neither computes nor compares checksums and digests; it ends the process."""
    import runpy
    import types

    from kvps.store import format as fmt
    fmt.zlib = types.SimpleNamespace(crc32=lambda data, value=0: 0)
    fmt.chunk_digest = lambda key, value: 0
    sys.argv[:] = ["kvps", *arguments]
    runpy.run_module("kvps", run_name="__main__")


if __name__ == "__main__":
    job, *arguments = sys.argv[1:]
    if job == "unchecked":
        unchecked(*arguments)
    jobs = (reuters, nltk, kvps, kenlm, score, complete, table, rows, served, workers, cluster, skew, redis)
    print(json.dumps({function.__name__: function for function in jobs}[job](*arguments)))

"""Jobs that need libraries or memory: run by the benchmarks as processes of their own, each printing one JSON object.

- `reuters OUT LIMIT`: write the documents of NLTK's Reuters corpus to OUT, one a line (LIMIT 0: all)
- `nltk FILE ORDER`: fit nltk.lm's MLE on the lines of FILE
- `kvps FILE ORDER STORE`: train a new store on FILE through the Python interface
- `kenlm MODEL FILE`: score the lines of FILE with kenlm.Model
- `table STORE N BATCH SEED`: fill a table with N keys, then push and pull batches; milliseconds, medians
- `rows FOLDER N BATCH SEED`: the same with an LMDB row a key
- `unchecked ARGUMENTS`: the command line of kvps, with every checksum of a store taken for 0: for measuring what they cost
"""
import itertools
import json
import sys
import time


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


def _batches(n_keys, batch, seed, push, pull):
    """Fill, push and pull; return the median of each in milliseconds. Pushes and pulls are of random keys of the table."""
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
    assert int(counts.min()) == 6 and int(pull(keys[:batch]).min()) >= 1
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
    print(json.dumps({"reuters": reuters, "nltk": nltk, "kvps": kvps, "kenlm": kenlm, "table": table,
                      "rows": rows}[job](*arguments)))

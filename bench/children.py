"""Jobs that need libraries or memory: run by the benchmarks as processes of their own, each printing one JSON object.

- `reuters OUT LIMIT`: write the documents of NLTK's Reuters corpus to OUT, one a line (LIMIT 0: all)
- `nltk FILE ORDER`: fit nltk.lm's MLE on the lines of FILE
- `kvps FILE ORDER STORE`: train a new store on FILE through the Python interface
- `kenlm MODEL FILE`: score the lines of FILE with kenlm.Model
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
    print(json.dumps({"reuters": reuters, "nltk": nltk, "kvps": kvps, "kenlm": kenlm}[job](*arguments)))

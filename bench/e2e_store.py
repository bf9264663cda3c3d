"""End to end, living with a store: what it takes on disk, and bringing it up to date."""
import json

from bench import measure, text
from bench.setting import benchmark, times

DATABASE = {"data.mdb", "lock.mdb", "owner.lock"}  # every other file in a store belongs to a compiled model


@benchmark("sizes", "bytes per n-gram of the compiled model and of the store; beside KenLM's probing model")
def sizes(setting):
    """Train, compact with --vacuum, compile; then look at the files."""
    store = setting.scratch("store")
    setting.train_kvps(store, setting.train)
    before = _bytes(store, lambda path: path.name == "data.mdb")
    setting.kvps("compact", store, "--vacuum")
    setting.kvps("compile", store)
    stats = json.loads(setting.kvps("stats", store, "--json").stdout)
    ngrams, top = sum(stats["ngrams"].values()), stats["ngrams"][str(setting.order)]

    model_bytes = _bytes(store, lambda path: path.name not in DATABASE)  # with whatever small files there are
    store_bytes = _bytes(store, lambda path: path.name == "data.mdb")
    per_ngram = {"kvps": model_bytes / ngrams}
    if setting.peer("lmplz", "build_binary"):
        model, _ = setting.kenlm_model(setting.train)
        per_ngram["kenlm probing"] = model.stat().st_size / ngrams
    setting.figure("model_bytes_per_ngram", per_ngram, better="less", goal="at most 9")
    setting.figure("store_bytes_per_top_ngram", {"kvps": store_bytes / top}, goal="at most 6")
    setting.figure("store_before_compact_bytes_per_top_ngram", {"kvps": before / top})
    setting.figure("model_bytes", {"kvps": model_bytes})
    setting.figure("store_bytes", {"kvps": store_bytes})
    setting.figure("text_bytes", {"kvps": setting.train.stat().st_size})
    setting.figure("ngrams", {"kvps": ngrams})


def _bytes(store, chosen):
    """Return the sum of the lengths of the chosen files of a store."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file() and chosen(path))


@benchmark("update", "5 % more text, up to the first query: seconds; beside KenLM's retraining on the whole")
def update(setting):
    """Train and compile without the last 1/21 of the text (not timed); then update, compile and score one sentence."""
    base, more, sentence = setting.scratch("base.txt"), setting.scratch("more.txt"), setting.scratch("sentence.txt")
    text.cut(setting.train, base, 0, 20 / 21)
    text.cut(setting.train, more, 20 / 21, 1)
    with open(setting.heldout, "rb") as lines:
        sentence.write_bytes(lines.readline())
    steps = {"update": [], "compile": [], "first_query": []}

    def ours():
        store = setting.scratch("store")
        setting.train_kvps(store, base)
        setting.kvps("compile", store)
        setting.warm(more)
        runs = [setting.kvps("update", store, more), setting.kvps("compile", store),
                setting.kvps("perplexity", store, sentence)]
        for step, run in zip(steps, runs, strict=True):
            steps[step].append(run.wall_s)
        setting.drop(store)
        return runs[0] + runs[1] + runs[2]

    def theirs():
        model, run = setting.kenlm_model(setting.train)
        run += measure.run(["query", "-v", "summary", model], cwd=setting.work, stdin=sentence)
        setting.drop(model)
        return run

    setting.warm(setting.train)
    with_peer = setting.peer("lmplz", "build_binary", "query")
    runs = measure.interleave(setting.runs, {"kvps": ours, "kenlm from scratch": theirs if with_peer else None})
    setting.figure("update_s", times(runs), better="less", goal="10 times faster")
    setting.figure("update_cpu_s", times(runs, "cpu_s"), better="less")
    for step, seconds in steps.items():
        setting.figure(f"update_{step}_s", {"kvps": seconds})

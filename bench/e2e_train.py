"""End to end, making models: training, ARPA files, growth with the text, and bounded memory."""
import functools
import importlib.util

from bench import measure, text
from bench.setting import benchmark, times

KENLM = "lmplz + build_binary"


@benchmark("train", "raw text to a compiled model: seconds, words/s, peak memory; beside lmplz + build_binary")
def train(setting):
    """Train and compile a new store each round."""
    def ours():
        store = setting.scratch("store")
        run = setting.train_kvps(store, setting.train) + setting.kvps("compile", store)
        setting.drop(store)
        return run

    def theirs():
        model, run = setting.kenlm_model(setting.train)
        setting.drop(model)
        return run

    setting.warm(setting.train)
    with_peer = setting.peer("lmplz", "build_binary")
    runs = measure.interleave(setting.runs, {"kvps": ours, KENLM: theirs if with_peer else None})
    setting.figure("train_compile_s", times(runs), better="less", goal="8 times faster, better 15")
    setting.figure("train_compile_cpu_s", times(runs, "cpu_s"), better="less")
    setting.figure("train_compile_peak_rss_bytes", times(runs, "peak_rss_bytes"), better="less",
                   goal="at most half of lmplz's (2 times)")
    words = text.count_words(setting.train)
    setting.figure("train_compile_words_per_s", {who: [words / s for s in all_s] for who, all_s in times(runs).items()})


@benchmark("arpa", "raw text to an ARPA file, seconds; beside lmplz")
def arpa(setting):
    """Train a new store and export it each round."""
    def ours():
        store, out = setting.scratch("store"), setting.scratch("out.arpa")
        run = setting.train_kvps(store, setting.train) + setting.kvps("export", store, out)
        setting.drop(store, out)
        return run

    def theirs():
        out = setting.scratch("lmplz.arpa")
        run = setting.lmplz(setting.train, out)
        setting.drop(out)
        return run

    setting.warm(setting.train)
    runs = measure.interleave(setting.runs, {"kvps": ours, "lmplz": theirs if setting.peer("lmplz") else None})
    setting.figure("text_to_arpa_s", times(runs), better="less", goal="4 times faster")
    setting.figure("text_to_arpa_cpu_s", times(runs, "cpu_s"), better="less")
    setting.figure("text_to_arpa_peak_rss_bytes", times(runs, "peak_rss_bytes"), better="less")


@benchmark("workers", "raw text to a store over four shard servers by two workers, seconds; beside the same in one process")
def workers(setting):
    """Train a new store each round: in one process of two threads, and by two processes over a socket, and over tcp with keys."""
    def alone():
        store = setting.scratch("store")
        run = setting.train_kvps(store, setting.train, "--threads", "2")
        setting.drop(store)
        return run.wall_s

    def served(transport):
        folder = setting.scratch("served")
        folder.mkdir()
        found, _ = setting.child("workers", folder, setting.train, str(setting.order), transport)
        setting.drop(folder)
        return found["seconds"]

    setting.warm(setting.train)
    seconds = measure.interleave(setting.runs, {"served, a socket": lambda: served("ipc"), "one process": alone,
                                                "served, tcp with keys": lambda: served("tcp")})
    for who, goal in (("served, a socket", "0.7"), ("served, tcp with keys", "0.4")):
        setting.figure(f"train_s {who}", {who: seconds[who], "one process": seconds["one process"]}, better="less",
                       goal=f"{goal} of the speed of one process")


@benchmark("ray", "raw text to a store on a Ray cluster of two CPUs, tokens/s by shards and tasks; beside one process")
def ray(setting):
    """Train a new store each round, with the start of its actors and its tasks; the start of the cluster is not in it."""
    if importlib.util.find_spec("ray") is None:
        print("  (no ray among the installed packages: nothing to measure)")
        return
    tokens = text.count_words(setting.train)

    def on_ray(shards, tasks):
        folder = setting.scratch("cluster")
        folder.mkdir()
        found, _ = setting.child("cluster", folder, setting.train, str(setting.order), str(shards), str(tasks))
        setting.drop(folder)
        return tokens / found["seconds"]

    def alone():
        store = setting.scratch("store")
        run = setting.train_kvps(store, setting.train, "--threads", "2")
        setting.drop(store)
        return tokens / run.wall_s

    setting.warm(setting.train)
    shapes = [(1, 1), (4, 1), (1, 2), (4, 2), (8, 2)] if setting.full else [(2, 2)]
    found = measure.interleave(setting.runs, {
        "one process": alone, **{shape: functools.partial(on_ray, *shape) for shape in shapes}})
    for shards, tasks in shapes:
        setting.figure(f"tokens_per_s {shards} shards {tasks} tasks", {"Ray": found[shards, tasks],
                                                                       "one process": found["one process"]}, better="more")


@benchmark("skew", "the largest shard over the mean by number of shards: by hash alone, and by the routing table")
def skew(setting):
    """Count the text once, and deal its n-grams out."""
    store = setting.scratch("store")
    setting.train_kvps(store, setting.train)
    found, _ = setting.child("skew", store)
    setting.figure("heaviest_word_share", {"kvps": [found["heaviest_word"]]})
    for n_shards, (hashed, dealt) in found["largest_over_mean"].items():
        setting.figure(f"largest_over_mean_of_{n_shards}", {"kvps": [dealt], "hash alone": [hashed]}, better="less",
                       goal="at most 1.1" if n_shards == "16" else None)


@benchmark("linear", "seconds for 1/8, 1/4, 1/2 and all of the text, and the exponent of growth")
def linear(setting):
    """Train and compile each part of the text, interleaved.

    The start of Python costs the same at every size and would make the exponent look smaller on short texts; so the
    time of `kvps --help` is taken off each command's for the second exponent, and the last doubling stands by itself.
    """
    parts = {}
    for share in (1 / 8, 1 / 4, 1 / 2, 1):
        part = setting.scratch(f"part.{share}.txt")
        text.cut(setting.train, part, 0, share)
        setting.warm(part)
        parts[share] = part

    def contender(part):
        def ours():
            store = setting.scratch("store")
            run = setting.train_kvps(store, part) + setting.kvps("compile", store)
            setting.drop(store)
            return run
        return ours

    runs = measure.interleave(setting.runs, {share: contender(part) for share, part in parts.items()})
    start_s = min(setting.kvps("--help").wall_s for _ in range(3))
    sizes = [text.count_words(part) + text.count_lines(part) for part in parts.values()]
    seconds = {share: measure.Summary.of(all_s).median for share, all_s in times(runs).items()}
    for (share, all_s), size in zip(times(runs).items(), sizes, strict=True):
        setting.figure(f"train_compile_{share:g}_s", {"kvps": all_s})
        setting.figure(f"train_compile_{share:g}_tokens", {"kvps": size})
    setting.figure("growth_exponent", {"kvps": measure.growth_exponent(sizes, seconds.values())}, goal="at most 1.05")
    above_start = [max(s - 2 * start_s, 1e-6) for s in seconds.values()]
    setting.figure("growth_exponent_above_start", {"kvps": measure.growth_exponent(sizes, above_start)})
    setting.figure("last_doubling_exponent", {"kvps": measure.growth_exponent(sizes[-2:], above_start[-2:])})


@benchmark("memory", "training within --memory 256M: peak anonymous memory, and how much slower than without")
def memory(setting):
    """Train with the default memory and with 256M, interleaved; both are polled for anonymous memory.

    Allowed is 256 MB, the vocabulary (the bytes of its distinct words), and 64 MB for Python.
    """
    limit = 256 << 20
    stores = []

    def contender(*options):
        def ours():
            setting.drop(*stores)
            stores[:] = [setting.scratch("store")]
            return setting.train_kvps(stores[0], setting.train, *options, anon=True)
        return ours

    setting.warm(setting.train)
    runs = measure.interleave(setting.runs, {"--memory 256M": contender("--memory", "256M"), "default": contender()})
    words = setting.scratch("words")
    setting.kvps("dump", stores[0], "--order", "1", stdout=words)
    with open(words, "rb") as lines:
        vocabulary_bytes = sum(len(line.rsplit(b"\t", 1)[0]) for line in lines)
    peaks = times(runs, "peak_anon_bytes")
    setting.figure("train_peak_anon_bytes", peaks, goal=f"at most {limit + vocabulary_bytes + (64 << 20):,} with 256M")
    setting.figure("vocabulary_bytes", {"kvps": vocabulary_bytes})
    setting.figure("train_peak_rss_bytes", times(runs, "peak_rss_bytes"))
    seconds = times(runs)
    setting.figure("train_s", seconds)
    slower = [a / b for a, b in zip(seconds["--memory 256M"], seconds["default"], strict=True)]
    setting.figure("train_256M_slower_times", {"kvps": slower}, goal="at most 1.5")

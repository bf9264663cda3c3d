"""End to end, using models: scoring a text, and what starting up costs."""
import importlib.util
import json

from bench import measure, text
from bench.setting import benchmark, times

REPEATS = 20  # of the held-out text, so that the start of a process does not decide


@benchmark("query", "perplexity of the held-out text 20 times over, tokens/s; beside KenLM's query")
def query(setting):
    """Score with a compiled model that is in the page cache.

    Whole: tokens over the wall time of the process, start and all. Steady: the text once is taken off both tokens and
    time, which leaves what further text costs. The same text again finds its n-grams in the CPU's cache if that is
    large (see the caches printed at the head): then everyone is faster than on new text.
    With kenlm importable its Python interface is measured too, a call of score() a sentence.
    """
    store, once, many = setting.scratch("store"), setting.heldout, setting.scratch("many.txt")
    setting.train_kvps(store, setting.train)
    setting.kvps("compile", store)
    with open(many, "wb") as out:
        for _ in range(REPEATS):
            out.write(once.read_bytes())

    contenders = {f"kvps {n}": lambda t=t: setting.kvps("perplexity", store, t, "--json")
                  for n, t in (("many", many), ("once", once))}
    with_query = setting.peer("lmplz", "build_binary", "query")
    with_python = with_query and importlib.util.find_spec("kenlm") and setting.order <= 6
    if with_query:
        model, _ = setting.kenlm_model(setting.train)
        score = ["query", "-v", "summary", model]
        contenders |= {f"query {n}": lambda t=t: measure.run(score, cwd=setting.work, stdin=t)
                       for n, t in (("many", many), ("once", once))}
    if with_python:
        contenders |= {f"kenlm.Model {n}": lambda t=t: setting.child("kenlm", model, t)[1]
                       for n, t in (("many", many), ("once", once))}
    for contender in contenders.values():  # models and texts into the page cache
        contender()
    runs = measure.interleave(setting.runs, contenders)

    result = json.loads(runs["kvps many"][0].stdout)
    tokens_once = text.count_words(once) + text.count_lines(once)
    if result["tokens"] != tokens_once * REPEATS:
        raise measure.CommandFailed(f"kvps counted {result['tokens']} tokens, the text has {tokens_once * REPEATS}")
    whole, steady, cpu = {}, {}, {}
    for who in dict.fromkeys(name.rsplit(" ", 1)[0] for name in runs):
        pairs = list(zip(runs[f"{who} many"], runs[f"{who} once"], strict=True))
        whole[who] = [tokens_once * REPEATS / a.wall_s for a, _ in pairs]
        steady[who] = [tokens_once * (REPEATS - 1) / max(a.wall_s - b.wall_s, 1e-3) for a, b in pairs]
        cpu[who] = [tokens_once * REPEATS / a.cpu_s for a, _ in pairs]
    setting.figure("query_tokens_per_s", whole, better="more", goal="2 times query's")
    setting.figure("query_steady_tokens_per_s", steady, better="more")
    setting.figure("query_tokens_per_cpu_s", cpu, better="more")
    setting.figure("query_peak_rss_bytes", {who: [r.peak_rss_bytes for r in runs[f"{who} many"]] for who in whole})
    perplexity = {"kvps": result["perplexity"]}  # to show that the same was computed
    if with_query:
        perplexity["query"] = float(runs["query many"][0].stdout.split("Perplexity including OOVs:")[1].split()[0])
    setting.figure("perplexity", perplexity)


@benchmark("score", "scoring from Python, a list of sentences and one by one: tokens per CPU second; beside kenlm's Model.score")
def score(setting):
    """Score the held-out text in one thread, over and over; models are in memory.

    Whose model: a store's; that of its ARPA file, imported ("imported"), which holds the same probabilities; the same with
    the calls of kvps.compat.kenlm ("compat"); KenLM's probing form of the same ARPA file.
    """
    store, arpa, imported, binary = (setting.scratch(name) for name in ("store", "arpa", "imported", "binary"))
    setting.train_kvps(store, setting.train)
    setting.kvps("export", store, arpa)
    setting.kvps("import", imported, arpa)
    setting.kvps("compile", store)
    models = {"kvps": ("kvps", store), "imported": ("kvps", imported), "compat": ("compat", imported)}
    if setting.peer("build_binary") and importlib.util.find_spec("kenlm") and 2 <= setting.order <= 6:
        setting.build_binary(arpa, binary)
        models["kenlm"] = ("kenlm", binary)
    found = {name: [] for name in models}
    for _ in range(setting.runs):
        for name, (who, model) in models.items():
            found[name].append(setting.child("score", who, model, setting.heldout)[0])
    for way, goal in (("batch", "5 times kenlm's"), ("each", "kenlm's")):
        setting.figure(f"score_{way}_tokens_per_cpu_s", {name: [run[way] for run in runs] for name, runs in found.items()},
                       better="more", goal=goal)
    setting.figure("log10_probability", {name: [run["log10_probability"] for run in runs] for name, runs in found.items()})


@benchmark("startup", "CPU seconds of `kvps --help` and of scoring one sentence")
def startup(setting):
    """Start each command at least five times; the model is compiled before."""
    store, sentence = setting.scratch("store"), setting.scratch("sentence.txt")
    part = setting.scratch("part.txt")
    text.cut(setting.train, part, 0, min(1, 4_000 / setting.sentences))  # the size of the model does not matter here
    setting.train_kvps(store, part)
    setting.kvps("compile", store)
    with open(setting.heldout, "rb") as lines:
        sentence.write_bytes(lines.readline())
    runs = measure.interleave(max(5, setting.runs), {
        "kvps --help": lambda: setting.kvps("--help"),
        "kvps perplexity": lambda: setting.kvps("perplexity", store, sentence),
    })
    cpu = times(runs, "cpu_s")
    setting.figure("help_cpu_s", {"kvps": cpu["kvps --help"]}, goal="below 0.15")
    setting.figure("score_one_sentence_cpu_s", {"kvps": cpu["kvps perplexity"]}, goal="below 0.45")


@benchmark("complete", "completions of the beginnings of held-out sentences, ms: of a store, its imported ARPA file, and a mixture")
def complete(setting):
    """Complete 1,000 beginnings one by one in one process; the files are made before. The mixture is of two halves of the text."""
    store, arpa, imported, mixed, halves = (setting.scratch(name) for name in ("store", "arpa", "imported", "mixed", "halves"))
    halves.mkdir()
    setting.train_kvps(store, setting.train)
    setting.kvps("export", store, arpa)
    setting.kvps("import", imported, arpa)
    for half in (0, 1):
        text.cut(setting.train, halves / f"{half}.txt", half / 2, (half + 1) / 2)
        setting.train_kvps(halves / f"{half}", halves / f"{half}.txt")
    setting.kvps("mix", mixed, halves / "0", halves / "1", "--dev", setting.heldout, "--anyway")
    runs = {name: [] for name in ("store", "imported", "mixture")}
    for _ in range(setting.runs):
        for name, model in zip(runs, (store, imported, mixed), strict=True):
            runs[name].append(setting.child("complete", model, setting.heldout)[0])
    for figure, goal in (("median", None), ("p99", "below 5")):
        setting.figure(f"complete_{figure}_ms", {name: [run[figure] for run in found] for name, found in runs.items()},
                       goal=goal)


CONTEXTS = 1000
DRAWN_WORDS = {True: 1_000_000, False: 10_000}  # by whether the size is full


@benchmark("next", "next words after a context, and drawn text: ms a context, words/s with and without top k and top p")
def next_words(setting):
    """Answer 1,000 contexts of the held-out text in one process, and draw sentences from one; the files are made before.

    A context is the words before the middle of a line. What starting a process costs is in all figures but the first.
    """
    store, contexts = setting.scratch("store"), setting.scratch("contexts.txt")
    setting.train_kvps(store, setting.train)
    with open(setting.heldout, encoding="utf-8") as lines, open(contexts, "w", encoding="utf-8") as out:
        for line, _ in zip(lines, range(CONTEXTS), strict=False):
            words = line.split()
            out.write(" ".join(words[:len(words) // 2 + 1]) + "\n")
    asked = contexts.read_text(encoding="utf-8").splitlines()
    made = setting.kvps("next", store, "a")
    words = DRAWN_WORDS[setting.full]
    # Sentences are as long as those of the text, on the average.
    count = max(1, words * text.count_lines(setting.train) // text.count_words(setting.train))
    draw = ["generate", store, "--count", count, "--seed", setting.seed]
    runs = measure.interleave(setting.runs, {
        "one": lambda: setting.kvps("next", store, "a"),
        "contexts": lambda: setting.kvps("next", store, "--", *asked),
        "plain": lambda: setting.kvps(*draw), "top k and top p": lambda: setting.kvps(*draw, "--top-k", "40", "--top-p", "0.9")})
    took = times(runs, "wall_s")
    setting.figure("next_build_s", {"kvps": [made.wall_s]}, better="less")
    setting.figure("next_ms_per_context", {"kvps": [1000 * max(many - one, 0) / len(asked) for many, one in
                                                    zip(took["contexts"], took["one"], strict=True)]}, goal="below 1")
    for name in ("plain", "top k and top p"):
        n = len(runs[name][0].stdout.split())
        setting.figure("drawn_words_per_s" + ("" if name == "plain" else "_top_k_top_p"),
                       {"kvps": [n / wall_s for wall_s in took[name]]}, better="more",
                       goal="100,000" if name == "plain" else "16,700")

"""`python -m bench`: list the benchmarks, or run some of them."""
import argparse
import json
import os
import sys
import time
from pathlib import Path

from bench import e2e_nltk, e2e_query, e2e_safety, e2e_store, e2e_table, e2e_train, env, measure, setting, text  # noqa: F401 - e2e_* enlist


def parse(arguments):
    """Return the options of one call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvps-bench"
    parser = argparse.ArgumentParser(prog="python -m bench", description="Without a NAME the benchmarks are listed.")
    parser.add_argument("names", nargs="*", metavar="NAME", help='a benchmark, or "all"')
    parser.add_argument("--size", choices=["small", "full"], default="full", help="small: a second or two each")
    parser.add_argument("--runs", type=int, default=3, help="rounds, contenders in turn (3)")
    parser.add_argument("--order", type=int, default=5, help="of the models (5)")
    parser.add_argument("--text", type=Path, help="training text, one sentence a line (the novels, else generated)")
    parser.add_argument("--heldout", type=Path, help="text to score (the end of --text)")
    parser.add_argument("--threads", type=int, help="use so many CPUs, for kvps and its peers alike (all)")
    parser.add_argument("--seed", type=int, default=1, help="of generated text (1)")
    parser.add_argument("--work", type=Path, default=cache, help="directory for texts, stores and models (%(default)s)")
    parser.add_argument("--json", type=Path, help="append one JSON object a figure to this file")
    return parser, parser.parse_args(arguments)


def head(options, prepared):
    """Print what the numbers depend on, and return it."""
    facts, warnings = env.describe(options.work)
    train, heldout, source = prepared
    facts |= {"text": source, "train_bytes": train.stat().st_size, "train_sentences": text.count_lines(train),
              "heldout_sentences": text.count_lines(heldout), "size": options.size, "order": options.order,
              "runs": options.runs, "seed": options.seed, "caches_are": "warm: texts and models are read once before"}
    for name, fact in facts.items():
        if isinstance(fact, dict):
            fact = ", ".join(f"{key} {value}" for key, value in fact.items())
        print(f"{name + ':':<20} {fact:,}" if isinstance(fact, int) and fact > 9999 else f"{name + ':':<20} {fact}")
    for warning in warnings:
        print(f"WARNING: {warning}")
    print(flush=True)
    return facts | {"warnings": warnings, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def main(arguments=None):
    """Run and return the exit code: 1 if a command of a benchmark failed."""
    parser, options = parse(arguments)
    if not options.names:
        for name, (meaning, _) in setting.BENCHMARKS.items():
            print(f"{name:<10} {meaning}")
        return 0
    names = list(setting.BENCHMARKS) if options.names == ["all"] else options.names
    unknown = [name for name in names if name not in setting.BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; `python -m bench` lists them")
    if options.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])  # children inherit it
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    prepared = text.prepare(options.work, options.text, options.heldout, options.size, options.seed)
    facts = head(options, prepared)
    failed = False
    with open(options.json or os.devnull, "a", encoding="utf-8") as out:
        print(json.dumps({"environment": facts}), file=out, flush=True)
        run = setting.Setting(options.work, *prepared[:2], options.size == "full", options.order, options.runs,
                              options.seed, out)
        for name in names:
            meaning, function = setting.BENCHMARKS[name]
            print(f"{name}: {meaning}", flush=True)
            run.running = name
            with run.clean():
                try:
                    function(run)
                except measure.CommandFailed as error:
                    print(f"  FAILED: {error}", flush=True)
                    print(json.dumps({"benchmark": name, "failed": str(error)}), file=out, flush=True)
                    failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

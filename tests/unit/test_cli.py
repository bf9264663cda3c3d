"""The command line: what it says, what it prints, and how it ends."""
import bz2
import errno
import gzip
import io
import json
import lzma
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from kvps.cli import COMMANDS, main
from kvps.cli.models import total_bytes
from kvps.cli.progress import Progress
from kvps.errors import CorruptionError, InputGone, StoreFull
from kvps.lm import evaluate
from kvps.lm.scorer import Score
from kvps.store.directory import open_store
from kvps.store.lock import OwnerLock
from kvps.text.corpus import resolve
from kvps.text.tokenize import Tokenizer

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TEXT = "the cat sat on the mat\nthe dog sat on the log\na cat and a dog\n"
MORE = "the cat and the log\n"
LEXICON = {
    "train": {"command", "version", "tokens", "sentences", "inputs", "already", "elapsed_s"},
    "status": {"store", "state", "version", "command", "pid", "started", "elapsed_s", "done_bytes", "total_bytes",
               "remaining_s"},
    "perplexity": {"sentences", "tokens", "oov", "perplexity", "perplexity_excluding_oov", "log10_probability",
                   "zero_probability_tokens", "smoothing", "order", "version"},
    "export": {"path", "version", "order", "smoothing", "ngrams", "bytes", "elapsed_s"},
    "mix": {"path", "perplexity", "tokens", "sentences", "models", "elapsed_s"},
    "classify": {"label", "probability", "log10"},
    "import": {"path", "order", "ngrams", "bytes", "elapsed_s"},
    "compile": {"path", "kind", "bytes", "elapsed_s"},
    "compact": {"version", "merged_runs", "bytes_before", "bytes"},
    "merge": {"path", "version", "order", "tokens", "sentences", "ngrams", "elapsed_s"},
    "reshard": {"version", "shards_before", "shards", "ngrams", "largest", "elapsed_s"},
    "stats": {"order", "version", "tokens", "sentences", "vocabulary", "shards", "bytes", "live_bytes", "tokenizer", "closed",
              "labels", "tables", "lowercase", "ngrams", "t", "discounts", "fallback"},
    "next": {"context", "words"},
    "complete": {"text", "completions"},
    "evaluate": {"smoothing", "order", "version", "sentences", "tokens", "oov", "perplexity", "perplexity_excluding_oov",
                 "log10_probability", "zero_probability_tokens", "oov_rate", "cross_entropy_bits", "accuracy_at_1", "accuracy_at_5",
                 "accuracy_at_10", "mean_reciprocal_rank", "macro_precision", "macro_recall", "macro_f1", "hits"},
    "explain": {"sentence", "log10_probability", "words"},
    "generate": {"text", "words", "ended", "seed"},
    "score": {"sentence", "log10_probability", "tokens", "oov"},
    "counts": {"ngram", "order", "raw", "adjusted"},
    "dump": {"ngram", "count"},
    "check": {"store", "level", "version", "shards", "damage", "warnings", "elapsed_s"},
    "recover": {"store", "version", "rebuilt", "resumable", "steps", "elapsed_s"},
    "upgrade": {"store", "from", "to", "version", "shards"},
    "resume": {"resumed"},
    "abort": {"aborted"},
    "history": {"version", "command", "label", "gone_labels", "tokens", "sentences", "inputs", "started", "time"},
    "table list": {"name", "kind", "key_bytes", "shards", "runs", "entries", "clients", "bytes", "live_bytes"},
    "table create": {"name", "kind", "key_bytes", "shards", "runs", "entries", "clients", "bytes", "live_bytes"},
    "table drop": {"dropped"},
    "table push": {"table", "rows", "batches", "already", "elapsed_s"},
    "table pull": {"key", "count"},
    "table scan": {"key", "count"},
    "checkpoint create": {"name", "version", "created", "store", "tokens", "sentences", "bytes", "new_bytes", "place", "existed",
                          "deleted", "elapsed_s"},
    "checkpoint list": {"name", "version", "created", "store", "tokens", "sentences", "bytes", "new_bytes"},
    "checkpoint verify": {"name", "objects", "bytes", "findings"},
    "checkpoint delete": {"name", "freed_bytes", "blocked_by"},
    "checkpoint restore": {"path", "name", "version", "tokens", "sentences", "bytes", "store", "elapsed_s"},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder that has two small texts."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT)
    Path("b.txt").write_text(MORE)
    return tmp_path


def kvps(*arguments, code=0, text=None):
    """Run a command in this process and return its result, after a look at the exit code and for tracebacks."""
    result = CliRunner().invoke(main, list(arguments), input=text)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def answer(*arguments, **more):
    """Run a command with --json and return its one object."""
    lines = kvps(*arguments, "--json", **more).stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


@pytest.fixture
def store():
    """Return the name of a trained store of order 3."""
    kvps("train", "s", "a.txt", "-o", "3", "--shards", "2")
    return "s"


def command(name):
    """Return one command of the program, or of a group in it: "checkpoint create"."""
    found = main
    for part in name.split():
        found = found.get_command(click.Context(found), part)
    return found


# Every command that does something itself, those of groups by two words.
CALLS = [f"{name} {inner}".strip() for name in COMMANDS for inner in getattr(command(name), "commands", [""])]


# What it says


def test_help_lists_every_command():
    """The help of the program names each command, and is the same with -h."""
    text = kvps("--help").stdout

    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert kvps("-h").stdout == text


@pytest.mark.parametrize("name", list(dict.fromkeys([*COMMANDS, *CALLS])))
def test_command_has_help(name):
    """Every command has a help text: the sentence of the list, when to use it, an example that calls it."""
    text = kvps(*name.split(), "--help").stdout

    assert name not in COMMANDS or (command(name).help or "").split("\n")[0] == COMMANDS[name]
    assert "Use it" in text
    assert f"kvps {name}" in text.partition("Example:\n")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_in_the_readme(name):
    """The README's table has every command."""
    assert f"| `kvps {name} " in README


@pytest.mark.parametrize("name", CALLS)
def test_options_are_described(name):
    """Every option says what it does."""
    options = [p for p in command(name).params if isinstance(p, click.Option)]

    assert [p.name for p in options if not p.help] == []


@pytest.mark.parametrize("name", [name for name in CALLS if any(option.name == "threads" for option in command(name).params)])
def test_threads_are_some(name):
    """A number of threads below 1 is a usage error of every command that takes one."""
    option = next(option for option in command(name).params if option.name == "threads")

    with pytest.raises(click.BadParameter, match="-3 is not in the range"):
        option.type_cast_value(click.Context(command(name)), "-3")


@pytest.mark.parametrize("name", [name for name in CALLS if name != "quickstart"])
def test_command_prints_json_when_asked(name):
    """Every command that prints results has --json."""
    assert any("--json" in p.opts for p in command(name).params)


def test_examples_of_the_helps_parse():
    """Every example in a help text is a call that the command's options allow."""
    for name in [*COMMANDS, *CALLS]:
        lines = re.findall(r"kvps [a-z].*", (command(name).help or "").partition("\b\n")[2])
        assert lines
        for line in lines:
            words = shlex.split(re.split(r" [<>|] ", line)[0])
            used = next(call for call in CALLS if words[1:len(call.split()) + 1] == call.split())
            given = [word for word in words[2:] if word.startswith("-") and word != "-"]
            known = {opt for p in command(used).params for opt in (*p.opts, *p.secondary_opts)}
            assert set(given) <= known, line


def test_version():
    """--version names the version of the package."""
    assert re.fullmatch(r"kvps \d+\.\d+\.\d+\n", kvps("--version").stdout)


def test_example_of_the_readme(monkeypatch):
    """The README's commands and its Python do what they say."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "cache"))
    blocks = {"sh": "", "python": ""}
    for kind, text in re.findall(r"<!-- example -->\n```(\w+)\n(.*?)```", README, re.DOTALL):
        blocks[kind] += text
    Path("novels.txt").write_text("call me ishmael\n" + TEXT)
    Path("chapter12.txt").write_text("the white whale\n")
    Path("heldout.txt").write_text("the white cat sat\n")
    Path("mails.txt").write_text(MORE)
    lines = [shlex.split(line, comments=True) for line in blocks["sh"].splitlines()]

    outputs = [kvps(*words[1:]).stdout for words in lines]
    exec(compile(blocks["python"], "README.md", "exec"), {})

    assert len(outputs) == 7
    assert outputs[4] == "the white whale\t1\t1\n<s> call me\t1\t1\n"


# What it imports


def test_help_imports_nothing_heavy():
    """Help costs no import of what counting needs."""
    code = ("import sys\nfrom kvps.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "print(sorted({'numpy', 'lmdb', 'nltk', 'tqdm', 'regex'} & set(sys.modules)), file=sys.stderr)")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == "[]\n"


def test_scoring_imports_nothing_heavy(store):
    """Scoring a file of a model that is there imports neither NumPy nor nltk nor what only a terminal or a tokenizer needs."""
    kvps("compile", store)
    code = ("import sys\nfrom kvps.cli import main\ntry:\n    main(['perplexity', 's', 'b.txt'])\nexcept SystemExit:\n"
            "    pass\nprint(sorted({'numpy', 'nltk', 'tqdm', 'regex', 'kvps.jobs.train', 'kvps.lm.compile'} & set(sys.modules)))")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers take longer to start")
def test_help_is_quick():
    """`kvps --help` takes less than 0.15 s of CPU."""
    def cpu_s():
        before = os.times()
        subprocess.run([sys.executable, "-m", "kvps", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(cpu_s() for _ in range(3)) < 0.15


# What it prints


def test_train_update_forget(store):
    """Counting says the version and what was added; the keys of --json are those of the README."""
    added = answer("update", store, "b.txt")
    removed = answer("forget", store, "b.txt")

    assert set(added) == LEXICON["train"]
    assert set(removed) == LEXICON["train"] | {"purged", "remains"}
    assert (added["version"], added["tokens"], added["sentences"], added["inputs"]) == (2, 5, 1, 1)
    assert (removed["version"], removed["tokens"], removed["sentences"]) == (3, -5, -1)


def test_train_again(store):
    """A train or update of text that is counted says so, changes nothing and ends with 0; --again counts it twice."""
    assert "a.txt: already counted in version 1" in kvps("train", store, "a.txt", "-o", "3", "--shards", "2").stdout
    assert answer("update", store, "a.txt") | {"elapsed_s": 0} == {
        "command": "update", "version": 1, "tokens": 0, "sentences": 0, "inputs": 0, "already": {"a.txt": 1},
        "elapsed_s": 0}
    assert "version 2, added 17 tokens in 3 sentences from 1 input" in kvps("update", store, "a.txt", "--again").stdout


def test_stats(store):
    """Stats count tokens without </s> and the vocabulary without the specials; by order, keys are numbers as text."""
    found = answer("stats", store)

    assert set(found) == LEXICON["stats"]
    assert (found["tokens"], found["sentences"], found["vocabulary"], found["shards"]) == (17, 3, 9, 2)
    assert found["ngrams"] == {"1": 12, "2": 17, "3": 16}
    assert [len(found["t"][k]) for k in "123"] == [4, 4, 4]
    assert [len(found["discounts"][k]) for k in "123"] == [3, 3, 3]
    assert list(found["fallback"]) == ["2", "3"]
    assert "fallback" in kvps("stats", store).stdout


def test_perplexity(store):
    """Perplexity counts one </s> a sentence; an infinite one is null beside the number of tokens that make it so."""
    found = answer("perplexity", store, "b.txt")
    infinite = answer("perplexity", store, "b.txt", "--smoothing", "mle", "-o", "2")

    assert set(found) == set(infinite) == LEXICON["perplexity"]
    assert (found["tokens"], found["sentences"], found["oov"], found["order"], found["version"]) == (6, 1, 0, 3, 1)
    assert found["smoothing"] == "modified-kneser-ney"
    assert found["perplexity"] == pytest.approx(10 ** (-found["log10_probability"] / 6))
    assert (infinite["perplexity"], infinite["order"], infinite["smoothing"]) == (None, 2, "mle")
    assert infinite["zero_probability_tokens"] > 0
    assert "infinite" in kvps("perplexity", store, "b.txt", "--smoothing", "mle").stdout


def test_perplexity_per_sentence(store):
    """One line a sentence, and their probabilities multiply to that of the text; stdin is an input too."""
    whole = answer("perplexity", store, "a.txt")
    rows = [json.loads(line) for line in
            kvps("perplexity", store, "-", "--per-sentence", "--json", text=TEXT).stdout.splitlines()]
    lines = kvps("perplexity", store, "a.txt", "--per-sentence").stdout.splitlines()

    assert [row["sentence"] for row in rows] == [line.split("\t")[-1] for line in lines] == TEXT.splitlines()
    assert sum(row["log10_probability"] for row in rows) == pytest.approx(whole["log10_probability"])


def test_next(store):
    """Next words come with their probability and the sum so far; of several contexts each line names its own."""
    found = answer("next", store, "the cat", "--top", "0")
    lines = kvps("next", store, "the cat", "-", "-k", "2", text="<s> the\n").stdout.splitlines()

    assert set(found) == LEXICON["next"] and set(found["words"][0]) == {"word", "probability", "cumulative"}
    assert found["words"][-1]["cumulative"] == pytest.approx(1)
    assert [line.split("\t")[0] for line in lines] == ["the cat"] * 2 + ["<s> the"] * 2
    assert lines[0].split("\t")[3] == found["words"][0]["word"]
    assert kvps("next", store, "the cat", "-k", "1").stdout.split("\t")[2] == found["words"][0]["word"] + "\n"


@pytest.mark.parametrize("name", ["next", "complete", "explain"])
def test_lines_of_stdin(name, store):
    r"""Lines of stdin end at \n or \r\n alone, as in a file of text: \v, U+0085 and U+2028 are parts of words, \r parts them."""
    key = {"next": "context", "complete": "text", "explain": "sentence"}[name]
    text = "the\x0bcat\nthe\x85cat\u2028dog\r\n\na\rdog"
    lines = [json.loads(line)[key] for line in kvps(name, store, "-", "--json", text=text).stdout.split("\n")[:-1]]

    assert lines == ["the\x0bcat", "the\x85cat\u2028dog", "", "a dog" if name == "explain" else "a\rdog"]
    assert kvps(name, store, "-", text="").stdout == ""
    assert "not UTF-8" in kvps(name, store, "-", code=1, text=b"a\n\xff\n").stderr


def test_generate(store):
    """Sentences begin with the prompt, end by themselves or are cut, and are told with the seed that gives them again."""
    found = answer("generate", store, "--prompt", "the cat", "--max-words", "50")
    again = kvps("generate", store, "--prompt", "the cat", "--count", "3", "--seed", str(found["seed"]), "--max-words", "50")
    cut = answer("generate", store, "--max-words", "1", "--top-k", "1")

    assert set(found) == LEXICON["generate"] and found["ended"]
    assert again.stdout.splitlines()[0] == found["text"] and len(again.stdout.splitlines()) == 3
    assert found["text"].split()[:2] == ["the", "cat"] and found["words"] == len(found["text"].split()) - 2
    assert (cut["words"], cut["ended"]) == (1, False)
    assert "is not possible" in kvps("generate", store, "--top-p", "0", code=2).stderr


def test_evaluate(store):
    """A model is measured, every order and every smoothing side by side, with the perplexity that perplexity prints."""
    found = answer("evaluate", store, "b.txt")
    rows = [json.loads(line) for line in
            kvps("evaluate", store, "b.txt", "--by-order", "--smoothing", "all", "--json").stdout.splitlines()]
    lines = kvps("evaluate", store, "b.txt", "--by-order").stdout.splitlines()

    assert set(found) == LEXICON["evaluate"]
    assert found.items() >= answer("perplexity", store, "b.txt").items()
    assert len(rows) == 3 * 8 and [row["order"] for row in rows[:3]] == [1, 2, 3]
    assert {row["smoothing"] for row in rows} > {"modified-kneser-ney", "laplace", "lidstone:0.1"}
    assert all(sum(row["hits"].values()) == row["tokens"] == 6 for row in rows)
    assert lines[1].split() == ["order", "1", "2", "3"] and lines[-1].startswith("matched by order 3")
    assert "infinite" in kvps("evaluate", store, "b.txt", "--smoothing", "mle").stdout
    assert "undefined" in kvps("evaluate", store, "-", text="").stdout


@pytest.mark.parametrize("order", ["-1", "0", "4"])
def test_evaluate_refuses_before_it_measures(order, store):
    """Orders and smoothings that the model does not have are refused at once, not when their turn comes."""
    for more in (["--by-order"], ["--smoothing", "all"]):
        result = kvps("evaluate", store, "b.txt", "-o", order, *more, "--json", code=2)
        assert f"order {order} is not possible" in json.loads(result.stdout)["message"]
    kvps("export", store, "s.arpa")
    kvps("import", "s.kvm", "s.arpa")
    kvps("mix", "s.mix", store, "s.kvm", "--dev", "a.txt")
    for model in ("s.arpa", "s.kvm", "s.mix"):
        result = kvps("evaluate", model, "b.txt", "--smoothing", "all", "--json", code=2)
        assert "--smoothing all takes a store" in json.loads(result.stdout)["message"]


def test_complete(store):
    """A text is completed from arguments and from stdin, each on a line with its probability."""
    found = answer("complete", store, "the ca", "-k", "2")
    lines = kvps("complete", store, "-", "-k", "1", text="the ca\nthe dog \n").stdout.splitlines()

    assert set(found) == LEXICON["complete"] and len(found["completions"]) == 2
    assert set(found["completions"][0]) == {"text", "probability", "ended"}
    assert lines[0].split("\t")[1] == found["completions"][0]["text"] and lines[0].split("\t")[1].startswith("the cat")
    assert lines[1].split("\t")[1].startswith("the dog ")
    assert kvps("complete", store, "the ca", "--min-count", "9").stdout == ""
    assert "not possible" in kvps("complete", store, "the ca", "-k", "0", code=2).stderr


@pytest.mark.parametrize("arguments", [
    ["complete", "the", "--beam", "1001"], ["complete", "the", "--min-count", "99999999999999999999"],
    ["generate", "--top-k", "99999999999999999999"], ["generate", "--max-words", "99999999999999999999"]])
def test_numbers_have_a_bound(arguments, store):
    """A number that no machine has room for is a usage error that says the bound; it took all memory, or a traceback."""
    assert f"{arguments[-1]} is not in the range" in kvps(arguments[0], store, *arguments[1:], code=2).stderr


def test_exact_scores_alike(store):
    """A model without fingerprints gives the same perplexity."""
    assert answer("perplexity", store, "b.txt", "--exact") == answer("perplexity", store, "b.txt")


def test_counts(store):
    """Counts take n-grams as arguments and lines; what does not occur has 0."""
    rows = kvps("counts", store, "the cat", "-", "zebra", "--json", text="<s> the\ndog\n").stdout.splitlines()

    assert [json.loads(row) for row in rows] == [
        {"ngram": "the cat", "order": 2, "raw": 1, "adjusted": 1},
        {"ngram": "<s> the", "order": 2, "raw": 2, "adjusted": 2},
        {"ngram": "dog", "order": 1, "raw": 2, "adjusted": 2}, {"ngram": "zebra", "order": 1, "raw": 0, "adjusted": 0}]
    assert kvps("counts", store, "the cat").stdout == "the cat\t1\t1\n"
    assert kvps("counts", store, "-", text="").stdout == ""


def test_dump(store):
    """A dump has one line an n-gram, sorted by bytes if asked; with --json one object each."""
    lines = kvps("dump", store, "--order", "1", "--sorted").stdout.splitlines()
    rows = [json.loads(line) for line in kvps("dump", store, "--order", "1", "--sorted", "--json").stdout.splitlines()]

    assert lines[:3] == ["</s>\t3", "<s>\t3", "a\t2"]
    assert lines == [f"{row['ngram']}\t{row['count']}" for row in rows]


@pytest.mark.parametrize(("name", "arguments"), [
    ("compile", ()), ("compile", ("--smoothing", "wb")), ("export", ("x.arpa.gz",)), ("compact", ("--vacuum",)),
    ("reshard", ("--shards", "3")), ("status", ()), ("resume", ()), ("abort", ())])
def test_json_keys(name, arguments, store):
    """The other commands print the keys that the README lists, and words without --json."""
    assert set(answer(name, store, *arguments)) == LEXICON[name]
    assert kvps(name, store, *arguments).stdout.startswith(("s", "x.arpa.gz", "/"))


@pytest.mark.parametrize("name", LEXICON)
def test_json_keys_are_in_the_readme(name):
    """The README names every key of --json."""
    section = README.partition("### JSON")[2]

    assert [key for key in LEXICON[name] if f"`{key}`" not in section] == []


def test_history(store):
    """The history has a line a version, with what it added or took away, and no line in an empty store."""
    kvps("update", store, "b.txt")
    kvps("forget", store, "a.txt")

    rows = [json.loads(line) for line in kvps("history", store, "--json").stdout.splitlines()]
    lines = kvps("history", store).stdout.splitlines()

    assert [set(row) for row in rows] == [LEXICON["history"]] * 3
    assert [(row["version"], row["command"], row["tokens"], row["sentences"], row["label"]) for row in rows] == [
        (1, "train", 17, 3, None), (2, "update", 5, 1, None), (3, "forget", -17, -3, None)]
    assert [Path(item["name"]).name for row in rows for item in row["inputs"]] == ["a.txt", "b.txt", "a.txt"]
    assert len(lines) == 4 and "-17" in lines[3] and "+5" in lines[2]


def test_tables(store):
    """The commands of a table print the keys of the README, or words; what is scanned can be pushed."""
    made = answer("table", "create", store, "clicks", "--key-bytes", "4", "--shards", "2")
    pushed = answer("table", "push", store, "clicks", "--client", "me", text="7,2\n300,-1\n7,3\n")
    again = answer("table", "push", store, "clicks", "--client", "me", text="7,2\n300,-1\n7,3\n")
    row = answer("table", "pull", store, "clicks", "7")
    rows = [json.loads(line) for line in kvps("table", "scan", store, "clicks", "--json").stdout.splitlines()]
    found = {"create": made, "list": answer("table", "list", store), "push": pushed, "pull": row, "scan": rows[1]}

    assert {name: set(row) for name, row in found.items()} == {name: LEXICON[f"table {name}"] for name in found}
    assert (pushed["rows"], pushed["batches"], pushed["already"], again["already"]) == (3, 1, 0, 1)
    assert row == rows[0] == {"key": 7, "count": 5} and rows[1] == {"key": 300, "count": -1}
    scanned = kvps("table", "scan", store, "clicks").stdout
    assert scanned == "7,5\n300,-1\n" == kvps("table", "pull", store, "clicks", "-", text="7\n300\n").stdout
    assert kvps("table", "create", store, "copy", "--key-bytes", "4").stdout.startswith("s: made")
    assert "1 batch (" in kvps("table", "push", store, "copy", text=scanned).stdout
    assert kvps("table", "scan", store, "copy").stdout == scanned
    assert [line.split(":")[0] for line in kvps("table", "list", store).stdout.splitlines()] == ["clicks", "copy"]
    assert set(answer("stats", store)["tables"]) == {"clicks", "copy"} and "table copy: " in kvps("stats", store).stdout
    assert "clicks, copy are not in it" in kvps("checkpoint", "create", store).stderr
    assert answer("checkpoint", "create", "s/tables/clicks")["existed"] is False
    assert set(answer("table", "drop", store, "copy")) == LEXICON["table drop"]
    assert kvps("table", "drop", store, "clicks").stdout == "s: deleted table clicks\n"
    assert kvps("table", "list", store).stdout == ""


def test_checkpoints(store):
    """The commands of a checkpoint print the keys of the README, or words; the restored store dumps the same bytes."""
    made = answer("checkpoint", "create", store)
    kvps("update", store, "b.txt")
    again = answer("checkpoint", "create", store, "second", "--to", "depot", "--keep", "1")
    rows = answer("checkpoint", "list", "--from", "depot")
    sound = answer("checkpoint", "verify", store, made["name"])
    restored = answer("checkpoint", "restore", "--from", "depot", "--version", "2", "--into", "r")
    gone = answer("checkpoint", "delete", store, "second", "--to", "depot")
    found = {"create": made, "list": rows, "verify": sound, "restore": restored, "delete": gone}

    assert {name: set(row) for name, row in found.items()} == {name: LEXICON[f"checkpoint {name}"] for name in found}
    assert (made["name"], again["name"], again["version"], restored["version"]) == ("v000001", "second", 2, 2)
    assert kvps("dump", "r", "--order", "3", "--sorted").stdout == kvps("dump", store, "--order", "3", "--sorted").stdout
    for line in (["create", store], ["list", store], ["verify", store], ["restore", store, "v000001", "--into", "q"],
                 ["delete", store, "v000001"], ["list", store], ["verify", store]):
        assert kvps("checkpoint", *line).stdout


@pytest.mark.parametrize(("code", "arguments"), [
    (1, ["create", "nowhere"]), (1, ["list", "nowhere"]), (1, ["list", "--from", "nowhere"]),
    (1, ["restore", "s", "x", "--into", "r"]),
    (1, ["restore", "s", "--version", "9", "--into", "r"]), (1, ["delete", "s", "x"]), (1, ["verify", "s", "x"]),
    (1, ["create", "s", "--to", "no/where/at/all"]), (1, ["create", "s", "--to", "a.txt"]),
    (1, ["create", "s", "--to", "nonsense://x"]), (1, ["restore", "s", "one", "--into", "s"]),
    (2, ["create", "s", "../x"]), (2, ["create", "s", "--keep", "0"]), (2, ["create"]), (2, ["list"]),
    (2, ["restore", "s", "one"]), (2, ["restore", "s", "--into", "r"]),
    (2, ["restore", "s", "one", "--version", "1", "--into", "r"]),
    (2, ["delete", "s"]), (2, ["list", "s", "--to", "x", "--from", "y"]), (2, ["verify", "s", "a", "b"]), (2, ["nonsense"])])
def test_checkpoint_failure_is_one_line(code, arguments, store):
    """What a checkpoint command cannot do it says in one line, with and without --json, and makes nothing."""
    kvps("checkpoint", "create", store, "one")
    before = sorted(Path().rglob("*"))

    result = kvps("checkpoint", *arguments, code=code)
    found = answer("checkpoint", *arguments, code=code)

    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert found["message"] in result.stderr and found["exit_code"] == code
    assert sorted(Path().rglob("*")) == before


def test_damaged_checkpoint_ends_with_3(store):
    """Verify names the damaged file and ends with 3, restore too and makes nothing; the list goes on."""
    kvps("checkpoint", "create", store)
    victim = next(path for path in Path(store, "checkpoints", "objects").rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")

    lines = kvps("checkpoint", "verify", store, "--json", code=3).stdout.splitlines()
    rows = [json.loads(line) for line in lines]

    assert [finding["path"] for finding in rows[0]["findings"]] == [str(victim.absolute())]
    assert (rows[1]["error"], rows[1]["exit_code"]) == ("CorruptionError", 3)
    assert str(victim) in kvps("checkpoint", "verify", store, code=3).stdout
    assert str(victim) in kvps("checkpoint", "restore", store, "v000001", "--into", "r", code=3).stderr
    assert not Path("r").exists() and not list(Path().glob("r.tmp*"))
    assert answer("checkpoint", "list", store)["name"] == "v000001"


def test_nothing_to_resume(store):
    """With nothing to do, resume and abort say so and end with 0."""
    assert "nothing to resume" in kvps("resume", store).stdout
    assert "nothing to abort" in kvps("abort", store).stdout


def test_status_of_an_idle_store(store):
    """An idle store has a version and no job."""
    found = answer("status", store)

    assert (found["state"], found["version"], found["pid"], found["done_bytes"]) == ("idle", 1, None, None)


# How it ends


@pytest.mark.parametrize(("code", "arguments"), [
    (1, ["update", "s", "nothing.txt"]), (1, ["stats", "nowhere"]), (1, ["train", "s", "a.txt", "-o", "4"]),
    (1, ["forget", "s", "b.txt"]), (1, ["train", "a.txt", "b.txt"]),
    (2, ["train", "t", "a.txt", "-o", "0"]), (2, ["train", "t", "a.txt", "-o", "99"]), (2, ["train", "t"]),
    (2, ["perplexity", "s", "a.txt", "--smoothing", "magic"]), (2, ["perplexity", "s", "a.txt", "-o", "9"]),
    (2, ["dump", "s", "--order", "9"]), (2, ["train", "t", "a.txt", "--tokenizer", "magic"]),
    (2, ["train", "t", "a.txt", "-S", "much"]), (2, ["nonsense"]), (2, ["stats", "s", "--nonsense"]),
    (2, ["update", "s", "b.txt", "-T", "nowhere"]), (2, ["counts", "s", "a\udcff"]), (2, ["export", "s", "."]),
    (2, ["train", "t", "--ray", "a.txt"]), (2, ["update", "kvps://127.0.0.1:1", "a.txt", "--ray"]),
    (2, ["servers", "kvps://127.0.0.1:1", "--stop"]), (2, ["servers", "s", "--stop"])])
def test_failure_is_one_line(code, arguments, store):
    """A failure is one line on stderr and an exit code; with --json one object on stdout; nothing is left behind."""
    result = kvps(*arguments, code=code)
    found = answer(*arguments, code=code)

    assert result.stdout == ""
    assert result.stderr.startswith("kvps: ") and result.stderr.count("\n") == 1
    assert found["message"] in result.stderr and found["exit_code"] == code
    assert not Path("t").exists() and not list(Path().glob("t.tmp*"))


def test_no_arguments_show_the_help():
    """`kvps` alone shows the help, as a usage error."""
    assert "Commands:" in kvps(code=2).output


def test_locked(store):
    """A second writer ends with 5 and is told who is writing; readers go on, and status says running."""
    lock = OwnerLock(store, command="update")
    try:
        found = answer("update", store, "b.txt", code=5)
        status = answer("status", store)
        kvps("perplexity", store, "b.txt")
    finally:
        lock.close()

    assert (found["error"], found["pid"]) == ("StoreLocked", os.getpid())
    assert (status["state"], status["pid"], status["command"]) == ("running", os.getpid(), "update")


def test_wait_for_a_writer(store):
    """With --wait a command goes on when the other writer is done."""
    lock = OwnerLock(store)
    release = threading.Timer(0.5, lock.close)
    release.start()

    assert "version 2" in kvps("update", store, "b.txt", "--wait", "20").stdout
    release.join()


def fail_with(monkeypatch, error):
    """Let counting fail, after the job has been recorded."""
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("kvps.jobs.train.count_splits", fail)


@pytest.mark.parametrize(("code", "error"), [
    (130, KeyboardInterrupt()), (4, StoreFull("the disk is full")), (4, InputGone("b.txt: has gone")),
    (4, OSError(errno.ENOSPC, "No space left on device")), (3, CorruptionError("s: chunk 3: bad checksum")),
    (1, MemoryError()), (1, PermissionError(errno.EACCES, "Permission denied", "s/x")), (1, ZeroDivisionError("oh"))])
def test_interrupted_job(code, error, store, monkeypatch):
    """Whatever stops a job, the message says in one line that it can be resumed, and resuming it does it."""
    with monkeypatch.context() as patch:
        fail_with(patch, error)
        result = kvps("update", store, "b.txt", code=code)
        found = answer("update", store, "b.txt", code=code)
    status = answer("status", store)
    resumed = answer("resume", store)

    assert result.stderr.count("\n") == 1
    assert "kvps resume" in result.stderr and "kvps abort" in result.stderr and found["resumable"] is True
    assert (status["state"], status["command"], status["total_bytes"]) == ("interrupted", "update", len(MORE))
    assert resumed["resumed"] is True and resumed["version"] == 2


def test_abort(store, monkeypatch):
    """Abort rolls an interrupted job back."""
    with monkeypatch.context() as patch:
        fail_with(patch, KeyboardInterrupt())
        kvps("update", store, "b.txt", code=130)

    assert answer("abort", store) == {"aborted": True, "command": "update", "version": 1}
    assert answer("status", store)["state"] == "idle"


def test_unexpected_error_says_how_to_see_more(store, monkeypatch):
    """An exception that nobody planned is one line that names the call to repeat; --debug shows the traceback."""
    fail_with(monkeypatch, ZeroDivisionError("a\nb"))

    result = kvps("update", store, "b.txt", code=1)
    debug = CliRunner().invoke(main, ["--debug", "update", store, "b.txt"])

    assert "`kvps --debug update s b.txt`" in result.stderr
    assert "unexpected ZeroDivisionError: a b" in result.stderr
    assert "Traceback" in debug.stderr and debug.exit_code == 1


def test_sigterm(store, monkeypatch):
    """SIGTERM ends a job with 4, and it can be resumed; the handler of before is back then."""
    before = signal.getsignal(signal.SIGTERM)

    def stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("kvps.jobs.train.count_splits", stop)
    found = answer("update", store, "b.txt", code=4)

    assert found["error"] == "Stopped" and "kvps resume s" in found["message"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_reader_of_the_output_goes_away():
    """`kvps dump | head -1` ends without a word."""
    Path("c.txt").write_text("".join(f"{number} {number + 1} x\n" for number in range(40_000)))
    kvps("train", "s", "c.txt", "-o", "2")
    with subprocess.Popen([sys.executable, "-m", "kvps", "dump", "s", "--order", "2"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        errors = child.stderr.read()

    assert errors == b"" and child.returncode == 0


def test_read_only_commands_change_nothing(store):
    """Looking at a store changes no file of it, once its models are there."""
    def look():
        for name, *more in (["stats"], ["status"], ["counts", "cat"], ["dump", "--order", "2"],
                            ["perplexity", "b.txt"], ["export", "x.arpa"]):
            kvps(name, store, *more)
        files = (path for path in Path(store).rglob("*") if path.is_file() and path.name != "lock.mdb")
        return {path: path.read_bytes() for path in files}

    assert look() == look()
    with open_store(store) as opened:
        assert opened.root.state()["version"] == 1


# Progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        """Say so."""
        return True


def test_progress_on_a_terminal(monkeypatch):
    """Each stage has its line, and a bar that ends where the stage ended."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    with Progress(["counting", "verifying"], unit=" n-grams") as progress:
        progress("counting", 0, 2048)
        progress("counting", 2048, 2048)
        progress("verifying", 5, None)

    shown = terminal.getvalue()
    assert "=== 1/2 counting ===" in shown and "=== 2/2 verifying ===" in shown
    assert "100%" in shown and "2.00k/2.00k" in shown


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_progress_of_scoring_ends_at_its_total(tmp_path, suffix):
    """Compressed or not, scoring goes from no byte of the file to all of them, some at a time."""
    text = b"".join(b"the cat %d sat on the mat\n" % number for number in range(100_000))
    path = tmp_path / f"text{suffix}"
    with {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](path, "wb") as out:
        out.write(text)
    model, told = SimpleNamespace(score_text=lambda text: Score()), []
    inputs = resolve([path])
    evaluate.perplexity(model, inputs, Tokenizer.from_spec("whitespace"), progress=told.append)

    assert sum(told) == total_bytes(inputs) == path.stat().st_size
    assert len(told) > 2


def test_progress_is_quiet_elsewhere(monkeypatch):
    """Nothing is shown where stderr is a file."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    with Progress(["counting"]) as progress:
        progress.stage("counting")(1, 2)

    assert sys.stderr.getvalue() == ""

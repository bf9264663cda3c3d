"""Stores remember how words are made: the same in every process, over servers, after kills; and no store brings code."""
import gzip
import json
import re
import sys
from pathlib import Path

import pytest
from processes import TIMEOUT_S, Served, contents, counted, damage_shard, go_on, refused, run, run_json, start, stopped
from tokenizers_of_tests import KINDS, TEXT, spec_of

import kvps
import kvps.cli
from kvps.text.tokenize import Tokenizer

LINES = [*TEXT[:6], "Cafe\u0301 No. 7！Ｆｕｌｌ ｗｉｄｔｈ。Next one. “Yes.” No", "", "什么？！the whale 2024. The End"]
MORE = ["他说：“好。”然后。The white whale", "me ishmael! Ａ"]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Two files; and the module of our function can be imported by children."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (tmp_path / "a.txt").write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    (tmp_path / "b.txt").write_text("".join(line + "\n" for line in MORE), encoding="utf-8")
    return tmp_path / "a.txt", tmp_path / "b.txt"


def expected(tokenizer, *texts):
    """Return the 2-grams that a store must have of some files."""
    return counted(b"".join(tokenizer.prepare(text.read_bytes()) for text in texts), 2)


@pytest.mark.parametrize(("kind", "options"), [
    *((kind, []) for kind in KINDS), ("char", ["--lowercase", "--normalize", "NFKC", "--split-sentences"])])
def test_every_process_makes_the_same_words(tmp_path, texts, kind, options):
    """What one process trains, others update, resume, score and forget, exactly; only a function has to be named again."""
    spec, store = spec_of(kind, tmp_path), tmp_path / "s"
    again = ["--tokenizer", spec] if kind == "function" else []
    made = Tokenizer.from_spec(spec, "--lowercase" in options, normalize="NFKC" if options else None,
                               split_sentences=bool(options), trusted=True)
    a, b = texts

    run("train", store, a, "-o", "2", "--tokenizer", spec, *options)
    assert contents(store) == expected(made, a)
    run("update", store, b, *again, stop_at="SIGKILL before kvps.store.root:Root.commit_job 1", check=-9)
    run("resume", store, *again)
    assert contents(store) == expected(made, a, b)
    scored = [json.loads(line) for line in run("score", store, b, *again, "--json").stdout.splitlines()]
    assert [row["sentence"] for row in scored] == made.prepare(b.read_bytes()).decode().split("\n")[:-1]
    assert run_json("perplexity", store, b, *again)["oov"] == 0
    run("next", store, "the", *again)
    run("forget", store, b, *again)

    assert contents(store) == expected(made, a)
    with kvps.open(store, tokenizer=spec if again else None) as opened, opened.model() as model:
        assert model.score(LINES).shape == (len(LINES),)
        assert model.score(LINES).sum() == pytest.approx(model.score([line.split() for line in made.prepare(
            a.read_bytes()).decode().split("\n")[:-1]]).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ["char", "sentencepiece", "function"])
def test_served(tmp_path, texts, kind):
    """Over a server text is made words by the client and its helpers, as the store's record says."""
    pytest.importorskip("zmq", reason="needs pyzmq")
    spec, store = spec_of(kind, tmp_path), tmp_path / "s"
    again = ["--tokenizer", spec] if kind == "function" else []
    options = ["--normalize", "NFKC", "--split-sentences"]
    made = Tokenizer.from_spec(spec, normalize="NFKC", split_sentences=True, trusted=True)
    a, b = texts

    with Served(store, "--bind", f"ipc://{tmp_path}/sock") as servers:
        run("train", servers.address, a, "-o", "2", "--shards", "2", "--tokenizer", spec, *options)
        run("update", servers.address, b, *again)
        assert run_json("perplexity", servers.address, b, *again)["oov"] == 0
        run("forget", servers.address, b, *again)

    assert contents(store) == expected(made, a)
    assert kvps.open(store)._reader().identity["tokenizer"] == made.to_json()


def test_str_of_several_sentences(tmp_path):
    """From Python a str is split as a line of a file is; its score is the sum of its sentences, its words are all of theirs."""
    with kvps.create(tmp_path / "s", order=2, tokenizer="char", split_sentences=True) as store:
        store.train(["人人。好。", "好！人"])
        with store.model("witten-bell") as model:
            sums = model.score(["人人。好。", "好！人", ""])

            assert sums.tolist() == pytest.approx([
                model.score("人人。") + model.score("好。"), model.score("好！") + model.score("人"), model.score("")], rel=1e-12)
            assert model.score("人人。好。") == pytest.approx(sums[0], rel=1e-12)
            assert [row.word for row in model.score_words("人人。好。")] == ["人", "人", "。", "</s>", "好", "。", "</s>"]
            assert [row.word for row in model.explain("好！人")] == ["好", "！", "</s>", "人", "</s>"]
            assert model.next("人人。好").words == model.next("<s> 好").words
            assert model.generate("人人。好", seed=1) == model.generate("好", seed=1)
            assert model.perplexities("人人。好。") == pytest.approx(10 ** (-sums[0] / 7), rel=1e-12)
        store.forget(["好！人"])
        assert store.count("人") == 2


def test_rescore_with_sentences(tmp_path):
    """A hypothesis of several sentences has one feature: the sum of theirs."""
    store, lists = tmp_path / "s", tmp_path / "n.txt"
    with kvps.create(store, order=2, split_sentences=True) as made:
        made.train(["A cat. The dog. Yes"])
        with made.model() as model:
            score = model.score("A cat. The dog.")
    lists.write_text("0 ||| A cat. The dog. ||| ||| 0\n0 ||| Yes ||| ||| -90\n")

    first = run("rescore", store, lists).stdout.splitlines()[0]

    assert float(first.split("|||")[3]) == pytest.approx(score * 2.302585092994046, rel=1e-5)


def test_reserved_words_are_found_in_their_line(tmp_path):
    """A reserved word, also one that only NFKC makes, is refused with the line of the file that it stands in."""
    (tmp_path / "t").write_text("One. Two.\n\nThree. ＜ｓ＞ x\n", encoding="utf-8")

    refused("train", tmp_path / "s", tmp_path / "t", "--normalize", "NFKC", "--split-sentences", code=1)
    assert "line 3" in refused("train", tmp_path / "s", tmp_path / "t", "--normalize", "NFKC", "--split-sentences", code=1)
    run("train", tmp_path / "s", tmp_path / "t", "--split-sentences")


READING = [["perplexity", "STORE", "TEXT"], ["score", "STORE", "TEXT"], ["next", "STORE", "a"], ["explain", "STORE", "a"],
           ["generate", "STORE"], ["complete", "STORE", "a"], ["evaluate", "STORE", "TEXT"], ["update", "STORE", "TEXT"],
           ["forget", "STORE", "TEXT"], ["rescore", "STORE", "TEXT"]]
BESIDES = [["stats", "STORE"], ["counts", "STORE", "a"], ["check", "STORE"], ["dump", "STORE", "-o", "1"], ["history", "STORE"],
           ["status", "STORE"], ["compile", "STORE"], ["compact", "STORE"]]


def test_no_store_brings_code(tmp_path, monkeypatch):
    """Whatever is done with a store that somebody gave us, the function that it names is imported only if we name it too."""
    folder, text, store = tmp_path / "code", tmp_path / "t", tmp_path / "s"
    folder.mkdir()
    (folder / "theirs.py").write_text("import pathlib\npathlib.Path(__file__).with_name('was_run').touch()\nsplit = str.split\n"
                                      "def words(line):\n    return line.split()\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    text.write_text("a b\n")
    run("train", store, text, "-o", "2", "--tokenizer", "theirs:words")
    run("update", store, text, "--again", "--tokenizer", "theirs:words")
    (folder / "was_run").unlink()

    for words in READING:
        said = refused(*[{"STORE": store, "TEXT": text}.get(word, word) for word in words], code=2)
        assert "is code of yours: name it again with --tokenizer theirs:words" in said
        other = refused(*[{"STORE": store, "TEXT": text}.get(word, word) for word in words], "--tokenizer", "char", code=2)
        assert "was made with tokenizer theirs:words, not char" in other
    for words in BESIDES:
        run(*[{"STORE": store}.get(word, word) for word in words])
    with kvps.open(store) as opened:
        assert opened.count("a b") == 2
        with opened.model() as model, pytest.raises(kvps.ArgumentError, match="name it again"):
            model.score("a b")
        with pytest.raises(kvps.ArgumentError, match="name it again"):
            opened.forget(["a b"])
    assert not (folder / "was_run").exists() and "theirs" not in sys.modules

    run("perplexity", store, text, "--tokenizer", "theirs:words")
    assert (folder / "was_run").exists()


def test_chinese(shared, tmp_path):
    """Chinese works out of the box: train, perplexity, next words, generated sentences, forgetting."""
    with gzip.open(shared / "data" / "udhr.multi.tsv.gz", "rt", encoding="utf-8") as file:
        lines = [line.split("\t", 1)[1] for line in file if line.startswith("cmn_hans\t")]
    (tmp_path / "train.txt").write_text("".join(lines[:-10]), encoding="utf-8")
    (tmp_path / "test.txt").write_text("".join(lines[-10:]), encoding="utf-8")
    store = tmp_path / "zh.kvps"

    trained = run_json("train", store, tmp_path / "train.txt", "-o", "4", "--tokenizer", "char", "--split-sentences")
    found = run_json("perplexity", store, tmp_path / "test.txt")
    words = run_json("next", store, "人人有", "-k", "1")["words"]

    assert trained["sentences"] > len(lines) - 10 and trained["tokens"] > 2000
    assert 10 < found["perplexity_excluding_oov"] < found["perplexity"] < 100
    assert [row["word"] for row in words] == ["权"]
    assert re.fullmatch(r"人人[^ ]+\n", run("generate", store, "--prompt", "人人", "--seed", "1").stdout)
    run("forget", store, tmp_path / "train.txt")
    assert run_json("stats", store)["tokens"] == 0


def test_recover_counts_as_the_job_did(tmp_path):
    """A lost shard is made again from the text with the store's words, and each record counts as often as it did."""
    store, logs = tmp_path / "s", tmp_path / "q.jsonl"
    logs.write_text("".join(json.dumps({"q": line, "n": 1000 * i + 3}) + "\n" for i, line in enumerate(LINES)), encoding="utf-8")
    options = ["--tokenizer", "char", "--lowercase", "--normalize", "NFKC", "--split-sentences"]
    run("train", store, logs, "-o", "2", "--shards", "3", "--field", "q", "--count-field", "n", *options)
    before = contents(store)

    damage_shard(store, "deleted", 1)
    run("recover", store, "--yes")

    assert contents(store) == before
    assert before["好", "。"] == 4003


def test_workers_make_the_same_words(tmp_path, texts):
    """A worker counts its part as the client does; a function has to be named to it too."""
    pytest.importorskip("zmq", reason="needs pyzmq")
    spec, store, (a, b) = spec_of("function", tmp_path), tmp_path / "s", texts
    with Served(store, "--bind", f"ipc://{tmp_path}/sock") as servers:
        run("train", servers.address, a, "-o", "2", "--tokenizer", spec, "--split-sentences")
        client = stopped("update", servers.address, b, "--tokenizer", spec, stop_at="SIGSTOP before kvps.jobs.train:count_splits 1")
        try:
            said = refused("work", servers.address, code=2)
            worker = start("work", servers.address, "--tokenizer", spec, "--wait", 3)
        finally:
            code, _, err = go_on(client)
        assert code == 0, err
        _, err = worker.communicate(timeout=TIMEOUT_S)
        assert worker.returncode == 0, err

    assert "name it again" in said
    assert contents(store) == expected(Tokenizer.from_spec(spec, split_sentences=True, trusted=True), a, b)

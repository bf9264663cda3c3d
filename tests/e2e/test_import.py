"""ARPA files of others as models: scores equal to KenLM's, and files that are not as they should be."""
import contextlib
import gzip
import json
import lzma
import os
import stat
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from arpas import read_arpa
from click.testing import CliRunner

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, CorruptionError, DataError
from kvps.jobs import train as jobs
from kvps.lm import arpa, container, opening
from kvps.lm.arpa_read import import_arpa
from kvps.lm.model import CompiledModel
from kvps.store.directory import open_store
from kvps.text.tokenize import Tokenizer

REFERENCES = ("small.o2", "small.o3", "small.o3.nointerpuni", "small.o3.prune001", "small.o3.vocabpad", "small.o5",
              "small.o5.prune00122", "tiny.o3.fallback")

TINY = b"""\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-0.9\t<unk>\t0
0\t<s>\t-0.3
-0.8\t</s>\t0
-0.7\ta\t-0.25
-0.6\tb\t-0.5

\\2-grams:
-0.5\t<s> a\t-0.125
-0.4\ta b\t-0.0625
-0.3\tb a\t0.5
-0.2\tb </s>

\\3-grams:
-0.1\t<s> a b
-0.05\ta b </s>

\\end\\
"""
PROBES = ("a b", "b a", "a a b", "c a", "b b a b", "", "a c b a")


def read(path, out, **options):
    """Import a file and return the model."""
    import_arpa(path, out, tokenizer=Tokenizer.from_spec("whitespace"), **options)
    return CompiledModel(out)


def same_scores(kenlm, path, ours, lines):
    """Compare the log10 probability of each token and each sentence with kenlm's, within 1e-5 per sentence."""
    theirs = kenlm.Model(str(path))
    found = ours.score_words("".join(line + "\n" for line in lines).encode())
    for line, tokens in zip(lines, found, strict=True):
        scored = list(theirs.full_scores(line, bos=True, eos=True))
        assert [log10 for log10, _, _ in scored] == pytest.approx([log10 for _, _, log10, _, _ in tokens], abs=1e-5, rel=2e-7), line
        # kenlm's floats, added without its rounding
        assert sum(log10 for log10, _, _ in scored) == pytest.approx(sum(log10 for _, _, log10, _, _ in tokens), abs=1e-5, rel=2e-7)
        assert [oov for _, _, oov in scored] == [oov for *_, oov in tokens]
        assert [max(matched, 1) for _, _, _, matched, _ in tokens] == [length for _, length, _ in scored]


@pytest.fixture(scope="module")
def kenlm():
    """Return the kenlm module."""
    return pytest.importorskip("kenlm", reason="kenlm is not installed: it comes with the test extra")


@pytest.mark.parametrize("name", REFERENCES)
def test_scores_of_lmplz_models(shared, tmp_path, kenlm, name):
    """Each ARPA file that lmplz wrote scores every held-out sentence, word for word, as in kenlm."""
    path = next((shared / "reference").glob(f"{name}.arpa*"))
    model = read(path, tmp_path / "model")
    if path.suffix == ".gz":
        plain = tmp_path / "plain.arpa"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        path = plain
    lines = (shared / "reference" / "small.heldout.txt").read_text(encoding="utf-8").split("\n")[:-1]
    same_scores(kenlm, path, model, lines)


@pytest.mark.slow
def test_scores_of_10000_sentences(shared, tmp_path, kenlm):
    """Models of order 2 to 6 that we write and read again score 10,000 sentences as kenlm does, and so does the store."""
    heldout = lzma.decompress((shared / "data" / "novels.heldout.txt.xz").read_bytes()).decode().split("\n")[:-1]
    text = lzma.decompress((shared / "data" / "novels.train.txt.xz").read_bytes()).split(b"\n")
    (tmp_path / "text.txt").write_bytes(b"\n".join(text[:200_000]) + b"\n")
    jobs.train(tmp_path / "store", [tmp_path / "text.txt"], order=6)
    lines = (heldout * (10_000 // len(heldout) + 1))[:10_000]
    with open_store(tmp_path / "store") as store:
        for order in range(2, 7):
            path = tmp_path / f"{order}.arpa"
            arpa.export(store, path, order=order)
            model = read(path, tmp_path / "model")
            same_scores(kenlm, path, model, lines)
            with kvps.load(tmp_path / "store", order=order) as own:
                for tokens, ours in zip(model.score_words(("\n".join(lines) + "\n").encode()), own.score_words(lines), strict=True):
                    assert [log10 for _, _, log10, _, _ in tokens] == pytest.approx([x.log10 for x in ours], abs=2e-6)


def random_arpa(rng, order, n_words, *, closed):
    """Return an ARPA file whose n-grams have contexts that are listed; `closed`: and their last words, too."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(n_words))]
    levels = [{(word,) for word in words}]
    for _ in range(1, order):
        contexts = sorted(gram for gram in levels[-1] if gram[-1] != "</s>")
        level = set()
        for _ in range(rng.randint(0, 3 * n_words)):
            gram = (*rng.choice(contexts), rng.choice(words[2:] if rng.random() < 0.9 else words)) if contexts else ()
            if gram and "<s>" not in gram[1:] and (not closed or gram[1:] in levels[-1]):
                level.add(gram)
        levels.append(level)
    levels = [level for i, level in enumerate(levels) if i < 2 or all(levels[1:i + 1])]
    lines = ["\\data\\", *(f"ngram {k}={len(level)}" for k, level in enumerate(levels, 1)), ""]
    for k, level in enumerate(levels, 1):
        lines.append(f"\\{k}-grams:")
        for gram in rng.sample(sorted(level), len(level)):
            line = f"{-rng.random() * 5:.{rng.randint(1, 9)}f}\t{' '.join(gram)}"
            if k < len(levels) and rng.random() < 0.8:
                line += f"\t{rng.choice([0, rng.uniform(-2, 1)]):.6g}"
            lines.append(line)
        lines.append("")
    return "\n".join([*lines, "\\end\\", ""]), words[3:]


def naive(path):
    """Return a function of a list of words and a word: log10 p by the definition, from a dict."""
    grams = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        fields = line.split("\t")
        if len(fields) > 1:
            grams[tuple(fields[1].split(" "))] = float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0

    def log10(context, word):
        word = word if (word,) in grams else "<unk>"
        for start in range(len(context) + 1):
            gram = (*context[start:], word)
            if gram in grams or len(gram) == 1:
                backed = sum(grams.get(tuple(context[i:]), (0, 0))[1] for i in range(start))
                return backed + grams[gram][0]
    return log10


@pytest.mark.parametrize("repeat", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_model(tmp_path, rng, repeat):
    """Any model gives the probabilities of its definition, also where the last words of its n-grams are not listed."""
    for _ in range(repeat):
        order = rng.randint(1, 8)
        text, words = random_arpa(rng, order, rng.randint(1, 12), closed=rng.random() < 0.3)
        path = tmp_path / "random.arpa"
        path.write_text(text, encoding="utf-8")
        model, log10 = read(path, tmp_path / "model"), naive(path)
        for _ in range(20):
            line = [rng.choice([*words, "unseen"]) for _ in range(rng.randint(0, 12))]
            (tokens,) = model.score_words((" ".join(line) + "\n").encode())
            history = ["<s>"]
            for word, _, found, _, _ in tokens:
                context = [w if w != "unseen" else "<unk>" for w in history[-(model.order - 1):]] if model.order > 1 else []
                assert found == pytest.approx(log10(context, word.decode()), abs=1e-5)
                history.append(word.decode())


@pytest.mark.parametrize("repeat", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_any_model_is_exported_again(tmp_path, rng, repeat):
    """An imported model is written with every number of its file, to the last bit of a float; of a lower order, too."""
    path, out = tmp_path / "random.arpa", tmp_path / "out.arpa"
    odd = ["-99", "-100", "-inf", "-1e-7", "-3e12", "-0.0625", "-1.17549435e-9", "-0", "-12345678"]
    for _ in range(repeat):
        order = rng.randint(1, 6)
        text, _ = random_arpa(rng, order, rng.randint(1, 12), closed=rng.random() < 0.3)
        lines = [line if "\t" not in line or rng.random() < 0.9 else f"{rng.choice(odd)}\t{line.partition(chr(9))[2]}"
                 for line in text.split("\n")]
        path.write_text("\n".join(lines), encoding="utf-8")
        model = read(path, tmp_path / "model")
        top = rng.choice([None, rng.randint(1, model.order)])
        made = kvps.export(tmp_path / "model", out, top)
        before, after = read_arpa(path), read_arpa(out)
        top = top or model.order
        assert made["ngrams"] == {k: len(before[k]) for k in range(1, top + 1)}
        for k, ngrams in after.items():
            assert set(ngrams) == set(before[k])
            for ngram, (p, backoff) in ngrams.items():
                expected = before[k][ngram][0], before[k][ngram][1] if k < top else 0.0
                assert [np.float32(p), np.float32(backoff)] == pytest.approx(np.float32(expected).tolist(), rel=0, abs=1e-20), ngram
        assert len(after) == top
        again = read(out, tmp_path / "again")
        assert again.score_text(b"w0 w1 w2\n") == CompiledModel(tmp_path / "model", order=top).score_text(b"w0 w1 w2\n")
        n_words, n = len(before[1]), sum(map(len, before.values()))
        some = kvps.export(tmp_path / "model", out, prune_to=rng.randint(n_words, n))["ngrams"]
        assert read(out, tmp_path / "again").statistics.ngrams == some         # with every context
        with contextlib.suppress(ArgumentError):       # what they had may have no place
            some = kvps.export(tmp_path / "model", out, limit_vocab=["w0", "w2", "w3"])["ngrams"]
        assert read(out, tmp_path / "again").statistics.ngrams == some


# Twenty ways in which files differ from lmplz's; as kenlm 0.3.0 has them.
VARIANTS = {
    "as it is": (TINY, None),
    "windows": (TINY.replace(b"\n", b"\r\n"), None),
    "comment": (b"# made by hand\n\n" + TINY, None),
    "text before": (b"my model\n" + TINY, 1),
    "blank after =": (TINY.replace(b"=4", b"= 4"), None),
    "no last newline": (TINY[:-1], None),
    "blanks at the end": (TINY + b"\n \n", None),
    "text at the end": (TINY + b"more\n", 24),
    "no end": (TINY.replace(b"\\end\\\n", b""), 22),
    "space for tab": (TINY.replace(b"-0.7\ta", b"-0.7 a"), 10),
    "no back-off": (TINY.replace(b"b a\t0.5", b"b a"), None),
    "back-off of the highest": (TINY.replace(b"<s> a b", b"<s> a b\t-0.5"), 20),
    "back-off 0 of the highest": (TINY.replace(b"<s> a b", b"<s> a b\t0"), None),
    "back-offs of -0": (TINY.replace(b"-0.3\n", b"-0\n").replace(b"-0.25", b"-0").replace(b"-0.125", b"-0.0"), None),
    "back-off nan": (TINY.replace(b"b a\t0.5", b"b a\tnan"), 16),
    "back-off inf": (TINY.replace(b"b a\t0.5", b"b a\tinf"), 16),
    "above 0": (TINY.replace(b"-0.4\ta b", b"0.4\ta b"), 15),
    "-99": (TINY.replace(b"-0.4\ta b", b"-99\ta b"), None),
    "-inf": (TINY.replace(b"-0.4\ta b", b"-inf\ta b"), None),
    "no <unk>": (TINY.replace(b"-0.9\t<unk>\t0\n", b"").replace(b"1=5", b"1=4"), None),
    "<UNK>": (TINY.replace(b"<unk>", b"<UNK>"), None),
    "no <s>": (TINY.replace(b"<s>", b"s"), 11),
    "too many claimed": (TINY.replace(b"2=4", b"2=5"), 19),
    "too few claimed": (TINY.replace(b"2=4", b"2=3"), 17),
    "a billion claimed": (TINY.replace(b"3=2", b"3=1000000000"), 23),
    "unknown word": (TINY.replace(b"-0.4\ta b", b"-0.4\ta z"), 15),
    "no context": (TINY.replace(b"<s> a b", b"a a b"), 20),
    "blank lines": (TINY.replace(b"-grams:\n", b"-grams:\n\n \t\r\n").replace(b"-0.3\tb a", b"\n\n-0.3\tb a"), None),
    "a problem after blank lines": (TINY.replace(b"-grams:\n", b"-grams:\n\n").replace(b"<s> a b", b"a a b"), 23),
    "<unk> and <UNK>": (TINY.replace(b"<unk>\t0\n", b"<unk>\t0\n-0.5\t<UNK>\t-0.1\n").replace(b"1=5", b"1=6"), None),
    "<UNK> and <unk>": (TINY.replace(b"-0.9", b"-0.5\t<UNK>\t-0.1\n-0.9").replace(b"1=5", b"1=6"), None),
    "a word twice": (TINY.replace(b"-0.8", b"-0.1\ta\t-0.1\n-0.2\t<s>\t-0.7\n-0.8").replace(b"1=5", b"1=7"), None),
    "count with a point": (TINY.replace(b"2=4", b"2=4.0"), None),
    "count and more": (TINY.replace(b"2=4", b"2=+4 bigrams"), None),
    "count of letters": (TINY.replace(b"2=4", b"2=four"), 3),
    "blank after data": (TINY.replace(b"\\data\\", b"\\data\\ "), 1),
    "blank after grams": (TINY.replace(b"2-grams:", b"2-grams: "), 13),
    "blank after end": (TINY.replace(b"\\end\\", b"\\end\\ "), 23),
    "twice": (TINY.replace(b"-0.3\tb a\t0.5", b"-0.3\ta b\t0.5"), 16),
    "a word too many": (TINY.replace(b"b a\t0.5", b"b a a\t0.5"), 16),
    "a word too few": (TINY.replace(b"b a\t0.5", b"a"), 16),
    "order skipped": (TINY.replace(b"ngram 2=4\n", b""), 3),
    "KenLM's binary": (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(100), 1),
    "empty": (b"", 1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(tmp_path, kenlm, name):
    """What KenLM reads gives KenLM's scores; the rest is refused in one line that names the line of the file."""
    data, line = VARIANTS[name]
    path, out = tmp_path / "variant.arpa", tmp_path / "model"
    path.write_bytes(data)
    if line is None:
        model = read(path, out)
        same_scores(kenlm, path, model, PROBES)
        assert model.statistics.ngrams == {1: 4 if name == "no <unk>" else 5, 2: 4, 3: 2}
        return
    if name != "twice":                        # KenLM takes the first
        with pytest.raises(OSError, match="Cannot read model"):
            kenlm.Model(str(path))
    with pytest.raises(DataError, match=rf"variant\.arpa: line {line}: ") as refused:
        read(path, out)
    assert "\n" not in str(refused.value)
    assert refused.value.line == line
    assert list(tmp_path.iterdir()) == [path]


def mutated(rng, data):
    """Return the bytes with some damage: cut, bytes changed, lines doubled, moved or gone, numbers changed."""
    kind = rng.randrange(8)
    if kind == 0:
        return data[:rng.randrange(len(data))]
    if kind == 1:
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    if kind >= 6:
        digits = [i for i, c in enumerate(data) if 48 <= c <= 57]
        at = rng.choice(digits or [0])
        return data[:at] + rng.choice([b"0", b"7", b"9", b"12345678901", b".", b""]) + data[at + 1:]
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    if kind == 2:
        lines.insert(i, lines[j])
    elif kind == 3:
        del lines[i]
    elif kind == 4:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        at = rng.randrange(len(data))
        return data[:at] + rng.choice([b" ", b"\t", b"\r", b"\n", b"-", b"1e", b"inf", b"9" * 30, b"\0", b"<s>"]) + data[at:]
    return b"\n".join(lines)


@pytest.mark.parametrize("repeat", [400, pytest.param(30_000, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, kenlm, rng, repeat, capfd):
    """A damaged file is refused in one line, or read; where KenLM reads it as well, both score alike."""
    path, out = tmp_path / "damaged.arpa", tmp_path / "model"
    both = 0
    for _ in range(repeat):
        data = TINY
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            data = mutated(rng, data) or b"\n"
        path.write_bytes(data)
        try:
            model = read(path, out)
        except DataError as error:
            assert "\n" not in str(error)
            assert error.line is None or error.line <= data.count(b"\n") + 1
            continue
        try:
            kenlm.Model(str(path))
        except OSError:
            continue
        same_scores(kenlm, path, model, PROBES)
        both += 1
    assert both > repeat // 20
    capfd.readouterr()                         # what KenLM writes


def test_memory_stays_small(tmp_path):
    """A header that claims 10^15 n-grams, a line of 100 MB, and a small file that unpacks to much are refused in little memory."""
    (tmp_path / "claims.arpa").write_bytes(TINY.replace(b"2=4", b"2=999999999999999"))
    (tmp_path / "line.arpa").write_bytes(TINY.replace(b"-0.7\ta", b"-0.7\t" + b"a" * 100_000_000))
    (tmp_path / "bomb.arpa.gz").write_bytes(gzip.compress(TINY + b"\n" * 100_000_000, 9))
    for name, told in (("claims.arpa", "line 19"), ("line.arpa", "line 10: is longer than"),
                       ("bomb.arpa.gz", "decompression bomb")):
        tracemalloc.start()
        with pytest.raises(DataError, match=told):
            read(tmp_path / name, tmp_path / "model")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 << 20


def run(*arguments, code=0):
    """Run a command in this process and return its result."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_command(tmp_path):
    """`kvps import` makes a file that `kvps perplexity` and kvps.load take; what only a store can do is refused."""
    (tmp_path / "tiny.arpa").write_bytes(TINY)
    (tmp_path / "text.txt").write_text("a b\nb a\n")
    model = tmp_path / "tiny.kvm"
    made = json.loads(run("import", model, tmp_path / "tiny.arpa", "--json").stdout)
    assert made["ngrams"] == {"1": 5, "2": 4, "3": 2}
    scored = json.loads(run("perplexity", model, tmp_path / "text.txt", "--json").stdout)
    with kvps.load(model) as loaded:
        assert scored["log10_probability"] == pytest.approx(sum(loaded.score(["a b", "b a"])))
        assert (scored["smoothing"], scored["version"]) == (loaded.smoothing, loaded.version) == ("back-off", 0)
        assert loaded.score("a b") == pytest.approx(-0.5 - 0.1 - 0.05)
        assert not loaded.refresh()
    for options in (["--smoothing", "witten-bell"], ["--exact"], ["--labels", "a"], ["-o", "4"]):
        assert "tiny.kvm" in run("perplexity", model, tmp_path / "text.txt", *options, code=2).stderr
    model.write_bytes(model.read_bytes()[:-1])
    assert "import it again" in run("perplexity", model, tmp_path / "text.txt", code=3).stderr


def test_arpa_file_as_model(tmp_path, monkeypatch):
    """Wherever MODEL stands an ARPA file may, plain or compressed; it is read once. What is none of all is told in one line."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tiny.arpa").write_bytes(TINY)
    (tmp_path / "tiny.arpa.gz").write_bytes(gzip.compress(b"\n# a comment\n" + TINY))
    (tmp_path / "text.txt").write_text("a b\nb a\n")
    run("import", tmp_path / "m", tmp_path / "tiny.arpa")
    for name in ("tiny.arpa", "tiny.arpa.gz"):
        for command, *rest in (("score", "--words"), ("perplexity", tmp_path / "text.txt", "--json"), ("next", "a"),
                               ("complete", "a "), ("generate", "--seed", 5), ("explain", "a b"),
                               ("evaluate", tmp_path / "text.txt"), ("rescore",)):
            ours, theirs = (CliRunner().invoke(main, [command, str(tmp_path / model), *map(str, rest)], input="0 ||| a b\n")
                            for model in (name, "m"))
            assert (ours.exit_code, theirs.exit_code) == (0, 0), (command, ours.output)
            assert ours.stdout == theirs.stdout != "", command
    for tokenizer, named in ("char", "char"), ("whitespace", None):
        result = CliRunner().invoke(main, ["score", str(tmp_path / "tiny.arpa"), "--tokenizer", tokenizer], input="a b\n")
        assert result.exit_code == (2 if named else 0)
        assert not named or f"kvps import OUT {tmp_path / 'tiny.arpa'} --tokenizer {named}, then" in result.stderr
    assert "was made with" in run("perplexity", tmp_path / "m", tmp_path / "text.txt", "--tokenizer", "char", code=2).stderr
    run("mix", tmp_path / "mixed", tmp_path / "tiny.arpa", tmp_path / "tiny.arpa.gz", "--dev", tmp_path / "text.txt")
    run("export", tmp_path / "mixed", tmp_path / "mixed.arpa")
    with kvps.load(tmp_path / "mixed") as mixed, kvps.load(tmp_path / "tiny.arpa") as model:
        assert mixed.score("a b") == pytest.approx(model.score("a b"))
        assert model.path == tmp_path / "tiny.arpa"
        monkeypatch.setattr("kvps.lm.arpa_read.import_arpa", None)
        with kvps.load(tmp_path / "tiny.arpa.gz") as again:
            assert again.score("a b") == model.score("a b")
        with pytest.raises(ArgumentError, match=r"tiny\.arpa: was imported"):
            kvps.load(tmp_path / "tiny.arpa", exact=True)

    wrong = {"text.txt": "no ARPA file: line 1", "empty": "line 1", "binary": "binary file of KenLM", "cut": "import it again",
             "bad.arpa": "line 2"}
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(100))
    (tmp_path / "cut").write_bytes((tmp_path / "m").read_bytes()[:-1])
    (tmp_path / "bad.arpa").write_bytes(TINY.replace(b"ngram 1", b"ngram 7"))
    monkeypatch.undo()
    for name, why in wrong.items():
        result = CliRunner().invoke(main, ["score", str(tmp_path / name)], input="a\n")
        assert result.exit_code != 0 and result.stderr.count("\n") == 1 and why in result.stderr, (name, result.stderr)


def test_words_of_any_bytes(tmp_path):
    """An ARPA file of words that are not UTF-8, as KenLM makes them of such text, answers everything in those bytes."""
    (tmp_path / "m.arpa").write_bytes(TINY.replace(b"b", b"caf\xe9"))
    run("import", tmp_path / "m", tmp_path / "m.arpa")
    for command in (["next", "a"], ["complete", "a "], ["generate", "--seed", "1", "--prompt", "a"], ["explain", "a"],
                    ["audit", "--contexts", "9"]):
        for options in ([], ["--json"]):
            result = CliRunner().invoke(main, [command[0], str(tmp_path / "m"), *command[1:], *options])
            assert result.exit_code in (0, 3) and "unexpected" not in result.output, (command, result.output)
    assert b"caf\xe9" in CliRunner().invoke(main, ["next", str(tmp_path / "m"), "a"]).stdout_bytes
    assert "caf\\udce9" in CliRunner().invoke(main, ["next", str(tmp_path / "m"), "a", "--json"]).stdout
    with kvps.load(tmp_path / "m") as model:
        assert [word for word in model.vocabulary if word.startswith("caf")] == ["caf\udce9"]


def test_outputs_that_are_no_files(tmp_path):
    """stdout and pipes are written to as they are, links are followed, and no model is made in the place of its ARPA file."""
    with kvps.create(tmp_path / "s", order=2) as store:
        store.train(["the cat sat", "the dog sat"], threads=1)
    run("export", tmp_path / "s", tmp_path / "a.arpa")
    expected = (tmp_path / "a.arpa").read_bytes()
    for out in ("-", "/dev/stdout"):
        found = subprocess.run([sys.executable, "-m", "kvps", "export", tmp_path / "s", out], capture_output=True, check=True)
        assert found.stdout == expected
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert run("export", tmp_path / "s", tmp_path / "pipe").stdout == ""
    reader.join(timeout=60)
    assert read == [expected] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "link").symlink_to("behind.arpa")
    run("export", tmp_path / "s", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "behind.arpa").read_bytes() == expected
    page = subprocess.run([sys.executable, "-m", "kvps", "explain", tmp_path / "s", "the cat", "--html", "-"], capture_output=True,
                          check=True)
    assert page.stdout.startswith(b"<!doctype html>") and page.stdout.rstrip().endswith(b"</html>")

    for name in ("a.arpa", "pipe", "s"):       # only a model is written over
        assert tmp_path.joinpath(name).exists()
        assert "exists, and is no model" in run("import", tmp_path / name, tmp_path / "a.arpa", code=2).stderr or name == "s"
        with pytest.raises(kvps.ArgumentError, match="exists, and is no model"):
            kvps.import_arpa(tmp_path / name, tmp_path / "a.arpa")
    for _ in range(2):
        run("import", tmp_path / "model", tmp_path / "a.arpa")
    assert str(tmp_path / "no" / "a.arpa") + ":" in run("export", tmp_path / "s", tmp_path / "no" / "a.arpa", code=1).stderr
    assert (tmp_path / "a.arpa").read_bytes() == expected


def test_imported_models_and_counts(tmp_path):
    """An imported model scores sentences, words and n-best lists as a store does; what takes counts refuses it in one line."""
    (tmp_path / "tiny.arpa").write_bytes(TINY)
    model, text = str(tmp_path / "m"), "a b\nb zebra\n"
    assert CliRunner().invoke(main, ["import", model, str(tmp_path / "tiny.arpa")]).exit_code == 0

    with kvps.load(model) as loaded:
        lines = CliRunner().invoke(main, ["score", model], input=text).stdout.splitlines()
        assert lines == [f"{p:.6f}\t{line}" for p, line in zip(loaded.score(text.splitlines()), text.splitlines(), strict=True)]
        rows = CliRunner().invoke(main, ["score", model, "--add", "p"], input='{"text": "a b"}\n').stdout
        assert json.loads(rows)["p"] == loaded.perplexities("a b")
        assert CliRunner().invoke(main, ["rescore", model], input="0 ||| a b\n").stdout.startswith("0 ||| a b ||| kvps= -")
        with pytest.raises(ArgumentError, match="takes a store"):
            loaded.complete("a", min_count=1)
    result = CliRunner().invoke(main, ["complete", model, "--min-count", "2", "a"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and "takes a store" in result.stderr


@pytest.mark.parametrize("listed", [["--no-list-ngrams"], []], ids=["hashes", "listed"])
@pytest.mark.parametrize("smoothing", ["modified-kneser-ney", "witten-bell"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_next_words_of_imported_models(order, smoothing, listed, tmp_path):
    """Next words, completions, drawn sentences, predictions and explanations are those of the store that the ARPA file is of."""
    text = ["the cat sat on the mat", "the dog sat", "a dog ran on", "the cat ran", "zebra", "", "the cat sat"]
    with kvps.create(tmp_path / "s", order=order) as store:
        store.train(text, threads=1)
        arguments = ["export", str(store.path), str(tmp_path / "m.arpa"), "--smoothing", smoothing]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert CliRunner().invoke(main, ["import", str(tmp_path / "m"), str(tmp_path / "m.arpa"), *listed]).exit_code == 0
        with store.model(smoothing) as model, kvps.load(tmp_path / "m") as imported:
            contexts = ["the cat", "<s>", "<s> the", "nobody", "", "a nobody", "on the mat </s>", "cat"]
            for ours, theirs in zip(imported.next(contexts, None), model.next(contexts, None), strict=True):
                # A file cannot say 0, and of <s> it says nothing.
                ours_p, theirs_p = ({word: p for word, p in zip(found.words, found.probabilities, strict=True)
                                     if word != "<s>" and p > 1e-30} for found in (ours, theirs))
                assert ours_p == pytest.approx(theirs_p, rel=1e-5)
                assert list(ours.probabilities) == sorted(ours.probabilities, reverse=True)
            for context in contexts:
                for word, p in zip(*imported.next(context, None)[:2], strict=True):
                    assert p == pytest.approx(10 ** imported.log10(word, context), rel=1e-12)
            for typed in ("the c", "the ", "z", ""):
                ours, theirs = imported.complete(typed, 3), model.complete(typed, 3)
                assert [row.probability for row in ours] == pytest.approx([row.probability for row in theirs], rel=1e-5)
            assert imported.generate("the", 5, seed=7) == imported.generate("the", 5, seed=7)
            assert imported.generate("the", 3, seed=7, top_k=1) == model.generate("the", 3, seed=8, top_k=1)
            ours, theirs = imported.measure([*text, "the nobody"]), model.measure([*text, "the nobody"])
            assert ours.hits.tolist() == theirs.hits.tolist()
            assert ours.mean_reciprocal_rank == pytest.approx(theirs.mean_reciprocal_rank, abs=0.1)       # ties may fall otherwise
            for word in imported.explain("the cat sat nobody"):
                assert sum(part.share for part in word.parts) == pytest.approx(word.probability, rel=1e-12)


def test_damaged_list(tmp_path):
    """A list of n-grams that was changed is told when next words are looked up in it, and when it is read as a whole."""
    (tmp_path / "tiny.arpa").write_bytes(TINY)
    import_arpa(tmp_path / "tiny.arpa", tmp_path / "m", tokenizer=Tokenizer.from_spec("whitespace", False), list_ngrams=True)
    data = bytearray((tmp_path / "m").read_bytes())
    _, arrays = container.read(tmp_path / "m")
    data[data.index(bytes(arrays["listed.2"].cast("B")))] ^= 1     # of the first word of the first n-gram
    (tmp_path / "m").write_bytes(data)

    with kvps.load(tmp_path / "m") as model:
        assert model.score("a b") < 0
        with pytest.raises(CorruptionError):
            model.next("a")
    with pytest.raises(CorruptionError):
        list(opening.ModelFile(tmp_path / "m").listed(2))


def test_model_that_begins_with_a_brace(tmp_path):
    """A model whose first byte is that of a mixture's file is a model."""
    p = np.array([0x4020007A], np.uint32).view(np.float32)[0]                  # plus 1 it begins with 0x7B, "{"
    (tmp_path / "a.arpa").write_text(f"\\data\\\nngram 1=3\n\n\\1-grams:\n-{p:.9f}\t<unk>\n0\t<s>\n-1\t</s>\n\n\\end\\\n")
    kvps.import_arpa(tmp_path / "m", tmp_path / "a.arpa")

    assert (tmp_path / "m").read_bytes()[:1] == b"{"
    with kvps.load(tmp_path / "m") as model:
        assert model.score("a") == pytest.approx(-1 - p)

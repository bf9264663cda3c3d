"""Scripts that call KenLM's programs run with ours: options, output and exit codes."""
import gzip
import math
import os
import subprocess

import kenlm
import numpy as np
import pytest
import reference
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kvps.cli import main
from kvps.cli.kenlm import query

TEXT = "the cat sat on the mat\nthe dog sat on the log\n\na cat and a dog\nthe end\nthe cat and the log\n"
FALLBACK = ("--discount_fallback", "0.4", "0.9")


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """Return the folder of the programs."""
    folder = tmp_path_factory.mktemp("tools") / "bin"
    done = CliRunner().invoke(main, ["kenlm-tools", str(folder)])
    assert done.exit_code == 0, done.stderr
    return folder


def run(tools, name, *arguments, stdin=b"", fails=None):
    """Run a program; return its stdout, or its last line of stderr where it has to fail."""
    done = subprocess.run([tools / name, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == (0 if fails is None else 1), done.stderr
    if fails is None:
        return done.stdout
    error = done.stderr.decode().rstrip("\n").rpartition("\n")[2]
    assert fails in error
    return error


ROWS = [("o2", ("-o", "2")), ("o3", ("-o", "3", "-S", "80%", "-T", "/tmp")), ("o5", ("--order=5", "--memory", "1G")),
        ("o3.prune001", ("-o", "3", "--prune", "0", "0", "1")), ("o5.prune00122", ("--prune", "0", "0", "1", "2", "2", "-o5")),
        ("o3.nointerpuni", ("-o", "3", "--interpolate_unigrams", "0")), ("o3.vocabpad", ("-o", "3", "--vocab_pad", "100000"))]


@pytest.mark.parametrize(("name", "options"), ROWS, ids=[name for name, _ in ROWS])
def test_lmplz_is_lmplz(shared, tools, tmp_path, name, options):
    """The ARPA file of small.txt is lmplz's, n-gram for n-gram."""
    run(tools, "lmplz", *options, "--text", shared / "reference" / "small.txt", "--arpa", tmp_path / "o.arpa")
    sizes, ours = reference.read_arpa(tmp_path / "o.arpa")
    expected_sizes, theirs = reference.read_arpa(shared / "reference" / f"small.{name}.arpa.gz")

    assert sizes == expected_sizes
    assert ours.keys() == theirs.keys()
    for gram, (p, backoff) in theirs.items():
        assert ours[gram][0] == pytest.approx(p, abs=2e-6)
        assert ours[gram][1] == (None if backoff is None else pytest.approx(backoff, abs=2e-6))


def test_query_is_query(shared, tools):
    """`query -v word` and its perplexities are KenLM's, from the ARPA file and from what build_binary makes of it."""
    heldout = (shared / "reference" / "small.heldout.txt").read_bytes()
    arpa = shared / "reference" / "small.o3.arpa.gz"
    lines = heldout.split(b"\n")[:20]
    found = run(tools, "query", "-v", "word", arpa, stdin=b"".join(line + b"\n" for line in lines))
    with gzip.open(shared / "reference" / "small.o3.query.words.gz") as expected:
        assert found.split() == expected.read().split()
    summary = run(tools, "query", "-v", "summary", arpa, stdin=heldout).decode().split("\n")
    assert summary[:2] == ["Perplexity including OOVs:\t162.21653302106841", "Perplexity excluding OOVs:\t92.87290214489327"]
    assert summary[2:] == ["OOVs:\t596", "Tokens:\t6473", ""]


def test_lmplz_of_small_text(tools, tmp_path):
    """Text and ARPA file by name or by pipe; fallback discounts when asked for, and otherwise an error; nothing is left."""
    (tmp_path / "text.jsonl").write_text(TEXT)                 # is text, whatever its name
    (tmp_path / "scratch").mkdir()
    scratch = ("-T", tmp_path / "scratch" / "x", "-S", "20000")
    piped = run(tools, "lmplz", "-o", 3, *scratch, *FALLBACK, stdin=TEXT.encode())
    run(tools, "lmplz", "-o", 3, *scratch, *FALLBACK, "--text", tmp_path / "text.jsonl", "--arpa", tmp_path / "a.arpa",
        "--verbose_header", "--sort_block", "1M", "--renumber")
    written = (tmp_path / "a.arpa").read_bytes()

    assert written.endswith(piped)
    assert written.startswith(f"# Input file: {tmp_path}/text.jsonl\n# Token count: 24\n# Smoothing".encode())
    expected = {gram: (p, backoff) for gram, p, backoff in reference.ModifiedKneserNey(
        reference.read_sentences(TEXT.encode()), 3, fallback=(0.4, 0.9, 0.9)).arpa()}
    _, found = reference.read_arpa(tmp_path / "a.arpa")
    assert {tuple(word.decode() for word in gram) for gram in found} == set(expected)
    for gram, (p, backoff) in found.items():
        wanted = expected[tuple(word.decode() for word in gram)]
        assert math.isclose(p, 0 if gram == (b"<s>",) else wanted[0], abs_tol=2e-6)
        assert backoff is None or math.isclose(backoff, wanted[1], abs_tol=2e-6)
    run(tools, "lmplz", "-o", 3, *scratch, stdin=TEXT.encode(), fails="has no discounts of its own")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_lmplz_takes_any_bytes(tools, tmp_path):
    """Words of bytes that are not UTF-8 stay as they are; KenLM and our tools read the model alike, and ask for such words."""
    text = TEXT.encode() + "café the cat\n".encode("latin-1") + b"the \xff\xfe caf\xe9\xc3\n"
    made = run(tools, "lmplz", "-o", 3, *FALLBACK, stdin=text)
    (tmp_path / "any.arpa").write_bytes(made)
    run(tools, "build_binary", tmp_path / "any.arpa", tmp_path / "any.kvm")
    line = b"caf\xe9 the \xff\xfe caf\xe9\xc3 \xc3\n"
    expected = list(kenlm.Model(str(tmp_path / "any.arpa")).full_scores(line))

    assert {gram for gram in reference.read_arpa(tmp_path / "any.arpa")[1] if len(gram) == 1} == {
        (word,) for word in [b"<unk>", b"<s>", b"</s>", *text.split()]}
    assert [oov for *_, oov in expected] == [False, False, False, False, True, False]
    for model in ("any.arpa", "any.kvm"):
        found = [field.split() for field in run(tools, "query", "-v", "word", tmp_path / model, stdin=line).split(b"\t")[:6]]
        assert [(np.float32(p), int(n)) for _, n, p in found] == [(np.float32(p), n) for p, n, _ in expected]


def test_lmplz_unpacks(tools, tmp_path):
    """Compressed text is told by its first bytes, from stdin too, as in KenLM."""
    plain = run(tools, "lmplz", "-o", 2, *FALLBACK, stdin=TEXT.encode())
    packed = gzip.compress(TEXT.encode())
    (tmp_path / "text").write_bytes(packed)

    assert run(tools, "lmplz", "-o", 2, *FALLBACK, stdin=packed) == plain
    assert run(tools, "lmplz", "-o", 2, *FALLBACK, "--text", tmp_path / "text") == plain


def test_lmplz_refuses(tools, tmp_path):
    """What is impossible, what cannot be honoured, and text with <s> in it end with one line and exit code 1."""
    (tmp_path / "text").write_text("a <s> b\n")
    for options, message in [
            ((), "required: -o/--order"), (("-o", "9"), "order 9"), (("-o", "2", "--foo"), "--foo"),
            (("-o", "2", "--intermediate", "x"), "--intermediate: KenLM's intermediate files"),
            (("-o", "2", "--collapse_values"), "--collapse_values"), (("-o", "2", "--prune", "1", "0"), "pruning by 1,0"),
            (("-o", "2", "--discount_fallback", "2"), "fallback discounts 2.0"),
            (("-o", "2", "--discount_fallback", "1", "1", "1", "1"), "at most three"),
            (("-o", "2", "--vocab_pad", "9", "--interpolate_unigrams", "0"), "--vocab_pad requires"),
            (("-o", "2", "-S", "lots"), "lots"),
            (("-o", "2", "--discount_fallback"), 'line 1: the word "<s>" is reserved; remove it, or use --skip_symbols')]:
        run(tools, "lmplz", "--text", tmp_path / "text", *options, fails=message)
    run(tools, "lmplz", "-o", "2", "--text", tmp_path / "none", fails="No such file")
    assert run(tools, "lmplz", "-o", "2", "-T", tmp_path, fails="no text to count") == "-: no text to count"
    assert b"a b" in run(tools, "lmplz", "-o", "2", "--text", tmp_path / "text", "--skip_symbols", "--discount_fallback")
    shown = subprocess.run([tools / "lmplz"], capture_output=True, timeout=60, check=False)
    assert (shown.returncode, b"--discount_fallback" in shown.stderr) == (1, True)


@pytest.fixture(scope="module")
def arpa(tools, tmp_path_factory):
    """Return an ARPA file of TEXT."""
    path = tmp_path_factory.mktemp("arpa") / "t.arpa"
    run(tools, "lmplz", "-o", 3, *FALLBACK, "--arpa", path, stdin=TEXT.encode())
    return path


@pytest.mark.parametrize("wrapped", [True, False])
def test_query_prints_what_kenlm_scores(tools, arpa, tmp_path, wrapped):
    """Words, lengths, log10 probabilities and sums are those of KenLM's Python module; text behind the last newline has no end."""
    run(tools, "build_binary", "-q", "8", "trie", arpa, tmp_path / "m.kvm")
    text = "the cat zzz\n\n dog\tsat  <unk>\nthe end\nthe log"
    theirs, expected, sums, n_words = kenlm.Model(str(arpa)), [], [], 0
    for line in text.split("\n"):
        whole = line != "the log"
        scores = list(theirs.full_scores(line, bos=wrapped, eos=wrapped and whole))
        words = [*line.split(), *(["</s>"] if wrapped and whole else [])]
        expected += [(word, str(n), np.float32(p)) for word, (p, n, _) in zip(words, scores, strict=True)]
        n_words += len(words)
        if whole:
            sums.append((np.float32(theirs.score(line, bos=wrapped, eos=wrapped)), sum(oov for *_, oov in scores)))
    for model in (arpa, tmp_path / "m.kvm"):
        out = run(tools, "query", *([] if wrapped else ["-n"]), "-l", "lazy", "-b", model, stdin=text.encode()).decode()
        found = [field.rsplit("=", 1) for line in out.split("\n") for field in line.split("\t") if "=" in field]
        assert [(word, rest.split()[1], np.float32(rest.split()[2])) for word, rest in found] == expected
        assert [(np.float32(line.split("Total: ")[1].split()[0]), int(line.split("OOV: ")[1]))
                for line in out.split("\n") if "Total: " in line] == sums
        assert out.endswith(f"OOVs:\t2\nTokens:\t{n_words}\n")
        assert [field.split("=")[1].split()[0] for field in out.split("\t") if field.strip().startswith("zzz")] == ["0"]
    only = run(tools, "query", "-v", "sentence", arpa, stdin=b"the cat\n")
    assert only.count(b"\n") == 1
    assert only.startswith(b"Total: ")


def test_query_and_build_binary_refuse(tools, arpa, tmp_path):
    """Binary files of KenLM, options without a meaning here, and files that are no model end with one line and exit code 1."""
    (tmp_path / "bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n" + bytes(100))
    run(tools, "query", tmp_path / "bin", fails="is a binary file of KenLM; name the ARPA file")
    run(tools, "build_binary", tmp_path / "bin", tmp_path / "out", fails="is a binary file of KenLM")
    run(tools, "query", tmp_path / "none", fails="none")
    run(tools, "query", "-v", "loud", arpa, fails="OOV count.")
    for options, message in [(("-r", "a b"), "-r:"), (("-u", "-3"), "-u -3"), (("-q", "8"), "Quantization"),
                             (("-z",), "an output file")]:
        run(tools, "build_binary", *options, arpa, tmp_path / "out", fails=message)
    run(tools, "build_binary", arpa, fails="name an output file")
    (tmp_path / "a.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\ta\n\n\\end\\\n")
    run(tools, "build_binary", "-s", tmp_path / "a.arpa", tmp_path / "out", fails="<s> among the 1-grams (no effect here: -s)")
    run(tools, "build_binary", "-i", "-s", tmp_path / "a.arpa", tmp_path / "out", fails="(no effect here: -s, -i)")
    assert not os.path.lexists(tmp_path / "out")


def test_query_prints_certain_words_as_kenlm(tools, arpa):
    """A log10 probability of 0 is printed with the sign that KenLM gives it, in words but not in sums."""
    p = next(kenlm.Model(str(arpa)).full_scores("<s>", bos=False, eos=False))[0]

    assert math.copysign(1, p) == -1
    assert run(tools, "query", "-n", "-v", "word", "-v", "sentence", arpa, stdin=b"<s>\n") == b"<s>=1 1 -0\tTotal: 0 OOV: 0\n"


def test_other_programs_are_not_overwritten(tools, tmp_path):
    """The command writes its own files anew, but leaves others of the same names alone."""
    again = CliRunner().invoke(main, ["kenlm-tools", str(tools), "--json"])
    assert (again.exit_code, again.stdout.count("\n")) == (0, 3)
    (tmp_path / "query").write_text("mine")
    assert CliRunner().invoke(main, ["kenlm-tools", str(tmp_path)]).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["query"]


@given(st.floats(width=32))
def test_numbers_as_query_prints_them(x):
    """A float32 is printed with as few digits as tell it apart, without an exponent from 1e-6 up to 1e21, and reads back."""
    text = query.shown(x)
    if math.isfinite(x):
        assert np.float32(text) == np.float32(x)
        assert ("e" in text) == (x != 0 and not 1e-6 <= abs(float(str(np.float32(x)))) < 1e21)
        assert not text.endswith(".0")
    else:
        assert text == ("NaN" if math.isnan(x) else "inf" if x > 0 else "-inf")


@pytest.mark.parametrize(("x", "text"), [
    (1e-7, "1e-7"), (-1.5e-5, "-0.000015"), (123456.0, "123456"), (1e20, "100000000000000000000"), (1.5e22, "1.5e22"),
    (-2.0, "-2"), (0.0, "0"), (1.2345678e8, "123456780")])
def test_numbers_in_full(x, text):
    """What double-conversion prints of some numbers."""
    assert query.shown(x) == text

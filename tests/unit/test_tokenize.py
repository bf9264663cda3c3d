"""Tokenizers and the UTF-8 check."""
import sys
import types

import pytest

from kvps._text import first_invalid_utf8
from kvps.errors import ArgumentError, DataError
from kvps.text.corpus import resolve
from kvps.text.tokenize import Tokenizer

# Every character that Python or Unicode takes for white space or the end of a line, between words.
ODD = "a\vb\fc\x1cd\x1de\x1ef\x85g\u00a0h\u2028i\u2029j\u3000k"


def prepare(spec, text, lowercase=False, **options):
    """Return the canonical text of a str, as str."""
    tokenizer = Tokenizer.from_spec(spec, lowercase, trusted=True)
    return tokenizer.prepare(text.encode("utf-8", "surrogatepass"), **options).decode()


@pytest.fixture
def function(monkeypatch):
    """Return a way to install a function as `theirs:function`, a module that can be imported."""
    def install(value):
        module = types.ModuleType("theirs")
        module.function = value
        module.inner = types.SimpleNamespace(function=value)
        monkeypatch.setitem(sys.modules, "theirs", module)
        return "theirs:function"
    return install


def test_whitespace_is_untouched():
    """White-space text is passed on as it is, the same object: the kernel splits it."""
    data = f" a  b\t\r\0\n\n{ODD}\nlast".encode()

    assert Tokenizer.from_spec("whitespace").prepare(data) is data


def test_whitespace_lowercase():
    """Lower-casing keeps lines and Unicode's spaces, and knows letters beyond ASCII."""
    assert prepare("whitespace", "ÄB İ\nODΟΣ ΣΑΣ\u0085Σ\n", lowercase=True) == "äb i̇\nodος σας\u0085σ\n"


def test_char():
    """Every character that is none of our separators is a word, Unicode's spaces too."""
    assert prepare("char", "ab c\n\n\t\r\0 \nü\u0085\u3000 x") == "a b c\n\n\nü \u0085 \u3000 x"
    assert prepare("char", ODD) == " ".join(ODD)


def test_wordpunct():
    """Runs of letters and digits, and runs of punctuation, are words."""
    assert prepare("wordpunct", "Don't stop!? 3.5\n\n  \n--a_b") == "Don ' t stop !? 3 . 5\n\n\n-- a_b"
    assert prepare("wordpunct", "DON'T\n", lowercase=True) == "don ' t\n"


def test_wordpunct_is_nltks():
    """Each line gives what nltk.tokenize.wordpunct_tokenize gives, with every Unicode character in it."""
    nltk = pytest.importorskip("nltk.tokenize")
    every = [chr(c) for c in range(1, 0x30000) if not 0xD800 <= c < 0xE000 and c != 10]
    lines = ["".join(every[i:i + 97]) for i in range(0, len(every), 97)]

    result = prepare("wordpunct", "\n".join(lines)).split("\n")

    assert result == [" ".join(nltk.wordpunct_tokenize(line)) for line in lines]


def test_wordpunct_without_nltk():
    """wordpunct imports neither nltk nor anything slow."""
    import subprocess
    code = ("import sys; from kvps.text.tokenize import Tokenizer; Tokenizer.from_spec('wordpunct').prepare(b'a');"
            "print([m for m in ('nltk', 'numpy', 'json', 'hashlib') if m in sys.modules])")

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"


def test_wordpunct_nul():
    """A NUL, which would be punctuation to NLTK and a separator to us, is refused with its line."""
    with pytest.raises(DataError, match=r"\(text\): byte 5: a NUL byte"):
        prepare("wordpunct", "ü\nb\nc\0\n")


def test_function(function):
    """MODULE:FUNC gets each line without its newline, empty ones too, and its words are joined."""
    seen = []

    def split(line):
        seen.append(line)
        return line.upper().strip("\r").split(" ") if line else []

    assert prepare(function(split), "a b\n\nc\u2028d\nx\r") == "A B\n\nC\u2028D\nX"
    assert seen == ["a b", "", "c\u2028d", "x\r"]


def test_final_newline(function):
    """Text keeps its last newline, or its lack of one, with every tokenizer."""
    for spec in ("whitespace", "char", "wordpunct", function(str.split)):
        for text in ("", "\n", "\n\n", "a", "a\n", "a\n\n", "a\n\nb"):
            assert prepare(spec, text) == text, (spec, text)


@pytest.mark.parametrize(("value", "reason"), [
    (lambda line: ["a b"], "the word 'a b'"), (lambda line: [""], "the word ''"), (lambda line: ["a\0"], "NUL"),
    (lambda line: ["\n"], "separator"), (lambda line: [1], "TypeError"), (lambda line: None, "TypeError"),
    (lambda line: "abc", "returned str"), (lambda line: {"a": 1}, "returned dict"),
    (lambda line: 1 / 0, "ZeroDivisionError: division by zero"), (lambda a, b: [], "TypeError")])
def test_function_misbehaves(function, value, reason):
    """Whatever the user's function does wrong is one error with the input, the line and the byte."""
    tokenizer = Tokenizer.from_spec(function(lambda line: ["ok"] if "ü" in line else value(line)), trusted=True)

    with pytest.raises(DataError, match=rf"in\.txt: line 12 \(byte 103\): .*{reason}") as caught:
        tokenizer.prepare("ü\nbad\nbad\n".encode(), name="in.txt", first_line=11, offset=100)
    assert (caught.value.path, caught.value.line, caught.value.offset) == ("in.txt", 12, 103)


def test_function_returns_surrogates(function):
    """A word that Unicode cannot encode is the function's mistake, not a crash."""
    with pytest.raises(DataError, match="theirs:function"):
        prepare(function(lambda line: ["\ud800"]), "a\n")


def test_function_is_not_trusted(function):
    """A function that only a store names is not imported; the message says how to allow it."""
    function(str.split)

    with pytest.raises(ArgumentError, match="name it again with --tokenizer theirs:function"):
        Tokenizer.from_spec("theirs:function")
    with pytest.raises(ArgumentError, match="name it again"):
        Tokenizer.from_json({"tokenizer": "no_such_module_kvps:f", "lowercase": False})


@pytest.mark.parametrize(("spec", "reason"), [
    ("words", "unknown tokenizer"), ("", "unknown"), ("os:", "unknown"), (":f", "unknown"), ("a b:c", "unknown"),
    ("no_such_module_kvps:f", "ModuleNotFoundError"), ("os:no_such", "AttributeError"), ("os:sep", "not a function")])
def test_unknown(spec, reason):
    """A name that leads to no function is an argument error."""
    with pytest.raises(ArgumentError, match=reason):
        Tokenizer.from_spec(spec, trusted=True)


def test_record(function):
    """A tokenizer comes back from a store's record equal, and differs where spec or case differ."""
    function(str.split)
    made = [Tokenizer.from_spec(spec, lowercase, trusted=True)
            for spec in ("whitespace", "char", "theirs:inner.function") for lowercase in (False, True)]

    assert [Tokenizer.from_json(t.to_json(), trusted=True) for t in made] == made
    assert len(set(made)) == len(made)
    assert made[-1].spec_string() == "--tokenizer theirs:inner.function --lowercase"
    assert repr(made[0]) == "Tokenizer.from_spec('whitespace', False)"


def test_not_utf8():
    """Ill-formed text is refused with the line, the byte and the way out."""
    tokenizer = Tokenizer.from_spec("whitespace")

    reason = r"x: line 3 \(byte 7\): not UTF-8 \(byte 0xe9\); .*--encoding-errors replace"
    with pytest.raises(DataError, match=reason) as caught:
        tokenizer.prepare(b"a\nb\ncaf\xe9\n", name="x", first_line=1)
    assert (caught.value.line, caught.value.offset) == (3, 7)
    with pytest.raises(DataError, match=r"x: byte 1003: not UTF-8"):
        tokenizer.prepare(b"caf\xe9\n", name="x", offset=1000)


def test_not_utf8_in_a_split(tmp_path):
    """With a split's own locate, the place is that in the file."""
    (tmp_path / "a").write_bytes(b"one\ntwo\nthr\xffee\n")
    (source,) = resolve([tmp_path / "a"])
    tokenizer = Tokenizer.from_spec("char")

    with pytest.raises(DataError, match=r"line 3 \(byte 11\)"):
        for split in source.splits(1):
            tokenizer.prepare(split.data, name=source.name, locate=split.locate)


@pytest.mark.parametrize(("data", "suffix"), [
    (b"\x1f\x8b\x08\0\xff", ".gz"), (b"BZh91AY\xff", ".bz2"), (b"\xfd7zXZ\0", ".xz"), (b"\x28\xb5\x2f\xfd", ".zst")])
def test_compressed_under_another_name(data, suffix):
    """Compressed data that is not named so is recognised, and the message says which ending it needs."""
    with pytest.raises(DataError, match=f"looks like a {suffix} file: give it that ending"):
        Tokenizer.from_spec("whitespace").prepare(data)


def test_replace():
    """Replacement makes U+FFFD of what is ill-formed, as Python does, for every tokenizer."""
    data = b"a\xff b\xe2\x82\nc\xed\xa0\x80\n"

    assert Tokenizer.from_spec("whitespace").prepare(data, errors="replace") == data.decode("utf-8", "replace").encode()
    assert Tokenizer.from_spec("char").prepare(data, errors="replace") == (
        "a \ufffd b \ufffd\nc \ufffd \ufffd \ufffd\n".encode())
    with pytest.raises(ArgumentError, match="strict"):
        Tokenizer.from_spec("char").prepare(data, errors="ignore")


@pytest.mark.parametrize("lead", range(256))
def test_first_invalid_utf8_of_every_pair(lead):
    """Every lead byte with every second byte, alone and continued, is judged as Python judges it."""
    for second in range(256):
        for tail in (b"", b"\x80", b"\x80\x80", b"\xbf\xbf ASCII behind"):
            text = b"8 bytes+" + bytes([lead, second]) + tail
            try:
                text.decode()
                expected = -1
            except UnicodeDecodeError as error:
                expected = error.start
            assert first_invalid_utf8(text) == expected, text


def test_first_invalid_utf8_accepts_buffers():
    """Any contiguous buffer of bytes will do; None will not."""
    assert [first_invalid_utf8(kind(b"abc\xff")) for kind in (bytes, bytearray, memoryview)] == [3, 3, 3]
    assert first_invalid_utf8(b"") == -1
    with pytest.raises(TypeError):
        first_invalid_utf8(None)

"""Tokenizers and the UTF-8 check."""
import functools
import json
import os
import sys
import types

import pytest
import reference
from tokenizers_of_tests import hugging_face_model, sentencepiece_model, spec_of, words_and_marks

from kvps._text import RANGES, characters, first_invalid_utf8
from kvps.errors import ArgumentError, DataError
from kvps.text.corpus import resolve
from kvps.text.tokenize import Tokenizer, recordable, shown, store_tokenizer

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
    """Every character is a word, Latin letters and digits that stand together are one, and blanks vanish, Unicode's too."""
    assert prepare("char", "自然语 GPT4模型，2024年。\n\n\t\r\0 \nü\u0085\u3000 x") == "自 然 语 GPT4 模 型 ， 2024 年 。\n\n\nü x"
    assert prepare("char", "don't stop-it") == "don ' t stop - it"
    assert prepare("char", "Ａｂ１。Ｃ") == "Ａｂ１ 。 Ｃ"
    assert prepare("char", ODD) == "a b c \x1c d \x1d e \x1e f g h i j k"
    assert prepare("char", "𠀀Привет") == "𠀀 П р и в е т"
    assert prepare("char", "ÄB你C", lowercase=True) == "äb 你 c"


def test_char_marks():
    """A combining mark or variation selector stays with what it marks, and is a word where it marks nothing."""
    assert prepare("char", "cafe\u0301s か\u3099き 葛\U000e0100城") == "cafe\u0301s か\u3099 き 葛\U000e0100 城"
    assert prepare("char", "\u0301a \u0301\u0301\n\u0301") == "\u0301 a \u0301\u0301\n\u0301"


def test_char_is_its_twin(rng):
    """The kernel does what the same rules in Python do, with every character there is, at any place."""
    every = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000 and code != 10]
    lines = ["".join(every[i:i + 997]) for i in range(0, len(every), 997)]
    odd = [chr(code) for first, last, _ in RANGES for code in (first - 1, first, last, last + 1)] + list("aZ09 \t\0.é")
    lines += ["".join(rng.choices(odd, k=rng.randrange(12))) for _ in range(5000)]

    assert characters("\n".join(lines).encode()).decode().split("\n") == [
        " ".join(reference.characters(line)) for line in lines]


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
    assert repr(made[-1]) == "<Tokenizer theirs:inner.function --lowercase>"


def test_not_utf8():
    """Ill-formed text is refused with the line, the byte and the way out."""
    tokenizer = Tokenizer.from_spec("whitespace")

    reason = r"x: line 3 \(byte 7\): not UTF-8 \(byte 0xe9\); .*--encoding-errors replace"
    with pytest.raises(DataError, match=reason) as caught:
        tokenizer.prepare(b"a\nb\ncaf\xe9\n", errors="strict", name="x", first_line=1)
    assert (caught.value.line, caught.value.offset) == (3, 7)
    with pytest.raises(DataError, match=r"x: byte 1003: not UTF-8 \(byte 0xe9\); convert it first$"):
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


@pytest.mark.parametrize(("kind", "line", "words"), [
    ("jieba", "我来到北京清华大学 hello", "我 来到 北京 清华大学 hello"),
    ("sentencepiece", "the white whale", None), ("hf", "the white whale 猫 <unk>", None)])
def test_libraries(tmp_path, kind, line, words):
    """Words are those that the library itself finds, blanks between them aside, on every line; lines stay lines."""
    made = Tokenizer.from_spec(spec_of(kind, tmp_path))
    if kind == "sentencepiece":
        import sentencepiece
        words = " ".join(sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).encode(line, out_type=str))
    elif kind == "hf":
        import tokenizers
        library = tokenizers.Tokenizer.from_str(hugging_face_model().decode())
        library.no_truncation()
        library.no_padding()
        found = library.encode(line, add_special_tokens=False)
        places = zip(found.tokens, found.offsets, strict=True)
        words = " ".join(line[slice(*place)] if word == "<unk>" else word for word, place in places)
        assert words.endswith("猫 <unk>")

    for text in ("", "\n", "\n\n", f"{line}", f"{line}\n", f"{line}\n\n{line}\n", f"\n{line} \t\r\n"):
        made_of = made.prepare(text.encode()).decode()
        assert made_of.count("\n") == text.count("\n")
        expected = [words.split() if line in part else [] for part in text.split("\n")]
        assert [found.split() for found in made_of.split("\n")] == expected


@pytest.mark.parametrize("kind", ["sentencepiece", "hf"])
def test_file_of_a_library(tmp_path, kind):
    """A model is known by its digest wherever it lies; another one in its place, or none, is refused in one line."""
    spec = spec_of(kind, tmp_path)
    recorded = Tokenizer.from_spec(spec).to_json()
    name = {"sentencepiece": "unigram.model", "hf": "tokenizer.json"}[kind]
    moved = tmp_path / "moved"
    moved.mkdir()

    assert Tokenizer.from_json(recorded) == Tokenizer.from_spec(spec)
    (tmp_path / name).rename(moved / name)
    with pytest.raises(ArgumentError, match="No such file.*name its place with --tokenizer"):
        Tokenizer.from_json(recorded)
    there = f"{kind}:{moved / name}"
    assert store_tokenizer("s", recorded, there) == Tokenizer.from_spec(there)
    (moved / name).write_bytes((moved / name).read_bytes() + b" ")
    with pytest.raises(ArgumentError, match="digest|cannot use it"):
        store_tokenizer("s", recorded, there)
    (moved / name).rename(tmp_path / name)
    with pytest.raises(ArgumentError, match=f"its digest is .*, not {recorded['digest']}"):
        Tokenizer.from_json(recorded)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArgumentError, match="not a file"):
        Tokenizer.from_json(recorded)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"\xff nonsense")
    with pytest.raises(ArgumentError, match="cannot use it"):
        Tokenizer.from_spec(spec)


@pytest.mark.parametrize(("spec", "package"), [("sentencepiece:m", "sentencepiece"), ("hf:m", "tokenizers"), ("jieba", "jieba")])
def test_library_is_not_installed(tmp_path, monkeypatch, spec, package):
    """Without the library it is one line that says how to get it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").write_bytes(b"some model")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ArgumentError, match=rf'needs {package}: pip install "kvps\[{spec.split(":")[0]}\]"$'):
        Tokenizer.from_spec(spec)


def test_jieba_of_our_own(tmp_path):
    """Words that somebody else adds to jieba's own dictionary, and its cache file in a common folder, do not count."""
    jieba = pytest.importorskip("jieba", reason='needs jieba: pip install "kvps[jieba]"')
    made = Tokenizer.from_spec("jieba")
    before = made.prepare("石墨烯鲸鱼机".encode())
    jieba.setLogLevel("ERROR")
    jieba.dt.tmp_dir = str(tmp_path)

    jieba.add_word("石墨烯鲸鱼机")

    assert made.prepare("石墨烯鲸鱼机".encode()) == before


def test_normalize():
    """Text is brought into its form before words are made: composed, and with NFKC of one width."""
    def words(text, **options):
        return Tokenizer.from_spec("char", **options).prepare(text.encode()).decode()

    assert words("e\u0301 ＡＢ", normalize="NFC") == "\u00e9 ＡＢ"
    assert words("e\u0301 ＡＢ１\u3000ﬁx！", normalize="NFKC") == "\u00e9 AB1 fix !"
    assert words("ＡＢ", normalize="NFKC", lowercase=True) == "ab"
    assert Tokenizer.from_spec("whitespace", normalize="NFC").prepare("e\u0301\n\u0301".encode()) == "\u00e9\n\u0301".encode()
    with pytest.raises(ArgumentError, match="NFC or NFKC"):
        Tokenizer.from_spec("char", normalize="NFD")


def test_split_sentences_first():
    """Sentences are split before NFKC makes of ！ a ! that ends a sentence only before a blank."""
    made = Tokenizer.from_spec("char", normalize="NFKC", split_sentences=True)
    data = "好！走吧。Yes. No\n\n再见！\n".encode()

    assert made.prepare(data).decode() == "好 !\n走 吧 。\nYes .\nNo\n\n再 见 !\n"
    assert made.sentences_of(data) == [4, 1, 1]
    assert [made.line_of(data, i) for i in range(6)] == [0, 0, 0, 0, 1, 2]
    plain = Tokenizer.from_spec("char")
    assert (plain.sentences_of(data), plain.line_of(data, 2)) == (None, 2)


def test_split_sentences_failing(function):
    """An error in a sentence names the line that it came from."""
    tokenizer = Tokenizer.from_spec(function(lambda line: [] if "bad" in line else ["ok"] if line else [""]), split_sentences=True,
                                    trusted=True)

    with pytest.raises(DataError, match=r"x: line 2 \(byte 10\)"):
        tokenizer.prepare(b"One. Two.\n\nThree. bad\n", name="x", first_line=1)


def test_record_of_all(tmp_path):
    """What a store records is only what is set, so older records mean what they meant; each attribute makes another one."""
    assert Tokenizer.from_spec("char").to_json() == {"tokenizer": "char", "lowercase": False}
    made = [Tokenizer.from_spec("char", lowercase, normalize=normalize, split_sentences=split)
            for lowercase in (False, True) for normalize in (None, "NFC", "NFKC") for split in (False, True)]
    assert len({*made}) == len(made) == 12
    assert [Tokenizer.from_json(json.loads(json.dumps(one.to_json()))) for one in made] == made
    assert [recordable(one.to_json()) for one in made] == [one.to_json() for one in made]
    assert shown(made[-1].to_json()) == "char --lowercase --normalize NFKC --split-sentences"


@pytest.mark.parametrize("record", [
    None, {}, "char", {"tokenizer": "char"}, {"tokenizer": 1, "lowercase": False}, {"tokenizer": "char", "lowercase": 1},
    {"tokenizer": "char", "lowercase": False, "more": 1}, {"tokenizer": "char", "lowercase": False, "normalize": None}])
def test_not_recordable(record):
    """What a client wants recorded is a tokenizer with what we know of one, and nothing else."""
    with pytest.raises(ArgumentError, match="does not describe"):
        recordable(record)


def test_callables():
    """A function is taken where a name leads to it, and named by that; what none leads to is refused with the way out."""
    made = Tokenizer.from_spec(words_and_marks)
    assert (made.spec, made.prepare(b"a b!\n")) == ("tokenizers_of_tests:words_and_marks", b"a b !\n")
    assert store_tokenizer("s", made.to_json(), words_and_marks) == made

    class Bound:
        """Makes words, and has a method that does."""

        def __call__(self, line):
            """Return words."""
            return line.split()

        def words(self, line):
            """Return words."""
            return line.split()

    def main(line):
        return line.split()

    main.__module__ = "__main__"
    for function in (lambda line: [], Bound().words, Bound(), str.split, "a b".split, functools.partial(str.split), main):
        with pytest.raises(ArgumentError, match="cannot be imported by a name.*in a module of yours"):
            Tokenizer.from_spec(function)


def test_what_functions_return(function):
    """Besides lists, a Doc as spaCy's, whose tokens have text, and an Encoding as Hugging Face's, which has tokens, are words."""
    class Doc(list):
        """A list that looks like a Doc."""

        text = "of all"

    class Iterable:
        """What a Doc looks like to us."""

        text = "a b"

        def __iter__(self):
            """Yield tokens."""
            return iter([types.SimpleNamespace(text=text) for text in ("a", " ", "b")])

    assert prepare(function(lambda line: Iterable()), "x\n") == "a b\n"
    assert prepare(function(lambda line: types.SimpleNamespace(tokens=["c", "d"])), "x\n") == "c d\n"
    assert prepare(function(lambda line: Doc(["e"])), "x\n") == "e\n"

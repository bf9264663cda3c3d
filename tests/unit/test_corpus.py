"""Inputs: what can be named, how it is cut, and what is said when it cannot be read."""
import bz2
import gzip
import io
import json
import lzma
import os
import stat
import sys

import pytest
import zstandard

from kvps.errors import ArgumentError, DataError, InputGone
from kvps.text import corpus, inputs
from kvps.text.corpus import Input, resolve, spool

TEXT = "the cat sat\n\non the mat ü\u0085x\nlast line".encode()
COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def read(source, split_bytes=7, start=0):
    """Return the text of an input from `start` on."""
    return b"".join(split.data for split in source.splits(split_bytes, start))


def write(path, data=TEXT):
    """Write a file and its folders; return its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_splits_of_a_plain_file(tmp_path):
    """A split ends after the first newline at or after the size asked for, and the last one where the file ends."""
    (source,) = resolve([write(tmp_path / "a.txt", b"ab\ncd\nef\ngh")])

    assert [(s.start, s.end, s.data) for s in source.splits(2)] == [
        (0, 3, b"ab\n"), (3, 6, b"cd\n"), (6, 9, b"ef\n"), (9, 11, b"gh")]
    assert [s.data for s in source.splits(3)] == [b"ab\ncd\n", b"ef\ngh"]
    assert [s.data for s in source.splits(100)] == [b"ab\ncd\nef\ngh"]


def test_splits_of_an_empty_file(tmp_path):
    """An empty file has no split, whatever its ending claims."""
    for suffix in ("", ".gz", ".bz2", ".xz", ".zst", ".jsonl"):
        (source,) = resolve([write(tmp_path / f"empty{suffix}", b"")])

        assert list(source.splits(10)) == []


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed(tmp_path, kind):
    """Compressed text reads as the plain text does, in upper case too, and in several streams one after the other."""
    (once,) = resolve([write(tmp_path / f"a.{kind}", COMPRESS[kind](TEXT))])
    (twice,) = resolve([write(tmp_path / f"B.{kind.upper()}", COMPRESS[kind](TEXT[:9]) + COMPRESS[kind](TEXT[9:]))])

    assert read(once) == read(twice) == TEXT
    assert read(once, start=12) == TEXT[12:]


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_large(tmp_path, kind, rng):
    """Text of many blocks, and text that compresses a thousandfold, comes out whole."""
    text = b"\n".join(rng.randbytes(200).hex().encode() for _ in range(9000)) + b"\n" + b"a " * 2_000_000
    (source,) = resolve([write(tmp_path / f"a.{kind}", COMPRESS[kind](text))])

    assert read(source, 1 << 20) == text


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_cut_short(tmp_path, kind):
    """A file that ends too early is refused by name, wherever it was cut; nothing is silently missing."""
    whole = COMPRESS[kind](TEXT * 20)
    for length in range(1, len(whole)):
        name = write(tmp_path / f"a.{kind}", whole[:length])
        with pytest.raises(DataError, match=rf"a\.{kind}: .*(too early|damaged)") as caught:
            read(resolve([name])[0])
        assert caught.value.path == name


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_damaged(tmp_path, kind):
    """Bytes that the codec refuses are reported as damage, with the file's name."""
    with pytest.raises(DataError, match="damaged, or not a"):
        read(resolve([write(tmp_path / f"a.{kind}", b"just some text that is not compressed\n")])[0])


def test_folder(tmp_path):
    """A folder gives all files below it, sorted by path, without hidden ones, each read as its ending says."""
    write(tmp_path / "d/b.txt", b"b\n")
    write(tmp_path / "d/a/z.gz", gzip.compress(b"z\n"))
    write(tmp_path / "d/.hidden", b"\xff")
    write(tmp_path / "d/.git/x", b"\xff")

    found = resolve([tmp_path / "d"])

    assert [source.name for source in found] == [str(tmp_path / "d/a/z.gz"), str(tmp_path / "d/b.txt")]
    assert b"".join(map(read, found)) == b"z\nb\n"


def test_folder_without_files(tmp_path):
    """A folder without a file is an error, not an empty text."""
    (tmp_path / "d/.git").mkdir(parents=True)

    with pytest.raises(DataError, match="holds no file"):
        resolve([tmp_path / "d"])


def test_folder_unreadable(tmp_path, monkeypatch):
    """A folder that cannot be listed is named."""
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(DataError, match="cannot read the folder: Permission denied"):
        resolve([tmp_path])


def test_folder_with_a_linked_folder(tmp_path):
    """A link to a folder is neither followed nor left out silently."""
    write(tmp_path / "d/a")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")

    with pytest.raises(DataError, match="loop: a link to a folder"):
        resolve([tmp_path / "d"])


def test_glob(tmp_path):
    """A glob gives its matches sorted, ** goes deep, and a file whose own name looks like a glob comes first."""
    for name in ("b.txt", "a.txt", "d/c.txt", "n.md", "[x].txt"):
        write(tmp_path / name)

    def names(pattern):
        return [os.path.relpath(source.name, tmp_path) for source in resolve([str(tmp_path / pattern)])]

    assert names("?.txt") == ["a.txt", "b.txt"]
    assert names("**/*.txt") == ["[x].txt", "a.txt", "b.txt", "d/c.txt"]
    assert names("**") == ["[x].txt", "a.txt", "b.txt", "d/c.txt", "n.md"]
    assert names("[x].txt") == ["[x].txt"]
    with pytest.raises(DataError, match="no file matches"):
        names("*.csv")


def test_order_of_arguments(tmp_path):
    """Inputs stand in the order in which they were named."""
    b, a = write(tmp_path / "b"), write(tmp_path / "a")

    assert [source.name for source in resolve([b, a])] == [b, a]


def test_missing_file(tmp_path):
    """A file that is not there is a data error with the reason."""
    with pytest.raises(DataError, match="nothing: No such file or directory"):
        resolve([tmp_path / "nothing"])
    with pytest.raises(DataError, match="No such file"):
        resolve([""])


def test_impossible_names(tmp_path):
    """Names that are too long or hold a NUL are refused; bytes that are not UTF-8 name a file like any other."""
    with pytest.raises(DataError, match="File name too long"):
        resolve(["a" * 5000])
    with pytest.raises(ArgumentError, match=r"a\\x00: no file"):
        resolve(["a\0"])
    (source,) = resolve([write(tmp_path / os.fsdecode(b"caf\xe9"))])
    assert read(Input.from_json(json.loads(json.dumps(source.to_json())))) == TEXT


def test_unreadable_file(tmp_path, monkeypatch):
    """A file without permission is refused before a job begins, and named when permission goes later."""
    (source,) = resolve([write(tmp_path / "a")])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="a: cannot read it: permission denied"):
        resolve([tmp_path / "a"])

    def refuse(path, compression, **limits):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(inputs, "open_stream", refuse)
    with pytest.raises(DataError, match="a: cannot read it: Permission denied"):
        read(source)


def test_disk_error_while_reading(tmp_path, monkeypatch):
    """A disk that fails under a file is a data error with the file's name."""
    class Broken(io.BytesIO):
        """A file on such a disk."""

        def read(self, n=-1):
            """Fail."""
            raise OSError(5, "Input/output error")

        def fileno(self):
            """Return the descriptor of a sound file."""
            return stream.fileno()

        def raw_at(self, offset):
            """Return the place in the file of a place in the text."""
            return offset
    (source,) = resolve([write(tmp_path / "a")])
    monkeypatch.setattr(inputs, "open_stream", lambda path, compression, **limits: Broken())

    with open(source.path, "rb") as stream, pytest.raises(DataError, match="a: cannot read it: Input/output error"):
        read(source)


def test_special_files(tmp_path):
    """Archives and devices are refused: their headers would be counted."""
    for name in ("a.tar", "a.tar.gz", "a.ZIP", "a.parquet"):
        with pytest.raises(DataError, match="archive"):
            resolve([write(tmp_path / name)])
    with pytest.raises(DataError, match="not a file"):
        resolve(["/dev/null"])


def test_vanished_file(tmp_path):
    """A file that went away after it was named makes the job resumable."""
    (source,) = resolve([write(tmp_path / "a")])
    os.remove(source.path)

    for use in (lambda: read(source), source.digest, source.fingerprint, lambda: source.size):
        with pytest.raises(InputGone, match="a: the file is gone; put it back"):
            use()


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_shortened_file(tmp_path, name):
    """A file that has become shorter than what was read of it is not taken for finished."""
    pack = COMPRESS.get(name[2:], bytes)
    (source,) = resolve([write(tmp_path / name, pack(TEXT))])
    write(tmp_path / name, pack(TEXT[:5]))

    with pytest.raises(InputGone, match="has only 5 bytes of text now, but 12 had been read"):
        read(source, start=12)


def test_split_arguments(tmp_path):
    """A split size below 1 or a start below 0 is refused."""
    (source,) = resolve([write(tmp_path / "a")])

    for arguments in ((0, 0), (1, -1)):
        with pytest.raises(ArgumentError):
            next(source.splits(*arguments))


@pytest.mark.parametrize("split_bytes", [1, 10, 64, 65, 1000])
def test_long_line(tmp_path, monkeypatch, split_bytes):
    """A line beyond the limit is refused with its number, a line of just the limit is not, for any size of split."""
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 64)
    fits = b"a\n" + b"b" * 64 + b"\nc\n" + b"d" * 64
    (good,) = resolve([write(tmp_path / "good", fits)])
    (bad,) = resolve([write(tmp_path / "bad", fits + b"d\n")])

    assert read(good, split_bytes) == fits
    with pytest.raises(DataError, match="line 4 is longer than .* break the text into lines") as caught:
        read(bad, split_bytes)
    assert (caught.value.line, caught.value.offset) == (4, 69)


def test_very_long_line(tmp_path):
    """A 100 MB line is refused by the real limit without reading it whole."""
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.write(b"x\n")
        file.truncate(100_000_000)  # zeros, which take no disk

    with pytest.raises(DataError, match="line 2 is longer than 32 MiB"):
        read(resolve([path])[0], 1 << 20)


def test_stdin(tmp_path):
    """Stdin is copied to a private file named by its content, and reads like any file."""
    (source,) = resolve(["-"], spool_dir=tmp_path / "spool", stdin=io.BytesIO(TEXT))

    assert (source.name, read(source)) == ("-", TEXT)
    assert source.path == str(tmp_path / "spool" / f"{source.digest()}.txt")
    assert stat.S_IMODE(os.stat(source.path).st_mode) == 0o600
    assert os.listdir(tmp_path / "spool") == [os.path.basename(source.path)]


def test_stdin_refused(tmp_path):
    """Stdin cannot be named twice, nor without a folder to keep it in."""
    with pytest.raises(ArgumentError, match="only once"):
        resolve(["-", "-"], spool_dir=tmp_path, stdin=io.BytesIO())
    with pytest.raises(ArgumentError, match="no folder"):
        resolve(["-"], stdin=io.BytesIO(TEXT))


def test_named_pipe(tmp_path):
    """A pipe such as a shell's <(command) can be read once, so it is spooled like stdin."""
    import threading
    os.mkfifo(tmp_path / "pipe")
    assert [corpus.read_once(name) for name in ("-", tmp_path / "pipe", tmp_path, "nothing\0")] == [
        True, True, False, False]
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(TEXT,))
    writer.start()
    (source,) = resolve([tmp_path / "pipe"], spool_dir=tmp_path / "spool")
    writer.join()

    assert (source.name, read(source)) == (str(tmp_path / "pipe"), TEXT)


def jsonl(*records):
    """Return records as JSON lines."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_jsonl(tmp_path):
    """The field's text becomes lines; a newline in it ends a sentence, or joins with a space when asked to."""
    data = jsonl({"text": "a b\nc"}, {"text": "d\n", "x": 1}, {"text": ""}, {"text": "ü\u0085"}) + b'\n{"text": "e"}'
    name = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + data)

    assert read(resolve([name])[0]) == "a b\nc\nd\n\nü\u0085\ne\n".encode()
    assert read(resolve([name], newline="space")[0]) == "a b c\nd \n\nü\u0085\ne\n".encode()


def test_jsonl_compressed_with_field(tmp_path):
    """JSON lines may be compressed, and the text may stand in another field."""
    name = write(tmp_path / "a.jsonl.zst", zstandard.compress(jsonl({"body": "a", "text": 1}, {"body": "b"})))

    assert read(resolve([name], field="body")[0]) == b"a\nb\n"


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"text": "a"', "not JSON"), (b"[1]", "not a JSON object"), (b'{"txt": "a"}', 'no field "text"'),
    (b'{"text": null}', "not a string"), (b"[" * 100_000, "nested too deeply")])
def test_jsonl_refused(tmp_path, line, reason):
    """A record that cannot be used is named by its line, in whichever split it stands."""
    name = write(tmp_path / "a.jsonl", jsonl({"text": "a"}, {"text": "b"}) + line + b"\n")

    for split_bytes in (1, 1000):
        with pytest.raises(DataError, match=rf"a\.jsonl: line 3: .*{reason}") as caught:
            read(resolve([name])[0], split_bytes)
        assert caught.value.line == 3


def test_jsonl_with_a_huge_number(tmp_path):
    """A number beyond Python's limit in a field that is not the text does not matter."""
    name = write(tmp_path / "a.jsonl", b'{"id": ' + b"9" * 5000 + b', "text": "a"}')

    assert read(resolve([name])[0]) == b"a\n"


def test_jsonl_that_is_not_unicode(tmp_path):
    """Ill-formed bytes and escapes of lone surrogates pass on as ill-formed bytes, for the tokenizer to refuse."""
    name = write(tmp_path / "a.jsonl", b'{"text": "a\xffb"}\n{"text": "\\ud800"}\n')

    assert read(resolve([name])[0]) == b"a\xffb\n\xed\xa0\x80\n"


def test_jsonl_newline_choice():
    """Only the two documented treatments of newlines exist."""
    with pytest.raises(ArgumentError, match="split"):
        resolve([], newline="keep")


def test_locate(tmp_path):
    """A split can say in which line and at which byte of the input a byte of its data stands."""
    (text,) = resolve([write(tmp_path / "a.gz", gzip.compress(b"ab\ncd\nef\n"))])
    (records,) = resolve([write(tmp_path / "a.jsonl", jsonl({"text": "a\nb"}, {"text": "c"}, {"text": "d\ne"}))])

    assert [split.locate(1) for split in text.splits(1)] == [(1, 1), (2, 4), (3, 7)]
    (split,) = records.splits(1000)
    assert split.data == b"a\nb\nc\nd\ne\n"
    assert [split.locate(index) for index in (0, 2, 4, 6, 8)] == [(1, 0), (1, 0), (2, 17), (3, 31), (3, 31)]


def test_digest(tmp_path):
    """The digest is that of the raw bytes, whatever the name; other choices about JSON lines are another text."""
    import hashlib
    a, b = resolve([write(tmp_path / "a"), write(tmp_path / "b")])
    name = write(tmp_path / "a.jsonl", jsonl({"text": "x"}))
    choices = [resolve([name], **options)[0].digest() for options in ({}, {"field": "x"}, {"newline": "space"})]

    assert a.digest() == b.digest() == hashlib.blake2b(TEXT, digest_size=32).hexdigest()
    assert len(set(choices)) == 3


def test_json_record(tmp_path):
    """An input survives its way through a job record, and its path does not depend on the current folder."""
    write(tmp_path / "a.jsonl.gz", gzip.compress(jsonl({"t": "a"})))
    os.chdir(tmp_path)
    (source,) = resolve(["a.jsonl.gz"], field="t")
    os.chdir("/")

    again = Input.from_json(json.loads(json.dumps(source.to_json())))

    assert again == source
    assert (again.name, again.size, read(again)) == ("a.jsonl.gz", os.path.getsize(tmp_path / "a.jsonl.gz"), b"a\n")
    assert again.fingerprint() == {"size": again.size, "mtime_ns": os.stat(again.path).st_mtime_ns}
    with pytest.raises(DataError, match="unknown kind"):
        Input.from_json({**source.to_json(), "kind": "video"})


def test_spool_sentences(tmp_path):
    """Sentences become lines of a file that has the digest of an equal file of the user's."""
    source = spool(iter(["a b", "", "ü\u0085 \u00a0"]), tmp_path / "spool")
    (file,) = resolve([write(tmp_path / "a", "a b\n\nü\u0085 \u00a0\n".encode())])

    assert read(source) == read(file)
    assert source.digest() == file.digest()
    assert source.path == str(tmp_path / "spool" / f"{source.digest()}.txt")


def test_spool_words(tmp_path):
    """Lists of words are kept as words, which no tokenizer may cut again: the same bytes, but another input."""
    words = spool([["don't", "x"], (), ("y",)], tmp_path)
    text = spool(["don't x", "", "y"], tmp_path)

    assert (words.kind, text.kind) == ("words", "text")
    assert read(words) == read(text) == b"don't x\n\ny\n"
    assert words.digest() != text.digest()
    assert words.path == str(tmp_path / f"{words.digest()}.txt")


def test_spool_nothing(tmp_path):
    """No sentence at all is an empty input."""
    assert read(spool([], tmp_path)) == b""


@pytest.mark.parametrize(("sentences", "reason"), [
    ("a bare string", "iterable of sentences, not one str"), (b"bytes", "not one bytes"), (7, "got int"),
    (["a\nb"], "sentence 1 has a newline"), ([b"a"], "sentence 1 is bytes"), (["a", ["b"]], "sentence 2: .* mixed"),
    ([["a"], ["b c"]], "sentence 2: the word 'b c'"), ([["a", ""]], "the word ''"), ([["a\0"]], "separator"),
    ([["a\t"]], "separator"), ([["a\r"]], "separator"), ([["a\n"]], "separator"), ([["a", " "]], "separator"),
    ([["", "a b"]], "the word ''"), ([["a", 7]], "a word is int"), (["\ud800"], "not valid Unicode"),
    ([None], "NoneType")])
def test_spool_refuses(tmp_path, sentences, reason):
    """What would not come back as the same sentences is refused, and leaves no file."""
    with pytest.raises(ArgumentError, match=reason):
        spool(sentences, tmp_path)
    assert os.listdir(tmp_path) == []


def test_spool_passes_the_users_exception_on(tmp_path):
    """What the user's own iterator raises arrives as it is, with its cause, and leaves no file."""
    def sentences(n):
        yield from ["fine"] * n
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise FileNotFoundError(2, "mine") from error

    for n in (0, 3):
        with pytest.raises(FileNotFoundError, match="mine") as caught:
            spool(sentences(n), tmp_path)
        assert isinstance(caught.value.__cause__, KeyError)
        assert os.listdir(tmp_path) == []


@pytest.fixture
def nltk_data(shared, monkeypatch):
    """Put the development corpora, and nothing else, on NLTK's path."""
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(shared / "data" / "nltk_data")])


def test_nltk_documents(nltk_data):
    """Each document of a corpus is one line of its words, the same as NLTK gives them."""
    from nltk.corpus import state_union

    (source,) = resolve(["nltk:state_union"])

    lines = read(source, 1 << 16).decode().split("\n")
    assert lines[:3] == [" ".join(state_union.words(name)) for name in state_union.fileids()[:3]]
    assert len(lines) == len(state_union.fileids()) + 1
    assert read(source, 1 << 16, start=len(lines[0].encode()) + 1).decode().split("\n") == lines[1:]


def test_nltk_identity(nltk_data):
    """A corpus has a digest of its text, the size of its documents, and survives a job record."""
    import hashlib

    (source,) = resolve(["nltk:state_union"])

    assert source.digest() == hashlib.blake2b(read(source, 1 << 20), digest_size=32).hexdigest()
    assert source.size > 2_000_000
    assert source.path.endswith("state_union.zip")
    assert Input.from_json(source.to_json()) == source


def test_nltk_not_installed(monkeypatch):
    """A corpus that is not installed is one line that says how to get it."""
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])

    with pytest.raises(DataError, match="nltk:gutenberg: the corpus is not installed; get it with .*r gutenberg"):
        resolve(["nltk:gutenberg"])


@pytest.mark.parametrize("name", ["", "nope", "__name__", "os.path", "CorpusReader", "stopwords;x"])
def test_nltk_unknown(name):
    """A name that NLTK does not know, or that is no corpus, is refused."""
    with pytest.raises(DataError, match="nltk:"):
        resolve([f"nltk:{name}"])


def test_codecs_are_imported_late(tmp_path):
    """Reading plain text imports neither codecs nor JSON nor nltk: commands start faster."""
    import subprocess
    name = write(tmp_path / "a.txt")
    code = ("import sys; from kvps.text.corpus import resolve; list(resolve([sys.argv[1]])[0].splits(9));"
            "print([m for m in ('gzip', 'bz2', 'lzma', 'zstandard', 'json', 'nltk', 'numpy') if m in sys.modules])")

    result = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"


def test_full_disk_while_spooling(tmp_path, monkeypatch):
    """A disk that fills up while stdin is kept leaves no half file behind."""
    from kvps.errors import StoreFull
    from kvps.store import files

    def full(fd, path):
        raise files.disk_full(path, None)
    monkeypatch.setattr(files, "fsync", full)

    with pytest.raises(StoreFull):
        resolve(["-"], spool_dir=tmp_path, stdin=io.BytesIO(TEXT))
    assert os.listdir(tmp_path) == []


def test_front_door():
    """corpus offers all that others need of inputs."""
    assert all(hasattr(corpus, name) for name in corpus.__all__)

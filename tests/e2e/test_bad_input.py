"""Bad input: one line that names the place and the way out, the right exit code, and a store that has lost nothing."""
import bz2
import gzip
import json
import lzma
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import zstandard
from processes import contents, counted, go_on, refused, run, run_json, stopped, summary, tree, zipf_text

from kvps.store.directory import open_store

ORDER = 3
TEXT = zipf_text(1, 400, n_words=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store trained on TEXT."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_bytes(TEXT)
    run("train", folder / "store", folder / "text", "--order", ORDER)
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    """A copy of that store."""
    return shutil.copytree(made, tmp_path / "store")


def written(name, data):
    """Return a function that writes a file into a folder and returns its path."""
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name
    return make


def folder_of(name, **files):
    """Return a function that makes a folder with files in it and returns its path."""
    def make(folder):
        (folder / name).mkdir()
        for file, data in files.items():
            (folder / name / file.replace("_", ".")).write_bytes(data)
        return folder / name
    return make


def archive(folder):
    """Make a tar archive with a text in it and return its path."""
    (folder / "inside").write_bytes(TEXT)
    with tarfile.open(folder / "text.tar", "w") as tar:
        tar.add(folder / "inside")
    return folder / "text.tar"


def long_line(name, n_megabytes=100):
    """Return a function that writes a file whose second line is that long, and returns its path."""
    def make(folder):
        with (gzip.open if name.endswith(".gz") else open)(folder / name, "wb") as file:
            file.write(b"good line\n")
            for _ in range(n_megabytes):
                file.write(b"x" * 1_000_000)
            file.write(b"\n")
        return folder / name
    return make


def flipped(data):
    """Return the data with a bit changed in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1:]


PACKED = {"gz": gzip.compress(TEXT), "bz2": bz2.compress(TEXT), "xz": lzma.compress(TEXT),
          "zst": zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)}

# What it is: (how to make it, what the message must have in it beside the input's name)
BAD = {
    "missing": (lambda folder: folder / "nowhere.txt", ["No such file"]),
    "missing in a folder that is a file": (lambda folder: written("file", TEXT)(folder) / "text", ["Not a directory"]),
    "glob without a match": (lambda folder: folder / "*.nothing", ["no file matches"]),
    "folder without a file": (folder_of("folder"), ["no file"]),
    "folder with a hidden file only": (folder_of("folder", _hidden=TEXT), ["no file"]),
    "empty file": (written("empty", b""), ["no text"]),
    "empty compressed file": (written("empty.gz", gzip.compress(b"")), ["no text"]),
    "device": (lambda folder: "/dev/zero", ["not a file"]),
    "binary": (written("binary", TEXT + bytes(range(128, 256)) * 50),
               ["line 401", "not UTF-8", "--encoding-errors replace"]),
    "invalid UTF-8": (written("latin", TEXT + "né\nfür\n".encode("latin-1")),
                      ["line 401", f"{len(TEXT) + 1}", "0xe9", "--encoding-errors replace"]),
    "UTF-16": (written("utf16", "some text\n".encode("utf-16")), ["line 1", "not UTF-8"]),
    "compressed without the ending": (written("text", PACKED["gz"]), [".gz"]),
    "archive": (archive, ["archive", "unpack"]),
    "<s> in text": (written("s", TEXT + b"a <s> b\n"), ["line 401", "<s>", "--reserved skip"]),
    "</s> in text": (written("s", b"</s>\n" + TEXT), ["line 1", "</s>", "--reserved skip"]),
    "<unk> in text": (written("unk", TEXT + b"a\nb <unk>"), ["line 402", "<unk>", "--reserved skip"]),
    "line of 100 MB": (long_line("long"), ["line 2", "MiB", "lines"]),
    "compressed line of 100 MB": (long_line("long.gz"), ["200 times", "--max-ratio"]),
    "no gz": (written("text.gz", b"new " + TEXT), [".gz"]),
    "json lines cut short": (written("x.jsonl", b'{"text": "a b"}\n{"text": "c'), ["line 2"]),
    "json lines without the field": (written("x.jsonl", b'{"text": "a b"}\n{"body": "c"}\n'), ["line 2", "text"]),
    "NLTK corpus that is not there": (lambda folder: "nltk:no_such_corpus", ["no_such_corpus"]),
    **{f"truncated .{ending}": (written(f"text.{ending}", data[:-len(data) // 3]), [f".{ending}", "cut short"])
       for ending, data in PACKED.items()},
    **{f"damaged .{ending}": (written(f"text.{ending}", flipped(data)), []) for ending, data in PACKED.items()},
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(made, tmp_path, what):
    """Text that cannot be used is refused by train, which leaves no store, and by update, which leaves the counts."""
    make, expected = BAD[what]
    source, new, store = make(tmp_path), tmp_path / "new", shutil.copytree(made, tmp_path / "store")

    for command in (("train", new, source, "--order", ORDER), ("update", store, source)):
        message = refused(*command)
        for fragment in (str(source), *expected):
            assert fragment in message
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("new")]
    assert contents(store) == counted(TEXT, ORDER)
    assert summary(store) == summary(made)


def test_long_line_in_bounded_memory(made, tmp_path):
    """A line of 200 MB is refused with less memory than that."""
    source = long_line("long.gz", 200)(tmp_path)
    store = shutil.copytree(made, tmp_path / "store")
    command = ("update", store, source, "--threads", 1, "--memory", "16M", "--max-ratio", 0)

    process = stopped(*command, stop_at="SIGSTOP before kvps.cli.failure:report 1")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    code, _, err = go_on(process)

    assert (code, "line 2" in err) == (1, True)
    # Python and NumPy, the split, and the 32 MiB that a line may have, with a copy of it.
    assert int(status["VmHWM"].split()[0]) < 160 << 10


def test_good_input_beside_bad_input(store, tmp_path):
    """One bad file among good ones refuses them all: nothing is half added."""
    (tmp_path / "good").write_bytes(b"new words here\n" * 100)
    (tmp_path / "bad").write_bytes(b"\xff\n")

    assert str(tmp_path / "bad") in refused("update", store, tmp_path / "good", tmp_path / "bad")

    assert contents(store) == counted(TEXT, ORDER)
    assert "new" not in run("dump", store, "--order", 1).stdout.split()


def test_replaced_bytes(store, tmp_path):
    """With --encoding-errors replace a byte that is not UTF-8 is read as U+FFFD."""
    (tmp_path / "latin").write_bytes("für\n".encode("latin-1"))

    run("update", store, tmp_path / "latin", "--encoding-errors", "replace")

    assert contents(store) == counted(TEXT + "f\ufffdr\n".encode(), ORDER)


def test_skipped_reserved_words(store, tmp_path):
    """With --reserved skip the reserved words are white space."""
    (tmp_path / "s").write_bytes(b"<s> a b </s>\nc <unk> d\n")

    run("update", store, tmp_path / "s", "--reserved", "skip")

    assert contents(store) == counted(TEXT + b"a b\nc d\n", ORDER)


def test_empty_lines_are_sentences(store, tmp_path):
    """Empty lines are text: each is a sentence without a word."""
    (tmp_path / "empty").write_bytes(b"\n\n")

    run("update", store, tmp_path / "empty")

    assert contents(store) == counted(TEXT + b"\n\n", ORDER)


def test_unreadable_input(store, tmp_path):
    """A file or folder that may not be read is named."""
    (tmp_path / "secret").write_bytes(TEXT + b"x\n")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "secret", tmp_path / "folder"):
        path.chmod(0)
    try:
        for path in (tmp_path / "secret", tmp_path / "folder"):
            message = refused("update", store, path, plain=True)
            assert str(path) in message
            assert "ermission denied" in message
    finally:
        (tmp_path / "folder").chmod(0o700)
    assert contents(store) == counted(TEXT, ORDER)


def occupied_by_a_file(path):
    """Put a file in the place of a store."""
    path.write_bytes(b"my thesis\n")


def occupied_by_a_folder(path):
    """Put a folder with a file in the place of a store."""
    path.mkdir()
    (path / "thesis.txt").write_bytes(b"my thesis\n")


def occupied_by_an_empty_file_of_that_name(path):
    """Put an empty seal in the place of a store."""
    path.mkdir(mode=0o700)
    (path / "seal").write_bytes(b"")


def occupied_by_text_of_that_name(path):
    """Put some text in the place of the seal."""
    occupied_by_an_empty_file_of_that_name(path)
    (path / "seal").write_bytes(TEXT)


COMMANDS = [("train", "TEXT", "--order", ORDER), ("update", "TEXT"), ("forget", "TEXT"), ("resume",), ("abort",),
            ("status",), ("stats",), ("compact",), ("compile",), ("perplexity", "TEXT"), ("export", "OUT"),
            ("counts", "w1"), ("dump", "--order", 1)]


@pytest.mark.parametrize(("occupy", "commands"), [
    (occupied_by_a_file, COMMANDS[:2]), (occupied_by_a_folder, COMMANDS),
    (occupied_by_an_empty_file_of_that_name, COMMANDS[:2]), (occupied_by_text_of_that_name, COMMANDS[:2])])
def test_store_is_something_else(tmp_path, occupy, commands):
    """A STORE that is something else is refused by every command, named, and left as it is."""
    place = tmp_path / "place"
    occupy(place)
    (tmp_path / "text").write_bytes(TEXT)
    names = {"TEXT": tmp_path / "text", "OUT": tmp_path / "out.arpa"}
    before = place.read_bytes() if place.is_file() else tree(place)

    for command, *rest in commands:
        done = run(command, place, *(names.get(word, word) for word in rest), check=None)
        assert done.returncode in (1, 3), command
        assert str(place) in done.stderr, command
        assert done.stderr.count("\n") == 1, command
    assert (place.read_bytes() if place.is_file() else tree(place)) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["place", "text"]


def test_store_is_not_there(tmp_path):
    """Every command but train refuses a STORE that does not exist, and makes none."""
    (tmp_path / "text").write_bytes(TEXT)
    names = {"TEXT": tmp_path / "text", "OUT": tmp_path / "out.arpa"}

    for command, *rest in COMMANDS[1:]:
        message = refused(command, tmp_path / "store", *(names.get(word, word) for word in rest))
        assert f"{tmp_path / 'store'}: no such store" in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["text"]


def test_folder_of_the_store_is_not_there(tmp_path):
    """A train into a folder that does not exist names it."""
    (tmp_path / "text").write_bytes(TEXT)

    assert str(tmp_path / "no") in refused("train", tmp_path / "no" / "store", tmp_path / "text")


@pytest.mark.parametrize("cut", [0, 1, 4096, -4096, -1])
@pytest.mark.parametrize("part", ["root.0", "shards/0002.0"])
def test_truncated_store(store, tmp_path, part, cut):
    """A store file that was cut short is damage (exit 3) for readers and writers, which name it and change nothing."""
    data = store / part / "data.mdb"
    os.truncate(data, cut if cut >= 0 else data.stat().st_size + cut)
    (tmp_path / "text").write_bytes(b"a b\n")
    before = tree(store)

    for command in (("stats", store), ("update", store, tmp_path / "text")):
        assert str(data) in refused(*command, code=3)
    assert tree(store) == before


@pytest.mark.parametrize("command", [("dump", "--order", ORDER), ("counts", "w1 w2"), ("compile",), ("compact",)])
def test_flipped_byte_in_the_counts(store, tmp_path, command):
    """Counts that were changed behind our back are damage (exit 3) for whoever reads them, and the file is named."""
    (tmp_path / "text").write_bytes(b"w1 w2\n" * 50)
    run("update", store, tmp_path / "text")                # a second run, so that there is something to compact
    damaged = []
    for shard in (store / "shards").iterdir():
        data = bytearray((shard / "data.mdb").read_bytes())
        with open_store(store) as opened, opened.snapshot() as snapshot:
            part = snapshot.shards[int(shard.name[:4])]
            payload = bytes(part.chunk(part.runs(1)[0], 0)[0])
        data[data.index(payload) + len(payload) // 2] ^= 1
        damaged.append((shard / "data.mdb", data))
    for path, data in damaged:
        path.write_bytes(data)

    message = refused(command[0], store, *command[1:], code=3)

    assert str(store / "shards") in message
    assert "checksum" in message


def test_no_permission_to_make_a_store(tmp_path):
    """A train where nothing may be made says so, and names the place."""
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o500)

    message = refused("train", tmp_path / "closed" / "store", tmp_path / "text", plain=True)

    assert str(tmp_path / "closed") in message
    assert "ermission denied" in message
    assert not list((tmp_path / "closed").iterdir())


def read_only(store):
    """Take away the right to write in a store."""
    for path in (*store.rglob("*"), store):
        path.chmod(0o500 if path.is_dir() else 0o400)


def writable(store):
    """Give it back."""
    for path in (store, *store.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_no_permission_to_write_in_a_store(store, tmp_path):
    """A writer that may not write says so and names the place; readers answer."""
    (tmp_path / "text").write_bytes(b"a b\n")
    before = tree(store)
    read_only(store)
    try:
        for command in (("update", store, tmp_path / "text"), ("resume", store), ("compact", store)):
            message = refused(*command, plain=True)
            assert str(store) in message
            assert "ermission denied" in message
        assert run_json("stats", store, plain=True)["version"] == 1
    finally:
        writable(store)
    assert tree(store) == before


def test_no_permission_to_read_a_store(store):
    """A reader that may not read says so and names the place."""
    store.chmod(0)
    try:
        message = refused("stats", store, plain=True)
    finally:
        store.chmod(0o700)

    assert str(store) in message
    assert "ermission denied" in message


def test_store_that_everybody_may_write(store):
    """A store that everybody may write in is refused, with the way out."""
    store.chmod(0o777)

    assert "chmod" in refused("stats", store)


@pytest.mark.parametrize("order", [0, 9, 99, -1, "three"])
def test_impossible_order(store, tmp_path, order):
    """An order that cannot be is a usage error (exit 2) that says which ones can."""
    (tmp_path / "text").write_bytes(TEXT)

    reading = [("perplexity", store, tmp_path / "text"), ("dump", store), ("export", store, tmp_path / "out.arpa")]
    for command in (("train", tmp_path / "new", tmp_path / "text"), *(reading if order == 0 else [])):
        message = refused(*command, "--order", order, code=2)
        assert str(order) in message
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "out.arpa").exists()


def test_order_above_the_store(store, tmp_path):
    """An order above the store's is refused and names the store's."""
    (tmp_path / "text").write_bytes(TEXT)

    for command in (("perplexity", store, tmp_path / "text"), ("dump", store),
                    ("export", store, tmp_path / "out.arpa")):
        assert f"1 to {ORDER}" in refused(*command, "--order", ORDER + 1, code=2)


@pytest.mark.parametrize("options", [
    ("--shards", 0), ("--shards", 99999), ("--threads", 0), ("--memory", "much"), ("--tokenizer", "telepathy"),
    ("--reserved", "perhaps"), ("--encoding-errors", "ignore"), ("--temp", "/no/such/folder"), ("--no-such-option",)])
def test_impossible_options(tmp_path, options):
    """An impossible option is a usage error (exit 2) that repeats what was given, and nothing is made."""
    (tmp_path / "text").write_bytes(TEXT)

    message = refused("train", tmp_path / "store", tmp_path / "text", *options, code=2)

    assert str(options[-1]) in message
    assert not (tmp_path / "store").exists()


def test_failure_as_json(store, tmp_path):
    """With --json a failure is one object on stdout with the error's name, message and facts; stderr is empty."""
    (tmp_path / "latin").write_bytes(b"fine\nf\xfcr\n")

    done = run("update", store, tmp_path / "latin", "--json", check=1)

    answer = json.loads(done.stdout)
    assert done.stderr == ""
    facts = tuple(answer[name] for name in ("error", "path", "line", "offset"))
    assert facts == ("DataError", str(tmp_path / "latin"), 2, 6)
    assert "--encoding-errors replace" in answer["message"]


@pytest.mark.parametrize("command", [("next",), ("complete",), ("explain",), ("generate", "--prompt")])
def test_what_a_command_does_not_take_is_not_offered(command, store):
    """Bytes that are not UTF-8, where there is no --encoding-errors, are refused without naming it."""
    arguments = [store, *command[1:], os.fsdecode(b"the caf\xe9")]
    message = refused(command[0], *arguments)

    assert "not UTF-8 (byte 0xe9); convert it first" in message and "--encoding-errors" not in message


def test_scoring_bad_input(store, tmp_path):
    """Scoring refuses text that cannot be used as training does."""
    for what in ("missing", "invalid UTF-8", "truncated .gz", "folder without a file"):
        make, expected = BAD[what]
        source = make(tmp_path)
        message = refused("perplexity", store, source)
        for fragment in (str(source), *expected):
            assert fragment in message

"""Text at URLs: found, read, counted and refused as files are."""
import gzip

import pytest
from processes import contents, counted, refused, run, run_json, zipf_text

import kvps
from kvps.errors import ArgumentError, DataError, InputGone
from kvps.text.corpus import resolve
from kvps.text.inputs import Input

fsspec = pytest.importorskip("fsspec", reason="text at URLs needs fsspec")


@pytest.fixture
def memory():
    """A file system in memory, empty."""
    made = fsspec.filesystem("memory")
    made.store.clear()
    made.pseudo_dirs[:] = [""]
    yield made
    made.store.clear()


def put(memory, **files):
    """Write files, named with _ for / and a dot at the end of a folder's name."""
    for name, data in files.items():
        memory.pipe_file("/" + name.replace("__", "/").replace("_", "."), data)


def test_what_a_url_names(memory):
    """A URL is a file, all files below a folder but hidden ones, or those that it matches; sorted."""
    put(memory, t__b_txt=b"b\n", t__a_txt=b"a\n", t__u__c_txt=b"c\n", t___h=b"hidden\n", other=b"o\n")
    for url, names in (("memory://t/a.txt", ["t/a.txt"]), ("memory://t", ["t/a.txt", "t/b.txt", "t/u/c.txt"]),
                       ("memory://t/*.txt", ["t/a.txt", "t/b.txt"]), ("memory://t/**/*.txt", ["t/a.txt", "t/b.txt", "t/u/c.txt"])):
        assert [item.name for item in resolve([url])] == [f"memory:///{name}" for name in names], url
    for url in ("memory://t/none", "memory://t/*.gz", "nonsense://x"):
        with pytest.raises(DataError, match=r"no file is there|nonsense"):
            resolve([url])
    with pytest.raises(ArgumentError, match="password"):
        resolve(["ftp://me:secret@somewhere/x"])


def test_files_of_this_machine(tmp_path):
    """file:///PATH is PATH; another machine's is refused."""
    (tmp_path / "a b").write_text("x\n")
    item, = resolve([f"file://{tmp_path}/a%20b"])
    assert item.path == str(tmp_path / "a b")
    with pytest.raises(ArgumentError, match="another machine"):
        resolve(["file://elsewhere/a"])


@pytest.mark.parametrize("kind", ["plain", "gz", "jsonl"])
def test_splits(memory, rng, kind):
    """The text of a URL is that of a file of the same bytes, in splits that can be taken up anywhere."""
    text = zipf_text(rng.random(), 300)
    if kind == "jsonl":
        text = b"".join(b'{"text": "%s"}\n' % line for line in text.splitlines())
    name = {"plain": "t", "gz": "t.gz", "jsonl": "t.jsonl"}[kind]
    memory.pipe_file(f"/{name}", gzip.compress(text) if kind == "gz" else text)
    item, = resolve([f"memory://{name}"])
    again = Input.from_json(item.to_json())
    splits = list(item.splits(1000))
    assert len(splits) > 3 and splits[-1].end == len(text)
    chosen = rng.choice(splits)
    assert next(again.splits(1000, chosen.start)) == chosen
    assert chosen.locate(0) == (text.count(b"\n", 0, chosen.start) + 1, chosen.start)
    assert item.size == memory.size(f"/{name}") and len(item.digest()) == 64


def test_changes_are_noticed(memory):
    """Another text at a URL has another fingerprint and another digest, and one that is gone is said to be."""
    memory.pipe_file("/t", b"a b\n")
    item, = resolve(["memory://t"])
    before = item.fingerprint(), item.digest()
    assert before == (item.fingerprint(), item.digest())
    memory.pipe_file("/t", b"a c\n")
    assert item.fingerprint() != before[0] and item.digest() != before[1]
    memory.rm_file("/t")
    with pytest.raises(InputGone, match="is gone"):
        item.digest()


def test_what_a_driver_raises_is_one_line(memory, monkeypatch):
    """Whatever a driver raises is an error of ours that names the URL."""
    memory.pipe_file("/t", b"a b\n")
    item, = resolve(["memory://t"])

    def failing(*_, **__):
        raise ZeroDivisionError("the cloud\nis gone")

    monkeypatch.setattr(type(memory), "_open", failing)
    with pytest.raises(DataError, match=r"memory:///t: .*the cloud is gone \(ZeroDivisionError, fsspec\)"):
        list(item.splits(10))


def test_a_job_over_urls(memory, tmp_path):
    """Text at a URL is counted, known again by its content, and forgotten."""
    text = zipf_text(1, 200)
    memory.pipe_file("/t/a", text)
    with kvps.create(tmp_path / "s", order=3) as store:
        assert store.update_files(["memory://t"])["version"] == 1
        memory.pipe_file("/t/b", text)
        assert store.update_files(["memory://t/b"])["already"] == {"memory:///t/b": 1}
        assert store.history()[0]["inputs"][0]["name"] == "memory:///t/a"
    assert contents(tmp_path / "s") == counted(text, 3)
    with kvps.open(tmp_path / "s", writable=True) as store:
        store.forget_files(["memory://t/a"])
    assert contents(tmp_path / "s") == {}


def test_the_command_line(tmp_path):
    """Commands take URLs, and a job that was interrupted goes on with them."""
    (tmp_path / "t").write_bytes(zipf_text(2, 400))
    url, store = f"local://{tmp_path}/t", tmp_path / "s"
    run("train", store, url, "-o", 2, "-S", "100K", small=True, stop_at="SIGKILL before kvps.store.shard:Shard.apply 9", check=-9)
    assert run_json("resume", store)["version"] == 1
    assert contents(store) == counted((tmp_path / "t").read_bytes(), 2)
    assert run_json("update", store, tmp_path / "t")["already"]
    assert "no file is there" in refused("update", store, f"local://{tmp_path}/none")

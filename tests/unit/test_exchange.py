"""Models and counts in and out from Python: kvps.export, kvps.import_arpa, kvps.merge and kvps.from_counts."""
import gzip

import pytest
from click.testing import CliRunner

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, DataError, StoreError
from kvps.text.streams import open_stream

TEXTS = {"animals": ["the cat sat", "the dog sat", "a cat ran"] * 3, "ships": ["the ship sank", "a ship ran aground"] * 3}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with two stores of order 3, of which the second has a label."""
    for name, text in TEXTS.items():
        with kvps.create(tmp_path / name, order=3, shards=2) as store:
            store.train(text, threads=1, label="sea" if name == "ships" else None)
    return tmp_path


def run(*arguments):
    """Run a command in this process, which must succeed."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("choices", "options"), [
    ({}, []), ({"order": 2}, ["-o", 2]), ({"smoothing": "wb"}, ["--smoothing", "wb"]), ({"prune": [0, 1]}, ["--prune", "0,1"]),
    ({"prune_entropy": 0.01}, ["--prune-entropy", 0.01]), ({"prune_to": 20}, ["--prune-to", 20]),
    ({"limit_vocab": ["the", "cat", "never"]}, ["--limit-vocab", "words"]),
    ({"interpolate_unigrams": False}, ["--no-interpolate-unigrams"]), ({"vocab_pad": 99}, ["--vocab-pad", 99]),
    ({"labels": ("-",)}, ["--labels", "-"])], ids=str)
def test_export_writes_what_the_command_does(choices, options, folder):
    """Every choice that the command has is one of kvps.export, which writes the same bytes."""
    (folder / "words").write_text("the cat never\n")
    with kvps.open(folder / "animals") as store:
        store.update(["one two three"], label="other", threads=1)
    found = kvps.export(folder / "animals", folder / "a.arpa", threads=1, **choices)
    run("export", folder / "animals", folder / "b.arpa", *[folder / "words" if word == "words" else word for word in options])

    written = (folder / "a.arpa").read_bytes()
    assert written == (folder / "b.arpa").read_bytes()
    assert set(found) == {"path", "version", "order", "smoothing", "ngrams", "bytes"}
    assert (found["version"], found["order"], found["bytes"]) == (2, choices.get("order", 3), len(written))
    assert all(f"ngram {k}={n}\n".encode() in written for k, n in found["ngrams"].items())


def test_arpa_there_and_back(folder):
    """A store's ARPA file, plain or compressed, becomes a model that scores as the store does; progress is told."""
    told = []
    kvps.export(folder / "animals", folder / "a.arpa.gz", progress=lambda done, total: told.append((done, total)))
    made = kvps.import_arpa(folder / "a.kvm", folder / "a.arpa.gz", threads=1)

    assert told[-1][0] == told[-1][1] == sum(made["ngrams"].values())
    assert set(made) == {"path", "order", "ngrams", "bytes"} and made["bytes"] == (folder / "a.kvm").stat().st_size
    with kvps.load(folder / "a.kvm") as read, kvps.load(folder / "animals") as model:
        assert made["ngrams"] == read.statistics.ngrams
        assert read.score(TEXTS["animals"]) == pytest.approx(model.score(TEXTS["animals"]), abs=1e-5)
    kvps.import_arpa(folder / "lower.kvm", folder / "a.arpa.gz", lowercase=True, list_ngrams=False)
    with kvps.load(folder / "lower.kvm") as read, kvps.load(folder / "animals") as model:
        assert read.score("The CAT sat") == pytest.approx(model.score("the cat sat"), abs=1e-5)


def test_a_mixture_is_written(folder):
    """A mixture becomes one ARPA file; what is for stores is refused, and so is an imported model."""
    kvps.mix(folder / "mix", [folder / "animals", folder / "ships"], ["the cat sank", "the ship sat"])
    found = kvps.export(folder / "mix", folder / "mix.arpa")
    kvps.import_arpa(folder / "mix.kvm", folder / "mix.arpa")

    assert found["smoothing"] == "mixture"
    with kvps.load(folder / "mix") as model, kvps.load(folder / "mix.kvm") as read:
        lines = ["the cat sat", "a ship ran aground"]
        assert read.score(lines) == pytest.approx(model.score(lines), abs=1e-5)
    for choices, message in (({"prune": [0, 1]}, "--prune is for stores"), ({"counts": True}, "--counts is for stores"),
                             ({"labels": ["sea"]}, "--labels is for stores"), ({"vocab_pad": 9}, "--vocab-pad is for stores")):
        with pytest.raises(ArgumentError, match=message):
            kvps.export(folder / "mix", folder / "x.arpa", **choices)
    with pytest.raises(ArgumentError, match="--counts takes counts, .*was imported"):
        kvps.export(folder / "mix.kvm", folder / "x", counts=True)
    kvps.export(folder / "mix.kvm", folder / "again.arpa")
    assert (folder / "again.arpa").read_bytes() == (folder / "mix.arpa").read_bytes()


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_arpa_compressed_as_its_name_says(folder, suffix):
    """A file of each compression, of a store, an imported model or a mixture, holds the bytes of the plain one."""
    kvps.export(folder / "animals", folder / "plain.arpa")
    kvps.import_arpa(folder / "m.kvm", folder / "plain.arpa")
    kvps.mix(folder / "mix", [folder / "animals", folder / "ships"], ["the cat sat"])
    for model in ("animals", "m.kvm", "mix"):
        kvps.export(folder / model, folder / "plain.arpa")
        made = kvps.export(folder / model, folder / f"packed.arpa{suffix}")
        packed = (folder / f"packed.arpa{suffix}").read_bytes()
        assert len(packed) == made["bytes"] and not packed.startswith(b"\\data")
        with open_stream(str(folder / f"packed.arpa{suffix}"), suffix[1:]) as stream:
            assert stream.read() == (folder / "plain.arpa").read_bytes()
        kvps.import_arpa(folder / "again.kvm", folder / f"packed.arpa{suffix}")


def test_counts_there_and_back(folder):
    """Counts that kvps.export writes make a store of the same counts."""
    found = kvps.export(folder / "ships", folder / "counts", counts=True)

    assert "smoothing" not in found and (folder / "counts" / "3gms" / "3gm-0000.gz").is_file()
    with kvps.from_counts(folder / "copy", [folder / "counts"]) as copy, kvps.open(folder / "ships") as store:
        assert list(copy.dump(3, in_order=True)) == list(store.dump(3, in_order=True))
        assert found["ngrams"] == {k: len(list(store.dump(k))) for k in (1, 2, 3)}
    assert kvps.export(folder / "ships", folder / "fewer", 2, counts=True)["order"] == 2
    with pytest.raises(ArgumentError, match="exists already"):
        kvps.export(folder / "ships", folder / "counts", counts=True)


@pytest.mark.parametrize(("choices", "message"), [
    ({"counts": True, "prune": [1]}, "is for ARPA files"), ({"counts": True, "labels": ["sea"]}, "is for ARPA files"),
    ({"order": 4}, "order 4 is not possible"),
    ({"prune": [1, 0]}, "pruning by 1,0"), ({"prune": 1}, "prune: 1"), ({"threads": 0}, "number of threads"),
    ({"smoothing": "mle"}, "back-off"),
    ({"limit_vocab": "the cat"}, "not one text"), ({"limit_vocab": ["the cat"]}, "separator"),
    ({"limit_vocab": ["\ud800"]}, "no word"), ({"labels": "sea"}, "not one text"), ({"prune_to": 0}, "not possible")], ids=str)
def test_exports_that_cannot_be(choices, message, folder):
    """What is not possible is refused, and nothing is written."""
    with pytest.raises(ArgumentError, match=message):
        kvps.export(folder / "ships", folder / "out", **choices)
    assert not (folder / "out").exists()


def test_places_that_cannot_be_written(folder):
    """A folder in the place of a file, and a folder that is not there, are told."""
    kvps.export(folder / "ships", folder / "a.arpa")
    for work in (lambda out: kvps.export(folder / "ships", out), lambda out: kvps.import_arpa(out, folder / "a.arpa")):
        with pytest.raises((ArgumentError, StoreError), match="ships"):
            work(folder / "ships")
        with pytest.raises(StoreError, match="nowhere"):
            work(folder / "nowhere" / "x")
    assert sorted(kvps.open(folder / "ships").labels) == ["sea"]


def test_imports_that_cannot_be(folder):
    """A file that is none, text that is no ARPA file, a folder, a bomb and a bad tokenizer are told, and nothing is written."""
    (folder / "text").write_text("the cat\n")
    (folder / "bomb.arpa.gz").write_bytes(gzip.compress(b"\n" * (64 << 20)))
    for source, how, message in (("none", {}, "no such file"), ("text", {}, "line 1"), ("ships", {}, "ships"),
                                 ("bomb.arpa.gz", {}, "bomb")):
        with pytest.raises(DataError, match=message):
            kvps.import_arpa(folder / "out", folder / source, **how)
    with pytest.raises(DataError, match="no such file"):
        kvps.import_arpa(folder / "out", folder / "none")
    with pytest.raises(ArgumentError, match="exists, and is no model"):
        kvps.import_arpa(folder / "text", folder / "ships.arpa")
    with pytest.raises(ArgumentError, match="unknown tokenizer"):
        kvps.import_arpa(folder / "out", folder / "text", tokenizer="words!")
    assert not (folder / "out").exists()


def test_merge(folder):
    """The counts of stores are added, each by its weight, with their labels; the new store is open and can be added to."""
    with kvps.merge(folder / "all", [folder / "animals", folder / "ships"], [2, 1], shards=3, threads=1) as store:
        assert (store.count("the cat sat"), store.count("the ship"), store.order) == (6, 3, 3)
        assert store.labels["sea"]["sentences"] == 6
        assert store.update(["the cat sat"], threads=1)["version"] == 2
        assert store.count("the cat sat") == 7
    told = []
    with kvps.merge(folder / "twice", iter([folder / "ships"] * 2), progress=lambda *row: told.append(row)) as store:
        assert store.count("the ship") == 6 and {row[0] for row in told} == {"dealing", "merging"}


@pytest.mark.parametrize(("stores", "weights", "message"), [
    (["animals"], [0], "whole number of 1 or more"), (["animals"], [1.5], "whole number of 1 or more"),
    (["animals"], [1, 2], "1 stores"), ([], None, "0 stores"), (["animals", "other"], None, "only counts of one kind"),
    (["kvps://127.0.0.1:1"], None, "name folders")])
def test_merges_that_cannot_be(stores, weights, message, folder):
    """Weights that are no whole numbers, stores of two kinds and addresses are refused, and nothing is made."""
    kvps.create(folder / "other", order=2).close()
    with pytest.raises(ArgumentError, match=message):
        kvps.merge(folder / "out", [name if "://" in name else folder / name for name in stores], weights)
    with pytest.raises(ArgumentError, match="put it in a list"):
        kvps.merge(folder / "out", str(folder / "animals"))
    with pytest.raises(StoreError, match="ships"):
        kvps.merge(folder / "ships", [folder / "animals"])
    assert not (folder / "out").exists()

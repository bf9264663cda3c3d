"""kvps mix and the file that it writes: what it names, what is refused, and that damage is told."""
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from draws import N_DRAWS, check_draws

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, CorruptionError, DataError, VersionMismatch
from kvps.lm import mixture
from kvps.lm.completion import Completion

TEXTS = {"animals": ["the cat sat", "the dog sat", "a cat ran"] * 3, "ships": ["the ship sank", "a ship ran aground"] * 3}
DEV = "the cat sank\nthe ship sat\na zebra ran\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with two stores, an imported model, a text, and a mixture of all three."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, text in TEXTS.items():
        with kvps.create(folder / name, order=3, shards=2) as store:
            store.train(text, threads=1)
    (folder / "dev.txt").write_text(DEV)
    run("export", folder / "ships", folder / "ships.arpa")
    run("import", folder / "ships.kvm", folder / "ships.arpa")
    run("mix", folder / "mix", folder / "animals", folder / "ships", folder / "ships.kvm", "--dev", folder / "dev.txt")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """Return a copy of it."""
    shutil.copytree(made, tmp_path / "there")
    return tmp_path / "there"


def run(*arguments, code=0, text=None):
    """Run a command in this process, and return its result."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)
    assert result.exit_code == code, result.output
    assert code in (0, 2) or result.stderr.count("\n") == 1, result.stderr
    return result


def test_command(folder):
    """It prints weights that add up to 1 and perplexities; --json has the same, and smoothings and orders are one for each."""
    shown = run("mix", folder / "mix", folder / "animals", folder / "ships", "--dev", folder / "dev.txt").stdout.splitlines()
    found = json.loads(run("mix", folder / "mix", folder / "animals", folder / "ships", "--dev", folder / "dev.txt", "--json",
                           "--smoothing", "witten-bell,lidstone:0.5", "-o", "2,", "--dev", folder / "dev.txt").stdout)

    assert len(shown) == 3 and sum(float(line.split("\t")[0]) for line in shown[:2]) == pytest.approx(1, abs=2e-6)
    assert shown[2].startswith(f"{folder}/mix: perplexity ")
    assert set(found) == {"path", "perplexity", "tokens", "sentences", "models", "elapsed_s"}
    assert (found["tokens"], found["sentences"]) == (24, 6)
    assert [(row["smoothing"], row["order"]) for row in found["models"]] == [("witten-bell", 2), ("lidstone:0.5", 3)]
    assert found["models"][0]["perplexity"] is None and found["perplexity"] < found["models"][1]["perplexity"]


def test_every_command_takes_it(folder):
    """Score, perplexity, rescore, next, generate, complete, explain and evaluate answer for a mixture as kvps.load() does."""
    mix, dev = folder / "mix", folder / "dev.txt"
    with kvps.load(mix) as model:
        assert repr(model).startswith("<kvps.Model") and (model.smoothing, model.order) == ("mixture", 3)
        lines = DEV.splitlines()
        assert json.loads(run("perplexity", mix, dev, "--json").stdout)["perplexity"] == pytest.approx(model.perplexity(lines))
        assert [float(line.split("\t")[0]) for line in run("score", mix, dev).stdout.splitlines()] == pytest.approx(
            model.score(lines).tolist(), abs=1e-6)
        words = [line.split("\t") for line in run("score", mix, dev, "--words").stdout.splitlines() if line]
        assert [word for word, *_, oov in words if oov] == ["zebra"]
        assert [int(order) for _, _, order, _ in words] == [word.order for words in model.score_words(lines) for word in words]
        best = run("rescore", mix, text="0 ||| the cat sank\n0 ||| the ship sank\n").stdout
        assert best.startswith("0 ||| the ship sank ||| kvps=")
        after = json.loads(run("next", mix, "the", "--top", "0", "--json").stdout)
        assert [row["word"] for row in after["words"]] == model.next("the", None).words
        assert {"cat", "ship"} <= set(model.next("the", None).words)
        assert after["words"][-1]["cumulative"] == pytest.approx(1, abs=1e-6)
        assert run("generate", mix, "--count", 3, "--seed", 1).stdout.splitlines() == model.generate(count=3, seed=1)
        found = json.loads(run("complete", mix, "the ", "--json").stdout)["completions"]
        assert [Completion(**row) for row in found] == model.complete("the ")
        explained = [json.loads(line) for line in run("explain", mix, "the cat sank", "--json").stdout.splitlines()]
        assert {part["model"] for word in explained[0]["words"] for part in word["parts"]} == {
            part.model for part in mixture.MixtureFile(mix, lambda place: kvps.lm.opening.open_model_place(place)).parts}
        assert "animals: the cat" in run("explain", mix, "the cat sank").stdout
        assert "animals: the cat" in (run("explain", mix, "the cat", "--html", folder / "x.html"),
                                      (folder / "x.html").read_text())[1]
        evaluated = json.loads(run("evaluate", mix, dev, "--json").stdout)
        assert evaluated["accuracy_at_5"] == pytest.approx(model.measure(lines).accuracy[5])
        with pytest.raises(ArgumentError, match="takes a store"):
            model.complete("the", min_count=1)
        with pytest.raises(ArgumentError, match="no statistics"):
            print(model.statistics)


def test_stores_go_on_learning(folder):
    """A mixture copies nothing: after an update of a store it answers anew, once refreshed, and has another version."""
    with kvps.load(folder / "mix") as model:
        before, version = model.score("the albatross"), model.version
        assert not model.refresh()
        with kvps.open(folder / "animals") as store:
            store.update(["the albatross"] * 5, threads=1)
        assert model.score("the albatross") == before
        assert model.refresh() and model.version == version + 1
        assert model.score("the albatross") > before


def test_a_folder_that_moves(folder):
    """Paths are those from the folder of the file, so that all of it can be moved together."""
    with kvps.load(folder / "mix") as model:
        before = model.score("the cat sank")
    folder.rename(folder.parent / "elsewhere")
    with kvps.load(folder.parent / "elsewhere" / "mix") as model:
        assert model.score("the cat sank") == before
    (folder.parent / "elsewhere" / "animals").rename(folder.parent / "gone")
    assert "animals" in run("score", folder.parent / "elsewhere" / "mix", text="a\n", code=1).stderr


def test_one_model_alone(folder, caplog):
    """A model that no mixture betters has all the weight, and the log says so; one model can be mixed too."""
    run("mix", folder / "one", folder / "animals", folder / "ships", "--dev", "-", text="the cat sat\n" * 9)
    found = json.loads((folder / "one").read_text())

    assert "animals alone has perplexity" in caplog.text
    assert [(row["model"], row["weight"]) for row in found["models"]] == [("animals", 1.0)]
    both = json.loads(run("mix", folder / "one", folder / "animals", folder / "ships", "--dev", "-", "--anyway", "--json",
                          text="the cat sat\n" * 9).stdout)
    assert all(row["weight"] > 0 for row in both["models"]) and both["perplexity"] >= both["models"][0]["perplexity"]
    run("mix", folder / "one", folder / "ships", "--dev", folder / "dev.txt")
    with kvps.load(folder / "one") as mixed, kvps.load(folder / "ships") as alone:
        assert mixed.score(DEV.splitlines()) == pytest.approx(alone.score(DEV.splitlines()))


@pytest.mark.parametrize("names", [("animals", "ships"), ("ships", "animals")])
def test_a_word_that_no_model_knows(names, folder):
    """Where the perplexity is infinite whatever the weights, they are the best ones for the other words."""
    dev = [*DEV.splitlines(), "nobody knows it"]
    found = kvps.mix(folder / "mix", [folder / name for name in names], dev, smoothing="witten-bell")
    anyway = kvps.mix(folder / "mix", [folder / name for name in names], dev, smoothing="witten-bell", anyway=True)

    assert found["perplexity"] is None
    assert all(0.05 < row["weight"] < 0.95 for row in found["models"]) and found["models"] == anyway["models"]


def test_arpa(folder):
    """`kvps export` writes a mixture of stores as one ARPA file, which is read back; what is for stores is refused."""
    run("mix", folder / "mix", folder / "animals", folder / "ships", "--dev", folder / "dev.txt")
    found = json.loads(run("export", folder / "mix", folder / "mix.arpa.gz", "--json").stdout)
    run("import", folder / "mix.kvm", folder / "mix.arpa.gz")
    with kvps.load(folder / "mix") as model, kvps.load(folder / "mix.kvm") as read:
        assert found["smoothing"] == "mixture" and found["ngrams"] == {str(k): n for k, n in read.statistics.ngrams.items()}
        lines = ["the cat sat", "a ship ran aground"]
        assert read.score(lines) == pytest.approx(model.score(lines), abs=1e-5)
    assert json.loads(run("export", folder / "mix", folder / "o2.arpa", "-o", 2, "--json").stdout)["order"] == 2
    for options in (["--prune", "0,1"], ["--counts"], ["--smoothing", "wb"], ["--labels", "a"]):
        assert "is a mixture" in run("export", folder / "mix", folder / "x.arpa", *options, code=2).stderr
    for options, name in (["--counts"], "counts"), (["--prune", "0,1"], "prune"), (["--smoothing", "wb"], "smoothing"):
        told = run("export", folder / "ships.kvm", folder / "x.arpa", *options, code=2).stderr
        assert f"--{name} takes counts" in told and "was imported" in told and told.count("\n") == 1
    assert "is the model itself" in run("export", folder / "ships.kvm", folder / "ships.kvm", code=2).stderr
    run("import", folder / "ships.kvm", folder / "ships.arpa", "--no-list-ngrams")
    run("mix", folder / "mix", folder / "animals", folder / "ships.kvm", "--dev", folder / "dev.txt")
    assert "import it again without --no-list-ngrams" in run("export", folder / "mix", folder / "x.arpa", code=2).stderr
    run("import", folder / "ships.kvm", folder / "ships.arpa")
    again = json.loads(run("export", folder / "mix", folder / "x.arpa", "--json").stdout)
    assert again["ngrams"] == found["ngrams"]
    assert "order 4" in run("export", folder / "mix", folder / "x.arpa", "-o", 4, code=2).stderr


@pytest.mark.parametrize("choices", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.7}], ids=str)
@pytest.mark.parametrize("names", [("animals", "ships"), ("animals", "ships.kvm")], ids=str)
def test_draws_have_the_distribution(names, choices, folder, seed):
    """Words are drawn as often as the mixture says, of stores and of imported models; the same seed gives the same ones."""
    run("mix", folder / "mix", *(folder / name for name in names), "--dev", folder / "dev.txt")
    with kvps.load(folder / "mix") as model:
        for prompt in ("the", "a zebra", ""):
            drawn = model.generate(prompt, N_DRAWS, seed=seed, max_words=1, **choices)
            (after,) = model.next([["<s>", *prompt.split()]], None)
            check_draws([" ".join(line.split()[len(prompt.split()):]) or "</s>" for line in drawn], after, **choices)
            assert drawn[:3] == model.generate(prompt, 3, seed=seed, max_words=1, **choices)


def test_classes(folder):
    """A mixture can be a class of documents, with a prior: of what its models were counted from it knows nothing."""
    run("mix", folder / "mix", folder / "animals", folder / "ships", "--dev", folder / "dev.txt")
    asked = ["classify", f"both={folder}/mix", f"ships={folder}/ships"]
    found = run(*asked, "--prior", "uniform", text="the cat sat\na ship ran aground\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in found] == ["both", "ships"]
    assert "say with a prior" in run(*asked, text="the cat sat\n", code=2).stderr
    with kvps.Classifier({"both": folder / "mix", "ships": folder / "ships"}, prior={"both": 1, "ships": 2}) as classes:
        assert classes.classify("the cat sat").label == "both"


def test_what_is_there_is_kept(folder):
    """An OUT that is a model, a text or a folder is not written over; a mixture is made anew."""
    for name in ("ships.kvm", "dev.txt", "animals"):
        before = (folder / name).read_bytes() if name != "animals" else None
        result = CliRunner().invoke(main, ["mix", str(folder / name), str(folder / "animals"), str(folder / "ships.kvm"),
                                           "--dev", str(folder / "dev.txt")])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
        assert before is None or (folder / name).read_bytes() == before
    with pytest.raises(ArgumentError, match="is no mixture"):
        kvps.mix(folder / "ships.kvm", [folder / "animals", folder / "ships"], ["the cat"])
    run("mix", folder / "mix", folder / "ships", "--dev", folder / "dev.txt")


def test_refusals(folder):
    """What cannot be mixed, or asked of a mixture, is refused in one line."""
    def refused(*arguments, match, code=2):
        assert match in run(*arguments, code=code).stderr.splitlines()[-1]

    mix, animals, ships, dev = (folder / name for name in ("mix", "animals", "ships", "dev.txt"))
    with kvps.create(folder / "low", order=2, lowercase=True) as store:
        store.train(["a b"], threads=1)
    (folder / "empty").write_text("")
    refused("mix", folder / "m", animals, mix, "--dev", dev, match="is a mixture; name the models")
    refused("mix", folder / "m", animals, folder / "low", "--dev", dev, match="only models with the same one")
    refused("mix", folder / "m", animals, ships, "--dev", dev, "--smoothing", "stupid-backoff", match="cannot be mixed")
    refused("mix", folder / "m", animals, ships, "--dev", dev, "-o", "1,2,3", match="3 orders for 2 models")
    refused("mix", folder / "m", animals, ships, "--dev", dev, "-o", "x", match="whole number")
    refused("mix", folder / "m", animals, folder / "ships.kvm", "--dev", dev, "--smoothing", "wb", match="was imported")
    refused("mix", folder / "m", animals, ships, "--dev", folder / "empty", match="text is empty", code=1)
    refused("mix", folder / "m", animals, folder / "nowhere", "--dev", dev, match="nowhere", code=1)
    for options in (["--smoothing", "wb"], ["-o", "2"], ["--exact"], ["--labels", "a"]):
        refused("perplexity", mix, dev, *options, match="is a mixture, which says")
    assert not (folder / "m").exists()
    with pytest.raises(ArgumentError, match="put one in a list"):
        kvps.mix(folder / "m", str(animals), ["a"])
    with pytest.raises(DataError, match="empty"):
        kvps.mix(folder / "m", [animals, ships], [])
    with pytest.raises(ArgumentError, match="0 models"):
        kvps.mix(folder / "m", [], ["a"])


def test_damage(folder, rng):
    """A file that was cut short or changed is told from one that is whole, whatever the byte."""
    path = folder / "mix"
    whole = path.read_bytes()
    spoilt = [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 3)]
    spoilt += [whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:]
               for at in rng.sample([i for i in range(1, len(whole)) if whole[i:i + 1].isalnum()], 60)]
    for data in spoilt:
        path.write_bytes(data)
        with pytest.raises((CorruptionError, VersionMismatch)):
            kvps.load(path)
    path.write_bytes(b"{" * 100_000)
    run("score", path, text="a\n", code=3)
    path.write_bytes(b"{" + b" " * mixture.MAX_BYTES)
    run("score", path, text="a\n", code=3)


@pytest.mark.parametrize("change", [
    {"kvps_mixture": 2}, {"models": []}, {"models": [{"model": "animals"}]}, {"tokenizer": {}}, {"models": 5},
    {"models": [{"model": "animals", "weight": 0.5, "smoothing": None, "order": None}]},
    {"models": [{"model": "animals", "weight": "much", "smoothing": None, "order": None}]}], ids=str)
def test_other_contents(change, folder):
    """A file whose checksum is right and whose contents are not is refused too."""
    row = json.loads((folder / "mix").read_text()) | change
    del row["crc32"]
    (folder / "mix").write_text(json.dumps({**row, "crc32": mixture._sum(row)}))

    with pytest.raises((CorruptionError, VersionMismatch), match="make it again"):
        kvps.load(folder / "mix")


def test_names(tmp_path):
    """A place is named by its path from the file's folder; an address stays."""
    path = tmp_path / "a" / "mix"
    for place in (tmp_path / "store", tmp_path / "a" / "store", Path("here"), "kvps://host:1", "ray://host:1/store"):
        found = mixture.place_of(path, mixture.name_of(path, place))
        assert found == (place if "://" in str(place) else str(Path(place).absolute()))

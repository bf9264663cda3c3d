"""Documents told apart by a model for each class: kvps classify and kvps.Classifier."""
import json
import math

import pytest
from click.testing import CliRunner

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError
from kvps.lm.classify import Confusion

TEXTS = {"animals": ["the cat sat", "the dog sat on the cat", "a dog ran"] * 3,
         "ships": ["the ship sank", "a ship ran aground"] * 2}


def run(*arguments, code=0, text=None):
    """Run a command in this process, and return its result."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a store for each class, and documents of which one is of another class than it looks."""
    folder = tmp_path_factory.mktemp("classify")
    for name, text in TEXTS.items():
        with kvps.create(folder / f"{name}.kvps", order=2) as store:
            store.train(text, threads=1)
    rows = [("the dog sat\na cat", "animals"), ("the ship", "ships"), ("a dog ran aground\n\nship", "animals"),
            ("the cat", "ships"), ("the ship sank", "planes")]
    (folder / "test.jsonl").write_text("".join(json.dumps({"text": text, "topic": topic}) + "\n" for text, topic in rows) + "\n")
    return folder


def expected(folder, document, prior, smoothing="modified-kneser-ney"):
    """Return log10 of prior times probability of each class, word by word."""
    found, vocabulary = {}, {}
    for name in TEXTS:
        with kvps.open(folder / f"{name}.kvps") as store:
            vocabulary[name] = set(store.vocabulary) | {"<s>", "</s>", "<unk>"}
    everything = set().union(*vocabulary.values())
    for name in TEXTS:
        with kvps.load(folder / f"{name}.kvps", smoothing) as model:
            words = [word for words in model.score_words(document.split("\n")) for word in words]
            unknown = math.log10(len(vocabulary[name]) / len(everything))
            found[name] = math.log10(prior[name]) + sum(word.log10 + unknown * word.oov for word in words)
    return found


@pytest.mark.parametrize("smoothing", ["modified-kneser-ney", "lidstone:0.5"])
@pytest.mark.parametrize("prior", [None, "uniform", {"animals": 1, "ships": 30}], ids=str)
def test_bayes(prior, smoothing, folder):
    """A document's class is the one of the highest prior times probability, unknown words counting alike in all classes."""
    shares = {None: {"animals": 9 / 13, "ships": 4 / 13}, "uniform": {"animals": 0.5, "ships": 0.5}}.get(
        prior if not isinstance(prior, dict) else 0, {"animals": 1 / 31, "ships": 30 / 31})
    documents = ["the dog sat", "the ship", "a zebra\nran aground", "nobody knows", "", "a", "ran\n\nran"]
    with kvps.Classifier({name: folder / f"{name}.kvps" for name in TEXTS}, prior=prior, smoothing=smoothing) as classifier:
        assert classifier.labels == list(TEXTS)
        for document, found in zip(documents, classifier.classify(documents), strict=True):
            log10 = expected(folder, document, shares, smoothing)
            assert found.log10 == pytest.approx(log10, abs=1e-9), document
            assert found.label == max(log10, key=log10.get)
            assert found.probability == pytest.approx(10 ** log10[found.label] / sum(10 ** p for p in log10.values()))
            assert found == classifier.classify(document)
        assert classifier.classify([]) == []


def test_threads_and_batches(folder, monkeypatch):
    """Results come in the order of the documents, the same for any number of threads and however many are scored at once."""
    documents = [text for texts in TEXTS.values() for text in texts] * 5
    models = {name: folder / f"{name}.kvps" for name in TEXTS}
    with kvps.Classifier(models, threads=1) as one:
        found = one.classify(documents)
    monkeypatch.setattr("kvps.lm.classify.BATCH_BYTES", 30)
    with kvps.Classifier(models, threads=3) as three:
        assert three.classify(documents) == [
            row._replace(log10=pytest.approx(row.log10), probability=pytest.approx(row.probability)) for row in found]


def test_command(folder):
    """Lines and JSON lines are documents; LABEL= names a class, and without it the file does."""
    both = [f"beasts={folder / 'animals.kvps'}", folder / "ships.kvps"]
    lines = run("classify", *both, text="the dog sat\nthe ship sank\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["beasts", "ships"]
    assert all(len(line.split("\t")) == 4 for line in lines)
    rows = [json.loads(line) for line in run("classify", *both, "--json", "--field", "body",
                                             text='{"body": "the dog\\nsat"}\n\n{"body": "ship"}\n').stdout.splitlines()]
    assert [row["label"] for row in rows] == ["beasts", "ships"] and set(rows[0]) == {"label", "probability", "log10"}
    with kvps.Classifier({"beasts": folder / "animals.kvps", "ships": folder / "ships.kvps"}) as classifier:
        assert rows[0]["log10"] == pytest.approx(classifier.classify("the dog\nsat").log10)
    rows = run("classify", *both, "--input", folder / "test.jsonl", "--prior", "beasts=1,ships=1000000").stdout.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["ships"] * 5
    run("export", folder / "ships.kvps", folder / "ships.arpa")
    run("import", folder / "imported.kvm", folder / "ships.arpa")
    line = run("classify", folder / "animals.kvps", folder / "imported.kvm", "--prior", "uniform", text="the ship\n").stdout
    assert line.startswith("imported\t")
    refusal = run("classify", folder / "animals.kvps", folder / "imported.kvm", code=2, text="the ship\n").stderr
    assert "how probable" in refusal and refusal.count("\n") == 1


def test_labels_of_text(folder, tmp_path):
    """With labels only their text tells the classes apart, and makes the prior; scratch files may lie elsewhere."""
    for name, text in TEXTS.items():
        with kvps.create(tmp_path / name, order=2) as store:
            store.train(["a dog ran aground"] * (40 if name == "ships" else 1), threads=1)
            store.update(text, threads=1, label="good")
    models, documents = {name: tmp_path / name for name in TEXTS}, ["a dog ran aground", "the ship", "the dog sat"]
    with kvps.Classifier({name: folder / f"{name}.kvps" for name in TEXTS}) as classifier:
        expected = classifier.classify(documents)
    with kvps.Classifier(models, labels=iter(["good"])) as labelled, kvps.Classifier(models) as all_of_it:
        assert labelled.classify(documents) == expected
        assert all_of_it.classify(documents) != expected
        assert labelled.labels == list(TEXTS)
    (tmp_path / "scratch").mkdir()
    lines = run("classify", *models.values(), "--labels", "good", "-T", tmp_path / "scratch", "--json",
                text="\n".join(documents) + "\n").stdout.splitlines()
    assert [json.loads(line)["log10"] for line in lines] == [row.log10 for row in expected]
    with pytest.raises(ArgumentError, match="not one text"):
        kvps.Classifier(models, labels="good")
    assert "zz" in run("classify", *models.values(), "--labels", "zz", code=1, text="a\n").stderr


def test_nothing_for_unknown_words(folder):
    """Where no class can have made a document, its probability is undefined and printed as null."""
    both = [folder / "animals.kvps", folder / "ships.kvps"]
    row = json.loads(run("classify", *both, "--smoothing", "mle", "--json", text="zebra\n").stdout)

    assert row["probability"] is None and set(row["log10"].values()) == {None}
    assert "-inf" in run("classify", *both, "--smoothing", "mle", text="zebra\n").stdout


def test_figures(folder):
    """With a label field there are figures: confusions, accuracy, precision, recall and F1 of each class, and their means."""
    both = [folder / "animals.kvps", folder / "ships.kvps"]
    found = json.loads(run("classify", *both, "--input", folder / "test.jsonl", "--label-field", "topic", "--json").stdout)

    both_ways = {"animals": 1, "ships": 1}
    assert found["confusion"] == {"animals": both_ways, "ships": both_ways, "planes": {"ships": 1}}
    assert (found["documents"], found["accuracy"]) == (5, 0.4)
    assert found["classes"]["ships"] == {"documents": 2, "precision": 1 / 3, "recall": 0.5, "f1": 0.4}
    assert found["classes"]["planes"] == {"documents": 1, "precision": 0, "recall": 0, "f1": 0}
    assert found["macro_f1"] == pytest.approx((0.5 + 0.4 + 0) / 3)
    assert (found["macro_precision"], found["macro_recall"]) == pytest.approx(((0.5 + 1 / 3) / 3, 1 / 3))
    shown = run("classify", *both, "--input", folder / "test.jsonl", "--label-field", "topic").stdout
    assert "accuracy                   0.400000" in shown and "animals\t2\t0.5000\t0.5000\t0.5000\tanimals 1, ships 1" in shown
    empty = json.loads(run("classify", *both, "--label-field", "topic", "--json", text="").stdout)
    assert (empty["documents"], empty["accuracy"], empty["macro_f1"]) == (0, None, None)
    with kvps.Classifier({"animals": both[0], "ships": both[1]}) as classifier:
        rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines() if line]
        assert classifier.evaluate((row["text"], row["topic"]) for row in rows).as_dict() == found


def test_confusion_twin(rng):
    """The figures are those that plain counting gives."""
    labels = list("abcd")
    pairs = [(rng.choice(labels[:3]), rng.choice(labels[1:])) for _ in range(200)]
    found = Confusion(["b", "a"])
    for pair in pairs:
        found.add(*pair)
    found.labels += [label for label in labels if label not in found.labels]
    assert found.accuracy == sum(a == b for a, b in pairs) / 200
    for label in labels:
        right = sum(a == b == label for a, b in pairs)
        row = found.of(label)
        assert row["recall"] == right / max(1, sum(a == label for a, _ in pairs))
        assert row["precision"] == right / max(1, sum(b == label for _, b in pairs))
        if right:
            assert row["f1"] == pytest.approx(2 / (1 / row["recall"] + 1 / row["precision"]))
    assert found.macro["f1"] == pytest.approx(sum(found.of(label)["f1"] for label in labels) / 4)


def test_refusals(folder):
    """One class alone, one label twice, priors and records that are wrong: one line each."""
    both = [folder / "animals.kvps", folder / "ships.kvps"]
    for arguments, match in (([both[0]], "two or more"), ([both[0], both[0]], "two models for one class"),
                             ([*both, "--prior", "animals=1"], "one for each of"), ([*both, "--prior", "animals=x"], "uniform"),
                             ([*both, "--prior", "animals=1,ships=0"], "above 0"),
                             ([*both, "--smoothing", "stupid-backoff"], "scores")):
        assert match in run("classify", *arguments, code=2, text="a\n").stderr
    for text, match in (('{"text": "a"}\n', 'line 1: no field "topic"'), ('\n{"topic": "a"}\n', 'line 2: no field "text"'),
                        ("x\n", "line 1: not JSON"), ('{"text": "a", "topic": 5}\n', "that is a text")):
        assert match in run("classify", *both, "--label-field", "topic", code=1, text=text).stderr
    result = CliRunner().invoke(main, ["classify", *map(str, both)], input=b"ok\n\xff\n")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and "line 2" in result.stderr
    with pytest.raises(ArgumentError, match="uniform"):
        kvps.Classifier({"a": both[0], "b": both[1]}, prior="even")

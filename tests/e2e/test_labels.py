"""Labels and removal: text that is kept apart goes as a whole, and a purge leaves no byte of it."""
import json
from pathlib import Path

import pytest
from processes import contents, counted, refused, run, run_json, summary, zipf_text

import kvps

ORDER = 3
TEXTS = {"base": zipf_text(1, 300, n_words=80), "mon": zipf_text(2, 120, n_words=120) + b"zebra crossing ahead\n",
         "tue": zipf_text(3, 100, n_words=100) + b"quagga sighting reported\n", "wed": zipf_text(4, 90, n_words=90)}


@pytest.fixture
def texts(tmp_path):
    """Return the folder of the texts."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text)
    return tmp_path


@pytest.fixture
def store(texts):
    """Return a store with text without a label and three labels."""
    path = texts / "store"
    run("train", path, texts / "base", "--order", ORDER, "--shards", 2)
    for label in ("mon", "tue", "wed"):
        run("update", path, texts / label, "--label", label)
    return path


def expected(*names):
    """Return what a store of some of the texts holds."""
    return counted(b"".join(TEXTS[name] for name in names), ORDER)


def test_forget_a_label(store):
    """A label's text goes without its text being there, and so do its tokens and inputs; the label can be used anew."""
    text = store.parent / "tue"
    kept = text.rename(store.parent / "elsewhere")

    done = run_json("forget", store, "--label", "tue")

    assert contents(store) == expected("base", "mon", "wed")
    assert done["labels"] == ["tue"]
    assert -done["tokens"] == len(TEXTS["tue"].split())
    assert set(run_json("stats", store)["labels"]) == {"mon", "wed"}
    kept.rename(text)
    run("update", store, text, "--label", "tue")
    assert contents(store) == expected(*TEXTS)


def test_words_of_no_sentence(tmp_path):
    """A label keeps its place while n-grams of it are there, even if no whole sentence is; what goes with it is exact."""
    with kvps.create(tmp_path / "s", order=2, shards=1) as store:
        store.update(["a b a b"], label="x")
        store.forget(["a b"], label="x")
        assert store.labels == {"x": {"tokens": 2, "sentences": 0, "first": 1, "last": 2}}
        store.forget_labels(["x"])
        assert (store.labels, list(store.dump(1)), store.statistics.tokens) == ({}, [], 0)
    assert kvps.check(tmp_path / "s", "full") == []


def test_sliding_window(store):
    """--keep-labels forgets the oldest labels, with an update in one version, or alone; text without a label stays."""
    (store.parent / "thu").write_bytes(b"thursday has come\n")
    version = summary(store)[0]

    run("update", store, store.parent / "thu", "--label", "thu", "--keep-labels", 2)

    assert summary(store)[0] == version + 1
    assert contents(store) == counted(TEXTS["base"] + TEXTS["wed"] + b"thursday has come\n", ORDER)
    run("forget", store, "--keep-labels", 1)
    assert contents(store) == counted(TEXTS["base"] + b"thursday has come\n", ORDER)


def test_text_of_a_label_is_forgotten_from_it(store):
    """Text that was added under a label is refused without it, and taken from it with it: no label falls below zero."""
    assert "without a label" in refused("forget", store, store.parent / "mon")
    assert "in label wed" in refused("forget", store, store.parent / "mon", "--label", "wed")
    assert contents(store) == expected(*TEXTS)

    run("forget", store, store.parent / "mon", "--label", "mon")

    assert contents(store) == expected("base", "tue", "wed")
    assert "mon" not in run_json("stats", store)["labels"]


def test_unknown_label(store):
    """A label without text is refused, and the labels there are named; a name that is no name too."""
    assert "mon, tue, wed" in refused("forget", store, "--label", "sun")
    assert "cannot be the name of a label" in refused("update", store, store.parent / "mon", "--label", "../x", code=2)
    assert "no text has the label sun" in refused("perplexity", store, store.parent / "mon", "--labels", "sun")
    for nothing in ("", ","):
        assert "leave it out for all" in refused("perplexity", store, store.parent / "mon", "--labels", nothing, code=2)


def test_labels_do_not_merge(store):
    """Compaction leaves one run a label in each shard, and the counts as they were."""
    run("compact", store)

    assert contents(store) == expected(*TEXTS)
    with kvps.store.directory.open_store(store) as opened:
        for shard in opened.shards:
            labels = [found.label for found in shard.runs()]
            assert len(labels) == len(set(labels))
    run("forget", store, "--label", "mon")
    assert contents(store) == expected("base", "tue", "wed")


def test_models_of_labels(store, tmp_path):
    """A model of chosen labels is that of a store that holds only their text."""
    alone = tmp_path / "alone"
    run("train", alone, store.parent / "mon", store.parent / "wed", "--order", ORDER)
    base = tmp_path / "alone.base"
    run("train", base, store.parent / "base", "--order", ORDER)
    for labels, other in (("wed,mon", alone), ("-", base)):
        for smoothing in ("mkn", "wb"):
            of_labels, whole = (run_json("perplexity", path, store.parent / "tue", "--smoothing", smoothing, *more)
                                for path, more in ((store, ("--labels", labels)), (other, ())))
            assert of_labels["perplexity_excluding_oov"] == pytest.approx(whole["perplexity_excluding_oov"], rel=1e-12)
    with kvps.open(store) as opened, opened.model(labels=["mon", "wed"]) as some:
        assert some.statistics.tokens == len((TEXTS["mon"] + TEXTS["wed"]).split())
        assert list(opened.labels) == ["mon", "tue", "wed"]


@pytest.mark.parametrize("stop", ["before kvps.store.root:Root.commit_job 1", "after kvps.store.shard:Shard.mark 1",
                                  "after kvps.store.root:Root.commit_job 1"])
@pytest.mark.parametrize("way", ["resume", "abort", "again"])
def test_killed_forget_of_a_label(store, stop, way):
    """A removal of a label that was killed is seen in whole or not at all, and is finished or rolled back."""
    run("forget", store, "--label", "tue", stop_at=f"SIGKILL {stop}", check=-9)
    committed = summary(store)[0] == 5

    assert contents(store) == (expected("base", "mon", "wed") if committed else expected(*TEXTS))
    if way == "again":
        run("forget", store, "--label", "tue", check=1 if committed else 0)
    else:
        run(way, store)
    rolled_back = way == "abort" and not committed
    assert contents(store) == (expected(*TEXTS) if rolled_back else expected("base", "mon", "wed"))


def holders(folder, word):
    """Return the files below a folder that have a word in them."""
    return [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and word in path.read_bytes()]


def test_purge_leaves_no_byte(store, texts):
    """After forget --purge no file of the store has a word that only the removed text had; before, some have."""
    run("compile", store)
    run("forget", store, texts / "mon", "--label", "mon")
    assert holders(store, b"zebra")
    assert "may still hold it" in run("forget", store, "--keep-labels", 9).stdout

    done = run_json("forget", store, "--label", "tue", "--purge", "--receipt", texts / "receipt")

    assert not holders(store, b"zebra") + holders(store, b"quagga")
    assert done["purged"]["words"] >= 6
    assert contents(store) == expected("base", "wed")
    receipt = json.loads((texts / "receipt").read_text())
    assert receipt["labels"] == ["tue"]
    assert [len(row["digest"]) for row in receipt["inputs"]] == [64]
    assert receipt["versions"] == [5, 6]
    assert receipt["differences"]["tokens"] == -len(TEXTS["tue"].split())
    assert receipt["differences"]["ngrams"]["1"] == -len(set(TEXTS["tue"].split()) - set((TEXTS["base"] + TEXTS["wed"]).split()))
    run("update", store, texts / "tue")
    assert contents(store) == expected("base", "wed", "tue")


def test_purge_of_a_store_with_a_pending_job(store, texts):
    """While a job is pending a purge is refused: the words of its text are not counted yet, and must keep their letters."""
    (texts / "new").write_bytes(zipf_text(9, 300).replace(b"w", b"word"))
    run("update", store, texts / "new", stop_at="SIGKILL after kvps.store.shard:Shard.apply 2", check=-9)

    with kvps.open(store) as opened, pytest.raises(kvps.StoreError, match="was interrupted"):
        opened.purge()
    assert "was interrupted" in refused("forget", store, "--purge")
    run("resume", store)
    assert contents(store) == expected(*TEXTS) + counted((texts / "new").read_bytes(), ORDER)


def test_purge_while_it_is_read(store, texts):
    """A reader that was open before a purge goes on with the store that the purge left."""
    with kvps.open(store) as opened:
        assert opened.count("quagga sighting") == 1
        run("forget", store, "--label", "tue", "--purge")
        assert opened.count("quagga sighting") == 0
        assert opened.count("zebra crossing") == 1
        run("update", store, texts / "tue")
        assert opened.count("quagga sighting") == 1


STEPS = ["after kvps.store.root:Root.replace_words 1", "before kvps.store.root:Root.move_shard 2",
         "before kvps.store.seal:renew 3", "after kvps.store.seal:renew 3", "after kvps.store.seal:write 2",
         "before kvps.store.files:remove_tree 4"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_purge(store, step):
    """A purge that was killed leaves a sound store, and run again it leaves no byte."""
    run("forget", store, "--label", "tue", "--purge", stop_at=f"SIGKILL {step}", check=-9)
    assert contents(store) == expected("base", "mon", "wed")

    run("forget", store, "--purge")

    assert not holders(store, b"quagga")
    assert contents(store) == expected("base", "mon", "wed")
    assert len([path for path in store.iterdir() if path.name.startswith("root.")]) == 1


def test_purge_with_checkpoints(store):
    """Checkpoints that may hold the removed text are listed; with --checkpoints no file of theirs has a byte of it left."""
    run("checkpoint", "create", store, "before")
    held = run_json("forget", store, "--label", "tue", "--purge")

    assert any("before" in sentence for sentence in held["remains"])
    assert {path.relative_to(store).parts[0] for path in holders(store, b"quagga")} == {"checkpoints"}
    left = run_json("forget", store, "--purge", "--checkpoints")

    assert not holders(store, b"quagga")
    assert not any("before" in sentence for sentence in left["remains"])
    assert contents(store) == expected("base", "mon", "wed")

"""An audit passes what is right, and tells what was altered: a count, a sum, a statistic, a byte, a probability."""
import json
import math
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError
from kvps.jobs import from_counts
from kvps.lm import container

WORDS = ["a", "b", "c", "the", "a!", "\u732b", "7"]
TEXT = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=8)
BACK_OFF = ["modified-kneser-ney", "kneser-ney", "absolute-discounting", "witten-bell"]


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(TEXT, TEXT, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_what_is_right(tmp_path_factory, text, more, order, shards, closed):
    """Any store is sound with every smoothing, of every order, sampled and in full, after changes and with a closed vocabulary."""
    folder = tmp_path_factory.mktemp("audit")
    with kvps.create(folder / "a", order=order, shards=shards) as store:
        store.train([*text, ["b"]], threads=1)
        store.update(more, threads=1, again=True)
        store.forget(text, threads=1)
        if closed:
            store.limit(folder / "b", words=["a", "the"], threads=1).close()
    path = folder / ("b" if closed else "a")
    for smoothing in [*BACK_OFF, "laplace", "lidstone:0.1", "mle"]:
        found = kvps.audit(path, smoothing, full=smoothing in BACK_OFF, contexts=3, threads=1)
        if smoothing == "mle" and order == 1:
            continue
        assert found.sound, (smoothing, found)
        assert found.largest_error < 1e-9
    assert kvps.audit(path, order=1, full=True, threads=1).contexts == 1
    again = kvps.audit(path, seed=5, contexts=2, threads=1)
    assert again == kvps.audit(path, seed=5, contexts=2, threads=1)


@pytest.fixture
def store(tmp_path, rng):
    """Return a store whose model is compiled, and that model's file."""
    text = [[rng.choice("abcdefgh") for _ in range(rng.randrange(9))] for _ in range(60)]
    with kvps.create(tmp_path / "a", order=3, shards=2) as made:
        made.train(text)
        made.model().close()
    return tmp_path / "a", next((tmp_path / "a").glob("models/kn-o3-v1.kvm"))


def rewritten(path, change):
    """Write a model file anew, with checksums that are right, after change(meta, its arrays by name)."""
    meta, arrays = container.read(path)
    copies = {name: np.array(array) for name, array in arrays.items() if name not in ("file", "sums")}
    change(meta, copies)
    kinds = {size: kind for kind, size in container.ITEM_BYTES.items()}
    container.write(path, meta, [(name, kinds[array.itemsize], array.size, [array.view(np.uint8)])
                                 for name, array in copies.items()])


def test_altered_models(store, rng):
    """An altered count of a word, total of a context, statistic or n-gram that scores meet is found, whatever checksums say."""
    path, model = store
    sound = model.read_bytes()
    with kvps.open(path) as opened:
        ngrams = [" ".join(gram) for gram, _ in opened.dump(3)]

    def scores():
        with kvps.load(path) as loaded:
            return [loaded.log10(gram.split()[-1], context=" ".join(gram.split()[:-1])) for gram in ngrams]

    expected = scores()

    def word(meta, arrays):
        arrays["unigrams"][5] += 1

    def context(meta, arrays):
        arrays["totals"][4 * (len(arrays["totals"]) // 8)] += 1

    def statistic(meta, arrays):
        meta["statistics"]["t"]["2"][0] += 1

    def ngram(meta, arrays):
        used = np.flatnonzero(arrays["entries"])
        arrays["entries"][rng.choice(used.tolist())] ^= 1 << rng.randrange(8)

    assert kvps.audit(path, full=True).sound
    altered = 0
    for change, full in ((word, True), (context, True), (statistic, False), *[(ngram, True)] * 20):
        rewritten(model, change)
        if change is not ngram or scores() != expected:        # some bits of a bucket say nothing
            found = kvps.audit(path, full=full)
            assert not found.sound, change
            assert {finding.part for finding in found.findings} == {"model"}
            altered += 1
        model.write_bytes(sound)
    assert altered > 6


def test_altered_bytes(store, rng):
    """A byte that is flipped is found by the checksum of its page."""
    path, model = store
    data = bytearray(model.read_bytes())
    at = rng.randrange(8 * 8)
    data[at] ^= 1
    model.write_bytes(data)
    assert not kvps.audit(path).sound


def test_counts_of_no_text(tmp_path, monkeypatch):
    """Counts whose orders do not agree are told with the n-gram that is followed too often."""
    for k, lines in {1: ["</s>\t2", "<s>\t2", "a\t2", "b\t1"], 2: ["<s> a\t2", "a </s>\t2", "a b\t1"]}.items():
        (tmp_path / f"{k}").write_text("".join(line + "\n" for line in lines))
    monkeypatch.setattr(from_counts._Counts, "verify", lambda *arguments: None)
    from_counts.train_from_counts(tmp_path / "a", [tmp_path / "1", tmp_path / "2"], threads=1)
    found = kvps.audit(tmp_path / "a")
    assert "'a' occurs 2 times, but the 2-grams that begin with it 3 times" in str(found.findings[0])


def test_imported_models(store, tmp_path):
    """An imported model is looked at as a store is; one whose back-off was altered does not add up to 1, as it was named."""
    path, _ = store
    run = CliRunner()
    assert run.invoke(main, ["export", str(path), str(tmp_path / "a.arpa")]).exit_code == 0
    assert run.invoke(main, ["import", str(tmp_path / "a.kvm"), str(tmp_path / "a.arpa")]).exit_code == 0
    good = run.invoke(main, ["audit", str(tmp_path / "a.kvm")])
    assert (good.exit_code, "sound" in good.stderr + good.stdout) == (0, True)
    lines = (tmp_path / "a.arpa").read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if line.split("\t")[1:2] == ["c"])
    lines[at] = "\t".join([*lines[at].split("\t")[:2], "-0.9"])
    (tmp_path / "b.arpa").write_text("\n".join(lines))
    assert run.invoke(main, ["import", str(tmp_path / "b.kvm"), str(tmp_path / "b.arpa")]).exit_code == 0
    bad = run.invoke(main, ["audit", str(tmp_path / "b.kvm"), "--json"])
    assert bad.exit_code == 3
    first, *_, last = map(json.loads, bad.stdout.splitlines())
    assert "after 'c' add up to" in first["message"]
    assert last["damage"] == len(bad.stdout.splitlines()) - 1
    full = run.invoke(main, ["audit", str(tmp_path / "b.arpa"), "--full", "--contexts", "1", "--json"])
    assert full.exit_code == 3
    *told, last = map(json.loads, full.stdout.splitlines())
    named = str(tmp_path / "b.arpa")
    assert any(row["message"].startswith(f"{named}: the probabilities after 'c' add up") for row in told)
    assert all(row["path"] == named and row["message"].startswith(f"{named}: ") for row in told)
    with kvps.open(path) as opened:
        contexts = {ngram[:-1] for k in (2, 3) for ngram, _ in opened.dump(k)}
    assert last["contexts"] == 1 + len(contexts)
    assert kvps.audit(tmp_path / "a.arpa", full=True).sound
    sampled = kvps.audit(tmp_path / "a.kvm", contexts=3)
    assert sampled.sound and sampled.contexts == 1 + 1 + 3 + 3
    assert run.invoke(main, ["import", str(tmp_path / "b.kvm"), str(tmp_path / "b.arpa"), "--no-list-ngrams"]).exit_code == 0
    assert "import it again without" in run.invoke(main, ["audit", str(tmp_path / "b.kvm"), "--full"]).stderr
    assert run.invoke(main, ["mix", str(tmp_path / "mix"), str(tmp_path / "a.kvm"), "--dev", "-"], input="a b\n").exit_code == 0
    for wrong, kind in ((str(tmp_path / "mix"), "mixture"), ("kvps://127.0.0.1:9", "address")):
        told = run.invoke(main, ["audit", wrong])
        assert told.exit_code == 2 and f"is a{'n' if kind == 'address' else ''} {kind}; an audit takes" in told.stderr


@pytest.mark.parametrize("smoothing", ["witten-bell", "absolute-discounting", "padded"])
def test_words_that_a_file_does_not_list(store, tmp_path, smoothing):
    """A file that is not of all words, as <s> where it is counted, is no damage: what is missing is told, and contexts may lack it.

    With a probability for <s> in it, it is whole; one that gives more than there is, or lacks more than that, is damaged.
    """
    path, _ = store
    how = {"vocab_pad": 30} if smoothing == "padded" else {"smoothing": smoothing}
    kvps.export(path, tmp_path / "a.arpa", **how)
    found = kvps.audit(tmp_path / "a.arpa", full=True)
    assert found.sound and 0.01 < found.largest_error < 0.9
    (short,) = found.findings
    assert short.severity == "warning" and "of words alone add up to 0." in str(short) and "rest belongs to words" in str(short)
    run = CliRunner()
    told = run.invoke(main, ["audit", str(tmp_path / "a.arpa")])
    assert told.exit_code == 0 and ": sound;" in told.stdout and "damage" not in told.stdout
    text = (tmp_path / "a.arpa").read_text()
    assert "\n0\t<s>\t" in text
    (tmp_path / "b.arpa").write_text(text.replace("\n0\t<s>\t", f"\n{math.log10(1 - short.found):.7f}\t<s>\t"))
    whole = kvps.audit(tmp_path / "b.arpa", full=True)
    assert not whole.findings and whole.largest_error < 1e-5
    lines = text.split("\n")
    bigrams = [i for i, line in enumerate(lines) if line.split("\t")[1:] and line.split("\t")[1].split(" ")[:-1] == ["c"]]
    for log10_p in ("-9", "-0.1"):
        for i in bigrams:
            lines[i] = "\t".join([log10_p, *lines[i].split("\t")[1:]])
        (tmp_path / "c.arpa").write_text("\n".join(lines))
        damaged = kvps.audit(tmp_path / "c.arpa", full=True)
        assert not damaged.sound and "'c' add up to" in str(damaged.findings[1])


def test_from_the_command_line(store, tmp_path):
    """Exit codes are those of a check; what is no distribution, no folder or no number of contexts is refused."""
    path, model = store
    run = CliRunner()
    done = run.invoke(main, ["audit", str(path), "--full", "--json"])
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["damage"] == 0
    assert record.keys() == {"model", "version", "order", "smoothing", "full", "seed", "contexts", "largest_error", "damage",
                             "elapsed_s"}
    for wrong in (["--smoothing", "stupid-backoff"], ["--smoothing", "mle", "--full"], ["--contexts", "0"], ["--seed", "-1"],
                  ["-o", "9"]):
        assert run.invoke(main, ["audit", str(path), *wrong]).exit_code == 2, wrong
    assert run.invoke(main, ["audit", "kvps://127.0.0.1:9"]).exit_code == 2
    with pytest.raises(ArgumentError):
        kvps.audit(path, "stupid-backoff")
    shutil.copy(model, tmp_path / "copy")
    rewritten(model, lambda meta, arrays: arrays["unigrams"].__setitem__(4, 99))
    told = run.invoke(main, ["audit", str(path), "--full"])
    assert told.exit_code == 3
    assert "of damage" in told.stderr + told.stdout

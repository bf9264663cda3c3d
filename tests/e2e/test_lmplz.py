"""Modified Kneser-Ney is lmplz's: counts, discounts, probabilities, perplexities and ARPA files against KenLM's own.

lmplz computes in float32: log10 probabilities and back-offs agree within 2e-6, perplexities within 1e-5 relative. It
prints discounts with six digits.
"""
import gzip
import lzma
import re

import numpy as np
import pytest
from reference import read_arpa

import kvps
from kvps.jobs import train as jobs
from kvps.lm import arpa, cache, evaluate
from kvps.lm.model import CompiledModel
from kvps.store.directory import open_store
from kvps.text.corpus import resolve
from kvps.text.tokenize import Tokenizer

ORDERS = (2, 3, 5)             # of the rows of SCORES.md without options beyond -o
NOVELS = {                     # ../shared/reference/README.md
    "ngrams": {1: 86267, 2: 2030278, 3: 6955103, 4: 11534280, 5: 13500479},
    "discounts": {3: {3: (0.808151, 1.09774, 1.30908)},
                  5: {1: (0.602054, 0.993123, 1.36382), 2: (0.724852, 1.06121, 1.36377), 3: (0.819959, 1.11736, 1.33576),
                      4: (0.899384, 1.20219, 1.40184), 5: (0.945579, 1.26785, 1.44793)}},
    "perplexity": {3: (98.11204809634764, 92.70909083491149), 5: (93.69207659088511, 88.49887604446519)},
    "tokens": 187324, "oov": 816}


def scores(shared, order):
    """Return ({order: (n-grams, discounts)}, {label: figure}) of one row of SCORES.md."""
    text = (shared / "reference" / "SCORES.md").read_text(encoding="utf-8")
    section = re.search(rf"^## o{order}: .*?(?=^## |\Z)", text, re.M | re.S).group()
    orders = {int(n): (int(size), tuple(map(float, d))) for n, size, *d in
              re.findall(r"^(\d) (\d+) D1=(\S+) D2=(\S+) D3\+=(\S+)", section, re.M)}
    return orders, {label: float(value) for label, value in re.findall(r"^([A-Z][\w ]+):\t(\S+)", section, re.M)}


def perplexity(model, path, threads=2):
    """Return the Score of a file."""
    return evaluate.perplexity(model, resolve([path]), Tokenizer.from_spec("whitespace"), threads=threads)


def compiled(store, order, exact=False):
    """Return the compiled model of one order of an open store."""
    return CompiledModel(cache.ensure(store, top=order, exact=exact, threads=2), order=order)


@pytest.fixture(scope="module")
def small(shared, tmp_path_factory):
    """Return {order: store of small.txt}, opened for reading."""
    folder, stores = tmp_path_factory.mktemp("small"), {}
    for order in ORDERS:
        jobs.train(folder / str(order), [shared / "reference" / "small.txt"], order=order)
        stores[order] = open_store(folder / str(order))
    yield stores
    for store in stores.values():
        store.close()


# Each row of SCORES.md, from a store of its order and as a view of one of order 5.
ROWS = pytest.mark.parametrize(("order", "stored"), [(2, 2), (3, 3), (5, 5), (2, 5), (3, 5)])


@ROWS
def test_counts_and_discounts(shared, small, order, stored):
    """The n-grams of every order, and their discounts, are those that lmplz prints."""
    statistics = compiled(small[stored], order).statistics
    expected, _ = scores(shared, order)
    table, fallen = statistics.discounts()

    assert fallen == {}
    assert statistics.ngrams == {n: size for n, (size, _) in expected.items()}
    for n, (_, discounts) in expected.items():
        assert table[n][1:] == pytest.approx(discounts, rel=1e-5)


@ROWS
@pytest.mark.parametrize("exact", [False, True])
def test_perplexities(shared, small, order, stored, exact):
    """Tokens, OOVs and both perplexities of the held-out text are those that query prints, on one thread or several."""
    _, figures = scores(shared, order)
    model = compiled(small[stored], order, exact)
    heldout = shared / "reference" / "small.heldout.txt"
    found = perplexity(model, heldout)

    assert (found.sentences, found.tokens, found.oov) == (400, figures["Tokens"], figures["OOVs"])
    assert found.perplexity == pytest.approx(figures["Perplexity including OOVs"], rel=1e-5)
    assert found.perplexity_excluding_oov == pytest.approx(figures["Perplexity excluding OOVs"], rel=1e-5)
    assert perplexity(model, heldout, threads=1) == found


@pytest.mark.parametrize("stored", [3, 5])
def test_probability_of_each_word(shared, small, stored):
    """Each token has the log10 probability, and the order of the longest n-gram seen, that query prints."""
    with gzip.open(shared / "reference" / "small.o3.query.words.gz", "rt", encoding="utf-8") as lines:
        tokens = re.findall(r"(\S+)=(\d+) (\d+) (\S+)", lines.read())
    ends = [i + 1 for i, token in enumerate(tokens) if token[0] == "</s>"]
    printed = [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    text = "".join(" ".join(token[0] for token in tokens[:-1]) + "\n" for tokens in printed)
    found = list(compiled(small[stored], 3).score_words(text.encode()))

    assert len(printed) == len(found) == 20
    for tokens, ours in zip(printed, found, strict=True):
        for (word, _, length, log10), (ours_word, _, ours_log10, matched, oov) in zip(tokens, ours, strict=True):
            assert ours_word.decode() == word
            assert ours_log10 == pytest.approx(float(log10), abs=2e-6), word
            assert max(matched, 1) == int(length)      # query says 1 for an unknown word, as <unk> is a unigram
            assert oov == (matched == 0)


@ROWS
def test_arpa(shared, small, tmp_path, order, stored):
    """The exported ARPA file has lmplz's n-grams, no more and no less, with its probabilities and back-offs."""
    path = tmp_path / "small.arpa.gz"
    told = arpa.export(small[stored], path, order=order, threads=2)
    same_arpa(path, shared / "reference" / f"small.o{order}.arpa.gz", told)


@pytest.mark.parametrize("stored", [3, 5])
@pytest.mark.parametrize(("name", "order", "choices"), [
    ("small.o3.prune001", 3, arpa.Choices(prune=(0, 0, 1))),
    ("small.o5.prune00122", 5, arpa.Choices(prune=(0, 0, 1, 2, 2))),
    ("small.o5.prune00122", 5, arpa.Choices(prune=(0, 0, 1, 2))),
    ("small.o3.nointerpuni", 3, arpa.Choices(interpolate_unigrams=False)),
    ("small.o3.vocabpad", 3, arpa.Choices(vocab_pad=100_000))])
def test_arpa_with_options(shared, small, tmp_path, name, order, choices, stored):
    """Pruned, without interpolated unigrams or with a padded vocabulary, the file has lmplz's n-grams and numbers, too."""
    if stored < order:
        pytest.skip("the store has no n-grams of this order")
    path = tmp_path / "small.arpa"
    told = arpa.export(small[stored], path, order=order, choices=choices, threads=2)
    same_arpa(path, shared / "reference" / f"{name}.arpa.gz", told)


def same_arpa(path, other, told):
    """Compare two ARPA files, n-gram for n-gram."""
    sizes, ours = read_arpa(path)
    their_sizes, theirs = read_arpa(other)

    assert sizes == their_sizes == told["ngrams"]
    assert ours.keys() == theirs.keys()
    grams = list(theirs)
    for column in (0, 1):
        one, other = ([entries[gram][column] for gram in grams] for entries in (ours, theirs))
        assert [x is None for x in one] == [x is None for x in other]
        difference = np.abs(np.array(one, float) - np.array(other, float))
        assert np.nanmax(difference) <= 2e-6, grams[int(np.nanargmax(difference))]


def test_arpa_is_sorted_and_whole(small, tmp_path):
    """Within an order, lines are in byte order of their n-grams, the three specials first; the plain file equals the .gz."""
    arpa.export(small[3], tmp_path / "a.arpa", threads=1)
    arpa.export(small[3], tmp_path / "b.arpa.gz", threads=2)
    data = (tmp_path / "a.arpa").read_bytes()
    assert gzip.decompress((tmp_path / "b.arpa.gz").read_bytes()) == data

    sections = data.split(b"\n\n")
    assert sections[0].startswith(b"\\data\\\nngram 1=4294\n")
    assert sections[-1] == b"\\end\\\n"
    for n, section in enumerate(sections[1:-1], 1):
        header, *lines = section.split(b"\n")
        assert header == b"\\%d-grams:" % n
        grams = [line.split(b"\t")[1] for line in lines]
        if n == 1:
            assert grams[:3] == [b"<unk>", b"<s>", b"</s>"]
            grams = grams[3:]
        assert grams == sorted(grams)


@pytest.mark.parametrize("order", [2, 5])      # kenlm reads no unigram models
def test_kenlm_reads_our_arpa(shared, small, tmp_path, order):
    """The kenlm module loads the exported file and scores every held-out sentence, word for word, as we do."""
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: it comes with the test extra")
    path = tmp_path / "small.arpa"
    arpa.export(small[5], path, order=order, threads=2)
    theirs, ours = kenlm.Model(str(path)), compiled(small[5], order)
    text = (shared / "reference" / "small.heldout.txt").read_bytes()
    for line, found in zip(text.decode().split("\n")[:-1], ours.score_words(text), strict=True):
        # kenlm adds float32s: each token is compared, not the sum
        scored = list(theirs.full_scores(line, bos=True, eos=True))
        assert [log10 for log10, _, _ in scored] == pytest.approx([log10 for _, _, log10, _, _ in found], abs=4e-6)
        assert [oov for _, _, oov in scored] == [oov for *_, oov in found]


def test_text_without_a_last_newline(shared, tmp_path):
    """A last line that lacks its newline is a line like any other (lmplz gives wrong back-offs then)."""
    text = (shared / "reference" / "small.txt").read_bytes()
    (tmp_path / "cut.txt").write_bytes(text[:-1])
    jobs.train(tmp_path / "cut", [tmp_path / "cut.txt"], order=3)
    jobs.train(tmp_path / "whole", [shared / "reference" / "small.txt"], order=3)
    with kvps.open(tmp_path / "cut") as one, kvps.open(tmp_path / "whole") as other:
        assert list(one.dump(3, in_order=True)) == list(other.dump(3, in_order=True))
        assert one.statistics == other.statistics


@pytest.mark.slow
@pytest.mark.parametrize("stored", [3, 5])
def test_novels(shared, tmp_path, stored):
    """The full-size text gives lmplz's counts, discounts and perplexities, as stores of order 3 and 5 and views of them."""
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.txt").write_bytes(lzma.decompress((shared / "data" / f"novels.{name}.txt.xz").read_bytes()))
    jobs.train(tmp_path / "store", [tmp_path / "train.txt"], order=stored)
    with open_store(tmp_path / "store") as store:
        for order in (3, 5):
            if order > stored:
                continue
            model = compiled(store, order)
            table, fallen = model.statistics.discounts()
            assert fallen == {}
            assert model.statistics.ngrams == {n: NOVELS["ngrams"][n] for n in range(1, order + 1)}
            for n, discounts in NOVELS["discounts"][order].items():
                assert table[n][1:] == pytest.approx(discounts, rel=1e-5)
            found = perplexity(model, tmp_path / "heldout.txt")
            assert (found.tokens, found.oov) == (NOVELS["tokens"], NOVELS["oov"])
            assert found.perplexity == pytest.approx(NOVELS["perplexity"][order][0], rel=1e-5)
            assert found.perplexity_excluding_oov == pytest.approx(NOVELS["perplexity"][order][1], rel=1e-5)

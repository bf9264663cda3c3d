"""ARPA files against their definition in plain Python: every smoothing, pruned or not, and their sums; and counts as Google's."""
import dataclasses
import functools
import gzip
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvps
from kvps.errors import ArgumentError
from kvps.lm import arpa
from kvps.lm.arpa_read import import_arpa
from kvps.lm.google import export_counts
from kvps.lm.model import CompiledModel
from kvps.store.directory import open_store
from kvps.text.tokenize import Tokenizer

WORDS = ["a", "b", "c", "the", "a!", "\u732b", "word-of-more-than-sixteen-bytes"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=14)
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                                       HealthCheck.function_scoped_fixture])
SPECIALS = {"<unk>", "<s>", "</s>"}


class BackOff:
    """A smoothing of the form p(w | h) = (a - D(a)) / (S + types T) + gamma(h) p(w | h'), pruned: dicts, and float64.

    kept: the n-grams in the file, by order.
    """

    def __init__(self, sentences, order, choices):
        """Take its parts."""
        name, _, value = choices.smoothing.partition(":")
        self.raw = {k: reference.raw_counts(sentences, k) for k in range(1, order + 1)}
        modified = reference.ModifiedKneserNey(sentences, order)
        counts = modified.adjusted if "kneser" in name else self.raw
        self.types = 1 if name == "witten-bell" else 0
        if name == "modified-kneser-ney":
            self.off = {k: [0, *modified.discounts[k]] for k in counts}
        else:
            d = 0 if self.types else float(value or {"kneser-ney": 0.1, "absolute-discounting": 0.75}[name])
            self.off = {k: [0, d, d, d] for k in counts}
        cuts = [*choices.prune, *[choices.prune[-1] if choices.prune else 0] * order][:order]
        allowed = None if choices.limit_vocab is None else {*choices.limit_vocab.split(), *SPECIALS}
        self.kept = {k: {gram for gram in counts[k] if self.raw[k][gram] > cut and (allowed is None or allowed >= {*gram})}
                     for k, cut in enumerate(cuts, 1)}
        self.kept[1] |= {(word,) for word in SPECIALS}
        self.followers = {}
        for k in range(2, order + 1):
            for gram, a in counts[k].items():
                self.followers.setdefault(gram[:-1], {})[gram[-1]] = a
        unigrams = {gram[0]: a for gram, a in counts[1].items()}
        if "kneser" not in name:
            unigrams["<s>"] = len(sentences)           # as nltk has it
        total = sum(unigrams.values())
        own = self.off[1] if name.startswith("mod") else [0] * 4
        off = {w: own[min(a, 3)] if (w,) in self.kept[1] else a for w, a in unigrams.items()}
        gamma = sum(off.values()) / total
        self.unigrams = {w: (unigrams.get(w, 0) - off.get(w, 0)) / total for (w,) in self.kept[1]}
        if name == "modified-kneser-ney" and choices.interpolate_unigrams:
            for word in self.unigrams:
                self.unigrams[word] += gamma / max(choices.vocab_pad, len(self.kept[1]) - 1)
        else:
            self.unigrams["<unk>"] += gamma

    def is_kept(self, gram):
        """Return whether an n-gram is in the file."""
        return gram in self.kept[len(gram)]

    def gamma(self, context):
        """Return the back-off of a context."""
        if context not in self.followers:
            return 1.0
        off, values = self.off[len(context) + 1], self.followers[context]
        total = sum(values.values()) + self.types * len(values)
        mass = sum(off[min(a, 3)] if self.is_kept((*context, w)) else a for w, a in values.items())
        return (mass + self.types * len(values)) / total

    def p(self, word, context):
        """Return the probability of a word after a context."""
        if not context:
            return self.unigrams[word]
        own = 0.0
        if self.is_kept((*context, word)):
            a, values = self.followers[context][word], self.followers[context]
            own = (a - self.off[len(context) + 1][min(a, 3)]) / (sum(values.values()) + self.types * len(values))
        return own + self.gamma(context) * self.p(word, context[1:])


    def weights(self, sentences):
        """Return {n-gram: what it is worth} of orders 2 and up, raised to that of longer n-grams of which it is the context."""
        n_events = sum(n for (word,), n in self.raw[1].items() if word != "<s>")
        found = {}
        for k in range(max(self.kept), 1, -1):
            for context, values in self.followers.items():
                if len(context) != k - 1:
                    continue
                occurs = sum(self.raw[k][*context, word] for word in values)
                share = (occurs - self.off[k - 1][min(occurs, 3)]) / n_events * (3 if k == 2 else 1)
                alone = 0.3 / n_events if k == 3 < max(self.kept) else 0.0
                gamma = self.gamma(context)
                for word in values:
                    p, lower = self.p(word, context), gamma * self.p(word, context[1:])
                    own = alone + (0.0 if p <= 0 else math.inf if lower <= 0 else max(0.0, share * p * math.log(p / lower)))
                    found[*context, word] = max(found.get((*context, word), 0.0), own)
            for gram in [gram for gram in found if len(gram) == k and k > 2]:
                found[gram[:-1]] = max(found.get(gram[:-1], 0.0), found[gram])
        return found

    def thinned(self, weights, threshold):
        """Return the model without n-grams of a weight below a threshold: ({n-gram: p}, {context: back-off}, p(word, context))."""
        listed = {(word,): self.p(word, ()) for word in self.unigrams}
        listed |= {gram: self.p(gram[-1], gram[:-1]) for gram, weight in weights.items() if weight >= threshold}
        followers = {}
        for gram in listed:
            followers.setdefault(gram[:-1], []).append(gram[-1])

        @functools.cache
        def backoff(context):
            rest = 1 - sum(p(word, context[1:]) for word in followers[context])
            left = 1 - sum(listed[*context, word] for word in followers[context])
            return left / rest if rest > 1e-9 else self.gamma(context)

        def p(word, context):
            if (*context, word) in listed or not context:
                return listed[*context, word]
            return (backoff(context) if context in followers else 1.0) * p(word, context[1:])

        return listed, {context: backoff(context) for context in followers if context}, p


def read(pieces):
    """Return {n-gram: (log10 p, log10 back-off or None)} of an ARPA file."""
    lines = [line.split("\t") for line in b"".join(pieces).decode().split("\n") if "\t" in line]
    found = {tuple(fields[1].split(" ")): (float(fields[0]), float(fields[2]) if len(fields) > 2 else None) for fields in lines}
    assert len(found) == len(lines)
    return found


@st.composite
def choices(draw, order):
    """Return what may be chosen for a file of an order."""
    smoothing = draw(st.sampled_from(["modified-kneser-ney", "modified-kneser-ney", "kneser-ney", "absolute-discounting:0.5",
                                      "witten-bell"]))
    modified = smoothing.startswith("modified")
    prune = sorted(draw(st.lists(st.integers(0, 3), max_size=order)))
    vocabulary = draw(st.none() | st.lists(st.sampled_from([*WORDS, "unseen"]), max_size=6).map(" ".join))
    interpolated = draw(st.booleans()) if modified else True
    return arpa.Choices(smoothing, tuple(prune), vocabulary, interpolated,
                        draw(st.sampled_from([0, 0, 5, 1000])) if modified and interpolated else 0)


@FEW
@given(SENTENCES, st.integers(1, 6), st.integers(1, 3), st.data())
def test_pruned_file_is_as_defined(tmp_path_factory, sentences, order, shards, data):
    """A file of any smoothing, pruned or not, has the n-grams and numbers of its definition, whose contexts sum to 1."""
    top = data.draw(st.integers(1, order))
    chosen = data.draw(choices(top))
    folder, pieces = tmp_path_factory.mktemp("arpa"), []
    with kvps.create(folder / "s", order=order, shards=shards) as made:
        made.train(sentences, threads=1)
        with open_store(made.path) as store:
            told = arpa.export(store, "-", order=top, choices=chosen, threads=1, write=lambda piece: pieces.append(bytes(piece)))
    found, twin = read(pieces), BackOff(sentences, top, chosen)

    assert found.keys() == set().union(*twin.kept.values())
    assert told["ngrams"] == {k: len(grams) for k, grams in twin.kept.items()}
    for gram, (log10, backoff) in found.items():
        # float32 and seven decimals; -99 stands for the logarithm of 0
        p = 1.0 if gram == ("<s>",) else twin.p(gram[-1], gram[:-1])
        assert 10 ** log10 == pytest.approx(p, rel=2e-6, abs=1e-15), gram
        assert (backoff is None) == (len(gram) == top)
        if backoff is not None:
            assert 10 ** backoff == pytest.approx(twin.gamma(gram), rel=2e-6, abs=1e-15), gram
    if chosen.vocab_pad:                       # what pads it has some of the mass
        return
    predicted = [word for (word,) in twin.kept[1] if word != "<s>" or not chosen.smoothing.startswith(("mod", "kneser"))]
    contexts = (gram for k in range(1, top) for gram in twin.kept[k] if gram[-1] not in ("</s>", "<unk>"))
    for context in [(), *itertools.islice(contexts, 60)]:
        assert sum(twin.p(word, context) for word in predicted) == pytest.approx(1, abs=1e-9), context
    # What KenLM and we make of the file sums to 1 as well as its digits allow.
    (folder / "a.arpa").write_bytes(b"".join(pieces))
    import_arpa(folder / "a.arpa", folder / "model", tokenizer=Tokenizer.from_spec("whitespace"))
    model = CompiledModel(folder / "model")
    if chosen.smoothing.startswith(("mod", "kneser")):
        for context in itertools.islice(twin.followers, 20):
            total = np.power(10, model.log10_ngrams([(*context, word) for word in predicted])).sum()
            assert total == pytest.approx(1, abs=5e-6)


@FEW
@given(SENTENCES, st.integers(2, 6), st.integers(1, 3), st.data())
def test_entropy_pruned_file_is_as_defined(tmp_path_factory, sentences, order, shards, data):
    """A file pruned by entropy, by threshold or to a number, has the definition's n-grams, and its contexts sum to 1."""
    top = data.draw(st.integers(2, order))
    chosen = arpa.Choices(data.draw(st.sampled_from(["modified-kneser-ney", "absolute-discounting:0.5", "witten-bell"])))
    twin = BackOff(sentences, top, chosen)
    weights = twin.weights(sentences)
    steps = sorted({0.0, *(weight for weight in weights.values() if math.isfinite(weight))})
    # Thresholds where rounding decides nothing.
    gaps = [(a + b) / 2 for a, b in itertools.pairwise([*steps, 2 * steps[-1] + 1]) if b - a > 1e-4 * b]
    threshold = data.draw(st.sampled_from(gaps))
    listed, backoffs, p = twin.thinned(weights, threshold)
    if data.draw(st.booleans()):
        chosen = dataclasses.replace(chosen, prune_entropy=math.expm1(threshold))
    else:
        chosen = dataclasses.replace(chosen, prune_to=len(listed))
    pieces = []
    with kvps.create(tmp_path_factory.mktemp("arpa") / "s", order=order, shards=shards) as made:
        made.train(sentences, threads=1)
        with open_store(made.path) as store:
            told = arpa.export(store, "-", order=top, choices=chosen, threads=1, write=lambda piece: pieces.append(bytes(piece)))
    found = read(pieces)

    assert found.keys() == listed.keys()
    assert sum(told["ngrams"].values()) == len(listed)
    for gram, (log10, backoff) in found.items():
        assert 10 ** log10 == pytest.approx(1.0 if gram == ("<s>",) else listed[gram], rel=2e-6, abs=1e-15), gram
        if len(gram) < top:
            assert 10 ** backoff == pytest.approx(backoffs.get(gram, 1.0), rel=1e-5, abs=1e-9), gram
    words = [word for (word,) in twin.kept[1] if word != "<s>" or not chosen.smoothing.startswith("mod")]
    for context in [(), *itertools.islice(backoffs, 60)]:
        assert sum(p(word, context) for word in words) == pytest.approx(1, abs=1e-9), context


@pytest.mark.parametrize("chosen", [
    arpa.Choices(prune_to=10, prune=(0, 1)), arpa.Choices(prune_entropy=-1.0), arpa.Choices(prune_to=0),
    arpa.Choices(prune_to=10, limit_vocab="a"), arpa.Choices(prune_to=10, prune_entropy=0.1),
    arpa.Choices("mle"), arpa.Choices("laplace"), arpa.Choices("lidstone:0.1"), arpa.Choices("stupid-backoff"),
    arpa.Choices("nonsense"), arpa.Choices(prune=(1, 0)), arpa.Choices(prune=(-1,)), arpa.Choices(prune=(0, 0, 0, 0)),
    arpa.Choices(vocab_pad=-1), arpa.Choices("witten-bell", vocab_pad=10),
    arpa.Choices("kneser-ney", interpolate_unigrams=False), arpa.Choices(vocab_pad=10, interpolate_unigrams=False)])
def test_choices_that_a_file_cannot_hold(tmp_path, chosen):
    """What a back-off file cannot hold, and bounds that make no sense, are refused before anything is written."""
    with kvps.create(tmp_path / "s", order=3) as made:
        made.train(["a b c"])
        with open_store(made.path) as store, pytest.raises(ArgumentError):
            arpa.export(store, tmp_path / "x.arpa", choices=chosen)
    assert not (tmp_path / "x.arpa").exists()


def test_limit_vocab_parts_words_as_text_does(tmp_path):
    """A word with a vertical tab, a form feed or a no-break space in it is one word of the list, as it is one of the text."""
    words = ["a\vb", "c\fd", "e\u00a0f"]
    with kvps.create(tmp_path / "s", order=2) as made:
        made.train([[*words, "gone"], ["a", "b", "c", "d", "e", "f"]])
        with open_store(made.path) as store:
            found = arpa.export(store, tmp_path / "x.arpa", choices=arpa.Choices(limit_vocab="a\vb\tc\fd\r\n\0e\u00a0f\n"))
    _, ngrams = reference.read_arpa(tmp_path / "x.arpa")

    assert {gram for gram in ngrams if len(gram) == 1} == {(word.encode(),) for word in [*SPECIALS, *words]}
    assert found["ngrams"][1] == 6


@pytest.mark.parametrize(("chosen", "message"), [
    (arpa.Choices(prune_entropy=-1), "pruning by a relative entropy of -1 is not possible, expected 0 or more"),
    (arpa.Choices(prune_to=0), "pruning to 0 n-grams is not possible, expected 1 or more"),
    (arpa.Choices(vocab_pad=10, interpolate_unigrams=False), "choose one of --vocab-pad and --no-interpolate-unigrams")])
def test_refused_choices_are_named(chosen, message):
    """What is refused speaks of the choice that was made, and of no other one."""
    with pytest.raises(ArgumentError, match=message):
        chosen.cuts(3)


@pytest.mark.parametrize(("order", "told"), [(6, False), (7, True)])
def test_orders_that_kenlm_does_not_read(tmp_path, caplog, order, told):
    """An order above 6, which KenLM reads only where it was built for it, is warned of."""
    with kvps.create(tmp_path / "s", order=7) as made:
        made.train(["a b c d e f g h"])
        with open_store(made.path) as store:
            arpa.export(store, tmp_path / "x.arpa", order=order)

    assert any("KENLM_MAX_ORDER=7" in record.getMessage() for record in caplog.records) is told


def test_choices_from_elsewhere(tmp_path):
    """Choices that came over a wire, unknown or of wrong types, are refused as arguments."""
    with kvps.create(tmp_path / "s", order=2) as made, open_store(made.path) as store:
        for wrong in ({"nonsense": 1}, {"prune": "abc"}, {"prune": [None]}, {"limit_vocab": 3}, {"prune_to": "x"}):
            with pytest.raises(ArgumentError):
                next(arpa.arpa_file(store, choices=wrong))


@pytest.mark.parametrize("smoothing", ["kneser-ney", "absolute-discounting", "witten-bell"])
def test_file_scores_as_the_store(tmp_path, rng, smoothing):
    """A file of a smoothing gives the scores of the store with that smoothing."""
    sentences = [[rng.choice(WORDS) for _ in range(rng.randint(0, 12))] for _ in range(200)]
    with kvps.create(tmp_path / "s", order=4) as made:
        made.train(sentences)
        with open_store(made.path) as store:
            arpa.export(store, tmp_path / "a.arpa", choices=arpa.Choices(smoothing))
        import_arpa(tmp_path / "a.arpa", tmp_path / "model", tokenizer=Tokenizer.from_spec("whitespace"))
        with made.model(smoothing) as own, kvps.load(tmp_path / "model") as read_again:
            asked = [[rng.choice(WORDS) for _ in range(rng.randint(0, 12))] for _ in range(200)]
            assert read_again.score(asked) == pytest.approx(own.score(asked), abs=1e-5)


@FEW
@given(SENTENCES, st.integers(1, 4))
def test_counts_as_google_s(tmp_path_factory, sentences, order):
    """`kvps export --counts` writes every n-gram with its raw count, sorted, and names the first one of each file."""
    folder = tmp_path_factory.mktemp("counts")
    with kvps.create(folder / "s", order=order) as made:
        made.train(sentences)
        with open_store(made.path) as store:
            told = export_counts(store, folder / "out")
    for k in range(1, order + 1):
        names = ["vocab.gz"] if k == 1 else [f"{k}gm-0000.gz"]
        (name,) = names
        path = folder / "out" / f"{k}gms" / name
        lines = gzip.decompress(path.read_bytes()).split(b"\n")[:-1] if path.exists() else []
        found = Counter({tuple(line.decode().split("\t")[0].split(" ")): int(line.split(b"\t")[1]) for line in lines})
        expected = reference.raw_counts(sentences, k)
        if k == 1:
            expected = expected | Counter({("<s>",): len(sentences)})
            assert int((folder / "out/1gms/total").read_bytes()) == sum(expected.values()) - len(sentences)
        assert found == expected
        assert lines == sorted(lines)
        assert told["ngrams"][k] == len(expected)
        if k > 1 and lines:
            assert (folder / "out" / f"{k}gms" / f"{k}gm.idx").read_bytes() == b"%s\t%s\n" % (
                name.encode(), lines[0].split(b"\t")[0])
    assert math.isfinite(told["bytes"])


def test_counts_in_several_files(tmp_path, monkeypatch):
    """Files of counts are cut at a number of lines; together they are the list."""
    monkeypatch.setattr("kvps.lm.google.FILE_LINES", 3)
    with kvps.create(tmp_path / "s", order=2) as made:
        made.train(["a b c d e f g", "a c e g b d f"])
        with open_store(made.path) as store:
            export_counts(store, tmp_path / "out")
            with pytest.raises(ArgumentError, match="exists already"):
                export_counts(store, tmp_path / "out")
        expected = sorted(f"{' '.join(gram)}\t{n}" for gram, n in made.dump(2))
    files = sorted((tmp_path / "out/2gms").glob("*.gz"))
    parts = [gzip.decompress(path.read_bytes()).decode().split("\n")[:-1] for path in files]
    assert sorted(line for part in parts for line in part) == expected
    assert [len(part) for part in parts] == [*[3] * (len(parts) - 1), len(expected) - 3 * (len(parts) - 1)]
    index = (tmp_path / "out/2gms/2gm.idx").read_text().split("\n")[:-1]
    assert index == [f"{path.name}\t{part[0].split(chr(9))[0]}" for path, part in zip(files, parts, strict=True)]
    assert list(tmp_path.glob("*.tmp-*")) == []

"""Mixtures: whatever is mixed, contexts sum to 1, scores are the weighted sums, and no model alone foresees the text better."""
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from arpas import p_in, read_arpa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import new_store

import kvps
from kvps.jobs.models import model_at
from kvps.lm import mixed_arpa, mixture, opening
from kvps.lm.mixed import best_weights
from kvps.text.tokenize import Tokenizer

WORDS = ["a", "b", "c", "the", "\u732b", "a!", "only-here", "or-there"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS[:7]), max_size=7), min_size=1, max_size=10)
OTHERS = st.lists(st.lists(st.sampled_from([*WORDS[:4], WORDS[7]]), max_size=7), min_size=1, max_size=10)
DISTRIBUTIONS = ["modified-kneser-ney", "kneser-ney", "absolute-discounting", "witten-bell", "lidstone:0.1", "laplace"]
DEV = st.lists(st.lists(st.sampled_from([*WORDS, "unheard-of"]), max_size=6), min_size=1, max_size=6)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW, MANY = settings(max_examples=15, suppress_health_check=CHECKS), settings(max_examples=300, suppress_health_check=CHECKS)


def imported(store, name="m", **how):
    """Return an imported model of a store, beside it; how it is exported."""
    from kvps.lm.arpa import Choices, export
    from kvps.store.directory import open_store

    folder = Path(store.path).parent
    with open_store(store.path) as opened:
        export(opened, folder / f"{name}.arpa", choices=Choices(**how), threads=1)
    return listed(folder / f"{name}.arpa")


def listed(arpa):
    """Return an imported model of an ARPA file, beside it, with the list of its n-grams."""
    from kvps.lm.arpa_read import import_arpa

    import_arpa(arpa, arpa.with_suffix(".kvm"), tokenizer=Tokenizer.from_spec("whitespace", False), list_ngrams=True)
    return arpa.with_suffix(".kvm")


def p_of(model, lacks, word, context, everybody_lacks):
    """Return what a model gives to a word in a mixture."""
    return 0.0 if lacks and not everybody_lacks else 10 ** model.log10(word, context)


def check_mixture(first, second, dev, data):
    """Of two stores and an imported model, under every smoothing: distributions, scores and perplexity are what they should be."""
    names = [data.draw(st.sampled_from(DISTRIBUTIONS)) for _ in range(2)]
    orders = [data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))]
    with ExitStack() as stack:
        one, two = (stack.enter_context(new_store(order, 2)) for order in orders)
        one.train(first, threads=1)
        two.train(second, threads=1)
        places, smoothings = [one.path, two.path], list(names)
        if data.draw(st.booleans()):
            places.append(imported(two))
            smoothings.append("modified-kneser-ney")       # which an imported model takes for its own
        out = Path(one.path).parent / "mix"
        made = kvps.mix(out, places, dev, smoothing=smoothings, threads=1)
        models = [stack.enter_context(kvps.load(place, name, threads=1)) for place, name in zip(places, smoothings, strict=True)]
        mixed = stack.enter_context(kvps.load(out, threads=1))

        # No model alone is better on the text, and what was printed is so.
        alone = [model.perplexity(dev) for model in models]
        assert [row["perplexity"] or math.inf for row in made["models"]] == pytest.approx(alone)
        assert (made["perplexity"] or math.inf) == pytest.approx(mixed.perplexity(dev), rel=1e-9)
        assert mixed.perplexity(dev) <= min(alone) * (1 + 1e-9)

        # Scores are weighted sums; a word that a model lacks, and another one has, gets nothing from it.
        weights = [row["weight"] for row in made["models"]]
        assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
        kept = [i for i, weight in enumerate(weights) if weight > 0]
        known = [{word for words in text for word in words} | {"</s>"} for text in (first, second, second)]
        for sentence in dev:
            words = ["<s>", *sentence, "</s>"]
            found = mixed.score_words([sentence])[0]
            for i, score in enumerate(found, 1):
                everybody = all(words[i] not in known[k] for k in kept)
                p = math.fsum(weights[k] * p_of(models[k], words[i] not in known[k], words[i], words[:i], everybody) for k in kept)
                assert 10 ** score.log10 == pytest.approx(p, rel=1e-9)
                assert score.oov == everybody
                assert score.log10 == pytest.approx(mixed.log10(words[i], words[:i]), rel=1e-12)
            assert mixed.score([sentence])[0] == pytest.approx(sum(score.log10 for score in found))
            for word in mixed.explain([sentence])[0]:
                assert math.fsum(part.share for part in word.parts) == pytest.approx(word.probability, rel=1e-9)

        # Every context is a distribution over the words of all.
        exact = len(places) == 2
        for context in [[], *dev, ["<s>", *dev[0]], ["only-here", "or-there"], ["nobody", "a"]]:
            (after,) = mixed.next([context], None)
            total = math.fsum(after.probabilities)
            assert total == pytest.approx(1, abs=1e-9 if exact else 1e-5)
            for word, p in zip(after.words, after.probabilities.tolist(), strict=True):
                if word != "<s>":
                    assert p == pytest.approx(10 ** mixed.log10(word, context), rel=1e-9)
            assert (mixed.next([context], 2)[0].words, after.words[:2]) == (after.words[:2],) * 2
        assert mixed.generate(dev[0], 3, seed=5) == mixed.generate(dev[0], 3, seed=5)
        found = mixed.complete("a", 3, max_words=1)
        assert [row.probability for row in found] == sorted((row.probability for row in found), reverse=True)
        measured = mixed.measure(dev)
        assert measured.score.perplexity == pytest.approx(mixed.perplexity(dev))
        assert sum(measured.hits) == measured.score.tokens


@FEW
@given(SENTENCES, OTHERS, DEV, st.data())
def test_mixtures(first, second, dev, data):
    """Distributions, scores and perplexity of mixtures are what they should be."""
    check_mixture(first, second, dev, data)


@pytest.mark.slow
@MANY
@given(SENTENCES, OTHERS, DEV, st.data())
def test_many_mixtures(first, second, dev, data):
    """The same of many more."""
    check_mixture(first, second, dev, data)


def test_weights_are_the_best(seed):
    """Weights that expectation maximisation finds cannot be bettered by moving a little from one model to another."""
    rng = np.random.default_rng(seed)
    for n_models in (1, 2, 5):
        p = rng.random((200, n_models)) ** rng.integers(1, 6, n_models)
        p[rng.random(p.shape) < 0.1] = 0
        weights = best_weights(p)
        assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
        seen = p[p.any(axis=1)]
        best = np.log(seen @ weights).mean()
        for i in range(n_models):
            for j in range(n_models):
                step = min(0.02, weights[i])
                moved = weights.copy()
                moved[i] -= step
                moved[j] += step
                with np.errstate(divide="ignore"):
                    assert np.log(seen @ moved).mean() <= best + 1e-5
    assert best_weights(np.zeros((3, 2))).tolist() == [0.5, 0.5]


def check_arpa(first, second, data):
    """The ARPA file has the n-grams of two stores, or of one and an imported model, with the mixture's probabilities.

    Its contexts sum to 1.
    """
    names = [data.draw(st.sampled_from(DISTRIBUTIONS)) for _ in range(2)]
    orders = [data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))]
    with ExitStack() as stack:
        one, two = (stack.enter_context(new_store(order, 2)) for order in orders)
        one.train(first, threads=1)
        two.train(second, threads=1)
        folder, places = Path(one.path).parent, {one: one.path, two: two.path}
        if data.draw(st.booleans()):
            places[two], names[1] = imported(two), "modified-kneser-ney"
        kvps.mix(folder / "mix", list(places.values()), [*first[:2], *second[:2]], smoothing=names, threads=1)
        mixed = stack.enter_context(kvps.load(folder / "mix", threads=1))
        with opening.open_model_place(folder / "mix") as place:
            ready = model_at(place, following=True, threads=1)
            made = mixed_arpa.export(place, ready, folder / "mix.arpa", threads=1)
            kept = [store for store, name in places.items()
                    if any(mixture.place_of(place.path, part.model) == str(name) for part in place.parts)]
        listed = read_arpa(folder / "mix.arpa")
        assert made["ngrams"] == {k: len(ngrams) for k, ngrams in listed.items()}
        words = sorted({word for store in kept for word in store.vocabulary})
        assert set(listed[1]) == {(word,) for word in ["<s>", "</s>", "<unk>", *words]}
        for k in range(2, mixed.order + 1):
            assert set(listed[k]) == {ngram for store in kept if k <= store.order for ngram, _ in store.dump(k)}
        for ngrams in listed.values():
            for ngram, (log10_p, _) in ngrams.items():
                if ngram != ("<s>",) and mixed.log10(ngram[-1], ngram[:-1]) > -50:
                    assert log10_p == pytest.approx(mixed.log10(ngram[-1], ngram[:-1]), abs=2e-6), ngram
        ground = {(word,): 10 ** listed[1][word,][0] for word in ["</s>", "<unk>", *words]}
        ground["<s>",] = 1 - math.fsum(ground.values())        # what the file does not say
        for ngrams in listed.values():
            for context in ngrams:
                if context[-1] != "</s>" and len(context) < mixed.order:
                    total = math.fsum(p_in(listed, ground, context, word) for word in ["<s>", "</s>", "<unk>", *words])
                    assert total == pytest.approx(1, abs=1e-5), context


@settings(max_examples=6, suppress_health_check=CHECKS)
@given(SENTENCES, OTHERS, st.data())
def test_arpa_of_a_mixture(first, second, data):
    """The ARPA file of a mixture is exact on its n-grams, and its contexts sum to 1."""
    check_arpa(first, second, data)


@pytest.mark.slow
@MANY
@given(SENTENCES, OTHERS, st.data())
def test_arpa_of_many_mixtures(first, second, data):
    """The same of many more."""
    check_arpa(first, second, data)


def check_promising(place, contexts, rng, monkeypatch):
    """Where only promising words are looked at, next words are those of the distribution over all words, ties too."""
    with kvps.load(place, threads=1) as opened, monkeypatch.context() as patch:
        model = opened._following()
        rows = [model.ids_of(context) for context in contexts]
        asked = [(k, tuple(sorted(rng.integers(0, model.n_words, 2).tolist())) if k % 3 == 0 else (0, model.n_words))
                 for k in range(1, 13)]
        found = [(model.top(rows, k), model.extend(rows, k, *places, 0)) for k, places in asked]
        patch.setattr(type(model), "promising", lambda *_: None)
        patch.setattr(type(model), "_best_of_all", None, raising=False)
        expected = [(model.top(rows, k), model.extend(rows, k, *places, 0)) for k, places in asked]
        for one_way, other_way in zip(found, expected, strict=True):
            for (ids, p, n), (all_ids, all_p, all_n) in zip(one_way, other_way, strict=True):
                assert (ids.tolist(), n.tolist()) == (all_ids.tolist(), all_n.tolist())
                assert p == pytest.approx(all_p, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_some_words_are_the_best_of_all(seed, monkeypatch):
    """Of mixtures, and of imported models, pruned ones too."""
    rng = np.random.default_rng(seed)

    def text(n):
        return [[f"w{i}" for i in np.minimum(rng.zipf(1.3, rng.integers(1, 9)), 90).tolist()] for _ in range(n)]

    with ExitStack() as stack:
        one, two = (stack.enter_context(new_store(order, 2)) for order in (4, 2))
        one.train(text(300), threads=1)
        two.train([[word + "x" if word < "w2" else word for word in words] for words in text(60)], threads=1)
        out = Path(one.path).parent / "mix"
        kvps.mix(out, [one.path, two.path], text(20), smoothing=["modified-kneser-ney", "witten-bell"], threads=1)
        for place in (out, imported(one), imported(one, "pruned", prune_to=400)):
            check_promising(place, [["<s>"], *text(40), ["unheard-of", "w1"]], rng, monkeypatch)


def test_lists_with_gaps_and_ties(tmp_path, monkeypatch):
    """An n-gram may be listed where its shorter endings are not; words of equal probability come in byte order."""
    rng = np.random.default_rng(5)
    words = [f"w{i:03}" for i in rng.permutation(300)]
    ngrams = {1: [("<unk>", -2), ("<s>", -99), ("</s>", -2), *((word, -2.5 - 0.001 * i) for i, word in enumerate(words))]}
    ngrams[2] = [(f"{words[c]} {words[i]}", -0.7 - 0.0137 * c) for c in range(90) for i in rng.permutation(300)[:60].tolist()]
    # "b" begins no bigram here, "a b" begins trigrams.
    ngrams[2] += [(f"{words[200 + c]} {words[100 + c]}", -0.3) for c in range(30)]
    ngrams[3] = [(f"{words[200 + c]} {words[100 + c]} {words[i]}", -0.2 - 0.2 * n)
                 for c in range(30) for n, i in enumerate(rng.permutation(300)[:c + 1].tolist())]
    lines = ["\\data\\", *(f"ngram {k}={len(rows)}" for k, rows in ngrams.items())]
    for k, rows in ngrams.items():
        lines += ["", f"\\{k}-grams:", *(f"{p:.4f}\t{row}" + ("\t-0.37" if k < 3 else "") for row, p in rows)]
    (tmp_path / "m.arpa").write_text("\n".join([*lines, "", "\\end\\", ""]))

    contexts = [[words[200 + c], words[100 + c]] for c in range(30)] + [[words[c]] for c in range(90)]
    check_promising(listed(tmp_path / "m.arpa"), contexts, rng, monkeypatch)


@pytest.mark.parametrize("seed", range(3))
def test_best_of_many_words(seed, tmp_path, monkeypatch):
    """Where lists are long enough to be gone down only as far as it matters, the best words are those of the distribution."""
    rng = np.random.default_rng(seed)

    def text(n, first):
        return [[f"w{first + i}" for i in np.minimum(rng.zipf(1.2, rng.integers(1, 12)), 4000).tolist()] for _ in range(n)]

    with ExitStack() as stack:
        stores = [stack.enter_context(new_store(order, 2)) for order in (3, 4, 1)]
        for i, store in enumerate(stores):
            store.train(text(1500, 700 * i), threads=1)
        smoothing = rng.choice(DISTRIBUTIONS, 3).tolist()
        kvps.mix(tmp_path / "mix", [store.path for store in stores], text(30, 0), smoothing=smoothing, threads=1)
        with kvps.load(tmp_path / "mix", threads=1) as opened:
            assert opened._following()._best_of_all is not None
        contexts = [["<s>"], [], ["w1"], ["unheard-of", "w701"], ["w1", "w2"], ["<s>", "w1"], *(words[:3] for words in text(20, 0))]
        check_promising(tmp_path / "mix", contexts, rng, monkeypatch)

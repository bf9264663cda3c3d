"""What follows a context, as a file lists it and a model adds it up: distributions, best words and drawn text."""
import math
import shutil

import numpy as np
import pytest
from draws import N_DRAWS, check_draws
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stores import new_store

import kvps
from kvps._followers import Followers, Workspace
from kvps.errors import ArgumentError, CorruptionError, StoreError
from kvps.lm import cache, container, followers
from kvps.lm.followers import FollowingModel, context_of, load_following
from kvps.store.directory import open_store
from kvps.text.tokenize import Tokenizer
from kvps.text.vocabulary import BOS

WORDS = ["a", "b", "c", "the", "a\u00a0b", "\u732b", "a!", "word-of-more-than-sixteen-bytes"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=12)
ORDERS = st.integers(1, 8)
DISTRIBUTIONS = ["modified-kneser-ney", "kneser-ney", "absolute-discounting", "witten-bell", "lidstone:0.1", "laplace", "mle"]
CONTEXTS = st.lists(st.lists(st.sampled_from([*WORDS, "<s>", "</s>", "unheard-of"]), max_size=9), min_size=1, max_size=8)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return an order-3 store whose words are seen so often that counts have no code of their own."""
    path = tmp_path_factory.mktemp("followers") / "store"
    with kvps.create(path, order=3, shards=2) as store:
        store.train([*["the cat sat"] * 300, *["the cat ran"] * 256, "the cat", "the dog", "a dog", *["a cat"] * 255], threads=1)
    return path


def check_answers(model, contexts, smoothing):
    """Compare all that a FollowingModel says of next words with the probabilities of the words one by one."""
    words = [model.words.word(i).decode() for i in model.by_ground[0].tolist()]
    for context, every in zip(contexts, model.next_words(contexts, None), strict=True):
        vector = model.distribution(context)
        each = {word: vector[model.ids_of([word])[0]] if word != "<unk>" else vector[0] for word in words}
        if smoothing != "mle" or every.words:
            assert math.fsum(vector) == pytest.approx(1, abs=1e-9), (smoothing, context)
        for word, p in each.items():
            if word == "<s>" and not context[max(0, len(context) - model.order + 1):]:
                continue                       # it begins a sentence then, with probability 1
            assert p == pytest.approx(10 ** model.log10(word, context), rel=1e-9, abs=1e-300), (smoothing, context, word)
        ranked = sorted(((-p, word.encode()) for word, p in each.items() if p > 0))
        assert every.words == [word.decode() for _, word in ranked], (smoothing, context)
        assert every.probabilities.tolist() == [-p for p, _ in ranked]
        assert every.cumulative.tolist() == np.cumsum(every.probabilities).tolist()
    for k in (1, 2, 5):
        for best, every in zip(model.next_words(contexts, k), model.next_words(contexts, None), strict=True):
            assert best.words == every.words[:k]
            assert best.probabilities.tolist() == every.probabilities[:k].tolist()
    asked = [np.array(model.ids_of(context)[max(0, len(context) - model.order + 1):], np.uint32) for context in contexts]
    every = np.setdiff1d(model.by_ground[0], [BOS])
    found = model.shares_of(asked, np.repeat(np.arange(len(asked)), len(every)), np.tile(every, len(asked)))
    for context, p in zip(contexts, found.reshape(len(asked), -1), strict=True):
        assert p == pytest.approx(model.distribution(context)[every], rel=1e-9, abs=1e-300), (smoothing, context)
        low, high = sorted(np.random.default_rng(len(every)).integers(0, model.n_words + 1, 2).tolist())
        there = math.fsum(model.distribution(context)[model.by_rank[low:high]])
        assert model.mass(model.ids_of(context), low, high) == there


@FEW
@given(SENTENCES, ORDERS, st.integers(1, 4), st.sampled_from([0.01, 0.3, 1.0]), CONTEXTS, st.data())
@example([["a"] * 9] * 3, 3, 3, 0.01, [["a"], ["a", "a"], ["b", "a"], []], None)
def test_next_words_are_a_distribution(sentences, order, shards, share, contexts, data):
    """Whatever the context, of words seen or not, next words sum to 1 and have the probabilities that scoring gives them.

    For every smoothing and order, with contexts that are spread over shards; the best k are the first of all, by
    probability and then in byte order.
    """
    top = data.draw(st.integers(1, order)) if data else order
    with new_store(order, shards, share) as made:
        made.train(sentences, threads=1)
        contexts = [*contexts, [], *(["<s>", *sentence][:1 + len(sentence) // 2] for sentence in sentences)]
        with open_store(made.path) as store:
            for smoothing in DISTRIBUTIONS:
                check_answers(load_following(store, smoothing, top, threads=1), contexts, smoothing)
            check_answers(load_following(store, exact=True, threads=1), contexts, "modified-kneser-ney")


@FEW
@given(SENTENCES, SENTENCES, st.integers(1, 5), st.integers(0, 2**64 - 1), st.data())
def test_next_words_do_not_know_how_counts_came(a, b, order, seed, data):
    """A store that was updated and forgot names and draws the same words, in the same order, as one made from scratch."""
    smoothing = data.draw(st.sampled_from(DISTRIBUTIONS[:-1]))
    with new_store(order, 3) as grown, new_store(order, 1) as fresh:
        grown.train(b, threads=1)
        grown.update(a, again=True, threads=1)
        grown.forget(b, threads=1)
        fresh.train(a, threads=1)
        with grown.model(smoothing, threads=1) as x, fresh.model(smoothing, threads=1) as y:
            asked = [[], ["a"], ["<s>", "the"]]
            for one, other in zip(x.next(asked, None), y.next(asked, None), strict=True):
                assert one.words == other.words
                assert one.probabilities.tolist() == other.probabilities.tolist()
            for choices in ({}, {"top_k": 2}, {"top_p": 0.7, "temperature": 0.8}, {"temperature": 1.5}):
                assert x.generate(count=5, seed=seed, **choices) == y.generate(count=5, seed=seed, **choices)


@pytest.mark.parametrize("choices", [
    {}, {"temperature": 0.6}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.7, "temperature": 1.4},
    {"top_p": 0.6, "temperature": 0.7}], ids=str)
@pytest.mark.parametrize("smoothing", DISTRIBUTIONS)
def test_draws_have_the_distribution(smoothing, choices, small, seed):
    """Words are drawn as often as their probability says, after temperature, top k and top p, <s> and <unk> left out."""
    with open_store(small) as store:
        model = load_following(store, smoothing, threads=1)
        for prompt in (["the"], ["the", "cat"], ["zebra", "a"]):
            if smoothing == "mle" and prompt[0] == "zebra":
                continue
            (after,) = model.next_words([["<s>", *prompt]], None)
            drawn = model.generate(prompt, N_DRAWS, seed=seed, max_words=1, **choices)
            check_draws([words[0] if words else "</s>" for words, _ in drawn], after, **choices)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_long_lists(order, tmp_path, seed):
    """Words that were seen once after a word of very many get what is theirs; for every order."""
    rng = np.random.default_rng(seed)
    names = [f"w{i}" for i in range(2000)]
    text = [f"the {a} {b}" for a, b in zip(names, rng.choice(names[:300], 2000), strict=True)]
    with kvps.create(tmp_path / "s", order=order, shards=2) as store:
        store.train([*text, *(f"the {name}" for name in names[:50]), "the w7 the w8"], threads=1)
    with open_store(tmp_path / "s") as store:
        for smoothing in DISTRIBUTIONS:
            check_answers(load_following(store, smoothing), [["the"], ["w7", "the"], ["<s>", "the"], ["zebra", "the"]], smoothing)


def test_best_of_long_lists(tmp_path, seed):
    """The k best words after a word of very many are the first k of all.

    Words that are rare after it may be common after the longer context, or by themselves.
    """
    rng = np.random.default_rng(seed)
    names = [f"w{i}" for i in range(1500)]
    often = (1500 / np.arange(1, 1501)).astype(int)
    text = [f"{'the' if rng.random() < 0.7 else 'in the'} {name}" for name, n in zip(names, often, strict=True) for _ in range(n)]
    text += [f"in the {name}" for name in rng.choice(names[1000:], 5) for _ in range(3)]
    text += [f"{name} {other}" for name in rng.choice(names[200:], 30) for other in rng.choice(names, 80)]     # by themselves
    text += [f"{other} {name}" for name in rng.choice(names[1000:], 5) for other in rng.choice(names, 300)]
    with kvps.create(tmp_path / "s", order=3, shards=2) as store:
        store.train(text, threads=1)
    with open_store(tmp_path / "s") as store:
        for smoothing in [*DISTRIBUTIONS, "stupid-backoff"]:
            model = load_following(store, smoothing)
            contexts = [model.ids_of(words) for words in (["the"], ["in", "the"], ["<s>", "the"], ["zebra", "the"])]
            ids, p, _ = model.top(contexts, model.n_words)
            for k in (1, 2, 7, 60, 300):
                found = model.top(contexts, k)
                assert (found[0] == ids[:, :k]).all(), (smoothing, k)
                assert (found[1] == p[:, :k]).all(), (smoothing, k)
                whole, some = (model.extend(contexts, n, 0, model.n_words, 0)[0] for n in (model.n_words, k))
                assert (some == whole[:, :k]).all(), (smoothing, k)


def test_generated_text_is_the_seeds(small):
    """The same seed gives the same sentences on any number of threads and in any number; another seed gives others."""
    with kvps.load(small, "witten-bell", threads=1) as one, kvps.load(small, "witten-bell", threads=3) as three:
        for choices in ({}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 1.2}):
            text = one.generate("the", 100, seed=5, **choices)
            assert text == three.generate(["the"], 100, seed=5, **choices)
            assert text[:7] == three.generate("the", 7, seed=5, **choices)
            assert text != one.generate("the", 100, seed=6, **choices)
        assert one.generate("the", 20) != one.generate("the", 20)
        assert one.generate("the", 0) == []
        assert all(line.startswith("the ") or line == "the" for line in text)
        assert max(len(line.split()) for line in one.generate("", 50, temperature=9.0, max_words=4)) == 4


def test_generate_greedily(small):
    """With top_k 1 each word is the best one, for a temperature of any height."""
    with kvps.load(small) as model:
        words = ["<s>"]
        while (best := next(word for word in model.next([words], None)[0].words if word not in ("<s>", "<unk>"))) != "</s>":
            words.append(best)
        assert model.generate(count=2, top_k=1, temperature=3.0) == [" ".join(words[1:])] * 2
        assert model.generate(count=2, top_p=1e-9) == [" ".join(words[1:])] * 2


@pytest.mark.parametrize("temperature", [0.003, 1e-6, 1e-300])
def test_generate_at_low_temperatures(temperature, small):
    """Near a temperature of 0 each word is the best one, however small its probability."""
    for smoothing in ("modified-kneser-ney", "witten-bell", "laplace"):
        with kvps.load(small, smoothing) as model:
            assert len(model.generate("zebra", 5, temperature=temperature)) == 5       # where equal ones are the best
            for prompt in ("", "the"):
                greedy = model.generate(prompt, top_k=1)
                assert model.generate(prompt, temperature=temperature) == greedy
                assert model.generate(prompt, temperature=temperature, top_p=0.9) == greedy
                assert model.generate(prompt, temperature=temperature, top_k=4) == greedy


def test_generate_what_was_seen(small):
    """MLE draws nothing but n-grams of the text, and says after which words it knows none."""
    with kvps.load(small, "mle") as model:
        assert set(model.generate(count=500, seed=1)) <= {"the cat sat", "the cat ran", "the cat", "the dog", "a dog", "a cat"}
        with pytest.raises(ArgumentError, match="no word a probability after '<s> the zebra'"):
            model.generate("the zebra")


@pytest.mark.parametrize("choices", [
    {"temperature": 0}, {"temperature": math.inf}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1},
    {"count": -1}, {"max_words": 0}, {"seed": -1}, {"seed": 2**64}, {"top_k": 10**20}, {"max_words": 10**20}], ids=str)
def test_generate_refuses(choices, small):
    """A number that is not possible is refused; so are scores that are no probabilities."""
    with kvps.load(small) as model, pytest.raises(ArgumentError, match="is not possible"):
        model.generate(**choices)
    with kvps.load(small, "stupid-backoff") as model, pytest.raises(ArgumentError, match="not a distribution"):
        model.generate()


@FEW
@given(SENTENCES, SENTENCES, st.integers(1, 4), st.data())
def test_predictions_are_those_of_next_words(sentences, text, order, data):
    """Places, accuracy, precision, recall and F1 are those that the list of all next words gives, for every smoothing."""
    text = [*text, ["unheard-of", "a", "<unheard>"]]
    smoothing = data.draw(st.sampled_from([*DISTRIBUTIONS]))
    with new_store(order, 2) as store:
        store.train(sentences, threads=1)
        with store.model(smoothing, threads=data.draw(st.integers(1, 3))) as model:
            found = model.measure(text)
            known = set(store.vocabulary) | {"</s>"}
            places, pairs = [], []
            for sentence in text:
                words = ["<s>", *sentence, "</s>"]
                for i in range(1, len(words)):
                    (after,) = model.next([words[:i]], None)
                    ranked = [word for word in after.words if word not in ("<s>", "<unk>")]
                    places.append(ranked.index(words[i]) + 1 if words[i] in ranked else 0)
                    pairs.append((words[i] if words[i] in known else "<unk>", ranked[0] if ranked else None))
            assert model.evaluate(text) == found.score
    n = len(places)
    assert found.accuracy == {k: pytest.approx(sum(0 < place <= k for place in places) / n) for k in (1, 5, 10)}
    assert found.mean_reciprocal_rank == pytest.approx(sum(1 / place for place in places if place) / n)
    assert found.oov_rate == sum(true == "<unk>" for true, _ in pairs) / n
    scores = []
    for word in {word for pair in pairs for word in pair if word is not None}:
        right = sum(pair == (word, word) for pair in pairs)
        true, predicted = sum(pair[0] == word for pair in pairs), sum(pair[1] == word for pair in pairs)
        scores.append((right / predicted if predicted else 0, right / true if true else 0, 2 * right / (true + predicted)))
    assert found.macro == pytest.approx(tuple(np.mean(scores, axis=0)))
    if not found.score.zero_probability_tokens:
        assert found.cross_entropy_bits == pytest.approx(-found.score.log10_probability / n / math.log10(2), abs=1e-12)


def test_larger_counts(small):
    """Counts of 255 and more, which have no code, count in full."""
    with open_store(small) as store:
        for smoothing in DISTRIBUTIONS:
            model = load_following(store, smoothing, threads=1)
            check_answers(model, [["the", "cat"], ["cat"], ["the"], ["a"], ["<s>", "a"]], smoothing)
        found = next(load_following(store, "mle", threads=1).next_words([["the", "cat"]], 3))
    assert found.words == ["sat", "ran", "</s>"]
    assert found.probabilities.tolist() == [300 / 557, 256 / 557, 1 / 557]


def test_empty_store(tmp_path):
    """Before there is text, modified Kneser-Ney shares out between </s> and <unk>, and MLE knows no word."""
    with kvps.create(tmp_path / "s", order=3) as store, store.model() as model, store.model("mle") as mle:
        assert model.next(["a", []], None)[0].words == ["</s>", "<unk>"]
        assert model.next("a", None).cumulative.tolist() == [0.5, 1]
        assert mle.next("a").words == []


def test_file_is_made_once_and_anew(small, tmp_path):
    """The file lies with the models, is found again, follows the store, and a model that is older says so."""
    shutil.copytree(small, tmp_path / "s")
    with kvps.open(tmp_path / "s") as store, store.model() as model:
        assert model.next("the").words[0] == "cat"
        (path,) = (tmp_path / "s" / "models").glob("kn-o3-next-v1.kvm")
        made = path.stat().st_mtime_ns
        with store.model() as other, store.model(exact=True) as third:
            assert other.next("the").words == third.next("the").words == model.next("the").words
        assert path.stat().st_mtime_ns == made
        with store.model() as late:
            store.update(["the zebra"] * 9, threads=1)
            assert model.next("the").words[0] == "cat"
            with pytest.raises(StoreError, match="version 1 answers, and the store has version 2; refresh"):
                late.next("the")
            assert late.refresh()
            late_words = late.next("the").words
            assert "zebra" in late_words
        assert model.refresh() and sorted(model.next("the").words) == sorted(late_words)
        assert not path.exists()
    assert kvps.check(tmp_path / "s", "full") == []


def test_labels_have_their_own(tmp_path):
    """Next words of chosen labels are those of their text alone."""
    with kvps.create(tmp_path / "s", order=2) as store:
        store.update(["the cat"] * 3, label="x", threads=1)
        store.update(["the dog"] * 3, label="y", threads=1)
        for labels, expected in ((["x"], {"cat"}), (["y"], {"dog"}), (["x", "y"], {"cat", "dog"})):
            with store.model("mle", labels=labels) as model:
                assert set(model.next("the").words) == expected


def test_damage_is_refused(small, tmp_path):
    """Whichever byte of the file is damaged, answers are right or refused, and a file that cannot be opened is made again."""
    shutil.copytree(small, tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        contexts = [["the", "cat"], ["a"], []]
        expected = [(found.words, found.probabilities.tolist()) for found in load_following(store).next_words(contexts, None)]
        path, listing = cache.ensure(store), cache.ensure(store, followers=True)
        whole, refused = listing.read_bytes(), 0
        for place in range(0, len(whole), 512):
            damaged = bytearray(whole)
            damaged[place + place // 512 % 64 if place + 64 < len(whole) else place] ^= 0x55
            listing.unlink()
            listing.write_bytes(damaged)
            try:
                found = FollowingModel(path, listing).next_words(contexts, None)
                assert [(row.words, row.probabilities.tolist()) for row in found] == expected
            except CorruptionError as error:
                assert str(listing) in str(error)
                refused += 1
        assert refused > 10
        listing.unlink()
        listing.write_bytes(whole[:-3])
        assert [row.words for row in load_following(store).next_words(contexts, None)] == [words for words, _ in expected]


def test_wide_columns(small):
    """Where contexts begin may take 8 bytes; and arrays that do not fit together are refused."""
    with open_store(small) as store:
        model, listing = load_following(store), cache.ensure(store, followers=True)
        _, arrays = container.read(listing)
        levels = [tuple(arrays.get(f"{name}.{depth}") for name in followers.COLUMNS) for depth in (1, 2)]
        wide = [tuple(np.array(column, np.uint64) if name in followers.STARTS and column is not None else column
                      for name, column in zip(followers.COLUMNS, level, strict=True)) for level in levels]
        rest = arrays["starts"], arrays["parts"], arrays["ranks"]
        twin, expected = Followers(3, wide, *rest), model.distribution(["the", "cat"])
        grounds = list(zip((model.ground, model.alone), model.by_ground, strict=True))
        with pytest.raises(ValueError, match="a workspace"):
            twin.distribution(Workspace(model.n_words), np.zeros(1, np.uint32), expected)
        twin.smooth(0, 0.0, model.discounts, 7.0, grounds)
        out = np.empty(model.n_words)
        twin.distribution(Workspace(model.n_words), np.array(model.ids_of(["the", "cat"]), np.uint32), out)
        assert out.tolist() == expected.tolist()

        for arguments in ((4, levels, *rest), (3, levels, *rest[:2], rest[2][1:]),
                          (3, [(levels[0][0][1:], *levels[0][1:]), levels[1]], *rest),
                          (3, levels, np.array([0, 99, 99], np.uint64), *rest[1:])):
            with pytest.raises(ValueError):
                Followers(*arguments)
        with pytest.raises(ValueError, match="words in order|in order|of"):
            twin.smooth(0, 0.0, model.discounts, 7.0, [(model.ground[1:], model.by_ground[0])] * 2)
        with pytest.raises(ValueError, match="room for"):
            twin.distribution(Workspace(model.n_words), np.zeros(1, np.uint32), np.empty(1))


def test_scores_are_refused(small):
    """Stupid back-off is no distribution, a context has no newline, and at least one word is asked for."""
    with kvps.load(small, "stupid-backoff") as model, pytest.raises(ArgumentError, match="not a distribution"):
        model.next("the")
    with kvps.load(small) as model:
        for wrong in (("a\nb",), ("a", 0)):
            with pytest.raises(ArgumentError):
                model.next(*wrong)


def test_stupid_backoff_ranks(small):
    """The kernel adds stupid back-off up to its scores too, for what only compares."""
    with open_store(small) as store:
        model = load_following(store, "stupid-backoff")
        for context in (["the", "cat"], ["zebra", "cat"], ["zebra"], ["cat", "zebra"]):
            vector = model.distribution(context)
            for word in ("sat", "ran", "dog", "</s>", "the"):
                assert vector[model.ids_of([word])[0]] == pytest.approx(10 ** model.log10(word, context), rel=1e-12)


def test_context_of():
    """A context is tokenised but for <s> at its beginning."""
    words = Tokenizer.from_spec("wordpunct", True)

    assert context_of("<s> The cat,", words) == ["<s>", "the", "cat", ","]
    assert context_of("The <s>", words) == ["the", "<", "s", ">"]
    assert context_of(" <s>", words) == ["<s>"] and context_of("", words) == []
    assert context_of("a  b\tc", Tokenizer.from_spec("whitespace")) == ["a", "b", "c"]

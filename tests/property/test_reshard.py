"""However n-grams are dealt to shards, by hash, by a table, split or dealt anew, nobody can tell from what a store says."""
import shutil
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stores import new_store

import kvps
from kvps._ngrams import count, key_width
from kvps._router import homes, shards_of
from kvps._runs import pack, unpack
from kvps._statistics import Walk
from kvps.errors import CorruptionError
from kvps.jobs import dealing
from kvps.lm import arpa, cache, listing
from kvps.lm.model import CompiledModel
from kvps.lm.walks import folded, split_sums
from kvps.ps import router
from kvps.store.directory import open_store

WORDS = ["a", "b", "c", "the", "of"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=10)
SHARDS = st.integers(1, 6)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=8, suppress_health_check=SLOW)
MANY = settings(max_examples=250, suppress_health_check=SLOW)
KINDS = ("modified-kneser-ney", "witten-bell")


def told(store):
    """Return everything that a store says of its counts and models, to the last bit."""
    with open_store(store.path) as opened:
        order = opened.identity["order"]
        dumps = [b"".join(listing.dump(opened, k, in_order=True, threads=1)) for k in range(1, order + 1)]
        unsorted = [sorted(b"".join(listing.dump(opened, k, threads=1)).split(b"\n")) for k in range(1, order + 1)]
        pieces = [[], []]
        for top, piece in zip((order, max(1, order - 1)), pieces, strict=True):
            arpa.export(opened, "-", order=top, threads=1, write=lambda block, piece=piece: piece.append(bytes(block)))
        grams = [" ".join(gram) for k in range(1, order + 1) for gram in reference.raw_counts([["a", "b", "a", "the"]], k)]
        scores = []
        for folder in cache.folders(opened):
            shutil.rmtree(folder, ignore_errors=True)      # a model of this version may be there, from other shards
        for smoothing in KINDS:
            kind = "kn" if "kneser" in smoothing else "raw"
            for exact in (False, True):
                model = CompiledModel(cache.ensure(opened, kind=kind, exact=exact, threads=1), smoothing)
                scores.append([model.log10_ngrams([tuple(gram.split()) for gram in grams]).tolist(), model.statistics])
        assert scores[0] == scores[1]
        assert scores[2] == scores[3]
        return dumps, unsorted, pieces, scores, listing.counts(opened, grams), listing.counts(opened, grams[-3:])


def is_sound(store):
    """Return whether a full look, which also tells whether each n-gram is where it belongs, finds nothing."""
    return kvps.check(store.path, "full") == []


LIVES = given(SENTENCES, SENTENCES, SENTENCES, st.integers(1, 5), SHARDS, SHARDS, st.sampled_from([0.0, 0.2, 0.5, 9.0]), st.data())


@FEW
@LIVES
def test_resharded_says_the_same(a, b, c, order, before, after, share, data):
    """Dumps, statistics, probabilities, ARPA files and counts are those of one shard, before and after, with what follows."""
    resharded_says_the_same(a, b, c, order, before, after, share, data)


@pytest.mark.slow
@MANY
@LIVES
def test_resharded_says_the_same_often(a, b, c, order, before, after, share, data):
    """So it is for many more texts, orders, and numbers of shards."""
    resharded_says_the_same(a, b, c, order, before, after, share, data)


def resharded_says_the_same(a, b, c, order, before, after, share, data):
    """Compare with a store of one shard; then take text and a label away, add some, and compare again."""
    with new_store(order, before, share) as store, new_store(order, 1, share) as plain:
        for each in (store, plain):
            each.train(a, threads=1)
            each.update(b, label="mon", threads=1, again=True)
        expected = told(plain)
        assert told(store) == expected
        state, labels, history = store.version, store.labels, store.history()
        with mock.patch.object(dealing, "PART_KEYS", data.draw(st.integers(1, 40))):
            result = store.reshard(after, threads=data.draw(st.integers(1, 2)))

        assert (result["shards_before"], result["shards"], result["version"]) == (before, after, state)
        assert told(store) == expected
        assert (store.version, store.labels, store.history()) == (state, labels, history)
        assert is_sound(store)
        for each in (store, plain):
            each.forget(a, threads=1)
            each.update(c, threads=1, again=True)
            each.forget_labels(["mon"])
        assert told(store)[:-1] == told(plain)[:-1]
        assert is_sound(store)
        store.reshard(before)
        assert store.counts(["a", "the"]) == plain.counts(["a", "the"])


@FEW
@given(SENTENCES, SENTENCES, st.integers(1, 5), st.integers(2, 6), st.sampled_from([0.0, 0.3]))
def test_the_order_of_text_decides_the_table_alone(a, b, order, shards, share):
    """Text in another order may be dealt otherwise; nothing that is said depends on it."""
    with new_store(order, shards, share) as one, new_store(order, shards, share) as other:
        one.train(a, threads=1)
        one.update(b, threads=1, again=True)
        other.train(b, threads=1)
        other.update(a, threads=1, again=True)
        assert told(one) == told(other)
        assert is_sound(one)
        assert is_sound(other)


# The kernels

@st.composite
def tables(draw, order, n_words):
    """Draw (number of shards, words dealt, their shards, words split)."""
    n_shards = draw(st.integers(1, 5))
    chosen = draw(st.lists(st.integers(1, n_words + 2), unique=True, max_size=8))
    n_split = draw(st.integers(0, len(chosen))) if order > 2 else 0
    words = chosen[n_split:]
    shards = [draw(st.integers(0, n_shards - 1)) for _ in words]
    return n_shards, np.array(words, np.uint32), np.array(shards, np.uint32), np.array(chosen[:n_split], np.uint32)


def shard_of(row, n_shards, words, shards, split):
    """The naive twin: the shard of a row of word ids in context order."""
    if row[0] in split.tolist():
        return reference.shard_of_pair(row[0], row[1], n_shards)
    dealt = dict(zip(words.tolist(), shards.tolist(), strict=True))
    return dealt.get(row[0], reference.shard_of_word(row[0], n_shards))


def counted(ids, order, bits, n_words, n_shards, home):
    """Return [(packed keys, counts)] of each shard."""
    width = key_width(order, bits)
    keys, scratch = np.empty(len(ids) * width, np.uint64), np.empty(len(ids) * width, np.uint64)
    counts = np.empty(len(ids), np.uint32)
    ends = count(ids, order, bits, n_words, n_shards, keys, scratch, counts, home).tolist()
    return [(keys[a * width:b * width], counts[a:b].astype(np.int64)) for a, b in zip([0, *ends], ends, strict=False)]


IDS = st.lists(st.lists(st.integers(3, 12), max_size=10), min_size=1, max_size=8).map(
    lambda sentences: np.array([i for sentence in sentences for i in (*sentence, 2)], np.uint32))


@given(IDS, st.integers(1, 8), st.integers(4, 32), st.integers(1, 60), st.data())
def test_batches_are_dealt_by_the_table(ids, order, bits, repeat, data):
    """Each shard gets the n-grams that the twin gives it, sorted, and together they are those of one shard."""
    ids = np.tile(ids, repeat)
    table = data.draw(tables(order, 13))
    home = homes(13, *table)
    (keys, counts), = counted(ids, order, bits, 13, 1, None)
    whole = Counter(dict(zip(map(tuple, unpack(keys, order, bits).tolist()), counts.tolist(), strict=True)))
    found = Counter()
    for shard, (keys, counts) in enumerate(counted(ids, order, bits, 13, table[0], home)):
        rows = [tuple(row) for row in unpack(keys, order, bits).tolist()]
        assert rows == sorted(set(rows))
        assert [shard_of(row, *table) for row in rows] == [shard] * len(rows)
        assert shards_of(keys, order, bits, home, table[0]).tolist() == [shard] * len(rows)
        found.update(dict(zip(rows, counts.tolist(), strict=True)))
    assert found == whole


def yielded(walks, top):
    """Return all that some walks add up to: values, counts of counts, hashes, rows, contexts with their totals."""
    unigrams = [sum(column).tolist() for column in zip(*(walk.unigram_values() for walk in walks), strict=True)]
    hashes, rows, contexts, ones = Counter(), Counter(), Counter(), Counter()
    for walk in walks:
        totals = list(map(tuple, walk.table.rows().tolist()))
        ngrams, values, context_hashes, numbers = (part.tolist() for part in walk.take_hashes())
        hashes.update(zip(ngrams, values, strict=True))
        hashes.update((each, totals[number]) for each, number in zip(context_hashes, numbers, strict=True))
        for k in range(2, top + 1):
            rows.update((tuple(row), n) for row, n in zip(*(part.tolist() for part in walk.take_rows(k)), strict=True))
            contexts.update((tuple(row), totals[n]) for row, n in zip(*(part.tolist() for part in walk.take_contexts(k - 1)),
                                                                      strict=True))
        ones.update((word, totals[n - 1]) for word, n in enumerate(walk.unigram_context_numbers().tolist()) if n)
    return unigrams, sum(walk.counts_of_counts() for walk in walks).tolist(), hashes, rows, contexts, ones


@given(IDS, st.integers(1, 6), st.booleans(), st.data())
@example(np.array([3, 3, 3, 2], np.uint32), 3, False, None)
def test_walks_of_split_words_add_up(ids, order, raw, data):
    """The walks of all shards, and the one over what they set aside, yield together what one walk over one shard does."""
    bits, top = 5, data.draw(st.integers(1, order)) if data else order
    none = np.empty(0, np.uint32)
    table = data.draw(tables(order, 13)) if data else (3, none, none, np.array([3], np.uint32))

    def walk(parts, split):
        options = {"raw": raw, "hashes": True, "rows_of": tuple(range(2, top + 1)), "contexts": True}
        walks = []
        for keys, counts in parts:
            walks.append(Walk(order, top, bits, 13, split=split, **options))
            walks[-1].feed(keys, counts)
            walks[-1].finish()
        return [*walks, folded(walks, Walk(order, top, bits, 13, **options))]

    whole = counted(ids, order, bits, 13, 1, None)
    parts = counted(ids, order, bits, 13, table[0], homes(13, *table))
    assert yielded(walk(parts, table[3]), top) == yielded(walk(whole, ()), top)


@given(IDS, st.integers(2, 6), st.data())
def test_estimates_of_split_words_are_the_same(ids, order, data):
    """Probabilities and back-offs of shards with split words are to the last bit those of one shard."""
    bits, top = 5, data.draw(st.integers(2, order))
    table = data.draw(tables(order, 13))
    discounts, p = np.tile([0.0, 0.25, 0.5, 0.75], (top + 1, 1)), np.full(13, 1 / 13)

    def estimated(parts, split):
        walks = [Walk(order, top, bits, 13, split=split) for _ in parts]
        for one, part in zip(walks, parts, strict=True):
            one.feed(*part)
            one.finish()
        sums, found, backoffs = split_sums(walks), [], 0
        for part in [*parts, None]:
            one = Walk(order, top, bits, 13, split=split if part else ())
            one.estimate(discounts, p, np.arange(13, dtype=np.uint32), *sums)
            if part:
                one.feed(*part)
                one.finish()
            else:
                one.fold(*sums)
            found += [(k, which, array.tolist()) for k in range(2, top + 1) for which, array in enumerate(one.take_estimates(k))]
            backoffs = backoffs + one.unigram_backoffs_log10()
        every = Counter()
        for k, which, numbers in found:
            width = 1 if k * bits + 32 <= 64 else 2 if k * bits + 32 <= 128 else 4
            every.update((k, which, *numbers[i:i + width]) for i in range(0, len(numbers), width))
        return every, backoffs.tolist()

    assert estimated(counted(ids, order, bits, 13, table[0], homes(13, *table)), table[3]) \
        == estimated(counted(ids, order, bits, 13, 1, None), ())


def test_a_word_beyond_the_vocabulary_has_no_shard():
    """Keys with words that nobody knows are refused, and so are numbers that do not fit each other."""
    none = np.empty(0, np.uint32)
    home = homes(5, 2, none, none, none)
    with pytest.raises(CorruptionError, match="a word beyond the 5 of the vocabulary"):
        shards_of(pack(np.array([[1, 4], [5, 3]], np.uint32), 8), 2, 8, home, 2)
    with pytest.raises(ValueError, match="1 words and 0 of 2 shards"):
        homes(5, 2, np.array([3], np.uint32), none, none)
    with pytest.raises(ValueError, match="1 of them split"):
        counted(np.array([3, 2], np.uint32), 2, 8, 5, 2, homes(5, 2, none, none, np.array([3], np.uint32)))


@given(st.lists(st.integers(0, 300), min_size=4, max_size=60), st.integers(2, 9), st.integers(2, 5))
def test_a_plan_is_even(weights, n_shards, order):
    """No two shards differ by more than what cannot be dealt: the heaviest word; split words are those that are too heavy."""
    weights = np.array(weights, np.int64)
    table = router.plan(weights, n_shards, order, lambda split: np.full(n_shards, int(weights[split].sum()) // n_shards))
    if not weights.any():
        assert table is None
        return
    split = set(table["split"])
    share = max(router.MIN_SPLIT, router.SPLIT_ABOVE * weights.sum() / n_shards)
    assert split == ({i for i, n in enumerate(weights.tolist()) if n > share and i != 1} if order > 2 else set())
    loads = np.zeros(n_shards)
    for word, shard in table["words"]:
        loads[shard] += weights[word]
    assert sorted([word for word, _ in table["words"]] + table["split"]) == np.flatnonzero(weights).tolist()
    assert loads.max() - loads.min() <= max((int(weights[word]) for word, _ in table["words"]), default=0)

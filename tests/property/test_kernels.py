"""The kernels against naive twins on random input: counting, runs and their merge, the walk, words, sorting."""
from collections import Counter

import numpy as np
import reference
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kvps._arpa import pack_text_keys, sort_text_keys
from kvps._ngrams import count, key_width
from kvps._runs import Merge, encode, encoded_room, first_key, pack, unpack
from kvps._statistics import Walk
from kvps._vocabulary import FrozenWords, WordTable, encode_frozen
from kvps._vocabulary import encode as encode_text
from kvps.errors import CorruptionError

COUNT = st.one_of(st.integers(-20, 20), st.integers(-2**40, 2**40), st.sampled_from([2**61, -2**61])).filter(bool)


@st.composite
def shapes(draw):
    """Draw (order, bits, strategy of words): few words, all of them, or the greatest."""
    order, bits = draw(st.integers(1, 8)), draw(st.sampled_from([2, 3, 7, 8, 13, 16, 21, 31, 32]))
    top = 2**bits - 1
    return order, bits, draw(st.sampled_from([st.integers(0, min(3, top)), st.integers(max(0, top - 3), top), st.integers(0, top)]))


@st.composite
def runs(draw, least=0, most=4):
    """Draw (order, bits, [{row: count}])."""
    order, bits, words = draw(shapes())
    rows = st.tuples(*[words] * order)
    return order, bits, draw(st.lists(st.dictionaries(rows, COUNT, max_size=60), min_size=least, max_size=most))


def chunks_of(counts, order, bits, chunk_bytes=4096, negate=False):
    """Return the chunks of {row: count}."""
    rows = sorted(counts)
    out = np.empty(encoded_room(len(rows)), np.uint8)
    return encode(pack(np.array(rows, np.uint32).reshape(-1, order), bits),
                  np.array([counts[row] for row in rows], np.int64), order, bits, chunk_bytes, out, negate=negate)


def read(sources, order, bits, room=7):
    """Return [(row, count)] of the merge of runs, each a list of chunks; CorruptionError for what is no run."""
    width = key_width(order, bits)
    merge = Merge(len(sources), order, bits, lambda run, i: sources[run][i] if i < len(sources[run]) else None,
                  lambda run, i, reason: CorruptionError(reason))
    keys, counts, found = np.empty(room * width, np.uint64), np.empty(room, np.int64), []
    while n := merge.read(keys, counts):
        found += zip(map(tuple, unpack(keys[:n * width], order, bits).tolist()), counts[:n].tolist(), strict=True)
    return found


@given(runs(1, 1), st.booleans())
def test_decode_of_encode(drawn, negate):
    """What is encoded comes back, in key order, with its counts or their opposites, and chunks know their first key."""
    order, bits, (counts,) = drawn
    chunks = chunks_of(counts, order, bits, negate=negate)

    assert read([chunks], order, bits) == [(row, -counts[row] if negate else counts[row]) for row in sorted(counts)]
    assert not chunks or first_key(chunks[0][0], order) == min(counts)


@given(runs(), st.integers(1, 70), st.integers(0, 2))
def test_merge_is_addition(drawn, room, more_bits):
    """The merge of runs is the sum of Counters, zeros left out, for any length of blocks and any greater width of words."""
    order, bits, several = drawn
    total = Counter()
    for counts in several:
        total.update(counts)
    assume(all(abs(n) <= 2**62 for n in total.values()))
    partial = Counter()
    for counts in several:                     # no sum on the way is beyond the limit either, in whatever order
        partial.update({row: abs(n) for row, n in counts.items()})
    assume(all(n <= 2**62 for n in partial.values()))

    sources = [chunks_of(counts, order, bits) for counts in several]
    assert read(sources, order, min(32, bits + 5 * more_bits), room) == sorted((row, n) for row, n in total.items() if n)


@settings(max_examples=20)
@given(shapes(), st.integers(0, 6000), st.sampled_from([4096, 5000, 65536, 262_000]), st.integers(0, 2**32 - 1))
def test_chunks_of_many_keys(shape, n, chunk_bytes, seed):
    """Thousands of keys fall into chunks of bounded length that a merge reads as one run, from any chunk on."""
    order, bits, _ = shape
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, 2**bits, (n, order), np.uint32) >> rng.integers(0, bits, dtype=np.uint32), axis=0)
    counts = rng.integers(1, 40, len(rows))
    out = np.empty(encoded_room(len(rows)), np.uint8)
    chunks = encode(pack(rows, bits), counts, order, bits, chunk_bytes, out)

    assert all(len(payload) <= chunk_bytes for payload, _ in chunks)
    expected = list(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    assert read([chunks], order, bits, 1000) == expected
    start = 0
    for i, (payload, n_keys) in enumerate(chunks):
        assert first_key(payload, order) == expected[start][0]
        if i in (1, len(chunks) - 1):
            assert read([chunks[i:]], order, bits, 1000) == expected[start:]
        start += n_keys


@settings(max_examples=300)
@given(st.integers(1, 8), st.sampled_from([2, 8, 17, 32]), st.lists(st.tuples(st.binary(max_size=200), st.integers(-1, 3000)),
                                                                   max_size=3), st.data())
def test_decoding_any_bytes(order, bits, payloads, data):
    """Any bytes are sorted keys below the width of words, or damage; reading them ends either way."""
    if payloads and data.draw(st.booleans()):
        # With a trailer that fits, so that the entries are looked at.
        payloads = [(body + b"\0\0\0\0" + b"\1\0\0\0", max(1, min(n, 1024))) for body, n in payloads]
    for payload, _ in payloads:
        key = first_key(payload, order)
        assert key is None or len(key) == order
    try:
        found = read([payloads], order, bits)
    except CorruptionError:
        return

    assert [row for row, _ in found] == sorted({row for row, _ in found})
    assert all(0 <= word < 2**bits for row, _ in found for word in row)


@settings(max_examples=200)
@given(runs(1, 1), st.data())
@example((2, 8, [{(3, 4): 1, (3, 5): 2}]), None)
def test_decoding_a_flipped_byte(drawn, data):
    """A run with one byte changed is read as sorted keys, or is damage; it never crashes."""
    order, bits, (counts,) = drawn
    chunks = chunks_of(counts, order, bits)
    assume(chunks)
    payload = bytearray(chunks[0][0])
    places = range(len(payload)) if data is None else [data.draw(st.integers(0, len(payload) - 1))]
    for place in places:
        broken = payload.copy()
        broken[place] ^= 255 if data is None else data.draw(st.integers(1, 255))
        try:
            found = read([[(bytes(broken), chunks[0][1]), *chunks[1:]]], order, bits)
        except CorruptionError:
            continue
        assert [row for row, _ in found] == sorted({row for row, _ in found})


# ---- counting and the walk

SENTENCES = st.lists(st.lists(st.integers(3, 12), max_size=12), min_size=1, max_size=8)


def windows(sentences, order):
    """Return the Counter of keys: reversed context padded with <s>, and the word."""
    keys = Counter()
    for sentence in sentences:
        tokens = [*sentence, 2]
        for i, word in enumerate(tokens):
            context = ([1] * order + tokens[:i])[::-1][:order - 1]
            keys[(*context, word)] += 1
    return keys


def counted(sentences, order, bits, n_words, n_shards):
    """Return [(packed keys, counts)] of each shard."""
    ids = np.array([i for sentence in sentences for i in (*sentence, 2)], np.uint32)
    width = key_width(order, bits)
    keys, scratch = np.empty(len(ids) * width, np.uint64), np.empty(len(ids) * width, np.uint64)
    counts = np.empty(len(ids), np.uint32)
    ends = count(ids, order, bits, n_words, n_shards, keys, scratch, counts).tolist()
    return [(keys[a * width:b * width], counts[a:b].astype(np.int64)) for a, b in zip([0, *ends], ends, strict=False)]


@given(SENTENCES, st.integers(1, 8), st.integers(4, 32), st.integers(1, 6), st.integers(1, 60))
def test_counting_is_a_counter(sentences, order, bits, n_shards, repeat):
    """A batch counts its windows; shards are sorted and part by the routing word; repeats are more of the same."""
    found = Counter()
    router_of = {}
    for shard, (keys, counts) in enumerate(counted(sentences * repeat, order, bits, 13, n_shards)):
        rows = [tuple(row) for row in unpack(keys, order, bits).tolist()]
        assert rows == sorted(set(rows))
        found.update(dict(zip(rows, counts.tolist(), strict=True)))
        for row in rows:
            assert router_of.setdefault(row[0], shard) == shard

    assert found == Counter({key: n * repeat for key, n in windows(sentences, order).items()})


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([1.1, 1.5, 3.0]))
def test_counting_a_longer_batch(order, n_shards, seed, skew):
    """A batch with buckets of many words and words with many buckets is counted like a Counter too."""
    rng = np.random.default_rng(seed)
    words = np.minimum(rng.zipf(skew, 4000), 60_000) + 2
    sentences = [part.tolist() for part in np.split(words, np.sort(rng.integers(0, 4000, 200)))]
    found = Counter()
    for keys, counts in counted(sentences, order, 17, 60_003, n_shards):
        rows = [tuple(row) for row in unpack(keys, order, 17).tolist()]
        assert rows == sorted(set(rows))
        found.update(dict(zip(rows, counts.tolist(), strict=True)))

    assert found == windows(sentences, order)


@given(SENTENCES, st.data())
def test_walk_is_the_reference(sentences, data):
    """A walk gives each order's adjusted or raw counts, its counts of counts and its contexts' totals, as in plain Python.

    For every order of the store, highest order wanted, width of words, number of shards, and split into blocks.
    """
    order = data.draw(st.integers(1, 8))
    top, raw = data.draw(st.integers(1, order)), data.draw(st.booleans())
    bits, n_shards = data.draw(st.integers(4, 32)), data.draw(st.integers(1, 3))
    block = data.draw(st.integers(1, 40))
    values = {k: {} for k in range(1, top + 1)}
    totals, statistics, hashed = {}, np.zeros((9, 5), np.uint64), Counter()
    unigrams = raw_words = 0
    for keys, counts in counted(sentences, order, bits, 13, n_shards):
        walk = Walk(order, top, bits, 13, raw=raw, hashes=True, rows_of=tuple(range(2, top + 1)), contexts=True)
        width = key_width(order, bits)
        for start in range(0, len(counts), block):
            walk.feed(keys[start * width:(start + block) * width], counts[start:start + block])
        walk.finish()
        value, raw_word = walk.unigram_values()
        unigrams, raw_words = unigrams + value, raw_words + raw_word
        statistics += walk.counts_of_counts()
        hashed.update(walk.take_hashes()[1].tolist())
        for k in range(2, top + 1):
            rows, found = walk.take_rows(k)
            for row, n in zip(rows.tolist(), found.tolist(), strict=True):
                gram = (*row[-2::-1], row[-1])
                assert gram not in values[k]
                values[k][gram] = n
        for d in range(1, top):
            rows, numbers = walk.take_contexts(d)
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                assert tuple(row[::-1]) not in totals
                totals[tuple(row[::-1])] = walk.table.rows()[number].tolist()
    values[1] = {(i,): n for i, n in enumerate(unigrams.tolist()) if n}

    named = [[str(i) for i in sentence] for sentence in sentences]
    ids = {"<s>": 1, "</s>": 2}
    twin = {k: reference.raw_counts(named, k) for k in range(1, top + 1)} if raw else reference.adjusted_counts(named, top)
    expected = {k: {tuple(ids.get(w) or int(w) for w in gram): n for gram, n in grams.items() if gram not in (("<s>",), ("<unk>",))}
                for k, grams in twin.items()}
    assert values == expected
    assert {i: n for i, n in enumerate(raw_words.tolist()) if n} == Counter(i for s in sentences for i in (*s, 2))
    below = {}
    for k in range(2, top + 1):
        of_k = list(expected[k].values())
        assert statistics[k].tolist() == [len(of_k), *(of_k.count(n) for n in (1, 2, 3, 4))]
        for gram, n in expected[k].items():
            sums = below.setdefault(gram[:-1], [0, 0, 0, 0])
            sums[0] += n
            sums[min(n, 3)] += 1
    assert totals == below
    assert hashed == Counter(n for k in range(2, top + 1) for n in expected[k].values())


# ---- words and rows

@given(st.lists(st.binary(max_size=40), max_size=60), st.data())
def test_word_table_is_a_dict(words, data):
    """A table gives each word the number of words before it, and a frozen one knows just those marked alive."""
    table, twin = WordTable(), {}
    for word in words:
        assert table.add(word) == twin.setdefault(word, len(twin))
    assert [table.word(i) for i in range(len(table))] == list(twin)

    alive = np.array([data.draw(st.booleans()) for _ in twin], np.uint8)
    frozen = FrozenWords(*table.frozen(alive))
    for word, i in twin.items():
        assert frozen.get(word) == (i if alive[i] else None)
        assert frozen.word(i) == (word if alive[i] else b"")
    copy = WordTable()
    lengths, blob = table.slice(0)
    copy.load(lengths, np.frombuffer(blob, np.uint8))
    assert [copy.word(i) for i in range(len(copy))] == list(twin)


TEXT = st.lists(st.sampled_from([b"a", b"bb", b"\xc3\xa9", b"long" * 9, b" ", b"\n", b"\0", b"\t", b"\r", b"\x0b", b"\xc2\xa0"]),
                max_size=300).map(b"".join)


@given(st.lists(TEXT, max_size=3), TEXT)
def test_text_to_ids_is_the_reference(texts, heldout):
    """Texts become the ids of the words that lmplz reads in them, new ones numbered as they come; unknown ones <unk>."""
    table, twin = WordTable(), {}
    for word in (b"<unk>", b"<s>", b"</s>"):
        twin[word] = table.add(word)
    for text in texts:
        room = np.empty(len(text) + 1, np.uint32)
        n, n_sentences, reserved = encode_text(table, np.frombuffer(text, np.uint8), room)
        sentences = reference.read_sentences(text)
        expected = [twin.setdefault(word.encode(), len(twin)) if word != "</s>" else 2
                    for sentence in sentences for word in (*sentence, "</s>")]
        assert (room[:n].tolist(), n_sentences, reserved) == (expected, len(sentences), -1)

    frozen = FrozenWords(*table.frozen(np.ones(len(table), np.uint8)))
    room = np.empty(2 * len(heldout) + 2, np.uint32)
    n, _ = encode_frozen(frozen, np.frombuffer(heldout, np.uint8), room)
    assert room[:n].tolist() == [i for sentence in reference.read_sentences(heldout)
                                 for i in (1, *(twin.get(word.encode(), 0) for word in sentence), 2)]


@given(st.integers(1, 8), st.integers(2, 28), st.lists(st.lists(st.integers(0, 2**28 - 1), min_size=9, max_size=9), max_size=90))
def test_text_keys_are_sorted(k, bits, rows):
    """Keys in text order are sorted by their words, one after the other, and then by their number."""
    rows = [[number % 2**bits for number in row] for row in rows]
    table = np.array(rows, np.uint32).reshape(-1, 9)
    keys = pack_text_keys(np.ascontiguousarray(table[:, :k]), np.ascontiguousarray(table[:, 8]), bits)
    sort_text_keys(keys, k, bits)
    ordered = sorted(row[:k] + row[8:] for row in rows)

    expected = np.array(ordered, np.uint32).reshape(-1, k + 1)
    assert keys.tolist() == pack_text_keys(
        np.ascontiguousarray(expected[:, :k]), np.ascontiguousarray(expected[:, k]), bits).tolist()

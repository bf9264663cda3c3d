"""Each kernel does what its docstring says, edges first: orders 1 and 8, 32 bits, one word, nothing at all."""
import functools
import gc
import os
import re
import tempfile
import threading
from collections import Counter

import numpy as np
import pytest
from reference import mix

from kvps._arpa import Strings, arpa_lines, count_lines, pack_text_keys, sort_text_keys, text_key_width
from kvps._buckets import fill, slots_per_bucket
from kvps._counted import CountTables
from kvps._given import SLOTS, GivenTables, link
from kvps._given import fill as given_fill
from kvps._model import histories
from kvps._ngrams import count, key_width
from kvps._runs import Merge, encode, encoded_room, first_key, pack, unpack
from kvps._spill import Spill
from kvps._statistics import Walk, chain_start
from kvps._text import join_lines
from kvps._totals import TotalsTable
from kvps._vocabulary import FrozenWords, WordTable, encode_frozen
from kvps._vocabulary import encode as encode_text
from kvps.errors import CorruptionError

BIG = 2**32 - 1                # the greatest word id that 32 bits hold


def table_of(*words):
    """Return a word table with the specials and some words."""
    table = WordTable()
    for word in (b"<unk>", b"<s>", b"</s>", *words):
        table.add(word)
    return table


def ids_of(table, text, **options):
    """Return (ids, sentences, place of a reserved word) of a text."""
    room = np.full(len(text) + 1, 7777, np.uint32)
    n, sentences, reserved = encode_text(table, np.frombuffer(text, np.uint8), room, **options)
    return room[:n].tolist(), sentences, reserved


def counted(ids, order, bits, n_words, n_shards=1):
    """Return [(key as a row of words, count)] of each shard, in the order of the kernel."""
    width = key_width(order, bits)
    keys, scratch = np.empty(len(ids) * width, np.uint64), np.empty(len(ids) * width, np.uint64)
    counts = np.empty(len(ids), np.uint32)
    ends = count(np.array(ids, np.uint32), order, bits, n_words, n_shards, keys, scratch, counts)
    shards, start = [], 0
    for end in ends.tolist():
        rows = unpack(keys[start * width:end * width], order, bits)
        shards.append(list(zip(map(tuple, rows.tolist()), counts[start:end].tolist(), strict=True)))
        start = end
    return shards


def encoded(rows, counts, bits, chunk_bytes=4096, negate=False):
    """Return the chunks of sorted rows."""
    rows = np.array(rows, np.uint32)
    out = np.empty(encoded_room(len(rows)), np.uint8)
    return encode(pack(rows, bits), np.array(counts, np.int64), rows.shape[1], bits, chunk_bytes, out, negate=negate)


def merged(runs, order, bits, room=5):
    """Return [(row, count)] of the sum of runs, each a list of chunks."""
    width = key_width(order, bits)
    merge = Merge(len(runs), order, bits, lambda run, i: runs[run][i] if i < len(runs[run]) else None,
                  lambda run, i, reason: CorruptionError(f"run {run} chunk {i}: {reason}"))
    keys, counts, found = np.empty(room * width, np.uint64), np.empty(room, np.int64), []
    while n := merge.read(keys, counts):
        found += zip(map(tuple, unpack(keys[:n * width], order, bits).tolist()), counts[:n].tolist(), strict=True)
    return found


# ---- vocabulary

def test_words_keep_their_ids():
    """A word's id is its place of insertion; adding it again changes nothing; its bytes come back whatever they are."""
    words = [bytes([i]) * n for n in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 300) for i in (0, 65, 255)] + [b""]
    table = WordTable()

    assert [table.add(word) for word in words] == list(range(len(words)))
    assert [table.add(word) for word in words] == [table.get(word) for word in words] == list(range(len(words)))
    assert [table.word(i) for i in range(len(table))] == words
    assert table.get(b"absent") is None
    for i in (-1, len(words)):
        with pytest.raises(IndexError):
            table.word(i)


def test_table_grows():
    """Tens of thousands of words, through every growth of the table, are all found again."""
    table = WordTable()
    words = [str(i * i).encode() for i in range(40_000)]
    for word in words:
        table.add(word)

    assert len(table) == len(words)
    assert [table.get(word) for word in words] == list(range(len(words)))


def test_slice_and_load():
    """What slice gives from any word on, load takes: the tables are equal."""
    table = table_of(b"a", b"", b"longer than eight bytes")
    for first in range(len(table) + 1):
        other = WordTable()
        for i in range(first):
            other.add(table.word(i))
        lengths, blob = table.slice(first)
        other.load(lengths, np.frombuffer(blob, np.uint8))
        assert [other.word(i) for i in range(len(other))] == [table.word(i) for i in range(len(table))]


def test_words_in_another_order():
    """A table in another order has the same words, each at its new place; an order that is none is refused."""
    table = table_of(b"a", b"longer than eight", b"b")
    order = np.array([0, 1, 2, 5, 3, 4], np.uint32)
    other = table.in_order(order)

    assert [other.word(i) for i in range(6)] == [table.word(i) for i in order]
    assert [other.get(word) for word in (b"<unk>", b"b", b"a", b"longer than eight", b"c")] == [0, 3, 4, 5, None]
    assert [table.word(i) for i in range(3, 6)] == [b"a", b"longer than eight", b"b"]
    with pytest.raises(ValueError, match="5 places for 6 words"):
        table.in_order(order[1:])
    with pytest.raises(IndexError, match="word 6 of 6"):
        table.in_order(order + np.uint32(1))


def test_frozen_words():
    """A frozen table finds the words marked alive and no others; ids stay."""
    table = table_of(b"a", b"gone", b"b")
    frozen = FrozenWords(*table.frozen(np.array([1, 1, 1, 1, 0, 1], np.uint8)))

    assert len(frozen) == 6
    assert [frozen.get(word) for word in (b"<unk>", b"</s>", b"a", b"gone", b"b", b"")] == [0, 2, 3, None, 5, None]
    assert frozen.word(5) == b"b"
    assert frozen.word(4) == b""
    with pytest.raises(IndexError):
        frozen.word(6)


def test_frozen_words_that_cannot_be():
    """Slots that are no power of two are refused: look-ups would not end. A slot is two numbers."""
    for slots in (0, 1, 3, 6, 9, 12):
        with pytest.raises(ValueError, match="power of two"):
            FrozenWords(np.zeros(slots, np.uint64), np.zeros(1, np.uint64), np.zeros(1, np.uint8))


@pytest.mark.parametrize(("text", "sentences"), [
    (b"", []), (b"\n", [[]]), (b"\n\n", [[], []]), (b" ", [[]]), (b"\t\r\0 \n", [[]]), (b"a", [[b"a"]]), (b"a\n", [[b"a"]]),
    (b"a b\n\nc", [[b"a", b"b"], [], [b"c"]]), (b" a\0b\tc\rd  e ", [[b"a", b"b", b"c", b"d", b"e"]]),
    (b"a\x0bb \x0c \x85 \xa0", [[b"a\x0bb", b"\x0c", b"\x85", b"\xa0"]]), (b"a\n ", [[b"a"], []]),
    (b"x " * 63 + b"\n", [[b"x"] * 63]), (b"x " * 64 + b"\n\n", [[b"x"] * 64, []]), (b"x " * 65, [[b"x"] * 65])])
def test_text_to_ids(text, sentences):
    """Four bytes separate words, a newline ends a sentence, and a last line without one is a sentence too."""
    table = table_of()
    ids, n, reserved = ids_of(table, text)
    found, sentence = [], []
    for i in ids:
        if i == 2:
            found, sentence = [*found, sentence], []
        else:
            sentence.append(table.word(i))

    assert (found, n, reserved, sentence) == (sentences, len(sentences), -1, [])
    frozen = FrozenWords(*table.frozen(np.ones(len(table), np.uint8)))
    room = np.empty(2 * len(text) + 2, np.uint32)
    n_ids, n = encode_frozen(frozen, np.frombuffer(text, np.uint8), room)
    assert n == len(sentences)
    assert room[:n_ids].tolist() == [i for words in sentences for i in (1, *map(table.get, words), 2)]


def test_reserved_words():
    """<unk>, <s> and </s> in a text are told with their place, before any word is added, or skipped."""
    table = table_of(b"a")
    assert ids_of(table, b"a new <s>b <s> c")[2] == 11
    assert len(table) == 4                     # "new" and "<s>b" were not added
    for word in (b"<unk>", b"<s>", b"</s>"):
        assert ids_of(table, b"a\n " + word)[2] == 3
    assert ids_of(table, b"a <s>\n</s> a <unk>", skip_reserved=True) == ([3, 2, 3, 2], 2, -1)


def test_unknown_words_are_unk():
    """When scoring, unknown and reserved words are <unk>, and nothing is added."""
    frozen = FrozenWords(*table_of(b"a").frozen(np.ones(4, np.uint8)))
    room = np.empty(60, np.uint32)
    n, _ = encode_frozen(frozen, np.frombuffer(b"a zz <s>\n</s> <unk>", np.uint8), room)

    assert room[:n].tolist() == [1, 3, 0, 0, 2, 1, 0, 0, 2]


def test_room_for_ids_is_checked():
    """Too little room for the ids is refused before anything is written."""
    frozen = FrozenWords(*table_of().frozen(np.ones(3, np.uint8)))
    text = np.frombuffer(b"\n\n\n", np.uint8)
    with pytest.raises(ValueError, match="room"):
        encode_text(table_of(), text, np.empty(3, np.uint32))
    with pytest.raises(ValueError, match="room"):
        encode_frozen(frozen, text, np.empty(7, np.uint32))


def test_many_new_words_in_one_text():
    """More new words in one text than its table of them first has room for get the ids of their order."""
    words = [f"word{i % 5000}".encode() for i in range(12_000)]
    ids, _, _ = ids_of(table_of(), b" ".join(words))

    assert ids == [3 + i % 5000 for i in range(12_000)] + [2]


def test_threads_add_words_at_once():
    """Threads that encode at the same time agree on every id."""
    table, texts = table_of(), [b" ".join(b"%d" % (i * step % 7919) for i in range(20_000)) for step in (1, 3, 5, 7)]
    results = [None] * len(texts)

    def work(i):
        results[i] = ids_of(table, texts[i])[0]

    threads = [threading.Thread(target=work, args=[i]) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = [table.word(i) for i in range(len(table))]

    assert len(set(words)) == len(words) == 7919 + 3
    for text, ids in zip(texts, results, strict=True):
        assert b" ".join(words[i] for i in ids[:-1]) == text


# ---- n-grams

@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("bits", [3, 8, 9, 12, 16, 25, 32])
def test_windows_as_keys(order, bits):
    """Keys are the words before, nearest first, padded with <s>, and the word: at every order and width of words."""
    top = 2**bits - 1 if bits < 20 else 5
    keys = {}
    for key, n in counted([4, 2, 2, 4, top, 2], order, bits, 2**min(bits, 20))[0]:
        keys[key] = n

    def key(*words):
        context = ([1] * 8 + list(words[:-1]))[::-1][:order - 1]
        return (*context, words[-1])

    assert keys == Counter([key(4), key(4, 2), key(2), key(4), key(4, top), key(4, top, 2)])


def test_widths_of_keys():
    """Keys take 64, 128 or 256 bits, whichever is the first to hold them."""
    assert [key_width(1, 32), key_width(2, 32), key_width(8, 8), key_width(5, 13)] == [1, 1, 1, 2]
    assert [key_width(4, 32), key_width(8, 16), key_width(8, 17), key_width(5, 26), key_width(8, 32)] == [2, 2, 4, 4, 4]


def test_count_of_nothing():
    """No ids give no keys in any shard."""
    assert counted([], 3, 8, 10, 4) == [[], [], [], []]


def test_one_word_often():
    """A text of one word, in one bucket, is counted once per shard that has it."""
    (found,) = [shard for shard in counted([3] * 100_000 + [2], 2, 2, 4, 7) if dict(shard).get((3, 3))]
    assert dict(found)[3, 3] == 99_999


def test_more_shards_than_words():
    """Shards without a key are empty, and every key is in the shard of its router alone."""
    shards = counted([3, 4, 5, 2], 3, 3, 6, 1000)
    assert sum(map(len, shards)) == 4
    routers = [{key[0] for key, _ in shard} for shard in shards]
    assert sum(map(len, routers)) == 4         # <s>, 3, 4, 5


@pytest.mark.parametrize(("order", "bits", "n_words", "n_shards"), [
    (0, 8, 10, 1), (9, 8, 10, 1), (3, 1, 2, 1), (3, 33, 10, 1), (3, 3, 9, 1), (3, 8, 10, 0)])
def test_count_arguments(order, bits, n_words, n_shards):
    """Orders, bits, vocabularies and shards that cannot be are refused."""
    room = np.empty(64, np.uint64)
    with pytest.raises(ValueError, match="order"):
        count(np.array([3, 2], np.uint32), order, bits, n_words, n_shards, room, room.copy(), np.empty(64, np.uint32))


def test_count_room():
    """Too little room for keys, scratch or counts is refused."""
    ids = np.array([3, 2], np.uint32)
    for keys, scratch, counts in ((1, 2, 2), (2, 1, 2), (2, 2, 1)):
        with pytest.raises(ValueError, match="need"):
            count(ids, 2, 8, 4, 1, np.empty(keys, np.uint64), np.empty(scratch, np.uint64), np.empty(counts, np.uint32))


def test_word_table_in_a_loop_of_references():
    """A table that the garbage collector finds in a loop is freed without a word."""
    loop = [table_of(*(b"w%d" % i for i in range(5000)))]
    loop.append(loop)
    del loop
    gc.collect()                   # pytest makes an error of one that is ignored


# ---- runs

@pytest.mark.parametrize("order", range(1, 9))
def test_pack_and_unpack(order):
    """The least and the greatest words come back from packed keys of every width."""
    for bits in (2, 8, 16, 31, 32):
        rows = np.array([[0] * order, [2**bits - 1] * order, list(range(order))], np.uint32) & (2**bits - 1)
        assert unpack(pack(rows, bits), order, bits).tolist() == rows.tolist()


@pytest.mark.parametrize("order", range(1, 9))
def test_longest_entries(order):
    """Entries whose every varint is as long as can be fit into their chunks, and come back."""
    rows = [(*[BIG - 4000 + i] * (order - 1), BIG - 4000 + i) for i in range(3000)]
    counts = [(-1) ** i * (2**62 - i) for i in range(3000)]
    chunks = encoded(rows, counts, 32)

    assert all(len(payload) <= 4096 for payload, _ in chunks)
    assert sum(n for _, n in chunks) == 3000
    assert merged([chunks], order, 32) == list(zip(rows, counts, strict=True))


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 2048, 2049, 5000])
@pytest.mark.parametrize("chunk_bytes", [4096, 262_000])
def test_restarts(n, chunk_bytes):
    """Runs of any length around the restart interval come back, in small chunks and large."""
    rows = [(3 + i // 100, 3 + i % 100, 9) for i in range(n)]
    chunks = encoded(rows, [1 + i % 40 for i in range(n)], 20, chunk_bytes)

    assert merged([chunks], 3, 20, room=700) == [(row, 1 + i % 40) for i, row in enumerate(rows)]
    start = 0
    for payload, n_keys in chunks:
        assert first_key(payload, 3) == rows[start]
        start += n_keys


def test_counts_of_a_run():
    """Counts below zero, and those around one byte's, come back; with negate, as their opposites."""
    counts = [1, 14, 15, 16, 63, 64, -1, -15, -16, 2**31, -2**31, 2**32, 2**62, -2**62]
    rows = [(i,) for i in range(len(counts))]

    assert [n for _, n in merged([encoded(rows, counts, 8)], 1, 8)] == counts
    assert [n for _, n in merged([encoded(rows, counts, 8, negate=True)], 1, 8)] == [-n for n in counts]


def test_merge_of_nothing():
    """No runs, and runs without chunks, add up to nothing."""
    assert merged([], 3, 8) == []
    assert merged([[], []], 3, 8) == []
    assert encoded(np.empty((0, 3)), [], 8) == []


def test_counts_that_cancel_vanish():
    """A key whose counts add up to 0 is left out, wherever in the blocks it falls."""
    rows = [(i // 7, i) for i in range(3000)]
    plus, minus = encoded(rows, [5] * 3000, 16), encoded(rows, [-5] * 3000, 16)
    but = [i for i in range(3000) if i % 1000 == 999]
    half = encoded([rows[i] for i in but], [1] * len(but), 16)

    assert merged([plus, minus], 2, 16) == []
    assert merged([plus, half, minus], 2, 16) == [(rows[i], 1) for i in but]


def test_sum_beyond_the_limit():
    """A sum of counts beyond 2**62 is damage, not a wrong number."""
    for counts in ([2**62, 1], [-2**62, -1]):
        with pytest.raises(CorruptionError, match="beyond"):
            merged([encoded([(3,)], [n], 8) for n in counts], 1, 8)


def verified(chunks, order, bits, n_words=None):
    """Return how many keys a run has that holds together."""
    return Merge(1, order, bits, lambda run, i: chunks[i] if i < len(chunks) else None,
                 lambda run, i, reason: CorruptionError(f"run {run} chunk {i}: {reason}"), n_words=n_words).verify()


@pytest.mark.parametrize(("order", "bits"), [(1, 8), (2, 16), (5, 20), (5, 32), (8, 32)])
def test_verify_finds_what_a_merge_finds(order, bits, rng):
    """A run of random bytes changed is refused exactly where reading it is refused, or gives other ids or counts than it may."""
    n_words = 200
    rows = sorted({tuple(rng.randrange(n_words) for _ in range(order)) for _ in range(1500)})
    chunks = encoded(rows, [rng.choice([1, 2, 40, -3, 2**62]) for _ in rows], bits)
    assert verified(chunks, order, bits, n_words) == len(rows)
    assert sum(verified([chunk], order, bits) for chunk in chunks) == len(rows)
    refused = 0
    for _ in range(400):
        broken = [(bytearray(payload), n) for payload, n in chunks]
        payload, _ = rng.choice(broken)
        payload[rng.randrange(len(payload))] = rng.choice([0, 1, 2, 127, 128, 200, 255, rng.randrange(256)])
        try:
            found = merged([broken], order, bits, room=500)
            sound = len(found) == len(rows) and max(max(row) for row, _ in found) < n_words
        except CorruptionError:
            sound = False
        try:
            n = verified(broken, order, bits, n_words)
        except CorruptionError:
            n, refused = None, refused + 1
        assert (n == len(rows)) == sound
    assert refused > 20


def payload_of(*entries, restarts=(0,)):
    """Return a chunk of entries made by hand."""
    body = b"".join(bytes(entry) for entry in entries)
    return body + b"".join(r.to_bytes(4, "little") for r in (*restarts, len(restarts)))


@pytest.mark.parametrize(("payload", "n", "reason"), [
    (b"", 1, "payload of 0 bytes"), (b"\0" * 7, 1, "payload of 7 bytes"),
    (payload_of([0x01, 3, 4]), 0, "restarts for 0 keys"),
    (payload_of([0x01, 3, 4]), 2000, "restarts for 2000 keys"),
    (payload_of([0x01, 3, 4], restarts=(0, 0)), 1, "2 restarts for 1 keys"),
    (payload_of(restarts=(2**32 - 1,))[:8] + b"\xff\xff\xff\xff", 1, "restarts for 1 keys"),
    (payload_of([0x01, 3, 4]), 2, "no entry"),                         # one key less than is said
    (payload_of([0x01, 3, 4], [0x11, 1]), 1, "no entry"),              # one more
    (payload_of([0x01, 3]), 1, "no entry"),                            # a word is missing
    (payload_of([0x01, 3, 0x80]), 1, "no entry"),                      # a varint without an end
    (payload_of([0x01, 3] + [0x80] * 10 + [1]), 1, "no entry"),        # one beyond 64 bits
    (payload_of([0x11, 4]), 1, "no entry"),                            # a restart that shares words
    (payload_of([0x01, 3, 4], [0x21, 1]), 2, "no entry"),              # all words shared
    (payload_of([0x01, 3, 0x80, 2]), 1, "no entry"),                   # word 256 of 8 bits
    (payload_of([0x01, 3, 4], [0x11, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), 2, "no entry"),
    (payload_of([0x01, 3, 4], [0x11, 0]), 2, "out of order"),          # the same key again
    (payload_of([0x01, 3, 4], [0x01, 0, 5]), 2, "out of order"),
    (payload_of([0x00, 0x82, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 3, 4]), 1, "no entry")])   # 2**62 + 1
def test_bytes_that_are_no_run(payload, n, reason):
    """Bytes that are no entries, or out of order, are damage that says what it is."""
    with pytest.raises(CorruptionError, match=reason):
        merged([[(payload, n)]], 2, 8)
    with pytest.raises(CorruptionError, match=reason):
        verified([(payload, n)], 2, 8)


def test_order_across_restarts_and_chunks():
    """Keys out of order are found also where a key is written in full: at a restart, and at a chunk's begin.

    Only the first words were compared there, and nothing between chunks; what follows takes the keys as sorted.
    """
    rows = [(3, i) for i in range(3000)]
    chunks = encoded(rows, [1] * 3000, 16, 262_000)
    (payload, n), = chunks
    restarts = int.from_bytes(payload[-4:], "little")
    offsets = np.frombuffer(payload, "<u4", restarts, len(payload) - 4 - 4 * restarts)
    broken = bytearray(payload)
    assert broken[offsets[1]:offsets[1] + 4] == bytes([0x01, 3, 0x80, 8])      # (3, 1024), count 1
    broken[offsets[1] + 3] = 7                                                 # (3, 896)

    with pytest.raises(CorruptionError, match="chunk 0: keys out of order"):
        merged([[(bytes(broken), n)]], 2, 16)
    with pytest.raises(CorruptionError, match="chunk 1: keys out of order"):
        merged([[(payload, n), (payload, n)]], 2, 16)
    with pytest.raises(CorruptionError, match="chunk 1: keys out of order"):
        verified([(payload, n), (payload, n)], 2, 16)


def test_words_beyond_the_bits():
    """A run with words beyond the bits asked for is damage: the vocabulary cannot have them."""
    chunks = encoded([(3, 300)], [1], 9)
    assert merged([chunks], 2, 32) == [((3, 300), 1)]
    with pytest.raises(CorruptionError, match="no entry"):
        merged([chunks], 2, 8)


def test_merge_that_is_closed():
    """A closed merge lets go of the payloads and yields nothing more."""
    chunks = encoded([(i,) for i in range(3000)], [1] * 3000, 16)
    views = [(memoryview(bytearray(payload)), n) for payload, n in chunks]
    merge = Merge(1, 1, 16, lambda run, i: views[i] if i < len(views) else None, lambda *_: None)
    keys, counts = np.empty(10, np.uint64), np.empty(10, np.int64)
    assert merge.read(keys, counts) == 10
    merge.close()

    for view, _ in views:
        view.release()                         # would raise if anything stood on it


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x11\x03\x04", b"\x01\x03", b"\x00\x80", b"\x01\x03\xff\xff\xff\xff\xff\x01"])
def test_first_key_of_damage(payload):
    """Bytes that begin with no key have no first key."""
    assert first_key(payload, 2) is None


# ---- statistics

def walked(blocks, order, top, bits, n_words, **options):
    """Return a finished walk over blocks of (rows, counts)."""
    walk = Walk(order, top, bits, n_words, **options)
    for rows, counts in blocks:
        walk.feed(pack(np.array(rows, np.uint32).reshape(-1, order), bits), np.array(counts, np.int64))
    walk.finish()
    return walk


def test_walk_over_nothing():
    """A shard without keys has no n-grams, no contexts and no words."""
    walk = walked([], 3, 3, 8, 10, hashes=True, rows_of=(2, 3), contexts=True)

    assert walk.counts_of_counts().sum() == 0
    assert all(len(array) == 0 for array in walk.take_hashes())
    assert len(walk.take_rows(3)[0]) == len(walk.take_contexts(1)[0]) == 0
    assert [array.sum() for array in walk.unigram_values()] == [0, 0]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("top", range(1, 9))
def test_walk_of_one_sentence(top, raw):
    """The empty sentence has one n-gram, <s> </s>, at every order; it has no longer one."""
    walk = walked([([[1] * 7 + [2]], [1])], 8, top, 32, 3, raw=raw, rows_of=tuple(range(1, 9)))

    assert walk.unigram_values()[0].tolist() == [0, 0, 1]
    for k in range(2, 9):
        rows, values = walk.take_rows(k)
        assert (rows.tolist(), values.tolist()) == (([[1, 2]], [1]) if k == 2 <= top else ([], []))


def test_walk_with_large_counts():
    """Counts beyond 32 bits are exact, in values, totals and the list beside the hashes."""
    for raw in (False, True):
        walk = walked([([[3, 3, 4], [3, 4, 4], [3, 4, 5]], [2**40, 2**40, 5])], 3, 3, 8, 6, raw=raw, hashes=True, rows_of=(2, 3))
        _, values, _, _ = walk.take_hashes()
        large = walk.large_values()
        exact = [int(large[v - 2**31]) if v >= 2**31 else int(v) for v in values]
        assert sorted(exact) == sorted([2**40, 2**40, 5] + ([2**41, 5] if raw else [2, 1]))
        rows, values = walk.take_rows(2)
        assert dict(zip(map(tuple, rows.tolist()), values.tolist(), strict=True)) == (
            {(3, 4): 2**41, (3, 5): 5} if raw else {(3, 4): 2, (3, 5): 1})


def test_walk_refuses_damage():
    """A count below 1, and a word that the vocabulary lacks, are damage, and nothing is written outside the arrays.

    Words were not compared with the vocabulary: a root older than its shards made the walk write beyond its arrays.
    """
    for counts in ([0], [-1]):
        with pytest.raises(CorruptionError, match="count below 1"):
            walked([([[3, 4]], counts)], 2, 2, 8, 5)
    for row in ([3, 5], [5, 3], [3, 255]):
        for top in (1, 2):
            if top == 1 and row[1] < 5:
                continue                       # contexts are not looked at
            with pytest.raises(CorruptionError, match="beyond the 5 of the vocabulary"):
                walked([([row], [1])], 2, top, 8, 5)


@pytest.mark.parametrize(("order", "top", "bits"), [(0, 0, 8), (3, 4, 8), (3, 0, 8), (9, 1, 8), (3, 3, 1), (3, 3, 33)])
def test_walk_arguments(order, top, bits):
    """Orders and bits that cannot be are refused."""
    with pytest.raises(ValueError, match="order"):
        Walk(order, top, bits, 10)


def test_walk_feed_lengths():
    """Keys and counts of different lengths are refused."""
    walk = Walk(3, 3, 32, 10)
    with pytest.raises(ValueError, match="need"):
        walk.feed(np.zeros(3, np.uint64), np.ones(2, np.int64))


def test_long_lists_of_many_words(rng):
    """Lists beyond the short form, of words from all over a large vocabulary, are summed like a Counter."""
    n_words = 300_000
    words = [3, 63, 64, 4095, 4096, 262_143, n_words - 1] + [rng.randrange(3, n_words) for _ in range(500)]
    rows = sorted({(3, 10 + i, word) for i in range(5) for word in rng.sample(words, 300)})
    walk = walked([(rows, [2] * len(rows))], 3, 3, 20, n_words, raw=True, rows_of=(2,))
    found, values = walk.take_rows(2)

    expected = Counter(row[2] for row in rows)
    assert found.tolist() == [[3, word] for word in sorted(expected)]
    assert values.tolist() == [2 * expected[word] for word in sorted(expected)]


def test_totals_table():
    """Totals are numbered in the order of their appearance, (1, 1, 0, 0) first; the table grows and counts uses."""
    table = TotalsTable()
    rows = np.array([[i, i % 7, i % 5, i] for i in range(1, 20_000)], np.uint64)
    numbers = table.numbers(rows, np.ones(len(rows), np.uint64))

    assert numbers.tolist() == list(range(1, 20_000))
    assert table.numbers(rows, np.full(len(rows), 2, np.uint64)).tolist() == numbers.tolist()
    assert table.numbers(np.array([[1, 1, 0, 0]], np.uint64), np.array([9], np.uint64)).tolist() == [0]
    assert table.rows()[0].tolist() == [1, 1, 0, 0]
    assert table.rows()[1:].tolist() == rows.tolist()
    assert table.all_uses().tolist() == [9] + [3] * (len(rows))


# ---- spill

@pytest.mark.parametrize(("buffer_bytes", "width"), [(12, 1), (24, 1), (100, 1), (100, 2), (16384, 1), (16384, 3)])
def test_spill(buffer_bytes, width, rng):
    """Records come back by partition, in the order in which they were added, whatever the buffers."""
    for n_partitions in (1, 4, 64):
        with tempfile.TemporaryFile() as file:
            spill = Spill(file.fileno(), n_partitions, 8 + 4 * width, buffer_bytes)
            expected = [[] for _ in range(n_partitions)]
            for n in (0, 1, 500, 77):
                hashes = np.array([rng.getrandbits(64) for _ in range(n)], np.uint64)
                values = np.array([[rng.getrandbits(32) for _ in range(width)] for _ in range(n)], np.uint32).reshape(n, width)
                spill.add_hashed(hashes, values.reshape(-1))
                for h, row in zip(hashes.tolist(), values, strict=True):
                    expected[h * n_partitions >> 64].append(h.to_bytes(8, "little") + row.tobytes())
            spill.finish()

            assert spill.sizes().tolist() == [len(part) for part in expected]
            assert [spill.read(p).tobytes() for p in range(n_partitions)] == [b"".join(part) for part in expected]


@pytest.mark.parametrize(("k", "bits"), [(1, 2), (2, 16), (2, 17), (3, 32), (4, 32), (8, 28)])
def test_spill_of_keys(k, bits, rng):
    """Keys of every width come back whole, in the order in which they were added, from the partition of their first word."""
    width, most = text_key_width(k, bits), 2**min(bits, 10)
    partition_of = np.array([rng.randrange(3) for _ in range(most)], np.uint16)
    rows = np.array([[rng.randrange(most), *(rng.choice([0, 2**bits - 1, rng.randrange(2**bits)]) for _ in range(k - 1))]
                     for _ in range(500)], np.uint32)
    keys = pack_text_keys(rows, np.array([rng.getrandbits(32) for _ in rows], np.uint32), bits)
    with tempfile.TemporaryFile() as file:
        spill = Spill(file.fileno(), 3, max(8 if k == 1 else 0, (k * bits + 32 + 7) // 8), 100)
        for part in np.split(keys.reshape(-1, width), [0, 200]):
            spill.add_keys(part.reshape(-1), k, bits, partition_of)
        spill.finish()
        for p in range(3):
            found = np.empty(int(spill.sizes()[p]) * width, np.uint64)
            spill.read_keys(p, found)
            assert found.tolist() == keys.reshape(-1, width)[partition_of[rows[:, 0]] == p].reshape(-1).tolist()
        with pytest.raises(ValueError, match="room for"):
            spill.read_keys(0, np.empty(1, np.uint64))


def test_spill_refusals():
    """Partitions and words that do not exist, keys that do not fit, records after the end, and odd arguments are refused."""
    with tempfile.TemporaryFile() as file:
        spill = Spill(file.fileno(), 3, 8, 16)
        keys = pack_text_keys(np.array([[2, 5]], np.uint32), np.array([9], np.uint32), 16)
        with pytest.raises(ValueError, match="beyond 2"):
            spill.add_keys(keys, 2, 16, np.array([0, 1, 3], np.uint16))
        with pytest.raises(ValueError, match="word without a partition"):
            spill.add_keys(keys, 2, 16, np.array([0, 1], np.uint16))
        for k, bits in ((2, 17), (0, 16), (8, 32)):
            with pytest.raises(ValueError, match="words of keys"):
                spill.add_keys(keys, k, bits, np.zeros(3, np.uint16))
        with pytest.raises(ValueError, match="of 8 bytes in 3 partitions"):
            spill.add_hashed(np.zeros(1, np.uint64), np.zeros(1, np.uint32))
        spill.finish()
        assert spill.read(0).shape == (0, 8)
        with pytest.raises(ValueError, match="words of keys"):
            spill.add_keys(keys, 2, 16, np.zeros(3, np.uint16))            # finished
    for arguments in ((0, 12), (1, 0), (70_000, 12), (1, 20, 10)):
        with pytest.raises(ValueError, match="partitions of"):
            Spill(0, *arguments)


def test_spill_of_odd_values():
    """Values that make no whole records are refused."""
    with tempfile.TemporaryFile() as file:
        spill = Spill(file.fileno(), 2, 16)
        for n in (0, 1, 3):
            with pytest.raises(ValueError, match="1 hashes and"):
                spill.add_hashed(np.zeros(1, np.uint64), np.zeros(n, np.uint32))


def test_spill_onto_a_full_disk():
    """A write that fails is an OSError with its errno."""
    with open("/dev/full", "wb", buffering=0) as full:
        spill = Spill(full.fileno(), 1, 12)
        with pytest.raises(OSError, match="No space left") as caught:
            spill.add_hashed(np.zeros(5000, np.uint64), np.zeros(5000, np.uint32))
    assert caught.value.errno == 28


def test_spill_file_cut_short():
    """A scratch file that somebody cut short is told, not read beyond its end."""
    with tempfile.TemporaryFile() as file:
        spill = Spill(file.fileno(), 1, 12)
        spill.add_hashed(np.zeros(10, np.uint64), np.zeros(10, np.uint32))
        spill.finish()
        os.ftruncate(file.fileno(), 60)
        with pytest.raises(OSError, match="could not be read back"):
            spill.read(0)


# ---- the compiled model

@pytest.mark.parametrize("code_bytes", [2, 3, 4])
def test_buckets_hold_what_was_put_in(code_bytes, rng):
    """Every n-gram and every context is found again with its code, and no other, in tables that are quite full."""
    words = list(range(3, 60))
    n_words = 60
    slots = slots_per_bucket(code_bytes)
    assert slots == {2: 9, 3: 8, 4: 7}[code_bytes]
    quarter = 1 << (8 * code_bytes - 2)
    # Through the walk: its hashes are what the model asks for.
    large = sorted(rng.sample(range(quarter, quarter + 10**6), 20))
    grams = sorted({(a, b) for a in words for b in rng.sample(words, 20)})
    counts = [rng.choice([1, 1, 2, 3, quarter - 1, *large]) for _ in grams]
    walk = walked([(grams, counts)], 2, 2, 8, n_words, hashes=True, seed=0)
    hashes, values, _, _ = walk.take_hashes()
    records = np.empty((len(hashes), 12), np.uint8)
    records[:, :8] = hashes.view(np.uint8).reshape(-1, 8)
    records[:, 8:] = values.view(np.uint8).reshape(-1, 4)
    n_buckets = -(-len(hashes) // slots)       # as full as can be
    region = np.zeros(n_buckets * 64, np.uint8)
    for part in (1, 2):
        assert fill(region, 0, code_bytes, records, part=part, large_of=walk.large_values(), large=np.array(large, np.uint64))

    unigrams = np.full(n_words, 1, np.uint64)
    contexts = walk.unigram_context_numbers()
    tables = CountTables(2, unigrams, contexts, walk.table.rows().reshape(-1), np.array(large, np.uint64), seed=chain_start(0))
    tables.use_hashes(region, code_bytes, 1, np.empty(0, np.uint64), np.empty(0, np.uint32))
    tables.smooth(4, 1.0, np.zeros((3, 4)), float(n_words))
    asked = [(a, b) for a in words for b in words]
    found, totals, _ = tables.look(np.array(asked, np.uint32).reshape(-1), np.array([0, 1] * len(asked), np.uint8))
    expected = dict(zip(grams, counts, strict=True))

    assert found[1::2, 1].tolist() == [expected.get(gram, 0) for gram in asked]
    sums = Counter()
    for (a, _), n in expected.items():
        sums[a] += n
    assert totals[1::2, 1, 0].tolist() == [sums[a] for a, _ in asked]


def test_buckets_that_are_full():
    """More records than slots are refused; two with one fingerprint are told, so that another seed is tried."""
    def records(*hashes):
        return np.concatenate([np.array(hashes, np.uint64).view(np.uint8).reshape(-1, 8),
                               np.ones(len(hashes), np.uint32).view(np.uint8).reshape(-1, 4)], axis=1)

    none = np.empty(0, np.uint64)
    assert fill(np.zeros(64, np.uint8), 0, 4, records(*range(1, 8)), large=none)
    with pytest.raises(ValueError, match="do not fit"):
        fill(np.zeros(64, np.uint8), 0, 4, records(*range(1, 9)), large=none)
    assert fill(np.zeros(64, np.uint8), 0, 4, records(5, 5 | 1 << 50), large=none) is False
    assert fill(np.zeros(64, np.uint8), 0, 4, records(0, 1), large=none) is False          # 0 stands for 1
    assert fill(np.zeros(64, np.uint8), 0, 4, records(1 << 39, 2), large=none) is True
    for region, code_bytes, rows in ((63, 4, records(1)), (0, 4, records(1)), (64, 5, records(1)), (64, 1, records(1)),
                                     (64, 4, np.zeros((1, 11), np.uint8))):
        with pytest.raises(ValueError, match="a region of"):
            fill(np.zeros(region, np.uint8), 0, code_bytes, rows, large=none)


def given_records(table, start):
    """Return (hash, -log10 p, log10 back-off) of n-grams as records, and (hash, line) of what they are made of."""
    def hash_of(ngram):
        return mix(functools.reduce(mix, reversed(ngram[:-1]), start), ngram[-1])

    def joined(hashes, *columns):
        return np.concatenate([np.array(hashes, np.uint64).view(np.uint8).reshape(-1, 8),
                               *(np.array(column).view(np.uint8).reshape(-1, 4) for column in columns)], axis=1)

    ngrams = [(ngram, p, b) for k in sorted(table) if k > 1 for ngram, (p, b) in table[k].items()]
    parts = [(hash_of(part), line) for line, (ngram, _, _) in enumerate(ngrams, 9) if len(ngram) > 2
             for part, line in ((ngram[:-1], line), (ngram[1:], 0))]
    return (joined([hash_of(ngram) for ngram, _, _ in ngrams],
                   np.array([-p for _, p, _ in ngrams], np.float32).view(np.uint32) + np.uint32(1),
                   np.array([b for _, _, b in ngrams], np.float32).view(np.uint32)),
            joined([h for h, _ in parts], np.array([line for _, line in parts], np.uint32)))


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("load", [1.0, 0.5])
def test_what_is_given_is_found(closed, load, rng):
    """Probabilities and back-offs are those of the longest n-grams listed, in tables as full as can be; nothing else is found."""
    words, order = range(40), 4
    table = {1: {(w,): (-rng.uniform(0.1, 3), rng.choice([0, -0.5, 0.25])) for w in words}}
    for k in range(2, order + 1):
        table[k] = {}
        for _ in range(300):
            before = rng.choice(list(table[k - 1]))
            # Where all last words are to be listed: what goes on with those of a listed n-gram.
            after = [ngram[-1] for ngram in table[k - 1] if ngram[:-1] == before[1:]] if closed else words
            ngram = (*before, rng.choice([w for w in after if w != 1] or [0]))
            if ngram[-2] != 2 and (not closed or ngram[1:] in table[k - 1]):
                table[k][ngram] = (-rng.uniform(0, 3), rng.choice([0, -1.0, 0.5]) if k < order and ngram[-1] != 2 else 0)
    ngrams, parts = given_records(table, chain_start(5))
    region = np.zeros(-(-len(ngrams) // int(SLOTS * load)) * 64, np.uint8)
    assert given_fill(region, 0, ngrams)
    assert link(region, 0, parts) == (0, closed)
    values = np.array([-table[1][w,][0] for w in words], np.float32).view(np.uint32).astype(np.uint64) + np.uint64(1)
    contexts = np.array([table[1][w,][1] for w in words], np.float32).view(np.uint32) + np.uint32(1)
    tables = GivenTables(order, values, contexts, region, 1, closed, seed=chain_start(5))
    asked = [tuple(rng.choices(words, k=order)) for _ in range(400)] + [rng.choice(list(table[4])) for _ in range(100)]
    asked = [ngram for ngram in asked if 2 not in ngram[:-1]]
    expected = []
    for ngram in asked:
        p, matched = 0.0, 0
        for n in range(order, 0, -1):
            if ngram[-n:] in table[n]:
                p, matched = p + np.float32(table[n][ngram[-n:]][0]), n
                break
            p += np.float32(table[n - 1].get(ngram[-n:-1], (0, 0))[1])
        expected.append((p, matched if matched > 1 or ngram[-1] != 0 else 0))
    ids, history = np.array(asked, np.uint32).reshape(-1), np.tile(np.arange(order, dtype=np.uint8), len(asked))
    log10_p, orders = np.empty(len(ids)), np.empty(len(ids), np.uint8)
    tables.score(ids, history, log10_p, orders)
    assert list(zip(log10_p[3::4], orders[3::4], strict=True)) == [(pytest.approx(p, abs=1e-6), n) for p, n in expected]
    _, _, (shares, _, _) = tables.look(ids, history)
    assert np.log10(shares[3::4].sum(axis=1)) == pytest.approx([p for p, _ in expected], abs=1e-6)
    rows = np.array([ngram for k in (3,) for ngram in table[k]], np.uint32)
    assert tables.backoffs_of(rows) == pytest.approx([table[3][tuple(row)][1] for row in rows.tolist()])
    for ngram, (p, _) in zip(asked[-20:], expected[-20:], strict=True):
        out = np.empty(len(words))
        tables.distribution(np.array(ngram[:-1], np.uint32), out)
        assert out[ngram[-1]] == pytest.approx(10 ** p if ngram[-1] != 1 else 0, rel=1e-5)


def test_what_cannot_be_given():
    """Two n-grams with one fingerprint, too many, and those whose first words are not listed are told."""
    def records(hashes, width=2):
        return np.concatenate([np.array(hashes, np.uint64).view(np.uint8).reshape(-1, 8),
                               np.ones((len(hashes), 4 * width), np.uint8)], axis=1)

    region = np.zeros(64, np.uint8)
    assert given_fill(region, 0, records(range(5)[1:]))
    assert given_fill(region, 0, records([5 | 1 << 32]))                                    # a bit more of a fingerprint
    assert link(region, 0, records([1, 5 | 1 << 32], 1)) == (0, True)
    assert link(region, 0, records([1, 5, 2], 1)) == (0x01010101, True)
    parts = records([1, 5, 2], 1)
    parts[:, 8:] = 0
    assert link(region, 0, parts) == (0, False)
    assert given_fill(np.zeros(64, np.uint8), 0, records([5, 5 | 1 << 50])) is False
    assert given_fill(np.zeros(64, np.uint8), 0, records([0, 1])) is False                  # 0 stands for 1
    with pytest.raises(ValueError, match="do not fit"):
        given_fill(np.zeros(64, np.uint8), 0, records(range(1, 7)))
    for rows in (records([1], 1), records([1], 3)):
        with pytest.raises(ValueError, match="a region of"):
            given_fill(region, 0, rows)
    with pytest.raises(ValueError, match="a region of"):
        link(region[:63], 0, parts)
    codes, contexts = np.ones(3, np.uint64), np.zeros(3, np.uint32)
    for n_bytes, partitions in ((0, 1), (64, 2), (100, 1), (64, 0), (192, 3)):
        with pytest.raises(ValueError, match="partitions of buckets"):
            GivenTables(2, codes, contexts, np.zeros(n_bytes, np.uint8), partitions, True, seed=0)


def test_words_of_any_length_between_any_separators(rng):
    """Text is split where lmplz splits it, whatever lies where eight or 64 bytes end; unknown words are <unk>."""
    lengths = [1, 2, 3, 4, 7, 8, 9, 16, 17, 63, 64, 65, 130]
    words = ["".join(rng.choices("abé語", k=rng.choice(lengths))).encode() for _ in range(60)]
    table = WordTable()
    for word in (b"<unk>", b"<s>", b"</s>", *words):
        table.add(word)
    frozen = FrozenWords(*table.frozen(np.ones(len(table), np.uint8)))
    for _ in range(300):
        pieces = [rng.choice([*words, b"zebra", b"x" * rng.randrange(1, 70), b"<s>", b""])
                  + bytes(rng.choices(b"\0\t\r \n", k=rng.choice([0, 1, 1, 2, 70]))) for _ in range(rng.randrange(40))]
        text = b"".join(pieces)
        ids = np.empty(2 * len(text) + 2, np.uint32)
        n, n_sentences = encode_frozen(frozen, np.frombuffer(text, np.uint8), ids)
        lines = text.removesuffix(b"\n").split(b"\n") if text else []
        expected = []
        for line in lines:
            found = (table.get(word) or 0 for word in re.split(b"[\0\t\r ]+", line) if word)
            expected += [1, *(i if i > 2 else 0 for i in found), 2]
        assert ids[:n].tolist() == expected
        assert n_sentences == len(lines)


def test_lines_are_joined():
    """Sentences are laid one after another as far as they are plain, and within a number of bytes."""
    assert join_lines(["a b", "", "é"], 0, 100) == ("a b\n\né\n".encode(), 3)
    assert join_lines(["a b", "", "é"], 1, 100) == ("\né\n".encode(), 3)
    for odd in (["a"], b"a", "a\nb", "\n", "\ud800", None):
        assert join_lines(["x", odd, "y"], 0, 100) == (b"x\n", 1)
        assert join_lines([odd], 0, 100) == (b"", 0)
    assert join_lines(["aaaa"] * 5, 0, 10) == (b"aaaa\naaaa\n", 2)
    assert join_lines(["a" * 50, "b"], 0, 10) == (b"a" * 50 + b"\n", 1)
    assert join_lines([], 0, 10) == (b"", 0)


def test_histories():
    """Each token's history is how many tokens of its sentence stand before it, at most order - 1."""
    ids = np.array([1, 5, 6, 7, 2, 1, 2, 1, 5], np.uint32)
    for order, expected in ((1, [0] * 9), (3, [0, 1, 2, 2, 2, 0, 1, 0, 1]), (8, [0, 1, 2, 3, 4, 0, 1, 0, 1])):
        out = np.empty(9, np.uint8)
        histories(ids, order, out)
        assert out.tolist() == expected
    with pytest.raises(ValueError, match="room"):
        histories(ids, 3, np.empty(8, np.uint8))


def test_tables_arguments():
    """A model whose arrays do not go together is refused."""
    unigrams, contexts, totals, none = (np.ones(4, np.uint64), np.zeros(4, np.uint32), np.ones(4, np.uint64),
                                        np.empty(0, np.uint64))
    for arguments in ((0, unigrams, contexts, totals), (9, unigrams, contexts, totals), (2, unigrams[:2], contexts[:2], totals),
                      (2, unigrams, contexts[:3], totals), (2, unigrams, contexts, np.ones(3, np.uint64))):
        with pytest.raises(ValueError, match="order"):
            CountTables(*arguments, none, seed=0)
    tables = CountTables(2, unigrams, contexts, totals, none, seed=0)
    for n_bytes, code_bytes, partitions in ((0, 3, 1), (64, 3, 2), (100, 3, 1), (64, 5, 1), (192, 3, 3)):
        with pytest.raises(ValueError, match="partitions of buckets"):
            tables.use_hashes(np.zeros(n_bytes, np.uint8), code_bytes, partitions, none, contexts[:0])
    with pytest.raises(ValueError, match="discounts"):
        tables.smooth(0, 0.0, np.zeros((2, 4)), 4.0)


# ---- text of listings and ARPA files

def integers(keys, k, bits):
    """Return keys in text order as Python's integers."""
    halves = keys.reshape(-1, text_key_width(k, bits)).tolist()
    places = {1: (0,), 2: (0, 1), 4: (2, 3, 0, 1)}[len(halves[0]) if halves else 1]
    return [sum(half[place] << 64 * i for i, place in enumerate(places)) for half in halves]


@pytest.mark.parametrize(("k", "bits"), [(1, 2), (1, 32), (2, 16), (2, 17), (3, 32), (4, 32), (8, 28)])
def test_text_keys(k, bits, rng):
    """A key is its words and its number in a row, first word highest; keys are sorted as integers are."""
    rows = [[rng.choice([0, 2**bits - 1, rng.randrange(2**bits)]) for _ in range(k)] for _ in range(300)]
    values = [rng.choice([0, BIG, rng.randrange(2**32)]) for _ in rows]
    keys = pack_text_keys(np.array(rows, np.uint32), np.array(values, np.uint32), bits)
    expected = [int("".join(f"{word:0{bits}b}" for word in row) + f"{value:032b}", 2)
                for row, value in zip(rows, values, strict=True)]

    assert integers(keys, k, bits) == expected
    sort_text_keys(keys, k, bits)
    assert integers(keys, k, bits) == sorted(expected)


def test_text_keys_that_cannot_be():
    """Keys of more than 256 bits, of no word, of half a key, and numbers that are missing are refused."""
    for k, bits in ((8, 29), (0, 8), (2, 33), (2, 1)):
        with pytest.raises(ValueError, match="do not fit"):
            text_key_width(k, bits)
    with pytest.raises(ValueError, match="each of 2"):
        sort_text_keys(np.zeros(3, np.uint64), 3, 32)
    with pytest.raises(ValueError, match="1 rows, 2 values"):
        pack_text_keys(np.zeros((1, 2), np.uint32), np.zeros(2, np.uint32), 8)
    sort_text_keys(np.zeros(0, np.uint64), 3, 32)


def strings_of(*words):
    """Return words as the kernels take them."""
    ends = np.cumsum([0, *map(len, words)]).astype(np.uint64)
    return Strings(ends, np.frombuffer(b"".join(words) or b"\0", np.uint8))


def float_keys(rows, values, bits):
    """Return keys with numbers of 32 bits in them."""
    return pack_text_keys(np.array(rows, np.uint32), np.array(values, np.float32).view(np.uint32), bits)


def lines(rows, values, backoffs=None, words=(b"a", b"bb", b"ccc"), bits=8):
    """Return the lines of arpa_lines, every n-gram being a context if there are back-offs."""
    contexts = None if backoffs is None else float_keys(rows, backoffs, bits)
    text = arpa_lines(float_keys(rows, values, bits), contexts, len(rows[0]), bits, 0, 0, strings_of(*words))
    return b"".join(text).decode().split("\n")[:-1]


def test_arpa_lines():
    """Numbers have seven decimals at most, without trailing zeros; zero has no sign, and log 0 is -99."""
    values = [-1.5, -0.0625, 0.0, -1e-9, -12.25, -7.0, -float("inf"), -150.0]

    assert lines([[0, 2]] * 8, values) == [f"{x}\ta ccc" for x in (
        "-1.5", "-0.0625", "0", "0", "-12.25", "-7", "-99", "-99")]
    assert lines([[0], [1]], [-1, -2], [-0.5, 0.25]) == ["-1\ta\t-0.5", "-2\tbb\t0.25"]
    assert b"".join(arpa_lines(np.zeros(0, np.uint64), None, 3, 8, 0, 0, strings_of(b"a"))) == b""
    with pytest.raises(ValueError, match="number without a word"):
        lines([[3]], [0])


@pytest.mark.parametrize(("k", "bits"), [(1, 2), (2, 16), (3, 32), (8, 28)])
def test_lines_of_words_of_any_length(k, bits, rng):
    """Short words, words of 14 to 17 bytes, no byte at all, and longer ones than all room are written whole."""
    words = [b"", *(bytes([97 + n % 26]) * n for n in (1, 14, 15, 16, 17, 300)), b"z" * 100_000][:2**min(bits, 3)]
    rows = [[rng.randrange(len(words)) for _ in range(k)] for _ in range(40)]

    assert lines(rows, [-1] * 40, words=words, bits=bits) == [
        "-1\t" + " ".join(words[word].decode() for word in row) for row in rows]
    counts = count_lines(pack_text_keys(np.array(rows, np.uint32), np.arange(40, dtype=np.uint32), bits), np.zeros(0, np.uint64),
                         k, bits, strings_of(*words), np.arange(len(words), dtype=np.uint32))
    assert b"".join(counts) == b"".join(b" ".join(words[word] for word in row) + b"\t%d\n" % i for i, row in enumerate(rows))


def test_strings_that_cannot_be():
    """Words that end beyond their bytes, or before they begin, are refused."""
    for ends in ([0, 9], [2, 1], []):
        with pytest.raises(ValueError):
            Strings(np.array(ends, np.uint64), np.zeros(3, np.uint8))


def test_count_lines():
    """Counts of every length are written in full; the last word has numbers of its own."""
    words, last = strings_of(b"a", b"b"), np.array([1, 0], np.uint32)
    large = np.array([2**31, 2**64 - 1], np.uint64)
    values = np.array([0, 9, 10, 2**31 - 1, 2**31, 2**31 + 1], np.uint32)
    keys = pack_text_keys(np.array([[0, 0]] * 5 + [[0, 1]], np.uint32), values, 8)

    assert b"".join(count_lines(keys, large, 2, 8, words, last)) == (
        b"a b\t0\na b\t9\na b\t10\na b\t2147483647\na b\t2147483648\na a\t18446744073709551615\n")
    for too_few, known in ((large[:1], last), (large, last[:1])):
        with pytest.raises(ValueError, match="without"):
            count_lines(keys, too_few, 2, 8, words, known)


@pytest.mark.parametrize("bits", [3, 20, 32])
def test_joined_backoffs(bits, rng):
    """Each n-gram gets the back-off of the context that it is, the default where it is not listed, 0 before the end."""
    for k in (2, 5):
        grams = sorted({tuple(rng.randrange(5) for _ in range(k)) for _ in range(20)})
        listed = {gram: -rng.randrange(1, 2**20) / 2**20 for gram in sorted(rng.sample(grams, len(grams) // 2)) if gram[-1] != 2}
        contexts = float_keys(list(listed), list(listed.values()), bits)
        text = arpa_lines(float_keys(grams, [-1] * len(grams), bits), contexts, k, bits, -0.5, 2,
                          strings_of(*(b"%d" % i for i in range(5))))
        found = b"".join(text).decode().splitlines()

        assert [float(line.split("\t")[2]) for line in found] == pytest.approx(
            [listed.get(gram, 0 if gram[-1] == 2 else -0.5) for gram in grams], abs=1e-7)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_estimates_of_every_width(order):
    """Keys of 64, 128 and 256 bits carry the same words and the same probabilities."""
    rows = sorted({tuple((i * j + i // 3) % 4 + 3 for j in range(1, order + 1)) for i in range(200)})
    found = []
    for bits in (3, 16, 32):
        walk = Walk(order, order, bits, 7)
        walk.estimate(np.tile([0.0, 0.25, 0.5, 0.75], (order + 1, 1)), np.full(7, 1 / 7), np.arange(7, dtype=np.uint32))
        walk.feed(pack(np.array(rows, np.uint32), bits), np.arange(1, len(rows) + 1))
        walk.finish()
        found.append([[[(key & BIG, [key >> 32 + bits * (k - 1 - j) & 7 for j in range(k)]) for key in integers(keys, k, bits)]
                       for keys in walk.take_estimates(k)] for k in range(2, order + 1)])

    assert found[0] == found[1] == found[2]
    assert len(found[0][-1][0]) == len(rows)

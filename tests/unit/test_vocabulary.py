"""Words of one store that several processes meet: each has a table of its own, the ids are the store's."""
import threading

import numpy as np
import pytest

from kvps._pages import PAGE_BYTES, Pages, PageSums
from kvps._vocabulary import FrozenWords, WordTable, encode, encode_frozen
from kvps.errors import CorruptionError
from kvps.text.vocabulary import FIRST_WORD, Vocabulary, unpack_segment


class Store:
    """The words of a store, as its server gives them ids."""

    def __init__(self):
        """Begin without words."""
        self.ids, self.turn = {}, threading.Lock()

    def share(self, segment):
        """Return the ids of words."""
        lengths, letters = unpack_segment(segment)
        ends, blob = np.cumsum(lengths).tolist(), letters.tobytes()
        words = [blob[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        with self.turn:
            return np.array([self.ids.setdefault(word, FIRST_WORD + len(self.ids)) for word in words], np.uint32)


def encoded(vocabulary, text):
    """Return the ids of a text, without those of sentence ends."""
    data = np.frombuffer(text, np.uint8)
    ids = np.empty(len(data) + 1, np.uint32)
    n, _, _ = vocabulary.encode(data, ids, skip_reserved=False)
    return ids[:n][ids[:n] >= FIRST_WORD].tolist()


def expected(store, text):
    """Return what encoded() must return."""
    return [store.ids[word] for word in text.split()]


def test_two_tables():
    """Two processes that meet words in different orders give them the same ids."""
    store = Store()
    one, two = Vocabulary((), store.share), Vocabulary((), store.share)
    for vocabulary, text in ((one, b"a b c"), (two, b"d c b e"), (one, b"e d a f"), (two, b"f a a")):
        assert encoded(vocabulary, text) == expected(store, text)
        assert len(vocabulary) > max(expected(store, text))


def test_words_that_another_thread_has_just_met():
    """Words that one thread has put into the table, and not asked for yet, are asked for by whoever comes next."""
    store = Store()
    vocabulary = Vocabulary((), store.share)
    store.share(b"\1\0\0\0\1\0\0\0x")
    data = np.frombuffer(b"a b", np.uint8)
    encode(vocabulary.table, data, np.empty(4, np.uint32))
    vocabulary.store_new(lambda first, segment: None)
    assert store.ids.keys() == {b"x", b"a", b"b"}
    assert encoded(vocabulary, b"b a") == expected(store, b"b a")


def test_many_threads(rng):
    """Threads that share a table, and tables that share a store, agree on every word."""
    store = Store()
    vocabularies = [Vocabulary((), store.share) for _ in range(2)]
    texts = [b" ".join(b"%d" % rng.randrange(3000) for _ in range(2000)) for _ in range(40)]
    wrong = []

    def work(which):
        for text in texts[which::4]:
            if encoded(vocabularies[which % 2], text) != expected(store, text):
                wrong.append(text)
            vocabularies[which % 2].store_new(lambda first, segment: None)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- slots, which hold words of up to 8 bytes whole

def both(words):
    """Return a table of words behind the three that every table begins with, and the same frozen."""
    table = WordTable()
    for word in (b"<unk>", b"<s>", b"</s>", *words):
        table.add(word)
    return table, FrozenWords(*table.frozen(np.ones(len(table), np.uint8)))


def read(frozen, text):
    """Return the ids of one line of text; the array ends where the text ends."""
    ids = np.empty(2 * len(text) + 2, np.uint32)
    n, n_sentences = encode_frozen(frozen, np.array(bytearray(text), np.uint8), ids)
    assert (n_sentences, ids[0], ids[n - 1]) == (1, 1, 2)
    return ids[1:n - 1].tolist()


def test_words_of_every_length():
    """Words of 1 to 20 bytes, beginnings of each other or one byte apart, are told apart, wherever in a text they stand."""
    whole = [b"abcdefghijklmnopqrst", "éüöäßéüöäß".encode(), "語言模型語言".encode() + b"xy", b"\xff" * 20]
    words = {word[:n] for word in whole for n in range(1, 21)}
    words |= {word[:n - 1] + b"#" for word in whole for n in range(1, 21)}
    words |= {word[:i] + b"#" + word[i + 1:n] for word in whole[:1] for n in (8, 9, 16, 17) for i in range(n)}
    words = sorted(words, key=lambda word: (word[::-1], len(word)))
    table, frozen = both(words[::2])

    for i, word in enumerate(words):
        expected = None if i % 2 else FIRST_WORD + i // 2
        assert table.get(word) == frozen.get(word) == expected
        for before, after in ((b"", b""), (b"", b" "), (b" " * 63, b""), (b"  ", b"\n"), (b"", b" " * 9)):
            assert read(frozen, before + word + after) == [expected or 0]
    for n in (1, 2, 7, 63, 64, 65, len(words)):
        assert read(frozen, b" ".join(words[:n])) == [0 if i % 2 else FIRST_WORD + i // 2 for i in range(n)]
    found, missing = np.empty(99, np.uint32), np.array(bytearray(b"\n".join(words[1:8:2])), np.uint8)
    assert encode(table, missing, found)[0] == 8
    assert [table.word(i) for i in found[:8:2]] == words[1:8:2]


def test_words_that_differ_in_zeros():
    """A word added from Python may hold any bytes: zeros at its end make it another word, and so does their number."""
    words = [b"a" * n + b"\0" * zeros for n in range(11) for zeros in range(11)]
    table, frozen = both(words)

    assert len(table) == FIRST_WORD + len(words)
    assert [table.get(word) for word in words] == [frozen.get(word) for word in words] == list(range(FIRST_WORD, len(table)))
    assert [frozen.word(i) for i in range(FIRST_WORD, len(frozen))] == words
    assert table.get(b"b") is table.get(b"a" * 11) is frozen.get(b"\0" * 11) is None


WORDS = [b"a", b"eight888", b"longer than eight bytes", b"nine99999"]


def parts(slots):
    """Return (numbers, lengths) of slots as views into them."""
    return slots.view(np.uint32)[2::4], slots.view(np.uint32)[3::4]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("number", [0, 2**31, 2**32 - 1, 8])
def test_a_slot_with_a_wrong_id(word, number):
    """An id beyond the words is never followed; other words are found as before, unless the slot reads as an empty one."""
    table, _ = both(WORDS)
    slots, ends, blob = table.frozen(np.ones(len(table), np.uint8))
    numbers, _ = parts(slots)
    numbers[numbers == table.get(word) + 1] = number
    frozen = FrozenWords(slots, ends, blob)

    assert frozen.get(word) is None
    assert read(frozen, word) in ([0], [0] * len(word.split()))
    assert number == 0 or all(frozen.get(other) == table.get(other) for other in WORDS if other != word)


@pytest.mark.parametrize("n_bytes", [0, 1, 8, 9, 2**31, 2**32 - 1])
def test_slots_with_wrong_lengths(n_bytes):
    """No length in a slot makes a look-up read elsewhere: long words are found by their ends, short ones are not found."""
    table, _ = both(WORDS)
    slots, ends, blob = table.frozen(np.ones(len(table), np.uint8))
    parts(slots)[1][:] = n_bytes
    frozen = FrozenWords(slots, ends, blob)

    assert [frozen.get(word) for word in WORDS] == [table.get(word) if len(word) in (n_bytes, 9, 23) else None for word in WORDS]
    assert read(frozen, b" a eight888 nine99999") == [frozen.get(word) or 0 for word in (b"a", b"eight888", b"nine99999")]


@pytest.mark.parametrize("shift", [1, 50, 2**40, 2**64 - 2**40])
def test_ends_beyond_the_bytes(shift):
    """Ends that point beyond the bytes of the words are not followed."""
    table, _ = both(WORDS)
    slots, ends, blob = table.frozen(np.ones(len(table), np.uint8))
    frozen = FrozenWords(slots, ends + np.uint64(shift), blob)

    assert [frozen.get(word) for word in WORDS] == [3, 4, None, None]
    assert read(frozen, b"a eight888 nine99999 nine99999") == [3, 4, 0, 0]
    with pytest.raises(CorruptionError, match=f"word {len(table) - 1} of {len(table)} lies at"):
        frozen.word(len(table) - 1)


def test_no_empty_slot():
    """A look-up ends though no slot is empty."""
    slots = np.full(16, 2**64 - 1, np.uint64)
    frozen = FrozenWords(slots, np.zeros(4, np.uint64), np.zeros(0, np.uint8))

    assert frozen.get(b"a") is frozen.get(b"\xff" * 8) is frozen.get(b"longer than eight") is None
    assert read(frozen, b"a longer-than-eight") == [0, 0]


@pytest.mark.parametrize("damaged", ["slots", "ends", "blob"])
def test_damaged_pages_of_a_table(damaged):
    """Damage on a page that a look-up reads is told of; short words are found without the ends and bytes of words."""
    table, _ = both([*WORDS, *(b"%d" % i for i in range(300))])
    data, places = bytearray(), {}
    for name, array in zip(("slots", "ends", "blob"), table.frozen(np.ones(len(table), np.uint8)), strict=True):
        places[name] = slice(len(data), len(data) + array.nbytes), array.dtype.char
        data += array.tobytes() + bytes(-array.nbytes % PAGE_BYTES)
    sums = PageSums()
    sums.add(bytes(data))
    place, _ = places[damaged]
    for at in range(place.start, place.stop, PAGE_BYTES):
        data[at + 1] ^= 1

    def opened():
        file = memoryview(data)
        return FrozenWords(*(file[where].cast("Q" if kind == "L" else "B") for where, kind in places.values()),
                           Pages(file, np.frombuffer(sums.sums, np.uint32), "name"))

    for find in (lambda word: opened().get(word), lambda word: read(opened(), word)[0]):
        with pytest.raises(CorruptionError, match="name: page"):
            find(b"nine99999")
        if damaged != "slots":
            assert find(b"eight888") == 4
            continue
        with pytest.raises(CorruptionError, match="name: page"):
            find(b"eight888")

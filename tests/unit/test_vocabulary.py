"""Words of one store that several processes meet: each has a table of its own, the ids are the store's."""
import threading

import numpy as np

from kvps._vocabulary import encode
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

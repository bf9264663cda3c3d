"""Vocabulary tables and the loop that turns text into word ids.

A word is bytes; its id is its place in the order of insertion. The table is open addressing over 16-byte slots, which
hold words of up to 8 bytes whole: most of a text is found in one cache line a word. A hit of a longer word is confirmed by
comparing all its bytes, so no hash collision can merge two words.
Separators are those of lmplz: NUL, TAB, CR and space; newline ends a sentence.
"""
import threading

from kvps.errors import CorruptionError

cimport cython
from cython cimport view

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from kvps._keys cimport fetch, load64, mix
from kvps._pages cimport Paged, Pages, page_view, usable
from kvps._types cimport BOS, EOS, FIRST_WORD, UNK, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t

cdef extern from "splitting.hpp" namespace "kvps" nogil:
    const int LINES, BLANKS, SPLIT_ROOM
    ctypedef struct splitter:
        index_t at, n
    splitter splitting(const byte_t* text, index_t n, int kind)
    index_t split_some(splitter* s, index_t* starts, index_t* lengths)
    uint64_t first_bytes(const byte_t* p, index_t n)
    uint64_t first_bytes(uint64_t x, index_t n)

cdef enum:
    NOT_FOUND = 0xFFFFFFFF
    NEW_WORD = 0x80000000      # provisional ids of words that the table lacks; so a store holds at most 2**31 words
    LANES = 192                # words looked up together, at least two thirds of them: hides the cache misses
    SHORT = 8                  # bytes of a word that a slot holds whole
    LONG_TEXT = 1 << 17        # bytes, from which on all of a vocabulary is compared with its checksums at once
    ERR_MEMORY = -2

MAX_WORDS = NEW_WORD


cdef uint64_t word_key(const byte_t* p, index_t n) noexcept nogil:
    """The key of a word: its bytes if there are at most 8, a hash of them otherwise.

    Stored in compiled models, as is place_of(): change them with their format version only.
    """
    cdef uint64_t h = <uint64_t>n
    cdef index_t i
    if n <= SHORT:
        return first_bytes(p, n)
    for i in range(0, n - 8, 8):
        h = mix(h, load64(p + i))
    return mix(h, load64(p + n - 8))


cdef inline uint64_t place_of(uint64_t key, index_t n) noexcept nogil:
    """Where to look for a word of n bytes first, in the lowest bits."""
    return mix(<uint64_t>n, key)


cdef inline index_t slots_for(index_t n_words, index_t n_slots) noexcept nogil:
    """How many slots a table of so many words has: n_slots, or so many times two that at most 70 % of them are taken.

    Texts are looked up hardly faster (2 %) with at most 50 %: frequent words come early, and so stand where they are looked for.
    """
    while 7 * n_slots < 10 * n_words:
        n_slots *= 2
    return n_slots


cdef inline void put_word(word_slot* slots, uint64_t mask, uint64_t key, index_t n, index_t word) noexcept nogil:
    """Put a word that is not there yet into a table that is not full."""
    cdef uint64_t at = place_of(key, n) & mask
    while slots[at].number != 0:
        at = (at + 1) & mask
    slots[at].key, slots[at].n_bytes = key, <uint32_t>min(n, <index_t>0xFFFFFFFF)
    slots[at].number = <uint32_t>(word + 1)        # last: makes the word visible


cdef inline bint stands_at(const vocab_view* v, word_t word, const byte_t* p, uint64_t n) noexcept nogil:
    """Return whether the n bytes of a long word are those of a word of the table; False too where a damaged page is met."""
    cdef uint64_t begin
    cdef const byte_t* own
    if not usable(v.pages, &v.ends[word], 16):
        return False
    begin = v.ends[word]
    if v.ends[word + 1] - begin != n or begin > v.n_bytes or n > v.n_bytes - begin:
        return False
    own = v.blob + begin
    if not usable(v.pages, own, n):
        return False
    if n <= 2 * SHORT:                             # as most are
        return load64(own) == load64(p) and load64(own + n - SHORT) == load64(p + n - SHORT)
    return memcmp(own, p, n) == 0


cdef word_t find_word(const vocab_view* v, const byte_t* p, index_t n, uint64_t key) noexcept nogil:
    """Return the id of a word whose key is given, or NOT_FOUND, as where a damaged page is met."""
    cdef uint64_t at = place_of(key, n) & v.mask, word, tried
    for tried in range(v.mask + 1):        # a table that others wrote might have no empty slot
        if not usable(v.pages, &v.slots[at]) or v.slots[at].number == 0:
            break
        word = <uint64_t>v.slots[at].number - 1
        if v.slots[at].key == key and word < v.n_words:
            if v.slots[at].n_bytes == <uint32_t>n if n <= SHORT else stands_at(v, <word_t>word, p, n):
                return <word_t>word
        at = (at + 1) & v.mask
    return <word_t>NOT_FOUND


cdef void find_words(const vocab_view* v, const byte_t* text, index_t n_text, index_t n, const index_t* starts,
                     const index_t* lengths, uint64_t* keys, word_t* out) noexcept nogil:
    """Fill out[i] with what find_word() gives for n <= LANES words of a text, and keys[i]; with anything where a length is 0.

    All words take a step before any takes the next, without branches that nobody can guess: no word waits for memory alone.
    """
    cdef uint64_t places[LANES]
    cdef uint8_t longs[LANES]
    cdef uint8_t rest[LANES]
    cdef index_t i, j, n_longs = 0, n_rest = 0
    cdef const word_slot* slot
    cdef uint64_t word
    cdef bint same, found
    # STEP 1: keys, those of long words by themselves.
    for i in range(n):
        keys[i] = (first_bytes(load64(text + starts[i]), lengths[i]) if starts[i] + 8 <= n_text
                   else word_key(text + starts[i], lengths[i]))
        longs[n_longs] = <uint8_t>i
        n_longs += lengths[i] > SHORT
    for j in range(n_longs):
        keys[longs[j]] = word_key(text + starts[longs[j]], lengths[longs[j]])
    for i in range(n):
        places[i] = place_of(keys[i], lengths[i]) & v.mask
        fetch(&v.slots[places[i]])
    # STEP 2: words where their slot or an empty one comes first; of long ones it is still to be confirmed.
    n_longs = 0
    for i in range(n):
        slot = &v.slots[places[i]]
        found, same = lengths[i] == 0, False
        if usable(v.pages, slot):
            word = <uint64_t>slot.number
            out[i] = <word_t>(word - 1)            # NOT_FOUND of an empty slot
            same = (slot.key == keys[i]) & (slot.n_bytes == <uint64_t>lengths[i]) & (word - 1 < v.n_words)
            found |= word == 0
        else:
            out[i] = <word_t>NOT_FOUND
        longs[n_longs] = <uint8_t>i
        n_longs += same & (lengths[i] > SHORT)
        rest[n_rest] = <uint8_t>i
        n_rest += not (found | same)
    # STEP 3: the bytes that confirm long words, on their way before they are compared.
    for j in range(n_longs):
        fetch(&v.ends[out[longs[j]]])
    for j in range(n_longs):
        if usable(v.pages, &v.ends[out[longs[j]]]) and v.ends[out[longs[j]]] < v.n_bytes:
            fetch(v.blob + v.ends[out[longs[j]]])
    for j in range(n_longs):
        i = longs[j]
        if not stands_at(v, out[i], text + starts[i], <uint64_t>lengths[i]):
            rest[n_rest] = <uint8_t>i
            n_rest += 1
    # STEP 4: the rest one by one.
    for j in range(n_rest):
        i = rest[j]
        out[i] = find_word(v, text + starts[i], lengths[i], keys[i])


cdef uint64_t sum_of(const uint32_t[::1] lengths) noexcept nogil:
    cdef uint64_t total = 0
    cdef index_t i
    for i in range(lengths.shape[0]):
        total += lengths[i]
    return total


@cython.final
@cython.no_gc_clear            # the end needs `retired`, also where a table was found in a loop of references
cdef class WordTable:
    """A growing table of words.

    Readers work on views without a lock while one thread adds words: arrays that grow are replaced, and the old
    ones live until the last reader has gone (they add up to less than the new one).
    """
    cdef word_slot* slots
    cdef uint64_t* ends
    cdef byte_t* blob
    cdef index_t n_slots, n_words, ends_room, blob_room
    cdef index_t readers
    cdef list retired          # addresses of replaced arrays
    cdef object lock

    def __cinit__(self):
        self.n_slots, self.ends_room, self.blob_room = 1024, 512, 4096
        self.slots = <word_slot*>calloc(self.n_slots, sizeof(word_slot))
        self.ends = <uint64_t*>calloc(self.ends_room, 8)
        self.blob = <byte_t*>malloc(self.blob_room)
        self.retired = []
        self.lock = threading.Lock()
        if self.slots == NULL or self.ends == NULL or self.blob == NULL:
            raise MemoryError("no memory for an empty vocabulary")

    def __dealloc__(self):
        self._release()
        free(self.slots)
        free(self.ends)
        free(self.blob)

    def __len__(self):
        return self.n_words

    cdef void _release(self):
        for address in self.retired:
            free(<void*><size_t>address)
        self.retired.clear()

    cdef vocab_view view(self) noexcept:
        cdef vocab_view v
        v.slots, v.mask, v.ends, v.blob, v.n_words = self.slots, self.n_slots - 1, self.ends, self.blob, self.n_words
        v.n_bytes, v.pages = self.blob_room, <page_view*>NULL
        return v

    cdef int _retire(self, void* old) except -1:
        if self.readers:
            self.retired.append(<size_t>old)
        else:
            free(old)
        return 0

    cdef int _reserve(self, index_t n_words, index_t n_bytes) except -1:
        """Make room for so many words and bytes in all. Allocates, fills, then swaps."""
        cdef index_t room, i, size
        cdef word_slot* slots
        cdef uint64_t* ends
        cdef byte_t* blob
        if n_bytes > self.blob_room:
            room = max(n_bytes, 2 * self.blob_room)
            blob = <byte_t*>malloc(room)
            if blob == NULL:
                raise MemoryError(f"no memory for {room} bytes of words")
            memcpy(blob, self.blob, self.ends[self.n_words])
            self._retire(self.blob)
            self.blob, self.blob_room = blob, room
        if n_words + 1 > self.ends_room:
            room = max(n_words + 1, 2 * self.ends_room)
            ends = <uint64_t*>malloc(room * 8)
            if ends == NULL:
                raise MemoryError(f"no memory for {room} words")
            memcpy(ends, self.ends, (self.n_words + 1) * 8)
            self._retire(self.ends)
            self.ends, self.ends_room = ends, room
        room = slots_for(n_words, self.n_slots)
        if room > self.n_slots:
            slots = <word_slot*>calloc(room, sizeof(word_slot))
            if slots == NULL:
                raise MemoryError(f"no memory for {room} vocabulary slots")
            for i in range(self.n_words):
                size = self.ends[i + 1] - self.ends[i]
                put_word(slots, room - 1, word_key(self.blob + self.ends[i], size), size, i)
            self._retire(self.slots)
            self.slots, self.n_slots = slots, room
        return 0

    cdef word_t _insert(self, const byte_t* p, index_t n, uint64_t key) except? 0:
        """Add a word that is not there yet; return its id."""
        cdef index_t word = self.n_words, start = self.ends[self.n_words]
        if word >= NEW_WORD:
            raise OverflowError(f"the vocabulary is full: {word} words")
        self._reserve(word + 1, start + n)
        memcpy(self.blob + start, p, n)
        self.ends[word + 1] = start + n
        self.n_words = word + 1
        put_word(self.slots, self.n_slots - 1, key, n, word)
        return <word_t>word

    def add(self, bytes word):
        """Return the id of a word, adding it when it is new."""
        cdef const byte_t* p = word
        cdef uint64_t key = word_key(p, len(word))
        with self.lock:
            v = self.view()
            found = find_word(&v, p, len(word), key)
            return self._insert(p, len(word), key) if found == <word_t>NOT_FOUND else found

    def get(self, bytes word):
        """Return the id of a word, or None."""
        cdef vocab_view v = self.view()
        cdef const byte_t* p = word
        found = find_word(&v, p, len(word), word_key(p, len(word)))
        return None if found == <word_t>NOT_FOUND else found

    def word(self, index_t i):
        """Return the bytes of word i."""
        if not 0 <= i < self.n_words:
            raise IndexError(f"word {i} of {self.n_words}")
        return self.blob[self.ends[i]:self.ends[i + 1]]

    def load(self, const uint32_t[::1] lengths, const byte_t[::1] blob):
        """Append words known to be new: their lengths and their bytes, one after another."""
        cdef index_t i
        cdef const byte_t* p = &blob[0] if blob.shape[0] else <const byte_t*>b""
        if sum_of(lengths) != <uint64_t>blob.shape[0]:
            raise ValueError(f"the lengths of {lengths.shape[0]} words do not add up to {blob.shape[0]} bytes")
        if lengths.shape[0] == 0:
            return
        with self.lock:
            self._reserve(self.n_words + lengths.shape[0], self.ends[self.n_words] + blob.shape[0])
            for i in range(lengths.shape[0]):
                self._insert(p, lengths[i], word_key(p, lengths[i]))
                p += lengths[i]

    def in_order(self, const uint32_t[::1] order):
        """Return a new table of the same words, of which word i is word order[i] of this one."""
        cdef WordTable other = WordTable()
        cdef index_t i, size, n = order.shape[0]
        cdef const byte_t* p
        if n != self.n_words:
            raise ValueError(f"{n} places for {self.n_words} words")
        other._reserve(n, self.ends[n])
        for i in range(n):
            if order[i] >= n:
                raise IndexError(f"word {order[i]} of {n}")
            p, size = self.blob + self.ends[order[i]], self.ends[order[i] + 1] - self.ends[order[i]]
            other._insert(p, size, word_key(p, size))
        return other

    def slice(self, index_t first):
        """Return (lengths uint32, bytes) of the words from `first` on, as `load` takes them."""
        import numpy as np  # here: scoring text does without it

        ends = np.asarray(<uint64_t[:self.n_words + 1]>self.ends)[first:].copy()
        return np.diff(ends).astype(np.uint32), self.blob[<index_t>ends[0]:<index_t>ends[ends.shape[0] - 1]]

    def frozen(self, const uint8_t[::1] alive):
        """Return arrays (slots uint64, two per slot, ends uint64, blob uint8) for `FrozenWords`, of the words marked alive only.

        Ids stay; a word that is not alive keeps an id and no bytes.
        """
        cdef index_t i, n = alive.shape[0], n_bytes = 0, n_alive = 0, n_slots, size
        cdef word_slot* at
        import numpy as np  # here: scoring text does without it

        if n > self.n_words:
            raise ValueError(f"{n} marks for {self.n_words} words")
        for i in range(n):
            if alive[i]:
                n_alive += 1
                n_bytes += self.ends[i + 1] - self.ends[i]
        n_slots = slots_for(n_alive, 8)
        slots_array, ends_array = np.zeros(2 * n_slots, np.uint64), np.zeros(n + 1, np.uint64)
        blob_array = np.zeros(max(n_bytes, 1), np.uint8)
        cdef uint64_t[::1] slots = slots_array, ends = ends_array
        cdef byte_t[::1] blob = blob_array
        at = <word_slot*>&slots[0]
        with nogil:
            for i in range(n):
                ends[i + 1] = ends[i]
                if alive[i]:
                    size = self.ends[i + 1] - self.ends[i]
                    memcpy(&blob[0] + ends[i], self.blob + self.ends[i], size)
                    ends[i + 1] += size
                    put_word(at, n_slots - 1, word_key(&blob[0] + ends[i], size), size, i)
        return slots_array, ends_array, blob_array

    def __enter__(self):
        """Enter as a reader: arrays that grow meanwhile stay readable until the last reader leaves."""
        with self.lock:
            self.readers += 1
        return self

    def __exit__(self, *exc):
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                self._release()


cdef vocab_view view_of(const uint64_t[::1] slots, const uint64_t[::1] ends, const byte_t[::1] blob) except *:
    """The table in arrays as WordTable.frozen() has them, without pages; they must outlive it."""
    cdef vocab_view v
    cdef index_t n_slots = slots.shape[0] // 2
    if slots.shape[0] % 2 or n_slots == 0 or n_slots & (n_slots - 1) or ends.shape[0] == 0:
        raise ValueError("a frozen vocabulary needs a power of two of slots and the ends of its words")
    v.slots, v.mask = <const word_slot*>&slots[0], n_slots - 1
    v.ends, v.n_words = &ends[0], ends.shape[0] - 1
    v.blob, v.n_bytes = &blob[0] if blob.shape[0] else <const byte_t*>NULL, blob.shape[0]
    v.pages = <page_view*>NULL
    return v


@cython.final
cdef class FrozenWords(Paged):
    """A table over arrays that somebody else owns (a mapped model); `pages` are those of the file that they lie in."""

    def __cinit__(self, const uint64_t[::1] slots, const uint64_t[::1] ends, const byte_t[::1] blob, Pages pages=None):
        self.v = view_of(slots, ends, blob)
        self.take((slots, ends, blob), pages)
        self.v.pages = self.page

    cdef void compare_whole(self) noexcept nogil:
        """Compare all pages of the table now, so that look-ups need not ask for each: for long texts."""
        if (self.v.pages != NULL and usable(self.v.pages, self.v.slots, sizeof(word_slot) * (self.v.mask + 1))
                and usable(self.v.pages, self.v.ends, 8 * (self.v.n_words + 1))
                and usable(self.v.pages, self.v.blob, self.v.n_bytes)):
            self.v.pages = NULL

    def __len__(self):
        return self.v.n_words

    def get(self, bytes word):
        """Return the id of a word, or None."""
        cdef const byte_t* p = word
        found = find_word(&self.v, p, len(word), word_key(p, len(word)))
        self.refuse_damage()
        return None if found == <word_t>NOT_FOUND else found

    def word(self, index_t i):
        """Return the bytes of word i."""
        if not 0 <= i < <index_t>self.v.n_words:
            raise IndexError(f"word {i} of {self.v.n_words}")
        cdef uint64_t begin = 0, end = 0
        if usable(self.v.pages, &self.v.ends[i], 16):
            begin, end = self.v.ends[i], self.v.ends[i + 1]
            if not begin <= end <= self.v.n_bytes:
                raise CorruptionError(f"word {i} of {self.v.n_words} lies at {begin} to {end} of {self.v.n_bytes} bytes of words")
            usable(self.v.pages, self.v.blob + begin, end - begin)
        self.refuse_damage()
        return self.v.blob[<index_t>begin:<index_t>end]


cdef struct encoding:
    # What the encoding loop reads and writes.
    vocab_view v
    const byte_t* text
    index_t n_text
    uint32_t* ids
    index_t n_ids, n_sentences, reserved_at
    bint skip_reserved, start_mark, oov_is_unk, closed
    # words that the table lacks: a table of their own
    uint64_t* new_slots
    uint64_t new_mask
    uint64_t* new_at           # start in text, pairs (start, length)
    index_t n_new, new_room


cdef int grow_new(encoding* e) noexcept nogil:
    """Double the table of new words."""
    cdef uint64_t mask = 2 * e.new_mask + 1, h, at
    cdef index_t i
    cdef uint64_t* slots = <uint64_t*>calloc(mask + 1, 8)
    cdef uint64_t* places = <uint64_t*>realloc(e.new_at, 2 * (mask + 1) * 8)
    if places != NULL:
        e.new_at = places
    if slots == NULL or places == NULL:
        free(slots)
        return ERR_MEMORY
    for i in range(e.n_new):
        h = place_of(word_key(e.text + e.new_at[2 * i], e.new_at[2 * i + 1]), e.new_at[2 * i + 1])
        at = h & mask
        while slots[at] != 0:
            at = (at + 1) & mask
        slots[at] = (h >> 32) << 32 | <uint64_t>(i + 1)
    free(e.new_slots)
    e.new_slots, e.new_mask, e.new_room = slots, mask, (mask + 1) // 2
    return 0


cdef int new_word(encoding* e, index_t start, index_t n, uint64_t key, word_t* out) noexcept nogil:
    """Give a word the table lacks a provisional id, NEW_WORD + its place among the new ones."""
    cdef uint64_t h = place_of(key, n), at, slot, i
    if e.n_new >= e.new_room and grow_new(e) != 0:
        return ERR_MEMORY
    at = h & e.new_mask
    while True:
        slot = e.new_slots[at]
        if slot == 0:
            break
        if (slot >> 32) == (h >> 32):
            i = <uint64_t><uint32_t>slot - 1
            if e.new_at[2 * i + 1] == <uint64_t>n and memcmp(e.text + e.new_at[2 * i], e.text + start, n) == 0:
                out[0] = <word_t>(NEW_WORD + i)
                return 0
        at = (at + 1) & e.new_mask
    e.new_at[2 * e.n_new], e.new_at[2 * e.n_new + 1] = start, n
    e.new_slots[at] = (h >> 32) << 32 | <uint64_t>(e.n_new + 1)
    out[0] = <word_t>(NEW_WORD + e.n_new)
    e.n_new += 1
    return 0


cdef int encode_text(encoding* e) noexcept nogil:
    """Split the text, look its words up, write ids. One </s> per line; a last line without newline is a line.

    Return 0, or ERR_MEMORY; e.reserved_at is the place of a reserved word that must not be there, or -1.
    """
    cdef index_t starts[LANES]
    cdef index_t lengths[LANES]    # 0: the sentence ends here
    cdef uint64_t keys[LANES]
    cdef word_t words[LANES]
    cdef index_t lane, n_lanes, n_ids = 0, n_sentences = 0
    cdef bint ends, marks, known, start_mark = e.start_mark, oov_is_unk = e.oov_is_unk
    cdef word_t word
    cdef word_t* ids = e.ids
    cdef splitter split = splitting(e.text, e.n_text, LINES)
    if start_mark:
        ids[n_ids] = BOS
        n_ids += 1
    while split.at <= split.n:
        n_lanes = 0
        while split.at <= split.n and n_lanes <= LANES - SPLIT_ROOM:
            n_lanes += split_some(&split, starts + n_lanes, lengths + n_lanes)
        find_words(&e.v, e.text, e.n_text, n_lanes, starts, lengths, keys, words)
        for lane in range(n_lanes):
            ends, word = lengths[lane] == 0, words[lane]
            known = word - FIRST_WORD < <word_t>(NOT_FOUND - FIRST_WORD)
            if oov_is_unk:
                word = word if known else UNK
            elif not known and not ends:
                if word == <word_t>NOT_FOUND:
                    word = UNK
                    if not e.closed and new_word(e, starts[lane], lengths[lane], keys[lane], &word) != 0:
                        return ERR_MEMORY
                elif e.skip_reserved:
                    continue
                else:
                    e.reserved_at = starts[lane]
                    return 0
            # Behind </s> goes <s>, overwritten where it is not wanted; that behind the last one is left out.
            marks = ends & start_mark
            ids[n_ids + marks] = BOS
            ids[n_ids] = EOS if ends else word
            n_ids += 1 + marks
            n_sentences += ends
    e.n_ids, e.n_sentences = n_ids - start_mark, n_sentences
    return 0


def encode(WordTable table, const byte_t[::1] text, uint32_t[::1] ids, *, bint skip_reserved=False, bint closed=False):
    """Turn text into word ids, adding new words to the table.

    Args:
        table: whose first three words are <unk>, <s> and </s>.
        text: lines of words.
        ids: uint32, OUT, at least len(text) + 1 long; each sentence ends with </s>.
        skip_reserved: treat <unk>, <s> and </s> in the text as white space.
        closed: add no words; those that the table lacks are <unk>.

    Returns:
        (number of ids, number of sentences, offset of a reserved word or -1).
    """
    cdef encoding e
    cdef index_t i, status, offset
    cdef uint32_t[::1] mapping
    if ids.shape[0] < text.shape[0] + 1:
        raise ValueError(f"{text.shape[0]} bytes of text need room for {text.shape[0] + 1} ids, got {ids.shape[0]}")
    if text.shape[0] == 0:
        return 0, 0, -1
    e.text, e.n_text, e.ids = &text[0], text.shape[0], &ids[0]
    e.n_ids = e.n_sentences = e.n_new = 0
    e.reserved_at = -1
    e.skip_reserved, e.start_mark, e.oov_is_unk, e.closed = skip_reserved, False, False, closed
    e.new_mask, e.new_room = 1023, 512
    e.new_slots, e.new_at = <uint64_t*>calloc(1024, 8), <uint64_t*>malloc(2 * 1024 * 8)
    try:
        if e.new_slots == NULL or e.new_at == NULL:
            raise MemoryError("no memory for new words")
        with table:
            e.v = table.view()
            with nogil:
                status = encode_text(&e)
        if status == ERR_MEMORY:
            raise MemoryError(f"no memory for {e.n_new} new words")
        if e.n_new and e.reserved_at < 0:
            mapping = view.array((e.n_new,), 4, "I")
            with table.lock:
                e.v = table.view()
                for i in range(e.n_new):
                    offset = e.new_at[2 * i]
                    # Another thread may have added the word since the view was taken.
                    key = word_key(e.text + offset, e.new_at[2 * i + 1])
                    e.v = table.view()
                    found = find_word(&e.v, e.text + offset, e.new_at[2 * i + 1], key)
                    mapping[i] = (table._insert(e.text + offset, e.new_at[2 * i + 1], key)
                                  if found == <word_t>NOT_FOUND else found)
            with nogil:
                for i in range(e.n_ids):
                    if e.ids[i] >= NEW_WORD:
                        e.ids[i] = mapping[e.ids[i] - NEW_WORD]
    finally:
        free(e.new_slots)
        free(e.new_at)
    return e.n_ids, e.n_sentences, e.reserved_at


def translate(uint32_t[::1] ids, const uint32_t[::1] to):
    """Replace each id by to[id], in place; IndexError where there is none."""
    cdef index_t i, n = ids.shape[0], beyond = 0
    cdef uint32_t n_to = <uint32_t>to.shape[0]
    with nogil:
        for i in range(n):
            if ids[i] < n_to:
                ids[i] = to[ids[i]]
            else:
                beyond += 1
    if beyond:
        raise IndexError(f"{beyond} of {n} ids are not below {n_to}")


def encode_frozen(FrozenWords table, const byte_t[::1] text, uint32_t[::1] ids):
    """Turn text into word ids for scoring: each sentence is <s> words </s>, a word not in the table <unk>.

    ids: uint32, OUT, at least 2 * len(text) + 2 long. Return (number of ids, number of sentences).
    """
    cdef index_t n, n_sentences
    if ids.shape[0] < 2 * text.shape[0] + 2:
        raise ValueError(f"{text.shape[0]} bytes of text need room for {2 * text.shape[0] + 2} ids")
    if text.shape[0] == 0:
        return 0, 0
    with nogil:
        if text.shape[0] >= LONG_TEXT:
            table.compare_whole()
        n = encode_lines(&table.v, &text[0], text.shape[0], &ids[0], &n_sentences)
    table.refuse_damage()
    return n, n_sentences


cdef index_t encode_lines(const vocab_view* v, const byte_t* text, index_t n, uint32_t* ids, index_t* n_sentences) noexcept nogil:
    """Write the ids of lines as encode_frozen() does, n > 0; return how many, at most 2 * n + 2. OUT the number of sentences."""
    cdef encoding e
    e.text, e.n_text, e.ids, e.v = text, n, ids, v[0]
    e.n_ids = e.n_sentences = 0
    e.skip_reserved, e.start_mark, e.oov_is_unk, e.closed = False, True, True, True
    encode_text(&e)
    n_sentences[0] = e.n_sentences
    return e.n_ids


cdef index_t encode_line(const vocab_view* v, const byte_t* text, index_t n, uint32_t* ids) noexcept nogil:
    """Write the ids of the words of one text as KenLM's Python module finds them; return how many, at most (n + 1) / 2.

    Words are parted at blanks of ASCII, <s> and </s> are words like others, and what the table lacks is <unk>.
    """
    cdef index_t starts[LANES]
    cdef index_t lengths[LANES]
    cdef uint64_t keys[LANES]
    cdef word_t words[LANES]
    cdef index_t lane, n_lanes, n_ids = 0
    cdef splitter split = splitting(text, n, BLANKS)
    while split.at <= n:
        n_lanes = 0
        while split.at <= n and n_lanes <= LANES - SPLIT_ROOM:
            n_lanes += split_some(&split, starts + n_lanes, lengths + n_lanes)
        find_words(v, text, n, n_lanes, starts, lengths, keys, words)
        for lane in range(n_lanes):
            ids[n_ids] = UNK if words[lane] == <word_t>NOT_FOUND else words[lane]
            n_ids += 1
    return n_ids

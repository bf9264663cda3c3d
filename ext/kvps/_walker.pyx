"""A compiled model asked as KenLM is: sentence by sentence, or word by word from state to state. kvps/compat/kenlm.py."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

from kvps._block cimport NONE
from kvps._keys cimport mix
from kvps._model cimport Tables, place
from kvps._types cimport BOS, EOS, UNK, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t
from kvps._utf8 cimport utf8
from kvps._vocabulary cimport FrozenWords, encode_line, find_word, word_key


cdef class State:
    """The words before the next one, as far as a model needs them. Fresh, it is that of no words at all."""
    cdef place at

    def __copy__(self):
        cdef State other = State()
        other.at = self.at
        return other

    def __reduce__(self):
        raise TypeError("a State belongs to the model that is open in this process: it cannot be pickled or copied deeply")

    def __hash__(self):
        cdef uint64_t h = <uint64_t>self.at.length
        cdef int d
        for d in range(self.at.length):
            h = mix(h, self.at.words[d])
        return <Py_ssize_t>(h >> 2)

    cdef int compare(self, State other) noexcept:
        """Below, equal or above 0, as KenLM orders states: by length, then by the bytes of the words."""
        if self.at.length != other.at.length:
            return -1 if self.at.length < other.at.length else 1
        return memcmp(self.at.words, other.at.words, self.at.length * sizeof(word_t))

    def __eq__(self, other):
        return self.compare(other) == 0 if isinstance(other, State) else NotImplemented

    def __lt__(self, other):
        return self.compare(other) < 0 if isinstance(other, State) else NotImplemented

    def __le__(self, other):
        return self.compare(other) <= 0 if isinstance(other, State) else NotImplemented

    def __gt__(self, other):
        return self.compare(other) > 0 if isinstance(other, State) else NotImplemented

    def __ge__(self, other):
        return self.compare(other) >= 0 if isinstance(other, State) else NotImplemented


cdef struct token_list:
    word_t* ids
    uint8_t* history
    float* scores
    uint8_t* matched
    index_t room, n


cdef class Walker:
    """A model that is asked with KenLM's calls: a sentence, a list of them, or word by word. kvps/compat/kenlm.py."""
    cdef Tables tables
    cdef FrozenWords words
    cdef readonly int order

    def __init__(self, Tables tables, FrozenWords words):
        if not tables.ready or tables.exact or <index_t>words.v.n_words != tables.n_words:
            raise ValueError(f"{words.v.n_words} words for a model of {tables.n_words}, smoothed, in hashes")
        self.tables, self.words, self.order = tables, words, tables.order

    cdef int refuse_damage(self) except -1:
        """Raise CorruptionError if a damaged page was met."""
        self.words.refuse_damage()
        return self.tables.refuse_damage()

    cdef int take(self, token_list* t, text, bint bos, bint eos) except -1:
        """Put the tokens of a sentence behind those that are there."""
        cdef Py_ssize_t n_bytes
        cdef const char* p = utf8(text, &n_bytes)
        cdef index_t need = t.n + n_bytes // 2 + 3, i, n
        cdef token_list larger
        cdef word_t* ids
        cdef int before = 0
        if need > t.room:
            need = max(need, 2 * t.room)
            larger.ids = <word_t*>malloc(need * 10)        # ids, scores, histories, orders, one after another
            if larger.ids == NULL:
                raise MemoryError(f"no memory for {need} words")
            larger.scores = <float*>(larger.ids + need)
            larger.history = <uint8_t*>(larger.scores + need)
            larger.matched = larger.history + need
            for i in range(t.n):
                larger.ids[i], larger.history[i] = t.ids[i], t.history[i]
            larger.n, larger.room = t.n, need
            free(t.ids)
            t[0] = larger
        ids = t.ids + t.n
        n = 0
        if bos:
            ids[0], n = BOS, 1
        n += encode_line(&self.words.v, <const byte_t*>p, n_bytes, ids + n)
        if eos:
            ids[n] = EOS
            n += 1
        for i in range(n):
            t.history[t.n + i] = <uint8_t>before
            if before < self.order - 1:
                before += 1
        t.n += n
        return 0

    cdef int score_one(self, token_list* t, sentence, bint bos, bint eos) except -1:
        """OUT the tokens of a sentence and their scores; whoever asks frees t.ids, but after an error."""
        t.ids = NULL
        t.n = t.room = 0
        try:
            self.take(t, sentence, bos, eos)
            self.tables.score_tokens(t.ids, t.history, t.n, t.scores, t.matched)
            self.refuse_damage()
        except BaseException:
            free(t.ids)
            raise
        return 0

    def score(self, sentence, bint bos=True, bint eos=True):
        """Return the log10 probability of a sentence, str or bytes of words between blanks.

        bos: begin behind <s>; without it, behind nothing. eos: </s> counts too.
        """
        cdef token_list t
        cdef index_t i
        cdef float total = 0
        self.score_one(&t, sentence, bos, eos)
        for i in range(bos, t.n):
            total += t.scores[i]
        free(t.ids)
        return total

    def score_many(self, sentences, bint bos=True, bint eos=True):
        """Return score() of each of many sentences, a list of floats; faster than one by one. Not KenLM's."""
        cdef token_list t
        cdef index_t i, first, sentence
        cdef float total
        cdef list found = []
        cdef list ends = []
        t.ids = NULL
        t.n = t.room = 0
        if isinstance(sentences, (str, bytes)):
            raise TypeError("score_many takes many sentences; score takes one")
        todo = iter(sentences)
        try:
            while True:
                t.n = 0
                ends.clear()
                for text in todo:
                    self.take(&t, text, bos, eos)
                    ends.append(t.n)
                    if t.n >= 16384:
                        break
                if not ends:
                    break
                if t.n >= 16384:
                    self.words.compare_whole()
                with nogil:
                    self.tables.score_tokens(t.ids, t.history, t.n, t.scores, t.matched)
                first = 0
                for end in ends:
                    sentence, total = end, 0
                    for i in range(first + bos, sentence):
                        total += t.scores[i]
                    found.append(total)
                    first = sentence
        finally:
            free(t.ids)
        self.refuse_damage()
        return found

    def tokens(self, sentence, bint bos, bint eos):
        """Return (log10 probability, order of the n-gram used, is OOV) of each token of a sentence."""
        cdef token_list t
        cdef index_t i
        self.score_one(&t, sentence, bos, eos)
        try:
            return [(t.scores[i], t.matched[i], t.ids[i] == UNK) for i in range(bos, t.n)]
        finally:
            free(t.ids)

    cdef word_t find(self, word) except? NONE:
        """The id of a word, <unk> if there is none."""
        cdef Py_ssize_t n
        cdef const byte_t* p = <const byte_t*>utf8(word, &n)
        cdef word_t found = find_word(&self.words.v, p, n, word_key(p, n))
        return UNK if found == <word_t>NONE else found

    def word_id(self, bytes word):
        """Return the id of a word; 0, that of <unk>, where there is none. Not KenLM's."""
        return self.words.get(word) or UNK

    def BeginSentenceWrite(self, State state not None):
        """Make a state that of a sentence's beginning."""
        cdef uint32_t number = self.tables.unigram_contexts[BOS] - 1
        state.at.words[0], state.at.numbers[0] = BOS, number
        state.at.length = 1 if number < self.tables.n_numbers and self.order > 1 else 0

    def NullContextWrite(self, State state not None):
        """Make a state that of no words at all."""
        state.at.length = 0

    def BaseScore(self, State in_state not None, str word not None, State out_state not None):
        """Return log10 p(word | in_state), and make out_state the state behind the word."""
        cdef int matched
        cdef float score = self.tables.step(&in_state.at, self.find(word), &out_state.at, &matched)
        self.refuse_damage()
        return score

    def full_step(self, State in_state not None, str word not None, State out_state not None):
        """Return (log10 p(word | in_state), order of the n-gram used, is OOV), and make out_state the state behind the word."""
        cdef int matched
        cdef word_t found = self.find(word)
        cdef float score = self.tables.step(&in_state.at, found, &out_state.at, &matched)
        self.refuse_damage()
        return score, matched, found == UNK

    def __contains__(self, word):
        return self.find(word) != UNK

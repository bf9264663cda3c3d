"""A compiled model: what is asked of text, whatever the model is made of. Sums, scores, distributions, steps from word to word.

Made of counts and a smoothing: _counted.pyx. Of the probabilities of an ARPA file: _given.pyx. Layout of the file:
kvps/lm/container.py.
"""
from libc.math cimport INFINITY, log10
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset

from kvps._block cimport LANES, NONE
from kvps._keys cimport fetch, mix
from kvps._pages cimport PAGE, Paged, Pages, all_sound
from kvps._tally cimport by_sentence, count, count_log10, start, tally, write_row
from kvps._types cimport BOS, EOS, MAX_ORDER, UNK, byte_t, index_t, word_t, int64_t, uint8_t, uint32_t, uint64_t
from kvps._utf8 cimport plain, utf8
from kvps._vocabulary cimport FrozenWords, encode_lines

cdef enum:
    LONG = 1 << 13             # tokens of a text
    BLOCK_BYTES = 1 << 16      # of lines that are scored together, so that all that is made of them stays in the second cache,
    BLOCK_LINES = 1 << 12      # and how many, at most


cdef class Tables(Paged):
    """The arrays of a compiled model, borrowed from their owner; `pages` are those of the file that they lie in.

    Look-ups compare a page of the file before they read from it. What is short, or read as a whole, is compared here.
    """
    def __cinit__(self, int order, const uint64_t[::1] unigrams, const uint32_t[::1] unigram_contexts, *rest,
                  uint64_t seed, Pages pages=None):
        if not 1 <= order <= MAX_ORDER or unigrams.shape[0] < 3 or unigram_contexts.shape[0] != unigrams.shape[0]:
            raise ValueError(f"order {order}, {unigrams.shape[0]} unigrams, {unigram_contexts.shape[0]} numbers for them")
        self.take([unigrams, unigram_contexts], pages)
        self.compare(&unigrams[0], 8 * unigrams.shape[0])
        self.compare(&unigram_contexts[0], 4 * unigram_contexts.shape[0])
        self.order, self.seed = order, seed
        self.unigrams, self.n_words = &unigrams[0], unigrams.shape[0]
        self.unigram_contexts = &unigram_contexts[0]
        self.valueless = <word_t>NONE

    # What a model is made of answers these.

    cdef const byte_t* bucket_of(self, uint64_t hash) noexcept nogil:
        """Where find_entry() begins to look."""
        return NULL

    cdef bint find_entry(self, uint64_t hash, const byte_t* bucket, uint64_t* value, uint32_t* number) noexcept nogil:
        """Look an n-gram of 2 words and more up: OUT its value, and its number as a context, NONE if it is none.

        False: there is none, or a damaged page was met.
        """
        return False

    cdef void probabilities(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, double* p,
                            uint8_t* matched) noexcept nogil:
        """Fill p with the probabilities of the n <= LANES tokens ids[first:first + n], with their log10 where self.given.

        history[first + i] is how many tokens before token i belong to its sentence (at most order - 1).
        before[k]: number of the k-gram that ends before `first`, NONE if it is no context; OUT the same for the last token.
        OUT matched, if it is not NULL: the order of the longest n-gram that ends at each token; 0 for an unknown word.
        """

    cdef void floats(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before, float* p,
                     uint8_t* matched) noexcept nogil:
        """The same in the arithmetic of KenLM, always log10; see float_of()."""

    cdef float float_of(self, const uint64_t* values, const uint32_t* numbers, int longest, word_t word, int* matched) noexcept nogil:
        """Return the log10 probability of a token in the arithmetic of KenLM, in float32; OUT the order of the n-gram used.

        values[(k - 1) * LANES]: of the k-gram that ends at the token, 0 if there is none; numbers[d * LANES]: of its context of
        d words, NONE if that was never seen. longest: order of the longest n-gram asked for.
        As a back-off file would have it, <s> has probability 1 before it is backed off to.
        """
        return 0

    cdef void share_out(self, const word_t* last, int n, const word_t* words, index_t n_words, double* p) noexcept nogil:
        """Fill p[i] with the probability of words[i], or of word i, after the context of n words that ends at *last."""

    cdef void look_block(self, const word_t* ids, const uint8_t* history, index_t first, index_t n, uint32_t* before,
                         uint64_t[:, ::1] values, uint64_t[:, :, ::1] totals, double[:, :, ::1] parts) noexcept:
        """Fill in what look() returns of n <= LANES tokens; other arguments as those of probabilities()."""

    # And so much follows for all.

    cdef void keep_table(self, const byte_t[::1] table):
        """Take what most look-ups read; a subclass asks whether its pages are usable by self.table_page."""
        self.owner.append(table)
        self.table, self.table_bytes, self.table_page = &table[0], table.shape[0], self.page

    cdef int refuse_unknown(self, const uint32_t[::1] ids) except -1:
        """Raise ValueError if an id is beyond the words."""
        cdef index_t i
        cdef uint32_t most = 0
        for i in range(ids.shape[0]):
            if ids[i] > most:
                most = ids[i]
        if most >= <uint64_t>self.n_words:
            raise ValueError(f"word {most} of {self.n_words}")
        return 0

    def score(self, const uint32_t[::1] ids, const uint8_t[::1] history, double[::1] out, uint8_t[::1] matched):
        """Score tokens.

        Args:
            ids: uint32 (n,), sentence after sentence (<s> words </s>) or n-gram after n-gram.
            history: uint8 (n,), how many tokens before each one belong to it, at most order - 1.
            out: float64 (n,), OUT, log10 of the probability; 0 for <s> without history.
            matched: uint8 (n,), OUT, the order of the longest n-gram seen.
        """
        cdef index_t n = ids.shape[0], first = 0, i, block
        cdef double p[LANES]
        cdef uint32_t before[MAX_ORDER + 2]
        if history.shape[0] != n or out.shape[0] < n or matched.shape[0] < n or not self.ready:
            raise ValueError(f"{n} ids, {history.shape[0]} histories, room for {out.shape[0]} results")
        self.refuse_unknown(ids)
        memset(before, 255, sizeof(before))        # NONE
        with nogil:
            while first < n:
                block = n - first if n - first < LANES else LANES
                self.probabilities(&ids[0], &history[0], first, block, before, p, &matched[first])
                for i in range(block):
                    if ids[first + i] == BOS and history[first + i] == 0:
                        out[first + i], matched[first + i] = 0, 1
                        continue
                    out[first + i] = p[i] if self.given else log10(p[i])
                first += block
        self.refuse_damage()

    cdef void add_up(self, const word_t* ids, const uint8_t* history, index_t n, tally* t, const by_sentence* rows) noexcept nogil:
        """Add up the tokens of sentences, <s> words </s>: all of them in t or, where there are `rows`, each sentence for itself."""
        cdef uint32_t before[MAX_ORDER + 2]
        cdef double p[LANES]
        cdef index_t first = 0, i, block, row = -1
        cdef tally sums                            # its own, which can stay in registers
        start(&sums)
        memset(before, 255, sizeof(before))        # NONE
        # Who asks for more tokens than there are pages has most of them compared: the rest too then, and no look-up need ask.
        self.n_asked += <uint64_t>n
        if self.table_page != NULL and n >= LONG and self.n_asked > self.table_bytes // PAGE:
            self.n_asked = 0                   # where a page is damaged, not again for a while
            if all_sound(self.page, self.table, self.table_bytes):
                self.table_page = NULL
        while first < n:
            block = n - first if n - first < LANES else LANES
            self.probabilities(ids, history, first, block, before, p, NULL)
            for i in range(block):
                if ids[first + i] == BOS and history[first + i] == 0:
                    if rows != NULL:
                        write_row(rows, row, &sums)
                        row += 1
                        start(&sums)
                elif self.given:
                    count_log10(&sums, p[i], ids[first + i] == UNK)
                else:
                    count(&sums, p[i], ids[first + i] == UNK)
            first += block
        if rows != NULL:
            write_row(rows, row, &sums)
        t[0] = sums

    def sums(self, const uint32_t[::1] ids, const uint8_t[::1] history):
        """Score text and add up; arguments as `score`.

        Return (tokens, OOVs, sum of log10 p, the part of it of OOVs, tokens of probability 0, OOVs of probability 0);
        the sums leave tokens of probability 0 out.
        """
        cdef tally t
        if history.shape[0] != ids.shape[0] or not self.ready:
            raise ValueError(f"{ids.shape[0]} ids, {history.shape[0]} histories")
        self.refuse_unknown(ids)
        start(&t)
        with nogil:
            if ids.shape[0]:
                self.add_up(&ids[0], &history[0], ids.shape[0], &t, NULL)
        self.refuse_damage()
        return t.tokens, t.oov, t.total + log10(t.product), t.total_oov, t.zero, t.zero_oov

    def sums_by_sentence(self, const uint32_t[::1] ids, const uint8_t[::1] history, int64_t[:, ::1] counts, double[:, ::1] logs):
        """The same for each sentence.

        counts: int64 (4, n), OUT, tokens, OOVs, tokens of probability 0, OOVs of probability 0.
        logs: float64 (2, n), OUT, the two sums.
        """
        cdef tally t
        cdef by_sentence rows
        rows.n = counts.shape[1]
        if (history.shape[0] != ids.shape[0] or not self.ready or counts.shape[0] != 4 or logs.shape[0] != 2
                or logs.shape[1] != rows.n):
            raise ValueError(f"{ids.shape[0]} ids, {history.shape[0]} histories, room for {rows.n} and {logs.shape[1]} sentences")
        self.refuse_unknown(ids)
        if ids.shape[0] == 0 or rows.n == 0:
            return
        rows.counts, rows.logs = &counts[0, 0], &logs[0, 0]
        with nogil:
            self.add_up(&ids[0], &history[0], ids.shape[0], &t, &rows)
        self.refuse_damage()

    def score_line(self, FrozenWords words not None, str line not None):
        """Return the log10 probability of a sentence, words between separators; None where it has to be looked at closer."""
        cdef Py_ssize_t n
        cdef const char* p
        cdef word_t* ids
        cdef uint8_t* history
        cdef index_t n_ids, n_sentences
        cdef tally t
        if not self.ready or <index_t>words.v.n_words != self.n_words:
            raise ValueError(f"{words.v.n_words} words for a model of {self.n_words}")
        text = plain(line)
        if text is None:
            return None
        p = utf8(text, &n)
        if n == 0 or memchr(p, 10, n) != NULL:
            return None
        ids = <word_t*>malloc((2 * n + 2) * (sizeof(word_t) + 1))
        if ids == NULL:
            raise MemoryError(f"no memory for the words of {n} bytes")
        history = <uint8_t*>(ids + 2 * n + 2)
        with nogil:
            n_ids = encode_lines(&words.v, <const byte_t*>p, n, ids, &n_sentences)
            fill_histories(ids, n_ids, self.order, history)
            self.add_up(ids, history, n_ids, &t, NULL)
            free(ids)
        words.refuse_damage()
        self.refuse_damage()
        return -INFINITY if t.zero else t.total + log10(t.product)

    def score_lines(self, FrozenWords words not None, list lines not None, index_t first, double[::1] out):
        """Fill out[i], float64, with what score_line() returns of lines[first + i].

        Return how many, up to the first that has to be looked at closer, which is one of BLOCK_BYTES too.
        """
        cdef index_t done = 0, end, last, n, n_sentences, i
        cdef Py_ssize_t size
        cdef const char* p
        cdef tally t
        cdef by_sentence rows
        cdef word_t* ids
        cdef uint8_t* history
        cdef byte_t* text
        if not self.ready or <index_t>words.v.n_words != self.n_words:
            raise ValueError(f"{words.v.n_words} words for a model of {self.n_words}")
        rows.logs = <double*>malloc(BLOCK_LINES * 6 * 8 + (2 * BLOCK_BYTES + 2) * (sizeof(word_t) + 1) + BLOCK_BYTES)
        if rows.logs == NULL:
            raise MemoryError("no memory for a block of lines")
        rows.counts = <int64_t*>(rows.logs + 2 * BLOCK_LINES)
        ids = <word_t*>(rows.counts + 4 * BLOCK_LINES)
        history = <uint8_t*>(ids + 2 * BLOCK_BYTES + 2)
        text = <byte_t*>(history + 2 * BLOCK_BYTES + 2)
        try:
            while done < out.shape[0]:
                n, end, last = 0, done, min(done + <index_t>BLOCK_LINES, out.shape[0])
                while end < last and first + end < len(lines):
                    line = plain(lines[first + end])
                    if line is None:
                        break
                    p = utf8(line, &size)
                    if n + size >= BLOCK_BYTES or size and memchr(p, 10, size) != NULL:
                        break
                    memcpy(text + n, p, size)
                    text[n + size] = 10
                    n, end = n + size + 1, end + 1
                if end == done:
                    break
                if end < out.shape[0]:
                    words.compare_whole()
                rows.n = end - done
                with nogil:
                    n = encode_lines(&words.v, text, n, ids, &n_sentences)
                    fill_histories(ids, n, self.order, history)
                    self.add_up(ids, history, n, &t, &rows)
                for i in range(rows.n):
                    out[done + i] = -INFINITY if rows.counts[2 * rows.n + i] else rows.logs[i]
                done = end
        finally:
            free(rows.logs)
        words.refuse_damage()
        self.refuse_damage()
        return done

    cdef uint64_t hash_of(self, const word_t* last, int n) noexcept nogil:
        """The hash by which the n-gram of n words that ends at *last is known: its context, the last word first, and that one."""
        cdef uint64_t hash = self.seed
        cdef int i
        for i in range(1, n):
            hash = mix(hash, (last - i)[0])
        return mix(hash, last[0])

    cdef void find_contexts(self, const word_t* last, int n, uint64_t* chains, uint32_t* numbers) noexcept nogil:
        """Look up the contexts of 1 to n words that end at *last.

        OUT chains[d]: of d words, from 0 on; numbers[d]: of their totals, NONE where they are no context.
        """
        cdef uint64_t gram, value
        cdef int d
        chains[0] = self.seed
        for d in range(1, n + 1):
            numbers[d] = <uint32_t>NONE
            chains[d] = mix(chains[d - 1], (last - d + 1)[0])
            if last[0] == EOS and not self.given:
                continue
            if d == 1:
                numbers[1] = self.unigram_contexts[last[0]] - 1
                continue
            gram = self.hash_of(last, d)
            if not self.find_entry(gram, self.bucket_of(gram), &value, &numbers[d]):
                numbers[d] = <uint32_t>NONE

    def distribution(self, const uint32_t[::1] context, double[::1] out):
        """Fill out[i], float64 (n_words,), with the probability of word i after a context; <s>, if it is given, gets 0."""
        if out.shape[0] != self.n_words or not self.ready or self.exact:
            raise ValueError(f"room for {out.shape[0]} of {self.n_words} words")
        self.refuse_unknown(context)
        with nogil:
            self.share_out(&context[0] + context.shape[0] - 1, <int>min(context.shape[0], <index_t>MAX_ORDER), NULL, self.n_words,
                           &out[0])
        self.refuse_damage()

    def shares(self, const uint32_t[::1] ids, const int64_t[::1] ends, const uint32_t[::1] words, const int64_t[::1] bounds,
               double[::1] out):
        """Fill out[j], float64, with the probability of words[j] after context i, for bounds[i] <= j < bounds[i + 1].

        ids: uint32, context after context; ends: int64 (n,), where each ends; bounds: int64 (n + 1,).
        """
        cdef index_t i, n = ends.shape[0], start = 0
        if bounds.shape[0] != n + 1 or out.shape[0] != words.shape[0] or not self.ready or self.exact:
            raise ValueError(f"{n} contexts, {bounds.shape[0]} bounds, room for {out.shape[0]} of {words.shape[0]} words")
        for i in range(n):
            if not (start <= ends[i] <= ids.shape[0] and 0 <= bounds[i] <= bounds[i + 1] <= words.shape[0]):
                raise ValueError(f"context {i} ends at {ends[i]} of {ids.shape[0]}, and at {bounds[i + 1]} of {words.shape[0]} words")
            start = ends[i]
        self.refuse_unknown(ids)
        self.refuse_unknown(words)
        start = 0
        with nogil:
            for i in range(n):
                if bounds[i + 1] > bounds[i]:
                    self.share_out(&ids[0] + ends[i] - 1, <int>min(ends[i] - start, <index_t>MAX_ORDER), &words[bounds[i]],
                                   bounds[i + 1] - bounds[i], &out[bounds[i]])
                start = ends[i]
        self.refuse_damage()

    def look(self, const uint32_t[::1] ids, const uint8_t[::1] history):
        """Return what the model knows of each token: (values uint64 (n, order), totals uint64 (n, order, 4), parts).

        values[i, k - 1] is that of the k-gram that ends at token i; totals[i, d] those of its context of d words, d = 0 left out;
        both are 0 where there are no counts. parts: float64 (3, n, order + 1), how its probability comes about. parts[0, i, k]:
        what the n-gram of order k gives to it, k = 0 being what all words get; they add up to it. parts[1, i, k]: what is taken
        off its count. parts[2, i, d]: by what the context of d words multiplies what the shorter ones give; 1 where it was not seen.
        """
        cdef index_t n = ids.shape[0], first = 0, block
        cdef uint32_t before[MAX_ORDER + 2]
        import numpy as np  # here: scoring text does without it

        values, totals = np.zeros((n, self.order), np.uint64), np.zeros((n, self.order, 4), np.uint64)
        parts = np.zeros((3, n, self.order + 1))
        parts[2] = 1
        if history.shape[0] != n or not self.ready:
            raise ValueError(f"{n} ids, {history.shape[0]} histories")
        self.refuse_unknown(ids)
        memset(before, 255, sizeof(before))        # NONE
        while first < n:
            block = n - first if n - first < LANES else LANES
            self.look_block(&ids[0], &history[0], first, block, before, values, totals, parts)
            first += block
        self.refuse_damage()
        return values, totals, parts

    cdef float step(self, const place* before, word_t word, place* after, int* matched) noexcept nogil:
        """Return the log10 probability of a word behind others, float32; OUT where the sentence stands then.

        matched: OUT, the order of the n-gram used. `after` may be `before`.
        """
        cdef uint64_t values[MAX_ORDER * LANES]        # as float_of() wants them, most of it unused
        cdef uint32_t numbers[MAX_ORDER * LANES]
        cdef uint32_t own[MAX_ORDER + 1]
        cdef uint64_t grams[MAX_ORDER]
        cdef const byte_t* buckets[MAX_ORDER]
        cdef uint64_t chain = self.seed
        cdef int d, length = before.length if before.length < self.order else self.order - 1
        cdef float result
        values[0] = self.unigrams[word] if word != self.valueless else 0
        own[1] = self.unigram_contexts[word] - 1
        if own[1] >= self.n_numbers:
            own[1] = <uint32_t>NONE
        for d in range(1, length + 1):
            chain = mix(chain, before.words[d - 1])
            grams[d] = mix(chain, word)
            buckets[d] = self.bucket_of(grams[d])
            fetch(buckets[d])
        for d in range(1, length + 1):
            numbers[d * LANES] = before.numbers[d - 1] if before.numbers[d - 1] < self.n_numbers else <uint32_t>NONE
            values[d * LANES] = 0
            own[d + 1] = <uint32_t>NONE
            if numbers[d * LANES] != <uint32_t>NONE and (values[(d - 1) * LANES] > 0 or self.gaps or d == 1 and word == self.valueless):
                self.find_entry(grams[d], buckets[d], &values[d * LANES], &own[d + 1])
                if word == EOS and not self.given:
                    own[d + 1] = <uint32_t>NONE
        result = self.float_of(values, numbers, length + 1, word, matched)
        length = min(length + 1, self.order - 1)
        for d in range(length - 1, 0, -1):
            after.words[d] = before.words[d - 1]
        after.words[0], after.length = word, 0
        for d in range(1, length + 1):
            after.numbers[d - 1] = own[d]
            if own[d] != <uint32_t>NONE:
                after.length = d
        return result

    cdef void score_tokens(self, const word_t* ids, const uint8_t* history, index_t n, float* out, uint8_t* matched) noexcept nogil:
        """Score n tokens as step() does, a block at a time; those without history that are <s> get 0."""
        cdef uint32_t before[MAX_ORDER + 2]
        cdef index_t first = 0, i, block
        memset(before, 255, sizeof(before))        # NONE
        while first < n:
            block = n - first if n - first < LANES else LANES
            self.floats(ids, history, first, block, before, out + first, matched + first)
            for i in range(first, first + block):
                matched[i] += matched[i] == 0
            first += block


def histories(const uint32_t[::1] ids, int order, uint8_t[::1] out):
    """Fill out[i] with how many tokens before token i belong to its sentence, at most order - 1; <s> starts one."""
    if out.shape[0] < ids.shape[0]:
        raise ValueError(f"room for {out.shape[0]} of {ids.shape[0]} histories")
    if ids.shape[0]:
        with nogil:
            fill_histories(&ids[0], ids.shape[0], order, &out[0])


cdef void fill_histories(const word_t* ids, index_t n, int order, uint8_t* out) noexcept nogil:
    cdef index_t i
    cdef int h = 0
    for i in range(n):
        if ids[i] == BOS:
            h = 0
        out[i] = <uint8_t>h
        if h < order - 1:
            h += 1

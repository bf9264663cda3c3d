"""What follows a context: lists of words and their counts, and the distributions that they add up to.

A file of followers (kvps/lm/followers.py) is the trie of contexts, from the last word back; each node has the list of the
words that follow, by value, the greatest first, then in byte order. A probability is the sum of what the lists of the
context and of the shorter ones in it give to a word, and of its share of the ground: what is left of a context that nobody
has seen. So only the words in the lists have to be touched, whatever the size of the vocabulary.
Formulas: _smoothing.pxd. Twin: the scores of words one by one, in tests/property/test_followers.py.
"""
cimport cython

from libc.math cimport pow
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc

from kvps._pages cimport Paged, Pages, usable
from kvps._smoothing cimport LIDSTONE, MODIFIED_KNESER_NEY, STUPID_BACKOFF, kept, shares, smoothing
from kvps._types cimport BOS, LARGE_CODE, MAX_ORDER, UNK, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t


cdef inline uint64_t number(const numbers* c, index_t i) noexcept nogil:
    return (<const uint64_t*>c.data)[i] if c.wide else (<const uint32_t*>c.data)[i]


cdef inline uint64_t sum_of_bytes(const byte_t* p, index_t n) noexcept nogil:
    cdef index_t i
    cdef uint64_t total = 0
    for i in range(n):                     # compilers make vectors of this
        total += p[i]
    return total


@cython.final
cdef class Workspace:
    """Scratch of one thread for models of at most so many words: what the words in the lists of a context get."""

    def __cinit__(self, index_t n_words, index_t n_models=1):
        if not 0 <= n_words < NO_WORD or n_models < 1:
            raise ValueError(f"{n_words} words of {n_models} models")
        self.n_words, self.n_models, self.mask = n_words, n_models, 63
        while self.mask < n_words:
            self.mask = 2 * self.mask + 1
        self.sums = <double*>calloc(n_words + 1, sizeof(double))
        self.touched = <word_t*>malloc((n_words + 1) * sizeof(word_t))
        self.marks = <uint64_t*>calloc((<size_t>self.mask + 1) // 64, 8)
        self.theirs = <uint64_t*>calloc((<size_t>self.mask + 1) // 64, 8)
        self.heap = <candidate*>malloc((n_words + 1) * sizeof(candidate))
        self.chosen = <candidate*>malloc((n_words + 1) * sizeof(candidate))
        self.sources = <source*>malloc(n_models * MAX_ORDER * sizeof(source))
        if (self.sums == NULL or self.touched == NULL or self.marks == NULL or self.theirs == NULL or self.heap == NULL
                or self.chosen == NULL or self.sources == NULL):
            raise MemoryError(f"no memory for the probabilities of {n_words} words")

    def __dealloc__(self):
        free(self.sums)
        free(self.touched)
        free(self.marks)
        free(self.theirs)
        free(self.heap)
        free(self.chosen)
        free(self.sources)

    cdef bint marked(self, word_t word) noexcept nogil:
        return self.marks[word >> 6] >> (word & 63) & 1

    cdef void add(self, word_t word, double share, bint instead) noexcept nogil:
        """Add to what a word gets, or give it that instead. A share of 0 changes nothing, so does not touch the word."""
        if share <= 0 or <index_t>word >= self.n_words:
            return
        if self.sums[word] == 0:
            self.touched[self.n_touched] = word
            self.n_touched += 1
            self.marks[word >> 6] |= <uint64_t>1 << (word & 63)
        self.sums[word] = share if instead else self.sums[word] + share

    cdef void clear(self) noexcept nogil:
        cdef index_t i
        for i in range(self.n_touched):
            self.sums[self.touched[i]] = 0
            self.marks[self.touched[i] >> 6] = 0
        self.n_touched = 0


@cython.final
cdef class Followers(Paged):
    """The lists of a followers file, borrowed from their owner, and a smoothing; immutable once it has that.

    Args:
        order: highest order to use.
        levels: by depth from 1 on, at least order - 1 tuples (nodes u32, children or None, followers, words u32, codes u8,
            places u64, large u64), of which children and followers are u32 or u64; see kvps/lm/followers.py.
        starts: uint64 (n_parts + 1,), where the nodes of depth 1 of each part begin.
        parts: uint32 (n_words,), the part of what has a word as its last context word; n_parts: any.
        ranks: uint32 (n_words,), the place of each word in byte order.
        pages: of the file.
    """

    def __cinit__(self, int order, list levels, const uint64_t[::1] starts, const uint32_t[::1] parts, const uint32_t[::1] ranks,
                  Pages pages=None):
        cdef const uint32_t[::1] nodes, words
        cdef const byte_t[::1] codes
        cdef const uint64_t[::1] places, large
        cdef level* l
        cdef int d
        cdef index_t i
        if not 1 <= order <= MAX_ORDER or len(levels) < order - 1 or parts.shape[0] != ranks.shape[0] or starts.shape[0] < 2:
            raise ValueError(f"{len(levels)} levels for order {order}, {parts.shape[0]} parts and {ranks.shape[0]} ranks")
        self.take([levels, starts, parts, ranks], pages)
        self.order, self.n_words, self.n_parts = order, parts.shape[0], <uint32_t>(starts.shape[0] - 1)
        self.starts, self.parts, self.ranks = &starts[0], &parts[0], &ranks[0]
        self.compare(&starts[0], 8 * starts.shape[0])
        self.compare(&parts[0], 4 * parts.shape[0])
        self.compare(&ranks[0], 4 * ranks.shape[0])
        for d in range(1, order):
            nodes, children, followers, words, codes, places, large = levels[d - 1]
            l = &self.levels[d]
            l.n_nodes, l.n_words, l.n_large = nodes.shape[0], words.shape[0], large.shape[0]
            if codes.shape[0] != l.n_words or places.shape[0] != l.n_large:
                raise ValueError(f"depth {d}: {l.n_words} words, {codes.shape[0]} codes, {places.shape[0]} places of {l.n_large} large")
            l.nodes = &nodes[0] if l.n_nodes else NULL
            l.words = &words[0] if l.n_words else NULL
            l.codes = &codes[0] if l.n_words else NULL
            if l.n_large:
                l.places, l.large = &places[0], &large[0]
                self.compare(l.places, 8 * l.n_large)
                self.compare(l.large, 8 * l.n_large)
            self.use(&l.followers, followers, l.n_nodes)
            if children is not None:
                self.use(&l.children, children, l.n_nodes)
        if self.order > 1:
            for i in range(self.n_parts):
                if starts[i] > starts[i + 1] or starts[i + 1] > <uint64_t>self.levels[1].n_nodes:
                    raise ValueError(f"part {i} begins at {starts[i]} of {self.levels[1].n_nodes}")

    cdef int use(self, numbers* c, column, index_t n) except -1:
        """Take a column of n + 1 numbers."""
        cdef const uint32_t[::1] narrow
        cdef const uint64_t[::1] wide
        c.wide = column.itemsize == 8
        if len(column) != n + 1:
            raise ValueError(f"{len(column)} starts for {n} contexts")
        if c.wide:
            wide = column
            c.data = <const byte_t*>&wide[0]
        else:
            narrow = column
            c.data = <const byte_t*>&narrow[0]
        return 0

    def smooth(self, int kind, double value, discounts, double vocabulary, grounds):
        """Choose the smoothing, as Tables.smooth().

        grounds: twice (shares float64 (n_words,), the words that have one, uint32, the greatest first and equal ones in byte
            order): after a context, and after none.
        """
        cdef const double[::1] ground
        cdef const uint32_t[::1] by_ground
        cdef int k, j
        cdef index_t i
        for k in range(1, self.order + 1):
            for j in range(4):
                self.rules.discount[k][j] = discounts[k][j]
        self.rules.kind, self.rules.value, self.rules.vocabulary = kind, value, vocabulary
        for k in range(2, self.order + 1):
            for j in range(1, LARGE_CODE):
                self.kept_of[k][j] = kept(&self.rules, k, <uint64_t>j)
        # Odd discounts may leave less of 2 than of 1; 3 and more lose the same.
        self.falling = kind != STUPID_BACKOFF
        for k in range(2, self.order + 1):
            for j in range(1, 4):
                self.falling = self.falling and self.kept_of[k][j] <= self.kept_of[k][j + 1]
        for j in range(2):
            ground, by_ground = grounds[j]
            if ground.shape[0] != self.n_words or by_ground.shape[0] > self.n_words or by_ground.shape[0] == 0:
                raise ValueError(f"{ground.shape[0]} shares of {self.n_words} words, {by_ground.shape[0]} in order")
            for i in range(by_ground.shape[0]):
                if <index_t>by_ground[i] >= self.n_words:
                    raise ValueError(f"word {by_ground[i]} of {self.n_words}")
            self.ground[j], self.by_ground[j], self.n_ground[j] = &ground[0], &by_ground[0], by_ground.shape[0]
        self.owner.append(grounds)

    # Finding lists

    cdef index_t search(self, int d, index_t low, index_t high, word_t word) noexcept nogil:
        """Return the node of depth d in [low, high) that is a word's, or -1."""
        cdef const level* l = &self.levels[d]
        cdef index_t middle
        if high > l.n_nodes:
            return -1
        while low < high:
            middle = (low + high) // 2
            if not usable(self.page, &l.nodes[middle]):
                return -1
            if l.nodes[middle] < word:
                low = middle + 1
            elif l.nodes[middle] > word:
                high = middle
            else:
                return middle
        return -1

    cdef bint bounds(self, const numbers* c, index_t node, index_t limit, index_t* start, index_t* end) noexcept nogil:
        """OUT where what belongs to a node begins and ends; False where there is nothing, or damage."""
        cdef index_t width = 8 if c.wide else 4
        if c.data == NULL or not usable(self.page, c.data + width * node, <uint64_t>(2 * width)):
            return False
        start[0], end[0] = <index_t>number(c, node), <index_t>number(c, node + 1)
        return 0 <= start[0] < end[0] <= limit

    cdef bint list_of(self, int d, index_t node, listing* out) noexcept nogil:
        """OUT the list of a node, with its sums."""
        cdef const level* l = &self.levels[d]
        cdef index_t i, low, high, middle
        cdef uint64_t den = 0
        if not self.bounds(&l.followers, node, l.n_words, &out.start, &out.end):
            return False
        if not (usable(self.page, l.words + out.start, <uint64_t>(4 * (out.end - out.start)))
                and usable(self.page, l.codes + out.start, <uint64_t>(out.end - out.start))):
            return False
        out.d, out.large = d, 0
        i = out.start
        if l.codes[i] == LARGE_CODE:
            low, high = 0, l.n_large
            while low < high:
                middle = (low + high) // 2
                if l.places[middle] < <uint64_t>i:
                    low = middle + 1
                else:
                    high = middle
            out.large = low
            while i < out.end and l.codes[i] == LARGE_CODE:
                den += self.large_value(out, i)
                i += 1
        # The values fall: the ones that are 1, and those that are 2, are the last.
        low, high = i, out.end
        while low < high:
            middle = (low + high) // 2
            if l.codes[middle] > 1:
                low = middle + 1
            else:
                high = middle
        out.n1 = <uint64_t>(out.end - low)
        middle = low
        den += sum_of_bytes(l.codes + i, middle - i)
        while low > out.start and l.codes[low - 1] == 2:
            low -= 1
        out.n2 = <uint64_t>(middle - low)
        out.n3 = <uint64_t>(low - out.start)
        out.den = <double>(den + out.n1)
        if den + out.n1 == 0:
            return False                       # damage: what follows has been seen
        shares(&self.rules, d + 1, out.den, out.n1, out.n2, out.n3, &out.scale, &out.gamma)
        return True

    cdef uint64_t value_at(self, const listing* x, index_t i) noexcept nogil:
        """The value of follower i of a list."""
        cdef const level* l = &self.levels[x.d]
        return l.codes[i] if l.codes[i] != LARGE_CODE else self.large_value(x, i)

    cdef double kept_at(self, const listing* x, index_t i) noexcept nogil:
        """What follower i of a list keeps of its count."""
        cdef byte_t code = self.levels[x.d].codes[i]
        return self.kept_of[x.d + 1][code] if code != LARGE_CODE else kept(&self.rules, x.d + 1, self.large_value(x, i))

    cdef uint64_t large_value(self, const listing* x, index_t i) noexcept nogil:
        """The value of follower i of a list, one of its first, which all have LARGE_CODE."""
        cdef index_t place = x.large + i - x.start
        return self.levels[x.d].large[place] if place < self.levels[x.d].n_large else LARGE_CODE

    cdef int find(self, const word_t* last, int n, listing* lists) noexcept nogil:
        """Find the lists of the context of n words that ends at *last, and of the shorter ones in it.

        OUT lists[d] for depths 1 to d, of which the greatest is returned: longer contexts have not been seen.
        """
        cdef index_t node, below = -1, start, end
        cdef uint32_t part, first, after
        cdef int d
        cdef bint seen = False
        if n < 1 or <index_t>last[0] >= self.n_words:
            return 0
        first = self.parts[last[0]]
        after = first + 1
        if first >= self.n_parts:              # of a word that is split: its list is in one part, what is below it in others
            first, after = 0, self.n_parts
        for part in range(first, after):
            node = self.search(1, <index_t>self.starts[part], <index_t>self.starts[part + 1], last[0])
            if node < 0:
                continue
            if not seen:
                seen = self.list_of(1, node, &lists[1])
            if n > 1 and below < 0 and self.bounds(&self.levels[1].children, node, self.levels[2].n_nodes, &start, &end):
                below = self.search(2, start, end, (last - 1)[0])
        if not seen:
            return 0
        d = 1
        while d < n and below >= 0:
            if not self.list_of(d + 1, below, &lists[d + 1]):
                break
            d += 1
            if d == n or not self.bounds(&self.levels[d].children, below, self.levels[d + 1].n_nodes, &start, &end):
                break
            below = self.search(d + 1, start, end, (last - d)[0])
        return d

    # Adding up

    cdef int weigh(self, const word_t* last, int n, listing* lists, double* scale) noexcept nogil:
        """Find the lists from which the words after a context of n words get something, at most MAX_ORDER - 1.

        OUT lists, in the order of adding up, each with its coefficient; return how many. OUT scale: of the ground.
        """
        cdef listing found[MAX_ORDER + 1]
        cdef double product = 1
        cdef int d, seen = self.find(last, n, found)
        if self.rules.kind == LIDSTONE:
            product = self.rules.value * self.rules.vocabulary + (found[n].den if seen == n else 0)
            scale[0] = self.rules.value / product if product > 0 else 0
            if seen < n:
                return 0
            lists[0] = found[n]
            lists[0].coefficient = 1 / product
            return 1
        if self.rules.kind == STUPID_BACKOFF:
            scale[0] = pow(self.rules.value, n)
            for d in range(1, seen + 1):           # longer contexts come later, and instead
                lists[d - 1] = found[d]
                lists[d - 1].coefficient = pow(self.rules.value, n - d) / found[d].den
            return seen
        for d in range(seen, 0, -1):
            lists[seen - d] = found[d]
            lists[seen - d].coefficient = product * found[d].scale
            product *= found[d].gamma
        scale[0] = product
        return seen

    cdef void sum_up(self, Workspace ws, const word_t* last, int n) noexcept nogil:
        """Add up what the words that follow a context get, beyond their share of the ground; REQUIRES a clear workspace."""
        cdef listing lists[MAX_ORDER]
        cdef listing* x
        cdef const level* l
        cdef int j
        cdef index_t i
        cdef bint instead = self.rules.kind == STUPID_BACKOFF
        n = min(n, self.order - 1)
        ws.scale, ws.alone = 1, n == 0
        if n == 0:
            return
        for j in range(self.weigh(last, n, lists, &ws.scale)):
            x = &lists[j]
            l = &self.levels[x.d]
            i = x.start
            while i < x.end and l.codes[i] == LARGE_CODE:
                ws.add(l.words[i], x.coefficient * kept(&self.rules, x.d + 1, self.large_value(x, i)), instead)
                i += 1
            for i in range(i, x.end):
                ws.add(l.words[i], x.coefficient * self.kept_of[x.d + 1][l.codes[i]], instead)

    cdef double probability(self, Workspace ws, word_t word) noexcept nogil:
        """The probability of a word, once the workspace has what it gets."""
        if ws.sums[word] > 0 and self.rules.kind == STUPID_BACKOFF:
            return ws.sums[word]
        return ws.scale * self.ground[ws.alone][word] + ws.sums[word]

    def distribution(self, Workspace ws, const uint32_t[::1] context, double[::1] out, const uint32_t[::1] words=None):
        """Fill out[i], float64, with the probability of words[i] after a context; without `words`, of word i."""
        cdef index_t i, n = self.n_words if words is None else words.shape[0]
        if out.shape[0] != n:
            raise ValueError(f"room for {out.shape[0]} of {n} words")
        for i in range(n if words is not None else 0):
            if <index_t>words[i] >= self.n_words:
                raise ValueError(f"word {words[i]} of {self.n_words}")
        self.refuse_shape(ws)
        with nogil:
            self.sum_up(ws, &context[0] + context.shape[0] - 1, <int>min(<index_t>MAX_ORDER, context.shape[0]))
            for i in range(n):
                out[i] = self.probability(ws, <word_t>i if words is None else words[i])
            ws.clear()
        self.refuse_damage()

    cdef int64_t rank_of(self, Workspace ws, word_t word, word_t* first) noexcept nogil:
        """Return the place, from 1 on, of a word among all but <s> and <unk>, best first; 0 for one of probability 0 or of these.

        OUT first: the best word; NO_WORD where none has a probability.
        """
        cdef candidate ours, best, c
        cdef index_t i, low = 0, high = self.n_ground[ws.alone], middle
        cdef int64_t before = 0
        cdef const uint32_t* order = self.by_ground[ws.alone]
        cdef const double* ground = self.ground[ws.alone]
        ours.word = word
        ours.p, ours.rank = self.probability(ws, word), self.ranks[word]
        best.p, best.rank, best.word = 0, 0xFFFFFFFF, <word_t>NO_WORD
        for i in range(ws.n_touched):
            c.word = ws.touched[i]
            if c.word == UNK:
                continue
            c.p, c.rank = self.probability(ws, c.word), self.ranks[c.word]
            before += better(c, ours)
            if better(c, best):
                best = c
            c.p = ws.scale * ground[c.word]
            before -= better(c, ours)          # it will be among those that come before by their share of the ground
        for i in range(high):
            c.word = order[i]
            if c.word != BOS and c.word != UNK and not ws.marked(c.word):
                c.p, c.rank = ws.scale * ground[c.word], self.ranks[c.word]
                if c.p > 0 and better(c, best):
                    best = c
                break
        first[0] = best.word
        if ours.p <= 0 or word == UNK or word == BOS:
            return 0
        while low < high:
            middle = (low + high) // 2
            c.p, c.rank = ws.scale * ground[order[middle]], self.ranks[order[middle]]
            if better(c, ours):
                low = middle + 1
            else:
                high = middle
        before += low
        for i in range(2):
            c.word = BOS if i == 0 else UNK
            c.p, c.rank = ws.scale * ground[c.word], self.ranks[c.word]
            before -= ground[c.word] > 0 and better(c, ours)
        return before + 1

    def places(self, Workspace ws, const uint32_t[::1] ids, const uint8_t[::1] history, int64_t[::1] out, uint32_t[::1] first):
        """Find the place of each token among all next words, and the best of these.

        Args:
            ids, history: as those of Tables.score().
            out: int64 (n,), OUT: the place from 1 on; 0 for an unknown word, one of probability 0, and <s> without history.
            first: uint32 (n,), OUT: the best word by the model; NO_WORD where none has a probability.
        """
        cdef index_t i, n = ids.shape[0]
        self.refuse_shape(ws)
        if history.shape[0] != n or out.shape[0] < n or first.shape[0] < n:
            raise ValueError(f"{n} ids, {history.shape[0]} histories, room for {out.shape[0]} places")
        for i in range(n):
            if <index_t>ids[i] >= self.n_words or <index_t>history[i] > i:
                raise ValueError(f"token {i}: word {ids[i]} of {self.n_words} after {history[i]}")
        with nogil:
            for i in range(n):
                out[i], first[i] = 0, <word_t>NO_WORD
                if ids[i] == BOS and history[i] == 0:
                    continue
                self.sum_up(ws, &ids[0] + i - 1, history[i])
                out[i] = self.rank_of(ws, ids[i], &first[i])
                ws.clear()
        self.refuse_damage()

    cdef int refuse_shape(self, Workspace ws) except -1:
        if ws.n_words != self.n_words or self.n_ground[0] == 0:
            raise ValueError(f"a workspace for {ws.n_words} of {self.n_words} words")
        return 0

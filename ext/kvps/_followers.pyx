"""What follows a context: lists of words and their counts, added up to distributions, best words and drawn text.

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
from libc.string cimport memset

from kvps._keys cimport mix
from kvps._pages cimport Paged, Pages, usable
from kvps._smoothing cimport LIDSTONE, STUPID_BACKOFF, kept, shares, smoothing
from kvps._types cimport BOS, EOS, LARGE_CODE, MAX_ORDER, UNK, byte_t, index_t, word_t, uint8_t, uint32_t, uint64_t

cdef enum:
    NO_WORD = 0xFFFFFFFF
    FEW_WORDS = 4096           # are gone through one by one
    LONG_LIST = 256            # worth leaving out the words that cannot be among the best ones
    FIRST = 64                 # words with the greatest shares of the ground
    TRIES = 1000               # to draw a word that is neither <s> nor <unk>

cdef struct numbers:
    # A column of numbers of 4 or 8 bytes.
    const byte_t* data
    bint wide

cdef struct level:
    # The contexts of one depth and their lists, context after context.
    const uint32_t* nodes      # c_d of each
    index_t n_nodes
    numbers children           # n_nodes + 1: where its contexts of the next depth begin; none at the deepest
    numbers followers          # n_nodes + 1: where its list begins
    const uint32_t* words
    const byte_t* codes
    index_t n_words
    const uint64_t* places     # of followers with LARGE_CODE, rising
    const uint64_t* large      # their values
    index_t n_large

cdef struct listing:
    # One context's list.
    int d
    index_t start, end
    index_t large              # the place of its first large value among all
    double den
    uint64_t n1, n2, n3
    double scale, gamma        # see shares()

cdef struct candidate:
    double p
    uint32_t rank
    word_t word


cdef extern from "<algorithm>" namespace "std" nogil:
    # As in libcpp.algorithm, which takes an exception of the comparison into account; ours raise none.
    void make_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept
    void push_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept
    void pop_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept
    void sort_heap(candidate*, candidate*, bint (*)(const candidate&, const candidate&) noexcept nogil) noexcept


cdef inline uint64_t number(const numbers* c, index_t i) noexcept nogil:
    return (<const uint64_t*>c.data)[i] if c.wide else (<const uint32_t*>c.data)[i]


cdef inline uint64_t sum_of_bytes(const byte_t* p, index_t n) noexcept nogil:
    cdef index_t i
    cdef uint64_t total = 0
    for i in range(n):                     # compilers make vectors of this
        total += p[i]
    return total


cdef bint better(const candidate& a, const candidate& b) noexcept nogil:
    """Whether a comes before b: the more probable one, of equals the first in byte order."""
    return a.p > b.p or a.p == b.p and a.rank < b.rank


cdef bint worse(const candidate& a, const candidate& b) noexcept nogil:
    return better(b, a)


cdef inline double drawn(uint64_t* state) noexcept nogil:
    """Return a number in [0, 1), and move the state on. Source: splitmix64, Steele, Lea and Flood 2014."""
    cdef uint64_t z
    state[0] += 0x9E3779B97F4A7C15u
    z = state[0]
    z = (z ^ z >> 30) * <uint64_t>0xBF58476D1CE4E5B9u
    z = (z ^ z >> 27) * <uint64_t>0x94D049BB133111EBu
    return <double>((z ^ z >> 31) >> 11) * (1.0 / 9007199254740992.0)


@cython.final
cdef class Workspace:
    """Scratch of one thread for one Followers: what the words in the lists of a context get."""
    cdef double* sums                      # per word; 0 but for those that are touched
    cdef word_t* touched
    cdef index_t n_touched
    cdef candidate* heap
    cdef candidate* chosen
    cdef index_t n_words
    cdef uint64_t* marks                   # bit per word: touched
    cdef double scale                      # of the ground
    cdef bint alone                        # there is no context, so the ground is that of unigrams

    def __cinit__(self, index_t n_words):
        self.n_words = n_words
        self.sums = <double*>calloc(n_words + 1, sizeof(double))
        self.touched = <word_t*>malloc((n_words + 1) * sizeof(word_t))
        self.heap = <candidate*>malloc((n_words + 1) * sizeof(candidate))
        self.chosen = <candidate*>malloc((n_words + 1) * sizeof(candidate))
        self.marks = <uint64_t*>calloc(n_words // 64 + 1, 8)
        if self.marks == NULL or self.sums == NULL or self.touched == NULL or self.heap == NULL or self.chosen == NULL:
            raise MemoryError(f"no memory for the probabilities of {n_words} words")

    def __dealloc__(self):
        free(self.sums)
        free(self.touched)
        free(self.heap)
        free(self.chosen)
        free(self.marks)

    cdef inline bint marked(self, word_t word) noexcept nogil:
        return self.marks[word >> 6] >> (word & 63) & 1

    cdef inline void add(self, word_t word, double share, bint instead) noexcept nogil:
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
        ranks: uint32 (n_words,), the place of each word in byte order; by_rank: uint32 (n_words,), the words in it.
        pages: of the file.
    """
    cdef readonly int order
    cdef level levels[MAX_ORDER]
    cdef const uint64_t* starts
    cdef uint32_t n_parts
    cdef const uint32_t* parts
    cdef const uint32_t* ranks
    cdef const uint32_t* by_rank
    cdef readonly index_t n_words
    cdef smoothing rules
    cdef double kept_of[MAX_ORDER + 1][256]        # of a value below LARGE_CODE, by order
    # [0] after some context, [1] after none: each word's share of the ground, and the words by it, best first
    cdef const double* ground[2]
    cdef const uint32_t* by_ground[2]
    cdef index_t n_ground[2]
    cdef uint64_t* first                           # bit per word: among the FIRST ones by ground[0]

    def __cinit__(self, int order, list levels, const uint64_t[::1] starts, const uint32_t[::1] parts, const uint32_t[::1] ranks,
                  const uint32_t[::1] by_rank, Pages pages=None):
        cdef const uint32_t[::1] nodes, words
        cdef const byte_t[::1] codes
        cdef const uint64_t[::1] places, large
        cdef level* l
        cdef int d
        cdef index_t i
        if not 1 <= order <= MAX_ORDER or len(levels) < order - 1 or parts.shape[0] != ranks.shape[0] \
                or by_rank.shape[0] != ranks.shape[0] or starts.shape[0] < 2:
            raise ValueError(f"{len(levels)} levels for order {order}, {parts.shape[0]} parts and {ranks.shape[0]} ranks")
        self.take([levels, starts, parts, ranks, by_rank], pages)
        self.order, self.n_words, self.n_parts = order, parts.shape[0], <uint32_t>(starts.shape[0] - 1)
        self.starts, self.parts, self.ranks = &starts[0], &parts[0], &ranks[0]
        self.by_rank = &by_rank[0]
        self.compare(&starts[0], 8 * starts.shape[0])
        self.compare(&parts[0], 4 * parts.shape[0])
        self.compare(&ranks[0], 4 * ranks.shape[0])
        self.first = <uint64_t*>calloc(self.n_words // 64 + 1, 8)
        if self.first == NULL:
            raise MemoryError(f"no memory for a bit of each of {self.n_words} words")
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

    def __dealloc__(self):
        free(self.first)

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
        for j in range(2):
            ground, by_ground = grounds[j]
            if ground.shape[0] != self.n_words or by_ground.shape[0] > self.n_words or by_ground.shape[0] == 0:
                raise ValueError(f"{ground.shape[0]} shares of {self.n_words} words, {by_ground.shape[0]} in order")
            for i in range(by_ground.shape[0]):
                if <index_t>by_ground[i] >= self.n_words:
                    raise ValueError(f"word {by_ground[i]} of {self.n_words}")
            self.ground[j], self.by_ground[j], self.n_ground[j] = &ground[0], &by_ground[0], by_ground.shape[0]
        memset(self.first, 0, 8 * (self.n_words // 64 + 1))
        for i in range(min(<index_t>FIRST, self.n_ground[0])):
            self.first[self.by_ground[0][i] >> 6] |= <uint64_t>1 << (self.by_ground[0][i] & 63)
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
                den += self.large_value(l, out, i)
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

    cdef inline double kept_at(self, const listing* x, index_t i) noexcept nogil:
        """What follower i of a list keeps of its count."""
        cdef const level* l = &self.levels[x.d]
        if l.codes[i] != LARGE_CODE:
            return self.kept_of[x.d + 1][l.codes[i]]
        return kept(&self.rules, x.d + 1, self.large_value(l, x, i))

    cdef inline uint64_t large_value(self, const level* l, const listing* x, index_t i) noexcept nogil:
        """The value of follower i of a list, one of its first, which all have LARGE_CODE."""
        cdef index_t place = x.large + i - x.start
        return l.large[place] if place < l.n_large else LARGE_CODE

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

    cdef void spread(self, Workspace ws, const listing* x, double coefficient, bint instead) noexcept nogil:
        """Give each word of a list what it keeps of its count, times a coefficient."""
        cdef const level* l = &self.levels[x.d]
        cdef const double* kept_of = self.kept_of[x.d + 1]
        cdef index_t i = x.start
        while i < x.end and l.codes[i] == LARGE_CODE:
            ws.add(l.words[i], coefficient * kept(&self.rules, x.d + 1, self.large_value(l, x, i)), instead)
            i += 1
        while i < x.end:
            ws.add(l.words[i], coefficient * kept_of[l.codes[i]], instead)
            i += 1

    cdef void spread_best(self, Workspace ws, const listing* x, double coefficient, index_t k) noexcept nogil:
        """As spread(), as the last one and of a long list, where only the k best words are asked for.

        Those that cannot be among these, most of such a list, get nothing, unless they have got something before or are among the
        first of the ground. REQUIRES ws.scale.
        """
        cdef const level* l = &self.levels[x.d]
        cdef index_t i = x.start
        # k words, and <s> and <unk> if they do not count, have as much as the last one of them has here; others at most a share
        # here and one of the ground, which is not among the first ones.
        cdef double least = coefficient * self.kept_at(x, i + k + 1) if i + k + 1 < x.end else 0
        cdef double most = ws.scale * self.ground[0][self.by_ground[0][FIRST]] if FIRST < self.n_ground[0] else 0
        cdef double share
        cdef const word_t* words = l.words
        cdef const uint64_t* marks = ws.marks
        cdef const uint64_t* first = self.first
        cdef word_t word, n_words = <word_t>self.n_words
        while i < x.end:
            share = coefficient * self.kept_at(x, i)
            if share + most < least:
                break
            ws.add(words[i], share, False)
            i += 1
        for i in range(i, x.end):
            word = words[i]
            if word < n_words and (marks[word >> 6] | first[word >> 6]) >> (word & 63) & 1:
                ws.add(word, coefficient * self.kept_at(x, i), False)

    cdef void sum_up(self, Workspace ws, const word_t* last, int n, index_t k) noexcept nogil:
        """Add up what the words that follow a context get, beyond their share of the ground; REQUIRES a clear workspace.

        k: how many of the best words are asked for; 0: any.
        """
        cdef listing lists[MAX_ORDER + 1]
        cdef double coefficients[MAX_ORDER + 1]
        cdef int d, seen, most = self.order - 1
        cdef double product = 1
        n = most if n > most else n
        ws.scale, ws.alone = 1, n == 0
        if n == 0:
            return
        seen = self.find(last, n, lists)
        if self.rules.kind == LIDSTONE:
            product = self.rules.value * self.rules.vocabulary + (lists[n].den if seen == n else 0)
            ws.scale = self.rules.value / product if product > 0 else 0
            if seen == n:
                self.spread(ws, &lists[n], 1 / product, False)
        elif self.rules.kind == STUPID_BACKOFF:
            ws.scale = pow(self.rules.value, n)
            for d in range(1, seen + 1):
                self.spread(ws, &lists[d], pow(self.rules.value, n - d) / lists[d].den, True)
        else:
            for d in range(seen, 0, -1):
                coefficients[d] = product * lists[d].scale
                product *= lists[d].gamma
            ws.scale = product
            for d in range(seen, 0, -1):
                if k > 0 and d == 1 and lists[1].end - lists[1].start >= LONG_LIST:
                    self.spread_best(ws, &lists[1], coefficients[1], k)
                else:
                    self.spread(ws, &lists[d], coefficients[d], False)

    cdef inline double probability(self, Workspace ws, word_t word) noexcept nogil:
        """The probability of a word, once the workspace has what it gets."""
        if ws.sums[word] > 0 and self.rules.kind == STUPID_BACKOFF:
            return ws.sums[word]
        return ws.scale * self.ground[ws.alone][word] + ws.sums[word]

    cdef index_t best(self, Workspace ws, index_t k, bint drawn_from, index_t low, index_t high) noexcept nogil:
        """Find the k best words: ws.heap[:n], best first, without those of probability 0; return n.

        drawn_from: <s> and <unk> do not count. low, high: only words whose place in byte order is in [low, high).
        """
        cdef candidate c
        cdef index_t i, n = 0
        cdef const uint32_t* order = self.by_ground[ws.alone]
        cdef double most = ws.scale * self.ground[ws.alone][order[0]]
        cdef bint every = low == 0 and high >= self.n_words
        for i in range(ws.n_touched):
            c.word = ws.touched[i]
            if drawn_from and c.word == UNK:   # of a closed vocabulary, where it has counts
                continue
            if n == k and ws.sums[c.word] + most < ws.heap[0].p:
                continue                       # most of them: neither their share of the ground nor their rank is looked at
            c.p = self.probability(ws, c.word)
            if n == k and c.p < ws.heap[0].p:
                continue
            c.rank = self.ranks[c.word]
            if every or low <= <index_t>c.rank < high:
                n = offer(ws.heap, n, k, &c)
        if high - low < FEW_WORDS:
            for i in range(low, high):
                self.consider(ws, self.by_rank[i], &n, k, drawn_from)
        else:
            for i in range(self.n_ground[ws.alone]):
                c.word = order[i]
                c.p = ws.scale * self.ground[ws.alone][c.word]
                if c.p <= 0 or n == k and c.p < ws.heap[0].p:
                    break                      # nor can any of those that come be better
                if every or low <= <index_t>self.ranks[c.word] < high:
                    self.consider(ws, c.word, &n, k, drawn_from)
        sort_heap(ws.heap, ws.heap + n, &better)
        return n

    cdef inline void consider(self, Workspace ws, word_t word, index_t* n, index_t k, bint drawn_from) noexcept nogil:
        """Keep a word that is not touched if it is one of the k best."""
        cdef candidate c
        if <index_t>word >= self.n_words or ws.marked(word) or drawn_from and (word == BOS or word == UNK):
            return
        c.word = word
        c.p = ws.scale * self.ground[ws.alone][word]
        if c.p > 0 and (n[0] < k or c.p >= ws.heap[0].p):
            c.rank = self.ranks[word]
            n[0] = offer(ws.heap, n[0], k, &c)

    cdef index_t best_often(self, Workspace ws, const word_t* last, int known, index_t k, index_t low, index_t high,
                            uint64_t least) noexcept nogil:
        """As best() of drawn words, but only those seen at least so often after the longest context that was seen at all."""
        cdef listing lists[MAX_ORDER + 1]
        cdef int d = self.find(last, min(known, self.order - 1), lists)
        cdef const level* l = &self.levels[d]
        cdef candidate c
        cdef index_t i, n = 0
        if d == 0:
            return 0
        for i in range(lists[d].start, lists[d].end):
            if (self.large_value(l, &lists[d], i) if l.codes[i] == LARGE_CODE else <uint64_t>l.codes[i]) < least:
                break                          # they are listed by their counts
            c.word = l.words[i]
            if c.word != UNK and <index_t>c.word < self.n_words and low <= <index_t>self.ranks[c.word] < high:
                c.p, c.rank = self.probability(ws, c.word), self.ranks[c.word]
                n = offer(ws.heap, n, k, &c)
        sort_heap(ws.heap, ws.heap + n, &better)
        return n

    def extend(self, Workspace ws, const uint32_t[::1] ids, const int64_t[::1] ends, index_t k, index_t low, index_t high,
               uint64_t least, uint32_t[:, ::1] words, double[:, ::1] p, int64_t[::1] found):
        """As top(), but of words that may go on with a text: neither <s> nor <unk>, and others on conditions.

        Args:
            low, high: only words whose place in byte order is in [low, high).
            least: only words that were seen so often after the longest context that was seen at all; 0: any.
        """
        cdef index_t i, j, start = 0, n = ends.shape[0]
        cdef int known
        self.refuse_shape(ws, ids, ends)
        if (words.shape[0] < n or p.shape[0] < n or words.shape[1] < k or p.shape[1] < k or found.shape[0] < n
                or not 1 <= k <= self.n_words or not 0 <= low <= high <= self.n_words):
            raise ValueError(f"room for {words.shape[0]} times {words.shape[1]} of {n} times {k} words")
        with nogil:
            for i in range(n):
                known = <int>min(<index_t>MAX_ORDER, ends[i] - start)
                self.sum_up(ws, &ids[0] + ends[i] - 1, known, k if least == 0 and low == 0 and high == self.n_words else 0)
                if least == 0:
                    found[i] = self.best(ws, k, True, low, high)
                else:
                    found[i] = self.best_often(ws, &ids[0] + ends[i] - 1, known, k, low, high, least)
                for j in range(found[i]):
                    words[i, j], p[i, j] = ws.heap[j].word, ws.heap[j].p
                ws.clear()
                start = ends[i]
        self.refuse_damage()

    def top(self, Workspace ws, const uint32_t[::1] ids, const int64_t[::1] ends, index_t k, uint32_t[:, ::1] words,
            double[:, ::1] p, int64_t[::1] found):
        """Find the best words after each of n contexts, best first, those of equal probability in byte order.

        Args:
            ids: uint32, context after context; ends: int64 (n,), where each ends.
            words, p: (n, k), OUT; found: int64 (n,), OUT, how many there are: fewer where others have probability 0.
        """
        cdef index_t i, j, start = 0, n = ends.shape[0]
        self.refuse_shape(ws, ids, ends)
        if (words.shape[0] < n or p.shape[0] < n or words.shape[1] < k or p.shape[1] < k or found.shape[0] < n
                or not 1 <= k <= self.n_words):
            raise ValueError(f"room for {words.shape[0]} times {words.shape[1]} of {n} times {k} words")
        with nogil:
            for i in range(n):
                self.sum_up(ws, &ids[0] + ends[i] - 1, <int>min(<index_t>MAX_ORDER, ends[i] - start), k)
                found[i] = self.best(ws, k, False, 0, self.n_words)
                for j in range(found[i]):
                    words[i, j], p[i, j] = ws.heap[j].word, ws.heap[j].p
                ws.clear()
                start = ends[i]
        self.refuse_damage()

    def distribution(self, Workspace ws, const uint32_t[::1] context, double[::1] out, const uint32_t[::1] words=None):
        """Fill out[i], float64, with the probability of words[i] after a context; without `words`, of word i."""
        cdef index_t i, n = self.n_words if words is None else words.shape[0]
        if out.shape[0] != n:
            raise ValueError(f"room for {out.shape[0]} of {n} words")
        for i in range(n if words is not None else 0):
            if <index_t>words[i] >= self.n_words:
                raise ValueError(f"word {words[i]} of {self.n_words}")
        self.refuse_shape(ws, context, None)
        with nogil:
            self.sum_up(ws, &context[0] + context.shape[0] - 1, <int>min(<index_t>MAX_ORDER, context.shape[0]), 0)
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
        self.refuse_shape(ws, ids, None)
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
                self.sum_up(ws, &ids[0] + i - 1, history[i], 0)
                out[i] = self.rank_of(ws, ids[i], &first[i])
                ws.clear()
        self.refuse_damage()

    cdef int refuse_shape(self, Workspace ws, const uint32_t[::1] ids, const int64_t[::1] ends) except -1:
        cdef index_t i, start = 0
        if ws.n_words != self.n_words or self.n_ground[0] == 0:
            raise ValueError(f"a workspace for {ws.n_words} of {self.n_words} words")
        if ends is not None:
            for i in range(ends.shape[0]):
                if not start <= ends[i] <= ids.shape[0]:
                    raise ValueError(f"context {i} ends at {ends[i]} of {ids.shape[0]}")
                start = ends[i]
        return 0

    # Drawing

    cdef word_t picked(self, const listing* x, double target) noexcept nogil:
        """Return the word of a list at which what the words keep adds up to more than target."""
        cdef index_t i = x.start
        while i < x.end - 1:
            target -= self.kept_at(x, i)
            if target < 0:
                break
            i += 1
        return self.levels[x.d].words[i]

    cdef word_t draw(self, const word_t* last, int n, const double* reached, int tries, uint64_t* state) noexcept nogil:
        """Draw a word that is neither <s> nor <unk> by walking down: at each context its own words, or on to the shorter one.

        reached[i]: the sum of the shares of the ground of the first i + 1 words by it. NO_WORD if so many tries give none.
        """
        cdef listing lists[MAX_ORDER + 1]
        cdef int d, seen, tried
        cdef index_t low, high, middle, n_ground = self.n_ground[n == 0]
        cdef double r, total
        cdef word_t word
        seen = self.find(last, n, lists)
        for tried in range(tries):
            word = <word_t>NO_WORD
            if self.rules.kind == LIDSTONE and n > 0:
                total = self.rules.value * self.rules.vocabulary + (lists[n].den if seen == n else 0)
                r = drawn(state) * total
                if total <= 0:
                    break
                if seen == n and r < lists[n].den:
                    word = self.picked(&lists[n], r)
            else:
                for d in range(seen, 0, -1):
                    r = drawn(state)
                    if r < 1 - lists[d].gamma:
                        word = self.picked(&lists[d], r / lists[d].scale)
                        break
            if word == <word_t>NO_WORD:
                r = drawn(state) * reached[n_ground - 1]
                low, high = 0, n_ground - 1
                while low < high:
                    middle = (low + high) // 2
                    if reached[middle] <= r:
                        low = middle + 1
                    else:
                        high = middle
                word = self.by_ground[n == 0][low]
            if word != BOS and word != UNK and <index_t>word < self.n_words and reached[n_ground - 1] > 0:
                return word
        return <word_t>NO_WORD

    def draw_word(self, const uint32_t[::1] context, const double[::1] reached, uint64_t seed):
        """Draw one word after a context; NO_WORD where it is <s> or <unk>, or none has a probability. Arguments as generate()."""
        cdef int n = <int>min(context.shape[0], <index_t>self.order - 1)
        cdef word_t word
        if reached.shape[0] != self.n_ground[n == 0]:
            raise ValueError(f"{reached.shape[0]} sums of {self.n_ground[n == 0]} words")
        with nogil:
            word = self.draw(&context[0] + context.shape[0] - 1, n, &reached[0], 1, &seed)
        self.refuse_damage()
        return word

    cdef double most(self, bint alone) noexcept nogil:
        """The greatest share of the ground that a word has, <s> and <unk> left out."""
        cdef index_t i
        for i in range(self.n_ground[alone]):
            if self.by_ground[alone][i] != BOS and self.by_ground[alone][i] != UNK:
                return self.ground[alone][self.by_ground[alone][i]]
        return 0

    cdef word_t choose(self, Workspace ws, const word_t* last, int n, double sharpness, index_t top_k, double top_p,
                       const double* tempered, uint64_t* state) noexcept nogil:
        """Draw one of the best words, each by the power `sharpness` of its probability."""
        cdef index_t i, at = 0, n_heap = 0, n_chosen = 0
        cdef const uint32_t* order
        cdef double total = 0, rest, r, ground, top, reached = 0
        cdef candidate c, other
        cdef bint from_heap
        self.sum_up(ws, last, n, top_k)
        order = self.by_ground[ws.alone]
        # Powers are those of shares of the greatest, so that they do not all become 0 at low temperatures.
        if top_k > 0:
            n_chosen = self.best(ws, top_k, True, 0, self.n_words)
            for i in range(n_chosen):
                ws.chosen[i] = ws.heap[i]
                ws.chosen[i].p = raised(ws.heap[i].p / ws.heap[0].p, sharpness)
                total += ws.chosen[i].p
        else:
            # All words there are: those in the lists, and of the others the sum.
            ground = ws.scale * self.most(ws.alone)
            top = ground
            rest = tempered[self.n_words]
            for i in range(ws.n_touched):
                rest -= tempered[ws.touched[i]]
                c.word = ws.touched[i]
                if c.word == UNK:
                    continue
                c.p, c.rank = self.probability(ws, c.word), self.ranks[c.word]
                top = max(top, c.p)
                ws.heap[n_heap] = c
                n_heap += 1
            if top <= 0:
                ws.clear()
                return <word_t>NO_WORD
            ground = raised(ground / top, sharpness)
            for i in range(n_heap):
                ws.heap[i].p = raised(ws.heap[i].p / top, sharpness)
                total += ws.heap[i].p
            rest = rest * ground if rest > 0 else 0
            if top_p >= 1:
                r = drawn(state) * (total + rest)
                for i in range(n_heap):
                    ws.chosen[i] = ws.heap[i]
                n_chosen = n_heap
                if r >= total:
                    c.word = <word_t>NO_WORD
                    r -= total
                    for i in range(self.n_ground[ws.alone]):
                        if ws.sums[order[i]] > 0 or tempered[order[i]] <= 0:
                            continue
                        c.word = order[i]
                        r -= tempered[order[i]] * ground
                        if r < 0:
                            break
                    ws.clear()
                    return c.word
                ws.clear()
                return taken(ws.chosen, n_chosen, r)
            total += rest
            make_heap(ws.heap, ws.heap + n_heap, &worse)
            while reached < top_p * total:
                while at < self.n_ground[ws.alone] and (ws.sums[order[at]] > 0 or tempered[order[at]] <= 0):
                    at += 1
                from_heap = n_heap > 0
                if at < self.n_ground[ws.alone]:
                    other.word = order[at]
                    other.p, other.rank = tempered[order[at]] * ground, self.ranks[order[at]]
                    from_heap = n_heap > 0 and better(ws.heap[0], other)
                elif n_heap == 0:
                    break
                if from_heap:
                    ws.chosen[n_chosen] = ws.heap[0]
                    pop_heap(ws.heap, ws.heap + n_heap, &worse)
                    n_heap -= 1
                else:
                    ws.chosen[n_chosen] = other
                    at += 1
                reached += ws.chosen[n_chosen].p
                n_chosen += 1
            ws.clear()
            return taken(ws.chosen, n_chosen, drawn(state) * reached)
        # Of the k best, the fewest that have top_p of what these have together.
        for i in range(n_chosen):
            reached += ws.chosen[i].p
            if reached >= top_p * total:
                n_chosen = i + 1
                break
        ws.clear()
        return taken(ws.chosen, n_chosen, drawn(state) * reached)

    def generate(self, Workspace ws, const uint32_t[::1] prompt, uint64_t seed, uint64_t first, index_t max_words,
                 double temperature, index_t top_k, double top_p, const double[::1] reached, const double[::1] tempered,
                 uint32_t[:, ::1] out, int64_t[::1] lengths, uint8_t[::1] ends):
        """Draw sentences that go on from a prompt, each with random numbers of its own, so that they can be drawn in any order.

        Args:
            prompt: uint32, not empty: the words before, from <s> on.
            first: number of the first sentence; sentence `first + i` is row i.
            temperature: above 0. top_k: the best k words only; 0: all. top_p: the best words only that have this mass.
            reached: see draw(); tempered: float64 (n_words + 1,), each word's share of the ground, divided by the greatest one, to
                the power of 1 / temperature, 0 for <s> and <unk>, and the sum of all.
            out: (n, max_words), OUT the words of each, without </s>. lengths: int64 (n,), OUT how many.
            ends: uint8 (n,), OUT 1 where </s> came, 0 where max_words did, 2 where no word has a probability.
        """
        cdef index_t i, j, n = out.shape[0], length
        cdef int known, most = self.order - 1
        cdef uint64_t state
        cdef word_t recent[MAX_ORDER]
        cdef word_t word
        cdef bint plain = temperature == 1 and top_k == 0 and top_p >= 1
        cdef double sharpness = 1 / temperature
        self.refuse_shape(ws, prompt, None)
        if (prompt.shape[0] < 1 or out.shape[1] < max_words or lengths.shape[0] < n or ends.shape[0] < n
                or tempered.shape[0] != self.n_words + 1 or reached.shape[0] != self.n_ground[most == 0] or not temperature > 0 or top_k < 0):
            raise ValueError(f"a prompt of {prompt.shape[0]} words, room for {out.shape[0]} times {out.shape[1]}")
        top_k = min(top_k, self.n_words)
        with nogil:
            for i in range(n):
                state = mix(mix(seed, 0x6b767073), first + <uint64_t>i)
                known = <int>min(<index_t>most, prompt.shape[0])
                for j in range(known):
                    recent[j] = prompt[prompt.shape[0] - known + j]
                length = 0
                ends[i] = 0
                while length < max_words:
                    if plain:
                        word = self.draw(recent + known - 1, known, &reached[0], TRIES, &state)
                    if not plain or word == <word_t>NO_WORD:           # perhaps <unk> has nearly all there is
                        word = self.choose(ws, recent + known - 1, known, sharpness, top_k, top_p, &tempered[0], &state)
                    if word == EOS or word == <word_t>NO_WORD:
                        ends[i] = 1 if word == EOS else 2
                        break
                    out[i, length] = word
                    length += 1
                    if known == most:
                        for j in range(known - 1):
                            recent[j] = recent[j + 1]
                        known -= known > 0
                    if most > 0:
                        recent[known] = word
                        known += 1
                lengths[i] = length
        self.refuse_damage()


cdef inline double raised(double p, double sharpness) noexcept nogil:
    return p if sharpness == 1 else pow(p, sharpness)


cdef index_t offer(candidate* heap, index_t n, index_t k, const candidate* c) noexcept nogil:
    """Keep a candidate if it is one of the k best; the worst of the n that are kept is heap[0]. Return the new n."""
    if n < k:
        heap[n] = c[0]
        push_heap(heap, heap + n + 1, &better)
        return n + 1
    if better(c[0], heap[0]):
        pop_heap(heap, heap + n, &better)
        heap[n - 1] = c[0]
        push_heap(heap, heap + n, &better)
    return n


cdef word_t taken(const candidate* chosen, index_t n, double target) noexcept nogil:
    """Return the candidate at which the weights add up to more than target."""
    cdef index_t i
    for i in range(n):
        target -= chosen[i].p
        if target < 0:
            return chosen[i].word
    return chosen[n - 1].word if n > 0 else <word_t>NO_WORD

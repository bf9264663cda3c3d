"""The best next words after a context, of one model or of several by their weights.

What a word gets is a sum over lists, in each of which the words that get most come first: the list of each context in the one
that is asked for, and the ground. So the lists are gone down side by side, until what is left of them could add less to a word
that has not been met than k words have already (threshold algorithm: Fagin, Lotem and Naor 2001). The words that may be among
the best ones, a hundred of a hundred thousand, are then looked for in the whole lists, and summed up as _followers.pyx does it,
to the last bit.
Twin: the distribution, in tests/property/test_followers.py.
"""
cimport cython

from cpython.ref cimport PyObject
from libc.stdlib cimport calloc, free

from kvps._followers cimport Followers, Workspace, better, candidate, listing, pop_heap, push_heap, sort_heap, source
from kvps._smoothing cimport STUPID_BACKOFF
from kvps._types cimport BOS, MAX_ORDER, UNK, index_t, int64_t, uint32_t, uint64_t, word_t

cdef enum:
    FEW_WORDS = 1024           # are looked for one and all

cdef double DEEPER = 0.25      # of what words got, go down to this next
cdef double LEFT = 0.5         # of what k words have, is little for the rest of the lists
cdef double ROUNDED = 1e-12    # sums that come two ways may differ by this part


@cython.final
cdef class Best:
    """Models whose best next words are asked for.

    Args:
        models: at least one (Followers with a smoothing, weight, own, here): own is uint32 (n_words,), the id that it has for each
            word, UNK where it lacks it, and here uint32, by its ids, the words; both None: they are the same.
        ranks: uint32 (n_words,), the place of each word in byte order; by_rank: uint32 (n_words,), the words in it.
    """

    def __cinit__(self, models, const uint32_t[::1] ranks, const uint32_t[::1] by_rank):
        cdef const uint32_t[::1] own, here
        cdef Followers followers
        cdef part* p
        cdef index_t i
        self.owner = [list(models), ranks, by_rank]
        self.parts = <part*>calloc(len(models) + 1, sizeof(part))
        if self.parts == NULL:
            raise MemoryError(f"no memory for {len(models)} models")
        if ranks.shape[0] != by_rank.shape[0] or ranks.shape[0] == 0 or len(models) == 0:
            raise ValueError(f"{len(models)} models, {ranks.shape[0]} places of {by_rank.shape[0]} words")
        self.ranks, self.by_rank, self.n_words = &ranks[0], &by_rank[0], ranks.shape[0]
        self.n_room, self.order, self.falling = self.n_words, 1, True
        for i in range(self.n_words):
            if <index_t>by_rank[i] >= self.n_words:
                raise ValueError(f"word {by_rank[i]} of {self.n_words}")
        for followers, weight, own, here in models:
            p = &self.parts[self.n_parts]
            p.followers, p.weight = <PyObject*>followers, weight
            self.n_room = max(self.n_room, followers.n_words)
            self.order = max(self.order, followers.order)
            self.falling = self.falling and followers.falling
            if followers.n_ground[0] == 0:
                raise ValueError(f"model {self.n_parts} has no smoothing")
            if own is None and here is None and followers.n_words == self.n_words:
                self.n_parts += 1
                continue
            if own is None or here is None or own.shape[0] != self.n_words or here.shape[0] > followers.n_words or here.shape[0] == 0:
                raise ValueError(f"model {self.n_parts} of {followers.n_words} words, among {self.n_words}")
            for i in range(self.n_words):
                if <index_t>own[i] >= followers.n_words:
                    raise ValueError(f"word {own[i]} of {followers.n_words}")
            for i in range(here.shape[0]):
                if <index_t>here[i] >= self.n_words:
                    raise ValueError(f"word {here[i]} of {self.n_words}")
            p.own, p.here, p.n_here = &own[0], &here[0], here.shape[0]
            self.n_parts += 1

    def __dealloc__(self):
        free(self.parts)

    cdef word_t here_of(self, const part* p, word_t word) noexcept nogil:
        """Return our id of a model's word."""
        if p.here == NULL:
            return word
        return p.here[word] if <index_t>word < p.n_here else <word_t>UNK

    # Which words

    cdef int gather(self, Workspace ws, const word_t* last, int n) noexcept nogil:
        """Find what gives something to the words after a context; return how many sources that are.

        OUT ws.sources: the ground of each model, then the lists of the first model, those of the second one, and so on.
        """
        cdef listing lists[MAX_ORDER]
        cdef word_t words[MAX_ORDER]
        cdef const part* p
        cdef source* s
        cdef double scale
        cdef int i, j, known, found, n_sources = self.n_parts
        for i in range(self.n_parts):
            p = &self.parts[i]
            known = min(n, (<Followers>p.followers).order - 1)
            found, scale = 0, 1
            if known > 0:
                for j in range(known):
                    words[known - 1 - j] = p.own[(last - j)[0]] if p.own != NULL else (last - j)[0]
                found = (<Followers>p.followers).weigh(words + known - 1, known, lists, &scale)
            s = &ws.sources[i]
            s.model, s.order = i, (<Followers>p.followers).by_ground[known == 0]
            s.x.d, s.x.start, s.x.end = known == 0, 0, (<Followers>p.followers).n_ground[known == 0]
            s.x.coefficient = scale * p.weight
            for j in range(found):
                s = &ws.sources[n_sources]
                s.model, s.x = i, lists[j]
                s.order = NULL
                s.x.coefficient *= p.weight
                n_sources += 1
        return n_sources

    cdef bint touch(self, Workspace ws, word_t word, bint drawn_from, index_t low, index_t high) noexcept nogil:
        """Take a word in, unless it was; False if it does not count."""
        if (<index_t>word >= self.n_words or drawn_from and (word == UNK or word == BOS)
                or not low <= <index_t>self.ranks[word] < high):
            return False
        if not ws.marked(word):
            ws.touched[ws.n_touched] = word
            ws.n_touched += 1
            ws.marks[word >> 6] |= <uint64_t>1 << (word & 63)
        return True

    cdef void down_to(self, Workspace ws, source* s, double least, bint drawn_from, index_t low, index_t high) noexcept nogil:
        """Take in the next words of a source that get at least so much, and add it to what they have."""
        cdef const part* p = &self.parts[s.model]
        cdef const uint32_t* words = s.order
        cdef word_t word
        if s.order == NULL:
            words = (<Followers>p.followers).levels[s.x.d].words
        while s.at < s.x.end and s.next >= least:
            word = self.here_of(p, words[s.at])
            if self.touch(ws, word, drawn_from, low, high):
                ws.sums[word] += s.next
            s.at += 1
            look_at(<Followers>p.followers, s)

    cdef void touch_promising(self, Workspace ws, int n_sources, index_t k, bint drawn_from, index_t low, index_t high) noexcept nogil:
        """Take in all words in [low, high) that can be among the k best ones, and few others."""
        cdef source* s
        cdef double least = 0, rest = 1, reached = 0
        cdef int i
        cdef index_t j, kept = 0
        cdef word_t word
        for i in range(n_sources):
            s = &ws.sources[i]
            s.at = s.x.start
            look_at(<Followers>self.parts[s.model].followers, s)
            least = max(least, s.next)
        # STEP 1: down all lists, until a word that has not been met can get but little.
        while rest > LEFT * reached:
            least *= DEEPER
            rest = 0
            for i in range(n_sources):
                self.down_to(ws, &ws.sources[i], least, drawn_from, low, high)
                rest += ws.sources[i].next
            reached = self.kth(ws, k) if ws.n_touched >= k else 0
        # STEP 2: keep what can get as far with the rest.
        for j in range(ws.n_touched):
            word = ws.touched[j]
            if ws.sums[word] + rest >= reached * (1 - ROUNDED):
                ws.touched[kept] = word
                kept += 1
            else:
                ws.marks[word >> 6] &= ~(<uint64_t>1 << (word & 63))
            ws.sums[word] = 0
        ws.n_touched = kept

    cdef double kth(self, Workspace ws, index_t k) noexcept nogil:
        """The k-th greatest sum that a word has."""
        cdef candidate c
        cdef index_t i, n = 0
        c.rank = 0
        for i in range(ws.n_touched):
            c.p, c.word = ws.sums[ws.touched[i]], ws.touched[i]
            n = offer(ws.heap, n, k, &c)
        return ws.heap[0].p

    cdef void touch_frequent(self, Followers followers, Workspace ws, const word_t* last, int n, index_t low, index_t high,
                             uint64_t least) noexcept nogil:
        """Take in the words in [low, high) that were seen so often after the longest context that was seen at all; of one model."""
        cdef listing lists[MAX_ORDER + 1]
        cdef int d = followers.find(last, min(n, followers.order - 1), lists)
        cdef index_t i
        if d == 0:
            return
        for i in range(lists[d].start, lists[d].end):
            if followers.value_at(&lists[d], i) < least:
                break                              # they are listed by their counts
            self.touch(ws, followers.levels[d].words[i], True, low, high)

    # What they get

    cdef void add_up(self, Workspace ws, int n_sources) noexcept nogil:
        """Add up what the words that were taken in get, beyond their shares of the grounds."""
        cdef const part* p
        cdef uint64_t* marks = ws.marks
        cdef int i, model = -1
        for i in range(self.n_parts, n_sources):
            if ws.sources[i].model != model:
                model = ws.sources[i].model
                p = &self.parts[model]
                marks = ws.marks if p.own == NULL else ws.theirs
                self.mark(ws, p, True)
            self.add_marked(<Followers>p.followers, ws, &ws.sources[i], marks)
            if i + 1 == n_sources or ws.sources[i + 1].model != model:
                self.mark(ws, p, False)

    cdef void mark(self, Workspace ws, const part* p, bint on) noexcept nogil:
        """Mark the words that were taken in by the ids of a model, or take that back."""
        cdef index_t i
        cdef word_t word
        if p.own == NULL:
            return
        for i in range(ws.n_touched):
            word = p.own[ws.touched[i]]
            if not on:
                ws.theirs[word >> 6] = 0
            elif word != UNK or ws.touched[i] == UNK:
                ws.theirs[word >> 6] |= <uint64_t>1 << (word & 63)

    cdef void add_marked(self, Followers followers, Workspace ws, const source* s, const uint64_t* marks) noexcept nogil:
        """Add to the words that are marked what a list gives them."""
        cdef const part* p = &self.parts[s.model]
        cdef const uint32_t* words = followers.levels[s.x.d].words
        cdef bint instead = followers.rules.kind == STUPID_BACKOFF
        cdef index_t i = s.x.start, j, end
        cdef uint32_t mask = ws.mask
        cdef word_t word, a, b, c, d
        cdef double share
        while i < s.x.end:
            if s.x.end - i >= 4:
                a, b, c, d = words[i] & mask, words[i + 1] & mask, words[i + 2] & mask, words[i + 3] & mask
                if not (marks[a >> 6] >> (a & 63) | marks[b >> 6] >> (b & 63) | marks[c >> 6] >> (c & 63)
                        | marks[d >> 6] >> (d & 63)) & 1:
                    i += 4
                    continue
            end = min(i + 4, s.x.end)
            for j in range(i, end):
                word = words[j]
                if word <= mask and marks[word >> 6] >> (word & 63) & 1:
                    word = self.here_of(p, word)
                    share = s.x.coefficient * followers.kept_at(&s.x, j)
                    ws.sums[word] = share if instead and share > 0 else ws.sums[word] + share
            i = end

    cdef double probability(self, Workspace ws, word_t word) noexcept nogil:
        """The probability of a word, once the workspace has what it gets."""
        cdef const part* p
        cdef word_t own = word
        cdef double total = 0
        cdef int i
        if ws.sums[word] > 0 and (<Followers>self.parts[0].followers).rules.kind == STUPID_BACKOFF:
            return ws.sums[word]
        for i in range(self.n_parts):
            p = &self.parts[i]
            if p.own != NULL:
                own = p.own[word]
                if own == UNK and word != UNK:
                    continue
            total += share_of(<Followers>p.followers, &ws.sources[i], own)
        return total + ws.sums[word]

    cdef index_t search(self, Workspace ws, const word_t* last, int n, index_t k, bint drawn_from, index_t low, index_t high,
                        uint64_t least) noexcept nogil:
        """Find the k best words: ws.heap[:n], best first, without those of probability 0; return n. REQUIRES a clear workspace.

        drawn_from: <s> and <unk> do not count. low, high, least: see find().
        """
        cdef candidate c
        cdef double most = 0
        cdef int i, n_sources = self.gather(ws, last, n)
        cdef index_t j, n_found = 0
        if least > 0:
            self.touch_frequent(<Followers>self.parts[0].followers, ws, last, n, low, high, least)
        elif self.falling and high - low > FEW_WORDS:
            self.touch_promising(ws, n_sources, k, drawn_from, low, high)
        else:
            for j in range(low, high):
                self.touch(ws, self.by_rank[j], drawn_from, low, high)
        self.add_up(ws, n_sources)
        for i in range(self.n_parts):
            most += share_of(<Followers>self.parts[i].followers, &ws.sources[i], ws.sources[i].order[0])
        for j in range(ws.n_touched):
            c.word = ws.touched[j]
            if n_found == k and self.falling and ws.sums[c.word] + most < ws.heap[0].p:
                continue                           # neither its share of the ground nor its rank is looked at
            c.p, c.rank = self.probability(ws, c.word), self.ranks[c.word]
            if c.p > 0:
                n_found = offer(ws.heap, n_found, k, &c)
        ws.clear()
        sort_heap(ws.heap, ws.heap + n_found, &better)
        return n_found

    def find(self, Workspace ws, const uint32_t[::1] ids, const int64_t[::1] ends, index_t k, index_t low, index_t high,
             uint64_t least, bint drawn_from, uint32_t[:, ::1] words, double[:, ::1] p, int64_t[::1] found):
        """Find the best words after each of n contexts, best first, those of equal probability in byte order.

        Args:
            ids: uint32, context after context; ends: int64 (n,), where each ends.
            low, high: only words whose place in byte order is in [low, high).
            least: only words that were seen so often after the longest context that was seen at all, by one model; 0: any.
            drawn_from: only words that may go on with a text, neither <s> nor <unk>; so always where `least` is given.
            words, p: (n, k), OUT; found: int64 (n,), OUT, how many there are: fewer where others have probability 0.
        """
        cdef index_t i, j, start = 0, n = ends.shape[0]
        if ws.n_words != self.n_room or ws.n_models < self.n_parts:
            raise ValueError(f"a workspace for {ws.n_words} words of {ws.n_models} models; expected {self.n_room} of {self.n_parts}")
        if (words.shape[0] < n or p.shape[0] < n or words.shape[1] < k or p.shape[1] < k or found.shape[0] < n
                or not 1 <= k <= self.n_words or not 0 <= low <= high <= self.n_words):
            raise ValueError(f"room for {words.shape[0]} times {words.shape[1]} of {n} times {k} words")
        if least > 0 and (self.n_parts > 1 or not drawn_from):
            raise ValueError(f"words seen {least} times by {self.n_parts} models")
        for i in range(n):
            if not start <= ends[i] <= ids.shape[0]:
                raise ValueError(f"context {i} ends at {ends[i]} of {ids.shape[0]}")
            start = ends[i]
        for i in range(ids.shape[0]):
            if <index_t>ids[i] >= self.n_words:
                raise ValueError(f"word {ids[i]} of {self.n_words}")
        start = 0
        with nogil:
            for i in range(n):
                found[i] = self.search(ws, &ids[0] + ends[i] - 1, <int>min(<index_t>MAX_ORDER, ends[i] - start), k, drawn_from,
                                       low, high, least)
                for j in range(found[i]):
                    words[i, j], p[i, j] = ws.heap[j].word, ws.heap[j].p
                start = ends[i]
        for i in range(self.n_parts):
            (<Followers>self.parts[i].followers).refuse_damage()


cdef double share_of(Followers followers, const source* s, word_t word) noexcept nogil:
    """What the ground of a model gives to a word."""
    return s.x.coefficient * followers.ground[s.x.d][word]


cdef void look_at(Followers followers, source* s) noexcept nogil:
    """Set what the word gets at which a source of a model stands."""
    if s.at == s.x.end:
        s.next = 0
    elif s.order != NULL:
        s.next = share_of(followers, s, s.order[s.at])
    else:
        s.next = s.x.coefficient * followers.kept_at(&s.x, s.at)
    if s.next <= 0:
        s.at = s.x.end                     # nothing gets anything after it


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

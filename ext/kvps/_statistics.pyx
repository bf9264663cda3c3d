"""Walk the sorted counts of one shard once: adjusted or raw counts of every order, context totals, counts of counts.

Keys in context order make the walk depth-first over the trie of reversed contexts. A stack holds, for each depth d,
the open context c1..cd (c1 nearest to the predicted word) and the list of (word, value) seen below it. When a context
ends, its list is folded into its parent's: with Kneser-Ney each distinct word counts 1 there (one more left
extension), with raw counts its sum. `<s>` closes a context on the left: what follows it keeps its raw count.

Of a word that is split over shards (FORMAT.md, "Routing") each shard has a part of the context of depth 1, and all of those
below it: the values in the parts add up. A walk sets these parts aside, and one more walk, of no shard, is given their sums.
Definitions: kvps/lm/statistics.py. Twin: tests/reference.py.
"""
import numpy as np

from kvps.errors import CorruptionError

cimport cython

from libc.math cimport INFINITY, log, log10
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from kvps._keys cimport (
    VALUE_BITS, bit_length, key_words64, low32, mix, packed_t, shl, shr, store, text_key_words64, u64, u128, u256,
)
from kvps._totals cimport NO_TUPLE, TotalsTable, totals
from kvps._types cimport BOS, LARGE_CODE, MAX_ORDER, byte_t, count_t, index_t, word_t, uint8_t, uint32_t, uint64_t

cdef enum:
    SHORT_LIST = 32            # a list up to this long is sorted by insertion, a longer one through dense counters
    ERR_MEMORY = -2
    ERR_NEGATIVE = -3
    ERR_WORD = -4
    ERR_WEIGHTS = -5
    BIGRAMS = 3                # times as much are bigrams worth, on which all that is pruned falls back (kvps/lm/pruning.py)
    MOST = 0xFFFFFFFF          # of a raw count that is only compared with a bound

# What a trigram below the highest order is worth beside its own part, for the same reason, in tokens of text.
cdef double TRIGRAMS = 0.3

cdef struct pair:
    uint64_t value
    word_t word
    uint32_t raw               # raw count, at most MOST, where raw counts are kept beside the values

cdef struct pair_list:
    pair* items
    index_t n, room
    bint sorted                # words strictly increasing, because all came from one leaf

cdef struct follower:
    # What follows a context, as it is listed.
    uint64_t value
    uint32_t rank              # of the word, in byte order
    word_t word

cdef struct node:
    # A closed context, waiting for its parents to close.
    totals t
    index_t start, n           # its n-grams among the waiting pairs
    index_t sums               # of a split context: the place of its first n-gram among the sums
    int d
    word_t word                # c_d

cdef struct buffer:
    # A growing array of records.
    byte_t* data
    index_t n, room            # bytes


cdef inline byte_t* claim(buffer* b, index_t n_bytes) noexcept nogil:
    """Return room for n_bytes more at the end of the buffer, or NULL."""
    cdef index_t room
    cdef byte_t* data
    if b.n + n_bytes > b.room:
        room = 2 * b.room if 2 * b.room > b.n + n_bytes else b.n + n_bytes + 65536
        data = <byte_t*>realloc(b.data, room)
        if data == NULL:
            return NULL
        b.data, b.room = data, room
    data = b.data + b.n
    b.n += n_bytes
    return data


cdef extern from "<algorithm>" namespace "std" nogil:
    # As in libcpp.algorithm, which takes an exception of the comparison into account; ours raises none.
    void sort(follower*, follower*, bint (*)(const follower&, const follower&) noexcept nogil) noexcept


cdef bint comes_before(const follower& a, const follower& b) noexcept nogil:
    """Whether a follower is listed before another: by value, the greatest first, then by byte order."""
    return a.value > b.value or a.value == b.value and a.rank < b.rank


cpdef uint64_t chain_start(uint64_t seed) noexcept:
    """Return the hash of the empty context, where the hashes of all n-grams and contexts begin."""
    return mix(seed, 0x6b767073)


cdef inline uint32_t at_most(uint64_t count) noexcept nogil:
    """A raw count in 32 bits; one that is too large is MOST."""
    return <uint32_t>count if count < <uint64_t>MOST else <uint32_t>MOST


cdef inline void add_value(totals* t, uint64_t value) noexcept nogil:
    """Add an n-gram to the totals of its context."""
    t.den += value
    if value == 1:
        t.n1 += 1
    elif value == 2:
        t.n2 += 1
    else:
        t.n3 += 1


@cython.final
cdef class Walk:
    """The walk over one shard; feed it blocks of sorted keys, then finish.

    Args:
        order: of the store's keys.
        top: highest order wanted, 1 <= top <= order; its n-grams have raw counts.
        bits: per word of the packed keys.
        n_words: ids are below this.
        raw: raw counts at every order, instead of Kneser-Ney's adjusted ones below top.
        raws: keep raw counts beside the values, for `estimate` to prune by.
        hashes: collect (hash, value) of every n-gram of order 2 and up, and (hash as an n-gram, number of its totals) of
            every context of 2 words and more whose totals are not (1, 1, 0, 0).
        rows_of: orders whose n-grams to collect as (words, value).
        contexts: collect (words, number of totals) of all contexts.
        seed: of the hashes.
        split: words whose contexts of depth 1 are set aside, for split_ngrams(), because other shards have parts of them.

    With `estimate` it yields probabilities instead (see there), with `list_followers` what follows each context.
    """
    cdef int order, top, bits
    cdef index_t n_words
    cdef bint raw, raws, hashes
    cdef bint contexts
    cdef bint emits[MAX_ORDER + 1]         # emits[k]: rows of order k are collected
    cdef pair_list lists[MAX_ORDER]
    cdef uint64_t chain[MAX_ORDER]         # chain[d]: hash of c1..cd
    cdef uint64_t inner[MAX_ORDER]         # inner[d]: hash of c2..cd; with c1 it names the context as an n-gram
    cdef word_t path[MAX_ORDER + 1]        # path[d]: c_d
    cdef int leaf                          # depth of the open context
    cdef bint open
    cdef void* previous
    cdef uint64_t* dense                   # value per word, all 0 between folds
    cdef uint32_t* dense_raw               # the same of raw counts, NULL where they are not kept
    cdef uint64_t* marks                   # bit per word
    cdef uint64_t* marks2                  # bit per word of marks
    cdef uint64_t* unigrams                # value per word
    cdef uint64_t* words_raw               # raw count per word
    cdef uint8_t* split                    # per word: whether its context of depth 1 has parts elsewhere
    cdef buffer split_rows, split_values, split_raws_   # (c1, word), values and raw counts of the parts that were set aside
    cdef uint32_t* unigram_contexts        # per word: number of its totals as a context, plus 1; 0: none
    cdef uint64_t stats[MAX_ORDER + 1][5]  # per order: distinct n-grams, then t1..t4
    cdef buffer ngram_hashes, ngram_values, context_hashes, context_totals, large
    cdef buffer rows[MAX_ORDER + 1]
    cdef buffer row_values[MAX_ORDER + 1]
    cdef buffer context_rows[MAX_ORDER + 1]
    cdef buffer context_numbers[MAX_ORDER + 1]
    cdef readonly TotalsTable table
    cdef int status
    # what `list_followers` needs: columns of the contexts of each depth, as take_followers() gives them
    cdef object ranks_owner
    cdef const uint32_t* ranks             # NULL: followers are not listed
    cdef buffer listed                     # followers of the context at hand
    cdef buffer node_words[MAX_ORDER]
    cdef buffer node_children[MAX_ORDER]
    cdef buffer node_followers[MAX_ORDER]
    cdef buffer follower_words[MAX_ORDER]
    cdef buffer follower_codes[MAX_ORDER]
    cdef buffer large_places[MAX_ORDER]
    cdef buffer large_followers[MAX_ORDER]
    cdef uint64_t n_followers[MAX_ORDER]   # listed so far
    cdef uint32_t n_children[MAX_ORDER + 1]
    # what `estimate` needs
    cdef bint estimates
    cdef object estimate_owner
    cdef const uint32_t* sum_rows          # (c1, word) of the sums of split contexts, sorted; borrowed
    cdef const uint64_t* sum_values
    cdef const uint32_t* sum_raws
    cdef index_t n_sums
    cdef buffer nodes, pairs               # closed contexts below the open one of depth 1, and their n-grams
    cdef double* p[MAX_ORDER]              # p[d][w]: p(w | c1..cd) of the contexts on the way down
    cdef const uint32_t* rank
    cdef index_t width[MAX_ORDER + 1]      # 64-bit words of a key in text order, by order
    cdef double discount[MAX_ORDER + 1][4]
    cdef double types                      # of Witten-Bell 1: how much each follower adds to the sum of a context; otherwise 0
    cdef bint prunes
    cdef uint64_t cut[MAX_ORDER + 1]       # n-grams of raw counts up to this are left out, by order
    cdef bint weighs, thins
    cdef double n_events                   # sum of the raw counts of all words
    cdef buffer weights[MAX_ORDER + 1]
    cdef uint64_t number[MAX_ORDER + 1]    # of the next n-gram, by order
    cdef const float* weight[MAX_ORDER + 1]        # of each n-gram, in the order in which they come; borrowed
    cdef uint64_t n_weights[MAX_ORDER + 1]
    cdef const float* sum_weights          # of the sums of split contexts; borrowed
    cdef float threshold
    cdef double* thin[MAX_ORDER]           # as p, of the pruned model
    cdef const uint8_t* kept               # per word: whether n-grams may have it; borrowed
    cdef double* unigram_backoffs

    def __cinit__(self, int order, int top, int bits, index_t n_words, *, bint raw=False, bint raws=False, bint hashes=False,
                  rows_of=(), bint contexts=False, uint64_t seed=0, split=()):
        if not 1 <= top <= order <= MAX_ORDER or not 2 <= bits <= 32:
            raise ValueError(f"order {order}, top {top}, {bits} bits")
        self.order, self.top, self.bits, self.n_words = order, top, bits, n_words
        self.raw, self.raws, self.hashes, self.contexts = raw, raws, hashes, contexts
        for k in range(MAX_ORDER + 1):
            self.emits[<int>k] = k in rows_of
        self.chain[0] = self.inner[1] = chain_start(seed)
        self.table = TotalsTable()
        self.previous = calloc(1, 32)
        self.dense = <uint64_t*>calloc(n_words + 1, 8)
        self.dense_raw = <uint32_t*>calloc(n_words + 1 if raws else 1, 4)
        self.marks = <uint64_t*>calloc(n_words // 64 + 1, 8)
        self.marks2 = <uint64_t*>calloc(n_words // 4096 + 1, 8)
        self.unigrams = <uint64_t*>calloc(n_words + 1, 8)
        self.words_raw = <uint64_t*>calloc(n_words + 1, 8)
        self.unigram_contexts = <uint32_t*>calloc(n_words + 1, 4)
        self.split = <uint8_t*>calloc(n_words + 1, 1)
        if (self.previous == NULL or self.dense == NULL or self.marks == NULL or self.marks2 == NULL
                or self.unigrams == NULL or self.words_raw == NULL or self.unigram_contexts == NULL
                or self.split == NULL or self.dense_raw == NULL):
            raise MemoryError(f"no memory for the statistics of {n_words} words")
        for word in split:
            if 0 <= <index_t>word < n_words:
                self.split[<index_t>word] = 1

    def __dealloc__(self):
        cdef int d
        for d in range(MAX_ORDER):
            free(self.lists[d].items)
            for p in (<size_t>self.node_words[d].data, <size_t>self.node_children[d].data, <size_t>self.node_followers[d].data,
                      <size_t>self.follower_words[d].data, <size_t>self.follower_codes[d].data,
                      <size_t>self.large_places[d].data, <size_t>self.large_followers[d].data):
                free(<void*><size_t>p)
        for d in range(MAX_ORDER + 1):
            free(self.rows[d].data)
            free(self.row_values[d].data)
            free(self.context_rows[d].data)
            free(self.context_numbers[d].data)
            free(self.weights[d].data)
        for d in range(1, MAX_ORDER):
            free(self.p[d])            # p[0] and thin[0] are borrowed
            free(self.thin[d])
        for p in (<size_t>self.dense_raw, <size_t>self.split_raws_.data, <size_t>self.nodes.data, <size_t>self.pairs.data, <size_t>self.unigram_backoffs, <size_t>self.previous, <size_t>self.dense, <size_t>self.marks, <size_t>self.marks2, <size_t>self.unigrams,
                  <size_t>self.words_raw, <size_t>self.unigram_contexts, <size_t>self.ngram_hashes.data, <size_t>self.ngram_values.data,
                  <size_t>self.context_hashes.data, <size_t>self.context_totals.data, <size_t>self.large.data,
                  <size_t>self.listed.data, <size_t>self.split, <size_t>self.split_rows.data, <size_t>self.split_values.data):
            free(<void*><size_t>p)

    def list_followers(self, const uint32_t[::1] ranks):
        """Collect what follows each context, for `take_followers`.

        ranks: uint32 (n_words,), the place of each word in byte order; borrowed.
        """
        if ranks.shape[0] != self.n_words:
            raise ValueError(f"{ranks.shape[0]} ranks of {self.n_words} words")
        self.ranks_owner, self.ranks = ranks, &ranks[0]

    cdef inline void record(self, buffer* column, uint32_t value) noexcept nogil:
        """Add a number to a column."""
        cdef byte_t* place = claim(column, 4)
        if place == NULL:
            self.status = ERR_MEMORY
        else:
            (<uint32_t*>place)[0] = value

    cdef void list_context(self, int d, index_t n) noexcept nogil:
        """Put a closed context and its n followers into the columns; those below it are there already."""
        cdef const pair* items = self.lists[d].items
        cdef index_t i
        cdef byte_t* place
        cdef follower* found
        cdef word_t* words
        cdef byte_t* codes
        self.listed.n = 0
        found = <follower*>claim(&self.listed, n * sizeof(follower))
        words, codes = <word_t*>claim(&self.follower_words[d], 4 * n), claim(&self.follower_codes[d], n)
        if n > 0 and (found == NULL or words == NULL or codes == NULL):
            self.status = ERR_MEMORY
            return
        for i in range(n):
            found[i].value, found[i].word, found[i].rank = items[i].value, items[i].word, self.ranks[items[i].word]
        if n > 1:
            sort(found, found + n, &comes_before)
        for i in range(n):
            words[i] = found[i].word
            codes[i] = <byte_t>found[i].value if found[i].value < LARGE_CODE else LARGE_CODE
            if found[i].value >= LARGE_CODE:
                place = claim(&self.large_places[d], 8)
                if place != NULL:
                    (<uint64_t*>place)[0] = self.n_followers[d] + <uint64_t>i
                    place = claim(&self.large_followers[d], 8)
                if place == NULL:
                    self.status = ERR_MEMORY
                    return
                (<uint64_t*>place)[0] = found[i].value
        self.n_followers[d] += <uint64_t>n
        self.record(&self.node_words[d], self.path[d])
        self.record(&self.node_children[d], self.n_children[d + 1])
        self.record(&self.node_followers[d], <uint32_t>n)
        self.n_children[d + 1] = 0
        self.n_children[d] += 1

    def estimate(self, const double[:, ::1] discounts, const double[::1] unigram_p, const uint32_t[::1] rank,
                 const uint32_t[:, ::1] split_rows=None, const uint64_t[::1] split_values=None,
                 const uint32_t[::1] split_raws=None, *, double types=0, cuts=None, const uint8_t[::1] kept=None):
        """Collect log10 probabilities and back-offs, for `take_estimates`.

        With a the value of an n-gram h w, D its discount, S the sum of a over the followers of h, T how many these are, and
        h' = h without its first word: p(w | h) = (a - D) / (S + types T) + gamma(h) p(w | h'), where gamma(h) is what is
        left over. An n-gram that is pruned has no first term of its own.

        A context's probabilities need those of its parent, which closes later: so the contexts below one word c1 wait
        until it closes, and are then gone through from the last to the first, parents before their children.

        Args:
            discounts: float64 (top + 1, 4), by order and min(count, 3).
            unigram_p: float64 (n_words,), borrowed.
            rank: uint32 (n_words,), what to write for each word id; borrowed.
            split_rows, split_values: what split_ngrams() gives, summed over the shards and sorted; borrowed. For where there
                are split words: the contexts below them need their probabilities, which one walk alone, that of fold(), collects.
            split_raws: their raw counts likewise, where these are kept.
            types: 1 for Witten-Bell.
            cuts: by order 0 to top, non-decreasing; n-grams with raw counts up to this are pruned. REQUIRES: `raws`.
            kept: uint8 (n_words,), with `cuts`; n-grams with a word of 0 are pruned; borrowed.
        """
        cdef int k, j
        if discounts.shape[0] != self.top + 1 or unigram_p.shape[0] != self.n_words or rank.shape[0] != self.n_words:
            raise ValueError(f"estimates of order {self.top} for {self.n_words} words")
        if split_rows is not None and (split_rows.shape[1] != 2 or split_values.shape[0] != split_rows.shape[0]):
            raise ValueError(f"{split_rows.shape[0]} rows and {split_values.shape[0]} values of split contexts")
        self.estimate_owner = (unigram_p, rank, split_rows, split_values, split_raws, kept)
        self.n_sums = 0 if split_rows is None else split_rows.shape[0]
        if self.n_sums:
            self.sum_rows, self.sum_values = &split_rows[0, 0], &split_values[0]
            if self.raws:
                if split_raws is None or split_raws.shape[0] != self.n_sums:
                    raise ValueError(f"raw counts of {self.n_sums} split contexts")
                self.sum_raws = &split_raws[0]
        self.types, self.prunes = types, cuts is not None
        if self.prunes:
            if not self.raws or len(cuts) != self.top + 1 or kept is None or kept.shape[0] != self.n_words:
                raise ValueError(f"{len(cuts)} bounds for order {self.top}")
            for k in range(self.top + 1):
                self.cut[k] = cuts[k]
            self.kept = &kept[0]
        if text_key_words64(self.top, self.bits) > 4:
            raise ValueError(f"{self.top} words of {self.bits} bits and a number do not fit into a key")
        for k in range(self.top + 1):
            self.width[k] = text_key_words64(k, self.bits)
            for j in range(4):
                self.discount[k][j] = discounts[k, j]
        self.rank = &rank[0]
        self.p[0] = <double*>&unigram_p[0]
        self.unigram_backoffs = <double*>calloc(self.n_words, 8)
        if self.unigram_backoffs == NULL:
            raise MemoryError(f"no memory for {self.n_words} back-offs")
        for k in range(1, self.top - 1):
            self.p[k] = <double*>malloc(self.n_words * 8)
            if self.p[k] == NULL:
                raise MemoryError(f"no memory for {self.n_words} probabilities")
        self.estimates = True

    def weigh(self, double n_events, first):
        """Collect how much each n-gram is worth, for take_weights(), instead of probabilities; after estimate().

        That is what it has in the relative entropy between the model and the one without it (Stolcke 1998, equation 3), with
        the share of the context in the text, discounted as counts are, for its probability. The numbers of the keys of take_estimates() are then those of
        the n-grams, in the order of take_weights(). REQUIRES: `raws`.

        Args:
            n_events: sum of the raw counts of all words.
            first: number of the first n-gram, by order 0 to top.
        """
        cdef int k
        if not self.estimates or not self.raws or self.prunes or len(first) != self.top + 1:
            raise ValueError(f"weights of order {self.top}")
        for k in range(self.top + 1):
            self.number[k] = first[k]
        self.n_events, self.weighs = n_events, True

    def thin_out(self, weights, const float[::1] split_weights, float threshold):
        """Leave out n-grams that are worth less than a threshold, and give what they had to the back-offs; after estimate().

        Args:
            weights: by order 0 to top, float32, of the n-grams of this walk as they were weighed, borrowed; None below 2.
            split_weights: those of the sums of split contexts, in their order; borrowed.
        """
        cdef int k
        cdef const float[::1] own
        if not self.estimates or self.prunes or len(weights) != self.top + 1 or split_weights.shape[0] != self.n_sums:
            raise ValueError(f"weights of order {self.top}, {split_weights.shape[0]} of split contexts")
        for k in range(2, self.top + 1):
            own = weights[k]
            self.weight[k], self.n_weights[k], self.number[k] = &own[0] if own.shape[0] else NULL, own.shape[0], 0
        self.estimate_owner = (self.estimate_owner, weights, split_weights)
        self.sum_weights = &split_weights[0] if self.n_sums else NULL
        self.thin[0] = self.p[0]
        for k in range(1, self.top - 1):
            self.thin[k] = <double*>malloc(self.n_words * 8)
            if self.thin[k] == NULL:
                raise MemoryError(f"no memory for {self.n_words} probabilities")
        self.threshold, self.thins = threshold, True

    cdef void wait_for_parents(self, int d, const pair_list* l, const totals* t, index_t sums) noexcept nogil:
        """Put a closed context and its n-grams aside."""
        cdef node* place = <node*>claim(&self.nodes, sizeof(node))
        cdef byte_t* items = claim(&self.pairs, l.n * sizeof(pair))
        if place == NULL or items == NULL:
            self.status = ERR_MEMORY
            return
        memcpy(items, l.items, l.n * sizeof(pair))
        place.t, place.d, place.word, place.n, place.sums = t[0], d, self.path[d], l.n, sums
        place.start = self.pairs.n // <index_t>sizeof(pair) - l.n

    cdef void resolve(self) noexcept nogil:
        """Estimate everything below the context of depth 1 that has just closed."""
        cdef const node* nodes = <const node*>self.nodes.data
        cdef const pair* pairs = <const pair*>self.pairs.data
        cdef index_t i, width
        for i in range(self.nodes.n // <index_t>sizeof(node) - 1, -1, -1):
            width = self.width[nodes[i].d + 1]
            if width == 1:
                estimate_context[u64](self, &nodes[i], pairs + nodes[i].start, 0)
            elif width == 2:
                estimate_context[u128](self, &nodes[i], pairs + nodes[i].start, 0)
            else:
                estimate_context[u256](self, &nodes[i], pairs + nodes[i].start, 0)
        self.nodes.n = self.pairs.n = 0

    cdef inline void push(self, int d, word_t word, uint64_t value, uint32_t raw) noexcept nogil:
        """Add (word, value, raw count) to the list of depth d; depth 0 is the dense unigram vector."""
        cdef pair_list* l = &self.lists[d]
        cdef pair* items
        cdef index_t room
        if d == 0:
            self.unigrams[word] += value
            return
        if l.n == l.room:
            room = 2 * l.room + 64
            items = <pair*>realloc(l.items, room * sizeof(pair))
            if items == NULL:
                self.status = ERR_MEMORY
                return
            l.items, l.room = items, room
        l.items[l.n].word, l.items[l.n].value, l.items[l.n].raw = word, value, raw
        l.n += 1

    cdef void combine(self, pair_list* l) noexcept nogil:
        """Sort a list by word and add the values of equal words."""
        cdef index_t i, j, n = 0, w64, w4096
        cdef pair item
        cdef uint64_t bits64, bits4096
        if l.n <= SHORT_LIST:
            for i in range(l.n):
                item = l.items[i]
                j = n
                while j > 0 and item.word < l.items[j - 1].word:
                    j -= 1
                if j > 0 and l.items[j - 1].word == item.word:
                    l.items[j - 1].value += item.value
                    l.items[j - 1].raw = at_most(<uint64_t>l.items[j - 1].raw + item.raw)
                    continue
                for w64 in range(n, j, -1):
                    l.items[w64] = l.items[w64 - 1]
                l.items[j] = item
                n += 1
            l.n = n
            return
        for i in range(l.n):
            item = l.items[i]
            self.dense[item.word] += item.value
            if self.raws:
                self.dense_raw[item.word] = at_most(<uint64_t>self.dense_raw[item.word] + item.raw)
            self.marks[item.word >> 6] |= <uint64_t>1 << (item.word & 63)
            self.marks2[item.word >> 12] |= <uint64_t>1 << (item.word >> 6 & 63)
        for w4096 in range(self.n_words // 4096 + 1):
            bits4096 = self.marks2[w4096]
            self.marks2[w4096] = 0
            while bits4096:
                w64 = w4096 << 6 | (bit_length(<u64>(bits4096 & -bits4096)) - 1)
                bits4096 &= bits4096 - 1
                bits64 = self.marks[w64]
                self.marks[w64] = 0
                while bits64:
                    item.word = <word_t>(w64 << 6 | (bit_length(<u64>(bits64 & -bits64)) - 1))
                    bits64 &= bits64 - 1
                    item.value = self.dense[item.word]
                    self.dense[item.word] = 0
                    item.raw = 0
                    if self.raws:
                        item.raw = self.dense_raw[item.word]
                        self.dense_raw[item.word] = 0
                    l.items[n] = item
                    n += 1
        l.n = n

    cdef void close(self, int d) noexcept nogil:
        """End the open context of depth d >= 1: count it, emit it, fold it into its parent."""
        cdef pair_list* l = &self.lists[d]
        cdef index_t i
        cdef int j
        cdef uint64_t value
        cdef totals t
        cdef uint32_t number
        cdef byte_t* hashes = NULL
        cdef byte_t* values = NULL
        cdef word_t* rows = NULL
        cdef uint64_t* row_values = NULL
        cdef bint emit_rows = self.emits[d + 1]
        if not l.sorted:
            self.combine(l)
        if d == 1 and self.split[self.path[1]]:
            self.close_part()
            l.n = 0
            return
        t.den = t.n1 = t.n2 = t.n3 = 0
        if self.hashes:
            hashes = claim(&self.ngram_hashes, 8 * l.n)
            values = claim(&self.ngram_values, 4 * l.n)
        if emit_rows:
            rows = <word_t*>claim(&self.rows[d + 1], 4 * (d + 1) * l.n)
            row_values = <uint64_t*>claim(&self.row_values[d + 1], 8 * l.n)
        if (self.hashes and (hashes == NULL or values == NULL)) or (emit_rows and (rows == NULL or row_values == NULL)):
            self.status = ERR_MEMORY
            return
        if self.ranks != NULL:
            self.list_context(d, l.n)
            if self.status != 0:
                return
        self.stats[d + 1][0] += l.n
        for i in range(l.n):
            value = l.items[i].value
            add_value(&t, value)
            if value <= 4:
                self.stats[d + 1][value] += 1
            if self.hashes:
                (<uint64_t*>hashes)[i] = mix(self.chain[d], l.items[i].word)
                (<uint32_t*>values)[i] = self.compact(value)
            if emit_rows:
                for j in range(d):
                    rows[j] = self.path[j + 1]
                rows[d] = l.items[i].word
                rows += d + 1
                row_values[i] = value
            self.push(d - 1, l.items[i].word, value if self.raw else 1, l.items[i].raw)
        number = self.table.number(&t) if t.den > 1 else 0
        if number == <uint32_t>NO_TUPLE:
            self.status = ERR_MEMORY
            return
        self.table.use(number, t.den)
        if d == 1:
            self.unigram_contexts[self.path[1]] = number + 1
        elif self.hashes and number != 0:
            hashes = claim(&self.context_hashes, 8)
            values = claim(&self.context_totals, 4)
            if hashes == NULL or values == NULL:
                self.status = ERR_MEMORY
                return
            (<uint64_t*>hashes)[0] = mix(self.inner[d], self.path[1])
            (<uint32_t*>values)[0] = number
        if self.estimates:
            self.wait_for_parents(d, l, &t, 0)
            if d == 1 and self.status == 0:
                self.resolve()
        if self.contexts:
            rows = <word_t*>claim(&self.context_rows[d], 4 * d)
            values = claim(&self.context_numbers[d], 4)
            if rows == NULL or values == NULL:
                self.status = ERR_MEMORY
                return
            for j in range(d):
                rows[j] = self.path[j + 1]
            (<uint32_t*>values)[0] = number
        l.n = 0

    cdef void close_part(self) noexcept nogil:
        """End a context of depth 1 that has parts in other shards: set ours aside, or estimate what is below it."""
        cdef pair_list* l = &self.lists[1]
        cdef word_t* rows
        cdef uint64_t* values
        cdef uint32_t* raws
        cdef index_t i, low = 0, high = self.n_sums, middle
        cdef totals t
        if self.ranks != NULL:
            self.list_context(1, 0)            # its followers come with fold(), in a context that has no children
            if self.status != 0:
                return
        if not self.estimates:
            rows = <word_t*>claim(&self.split_rows, 8 * l.n)
            values = <uint64_t*>claim(&self.split_values, 8 * l.n)
            raws = <uint32_t*>claim(&self.split_raws_, 4 * l.n)
            if rows == NULL or values == NULL or raws == NULL:
                self.status = ERR_MEMORY
                return
            for i in range(l.n):
                rows[2 * i], rows[2 * i + 1] = self.path[1], l.items[i].word
                values[i], raws[i] = l.items[i].value, l.items[i].raw
            return
        while low < high:
            middle = (low + high) // 2
            if self.sum_rows[2 * middle] < self.path[1]:
                low = middle + 1
            else:
                high = middle
        l.n = 0
        t.den = t.n1 = t.n2 = t.n3 = 0
        for i in range(low, self.n_sums):
            if self.sum_rows[2 * i] != self.path[1]:
                break
            self.push(1, self.sum_rows[2 * i + 1], self.sum_values[i], self.sum_raws[i] if self.raws else 0)
            if self.status != 0:
                return
            add_value(&t, self.sum_values[i])
        self.wait_for_parents(1, l, &t, low)
        if self.status == 0:
            self.resolve()

    cdef inline uint32_t compact(self, uint64_t value) noexcept nogil:
        """A value in 32 bits: itself below 2**31, else its place in the list of large values, marked."""
        cdef byte_t* place
        if value < <uint64_t>1 << 31:
            return <uint32_t>value
        place = claim(&self.large, 8)
        if place == NULL:
            self.status = ERR_MEMORY
            return 0
        (<uint64_t*>place)[0] = value
        return <uint32_t>(<uint64_t>1 << 31 | <uint64_t>(self.large.n // 8 - 1))

    def feed(self, const uint64_t[::1] keys, const count_t[::1] counts):
        """Walk over the next block of strictly increasing keys with positive counts."""
        cdef index_t width = key_words64(self.order, self.bits), n = counts.shape[0]
        if keys.shape[0] != n * width:
            raise ValueError(f"{n} counts need {n * width} words of keys, got {keys.shape[0]}")
        if n == 0:
            return
        with nogil:
            if width == 1:
                walk_block[u64](self, <const u64*>&keys[0], &counts[0], n, <u64*>self.previous)
            elif width == 2:
                walk_block[u128](self, <const u128*>&keys[0], &counts[0], n, <u128*>self.previous)
            else:
                walk_block[u256](self, <const u256*>&keys[0], &counts[0], n, <u256*>self.previous)
        self._check()

    def fold(self, const uint32_t[:, ::1] rows, const uint64_t[::1] values, const uint32_t[::1] raws=None):
        """Walk over the contexts of depth 1 that were set aside; REQUIRES a walk that is fed nothing and has no split words.

        rows, values: what split_ngrams() gives, summed over the shards, rows strictly increasing.
        raws: what split_raws() gives, likewise, where raw counts are kept.
        """
        cdef index_t i, n = values.shape[0]
        if rows.shape[0] != n or (n and rows.shape[1] != 2) or self.top < 2 and n:
            raise ValueError(f"{rows.shape[0]} rows and {n} values for a walk of order {self.top}")
        if self.raws and (raws is None or raws.shape[0] != n):
            raise ValueError(f"raw counts of {n} rows")
        with nogil:
            for i in range(n):
                if <index_t>rows[i, 0] >= self.n_words or <index_t>rows[i, 1] >= self.n_words:
                    self.status = ERR_WORD
                    break
                self.path[1] = rows[i, 0]
                self.push(1, rows[i, 1], values[i], raws[i] if self.raws else 0)
                if self.status == 0 and (i + 1 == n or rows[i + 1, 0] != rows[i, 0]):
                    self.chain[1] = mix(self.chain[0], rows[i, 0])
                    self.lists[1].sorted = True
                    self.close(1)
                if self.status != 0:
                    break
        self._check()

    def finish(self):
        """End the contexts that are still open."""
        if self.open:
            with nogil:
                while self.leaf > 0:
                    self.close(self.leaf)
                    self.leaf -= 1
            self.open = False
        self._check()

    cdef int _check(self) except -1:
        if self.status == ERR_MEMORY:
            raise MemoryError("no memory for the statistics")
        if self.status == ERR_WEIGHTS:
            raise ValueError("more n-grams than weights: they are of another walk")
        if self.status == ERR_NEGATIVE:
            raise CorruptionError("a count below 1 in a committed version")
        if self.status == ERR_WORD:
            raise CorruptionError(f"an n-gram has a word beyond the {self.n_words} of the vocabulary: the root and the shards are "
                                  "not of one store, or of different times; put back a sound copy of the whole store")
        return 0

    def unigram_values(self):
        """Return (value per word, raw count per word), uint64 (n_words,). `<s>` has no entry of its own: see the caller."""
        return (np.asarray(<uint64_t[:self.n_words]>self.unigrams).copy(),
                np.asarray(<uint64_t[:self.n_words]>self.words_raw).copy())

    def unigram_context_numbers(self):
        """Return the number of each word's totals as a context of one word, plus 1; 0 where it is none. uint32 (n_words,)."""
        return np.asarray(<uint32_t[:self.n_words]>self.unigram_contexts).copy()

    def counts_of_counts(self):
        """Return uint64 (MAX_ORDER + 1, 5): per order the distinct n-grams and t1..t4, of order 2 and up."""
        return np.asarray(<uint64_t[:MAX_ORDER + 1, :5]>&self.stats[0][0]).copy()

    def split_ngrams(self):
        """Return the parts of split contexts: ((c1, word) uint32 (n, 2), their values uint64 (n,))."""
        return take(&self.split_rows, np.uint32, False).reshape(-1, 2), take(&self.split_values, np.uint64, False)

    def split_raws(self):
        """Return the raw counts of what split_ngrams() returns, uint32 (n,), at most 2**32 - 1; 0 where they are not kept."""
        return take(&self.split_raws_, np.uint32, False)

    def large_values(self):
        """Return the values of 2**31 and more that `take_hashes` numbers, uint64 (n,)."""
        return take(&self.large, np.uint64, False)

    def take_hashes(self):
        """Return and clear (n-gram hashes uint64, their values uint32, context hashes uint64, their totals uint32)."""
        return (take(&self.ngram_hashes, np.uint64, True), take(&self.ngram_values, np.uint32, True),
                take(&self.context_hashes, np.uint64, True), take(&self.context_totals, np.uint32, True))

    def take_rows(self, int k):
        """Return and clear (word ids uint32 (n, k) in context order, values uint64 (n,)) of the n-grams of order k."""
        return take(&self.rows[k], np.uint32, True).reshape(-1, k), take(&self.row_values[k], np.uint64, True)

    def take_estimates(self, int k):
        """Return and clear what `estimate` collected of order k: (n-grams, contexts), keys in text order, uint64.

        n-grams: the ranks of the words, and log10 p as a float32.
        contexts: the same with log10 of the back-off; those of totals (1, 1, 0, 0) are left out.
        """
        return take(&self.rows[k], np.uint64, True), take(&self.context_rows[k], np.uint64, True)

    def take_weights(self, int k):
        """Return and clear the weights of the n-grams of order k, float32."""
        return take(&self.weights[k], np.float32, True)

    def unigram_backoffs_log10(self):
        """Return log10 of each word's back-off, float64 (n_words,); 0 where it is no context of this shard."""
        return np.asarray(<double[:self.n_words]>self.unigram_backoffs).copy()

    def followers_bytes(self):
        """Return how many bytes `take_followers` would give, of all depths."""
        cdef int d
        cdef index_t n = 0
        for d in range(1, self.top):
            n += 3 * self.node_words[d].n + self.follower_words[d].n + self.follower_codes[d].n
        return n

    def take_followers(self, int d):
        """Return and clear the contexts of depth d that were listed, in context order, and what follows them.

        Returns:
            words: uint32 (n,), the words c_d; the contexts of depth d - 1 that they belong to say how many are theirs.
            children: uint32 (n,), how many contexts of depth d + 1 go on from each.
            followers: uint32 (n,), how many words follow each: so many of these, context after context,
            next words: uint32 (m,), by value, the greatest first, then in byte order,
            codes: uint8 (m,), their values, LARGE_CODE for that and more,
            places: uint64 (k,), which of all followers of this depth since the beginning these larger ones are, and
            large: uint64 (k,), their values.
        """
        return (take(&self.node_words[d], np.uint32, True), take(&self.node_children[d], np.uint32, True),
                take(&self.node_followers[d], np.uint32, True), take(&self.follower_words[d], np.uint32, True),
                take(&self.follower_codes[d], np.uint8, True), take(&self.large_places[d], np.uint64, True),
                take(&self.large_followers[d], np.uint64, True))

    def take_contexts(self, int d):
        """Return and clear (word ids uint32 (n, d) in context order, numbers of their totals uint32 (n,))."""
        return take(&self.context_rows[d], np.uint32, True).reshape(-1, d), take(&self.context_numbers[d], np.uint32, True)


cdef take(buffer* b, dtype, bint clear):
    out = np.empty(b.n // np.dtype(dtype).itemsize, dtype)
    cdef byte_t[::1] view
    if b.n:
        view = out.view(np.uint8)
        memcpy(&view[0], b.data, b.n)
    if clear:
        b.n = 0
    return out


cdef inline uint32_t log10_bits(double x) noexcept nogil:
    """log10 x as the bits of a float32."""
    cdef float value = <float>(log(x) * 0.43429448190325182765)        # log10 takes half as long again
    return (<uint32_t*>&value)[0]


cdef inline double worth(double p, double lower, double gamma) noexcept nogil:
    """What an n-gram of probability p is worth in its context, where gamma times `lower` would stand for it.

    Source: Stolcke 1998, equation 3, with the back-off as it is. That it would rise, for the good of the words that are not
    listed, is left out: with that, models of equal size were worse (kvps/lm/pruning.py).
    """
    if p <= 0:
        return 0
    if gamma <= 0 or lower <= 0:
        return INFINITY                        # nothing could stand for it
    return p * log(p / (gamma * lower)) if p > gamma * lower else 0


cdef void weigh_context(Walk w, const node* x, const pair* items, packed_t key) noexcept nogil:
    """As estimate_context, for weigh() and thin_out()."""
    cdef index_t j, width = w.width[x.d + 1], n_kept = 0
    cdef int k, d = x.d, bits = w.bits
    cdef bint last = d == w.top - 1, kept
    cdef bint ours = d > 1 or not w.split[x.word]
    cdef double p, lower, gamma, n_types = w.types * <double>(x.t.n1 + x.t.n2 + x.t.n3), total = <double>x.t.den + n_types
    cdef double rest = 1, left = 0, thin_rest = 1, gamma_thin = 1, share, alone
    cdef uint64_t occurs = 0
    cdef const float* weight = NULL
    cdef float* weights = NULL
    cdef byte_t* at = NULL
    for k in range(d, 0, -1):
        key = shl(key, bits) | <packed_t>w.rank[w.path[k]]
    gamma = (w.discount[d + 1][1] * <double>x.t.n1 + w.discount[d + 1][2] * <double>x.t.n2
             + w.discount[d + 1][3] * <double>x.t.n3 + n_types) / total
    for j in range(x.n):
        rest -= w.p[d - 1][items[j].word]
        occurs += items[j].raw
    if rest < 1e-12:                           # all words are listed, and what is left is rounding
        rest = 0
    if w.thins:
        if ours:
            if w.number[d + 1] + <uint64_t>x.n > w.n_weights[d + 1]:
                w.status = ERR_WEIGHTS
                return
            weight = w.weight[d + 1] + w.number[d + 1]
            w.number[d + 1] += x.n
        else:
            weight = w.sum_weights + x.sums
        # STEP 1: the back-off: what is left to the words that are not listed, over what they had without the context's first word.
        left = gamma * rest
        for j in range(x.n):
            if weight[j] >= w.threshold:
                n_kept += 1
                thin_rest -= w.thin[d - 1][items[j].word]
            else:
                left += own_part(w, x, &items[j], total) + gamma * w.p[d - 1][items[j].word]
        if n_kept > 0:
            gamma_thin = left / thin_rest if thin_rest > 1e-12 else gamma
        if d == 1:
            if ours:
                w.unigram_backoffs[x.word] = log10(gamma_thin)
        elif n_kept > 0:                       # otherwise it is no context any more
            at = claim(&w.context_rows[d], 8 * w.width[d])
            if at == NULL:
                w.status = ERR_MEMORY
                return
            store(at, shl(key, VALUE_BITS) | <packed_t>log10_bits(gamma_thin), <int>w.width[d])
    if w.weighs:
        n_kept = x.n
    if ours and n_kept > 0:
        at = claim(&w.rows[d + 1], 8 * width * n_kept)
        if w.weighs:
            weights = <float*>claim(&w.weights[d + 1], 4 * n_kept)
        if at == NULL or (w.weighs and weights == NULL):
            w.status = ERR_MEMORY
            return
    # STEP 2: the n-grams.
    key = shl(key, bits + VALUE_BITS)
    share = (<double>occurs - w.discount[d][3 if occurs > 3 else occurs]) / w.n_events if w.weighs else 0
    if d == 1:
        share *= BIGRAMS
    alone = TRIGRAMS / w.n_events if d == 2 and not last else 0
    for j in range(x.n):
        lower = w.p[d - 1][items[j].word]
        p = own_part(w, x, &items[j], total) + gamma * lower
        if not last:
            w.p[d][items[j].word] = p
        if w.weighs:
            if ours:
                weights[j] = <float>(share * worth(p, lower, gamma) + alone)
                store(at, key | shl(<packed_t>w.rank[items[j].word], VALUE_BITS) | <packed_t><uint32_t>w.number[d + 1], <int>width)
                at += 8 * width
                w.number[d + 1] += 1
            continue
        kept = weight[j] >= w.threshold
        if not last:
            w.thin[d][items[j].word] = p if kept else gamma_thin * w.thin[d - 1][items[j].word]
        if ours and kept:
            store(at, key | shl(<packed_t>w.rank[items[j].word], VALUE_BITS) | <packed_t>log10_bits(p), <int>width)
            at += 8 * width


cdef inline double own_part(Walk w, const node* x, const pair* item, double total) noexcept nogil:
    """What an n-gram has of its probability from its own count."""
    return (<double>item.value - w.discount[x.d + 1][3 if item.value > 3 else item.value]) / total


cdef void estimate_context(Walk w, const node* x, const pair* items, packed_t key) noexcept nogil:
    """Collect the back-off of a context and the probabilities of its n-grams; its parent has been here. `key` comes in as 0."""
    cdef index_t j, width = w.width[x.d + 1], n_kept = 0
    cdef int k, d = x.d, bits = w.bits
    cdef bint last = d == w.top - 1            # nobody below asks for its probabilities
    cdef bint ours = d > 1 or not w.split[x.word]
    cdef bint kept
    cdef double p, gamma, off, n_types = w.types * <double>(x.t.n1 + x.t.n2 + x.t.n3), total = <double>x.t.den + n_types
    cdef double pruned = 0                     # the own terms of pruned n-grams, times the total
    cdef uint64_t occurs = 0                   # raw count of the context
    cdef byte_t* at
    w.path[d] = x.word
    if w.weighs or w.thins:
        weigh_context(w, x, items, key)
        return
    for k in range(d, 0, -1):
        if w.prunes and not w.kept[w.path[k]]:
            return
        key = shl(key, bits) | <packed_t>w.rank[w.path[k]]
    if w.prunes:
        for j in range(x.n):
            occurs += items[j].raw
            if items[j].raw <= w.cut[d + 1] or not w.kept[items[j].word]:
                pruned += <double>items[j].value - w.discount[d + 1][3 if items[j].value > 3 else items[j].value]
    gamma = (w.discount[d + 1][1] * <double>x.t.n1 + w.discount[d + 1][2] * <double>x.t.n2
             + w.discount[d + 1][3] * <double>x.t.n3 + n_types + pruned) / total
    if d == 1:
        if ours:
            w.unigram_backoffs[x.word] = log10(gamma)
    elif (x.t.den != 1 or pruned > 0) and (not w.prunes or occurs > w.cut[d]):         # (1, 1, 0, 0) goes without saying
        at = claim(&w.context_rows[d], 8 * w.width[d])
        if at == NULL:
            w.status = ERR_MEMORY
            return
        store(at, shl(key, VALUE_BITS) | <packed_t>log10_bits(gamma), <int>w.width[d])
    at = claim(&w.rows[d + 1], 8 * width * x.n) if ours else NULL
    if ours and at == NULL:
        w.status = ERR_MEMORY
        return
    key = shl(key, bits + VALUE_BITS)
    for j in range(x.n):
        kept = not w.prunes or (items[j].raw > w.cut[d + 1] and w.kept[items[j].word])
        off = w.discount[d + 1][3 if items[j].value > 3 else items[j].value]
        p = gamma * w.p[d - 1][items[j].word]
        if kept:
            p = (<double>items[j].value - off) / total + p
        if not last:
            w.p[d][items[j].word] = p
        if ours and kept:
            store(at, key | shl(<packed_t>w.rank[items[j].word], VALUE_BITS) | <packed_t>log10_bits(p), <int>width)
            at += 8 * width
            n_kept += 1
    if ours:
        w.rows[d + 1].n -= 8 * width * (x.n - n_kept)


cdef void walk_block(Walk w, const packed_t* keys, const count_t* counts, index_t n, packed_t* previous) noexcept nogil:
    """Walk over sorted keys; *previous is the last key of the block before."""
    cdef index_t i
    cdef int d, shared, leaf, deepest = w.top - 1, order = w.order, bits = w.bits
    cdef packed_t key
    cdef word_t word, c
    cdef uint32_t mask = <uint32_t>((<uint64_t>1 << bits) - 1)
    for i in range(n):
        key = keys[i]
        if counts[i] < 1:
            w.status = ERR_NEGATIVE
            return
        word = low32(key) & mask
        if <index_t>word >= w.n_words:
            w.status = ERR_WORD
            return
        w.words_raw[word] += counts[i]
        if deepest == 0:
            w.unigrams[word] += counts[i]
            continue
        # STEP 1: how many context words this key shares with the one before.
        if w.open:
            d = bit_length(key ^ previous[0])
            shared = order - 1 - (d - 1) // bits if d > 0 else order
        else:
            shared = 0
        previous[0] = key
        # STEP 2: end the contexts that do not go on, deepest first; open the new ones.
        if not w.open or shared < w.leaf:
            if w.open:
                while w.leaf > shared:
                    w.close(w.leaf)
                    w.leaf -= 1
            leaf = shared
            while leaf < deepest:
                leaf += 1
                c = low32(shr(key, bits * (order - leaf))) & mask
                if <index_t>c >= w.n_words:
                    w.status = ERR_WORD
                    return
                w.path[leaf] = c
                w.chain[leaf] = mix(w.chain[leaf - 1], c)
                if leaf > 1:
                    w.inner[leaf] = mix(w.inner[leaf - 1], c)
                w.lists[leaf].n = 0
                w.lists[leaf].sorted = False
                if c == BOS:
                    break
            w.leaf = leaf
            # Only the n-grams of the leaf arrive sorted and each once: when no context word is cut off.
            w.lists[leaf].sorted = w.path[leaf] == BOS or leaf == order - 1
            w.open = True
        # STEP 3: the predicted word.
        w.push(w.leaf, word, counts[i], at_most(<uint64_t>counts[i]))

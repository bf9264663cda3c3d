"""Text drawn word by word from what follows a context, after temperature, top k and top p.

Twin: the distribution, in tests/property/test_followers.py.
"""
from libc.math cimport pow
from libc.stdint cimport int64_t

from kvps._best cimport Best
from kvps._followers cimport NO_WORD, Followers, Workspace, better, candidate, listing, make_heap, pop_heap
from kvps._keys cimport mix
from kvps._smoothing cimport LIDSTONE
from kvps._types cimport BOS, EOS, MAX_ORDER, UNK, index_t, uint8_t, uint32_t, uint64_t, word_t

cdef enum:
    TRIES = 1000               # to draw a word that is neither <s> nor <unk>


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


cdef word_t picked(Followers f, const listing* x, double target) noexcept nogil:
    """Return the word of a list at which what the words keep adds up to more than target."""
    cdef index_t i = x.start
    while i < x.end - 1:
        target -= f.kept_at(x, i)
        if target < 0:
            break
        i += 1
    return f.levels[x.d].words[i]


cdef word_t draw(Followers f, const word_t* last, int n, const double* reached, int tries, uint64_t* state) noexcept nogil:
    """Draw a word that is neither <s> nor <unk> by walking down: at each context its own words, or on to the shorter one.

    reached[i]: the sum of the shares of the ground of the first i + 1 words by it. NO_WORD if so many tries give none.
    """
    cdef listing lists[MAX_ORDER + 1]
    cdef int d, seen, tried
    cdef index_t low, high, middle, n_ground = f.n_ground[n == 0]
    cdef double r, total
    cdef word_t word
    seen = f.find(last, n, lists)
    for tried in range(tries):
        word = <word_t>NO_WORD
        if f.rules.kind == LIDSTONE and n > 0:
            total = f.rules.value * f.rules.vocabulary + (lists[n].den if seen == n else 0)
            r = drawn(state) * total
            if total <= 0:
                break
            if seen == n and r < lists[n].den:
                word = picked(f, &lists[n], r)
        else:
            for d in range(seen, 0, -1):
                r = drawn(state)
                if r < 1 - lists[d].gamma:
                    word = picked(f, &lists[d], r / lists[d].scale)
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
            word = f.by_ground[n == 0][low]
        if word != BOS and word != UNK and <index_t>word < f.n_words and reached[n_ground - 1] > 0:
            return word
    return <word_t>NO_WORD


def draw_word(Followers f, const uint32_t[::1] context, const double[::1] reached, uint64_t seed):
    """Draw one word after a context; NO_WORD where it is <s> or <unk>, or none has a probability. Arguments as generate()."""
    cdef int n = <int>min(context.shape[0], <index_t>f.order - 1)
    cdef word_t word
    if reached.shape[0] != f.n_ground[n == 0]:
        raise ValueError(f"{reached.shape[0]} sums of {f.n_ground[n == 0]} words")
    with nogil:
        word = draw(f, &context[0] + context.shape[0] - 1, n, &reached[0], 1, &seed)
    f.refuse_damage()
    return word


cdef double best_alone(Followers f, bint alone) noexcept nogil:
    """The greatest share of the ground that a word has, <s> and <unk> left out."""
    cdef index_t i
    for i in range(f.n_ground[alone]):
        if f.by_ground[alone][i] != BOS and f.by_ground[alone][i] != UNK:
            return f.ground[alone][f.by_ground[alone][i]]
    return 0


cdef word_t choose_of_best(Best best, Workspace ws, const word_t* last, int n, double sharpness, index_t top_k, double top_p,
                           uint64_t* state) noexcept nogil:
    """Draw one of the k best words, and of these the fewest that have top_p of what they have together."""
    cdef index_t i, n_chosen = best.search(ws, last, n, top_k, True, 0, best.n_words, 0)
    cdef double total = 0, reached = 0, top = ws.heap[0].p
    for i in range(n_chosen):
        ws.heap[i].p = raised(ws.heap[i].p / top, sharpness)
        total += ws.heap[i].p
    for i in range(n_chosen):
        reached += ws.heap[i].p
        if reached >= top_p * total:
            n_chosen = i + 1
            break
    return taken(ws.heap, n_chosen, drawn(state) * reached)


cdef word_t choose(Followers f, Workspace ws, const word_t* last, int n, double sharpness, double top_p, const double* tempered,
                   uint64_t* state) noexcept nogil:
    """Draw one of the fewest best words that have top_p, each by the power `sharpness` of its probability.

    Powers are those of shares of the greatest, so that they do not all become 0 at low temperatures.
    """
    cdef index_t i, at = 0, n_heap = 0, n_chosen = 0
    cdef const uint32_t* order
    cdef double total = 0, rest, r, ground, top, reached = 0
    cdef candidate c, other
    cdef bint from_heap
    f.sum_up(ws, last, n)
    order = f.by_ground[ws.alone]
        # All words there are: those in the lists, and of the others the sum.
    ground = ws.scale * best_alone(f, ws.alone)
    top = ground
    rest = tempered[f.n_words]
    for i in range(ws.n_touched):
        rest -= tempered[ws.touched[i]]
        c.word = ws.touched[i]
        if c.word == UNK:
            continue
        c.p, c.rank = f.probability(ws, c.word), f.ranks[c.word]
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
            for i in range(f.n_ground[ws.alone]):
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
        while at < f.n_ground[ws.alone] and (ws.sums[order[at]] > 0 or tempered[order[at]] <= 0):
            at += 1
        from_heap = n_heap > 0
        if at < f.n_ground[ws.alone]:
            other.word = order[at]
            other.p, other.rank = tempered[order[at]] * ground, f.ranks[order[at]]
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


def generate(Best best, Workspace ws, const uint32_t[::1] prompt, uint64_t seed, uint64_t first, index_t max_words,
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
    cdef Followers f = <Followers>best.parts[0].followers
    cdef index_t i, j, n = out.shape[0], length
    cdef int known, most = f.order - 1
    cdef uint64_t state
    cdef word_t recent[MAX_ORDER]
    cdef word_t word
    cdef bint plain = temperature == 1 and top_k == 0 and top_p >= 1
    cdef double sharpness = 1 / temperature
    f.refuse_shape(ws)
    if best.n_parts != 1 or best.n_words != f.n_words:
        raise ValueError(f"{best.n_parts} models, of which one is drawn from")
    if (prompt.shape[0] < 1 or out.shape[1] < max_words or lengths.shape[0] < n or ends.shape[0] < n
            or tempered.shape[0] != f.n_words + 1 or reached.shape[0] != f.n_ground[most == 0] or not temperature > 0 or top_k < 0):
        raise ValueError(f"a prompt of {prompt.shape[0]} words, room for {out.shape[0]} times {out.shape[1]}")
    top_k = min(top_k, f.n_words)
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
                    word = draw(f, recent + known - 1, known, &reached[0], TRIES, &state)
                if not plain or word == <word_t>NO_WORD:           # perhaps <unk> has nearly all there is
                    if top_k > 0:
                        word = choose_of_best(best, ws, recent + known - 1, known, sharpness, top_k, top_p, &state)
                    else:
                        word = choose(f, ws, recent + known - 1, known, sharpness, top_p, &tempered[0], &state)
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
    f.refuse_damage()


cdef inline double raised(double p, double sharpness) noexcept nogil:
    return p if sharpness == 1 else pow(p, sharpness)


cdef word_t taken(const candidate* chosen, index_t n, double target) noexcept nogil:
    """Return the candidate at which the weights add up to more than target."""
    cdef index_t i
    for i in range(n):
        target -= chosen[i].p
        if target < 0:
            return chosen[i].word
    return chosen[n - 1].word if n > 0 else <word_t>NO_WORD

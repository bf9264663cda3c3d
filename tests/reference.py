"""Textbook n-gram models in plain Python: the naive twins that every kernel and every smoothing is compared with.

Slow, short and without NumPy, so that each line can be held against its formula.
A sentence is a sequence of words; its n-grams are the windows of `<s> w1 ... wk </s>`, with one pad at each side.
Everything is float64 and exact in the counts; `lmplz` works in float32, so its figures agree within 2e-6 (log10).

Two families, and two meanings of "unknown":
    ModifiedKneserNey   what KenLM's lmplz estimates: unknown words are `<unk>`, and p(`<unk>`) > 0
    Nltk                the smoothings of nltk.lm (3.10.4): unknown words are `<UNK>`, in |V| but never counted
"""
import bisect
import gzip
import math
import re
from collections import Counter, defaultdict

from kvps._text import RANGES

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
FALLBACK = (0.5, 1.0, 1.5)  # lmplz's defaults for an order whose discounts cannot be computed


def read_sentences(data):
    """Return the sentences of `data` (bytes, UTF-8), each a list of words, as lmplz reads them.

    NUL, TAB, CR and space separate words and nothing else does; each line is a sentence, an empty one too.
    Unlike lmplz, a last line without its newline is a line like any other.
    """
    lines = data.decode().split("\n")
    if not lines[-1]:
        lines.pop()
    return [re.findall(r"[^\0\t\r ]+", line) for line in lines]


def windows(sentence, order):
    """Return the n-grams of `order` words of one sentence, in text order; none if the padded sentence is shorter."""
    padded = (BOS, *sentence, EOS)
    return [padded[i:i + order] for i in range(len(padded) - order + 1)]


def raw_counts(sentences, order):
    """Return the Counter of all windows of `order` words."""
    return Counter(gram for sentence in sentences for gram in windows(sentence, order))


def adjusted_counts(sentences, order):
    """Return {n: {n-gram: adjusted count}} for n in 1..order, as a model of that highest order sees them.

    The highest order keeps its raw counts, and so does every n-gram that begins with `<s>`, which nothing can precede;
    another n-gram has the number of distinct words before it, `<s>` being one. `<s>` alone has 0, and so has `<unk>` unless the
    text has it, which stands for the words that a closed vocabulary lacks.
    A model of order K < N over the same text is `adjusted_counts(sentences, K)`: its order K is raw.
    """
    raw = {n: raw_counts(sentences, n) for n in range(1, order + 1)}
    adjusted = {order: dict(raw[order])}
    for n in range(1, order):
        extensions = Counter(gram[1:] for gram in raw[n + 1])
        adjusted[n] = {gram: count if gram[0] == BOS else extensions[gram] for gram, count in raw[n].items()}
    adjusted[1] = {(UNK,): 0} | adjusted[1] | {(BOS,): 0}
    return adjusted


def counts_of_counts(counts):
    """Return [0, t1, t2, t3, t4], t_k being how many n-grams have count k."""
    tally = Counter(counts.values())
    return [0, *(tally[k] for k in (1, 2, 3, 4))]


def lmplz_slip(sentences, order):
    """Return {n: {n-gram: raw count}}: the n-grams that lmplz lets into t with raw counts (KenLM issue 427).

    At the end of its stream lmplz flushes the last n-gram of each lower order unadjusted: the suffixes of the greatest
    n-gram of the highest order, compared from the last word back by ids, which are given in order of first appearance.
    Not to be copied, but needed to compare with lmplz on texts where it shows.
    """
    ids = {BOS: 1, EOS: 2}
    for sentence in sentences:
        for word in sentence:
            ids.setdefault(word, len(ids) + 1)
    padded = raw_counts(([BOS] * (order - 2) + list(sentence) for sentence in sentences), order)
    greatest = max(padded, key=lambda gram: [ids[word] for word in reversed(gram)])
    return {n: {greatest[-n:]: raw_counts(sentences, n)[greatest[-n:]]} for n in range(1, order)}


def discounts(t):
    """Return D1, D2, D3+ from t1..t4, or None where one is undefined or leaves [0, k].

    Source: Chen and Goodman 1998, equation 26.
    """
    if not (t[1] and t[2] and t[3]):
        return None
    y = t[1] / (t[1] + 2 * t[2])
    d = tuple(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
    return d if all(0 <= d[k - 1] <= k for k in (1, 2, 3)) else None


class ModifiedKneserNey:
    """Interpolated modified Kneser-Ney, unpruned, as lmplz defines it.

    Attributes, by order n: adjusted[n] {n-gram: a}, t[n], discounts[n]; `fallen`, the orders with fallback discounts.
    By context h: den[h] the sum of a(hx), gamma[h] the mass that its discounts free.
    `V` counts `<unk>` and `</s>`, not `<s>`.
    """

    def __init__(self, sentences, order, fallback=FALLBACK, slip=False):
        """Estimate the model of `order` 1..8 from a list of sentences; with `slip`, make lmplz's mistake in t too."""
        slips = lmplz_slip(sentences, order) if slip else {}
        self.order = order
        self.adjusted = adjusted_counts(sentences, order)
        self.t, self.discounts, self.fallen = {}, {}, set()
        self.den, freed = Counter(), Counter()
        for n, counts in self.adjusted.items():
            self.t[n] = counts_of_counts(counts | slips.get(n, {}))
            self.discounts[n] = discounts(self.t[n])
            if self.discounts[n] is None:
                self.discounts[n] = fallback
                self.fallen.add(n)
            for gram, a in counts.items():
                self.den[gram[:-1]] += a
                freed[gram[:-1]] += self.discount(n, a)
        self.gamma = {h: freed[h] / self.den[h] for h in self.den}
        self.V = len(self.adjusted[1]) - 1

    def discount(self, n, a):
        """Return D_n(a): 0 for a = 0, D3+ from 3 on."""
        return self.discounts[n][min(a, 3) - 1] if a else 0.0

    def p(self, word, context=()):
        """Return the probability of `word` after at most order-1 words of `context`.

        A word that was never counted is `<unk>`. p(`<s>`) is 1 by lmplz's convention: it is given, never predicted.
        """
        context = tuple(context)[max(0, len(context) - self.order + 1):]
        if not context:
            a = self.adjusted[1].get((word,), 0)
            return 1.0 if word == BOS else (a - self.discount(1, a)) / self.den[()] + self.gamma[()] / self.V
        lower = self.p(word, context[1:])
        if context not in self.den:
            return lower
        n, a = len(context) + 1, self.adjusted[len(context) + 1].get((*context, word), 0)
        return (a - self.discount(n, a)) / self.den[context] + self.gamma[context] * lower

    def backoff(self, gram):
        """Return the weight of `gram` as a context: 1 where nothing follows it."""
        return self.gamma.get(tuple(gram), 1.0)

    def arpa(self):
        """Yield (n-gram, log10 probability, log10 back-off) for every line of the ARPA file; no back-off at the top.

        Of a back-off of 0, where the discounts of a small text are 0, it is -99.
        """
        for n, counts in self.adjusted.items():
            for gram in counts:
                backoff = self.backoff(gram)
                yield (gram, math.log10(self.p(gram[-1], gram[:-1])),
                       None if n == self.order else math.log10(backoff) if backoff > 0 else -99.0)


class Nltk:
    """The smoothings of nltk.lm, fitted on one pad at each side: `<s>` and `</s>` are counted words like any other.

    What nltk 3.10.4 does, checked by test_reference.py:
    - A word that was never counted is looked up as `<UNK>`, in the context too. Nothing is counted for `<UNK>`, so that
      is a plain zero. If the text holds the word `<UNK>` itself, unknown words score as that one, and |V| has it twice.
    - |V| = distinct words, `<s>`, `</s>` and `<UNK>`.
    - mle, lidstone and laplace do not cut a context longer than order-1: it counts as unseen. The others cut it.
    - An unseen context: mle 0, lidstone 1 / |V|, stupid back-off alpha times the score after the shorter context, the
      others that score itself.
    - Scores of `<s>` are as for any word, though no sentence continues with it; so it takes its share of the mass.
    - Unigrams of stupid back-off, Witten-Bell and absolute discounting are relative frequencies: p(unknown) = 0.
    """

    def __init__(self, sentences, order):
        """Count the windows of 1..order words of a list of sentences."""
        self.order = order
        self.count = Counter()
        for n in range(1, order + 1):
            self.count |= raw_counts(sentences, n)
        self.total, self.types = Counter(), Counter()  # of a context: what follows it, as tokens and as distinct words
        self.left, self.left_total = Counter(), Counter()  # distinct left words of an n-gram; their sum over a context
        for gram, count in self.count.items():
            self.total[gram[:-1]] += count
            self.types[gram[:-1]] += 1
            if len(gram) > 1:
                self.left[gram[1:]] += 1
                self.left_total[gram[1:-1]] += 1
        self.vocabulary = {gram[0] for gram in self.count if len(gram) == 1}
        self.V = len(self.vocabulary) + 1

    def lookup(self, words):
        """Return `words` as a tuple with the unknown ones replaced by `<UNK>`."""
        return tuple(word if word in self.vocabulary else "<UNK>" for word in words)

    def cut(self, context):
        """Return the last order-1 words of a context."""
        return context[max(0, len(context) - self.order + 1):]

    def mle(self, word, context=()):
        """Return count(context word) / count(context *), and 0 for an unseen context."""
        return self.lidstone(word, context, 0.0)

    def laplace(self, word, context=()):
        """Return Lidstone with 1 added."""
        return self.lidstone(word, context, 1.0)

    def lidstone(self, word, context=(), added=0.1):
        """Return (count + added) / (total + |V| added), without any back-off; 0 where that is 0 / 0."""
        *context, word = self.lookup((*context, word))
        below = self.total[tuple(context)] + self.V * added
        return (self.count[(*context, word)] + added) / below if below else 0.0

    def stupid_backoff(self, word, context=(), alpha=0.4):
        """Return the relative frequency of a seen n-gram, else alpha times the score after the shorter context."""
        *context, word = self.lookup((*self.cut(context), word))
        scale = 1.0
        while context and not self.count[(*context, word)]:
            scale, context = scale * alpha, context[1:]
        return scale * self.count[(*context, word)] / self.total[tuple(context)]

    def _interpolate(self, word, context, alpha_gamma, unigram):
        """Return alpha + gamma p(word | shorter context), unigrams first; unseen contexts have alpha 0, gamma 1."""
        *context, word = self.lookup((*self.cut(context), word))
        p = unigram(word)
        for start in range(len(context) - 1, -1, -1):
            h = tuple(context[start:])
            if self.total[h]:
                alpha, gamma = alpha_gamma(word, h)
                p = alpha + gamma * p
        return p

    def _frequency(self, word):
        """Return the relative frequency of a word."""
        return self.count[(word,)] / self.total[()]

    def witten_bell(self, word, context=()):
        """Return interpolated Witten-Bell: gamma = types / (types + tokens) of the context."""
        def alpha_gamma(word, h):
            """Return what the context itself gives, and the weight of the shorter one."""
            gamma = self.types[h] / (self.types[h] + self.total[h])
            return (1 - gamma) * self.count[(*h, word)] / self.total[h], gamma
        return self._interpolate(word, context, alpha_gamma, self._frequency)

    def absolute_discounting(self, word, context=(), discount=0.75):
        """Return interpolated absolute discounting: every seen continuation gives `discount` away."""
        def alpha_gamma(word, h):
            """Return the discounted share, and what the discounts free."""
            return max(self.count[(*h, word)] - discount, 0) / self.total[h], discount * self.types[h] / self.total[h]
        return self._interpolate(word, context, alpha_gamma, self._frequency)

    def kneser_ney(self, word, context=(), discount=0.1):
        """Return interpolated Kneser-Ney: raw counts at the highest order, numbers of distinct left words below it.

        Unigrams have no uniform term: p(unknown) = 0, and p(`<s>`) = 0 from order 2 on.
        Deviation: nltk raises ZeroDivisionError after a context that begins with `<s>` and is shorter than order-1, for
        nothing precedes `<s>` (from order 3 on every sentence's first word; also after ("x", "<s>"), which backs off to
        it); here such n-grams keep their raw counts, as with lmplz, and the probabilities sum to 1.
        At order 1 nltk raises always; here it is the relative frequency, as with absolute discounting.
        """
        def alpha_gamma(word, h):
            """Return the discounted share, and what the discounts free."""
            raw = len(h) + 1 == self.order or h[0] == BOS
            count, total = (self.count, self.total[h]) if raw else (self.left, self.left_total[h])
            return max(count[(*h, word)] - discount, 0) / total, discount * self.types[h] / total

        def unigram(word):
            """Return the share of a word in all distinct bigrams, whose second word it is."""
            return self.left[(word,)] / self.left_total[()] if self.order > 1 else self._frequency(word)
        return self._interpolate(word, context, alpha_gamma, unigram)


def perplexity(p, sentences, order, known):
    """Return a text's perplexity with what it is made of, as a dict with the keys of `kvps perplexity --json`.

    Tokens are the words and one `</s>` a sentence, each scored after at most order-1 words, `<s>` being the first.
    The excluding figure leaves out OOV tokens, though they still stand in contexts. A zero probability gives infinity.

    Args:
        p: function of (word, context) to a probability.
        sentences: the text, each sentence a sequence of words.
        order: the model's.
        known: a token that is not in this set is an OOV.
    """
    log10, zeros = defaultdict(list), 0
    for sentence in sentences:
        padded = (BOS, *sentence, EOS)
        for i in range(1, len(padded)):
            score = p(padded[i], padded[max(0, i - order + 1):i])
            zeros += score == 0
            log10[padded[i] in known].append(math.log10(score) if score else -math.inf)
    everything, seen = log10[True] + log10[False], log10[True]
    return {
        "tokens": len(everything), "oov": len(log10[False]), "zero_probability_tokens": zeros,
        "log10_probability": math.fsum(everything),
        "perplexity": 10 ** (-math.fsum(everything) / len(everything)),
        "perplexity_excluding_oov": 10 ** (-math.fsum(seen) / len(seen)),
    }


def read_arpa(path):
    """Return ({order: n} of the header, {n-gram: (log10 probability, log10 back-off or None)}) of an ARPA file."""
    entries, sizes = {}, {}
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as lines:
        for line in lines:
            fields = line.rstrip(b"\n").split(b"\t")
            if len(fields) > 1:
                words = tuple(fields[1].split(b" "))
                assert words not in entries
                entries[words] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else None)
            elif found := re.fullmatch(rb"ngram (\d)=(\d+)\n", line):
                sizes[int(found[1])] = int(found[2])
    return sizes, entries


def mix(a, b):
    """Return the hash of two 64-bit numbers, as FORMAT.md has it."""
    product = (a ^ 0x9e3779b97f4a7c15) * (b ^ 0xd6e8feb86659fd93)
    return (product ^ product >> 64) % 2**64


def shard_of_word(word, n_shards):
    """Return the shard of the n-grams that a word routes, where nothing else is said."""
    return mix(word, 0x6b767073) * n_shards >> 64


def shard_of_pair(word, before, n_shards):
    """Return the shard of the n-grams that a split word routes, after another word."""
    return mix(before, mix(word, 0x6b767073)) * n_shards >> 64


def shard_of_key(key, n_shards):
    """Return the shard of a table's key (bytes), as FORMAT.md says."""
    h = 0x6b767073
    padded = key + bytes(-len(key) % 4)
    for at in range(0, len(padded), 4):
        h = mix(int.from_bytes(padded[at:at + 4]), h)
    return h * n_shards >> 64


def arranged(keys, n_shards):
    """Return the places of keys (bytes) sorted by shard and key, equal ones as they stood, and where each shard ends."""
    places = sorted(range(len(keys)), key=lambda i: (shard_of_key(keys[i], n_shards), keys[i], i))
    shards = [shard_of_key(key, n_shards) for key in keys]
    return places, [sum(shard <= last for shard in shards) for last in range(n_shards)]


def added_up(keys, deltas):
    """Return the Counter of a batch of keys and deltas, without those that add up to 0."""
    sums = Counter()
    for key, delta in zip(keys, deltas, strict=True):
        sums[key] += delta
    return Counter({key: count for key, count in sums.items() if count})


def characters(line):
    """Return the words that --tokenizer char makes of a line, one character after another: twin of kvps._text.characters()."""
    run, mark, blank = 1, 2, 3
    words, running, adjacent = [], False, False
    for character in line:
        if ord(character) > 127:
            at = bisect.bisect_right(RANGES, (ord(character), 0x110000, 0)) - 1
            kind = RANGES[at][2] if RANGES[at][0] <= ord(character) <= RANGES[at][1] else 0
        else:
            kind = run if character.isalnum() else blank if character in "\0\t\v\f\r " else 0
        if kind == blank:
            running = adjacent = False
            continue
        if (kind == run and running) or (kind == mark and adjacent):
            words[-1] += character
        else:
            words.append(character)
        running, adjacent = kind == run or (kind == mark and running), True
    return words

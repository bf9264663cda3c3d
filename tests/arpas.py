"""What an ARPA file says, in plain Python."""


def read_arpa(path):
    """Return {order: {n-gram: (log10 p, log10 back-off)}} of an ARPA file."""
    listed = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.endswith("-grams:"):
            listed[k := int(line[1])] = {}
        elif "\t" in line:
            p, ngram, *backoff = line.split("\t")
            listed[k][tuple(ngram.split(" "))] = float(p), float(backoff[0]) if backoff else 0.0
    return listed


def p_in(listed, ground, context, word):
    """Return the probability that an ARPA file means."""
    if not context:
        return ground[word,]
    if (*context, word) in listed.get(len(context) + 1, {}):
        return 10 ** listed[len(context) + 1][*context, word][0]
    return 10 ** listed[len(context)].get(context, (0, 0))[1] * p_in(listed, ground, context[1:], word)

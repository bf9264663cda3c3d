"""Words that a model draws, compared with the probabilities that it gives them."""
import math
from collections import Counter

N_DRAWS = 2000


def expected_draws(after, temperature=1.0, top_k=None, top_p=None):
    """Return {word: probability} of the next word that is drawn, of all NextWords."""
    tempered = [(word, p ** (1 / temperature)) for word, p in zip(after.words, after.probabilities, strict=True)
                if word not in ("<s>", "<unk>")][:top_k]
    total, reached, kept = math.fsum(p for _, p in tempered), 0.0, {}
    for word, p in tempered:
        kept[word] = p
        reached += p
        if top_p is not None and reached >= top_p * total:
            break
    return {word: p / reached for word, p in kept.items()}


def check_draws(words, after, **choices):
    """Assert that words were drawn as often as is expected.

    The share of each is within 5 standard deviations of that, and 5 draws, since draws of a rare word are not normally distributed.
    """
    drawn, expected, n = Counter(words), expected_draws(after, **choices), len(words)
    assert set(drawn) <= set(expected)
    for word, p in expected.items():
        assert abs(drawn[word] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 5, (word, drawn[word], n * p)

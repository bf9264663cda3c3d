"""The smoothings: their names, the counts they stand on, and their parameters. Formulas: ext/kvps/_smoothing.pxd.

With c counts, N(h) = sum of c(h x) over words x, T(h) = how many words follow h, h' = h without its first word:

    modified-kneser-ney  interpolated, three discounts an order, unigrams mixed with 1/V: Chen and Goodman 1998; as lmplz
    kneser-ney           one discount d; as nltk.lm (continuation counts below the highest order, unigrams too, no 1/V),
                         except that n-grams that begin with <s> keep their raw counts, where nltk.lm divides by zero
    absolute-discounting p = max(c - d, 0) / N + d T / N p(w | h')
    witten-bell          p = (c + T p(w | h')) / (T + N)
    lidstone             p = (c + gamma) / (N + gamma |V|), no back-off; laplace: gamma = 1; mle: gamma = 0
    stupid-backoff       c / N if c > 0, otherwise alpha S(w | h'): a score, not a distribution

Defaults are those of nltk.lm. |V| counts the words, <s>, </s> and the unknown word.
"""
from __future__ import annotations

import dataclasses
import math

from kvps.errors import ArgumentError

_NUMBERS = {"modified-kneser-ney": 0, "kneser-ney": 1, "absolute-discounting": 2, "witten-bell": 3, "lidstone": 4,
            "laplace": 4, "mle": 4, "stupid-backoff": 5}
_SHORT = {"mkn": "modified-kneser-ney", "kn": "kneser-ney", "ad": "absolute-discounting", "wb": "witten-bell"}
_DEFAULTS = {"kneser-ney": 0.1, "absolute-discounting": 0.75, "lidstone": None, "stupid-backoff": 0.4}
HAVE_BACKOFFS = ("modified-kneser-ney", "kneser-ney", "absolute-discounting", "witten-bell")
NAMES = tuple(_NUMBERS)
DEFAULT = "modified-kneser-ney"
# One of each, for who compares them.
ALL = tuple("lidstone:0.1" if name == "lidstone" else name for name in NAMES)


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """One smoothing with its parameter (None where it has none)."""

    name: str
    value: float | None = None

    @property
    def number(self) -> int:
        """The kernel's number of this smoothing."""
        return _NUMBERS[self.name]

    @property
    def kernel_value(self) -> float:
        """The parameter as the kernel takes it."""
        return {"laplace": 1.0, "mle": 0.0}.get(self.name, self.value or 0.0)

    @property
    def kind(self) -> str:
        """The kind of compiled model that it is computed from."""
        if self == GIVEN:
            return "arpa"
        return "kn" if self.name in ("modified-kneser-ney", "kneser-ney") else "raw"

    def back_off_discounts(self, estimated: list[list[float]]) -> tuple[list[list[float]], float]:
        """Return what Walk.estimate() takes: discounts by order and count, and `types`.

        estimated: those of modified Kneser-Ney.

        Raises:
            ArgumentError: it is not of the form p(w | h) = u(w | h) + gamma(h) p(w | h') that a back-off file can hold.
        """
        if self.name not in HAVE_BACKOFFS:
            raise ArgumentError(f"a back-off file cannot hold {self}; it can hold {', '.join(HAVE_BACKOFFS)}")
        if self.name == "modified-kneser-ney":
            return estimated, 0.0
        if self.name == "witten-bell":
            return [[0.0] * 4] * len(estimated), 1.0
        return [[0.0, *[self.kernel_value] * 3]] * len(estimated), 0.0

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.value:g}"


# Of a model that was imported, whose probabilities and back-offs are what they are; nobody can ask for it.
GIVEN = Smoothing("back-off")
# Of a mixture, whose models have one each.
MIXED = Smoothing("mixture")


def parse(text: str | Smoothing) -> Smoothing:
    """Return the smoothing that NAME[:VALUE] means; ArgumentError tells what is possible."""
    if isinstance(text, Smoothing):
        return text
    if not isinstance(text, str):
        raise ArgumentError(f"a smoothing is NAME or NAME:VALUE, not {type(text).__name__}; choose one of {', '.join(NAMES)}")
    name, _, value = text.partition(":")
    name = _SHORT.get(name, name)
    if name not in _NUMBERS:
        raise ArgumentError(f'smoothing "{text}" is unknown; choose one of {", ".join(NAMES)}')
    if name not in _DEFAULTS:
        if value:
            raise ArgumentError(f"{name} takes no value, found {value!r}")
        return Smoothing(name)
    try:
        number = float(value) if value else _DEFAULTS[name]
    except ValueError:
        number = math.nan
    if number is None:
        raise ArgumentError(f"{name} needs a value: {name}:0.1")
    top = 1.0 if name != "lidstone" else math.inf
    if not 0 <= number <= top or math.isinf(number):
        raise ArgumentError(f"the value of {name} is a number from 0 to {top:g}, found {value!r}")
    return Smoothing(name, number)

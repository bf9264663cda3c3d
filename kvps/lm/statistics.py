"""What modified Kneser-Ney needs to know about a store as a whole, and the discounts that follow from it.

Definitions (Chen and Goodman 1998; as lmplz has them):
    adjusted count a(g): of the highest order and of n-grams that begin with <s>, the raw count; of other n-grams the
        number of distinct words before them, <s> being one; <unk> and <s> as unigrams have 0.
    t_k: how many n-grams of an order have a = k.
    Y = t1 / (t1 + 2 t2);  D_k = k - (k + 1) Y t_{k+1} / t_k  for k = 1, 2, 3;  D_k = D_3 beyond (their equation 26).
"""
from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from kvps.errors import DiscountError

log = logging.getLogger("kvps")

# What lmplz --discount_fallback takes where an order's own discounts cannot be computed.
FALLBACK = (0.5, 1.0, 1.5)


@dataclasses.dataclass
class Statistics:
    """Counts of counts of one version, seen as a model of order `order`.

    ngrams, t: by order 1..order; distinct n-grams as lmplz counts them (the three special words among the unigrams),
    and [t1, t2, t3, t4] of the adjusted counts.
    vocabulary: distinct words, without the three specials.
    """

    order: int
    version: int
    tokens: int
    sentences: int
    vocabulary: int
    ngrams: dict[int, int]
    t: dict[int, list[int]]

    def to_json(self) -> dict:
        """Return what from_json takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict) -> Statistics:
        """Return the statistics of a JSON object, whose keys are text."""
        by_order = {name: {int(k): v for k, v in record[name].items()} for name in ("ngrams", "t")}
        return cls(**{**record, **by_order})

    def discounts(self, fallback: Sequence[float] = FALLBACK) -> tuple[list[list[float]], dict[int, str]]:
        """Return (rows [0, D1, D2, D3+] by order from 0 on; {order: why its discounts are the fallback ones}).

        fallback: D1, D2, D3+ of an order that has none of its own; empty: it has none, and DiscountError says so.
        """
        table, fallen = [[0.0] * 4], {}
        for order in range(1, self.order + 1):
            try:
                table.append([0.0, *discounts([0, *self.t[order]])])
            except DiscountError as exc:
                if not fallback:
                    raise DiscountError(f"order {order} has no discounts of its own: {exc} (small, repeated or artificial text; "
                                        "lmplz has --discount_fallback for it)", order=order, k=exc.k) from exc
                table.append([0.0, *fallback])
                fallen[order] = str(exc)
        return table, fallen

    def discounts_or_warn(self, fallback: Sequence[float] = FALLBACK) -> list[list[float]]:
        """Return the discounts, telling the log which orders take fallback ones."""
        table, fallen = self.discounts(fallback)
        for order, reason in fallen.items():
            log.warning("order %d takes the fallback discounts %s: %s (small or artificial text)", order,
                        ", ".join(f"{d:g}" for d in fallback), reason)
        return table


def discounts(t: list[int]) -> list[float]:
    """Return the modified Kneser-Ney discounts D1, D2, D3+ of one order.

    Args:
        t: t[k] n-grams of this order have adjusted count k, k = 1..4. t[0] is unused.

    Returns:
        Three, with 0 <= D_k <= k.

    Raises:
        DiscountError: t[k] is 0 for a k in 1..3, or a D_k leaves its range.

    Source: Chen and Goodman 1998, equation 26.
    """
    for k in (1, 2, 3):
        if t[k] == 0:
            raise DiscountError(f"no n-gram has adjusted count {k}", k=k)
    y = t[1] / (t[1] + 2 * t[2])
    result = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
    for k in (1, 2, 3):
        if not 0 <= result[k - 1] <= k:
            raise DiscountError(f"D{k} would be {result[k - 1]:.4g}, outside 0..{k}", k=k)
    return result

"""Several pieces of work at once, their results in order."""
from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def gathered(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> list:
    """Run a function over items; where one fails, those not begun are dropped and its exception is raised."""
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def windowed(pool: ThreadPoolExecutor, function: Callable, items: Iterable, window: int) -> Iterator:
    """Yield function(item) in order, working at most `window` items ahead, so that memory is bounded."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def spread(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield function(item) in order from several threads, as windowed(); a single item starts none, which would take longer."""
    left = iter(items)
    first = list(itertools.islice(left, 2))
    if len(first) < 2 or threads == 1:
        yield from map(function, itertools.chain(first, left))
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from windowed(pool, function, itertools.chain(first, left), 2 * threads)

"""Several pieces of work at once, their results in order."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


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

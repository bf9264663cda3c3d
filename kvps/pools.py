"""Several pieces of work at once, their results in order."""
from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Pool(ThreadPoolExecutor):
    """A ThreadPoolExecutor that a generator may hold, and that drops what is not begun when its block ends early.

    A generator that is left unfinished may be closed by the garbage collector while a thread is starting. CPython before 3.13
    holds a lock meanwhile that joining threads takes, for ever. So then this waits for its work and not for its threads, which
    end by themselves.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._at_work: set[Future] = set()

    def submit(self, *args: object, **kwargs: object) -> Future:
        """Begin work, as ThreadPoolExecutor.submit()."""
        future = super().submit(*args, **kwargs)
        self._at_work.add(future)
        future.add_done_callback(self._at_work.discard)
        return future

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
        if kind is GeneratorExit:
            wait(list(self._at_work))
        else:
            self.shutdown()


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
    """Yield function(item) in order from several threads, as windowed(); a single item starts none, which would take longer.

    Items are taken in the caller's thread.
    """
    left = iter(items)
    first = list(itertools.islice(left, 2))
    if len(first) < 2 or threads == 1:
        yield from map(function, itertools.chain(first, left))
        return
    with Pool(threads) as pool:
        yield from windowed(pool, function, itertools.chain(first, left), 2 * threads)

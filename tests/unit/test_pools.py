"""Several pieces of work at once: order, how far ahead, what is dropped, and generators that are left unfinished."""
import subprocess
import sys
import threading
import time

import pytest

from kvps.pools import Pool, gathered, spread

LEFT = """
import threading
from kvps.pools import spread

answers = spread(lambda n: n, range(100), 2)
next(answers)
with getattr(threading, "_shutdown_locks_lock", threading.Lock()):    # what CPython holds while a thread starts
    answers.close()
print("closed")
"""


def test_spread_keeps_order_and_stops():
    """Results come in the order of the items; an error ends it, and items are not taken far beyond what is asked."""
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    assert list(spread(lambda n: n * n, range(100), 4)) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(spread(lambda n: 1 // (5 - n), items(), 4))
    assert len(taken) < 40


def test_one_item_starts_no_thread():
    """A single item, and any with one thread, are worked on where they are asked for."""
    here = threading.get_ident()
    assert list(spread(lambda _: threading.get_ident(), [1], 4)) == [here]
    assert list(spread(lambda _: threading.get_ident(), [1, 2], 1)) == [here] * 2


def test_left_unfinished():
    """A generator with a pool can be closed while a thread is starting, as the garbage collector may do."""
    found = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (0, "closed\n", "")


def test_closing_waits_for_work_and_drops_the_rest():
    """Once a generator is closed, nothing of it is at work or begins any more."""
    began, ended = [], []

    def work(number):
        began.append(number)
        time.sleep(0.05)
        ended.append(number)

    answers = spread(work, range(100), 2)
    next(answers)
    answers.close()
    assert sorted(began) == sorted(ended)
    assert len(began) <= 4
    time.sleep(0.1)
    assert len(began) == len(ended) <= 4


def test_an_error_drops_what_is_not_begun():
    """Where a block ends with an error, work in hand is done and the rest is dropped."""
    began, ended = [], []

    def work(number):
        began.append(number)
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(ZeroDivisionError), Pool(2) as pool:
        for number in range(100):
            pool.submit(work, number)
        raise ZeroDivisionError
    assert sorted(began) == sorted(ended)
    assert len(began) < 10
    with pytest.raises(ZeroDivisionError), Pool(2) as pool:
        gathered(pool, lambda n: 1 // n, [1, 0, *range(1, 100)])

"""Run kvps with splits of 2 KiB, and perhaps stop it at a named step; a script, run by processes.py.

$KVPS_STOP_AT is SIGNAL WHEN MODULE:CLASS.FUNCTION NUMBER, such as "SIGKILL before kvps.store.shard:Shard.apply 7":
the process sends itself the signal just before (or after) the seventh call of that function. SIGSTOP makes it wait
there until somebody sends SIGCONT, so that a test can look at a job that runs. Several are separated by a semicolon.
"""
import functools
import importlib
import itertools
import os
import runpy
import signal
import sys
import threading


def stop_at(order):
    """Let the process send itself a signal at a call; `order` as described above."""
    name, when, place, number = order.split()
    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *classes, function = path.split(".")
    for attribute in classes:
        owner = getattr(owner, attribute)
    original = getattr(owner, function)
    calls = itertools.count(1)
    stop = signal.Signals[name]

    def send():
        os.kill(os.getpid(), stop)
        if threading.current_thread() is not threading.main_thread() and stop == signal.SIGSTOP:
            threading.Event().wait(0.1)        # the whole process stops, but not before this thread returns from kill()

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        hit = next(calls) == int(number)
        if hit and when == "before":
            send()
        result = original(*args, **kwargs)
        if hit and when == "after":
            send()
        return result

    setattr(owner, function, wrapped)


if __name__ == "__main__":
    from kvps.jobs import counting

    # A job over a few hundred kilobytes then has as many steps as one over gigabytes.
    counting.MIN_SPLIT_BYTES = int(os.environ.get("KVPS_SPLIT_BYTES", "2048"))
    for order in filter(None, os.environ.get("KVPS_STOP_AT", "").split(";")):
        stop_at(order)
    sys.argv[0] = "kvps"
    runpy.run_module("kvps", run_name="__main__")

"""How a command is interrupted: Ctrl-C, and SIGTERM as from a supervisor."""
from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from kvps.errors import Stopped

DEAF_S = 5.0                   # for so long after the first SIGTERM others do nothing
AGAIN_S = 0.05                 # an interrupt that was dropped comes again after that


class Terminated(BaseException):
    """SIGTERM came. Nothing that an `except Exception` on the way would take for its own."""


@contextlib.contextmanager
def stoppable() -> Iterator[list[BaseException]]:
    """Let Ctrl-C and SIGTERM interrupt the main thread; give the list of what they mean, for the report.

    What reaches us may be another exception: an import, for one, makes an error of its own of an interrupt. One that met a
    callback, whose exceptions Python drops, comes once more. For a while after the first, SIGTERM does nothing: we are stopping.
    """
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield raised
        return
    deaf_until = 0.0

    def stop(signum: int, frame: object) -> None:
        nonlocal deaf_until
        if signum == signal.SIGTERM:
            if time.monotonic() < deaf_until:
                return
            deaf_until = time.monotonic() + DEAF_S
            raised.append(Stopped("stopped by SIGTERM"))
            raise Terminated
        raised.append(KeyboardInterrupt())
        raise raised[-1]

    def dropped(what: sys.UnraisableHookArgs) -> None:
        nonlocal deaf_until
        if not (raised and issubclass(what.exc_type, (KeyboardInterrupt, Terminated))):
            return said(what)
        deaf_until = 0.0
        again = signal.SIGTERM if isinstance(raised.pop(), Stopped) else signal.SIGINT
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), again)).start()

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:      # else it is ignored, as in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    said, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield raised
    finally:
        sys.unraisablehook = said
        for number, handler in before.items():
            signal.signal(number, handler)

"""Progress on stderr: a line per stage and a bar, where stderr is a terminal; nothing where it is not."""
from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable

REFRESH_S = 0.1
IN_BYTES = ("counting", "scoring", "importing")     # stages whose numbers are bytes of text


class Progress:
    """Shows the stages of one command; a context manager. May be told from several threads."""

    def __init__(self, stages: Iterable[str], unit: str = "B") -> None:
        """Expect these stages, in this order; `unit` is what their numbers count."""
        self._stages = list(stages)
        self._unit = unit
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._turn = threading.Lock()
        self._stage: str | None = None
        self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that so much of a stage is done; `total` is None where nobody knows."""
        if not self._shown:
            return
        with self._turn:
            if stage != self._stage:
                self._begin(stage)
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def stage(self, name: str) -> Callable[[int, int | None], None]:
        """Return a function of (done, total) that shows one stage."""
        return lambda done, total=None: self(name, done, total)

    def counter(self, name: str, total: int | None) -> Callable[[int], None]:
        """Return a function of what was done since its last call, in bytes, that shows one stage."""
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self(name, done, total)
        return advance

    def _begin(self, stage: str) -> None:
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        if stage not in self._stages:
            self._stages.insert(0 if self._stage is None else self._stages.index(self._stage) + 1, stage)
        tqdm.monitor_interval = 0          # no thread of its own
        tqdm.write(f"=== {self._stages.index(stage) + 1}/{len(self._stages)} {stage} ===", file=sys.stderr)
        self._stage = stage
        unit = "B" if stage in IN_BYTES else self._unit
        self._bar = tqdm(file=sys.stderr, unit=unit, unit_scale=True, unit_divisor=1024 if unit == "B" else 1000,
                         mininterval=REFRESH_S, dynamic_ncols=True, leave=True)

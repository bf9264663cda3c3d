"""Run commands as child processes and measure them; interleave contenders; summarise.

Peaks come from the kernel (`ru_maxrss` of wait4). Linux lets a child start with the peak of the process that started
it, so no child can show less than the benchmark's own process. That one stays small, therefore (17 MB; more after
generating text), and whatever needs memory runs in a child (`children.py`).
"""
import math
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace

ANON_INTERVAL_S = 0.005  # a peak of anonymous memory shorter than this may be missed; reading /proc costs about 0.03 ms


class CommandFailed(Exception):
    """A measured command ended with another code than 0."""


@dataclass(frozen=True)
class Run:
    """What one command, or several one after the other, took."""

    wall_s: float
    cpu_s: float  # user and system
    peak_rss_bytes: int  # with pages of mapped files
    peak_anon_bytes: int | None = None  # without; only when polled for
    stdout: str = ""  # of the last command

    def __add__(self, after):
        """Return this and then `after`: times add, peaks do not."""
        anon = [peak for peak in (self.peak_anon_bytes, after.peak_anon_bytes) if peak is not None]
        return replace(after, wall_s=self.wall_s + after.wall_s, cpu_s=self.cpu_s + after.cpu_s,
                       peak_rss_bytes=max(self.peak_rss_bytes, after.peak_rss_bytes),
                       peak_anon_bytes=max(anon, default=None))


def run(command, *, cwd, stdin=None, stdout=None, anon=False, environment=None):
    """Run `command` to its end and return its Run.

    Args:
        command: list of arguments.
        cwd: directory to run in; never the checkout, so that the installed kvps is found rather than the sources.
        stdin: path of a file to read, or None for nothing.
        stdout: path of a file to write, or None to keep it (small ones only) in the Run.
        anon: poll for the peak of anonymous resident memory; this adds up to ANON_INTERVAL_S to the wall time.
        environment: variables to add to this process's.

    Raises:
        CommandFailed: with the command and the end of what it wrote to stderr.
    """
    with (open(stdin or os.devnull, "rb") as source, tempfile.TemporaryFile() as errors,
          open(stdout, "w+b") if stdout else tempfile.TemporaryFile() as sink):
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], cwd=cwd, stdin=source, stdout=sink, stderr=errors,
                                   env=os.environ | (environment or {}))
        try:
            peak_anon, status, usage = _wait(process.pid, anon)
        except BaseException:  # Ctrl-C: the child must not go on by itself
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)  # reaped by wait4; Popen must not wait again
        if process.returncode:
            errors.seek(0)
            tail = errors.read()[-2000:].decode(errors="replace").strip()
            raise CommandFailed(f"{' '.join(map(str, command))} ended with code {process.returncode}: {tail}")
        sink.seek(0)
        return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, peak_anon,
                   "" if stdout else sink.read().decode(errors="replace"))


def _wait(pid, anon):
    """Wait for a child; return (peak anonymous bytes or None, wait status, resource usage)."""
    if not anon:
        return None, *os.wait4(pid, 0)[1:]
    peak_kib = 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return peak_kib * 1024, status, usage
        with open(f"/proc/{pid}/status") as lines:  # it stays readable until the child is reaped
            peak_kib = max([peak_kib, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))])
        time.sleep(ANON_INTERVAL_S)


def interleave(rounds, contenders):
    """Run each contender once a round, in turn (A B A B ...), so that a machine that slows down slows all of them.

    Args:
        rounds: how often.
        contenders: {name: function without arguments that returns a Run}; None entries (peers not here) are skipped.

    Returns:
        {name: list of Runs}, the n-th of each list from the same round.
    """
    runs = {name: [] for name, contender in contenders.items() if contender}
    for _ in range(rounds):
        for name in runs:
            runs[name].append(contenders[name]())
    return runs


@dataclass(frozen=True)
class Summary:
    """Median, least and greatest of the values of several rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values):
        """Summarise a list of numbers."""
        return cls(statistics.median(values), min(values), max(values))


def pair_ratios(above, below):
    """Return the Summary of above[i] / below[i], round by round: the ratio of two medians would mix rounds."""
    return Summary.of([a / b for a, b in zip(above, below, strict=True)])


def growth_exponent(sizes, times):
    """Return b of time = a size^b, by least squares over the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in times]).slope

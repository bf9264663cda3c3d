"""Sizes, limits and names: "2G" and "80%" to bytes and back, how much memory and how many CPUs this process may use.

Limits are the machine's, narrowed by CPU affinity and by the control groups (versions 1 and 2) that containers set.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import Path

from kvps.errors import ArgumentError

# What a user may ask for at most: of anything, since more would be all there is; of what takes memory.
MANY, MAX_BEAM, MAX_DRAWN_WORDS = 10**9, 1000, 10**6

_SUFFIXES = {"b": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?([bKMGT%])", re.ASCII | re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PROC_CGROUP = Path("/proc/self/cgroup")
_CGROUP_MOUNT = Path("/sys/fs/cgroup")


def check_name(kind: str, name: str) -> str:
    """Return a name that a user chose for a thing in a store, such as a label; it can be a file's name as it is.

    Raises:
        ArgumentError: it could lead out of its folder, hide a file, or look like another name.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        text = str(name)
        shown = text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"
        raise ArgumentError(f'"{shown}" cannot be the name of a {kind}: use 1 to 64 of the letters A to Z and a to z, digits, _, '
                            ". and -, the first one a letter, a digit or _")
    return name


def check_labels(labels: Iterable[str] | None) -> list[str] | None:
    """Return the labels of the text that a user chose, None for all of it; ArgumentError unless each is a str."""
    if labels is None:
        return None
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        found = "text" if isinstance(labels, (str, bytes)) else type(labels).__name__
        raise ArgumentError(f"expected an iterable of labels, not one {found}; put it in a list")
    chosen = list(labels)
    for label in chosen:
        if not isinstance(label, str):
            raise ArgumentError(f"a label is {type(label).__name__}, not str: {label!r:.40}")
    return chosen


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether something is a whole number from `least` to `most`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most


def check_order(order: int, top: int, path: object) -> int:
    """Return an order that a user chose of a model or store at `path`; ArgumentError unless it is one from 1 to `top`."""
    if not is_whole(order, 1, top):
        raise ArgumentError(f"order {order!r:.40} is not possible: {path} has orders 1 to {top}")
    return int(order)


def check_number(what: str, value: int, least: int, most: int = MANY) -> int:
    """Return a whole number that a user chose; ArgumentError unless it is one from `least` to `most`."""
    if not is_whole(value, least, most):
        raise ArgumentError(f"{what} of {value!r:.40} is not possible: expected a whole number from {least:,} to {most:,}")
    return int(value)


def parse_bytes(size: str | int) -> int:
    """Return a size in bytes, given as an int, "512b", "64K", "1.5G" or "80%".

    Suffixes are powers of 1024, as in GNU sort and lmplz; a percentage is of memory_limit().

    Raises:
        ArgumentError: not a size, no unit (lmplz reads a bare number as KiB, others as bytes), below 0 or above 100 %.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        if size < 0:
            raise ArgumentError(f"a size cannot be negative: {size}")
        return size
    text = str(size).strip()
    match = _SIZE.fullmatch(text)
    if match is None:
        if text.isascii() and text.isdigit():
            raise ArgumentError(f'"{text}" has no unit: write {text}M for MiB or {text}b for bytes')
        raise ArgumentError(f'"{text}" is not a size: write a number with b, K, M, G, T or %, as in 2G or 80%')
    number, unit = float(match[1]), match[2].upper().replace("B", "b")
    if unit != "%":
        # Whole numbers stay exact beyond 2**53.
        return int(match[1]) * _SUFFIXES[unit] if match[1].isdigit() else int(number * _SUFFIXES[unit])
    if number > 100:
        raise ArgumentError(f'"{text}" is more than the whole memory: write a share up to 100%')
    return int(memory_limit() * number / 100)


def format_bytes(n_bytes: int) -> str:
    """Return a size that people read and parse_bytes takes: 1536 -> "1.5K", exact to three digits."""
    unit, scale = next(((u, s) for u, s in reversed(_SUFFIXES.items()) if n_bytes >= s), ("b", 1))
    value = n_bytes / scale
    digits = 0 if scale == 1 or value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


def memory_limit() -> int:
    """Return the memory in bytes that this process may use: the machine's, or less where a control group says so."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text in _control_values("memory", "memory.max", "memory.limit_in_bytes"):
        if text.isdigit():  # "max" is no limit
            limit = min(limit, int(text))
    return limit


def cpu_count() -> int:
    """Return how many threads can run at once: the CPUs of the affinity mask, or a control group's smaller quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [text.split() for text in _control_values("cpu", "cpu.max", None)]
    quotas += zip(_control_values("cpu", None, "cpu.cfs_quota_us"),
                  _control_values("cpu", None, "cpu.cfs_period_us"), strict=False)
    for quota, period, *_ in quotas:
        if quota.isdigit() and int(period) > 0:  # "max" (version 2) and -1 (version 1) are no limit
            cpus = min(cpus, max(1, int(quota) // int(period)))
    return max(1, cpus)


def thread_count(threads: int | None = None) -> int:
    """Return how many threads are to work, as many as were asked for, or cpu_count(); ArgumentError below 1."""
    return cpu_count() if threads is None else check_number("a number of threads", threads, 1)


def _control_values(controller: str, name_v2: str | None, name_v1: str | None) -> Iterator[str]:
    """Yield the setting of this process's control group and of each of its parents, where such files exist."""
    try:
        lines = _PROC_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUP_MOUNT, name_v2
        elif controller in controllers.split(","):
            root, name = _CGROUP_MOUNT / controller, name_v1
        else:
            continue
        if name is None:
            continue
        # Inside a container the path may be the host's, which is not here: then its parents, up to the mount, do.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                yield (folder / name).read_text().strip()
            except OSError:
                continue



def running_system() -> str:
    """Return what names this machine from its start to its next one, or "" where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

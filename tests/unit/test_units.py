"""Sizes and limits."""
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvps import units
from kvps.errors import ArgumentError


@pytest.mark.parametrize(("text", "n_bytes"), [
    ("2G", 2 << 30), ("256M", 256 << 20), ("1T", 1 << 40), ("7K", 7 << 10), ("0b", 0), ("12b", 12), ("12B", 12),
    ("1.5g", 3 << 29), (" 64 k ", 64 << 10), ("9007199254740993b", 2**53 + 1), (0, 0), (2**60, 2**60)])
def test_parse_bytes(text, n_bytes):
    """Suffixes are powers of 1024 in either case; numbers are bytes."""
    assert units.parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", [
    "", "G", "-1G", "1Q", "1GB", "1e3M", "0x10K", "٣M", "nan%", "101%", "1" * 5000 + "M", -1, True])
def test_parse_bytes_refuses(text):
    """What is not a size is refused as an argument, never guessed."""
    with pytest.raises(ArgumentError):
        units.parse_bytes(text)


@pytest.mark.parametrize("number", [0, -1, 10**20, 1.0, "1", None, float("nan")])
def test_numbers_that_cannot_be(number):
    """A number is a whole one of a range, and the message says what it was for, what was found and what is possible."""
    assert units.check_number("a beam", 1000, 1, 1000) == units.check_number("a beam", np.int64(1000), 1) == 1000
    with pytest.raises(ArgumentError, match=r"a beam of .* is not possible: expected a whole number from 1 to 1,000\b"):
        units.check_number("a beam", number, 1, 1000)


def test_parse_bytes_without_unit():
    """A bare number is refused with both readings, because tools differ on what it means."""
    with pytest.raises(ArgumentError, match='"4096" has no unit: write 4096M for MiB or 4096b for bytes'):
        units.parse_bytes("4096")


def test_parse_bytes_share_of_memory(monkeypatch):
    """A percentage is a share of the memory that this process may use."""
    monkeypatch.setattr(units, "memory_limit", lambda: 1000)

    assert [units.parse_bytes(text) for text in ("80%", "100%", "0.5%")] == [800, 1000, 5]


@pytest.mark.parametrize(("n_bytes", "text"), [
    (0, "0b"), (1023, "1023b"), (1024, "1K"), (1536, "1.5K"), (10 << 20, "10M"), (1000 << 30, "1000G"),
    (2**52, "4096T")])
def test_format_bytes(n_bytes, text):
    """Sizes print short, with the suffix that parse_bytes takes."""
    assert units.format_bytes(n_bytes) == text


@given(st.integers(0, 2**55))
def test_format_bytes_parses_back(n_bytes):
    """What format_bytes prints, parse_bytes reads, within half a percent."""
    assert abs(units.parse_bytes(units.format_bytes(n_bytes)) - n_bytes) <= n_bytes * 0.005


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Return a function that fakes this process's control groups: its line in /proc, and files under the mount."""
    def fake(line, files):
        (tmp_path / "proc").write_text(line)
        for path, text in files.items():
            target = tmp_path / "fs" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        monkeypatch.setattr(units, "_PROC_CGROUP", tmp_path / "proc")
        monkeypatch.setattr(units, "_CGROUP_MOUNT", tmp_path / "fs")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return fake


def test_limits_version_2(cgroup):
    """The tightest limit between the process's group and the mount counts."""
    cgroup("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000000\n", "memory.max": "9000000\n",
                         "a/b/cpu.max": "250000 100000\n", "a/cpu.max": "max 100000\n"})

    assert (units.memory_limit(), units.cpu_count()) == (5000000, 2)


def test_limits_version_1(cgroup):
    """The older hierarchy with one folder per controller is read as well."""
    cgroup("4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n",
           {"memory/box/memory.limit_in_bytes": "4096000\n", "cpu/box/cpu.cfs_quota_us": "300000\n",
            "cpu/box/cpu.cfs_period_us": "100000\n"})

    assert (units.memory_limit(), units.cpu_count()) == (4096000, 3)


def test_limits_unlimited(cgroup):
    """Without limits the machine's memory and the affinity mask count."""
    cgroup("4:memory:/\n3:cpu:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n",
                                     "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"})

    assert units.cpu_count() == 16
    assert units.memory_limit() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_limits_fraction_of_a_cpu(cgroup):
    """Half a CPU still runs one thread."""
    cgroup("0::/a\n", {"a/cpu.max": "50000 100000"})

    assert units.cpu_count() == 1


def test_limits_path_of_the_host(cgroup):
    """Where /proc names the host's path, which a container does not see, the mount's own limit counts."""
    cgroup("0::/kube/pod1\n", {"memory.max": "7000000"})

    assert units.memory_limit() == 7000000


def test_limits_without_proc(monkeypatch, tmp_path):
    """Where there are no control groups, there is no further limit."""
    monkeypatch.setattr(units, "_PROC_CGROUP", tmp_path / "none")

    assert units.memory_limit() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert units.cpu_count() >= 1

"""What a job says about its length: the disk it will need, and how far it is in bytes of its inputs as they lie there."""
import gzip
import json
import logging
import lzma
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from processes import go_on, run_json, stopped, tree, zipf_text

from kvps.cli import main
from kvps.jobs import estimate as estimating
from kvps.jobs.estimate import estimate
from kvps.jobs.train import Options, train, update
from kvps.store import files
from kvps.text.corpus import resolve

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TEXT = zipf_text(1, 3000)


@pytest.fixture
def text(tmp_path):
    """A text, plain and compressed."""
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "text.xz").write_bytes(lzma.compress(TEXT))
    return tmp_path / "text"


def kvps(*arguments, code=0):
    """Run a command in this process and return its stdout, or its stderr if it must fail."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_need_grows_with_text_and_order(text, tmp_path):
    """More text and a higher order need more disk, of each kind."""
    found = [[estimate(resolve([text] * n), order, 4, 10**12) for n in (1, 2)] for order in range(1, 9)]

    for name in ("counts_bytes", "merge_bytes", "model_bytes", "needs_bytes"):
        figures = [[one[name] for one in row] for row in found]
        assert all(once < twice for once, twice in figures)
        assert figures == sorted(figures)
    assert found[0][1]["text_bytes"] == found[0][1]["input_bytes"] == 2 * len(TEXT)


def test_need_of_compressed_text(text, tmp_path):
    """Compressed text counts fourfold, and the assumption is named."""
    plain = estimate(resolve([text]), 3, 4, 10**12)
    packed = estimate(resolve([text.with_suffix(".xz")]), 3, 4, 10**12)

    assert packed["input_bytes"] == text.with_suffix(".xz").stat().st_size
    assert packed["text_bytes"] == 4 * packed["input_bytes"]
    assert "compressed inputs unpack to 4 times their size" in packed["assumptions"]
    assert not any("compressed" in line for line in plain["assumptions"])


def test_need_of_more_text(text, tmp_path):
    """A store that holds counts already needs room to merge them, and a model of all."""
    alone, more = (estimate(resolve([text]), 3, 4, 10**12, before) for before in (0, 10_000_000))

    assert more["merge_bytes"] > 10_000_000
    assert more["model_bytes"] > 10_000_000 + alone["model_bytes"]
    assert more["needs_bytes"] > alone["needs_bytes"]


@pytest.mark.parametrize("order", [1, 3, 5])
def test_need_of_novels(shared, tmp_path, order):
    """The estimate for real text is above what is used in the end, and not far above."""
    source = tmp_path / "text"
    source.write_bytes(lzma.decompress((shared / "data" / "novels.heldout.txt.xz").read_bytes()))
    found = estimate(resolve([source]), order, 4, 10**12)

    train(tmp_path / "store", [source], order=order)
    kvps("compile", tmp_path / "store")

    used = {name: sum(path.stat().st_blocks * 512 for path in (tmp_path / "store").rglob("*.*")
                      if path.is_file() and (path.suffix == ".kvm") == (name == "model_bytes"))
            for name in ("counts_bytes", "model_bytes")}
    for name, n_bytes in used.items():
        assert 0.5 * n_bytes < found[name] < 3 * n_bytes, (name, used, found)
    assert sum(used.values()) < found["needs_bytes"]


def test_dry_run_makes_nothing(text, tmp_path):
    """A dry run of train says what is needed and what is free, names its assumptions, and makes nothing."""
    before = sorted(os.listdir(tmp_path))

    lines = kvps("train", tmp_path / "store", text, text.with_suffix(".xz"), "-o", 3, "--dry-run").splitlines()
    found = json.loads(kvps("train", tmp_path / "store", text, "-o", 3, "--dry-run", "--json"))

    assert lines[0].startswith(f"{tmp_path / 'store'}: ") and "are free: enough" in lines[0]
    assert len(lines) == 4 and all(line.startswith("  assumed: ") for line in lines[1:])
    assert (found["dry_run"], found["order"], found["inputs"], found["text_bytes"]) == (True, 3, 1, len(TEXT))
    assert found["enough"] is (found["needs_bytes"] <= found["free_bytes"])
    assert sorted(os.listdir(tmp_path)) == before


def test_dry_run_of_an_update(text, tmp_path):
    """A dry run of update takes the order from the store, and changes no byte of it."""
    train(tmp_path / "store", [text], order=2)
    before = tree(tmp_path / "store")

    found = json.loads(kvps("update", tmp_path / "store", text, "--dry-run", "--json"))

    assert (found["store"], found["order"], found["merge_bytes"] > found["counts_bytes"]) == (str(tmp_path / "store"), 2, True)
    assert "inputs that are counted already are taken for new ones" in found["assumptions"]
    assert tree(tmp_path / "store") == before


def test_dry_run_says_when_it_is_not_enough(text, tmp_path, monkeypatch):
    """On a disk without room the dry run says so, and ends with 0: it has done what was asked."""
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)

    assert "perhaps not enough" in kvps("train", tmp_path / "store", text, "--dry-run")


@pytest.mark.parametrize(("arguments", "code", "reason"), [
    (("train", "store", "-"), 2, "read only once"), (("train", "store", "text", "-o", "9"), 2, "1 to 8"),
    (("train", "store", "nowhere"), 1, "No such file"), (("update", "store", "text"), 1, "no such store")])
def test_dry_run_of_the_impossible(text, tmp_path, monkeypatch, arguments, code, reason):
    """What could not be counted is refused as without --dry-run; stdin has no length."""
    monkeypatch.chdir(tmp_path)

    assert reason in kvps(*arguments, "--dry-run", code=code)
    assert not (tmp_path / "store").exists()


def test_dry_run_is_in_the_readme(text, tmp_path):
    """The README names every key of a dry run's JSON."""
    found = json.loads(kvps("train", tmp_path / "store", text, "--dry-run", "--json"))

    assert [key for key in found if f"`{key}`" not in README.partition("### JSON")[2]] == []


@pytest.mark.parametrize("short", [True, False])
def test_warning_before_a_long_job(text, tmp_path, monkeypatch, caplog, short):
    """A job whose disk seems too small says so once before it counts, and counts; others say nothing."""
    train(tmp_path / "store", [text], order=2)
    (tmp_path / "more").write_bytes(zipf_text(2, 100))
    monkeypatch.setattr(estimating, "WORTH_A_WARNING_BYTES", 0)
    if short:
        monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with caplog.at_level(logging.WARNING, "kvps"):
        assert update(tmp_path / "store", [tmp_path / "more"])["version"] == 2

    assert [record.getMessage() for record in caplog.records if "perhaps not enough" in record.getMessage()] == [
        record.getMessage() for record in caplog.records]
    assert len(caplog.records) == short


def test_no_warning_before_a_short_job(text, tmp_path, monkeypatch, caplog):
    """A job of seconds does not warn: the disk itself will say."""
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)

    train(tmp_path / "store", [text], order=2)

    assert caplog.records == []


# How far a job is


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bytes])
def test_progress_in_bytes_on_disk(tmp_path, pack):
    """A job on compressed text knows its length, how far it is and how long the rest takes, as one on plain text does."""
    name = {gzip.compress: "text.gz", lzma.compress: "text.xz", bytes: "text"}[pack]
    data = pack(os.urandom(60_000).hex().encode().replace(b"7", b"\n"))
    (tmp_path / name).write_bytes(data)
    (tmp_path / "other").write_bytes(b"other text\n")

    # 30 splits of 4 KiB on 4 shards.
    process = stopped("train", tmp_path / "store", tmp_path / name, tmp_path / "other", "--order", 2, "--threads", 1,
                      "--memory", "64K", stop_at="SIGSTOP before kvps.store.shard:Shard.apply 60")
    try:
        running = run_json("status", tmp_path / "store")
    finally:
        code, _, err = go_on(process)

    assert code == 0, err
    assert (running["state"], running["total_bytes"]) == ("running", len(data) + 11)
    assert 0.2 * len(data) < running["done_bytes"] < 0.8 * len(data)
    assert running["remaining_s"] > 0


def test_progress_adds_up(tmp_path):
    """What a job reports to its caller ends at the length of its inputs, but for what a format has behind its last text."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(TEXT))
    (tmp_path / "b").write_bytes(TEXT[:5000])
    told = []

    train(tmp_path / "store", [tmp_path / "a.gz", tmp_path / "b"], order=2,
          options=Options(progress=lambda stage, done, total: told.append((done, total))))

    total = sum((tmp_path / name).stat().st_size for name in ("a.gz", "b"))
    assert {total for _, total in told} == {total}
    assert told == sorted(told)
    assert told[-1][0] == pytest.approx(total, abs=20)

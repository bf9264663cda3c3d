"""A store with a damaged byte, page or file says so, or answers as before: never wrongly, never by a signal, never not at all."""
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from processes import contents, counted, environment, run, zipf_text

pytestmark = pytest.mark.crash

SCRIPT = Path(__file__).parent.parent / "damage.py"
ORDER, SHARDS = 3, 3
PROCESSES = 2


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Prepare what damage.py takes: a store of three versions and compiled models, and one with a pending job."""
    folder = tmp_path_factory.mktemp("damage")
    texts = {name: zipf_text(seed, lines, 3000) for name, seed, lines in (("a", 1, 18000), ("b", 2, 7000), ("c", 3, 4000))}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    (folder / "heldout").write_bytes(zipf_text(4, 40, 3000))
    idle = folder / "idle"
    run("train", idle, folder / "a", "--order", ORDER, "--shards", SHARDS)
    run("update", idle, folder / "b")
    shutil.copytree(idle, folder / "idle-older")
    run("update", idle, folder / "c")
    shutil.copytree(idle, folder / "pending-older")
    shutil.copytree(idle, folder / "pending")
    run("forget", folder / "pending", folder / "b", "--memory", "64K",
        stop_at="SIGKILL after kvps.store.shard:Shard.apply 9", check=-9)
    for arguments in ((), ("--smoothing", "witten-bell"), ("--exact",)):
        run("perplexity", idle, folder / "heldout", *arguments)
    assert contents(idle) == contents(folder / "pending") == counted(b"".join(texts.values()), ORDER)
    assert sum(file.stat().st_size for file in idle.rglob("data.mdb")) > 1 << 20
    return folder


def damage_often(stores, seed, times):
    """Run trials in several processes and print what came of them; return those that went wrong."""
    workers = [subprocess.Popen([sys.executable, str(SCRIPT), str(stores), "--seed", str(seed), "--first", str(first),
                                 "--stop", str(times), "--step", str(PROCESSES)], env=environment(), text=True,
                                stdout=subprocess.PIPE) for first in range(PROCESSES)]
    outcomes, bad = Counter(), []
    for worker in workers:
        out, _ = worker.communicate()
        assert worker.returncode == 0
        result = json.loads(out)
        outcomes.update(result["outcomes"])
        bad += result["bad"]
    print(f"seed {seed}:", *(f"{what}: {n}" for what, n in sorted(outcomes.items())), sep="\n")
    assert outcomes.total() == times
    return bad


def test_damaged_at_300_places(stores, seed):
    """300 random damages are refused with a message or do no harm."""
    assert damage_often(stores, seed, 300) == []


@pytest.mark.slow
def test_damaged_at_100000_places(stores, seed):
    """So are 100,000."""
    assert damage_often(stores, seed, 100_000) == []

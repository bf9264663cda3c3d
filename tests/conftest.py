"""What all tests share: one seed for everything random, slow tests on request, the development data."""
import os
import random
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("kvps", deadline=None, print_blob=True)
hypothesis.settings.load_profile("kvps")

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    """Add --seed and --slow."""
    group = parser.getgroup("kvps")
    group.addoption("--seed", type=int, help="seed of every random test; the header prints the one in use")
    group.addoption("--slow", action="store_true", help="run the tests marked slow too")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Give hypothesis our seed, before its plugin looks, so that one number replays everything."""
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**32)
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = config.option.seed


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Let -n auto mean one process more than there are CPUs: tests of servers mostly wait."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_report_header(config):
    """Say how to repeat this run."""
    return f"kvps: repeat with --seed {config.option.seed}"


def pytest_collection_modifyitems(config, items):
    """Deselect slow tests unless --slow is given."""
    if config.option.slow:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def seed(request):
    """Return the seed of this run, for subprocesses and generators of a test's own."""
    return request.config.option.seed


@pytest.fixture
def rng(request):
    """Return a random.Random of this test, the same whenever the seed is the same and whichever tests run beside it."""
    return random.Random(f"{request.config.option.seed} {request.node.nodeid}")


@pytest.fixture(scope="session")
def shared():
    """Return the folder of development data ($KVPS_SHARED, or `../shared` beside the checkout)."""
    folder = Path(os.environ.get("KVPS_SHARED") or CHECKOUT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs the development data: {folder} is not there; name its place with KVPS_SHARED")
    return folder

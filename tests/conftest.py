"""What every test file shares: data, hypothesis without chance, a count of what was skipped."""

import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings

from seriatim.engine import options

# Before torch is imported: processes that share processors and wait actively for each other's
# threads take 20 times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores interrupts, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parents[2] / "shared" / "data"

settings.register_profile("seriatim", derandomize=True, deadline=None, database=None)
settings.load_profile("seriatim")


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="where the torch backend's tests run")


@pytest.fixture(scope="session")
def device(pytestconfig) -> str:
    """A torch device: `pytest --device cuda`."""
    return pytestconfig.getoption("device")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """Encoded training data is kept here, not in the user's own cache."""
    place = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(place)
    return place


@pytest.fixture(scope="session")
def data() -> Path:
    """Third-party data beside the checkout; never committed."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return DATA


@pytest.fixture(scope="session")
def stories(data: Path):
    """A really trained 260k-parameter Llama, with its vocabulary."""
    import seriatim

    return seriatim.load(data / "weights" / "stories260K" / "stories260K.bin", threads=1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seeds that a request draws for itself repeat: a test says the same thing every time."""
    options.randbits = Random(item.nodeid).getrandbits


def pytest_terminal_summary(terminalreporter) -> None:
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")

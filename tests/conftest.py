"""What every test begins with, whatever the one before it has left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg  # noqa: F401  its threads are known once it is here
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits

from tests.order_of_files import FederationsAndFiles, put_long_files_first
from tests.programs.ready_programs import ready_programs

# a machine at work is slow, not wrong
settings.register_profile("fedgraft", deadline=None)
settings.load_profile("fedgraft")


@pytest.fixture(autouse=True)
def as_a_node_begins() -> None:
    """One torch thread, as at a node: how a sum is split over threads shows in its last bits. Logs
    at their default.
    """
    torch.set_num_threads(1)
    logging.getLogger("fedgraft").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="session")
def one_thread_each() -> Iterator[threadpool_limits]:
    """One thread for NumPy's and SciPy's products, as torch has, and in every process that a test
    starts: several processes whose threads wait for one another took twice the processor time.
    """
    with threadpool_limits(1, "blas") as limits, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield limits


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `fedgraft` and `python` that have their imports behind them."""
    with ready_programs(tmp_path_factory.mktemp("programs")) as folder:
        yield folder


# ── several processes ─────────────────────────────────────────────────────────────────────────────
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them."""
    put_long_files_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FederationsAndFiles | None:
    """Hand out federations and files in their order, where scopes are asked for."""
    if config.getoption("dist") != "loadscope":
        return None
    config.option.loadscopereorder = False
    return FederationsAndFiles(config, log)


# ── what was seen, in words ───────────────────────────────────────────────────────────────────────
SEEN = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to what is told at the end of the session, for people who ran `make e2e`."""
    return request.config.stash.setdefault(SEEN, []).append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what one of several processes has seen."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["seen"] = session.config.stash.get(SEEN, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it, where the processes are counted together."""
    lines = node.config.stash.setdefault(SEEN, [])
    lines.extend(getattr(node, "workeroutput", {}).get("seen", []))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Tell it."""
    if lines := config.stash.get(SEEN, []):
        terminalreporter.section("what was seen")
        for line in lines:
            terminalreporter.write_line(f"  {line}")

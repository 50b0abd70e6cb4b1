"""Federations on real chest X-rays: one planted to leak, others under differential privacy at ε =
1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.common.errors import UserError
from fedgraft.common.plan.data_files import resolve
from fedgraft.simulations.benchmarks.planted_runs import PRIVATE, XRAYS, FinishedRun, finish_run

UNLIKE = (  # six nodes with shares of their own of pneumonia
    "adapter.method=head",
    (
        "train={rounds: 2, local_epochs: 2, batch_size: 10, optimizer: {name: sgd, lr: 0.05,"
        " momentum: 0.0}}"
    ),
    "simulation.nodes=6",
    "simulation.partition={kind: dirichlet, alpha: 0.8, min_examples: 20}",
)


@pytest.fixture(scope="session")
def xrays() -> Path:
    """The real X-rays; what needs them is skipped where they are not there."""
    try:
        return resolve(XRAYS, None)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def planted(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """Everything trained on 24 images a node, for long, without privacy."""
    with finish_run(tmp_path_factory.mktemp("planted")) as cell:
        yield cell


@pytest.fixture(scope="session")
def private(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """The same images under differential privacy, ε = 1."""
    with finish_run(tmp_path_factory.mktemp("private"), PRIVATE) as cell:
        yield cell


@pytest.fixture(scope="session")
def unlike(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """Six nodes with unequal shares of the classes, without privacy."""
    with finish_run(tmp_path_factory.mktemp("unlike"), UNLIKE, members=300) as cell:
        yield cell


@pytest.fixture(scope="session")
def unlike_private(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """The same nodes, each record hidden: ε = 1 for an example."""
    with finish_run(
        tmp_path_factory.mktemp("unlike-private"), (*UNLIKE, PRIVATE[-1]), members=300
    ) as cell:
        yield cell


@pytest.fixture(scope="session")
def unlike_hidden(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """The same nodes, each update hidden as a whole: ε = 1 for a node."""
    local = "privacy={mode: local, target_epsilon: 1, delta: 1.0e-3}"
    with finish_run(
        tmp_path_factory.mktemp("unlike-hidden"), (*UNLIKE, local), members=300
    ) as cell:
        yield cell

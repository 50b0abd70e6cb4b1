"""Three hospitals with the same kind of X-rays in three formats, and their coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedgraft.client.app import app as client_app
from fedgraft.client.node.node_file import load_node
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan_file import load_plan, plan_yaml
from fedgraft.server.app import federate
from fedgraft.server.federation import Federation as Federated
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import find_free_ports
from fedgraft.simulations.engines.inprocess import InProcessGrid
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.e2e.conftest import fill
from tests.e2e.test_formats import shares
from tests.formats import DATA, as_dicom, as_folder, as_manifest

HOSPITALS = ("north", "south", "west")


@pytest.fixture(scope="package")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three rounds of the ready plan `pneumonia`, and three hospitals that keep the
    same kind of X-rays as a folder of PNG, a Parquet manifest of TIFF and a folder of DICOM. Where
    the X-rays are missing: three tables.
    """
    folder = tmp_path_factory.mktemp("deployed")
    if not (DATA / "pneumoniamnist.npz").is_file():
        fill(folder)
        tables = load_plan(folder / "plan.yaml", ["train.rounds=3"])
        write_nodes(tables, folder / "plan.yaml", folder / "nodes")
        (folder / "plan.yaml").write_text(plan_yaml(tables))
        return folder
    plan = load_plan("pneumonia", ["train.rounds=3", "simulation=null", "aggregate.min_nodes=3"])
    (folder / "plan.yaml").write_text(plan_yaml(plan))
    for number, write in enumerate((as_folder, as_manifest, as_dicom)):
        place = folder / "hospitals" / HOSPITALS[number]
        place.mkdir(parents=True)
        about = {"name": HOSPITALS[number], "data": {"path": str(write(place, shares()[number]))}}
        about |= {"store": f"store/{number}"}
        (folder / "nodes").mkdir(exist_ok=True)
        (folder / "nodes" / f"node-{number}.yaml").write_text(dump_yaml(about))
    return folder


@pytest.fixture(scope="package")
def federation(deployed: Path, seen: Callable[[str], None]) -> Iterator[LocalFederation]:
    """A coordinator with three nodes; shared by the tests of this folder, which leave it as they
    found it.
    """
    files = {name: deployed / "nodes" / f"node-{k}.yaml" for k, name in enumerate(HOSPITALS)}
    settings = f"metrics: 127.0.0.1:{find_free_ports(1)[0]}\n"
    with LocalFederation(deployed, files, deployed / "plan.yaml", settings=settings) as running:
        seen(
            "made a CA and keys; up: a TLS SuperLink with node authentication, and a gateway with"
            " the Fleet API only"
        )
        kept = ", ".join(
            f"{name} ({Path(load_node(path).data.path).name})" for name, path in files.items()
        )
        seen(f"three nodes are connected, with the X-rays as PNG, TIFF and DICOM: {kept}")
        yield running


@pytest.fixture(scope="package")
def in_process(deployed: Path) -> Path:
    """The run's folder of the same plan at the same hospitals, in one process."""
    return run_in_process(deployed, "in-process")


def run_in_process(deployed: Path, name: str, *changes: str) -> Path:
    """Run the plan at the same hospitals in one process; return the run's folder."""
    out, plan = deployed / name, load_plan(deployed / "plan.yaml", changes)
    paths = []
    for number in range(3):
        text = (deployed / "nodes" / f"node-{number}.yaml").read_text()
        paths.append(deployed / "nodes" / f"{name}-{number}.yaml")
        # a store of its own: everything from the beginning
        store = next(line for line in text.splitlines() if line.startswith("store:"))
        paths[-1].write_text(text.replace(store, f"store: {name}/{number}"))
    grid = InProcessGrid(client_app, paths)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDGRAFT_DATA", str(DATA))
            backbone = plan_backbone(plan, deployed)
        federate(
            grid, Federated(plan, backbone, expected=3, patience=0.0), RunFolder.open_new(out, plan)
        )
    finally:
        grid.close()
    return out

"""Three hospitals that keep the same X-rays as three formats end with the model that three archives
end with.

In one process; `test_deployment.py` holds a deployment of three such hospitals to the model of one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.app import app as client_app
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan_file import load_plan, plan_yaml
from fedgraft.server.app import federate
from fedgraft.server.federation import Federation
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.engines.inprocess import InProcessGrid
from tests.formats import DATA, Cases, as_archive, as_dicom, as_folder, as_manifest

Writer = Callable[[Path, Cases], Path]
SIZES = {"train": 48, "test": 24}


def shares() -> list[Cases]:
    """Three nodes' images, each class together, as folders have them."""
    path = DATA / "pneumoniamnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing; set FEDGRAFT_DATA to the folder that holds the data")
    nodes: list[Cases] = []
    with np.load(path) as file:
        for node in range(3):
            cases: Cases = {}
            for split, size in SIZES.items():
                drawn = np.random.default_rng(0).permutation(len(file[f"{split}_labels"]))
                rows = np.sort(drawn[node * size : (node + 1) * size])
                labels = file[f"{split}_labels"][rows, 0]
                order = np.argsort(labels, kind="stable")
                cases[split] = file[f"{split}_images"][rows][order], labels[order]
            nodes.append(cases)
    return nodes


def plan_of_three(folder: Path) -> Path:
    """The `pneumonia` plan, one round, for three hospitals that are there."""
    weights = DATA / "weights" / "cifar10_resnet20.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights} is missing; set FEDGRAFT_DATA to the folder that holds the data")
    changes = [
        "train.rounds=1",
        "simulation=null",
        "aggregate.min_nodes=3",
        f"backbone.weights={weights}",
    ]
    path = folder / "plan.yaml"
    path.write_text(plan_yaml(load_plan("pneumonia", changes)))
    return path


def hospitals(folder: Path, formats: Sequence[Writer]) -> list[Path]:
    """A node.yaml and data for each of three hospitals."""
    paths = []
    for number, (write, cases) in enumerate(zip(formats, shares(), strict=True)):
        place = folder / f"node-{number}"
        place.mkdir(parents=True)
        about = {
            "name": f"node-{number}",
            "data": {"path": str(write(place, cases))},
            "store": str(place / "store"),
        }
        paths.append(place / "node.yaml")
        paths[-1].write_text(dump_yaml(about))
    return paths


def in_process(plan_file: Path, nodes: list[Path], out: Path) -> bytes:
    """The shared adapter of a run in this process."""
    plan = load_plan(plan_file)
    grid = InProcessGrid(client_app, nodes)
    try:
        federation = Federation(plan, plan_backbone(plan, DATA), expected=3, patience=0.0)
        federate(grid, federation, RunFolder.open_new(out, plan), resume=False)
    finally:
        grid.close()
    return adapter(out)


def adapter(run: Path) -> bytes:
    return (run / "shared_model" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_three_formats_give_the_model_of_three_archives(tmp_path: Path) -> None:
    """Any step that one reader does and another does not (order, bits, grey or colour, negatives)
    shows here.
    """
    plan = plan_of_three(tmp_path)
    archives = in_process(
        plan, hospitals(tmp_path / "archives", [as_archive] * 3), tmp_path / "one"
    )
    files = hospitals(tmp_path / "formats", [as_folder, as_manifest, as_dicom])
    assert in_process(plan, files, tmp_path / "other") == archives

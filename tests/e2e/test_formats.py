"""Three hospitals that keep the same X-rays as three formats end with the model that three archives end with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client.app import app as client_app
from common.assembly import plan_backbone
from common.plan_file import load_plan
from common.yaml_file import dump_yaml
from server.app import Federation, federate
from server.run_folder import RunFolder
from simulations.inprocess import InProcessGrid
from tests.formats import Cases, as_archive, as_dicom, as_folder, as_manifest

DATA = Path(os.environ.get("FEDGRAFT_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
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
                rows = np.arange(node * size, (node + 1) * size)
                labels = file[f"{split}_labels"][rows, 0]
                order = np.argsort(labels, kind="stable")
                cases[split] = file[f"{split}_images"][rows][order], labels[order]
            nodes.append(cases)
    return nodes


@pytest.mark.slow
def test_three_formats_give_the_model_of_three_archives(tmp_path: Path) -> None:
    """Any step that one reader does and another does not (order, bits, grey or colour, negatives) shows here."""
    plan = load_plan("pneumonia", ["train.rounds=2", "simulation=null", "aggregate.min_nodes=3"])
    backbone = plan_backbone(plan, DATA)

    def run(name: str, formats: list) -> dict[str, torch.Tensor]:
        paths = []
        for number, (write, cases) in enumerate(zip(formats, shares(), strict=True)):
            place = tmp_path / name / f"node-{number}"
            place.mkdir(parents=True)
            about = {
                "name": f"node-{number}",
                "data": {"path": str(write(place, cases))},
                "store": str(place / "store"),
            }
            paths.append(place / "node.yaml")
            paths[-1].write_text(dump_yaml(about))
        grid = InProcessGrid(client_app, paths)
        try:
            folder = RunFolder.open_new(tmp_path / name / "run", plan)
            federate(grid, Federation(plan, backbone, expected=3, patience=0.0), folder, resume=False)
        finally:
            grid.close()
        return load_file(tmp_path / name / "run" / "shared_model" / "adapter_model.safetensors")

    archives = run("archives", [as_archive] * 3)
    formats = run("formats", [as_folder, as_manifest, as_dicom])
    assert archives.keys() == formats.keys()
    assert all(torch.equal(formats[name], tensor) for name, tensor in archives.items())

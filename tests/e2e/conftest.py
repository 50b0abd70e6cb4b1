"""The command as people run it, and small data for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from tests.e2e.test_formats import shares
from tests.formats import DATA, as_dicom, as_folder, as_manifest

TABLE_PLAN = """
name: tiny
task:
  kind: tabular-classification
  classes: [no, yes]
  columns: [a, b, c]
  ranges: [{columns: [a, b, c], low: -3, high: 4}]
backbone: {name: mlp, hidden: [8, 8]}
adapter: {method: lora, rank: 2}
train: {rounds: 2, batch_size: 8}
simulation: {data: [north.csv, south.csv, west.csv], partition: {kind: files}}
"""
IMAGE_PLAN = """
name: spots
task: {kind: image-classification, classes: [dark, light]}
backbone: {name: cifar-resnet20, image_size: 8}
adapter: {method: head}
train: {rounds: 1, batch_size: 16}
simulation: {nodes: 2, data: spots.npz, partition: {kind: iid}}
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def write_table(
    path: Path, rows: int = 40, seed: int = 0, labels: tuple[int, ...] = (0, 1)
) -> None:
    """Columns a, b, c and target, in which the classes differ."""
    rng = np.random.default_rng(seed)
    truth = np.resize(labels, rows)
    lines = [
        ",".join(f"{v + label:.3f}" for v in rng.normal(size=3)) + f",{label}\n" for label in truth
    ]
    path.write_text("a,b,c,target\n" + "".join(lines))


def write_images(path: Path, count: int = 60, seed: int = 0) -> None:
    """Grey 8×8 images, dark or light."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = (rng.integers(0, 100, (count, 8, 8)) + 120 * labels[:, None, None]).astype(np.uint8)
    np.savez(path, images=images, labels=labels)


def fill(folder: Path) -> Path:
    """The two plans and their data in a folder."""
    for seed, name in enumerate(("north", "south", "west")):
        write_table(folder / f"{name}.csv", seed=seed)
    write_images(folder / "spots.npz")
    (folder / "plan.yaml").write_text(TABLE_PLAN)
    (folder / "images.yaml").write_text(IMAGE_PLAN)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `plan.yaml` (tables), `images.yaml` and their data; the current folder."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`fedgraft …` in this process, which saves the seconds of importing torch; a traceback is an
    error here, too.
    """
    from fedgraft import cli

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capfd.readouterr()
        return Done(code, said.out, said.err)

    return run


@pytest.fixture
def program() -> list[str]:
    """The installed command of this environment."""
    return [str(Path(sys.executable).parent / "fedgraft")]


def run_to_its_end(words: Sequence[str | Path], cwd: Path) -> Done:
    """Run a program; return how it ended."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def process(programs: Path) -> Callable[..., Done]:
    """`fedgraft …` as a process of its own: (arguments, cwd) → how it ended."""
    return lambda *words, cwd: run_to_its_end([programs / "fedgraft", *words], cwd)


@pytest.fixture
def installed(program: list[str]) -> Callable[..., Done]:
    """The same with the installed command, which imports everything itself."""
    return lambda *words, cwd: run_to_its_end([*program, *words], cwd)


# ── a deployment ──────────────────────────────────────────────────────────────────────────────────
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

"""Partitions of real data: every row once, skewed as asked, the same again with the same seed."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.data.data_set import Records
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import open_data
from fedgraft.client.store.backbone_store import BackboneStore
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.simulations.figures import draw_labels_by_node
from fedgraft.simulations.partition import NodeRows, partition
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.records import open_records

DATA = Path(os.environ.get("FEDGRAFT_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
KINDS = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 0.3},
    {"kind": "pathological", "classes_per_node": 2},
]


@pytest.fixture(autouse=True)
def _data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_DATA", str(DATA))


@pytest.fixture(scope="module")
def digits() -> Records:
    """Five classes of about 180 images each."""
    return open_records(
        path="sklearn:digits",
        kind="image-classification",
        classes=tuple("56789"),
        labels=(5, 6, 7, 8, 9),
    )


@pytest.fixture(scope="module")
def pneumonia() -> Records:
    """Two classes, with train, val and test splits of the file's own."""
    path = DATA / "pneumoniamnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing; set FEDGRAFT_DATA to the folder that holds the data")
    return open_records(path=path, kind="image-classification", classes=("normal", "pneumonia"))


def simulation(nodes: int | None, **kind: Any) -> SimulationSection:
    return SimulationSection.model_validate({"nodes": nodes, "data": "x.npz", "partition": kind})


def counts(records: Records, nodes: list[NodeRows], split: str = "train") -> np.ndarray:
    classes = int(records.labels.max()) + 1
    return np.stack(
        [np.bincount(records.labels[getattr(node, split)], minlength=classes) for node in nodes]
    )


# ── every row once ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
@pytest.mark.parametrize("data", ["digits", "pneumonia"])
def test_every_row_goes_to_one_node_in_its_own_split(
    kind: dict[str, Any], data: str, request: pytest.FixtureRequest
) -> None:
    """A row at two nodes is counted twice by every guarantee; a test row in training inflates every
    metric.
    """
    records: Records = request.getfixturevalue(data)
    nodes = partition(simulation(5, **kind), records, seed=7)
    for split in ("train", "val", "test"):
        dealt = np.concatenate([getattr(node, split) for node in nodes])
        assert np.array_equal(np.sort(dealt), records.splits[split])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_the_seed_decides(digits: Records, kind: dict[str, Any]) -> None:
    """Runs could not be repeated otherwise; and another seed must be another draw."""
    first, again, other = (partition(simulation(5, **kind), digits, seed) for seed in (7, 7, 8))
    for split in ("train", "val", "test"):
        for one, two in zip(first, again, strict=True):
            assert np.array_equal(getattr(one, split), getattr(two, split))
    assert any(not np.array_equal(a.train, b.train) for a, b in zip(first, other, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(first, other, strict=True))


def test_a_nodes_tests_look_like_its_own_data(pneumonia: Records) -> None:
    """Each class's test rows follow the training rows to less than one row, as largest remainders
    do.
    """
    nodes = partition(simulation(8, kind="dirichlet", alpha=0.5), pneumonia, seed=7)
    train, test = counts(pneumonia, nodes), counts(pneumonia, nodes, "test")
    wanted = train / train.sum(axis=0) * test.sum(axis=0)
    assert np.abs(test - wanted).max() < 1
    assert (test[train == 0] == 0).all()


# ── as skewed as asked ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alpha", [0.2, 1.0, 10.0])
def test_dirichlet_shares_vary_as_the_distribution_says(pneumonia: Records, alpha: float) -> None:
    """A share of Dirichlet(α·1_n) has variance (1/n)(1 − 1/n)/(nα + 1): an α that is ignored would
    show.
    """
    n = 8
    shares = []
    for seed in range(15):
        nodes = partition(
            simulation(n, kind="dirichlet", alpha=alpha, min_examples=1), pneumonia, seed
        )
        table = counts(pneumonia, nodes)
        shares.append(table / table.sum(axis=0))
    wanted = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    assert np.mean((np.array(shares) - 1 / n) ** 2) == pytest.approx(wanted, rel=0.35)


def test_iid_is_flowers_own(pneumonia: Records) -> None:
    """Other rows than flwr-datasets deals: the short cut around its imports is none."""
    from datasets import Dataset
    from flwr_datasets.partitioner import IidPartitioner

    rows = np.random.default_rng([5, 0]).permutation(pneumonia.splits["train"])
    flower = IidPartitioner(7)
    flower.dataset = Dataset.from_dict({"row": rows.tolist()})
    for number, ours in enumerate(partition(simulation(7, kind="iid"), pneumonia, seed=5)):
        assert ours.train.tolist() == sorted(flower.load_partition(number)["row"][:])


def test_iid_nodes_are_alike(pneumonia: Records) -> None:
    """The file is sorted in places: cut without shuffling, "IID" nodes would differ."""
    table = counts(pneumonia, partition(simulation(4, kind="iid"), pneumonia, seed=0))
    assert np.ptp(table.sum(axis=1)) <= 1
    assert np.abs(table[:, 1] / table.sum(axis=1) - 0.5).max() < 0.1


def test_pathological_nodes_have_their_number_of_classes(digits: Records) -> None:
    """Two classes a node (Li et al. 2022), and no class at no node."""
    table = counts(
        digits, partition(simulation(5, kind="pathological", classes_per_node=2), digits, seed=3)
    )
    assert ((table > 0).sum(axis=1) == 2).all()
    assert (table.sum(axis=0) > 0).all()


# ── by a column, by file ──────────────────────────────────────────────────────────────────────────


def by_column(folder: Path, text: str) -> Records:
    path = folder / "visits.csv"
    path.write_text(text)
    return open_records(
        path=path,
        kind="tabular-classification",
        classes=("no", "yes"),
        columns=["age"],
        test_fraction=0.25,
    )


def test_by_column_each_value_is_a_node(tmp_path: Path) -> None:
    """A patient of one site must never be at another, in tests neither."""
    lines = [f"{age},{('North', 'St. Mary')[age % 2]},{age // 2 % 2}" for age in range(40)]
    records = by_column(tmp_path, "age,site,target\n" + "\n".join(lines))
    nodes = partition(
        simulation(None, kind="column", column="site", min_examples=2), records, seed=0
    )
    assert [node.name for node in nodes] == ["North", "St.-Mary"]
    for parity, node in enumerate(nodes):
        assert set((np.concatenate([node.train, node.test]) % 2).tolist()) == {parity}
        assert len(node.test)
    with pytest.raises(UserError, match="3 nodes, but column 'site' has 2 values"):
        partition(simulation(3, kind="column", column="site"), records, seed=0)
    with pytest.raises(UserError, match="did you mean 'site'"):
        partition(simulation(None, kind="column", column="sites"), records, seed=0)


def test_a_row_without_a_site_is_told(tmp_path: Path) -> None:
    """It would otherwise become a hospital without a name."""
    records = by_column(tmp_path, "age,site,target\n1,a,0\n2,,1\n3,a,0\n4,b,1\n")
    with pytest.raises(UserError, match="empty in 1 rows") as caught:
        partition(simulation(None, kind="column", column="site", min_examples=1), records, seed=0)
    assert caught.value.where.endswith("visits.csv:3")


def heart_plan() -> tuple[Plan, Path]:
    if not (DATA / "heart_disease").exists():
        pytest.skip(
            f"{DATA}/heart_disease is missing; set FEDGRAFT_DATA to the folder that holds the data"
        )
    return load_plan("heart", ["simulation.partition={kind: files}"]), find_plan("heart")


def test_one_hospital_a_file(tmp_path: Path) -> None:
    """Each real hospital keeps its own records and its name."""
    plan, path = heart_plan()
    assert plan.simulation is not None
    nodes = [load_node(file) for file in write_nodes(plan, path, tmp_path)]
    assert [node.name for node in nodes] == [Path(name).stem for name in plan.simulation.files]
    assert all(node.data.rows is None and Path(node.data.path).is_file() for node in nodes)
    assert len({node.store for node in nodes}) == len(nodes)


# ── on disk ───────────────────────────────────────────────────────────────────────────────────────


def test_a_backbone_lies_on_disk_once_for_all_nodes(tmp_path: Path) -> None:
    """Gigabytes for a hundred nodes with a large backbone; or plans and feedback of one node that
    another one reads.
    """
    plan, path = load_plan("digits"), find_plan("digits")
    for _ in range(2):  # also into a folder that is there
        stores = [
            BackboneStore(load_node(file).store) for file in write_nodes(plan, path, tmp_path)
        ]
    state = {"weight": torch.arange(1000.0)}
    for store in stores:
        store.put(state, fingerprint_of(state))
    assert all(
        torch.equal(store.load(fingerprint_of(state))["weight"], state["weight"])
        for store in stores
    )
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    stores[0].put_plan("sha256:" + "0" * 64, {"plan": "one"})
    with pytest.raises(Refused, match="never offered"):
        stores[1].plan("sha256:" + "0" * 64)


def test_written_nodes_open_to_the_partition(tmp_path: Path) -> None:
    """What a node reads through its node.yaml must be what was dealt to it."""
    plan, path = load_plan("digits"), find_plan("digits")
    assert plan.simulation is not None
    written = write_nodes(plan, path, tmp_path / "new" / "folder")
    assert [file.name for file in written] == [f"node-{k}.yaml" for k in range(len(written))]
    assert not list(tmp_path.rglob("*.part"))
    task = plan.task
    whole = open_records(
        path="sklearn:digits", kind=task.kind, classes=task.classes, labels=task.labels
    )
    dealt = partition(plan.simulation, whole, plan.seed)
    for file, rows in zip(written, dealt, strict=True):
        node = load_node(file)
        records = open_records(
            path=node.data.path,
            format=node.data.format,
            rows=node.data.rows,
            kind=task.kind,
            classes=task.classes,
            labels=task.labels,
        )
        assert node.name == rows.name
        for split in ("train", "val", "test"):
            assert np.array_equal(records.splits[split], getattr(rows, split))


def test_what_a_plan_decides_about_data_holds_at_its_nodes(tmp_path: Path) -> None:
    """A simulation that opens the data one way and lets its nodes read them another way."""
    pixels = np.random.default_rng(0).integers(0, 4096, (60, 8, 8)).astype(np.uint16)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(60) % 2)
    options = [
        f"simulation={{nodes: 2, data: {tmp_path}/x.npz, partition: {{kind: iid}}}}",
        "task.labels=[0, 1]",
    ]
    path = find_plan("pneumonia")
    with pytest.raises(UserError, match="16 bits are dark") as caught:
        write_nodes(load_plan("pneumonia", options), path, tmp_path / "nodes")
    assert "simulation.reading.bits" in caught.value.remedy
    assert not (tmp_path / "nodes").exists(), "nothing is half-written"
    plan = load_plan("pneumonia", [*options, "simulation.reading.bits=12"])
    for file in write_nodes(plan, path, tmp_path / "nodes"):
        node = load_node(file)
        assert (node.data.bits, node.data.labels_left_out) == (12, "allow")
        assert open_data(node, plan).read(np.arange(60)).numpy().max() > 60_000


@pytest.mark.slow
def test_a_thousand_nodes_in_seconds(pneumonia: Records, tmp_path: Path) -> None:
    """A partitioner that is quadratic in nodes would take minutes."""
    plan = load_plan(
        "pneumonia", ["simulation.nodes=1000", "simulation.partition={kind: iid, min_examples: 1}"]
    )
    started = time.perf_counter()
    written = write_nodes(plan, find_plan("pneumonia"), tmp_path)
    assert len(written) == 1000
    assert time.perf_counter() - started < 30


# ── what cannot be dealt ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("nodes", "kind", "words"),
    [
        (800, {"kind": "iid", "min_examples": 1}, "800 nodes .* there are 717"),
        (100, {"kind": "iid"}, "at most 71 nodes"),
        (60, {"kind": "dirichlet", "alpha": 0.01}, "cannot be dealt"),
        (5, {"kind": "pathological", "classes_per_node": 6}, "from 1 to 5"),
        (2, {"kind": "pathological", "classes_per_node": 2}, "from 3 to 5"),
        (5, {"kind": "column", "column": "site"}, "no column 'site'"),
    ],
)
def test_partitions_that_cannot_be_are_told(
    digits: Records, nodes: int, kind: dict, words: str
) -> None:
    """Rows that are dropped, or nodes without data, must not pass for a federation."""
    with pytest.raises(UserError) as caught:
        partition(simulation(nodes, **kind), digits, seed=0)
    assert re.search(words, str(caught.value), re.DOTALL)
    assert caught.value.remedy


# ── the picture ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("nodes", "classes"), [(5, 2), (100, 10), (3, 30), (1, 2)])
def test_the_picture_is_drawn_for_any_size(tmp_path: Path, nodes: int, classes: int) -> None:
    """More classes than colours, or more nodes than names fit, must not end a run that is done."""
    from PIL import Image

    table = np.random.default_rng(0).integers(0, 40, (nodes, classes))
    path = tmp_path / "labels.png"
    draw_labels_by_node(
        table, [f"node-{k}" for k in range(nodes)], [f"class {k}" for k in range(classes)], path
    )
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("RGB").resize((200, 80)).tobytes())) > 5
    assert [file.name for file in tmp_path.iterdir()] == ["labels.png"]


@pytest.mark.parametrize(
    "kind", [*KINDS[:2], {"kind": "pathological", "classes_per_node": 1}], ids=lambda k: k["kind"]
)
def test_a_patient_is_at_one_node(kind: dict[str, Any], tmp_path: Path) -> None:
    """Half of a patient's images at another hospital: no federation is like that, and ε by patient
    would be wrong.
    """
    lines = [f"{n},p{n // 3},{n // 3 % 2}" for n in range(600)]
    (tmp_path / "visits.csv").write_text("age,patient,target\n" + "\n".join(lines) + "\n")
    records = open_records(
        path=tmp_path / "visits.csv",
        kind="tabular-classification",
        classes=("no", "yes"),
        columns=["age"],
    )
    nodes = partition(simulation(4, **kind), records, seed=7)
    for split in ("train", "val", "test"):
        dealt = [getattr(node, split) for node in nodes]
        assert np.array_equal(np.sort(np.concatenate(dealt)), records.splits[split])
        patients = [set((rows // 3).tolist()) for rows in dealt]
        assert sum(map(len, patients)) == len(set().union(*patients))
    with pytest.raises(UserError, match="of 160 patients"):
        partition(simulation(200, kind="iid", min_examples=1), records, seed=7)

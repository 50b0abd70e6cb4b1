"""Tables without a network: a round of histograms, a round of sums, the same bits in any deal."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedgraft.client.app import make_client_app
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan import agreement_of
from fedgraft.common.plan.plan_file import agreement_from_json, canonical, find_plan, load_plan
from fedgraft.common.wire.histogram_record import HISTOGRAMS
from fedgraft.common.wire.layout import Layout
from fedgraft.common.wire.sums_record import SUMS
from fedgraft.simulations.baselines import measure_alone
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.engines.together import train_together
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.simulations.conftest import DESK, Tiny

PLAN = """
name: columns
task:
  kind: tabular-classification
  classes: [no, yes]
  columns: [a, colour, b, never, always]
  categories: [{column: colour, values: [red, green, blue]}]
backbone: {name: columns}
adapter: {method: head}
train: {method: closed-form}
aggregate: {min_nodes: 1}
simulation: {nodes: 1, data: table.csv, partition: {kind: iid, min_examples: 1}}
seed: 5
"""
ROWS = 150


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Numbers of two sizes, a category, a column that nobody measured and a constant one."""
    rng = np.random.default_rng(seed)
    lines = ["a,colour,b,never,always,target"]
    for _ in range(rows):
        label = int(rng.integers(0, 2))
        a = f"{rng.normal() + label:.4f}" if rng.random() < 0.8 else ""
        b = f"{1e6 * rng.exponential() * (1 + label):.1f}" if rng.random() < 0.9 else ""
        known = rng.random() < 0.9
        colour = ("red", "green", "blue")[int(rng.integers(0, 2 + label))] if known else ""
        lines.append(f"{a},{colour},{b},,7.5,{label}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A plan over 150 rows at one node."""
    write_rows(tmp_path / "table.csv", ROWS, 1)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def deal(table: Path, folder: Path, *overrides: str) -> Tiny:
    """The federation of a plan with overrides."""
    plan = load_plan(table, overrides)
    return Tiny(table, write_nodes(plan, table, folder))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_shared_model(folder / "shared_model").model.adapter_state()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("nodes", [3, 20])
def test_any_deal_gives_the_same_bits(table: Path, tmp_path: Path, nodes: int) -> None:
    """A scale or a knot that depended on who has which record."""
    deal(table, tmp_path / "one").run(tmp_path / "pooled")
    many = (f"simulation.nodes={nodes}",)
    result, grid = deal(table, tmp_path / "many", *many).run(tmp_path / "dealt", many)
    assert result["rounds_done"] == 2
    assert result["closed_form"]["features"] == 4 + 3 + 5 + 5 * 4
    assert equal(adapter(tmp_path / "pooled"), adapter(tmp_path / "dealt"))
    counted = [m.content for m in grid.up if HISTOGRAMS in m.content.array_records]
    summed = [m.content for m in grid.up if SUMS in m.content.array_records]
    assert (len(counted), len(summed)) == (nodes, nodes)


def test_it_learns_and_what_leaves_is_counts(table: Path, tmp_path: Path) -> None:
    """Values, labels or an order of records beside the histograms would be a record's own."""
    result, grid = deal(table, tmp_path / "nodes").run(tmp_path / "run")
    assert result["final"]["global"]["auroc"] > 0.75
    (reply,) = [m.content for m in grid.up if HISTOGRAMS in m.content.array_records]
    assert set(reply.array_records[HISTOGRAMS]) == {"sizes", "codes", "counts"}
    assert set(reply.metric_records["train"]) == {"num-examples", "seconds"}
    sizes = reply.array_records[HISTOGRAMS]["sizes"].numpy().tolist()
    assert sizes[2:] == [0, 1]
    assert result["privacy"] == {}


def test_the_shared_model_is_opened_and_predicts_as_the_nodes_measured(
    table: Path, tmp_path: Path
) -> None:
    """Constants that are lost on the way to disk."""
    federation = deal(table, tmp_path / "nodes")
    federation.run(tmp_path / "run")
    shared = load_shared_model(tmp_path / "run")
    again = load_shared_model(tmp_path / "run")
    nan = float("nan")
    rows = torch.tensor(
        [
            [0.5, 1, 0, 0, 2e6, nan, 7.5],
            [nan, nan, nan, nan, nan, nan, nan],
            [-9e9, 0, 0, 1, 9e9, 3.0, 1.0],
        ]
    )
    told = shared.predict(rows)
    assert torch.equal(told, again.predict(rows))
    assert told.isfinite().all()
    assert shared.model.adapter_state()["constants.exponent"].any()
    # a value where nobody ever had one, and another constant, say nothing
    plain = rows.clone()
    plain[2, 6] = 7.5
    assert torch.equal(told, shared.predict(plain))


def test_cut_off_between_its_rounds_it_resumes_to_the_same_bits(
    table: Path, tmp_path: Path
) -> None:
    """The first round's constants are in the checkpoint, or a killed run begins anew."""
    many = ("simulation.nodes=3",)
    federation = deal(table, tmp_path / "nodes", *many)
    federation.run(tmp_path / "whole", many)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", many, stop_before=2)
    assert adapter(tmp_path / "cut")["constants.exponent"].any()
    _, grid = federation.run(tmp_path / "cut", many, resume=True)
    assert not [m for m in grid.up if HISTOGRAMS in m.content.array_records]
    assert equal(adapter(tmp_path / "whole"), adapter(tmp_path / "cut"))


def test_trained_together_it_is_the_same(table: Path, tmp_path: Path) -> None:
    """Nodes at once take steps; histograms must not be taken for steps."""
    many = ("simulation.nodes=3",)
    federation = deal(table, tmp_path / "nodes", *many)
    federation.run(tmp_path / "apart", many)
    at_once = functools.partial(train_together, DESK)
    federation.run(tmp_path / "together", many, together=at_once)
    assert equal(adapter(tmp_path / "apart"), adapter(tmp_path / "together"))


def test_without_hinges_there_are_fewer_features(table: Path, tmp_path: Path) -> None:
    """A key that the server reads and the nodes do not."""
    plain = ("train.closed_form={hinges: false}",)
    result, _ = deal(table, tmp_path / "nodes", *plain).run(tmp_path / "run", plain)
    assert result["closed_form"]["features"] == 4 + 3 + 5


def test_a_node_alone_learns_its_own_constants(table: Path, tmp_path: Path) -> None:
    """A baseline over constants that are all 0 would flatter the federation."""
    plan = load_plan(table)
    nodes = write_nodes(plan, table, tmp_path / "nodes")
    alone = measure_alone(plan, plan_backbone(plan, tmp_path), nodes)
    result, _ = Tiny(table, nodes).run(tmp_path / "run")
    mine = next(iter(alone.values())) if "auroc" not in alone else alone
    assert mine["auroc"] == result["final"]["global"]["auroc"]


def test_a_gzipped_table_is_the_same_table(table: Path, tmp_path: Path) -> None:
    """Public tables come gzipped."""
    deal(table, tmp_path / "plain").run(tmp_path / "run")
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress((tmp_path / "table.csv").read_bytes()))
    zipped = ("simulation.data=table.csv.gz",)
    deal(table, tmp_path / "zipped", *zipped).run(tmp_path / "again", zipped)
    assert equal(adapter(tmp_path / "run"), adapter(tmp_path / "again"))
    (tmp_path / "table.csv.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        deal(table, tmp_path / "broken", *zipped)


# ── histograms that no records have ───────────────────────────────────────────────────────────────
def spoil(name: str, change: Any) -> Any:
    """A client whose second node sends other histograms than it has."""
    honest = make_client_app(lambda: DESK)

    def handle(message: Any, context: Any) -> Any:
        reply = honest(message, context)
        arrays = reply.content.array_records.get(HISTOGRAMS) if reply.has_content() else None
        if arrays is not None and str(context.node_config["node"]).endswith("node-1.yaml"):
            arrays[name] = Array(change(arrays[name].numpy().copy()))
        return reply

    return handle


def put(place: int, value: int) -> Any:
    """An array with another value in one place."""

    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("counts", put(0, 0), "do not have"),
        ("counts", put(0, -3), "do not have"),
        ("counts", put(0, 10**6), "do not have"),
        ("counts", lambda v: v.astype(np.float64), "was agreed on"),
        ("counts", lambda v: v[:-1], "was agreed on"),
        ("codes", put(-1, 0x7F80), "no finite numbers"),
        ("codes", lambda v: v[::-1].copy(), "out of order"),
        ("codes", put(0, -1), "out of range"),
        ("sizes", put(0, -1), "more values than"),
        ("sizes", put(0, 10**9), "more values than"),
        ("sizes", lambda v: v[:-1], "was agreed on"),
    ],
)
def test_histograms_that_no_records_have_are_left_out(
    table: Path, tmp_path: Path, name: str, change: Any, words: str
) -> None:
    """One node's wrong counts would move the scale of everybody."""
    many = ("simulation.nodes=3",)
    federation = deal(table, tmp_path / "nodes", *many)
    result, _ = federation.run(tmp_path / "run", many, handle=spoil(name, change))
    (refusal,) = result["refused"]
    assert (refusal["node"], refusal["round"]) == ("node-1", 1)
    assert words in refusal["reason"]


def test_too_few_valid_histograms_end_the_run_in_words(table: Path, tmp_path: Path) -> None:
    """Constants of one hospital called everybody's."""
    many = ("simulation.nodes=2", "aggregate.min_nodes=2")
    federation = deal(table, tmp_path / "nodes", *many)
    with pytest.raises(RunFailed, match="1 nodes sent valid histograms, 2 are needed"):
        federation.run(tmp_path / "run", many, handle=spoil("counts", put(0, 0)))


# ── what a plan may say ───────────────────────────────────────────────────────────────────────────
def test_rounds_are_filled_in_and_travel(table: Path) -> None:
    """The agreement that a hospital reads must say how often it is asked."""
    plan = load_plan(table)
    assert plan.train.rounds == 2
    assert load_plan(table, ["train.rounds=2"]).train.rounds == 2
    agreement = agreement_of(plan)
    assert agreement_from_json(canonical(agreement)).train.rounds == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("train.rounds=1",), "one for histograms and one for sums"),
        (("train.rounds=3",), "one for histograms and one for sums"),
        (("train={method: steps}",), "solved for in closed form alone"),
        (("privacy={mode: sample, target_epsilon: 1}",), "task.ranges: missing for a, b"),
        (("privacy={mode: local, target_epsilon: 1}",), "task.ranges: missing for a, b"),
        (("privacy={mode: central, target_epsilon: 1}",), "task.ranges: missing for a, b"),
        (("backbone.weights=some.safetensors",), "nothing that was trained beforehand"),
        (("backbone.random=true",), "nothing that was learnt beforehand"),
        (
            ("task={kind: image-classification, classes: [no, yes]}",),
            "columns cannot take the data of image-classification",
        ),
        (
            ("backbone={name: mlp}", "train.closed_form={hinges: false}"),
            "false, and mlp has none",
        ),
    ],
)
def test_what_does_not_go_together_is_said(
    table: Path, changes: tuple[str, ...], words: str
) -> None:
    """A plan that would be run as something else."""
    with pytest.raises(UserError, match=words):
        load_plan(table, changes)


@pytest.mark.parametrize("name", ["heart-one-round", "icu-one-round", "icu-rare", "icu-coma"])
def test_ready_plans_load_and_their_headers_say_the_command(name: str) -> None:
    """The header of a ready plan is what a newcomer types first."""
    plan = load_plan(name)
    assert (plan.name, plan.train.rounds, plan.backbone.name) == (name, 2, "columns")
    assert plan.simulation is not None
    assert len(plan.simulation.files) == 4
    assert plan.task.target not in plan.task.columns
    assert "record" not in plan.task.columns
    header = find_plan(name).read_text().splitlines()[0]
    assert header.startswith(f"# fedgraft simulate {name}")


def test_a_hospital_is_told_before_it_approves(table: Path, tmp_path: Path) -> None:
    """Who approves a plan must read that values leave the house, and what the adapter is."""
    (path,) = write_nodes(load_plan(table), table, tmp_path / "nodes")
    node = load_simulated_node(path)
    proposal = propose(node, load_plan(table), None)
    words = in_words(node, proposal)
    assert "how often each value occurs" in words
    assert "values that a single person has" in words
    backbone = plan_backbone(load_plan(table), tmp_path)
    model = plan_model(backbone, load_plan(table))
    assert proposal.layout == Layout.of(model.adapter_state())

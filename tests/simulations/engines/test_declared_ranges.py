"""Tables under differential privacy: the plan declares ranges, and there is one round of sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedgraft.client.app import make_client_app
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.common.errors import UserError
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan import agreement_of
from fedgraft.common.plan.plan_file import agreement_from_json, canonical, load_plan
from fedgraft.common.wire.histogram_record import HISTOGRAMS
from fedgraft.common.wire.sums_record import SUMS
from fedgraft.simulations.baselines import measure_alone
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.simulations.conftest import DESK
from tests.simulations.engines.test_histograms_then_sums import (
    PLAN,
    adapter,
    deal,
    equal,
    write_rows,
)

RANGES = """  ranges:
    - {columns: [a], low: -2, high: 3}
    - {columns: [b], low: 0, high: 4.0e+6}
    - {columns: [never, always], low: 0, high: 10}
"""
PRIVATE = ("privacy.mode=sample", "privacy.target_epsilon=8")
DECLARED = ("train.closed_form={constants: declared}",)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A plan with ranges over 600 rows at one node."""
    write_rows(tmp_path / "table.csv", 600, 1)
    (tmp_path / "plan.yaml").write_text(PLAN.replace("backbone:", RANGES + "backbone:", 1))
    return tmp_path / "plan.yaml"


def test_under_privacy_one_release_leaves_and_it_learns(table: Path, tmp_path: Path) -> None:
    """A histogram beside the sums would be exact, whatever ε says."""
    result, grid = deal(table, tmp_path / "nodes", *PRIVATE).run(
        tmp_path / "run", PRIVATE, seeded_noise=True
    )
    assert result["rounds_done"] == 1
    # four numbers, three categories, five marks, no hinges
    assert result["closed_form"]["features"] == 4 + 3 + 5
    assert result["closed_form"]["noise_deviation"] > 0
    assert not [m for m in grid.up if HISTOGRAMS in m.content.array_records]
    (reply,) = [m.content for m in grid.up if SUMS in m.content.array_records]
    assert set(reply.array_records[SUMS]) == {"sums", "counts"}
    (spent,) = result["privacy"].values()
    assert 0 < spent["epsilon"] <= 8
    shared = load_shared_model(tmp_path / "run")
    assert set(shared.model.adapter_state()) == {"depth_head.weight", "depth_head.bias"}
    nan = float("nan")
    rows = torch.tensor([[nan] * 7, [-9e9, 0, 0, 1, 9e9, 3.0, 1.0], [3, 0, 0, 1, 4e6, nan, 7.5]])
    told = shared.predict(rows)
    assert told.isfinite().all()
    assert told[2, 1] > told[0, 1]


def test_products_leave_where_the_plan_says_so(table: Path, tmp_path: Path) -> None:
    """A key that nodes read and the server does not: every reply would be left out."""
    products = (*PRIVATE, "train.closed_form={release: products}")
    federation = deal(table, tmp_path / "nodes", *products)
    result, grid = federation.run(tmp_path / "run", products, seeded_noise=True)
    assert not result["refused"]
    (reply,) = [m.content for m in grid.up if SUMS in m.content.array_records]
    arrays = reply.array_records[SUMS]
    assert arrays["products"].numpy().shape == (12 * 13 // 2,)
    (spent,) = result["privacy"].values()
    assert 0 < spent["epsilon"] <= 8
    assert result["final"]["global"]["auroc"] > 0.75
    plan = load_plan(table, products)
    node = load_simulated_node(federation.nodes[0])
    assert "of their 78 products with one another" in in_words(node, propose(node, plan, None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v[:-1], "was agreed on"),
        (lambda v: v.astype(np.float64), "was agreed on"),
        (lambda v: v * 0 + 2**60, "sums that no records have"),
        (lambda v: v * 0 + np.iinfo(np.int64).min, "sums that no records have"),
        (None, "were agreed on"),
    ],
)
def test_products_that_cannot_be_are_left_out(
    table: Path, tmp_path: Path, change: Any, words: str
) -> None:
    """One node's wrong products would enter the head unseen."""
    honest = make_client_app(lambda: DESK)

    def spoil(message: Any, context: Any) -> Any:
        reply = honest(message, context)
        arrays = reply.content.array_records.get(SUMS) if reply.has_content() else None
        if arrays is not None and str(context.node_config["node"]).endswith("node-1.yaml"):
            products = arrays.pop("products")
            if change is not None:
                arrays["products"] = Array(change(products.numpy().copy()))
        return reply

    many = (*PRIVATE, "train.closed_form={release: products}", "simulation.nodes=3")
    federation = deal(table, tmp_path / "nodes", *many)
    result, _ = federation.run(tmp_path / "run", many, handle=spoil)
    (refusal,) = result["refused"]
    assert refusal["node"] == "node-1"
    assert words in refusal["reason"]


def test_features_of_any_record_are_within_norm_one(table: Path, tmp_path: Path) -> None:
    """One record beyond the ranges would move the sums by more than the noise is scaled to."""
    plan = load_plan(table, PRIVATE)
    backbone = plan_backbone(plan, tmp_path)
    net = backbone.net
    nan = float("nan")
    rows = torch.tensor(
        [[3e38, 1, 1, 1, -3e38, 3e38, -3e38], [nan, 9, 9, 9, nan, nan, nan], [nan] * 7]
    )
    norms = net.get_submodule("reference")(net(rows)).norm(dim=1)
    assert bool((norms <= 1 + 1e-6).all())


def test_without_privacy_ranges_change_nothing_unless_declared(table: Path, tmp_path: Path) -> None:
    """A ready plan's result would change with a key that is there for privacy alone."""
    (tmp_path / "without.yaml").write_text(PLAN)
    result, _ = deal(table, tmp_path / "one").run(tmp_path / "run")
    assert result["rounds_done"] == 2
    deal(tmp_path / "without.yaml", tmp_path / "two").run(tmp_path / "plain")
    assert equal(adapter(tmp_path / "run"), adapter(tmp_path / "plain"))


@pytest.mark.parametrize("nodes", [3, 20])
def test_declared_it_takes_one_round_and_any_deal_gives_the_same_bits(
    table: Path, tmp_path: Path, nodes: int
) -> None:
    """A round of histograms that nobody reads; constants of one's own records."""
    many = (*DECLARED, f"simulation.nodes={nodes}")
    deal(table, tmp_path / "one", *DECLARED).run(tmp_path / "pooled", DECLARED)
    result, grid = deal(table, tmp_path / "many", *many).run(tmp_path / "dealt", many)
    assert result["rounds_done"] == 1
    assert result["closed_form"]["features"] == 4 + 3 + 5 + 5 * 4
    assert not [m for m in grid.up if HISTOGRAMS in m.content.array_records]
    assert equal(adapter(tmp_path / "pooled"), adapter(tmp_path / "dealt"))
    assert result["final"]["global"]["auroc"] > 0.75


def test_a_node_alone_solves_in_the_same_round(table: Path, tmp_path: Path) -> None:
    """The baseline of a private plan has no privacy, and no round of histograms either."""
    plan = load_plan(table, PRIVATE)
    nodes = write_nodes(plan, table, tmp_path / "nodes")
    alone = measure_alone(plan, plan_backbone(plan, tmp_path), nodes)
    assert alone["auroc"] > 0.75


def test_a_hospital_reads_of_noise_and_of_no_histogram(table: Path, tmp_path: Path) -> None:
    """An approval of what does not happen."""
    plan = load_plan(table, PRIVATE)
    (path,) = write_nodes(plan, table, tmp_path / "nodes")
    words = in_words(load_simulated_node(path), propose(load_simulated_node(path), plan, None))
    assert "sums of 12 features by class" in words
    assert "how often each value occurs" not in words


def test_keys_travel_and_plans_without_them_keep_their_hashes(table: Path) -> None:
    """What a hospital approved before would have to be approved again."""
    agreement = agreement_of(load_plan(table, PRIVATE))
    again = agreement_from_json(canonical(agreement))
    assert again == agreement
    assert again.task.declared["b"] == (0, 4e6)
    assert again.train.rounds == 1
    closed = load_plan("pneumonia-one-round", ["train.closed_form={pool: mean-and-deviation}"])
    for plan in (load_plan("heart"), closed):
        assert "ranges" not in canonical(plan)
        assert "constants" not in canonical(plan)
        assert "release" not in canonical(plan)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ("[{columns: [aa], low: 0, high: 1}]", "'aa' is not among the columns"),
        ("[{columns: [colour], low: 0, high: 1}]", "'colour' holds categories"),
        ("[{columns: [a], low: 1, high: 1}]", "1, and the range begins at 1"),
        ("[{columns: [a], low: 2, high: 1}]", "write the smaller end as `low`"),
        ("[{columns: [a], low: 1.0e+9, high: 1000000001}]", "the range begins at"),
        ("[{columns: [a], low: 0, high: .inf}]", "high"),
        ("[{columns: [a], low: .nan, high: 1}]", "low"),
        ("[{columns: [a], low: 0, high: 1.0e+300}]", "high"),
        ("[{columns: [a], low: 0}]", "high"),
        ("[{columns: [], low: 0, high: 1}]", "columns"),
        ("[{columns: [a, a], low: 0, high: 1}]", "more than once"),
        (
            "[{columns: [a], low: 0, high: 1}, {columns: [a], low: 0, high: 2}]",
            "'a' has a range before",
        ),
    ],
)
def test_ranges_that_cannot_be_are_told_at_the_door(table: Path, ranges: str, words: str) -> None:
    """A range of the wrong column leaves the right one without."""
    with pytest.raises(UserError, match=words):
        load_plan(table, [f"task.ranges={ranges}"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("task.ranges=[]", *PRIVATE), "task.ranges: missing for a, b, never, always"),
        (("task.ranges=[]", *DECLARED), "constants is declared"),
        (("task.ranges=[{columns: [a], low: 0, high: 1}]", *PRIVATE), "missing for b, never"),
        ((*PRIVATE, "train.rounds=2"), "a closed form has one"),
        (
            (*PRIVATE, "train.closed_form={release: products, shares: equal}"),
            "with them classes are counted",
        ),
        (("privacy={mode: central, target_epsilon: 1}",), "write `mode: sample`"),
        (("privacy={mode: local, target_epsilon: 1}",), "write `mode: sample`"),
        (("task.ranges=[]", "backbone={name: mlp}", *DECLARED), "declared, and mlp has none"),
    ],
)
def test_what_does_not_go_together_is_said(
    table: Path, changes: tuple[str, ...], words: str
) -> None:
    """A plan that would be run as something else."""
    with pytest.raises(UserError, match=words):
        load_plan(table, changes)


@pytest.mark.parametrize("name", ["heart-one-round", "icu-one-round"])
def test_ready_plans_run_under_privacy_with_two_keys(name: str) -> None:
    """A column without a range is told to a newcomer who asked for privacy."""
    plan = load_plan(name, ["privacy.mode=sample", "privacy.target_epsilon=1"])
    assert plan.train.rounds == 1
    assert not plan.task.undeclared

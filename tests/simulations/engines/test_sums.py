"""Rounds of sums: the same head however the records are dealt, and one release under privacy."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.app import make_client_app
from fedgraft.client.desk import Desk
from fedgraft.client.node.node_file import load_node
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.privacy.accounting import bound
from fedgraft.common.wire.sums_record import SUMS
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.engines.together import train_together
from fedgraft.simulations.predict import predict
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.simulations.conftest import DESK, Tiny

ONE_ROUND = ("adapter={method: head}", "train={method: closed-form}")
PRIVATE = (*ONE_ROUND, "privacy.mode=sample", "privacy.target_epsilon=2")


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_shared_model(folder / "shared_model").model.adapter_state()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


IMAGES = """
name: dealt
task: {kind: image-classification, classes: [no, yes]}
backbone: {name: cifar-resnet8, image_size: 8}
adapter: {method: head}
train: {method: closed-form}
aggregate: {min_nodes: 1}
simulation: {nodes: 1, data: images.npz, partition: {kind: iid, min_examples: 1}}
seed: 5
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A plan over 150 small images with a split of their own, at one node."""
    rng = np.random.default_rng(2)
    content = {}
    for split, count in (("train", 110), ("val", 10), ("test", 30)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 120, (count, 8, 8))
        content[f"{split}_images"] = (noise + 100 * labels[:, None, None]).astype(np.uint8)
        content[f"{split}_labels"] = labels
    np.savez(tmp_path / "images.npz", **content)
    (tmp_path / "plan.yaml").write_text(IMAGES)
    return tmp_path / "plan.yaml"


@pytest.mark.parametrize(
    "simulation",
    [
        ("simulation.nodes=3",),
        ("simulation.nodes=40",),
        (
            "simulation.nodes=4",
            "simulation.partition={kind: dirichlet, alpha: 0.05, min_examples: 1}",
        ),
        (
            "simulation.nodes=2",
            "simulation.partition={kind: pathological, classes_per_node: 1, min_examples: 1}",
        ),
    ],
    ids=["three", "forty", "dirichlet", "one class each"],
)
def test_any_deal_gives_the_same_bits(
    images: Path, tmp_path: Path, simulation: tuple[str, ...]
) -> None:
    """A head that depended on who has which record could not be checked by anybody."""
    pooled = Tiny(images, write_nodes(load_plan(images), images, tmp_path / "one"))
    pooled.run(tmp_path / "pooled")
    plan = load_plan(images, simulation)
    dealt = Tiny(images, write_nodes(plan, images, tmp_path / "many"))
    result, _ = dealt.run(tmp_path / "dealt", simulation)
    assert result["closed_form"]["records"] == 110
    assert equal(adapter(tmp_path / "pooled"), adapter(tmp_path / "dealt"))


def test_it_takes_one_round_and_says_what_it_found(tiny: Any, tmp_path: Path) -> None:
    """Rounds that are run for nothing; a result that hides what the head rests on."""
    result, grid = tiny(3).run(tmp_path / "run", ONE_ROUND)
    assert result["rounds_done"] == 1
    facts = result["closed_form"]
    assert facts["features"] == 6 + 8 + 8
    assert facts["records"] == sum(node["examples"] for node in result["nodes"].values())
    assert facts["ridge"] > 0
    assert result["final"]["global"]["auroc"] > 0.8
    trained = [message for message in grid.up if SUMS in message.content.array_records]
    assert len(trained) == 3


def test_what_leaves_is_the_sums_and_nothing_of_a_record(tiny: Any, tmp_path: Path) -> None:
    """A feature, a label or a prediction beside the sums would be a record's own."""
    _, grid = tiny(2).run(tmp_path / "run", ONE_ROUND)
    (reply, *_) = [m.content for m in grid.up if SUMS in m.content.array_records]
    assert set(reply.array_records[SUMS]) == {"gram", "total", "cross", "targets", "squares"}
    assert set(reply.metric_records["train"]) == {"num-examples", "seconds"}
    assert reply.array_records[SUMS]["gram"].numpy().shape == (22 * 23 // 2,)


def test_a_shared_model_of_all_depths_opens_and_predicts_the_same(
    tiny: Any, tmp_path: Path
) -> None:
    """A head on disk that is read over other features than it was solved for."""
    result, _ = tiny(2).run(tmp_path / "run", ONE_ROUND)
    shared = load_shared_model(tmp_path / "run")
    again = load_shared_model(tmp_path / "run")
    rows = torch.randn(5, 3)
    assert torch.equal(shared.predict(rows), again.predict(rows))
    assert shared.model.depths is not None
    about = json.loads((tmp_path / "run" / "shared_model" / "model.json").read_text())
    assert about["plan"]["train"]["method"] == "closed-form"
    assert result["status"] == "completed"


def test_killed_before_its_round_it_resumes_to_the_same_bits(tiny: Any, tmp_path: Path) -> None:
    """There is one round only; what was cut off before it must still be able to begin."""
    federation = tiny(2)
    federation.run(tmp_path / "whole", ONE_ROUND)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", ONE_ROUND, stop_before=1)
    federation.run(tmp_path / "cut", ONE_ROUND, resume=True)
    assert equal(adapter(tmp_path / "whole"), adapter(tmp_path / "cut"))


def test_trained_together_it_is_the_same(tiny: Any, tmp_path: Path) -> None:
    """Nodes at once take steps; sums must not be taken for steps."""
    federation = tiny(3)
    federation.run(tmp_path / "apart", ONE_ROUND)
    at_once = functools.partial(train_together, DESK)
    federation.run(tmp_path / "together", ONE_ROUND, together=at_once)
    assert equal(adapter(tmp_path / "apart"), adapter(tmp_path / "together"))


# ── steps from there and back ─────────────────────────────────────────────────────────────────────
def test_steps_begin_at_the_solved_head(tiny: Any, tmp_path: Path) -> None:
    """A start that is thrown away: one step of almost nothing must leave the head where it was."""
    start = ("train.start=closed-form", "train.rounds=2", "train.optimizer={lr: 1.0e-12}")
    tiny(2).run(tmp_path / "started", start)
    solved = ("adapter={method: head}", "train={method: closed-form}")
    last = (*solved, "train.closed_form={features: last}")
    tiny(2).run(tmp_path / "solved", last)
    started = adapter(tmp_path / "started")
    for part in ("weight", "bias"):
        expected = adapter(tmp_path / "solved")[f"depth_head.{part}"]
        torch.testing.assert_close(started[f"head.{part}"], expected, atol=1e-6, rtol=0)


def test_the_last_round_solves_over_adapted_features(tiny: Any, tmp_path: Path) -> None:
    """Adapters that are lost on the way, or a head of features that are not those adapted."""
    finish = ("train.finish=closed-form", "train.rounds=3")
    result, _ = tiny(2).run(tmp_path / "run", finish)
    shared = load_shared_model(tmp_path / "run")
    state = shared.model.adapter_state()
    assert "depth_head.weight" in state
    moved = [name for name in state if name.endswith("lora_B") or name.endswith(".B")]
    assert any(bool(state[name].any()) for name in moved or state)
    assert result["rounds_done"] == 3
    assert result["closed_form"]["features"] == 22


def test_cut_off_before_the_last_round_it_resumes_to_the_same_bits(
    tiny: Any, tmp_path: Path
) -> None:
    """The model of the last round has another head than the one in the checkpoint."""
    finish = ("train.finish=closed-form", "train.rounds=3")
    federation = tiny(2)
    federation.run(tmp_path / "whole", finish)
    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", finish, stop_before=3)
    assert "head.weight" in adapter(tmp_path / "cut")
    federation.run(tmp_path / "cut", finish, resume=True)
    assert equal(adapter(tmp_path / "whole"), adapter(tmp_path / "cut"))


def test_cut_off_before_the_evaluation_it_still_resumes(tiny: Any, tmp_path: Path) -> None:
    """Every round is there, and what is sent out is the last round's model, not the first's."""
    finish = ("train.finish=closed-form", "train.rounds=2")
    federation = tiny(2)
    federation.run(tmp_path / "whole", finish)
    honest = make_client_app(lambda: DESK)

    def cut(message: Any, context: Any) -> Any:
        if message.metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return honest(message, context)

    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "cut", finish, handle=cut)
    result, _ = federation.run(tmp_path / "cut", finish, resume=True)
    assert result["status"] == "completed"
    assert result["final"]["global"]
    assert equal(adapter(tmp_path / "whole"), adapter(tmp_path / "cut"))


# ── sums that no records have ─────────────────────────────────────────────────────────────────────
def spoil(name: str, change: Any) -> Any:
    """A client whose second node sends other sums than it has."""
    honest = make_client_app(lambda: DESK)

    def handle(message: Any, context: Any) -> Any:
        reply = honest(message, context)
        arrays = reply.content.array_records.get(SUMS) if reply.has_content() else None
        if arrays is not None and str(context.node_config["node"]).endswith("node-1.yaml"):
            from flwr.app import Array

            values = arrays[name].numpy().copy()
            arrays[name] = Array(change(values))
        return reply

    return handle


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gram", lambda v: -v, "diagonal"),
        ("gram", lambda v: v * 0 + 2**40, "negative eigenvalues"),
        ("gram", lambda v: v[:-1], "was agreed on"),
        ("gram", lambda v: v.astype(np.float64), "was agreed on"),
        ("total", lambda v: v + 2**40, "out of their range"),
        ("targets", lambda v: v + 1, "counts of classes"),
        ("cross", lambda v: v + 1, "do not add up"),
        ("cross", lambda v: v + np.array([2**61, -(2**61)]), "features and targets"),
        ("total", lambda v: v * 0 + np.iinfo(np.int64).min, "out of their range"),
    ],
)
def test_sums_that_no_records_have_are_left_out(
    tiny: Any, tmp_path: Path, name: str, change: Any, words: str
) -> None:
    """One node's wrong sums would enter the head unseen, and stay in it."""
    result, _ = tiny(3).run(tmp_path / "run", ONE_ROUND, handle=spoil(name, change))
    (refusal,) = result["refused"]
    assert refusal["node"] == "h1"
    assert words in refusal["reason"]
    assert result["closed_form"]["records"] < sum(n["examples"] for n in result["nodes"].values())


def test_too_few_valid_sums_end_the_run_in_words(tiny: Any, tmp_path: Path) -> None:
    """A head of one hospital's records called a shared one."""
    with pytest.raises(RunFailed, match="1 nodes sent valid sums, 2 are needed"):
        tiny(2).run(tmp_path / "run", ONE_ROUND, handle=spoil("targets", lambda v: v + 1))


# ── under differential privacy ────────────────────────────────────────────────────────────────────
def test_one_release_is_one_row_of_the_ledger(tiny: Any, tmp_path: Path) -> None:
    """ε of steps that were never taken, or of none."""
    result, grid = tiny(2).run(tmp_path / "run", PRIVATE)
    for spent in result["privacy"].values():
        ((noise, rate, steps),) = spent["history"]
        assert (rate, steps) == (1.0, 1)
        assert noise > 1
        assert 1.9 < spent["epsilon"] <= 2
    (reply, *_) = [m.content for m in grid.up if SUMS in m.content.array_records]
    assert set(reply.array_records[SUMS]) == {"sums", "counts"}
    assert set(reply.metric_records["train"]) == {"deviation", "seconds"}
    assert "records" not in result["closed_form"]


def test_a_second_release_of_the_same_round_is_refused(tiny: Any, tmp_path: Path) -> None:
    """The server asks twice and averages the noise away. Twice the same is one release; a node that
    no longer has its answer makes no other.
    """
    federation = tiny(2)
    for file in federation.nodes:
        file.write_text(file.read_text().replace("replays: count", "replays: refuse"))
    # noise of a deployment
    desk = Desk(open_node=load_simulated_node)
    handle = make_client_app(lambda: desk)
    one, _ = federation.run(tmp_path / "one", PRIVATE, handle=handle)
    two, _ = federation.run(tmp_path / "two", PRIVATE, handle=handle)
    assert two["final"] == one["final"]
    assert two["privacy"] == one["privacy"]
    for file in federation.nodes:
        for kept in (load_node(file).store / "answers").iterdir():
            kept.unlink()
    with pytest.raises(RunFailed):
        federation.run(tmp_path / "three", PRIVATE, handle=handle)


def test_steps_and_the_sums_after_them_share_one_epsilon(tiny: Any, tmp_path: Path) -> None:
    """Each within the target by itself, and both together above it."""
    keys = ("train.finish=closed-form", "train.rounds=4", "train.closed_form.epsilon_share=0.25")
    privacy = ("privacy.mode=sample", "privacy.target_epsilon=4", "privacy.delta=1e-3")
    result, _ = tiny(2).run(tmp_path / "run", (*keys, *privacy))
    assert result["status"] == "completed"
    for spent in result["privacy"].values():
        rows = [tuple(row) for row in spent["history"]]
        (sums,) = [row for row in rows if row[1] == 1.0]
        steps = [row for row in rows if row[1] < 1.0]
        assert sum(row[2] for row in steps) % 3 == 0
        assert 3.5 < bound(rows, 1e-3).epsilon <= 4
        assert 0.9 < bound([sums], 1e-3).epsilon <= 1
        assert bound(steps, 1e-3).epsilon < 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("train={method: closed-form}",), "a closed form solves for a head alone"),
        ((*ONE_ROUND, "train.rounds=3"), "a closed form has one"),
        ((*ONE_ROUND, "aggregate.strategy=median"), "no rule chooses among them"),
        ((*ONE_ROUND, "aggregate.encoding=int8"), "would not be those of the pooled records"),
        ((*ONE_ROUND, "train.start=closed-form"), "so is all of the training"),
        (
            ("train.start=closed-form", "privacy={mode: sample, target_epsilon: 1}"),
            "no steps begin there",
        ),
        (
            ("train.finish=closed-form", "privacy={mode: sample, noise_multiplier: 1}"),
            "sums spend a part of it",
        ),
        (
            (*ONE_ROUND, "privacy={mode: central, target_epsilon: 1}"),
            "each node adds the noise of its own sums",
        ),
        (
            (*ONE_ROUND, "train.closed_form={shares: equal}"),
            "classes are counted exactly",
        ),
    ],
)
def test_what_does_not_go_together_is_said(tiny: Any, changes: tuple[str, ...], words: str) -> None:
    """A plan that would be run as something else."""
    with pytest.raises(UserError, match=words):
        tiny(2).plan(*changes)


def test_a_stage_that_is_none_is_named(tiny: Any, tmp_path: Path) -> None:
    """A list of blocks is typed by hand."""
    wrong = (*ONE_ROUND, "train.closed_form={features: [layer9]}")
    with pytest.raises(UserError, match="'layer9' is no stage") as error:
        tiny(2).run(tmp_path / "run", wrong)
    assert "stem, layers.0, layers.1, last" in str(error.value)


def test_a_model_that_knows_how_sure_it_is(images: Path, tmp_path: Path) -> None:
    """A variance that a resumed run loses, or that says nothing of an image unlike all others."""
    keys = ("train.closed_form.variance=true",)
    federation = Tiny(images, write_nodes(load_plan(images), images, tmp_path / "nodes"))
    federation.run(tmp_path / "run", keys)
    out = tmp_path / "found.csv"
    assert predict(tmp_path / "run", images.parent / "images.npz", out) == 150
    lines = list(csv.DictReader(out.open()))
    usual = [float(line["deviation"]) for line in lines]
    shared = load_shared_model(tmp_path / "run")
    checkers = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    checkers[..., ::2, ::2] = 255
    unlike = shared.deviations(checkers)
    assert unlike is not None
    assert float(unlike.min()) > 1.5 * max(usual)

    shutil.rmtree(tmp_path / "run" / "shared_model")
    federation.run(tmp_path / "run", keys, resume=True)
    again = load_shared_model(tmp_path / "run").deviations(checkers)
    assert again is not None
    assert torch.equal(again, unlike)


def test_a_hospital_may_keep_sums_of_few_records_to_itself(tiny: Any, tmp_path: Path) -> None:
    """Sums over fewer records than features, from which every record comes back."""
    federation = tiny(3)
    for path in federation.nodes:
        text = path.read_text()
        path.write_text(text.replace("policy:\n", "policy:\n  records_a_feature: 5\n", 1))
    with pytest.raises(RunFailed, match="0 nodes sent valid sums"):
        federation.run(tmp_path / "run", ONE_ROUND)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {row["reason"] for row in result["refused"]} == {
        "policy: records_a_feature: sums of 22 features without noise, over fewer records than"
        " allowed"
    }
    private, _ = federation.run(tmp_path / "private", PRIVATE)
    assert private["status"] == "completed"

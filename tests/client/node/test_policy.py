"""A hostile server against one node: whatever it sends, nothing is trained or spent beyond the
node's policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

import fedgraft.client.round
from fedgraft.client.app import app, make_client_app
from fedgraft.client.desk import Desk
from fedgraft.client.node.node_file import load_node
from fedgraft.client.privacy.ledger import Ledger
from fedgraft.client.privacy.ledger_records import DataSet
from fedgraft.client.store.backbone_store import BackboneStore
from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.model.assembly import plan_model
from fedgraft.common.plan.plan import Plan, agreement_of
from fedgraft.common.plan.plan_file import agreement_hash, canonical
from fedgraft.common.privacy.accounting import epsilon
from fedgraft.common.wire.backbone_parts import PartTable, cut_part, part_content
from fedgraft.common.wire.content_bytes import content_bytes
from fedgraft.common.wire.layout import ADAPTER, Layout, pack
from fedgraft.common.wire.spent_record import read_spent
from fedgraft.server.exchange import exchange
from fedgraft.simulations.engines.inprocess import InProcessGrid
from tests.records import open_records

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
POLICY = (
    "dp_required: true, max_epsilon_run: 2, max_epsilon_total: 3, max_delta: 1.0e-4,"
    " min_noise_multiplier: 0.6"
)
PRIVACY = {"mode": "sample", "target_epsilon": 2.0, "delta": 1e-4, "accountant": "rdp"}


def backbone(seed: int = 0) -> Backbone:
    return load_backbone("mlp", columns=3, hidden=(6, 6), seed=seed)


class Hostile:
    """A server that sends one node whatever it likes; every answer is a refusal's reason, or the
    content.
    """

    def __init__(self, folder: Path, policy: str) -> None:
        rng = np.random.default_rng(0)
        rows = [f"{a:.4f},{b:.4f},{c:.4f},{int(a > 0)}" for a, b, c in rng.normal(size=(120, 3))]
        (folder / "data.csv").write_text("\n".join(["a,b,c,target", *rows]) + "\n")
        self.path = folder / "node.yaml"
        self.path.write_text(
            f"name: north\ndata: {{path: data.csv}}\nstore: store\npolicy: {{{policy}}}\n"
        )
        self.ledger = Ledger(load_node(self.path).ledger_path)
        self.grid = InProcessGrid(app, [self.path], workers=1)

    def plan(self, privacy: dict[str, Any] | None = None, **changed: Any) -> Plan:
        content: dict[str, Any] = {
            "name": "tiny",
            "task": {
                "kind": "tabular-classification",
                "classes": ["no", "yes"],
                "columns": ["a", "b", "c"],
            },
            "backbone": {"name": "mlp", "hidden": [6, 6]},
            "adapter": {"method": "lora", "rank": 2},
            "train": {"rounds": 3, "batch_size": 10, **changed.pop("train", {})},
            "privacy": {**PRIVACY, **(privacy or {})},
            **changed,
        }
        content["privacy"] = {
            key: value for key, value in content["privacy"].items() if value is not None
        }
        return Plan.model_validate(content)

    def send(self, kind: str, content: RecordDict) -> RecordDict | str:
        replies = exchange(self.grid, kind, content, {"north": 2}, group="1", timeout=60)
        if "north" in replies.refused:
            assert "north" not in replies.contents
            return replies.refused["north"]
        return replies.contents["north"]

    def offer(self, plan: Plan, net: Backbone | None = None, **changed: str) -> RecordDict | str:
        net = net or backbone()
        offer = {
            "plan": canonical(agreement_of(plan)),
            "plan-hash": agreement_hash(plan),
            "fingerprint": net.fingerprint,
            "preprocess": json.dumps(net.preprocess.to_json()),
        }
        return self.send("query.offer", RecordDict({"offer": ConfigRecord({**offer, **changed})}))

    def hand_out(
        self, state: dict[str, Tensor] | None = None, fingerprint: str = "", **changed: Any
    ) -> RecordDict | str:
        net = backbone()
        state = state or backbone_state(net)
        part = cut_part(state, PartTable.of(state, 10**6), 1)
        content = part_content(part, fingerprint or net.fingerprint)
        content.config_records["about"].update(changed)
        return self.send("query.backbone", content)

    def kept(self, fingerprint: str) -> dict[str, Tensor]:
        """What the node has as this backbone."""
        return BackboneStore(load_node(self.path).store).load(fingerprint)

    def train(
        self, plan: Plan, round_: int, *, factor: float = 1.0, **changed: Any
    ) -> RecordDict | str:
        state = {
            name: factor * tensor
            for name, tensor in plan_model(backbone(), plan).adapter_state().items()
        }
        layout = Layout.of(state)
        about = {
            "plan-hash": agreement_hash(plan),
            "round": round_,
            "layout": layout.digest,
            **changed.pop("about", {}),
        }
        return self.send(
            "train",
            RecordDict({ADAPTER: pack(state, layout), "about": ConfigRecord(about), **changed}),
        )

    def accepted(self, plan: Plan) -> Plan:
        assert not isinstance(said := self.offer(plan), str), said
        assert not isinstance(said := self.hand_out(), str), said
        return plan

    def reopened(self) -> Hostile:
        """The same node, started again."""
        self.grid.close()
        desk = Desk()
        self.grid = InProcessGrid(make_client_app(lambda: desk), [self.path], workers=1)
        return self

    def rows(self) -> list[tuple[float, float, int]]:
        return [line.row for line in self.ledger.book().lines]


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Callable[..., Hostile]]:
    """(policy, folder) → a server and its victim."""
    made: list[Hostile] = []

    def make(policy: str = POLICY, folder: Path = tmp_path) -> Hostile:
        made.append(Hostile(folder, policy))
        return made[-1]

    yield make
    for each in made:
        each.grid.close()


def never(*args: Any, **options: Any) -> None:
    raise AssertionError("a gradient was computed")


# ── plans that are not taken ──────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("privacy", "changed", "words"),
    [
        ({"mode": "none", "target_epsilon": None, "delta": None}, {}, "dp_required"),
        ({"mode": "central"}, {}, "central"),
        (
            {"mode": "local", "target_epsilon": None, "noise_multiplier": 0.5},
            {},
            "min_noise_multiplier",
        ),
        ({"mode": "local", "target_epsilon": 2.5}, {}, "ceiling of 2"),
        ({"target_epsilon": None, "noise_multiplier": 0.3}, {}, "min_noise_multiplier"),
        ({"target_epsilon": 2.5}, {}, "ceiling of 2"),
        ({"target_epsilon": None, "noise_multiplier": 0.7}, {}, "ceiling of 2"),
        (
            {"target_epsilon": None, "noise_multiplier": 2.0},
            {"train": {"rounds": 500}},
            "ceiling of 2",
        ),
        (
            {"target_epsilon": None, "noise_multiplier": 2.0},
            {"train": {"local_epochs": 500}},
            "ceiling of 2",
        ),
        ({"delta": 1e-3}, {}, "max_delta"),
        ({"unit": "patient"}, {}, "no patient for each record"),
    ],
    ids=[
        "none",
        "central",
        "local-noise",
        "local-epsilon",
        "noise",
        "epsilon",
        "noise-epsilon",
        "rounds",
        "epochs",
        "delta",
        "patient",
    ],
)
def test_a_plan_beyond_the_policy_is_refused_and_nothing_spent(
    hostile, monkeypatch, privacy: dict[str, Any], changed: dict[str, Any], words: str
) -> None:
    """A server that loosens what the hospital permits: less noise, a larger δ or ε, more steps, no
    privacy.
    """
    monkeypatch.setattr(fedgraft.client.round, "train_privately", never)
    monkeypatch.setattr(fedgraft.client.round.local_steps, "train", never)
    server = hostile()
    plan = server.plan(privacy, **changed)
    said = server.offer(plan)
    assert isinstance(said, str)
    assert words in said
    server.hand_out()
    again = server.train(plan, 1)  # whatever was answered
    assert isinstance(again, str)
    assert "never offered" in again
    assert server.rows() == []


def test_a_delta_that_says_nothing_is_refused(hostile) -> None:
    """With δ = 1/n, publishing one whole record is differentially private."""
    server = hostile("min_examples: 5")
    said = server.offer(server.plan({"delta": 0.02}))
    assert isinstance(said, str)
    assert "1 / examples" in said


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("allowed_units: [patient]", "unit example"),
        ("min_examples: 97", "fewer than"),  # 96 examples are for training
        ("round_counts: 97", "too few"),
    ],
)
def test_units_and_data_below_the_policy_are_refused(hostile, policy: str, words: str) -> None:
    """A unit that the hospital does not accept; a data set that is too small for the policy."""
    server = hostile(policy)
    said = server.offer(server.plan())
    assert isinstance(said, str)
    assert words in said


# ── messages that are not obeyed ──────────────────────────────────────────────────────────────────
def test_a_replayed_round_is_answered_once_and_spent_once(hostile, monkeypatch) -> None:
    """The same question again: a second answer about the same data would tell more than was
    counted, and none at all would end the run of a coordinator that was killed. Another adapter is
    another question.
    """
    server = hostile()
    plan = server.accepted(server.plan())
    first = server.train(plan, 1)
    assert not isinstance(first, str)
    spent = server.rows()
    assert len(spent) == 1
    monkeypatch.setattr(fedgraft.client.round, "train_privately", never)
    again = server.train(plan, 1)
    assert not isinstance(again, str)
    assert content_bytes(again) == content_bytes(first)
    said = server.train(plan, 1, factor=2.0)
    assert isinstance(said, str)
    assert "run here before" in said
    assert server.rows() == spent


def test_an_answer_that_is_lost_is_trained_again_by_a_clause_only(hostile) -> None:
    """Its file is cut off, as after a full disk: the node refuses, or counts the round once more
    where its policy says so, above the plan's own ε.
    """
    server = hostile()
    plan = server.accepted(server.plan())
    assert not isinstance(server.train(plan, 1), str)
    (kept,) = server.path.with_name("store").glob("answers/*-train")
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(kept.read_bytes()[:-1])
    said = server.train(plan, 1)
    assert isinstance(said, str)
    assert "run here before" in said

    policy = "replays: count, dp_required: true, max_epsilon_run: 3, max_delta: 1.0e-4"
    text = server.path.read_text().replace(POLICY, policy)
    server.path.write_text(text)
    lenient = server.reopened()
    for round_ in (1, 2, 3):
        reply = lenient.train(plan, round_)
        assert not isinstance(reply, str), reply
    assert len(lenient.rows()) == 4
    assert 2 < epsilon(lenient.rows(), 1e-4, "rdp") < 3


def test_only_the_last_answer_is_kept(hostile) -> None:
    """A run of a thousand rounds would fill the disk with its answers."""
    server = hostile()
    plan = server.accepted(server.plan())
    for round_ in (1, 2):
        assert not isinstance(server.train(plan, round_), str)
    assert len(list(server.path.with_name("store").glob("answers/*"))) == 1
    said = server.train(plan, 1)
    assert isinstance(said, str)
    assert "run here before" in said


@pytest.mark.parametrize("round_", [0, 4, -1, 10**9])
def test_rounds_beyond_the_plan_are_refused(hostile, round_: int) -> None:
    """Noise is calibrated for the planned rounds; more of them would spend more."""
    server = hostile()
    plan = server.accepted(server.plan())
    said = server.train(plan, round_)
    assert isinstance(said, str)
    assert "rounds 1 to 3" in said
    assert server.rows() == []


def test_a_stated_data_size_changes_nothing(hostile) -> None:
    """A server that says the data is larger, or smaller, to get less noise."""
    server = hostile()
    plan = server.accepted(server.plan())
    extra = {
        "examples": 10**6,
        "num-examples": 5,
        "sample-rate": 1e-6,
        "noise-multiplier": 0.0,
        "steps": 10**6,
    }
    assert not isinstance(server.train(plan, 1, about=extra), str)
    ((sigma, rate, steps),) = server.rows()
    assert (rate, steps) == (10 / 90, 9)  # of the node's 96 training examples, 90 are told
    assert epsilon([(sigma, rate, 3 * steps)], 1e-4, "rdp") <= 2


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan, "wide", 1])
def test_a_clipping_norm_that_is_none_is_refused(hostile, monkeypatch, clip: Any) -> None:
    """A norm that makes NaN of an update, or turns it round."""
    monkeypatch.setattr(fedgraft.client.round.local_steps, "train", never)
    server = hostile("min_examples: 5")
    plan = server.accepted(server.plan({"mode": "central"}))
    said = server.train(plan, 1, about={"clip": clip})
    assert isinstance(said, str)
    assert "a clipping norm of" in said


def test_local_noise_is_counted_once_and_not_replayed(hostile) -> None:
    """Two answers about the same data with fresh noise each would halve it."""
    server = hostile()
    plan = server.accepted(server.plan({"mode": "local"}))
    reply = server.train(plan, 1, about={"clip": 1e6, "noise-multiplier": 0.0})
    assert not isinstance(reply, str)
    assert set(reply) == {ADAPTER, "train", "about", "privacy"}
    spent = read_spent(reply.config_records["privacy"])
    ((sigma, rate, steps),) = server.rows()
    assert (rate, steps, spent.unit) == (1.0, 1, "node")
    assert epsilon([(sigma, 1.0, 3)], 1e-4, "rdp") <= 2
    said = server.train(plan, 1)
    assert isinstance(said, str)
    assert "run here before" in said
    # of the same data; ε for examples and for the node do not compose
    said = server.offer(server.plan())
    assert isinstance(said, str)
    assert "unit node" in said
    assert len(server.rows()) == 1


def test_tensors_outside_the_adapter_are_refused(hostile) -> None:
    """A frozen weight, or a larger adapter, slipped in among what is trained."""
    server = hostile()
    plan = server.accepted(server.plan())
    state = plan_model(backbone(), plan).adapter_state()
    layout = Layout.of(state)
    larger = Layout.of(state | {"layers.0.linear.weight": torch.zeros(6, 6)})
    cases = [
        {"about": {"layout": larger.digest}},
        {ADAPTER: ArrayRecord({ADAPTER: Array(np.zeros(layout.values + 36, np.float32))})},
        {
            ADAPTER: ArrayRecord(
                {ADAPTER: Array(np.zeros(layout.values, np.float32)), "x": Array(np.zeros(1))}
            )
        },
        {ADAPTER: ArrayRecord({ADAPTER: Array(np.full(layout.values, np.nan, np.float32))})},
    ]
    for case in cases:
        assert isinstance(server.train(plan, 1, **case), str), case
    assert server.rows() == []


def test_another_backbone_is_refused(hostile) -> None:
    """A backbone that was made to memorise, under the name of the approved one, or in its place."""
    good, other = backbone(), backbone(seed=1)
    server = hostile(f"{POLICY}, approved_backbones: ['{good.fingerprint}']")
    plan = server.plan()
    said = server.offer(plan, net=other)
    assert isinstance(said, str)
    assert "not approved" in said
    assert not isinstance(server.offer(plan), str)
    said = server.hand_out(backbone_state(other), good.fingerprint)
    assert isinstance(said, str)
    assert "not sha256" in said
    server.accepted(plan)
    # again, to put it in the place of the first offer
    assert isinstance(server.offer(plan, net=other), str)
    # and of the backbone that is here
    server.hand_out(backbone_state(other), good.fingerprint)
    assert fingerprint_of(server.kept(good.fingerprint)) == good.fingerprint
    assert isinstance(server.hand_out(backbone_state(other), other.fingerprint), str)
    for wrong in ({"part": 0}, {"part": 2}, {"part": "x"}, {"parts": 10**9}):
        said = server.hand_out(**wrong)
        assert isinstance(said, str)
        assert "of a backbone" in said
    assert server.rows() == []
    assert not isinstance(server.train(plan, 1), str)


# ── the budget ────────────────────────────────────────────────────────────────────────────────────
def test_many_plans_do_not_pass_the_ceiling_on_everything(hostile) -> None:
    """A new seed makes a new plan; ε that is counted for each plan alone would never end."""
    server = hostile()
    refused = ""
    for seed in range(8):
        plan = server.plan(seed=seed)
        said = server.offer(plan)
        if isinstance(said, str):
            refused = said
            break
        server.hand_out()
        for round_ in range(1, 4):
            assert not isinstance(server.train(plan, round_), str)
    assert "would pass the ceiling of 3" in refused
    rows = server.rows()
    assert 2 < epsilon(rows, 1e-4, "rdp") <= 3
    data = open_records(
        path=server.path.with_name("data.csv"),
        kind="tabular-classification",
        classes=("no", "yes"),
        columns=("a", "b", "c"),
    )
    assert sorted(server.ledger.history(DataSet.of(data))) == sorted(rows)


def test_plans_that_were_accepted_can_be_run_to_their_end(hostile) -> None:
    """Plans accepted one by one, before any was run, each within the ceiling alone: they died
    midway together, all ε gone and no model. Now what does not fit is refused at the door.
    """
    server = hostile()
    taken = []
    for seed in range(4):
        plan = server.plan(seed=seed)
        said = server.offer(plan)
        if isinstance(said, str):
            assert "held for other runs" in said
        else:
            taken.append(plan)
    assert 0 < len(taken) < 4
    server.hand_out()
    for round_ in (1, 2, 3):
        for plan in taken:
            assert not isinstance(server.train(plan, round_), str)
    assert epsilon(server.rows(), 1e-4, "rdp") <= 3


def test_what_is_held_returns_when_it_is_released(hostile) -> None:
    """A run that never comes would keep the budget for ever; a round that it ran stays counted."""
    server = hostile()
    first, second = server.plan(seed=1), server.plan(seed=2)
    server.accepted(first)
    while not isinstance(said := server.offer(second), str):
        server.accepted(second)
        second = server.plan(seed=second.seed + 1)
    assert "held for other runs" in said
    assert not isinstance(server.train(first, 1), str)
    server.ledger.release(agreement_hash(first)[:20])
    with pytest.raises(UserError, match="held for 0 runs"):
        server.ledger.release(agreement_hash(first))
    server.accepted(second)
    assert len(server.rows()) == 1
    assert server.ledger.verify() == []


def test_what_is_held_ends_by_itself(hostile) -> None:
    """After the stated hours without a round of it, another run may have it."""
    server = hostile(f"{POLICY}, hold_hours: 1.0e-9")
    for seed in range(4):
        server.accepted(server.plan(seed=seed))


def test_one_unit_of_all_that_is_in_the_ledger(tmp_path: Path, hostile) -> None:
    """A plan that picks other rows by their labels: other records of the same patients, or of the
    same node. Eight such plans of ε = 1 each were admitted under a total of 1.
    """
    visits = ["a,b,c,patient,visit"]
    for patient in range(60):
        for visit in range(4):
            visits.append(f"{patient},{visit},{patient % 7},p{patient},v{visit}")
    for mode, unit in (("sample", "patient"), ("local", "node")):
        folder = tmp_path / mode
        folder.mkdir()
        server = hostile(POLICY.replace("total: 3", "total: 2"), folder)
        (folder / "data.csv").write_text("\n".join(visits) + "\n")
        # a hospital that lets plans pick rows by their labels
        text = server.path.read_text()
        server.path.write_text(text.replace("data.csv}", "data.csv, labels_left_out: allow}"))
        refused = 0
        for visit in range(4):
            task = {
                "kind": "tabular-classification",
                "classes": ["now", "never"],
                "columns": ["a", "b", "c"],
                "target": "visit",
                "labels": [f"v{visit}", "none"],
            }
            plan = server.plan({"mode": mode, "unit": unit, "target_epsilon": 1.5}, task=task)
            said = server.offer(plan)
            refused += isinstance(said, str)
        assert refused == 3


def test_a_round_that_fails_stays_counted(hostile, monkeypatch) -> None:
    """A crash in the middle of a round: its steps may have been seen, and count for ever."""
    server = hostile()
    plan = server.accepted(server.plan())

    def crash(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fedgraft.client.round, "train_privately", crash)
    said = server.train(plan, 1)
    assert isinstance(said, str)
    assert "ZeroDivisionError" in said
    assert len(server.rows()) == 1
    assert not server.ledger.book().lines[0].settled


def test_the_stricter_noise_wins(hostile) -> None:
    """A floor under the noise that a calibrated plan goes below: the node adds what its policy
    says.
    """
    server = hostile("min_noise_multiplier: 9.5, dp_required: true")
    plan = server.accepted(server.plan())
    assert not isinstance(server.train(plan, 1), str)
    assert server.rows()[0][0] == 9.5


# ── what is told ──────────────────────────────────────────────────────────────────────────────────
def test_nothing_that_noise_does_not_cover_is_told_unasked(hostile) -> None:
    """A loss, a count of examples or metrics beside a private adapter."""
    server = hostile()
    plan = server.accepted(server.plan())
    reply = server.train(plan, 1)
    assert not isinstance(reply, str)
    assert set(reply) == {ADAPTER, "train", "about", "privacy"}
    assert set(reply["train"]) == {"num-examples", "steps", "seconds"}
    assert reply.metric_records["train"]["num-examples"] == 1
    spent = read_spent(reply.config_records["privacy"])
    assert list(spent.history) == server.rows()
    assert (spent.delta, spent.unit, spent.accountant) == (1e-4, "example", "rdp")
    assert spent.epsilon == epsilon(server.rows(), 1e-4, "rdp")
    assert math.isfinite(spent.epsilon)
    about = ConfigRecord(
        {
            "plan-hash": agreement_hash(plan),
            "round": 3,
            "layout": reply.config_records["about"]["layout"],
        }
    )
    said = server.send("evaluate", RecordDict({ADAPTER: reply[ADAPTER], "about": about}))
    assert isinstance(said, str)
    assert "no metrics" in said


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("sample", "a single record"),
        ("local", "all of this hospital"),
        ("central", "by the server"),
    ],
)
def test_an_officer_is_told_of_every_mode(hostile, mode: str, words: str) -> None:
    """A preflight or an approval that knows sample-level privacy only."""
    from fedgraft.client.node.approval_words import _privacy
    from fedgraft.client.node.check import check_node

    server = hostile("min_examples: 5")
    plan = server.plan({"mode": mode})
    assert words in " ".join(_privacy(load_node(server.path), plan))
    found = {finding.what: finding for finding in check_node(load_node(server.path), plan)}
    assert found["policy: privacy"].state == "ok"
    assert server.rows() == []


def test_metrics_leave_where_the_policy_says_so(hostile) -> None:
    """A hospital that permits metrics in so many words."""
    server = hostile(f"{POLICY}, report_metrics: true")
    reply = server.train(server.accepted(server.plan()), 1)
    assert not isinstance(reply, str)
    assert "received" in reply


def overflowing(server: Hostile, plan: Plan) -> Plan:
    """The plan with a backbone whose outputs are not finite; a worse server makes them so on
    certain records only.
    """
    state = {name: 1e25 * tensor for name, tensor in backbone_state(backbone()).items()}
    fingerprint = fingerprint_of(state)
    for said in (server.offer(plan, fingerprint=fingerprint), server.hand_out(state, fingerprint)):
        assert not isinstance(said, str), said
    return plan


@pytest.mark.parametrize(
    ("mode", "metrics", "told"),
    [
        ("sample", "", False),
        ("sample", ", metrics_noise: 50", True),
        ("sample", ", report_metrics: true", True),
        ("local", "", False),
        ("local", ", report_metrics: true", True),
    ],
)
def test_outputs_that_are_not_finite_are_not_told(
    hostile, monkeypatch, mode: str, metrics: str, told: bool
) -> None:
    """A refusal that says, without noise and uncounted, that some record is there on which the
    model overflows.
    """
    monkeypatch.setattr(
        "fedgraft.client.desk.check_gradients", lambda *given: None
    )  # which tries other records, and is not the point
    server = hostile(POLICY + metrics)
    plan = overflowing(server, server.plan({"mode": mode}))
    reply = server.train(plan, 1)
    assert not isinstance(reply, str), reply
    assert ("received" in reply) == told
    assert len(server.rows()) == 1 + ("noise" in metrics)
    about = {
        "plan-hash": agreement_hash(plan),
        "round": 3,
        "layout": reply.config_records["about"]["layout"],
    }
    said = server.send(
        "evaluate", RecordDict({ADAPTER: reply[ADAPTER], "about": ConfigRecord(about)})
    )
    assert isinstance(said, str) != told


def test_what_may_not_be_told_is_not_measured(hostile, monkeypatch) -> None:
    """Private test data run through a server's model for nothing, and before the ledger was
    asked.
    """
    server = hostile()
    plan = server.accepted(server.plan())
    monkeypatch.setattr("fedgraft.client.training.local_steps.evaluate", never)
    reply = server.train(plan, 1)
    assert not isinstance(reply, str), reply


def test_noise_of_a_deployment_is_fresh(hostile) -> None:
    """The plan's seed must not reach the noise: two nodes with the same data answer differently."""
    server = hostile("replays: count")
    plan = server.accepted(server.plan({"target_epsilon": 8.0}))
    first = server.train(plan, 1)
    for kept in server.path.with_name("store").glob("answers/*"):
        kept.unlink()
    second = server.train(plan, 1)
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert not np.array_equal(first[ADAPTER][ADAPTER].numpy(), second[ADAPTER][ADAPTER].numpy())  # type: ignore[union-attr]


def test_patients_are_counted_as_patients(tmp_path: Path, hostile) -> None:
    """Sampling of images where patients are promised."""
    server = hostile()
    lines = (tmp_path / "data.csv").read_text().splitlines()
    rows = [f"{line},p{number // 3}" for number, line in enumerate(lines[1:])]
    (tmp_path / "data.csv").write_text("\n".join([f"{lines[0]},patient", *rows]) + "\n")
    plan = server.accepted(server.plan({"unit": "patient"}))
    reply = server.train(plan, 1)
    assert not isinstance(reply, str)
    spent = read_spent(reply.config_records["privacy"])
    assert spent.unit == "patient"
    ((_, rate, steps),) = server.rows()
    train = open_records(
        path=tmp_path / "data.csv",
        kind="tabular-classification",
        classes=("no", "yes"),
        columns=("a", "b", "c"),
    )
    patients = len({train.column("patient")[row] for row in train.splits["train"]})
    assert rate == 10 / (patients - patients % 10)
    assert steps == math.ceil((patients - patients % 10) / 10)

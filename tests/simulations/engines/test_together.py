"""Many nodes at once against one by one."""

from __future__ import annotations

import functools

import pytest
import torch

from fedgraft.client.store.error_feedback import Feedback
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.simulations.engines.together import train_together
from tests.simulations.conftest import DESK

TOGETHER = {"together": functools.partial(train_together, DESK)}


def adapters(folder):
    return load_shared_model(folder / "shared_model").model.adapter_state()


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter={method: head}",),
        ("adapter={method: lora, rank: 2, targets: last-block}",),
        ("train.local_epochs=3", "train.proximal=0.1", "aggregate.strategy=fedprox"),
        ("train.loss=balanced",),
        ("train.class_weights=inverse",),
        ("train.loss=focal", "train.class_weights=[1, 3]"),
        ("privacy={mode: central, noise_multiplier: 0.5, max_update_norm: 0.05}",),
        (
            "train.optimizer={name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.01}",
            "train.schedule=cosine",
        ),
    ],
)
def test_the_same_as_one_by_one(tiny, tmp_path, overrides):
    """Mixed-up nodes, a padded example that counts, momentum of a node that has finished, another
    order of data.

    The nodes have 32, 40, 48 and 56 training examples: 4 to 7 steps of 8, so that they end one
    after the other.
    """
    federation = tiny(4)
    # the server's noise in mode central
    seeded = {"seeded_noise": True}
    apart, _ = federation.run(tmp_path / "apart", overrides, **seeded)
    at_once, _ = federation.run(tmp_path / "at_once", overrides, **seeded, **TOGETHER)
    for name, value in adapters(tmp_path / "apart").items():
        torch.testing.assert_close(adapters(tmp_path / "at_once")[name], value, rtol=0, atol=1e-5)
    assert at_once["bytes"]["rounds"][0]["down"] == apart["bytes"]["rounds"][0]["down"]
    assert at_once["final"]["global"]["examples"] == apart["final"]["global"]["examples"]


@pytest.mark.parametrize(("most", "batches"), [(128, [4]), (3, [2, 2])])
def test_it_is_really_used(tiny, tmp_path, monkeypatch, most, batches):
    """A comparison of one by one with one by one; more nodes in one batch than memory was counted
    for.
    """
    calls = []
    monkeypatch.setattr("fedgraft.simulations.engines.inprocess.MOST_TOGETHER", most)
    import fedgraft.simulations.engines.together

    real = fedgraft.simulations.engines.together.run_rounds
    monkeypatch.setattr(
        fedgraft.simulations.engines.together,
        "run_rounds",
        lambda *given: calls.append(len(given[0])) or real(*given),
    )
    tiny(4).run(tmp_path / "out", ("train.rounds=2",), workers=1, **TOGETHER)
    assert calls == 2 * batches


def test_one_bad_node_does_not_stop_the_others(tiny, tmp_path):
    """A node whose data vanished takes those with it that are trained beside it."""
    federation = tiny(4)
    federation.nodes[1].write_text(federation.nodes[1].read_text().replace("h1.csv", "gone.csv"))
    result, _ = federation.run(tmp_path / "out", **TOGETHER)
    assert result["status"] == "completed"
    assert {entry["round"] for entry in result["refused"]} == {0}


def test_a_node_that_cannot_answer_is_left_out_alone(tiny, tmp_path, monkeypatch):
    """One full disk, and the server waits an hour for every node of the batch."""
    encode = Feedback.encode

    def on_a_full_disk(self, *given):
        if "node-1" in str(self.folder):
            raise OSError(28, "No space left on device")
        return encode(self, *given)

    monkeypatch.setattr(Feedback, "encode", on_a_full_disk)
    plan = ("aggregate.encoding=int8", "aggregate.round_timeout=20", "train.rounds=2")
    result, _ = tiny(3).run(tmp_path / "out", plan, **TOGETHER)
    assert [(row["node"], row["round"]) for row in result["refused"]] == [("h1", 1), ("h1", 2)]
    assert all("OSError" in row["reason"] for row in result["refused"])


def test_where_all_at_once_fails_each_is_asked_by_itself(tiny, tmp_path):
    """An error in a worker's thread that nobody reads, and replies that never come."""

    def broken(messages, contexts):
        raise ZeroDivisionError

    plan = ("aggregate.round_timeout=20", "train.rounds=2")
    result, _ = tiny(3).run(tmp_path / "out", plan, together=broken)
    assert (result["status"], result["refused"]) == ("completed", [])

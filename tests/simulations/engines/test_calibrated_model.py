"""A temperature that is chosen by validation records: what it does to the shared model, and who has
no say in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedgraft.client.node_task import open_splits, open_validation
from fedgraft.common.errors import RunFailed
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.statistics.temperature import TEMPERATURES
from fedgraft.common.tasks.classification import cross_entropies
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from tests.simulations.conftest import Tiny, client_app

# trained until it is far too sure of itself
SURE = (
    "train.rounds=6",
    "train.local_epochs=5",
    "train.optimizer.lr=0.02",
    "evaluate.validation_fraction=0.3",
)
CALIBRATED = (*SURE, "train.calibrate=temperature")


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_shared_model(run).model.adapter_state()


@torch.inference_mode()
def validation_loss(federation: Tiny, run: Path) -> float:
    """The mean loss of a shared model on the nodes' validation records, by hand."""
    plan = federation.plan(*CALIBRATED)
    shared = load_shared_model(run)
    losses = []
    for file in federation.nodes:
        train, _ = open_splits(load_simulated_node(file), plan, shared.preprocess)
        validation = open_validation(train)
        outputs = shared.model(validation.inputs(torch.arange(len(validation))))
        losses.append(cross_entropies(outputs, validation.labels))
    return float(torch.cat(losses).mean())


def test_the_shared_model_is_as_sure_as_it_is_right(tiny, tmp_path):
    """A temperature that is told and not applied, applied twice, or that moves answers."""
    federation = tiny(3)
    plain, _ = federation.run(tmp_path / "plain", SURE)
    result, _ = federation.run(tmp_path / "out", CALIBRATED)
    calibration = result["calibration"]
    temperature = calibration["temperature"]
    assert temperature > 1
    assert calibration["loss"] < calibration["loss_before"]
    # before it, the loss is that of the last round
    (last,) = result["validation"]["rounds"]
    assert calibration["loss_before"] == pytest.approx(last["metrics"]["loss"], rel=1e-6)
    assert calibration["examples"] == last["metrics"]["examples"]

    # the head alone is another
    before = adapter_of(tmp_path / "plain")
    after = adapter_of(tmp_path / "out")
    head = load_shared_model(tmp_path / "out").model.head_name
    for name, tensor in before.items():
        divided = tensor / temperature if name.startswith(f"{head}.") else tensor
        assert torch.equal(after[name], divided), name

    # tests are measured on the model that is shared: the same answers, less sure
    measured = result["final"]["global"]
    unsure = plain["final"]["global"]
    assert measured["accuracy"] == unsure["accuracy"]
    assert result["confusion"] == plain["confusion"]
    assert measured["loss"] != unsure["loss"]
    assert validation_loss(federation, tmp_path / "out") == pytest.approx(calibration["loss"])
    card = (tmp_path / "out" / "shared_model" / "MODEL_CARD.md").read_text()
    assert f"Outputs are divided by a temperature of {temperature:.2f}" in card


def test_it_is_that_of_the_round_that_is_kept(tiny, tmp_path):
    """The last round's temperature on another round's model; or one that a resume divides by
    again.
    """
    federation = tiny(3)
    sets = (*CALIBRATED, "train.keep=best", "train.patience=3")
    whole, _ = federation.run(tmp_path / "whole", sets)
    best = whole["validation"]["best"]
    short, _ = federation.run(tmp_path / "short", (*CALIBRATED, f"train.rounds={best}"))
    assert whole["calibration"] == short["calibration"]
    for name, tensor in adapter_of(tmp_path / "short").items():
        assert torch.equal(adapter_of(tmp_path / "whole")[name], tensor)

    with pytest.raises(KeyboardInterrupt):
        federation.run(tmp_path / "out", sets, stop_before=best + 1)
    assert "calibration" not in json.loads((tmp_path / "out" / "result.json").read_text())
    for _ in range(2):
        again, _ = federation.run(tmp_path / "out", sets, resume=True)
        assert again["calibration"] == whole["calibration"]
        for name, tensor in adapter_of(tmp_path / "out").items():
            assert torch.equal(adapter_of(tmp_path / "whole")[name], tensor)


def test_a_head_in_closed_form_has_one_too(tiny, tmp_path):
    """A head over all depths, of another name than the network's own."""
    sets = ("adapter={method: head}", "train={method: closed-form, calibrate: temperature}")
    share = "evaluate.validation_fraction=0.3"
    result, _ = tiny(3).run(tmp_path / "out", (*sets, share))
    assert result["status"] == "completed"
    assert result["calibration"]["temperature"] in TEMPERATURES


def test_bad_sums_and_silent_nodes_have_no_say(tiny, tmp_path):
    """One node's lies about its losses in everybody's temperature, or an end of the run by them."""
    bad = {
        3: MetricRecord({"examples": 5, "losses": [-1.0] * len(TEMPERATURES)}),
        4: MetricRecord({"examples": 5, "losses": [1.0]}),
    }

    def handle(message: Message, context: Any) -> Message:
        reply = client_app(message, context)
        node = message.metadata.dst_node_id
        if message.metadata.message_type != "evaluate.temperature" or node not in bad:
            return reply
        return Message(RecordDict({"temperature": bad[node]}), reply_to=message)

    result, _ = tiny(3).run(tmp_path / "out", CALIBRATED, handle=handle)
    assert result["status"] == "completed"
    told = {row["node"] for row in result["refused"] if row["reason"].startswith("temperature:")}
    assert told == {"h1", "h2"}
    (line,) = [
        line
        for line in map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
        if "validation" in line and line["node"] == "h0"
    ]
    assert result["calibration"]["examples"] == line["validation"]["examples"]


def test_nothing_to_choose_by_is_told(tiny, tmp_path):
    """A temperature of 1 under the name of a chosen one. What was trained is kept."""
    sets = (*CALIBRATED, "evaluate.validation_fraction=0")
    with pytest.raises(RunFailed, match="no node measured validation records"):
        tiny(3).run(tmp_path / "out", sets)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rounds_done"] == 6
    adapter_of(tmp_path / "out")

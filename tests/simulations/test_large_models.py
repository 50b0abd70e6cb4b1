"""A backbone in a few bits from the plan to the prediction: what nodes get, train beside, share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fedgraft
from fedgraft.client import handlers
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node.precision_findings import check_quantization
from fedgraft.common.backbones import quantization
from fedgraft.common.errors import RunFailed, UserError, UserErrors
from fedgraft.common.model.shared_model import load_shared_model
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.try_plan import try_plan
from tests.huggingface_folders import write_folder
from tests.simulations.test_texts import PLAN as TEXTS
from tests.simulations.test_texts import write_site

pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")
PLAN: dict[str, Any] = {
    "name": "bits",
    "task": TEXTS["task"],
    "backbone": {"name": "huggingface", "weights": "./model", "max_length": 16},
    "adapter": {"method": "lora", "rank": 2},
    "train": {"rounds": 2, "gradient_checkpointing": True, "optimizer": {"lr": 5e-3}},
    "simulation": {"data": ["a.csv", "b.csv"], "partition": {"kind": "files"}},
}
SAMPLE = {"privacy.mode": "sample", "privacy.target_epsilon": 8.0, "privacy.delta": 1e-3}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(("a", "b")):
        write_site(tmp_path / f"{name}.csv", number)
    write_folder(tmp_path / "model", "gpt2")
    (tmp_path / "plan.yaml").write_text(json.dumps(PLAN))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(out: str, **changes: object) -> dict[str, Any]:
    options: dict[str, Any] = {"out": Path(out), "baselines": [], "progress": False}
    fedgraft.simulate("plan.yaml", set=changes, **options)
    return json.loads((Path(out) / "result.json").read_text())


@pytest.mark.parametrize("changes", [{}, SAMPLE], ids=["plain", "private"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_in_a_few_bits(kind: str, changes: dict[str, Any], here: Path) -> None:
    """Nodes that load the weights in float32; a shared model that predicts beside others than it
    was trained beside; a run that differs where memory is saved.
    """
    quantized = {"backbone.quantization": kind, **changes}
    result = run("run", **quantized)
    plain = run("plain", **changes)
    assert result["backbone"] != plain["backbone"]
    again = run("kept", **quantized, **{"train.gradient_checkpointing": False})
    assert again["final"] == result["final"]
    shared = load_shared_model(Path("run"))
    texts = ["no cough 3\n\nthree weeks and pain"]
    told = shared.predict(texts)
    assert torch.equal(told, load_shared_model(Path("kept")).predict(texts))
    torch.testing.assert_close(
        told, load_shared_model(Path("plain")).predict(texts), atol=0.2, rtol=0
    )


def test_a_hospital_reads_it_and_validate_counts_it(here: Path) -> None:
    (here / "node.yaml").write_text("name: hospital\ndata: {path: a.csv}\nstore: store\n")
    node = load_node(here / "node.yaml")
    plan = load_plan("plan.yaml", ["backbone.quantization=nf4"])
    words = in_words(node, propose(node, plan, base=here))
    assert "its weights quantized to nf4" in words
    found = {finding.what: finding for finding in try_plan(plan, find_plan("plan.yaml"))}
    assert "for a step of 32 records: weights" in found["memory"].detail
    assert not found["memory"].is_wrong


def test_what_is_trained_itself_cannot_be_rounded(here: Path) -> None:
    with pytest.raises(UserErrors, match="`full` trains the weights themselves"):
        load_plan("plan.yaml", ["backbone.quantization=int8", "adapter.method=full"])


def test_a_node_without_the_library_says_so_before_anything_is_handed_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Gigabytes that are sent to a machine which cannot use them."""
    plan = load_plan("plan.yaml", ["backbone.quantization=nf4"])
    (found,) = check_quantization(plan)
    assert not found.is_wrong
    missing = UserError("weights of 4 bits need it", remedy=quantization.INSTALL)

    def refuse(kind: str | None) -> None:
        raise missing

    # at the nodes alone
    monkeypatch.setattr(handlers, "check_installed", refuse)
    with caplog.at_level("WARNING"), pytest.raises(RunFailed, match="its log says what"):
        run("run", **{"backbone.quantization": "nf4"})
    assert "weights of 4 bits need it" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    (found,) = check_quantization(plan)
    assert found.is_wrong
    assert found.remedy == quantization.INSTALL

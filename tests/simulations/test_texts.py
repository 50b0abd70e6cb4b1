"""A federation on texts, from three files to predictions: in one round, with adapters, private."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedgraft
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import NodeTask, open_splits, working_model
from fedgraft.client.round import run_round
from fedgraft.client.store.activation_cache import open_cache
from fedgraft.client.store.activations import Activations
from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model
from fedgraft.simulations.huggingface_export import export_model
from tests.awd_lstm_folders import write_encoder
from tests.huggingface_folders import (
    ARCHITECTURES,
    library_model,
    write_classifier,
    write_folder,
)
from tests.onnx_files import export_texts

pytest.importorskip("transformers")
SITES = ("north", "south", "west")
PLAN: dict[str, Any] = {
    "name": "notes",
    "task": {
        "kind": "text-classification",
        "classes": ["lungs", "skin"],
        "labels": ["lungs", "skin"],
        "text": ["title", "note"],
        "target": "kind",
    },
    "backbone": {"name": "huggingface", "weights": "./model", "max_length": 16},
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": [f"{name}.csv" for name in SITES],
        "partition": {"kind": "files"},
        "test_fraction": 0.3,
    },
}


def write_site(path: Path, seed: int, count: int = 40) -> None:
    """Write notes that speak of the lungs or of the skin; some have no text beside the title."""
    draw = random.Random(seed)
    words = {"lungs": ["cough", "three weeks", "pain"], "skin": ["rash", "a rash", "nothing"]}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "note", "kind", "patient"])
        for number in range(count):
            kind = ("lungs", "skin")[number % 2]
            note = " and ".join(draw.choices(words[kind], k=draw.randint(0, 5)))
            title = f"no {draw.choice(words[kind])} {draw.randint(0, 999)}"
            writer.writerow([title, note, kind, f"{path.stem}-{number // 2}"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the texts of three sites and a tiny BERT."""
    for number, name in enumerate(SITES):
        write_site(tmp_path / f"{name}.csv", number)
    write_folder(tmp_path / "model", "bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_round_over_all_depths(architecture: str, here: Path) -> None:
    """The shortest way from notes at three sites to a model of all of them."""
    write_folder(here / architecture, architecture)
    run = simulate("one", **{"backbone.weights": f"./{architecture}"})
    assert run.metrics.loc["shared model", "accuracy"] > 0.8
    predicted = run.shared_model.predict(["cough and pain", "a rash"])
    assert set(predicted["class"]) <= {"lungs", "skin"}


@pytest.mark.parametrize("changes", [{}, {"train": {"rounds": 1, "batch_size": 8}}])
def test_an_encoder_of_fastais(changes: dict[str, Any], here: Path) -> None:
    """Words in place of subwords, all the way to predictions of a file; private as any other."""
    write_encoder(here / "ulmfit")
    encoder = {"name": "fastai/awd-lstm", "weights": "./ulmfit", "max_length": 24}
    run = simulate("words", backbone=encoder, **changes)
    if not changes:
        assert run.metrics.loc["shared model", "accuracy"] > 0.8
    assert len(run.shared_model.predict("north.csv")) == 40
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    private = simulate("private", backbone=encoder, privacy=privacy, **changes)
    assert '"epsilon"' in private.result.model_dump_json()


@pytest.mark.parametrize("train", [{"method": "closed-form"}, {"rounds": 1, "batch_size": 8}])
def test_a_model_that_was_converted(train: dict[str, Any], here: Path) -> None:
    """A graph of tokens through every engine, plain and private, and opened again."""
    pytest.importorskip("onnxruntime")
    path = export_texts(library_model("bert"), here / "bert.onnx")
    tokenizer = here / "model" / "tokenizer.json"
    convert_model(ConvertRequest(path, tokenizer=tokenizer, max_length=16))
    backbone = {"name": "onnx-text", "weights": "bert.safetensors"}
    run = simulate("converted", backbone=backbone, train=train)
    assert len(run.shared_model.predict("north.csv")) == 40
    lora = {"method": "lora", "rank": 2}
    adapter = {"method": "head"} if "method" in train else lora
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    private = simulate("hidden", backbone=backbone, train=train, adapter=adapter, privacy=privacy)
    assert '"epsilon"' in private.result.model_dump_json()


@pytest.mark.parametrize("privacy", [{}, {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}])
def test_a_run_is_exported(privacy: dict[str, Any], here: Path) -> None:
    """From notes at three sites to a folder that others open: a head of the family's own."""
    import transformers

    write_classifier(here / "own", "roberta")
    backbone = {"name": "huggingface", "weights": "./own", "max_length": 16, "pool": "native"}
    train = {"method": "steps", "rounds": 2, "batch_size": 8, "optimizer": {"lr": 0.02}}
    run = simulate("native", backbone=backbone, train=train, privacy=privacy)
    export_model(here / "native", here / "out")
    classify: Any = transformers.pipeline("text-classification", str(here / "out"), top_k=None)
    texts = ["no cough\ncough and pain", "a rash"]
    predicted = run.shared_model.predict(texts)
    for row, found in zip(predicted["p_lungs"], classify(texts), strict=True):
        scores = {each["label"]: each["score"] for each in found}
        assert scores["lungs"] == pytest.approx(row, abs=1e-5)


def test_predictions_of_a_file_a_frame_and_a_list_are_the_same(here: Path) -> None:
    """A person predicts what lies in a table, a notebook what is in memory."""
    import pandas

    run = simulate("one")
    of_file = run.shared_model.predict("north.csv")
    frame = pandas.read_csv("north.csv", keep_default_na=False)
    texts = (frame["title"] + "\n" + frame["note"]).str.strip()
    of_frame = run.shared_model.predict(frame)
    of_list = run.shared_model.predict(texts.tolist())
    np.testing.assert_allclose(of_file["p_lungs"], of_frame["p_lungs"], rtol=1e-6)
    np.testing.assert_allclose(of_file["p_lungs"], of_list["p_lungs"], rtol=1e-6)
    (here / "picture.png").write_bytes(b"")
    with pytest.raises(UserError, match="column of texts"):
        run.shared_model.predict("picture.png")
    frame.drop(columns="note").to_csv("less.csv", index=False)
    with pytest.raises(UserError, match=r"no column 'note'"):
        run.shared_model.predict("less.csv")


@pytest.mark.parametrize("method", ["lora", "bottleneck", "bias"])
def test_adapters_train_by_steps(method: str, here: Path) -> None:
    """Masks and tokens through every engine: nodes together, and one after the other."""
    changes = {
        "adapter": {"method": method},
        "train": {"rounds": 2, "batch_size": 8, "optimizer": {"lr": 0.02}},
    }
    run = simulate(method, **changes)
    # a tiny network of random values; one class alone is a half
    assert run.metrics.loc["shared model", "accuracy"] > 0.6
    predicted = run.shared_model.predict(["cough and pain"])
    assert set(predicted["class"]) <= {"lungs", "skin"}


@pytest.mark.parametrize("train", [{"method": "closed-form"}, {"rounds": 1, "batch_size": 8}])
def test_privacy_by_example_can_be_had(train: dict[str, Any], here: Path) -> None:
    """Sums with noise and steps with noise, on tokens: no probe is a number of no token."""
    changes = {
        "train": train,
        "privacy": {"mode": "sample", "target_epsilon": 8, "delta": 1e-3},
    }
    run = simulate("private", **changes)
    spent = run.result.model_dump_json()
    assert '"epsilon"' in spent
    assert set(run.shared_model.predict(["cough"])["class"]) <= {"lungs", "skin"}


def a_task(here: Path, cache: str, *overrides: str) -> NodeTask:
    write_whole(here / "node.yaml", f"name: n\ndata: {{path: north.csv}}\nstore: store\n{cache}\n")
    node = load_node(here / "node.yaml")
    plan = load_plan(here / "plan.json", overrides)
    backbone = plan_backbone(plan, here)
    train, test = open_splits(node, plan, backbone.preprocess)
    model = working_model(backbone, plan)
    cache_of_node = open_cache(node)
    fingerprint = model.frozen_fingerprint()
    return NodeTask("n", plan, model, train, test, fingerprint, cache=cache_of_node)


@pytest.mark.parametrize("method", ["lora", "head", "bottleneck"])
def test_kept_activations_give_the_same_bits(method: str, here: Path) -> None:
    """A mask that is not kept with the states, or states that depend on their place in a batch."""
    import json

    plan = {**PLAN, "adapter": {"method": method}, "train": {"rounds": 1, "batch_size": 8}}
    (here / "plan.json").write_text(json.dumps(plan))
    targets = () if method == "head" else ("adapter.targets=last-block",)
    states: list[dict[str, torch.Tensor]] = []
    for cache in ("cache: {enabled: true}", "cache: {enabled: true}", "cache: {enabled: false}"):
        task = a_task(here, cache, *targets)
        _, examples = task.for_training()
        assert isinstance(examples, Activations)
        states.append(run_round(task, task.model.adapter_state(), 1).state)
    whole = a_task(here, "cache: {enabled: false}", *targets)
    batch = whole.train.inputs(torch.arange(8))
    tail, examples = whole.for_training()
    with torch.no_grad():
        torch.testing.assert_close(
            tail(examples.inputs(torch.arange(8))), whole.model(batch), atol=1e-6, rtol=1e-6
        )
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)

"""A shared model as the library's own classifier: opened by plain transformers, with the same
outputs; and what cannot be written so.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import is_token
from fedgraft.common.model.assembly import plan_backbone, plan_model
from fedgraft.common.model.shared_model import Beside, SharedModel, load_shared_model
from fedgraft.common.model.shared_model import save_shared_model as save
from fedgraft.common.plan.plan import Plan
from fedgraft.simulations.huggingface_export import export_model, shift_for
from tests.huggingface_folders import (
    CLASSIFIERS,
    IMAGE_CLASSIFIERS,
    example_texts,
    write_classifier,
    write_folder,
    write_image_classifier,
)
from tests.tokenizers_for_tests import small_tokenizer

pytest.importorskip("transformers")
CLASSES = ["lungs", "skin", "none"]
# as GPT-2's own tokenizer has one
PADDING = {
    "id": 0,
    "content": "[PAD]",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
TEXTS: dict[str, Any] = {
    "name": "notes",
    "task": {
        "kind": "text-classification",
        "classes": CLASSES,
        "labels": CLASSES,
        "text": "note",
        "target": "kind",
    },
    "backbone": {"name": "huggingface", "max_length": 16, "pool": "native"},
    "adapter": {"method": "lora", "rank": 2},
    "train": {"rounds": 2},
    "simulation": {"data": "notes.csv", "nodes": 2},
}
IMAGES: dict[str, Any] = {
    "name": "views",
    "task": {"kind": "image-classification", "classes": CLASSES, "labels": [0, 1, 2]},
    "backbone": {"name": "huggingface-image", "pool": "native"},
    "adapter": {"method": "lora", "rank": 2},
    "train": {"rounds": 2},
    "simulation": {"data": "views.npz", "nodes": 2},
}
CLOSED: dict[str, Any] = {"method": "closed-form", "rounds": 1}
LAST: dict[str, Any] = {**CLOSED, "closed_form": {"features": "last"}}
PRIVATE: dict[str, Any] = {"mode": "sample", "target_epsilon": 3.0}


def plan_of(base: dict[str, Any], weights: Path, changes: dict[str, Any]) -> Plan:
    written = {**base, "backbone": {**base["backbone"], "weights": str(weights)}}
    for section, values in changes.items():
        written[section] = {**written.get(section, {}), **values}
    return Plan.model_validate(written)


def make_run(folder: Path, plan: Plan) -> Path:
    """Write the shared model of a run whose adapters and head have learnt something."""
    backbone = plan_backbone(plan, folder.parent)
    model = plan_model(backbone, plan)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.1)
    save(folder / "shared_model", model, backbone, plan, "a card", Beside(plan.train.rounds))
    return folder


def text_run(tmp_path: Path, architecture: str, **changes: Any) -> Path:
    weights = write_classifier(tmp_path / "model", architecture)
    if architecture == "gpt2":
        (weights / "tokenizer.json").write_bytes(small_tokenizer(added_tokens=[PADDING]))
    return make_run(tmp_path / "run", plan_of(TEXTS, weights, changes))


def image_run(tmp_path: Path, architecture: str, **changes: Any) -> Path:
    weights = write_image_classifier(tmp_path / "model", architecture)
    return make_run(tmp_path / "run", plan_of(IMAGES, weights, changes))


def text_outputs(shared: SharedModel, folder: Path) -> tuple[Any, Any]:
    """Return what the shared model and the library make of the same texts, each its own way."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = example_texts()
    asked = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    own = shared.preprocess(texts).only
    for numbers, row, mask in zip(own, asked["input_ids"], asked["attention_mask"], strict=True):
        assert numbers[is_token(numbers) > 0].tolist() == row[mask > 0].tolist()
    with torch.no_grad():
        return shared.model(own), theirs(**asked).logits


@pytest.mark.parametrize("method", ["lora", "bias", "scale-shift", "head", "full"])
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_plain_transformers_opens_it(architecture: str, method: str, tmp_path: Path) -> None:
    """Weights the other way round, a head of random values, other tokens for the same text."""
    import transformers

    run = text_run(tmp_path, architecture, adapter={"method": method})
    made = export_model(run, tmp_path / "out")
    assert made["model"] == CLASSIFIERS[architecture]
    ours, theirs = text_outputs(load_shared_model(run), tmp_path / "out")
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(CLASSES))
    files = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert files == {".safetensors", ".json", ".md"}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("vit", {}),
        ("vit", {"backbone": {"pool": None}}),
        ("vit", {"backbone": {"image_size": 24}}),
        ("dinov2", {}),
        ("dinov2", {"backbone": {"pool": None}}),
        ("dinov2", {"adapter": {"method": "head"}}),
    ],
)
def test_images_too(architecture: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Another size than it was trained with, too: positions are written as they are for it."""
    import transformers

    run = image_run(tmp_path, architecture, **changes)
    made = export_model(run, tmp_path / "out")
    assert made["model"] == IMAGE_CLASSIFIERS[architecture]
    shared = load_shared_model(run)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    own = shared.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None]).only
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    asked = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    # of noise; some pixels differ by a few of 256 steps, as they are rounded between two passes
    torch.testing.assert_close(asked, own, atol=0.1, rtol=0)
    with torch.no_grad():
        ours = shared.model(own)
        assert ours.std() > 0.05
        torch.testing.assert_close(theirs(own).logits, ours, atol=1e-5, rtol=1e-5)


def test_it_can_be_trained_on_by_us(tmp_path: Path) -> None:
    """What is exported is a folder as any other: another federation begins with it."""
    export_model(text_run(tmp_path, "roberta"), tmp_path / "out")
    backbone = load_backbone("huggingface", weights=tmp_path / "out", pool="native", max_length=16)
    shared = load_shared_model(tmp_path / "run")
    tokens = backbone.preprocess(example_texts())
    with torch.no_grad():
        ours = backbone.net(tokens.only)
        torch.testing.assert_close(ours, shared.model.features(tokens), atol=1e-5, rtol=1e-5)


def test_a_solved_head_over_the_last_features_is_written(tmp_path: Path) -> None:
    """One round is the quickest way to a model that others open."""
    run = text_run(tmp_path, "bert", train=LAST, adapter={"method": "head"})
    export_model(run, tmp_path / "out")
    ours, theirs = text_outputs(load_shared_model(run), tmp_path / "out")
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"pool": None}}, r"by mean[\s\S]*backbone\.pool: native"),
        ({"backbone": {"pool": "first"}}, "by first"),
        ({"adapter": {"method": "bottleneck"}}, "do not merge"),
        ({"train": CLOSED, "adapter": {"method": "head"}}, r"4 depths[\s\S]*features: last"),
        ({"train": LAST, "adapter": {"method": "head"}, "privacy": PRIVATE}, "of norm 1"),
    ],
)
def test_what_the_library_does_not_compute_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """A folder that opens and gives other answers."""
    run = text_run(tmp_path, "bert", **changes)
    with pytest.raises(UserError, match=words):
        export_model(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"channels": 4}}, "its images have 4 channels"),
        (
            {
                "task": {"kind": "volume-classification"},
                "backbone": {"pool": None, "volume": {"size": [8, 16, 16], "slices": 2}},
            },
            "slices of volumes",
        ),
    ],
)
def test_what_the_library_prepares_otherwise_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """A traceback about shapes, for a network that was brought to other images than in colour."""
    run = image_run(tmp_path, "vit", **changes)
    with pytest.raises(UserError, match=words):
        export_model(run, tmp_path / "out")


def test_what_has_no_classifier_is_refused(tmp_path: Path) -> None:
    """T5's reads a decoder's states, and a ResNet is not in the library's hands."""
    plan = plan_of(TEXTS, write_folder(tmp_path / "model", "t5"), {"backbone": {"pool": None}})
    with pytest.raises(UserError, match="it is a t5"):
        export_model(make_run(tmp_path / "run", plan), tmp_path / "out")
    backbone = load_backbone("cifar-resnet8", image_size=16)
    other = Plan.model_validate({**IMAGES, "backbone": {"name": "cifar-resnet8"}})
    save(
        tmp_path / "other" / "shared_model",
        plan_model(backbone, other),
        backbone,
        other,
        "a card",
        Beside(other.train.rounds),
    )
    with pytest.raises(UserError, match="its backbone is cifar-resnet8"):
        export_model(tmp_path / "other", tmp_path / "out")


def test_biases_that_gpt2_cannot_have_are_refused() -> None:
    """Its own classifier has none: they go into the last normalisation, where that is the same."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 12, generator=generator)
    bias = torch.randn(3, generator=generator)
    torch.testing.assert_close(weight @ shift_for(weight, bias), bias, atol=1e-5, rtol=1e-5)
    # as a head of two classes that began with zeros: one is the other's opposite
    opposite = torch.stack([weight[0], -weight[0]])
    lifted = opposite @ shift_for(opposite, torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(lifted, torch.tensor([0.5, -0.5]), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="in no direction"):
        shift_for(opposite, torch.tensor([0.5, 0.5]))


def test_a_gpt2_without_a_token_for_padding_is_refused(tmp_path: Path) -> None:
    """It would read a text that ends in `!` up to the word before."""
    run = text_run(tmp_path, "gpt2")
    folder = write_classifier(tmp_path / "plain", "gpt2")
    plan = plan_of(TEXTS, folder, {})
    export_model(run, tmp_path / "out")
    with pytest.raises(UserError, match="could stand for padding"):
        export_model(make_run(tmp_path / "other", plan), tmp_path / "none")


def test_the_command(tmp_path: Path, programs: Path) -> None:
    """What people type; a folder that is there is not written over."""
    run = text_run(tmp_path, "distilbert")

    def export(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [programs / "fedgraft", "export", run, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = export("--format", "huggingface", "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["auto"] == "AutoModelForSequenceClassification"
    again = export("--out", str(tmp_path / "out"))
    assert again.returncode == 2
    assert "is there already" in again.stderr
    other = export("--out", str(tmp_path / "other"), "--format", "onnx")
    assert other.returncode == 2
    assert "write huggingface" in other.stderr

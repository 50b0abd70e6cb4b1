"""A federation that begins with texts: from a pair's folder to a shared model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fedgraft
from fedgraft.client.handlers import answer_round
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.client.node.node_file import load_node
from fedgraft.common.backbones import FAMILIES
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.plan.train_section import TrainSection
from tests.huggingface_folders import pair_model, write_image_folder, write_pair_folder
from tests.tokenizers_for_tests import small_tokenizer

pytest.importorskip("transformers")
CLASSES = ["cough", "rash", "pain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, and images that say nothing; never written."""
    base = tmp_path_factory.mktemp("zero-shot")
    write_pair_folder(base / "clip")
    write_image_folder(base / "half", "clip")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (90, 3, 20, 20)).astype(np.uint8)
    np.savez(base / "images.npz", images=images, labels=np.arange(90) % 3)
    return base


def plan_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a zero-shot plan with some of its sections changed."""
    plan: dict[str, Any] = {
        "name": "zero-shot",
        "task": {"kind": "image-classification", "classes": CLASSES},
        "backbone": {
            "name": "huggingface-image",
            "weights": str(folder / "clip"),
            "pool": "joint",
        },
        "adapter": {"method": "head"},
        "train": {"method": "zero-shot"},
        "seed": 7,
        "simulation": {"data": str(folder / "images.npz"), "nodes": 3, "test_fraction": 0.5},
    }
    return plan | changes


def run(plan: dict[str, Any], out: Path, baselines: tuple[str, ...] = ()) -> fedgraft.Run:
    done = fedgraft.simulate(plan, out=out, baselines=list(baselines), progress=False)
    assert isinstance(done, fedgraft.Run)
    return done


@torch.no_grad()
def library_answers(images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Return the shares that the library's own pair gives (n, classes)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(small_tokenizer().decode())
    tokenizer.enable_padding()
    cut = tokenizer.encode_batch(texts)
    output = pair_model()(
        input_ids=torch.tensor([row.ids for row in cut]),
        attention_mask=torch.tensor([row.attention_mask for row in cut]),
        pixel_values=images,
    )
    return output.logits_per_image.softmax(1)


def test_the_shared_model_answers_as_the_pair_does(folder: Path, tmp_path: Path) -> None:
    """A head that is put together otherwise is no zero shot of this pair's."""
    done = run(plan_of(folder), tmp_path / "run")
    with np.load(folder / "images.npz") as archive:
        images = archive["images"]
    table = done.shared_model.predict(images[:12])
    ours = table[[f"p_{name}" for name in CLASSES]].to_numpy()

    prepare = load_backbone("huggingface-image", weights=folder / "clip", pool="joint").preprocess
    prepared = prepare(torch.from_numpy(images[:12])).only
    texts = [f"a photo of a {name}." for name in CLASSES]
    theirs = library_answers(prepared, texts).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_nothing_but_metrics_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """A message of training that is sent after all would be an update that nobody approved."""
    done = run(plan_of(folder), tmp_path / "run", baselines=("one-round", "alone"))
    result = done.result
    assert result.status == "completed"
    assert result.rounds_done == 1
    assert result.bytes.rounds == ()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {tuple(sorted(json.loads(line))) for line in lines} == {("final", "node", "round")}
    assert set(result.baselines) == {"one-round", "alone"}
    # without steps a node has nothing of its own
    alone = result.baselines["alone"]["accuracy"]
    assert alone == pytest.approx(result.final.global_["accuracy"])
    card = (tmp_path / "run" / "shared_model" / "MODEL_CARD.md").read_text()
    assert "Training: none; the head is what" in card
    assert "such as “a photo of a " in card
    assert "trained values" not in card
    assert "What left them: nothing of any training" in card
    # the plan's own words, where it left them out
    assert "a photo of a {}." in (tmp_path / "run" / "plan.yaml").read_text()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no update and no sum of features left a site" in page


def test_what_is_chosen_by_validation_is_chosen_of_texts_too(folder: Path, tmp_path: Path) -> None:
    """A temperature that is asked for in no round, or divides another head than the one shared."""
    train = {"method": "zero-shot", "calibrate": "temperature"}
    changed = plan_of(folder, train=train, evaluate={"validation_fraction": 0.3})
    done = run(changed, tmp_path / "run")
    plain = run(plan_of(folder), tmp_path / "plain")
    assert done.result.calibration is not None
    assert done.result.final.global_["loss"] <= plain.result.final.global_["loss"] + 0.05


def test_a_round_for_sums_alone_begins_with_no_texts(folder: Path, tmp_path: Path) -> None:
    """Texts that a plan names, and that no model of the run ever has."""
    train = {"start": "prompts", "finish": "closed-form", "rounds": 1}
    with pytest.raises(UserError, match="no steps begin with the texts"):
        run(plan_of(folder, train=train), tmp_path / "run")


def test_steps_begin_with_the_texts(folder: Path, tmp_path: Path) -> None:
    """A start that is drawn after all would throw away what the texts know."""
    prompts = {name: [name, f"a {name} for three weeks"] for name in CLASSES}
    task = {"kind": "image-classification", "classes": CLASSES, "prompts": prompts}
    still = {"start": "prompts", "rounds": 1, "optimizer": {"name": "sgd", "lr": 1e-12}}
    begun = run(plan_of(folder, task=task, train=still), tmp_path / "steps")
    fixed = run(plan_of(folder, task=task), tmp_path / "zero-shot")
    with np.load(folder / "images.npz") as archive:
        images = archive["images"][:5]
    ours = begun.shared_model.predict(images).select_dtypes("number")
    theirs = fixed.shared_model.predict(images).select_dtypes("number")
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert sum(part.up for part in begun.result.bytes.rounds) > 0


def test_every_adapter_may_begin_with_the_texts(folder: Path, tmp_path: Path) -> None:
    """A projection that is passed over, or a private gradient that is another's, ends half-way."""
    train = {"start": "prompts", "rounds": 2}
    for method in ("lora", "bottleneck", "scale-shift", "bias", "full"):
        changed = plan_of(folder, adapter={"method": method}, train=train)
        assert run(changed, tmp_path / method).result.status == "completed"
    private = {"mode": "sample", "target_epsilon": 20}
    changed = plan_of(folder, adapter={"method": "lora"}, train=train, privacy=private)
    assert run(changed, tmp_path / "private").result.status == "completed"
    finish = train | {"finish": "closed-form"}
    assert run(plan_of(folder, train=finish), tmp_path / "finish").result.status == "completed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": {"method": "lora"}}, "lora, and zero-shot trains nothing"),
        ({"privacy": {"mode": "sample", "target_epsilon": 3}}, "there is no ε to spend"),
        ({"train": {"method": "zero-shot", "rounds": 2}}, "2, and zero-shot trains nothing"),
        (
            {"train": {"method": "zero-shot", "start": "prompts"}},
            "the head is that of task.prompts",
        ),
        ({"train": {"method": "zero-shot", "finish": "closed-form"}}, "zero-shot trains nothing"),
        ({"train": {"method": "zero-shot", "keep": "best"}}, "no rounds to choose from"),
        ({"train": {"method": "zero-shot", "local_steps": 3}}, "a zero-shot plan takes no steps"),
        (
            {"backbone": {"name": "huggingface-image", "weights": "./clip"}},
            "missing, and texts are compared in the space of the pair",
        ),
        ({"backbone": {"name": "cifar-resnet8"}}, "cifar-resnet8 is no pair of encoders"),
        (
            {"task": {"kind": "image-ordinal", "classes": CLASSES}},
            "texts say what classes are: image-ordinal asks for something else",
        ),
        (
            {"task": {"kind": "image-classification", "classes": CLASSES, "prompts": "a lung"}},
            "the same for every class",
        ),
        (
            {
                "task": {
                    "kind": "image-classification",
                    "classes": CLASSES,
                    "prompts": {"cough": "a", "rash": "b"},
                }
            },
            "no text for 'pain'",
        ),
        (
            {
                "task": {
                    "kind": "image-classification",
                    "classes": CLASSES,
                    "prompts": {name: ["a", "b"] for name in CLASSES},
                }
            },
            "have the same texts",
        ),
        (
            {
                "task": {
                    "kind": "tabular-classification",
                    "classes": CLASSES,
                    "columns": ["a"],
                },
                "backbone": {"name": "mlp"},
            },
            "texts are compared with images: tabular-classification has none",
        ),
    ],
)
def test_what_texts_cannot_begin_is_refused_in_words(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """A plan that goes on with a drawn head, and nobody is told."""
    with pytest.raises(UserError, match=words):
        run(plan_of(folder, **changes), tmp_path / "run")


def test_prompts_that_nobody_reads_are_refused(folder: Path, tmp_path: Path) -> None:
    """Texts in a plan that starts with a drawn head do nothing, and look as if they did."""
    task = {"kind": "image-classification", "classes": CLASSES, "prompts": "a {}"}
    with pytest.raises(UserError, match="no head is made of texts"):
        run(plan_of(folder, task=task, train={"rounds": 1}), tmp_path / "run")


def test_a_node_trains_nothing_whatever_it_is_sent() -> None:
    """A server that sends a round of training under a plan that a hospital approved as none."""
    opened: Any = SimpleNamespace(
        plan=SimpleNamespace(train=TrainSection(method="zero-shot", rounds=1)),
        round=1,
        node=SimpleNamespace(policy=None),
    )
    message: Any = None
    with pytest.raises(Refused, match="trains nothing") as raised:
        answer_round(opened, message)
    assert raised.value.code == Code.MISMATCH


def test_attacks_on_what_was_not_trained_are_refused(folder: Path, tmp_path: Path) -> None:
    """A study that reports an attack on updates that never were."""
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(folder)))
    study = {
        "name": "leaks",
        "question": "What leaks?",
        "plan": "plan.yaml",
        "seeds": [1],
        "attacks": ["loss-threshold"],
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    with pytest.raises(UserError, match="no record entered a model that was made of texts"):
        fedgraft.study(tmp_path / "study.yaml", out=tmp_path / "out", progress=False)


def test_the_approval_names_the_texts_and_no_update(folder: Path, tmp_path: Path) -> None:
    """A hospital that is asked to approve updates that nobody wants, or texts it cannot see."""
    file = tmp_path / "node.yaml"
    file.write_text("name: hospital\ndata: {path: data.npz}\nstore: store\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(plan_of(folder)))
    node = load_node(file)
    words = in_words(node, propose(node, load_plan(plan), base=tmp_path))
    assert "which is not changed; nothing is trained" in words
    assert "rash: “a photo of a rash.”" in words
    assert "no training: this hospital's test data are read once, to measure" in words
    assert "after each round" not in words


@pytest.mark.parametrize("name", list(FAMILIES.names))
def test_a_line_says_whether_its_family_has_pairs(name: str) -> None:
    """A plan that is let in for a family that cannot weigh texts, or refused for one that can."""
    line = FAMILIES.lines[name]
    assert line.has_pairs == (FAMILIES[name].weigh_texts is not None)


def test_half_a_pair_is_told_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    """A run's folder that is left behind for a folder that never was a pair."""
    backbone = plan_of(folder)["backbone"] | {"weights": str(folder / "half")}
    with pytest.raises(UserError, match="visual_projection"):
        run(plan_of(folder, backbone=backbone), tmp_path / "run")
    assert not (tmp_path / "run").exists()

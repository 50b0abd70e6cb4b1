"""What a family's own classifier reads: `backbone.pool: native`, beside the library's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone, save_backbone
from fedgraft.common.backbones.huggingface_text import TextNetwork
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import is_token
from fedgraft.common.inputs.tokenizer_file import tensor_of
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.tasks.classification import cross_entropies
from tests.huggingface_folders import (
    CLASSIFIERS,
    IMAGE_CLASSIFIERS,
    example_texts,
    library_classifier,
    write_classifier,
    write_folder,
    write_image_classifier,
    write_image_folder,
)

pytest.importorskip("transformers")
TEXTS = tuple(CLASSIFIERS)
IMAGES = tuple(IMAGE_CLASSIFIERS)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Every classifier of texts; never written."""
    base = tmp_path_factory.mktemp("models")
    return {name: load(write_classifier(base / name, name)) for name in TEXTS}


def load(folder: Path, **options: Any) -> Backbone:
    return load_backbone(
        "huggingface", weights=folder, **{"max_length": 16, "pool": "native"} | options
    )


def lively(backbone: Backbone, method: str, **options: Any) -> GraftedModel:
    """A model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.05)
    return model


def last_linear_of(classifier: Any, architecture: str) -> nn.Linear:
    """Return the library's own last Linear."""
    head = classifier.score if architecture == "gpt2" else classifier.classifier
    return head.out_proj if architecture == "roberta" else head


def own_features(classifier: Any, architecture: str, **inputs: Tensor) -> Tensor:
    """Return what enters the last Linear of the library's own classifier."""
    read: list[Tensor] = []
    head = last_linear_of(classifier, architecture)
    handle = head.register_forward_pre_hook(lambda module, entering: read.append(entering[0]))
    classifier(**inputs)
    handle.remove()
    return read[0]


@pytest.mark.parametrize("architecture", TEXTS)
def test_features_are_what_the_librarys_classifier_reads(
    architecture: str, backbones: dict[str, Backbone]
) -> None:
    """A head that is trained on something else than the family's own head reads."""
    backbone = backbones[architecture]
    tokens = backbone.preprocess(example_texts()).only
    here = is_token(tokens)
    ids = torch.where(here > 0, tokens, 1 if architecture == "roberta" else 0)
    classifier = library_classifier(architecture)
    with torch.no_grad():
        theirs = own_features(classifier, architecture, input_ids=ids, attention_mask=here)
        if architecture == "gpt2":
            # it scores every token, and takes the last one's
            theirs = theirs[torch.arange(len(theirs)), here.sum(1).long() - 1]
        ours = backbone.net(tokens)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", IMAGES)
def test_of_images_too(architecture: str, tmp_path: Path) -> None:
    """DINOv2's own classifier reads the first token beside the mean of the patches."""
    folder = write_image_classifier(tmp_path / "model", architecture)
    backbone = load_backbone("huggingface-image", weights=folder, pool="native")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    classifier = library_classifier(architecture, images=True)
    with torch.no_grad():
        theirs = own_features(classifier, architecture, pixel_values=images)
        ours = backbone.net(images)
    assert backbone.features == ours.shape[1] == (24 if architecture == "dinov2" else 12)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    model = lively(backbone, "lora", targets="last-block")
    check_gradients(model, "hooks", images, cross_entropies)
    prefix = frozen_prefix(model)
    assert prefix is not None
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(images)), model(images))


@pytest.mark.parametrize("architecture", TEXTS)
def test_it_travels_without_its_folder(
    architecture: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """A node builds the network from tensors; from a file it is the same, and stays native."""
    backbone = backbones[architecture]
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    arrived = backbone_from_state("huggingface", state, backbone.preprocess)
    tokens = backbone.preprocess(example_texts()).only
    with torch.no_grad():
        assert torch.equal(arrived.net(tokens), backbone.net(tokens))
    save_backbone(backbone, tmp_path / "native.safetensors", {})
    again = load(tmp_path / "native.safetensors")
    assert again.fingerprint == arrived.fingerprint == backbone.fingerprint
    with pytest.raises(UserError, match=r"leave backbone\.pool out"):
        load(tmp_path / "native.safetensors", pool="mean")


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("architecture", TEXTS)
def test_every_adapter_works(
    architecture: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """Nothing at first; merged with the same outputs; what is kept is the network itself."""
    backbone = backbones[architecture]
    tokens = backbone.preprocess(example_texts()).only
    with torch.no_grad():
        fresh = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
        head = fresh.net.get_submodule(fresh.head_name)
        torch.testing.assert_close(fresh(tokens), head(backbone.net(tokens)), atol=1e-6, rtol=1e-6)
        model = lively(backbone, method)
        prefix = frozen_prefix(model)
        if method == "head":
            assert prefix is not None
            assert prefix.name == "classifier"
        if prefix is not None:
            assert torch.equal(prefix.tail(prefix(tokens)), model(tokens))
        exact = model.double()
        torch.testing.assert_close(exact.merge()(tokens), exact(tokens), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("method", ["head", "lora", "bottleneck", "scale-shift", "bias"])
@pytest.mark.parametrize("architecture", TEXTS)
def test_gradients_of_single_texts_are_those_of_a_loop(
    architecture: str, method: str, mode: str, backbones: dict[str, Backbone]
) -> None:
    """The first Linear of the family's own head is trained, too: a norm without it is too small."""
    model = lively(backbones[architecture], method)
    tokens = backbones[architecture].preprocess(example_texts()[:2]).only
    check_gradients(model, mode, tokens, cross_entropies)


@pytest.mark.parametrize("architecture", TEXTS)
def test_the_last_of_all_depths_is_native(
    architecture: str, backbones: dict[str, Backbone]
) -> None:
    """One round reads it beside the means of all blocks."""
    backbone = backbones[architecture]
    tokens = backbone.preprocess(example_texts()).only
    choice = DepthChoice("all", "mean", tokens[:1])
    model = graft(backbone, method="head", classes=3, depths=choice)
    assert model.depths is not None
    with torch.no_grad():
        torch.testing.assert_close(model.depths(tokens)[:, -12:], backbone.net(tokens))


def test_the_plan_is_stricter_than_the_folder(tmp_path: Path) -> None:
    """mean, first and last of any text network, whatever its folder says."""
    folder = write_folder(tmp_path / "bert")
    texts = example_texts()
    for pool in ("mean", "first", "last"):
        backbone = load(folder, pool=pool)
        assert isinstance(backbone.net, TextNetwork)
        assert backbone.net.pooling == pool
        assert backbone.net(backbone.preprocess(texts).only).shape == (3, 12)
    assert load(folder, pool="mean").fingerprint == load(folder, pool=None).fingerprint


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("t5", r"of a t5 mean, first, last can be had[\s\S]*native can be had of bert, roberta"),
        ("clip", r"distilbert, gpt2, vit, dinov2"),
        (
            "roberta",
            r"classifier\.dense\.weight is missing[\s\S]*AutoModelForSequenceClassification",
        ),
        ("distilbert", r"pre_classifier\.weight is missing"),
    ],
)
def test_what_has_no_head_of_its_own_is_refused(
    architecture: str, words: str, tmp_path: Path
) -> None:
    """Random values in place of a trained layer are no head of the family's own."""
    with pytest.raises(UserError, match=words) as caught:
        load(write_folder(tmp_path / "model", architecture))
    assert caught.value.where == "backbone.pool"


def test_a_bert_without_its_pooler_is_refused(tmp_path: Path) -> None:
    """BertForMaskedLM has none."""
    folder = write_folder(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"pooler\.dense\.weight is missing"):
        load(folder)
    assert load(folder, pool=None).features == 12


def test_images_have_no_means(tmp_path: Path) -> None:
    """They would be passed over in silence."""
    folder = write_image_folder(tmp_path / "model")
    with pytest.raises(UserError, match="of a vit first, native can be had"):
        load_backbone("huggingface-image", weights=folder, pool="mean")


def test_a_server_cannot_send_a_pooling_that_is_not_there(tmp_path: Path) -> None:
    """A node builds what the tensors say: an error in the middle of a round."""
    backbone = load(write_folder(tmp_path / "model", "t5"), pool=None)
    state = dict(backbone_state(backbone))
    described = state["config"].numpy().tobytes().replace(b'"mean"', b'"native"')
    state["config"] = tensor_of(described)
    preparation = replace(backbone.preprocess)  # type: ignore[type-var]
    with pytest.raises(UserError, match="pooling"):
        backbone_from_state("huggingface", state, preparation)

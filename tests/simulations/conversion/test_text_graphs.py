"""ONNX models for texts become backbones that give what the original gives, mask and all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.common.backbones.backbone import Backbone, backbone_from_state, backbone_state
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.graph_network import GRAPH
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import is_token
from fedgraft.common.inputs.tokenizer_file import tensor_of
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import DepthChoice, GraftedModel, graft
from fedgraft.common.tasks.classification import cross_entropies
from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model
from fedgraft.simulations.conversion.text_input import fit_mask
from tests.huggingface_folders import example_texts, library_classifier, library_model
from tests.onnx_files import INPUTS, export_texts
from tests.tokenizers_for_tests import small_tokenizer

pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
LENGTH = 14


def convert(path: Path, **options: Any) -> Backbone:
    tokenizer = path.with_name("tokenizer.json")
    tokenizer.write_bytes(small_tokenizer())
    options = {"tokenizer": tokenizer, "max_length": LENGTH, **options}
    made = convert_model(ConvertRequest(path, **options))
    backbone = load_backbone("onnx-text", weights=made["path"])
    assert backbone.fingerprint == made["fingerprint"]
    return backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A converted BERT; never written."""
    folder = tmp_path_factory.mktemp("onnx")
    return convert(export_texts(library_model("bert"), folder / "bert.onnx"))


def lively(backbone: Backbone, method: str) -> GraftedModel:
    """A model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.1)
    return model


@pytest.mark.parametrize("names", [INPUTS, (*INPUTS, "token_type_ids")])
def test_states_become_the_mean_of_their_tokens(names: Sequence[str], tmp_path: Path) -> None:
    """A mask that is lost, in attention or in the mean: padding would be read as words."""
    net = library_model("bert")
    backbone = convert(export_texts(net, tmp_path / "bert.onnx", names))
    tokens = backbone.preprocess(example_texts()).only
    here = is_token(tokens)
    with torch.no_grad():
        ours = backbone.net(tokens)
        states = net(input_ids=tokens.clamp(min=0), attention_mask=here).last_hidden_state
        theirs = (states * here[..., None]).sum(1) / here.sum(1, keepdim=True)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_a_classifier_is_left_out(architecture: str, tmp_path: Path) -> None:
    """What enters the library's own last Linear are the features."""
    net = library_classifier(architecture)
    backbone = convert(export_texts(net, tmp_path / "model.onnx"))
    tokens = backbone.preprocess(example_texts()).only
    with torch.no_grad():
        ours = backbone.net(tokens)
        theirs = net(input_ids=tokens.clamp(min=0), attention_mask=is_token(tokens)).logits
        torch.testing.assert_close(net.classifier(ours), theirs, atol=1e-5, rtol=1e-5)


def test_it_travels_with_its_tokenizer(backbone: Backbone) -> None:
    """A node has nothing but tensors and the preparation's JSON."""
    state = {name: tensor.clone() for name, tensor in backbone_state(backbone).items()}
    arrived = backbone_from_state("onnx-text", state, backbone.preprocess)
    assert arrived.fingerprint == backbone.fingerprint
    tokens = arrived.preprocess(example_texts()).only
    with torch.no_grad():
        assert torch.equal(arrived.net(tokens), backbone.net(tokens))


@pytest.mark.parametrize("method", ["head", "lora", "bias", "scale-shift"])
def test_adapters_and_gradients_of_single_texts(method: str, backbone: Backbone) -> None:
    """Nothing at first; merged with the same outputs; a norm without a layer clips too little."""
    tokens = backbone.preprocess(example_texts()).only
    with torch.no_grad():
        fresh = graft(backbone, method=method, classes=3, rank=2, seed=1)
        head = fresh.net.get_submodule(fresh.head_name)
        torch.testing.assert_close(fresh(tokens), head(backbone.net(tokens)), atol=1e-6, rtol=1e-6)
        model = lively(backbone, method)
        exact = model.double()
        torch.testing.assert_close(exact.merge()(tokens), exact(tokens), atol=1e-9, rtol=1e-9)
    check_gradients(lively(backbone, method), "hooks", tokens[1:], cross_entropies)


def test_one_round_and_what_is_kept(backbone: Backbone) -> None:
    """The frozen part is computed once: its activations are those of the network."""
    tokens = backbone.preprocess(example_texts()).only
    model = lively(backbone, "head")
    prefix = frozen_prefix(model)
    assert prefix is not None
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(tokens)), model(tokens))
        choice = DepthChoice("all", "mean", tokens[:1])
        solved = graft(backbone, method="head", classes=3, depths=choice)
        assert solved.depths is not None
        features = solved.depths(tokens)[:, -backbone.features :]
        torch.testing.assert_close(features, backbone.net(tokens))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────
def test_a_mask_that_is_not_one_number_here_and_one_there_is_none() -> None:
    """What a mask is made into is measured: a count of tokens is no mask."""
    masks = [np.array([[1, 1, 0], [1, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]])]
    added = [np.where(mask[:, None, None] > 0, 0.0, -1e9) for mask in masks]
    found = fit_mask(added, masks)
    assert found is not None
    assert (found.axis, found.here, found.nowhere) == (3, 0.0, -1e9)
    # a square: the axis of those that are looked at
    square = [np.broadcast_to(array, (len(array), 1, 3, 3)) for array in added]
    assert fit_mask(square, masks) == found
    turned = fit_mask([array.swapaxes(2, 3) for array in square], masks)
    assert turned is not None
    assert turned.axis == 2
    counts = [np.cumsum(mask, 1).astype(np.float32) for mask in masks]
    assert fit_mask(counts, masks) is None
    assert fit_mask([mask.sum(1, keepdims=True) for mask in masks], masks) is None


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    """A model that is told positions, one of fixed size, and one of images."""
    net = library_model("bert")
    path = export_texts(net, tmp_path / "positions.onnx", (*INPUTS, "position_ids"))
    with pytest.raises(UserError, match=r"'position_ids'[\s\S]*export it with the inputs"):
        convert(path)
    any_number = {name: {0: "n"} for name in INPUTS}
    fixed = export_texts(net, tmp_path / "fixed.onnx", dynamic_axes=any_number)
    with pytest.raises(UserError, match=r"12 tokens; this model was exported for 14"):
        convert(fixed, max_length=12)
    assert convert(fixed).features == 12
    alone = export_texts(net, tmp_path / "alone.onnx", dynamic_axes={})
    with pytest.raises(UserError, match="for any number of texts"):
        convert(alone)
    with pytest.raises(UserError, match="leave out what is said of pixels"):
        convert(fixed, pixels="imagenet")
    with pytest.raises(UserError, match="no tokenizer is given"):
        convert_model(ConvertRequest(fixed, pixels="imagenet", max_length=14))


def test_roberta_is_refused_by_name(tmp_path: Path) -> None:
    """It counts its positions along the tokens."""
    with pytest.raises(UserError, match="'CumSum'"):
        convert(export_texts(library_model("roberta"), tmp_path / "roberta.onnx"))


def test_texts_of_a_batch_do_not_meet(tmp_path: Path) -> None:
    """A text that changes another's row would be in its gradient, and clipped with it."""

    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = library_model("bert")

        def forward(self, **inputs: torch.Tensor) -> Any:
            output = self.inner(**inputs)
            output.last_hidden_state = output.last_hidden_state - output.last_hidden_state.mean(0)
            return output

    with pytest.raises(UserError, match="records"):
        convert(export_texts(Mixing(), tmp_path / "mixing.onnx"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 15}, "14 tokens; this model was converted for 15"),
        ({"length": None, "side": 16}, "a model for images"),
        ({"side": 16}, "either images or texts"),
        ({"length": 100_000}, "length"),
    ],
)
def test_a_server_that_sends_another_graph_is_refused(
    change: dict[str, Any], words: str, backbone: Backbone
) -> None:
    """A node builds what the tensors say."""
    state = dict(backbone_state(backbone))
    described = json.loads(state[GRAPH].numpy().tobytes()) | change
    described = {key: value for key, value in described.items() if value is not None}
    state[GRAPH] = tensor_of(json.dumps(described).encode())
    with pytest.raises(UserError, match=words):
        backbone_from_state("onnx-text", state, backbone.preprocess)


def test_tokens_beyond_the_table_are_no_error(backbone: Backbone) -> None:
    """A server's tokenizer may know more tokens than its network: a round must not die of it."""
    tokens = torch.full((1, LENGTH), 10**6)
    with torch.no_grad():
        assert torch.isfinite(backbone.net(tokens)).all()


def test_each_family_names_the_other(backbone: Backbone, tmp_path: Path) -> None:
    """`onnx` is for images."""
    state = dict(backbone_state(backbone))
    del state["tokenizer"]
    images = load_backbone("cifar-resnet8", image_size=16).preprocess
    with pytest.raises(UserError, match="onnx-text"):
        backbone_from_state("onnx", state, images)
    with pytest.raises(UserError, match="tokenizer is missing"):
        backbone_from_state("onnx-text", state, backbone.preprocess)
    with pytest.raises(UserError, match="no file is named"):
        load_backbone("onnx-text")

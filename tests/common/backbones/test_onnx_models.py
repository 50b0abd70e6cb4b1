"""Converted networks: every adapter on them, in one round and under privacy, and graphs of a server
that is not to be trusted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedgraft.client.privacy.gradient_check import check_gradients
from fedgraft.client.privacy.one_pass import knows_layers
from fedgraft.common.adapters import METHODS
from fedgraft.common.backbones.backbone import (
    Backbone,
    backbone_from_state,
    backbone_state,
    randomise,
)
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.graph_network import GRAPH, GraphNetwork, GraphPart
from fedgraft.common.backbones.graph_shape import Graph, Part, read_graph
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.inputs.tokenizer_file import bytes_of, tensor_of
from fedgraft.common.model.frozen_prefix import frozen_prefix
from fedgraft.common.model.grafted_model import (
    DepthChoice,
    GraftedModel,
    graft,
    load_adapter,
    save_adapter,
)
from fedgraft.common.tasks.classification import cross_entropies
from tests.onnx_files import SIDE, SMALL, build, export

IMAGES = torch.randint(0, 256, (3, 3, 20, 18), generator=torch.Generator().manual_seed(0))
IMAGES = IMAGES.to(torch.uint8)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Every small network; never written."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model

    base = tmp_path_factory.mktemp("models")
    opened: dict[str, Backbone] = {}
    for name, make in SMALL.items():
        path = export(build(make), base / f"{name}.onnx")
        made = convert_model(ConvertRequest(path, pixels="imagenet"))
        opened[name] = load_backbone("onnx", weights=made["path"])
    return opened


def lively(backbone: Backbone, method: str, **options: Any) -> GraftedModel:
    """A model whose adapters have left their first values."""
    model = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.trainable_parameters().values():
        moved = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(moved, alpha=0.05)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_it_travels_as_tensors(name: str, backbones: dict[str, Backbone]) -> None:
    """A node has nothing but tensors and the preparation's JSON; another graph, or other pixels,
    are another fingerprint.
    """
    backbone = backbones[name]
    state = {key: tensor.clone() for key, tensor in backbone_state(backbone).items()}
    arrived = backbone_from_state("onnx", state, backbone.preprocess)
    assert arrived.fingerprint == backbone.fingerprint
    images = backbone.preprocess(IMAGES).only
    with torch.no_grad():
        assert torch.equal(arrived.net(images), backbone.net(images))
    state[GRAPH] = tensor_of(bytes_of(state[GRAPH]).replace(b'"relu"', b'"tanh"', 1))
    other = backbone_from_state("onnx", state, backbone.preprocess)
    assert (other.fingerprint == backbone.fingerprint) == (name == "transformer")


@pytest.mark.parametrize("method", METHODS.names)
@pytest.mark.parametrize("name", SMALL)
def test_every_adapter_works(
    name: str, method: str, backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    """Nothing at first, something then; merged, and loaded again, with the same outputs."""
    backbone = backbones[name]
    images = backbone.preprocess(IMAGES).only
    with torch.no_grad():
        fresh = graft(backbone, method=method, classes=3, rank=2, width=3, seed=1)
        head = fresh.net.get_submodule(fresh.head_name)
        plain = head(backbone.net(images))
        torch.testing.assert_close(fresh(images), plain, atol=1e-6, rtol=1e-5)
        model = lively(backbone, method)
        if method != "head":
            moved = model.net.get_submodule(model.head_name)(backbone.net(images))
            assert (model(images) - moved).abs().max() > 1e-4
        save_adapter(model, tmp_path)
        load_adapter(fresh, tmp_path)
        assert torch.equal(fresh(images), model(images))
        exact = model.double()
        merged = exact.merge()(images.double())
        torch.testing.assert_close(merged, exact(images.double()), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck", "scale-shift", "bias"])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_single_images_are_those_of_a_loop(
    name: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """A gradient that is missing in a norm is clipped too little; in the attention that torch
    exports, the records are second, or one axis with the tokens.
    """
    model = lively(backbones[name], method)
    check_gradients(model, "hooks", torch.randn(2, 3, SIDE, SIDE), cross_entropies)
    assert knows_layers(model)


@pytest.mark.parametrize("method", ["head", "lora", "bottleneck"])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_frozen_in_front_is_the_network_itself(
    name: str, method: str, backbones: dict[str, Backbone]
) -> None:
    """Activations that are kept would be another model's."""
    backbone = backbones[name]
    targets = "auto" if method == "head" else "last-block"
    model = lively(backbone, method, targets=targets)
    prefix = frozen_prefix(model)
    assert prefix is not None
    images = backbone.preprocess(IMAGES).only
    with torch.no_grad():
        assert torch.equal(prefix.tail(prefix(images)), model(images))


@pytest.mark.parametrize(("name", "stages"), [("residual", 4), ("plain", 4), ("transformer", 6)])
def test_features_of_all_depths(name: str, stages: int, backbones: dict[str, Backbone]) -> None:
    """One round needs the mean of each block's output, and what enters the classifier."""
    backbone = backbones[name]
    images = backbone.preprocess(IMAGES).only
    choice = DepthChoice("all", "mean", images[:1])
    model = graft(backbone, method="head", classes=3, depths=choice)
    assert model.depths is not None
    assert len(model.depths.stages) == stages
    with torch.no_grad():
        features = model.depths(images)
        torch.testing.assert_close(
            features[:, -backbone.features :], backbone.net(images), atol=1e-5, rtol=1e-5
        )
        alone = torch.cat([model.depths(images[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_random_one_keeps_its_graph(name: str, backbones: dict[str, Backbone]) -> None:
    """The baseline of values that were never learnt: layers are drawn anew, pixels are scaled."""
    backbone = backbones[name]
    other = randomise(backbone, seed=4)
    state, drawn = backbone_state(backbone), backbone_state(other)
    assert torch.equal(state[GRAPH], drawn[GRAPH])
    assert torch.equal(state["stem.constant0"], drawn["stem.constant0"])
    changed = [key for key in state if key.endswith("weight") and "norm" not in key]
    assert not any(torch.equal(state[key], drawn[key]) for key in changed)


# ── graphs of a server that is not to be trusted ──────────────────────────────────────────────────
def graph_of(*steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The smallest network, with steps of one's own in its neck; the first is a mean of places."""
    mean = {"op": "mean", "inputs": [0], "axes": [2, 3], "keep": False}
    neck = {"steps": [*steps, {**mean, "inputs": [len(steps)]}]}
    return {"side": 8, "stem": {"steps": []}, "groups": [], "neck": neck, "features": 3, **changes}


def open_graph(graph: dict[str, Any]) -> GraphNetwork:
    return GraphNetwork(read_graph(json.dumps(graph).encode(), "the server"))


def test_the_smallest_graph() -> None:
    """What the hostile ones below are made of is itself taken."""
    net = open_graph(graph_of({"op": "relu", "inputs": [0]}))
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 2)


CONV = {"op": "conv", "name": "conv1", "inputs": [0], "in_channels": 3, "out_channels": 3}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown step": (graph_of({"op": "exec", "inputs": [0]}), "does not match any"),
    "an attribute that is not known": (
        graph_of({"op": "relu", "inputs": [0], "code": "1"}),
        "Extra inputs",
    ),
    "an attribute of the wrong type": (
        graph_of({"op": "softmax", "inputs": [0], "axis": "1"}),
        "valid integer",
    ),
    "no number": (graph_of({"op": "clip", "inputs": [0], "low": 1e39}), "less than or equal"),
    "a name with dots": (
        graph_of({**CONV, "name": "__class__", "kernel": [1, 1]}),
        "should match pattern",
    ),
    "a step that takes itself": (graph_of({"op": "relu", "inputs": [1]}), "comes behind it"),
    "a constant that is not there": (
        graph_of({"op": "add", "inputs": [0, "constant7"]}),
        "not there",
    ),
    "a huge constant": (
        graph_of(stem={"steps": [], "constants": {"constant0": [65536, 65536]}}),
        "4,294,967,296 values",
    ),
    "two layers of one name": (
        graph_of({**CONV, "kernel": [1, 1]}, {**CONV, "kernel": [1, 1], "inputs": [1]}),
        "two layers",
    ),
    "a huge shape": (
        graph_of(
            {"op": "mean", "inputs": [0], "axes": [1], "keep": True},
            {"op": "expand", "inputs": [1], "shape": [-1, 65536, 8, 8]},
            {"op": "pad", "inputs": [2], "margins": [[0, 0], [0, 0], [999, 999], [999, 999]]},
        ),
        "1,000,000,000 values",
    ),
    "a shape that does not fit": (
        graph_of({"op": "reshape", "inputs": [0], "shape": [-1, 5, 5, 5]}),
        "invalid for input",
    ),
    "a giant layer without tensors": (
        graph_of({**CONV, "out_channels": 65536, "kernel": [1024, 1024]}),
        "a weight of",
    ),
    "places that are not there": (
        graph_of({"op": "take", "inputs": [0], "axis": 1, "indices": [0, 1, 3]}),
        "not there",
    ),
    "records turned to channels": (
        graph_of({"op": "transpose", "inputs": [0], "axes": [1, 0, 2, 3]}),
        "one row a record|classifier",
    ),
    "records in another order": (
        graph_of(
            {"op": "transpose", "inputs": [0], "axes": [1, 0, 2, 3]},
            {"op": "reshape", "inputs": [1], "shape": [-1, 3, 8, 8]},
        ),
        "mixes the records",
    ),
    "a mean over records": (
        graph_of(
            {"op": "mean", "inputs": [0], "axes": [0], "keep": True},
            {"op": "add", "inputs": [0, 1]},
        ),
        "across the records",
    ),
    "softmax over records": (
        graph_of({"op": "softmax", "inputs": [0], "axis": 0}),
        "across the records",
    ),
    "records times records": (
        graph_of(
            {"op": "reshape", "inputs": [0], "shape": [-1, 192]},
            {"op": "transpose", "inputs": [1], "axes": [1, 0]},
            {"op": "matmul", "inputs": [1, 2]},
        ),
        "records meet",
    ),
    "the first record alone": (
        graph_of({"op": "slice", "inputs": [0], "axis": 0, "start": 0, "end": 1}),
        "across the records",
    ),
    "margins for some of the axes": (
        graph_of(
            {"op": "transpose", "inputs": [0], "axes": [1, 0, 2, 3]},
            {"op": "pad", "inputs": [1], "margins": [[1, 1], [0, 0], [0, 0]]},
        ),
        "margins for other axes",
    ),
    "other features than said": (graph_of(features=5), "does not enter the classifier"),
    "a graph of more": (graph_of(code="import os"), "Extra inputs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs_are_refused(name: str) -> None:
    """A node would compute what nobody agreed on, without bound, or across its patients."""
    graph, words = HOSTILE[name]
    with pytest.raises(UserError, match=words):
        open_graph(graph)


def test_bytes_that_are_no_graph() -> None:
    """Deep brackets, half a file, another JSON, too much: one sentence."""
    for content in (b"", b"[" * 100_000, b'{"side": 8', b"[1]", b"\xff\xfe", b"{}"):
        with pytest.raises(UserError, match="no graph of a network"):
            read_graph(content, "the server")
    with pytest.raises(UserError, match="at most"):
        read_graph(b" " * 5_000_000, "the server")


def test_a_state_without_its_graph_or_a_tensor(backbones: dict[str, Backbone]) -> None:
    """A server that sends another network's tensors, or some."""
    backbone = backbones["residual"]
    state = dict(backbone_state(backbone))
    for missing in (GRAPH, "stem.constant0", "groups.0.0.conv5.weight"):
        fewer = {key: tensor for key, tensor in state.items() if key != missing}
        assert len(fewer) < len(state), sorted(state)
        with pytest.raises(UserError, match=f"{missing} is missing"):
            backbone_from_state("onnx", fewer, backbone.preprocess)
    with pytest.raises(UserError, match="no file"):
        backbone_from_state("onnx", {**state, GRAPH: torch.zeros(3)}, backbone.preprocess)


def test_a_graph_that_mixed_records_would_be_caught_again(backbones: dict[str, Backbone]) -> None:
    """The proof by shapes stands before; privacy by example tries a network out all the same."""
    honest = backbones["residual"]
    swapped = [
        {"op": "transpose", "inputs": [0], "axes": [1, 0, 2, 3]},
        {"op": "reshape", "inputs": [1], "shape": [-1, 12, 8, 8]},
    ]
    part = Part.model_validate_json(json.dumps({"steps": swapped}))
    model = lively(honest, "lora")
    neck = model.net.get_submodule("neck")
    model.net.set_submodule("neck", nn.Sequential(GraphPart(part), neck))
    with pytest.raises(Refused):
        check_gradients(model, "hooks", torch.randn(2, 3, SIDE, SIDE), cross_entropies)


def test_without_a_file_there_is_no_network() -> None:
    """`name: onnx` alone says nothing of what it is."""
    with pytest.raises(UserError, match="no file is named"):
        load_backbone("onnx")
    with pytest.raises(UserError, match="known by a name"):
        load_backbone("onnx", weights="IMAGENET1K_V1")
    assert isinstance(Graph.model_validate_json(json.dumps(graph_of())), Graph)

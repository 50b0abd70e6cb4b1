"""ONNX files become backbones that give what the original gives; whatever cannot is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as vision
from torch import nn

from fedgraft.common.adapters.targets import find_blocks, find_layers
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.backbones.family import last_linear
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import IMAGENET_MEAN, IMAGENET_STD
from fedgraft.simulations.conversion.convert import ConvertRequest, convert_model
from fedgraft.simulations.conversion.onnx_file import OPERATORS
from fedgraft.simulations.conversion.tensorflow_export import list_command
from tests.onnx_files import SIDE, SMALL, build, export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Make = Callable[..., nn.Module]
# with the number of layers that adapters find, and of blocks
LARGE: dict[str, tuple[Make, int, int]] = {
    "resnet18": (vision.resnet18, 20, 8),
    "mobilenet_v2": (vision.mobilenet_v2, 52, 14),
    "mobilenet_v3_small": (vision.mobilenet_v3_small, 53, 9),
    "efficientnet_b0": (vision.efficientnet_b0, 81, 13),
    "densenet121": (vision.densenet121, 120, 7),
    "shufflenet_v2_x0_5": (vision.shufflenet_v2_x0_5, 56, 16),
    "regnet_y_400mf": (vision.regnet_y_400mf, 85, 16),
}
IMAGES = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def convert(path: Path, **options: Any) -> Backbone:
    options = {"pixels": "0-1", **options}
    made = convert_model(ConvertRequest(path, **options))
    backbone = load_backbone("onnx", weights=made["path"])
    assert backbone.fingerprint == made["fingerprint"]
    return backbone


@torch.no_grad()
def features_of(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What enters a network's classifier."""
    net = copy.deepcopy(net)
    name, _ = last_linear(net)
    net.set_submodule(name, nn.Identity())
    return net(images)


@pytest.mark.parametrize("any_batch", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_features_are_those_of_the_original(name: str, any_batch: bool, tmp_path: Path) -> None:
    """Another network's features would be learnt from; of one that was exported for a single image
    the first axis becomes free, or it is refused.
    """
    net = build(SMALL[name])
    path = export(net, tmp_path / "model.onnx", any_batch=any_batch)
    if name == "transformer" and not any_batch:
        with pytest.raises(UserError, match="exported for batches of 1"):
            convert(path)
        return
    backbone = convert(path)
    with torch.no_grad():
        ours = backbone.net(IMAGES)
    theirs = features_of(net, IMAGES)
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_known_networks(name: str, tmp_path: Path) -> None:
    """A layer that adapters do not find, or a block whose output is not read, in a network that
    people have.
    """
    make, layers, blocks = LARGE[name]
    net = build(make)
    backbone = convert(export(net, tmp_path / "model.onnx", 64), pixels="imagenet")
    assert len(find_layers(backbone.net)) == layers
    assert len(find_blocks(backbone.net)) == blocks
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    theirs = features_of(net, (images - mean) / std)
    with torch.no_grad():
        ours = backbone.net(images)
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-3)


def test_where_blocks_begin_and_end(tmp_path: Path) -> None:
    """The rule that docs/onnx.md states: sums are blocks, and groups are of one size; a plain
    network is cut before it makes images smaller.
    """
    residual = convert(export(build(SMALL["residual"]), tmp_path / "residual.onnx"))
    assert list(find_blocks(residual.net)) == ["groups.0.0", "groups.1.0", "groups.1.1"]
    plain = convert(export(build(SMALL["plain"]), tmp_path / "plain.onnx"))
    assert list(find_blocks(plain.net)) == ["groups.0.0", "groups.1.0"]
    tokens = convert(export(build(SMALL["transformer"]), tmp_path / "transformer.onnx"))
    assert list(find_blocks(tokens.net)) == [f"groups.0.{number}" for number in range(4)]


# ── files put together by hand ────────────────────────────────────────────────────────────────────
def tensor(name: str, *shape: int) -> Any:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return onnx.numpy_helper.from_array(values, name)


def write_model(
    path: Path,
    nodes: list[Any],
    tensors: list[Any],
    *,
    shape: tuple[Any, ...] = ("n", 3, 8, 8),
    result: str = "logits",
    opsets: tuple[tuple[str, int], ...] = (("", 17),),
) -> Path:
    """Write nodes that begin with `image` and end with `logits`."""
    given = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)
    gives = onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "net", [given], [gives], tensors)
    imports = [onnx.helper.make_opsetid(*opset) for opset in opsets]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output], **attributes)


def convolution(output: str = "map", **attributes: Any) -> Any:
    return node("Conv", "image w", output, kernel_shape=[3, 3], **attributes)


TAIL = (("GlobalAveragePool", "map", "pooled"), ("Flatten", "pooled", "flat"))


def tail() -> list[Any]:
    return [*(node(*words) for words in TAIL), node("Gemm", "flat v", "logits", transB=1)]


def tensors() -> list[Any]:
    return [tensor("w", 6, 3, 3, 3), tensor("v", 4, 6)]


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
        {"pads": [1, 0, 2, 3]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    ],
)
def test_convolutions_pad_as_they_say(attributes: dict[str, Any], tmp_path: Path) -> None:
    """TensorFlow's padding is uneven; `convert` itself compares with ONNX Runtime."""
    backbone = convert(
        write_model(tmp_path / "m.onnx", [convolution(**attributes), *tail()], tensors())
    )
    assert backbone.features == 6


def test_channels_last_and_a_bias_by_itself(tmp_path: Path) -> None:
    """As models of Keras come: (n, H, W, 3), MatMul and Add for a Dense layer, Softmax behind."""
    nodes = [
        node("Transpose", "image", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w", "map", kernel_shape=[3, 3]),
        node("ReduceMean", "map", "pooled", axes=[2, 3], keepdims=0),
        node("MatMul", "pooled u", "product"),
        node("Add", "product b", "sum"),
        node("Softmax", "sum", "logits"),
    ]
    given = [*tensors(), tensor("u", 6, 4), tensor("b", 4)]
    path = write_model(tmp_path / "m.onnx", nodes, given, shape=("n", 8, 8, 3))
    backbone = convert(path, pixels="caffe", resize=10)
    assert backbone.features == 6
    assert backbone.preprocess.to_json()["size"] == 10
    other = convert(path, pixels="0-255")
    assert other.fingerprint != backbone.fingerprint


def test_a_model_without_its_top(tmp_path: Path) -> None:
    """Its output is a map: the mean of its places are the features."""
    nodes = [convolution("logits")]
    assert convert(write_model(tmp_path / "m.onnx", nodes, tensors()[:1])).features == 6


def test_a_convolution_as_classifier(tmp_path: Path) -> None:
    """Keras' MobileNets end so: what enters it are the features, not the 1000 classes."""
    nodes = [
        convolution(),
        node(*TAIL[0]),
        node("Conv", "pooled c", "scores"),
        node("Flatten", "scores", "logits"),
    ]
    given = [*tensors()[:1], tensor("c", 9, 6, 1, 1)]
    assert convert(write_model(tmp_path / "m.onnx", nodes, given)).features == 6


def test_any_size_needs_a_number(tmp_path: Path) -> None:
    """A graph is converted for one size; to guess it would give other features."""
    path = write_model(tmp_path / "m.onnx", [convolution(), *tail()], tensors())
    free = write_model(
        tmp_path / "free.onnx", [convolution(), *tail()], tensors(), shape=("n", 3, "h", "w")
    )
    with pytest.raises(UserError, match="exported for 8"):
        convert(path, input_size=16)
    with pytest.raises(UserError, match="any size"):
        convert(free)
    made = convert(free, input_size=16)
    with pytest.raises(UserError, match="this model was converted for 16"):
        load_backbone("onnx", weights=tmp_path / "free.safetensors", image_size=24)
    assert made.preprocess.to_json()["crop"] == 16


# ── what is refused ───────────────────────────────────────────────────────────────────────────────
def refuse(path: Path, words: str) -> None:
    """Convert a file and see it refused, with nothing written."""
    with pytest.raises(UserError, match=words):
        convert(path)
    assert not list(path.parent.glob("*.safetensors*"))


def test_unknown_operators_are_named_with_the_list(tmp_path: Path) -> None:
    """A guess at what an operator does would be another network; domains and loops are none of
    ours.
    """
    body = onnx.helper.make_graph([], "body", [], [])
    for added, words in (
        (node("Einsum", "logits", "more", equation="ij->ij"), "'Einsum'"),
        (node("Loop", "logits", "more", body=body), "'Loop'"),
        (node("Evil", "logits", "more", domain="com.evil"), r"'com\.evil\.Evil'"),
    ):
        nodes = [convolution(), *tail(), added]
        refuse(write_model(tmp_path / "m.onnx", nodes, tensors(), result="more"), words)
        with pytest.raises(UserError) as raised:
            convert(tmp_path / "m.onnx")
        assert all(name in raised.value.remedy for name in OPERATORS)


def test_tensors_in_other_files_are_never_opened(tmp_path: Path) -> None:
    """A file that names /etc/passwd as its weights."""
    given = tensors()
    onnx.external_data_helper.set_external_data(given[0], location="../secret", length=648)
    given[0].ClearField("raw_data")
    refuse(write_model(tmp_path / "m.onnx", [convolution(), *tail()], given), "never opened")


def test_records_that_meet_are_refused(tmp_path: Path) -> None:
    """Privacy by example, and sums of records, rest on rows that do not know one another."""
    shape = onnx.numpy_helper.from_array(np.array([3, -1, 8, 8]), "shape")
    mixing = [node("Transpose", "image", "turned", perm=[1, 0, 2, 3])]
    mixing += [node("Reshape", "turned shape", "mixed")]
    back = onnx.numpy_helper.from_array(np.array([-1, 3, 8, 8]), "back")
    mixing += [node("Reshape", "mixed back", "again"), node("Conv", "again w", "map")]
    given = [*tensors(), shape, back]
    refuse(write_model(tmp_path / "m.onnx", [*mixing, *tail()], given), "mixes the records")
    softmax = [convolution("raw"), node("Softmax", "raw", "map", axis=0), *tail()]
    refuse(write_model(tmp_path / "m.onnx", softmax, tensors()), "across the records")


def test_damaged_cyclic_and_strange_files(tmp_path: Path) -> None:
    """One sentence each, never a traceback."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    refuse(path, "no ONNX model|damaged")
    refuse(tmp_path / "missing.onnx", "no such file")
    cycle = [node("Add", "image second", "first"), node("Relu", "first", "second")]
    refuse(
        write_model(path, [*cycle, node("Conv", "second w", "map"), *tail()], tensors()),
        "ONNX Runtime cannot run it",
    )
    wide = write_model(path, [convolution(), *tail()], tensors(), shape=("n", 1, 8, 8))
    refuse(wide, r"of shape \[None, 1, 8, 8\]")
    noise = [node("RandomNormalLike", "image", "noise"), node("Conv", "noise w", "map"), *tail()]
    refuse(write_model(path, noise, tensors()), "RandomNormalLike")
    tokens = [convolution(), *tail(), node("Where", "flat flat flat", "more")]
    refuse(write_model(path, tokens, tensors(), result="more"), "Where|ONNX Runtime")


def test_how_pixels_are_scaled_must_be_said(tmp_path: Path) -> None:
    """Other numbers than it was trained with cost points that nobody sees."""
    path = write_model(tmp_path / "m.onnx", [convolution(), *tail()], tensors())
    request = ConvertRequest(path)
    for changes, words in (
        ({}, "not said"),
        ({"pixels": "imagnet"}, "not known"),
        ({"pixels": "0-1", "mean": "0,0,0"}, "said twice"),
        ({"mean": "0,0,0", "std": "1,1,0"}, "std above 0|mean"),
        ({"mean": "a,b,c", "std": "1,1,1"}, "a,b,c"),
        ({"pixels": "0-1", "out": tmp_path / "m.pth"}, "another suffix"),
    ):
        with pytest.raises(UserError, match=words):
            convert_model(replace(request, **changes))
    given = convert(path, pixels=None, mean="0.485,0.456,0.406", std="0.229,0.224,0.225")
    assert given.fingerprint == convert(path, pixels="imagenet").fingerprint


def test_without_keras_the_command_is_named(tmp_path: Path) -> None:
    """A user of Keras learns what to install, and where."""
    model = tmp_path / "model.keras"
    model.write_bytes(b"")
    with pytest.raises(UserError) as raised:
        convert(model)
    assert "--python keras-env/bin/python" in raised.value.remedy
    assert str(model) in raised.value.remedy
    with pytest.raises(UserError, match=r"saved_model\.pb"):
        convert(tmp_path)
    assert "tf2onnx.convert" in list_command("python", tmp_path, tmp_path / "m.onnx")

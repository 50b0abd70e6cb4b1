"""The families of networks that were converted from ONNX: `onnx` for images, out of Keras and
TensorFlow, too; `onnx-text` for texts, whose tokenizer is among the tensors.

`fedgraft convert` makes one file of tensors; among them is the graph (`graph_shape.py`), so that
one fingerprint covers both. A node needs torch alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fedgraft.common.backbones.family import Family, NetworkShape, State, keep_state
from fedgraft.common.backbones.graph_network import GRAPH, GraphNetwork, ImageBlock, TokenBlock
from fedgraft.common.backbones.graph_shape import read_graph
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.text import TOKENIZER, is_token, prepare_texts
from fedgraft.common.inputs.tokenizer_file import bytes_of, open_tokenizer, tensor_of

NAME = "onnx"
TEXT_NAME = "onnx-text"
USUAL_SIDE = 224
_CONVERT_TEXTS = "make them: fedgraft convert MODEL.onnx --tokenizer tokenizer.json (docs/onnx.md)"
_CONVERT = "make one: fedgraft convert MODEL.onnx (docs/onnx.md)"


def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network in torch's own initialisation. Raise `UserError` without a graph."""
    if GRAPH not in shape.files:
        what = f"{name} is a converted model, and no file is named"
        raise UserError(what, where="backbone.weights", remedy=_CONVERT)
    return GraphNetwork(read_graph(shape.files[GRAPH], name))


def prepare_images(name: str, weights: str | None, size: int | None) -> Preprocess:
    """Return what images go through: a side, and nothing else; the graph scales its input."""
    side = size or USUAL_SIDE
    return as_pixels(side, side)


def as_pixels(resize: int, side: int) -> Preprocess:
    """Return a preparation to square images on 0–1.

    Args:
        resize: length of the shorter side before the centre is cropped, pixels.
        side: of the crop, pixels.
    """
    return Preprocess(resize, side, mean=(0.0,) * 3, std=(1.0,) * 3)


def refuse_names(name: str, weights: str) -> State:
    """Raise `UserError`: no converted models are known by a name."""
    what = f"no weights {weights!r} of {name} are known by a name"
    raise UserError(what, where="backbone.weights", remedy=_CONVERT)


def read_files(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return what the graph among the tensors says.

    Raises:
        UserError: it is not there, damaged, or for images of another size.
    """
    if GRAPH not in state:
        what = f"these are not the tensors of a converted model: {GRAPH} is missing"
        raise UserError(what, where=where, remedy=_CONVERT)
    content = bytes_of(state[GRAPH])
    side = read_graph(content, where).side
    if side is None:
        what = "a model for texts"
        raise UserError(what, where=where, remedy="write backbone.name: onnx-text")
    if shape.image_size not in (None, side):
        what = f"{shape.image_size} pixels; this model was converted for {side}"
        remedy = f"write image_size: {side}, or convert it again with --input-size"
        raise UserError(what, where="backbone.image_size", remedy=remedy)
    return replace(shape, files={GRAPH: content})


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────
def build_for_texts(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network in torch's own initialisation, with its tokenizer. Raise `UserError` without
    a graph.
    """
    net = build(name, shape)
    net.register_buffer(TOKENIZER, tensor_of(shape.files[TOKENIZER]))
    return net


def read_text_files(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return what graph and tokenizer among the tensors say.

    Raises:
        UserError: one of them is not there or damaged, or the graph is for texts of another length.
    """
    for name in (GRAPH, TOKENIZER):
        if name not in state:
            what = f"these are not the tensors of a converted model for texts: {name} is missing"
            raise UserError(what, where=where, remedy=_CONVERT_TEXTS)
    files = {name: bytes_of(state[name]) for name in (GRAPH, TOKENIZER)}
    open_tokenizer(files[TOKENIZER])
    length = read_graph(files[GRAPH], where).length
    if length is None:
        what = "a model for images"
        raise UserError(what, where=where, remedy="write backbone.name: onnx")
    if shape.max_length not in (None, length):
        what = f"{shape.max_length} tokens; this model was converted for {length}"
        remedy = f"write max_length: {length}, or convert it again with --max-length"
        raise UserError(what, where="backbone.max_length", remedy=remedy)
    return replace(shape, files=files)


_NETWORK = GraphNetwork.__module__
ONNX = Family(
    names=lambda: (NAME,),
    build=build,
    preparation=prepare_images,
    fetch=refuse_names,  # type: ignore[arg-type]
    read_shape=read_files,
    fit=keep_state,
    block_types={
        f"{_NETWORK}.{ImageBlock.__qualname__}": False,
        f"{_NETWORK}.{TokenBlock.__qualname__}": True,
    },
    order={f"{_NETWORK}.{GraphNetwork.__qualname__}": ("stem", "groups", "neck", "classifier")},
    # a random network has no other constants
    kept_when_random=(GRAPH, "*.constant*"),
)
# stages and blocks are those of `onnx`: the networks are of one class
ONNX_TEXT = Family(
    names=lambda: (TEXT_NAME,),
    build=build_for_texts,
    preparation=prepare_texts,
    fetch=refuse_names,  # type: ignore[arg-type]
    read_shape=read_text_files,
    fit=keep_state,
    places=is_token,
    kept_when_random=(GRAPH, TOKENIZER, "*.constant*"),
)

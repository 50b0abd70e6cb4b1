"""An ONNX file read as data: bounded, of known operators alone, with all its tensors in itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown

INSTALL = "pip install 'fedgraft[onnx]'"
# bytes: what one message of its format can hold
LARGEST_FILE = 2_000_000_000
MOST_NODES = 20_000
DOMAINS = ("", "ai.onnx")
# become steps of the network, or layers of it
NETWORK_OPERATORS = (
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
)
# besides, where they tell shapes alone: their values are measured and kept
SHAPE_OPERATORS = (
    "And",
    "Ceil",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "GatherElements",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
    "Not",
    "Or",
    "Range",
    "ReduceProd",
    "Shape",
    "Size",
    "Where",
)
OPERATORS = tuple(sorted({*NETWORK_OPERATORS, *SHAPE_OPERATORS}))


def import_onnx() -> Any:
    """Return the package onnx. Raise `UserError` where it is not installed."""
    return _import("onnx")


def import_runtime() -> Any:
    """Return the package onnxruntime. Raise `UserError` where it is not installed."""
    return _import("onnxruntime")


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        what = f"models are converted with the package {package}, which is not installed"
        raise UserError(what, remedy=INSTALL) from error


def read_onnx(path: Path) -> Any:
    """Return the model of an ONNX file.

    Raises:
        UserError: it is not there, damaged or too large, names other files, or has an operator that
            is not known here.
    """
    onnx = import_onnx()
    where = str(path)
    remedy = "export the model again, as one .onnx file"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError("there is no such file", where=where, remedy=remedy) from error
    if size > LARGEST_FILE:
        raise UserError(f"more than {LARGEST_FILE:,} bytes", where=where, remedy=remedy)
    try:
        # a path to other tensors, if there is one, is not followed
        model = onnx.load_model(str(path), load_external_data=False)
        graph = model.graph
        if not graph.node:
            raise ValueError("without nodes")
    # protobuf's own errors are of several classes
    except Exception as error:
        what = f"no ONNX model, or a damaged one ({type(error).__name__})"
        raise UserError(what, where=where, remedy=remedy) from error
    _check_tensors(onnx, graph, where)
    _check_operators(model, where)
    return model


def _check_tensors(onnx: Any, graph: Any, where: str) -> None:
    """Raise `UserError` for tensors that are elsewhere, or that are kept in another way."""
    remedy = "export the model again, as one .onnx file with its tensors in it, in float32"
    if graph.sparse_initializer:
        raise UserError("tensors that are kept as sparse", where=where, remedy=remedy)
    for tensor in _list_tensors(graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            what = f"tensor {shown(tensor.name)} lies in another file, which is never opened"
            raise UserError(what, where=where, remedy=remedy)


def _list_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_operators(model: Any, where: str) -> None:
    """Raise `UserError` for an operator that is not known here, by name."""
    if model.functions:
        what = f"functions of its own ({shown(model.functions[0].name)})"
        remedy = "inline them first: onnx.inliner.inline_local_functions(model)"
        raise UserError(what, where=where, remedy=remedy)
    if len(model.graph.node) > MOST_NODES:
        what = f"{len(model.graph.node):,} operators; at most {MOST_NODES:,} are taken"
        raise UserError(what, where=where, remedy="give a smaller model")
    unknown: list[str] = []
    for node in model.graph.node:
        name = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
        if name not in OPERATORS and name not in unknown:
            unknown.append(name)
    if unknown:
        what = f"operators that are not known here: {', '.join(map(shown, unknown[:10]))}"
        raise UserError(what, where=where, remedy=f"known are {', '.join(OPERATORS)}")


def read_attributes(node: Any) -> dict[str, Any]:
    """Return an operator's attributes: numbers, texts, lists, and tensors as arrays."""
    onnx = import_onnx()
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        attributes[attribute.name] = value
    return attributes


def read_initializers(graph: Any) -> dict[str, np.ndarray]:
    """Return a graph's tensors by name."""
    onnx = import_onnx()
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

"""A model of another library → one file of tensors for `backbone: {name: onnx}`.

    model.onnx → (measured by ONNX Runtime) → steps → parts → compared → model.safetensors

What the file's model gives is compared with ONNX Runtime before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.adapters.targets import find_layers
from fedgraft.common.backbones.backbone import Backbone, network_with_state
from fedgraft.common.backbones.backbone_files import LARGEST_IMAGE, save_backbone
from fedgraft.common.backbones.family import NetworkShape
from fedgraft.common.backbones.graph_network import GRAPH, GraphPart
from fedgraft.common.backbones.graph_shape import write_graph
from fedgraft.common.backbones.onnx_models import NAME, TEXT_NAME, as_pixels
from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown
from fedgraft.common.inputs.material import Preparation
from fedgraft.common.inputs.text import DEFAULT_LENGTH, TOKENIZER, TextPreparation
from fedgraft.common.inputs.tokenizer_file import LARGEST_FILE as LARGEST_TOKENIZER
from fedgraft.common.inputs.tokenizer_file import count_tokens, open_tokenizer, tensor_of
from fedgraft.common.model.depth_features import list_stages
from fedgraft.simulations.conversion.cutting import (
    Piece,
    build_part,
    cut_network,
    trace_steps,
)
from fedgraft.simulations.conversion.flat_network import FlatStep, drop_unused
from fedgraft.simulations.conversion.measure import (
    Given,
    ModelInput,
    find_input,
    free_batch,
    measure,
    run_model,
)
from fedgraft.simulations.conversion.onnx_file import DOMAINS, read_onnx
from fedgraft.simulations.conversion.operators import Lowering, lower
from fedgraft.simulations.conversion.pixels import (
    SCALES,
    Scale,
    choose_scale,
    read_numbers,
    scale_steps,
)
from fedgraft.simulations.conversion.tensorflow_export import export_to_onnx, is_of_tensorflow
from fedgraft.simulations.conversion.text_input import MASK, TextInput, find_texts

# of the largest value
TOLERANCE = 1e-4
SMALLEST = 1e-30
# what may stand behind a classifier
_BEHIND = ("softmax", "sigmoid", "relu", "tanh", "reshape", "clip", "add", "mul", "div", "sub")


@dataclass(frozen=True)
class ConvertRequest:
    """Which model, and how its images are prepared.

    Attributes:
        model: a .onnx file, a Keras model (.keras, .h5) or a SavedModel's folder.
        out: the file to write; None: beside the model, `.safetensors`.
        input_size: pixels of a side, where the model takes any.
        resize: length of an image's shorter side before its centre is cropped; None: the side.
        pixels: one of `SCALES`; None: by mean and std.
        mean, std: of each channel, on 0–1, as `R,G,B`.
        tokenizer: the `tokenizer.json` of a model for texts; None: it takes images.
        max_length: tokens of a text; None: the usual number.
        python: that Keras or TensorFlow is installed for; None: this one.
    """

    model: Path
    out: Path | None = None
    input_size: int | None = None
    resize: int | None = None
    pixels: str | None = None
    mean: str | None = None
    std: str | None = None
    tokenizer: Path | None = None
    max_length: int | None = None
    python: str | None = None


@dataclass(frozen=True, eq=False)
class Converted:
    """A model that was converted, and how far it is from the original.

    Attributes:
        backbone: the network without its classifier.
        difference: the largest to ONNX Runtime's outputs and features, as a part of the largest.
        scale: that largest value.
        cut: what was taken for the classifier.
    """

    backbone: Backbone
    difference: float
    scale: float
    cut: str


def convert_model(request: ConvertRequest) -> dict[str, Any]:
    """Convert a model, write it, and return what there is to say of it.

    Raises:
        UserError: a model that cannot be converted, or that gives other outputs afterwards; nothing
            is written then.
    """
    model = request.model
    scale = _choose_scale(request)
    for side in (request.input_size, request.resize):
        if side is not None and not 8 <= side <= LARGEST_IMAGE:
            what = f"{side} pixels"
            raise UserError(what, where="--input-size", remedy=f"give 8 to {LARGEST_IMAGE}")
    out = request.out or model.with_name(model.stem + ".safetensors")
    if out.suffix != ".safetensors":
        raise UserError("another suffix", where=str(out), remedy="end the name in .safetensors")
    if is_of_tensorflow(model):
        with TemporaryDirectory() as folder:
            exported = export_to_onnx(model, Path(folder) / "model.onnx", request.python)
            converted = convert_onnx(exported, scale, request)
    else:
        converted = convert_onnx(model, scale, request)
    backbone = converted.backbone
    provenance = {
        "made_by": "fedgraft convert",
        "model": model.name,
        "sha256": _digest(model),
        "largest_difference": converted.difference,
        "largest_value": converted.scale,
    }
    save_backbone(backbone, out, provenance)
    return {
        "path": str(out),
        "fingerprint": backbone.fingerprint,
        "features": backbone.features,
        "classifier": converted.cut,
        "layers": len(find_layers(backbone.net)),
        "stages": list_stages(backbone.net),
        "name": backbone.name,
        "image_size": backbone.preprocess.to_json().get("crop"),
        "max_length": backbone.preprocess.to_json().get("max_length"),
        "largest_difference": converted.difference,
        "largest_value": converted.scale,
    }


def _choose_scale(request: ConvertRequest) -> Scale:
    """Return how a model's pixels are scaled; of one for texts nothing is.

    Raises:
        UserError: it is not said, or said of a model for texts.
    """
    mean = read_numbers(request.mean, "--mean")
    std = read_numbers(request.std, "--std")
    if request.tokenizer is None:
        if request.max_length is not None:
            what = "tokens, and no tokenizer is given"
            raise UserError(what, where="--max-length", remedy="write --tokenizer tokenizer.json")
        return choose_scale(request.pixels, mean, std)
    if request.pixels or mean or std or request.input_size or request.resize:
        what = "there, and a model with a tokenizer takes texts"
        raise UserError(what, where="--tokenizer", remedy="leave out what is said of pixels")
    return SCALES["0-1"]


def describe(made: Mapping[str, Any]) -> list[str]:
    """Return lines for people of what `convert_model` returns."""
    blocks = max(len(made["stages"]) - 2, 0)
    takes = f"images      {made['image_size']} pixels"
    if made["max_length"] is not None:
        takes = f"texts       {made['max_length']} tokens"
    return [
        f"backbone    {made['path']}",
        made["fingerprint"],
        takes,
        f"classifier  {made['classifier']}, left out; {made['features']} features enter it",
        f"adapters    {made['layers']} layers, {blocks} blocks",
        (
            f"compared    with ONNX Runtime: at most {made['largest_difference']:.1e} of the"
            f" largest value ({TOLERANCE:g} is taken)"
        ),
        f"write       backbone: {{name: {made['name']}, weights: {made['path']}}}",
    ]


def convert_onnx(path: Path, scale: Scale, request: ConvertRequest) -> Converted:
    """Return a model of an ONNX file as a backbone. Raise `UserError` where it cannot be."""
    where = str(request.model)
    original = read_onnx(path)
    given = _find_given(original.graph, request, where)
    model = free_batch(original, given)
    if given.batch is not None:
        _check_freed(original, model, given, given.batch, where)
    steps, numbers = _lower_model(model, given, scale, where)
    result = numbers[model.graph.output[0].name]
    features, cut = _find_features(steps, result, given, where)
    compared = _find_names(steps, numbers, (result, features))
    difference, largest = _compare(model, given, steps, compared, scale, where)

    kept, _ = drop_unused(steps, features)
    network = cut_network(kept, given.probe(), given.size, where)
    state = {**network.tensors, GRAPH: tensor_of(write_graph(network.graph))}
    name = NAME
    preparation: Preparation
    if isinstance(given, TextInput):
        name = TEXT_NAME
        preparation = TextPreparation(given.length)
        state[TOKENIZER] = tensor_of(_read_tokenizer(request))
    else:
        preparation = as_pixels(request.resize or given.side, given.side)
    backbone = network_with_state(name, state, NetworkShape(), preparation, where)
    _check_parts(backbone, kept, given.draw(), where)
    return Converted(backbone, difference, largest, cut)


def _find_given(graph: Any, request: ConvertRequest, where: str) -> Given:
    """Return what a model takes: texts where a tokenizer is given, else images."""
    if request.tokenizer is None:
        return find_input(graph, request.input_size, where)
    vocabulary = count_tokens(open_tokenizer(_read_tokenizer(request)))
    return find_texts(graph, request.max_length or DEFAULT_LENGTH, vocabulary, where)


def _read_tokenizer(request: ConvertRequest) -> bytes:
    """Return the bytes of a tokenizer's file. Raise `UserError` where there is none."""
    path = request.tokenizer
    assert path is not None
    try:
        if path.stat().st_size > LARGEST_TOKENIZER:
            raise UserError("too large", where=str(path), remedy="give the model's tokenizer.json")
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        remedy = "give the model's tokenizer.json"
        raise UserError(what, where=str(path), remedy=remedy) from error


def mean_of_tokens(steps: list[FlatStep], states: int, given: TextInput) -> int:
    """Add the mean of states (n, length, width) over tokens, and return its number (n, width)."""
    mask = given.begin()[1][MASK]
    steps.append(FlatStep({"op": "reshape", "shape": (-1, given.length, 1)}, [mask]))
    here = len(steps)
    steps.append(FlatStep({"op": "mul"}, [states, here]))
    steps.append(FlatStep({"op": "sum", "axes": (1,), "keep": False}, [len(steps)]))
    total = len(steps)
    steps.append(FlatStep({"op": "sum", "axes": (1,), "keep": False}, [here]))
    steps.append(FlatStep({"op": "div"}, [total, len(steps)]))
    return len(steps)


def _lower_model(
    model: Any, given: Given, scale: Scale, where: str
) -> tuple[list[FlatStep], dict[str, int]]:
    """Return all steps of a model, and the numbers of those that give its tensors, by name."""
    graph = model.graph
    measured = measure(model, given, where)
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    opset = max(entry.version for entry in model.opset_import if entry.domain in DOMAINS)
    lowering = Lowering(measured, opset, uses)
    if isinstance(given, TextInput):
        lowering.steps, lowering.numbers = given.begin()
    else:
        lowering.steps = scale_steps(scale, given.channels_last)
        lowering.numbers[given.name] = len(lowering.steps)
    of_mask = measured.of_mask[0] if measured.of_mask else {}
    for node in graph.node:
        # what follows from a mask alone is measured
        if measured.reached.difference(of_mask).intersection(node.output):
            try:
                lower(lowering, node)
            except UserError as error:
                raise UserError(error.what, where=where, remedy=error.remedy) from error
    name = graph.output[0].name
    if name not in lowering.numbers:
        what = f"the {given.plural} do not reach its output"
        raise UserError(what, where=where, remedy="give another model")
    return lowering.steps, lowering.numbers


# ── what enters the classifier ────────────────────────────────────────────────────────────────────
def _find_features(steps: list[FlatStep], result: int, given: Given, where: str) -> tuple[int, str]:
    """Return the step that gives the features (n, d), and what was taken for the classifier.

    From the output back over what may stand behind a classifier: a Linear over (n, d) is one, and
    a 1×1 convolution of one pixel. Else the output itself is the features, a map's mean over its
    places, a text's over its tokens.
    """
    trace = trace_steps(steps, given.probe(), where)
    number = result
    while number and steps[number - 1].op in _BEHIND and len(steps[number - 1].sources()) == 1:
        number = steps[number - 1].sources()[0]
    step = steps[number - 1] if number else None
    if step is not None and step.op in ("linear", "conv"):
        (entering,) = step.sources()
        shape = trace.values[entering].shape
        if step.op == "linear" and len(shape) == 2:
            return entering, f"Linear {shape[1]} → {step.fields['out_features']}"
        if step.op == "conv" and shape[2:] == (1, 1):
            steps.append(FlatStep({"op": "reshape", "shape": (-1, shape[1])}, [entering]))
            return len(steps), f"1×1 convolution {shape[1]} → {step.fields['out_channels']}"
    # of a model of TensorFlow, channels were put last again
    if steps[result - 1].op == "transpose" and steps[result - 1].fields["axes"] == (0, 2, 3, 1):
        (result,) = steps[result - 1].sources()
    axes = trace.values[result].ndim
    if axes == 2:
        return result, "none: its output is the features"
    if isinstance(given, TextInput) and axes == 3:
        mean = mean_of_tokens(steps, result, given)
        return mean, "none: the mean of its output's tokens is the features"
    over = {3: (1,), 4: (2, 3)}.get(axes)
    if over is None:
        what = f"an output of {axes} axes"
        raise UserError(what, where=where, remedy="give a model whose output is (n, features)")
    steps.append(FlatStep({"op": "mean", "axes": over, "keep": False}, [result]))
    return len(steps), "none: the mean of its output's places is the features"


# ── is it the same network? ───────────────────────────────────────────────────────────────────────
def _find_names(
    steps: Sequence[FlatStep], numbers: Mapping[str, int], wanted: Sequence[int]
) -> dict[str, int]:
    """Return steps that are a tensor of the model, by its name; of those that were added the one
    that they take from first.
    """
    names = {number: name for name, number in numbers.items()}
    found: dict[str, int] = {}
    for number in wanted:
        while number not in names:
            number = steps[number - 1].sources()[0]
        found[names[number]] = number
    return found


def _check_freed(original: Any, freed: Any, given: Given, batch: int, where: str) -> None:
    """Raise `UserError` where a model that was made free of the size of its batch is another."""
    name = original.graph.output[0].name
    before = run_model(original, given, batch, where)[name]
    what = f"exported for batches of {batch}, which cannot be made free"
    remedy = "export it with a batch of any size (dynamic_axes, or a None first axis)"
    try:
        after = run_model(freed, given, batch, where)[name]
    except UserError as error:
        raise UserError(what, where=where, remedy=remedy) from error
    if before.shape != after.shape or not np.array_equal(before, after):
        raise UserError(what, where=where, remedy=remedy)


def _compare(
    model: Any,
    given: Given,
    steps: Sequence[FlatStep],
    compared: Mapping[str, int],
    scale: Scale,
    where: str,
) -> tuple[float, float]:
    """Return the largest difference to what ONNX Runtime gives, as a part of the largest value,
    and that value.

    Args:
        compared: steps by the name of the tensor that they give: the output, and the features.

    Raises:
        UserError: they differ by more than `TOLERANCE` of the largest.
    """
    inputs = given.draw()
    scaled = inputs
    if isinstance(given, ModelInput):
        first = scale_steps(scale, given.channels_last)
        if first:
            scaled = run_steps(first, len(first), inputs, where)
    theirs = run_model(model, given, len(inputs), where, scaled)
    worst = 0.0
    largest = 0.0
    for name, number in compared.items():
        ours = run_steps(steps, number, inputs, where).numpy()
        size = float(np.abs(theirs[name]).max())
        difference = np.inf
        if ours.shape == theirs[name].shape:
            difference = float(np.abs(ours - theirs[name]).max()) / max(size, SMALLEST)
        # a NaN is no small difference
        if not difference <= TOLERANCE:
            what = (
                f"the converted network gives other values than ONNX Runtime at {shown(name)}: up"
                f" to {difference:.2g} of the largest; {TOLERANCE:g} is taken"
            )
            remedy = "this is a mistake of the conversion: report the model; nothing was written"
            raise UserError(what, where=where, remedy=remedy)
        worst = max(worst, difference)
        largest = max(largest, size)
    return worst, largest


def _check_parts(backbone: Backbone, steps: Sequence[FlatStep], inputs: Tensor, where: str) -> None:
    """Raise `UserError` where the network in parts gives other features than its steps in one."""
    whole = run_steps(steps, len(steps), inputs, where)
    with torch.no_grad():
        parts = backbone.net(inputs)
    if not torch.allclose(parts, whole, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())):
        what = "the network in parts gives other features than as a whole"
        raise UserError(what, where=where, remedy="report the model; nothing was written")


def run_steps(steps: Sequence[FlatStep], last: int, inputs: Tensor, where: str) -> Tensor:
    """Return what one of the steps gives for images (n, 3, H, W) on 0–1, or tokens (n, length)."""
    kept, _ = drop_unused(steps, last)
    tensors: dict[str, Tensor] = {}
    part = build_part(kept, Piece(1, len(kept)), "part", tensors, where)
    with torch.device("meta"):
        module = GraphPart(part).eval()
    own = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    module.load_state_dict(own, assign=True)
    with torch.no_grad():
        return module(inputs)


def _digest(model: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    if model.is_file():
        digest.update(model.read_bytes())
        return digest.hexdigest()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(model)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

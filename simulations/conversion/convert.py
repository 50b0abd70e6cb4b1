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
from fedgraft.common.backbones.onnx_models import NAME, as_pixels
from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import shown
from fedgraft.common.inputs.tokenizer_file import tensor_of
from fedgraft.common.model.depth_features import list_stages
from fedgraft.simulations.conversion.cutting import (
    Piece,
    build_part,
    cut_network,
    trace_steps,
)
from fedgraft.simulations.conversion.flat_network import FlatStep, drop_unused
from fedgraft.simulations.conversion.measure import (
    ModelInput,
    find_input,
    free_batch,
    measure,
    run_model,
)
from fedgraft.simulations.conversion.onnx_file import DOMAINS, read_onnx
from fedgraft.simulations.conversion.operators import Lowering, lower
from fedgraft.simulations.conversion.pixels import (
    Scale,
    choose_scale,
    read_numbers,
    scale_steps,
)
from fedgraft.simulations.conversion.tensorflow_export import export_to_onnx, is_of_tensorflow

# of the largest value
TOLERANCE = 1e-4
SMALLEST = 1e-30
IMAGES_COMPARED = 3
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
        python: that Keras or TensorFlow is installed for; None: this one.
    """

    model: Path
    out: Path | None = None
    input_size: int | None = None
    resize: int | None = None
    pixels: str | None = None
    mean: str | None = None
    std: str | None = None
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
    scale = choose_scale(
        request.pixels, read_numbers(request.mean, "--mean"), read_numbers(request.std, "--std")
    )
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
        "image_size": backbone.preprocess.to_json()["crop"],
        "largest_difference": converted.difference,
        "largest_value": converted.scale,
    }


def describe(made: Mapping[str, Any]) -> list[str]:
    """Return lines for people of what `convert_model` returns."""
    blocks = max(len(made["stages"]) - 2, 0)
    return [
        f"backbone    {made['path']}",
        made["fingerprint"],
        f"images      {made['image_size']} pixels",
        f"classifier  {made['classifier']}, left out; {made['features']} features enter it",
        f"adapters    {made['layers']} layers, {blocks} blocks",
        (
            f"compared    with ONNX Runtime: at most {made['largest_difference']:.1e} of the"
            f" largest value ({TOLERANCE:g} is taken)"
        ),
        f"write       backbone: {{name: {NAME}, weights: {made['path']}}}",
    ]


def convert_onnx(path: Path, scale: Scale, request: ConvertRequest) -> Converted:
    """Return a model of an ONNX file as a backbone. Raise `UserError` where it cannot be."""
    where = str(request.model)
    original = read_onnx(path)
    given = find_input(original.graph, request.input_size, where)
    model = free_batch(original, given)
    if given.batch is not None:
        _check_freed(original, model, given, given.batch, where)
    steps, numbers = _lower_model(model, given, scale, where)
    result = numbers[model.graph.output[0].name]
    features, cut = _find_features(steps, result, where, given.side)
    compared = _find_names(steps, numbers, (result, features))
    difference, largest = _compare(model, given, steps, compared, scale, where)

    kept, _ = drop_unused(steps, features)
    network = cut_network(kept, given.side, where)
    state = {**network.tensors, GRAPH: tensor_of(write_graph(network.graph))}
    preparation = as_pixels(request.resize or given.side, given.side)
    backbone = network_with_state(NAME, state, NetworkShape(), preparation, where)
    _check_parts(backbone, kept, given.side, where)
    return Converted(backbone, difference, largest, cut)


def _lower_model(
    model: Any, given: ModelInput, scale: Scale, where: str
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
    lowering.steps = scale_steps(scale, given.channels_last)
    lowering.numbers[given.name] = len(lowering.steps)
    for node in graph.node:
        if measured.reached.intersection(node.output):
            try:
                lower(lowering, node)
            except UserError as error:
                raise UserError(error.what, where=where, remedy=error.remedy) from error
    name = graph.output[0].name
    if name not in lowering.numbers:
        what = "the images do not reach its output"
        raise UserError(what, where=where, remedy="give another model")
    return lowering.steps, lowering.numbers


# ── what enters the classifier ────────────────────────────────────────────────────────────────────
def _find_features(steps: list[FlatStep], result: int, where: str, side: int) -> tuple[int, str]:
    """Return the step that gives the features (n, d), and what was taken for the classifier.

    From the output back over what may stand behind a classifier: a Linear over (n, d) is one, and
    a 1×1 convolution of one pixel. Else the output itself is the features, a map's mean over its
    places.
    """
    trace = trace_steps(steps, side, where)
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
    that they take from.
    """
    names = {number: name for name, number in numbers.items()}
    found: dict[str, int] = {}
    for number in wanted:
        while number not in names:
            (number,) = steps[number - 1].sources()
        found[names[number]] = number
    return found


def _check_freed(original: Any, freed: Any, given: ModelInput, batch: int, where: str) -> None:
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
    given: ModelInput,
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
    images = _draw_images(given.side)
    scaled = images
    first = scale_steps(scale, given.channels_last)
    if first:
        scaled = run_steps(first, len(first), images, where)
    theirs = run_model(model, given, len(images), where, scaled.numpy())
    worst = 0.0
    largest = 0.0
    for name, number in compared.items():
        ours = run_steps(steps, number, images, where).numpy()
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


def _check_parts(backbone: Backbone, steps: Sequence[FlatStep], side: int, where: str) -> None:
    """Raise `UserError` where the network in parts gives other features than its steps in one."""
    images = _draw_images(side)
    whole = run_steps(steps, len(steps), images, where)
    with torch.no_grad():
        parts = backbone.net(images)
    if not torch.allclose(parts, whole, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())):
        what = "the network in parts gives other features than as a whole"
        raise UserError(what, where=where, remedy="report the model; nothing was written")


def run_steps(steps: Sequence[FlatStep], last: int, images: Tensor, where: str) -> Tensor:
    """Return what one of the steps gives for images (n, 3, H, W) on 0–1."""
    kept, _ = drop_unused(steps, last)
    tensors: dict[str, Tensor] = {}
    part = build_part(kept, Piece(1, len(kept)), "part", tensors, where)
    with torch.device("meta"):
        module = GraphPart(part).eval()
    own = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    module.load_state_dict(own, assign=True)
    with torch.no_grad():
        return module(images)


def _draw_images(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((IMAGES_COMPARED, 3, side, side), generator=generator)


def _digest(model: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    if model.is_file():
        digest.update(model.read_bytes())
        return digest.hexdigest()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(model)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

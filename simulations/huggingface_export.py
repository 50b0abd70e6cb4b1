"""`fedgraft export`: a shared model as a folder of the library's own classifier, which plain
transformers opens without a line of fedgraft:

    AutoModelForSequenceClassification.from_pretrained(FOLDER)   texts
    AutoModelForImageClassification.from_pretrained(FOLDER)      images

The adapters are merged. What the library's classifier does not compute cannot be written so, and
is refused; what is written is compared with the shared model first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.backbones.huggingface import NAME as TEXTS
from fedgraft.common.backbones.huggingface_folder import TOKENIZER_FILE
from fedgraft.common.backbones.huggingface_image import NAME as IMAGES
from fedgraft.common.backbones.huggingface_image import NETWORKS as IMAGE_NETWORKS
from fedgraft.common.backbones.huggingface_image import PROCESSOR, write_processor
from fedgraft.common.backbones.huggingface_library import import_library
from fedgraft.common.backbones.huggingface_shapes import (
    IMAGE_SHAPES,
    TEXT_SHAPES,
    HuggingFaceShape,
    read_shape,
)
from fedgraft.common.backbones.huggingface_tensors import DESCRIPTION, NATIVE
from fedgraft.common.backbones.huggingface_text import NETWORKS as TEXT_NETWORKS
from fedgraft.common.backbones.image_channels import COLOURS
from fedgraft.common.backbones.reference import NAME as REFERENCE
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import Preprocess
from fedgraft.common.inputs.material import PREPARATION
from fedgraft.common.inputs.text import TOKENIZER, TextPreparation, is_token
from fedgraft.common.inputs.tokenizer_file import bytes_of, open_tokenizer
from fedgraft.common.model.depth_features import LAST
from fedgraft.common.model.shared_model import CARD, SharedModel, load_shared_model
from fedgraft.common.run_files import SHARED_MODEL

FORMATS = ("huggingface",)
TOKENIZER_CONFIG = "tokenizer_config.json"
PROBES = 8
# of the outputs, in parts of the largest
TOLERANCE = 1e-4
# singular values of a head below this part of the largest are rounding
LEAST_SINGULAR = 1e-5
_AGAIN = "and run the plan again"


@dataclass(frozen=True)
class Classifier:
    """The library's own classifier of an architecture.

    Attributes:
        model, configuration: names of its classes.
        inner: dotted name of the network in it.
        head: of its last Linear.
        first: of the Linear before that, where it has one.
    """

    model: str
    configuration: str
    inner: str
    head: str = "classifier"
    first: str = ""


TEXT_CLASSIFIERS = {
    "bert": Classifier(
        "BertForSequenceClassification", "BertConfig", "bert", first="bert.pooler.dense"
    ),
    "roberta": Classifier(
        "RobertaForSequenceClassification",
        "RobertaConfig",
        "roberta",
        head="classifier.out_proj",
        first="classifier.dense",
    ),
    "distilbert": Classifier(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        "distilbert",
        first=NATIVE,
    ),
    "gpt2": Classifier("GPT2ForSequenceClassification", "GPT2Config", "transformer", head="score"),
}
IMAGE_CLASSIFIERS = {
    "vit": Classifier("ViTForImageClassification", "ViTConfig", "vit"),
    "dinov2": Classifier("Dinov2ForImageClassification", "Dinov2Config", "dinov2"),
}
AUTO_CLASSES = {
    TEXTS: "AutoModelForSequenceClassification",
    IMAGES: "AutoModelForImageClassification",
}


def export_model(run: Path, out: Path, backbone: Path | None = None) -> dict[str, Any]:
    """Write the shared model of a run into a new folder, whole or not at all.

    Args:
        run: a run's folder, or its `shared_model` folder.
        out: the folder; it must not be there, or be empty.
        backbone: the backbone's file, if it moved.

    Returns:
        `path`, the library's `model`, how to open it (`auto`), the `classes`, the largest
        `difference` of outputs, and `notes` for people.

    Raises:
        UserError: no such run, a model that the library's classifier does not compute, or a folder
            that is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("is there already", where=str(out), remedy="name a new folder: --out DIR")
    shared = load_shared_model(run, backbone)
    described = check_exportable(shared, run)
    whole = build_classifier(shared, described)
    difference = compare(shared, described, whole)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        whole.save_pretrained(part)
        write_preparation_files(shared, whole, part)
        card = (run / SHARED_MODEL if (run / SHARED_MODEL).is_dir() else run) / CARD
        if card.is_file():
            shutil.copy(card, part / CARD)
        part.chmod(0o755)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {
        "path": str(out),
        "model": type(whole).__name__,
        "auto": AUTO_CLASSES[shared.plan.backbone.name],
        "classes": list(shared.classes),
        "difference": difference,
        "notes": list_notes(shared),
    }


# ── what cannot be written so ─────────────────────────────────────────────────────────────────────
def check_exportable(shared: SharedModel, run: Path) -> HuggingFaceShape:
    """Return what a shared model's network is.

    Raises:
        UserError: the library has no classifier that gives its outputs.
    """
    where = str(run)
    name = shared.plan.backbone.name
    if name not in AUTO_CLASSES:
        what = f"its backbone is {name}, and Hugging Face's library has no classifier of it"
        remedy = f"plans with backbone.name {TEXTS} or {IMAGES} can be exported"
        raise UserError(what, where=where, remedy=remedy)
    if shared.plan.task.question != "classification":
        what = f"it answers {shared.plan.task.question}, and the library's classifier tells classes"
        raise UserError(what, where=where, remedy="use `fedgraft predict`")
    if not isinstance(shared.preprocess, TextPreparation | Preprocess):
        what = "it sees slices of volumes, and the library's classifier images"
        raise UserError(what, where=where, remedy="use `fedgraft predict`")
    if shared.plan.backbone.image_channels not in (None, COLOURS):
        what = f"its images have {shared.plan.backbone.image_channels} channels, and those that the"
        what += " library prepares are in colour"
        raise UserError(what, where=where, remedy="use `fedgraft predict`")
    depths = shared.model.depths
    if depths is not None and depths.stages != (LAST,):
        what = f"its head reads {len(depths.stages)} depths, and the library's classifier the last"
        remedy = f"write train.closed_form.features: last, or train the head by steps, {_AGAIN}"
        raise UserError(what, where=where, remedy=remedy)
    if REFERENCE in shared.model.net._modules:
        what = (
            "its head reads features of norm 1, as a closed form under privacy does, and the"
            " library's classifier reads them as they are"
        )
        remedy = f"write train.method: steps, {_AGAIN}"
        raise UserError(what, where=where, remedy=remedy)
    if shared.plan.adapter.method == "bottleneck":
        what = "its bottleneck adapters stay modules behind their blocks: they do not merge"
        remedy = f"write adapter.method: lora, bias, scale-shift, head or full, {_AGAIN}"
        raise UserError(what, where=where, remedy=remedy)
    described = describe_network(shared)
    _check_pooling(described, where)
    return described


def describe_network(shared: SharedModel) -> HuggingFaceShape:
    """Return what stands among the network's tensors."""
    known = TEXT_SHAPES if shared.plan.backbone.name == TEXTS else IMAGE_SHAPES
    content = bytes_of(shared.model.net.get_buffer(DESCRIPTION))
    return read_shape(content, known, "model")


def _check_pooling(described: HuggingFaceShape, where: str) -> None:
    """Raise `UserError` where the head reads something else than the library's classifier does."""
    kind = described.model_type
    if described.native is None:
        what = f"it is a {kind}, and the library's classifier of one is not known here"
        known = ", ".join([*TEXT_CLASSIFIERS, *IMAGE_CLASSIFIERS])
        raise UserError(what, where=where, remedy=f"{known} can be exported")
    # of DINOv2 the classifier reads the first token and more
    if described.pooling == described.native or kind == "dinov2":
        return
    what = (
        f"its head reads the tokens by {described.pooling}, and the library's classifier of a"
        f" {kind} does not"
    )
    raise UserError(what, where=where, remedy=f"write backbone.pool: native, {_AGAIN}")


# ── the library's classifier with our values ──────────────────────────────────────────────────────
def build_classifier(shared: SharedModel, described: HuggingFaceShape) -> Any:
    """Return the library's classifier with a shared model's values, adapters merged.

    Raises:
        UserError: an adapter has added a tensor that the library's network has not, or biases of a
            GPT-2 that cannot be written.
    """
    library = import_library()
    is_text = shared.plan.backbone.name == TEXTS
    kind = described.model_type
    known = TEXT_CLASSIFIERS[kind] if is_text else IMAGE_CLASSIFIERS[kind]
    merged = shared.model.merge()
    names = dict(enumerate(shared.classes))
    options = described.for_library()
    options |= {"id2label": names, "label2id": {name: at for at, name in names.items()}}
    options["problem_type"] = "single_label_classification"
    if kind == "gpt2":
        options["pad_token_id"] = choose_padding(shared)
    if kind == "vit":
        options["image_size"] = _preparation_of_images(shared).crop or options["image_size"]
    config = getattr(library, known.configuration)(**options)
    whole = getattr(library, known.model)(config).eval()
    state = name_tensors(shared, merged, known, described)
    expected = whole.state_dict()
    # for images with patches left out, in pre-training alone
    missing = {name for name in expected.keys() - state.keys() if not name.endswith("mask_token")}
    added = sorted(state.keys() - expected.keys())
    if added or missing:
        name = (added or sorted(missing))[0]
        what = f"{name} is in one of the networks alone: {shared.plan.adapter.method} has added it"
        remedy = f"write adapter.method: lora or head, {_AGAIN}"
        raise UserError(what, where="adapter.method", remedy=remedy)
    whole.load_state_dict(state, strict=False)
    return whole.requires_grad_(False)


def name_tensors(
    shared: SharedModel, merged: nn.Module, known: Classifier, described: HuggingFaceShape
) -> dict[str, Tensor]:
    """Return a merged network's tensors under the names of the library's classifier."""
    state = merged.state_dict()
    ours = shared.model.head_name
    weight = state.pop(f"{ours}.weight")
    bias = state.pop(f"{ours}.bias")
    networks: Mapping[str, Any] = IMAGE_NETWORKS
    if shared.plan.backbone.name == TEXTS:
        networks = TEXT_NETWORKS
    turned = networks[described.model_type].turned
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in (DESCRIPTION, TOKENIZER, PREPARATION):
            continue
        if turned and name.endswith(turned):
            tensor = tensor.T.contiguous()
        their = f"{known.inner}.{name}"
        if name.startswith(f"{NATIVE}."):
            their = name.replace(NATIVE, known.first, 1)
        named[their] = tensor
    if described.model_type == "gpt2":
        norm = f"{known.inner}.ln_f.bias"
        named[norm] = named[norm] + shift_for(weight, bias)
    else:
        named[f"{known.head}.bias"] = bias
    if described.model_type == "vit":
        positions = f"{known.inner}.embeddings.position_embeddings"
        named[positions] = _positions_for(merged, _preparation_of_images(shared).crop)
    if described.model_type == "dinov2" and described.pooling == "first":
        # the mean of the patches counts nothing
        weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    named[f"{known.head}.weight"] = weight
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def shift_for(weight: Tensor, bias: Tensor) -> Tensor:
    """Return what is added to the last normalisation's shift `(d,)`, so that a head without a bias
    gives what this one gives: W s = b. GPT-2's own classifier has no bias, and nothing else reads
    what is normalised last.

    Args:
        weight, bias: of the head, `(classes, d)` and `(classes,)`.

    Raises:
        UserError: there is none.
    """
    shift = torch.linalg.pinv(weight.double(), rtol=LEAST_SINGULAR) @ bias.double()
    left = (weight.double() @ shift - bias).abs().max()
    if left > TOLERANCE * (1 + bias.abs().max()):
        what = (
            "the biases of its head cannot be written: the library's classifier of a GPT-2 has"
            " none, and these are in no direction that the weights of the head reach"
        )
        raise UserError(what, where="backbone.name", remedy="train a bert, roberta or distilbert")
    return shift.to(weight.dtype)


def _positions_for(merged: Any, side: int | None) -> Tensor:
    """Return a ViT's table of positions as it is for images of some pixels."""
    embeddings = merged.embeddings
    positions = embeddings.position_embeddings
    if side is None:
        return positions
    patches = (side // embeddings.patch_embeddings.patch_size[0]) ** 2
    tokens = positions.new_zeros(1, 1 + patches, positions.shape[2])
    return embeddings.interpolate_pos_encoding(tokens, side, side)


def choose_padding(shared: SharedModel) -> int:
    """Return a token that stands for padding in a GPT-2, whose classifier looks for the last token
    that is none: a special one that does not end every text.

    Raises:
        UserError: there is none.
    """
    content = bytes_of(shared.model.net.get_buffer(TOKENIZER))
    ends = open_tokenizer(content).encode("").ids[-1:]
    for token in json.loads(content).get("added_tokens") or []:
        if token.get("special") and token["id"] not in ends:
            return int(token["id"])
    what = "its tokenizer has no special token that could stand for padding in a GPT-2"
    raise UserError(what, where=TOKENIZER_FILE, remedy="give a folder whose tokenizer has one")


# ── the same outputs ──────────────────────────────────────────────────────────────────────────────
@torch.no_grad()
def compare(shared: SharedModel, described: HuggingFaceShape, whole: Any) -> float:
    """Return the largest difference of the library's outputs from the shared model's on random
    inputs. Raise `UserError` where it is no rounding.
    """
    generator = torch.Generator().manual_seed(0)
    if shared.plan.backbone.name == TEXTS:
        inputs, arguments = _draw_texts(shared, described, whole, generator)
    else:
        side = _preparation_of_images(shared).crop or getattr(described, "image_size", 0)
        inputs = torch.randn(PROBES, COLOURS, side, side, generator=generator)
        arguments = {"pixel_values": inputs}
    ours = shared.model(inputs)
    theirs = whole(**arguments).logits
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
        what = f"the library's classifier gives outputs that differ by {difference:.1e}"
        remedy = "use `fedgraft predict`, and tell us which model this is"
        raise UserError(what, where="export", remedy=remedy)
    return difference


def _draw_texts(
    shared: SharedModel, described: HuggingFaceShape, whole: Any, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return random tokens of texts of several lengths, and the same as the library takes them."""
    preparation = _preparation_of_texts(shared)
    length = preparation.max_length
    padding = whole.config.pad_token_id
    tokens = torch.randint(0, preparation.vocabulary, (PROBES, length), generator=generator)
    # no text holds what it is padded with
    tokens[tokens == padding] = (padding + 1) % preparation.vocabulary
    lengths = torch.randint(1, length + 1, (PROBES, 1), generator=generator)
    tokens[torch.arange(length) >= lengths] = -1
    here = is_token(tokens)
    ids = torch.where(here > 0, tokens, padding)
    return tokens, {"input_ids": ids, "attention_mask": here.long()}


# ── the files beside it ───────────────────────────────────────────────────────────────────────────
def write_preparation_files(shared: SharedModel, whole: Any, folder: Path) -> None:
    """Write how texts are cut into tokens, or how images are prepared, as the library reads it."""
    if shared.plan.backbone.name == IMAGES:
        processor = write_processor(_preparation_of_images(shared))
        (folder / PROCESSOR).write_text(json.dumps(processor, indent=1) + "\n")
        return
    content = bytes_of(shared.model.net.get_buffer(TOKENIZER))
    (folder / TOKENIZER_FILE).write_bytes(content)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _preparation_of_texts(shared).max_length,
        "pad_token": open_tokenizer(content).id_to_token(whole.config.pad_token_id),
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def list_notes(shared: SharedModel) -> list[str]:
    """Return what of a shared model such a folder does not hold."""
    notes: list[str] = []
    if shared.threshold is not None:
        notes.append(
            f"the second class is answered from a probability of {shared.threshold:.3g} on; the"
            " library answers the likeliest"
        )
    if shared.variance is not None:
        notes.append("deviations of the scores stay behind")
    if shared.plan.backbone.name == TEXTS:
        length = _preparation_of_texts(shared).max_length
        notes.append(f"texts were cut at {length} tokens: write tokenizer(…, truncation=True)")
    return notes


def _preparation_of_texts(shared: SharedModel) -> TextPreparation:
    assert isinstance(shared.preprocess, TextPreparation)
    return shared.preprocess


def _preparation_of_images(shared: SharedModel) -> Preprocess:
    assert isinstance(shared.preprocess, Preprocess)
    return shared.preprocess

"""The family of Hugging Face's vision transformers, `huggingface-image`: which one it is stands in
the folder that the plan names as its weights, and how images are prepared stands there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.targets import count_channels
from fedgraft.common.backbones.clip_texts import weigh_texts
from fedgraft.common.backbones.family import (
    Family,
    NetworkShape,
    Pooling,
    State,
    Step,
    keep_state,
)
from fedgraft.common.backbones.huggingface import refuse_names
from fedgraft.common.backbones.huggingface_folder import CONFIG, read_folder_tensors, read_json
from fedgraft.common.backbones.huggingface_library import build_library_model, drop_tables
from fedgraft.common.backbones.huggingface_shapes import (
    IMAGE_SHAPES,
    HuggingFaceShape,
    check_pooling,
    read_config,
    read_shape,
    write_shape,
)
from fedgraft.common.backbones.huggingface_tensors import (
    DESCRIPTION,
    HEAD,
    choose_tensors,
    take_file,
)
from fedgraft.common.backbones.patches import check_patches
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.image import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from fedgraft.common.inputs.material import PREPARATION, write_preparation
from fedgraft.common.inputs.tokenizer_file import tensor_of

NAME = "huggingface-image"
PROCESSOR = "preprocessor_config.json"
# how Pillow numbers them
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
# pixels that DINOv2 is used with, whatever it was trained with
USUAL_SIDE = 224


class ImageNetwork(nn.Module):
    """A vision transformer with the children of the library's model and their names.

        net = VitNetwork(shape, files={})
        net(images)  # float32 (n, 3, H, W) → (n, 2)

    Attributes:
        model, configuration: classes of the library.
        options: of its model.
        blocks: dotted name of its blocks.
        turned: ends of the names of weights that the library keeps the other way round.
        last_norm: the child that normalises the last states.
        has_patches: whether the mean of the patches is read, too.
    """

    model: ClassVar[str]
    configuration: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    blocks: ClassVar[str]
    turned: ClassVar[tuple[str, ...]] = ()
    last_norm: ClassVar[str] = "layernorm"

    def __init__(self, shape: HuggingFaceShape, files: Mapping[str, bytes]) -> None:
        super().__init__()
        whole = build_library_model(self.model, self.configuration, shape, self.options)
        for name, child in whole.named_children():
            self.add_module(name, child)
        drop_tables(self)
        for name, content in files.items():
            self.register_buffer(name, tensor_of(content))
        width = count_channels(self.get_submodule(self.blocks))
        self.has_patches = shape.pooling == "native"
        if self.has_patches:
            width = 2 * width
        width = self.add_projection(shape, width)
        self.classifier = nn.Linear(width, 2)

    def add_projection(self, shape: Any, width: int) -> int:
        """Add what stands behind the first token, where anything does. Return how many features
        there are then.
        """
        return width

    def project(self, first: Tensor) -> Tensor:
        """Return what the classifier reads of the first token (n, width)."""
        return first

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (n, 1 + patches, width)."""
        return self.get_submodule("embeddings")(images)

    def call(self, run: Callable[..., Any], x: Tensor) -> Any:
        """Run a block, or an adapter behind one, on tokens (n, 1 + patches, width)."""
        return run(x)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) → logits (n, 2)."""
        x = embed_images(self, images)
        for block in self.get_submodule(self.blocks).children():
            x = self.call(block, x)
        return self.classifier(take_first(self, x))


class VitNetwork(ImageNetwork):
    """The vision transformer; its table of positions is interpolated for other sizes."""

    model = "ViTModel"
    configuration = "ViTConfig"
    options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    blocks = "layers"

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (n, 1 + patches, width)."""
        return self.get_submodule("embeddings")(images, interpolate_pos_encoding=True)


class Dinov2Network(ImageNetwork):
    """DINOv2."""

    model = "Dinov2Model"
    configuration = "Dinov2Config"
    blocks = "encoder.layer"

    def __init__(self, shape: HuggingFaceShape, files: Mapping[str, bytes]) -> None:
        super().__init__(shape, files)
        # for images with patches left out, in pre-training alone
        self.get_submodule("embeddings").mask_token = None  # type: ignore[assignment]


class ClipImageNetwork(ImageNetwork):
    """CLIP's encoder of images; its table of positions is interpolated for other sizes.

    Attributes:
        is_joint: whether the classifier reads the space that images and texts share.
    """

    model = "CLIPVisionModel"
    configuration = "CLIPVisionConfig"
    blocks = "encoder.layers"
    last_norm = "post_layernorm"
    is_joint = False

    def add_projection(self, shape: Any, width: int) -> int:
        """Add the map into the shared space, where that is read. Return how many features there are
        then.
        """
        if shape.pooling != "joint":
            return width
        self.is_joint = True
        self.visual_projection = nn.Linear(width, shape.projection_dim, bias=False)
        return shape.projection_dim

    def project(self, first: Tensor) -> Tensor:
        """Return the first token (n, width); in the shared space a vector of length 1 (n,
        projection_dim).
        """
        if not self.is_joint:
            return first
        return F.normalize(self.visual_projection(first), dim=-1)

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (n, 1 + patches, width)."""
        embeddings: Any = self.get_submodule("embeddings")
        patches = embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        first = embeddings.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([first, patches], dim=1)
        positions = embeddings.position_embedding.weight[None]
        if positions.shape[1] != tokens.shape[1]:
            height, width = images.shape[2:]
            positions = embeddings.interpolate_pos_encoding(tokens, height, width)
        # the name has no e in the library
        return self.get_submodule("pre_layrnorm")(tokens + positions)

    def call(self, run: Callable[..., Any], x: Tensor) -> Any:
        """Run a block, which wants to be told that every token sees every other."""
        return run(x, attention_mask=None)


def embed_images(net: Any, images: Tensor) -> Tensor:
    """Images (n, 3, H, W) → tokens (n, 1 + patches, width)."""
    return net.embed(images)


def take_first(net: Any, x: Tensor) -> Tensor:
    """Tokens (n, 1 + patches, width) → the first, normalised (n, width), in the space of a pair
    where that is read; and behind it the mean of the others where the library's own classifier
    reads it (n, 2 · width).
    """
    states = net.get_submodule(net.last_norm)(x)
    if net.has_patches:
        return torch.cat([states[:, 0], states[:, 1:].mean(1)], dim=1)
    return net.project(states[:, 0])


def call_block(net: Any, run: Callable[..., Any], x: Tensor) -> Tensor:
    """Run a block, or an adapter behind one, as its network does."""
    return net.call(run, x)


NETWORKS: Mapping[str, type[ImageNetwork]] = {
    "vit": VitNetwork,
    "dinov2": Dinov2Network,
    "clip": ClipImageNetwork,
}
_LIBRARY = "transformers.models"
BLOCK_TYPES: Mapping[str, bool] = {
    f"{_LIBRARY}.vit.modeling_vit.ViTLayer": True,
    f"{_LIBRARY}.dinov2.modeling_dinov2.Dinov2Layer": True,
    f"{_LIBRARY}.clip.modeling_clip.CLIPEncoderLayer": True,
}


def _list_order() -> dict[str, tuple[Step, ...]]:
    order: dict[str, tuple[Step, ...]] = {}
    for network in NETWORKS.values():
        order[f"{__name__}.{network.__qualname__}"] = (
            embed_images,
            network.blocks,
            take_first,
            HEAD,
        )
    return order


# ── the family ────────────────────────────────────────────────────────────────────────────────────
def build(name: str, shape: NetworkShape) -> nn.Module:
    """Return a network with the library's own initialisation. Raise `UserError` without a folder's
    description.
    """
    if DESCRIPTION not in shape.files:
        what = f"{name} is a model's folder, and none is named"
        raise UserError(what, where="backbone.weights", remedy="write the folder, such as ./vit")
    described = read_shape(shape.files[DESCRIPTION], IMAGE_SHAPES, name)
    return NETWORKS[described.model_type](described, shape.files)


def prepare_images(name: str, weights: str | None, size: int | None) -> Preprocess:
    """Return what images go through where no folder says it."""
    side = size or USUAL_SIDE
    return Preprocess(side, side, IMAGENET_MEAN, IMAGENET_STD)


def read_files(state: State, shape: NetworkShape, where: str) -> NetworkShape:
    """Return what the two files among the tensors say. Raise `UserError` where they are not there,
    or the images do not fit.
    """
    files = {name: take_file(state, name, where) for name in (DESCRIPTION, PREPARATION)}
    described = read_shape(files[DESCRIPTION], IMAGE_SHAPES, where)
    _check_side(described, shape.image_size)
    check_pooling(described, shape.pool, where)
    return replace(shape, files=files)


def read_folder(folder: Path, size: int | None, pool: Pooling | None) -> tuple[State, Preprocess]:
    """Return the tensors of a model's folder and how its images are prepared.

    Args:
        size: pixels of a side; None: the folder's own.
        pool: how tokens become one vector; None: the first is taken.

    Raises:
        UserError: what is there is no model that is known, or asks for more than data.
    """
    where = str(folder / CONFIG)
    described = read_config(read_json(folder / CONFIG), IMAGE_SHAPES, "first", where, pool)
    preparation = read_processor(folder, size)
    _check_side(described, preparation.crop)
    given = read_folder_tensors(folder)
    state = choose_tensors(NETWORKS[described.model_type], described, given, str(folder))
    state[DESCRIPTION] = tensor_of(write_shape(described))
    state[PREPARATION] = tensor_of(write_preparation(preparation))
    return state, preparation


def read_processor(folder: Path, size: int | None) -> Preprocess:
    """Return how a folder's `preprocessor_config.json` prepares images: the shorter side resized,
    the centre cropped; a side that is given keeps the proportion between the two.

    Raises:
        UserError: it is not there, or prepares images in a way that is not known.
    """
    path = folder / PROCESSOR
    config = read_json(path)
    try:
        shorter = _side_of(config["size"])
        crop = shorter
        if config.get("do_center_crop", False):
            crop = _side_of(config["crop_size"])
        if size is not None:
            shorter = round(shorter * size / crop)
            crop = size
        return Preprocess.from_json(
            {
                "size": shorter,
                "crop": crop,
                "mean": config.get("image_mean", IMAGENET_MEAN),
                "std": config.get("image_std", IMAGENET_STD),
                "interpolation": INTERPOLATIONS[config.get("resample", 2)],
                "antialias": True,
            }
        )
    except (KeyError, TypeError, ValueError, UserError) as error:
        what = f"a preparation of images that is not known here ({type(error).__name__})"
        remedy = "known are a size, a crop, a mean and a deviation by channel, and two resamplings"
        raise UserError(what, where=str(path), remedy=remedy) from error


def write_processor(preparation: Preprocess) -> dict[str, Any]:
    """Return the opposite of `read_processor`, as the library's own processor reads it."""
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    side = preparation.crop
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": preparation.size is not None,
        "size": {"shortest_edge": preparation.size or side},
        "resample": numbers[preparation.interpolation],
        "do_center_crop": side is not None,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
    }


def _side_of(value: Any) -> int:
    """Return the pixels of a side, as the library writes it."""
    if isinstance(value, dict):
        value = value.get("shortest_edge", value.get("height"))
    return int(value)


def _check_side(described: HuggingFaceShape, side: int | None) -> None:
    """Raise `UserError` where patches do not fill an image."""
    patch = int(getattr(described, "patch_size", 1))
    check_patches(f"this {described.model_type}", patch, side)


HUGGINGFACE_IMAGE = Family(
    names=lambda: (NAME,),
    build=build,
    preparation=prepare_images,
    fetch=refuse_names,
    read_shape=read_files,
    fit=keep_state,
    block_types=BLOCK_TYPES,
    order=_list_order(),
    used_by_steps={
        embed_images: ("embeddings", "pre_layrnorm"),
        take_first: ("layernorm", "post_layernorm", "visual_projection"),
    },
    calls=dict.fromkeys(BLOCK_TYPES, call_block),
    read_folder=read_folder,
    kept_when_random=(DESCRIPTION, PREPARATION),
    weigh_texts=weigh_texts,
)

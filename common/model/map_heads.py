"""Heads that answer for each place: which maps of a backbone they read, and how they are made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedgraft.common.backbones.backbone import Backbone, slices_of
from fedgraft.common.backbones.reference import NAME
from fedgraft.common.inputs.augment_images import PATCH
from fedgraft.common.model.box_head import BoxHead, drop_finer
from fedgraft.common.model.depth_features import Selection
from fedgraft.common.model.map_decoder import MapDecoder
from fedgraft.common.model.pixel_head import PixelHead
from fedgraft.common.model.slices import fold_slices
from fedgraft.common.model.stage_maps import MapLayout, StageMaps, choose_map_stages, layout_of


@dataclass(frozen=True)
class MapChoice:
    """Which maps a head reads, and which head it is.

    Attributes:
        features: "all", "last" or names of stages, see `stage_maps.py`.
        example: a prepared batch of one, which shows the sizes.
        width: of a decoder that is trained by steps; None: a linear head, which is solved from
            sums.
        solved: whether a linear head beside the decoder is solved from sums first.
        patches: whether it is trained on patches, see `augment_images.py`.
        strides: of the places that tell boxes; none: the head answers for each place of an image.
        precision: that the frozen part is computed in.
    """

    features: Selection
    example: Tensor
    width: int | None = None
    solved: bool = False
    patches: bool = False
    strides: tuple[int, ...] = ()
    precision: str = "float32"


def open_maps(backbone: Backbone, net: nn.Module, choice: MapChoice) -> StageMaps:
    """Return the chosen maps of a copy of a backbone's network. Raise `UserError` as
    `choose_map_stages`.
    """
    slices = slices_of(backbone.preprocess)
    example = choice.example if slices is None else fold_slices(choice.example)[:1]
    stages = choose_map_stages(backbone, choice.features, example)
    maps = StageMaps(net, head_name=backbone.head_name, stages=stages, slices=slices)
    if not choice.strides:
        return maps
    coarse = drop_finer(stages, layout_of(maps, choice.example), choice.strides[0])
    return StageMaps(net, head_name=backbone.head_name, stages=coarse, slices=slices)


def new_map_head(maps: StageMaps, choice: MapChoice, classes: int, seed: int) -> nn.Module:
    """Return a fresh head on maps; a linear one begins with zeros."""
    layout = layout_of(maps, choice.example)
    more: tuple[MapLayout, ...] = ()
    if choice.patches:
        more = (layout_of(maps, cut_patch(choice.example)),)
    if choice.strides and choice.width is not None:
        return BoxHead(layout, classes, strides=choice.strides, width=choice.width, seed=seed)
    if choice.width is None:
        reference = maps.net._modules.get(NAME)
        standardise = None if reference is None else reference.forward
        return PixelHead(layout, classes, more, standardise)
    return MapDecoder(
        layout, classes, width=choice.width, seed=seed, solved=choice.solved, more=more
    )


def linear_part(head: nn.Module) -> PixelHead | None:
    """Return what of a head is solved from sums over places; None where nothing is."""
    if isinstance(head, MapDecoder):
        return head.solved
    return head if isinstance(head, PixelHead) else None


def cut_patch(example: Tensor) -> Tensor:
    """Return a patch of an image `(1, channels, S, S)`, of the size that training draws."""
    side = example.shape[-1] // PATCH
    return example[..., :side, :side]

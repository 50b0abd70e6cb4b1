"""Features of all depths: what each block of a frozen network gives, pooled to one vector.

After Evci et al. 2022 (Head2Toe), section 3: a layer behind the last one is often the better one to
read another question from. A stage is the output of a residual block; before the first lies the
stem's, and behind the last whatever enters the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.targets import find_blocks, has_channels_last
from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone, slices_of
from fedgraft.common.backbones.forward_steps import mean_of_places
from fedgraft.common.backbones.reference import NAME
from fedgraft.common.errors import UserError
from fedgraft.common.model.slices import fold_slices, mean_over_slices

Selection = Literal["all", "last"] | Sequence[str]
Pool = Literal["mean", "mean-and-deviation"]
Places = Callable[[Tensor], Tensor] | None
# what enters the first block, and what enters the classifier
STEM = "stem"
LAST = "last"
# features of all stages; of a larger network the last block of each group of blocks
MOST_FEATURES = 4096
# the stem, the end of one group, and the last: more are more groups
ONE_GROUP = 3


class DepthFeatures:
    """Pooled outputs of some stages of a network, one vector for each example.

        features = DepthFeatures(net, head_name="linear", stages=("stem", "layer1.0", "last"))
        features(images).shape  # (n, 16 + 16 + 64)

    Args:
        net: the network, with anything that gives `(n, …)` in the classifier's place.
        head_name: dotted name of the classifier.
        stages: names of blocks, "stem" and "last", in the order of the features.
        pool: "mean" of a stage's positions, or beside it their standard deviation.
        places: prepared inputs → which positions count, see `Family`; None: all do.
        slices: of a volume, for a network over images; the mean over them is taken. None: a record
            is what the network takes.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        head_name: str,
        stages: Sequence[str],
        pool: Pool = "mean",
        places: Places = None,
        slices: int | None = None,
    ) -> None:
        self.slices = slices
        self.net = net
        self.head_name = head_name
        self.stages = tuple(stages)
        self.pool: Pool = pool
        self.places = places

    def __call__(self, x: Tensor) -> Tensor:
        """Prepared inputs (n, …) → features (n, d)."""
        if self.slices is not None:
            x = fold_slices(x)
        with watching(self.net, self.stages, self.head_name) as outputs:
            self.net(x)
        here = None if self.places is None else self.places(x)
        pooled: list[Tensor] = []
        for name in self.stages:
            output, channels_last = outputs[name]
            pooled.append(pool_positions(widen(output), channels_last, self.pool, here))
        features = mean_over_slices(torch.cat(pooled, dim=1), self.slices)
        return refer(self.net, features)


def refer(net: nn.Module, features: Tensor) -> Tensor:
    """Return features as a network's public reference maps them, in float32 whatever the network
    runs in: their norms are what privacy counts on.
    """
    reference = net._modules.get(NAME)
    if reference is None:
        return features
    with torch.autocast(features.device.type, enabled=False):
        return reference(features)


def widen(output: Tensor) -> Tensor:
    """Return what a network in bfloat16 gives as float32; anything else as it is."""
    return output.float() if output.dtype == torch.bfloat16 else output


def pool_positions(
    output: Tensor, channels_last: bool, pool: Pool, here: Tensor | None = None
) -> Tensor:
    """Return a stage's output `(n, C, …)` or `(n, …, C)` as one vector `(n, C)`, or `(n, 2C)`.

    Args:
        here: which positions of `(n, positions, C)` count, 1 or 0; None: all do.
    """
    if output.ndim == 2:
        return output
    if here is not None:
        return _pool_places(output, pool, here)
    positions = tuple(range(2, output.ndim))
    if channels_last:
        positions = tuple(range(1, output.ndim - 1))
    mean = output.mean(positions)
    if pool == "mean":
        return mean
    return torch.cat([mean, output.var(positions, unbiased=False).sqrt()], dim=1)


def _pool_places(output: Tensor, pool: Pool, here: Tensor) -> Tensor:
    mean = mean_of_places(output, here)
    if pool == "mean":
        return mean
    variance = mean_of_places((output - mean[:, None]).square(), here)
    return torch.cat([mean, variance.sqrt()], dim=1)


@contextmanager
def watching(
    net: nn.Module, stages: Sequence[str], head_name: str
) -> Iterator[dict[str, tuple[Tensor, bool]]]:
    """Give the outputs of stages, and whether their channels are last, as the network runs."""
    outputs: dict[str, tuple[Tensor, bool]] = {}
    blocks = find_blocks(net)

    def keep_output(name: str, channels_last: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            # some blocks give more beside their output
            first = output[0] if isinstance(output, tuple) else output
            outputs[name] = (first, channels_last)

        return hook

    def keep_input(name: str, channels_last: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entering = inputs[0]
            # a dense block's layer is given the outputs of all layers before it
            if isinstance(entering, list):
                entering = entering[-1]
            # the first block that runs is not always the first by name
            outputs.setdefault(name, (entering, channels_last))

        return hook

    handles = []
    for name, block in blocks.items():
        is_last = has_channels_last(block)
        if STEM in stages:
            handles.append(block.register_forward_pre_hook(keep_input(STEM, is_last)))
        if name in stages:
            handles.append(block.register_forward_hook(keep_output(name, is_last)))
    head = net.get_submodule(head_name)
    handles.append(head.register_forward_pre_hook(keep_input(LAST, False)))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def count_features(features: DepthFeatures, example: Tensor) -> int:
    """Return how many features there are of an example."""
    return features(example).shape[1]


# ── which stages ──────────────────────────────────────────────────────────────────────────────────
def list_stages(net: nn.Module) -> list[str]:
    """Return the names of a network's stages in order: the stem, its blocks, the last."""
    blocks = list(find_blocks(net))
    if not blocks:
        return [LAST]
    return [STEM, *blocks, LAST]


def choose_stages(
    backbone: Backbone, selection: Selection, pool: Pool, example: Tensor
) -> tuple[str, ...]:
    """Return the stages that a plan selects, in the network's order.

    "all" leaves out what would be there twice (a last block whose mean enters the classifier). Of
    a network with more than `MOST_FEATURES` features it takes the last block of each group that
    the network's own names make (`layer3.5` of `layer3`), and of one whose blocks are a single
    group, or where that is too much still, every k-th block from the end.

    Args:
        example: a prepared batch of one; it shows the widths, and which stages say the same.

    Raises:
        UserError: a name that is no stage of this network.
    """
    net = backbone.net
    if slices_of(backbone.preprocess) is not None:
        example = fold_slices(example)
    stages = list_stages(net)
    if selection == "last":
        return (LAST,)
    if selection != "all":
        return select_stages(stages, selection)
    with torch.no_grad(), watching(net, stages, backbone.head_name) as outputs:
        net(example)
    places = family_of(backbone.name).places
    here = None if places is None else places(example)
    pooled = {name: pool_positions(*outputs[name], pool, here) for name in stages}
    if len(stages) > 1:
        block = outputs[stages[-2]]
        entering = outputs[LAST][0]
        joins = family_of(backbone.name).joined is not None
        if joins:
            entering = entering[:, : pooled[stages[-2]].shape[1]]
        if _says_the_same(block, entering, here):
            _drop_repeated(stages, pool, joins=joins)
    return thin_out(stages, pooled)


def select_stages(stages: Sequence[str], selection: Sequence[str]) -> tuple[str, ...]:
    """Return the stages that are named, in the network's order. Raise `UserError` for a name that
    is none.
    """
    unknown = [name for name in selection if name not in stages]
    if unknown:
        raise UserError(
            f"{unknown[0]!r} is no stage of this network",
            where="train.closed_form.features",
            remedy=f"write all, last, or some of {', '.join(stages)}",
        )
    return tuple(name for name in stages if name in selection)


def _drop_repeated(stages: list[str], pool: Pool, *, joins: bool) -> None:
    """Leave out the last block or what enters the classifier, where the block's mean is that, or
    the beginning of it.
    """
    if pool == "mean":
        del stages[-2]
    elif not joins:
        # the deviation is the block's alone
        stages.remove(LAST)


def _says_the_same(block: tuple[Tensor, bool], entering: Tensor, here: Tensor | None) -> bool:
    """Whether what enters the classifier is just the mean of the last block's output."""
    mean = pool_positions(*block, "mean", here)
    return mean.shape == entering.shape and torch.allclose(mean, entering, atol=1e-5)


def thin_out(stages: Sequence[str], pooled: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return as many of the stages as `MOST_FEATURES` allows, by the rule of `choose_stages`."""

    def fits(kept: Sequence[str]) -> bool:
        return sum(pooled[name].shape[1] for name in kept) <= MOST_FEATURES

    ends = _last_of_groups(stages)
    if fits(stages):
        return tuple(stages)
    if len(ends) > ONE_GROUP and fits(ends):
        return tuple(ends)
    for step in range(2, len(stages) + 1):
        kept = stages[::-1][::step][::-1]
        if fits(kept):
            return tuple(kept)
    return (LAST,)


def _last_of_groups(stages: Sequence[str]) -> list[str]:
    """Return of stages that follow one another in one module the last."""
    ends: list[str] = []
    for name, following in zip(stages, [*stages[1:], ""], strict=True):
        group = name.rpartition(".")[0]
        if not group or group != following.rpartition(".")[0]:
            ends.append(name)
    return ends

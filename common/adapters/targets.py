"""Which layers and which blocks of a backbone an adapter may serve, and which of them a plan
picks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from fedgraft.common.adapters.convolutions import CONVOLUTIONS
from fedgraft.common.adapters.method import Targets
from fedgraft.common.backbones import FAMILIES
from fedgraft.common.backbones.family import kind_of
from fedgraft.common.backbones.quantization import QuantizedLinear
from fedgraft.common.errors import UserError

# layers that adapters serve, and the methods that say what they compute; of a kind before what it
# is a kind of
COMPUTED_BY: dict[type[nn.Module], tuple[str, ...]] = {
    QuantizedLinear: ("forward",),
    nn.Linear: ("forward",),
    nn.Conv1d: ("forward", "_conv_forward"),
    nn.Conv2d: ("forward", "_conv_forward"),
    nn.Conv3d: ("forward", "_conv_forward"),
    nn.MultiheadAttention: ("forward",),
}
# names of candidates in one message, from the beginning and from the end
FIRST_SHOWN = 3
LAST_SHOWN = 2


# ── what there is ─────────────────────────────────────────────────────────────────────────────────
def find_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return Linear, convolutions and MultiheadAttention by name; the last stands for its
    projection to q, k and v.

    The layers of Swin v2 that make its table of positions are left out: they see no example.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if computes_as_known(module) and ".cpb_mlp." not in name:
            layers[name] = module
    return layers


def computes_as_known(module: nn.Module) -> bool:
    """Whether a module is a layer that adapters serve, or of a class of its own that computes just
    the same.

    An adapter runs beside a layer and is folded into its weight. Of a convolution that pads its
    input first, as TensorFlow's do, it would see another input than the layer.
    """
    for kind, methods in COMPUTED_BY.items():
        if isinstance(module, kind):
            own = type(module)
            return all(getattr(own, name) is getattr(kind, name) for name in methods)
    return False


def find_blocks(net: nn.Module) -> dict[str, nn.Module]:
    """Return residual blocks by name, in order."""
    types = block_types()
    return {name: module for name, module in net.named_modules() if kind_of(module) in types}


def block_types() -> dict[str, bool]:
    """Return the residual blocks of all families, and whether their output has channels last."""
    types: dict[str, bool] = {}
    for family in FAMILIES.values():
        types |= family.block_types
    return types


def parent_of(net: nn.Module, name: str) -> nn.Module:
    """Return the module that the named one is a child of."""
    return net.get_submodule(name.rpartition(".")[0])


def has_channels_last(block: nn.Module) -> bool:
    """Whether a block's output is (n, …, channels) rather than (n, channels, …)."""
    return block_types()[kind_of(block)]


def count_channels(block: nn.Module) -> int:
    """Return the channels of a block's output: as it says itself, or those of its last layer."""
    own = getattr(block, "block_channels", None)
    if own is not None:
        return own
    channels = 0
    for module in block.modules():
        if isinstance(module, nn.Linear):
            channels = module.out_features
        elif isinstance(module, CONVOLUTIONS):
            channels = module.out_channels
    return channels


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel is convolved by itself."""
    if not isinstance(layer, CONVOLUTIONS):
        return False
    return layer.groups > 1 and layer.groups == layer.in_channels


# ── what a plan picks ─────────────────────────────────────────────────────────────────────────────
def select(
    candidates: Mapping[str, nn.Module], targets: Targets, net: nn.Module
) -> dict[str, nn.Module]:
    """Return the candidates that `targets` pick: all for "auto", those in the last residual block
    for "last-block", else those whose own name, or the name of a module around them, matches one of
    the patterns (`fnmatch`).

    Raises:
        UserError: nothing is picked, by "auto" neither, or "last-block" for a network without
            residual blocks.
    """
    if targets == "auto":
        if not candidates:
            what = "auto matches nothing in this network that this method can serve"
            remedy = "write `method: head` under adapter: nothing else of it can be trained"
            raise UserError(what, where="adapter.targets", remedy=remedy)
        return dict(candidates)
    if targets == "last-block":
        patterns = [_last_block(candidates, net)]
    else:
        patterns = list_patterns(targets)
    picked: dict[str, nn.Module] = {}
    for name, module in candidates.items():
        if matches(name, patterns):
            picked[name] = module
    if not picked:
        quoted = ", ".join(map(repr, patterns))
        what = f"{quoted} match nothing that this method can serve"
        remedy = f"there are {_list_some(candidates)}"
        raise UserError(what, where="adapter.targets", remedy=remedy)
    return picked


def list_patterns(targets: Targets) -> list[str]:
    """Return the patterns that a plan names; none for "auto" and "last-block"."""
    if targets in ("auto", "last-block"):
        return []
    if isinstance(targets, str):
        return [targets]
    return list(targets)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module, or one around it, has a name that matches one of the patterns."""
    for part in _name_and_around(name):
        if any(fnmatchcase(part, pattern) for pattern in patterns):
            return True
    return False


def _name_and_around(name: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it: a.b.c, a.b, a."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _last_block(candidates: Mapping[str, nn.Module], net: nn.Module) -> str:
    blocks = list(find_blocks(net))
    if not blocks:
        raise UserError(
            "no residual blocks are known in this backbone, so there is no last one",
            where="adapter.targets",
            remedy=f"write auto, or name patterns; its layers are {_list_some(candidates)}",
        )
    return blocks[-1]


def _list_some(candidates: Mapping[str, nn.Module]) -> str:
    names = list(candidates)
    if len(names) > FIRST_SHOWN + LAST_SHOWN:
        names = [*names[:FIRST_SHOWN], "…", *names[-LAST_SHOWN:]]
    return ", ".join(names) or "none"

"""The networks that fedgraft can build, by name: a closed registry, no dotted paths out of a plan.

`build` gives a network without values where that is possible (on torch's meta device, no time spent
on an initialisation that weights replace) or with its own random initialisation from a seed.
Neither touches the global random state in the end: torch's initialisers know no other, so it is
forked under a lock.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch
from torch import nn

from fedgraft.common.backbones.cifar_resnet import DEPTHS, CifarResNet
from fedgraft.common.backbones.mlp import Mlp
from fedgraft.common.errors import UserError

CIFAR = {f"cifar-resnet{depth}": depth for depth in DEPTHS}
_NO_LINEAR_END = ("squeezenet1_0", "squeezenet1_1")  # their classifier is a convolution
_LEGACY_INPUT: dict[
    str, dict[str, Any]
] = {  # as torchvision sets them for its own weights; no auxiliary heads
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
_LEGACY_NAMES = (  # names in torchvision's older files → names in its networks
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_random_state = threading.Lock()


@cache
def known_networks() -> tuple[str, ...]:
    """All names, ours first. Imports torchvision."""
    from torchvision import models

    theirs = (name for name in models.list_models(module=models) if name not in _NO_LINEAR_END)
    return (*CIFAR, "mlp", *theirs)


def is_torchvision(name: str) -> bool:
    """Whether a known network is torchvision's."""
    return name not in CIFAR and name != "mlp"


def check_name(name: str) -> None:
    """Raises `UserError` for a name that no network has, with the nearest ones that exist."""
    if name in CIFAR or name == "mlp" or name in known_networks():
        return
    near = get_close_matches(name, known_networks(), n=3, cutoff=0.5)
    raise UserError(
        f"no backbone is called {name!r}",
        where="backbone.name",
        remedy=(
            f"did you mean {' or '.join(near)}?"
            if near
            else "for instance cifar-resnet20, mlp, resnet18, vit_b_16"
        ),
    )


def build(
    name: str,
    *,
    seed: int | None,
    columns: int = 0,
    hidden: tuple[int, ...] = (),
    image_size: int | None = None,
) -> nn.Module:
    """A network of a known name, classifier included.

    Args:
        seed: for its own random initialisation; None gives tensors without values, for weights to
            come.
        columns, hidden: feature columns and widths of the hidden layers (`mlp` only).
        image_size: pixels; matters to vision transformers only, whose position table has that size.
    """
    make = _maker(name, columns, hidden, image_size)
    if seed is None:
        try:
            with torch.device("meta"):
                return make()
        except (
            NotImplementedError
        ):  # a constructor that looks at values (RegNet): its values are replaced later
            seed = 0
    with _random_state, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def _maker(
    name: str, columns: int, hidden: tuple[int, ...], image_size: int | None
) -> Callable[[], nn.Module]:
    if name in CIFAR:
        return lambda: CifarResNet(CIFAR[name])
    if name == "mlp":
        return lambda: Mlp(columns, hidden)
    from torchvision import models

    options = dict(_LEGACY_INPUT.get(name, {}))
    if name.startswith("vit_") and image_size is not None:
        patch = int(name.rsplit("_", 1)[1])
        if image_size % patch:
            raise UserError(
                f"{image_size} pixels; {name} cuts images into patches of {patch}",
                where="backbone.image_size",
                remedy=(
                    f"give a multiple of {patch}, such as {max(patch, image_size // patch * patch)}"
                ),
            )
        options["image_size"] = image_size
    return lambda: models.get_model(name, weights=None, **options)


def current_name(tensor_name: str) -> str | None:
    """A tensor's name in torchvision's networks of today, from its name in a weights file; None:
    not needed.
    """
    if tensor_name.startswith(_AUXILIARY):
        return None
    for old, new in _LEGACY_NAMES:
        tensor_name = old.sub(new, tensor_name)
    return tensor_name


def classifier_of(net: nn.Module) -> tuple[str, nn.Linear]:
    """Dotted name and module of the last Linear: the classifier of every known network."""
    found = [
        (name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)
    ]
    return found[-1]

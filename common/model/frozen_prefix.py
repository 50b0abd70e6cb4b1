"""A grafted model in two parts: what is frozen up to the first trainable layer, and the rest.

What enters the first trainable layer does not change while adapters train, so it can be computed
once. The known networks call their children in a fixed order, written down here; their Sequentials
are entered, and a residual block that is trained by nothing but an adapter behind it is on the
frozen side. The stages in that order are the network, operation for operation.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters.attachment import call
from fedgraft.common.model.grafted_model import GraftedModel

LEAST_SHARE = (
    0.1  # of the layers: a shorter prefix saves less than reading its wide activations costs
)
Step = (
    str | Callable[[Any, Tensor], Tensor]
)  # a child's dotted name, or a function of the network and its input


@dataclass(frozen=True)
class Stage:
    """One step of a network: its name, what it does, whether it trains, and how many frozen layers
    it has.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    trains: bool = False
    layers: int = 0


@dataclass(frozen=True, eq=False)
class FrozenPrefix:
    """The frozen part in front of the first trainable layer.

    Attributes:
        name: of the stage behind it, the first that trains: `layer3.2`, or `layer3.2.adapter`
            behind that block.
        stages: what it does, in order.
        tail: the rest, as a model that shares every module of the whole: activations → logits.
    """

    name: str
    stages: tuple[Stage, ...]
    tail: GraftedModel

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Prepared inputs (n, …) → what enters the first trainable layer (n, …)."""
        for stage in self.stages:
            x = stage.run(x)
        return x


def frozen_prefix(model: GraftedModel) -> FrozenPrefix | None:
    """The longest frozen prefix; None where the network's order is not known, or next to nothing is
    frozen there.
    """
    stages = tuple(_stages(model.net))
    first = next((number for number, stage in enumerate(stages) if stage.trains), 0)
    if (
        sum(stage.layers for stage in stages[:first])
        < LEAST_SHARE * sum(stage.layers for stage in stages)
        or not first
    ):
        return None
    tail = copy.copy(model)
    tail.steps = tuple(stage.run for stage in stages[first:])
    return FrozenPrefix(stages[first].name, stages[:first], tail)


def _stages(net: nn.Module) -> Iterator[Stage]:
    kind = f"{type(net).__module__}.{type(net).__qualname__}"
    for number, step in enumerate(_ORDER.get(kind, ())):
        if isinstance(step, str):
            yield from _inside(step, net.get_submodule(step))
        else:
            used = [net.get_submodule(name) for name in _USES.get(step, ())]
            trains, count = any(map(_trains, used)), sum(map(_layers, used))
            yield Stage(f"step-{number}", functools.partial(step, net), trains, count)


def _inside(name: str, module: nn.Module) -> Iterator[Stage]:
    """A module as stages: the children of a Sequential, the layers of a dense block, a block and
    its adapter.
    """
    hooks = [
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
        *_replaced(module),
    ]
    adapter = module._modules.get("adapter")
    if not hooks and (
        type(module).forward is nn.Sequential.forward or isinstance(module, nn.ModuleList)
    ):
        for child, inner in module.named_children():
            yield from _inside(f"{name}.{child}", inner)
    elif not hooks and type(module).__qualname__ == "_DenseBlock":
        for child, inner in module.named_children():
            yield Stage(
                f"{name}.{child}", functools.partial(_grown, inner), _trains(inner), _layers(inner)
            )
    elif (
        adapter is not None
        and hooks == [call]
        and not adapter.parallel
        and not _trains(module, but=adapter)
    ):
        yield Stage(name, module.forward, False, _layers(module))
        yield Stage(f"{name}.adapter", adapter, True)
    else:
        yield Stage(name, module, _trains(module), _layers(module))


def _replaced(module: nn.Module) -> list[Any]:
    return [module.__dict__["forward"]] if "forward" in module.__dict__ else []


def _trains(module: nn.Module, but: nn.Module | None = None) -> bool:
    spared = {id(p) for p in but.parameters()} if but is not None else set()
    return any(p.requires_grad and id(p) not in spared for p in module.parameters())


def _layers(module: nn.Module) -> int:
    """Frozen layers with weights in a module."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    return sum(isinstance(each, kinds) and not _trains_itself(each) for each in module.modules())


def _trains_itself(module: nn.Module) -> bool:
    return any(p is not None and p.requires_grad for p in module._parameters.values())


# ── the order in which the known networks call their children ─────────────────────────────────────
def _grown(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of a dense block: its output behind all that came before it."""
    return torch.cat([x, layer(x)], 1)


def _relu(net: Any, x: Tensor) -> Tensor:
    return F.relu(x)


def _mean(net: Any, x: Tensor) -> Tensor:
    return x.mean([2, 3])


def _pooled(net: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, (1, 1))


def _flat(net: Any, x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def _pixels(net: Any, x: Tensor) -> Tensor:
    return net._transform_input(x)


def _tokens(net: Any, x: Tensor) -> Tensor:
    x = net._process_input(x)
    x = torch.cat([net.class_token.expand(len(x), -1, -1), x], dim=1)
    return net.encoder.dropout(x + net.encoder.pos_embedding)


def _class_token(net: Any, x: Tensor) -> Tensor:
    return x[:, 0]


_USES: dict[Callable[[Any, Tensor], Tensor], tuple[str, ...]] = {_tokens: ("conv_proj",)}
_VISION = "torchvision.models"
_ORDER: dict[str, tuple[Step, ...]] = {
    "fedgraft.common.backbones.cifar_resnet.CifarResNet": (
        "conv1",
        "bn1",
        _relu,
        "layer1",
        "layer2",
        "layer3",
        _mean,
        "linear",
    ),
    "fedgraft.common.backbones.mlp.Mlp": ("standardise", "layers", "head"),
    f"{_VISION}.resnet.ResNet": (
        *("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"),
        *(_flat, "fc"),
    ),
    f"{_VISION}.regnet.RegNet": ("stem", "trunk_output", "avgpool", _flat, "fc"),
    f"{_VISION}.mobilenetv2.MobileNetV2": ("features", _pooled, _flat, "classifier"),
    f"{_VISION}.mobilenetv3.MobileNetV3": ("features", "avgpool", _flat, "classifier"),
    f"{_VISION}.efficientnet.EfficientNet": ("features", "avgpool", _flat, "classifier"),
    f"{_VISION}.mnasnet.MNASNet": ("layers", _mean, "classifier"),
    f"{_VISION}.convnext.ConvNeXt": ("features", "avgpool", "classifier"),
    f"{_VISION}.densenet.DenseNet": ("features", _relu, _pooled, _flat, "classifier"),
    f"{_VISION}.vision_transformer.VisionTransformer": (
        *(_tokens, "encoder.layers", "encoder.ln", _class_token, "heads"),
    ),
    f"{_VISION}.swin_transformer.SwinTransformer": (
        "features",
        "norm",
        "permute",
        "avgpool",
        "flatten",
        "head",
    ),
    f"{_VISION}.maxvit.MaxVit": ("stem", "blocks", "classifier"),
    f"{_VISION}.vgg.VGG": ("features", "avgpool", _flat, "classifier"),
    f"{_VISION}.alexnet.AlexNet": ("features", "avgpool", _flat, "classifier"),
    f"{_VISION}.shufflenetv2.ShuffleNetV2": (
        *("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5", _mean, "fc"),
    ),
    f"{_VISION}.googlenet.GoogLeNet": (
        *(
            _pixels,
            "conv1",
            "maxpool1",
            "conv2",
            "conv3",
            "maxpool2",
            "inception3a",
            "inception3b",
            "maxpool3",
        ),
        *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
        *("inception5a", "inception5b", "avgpool", _flat, "dropout", "fc"),
    ),
    f"{_VISION}.inception.Inception3": (
        *(
            _pixels,
            "Conv2d_1a_3x3",
            "Conv2d_2a_3x3",
            "Conv2d_2b_3x3",
            "maxpool1",
            "Conv2d_3b_1x1",
            "Conv2d_4a_3x3",
        ),
        *(
            "maxpool2",
            "Mixed_5b",
            "Mixed_5c",
            "Mixed_5d",
            "Mixed_6a",
            "Mixed_6b",
            "Mixed_6c",
            "Mixed_6d",
            "Mixed_6e",
        ),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool", "dropout", _flat, "fc"),
    ),
}

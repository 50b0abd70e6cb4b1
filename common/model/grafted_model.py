"""Backbone + adapters + head: what is trainable, what travels, what is merged.

A grafted model has its own modules and its own trainable tensors; the frozen ones are the
backbone's, shared by every model made from it. They are never written, so many threads may train at
once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedgraft.common.adapters import METHODS, Options
from fedgraft.common.adapters.attachment import Adapter, merge_into
from fedgraft.common.adapters.attention import close_attention, stays_beside
from fedgraft.common.adapters.lora import Lora
from fedgraft.common.adapters.options import new_linear
from fedgraft.common.backbones.backbone import Backbone, backbone_state
from fedgraft.common.errors import UserError
from fedgraft.common.model.adapter_files import load_adapter, save_adapter
from fedgraft.common.model.seal import Seal

__all__ = ["GraftedModel", "Spec", "graft", "load_adapter", "save_adapter"]

Spec = dict[str, tuple[str, tuple[int, ...]]]


class GraftedModel(nn.Module):
    """A network whose frozen part is a backbone's; call it with inputs to get logits (n, classes).

    Made by `graft`. Always in eval mode: a frozen BatchNorm or Dropout never trains. After
    `train()`, which Opacus wants, only layers that hold trainable tensors and behave the same in
    both modes say so.

    Attributes:
        net: the network, adapters and head in place.
        method, classes, head_name: as given to `graft`.
        alpha, rank, width: as given to `graft`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        method: str,
        classes: int,
        head_name: str,
        rank: int,
        alpha: float,
        width: int,
    ) -> None:
        super().__init__()
        self.net = net
        self.method, self.classes, self.head_name = method, classes, head_name
        self.rank, self.alpha, self.width = rank, alpha, width
        self.steps: tuple[Callable[[Tensor], Tensor], ...] = (
            net,
        )  # fewer in the tail of a model, see prefix.py
        self._seal: Seal | None = None
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Preprocessed inputs (n, 3, H, W) or (n, columns) → logits (n, classes)."""
        for step in self.steps:
            x = step(x)
        return x

    def train(self, mode: bool = True) -> GraftedModel:
        """Frozen and mode-dependent modules stay in eval mode, whatever `mode` says."""
        self.training = mode
        for module in self.net.modules():
            trainable = any(p is not None and p.requires_grad for p in module._parameters.values())
            module.training = mode and trainable and isinstance(module, _SAME_IN_BOTH_MODES)
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by sorted name: adapters and head (`full`: all)."""
        found = ((name, p) for name, p in self.net.named_parameters() if p.requires_grad)
        return dict(sorted(found))

    def adapter_state(self) -> dict[str, Tensor]:
        """What travels: copies of the trainable tensors by sorted name."""
        return {name: p.detach().clone() for name, p in self.trainable_parameters().items()}

    def adapter_spec(self) -> Spec:
        """Name → (dtype, shape) of what travels, for instance {"linear.bias": ("float32",
        (2,))}.
        """
        return {name: _form(p) for name, p in self.trainable_parameters().items()}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the trainable tensors; all of them or, on a mistake, none.

        Raises:
            UserError: a name too many or too few, another shape or dtype.
        """
        mine = self.trainable_parameters()
        wrong = [f"{name} is missing" for name in mine if name not in state]
        wrong += [f"{name} is not of this model" for name in state if name not in mine]
        wrong += [
            f"{name} is {_form(state[name])} and should be {_form(p)}"
            for name, p in mine.items()
            if name in state and _form(state[name]) != _form(p)
        ]
        if wrong:
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"these are not the adapters of this model: {'; '.join(wrong[:3])}{more}",
                remedy="use the plan, the backbone and the adapters of one and the same run",
            )
        for name, p in mine.items():
            p.copy_(state[name])

    def drawn_state(self) -> dict[str, Tensor]:
        """Adapter tensors that stay as the seed drew them, by sorted name: A of every LoRA under
        freeze-a.
        """
        return {
            f"{name}.{part}": p.detach()
            for name, module in sorted(self.net.named_modules())
            if isinstance(module, Adapter)
            for part, p in sorted(module.named_parameters())
            if not p.requires_grad
        }

    def frozen_state(self) -> dict[str, Tensor]:
        """What never changes, by sorted name: the backbone's tensors (`full`: its buffers). No
        copies.
        """
        ours = self.trainable_parameters().keys() | self.drawn_state().keys()
        return {
            name: t.detach()
            for name, t in sorted(self.net.state_dict().items())
            if name not in ours
        }

    def frozen_fingerprint(self) -> str:
        """Fingerprint of the frozen part: the backbone's own, before and after training.

        Under `full` only the buffers stay frozen, so there it is theirs; it, too, must not change.
        """
        self._seal = Seal.of(self.net, self.frozen_state().keys())
        return self._seal.fingerprint

    def seal_as(self, backbone: Backbone) -> str:
        """The same, without a second SHA-256 where the frozen tensors are the very ones of a
        backbone just made.
        """
        theirs, mine = backbone_state(backbone), self.frozen_state()
        same = {n: (t.data_ptr(), t.shape) for n, t in theirs.items()} == {
            n: (t.data_ptr(), t.shape) for n, t in mine.items()
        }
        self._seal = Seal.of(self.net, mine.keys(), backbone.fingerprint if same else None)
        return self._seal.fingerprint

    def frozen_as(self, fingerprint: str, *, read: bool) -> bool:
        """Whether the frozen part has this fingerprint still; SHA-256 only where something cheaper
        is in doubt.

        Args:
            read: read every byte (sums of 64 bits); else believe torch's own counters of writes.
        """
        if self._seal is not None and self._seal.holds(self.net, read=read):
            return self._seal.fingerprint == fingerprint
        return self.frozen_fingerprint() == fingerprint

    def merge(self) -> nn.Module:
        """A plain network with the same outputs, adapters folded into its weights; shares what is
        unchanged.

        Bottlenecks stay modules, as do biases and scales on the keys of Swin v2, which has no bias
        there.
        """
        net = copy_sharing(self.net, lambda parameter: not parameter.requires_grad)
        for name, host in list(net.named_modules()):
            for key in [
                key for key, hook in host._forward_pre_hooks.items() if hook is _contiguous
            ]:
                del host._forward_pre_hooks[key]
            adapter = host._modules.get("adapter")
            if isinstance(adapter, Adapter) and (
                isinstance(adapter, Lora) or not stays_beside(net, name)
            ):
                merge_into(host)
        close_attention(net)
        return net.eval().requires_grad_(False)


# Layers that Opacus must see in train mode; none of them computes anything else there.
_SAME_IN_BOTH_MODES = (nn.Linear, nn.Conv2d, nn.LayerNorm, Adapter)


def graft(
    backbone: Backbone,
    *,
    method: str,
    classes: int,
    rank: int = 8,
    alpha: float | None = None,
    width: int = 8,
    targets: str | Sequence[str] = "auto",
    seed: int = 0,
    freeze_a: bool = False,
) -> GraftedModel:
    """Put adapters and a fresh head on a backbone; the backbone is not touched and its tensors are
    shared.

    The same seed gives the same initial values, bit for bit; the global random state is neither
    read nor moved.

    Args:
        method: head, lora, bottleneck, scale-shift, bias or full.
        classes: outputs of the head.
        rank: of the LoRA updates.
        alpha: LoRA updates are scaled by alpha / rank; None gives 2·rank.
        width: of the bottlenecks.
        targets: "auto", "last-block", or `fnmatch` patterns of module names.
        seed: of the initial values.
        freeze_a: A of the LoRA updates stays as the seed draws it and does not travel.

    Raises:
        UserError: an unknown method, targets that match nothing, an adapter that the backbone
            cannot take, or a number out of its range.
    """
    if method not in METHODS:
        raise UserError(
            f"no adapter method is called {method!r}",
            where="adapter.method",
            remedy=f"write one of {', '.join(METHODS)}",
        )
    alpha = 2.0 * rank if alpha is None else float(alpha)
    for key, value, least in (
        ("adapter.rank", rank, 1),
        ("adapter.width", width, 1),
        ("task.classes", classes, 2),
    ):
        if value < least:
            raise UserError(f"{value} is too small", where=key, remedy=f"give {least} or more")
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(
            f"{alpha} is no scale", where="adapter.alpha", remedy="give a number above 0"
        )
    net = copy_sharing(backbone.net, lambda parameter: True)
    options = Options(
        rank=rank, scaling=alpha / rank, width=width, targets=targets, seed=seed, freeze_a=freeze_a
    )
    METHODS[method](net, options)
    head = new_linear(backbone.features, classes, bias=True, seed=seed, name=backbone.head_name)
    net.set_submodule(backbone.head_name, head)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            module.register_forward_pre_hook(_contiguous)
    return GraftedModel(
        net,
        method=method,
        classes=classes,
        head_name=backbone.head_name,
        rank=rank,
        alpha=alpha,
        width=width,
    )


def copy_sharing(net: nn.Module, shared: Callable[[nn.Parameter], bool]) -> nn.Module:
    """A copy of the modules that shares all buffers, and the parameters for which
    `shared(parameter)` is true.

    Their memory is shared, the objects are not: `copied.double()` or a gradient does not reach the
    original. Activations write in place no longer: what an adapter or a hook has returned must not
    be overwritten.
    """
    aliases: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in net.buffers()}
    for parameter in filter(shared, net.parameters()):
        aliases[id(parameter)] = nn.Parameter(
            parameter.detach(), requires_grad=parameter.requires_grad
        )
    copied = copy.deepcopy(
        net, aliases
    )  # a deep copy takes what this table says was copied already
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return copied


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Trainable convolutions get their input laid out as (n, C, H, W).

    Opacus 1.6 unfolds it by strides that it takes for granted: for the channels-last tensors inside
    a ConvNeXt, or an image read as (H, W, C), its per-example gradients would be wrong without a
    word.
    """
    return tuple(tensor.contiguous() for tensor in inputs)


def _form(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)

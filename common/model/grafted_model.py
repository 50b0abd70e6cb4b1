"""Backbone + adapters + head: what is trainable, what travels, what is merged.

A grafted model has its own modules and its own trainable tensors; the frozen ones are the
backbone's, shared by every model made from it. They are never written, so many threads may train at
once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters import METHODS
from fedgraft.common.adapters.attention import cannot_merge_bias, close_attention
from fedgraft.common.adapters.convolutions import CONVOLUTIONS
from fedgraft.common.adapters.host import Adapter, merge_into
from fedgraft.common.adapters.initial_values import new_linear
from fedgraft.common.adapters.method import Attachment, Targets
from fedgraft.common.backbones import family_of
from fedgraft.common.backbones.backbone import Backbone, backbone_state, slices_of
from fedgraft.common.backbones.quantization import widen_layers
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch
from fedgraft.common.model.adapter_files import load_adapter, save_adapter
from fedgraft.common.model.depth_features import (
    DepthFeatures,
    Pool,
    Selection,
    choose_stages,
    count_features,
)
from fedgraft.common.model.map_decoder import MapDecoder
from fedgraft.common.model.map_heads import MapChoice, linear_part, new_map_head, open_maps
from fedgraft.common.model.pixel_head import PixelHead
from fedgraft.common.model.seal import Seal
from fedgraft.common.model.slices import AcrossSlices, mean_over_slices
from fedgraft.common.model.stage_maps import StageMaps
from fedgraft.common.model.token_features import (
    TokenChoice,
    TokenFeatures,
    count_of_token,
    keep_tokens,
    open_tokens,
)
from fedgraft.common.model.vocabulary_head import open_vocabulary

__all__ = ["GraftedModel", "Spec", "graft", "load_adapter", "save_adapter"]

Spec = dict[str, tuple[str, tuple[int, ...]]]
# tensors that do not fit, in one message
MOST_NAMED = 3
# the child of the network that reads features of all depths
DEPTH_HEAD = "depth_head"


@dataclass(frozen=True)
class DepthChoice:
    """Which features a head of all depths reads.

    Attributes:
        features: "all", "last" or names of stages, see `depth_features.py`.
        pool: what is taken of a stage's positions.
        example: a prepared batch of one, which shows the widths.
        precision: that the frozen part is computed in.
    """

    features: Selection
    pool: Pool
    example: Tensor
    precision: str = "float32"


class GraftedModel(nn.Module):
    """A network whose frozen part is a backbone's; call it with a batch to get outputs.

        model = graft(backbone, method="lora", classes=2, rank=8, seed=7)
        logits = model(backbone.preprocess(images))
        model.load_adapter_state(model.adapter_state())
        plain = model.merge()

    Made by `graft`. Always in eval mode: a frozen BatchNorm or Dropout never trains. After
    `train()`, which Opacus wants, only layers that hold trainable tensors and behave the same in
    both modes say so.

    Attributes:
        net: the network, adapters and head in place.
        method: the name of the method of adapting.
        options: the method's own.
        outputs: of the head.
        head_name: dotted name of the head.
        depths: the features that the head reads, where these are not the network's own last ones;
            or maps, where it answers for each place.
        slices: how many images a record is, where the network is one over images and records are
            volumes; None: a record is what the network takes.
        tokens: of a text, where the head answers for each; None: it answers for a record, or for
            the places of maps.
        front: the frozen part in front of the first trained layer in another precision, see
            `frozen_precision.py`; None: in float32, as a part of the network.
        run_step: how a step is run, see `gradient_checkpointing.py`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        method: str,
        options: Any,
        outputs: int,
        head_name: str,
        depths: DepthFeatures | StageMaps | TokenFeatures | None = None,
        slices: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.method = method
        self.options = options
        self.outputs = outputs
        self.head_name = head_name
        self.depths = depths
        self.tokens: int | None = None
        # others in the tail of a model, see frozen_prefix.py
        self.slices = slices
        self.steps: tuple[Callable[[Tensor], Tensor], ...] = (net,)
        if slices is not None:
            self.steps = (AcrossSlices(net, slices),)
        if depths is not None:
            self.steps = (depths, net.get_submodule(head_name))
        self.front: Callable[[Tensor], Tensor] | None = None
        self.run_step = run_once
        self._seal: Seal | None = None
        self.eval()

    def forward(self, inputs: Batch | Tensor) -> Tensor:
        """Return the outputs (n, outputs) for a prepared batch, or what it joins to (n, …).

        Inputs may lie anywhere; outputs lie on the model's device.
        """
        if isinstance(inputs, Batch):
            inputs = inputs.joined
        inputs = inputs.to(self.device)
        for step in self.steps:
            inputs = self.run_step(step, inputs)
        return inputs

    @property
    def device(self) -> torch.device:
        """Return where it is computed."""
        return next(self.net.parameters()).device

    def move_to(self, device: torch.device) -> GraftedModel:
        """Bring the model to a device, in place; what was sealed stays sealed. Return it."""
        self.net.to(device)
        if self._seal is not None:
            names = self.frozen_state().keys()
            self._seal = Seal.of(self.net, names, self._seal.fingerprint)
        return self

    @torch.no_grad()
    def features(self, inputs: Batch) -> Tensor:
        """Return what the head reads of a prepared batch, `(n, d)`, on the host."""
        read: list[Tensor] = []
        head = self.net.get_submodule(self.head_name)
        handle = head.register_forward_pre_hook(lambda module, entering: read.append(entering[0]))
        try:
            self(inputs)
        finally:
            handle.remove()
        if self.depths is None:
            return mean_over_slices(read[0], self.slices).cpu()
        return read[0].cpu()

    @property
    def has_solved_head(self) -> bool:
        """Whether the head is one that is solved from sums."""
        if isinstance(self.depths, StageMaps):
            return isinstance(self.net.get_submodule(self.head_name), PixelHead)
        return self.depths is not None

    @property
    def solved_name(self) -> str:
        """Return the dotted name of what sums solve for: the head, or the linear part of one."""
        head = self.net.get_submodule(self.head_name)
        if isinstance(head, MapDecoder) and head.solved is not None:
            return f"{self.head_name}.solved"
        return self.head_name

    def count_places(self, stride: int) -> int:
        """Return how many places of a record sums are taken over; 1 where a record is one."""
        if self.tokens is not None:
            return self.tokens
        linear = linear_part(self.net.get_submodule(self.head_name))
        return 1 if linear is None else linear.count_places(stride)

    def read_places(self, features: Tensor, stride: int) -> Tensor:
        """Return of what the head reads `(n, …)` a row for each of `count_places`, `(m, d)`."""
        linear = linear_part(self.net.get_submodule(self.head_name))
        if linear is None:
            return features
        return linear.read_pixels(features, stride).movedim(1, -1).flatten(0, -2)

    def count_features(self) -> int:
        """Return how many features the head reads."""
        head = self.net.get_submodule(self.solved_name)
        return int(head.in_features)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> GraftedModel:
        """Set the mode; frozen and mode-dependent modules stay in eval mode, whatever it is."""
        self.training = mode
        for module in self.net.modules():
            follows = isinstance(module, _SAME_IN_BOTH_MODES) and _trains_itself(module)
            module.training = mode and follows
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training changes, by sorted name: adapters and head (`full`:
        all).
        """
        trainable: dict[str, nn.Parameter] = {}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                trainable[name] = parameter
        return dict(sorted(trainable.items()))

    def adapter_state(self) -> dict[str, Tensor]:
        """Return what travels: copies of the trainable tensors by sorted name, on the host."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.trainable_parameters().items():
            state[name] = parameter.detach().to("cpu", copy=True)
        return state

    def adapter_spec(self) -> Spec:
        """Return (dtype, shape) of what travels by name, for instance
        `{"linear.bias": ("float32", (2,))}`.
        """
        parameters = self.trainable_parameters()
        return {name: _form(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the trainable tensors; all of them or, on a mistake, none.

        Raises:
            UserError: a name too many or too few, another shape or dtype.
        """
        parameters = self.trainable_parameters()
        problems = _compare(parameters, state)
        if problems:
            listed = "; ".join(problems[:MOST_NAMED])
            if len(problems) > MOST_NAMED:
                listed += f"; and {len(problems) - MOST_NAMED} more"
            what = f"these are not the adapters of this model: {listed}"
            remedy = "use the plan, the backbone and the adapters of one and the same run"
            raise UserError(what, remedy=remedy)
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def drawn_state(self) -> dict[str, Tensor]:
        """Return adapter tensors that stay as the seed drew them, by sorted name: A of every LoRA
        under freeze-a.
        """
        drawn: dict[str, Tensor] = {}
        for name, module in self.net.named_modules():
            if not isinstance(module, Adapter):
                continue
            for part, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    drawn[f"{name}.{part}"] = parameter.detach().cpu()
        return dict(sorted(drawn.items()))

    def frozen_state(self) -> dict[str, Tensor]:
        """Return what never changes, by sorted name: the backbone's tensors (`full`: its buffers).
        No copies.
        """
        ours = self.trainable_parameters().keys() | self.drawn_state().keys()
        state = sorted(self.net.state_dict().items())
        return {name: tensor.detach() for name, tensor in state if name not in ours}

    def frozen_fingerprint(self) -> str:
        """Return the fingerprint of the frozen part: the backbone's own, before and after training.

        Under `full` only the buffers stay frozen, so there it is theirs; it, too, must not change.
        """
        self._seal = Seal.of(self.net, self.frozen_state().keys())
        return self._seal.fingerprint

    def seal_as(self, backbone: Backbone) -> str:
        """Return the same, without a second SHA-256 where the frozen tensors are the very ones of
        a backbone just made.
        """
        frozen = self.frozen_state()
        known: str | None = None
        if _addresses(frozen) == _addresses(backbone_state(backbone)):
            known = backbone.fingerprint
        self._seal = Seal.of(self.net, frozen.keys(), known)
        return self._seal.fingerprint

    def frozen_as(self, fingerprint: str, *, read: bool) -> bool:
        """Whether the frozen part still has this fingerprint; SHA-256 only where something cheaper
        is in doubt.

        Args:
            read: read every byte (sums of 64 bits); else believe torch's own counters of writes.
        """
        if self._seal is not None and self._seal.holds(self.net, read=read):
            return self._seal.fingerprint == fingerprint
        return self.frozen_fingerprint() == fingerprint

    def merge(self) -> nn.Module:
        """Return a plain network with the same outputs, adapters folded into its weights; it shares
        what is unchanged.

        Bottlenecks stay modules, as do biases and scales on the keys of Swin v2, which has no bias
        there.
        """
        net = copy_sharing(self.net, lambda parameter: not parameter.requires_grad)
        widen_layers(net)
        for name, host in list(net.named_modules()):
            for key, hook in list(host._forward_pre_hooks.items()):
                if hook is _contiguous:
                    del host._forward_pre_hooks[key]
            adapter = host._modules.get("adapter")
            if not isinstance(adapter, Adapter):
                continue
            if not (adapter.moves_bias and cannot_merge_bias(net, name)):
                merge_into(host)
        close_attention(net)
        return net.eval().requires_grad_(False)


# Layers that Opacus must see in train mode; none of them computes anything else there.
_SAME_IN_BOTH_MODES = (nn.Linear, *CONVOLUTIONS, nn.LayerNorm, Adapter)


def graft(
    backbone: Backbone,
    *,
    method: str,
    classes: int,
    targets: Targets = "auto",
    seed: int = 0,
    freeze_a: bool = False,
    depths: DepthChoice | MapChoice | TokenChoice | None = None,
    **options: Any,
) -> GraftedModel:
    """Put adapters and a fresh head on a backbone; the backbone is not touched and its tensors are
    shared.

    The same seed gives the same initial values, bit for bit; the global random state is neither
    read nor moved.

    Args:
        method: a member of `common.adapters.METHODS`.
        classes: outputs of the head.
        targets: "auto", "last-block", or `fnmatch` patterns of module names.
        seed: of the initial values.
        freeze_a: values that the seed draws stay so and do not travel (A of LoRA updates).
        depths: the head reads these features, and begins with zeros; or these maps, or tokens.
        options: the method's own, such as `rank=8`; those of other methods are passed over.

    Raises:
        UserError: an unknown method, targets that match nothing, an adapter that the backbone
            cannot take, or a number out of its range.
    """
    if classes < 1:
        what = f"{classes} is too small"
        raise UserError(what, where="outputs of the head", remedy="give 1 or more")
    chosen = METHODS[method]
    own = chosen.read_options(options)
    net = copy_sharing(backbone.net, lambda parameter: True)
    chosen.attach(net, Attachment(own, targets, seed, freeze_drawn=freeze_a))
    free_constants(net, backbone)
    head_name = backbone.head_name
    reading: DepthFeatures | StageMaps | TokenFeatures | None = None
    if isinstance(depths, MapChoice):
        reading = open_maps(backbone, net, depths)
        head_name = DEPTH_HEAD
        net.add_module(head_name, new_map_head(reading, depths, classes, seed))
    elif isinstance(depths, TokenChoice) and depths.of_vocabulary:
        vocabulary = open_vocabulary(backbone, net)
        net.set_submodule(head_name, vocabulary)
        classes = vocabulary.out_features
    elif isinstance(depths, TokenChoice) and depths.features is not None:
        reading = open_tokens(backbone, net, depths)
        head_name = DEPTH_HEAD
        width = count_of_token(reading, depths.example)
        net.add_module(head_name, new_linear(width, classes, bias=True, seed=None, name=head_name))
    elif depths is None or isinstance(depths, TokenChoice):
        if depths is not None:
            keep_tokens(net, backbone)
        net.set_submodule(head_name, new_own_head(backbone, classes, seed))
    else:
        reading = choose_features(backbone, net, depths)
        head_name = DEPTH_HEAD
        width = count_features(reading, depths.example)
        head = new_linear(width, classes, bias=True, seed=None, name=head_name)
        net.add_module(head_name, head)
    for module in net.modules():
        if isinstance(module, CONVOLUTIONS) and module.weight.requires_grad:
            module.register_forward_pre_hook(_contiguous)
    model = GraftedModel(
        net,
        method=method,
        options=own,
        outputs=classes,
        head_name=head_name,
        depths=reading,
        slices=slices_of(backbone.preprocess),
    )
    if isinstance(depths, TokenChoice):
        model.tokens = depths.places
    return model


@torch.no_grad()
def new_own_head(backbone: Backbone, classes: int, seed: int) -> nn.Linear:
    """Return a head for the network's own last features: as texts give it, where a plan begins with
    them, else drawn.
    """
    name = backbone.head_name
    head = new_linear(backbone.features, classes, bias=True, seed=seed, name=name)
    if backbone.text_head is not None:
        head.weight.copy_(backbone.text_head)
        head.bias.zero_()
    return head


def free_constants(net: nn.Module, backbone: Backbone) -> None:
    """Give a copy of a backbone's network constants of its own, where nodes' histograms tell them:
    they travel with the head.
    """
    learnt = family_of(backbone.name).learnt
    if learnt is None:
        return
    module = net.get_submodule(learnt.module)
    for name, parameter in list(module.named_parameters()):
        module.register_parameter(name, nn.Parameter(parameter.detach().clone()))


def choose_features(backbone: Backbone, net: nn.Module, choice: DepthChoice) -> DepthFeatures:
    """Return the chosen features of a copy of a backbone's network.

    Raises:
        UserError: a stage that it has not.
    """
    stages = choose_stages(backbone, choice.features, choice.pool, choice.example)
    return DepthFeatures(
        net,
        head_name=backbone.head_name,
        stages=stages,
        pool=choice.pool,
        places=family_of(backbone.name).places,
        slices=slices_of(backbone.preprocess),
    )


def copy_sharing(net: nn.Module, shared: Callable[[nn.Parameter], bool]) -> nn.Module:
    """Return a copy of the modules that shares all buffers, and the parameters for which
    `shared(parameter)` is true.

    Their memory is shared, the objects are not: `copied.double()` or a gradient does not reach the
    original. Activations write in place no longer: what an adapter or a hook has returned must not
    be overwritten.
    """
    aliases: dict[int, Tensor] = {}
    for buffer in net.buffers():
        aliases[id(buffer)] = buffer.detach()
    for parameter in filter(shared, net.parameters()):
        alias = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        aliases[id(parameter)] = alias
    # a deep copy takes what this table says was copied already
    copied = copy.deepcopy(net, aliases)
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return copied


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the input of a trainable convolution laid out as (n, C, H, W).

    Opacus 1.6 unfolds it by strides that it takes for granted: for the channels-last tensors inside
    a ConvNeXt, or an image read as (H, W, C), its per-example gradients would be wrong without a
    word.
    """
    return tuple(tensor.contiguous() for tensor in inputs)


def _compare(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return what of a state is not of a model with these parameters."""
    problems = [f"{name} is missing" for name in parameters if name not in state]
    problems += [f"{name} is not of this model" for name in state if name not in parameters]
    for name, parameter in parameters.items():
        agreed = _form(parameter)
        form = _form(state.get(name, parameter))
        if form != agreed:
            problems.append(f"{name} is {form} and should be {agreed}")
    return problems


def _addresses(state: Mapping[str, Tensor]) -> dict[str, tuple[int, torch.Size]]:
    """Return where each tensor lies in memory, and its shape."""
    return {name: (tensor.data_ptr(), tensor.shape) for name, tensor in state.items()}


def run_once(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a step, and keep for the way back what torch keeps."""
    return step(x)


def _trains_itself(module: nn.Module) -> bool:
    """Whether a module has trainable parameters of its own, not only of its children."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _form(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)

"""LoRA as Hugging Face's PEFT writes it, so that `peft.PeftModel.from_pretrained` loads it onto the
plain network and gets the same outputs, the head included.

A for grouped convolutions is dense there: zeros are written between our blocks. PEFT passes over an
adapter on torchvision's Swin attention, cannot adapt dilated convolutions, and adds the one on the
output projection of a MultiheadAttention twice; where those are targeted, only we read it right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.file_layout import Adapted, FileLayout, adapters_of
from fedgraft.common.errors import UserError

PREFIX = "base_model.model."


def peft_name(model: Adapted, name: str) -> str:
    """Return a tensor's name in PEFT's file."""
    theirs = name.replace(".adapter.lora_", ".lora_")
    for attention in _attentions(model.net):
        theirs = theirs.replace(f"{attention}.out_proj.", f"{attention}.base_layer.out_proj.")
    return PREFIX + theirs


def absent_projections(model: Adapted) -> dict[str, Tensor]:
    """Return zeros for projections without an adapter: PEFT adapts both of an attention, or none."""
    adapters = adapters_of(model.net)
    rank = model.options.rank
    absent: dict[str, Tensor] = {}
    for name, layer in _attentions(model.net).items():
        inputs_too = name
        outputs = f"{name}.out_proj"
        if inputs_too not in adapters and outputs not in adapters:
            continue
        wide = layer.embed_dim
        if inputs_too not in adapters:
            absent |= _zeros(name, rank, wide, 3 * wide)
        if outputs not in adapters:
            absent |= _zeros(f"{name}.base_layer.out_proj", rank, wide, wide)
    return absent


def _zeros(name: str, rank: int, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {
        f"{PREFIX}{name}.lora_A.weight": torch.zeros(rank, inputs),
        f"{PREFIX}{name}.lora_B.weight": torch.zeros(outputs, rank),
    }


def peft_config(model: Adapted) -> dict[str, Any]:
    """Return what PEFT's LoraConfig reads."""
    options = model.options
    adapters = adapters_of(model.net)
    projections = {f"{name}.out_proj": name for name in _attentions(model.net)}
    targets = sorted({projections.get(name, name) for name in adapters})
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    for name, adapter in adapters.items():
        rank = adapter.get_parameter("lora_A.weight").shape[0]
        if rank != options.rank:
            # the same scale alpha / r for every layer, whatever its own rank
            pattern = f"^{re.escape(name)}"
            rank_pattern[pattern] = rank
            alpha_pattern[pattern] = options.numerator * rank / options.rank
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": options.rank,
        "lora_alpha": options.numerator,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _target_modules(targets, model.net),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _target_modules(targets: list[str], net: nn.Module) -> list[str] | str:
    """Return targets as a list, which PEFT matches by their ends; as one expression where an end is
    not unique.
    """
    for name, _ in net.named_modules():
        if name and name not in targets and _ends_like_one(name, targets):
            return "|".join(map(re.escape, targets))
    return targets


def _ends_like_one(name: str, targets: list[str]) -> bool:
    return any(name.endswith(f".{target}") for target in targets)


def check_scaling(model: Adapted, config: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` where a file's LoRA is scaled in another way than the model's."""
    scaling = config["lora_alpha"] / config["r"]
    options = model.options
    if abs(scaling - options.scaling) > 1e-9 * abs(scaling):
        raise UserError(
            f"a LoRA scaled by alpha/r = {scaling:g}, not {options.scaling:g}",
            where=where,
            remedy=f"write adapter.alpha: {scaling * options.rank:g}",
        )


def _attentions(net: nn.Module) -> dict[str, nn.MultiheadAttention]:
    modules = net.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, nn.MultiheadAttention)}


# ── grouped convolutions: block-diagonal here, dense there ────────────────────────────────────────
def densify(model: Adapted, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with A of every grouped convolution dense, zeros between the blocks."""
    dense = dict(state)
    for name, layer in _grouped(model.net).items():
        dense[name] = dense_from_blocks(state[name], layer.groups)
    return dense


def sparsify(model: Adapted, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with the blocks alone of A of every grouped convolution."""
    sparse = dict(state)
    for name, layer in _grouped(model.net).items():
        whole = torch.Size((layer.out_channels, layer.in_channels, *layer.kernel_size))
        if name in state and state[name].shape == whole:
            sparse[name] = blocks_from_dense(state[name], layer.groups)
    return sparse


def _grouped(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Return A of every grouped convolution, by the name of its weight."""
    grouped: dict[str, nn.Conv2d] = {}
    for name, adapter in adapters_of(net).items():
        down = adapter.get_submodule("lora_A")
        if isinstance(down, nn.Conv2d) and down.groups > 1:
            grouped[f"{name}.adapter.lora_A.weight"] = down
    return grouped


def dense_from_blocks(weight: Tensor, groups: int) -> Tensor:
    """(groups·r, in/groups, kh, kw) → (groups·r, in, kh, kw), zero outside the blocks."""
    rank = weight.shape[0] // groups
    width = weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], groups * width, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * rank, (group + 1) * rank)
        columns = slice(group * width, (group + 1) * width)
        dense[rows, columns] = weight[rows]
    return dense


def blocks_from_dense(dense: Tensor, groups: int) -> Tensor:
    """Return the opposite of `dense_from_blocks`."""
    rank = dense.shape[0] // groups
    width = dense.shape[1] // groups
    blocks: list[Tensor] = []
    for group in range(groups):
        rows = slice(group * rank, (group + 1) * rank)
        columns = slice(group * width, (group + 1) * width)
        blocks.append(dense[rows, columns])
    return torch.cat(blocks)


PEFT_LAYOUT = FileLayout(
    name_on_disk=peft_name,
    to_disk=densify,
    from_disk=sparsify,
    absent=absent_projections,
    config=peft_config,
    check=check_scaling,
)

"""LoRA as Hugging Face's PEFT writes it, so that `peft.PeftModel.from_pretrained` loads it onto the
plain network and gets the same outputs, the head included.

A for grouped convolutions is dense there: zeros are written between our blocks. PEFT passes over an
adapter on torchvision's Swin attention, cannot adapt dilated convolutions, and adds the one on the
output projection of a MultiheadAttention twice; where those are targeted, only we read it right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.convolutions import CONVOLUTIONS, Conv
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
    """Return zeros for projections without an adapter: PEFT adapts both of an attention or none."""
    adapters = adapters_of(model.net)
    rank = model.options.rank
    absent: dict[str, Tensor] = {}
    for name, layer in _attentions(model.net).items():
        has_inputs = name in adapters
        has_outputs = f"{name}.out_proj" in adapters
        width = layer.embed_dim
        if has_outputs and not has_inputs:
            absent |= _zeros(name, rank, width, 3 * width)
        if has_inputs and not has_outputs:
            absent |= _zeros(f"{name}.base_layer.out_proj", rank, width, width)
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
        "target_modules": _target_modules(model.net, adapters),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _target_modules(net: nn.Module, adapters: Iterable[str]) -> list[str] | str:
    """Return targets as a list, which PEFT matches by their ends; as one expression where an end is
    not unique.
    """
    # PEFT targets an attention as a whole
    projections = {f"{name}.out_proj": name for name in _attentions(net)}
    targets = sorted({projections.get(name, name) for name in adapters})
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
        what = f"a LoRA scaled by alpha/r = {scaling:g}, not {options.scaling:g}"
        remedy = f"write adapter.alpha: {scaling * options.rank:g}"
        raise UserError(what, where=where, remedy=remedy)


def _attentions(net: nn.Module) -> dict[str, nn.MultiheadAttention]:
    attentions: dict[str, nn.MultiheadAttention] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            attentions[name] = layer
    return attentions


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
        dense = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        if name in state and state[name].shape == dense:
            sparse[name] = blocks_from_dense(state[name], layer.groups)
    return sparse


def _grouped(net: nn.Module) -> dict[str, Conv]:
    """Return A of every grouped convolution, by the name of its weight."""
    grouped: dict[str, Conv] = {}
    for name, adapter in adapters_of(net).items():
        down = adapter.get_submodule("lora_A")
        if isinstance(down, CONVOLUTIONS) and down.groups > 1:
            grouped[f"{name}.adapter.lora_A.weight"] = down
    return grouped


def dense_from_blocks(weight: Tensor, groups: int) -> Tensor:
    """(groups·r, in/groups, …) → (groups·r, in, …), zero outside the blocks."""
    rows, width, *window = weight.shape
    rank = rows // groups
    dense = weight.new_zeros(rows, groups * width, *window)
    for group in range(groups):
        block = weight[group * rank : (group + 1) * rank]
        dense[_block_at(group, rank, width)] = block
    return dense


def blocks_from_dense(dense: Tensor, groups: int) -> Tensor:
    """Return the opposite of `dense_from_blocks`."""
    rank = dense.shape[0] // groups
    width = dense.shape[1] // groups
    blocks = [dense[_block_at(group, rank, width)] for group in range(groups)]
    return torch.cat(blocks)


def _block_at(group: int, rank: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of a group's block on the diagonal."""
    rows = slice(group * rank, (group + 1) * rank)
    columns = slice(group * width, (group + 1) * width)
    return rows, columns


PEFT_LAYOUT = FileLayout(
    name_on_disk=peft_name,
    to_disk=densify,
    from_disk=sparsify,
    absent=absent_projections,
    config=peft_config,
    check=check_scaling,
)

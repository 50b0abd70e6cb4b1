"""An adapter on disk: `adapter_model.safetensors` and `adapter_config.json`, the layout of Hugging
Face's PEFT.

LoRA is written so that `peft.PeftModel.from_pretrained` loads it onto the plain network and gets
the same outputs, the head included. Its A for grouped convolutions is dense: zeros are written
between our blocks. PEFT passes over an adapter on torchvision's Swin attention, cannot adapt
dilated convolutions, and adds the one on the output projection of a MultiheadAttention twice; where
those are targeted, only we read it right. Other methods use the same two files, with `method` where
PEFT says `peft_type`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedgraft.common.adapters.lora import Lora
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors, write_beside, write_tensors

if TYPE_CHECKING:
    from fedgraft.common.model.grafted_model import GraftedModel

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def save_adapter(model: GraftedModel, folder: str | Path) -> None:
    """Write a model's adapters and head into `folder`; each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    names = _names_on_disk(model)
    state = model.adapter_state() | model.drawn_state()
    for name, layer in _grouped(model).items():
        state[name] = _dense(state[name], layer.groups)
    stored = {names[name]: tensor for name, tensor in state.items()} | _absent(model)
    write_tensors(stored, folder / TENSORS, {"format": "pt"})
    config = json.dumps(_config(model), indent=2, sort_keys=True) + "\n"
    write_beside(config.encode(), folder / CONFIG)


def load_adapter(model: GraftedModel, folder: str | Path) -> None:
    """Read what `save_adapter` wrote into a model that was grafted in the same way.

    Raises:
        UserError: a file is missing or damaged, or belongs to another method, backbone or plan.
    """
    folder = Path(folder)
    _check_config(model, folder / CONFIG)
    stored = read_tensors(folder / TENSORS)
    names = _names_on_disk(model)
    ours = {theirs: name for name, theirs in names.items()}
    for name in _absent(model):
        if name in stored and not bool(stored[name].any()):
            del stored[name]
    state = {ours.get(name, name): tensor for name, tensor in stored.items()}
    for name, layer in _grouped(model).items():
        if name in state and state[name].shape == _dense_shape(layer):
            state[name] = _blocks(state[name], layer.groups)
    drawn = model.drawn_state()
    for name, tensor in drawn.items():  # as a rule what the seed draws here, too
        if (
            name in state
            and state[name].shape == tensor.shape
            and state[name].dtype == tensor.dtype
        ):
            tensor.copy_(state.pop(name))
    try:
        model.load_adapter_state(state)
    except UserError as error:
        raise UserError(error.what, where=str(folder / TENSORS), remedy=error.remedy) from error


def _adapters(model: GraftedModel) -> dict[str, nn.Module]:
    """Adapted layers by name: host → adapter."""
    every = model.net.named_modules()
    return {
        name.removesuffix(".adapter"): module for name, module in every if name.endswith(".adapter")
    }


def _attentions(model: GraftedModel) -> dict[str, nn.MultiheadAttention]:
    return {n: m for n, m in model.net.named_modules() if isinstance(m, nn.MultiheadAttention)}


def _absent(model: GraftedModel) -> dict[str, Tensor]:
    """PEFT adapts both projections of an attention or none: zeros for the one that has no adapter
    here.
    """
    adapters, absent = _adapters(model), {}
    for name, layer in _attentions(model).items() if model.method == "lora" else ():
        wide, rank = layer.embed_dim, model.rank
        for host, place, out in (
            (name, name, 3 * wide),
            (f"{name}.out_proj", f"{name}.base_layer.out_proj", wide),
        ):
            if host not in adapters and (name in adapters or f"{name}.out_proj" in adapters):
                absent[f"{_PREFIX}{place}.lora_A.weight"] = torch.zeros(rank, wide)
                absent[f"{_PREFIX}{place}.lora_B.weight"] = torch.zeros(out, rank)
    return absent


def _names_on_disk(model: GraftedModel) -> dict[str, str]:
    """Our tensor names → those in the file."""
    attentions, names = _attentions(model), {}
    for name in (*model.trainable_parameters(), *model.drawn_state()):
        if model.method != "lora":
            names[name] = name
            continue
        theirs = name.replace(".adapter.lora_", ".lora_")
        for attention in attentions:
            theirs = theirs.replace(f"{attention}.out_proj.", f"{attention}.base_layer.out_proj.")
        names[name] = _PREFIX + theirs
    return names


def _config(model: GraftedModel) -> dict[str, Any]:
    adapters = _adapters(model)
    common: dict[str, Any] = {"modules_to_save": [model.head_name], "inference_mode": True}
    if model.method != "lora":
        return {**common, "method": model.method, "width": model.width, "targets": sorted(adapters)}
    projections = {f"{name}.out_proj": name for name in _attentions(model)}
    targets = sorted({projections.get(name, name) for name in adapters})
    ranks = {name: a.lora_A.weight.shape[0] for name, a in adapters.items() if isinstance(a, Lora)}
    other = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != model.rank}
    return {
        **common,
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": model.rank,
        "lora_alpha": model.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _exact(targets, model) if targets else [],
        # the same scale alpha / r for every layer, whatever its own rank
        "rank_pattern": other,
        "alpha_pattern": {name: model.alpha * rank / model.rank for name, rank in other.items()},
    }


def _exact(targets: list[str], model: GraftedModel) -> list[str] | str:
    """The targets as a list, which PEFT matches by their ends; as one expression where an end is
    not unique.
    """
    others = [name for name, _ in model.net.named_modules() if name and name not in targets]
    if any(other.endswith(f".{target}") for other in others for target in targets):
        return "|".join(map(re.escape, targets))
    return targets


def _check_config(model: GraftedModel, path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        method = "lora" if config.get("peft_type") == "LORA" else config["method"]
        scaling = config["lora_alpha"] / config["r"] if method == "lora" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"holds no adapter that can be read ({type(error).__name__})",
            where=str(path),
            remedy="give the folder that holds adapter_model.safetensors and adapter_config.json",
        ) from error
    if method != model.method:
        raise UserError(
            f"an adapter of method {method!r}, not {model.method!r}",
            where=str(path),
            remedy=f"write adapter.method: {method}",
        )
    if scaling is not None and abs(scaling - model.alpha / model.rank) > 1e-9 * abs(scaling):
        raise UserError(
            f"a LoRA scaled by alpha/r = {scaling:g}, not {model.alpha / model.rank:g}",
            where=str(path),
            remedy=f"write adapter.alpha: {scaling * model.rank:g}",
        )


# ── grouped convolutions: block-diagonal here, dense there ────────────────────────────────────────


def _grouped(model: GraftedModel) -> dict[str, nn.Conv2d]:
    """A of every grouped convolution, by the name of its weight."""
    return {
        f"{name}.adapter.lora_A.weight": a.lora_A
        for name, a in _adapters(model).items()
        if isinstance(a, Lora) and isinstance(a.lora_A, nn.Conv2d) and a.lora_A.groups > 1
    }


def _dense_shape(layer: nn.Conv2d) -> torch.Size:
    return torch.Size((layer.out_channels, layer.in_channels, *layer.kernel_size))


def _dense(weight: Tensor, groups: int) -> Tensor:
    """(groups·r, in/groups, kh, kw) → (groups·r, in, kh, kw), zero outside the blocks."""
    rank, per_group = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], groups * per_group, *weight.shape[2:])
    for g in range(groups):
        dense[g * rank : (g + 1) * rank, g * per_group : (g + 1) * per_group] = weight[
            g * rank : (g + 1) * rank
        ]
    return dense


def _blocks(dense: Tensor, groups: int) -> Tensor:
    """The opposite of `_dense`."""
    rank, per_group = dense.shape[0] // groups, dense.shape[1] // groups
    return torch.cat(
        [
            dense[g * rank : (g + 1) * rank, g * per_group : (g + 1) * per_group]
            for g in range(groups)
        ]
    )

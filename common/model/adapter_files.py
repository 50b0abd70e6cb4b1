"""An adapter on disk: `adapter_model.safetensors` and `adapter_config.json`, the two files of
Hugging Face's PEFT; what they hold is the method's own `FileLayout`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fedgraft.common.adapters import METHODS
from fedgraft.common.adapters.file_layout import Adapted, FileLayout
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors, write_beside, write_tensors

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class Storable(Adapted, Protocol):
    """What is read of a grafted model, and written into it.

        save_adapter(model, folder)
        load_adapter(model, folder)

    Attributes:
        head_name: dotted name of the head, which is written beside the adapters.
    """

    head_name: str

    def adapter_state(self) -> dict[str, Tensor]:
        """Return copies of the trainable tensors by sorted name."""
        ...

    def drawn_state(self) -> dict[str, Tensor]:
        """Return adapter tensors that stay as the seed drew them, by sorted name."""
        ...

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the trainable tensors."""
        ...


def save_adapter(model: Storable, folder: str | Path) -> None:
    """Write a model's adapters and head into `folder`; each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    layout = METHODS[model.method].layout
    state = layout.to_disk(model, model.adapter_state() | model.drawn_state())
    stored = layout.absent(model)
    for name, tensor in state.items():
        stored[layout.name_on_disk(model, name)] = tensor
    write_tensors(stored, folder / TENSORS, {"format": "pt"})
    config = {
        "modules_to_save": [model.head_name],
        "inference_mode": True,
        **layout.config(model),
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_beside(text.encode(), folder / CONFIG)


def load_adapter(model: Storable, folder: str | Path) -> None:
    """Read what `save_adapter` wrote into a model that was grafted in the same way.

    Raises:
        UserError: a file is missing or damaged, or belongs to another method, backbone or plan.
    """
    folder = Path(folder)
    layout = METHODS[model.method].layout
    _check_config(model, layout, folder / CONFIG)
    stored = read_tensors(folder / TENSORS)
    for name in layout.absent(model):
        if name in stored and not bool(stored[name].any()):
            del stored[name]
    state = layout.from_disk(model, _by_our_names(model, layout, stored))
    _take_drawn(model, state)
    try:
        model.load_adapter_state(state)
    except UserError as error:
        where = str(folder / TENSORS)
        raise UserError(error.what, where=where, remedy=error.remedy) from error


def _by_our_names(
    model: Storable, layout: FileLayout, stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a file under the names that the model has for them."""
    ours: dict[str, str] = {}
    for name in model.adapter_state() | model.drawn_state():
        ours[layout.name_on_disk(model, name)] = name
    return {ours.get(name, name): tensor for name, tensor in stored.items()}


def _take_drawn(model: Storable, state: dict[str, Tensor]) -> None:
    """Move tensors that the seed draws out of a state and into the model: as a rule the same."""
    for name, drawn in model.drawn_state().items():
        stored = state.get(name)
        if stored is None:
            continue
        if stored.shape == drawn.shape and stored.dtype == drawn.dtype:
            drawn.copy_(state.pop(name))


def _check_config(model: Storable, layout: FileLayout, path: Path) -> None:
    """Raise `UserError` where a configuration cannot be read or is another method's."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        method = _method_in(config)
        if method == model.method:
            layout.check(model, config, str(path))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        what = f"holds no adapter that can be read ({type(error).__name__})"
        remedy = f"give the folder that holds {TENSORS} and {CONFIG}"
        raise UserError(what, where=str(path), remedy=remedy) from error
    if method != model.method:
        what = f"an adapter of method {method!r}, not {model.method!r}"
        raise UserError(what, where=str(path), remedy=f"write adapter.method: {method}")


def _method_in(config: Mapping[str, Any]) -> str:
    """Return the method that a configuration was written for; PEFT calls it `peft_type`."""
    if "peft_type" in config:
        return str(config["peft_type"]).lower()
    return str(config["method"])

"""How an adapter's tensors are written to a file: names, shapes, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class Adapted(Protocol):
    """What a layout reads of a grafted model."""

    @property
    def net(self) -> nn.Module:
        """Return the network, adapters and head in place."""
        ...

    @property
    def method(self) -> str:
        """Return the method's name."""
        ...

    @property
    def options(self) -> Any:
        """Return the method's options."""
        ...


ToDisk = Callable[[Adapted, Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class FileLayout:
    """How a method's tensors are written.

        layout = METHODS["lora"].layout
        state = layout.to_disk(model, model.adapter_state())
        named = {layout.name_on_disk(model, name): tensor for name, tensor in state.items()}

    Attributes:
        name_on_disk: (model, our name) → the tensor's name in the file.
        to_disk: (model, state by our names) → the state as it is written, still by our names.
        from_disk: the opposite; tensors of other shapes are passed through.
        absent: tensors by their names in the file that are written beside ours, and dropped when
            they are read again as they were.
        config: what stands in adapter_config.json.
        check: raise `UserError` where the configuration in a file does not fit the model; (model,
            config, where).
    """

    name_on_disk: Callable[[Adapted, str], str]
    to_disk: ToDisk
    from_disk: ToDisk
    absent: Callable[[Adapted], dict[str, Tensor]]
    config: Callable[[Adapted], dict[str, Any]]
    check: Callable[[Adapted, Mapping[str, Any], str], None]


def adapters_of(net: nn.Module) -> dict[str, nn.Module]:
    """Return the adapters of a network by the name of the layer or block that each serves."""
    adapters: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if name.endswith(".adapter"):
            adapters[name.removesuffix(".adapter")] = module
    return adapters


# ── a method whose tensors are written as they are ────────────────────────────────────────────────
def keep_name(model: Adapted, name: str) -> str:
    """Return our own name."""
    return name


def keep_tensors(model: Adapted, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they are."""
    return dict(state)


def own_config(model: Adapted) -> dict[str, Any]:
    """Return method, width and targets; the width is in every file, as it was before."""
    width = getattr(model.options, "width", 8)
    return {"method": model.method, "width": width, "targets": sorted(adapters_of(model.net))}


OWN_LAYOUT = FileLayout(
    name_on_disk=keep_name,
    to_disk=keep_tensors,
    from_disk=keep_tensors,
    absent=lambda model: {},
    config=own_config,
    check=lambda model, config, where: None,
)

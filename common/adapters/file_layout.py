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
        """The network, adapters and head in place."""
        ...

    @property
    def method(self) -> str:
        """The method's name."""
        ...

    @property
    def options(self) -> Any:
        """The method's options."""
        ...


@dataclass(frozen=True)
class FileLayout:
    """How a method's tensors are written.

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
    to_disk: Callable[[Adapted, Mapping[str, Tensor]], dict[str, Tensor]]
    from_disk: Callable[[Adapted, Mapping[str, Tensor]], dict[str, Tensor]]
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


def _own_config(model: Adapted) -> dict[str, Any]:
    width = getattr(model.options, "width", 8)
    return {"method": model.method, "width": width, "targets": sorted(adapters_of(model.net))}


OWN_LAYOUT = FileLayout(
    name_on_disk=lambda model, name: name,
    to_disk=lambda model, state: dict(state),
    from_disk=lambda model, state: dict(state),
    absent=lambda model: {},
    config=_own_config,
    check=lambda model, config, where: None,
)

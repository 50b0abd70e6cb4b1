"""What a method of adapting says of itself: its options, how it is attached, how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from fedgraft.common.adapters.file_layout import OWN_LAYOUT, FileLayout

Targets = str | Sequence[str]


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Attachment:
    """How a method is attached.

        Attachment(LoraOptions(rank=4), targets="last-block", seed=7)

    Attributes:
        options: the method's own.
        targets: "auto", "last-block" or patterns of module names.
        seed: of the initial values.
        freeze_drawn: values that the seed draws stay as they are and do not travel, where a method
            has such (A of a LoRA update).
    """

    options: Any
    targets: Targets
    seed: int
    freeze_drawn: bool = False


@dataclass(frozen=True)
class Method:
    """One way to adapt a frozen network.

        method = METHODS["lora"]
        options = method.read_options({"rank": 4})
        method.attach(net, Attachment(options, targets="auto", seed=0))

    Attributes:
        name: as the plan calls it.
        attach: put the method's modules on a network, in place.
        options: a frozen dataclass whose fields are keys of the plan's `adapter`; it raises
            `UserError` for values out of their range.
        describe: options → what is trained, in words for people.
        trains_all: whether every weight of the backbone is trained and travels.
        layout: how its tensors are written to a file.
    """

    name: str
    attach: Callable[[nn.Module, Attachment], None]
    describe: Callable[[Any], str]
    options: type[Any] = NoOptions
    trains_all: bool = False
    layout: FileLayout = OWN_LAYOUT

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """Return the method's options out of a plan's `adapter` section; other keys are others'.

        Raises:
            UserError: a value out of its range.
        """
        names = {field.name for field in fields(self.options)}
        own = {name: value for name, value in given.items() if name in names}
        return self.options(**own)

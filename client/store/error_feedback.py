"""What rounding an update lost, kept for the next round: in the node's store, since each message is
a new process.

A file for each plan and round, of the last two: a round that is run again, after a crash of the
server, begins with what was lost before it and not with its own remains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import read_tensors, write_tensors
from fedgraft.common.wire.encoding import decode, encode
from fedgraft.common.wire.layout import Layout


@dataclass(frozen=True)
class Feedback:
    """The memory of one plan at one node.

    Args:
        folder: of the node's store.
        plan: the plan's hash.
    """

    folder: Path
    plan: str

    def encoded(
        self, update: Mapping[str, Tensor], layout: Layout, encoding: str, round_: int
    ) -> np.ndarray:
        """An update with what was lost before, encoded; what is lost now is kept."""
        before = self._before(round_)
        wanted = {
            name: update[name].double() + (before[name].double() if name in before else 0.0)
            for name, _ in layout.shapes
        }
        wire = encode(wanted, layout.shapes, encoding)
        arrived = decode(wire, layout.shapes, encoding)
        lost = {name: (wanted[name] - arrived[name].double()).to(torch.float32) for name in wanted}
        write_tensors(lost, self._path(round_))
        self._path(round_).chmod(0o600)
        kept = (round_, max(self._earlier(round_), default=round_))
        for number, path in self._files().items():
            if number not in kept:
                path.unlink(missing_ok=True)
        return wire

    def _before(self, round_: int) -> dict[str, Tensor]:
        """What was lost in the last round before this one; nothing in the first, or where the file
        is damaged.
        """
        earlier = self._earlier(round_)
        if not earlier:
            return {}
        try:
            return read_tensors(self._path(max(earlier)))
        except UserError:  # late becomes lost, once
            return {}

    def _earlier(self, round_: int) -> list[int]:
        return [number for number in self._files() if number < round_]

    def _files(self) -> dict[int, Path]:
        found = self.folder.glob(f"{self._name}-*.safetensors") if self.folder.is_dir() else []
        return {
            int(match[1]): path
            for path in found
            if (match := re.search(r"-(\d+)\.safetensors$", path.name))
        }

    def _path(self, round_: int) -> Path:
        return self.folder / f"{self._name}-{round_}.safetensors"

    @property
    def _name(self) -> str:
        return self.plan.removeprefix("sha256:")

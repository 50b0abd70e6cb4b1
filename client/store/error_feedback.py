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

        memory = Feedback(node.store / "feedback", plan_hash(plan))
        wire = memory.encode(update, layout, "int8", round_=3)

    Args:
        folder: of the node's store.
        plan: the plan's hash.
    """

    folder: Path
    plan: str

    def encode(
        self, update: Mapping[str, Tensor], layout: Layout, encoding: str, round_: int
    ) -> np.ndarray:
        """Return an update with what was lost before, encoded; what is lost now is kept."""
        earlier = self._lost_before(round_)
        exact = {}
        for name, _ in layout.shapes:
            lost = earlier[name].double() if name in earlier else 0.0
            exact[name] = update[name].double() + lost
        wire = encode(exact, layout.shapes, encoding)

        arrived = decode(wire, layout.shapes, encoding)
        remains = {}
        for name, tensor in exact.items():
            remains[name] = (tensor - arrived[name].double()).to(torch.float32)
        write_tensors(remains, self._path(round_))
        self._path(round_).chmod(0o600)
        self._forget_but(round_)
        return wire

    def _forget_but(self, round_: int) -> None:
        """Delete what is neither of this round nor of the last one before it."""
        last = max(self._rounds_before(round_), default=round_)
        for number, path in self._files().items():
            if number not in (round_, last):
                path.unlink(missing_ok=True)

    def _lost_before(self, round_: int) -> dict[str, Tensor]:
        """Return what was lost in the last round before this one.

        Nothing in the first, or where the file is damaged.
        """
        earlier = self._rounds_before(round_)
        if not earlier:
            return {}
        try:
            return read_tensors(self._path(max(earlier)))
        # late becomes lost, once
        except UserError:
            return {}

    def _rounds_before(self, round_: int) -> list[int]:
        return [number for number in self._files() if number < round_]

    def _files(self) -> dict[int, Path]:
        """Return the plan's files by round."""
        files = {}
        if self.folder.is_dir():
            for path in self.folder.glob(f"{self._name}-*.safetensors"):
                match = re.search(r"-(\d+)\.safetensors$", path.name)
                if match:
                    files[int(match[1])] = path
        return files

    def _path(self, round_: int) -> Path:
        return self.folder / f"{self._name}-{round_}.safetensors"

    @property
    def _name(self) -> str:
        return self.plan.removeprefix("sha256:")

"""Backbones and plans that a node has received, on disk under their hashes.

A backbone is written beside its place, flushed, and renamed into it: a reader sees all of it or nothing, and
two processes that store the same one do no harm. What is read is what was verified: the fingerprint is
computed over the tensors when they arrive and again when they are loaded.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.backbones import fingerprint_of
from common.errors import Refused


class BackboneStore:
    """A folder of `backbones/<sha256>.safetensors` and `plans/<sha256>.json`."""

    def __init__(self, folder: Path) -> None:
        self.backbones = folder / "backbones"
        self.plans = folder / "plans"

    def has(self, fingerprint: str) -> bool:
        """Whether the backbone is here."""
        return self._backbone(fingerprint).is_file()

    def put(self, state: Mapping[str, Tensor], fingerprint: str) -> None:
        """Verify a backbone that arrived, and keep it.

        Raises:
            Refused: its bytes are not those of `fingerprint`; nothing is kept.
        """
        found = fingerprint_of(state)
        if found != fingerprint:
            raise Refused(f"the backbone that arrived is {found}, not {fingerprint} as offered")
        if not self.has(fingerprint):
            self.backbones.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.backbones, suffix=".part", delete=False) as part:
                temporary = Path(part.name)
            try:
                save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
                _rename_durably(temporary, self._backbone(fingerprint))
            finally:
                temporary.unlink(missing_ok=True)

    def load(self, fingerprint: str) -> dict[str, Tensor]:
        """The backbone's tensors. A file that has changed on disk is removed, so that it is sent again.

        Raises:
            Refused: it is not here, or its bytes are not those of its name.
        """
        path = self._backbone(fingerprint)
        if not path.is_file():
            raise Refused(f"backbone {fingerprint} is not in this node's store")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            path.unlink(missing_ok=True)
            raise Refused(f"backbone {fingerprint} cannot be read from this node's store; removed") from error
        if fingerprint_of(state) != fingerprint:
            path.unlink(missing_ok=True)
            raise Refused(f"backbone {fingerprint} has changed in this node's store; removed")
        return state

    def put_plan(self, plan_hash: str, offer: Mapping[str, object]) -> None:
        """Keep an offer (the plan and its backbone's description) under the plan's hash."""
        self.plans.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.plans, suffix=".part", delete=False) as part:
            json.dump(dict(offer), part)
        _rename_durably(Path(part.name), self._plan(plan_hash))

    def plan(self, plan_hash: str) -> dict[str, str]:
        """The offer kept under a plan's hash. Raises `Refused` where there is none."""
        try:
            return json.loads(self._plan(plan_hash).read_text())
        except FileNotFoundError:
            raise Refused(f"plan {plan_hash} was never offered to this node") from None

    def _backbone(self, fingerprint: str) -> Path:
        return self.backbones / f"{_hex(fingerprint)}.safetensors"

    def _plan(self, plan_hash: str) -> Path:
        return self.plans / f"{_hex(plan_hash)}.json"


def _hex(fingerprint: str) -> str:
    """`sha256:<64 hex digits>` → the digits. A name from the wire becomes a file's name only in this shape."""
    digits = fingerprint.removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise Refused(f"{fingerprint[:80]!r} is not a sha256 fingerprint")
    return digits


def _rename_durably(part: Path, target: Path) -> None:
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(target)

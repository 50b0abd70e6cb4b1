"""A run's folder: what is written, when, and how it survives a kill.

    plan.yaml · metrics.jsonl (grows) · checkpoints/round-NNNN/ · shared_model/ · result.json (at
    the end)

Every file but `metrics.jsonl` is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as arrays_bytes
from safetensors.torch import load_file
from safetensors.torch import save as tensors_bytes
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import write_whole
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan, plan_hash, plan_yaml


@dataclass(frozen=True)
class Checkpoint:
    """Enough to go on after a round: the shared adapter, the strategy's memory, the result so
    far.
    """

    round: int
    adapter: dict[str, Tensor]
    memory: dict[str, np.ndarray]
    so_far: dict[str, Any]


class RunFolder:
    """Writes one run. `open_new` and `open_existing` are its two doors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open_new(cls, path: Path, plan: Plan) -> RunFolder:
        """Make the folder. Raises `UserError` where it exists with something in it, or cannot be
        written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(
                    "the folder exists and is not empty",
                    where=f"--out {path}",
                    remedy="name a new folder, or go on with what is there: --resume",
                )
            folder = cls(path)
            folder._write("plan.yaml", plan_yaml(plan))
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                "is a file, not a folder", where=f"--out {path}", remedy="name a new folder"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror})",
                where=f"--out {path}",
                remedy="name a folder you may write to, on a disk with space left",
            ) from error
        return folder

    @classmethod
    def open_existing(cls, path: Path, plan: Plan) -> RunFolder:
        """Open a run that was cut off. Raises `UserError` where it is none, or another plan's."""
        folder = cls(path)
        if not (path / "plan.yaml").is_file():
            remedy = "name the folder of a run that was cut off"
            raise UserError("holds no run", where=f"--resume {path}", remedy=remedy)
        if plan_hash(load_plan(path / "plan.yaml")) != plan_hash(plan):
            raise UserError(
                "this folder is a run of another plan",
                where=f"--resume {path}",
                remedy=f"give the plan it was started with: {path / 'plan.yaml'}",
            )
        return folder

    # ── while it runs ─────────────────────────────────────────────────────────────────────────────
    def line(self, entry: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, at once visible to whoever follows the run."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def drop_lines_after(self, round_: int) -> None:
        """Forget lines of rounds that were not finished, and of the last evaluation, before they
        are run again.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        kept = [line for line, entry in whole if entry["round"] <= round_ and "final" not in entry]
        self._write("metrics.jsonl", "".join(kept))

    def save_round(self, checkpoint: Checkpoint) -> None:
        """Write a round's checkpoint; older ones but the last are removed. Raises `OSError` where
        the disk is full.
        """
        target = self.path / "checkpoints" / f"round-{checkpoint.round:04d}"
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        # written by Python: of a full disk safetensors' own writing says no OSError
        (part / "adapter.safetensors").write_bytes(tensors_bytes(checkpoint.adapter))
        (part / "strategy.safetensors").write_bytes(arrays_bytes(checkpoint.memory))
        (part / "so_far.json").write_text(json.dumps(checkpoint.so_far))
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        for old in sorted(target.parent.glob("round-????"))[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """The last finished round, or None."""
        for folder in sorted((self.path / "checkpoints").glob("round-????"), reverse=True):
            return Checkpoint(
                round=int(folder.name.removeprefix("round-")),
                adapter=load_file(folder / "adapter.safetensors"),
                memory=load_arrays(folder / "strategy.safetensors"),
                so_far=json.loads((folder / "so_far.json").read_text()),
            )
        return None

    # ── at the end ────────────────────────────────────────────────────────────────────────────────
    def result(self, result: Mapping[str, Any]) -> None:
        """Write result.json. Raises `ValueError` for NaN or infinity: a number there is a
        number.
        """
        self._write("result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)

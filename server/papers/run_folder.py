"""A run's folder: what is written, when, and how it survives a kill.

    plan.yaml · metrics.jsonl (grows) · checkpoints/round-NNNN/ · shared_model/ · result.json (at
    the end)

Every file but `metrics.jsonl` is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as arrays_bytes
from safetensors.torch import load_file
from safetensors.torch import save as tensors_bytes
from torch import Tensor

from fedgraft.common import run_files
from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import flush_folder, write_whole
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan, plan_hash, plan_yaml
from fedgraft.common.result import Part, Result
from fedgraft.common.statistics.predictive_variance import PredictiveVariance

# checkpoints that are left of a run
LAST_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """Enough to go on after a round; round 0 is the beginning.

    Attributes:
        adapter: the shared adapter, tensors by name.
        memory: what the aggregation remembers.
        so_far: the result so far.
        variance: how sure a head is that was solved for in this round.
    """

    round: int
    adapter: dict[str, Tensor]
    memory: dict[str, np.ndarray]
    so_far: Result
    variance: PredictiveVariance | None = None


class RunFolder:
    """Writes one run. `open_new` and `open_existing` are its two doors.

        folder = RunFolder.open_new(out, plan)
        folder.add_lines([{"round": 1, "node": "hospital-a"}])
        folder.save_round(Checkpoint(1, adapter, memory, result))
        folder.write_result(result)

    Attributes:
        path: where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open_new(cls, path: Path, plan: Plan) -> RunFolder:
        """Make the folder and write the plan into it.

        Raises:
            UserError: it exists with something in it, or cannot be written.
        """
        where = f"--out {path}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                remedy = "name a new folder, or go on with what is there: --resume"
                raise UserError("the folder exists and is not empty", where=where, remedy=remedy)
            folder = cls(path)
            folder._write(run_files.PLAN, plan_yaml(plan))
        except (FileExistsError, NotADirectoryError):
            what = "is a file, not a folder"
            raise UserError(what, where=where, remedy="name a new folder") from None
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            remedy = "name a folder you may write to, on a disk with space left"
            raise UserError(what, where=where, remedy=remedy) from error
        return folder

    @classmethod
    def open_existing(cls, path: Path, plan: Plan) -> RunFolder:
        """Open a run that was cut off. Raises `UserError` where it is none, or another plan's."""
        where = f"--resume {path}"
        written = path / run_files.PLAN
        if not written.is_file():
            remedy = "name the folder of a run that was cut off"
            raise UserError("holds no run", where=where, remedy=remedy)
        if plan_hash(load_plan(written)) != plan_hash(plan):
            what = "this folder is a run of another plan"
            remedy = f"give the plan it was started with: {written}"
            raise UserError(what, where=where, remedy=remedy)
        return cls(path)

    # ── while it runs ─────────────────────────────────────────────────────────────────────────────
    def add_lines(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Append lines to metrics.jsonl, at once visible to whoever follows the run."""
        with (self.path / run_files.METRICS).open("a") as file:
            for entry in entries:
                file.write(json.dumps(entry) + "\n")

    def drop_lines_after(self, number: int) -> None:
        """Forget lines of rounds that were not finished, and of the last evaluation.

        They are run again.
        """
        path = self.path / run_files.METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        finished = []
        for line in lines:
            if not line.endswith("\n"):
                continue
            entry = json.loads(line)
            if entry["round"] <= number and "final" not in entry:
                finished.append(line)
        self._write(run_files.METRICS, "".join(finished))

    def save_round(self, checkpoint: Checkpoint, *, durable: bool = True) -> None:
        """Write a round's checkpoint; older ones but the last and the one that is kept are removed.

        Args:
            durable: whether it is on the disk when this returns. Noise that was sent out and then
                lost in a power cut would be drawn a second time, and counted once.

        Raises:
            OSError: the disk is full. Written by Python: safetensors' own writing says none.
        """
        target = run_files.checkpoint_of(self.path, checkpoint.round)
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        contents: dict[str, bytes | str] = {
            run_files.ADAPTER: tensors_bytes(checkpoint.adapter),
            run_files.MEMORY: arrays_bytes(checkpoint.memory),
            run_files.SO_FAR: checkpoint.so_far.to_text(),
        }
        if checkpoint.variance is not None:
            contents[run_files.VARIANCE] = tensors_bytes(checkpoint.variance.tensors())
        for name, content in contents.items():
            write_whole(part / name, content, durable=durable)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        if durable:
            flush_folder(target.parent)
        kept = run_files.checkpoint_of(self.path, checkpoint.so_far.kept_round)
        for old in run_files.checkpoints_of(self.path)[:-LAST_CHECKPOINTS]:
            if old != kept:
                shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the last finished round, or None."""
        folders = run_files.checkpoints_of(self.path)
        if not folders:
            return None
        return _read_checkpoint(folders[-1])

    def kept(self) -> Checkpoint | None:
        """Return the round whose model is shared: the last finished one, or the best of them; None
        where none was finished.
        """
        latest = self.latest()
        if latest is None or latest.so_far.kept_round == latest.round:
            return latest
        return _read_checkpoint(run_files.checkpoint_of(self.path, latest.so_far.kept_round))

    # ── at the end ────────────────────────────────────────────────────────────────────────────────
    @property
    def shared_model(self) -> Path:
        """Where the shared model lies."""
        return self.path / run_files.SHARED_MODEL

    def write_result(self, result: Part) -> None:
        """Write result.json. Raises `ValueError` for NaN or infinity: numbers there are numbers."""
        self._write(run_files.RESULT, result.to_text(indent=1, allow_nan=False) + "\n")

    def read_result(self) -> Result:
        """Return what result.json says.

        Raises:
            OSError: there is none.
            ValueError: it is none.
        """
        text = (self.path / run_files.RESULT).read_text()
        return Result.from_json(json.loads(text))

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)


def _read_checkpoint(folder: Path) -> Checkpoint:
    so_far = json.loads((folder / run_files.SO_FAR).read_text())
    variance = None
    if (folder / run_files.VARIANCE).exists():
        variance = PredictiveVariance(**load_file(folder / run_files.VARIANCE))
    return Checkpoint(
        round=run_files.round_of(folder),
        adapter=load_file(folder / run_files.ADAPTER),
        memory=load_arrays(folder / run_files.MEMORY),
        so_far=Result.from_json(so_far),
        variance=variance,
    )

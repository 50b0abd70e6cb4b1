"""Names of the files in a run's folder, in one place.

plan.yaml · metrics.jsonl (grows) · checkpoints/round-NNNN/ · shared_model/ · result.json
"""

from __future__ import annotations

from pathlib import Path

PLAN = "plan.yaml"
METRICS = "metrics.jsonl"
RESULT = "result.json"
SHARED_MODEL = "shared_model"
CHECKPOINTS = "checkpoints"

# of a checkpoint
ADAPTER = "adapter.safetensors"
MEMORY = "strategy.safetensors"
SO_FAR = "so_far.json"
VARIANCE = "variance.safetensors"

# what a simulation adds
LEDGERS = "ledgers"
BASELINES = "baselines"
ATTACKS = "attacks.json"

# of a whole run or study
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"

_ROUND = "round-"


def checkpoint_of(run: Path, number: int) -> Path:
    """Return the folder of a round's checkpoint, there or not."""
    return run / CHECKPOINTS / f"{_ROUND}{number:04d}"


def checkpoints_of(run: Path) -> list[Path]:
    """Return the folders of all checkpoints that are there, by round."""
    return sorted((run / CHECKPOINTS).glob(f"{_ROUND}????"))


def round_of(checkpoint: Path) -> int:
    """Return the round of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix(_ROUND))

"""metrics.jsonl as it is read while a run writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.common.run_files import METRICS


def is_of_training(line: Mapping[str, Any]) -> bool:
    """Whether a line is of a node's part in a round, and not of a measurement after one."""
    return "final" not in line and "validation" not in line


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics.jsonl so far; none before there is a file."""
    try:
        text = (run / METRICS).read_text()
    except OSError:
        return []
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]

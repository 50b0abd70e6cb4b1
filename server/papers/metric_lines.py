"""metrics.jsonl as it is read while a run writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedgraft.common.run_files import METRICS


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics.jsonl so far; none before there is a file."""
    try:
        text = (run / METRICS).read_text()
    except OSError:
        return []
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]

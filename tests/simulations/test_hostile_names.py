"""Names of classes, columns, groups and files that are markup somewhere: a whole run over them."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np

CLASSES = ["cost $_{ and $ more", "[/red]", "<script>alert(1)</script>", "=1+cmd|'/C calc'!A0"]
COLUMNS = ["$x$ and $\\frac$", "[bold]c", "<b>|c"]
GROUPS = ["$m_{$ $", "<f>"]


def write_hospital(path: Path, seed: int) -> None:
    """A table whose every name is somebody's markup."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "sex", "target"])
        for _ in range(120):
            label = int(rng.integers(len(CLASSES)))
            numbers = [f"{value:.3f}" for value in rng.normal(label, 1, len(COLUMNS))]
            writer.writerow([*numbers, GROUPS[int(rng.integers(2))], CLASSES[label]])


def test_a_run_over_them_ends_and_shows_them_as_they_are(tmp_path: Path, programs: Path) -> None:
    """Two dollars in a class's name ended a run after its training, in its pictures; a tag in the
    card or the page runs in the reader's browser; a formula in the spreadsheet.
    """
    files = ["h $[b]0$.csv", "h $[b]1$.csv"]
    for seed, name in enumerate(files):
        write_hospital(tmp_path / name, seed)
    plan = {
        "name": "names",
        "task": {
            "kind": "tabular-classification",
            "classes": CLASSES,
            "columns": COLUMNS,
            "target": "target",
        },
        "backbone": {"name": "columns"},
        "adapter": {"method": "head"},
        "train": {"method": "closed-form"},
        "aggregate": {"min_nodes": 2},
        "evaluate": {"subgroups": [{"column": "sex", "values": GROUPS}]},
        "simulation": {"data": files, "partition": {"kind": "files"}},
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    for words in (
        ["simulate", "plan.yaml", "--out", "run [/x]"],
        ["predict", "run [/x]", files[0], "--out", "p.csv"],
    ):
        command = [programs / "fedgraft", *words]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    run = tmp_path / "run [/x]"
    assert (run / "labels_by_node.png").stat().st_size > 0
    page = (run / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in (run / "shared_model" / "MODEL_CARD.md").read_text()
    with (tmp_path / "p.csv").open() as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'=1+cmd|'/C calc'!A0" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]

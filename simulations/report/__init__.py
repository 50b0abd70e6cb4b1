"""report.html: one self-contained page about a run or a study, for people. Opens without a network;
prints.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedgraft.common.errors import UserError
from fedgraft.simulations.report.page import write_page
from fedgraft.simulations.report.run_page import run_page
from fedgraft.simulations.report.study_page import study_page

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run or of a study.

    Raises:
        UserError: the folder holds neither, or nothing of it is finished.
    """
    if (folder / "study.yaml").is_file():
        return write_page(folder / "report.html", study_page(folder))
    try:
        result = json.loads((folder / "result.json").read_text())
        plan_text = (folder / "plan.yaml").read_text()
        if "seeds" in result:
            raise KeyError("seeds")
    except (OSError, ValueError, KeyError) as error:
        remedy = "give the folder of one run, such as runs/NAME-TIME/seed-7, or of a study"
        raise UserError("holds no run", where=str(folder), remedy=remedy) from error
    return write_page(folder / "report.html", run_page(folder, result, plan_text))

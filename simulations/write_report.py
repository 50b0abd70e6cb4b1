"""`fedgraft report`: report.html, one self-contained page about a run or a study, for people. Opens
without a network; prints.
"""

from __future__ import annotations

from pathlib import Path

from fedgraft.simulations.report.run_page import write_run_page
from fedgraft.simulations.study.study_page import write_study_page


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run or of a study; return its path.

    Raises:
        UserError: the folder holds neither, or nothing of it is finished.
    """
    if (folder / "study.yaml").is_file():
        return write_study_page(folder)
    return write_run_page(folder)

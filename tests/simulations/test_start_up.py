"""What is imported, and when: whoever asks for help waits for no network, and a run not for what it
has no use for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# seconds each, or hundreds of megabytes
NEVER_FIRST = (
    "IPython",
    "datasets",
    "flwr_datasets",
    "matplotlib",
    "monai",
    "opacus",
    "pandas",
    "pyarrow",
    "ray",
    "sklearn",
    "timm",
    "torch._dynamo",
    "torchvision",
    "transformers",
)
# of a process that computes nothing
OF_ARITHMETIC = ("cryptography", "flwr", "grpc", "numpy", "scipy", "torch")

IMPORT = "import fedgraft"
HELP = """
sys.argv = ["fedgraft", "--help"]
from fedgraft.cli import main
main()
"""
HEAD = """
from fedgraft.simulations.simulate import SeedJob, SimulationOptions, run_seed
plan = Path("plan.yaml")
options = SimulationOptions(baselines=(), quiet=True, pages=False)
changes = ("adapter={method: head}", "train.rounds=1")
run_seed(SeedJob(plan, plan.absolute(), changes, Path("run"), options))
"""
STUDY = "import fedgraft.simulations.study.run_study"


def imported(program: str, folder: Path, wanted: tuple[str, ...]) -> str:
    """Return which of these modules a new Python has after a program, as a list's text."""
    ends = f"""
import atexit, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
atexit.register(lambda: print("found", sorted(set({wanted!r}) & set(sys.modules))))
{program}
"""
    ended = subprocess.run(
        [sys.executable, "-c", ends], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    _, _, found = ended.stdout.rpartition("found ")
    return found.strip()


@pytest.mark.parametrize("program", [IMPORT, HELP], ids=["import", "help"])
def test_a_question_is_answered_at_once(program: str, tmp_path: Path) -> None:
    """Seconds of imports before a command's help, or in every script that imports fedgraft."""
    assert imported(program, tmp_path, NEVER_FIRST + OF_ARITHMETIC) == "[]"


def test_a_study_begins_without_what_its_page_needs(tmp_path: Path) -> None:
    """Workers that wait for the imports of pictures, statistics and tables."""
    assert imported(STUDY, tmp_path, (*NEVER_FIRST, "scipy.stats")) == "[]"


def test_a_run_of_a_head_imports_what_it_uses(tiny, tmp_path: Path) -> None:
    """A third of a short run that is spent on importing what it never calls."""
    tiny(2)
    assert imported(HEAD, tmp_path, NEVER_FIRST) == "[]"

"""Run trials of docs/extend.md, each in a process of its own with a house of its own.

    python run_trials.py JOB…

A job is a folder with `house/fedgraft`, `trial.py` and the folder `here` to run it in; `output` and
`status` are written into it. What takes seconds to import and is no part of fedgraft is imported
once, and the processes are forked from this one.
"""

import os
import runpy
import sys
import traceback
from pathlib import Path

import flwr.clientapp
import flwr.serverapp
import matplotlib.backends.backend_svg
import opacus
import pandas
import sklearn.datasets
import torch._dynamo

HEAVY = (
    flwr.clientapp,
    flwr.serverapp,
    matplotlib.backends,
    opacus,
    pandas,
    sklearn.datasets,
    torch,
)


def run_trial(job: Path) -> int:
    """Run a job's trial with its own fedgraft. Return the exit status."""
    house = str(job / "house")
    sys.path.insert(0, house)
    os.environ["PYTHONPATH"] = house
    os.chdir(job / "here")
    try:
        runpy.run_path(str(job / "trial.py"))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(job: Path) -> None:
    """Run a job in a child and wait for it."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        (job / "status").write_text(str(os.waitstatus_to_exitcode(status)))
        return
    output = os.open(job / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = run_trial(job)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        fork(Path(name))

"""Flower's process of a run's ServerApp as the coordinator runs it: a SuperLink in trouble does not
end the run.

The SuperExec starts this file by its path, under the name of Flower's program. It imports nothing
of fedgraft: the run's own code, `fedgraft` in its bundle, must be the first of that name.
"""

from __future__ import annotations

import runpy
from pathlib import Path

PATIENCE = Path(__file__).parents[2] / "common" / "wire" / "patience.py"


def main() -> None:
    """Run Flower's ServerApp process, which asks again where it is answered 500."""
    from flwr.superlink.cli.flwr_serverapp import flwr_serverapp
    from flwr.superlink.grid import http_grid

    patience = runpy.run_path(str(PATIENCE))
    patience["be_patient"](http_grid, "the SuperLink")
    flwr_serverapp()


if __name__ == "__main__":
    main()

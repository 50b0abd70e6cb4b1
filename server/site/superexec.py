"""Flower's SuperExec as the coordinator runs it: a SuperLink in trouble does not end it.

It starts a run's ServerApp, which ends with it. Flower's own ends with the first answer of 500, and
the run is interrupted: `database is locked` is enough.

    python -m fedgraft.server.site.superexec --runtime-api-address 127.0.0.1:9091 …
"""

from __future__ import annotations

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec import run_superexec as loop

from fedgraft.common.wire.patience import be_patient


def main() -> None:
    """Run Flower's SuperExec, which asks again where it is answered 500."""
    be_patient(loop, "the SuperLink")
    flower_superexec()


if __name__ == "__main__":
    main()

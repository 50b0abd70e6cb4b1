"""The app that a simulation hands to Flower: the approved files, the ready plans, and a door of its
own with what no hospital has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedgraft.common.files.bundle import (
    ROOMS,
    describe_app,
    own_root,
    place_extensions,
    source_files,
)
from fedgraft.common.plan.plan_file import READY_PLANS

DOOR = (
    "simulations/__init__.py",
    "simulations/engines/__init__.py",
    "simulations/engines/flower_app.py",
    "simulations/engines/simulated_node.py",
)

# as in pyproject.toml, where `flwr run .` finds it; a test holds the two together
APP: dict = {
    "publisher": "fedgraft",
    "fab-include": [
        "fedgraft/__init__.py",
        "client/**/*.py",
        "server/**/*.py",
        "common/**/*.py",
        "common/**/*.yaml",
        *DOOR,
    ],
    "components": {
        "serverapp": "fedgraft.simulations.engines.flower_app:server_app",
        "clientapp": "fedgraft.simulations.engines.flower_app:client_app",
    },
    "config": {
        "plan": "",
        "weights": "",
        "out": "",
        "nodes": "",
        "nodes-expected": 0,
        "resume": False,
    },
}


def simulation_files(extensions: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Return the app's files by their path in it.

    Args:
        extensions: as of `fedgraft.common.files.bundle.app_files`.
    """
    root = own_root()
    files = {"pyproject.toml": describe_app(APP, extended=bool(extensions))}
    files |= source_files(root, ROOMS)
    files |= place_extensions(extensions or {})
    for path in (*sorted(READY_PLANS.resolve().glob("*.yaml")), *(root / name for name in DOOR)):
        files[Path(path).relative_to(root).as_posix()] = path.read_bytes()
    return files

"""The app of a simulation: the approved code byte for byte, and a door of its own."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

from fedgraft.common.files.bundle import app_files
from fedgraft.simulations.engines.simulation_app import APP, DOOR, simulation_files

ROOT = Path(__file__).resolve().parents[3]


def test_it_says_what_the_checkout_says() -> None:
    """Two copies of Flower's keys: `flwr run .` from a checkout must find the same apps and
    options.
    """
    ours = tomllib.loads(simulation_files()["pyproject.toml"].decode())["tool"]["flwr"]["app"]
    theirs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert ours == theirs == APP


def test_what_both_apps_have_is_identical() -> None:
    """A simulation that tries out other code than hospitals approve; or that leaves some out."""
    approved = app_files()
    simulated = simulation_files()
    # each describes itself in this file
    del approved["pyproject.toml"]
    assert approved.items() <= simulated.items()
    more = simulated.keys() - approved.keys() - {"pyproject.toml"}
    assert set(DOOR) <= more
    assert all(name in DOOR or name.startswith("common/plan/ready/") for name in more)


def test_flower_packs_all_of_it() -> None:
    """A file that is laid out and that the patterns of `fab-include` leave behind."""
    for name in simulation_files().keys() - {"pyproject.toml"}:
        assert any(fnmatchcase(name, pattern.replace("**/", "*")) for pattern in APP["fab-include"])

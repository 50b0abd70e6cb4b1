"""Two engines, one result: Flower's Simulation Runtime on Ray, and one process."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest


def flower_processes() -> list[str]:
    """Return those that this test has begun: others run beside it, and begin some of their own."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True
    ).stdout
    names = (
        "flower-superlink",
        "flwr-serverapp",
        "flwr-simulation",
        "raylet",
        "gcs_server",
        "ray::",
    )
    running: list[str] = []
    for line in listed.splitlines():
        number, state, words = line.split(maxsplit=2)
        # a process that waited before may run now, and is the same
        if state.startswith("Z") or not any(name in words for name in names):
            continue
        if os.environ["PYTEST_CURRENT_TEST"].split()[0] in read_environment(number):
            running.append(f"{number} {words}")
    return running


def read_environment(process: str) -> str:
    try:
        return Path(f"/proc/{process}/environ").read_text(errors="replace")
    except OSError:
        # it has ended
        return ""


CHOOSES = ("train.keep=best", "train.calibrate=temperature", "evaluate.validation_fraction=0.3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [pytest.param((), marks=pytest.mark.exhaustive), CHOOSES],
    ids=["last round", "chosen round"],
)
def test_both_engines_give_the_same_model(place, process, installed, keys):
    """Other bits from Ray than from one process (order of sums, seeds, threads), or processes that
    stay behind.
    """
    before = flower_processes()
    sets = []
    for key in keys:
        sets += ["--set", key]
    words = ("simulate", "plan.yaml", *sets)
    done = installed(*words, "--engine", "flower", "--out", "flower", cwd=place)
    assert done.code == 0, done.err
    assert process(*words, "--out", "inprocess", cwd=place).code == 0
    runs = (place / "flower", place / "inprocess")
    models = [(run / "shared_model" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert models[0] == models[1]
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    for key in ("status", "plan_hash", "backbone", "adapter", "final", "refused", "data"):
        assert results[0][key] == results[1][key], key
    for key in ("validation", "calibration"):
        assert (key in results[0]) == bool(keys)
        assert results[0].get(key) == results[1].get(key), key
    rounds = [
        [(row["round"], row["nodes"]) for row in result["bytes"]["rounds"]] for result in results
    ]
    assert rounds[0] == rounds[1]
    deadline = (
        time.monotonic() + 20
    )  # Ray's workers notice by themselves that their parent has gone
    while (left := set(flower_processes()) - set(before)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


@pytest.mark.slow
def test_the_flower_engine_says_why_a_run_failed(place, installed):
    """The words `finished:failed` and a log of HTTP requests, instead of the reason."""
    late = "aggregate.round_timeout=0.001"  # no message can be answered in time
    done = installed(
        "simulate", "plan.yaml", "--set", late, "--engine", "flower", "--out", "flower", cwd=place
    )
    assert done.code == 1
    assert "0 valid updates, 2 are needed" in done.err, done.err
    assert "Traceback" not in done.err

"""A backbone of 340 MB over the wire to two nodes: bytes, seconds, and the memory of every process,
measured.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.handout import PART
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import find_processes, list_processes
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.e2e.conftest import write_images

PLAN = """
name: vit
task: {kind: image-classification, classes: [dark, light]}
backbone: {name: vit_b_16, image_size: 32}
adapter: {method: head}
train: {rounds: 2, batch_size: 16}
simulation: {nodes: 2, data: spots.npz, partition: {kind: iid}}
"""
PROGRAMS = (
    "flower-superlink",
    "serverapp.py",
    "flwr-clientapp",
    "fedgraft.server.site.gateway",
    "supernode.py",
)


def peak(pid: int) -> int:
    """Largest resident memory of a process so far in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


class Watch(threading.Thread):
    """Peaks of the processes of a federation, by program."""

    def __init__(self, federation: LocalFederation) -> None:
        super().__init__(daemon=True)
        self._federation, self._ended = federation, threading.Event()
        self.peaks = dict.fromkeys(PROGRAMS, 0)

    def run(self) -> None:
        while not self._ended.wait(0.5):
            named = {
                process.pid for process in list_processes() if process.name == "flwr-clientapp"
            }
            for program in PROGRAMS:
                for pid in named if program == "flwr-clientapp" else find_processes(program):
                    if self._ours(pid):
                        self.peaks[program] = max(self.peaks[program], peak(pid))

    def _ours(self, pid: int) -> bool:
        try:
            return (
                str(self._federation.folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()
            )
        except OSError:
            return False

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join()


@pytest.mark.exhaustive
def test_a_large_backbone(tmp_path, capsys):
    """A hand-out that needs memory for each node, or that is sent again in the second round or the
    second run.

    Gateway and SuperNode need a few parts of it, of 64 MB, over what they need anyway; ServerApp
    and ClientApp (some 560 MB for Python and torch) hold it as a network, and a ClientApp has it
    mapped from its file as well. Sent whole, the ServerApp needed 2.1 GB and a ClientApp 1.7.
    """
    (tmp_path / "plan.yaml").write_text(PLAN)
    write_images(tmp_path / "spots.npz")
    plan = load_plan(tmp_path / "plan.yaml")
    files = enumerate(write_nodes(plan, tmp_path / "plan.yaml", tmp_path / "nodes"))
    with LocalFederation(
        tmp_path, {f"node-{k}": file for k, file in files}, tmp_path / "plan.yaml"
    ) as federation:
        with Watch(federation) as watch:
            done = federation.run(tmp_path / "plan.yaml", tmp_path / "runs" / "first")
        assert done.code == 0, done
        again = federation.run(tmp_path / "plan.yaml", tmp_path / "runs" / "again")
        assert again.code == 0, again
    first, second = (
        json.loads((tmp_path / "runs" / name / "result.json").read_text())
        for name in ("first", "again")
    )
    size = first["bytes"]["backbone"]
    handout = first["bytes"]["handout"]
    with capsys.disabled():
        print(
            f"\nbackbone {size:,} bytes to 2 nodes: {first['seconds']['handout']:.1f} s,"
            f" {handout['down']:,} bytes down"
        )
        for program, most in watch.peaks.items():
            print(f"  {program:<18} peak {most / 1e6:7.0f} MB")
    assert (
        1.99 * size < handout["down"] < 2.01 * size
    )  # equal chunks of a message, such as zeros, go once
    assert second["bytes"]["handout"]["down"] < 100_000
    assert 0 < watch.peaks["fedgraft.server.site.gateway"] < 200e6  # it streams
    assert 0 < watch.peaks["supernode.py"] < 300e6 + 4 * PART
    assert (
        0 < watch.peaks["flower-superlink"] < 300e6 + 2 * size
    )  # Flower's own: parts do not make it smaller
    assert 0 < watch.peaks["serverapp.py"] < 750e6 + size + 6 * PART
    assert 0 < watch.peaks["flwr-clientapp"] < 750e6 + 2 * size

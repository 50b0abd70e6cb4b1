"""A hospital behind a real wire, a network namespace of its own, whose cable is pulled in the
middle of a round.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.site import nodes as registry
from fedgraft.server.site.certificates import make_certificates
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import wait_until
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.e2e.conftest import fill, wait_for_first_round
from tests.e2e.hospitals.test_failures import refused, trained

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
CHANGES = ("train.rounds=200", "aggregate.min_nodes=1", "aggregate.round_timeout=15")


@dataclass(frozen=True)
class Cable:
    """Two ends: one here, with the address `host`; the other in the namespace `there`."""

    here: str
    there: str
    host: str

    def cut(self) -> None:
        """What is sent now arrives nowhere, and nobody is told."""
        ip("link", "set", self.here, "down")

    def mend(self) -> None:
        """As it was."""
        ip("link", "set", self.here, "up")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    """A namespace and a cable to it; both are gone afterwards, whatever happens. Addresses are of
    TEST-NET-2.
    """
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and `ip`, to make a network namespace")
    mark, first = f"fg{os.getpid()}", 4 * (os.getpid() % 63)
    made = Cable(here=f"{mark}a", there=mark, host=f"198.51.100.{first + 1}")
    try:
        try:
            ip("netns", "add", made.there)
            ip(
                "link",
                "add",
                made.here,
                "type",
                "veth",
                "peer",
                "name",
                f"{mark}b",
                "netns",
                made.there,
            )
            ip("addr", "add", f"{made.host}/30", "dev", made.here)
            ip("link", "set", made.here, "up")
            ip("-n", made.there, "addr", "add", f"198.51.100.{first + 2}/30", "dev", f"{mark}b")
            for device in ("lo", f"{mark}b"):
                ip("-n", made.there, "link", "set", device, "up")
        except OSError as error:
            pytest.skip(f"this machine makes no network namespace: {error}")
        yield made
    finally:
        for words in (("link", "del", made.here), ("netns", "del", made.there)):
            subprocess.run(["ip", *words], capture_output=True, check=False)


def test_a_cut_cable_costs_its_node_a_few_rounds(cable: Cable, tmp_path: Path, seen) -> None:
    """A federation that waits for ever for a node it cannot reach; a node that stays lost when the
    cable is mended.

    Nothing tells either side: no connection is closed, what was sent is lost.
    """
    plan = fill(tmp_path) / "plan.yaml"
    north, south, _ = write_nodes(load_plan(plan), plan, tmp_path / "nodes")
    out = tmp_path / "runs" / "cut"
    with LocalFederation(tmp_path, {"near": north}, plan, *CHANGES, host=cable.host) as federation:
        make_certificates(tmp_path / "keys", hosts=[], nodes=["far"])
        registry.add(federation.server, "far", tmp_path / "keys" / "nodes" / "far.pub")
        federation.settle("far", south, private_key=tmp_path / "keys" / "nodes" / "far")
        federation.approve(plan, *CHANGES, only="far")
        federation.start_node(
            "far", ["ip", "netns", "exec", cable.there, *federation.node_command("far")]
        )
        wait_until("it is connected", lambda: federation.count_connections("far") > 0)
        running = federation.begin_run(plan, out, *CHANGES)
        try:
            wait_for_first_round(out)
            wait_until("it is in the middle of a message", lambda: federation.is_at_work("far"), 60)
            cable.cut()
            wait_until("a round went on without it", lambda: refused(out, "south"), 90)
            cable.mend()
            missed = max(refused(out, "south"))
            wait_until("it trains again", lambda: max(trained(out, "south")) > missed, 150)
            running.send_signal(signal.SIGINT)
            said, err = running.communicate(timeout=60)
        finally:
            running.kill()
        assert running.returncode == 130, said + err
        assert federation.is_alive("far")
    seen(
        f"a cable pulled in a round: left out in {len(refused(out, 'south'))} of its rounds, trains"
        " again"
    )
    assert trained(out, "north") >= set(range(1, missed + 1)), "the others did not go on"

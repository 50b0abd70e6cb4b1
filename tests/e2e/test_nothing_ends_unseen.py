"""Whatever dies at a node is started again, and whoever waits for it is told: real processes, and a
proxy that answers for the SuperLink what a SuperLink in trouble does.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from ssl import create_default_context

import pytest
import uvicorn

from fedgraft.client.node.node_file import load_node
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.papers.metric_lines import read_lines
from fedgraft.server.site.gateway import Gateway, Receive, Scope, Send
from fedgraft.simulations.deployment.local_federation import LocalFederation
from fedgraft.simulations.deployment.processes import find_free_ports, wait_until
from fedgraft.simulations.simulated_nodes import write_nodes
from tests.e2e.conftest import write_table

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
PLAN = """
name: tiny
task:
  kind: tabular-classification
  classes: [no, yes]
  columns: [a, b, c]
  ranges: [{columns: [a, b, c], low: -3, high: 4}]
backbone: {name: mlp, hidden: [8, 8]}
adapter: {method: lora, rank: 2}
train: {rounds: 2, batch_size: 8}
aggregate: {min_nodes: 1}
simulation: {data: [north.csv, south.csv], partition: {kind: files}}
"""
# long enough to be killed in
LONG = ("train.rounds=3", "train.local_epochs=400")


class Trouble(Gateway):
    """fedgraft's own gateway, with other answers than the SuperLink's to some requests.

    Attributes:
        due: how often a path is still answered with a status.
    """

    def __init__(self, federation: LocalFederation) -> None:
        self.port = find_free_ports(1)[0]
        self.due: Counter[tuple[str, int]] = Counter()
        context = create_default_context(cafile=str(federation.ca))
        upstream = f"https://127.0.0.1:{federation.superlink}"
        super().__init__(upstream, context, max_body=64_000_000, per_second=500)
        config = uvicorn.Config(
            self,
            host="127.0.0.1",
            port=self.port,
            ssl_certfile=str(federation.certificates / "server.crt"),
            ssl_keyfile=str(federation.certificates / "server.key"),
            log_level="warning",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rsplit("/", 1)[-1]
        for (name, status), count in self.due.items():
            if name == path and count > 0:
                self.due[name, status] -= 1
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body", "body": b"database is locked"})
                return
        await super()._forward(scope, receive, send)

    def answer(self, path: str, status: int) -> None:
        """Answer one request in the SuperLink's place, and wait until it has come."""
        self.due[path, status] += 1
        wait_until(f"{path} was answered {status}", lambda: self.due[path, status] == 0)

    def __enter__(self) -> Trouble:
        self.thread.start()
        wait_until("the proxy listens", lambda: self.server.started)
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Answer nobody any more."""
        self.server.should_exit = True
        self.thread.join(30)


class ThroughTrouble(LocalFederation):
    """North reaches the SuperLink through `trouble`, south through the federation's gateway."""

    trouble: Trouble

    def settle(self, name: str, source: Path, **connection) -> None:
        way = f"127.0.0.1:{self.trouble.port}" if name == "north" else f"127.0.0.1:{self.gateway}"
        super().settle(name, source, superlink=way, **connection)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThroughTrouble]:
    folder = tmp_path_factory.mktemp("unseen")
    for seed, name in enumerate(("north", "south")):
        write_table(folder / f"{name}.csv", seed=seed)
    (folder / "plan.yaml").write_text(PLAN)
    write_nodes(load_plan(folder / "plan.yaml"), folder / "plan.yaml", folder / "nodes")
    files = {name: folder / "nodes" / f"node-{k}.yaml" for k, name in enumerate(("north", "south"))}
    with files["north"].open("a") as file:
        file.write(f"audit: true\nmetrics: 127.0.0.1:{find_free_ports(1)[0]}\n")
    running = ThroughTrouble(folder, files, folder / "plan.yaml")
    with Trouble(running) as trouble:
        running.trouble = trouble
        with running:
            yield running
            # in this order: a SuperLink waits for whoever is connected, a node signs off
            running.stop("north")
            trouble.end()


def metric(federation: LocalFederation, name: str) -> float:
    """A number of north's, as Prometheus would fetch it."""
    address = load_node(federation.files["north"]).metrics
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read().decode()
    lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1])


def is_able(federation: LocalFederation) -> bool:
    """Whether north says to Prometheus that it can work."""
    return metric(federation, "fedgraft_node_able") == 1.0


def trained(run: Path, node: str) -> set[int]:
    """Rounds in which a node's update was counted."""
    return {row["round"] for row in read_lines(run) if row["node"] == node and "train" in row}


def refused(run: Path, node: str) -> dict[int, str]:
    """Why a node was left out, by round."""
    rows = [row for row in read_lines(run) if row["node"] == node and "refused" in row]
    return {row["round"]: row["refused"] for row in rows}


def test_one_500_ends_nothing(federation: ThroughTrouble) -> None:
    """A node that is connected for ever and never answers, after one answer of 500: to its
    question for messages, to its heartbeat or to its reply.
    """
    wait_until("it can work", lambda: is_able(federation))
    federation.trouble.answer("pull-messages", 500)
    wait_until("it says that it can work again", lambda: federation.list_events("north", "able"))
    assert "the coordinator answers 500" in federation.list_events("north", "unable")[0]
    federation.trouble.answer("send-node-heartbeat", 500)
    out = federation.folder / "runs" / "trouble"
    federation.trouble.due["push-messages", 500] = 1
    done = federation.run(federation.folder / "plan.yaml", out)
    assert done.code == 0, done
    assert federation.trouble.due["push-messages", 500] == 0
    assert trained(out, "north") == trained(out, "south") == {1, 2}
    assert federation.count_connections("north") == 1
    assert is_able(federation)


def test_a_locked_database_interrupts_no_run(federation: ThroughTrouble, seen) -> None:
    """A run that ends because the coordinator's own SuperExec, or its ServerApp, was answered 500:
    as a SuperLink does whose database is locked for longer than five seconds.
    """
    out = federation.folder / "runs" / "locked"
    log = federation.server.logs / "superexec.log"
    known = len(log.read_text())
    starts = federation.log("server").count("superexec started")
    running = federation.begin_run(federation.folder / "plan.yaml", out)
    try:
        wait_until("a node is asked", lambda: federation.is_at_work("north"), 300)
        began = time.monotonic()
        database = sqlite3.connect(federation.server.state / "superlink.db", isolation_level=None)
        with closing(database):
            database.execute("BEGIN EXCLUSIVE")
            wait_until("it is told of the lock", lambda: "500" in log.read_text()[known:])
        seconds = time.monotonic() - began
        said, err = running.communicate(timeout=240)
    finally:
        running.kill()
    assert running.returncode == 0, said + err
    assert trained(out, "north") == trained(out, "south") == {1, 2}
    assert federation.log("server").count("superexec started") == starts
    seen(f"the SuperLink's database locked for {seconds:.0f} s in a run: no round was lost")


def test_a_supernode_that_cannot_go_on_is_started_again(federation: ThroughTrouble) -> None:
    """A SuperNode whose loop has ended, and whose process stays."""
    before = federation.count_connections("north")
    federation.trouble.answer("pull-messages", 400)
    wait_until("it is connected", lambda: federation.count_connections("north") > before)
    wait_until("it can work", lambda: is_able(federation))
    assert "again in" in federation.list_events("north", "ended")[-1]
    assert metric(federation, 'fedgraft_node_restarts_total{process="supernode"}') == 1.0


# the next test kills one in a round
@pytest.mark.exhaustive
def test_a_killed_executor_is_started_again(federation: ThroughTrouble) -> None:
    """A node whose SuperExec was killed between two messages: connected, and never answering."""
    kills = metric(federation, 'fedgraft_node_restarts_total{process="executor"}')
    kill(federation.find_executor("north"))
    wait_until(
        "the node says so",
        lambda: any("SIGKILL" in what for what in federation.list_events("north", "unable")),
    )
    out = federation.folder / "runs" / "executor"
    done = federation.run(federation.folder / "plan.yaml", out)
    assert done.code == 0, done
    assert trained(out, "north") == {1, 2}
    assert metric(federation, 'fedgraft_node_restarts_total{process="executor"}') == kills + 1
    assert is_able(federation)


def test_the_coordinator_is_told_at_once_of_a_process_that_died(
    federation: ThroughTrouble, seen
) -> None:
    """A round that waits its ten minutes for a message whose process, or whose process's parent,
    was killed; a coordinator that is not told which node it was and why.
    """
    federation.approve(federation.folder / "plan.yaml", *LONG)
    out = federation.folder / "runs" / "killed"
    began = time.monotonic()
    running = federation.begin_run(federation.folder / "plan.yaml", out, *LONG)
    try:
        wait_until("it trains", lambda: trains(federation, 1), 300)
        kill(federation.find_client_app("north"))
        wait_until("the round went on", lambda: 1 in refused(out, "north"), 60)
        wait_until("it trains", lambda: trains(federation, 2), 120)
        kill(federation.find_executor("north"))
        said, err = running.communicate(timeout=240)
    finally:
        running.kill()
    assert running.returncode == 0, said + err
    reasons = refused(out, "north")
    assert reasons[1].startswith("the process of this message was killed (SIGKILL)")
    assert reasons[2].startswith("what starts processes for messages at this node was killed")
    assert f"north: {reasons[1]}" in said
    assert trained(out, "north") == {3}
    assert trained(out, "south") == {1, 2, 3}
    assert metric(federation, "fedgraft_node_lost_total") == 2.0
    assert len(federation.list_events("north", "lost")) == 2
    seen(
        "a message's process and a node's SuperExec killed in training: the coordinator was told"
        f" at once, the run took {time.monotonic() - began:.0f} s"
    )


def trains(federation: LocalFederation, number: int) -> bool:
    """Whether north works on the training of a round now."""
    events = federation.list_events("north", "message")
    last = events[-1] if events else ""
    return (
        last.startswith("train,")
        and last.endswith(f"group {number}")
        and federation.is_at_work("north")
    )


def kill(process: int | None) -> None:
    assert process is not None
    os.kill(process, signal.SIGKILL)

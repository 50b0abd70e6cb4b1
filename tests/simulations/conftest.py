"""A tiny federation of tables, made on the spot, and a grid that writes down every message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedgraft.client.app import make_client_app
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.app import federate
from fedgraft.server.federation import Federation
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.engines.inprocess import InProcessGrid
from fedgraft.simulations.engines.simulated_node import simulation_desk
from fedgraft.simulations.simulated_nodes import write_nodes

# numbers of these ranges have mean 0 and deviation 1: the network takes them as they are
PLAN = """
name: tiny
task:
  kind: tabular-classification
  classes: [no, yes]
  columns: [a, b, c]
  ranges: [{columns: [a, b, c], low: -1.7320508075688772, high: 1.7320508075688772}]
backbone: {name: mlp, hidden: [8, 8]}
adapter: {method: lora, rank: 2}
train: {rounds: 3, batch_size: 8, optimizer: {lr: 1.0e-2}}
simulation: {data: [FILES], partition: {kind: files}}
"""
# nodes whose noise can be repeated
DESK = simulation_desk()
client_app = make_client_app(lambda: DESK)
Handle = Callable[[Message, Any], Message]


@dataclass
class Recorder(InProcessGrid):
    """The in-process grid, with every message that went through it; `stop_before` a round ends it
    like Ctrl-C.
    """

    client_app: Any
    nodes: list[Path]
    workers: int | None = None
    together: Any = None
    stop_before: int | None = None
    unreachable: int = 0  # a node to which no train message can be delivered
    on_push: Callable[[list[Message]], None] = lambda messages: None
    down: list[Message] = field(default_factory=list)
    up: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.client_app, self.nodes, self.workers, self.together)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train" and message.metadata.group_id == str(
                self.stop_before
            ):
                raise KeyboardInterrupt
        self.on_push(messages)
        self.down += messages
        gone = [
            m.metadata.dst_node_id == self.unreachable and m.metadata.message_type == "train"
            for m in messages
        ]
        ids = iter(
            super().push_messages([m for m, lost in zip(messages, gone, strict=True) if not lost])
        )
        return ["" if lost else next(ids) for lost in gone]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.up += replies
        return replies


@dataclass
class Tiny:
    """A plan on disk, its nodes, and a way to run it."""

    path: Path
    nodes: list[Path]

    def plan(self, *overrides: str) -> Plan:
        return load_plan(self.path, overrides)

    def run(
        self,
        out: Path,
        overrides: Sequence[str] = (),
        *,
        handle: Handle = client_app,
        resume: bool = False,
        seeded_noise: bool = False,
        expected: int | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], Recorder]:
        """Federate into `out`; what `federate` returns (or what it raises, with `recorder` lost)
        and the grid.
        """
        plan = self.plan(*overrides)
        grid = Recorder(handle, self.nodes, **options)
        backbone = plan_backbone(plan, self.path.parent)
        federation = Federation(
            plan,
            backbone,
            expected or len(self.nodes),
            patience=0.0,
            seeded_noise=seeded_noise,
        )
        folder = RunFolder.open_existing(out, plan) if resume else RunFolder.open_new(out, plan)
        try:
            return federate(grid, federation, folder, resume=resume).to_json(), grid
        finally:
            grid.close()


def write_table(path: Path, rows: int, seed: int) -> None:
    """Three columns that tell two classes apart, with noise and a hole here and there."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    values = rng.normal(size=(rows, 3)) + labels[:, None]
    lines = [",".join("" if rng.random() < 0.05 else f"{v:.4f}" for v in row) for row in values]
    body = "".join(f"{line},{label}\n" for line, label in zip(lines, labels, strict=True))
    path.write_text("a,b,c,target\n" + body)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Tiny]:
    """(nodes) → a federation of that many tables, of 40, 50, 60 … rows."""

    def make(count: int = 3) -> Tiny:
        names = [f"h{number}.csv" for number in range(count)]
        for number, name in enumerate(names):
            write_table(tmp_path / name, 40 + 10 * number, number)
        path = tmp_path / "plan.yaml"
        path.write_text(PLAN.replace("FILES", ", ".join(names)))
        return Tiny(path, write_nodes(load_plan(path), path, tmp_path / "nodes"))

    return make

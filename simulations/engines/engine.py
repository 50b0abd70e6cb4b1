"""The same ServerApp and ClientApp on one machine, in one process or on Flower's Simulation
Runtime.

plan → nodes on disk (node.yaml and row numbers) → engine → the run's folder
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedgraft.client.node.node_file import load_node
from fedgraft.common.errors import Refused, RunFailed, UserError
from fedgraft.common.extensions import read_extensions
from fedgraft.common.inputs import INPUTS
from fedgraft.common.inputs.probes import draw_probes
from fedgraft.common.model.assembly import plan_backbone
from fedgraft.common.model.devices import find_device
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import plan_yaml
from fedgraft.common.result import Result
from fedgraft.common.tasks import TASKS
from fedgraft.server.papers.run_folder import RunFolder
from fedgraft.simulations.simulated_nodes import NO_CLAUSES, write_nodes

ENGINES = ("inprocess", "flower")
# the environment's name of a folder that keeps activations between commands
ACTIVATIONS = "FEDGRAFT_ACTIVATIONS"


@dataclass(frozen=True)
class EngineOptions:
    """Which engine runs a federation on this machine, and how.

    Attributes:
        name: `inprocess`, or `flower`: Flower's Simulation Runtime.
        workers: nodes trained at once; default: cores.
        together: train nodes at once where that is a gain: the same to about 1e-6, and not bit for
            bit.
        resume: go on with the run that is there.
        device: where nodes compute: cpu, cuda, cuda:N, mps or auto; over several cards nodes are
            spread.

    Raises:
        UserError: no such engine, or one that cannot do what is wanted.
    """

    name: str = ENGINES[0]
    workers: int | None = None
    together: bool = False
    resume: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            remedy = f"write one of {', '.join(ENGINES)}"
            raise UserError(f"{self.name!r} is no engine", where="--engine", remedy=remedy)
        if self.together and not self.is_default:
            what = "nodes are trained at once in one process only"
            remedy = "leave it out, or use --engine inprocess"
            raise UserError(what, where="--together", remedy=remedy)
        find_device(self.device)
        if self.device != "cpu" and not self.is_default:
            what = f"{self.device}: nodes compute on cards in one process only"
            remedy = "leave it out, or use --engine inprocess"
            raise UserError(what, where="--device", remedy=remedy)

    @property
    def is_default(self) -> bool:
        """Whether it is the engine in one process."""
        return self.name == ENGINES[0]

    def describe(self) -> str:
        """Return what result.json calls it."""
        words = [self.name]
        if self.together:
            words.append("nodes together")
        if self.device != "cpu":
            words.append(f"on {self.device}")
        return ", ".join(words)


@contextmanager
def nodes_on_disk(
    plan: Plan,
    plan_path: Path,
    ledgers: Path | None = None,
    policy: Mapping[str, Any] = NO_CLAUSES,
    device: str = "cpu",
) -> Iterator[list[Path]]:
    """The plan's data dealt to its nodes, as one node.yaml each in a temporary folder.

    Args:
        ledgers: folder of the nodes' privacy ledgers; default: they are lost with the nodes.
        policy: clauses of every node's policy.
        device: as of `EngineOptions`.

    Raises:
        UserError: no `simulation` section, or data that is missing or not in order.
    """
    if plan.simulation is None:
        raise UserError(
            "the plan has no data to simulate with",
            where=f"{plan_path}: simulation",
            remedy="add `simulation: {nodes: 8, data: FILE, partition: {kind: iid}}`",
        )
    with tempfile.TemporaryDirectory(prefix="fedgraft-nodes-") as folder:
        kept = activations_folder()
        paths = write_nodes(
            plan,
            plan_path,
            Path(folder),
            ledgers=ledgers,
            activations=kept,
            policy=policy,
            device=device,
        )
        for path in paths if policy else ():
            load_node(path)  # a clause that no policy has is told here
        yield paths


@functools.cache
def activations_folder() -> Path:
    """A folder for the life of this process: what one seed or baseline computed, the next ones
    have.

    With FEDGRAFT_ACTIVATIONS in the environment, that folder: the next command has them, too. It
    holds images' activations, which are as private as the images.
    """
    if wanted := os.environ.get(ACTIVATIONS):
        return Path(wanted).expanduser().absolute()
    folder = tempfile.TemporaryDirectory(prefix="fedgraft-activations-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def simulate(
    plan: Plan,
    plan_path: Path,
    out: Path,
    *,
    nodes: list[Path],
    options: EngineOptions = EngineOptions(),
) -> Result:
    """Run one federation on this machine.

    Args:
        plan: the plan, with every `--set` applied.
        plan_path: its file; weights are looked up beside it.
        out: the run's folder; must be new or empty, unless `options.resume`.
        nodes: one node.yaml for each node.

    Returns:
        What result.json says.

    Raises:
        UserError: the user's input is wrong; nothing was written.
        RunFailed: the run failed; what was finished is in `out`.
    """
    check_privacy_is_possible(plan, plan_path)
    if options.is_default:
        return _in_process(plan, plan_path, out, nodes, options)
    return _on_flower(plan, plan_path, out, nodes, options.resume)


def _in_process(
    plan: Plan, plan_path: Path, out: Path, nodes: list[Path], options: EngineOptions
) -> Result:
    # Flower takes a second to import
    from fedgraft.client.app import make_client_app
    from fedgraft.common.model.allocator import keep_freed_memory
    from fedgraft.server.app import federate
    from fedgraft.server.federation import Federation
    from fedgraft.simulations.engines.inprocess import InProcessGrid
    from fedgraft.simulations.engines.simulated_node import simulation_desk
    from fedgraft.simulations.engines.together import train_together

    keep_freed_memory()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(plan.train.threads)
    backbone = plan_backbone(plan, plan_path.parent)
    federation = Federation(plan, backbone, len(nodes), seeded_noise=True)
    if options.resume:
        folder = RunFolder.open_existing(out, plan)
    else:
        folder = RunFolder.open_new(out, plan)
    desk = simulation_desk()
    batched = None
    if options.together:
        batched = functools.partial(train_together, desk)
    grid = InProcessGrid(make_client_app(lambda: desk), nodes, options.workers, batched)
    try:
        return federate(grid, federation, folder, resume=options.resume)
    finally:
        grid.close()


def check_privacy_is_possible(plan: Plan, plan_path: Path) -> None:
    """Tell what differential privacy cannot be had for before anything is written.

    Raises:
        UserError: a model whose layers do not give gradients of single examples.
    """
    if plan.privacy.mode != "sample" or plan.train.method != "steps":
        return
    from fedgraft.client.node_task import working_model
    from fedgraft.client.privacy.clipping_engine import losses_of
    from fedgraft.client.privacy.gradient_check import check_gradients

    backbone = plan_backbone(plan, plan_path.parent)
    example = INPUTS[plan.task.material].example(backbone.preprocess, plan.backbone, plan.task)
    probes = draw_probes(plan.task.material, backbone.preprocess, example, 2)
    model = working_model(backbone, plan)
    losses = losses_of(plan.task, plan.train)
    try:
        targets = TASKS[plan.task.question].probes(plan.task)
        check_gradients(model, plan.privacy.grad_sample_mode, probes.joined, losses, targets)
    except Refused as refused:
        raise UserError(refused.reason, where="privacy.mode: sample", remedy="") from None


def _on_flower(plan: Plan, plan_path: Path, out: Path, nodes: list[Path], resume: bool) -> Result:
    from fedgraft.simulations.engines.flower_engine import run_on_flower

    plan_backbone(
        plan, plan_path.parent
    )  # a mistake is told here, not in the log of another process
    if not resume:
        RunFolder.open_new(out, plan)
        shutil.rmtree(out)
    # The ServerApp runs in a process and a folder of its own: it is told where everything lies.
    copy = nodes[0].parent / "plan.yaml"
    copy.write_text(plan_yaml(plan))
    weights = plan.backbone.weights
    if plan.backbone.weights_file is not None:
        weights = str(resolve(plan.backbone.weights_file, plan_path.parent))
    run_config = {
        "plan": str(copy),
        "weights": weights or "",
        "out": str(out.resolve()),
        "nodes": str(copy.parent),
        "nodes-expected": len(nodes),
        "resume": resume,
    }
    try:
        sources = read_extensions(extension.name for extension in plan.extensions)
        run_on_flower(run_config, nodes=len(nodes), extensions=sources)
    except RunFailed:
        with contextlib.suppress(OSError, ValueError):
            # the ServerApp's own words, if it came so far
            if error := RunFolder(out).read_result().error:
                raise RunFailed(error) from None
        raise
    return RunFolder(out).read_result()

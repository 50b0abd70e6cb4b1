"""What a simulation's data are: who has how many of what, and each file and node by hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.data.data_set import Records
from fedgraft.client.node.node_file import load_node
from fedgraft.client.node_task import open_data
from fedgraft.common.backbones.backbone import Backbone
from fedgraft.common.errors import UserError
from fedgraft.common.model.public_reference import is_norm_alone
from fedgraft.common.plan.data_files import resolve
from fedgraft.common.plan.phases import rounds_for
from fedgraft.common.plan.plan import Plan
from fedgraft.common.result import DataFacts
from fedgraft.common.tasks import TASKS
from fedgraft.server.papers.surroundings import sha256_of

MOST_NAMED = 5  # nodes in one note


@dataclass(frozen=True)
class NodeCounts:
    """How many examples of each class a node has, or of what stands for them.

    Attributes:
        train, test: by class, in the order of the plan; a record may be of several, or of none.
        tests: how many test records there are.
        fingerprint: of the node's records.
    """

    name: str
    train: list[int]
    test: list[int]
    fingerprint: str
    tests: int


def count_nodes(plan: Plan, nodes: Sequence[Path]) -> list[NodeCounts]:
    """Return what each node has.

    Raises:
        UserError: a class of the plan of which no node has an example.
    """
    counts: list[NodeCounts] = []
    for path in nodes:
        node = load_node(path)
        records = open_data(node, plan)
        train = _count(plan, records, "train")
        test = _count(plan, records, "test")
        tests = len(records.splits["test"])
        counts.append(NodeCounts(node.name, train, test, records.fingerprint, tests))
    question = TASKS[plan.task.question]
    for number, name in enumerate(question.counted(plan.task)):
        if question.needs_each and not any(node.train[number] for node in counts):
            raise UserError(
                f"no node has a training example of {name!r}",
                where=f"task.classes[{number}]",
                remedy=(
                    "take it out of task.classes, or see whether task.labels names it as the"
                    " data do"
                ),
            )
    return counts


def _count(plan: Plan, records: Records, split: str) -> list[int]:
    task = TASKS[plan.task.question]
    return task.count(records.labels[records.splits[split]], plan.task).tolist()


def describe_data(plan: Plan, plan_path: Path, nodes: Sequence[NodeCounts]) -> DataFacts:
    """Return what result.json says of the data."""
    return DataFacts(
        labels={node.name: node.train for node in nodes},
        classes=list(TASKS[plan.task.question].counted(plan.task)),
        files=_hash_files(plan, plan_path),
        fingerprints={node.name: node.fingerprint for node in nodes},
        test_labels={node.name: node.test for node in nodes},
    )


def _hash_files(plan: Plan, plan_path: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    if plan.simulation is None:
        return hashes
    for name in plan.simulation.files:
        file = resolve(name, plan_path.parent)
        if file.is_file():
            hashes[name] = sha256_of(file)
    return hashes


def note_reference(plan: Plan, backbone: Backbone) -> list[str]:
    """Return a sentence where features have no public reference."""
    if not is_norm_alone(backbone):
        return []
    return [
        f"there is no public reference for the features of {plan.backbone.name}: they are brought"
        " to norm 1 and no more; `fedgraft pretrain` makes one of a plan's public source data"
    ]


def note_small_nodes(plan: Plan, nodes: Sequence[NodeCounts]) -> list[str]:
    """Return what is no mistake and yet worth knowing, in sentences."""
    if not rounds_for(plan.train, "steps"):
        return []
    size = plan.train.batch_size
    small = [node.name for node in nodes if sum(node.train) < size]
    if not small:
        return []
    listed = ", ".join(small[:MOST_NAMED])
    if len(small) > MOST_NAMED:
        listed += ", …"
    return [
        f"train.batch_size {size} is more than the training data of {listed}: one step an epoch"
    ]

"""Which sections of a plan do not go with answers for each token of a text."""

from __future__ import annotations

from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.section import Problem
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import task_line


def check_tokens(
    task: TaskSection, backbone: BackboneSection, train: TrainSection
) -> list[Problem]:
    """Return what of a plan is about one vector of a text, where each token has its own."""
    if not task_line(task.question).has_tokens:
        return []
    problems: list[Problem] = []
    if backbone.pool is not None:
        what = f"{backbone.pool}, and tokens are not pooled: each is answered for"
        problems.append(Problem("backbone.pool", what, "leave it out"))
    if train.closed_form.pool != "mean":
        what = f"{train.closed_form.pool}, and tokens are not pooled: each is answered for"
        problems.append(Problem("train.closed_form.pool", what, "leave it out"))
    return problems

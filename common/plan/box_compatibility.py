"""Which sections of a plan do not go with boxes."""

from __future__ import annotations

from fedgraft.common.plan.section import Problem
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import task_line

# what boxes go along with
CHANGES = ("none", "flip")


def check_boxes(task: TaskSection, train: TrainSection) -> list[Problem]:
    """Return what of a plan does not go with boxes."""
    if not task_line(task.question).has_boxes or train.augment in CHANGES:
        return []
    what = f"{train.augment}, and boxes are only mirrored with their images"
    return [Problem("train.augment", what, "write `augment: flip` or `none`")]

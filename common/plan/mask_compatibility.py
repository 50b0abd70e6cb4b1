"""Which sections of a plan do not go with masks."""

from __future__ import annotations

from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.section import Problem
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import task_line

PATCHES = "patches"


def check_masks(task: TaskSection, train: TrainSection, privacy: PrivacySection) -> list[Problem]:
    """Return what of a plan does not go with answers for each place, or is for these alone."""
    problems: list[Problem] = []
    if not task_line(task.question).has_masks:
        if train.augment == PATCHES:
            what = "patches, and half of an image may lack what its label says"
            problems.append(Problem("train.augment", what, "write `augment: flip-crop`"))
        return problems
    if train.closed_form.prior == "equal":
        what = "equal, and Dice is of the shares that there are"
        problems.append(Problem("train.closed_form.prior", what, "leave it out"))
    return problems

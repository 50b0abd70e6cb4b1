"""Which sections of a plan do not go with a head that texts give."""

from __future__ import annotations

from fedgraft.common.backbones import family_line
from fedgraft.common.plan.adapter_section import AdapterSection
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.phases import begins_with_texts, trains_nothing
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.prompts import find_mistake
from fedgraft.common.plan.section import Problem
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import task_line


def check_prompts(
    task: TaskSection, backbone: BackboneSection, train: TrainSection
) -> list[Problem]:
    """Return what of question, network and texts does not go with a head that texts give."""
    if not begins_with_texts(train):
        if task.prompts is None:
            return []
        what = "there, and no head is made of texts"
        remedy = "leave it out, or write `start: prompts` or `method: zero-shot` under train"
        return [Problem("task.prompts", what, remedy)]
    key, value = _name_start(train)
    problems: list[Problem] = []
    if not task_line(task.question).has_text_head:
        what = f"{value}, and texts say what classes are: {task.kind} asks for something else"
        problems.append(Problem(key, what, "leave it out"))
    if task.material != "image":
        what = f"{value}, and texts are compared with images: {task.kind} has none"
        problems.append(Problem(key, what, "leave it out"))
    elif not family_line(backbone.name).has_pairs:
        what = f"{value}, and {backbone.name} is no pair of encoders, for images and for texts"
        remedy = "leave it out, or name a CLIP's folder: `name: huggingface-image`, `pool: joint`"
        problems.append(Problem(key, what, remedy))
    elif backbone.pool != "joint":
        what = f"{backbone.pool or 'missing'}, and texts are compared in the space of the pair"
        problems.append(Problem("backbone.pool", what, "write `pool: joint`"))
    if train.start == "prompts" and train.finish == "closed-form" and train.rounds < 2:
        what = "1, and that one is for sums: no steps begin with the texts"
        problems.append(Problem("train.rounds", what, "write 2 or more"))
    mistake = None
    if task.prompts is not None:
        mistake = find_mistake(task.prompts, task.classes)
    if mistake is not None:
        problems.append(Problem("task.prompts", *mistake))
    return problems


def check_zero_shot(
    adapter: AdapterSection, train: TrainSection, privacy: PrivacySection
) -> list[Problem]:
    """Return what does not go with a plan that trains nothing."""
    if not trains_nothing(train):
        return []
    nothing = "and zero-shot trains nothing"
    problems: list[Problem] = []
    if adapter.method != "head":
        remedy = "write `method: head`, or `start: prompts` under train instead of zero-shot"
        problems.append(Problem("adapter.method", f"{adapter.method}, {nothing}", remedy))
    if privacy.mode != "none":
        what = f"{privacy.mode}, {nothing}: there is no ε to spend"
        problems.append(Problem("privacy.mode", what, "leave it out"))
    if train.rounds != 1:
        what = f"{train.rounds}, {nothing}"
        problems.append(Problem("train.rounds", what, "leave it out"))
    if train.start != "drawn":
        what = f"{train.start}, {nothing}: the head is that of task.prompts"
        problems.append(Problem("train.start", what, "leave it out, or write `method: steps`"))
    if train.finish != "steps":
        remedy = "leave it out, or write `method: steps`"
        problems.append(Problem("train.finish", f"{train.finish}, {nothing}", remedy))
    return problems


def _name_start(train: TrainSection) -> tuple[str, str]:
    """Return the key by which a plan asks for a head of texts, and its value."""
    if trains_nothing(train):
        return "train.method", train.method
    return "train.start", train.start

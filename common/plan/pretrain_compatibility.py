"""Which keys of `pretrain` go with a plan's question, and with where its weights are kept."""

from __future__ import annotations

from fedgraft.common.plan.backbone_section import PlannedBackboneSection, is_folder
from fedgraft.common.plan.pretrain_section import PretrainSection
from fedgraft.common.plan.section import Problem
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import task_line


def check_pretrain(
    pretrain: PretrainSection,
    task: TaskSection,
    backbone: PlannedBackboneSection,
    simulation: SimulationSection | None,
) -> list[Problem]:
    """Return what of the pre-training does not fit together: of a language model, or of a network
    that tells classes apart.
    """
    if task_line(task.question).writes:
        return [
            *_check_language(pretrain, backbone),
            *_check_apart(pretrain, simulation),
        ]
    problems: list[Problem] = []
    weights = backbone.weights or ""
    if not weights.endswith(".safetensors"):
        what = "the plan has a pretrain part and no file for its result"
        remedy = "write the .safetensors file that `fedgraft pretrain` shall write"
        problems.append(Problem("backbone.weights", what, remedy))
    if pretrain.labels is None:
        what = "missing, and a backbone learns to tell some apart"
        problems.append(Problem("pretrain.labels", what, "write `labels: [0, 1]`"))
    if not isinstance(pretrain.data, str):
        what = f"{len(pretrain.data)} files, and a backbone of {task.kind} learns from one"
        problems.append(Problem("pretrain.data", what, "write one"))
    if pretrain.language is not None:
        what = f"there, and {task.kind} makes no language model"
        problems.append(Problem("pretrain.language", what, "leave it out"))
    return problems


def _check_language(pretrain: PretrainSection, backbone: PlannedBackboneSection) -> list[Problem]:
    problems: list[Problem] = []
    if backbone.name != "huggingface" or not is_folder(backbone.weights or ""):
        what = "no folder of a huggingface backbone, and that is what a language model is kept in"
        remedy = "write `name: huggingface` and the folder that shall be made, such as ./gpt2-tiny"
        problems.append(Problem("backbone.weights", what, remedy))
    if pretrain.labels is not None:
        what = "there, and a language model learns from texts without labels"
        problems.append(Problem("pretrain.labels", what, "leave it out"))
    if pretrain.language is None:
        what = "missing, and a language model needs its sizes"
        remedy = "write `language: {tokens: 2048, layers: 4, width: 128, heads: 4}`"
        problems.append(Problem("pretrain.language", what, remedy))
    return problems


def _check_apart(pretrain: PretrainSection, simulation: SimulationSection | None) -> list[Problem]:
    """Return the problem of a file that is both a source's and a node's."""
    files = () if simulation is None else simulation.files
    shared = [name for name in pretrain.files if name in files]
    if not shared:
        return []
    what = f"{', '.join(shared)}, which is a node's file, too"
    remedy = "learn beforehand from other sites than those of the federation"
    return [Problem("pretrain.data", what, remedy)]

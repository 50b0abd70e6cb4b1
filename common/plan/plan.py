"""The plan: an agreement, and what only a researcher decides. Frozen and checked at this door;
every other file takes it as right.

`common/plan/plan_file.py` reads one from YAML, writes it, and gives it its identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from fedgraft.common.backbones import family_line
from fedgraft.common.plan.agreement import Agreement
from fedgraft.common.plan.backbone_section import (
    WEIGHT_FILES,
    BackboneSection,
    PlannedBackboneSection,
    is_folder,
)
from fedgraft.common.plan.compatibility import check_simulation
from fedgraft.common.plan.pretrain_compatibility import check_pretrain
from fedgraft.common.plan.pretrain_section import PretrainSection
from fedgraft.common.plan.section import Problem, Section
from fedgraft.common.plan.simulation_section import SimulationSection
from fedgraft.common.plan.train_section import PlannedTrainSection, TrainSection


class Plan(Agreement):
    """One federation: its task, backbone, adapter, training, aggregation, privacy, measurements;
    and how it is made and simulated on one machine.

        plan = load_plan("pneumonia", ["train.rounds=5"])
        plan.adapter.method, plan.privacy.mode, plan.simulation.nodes
    """

    backbone: PlannedBackboneSection = Field(description="the frozen network")
    train: PlannedTrainSection = Field(default=PlannedTrainSection(), description="local training")
    pretrain: PretrainSection | None = Field(
        default=None, description="how the backbone's weights are made, if they are made here"
    )
    simulation: SimulationSection | None = Field(
        default=None, description="the hospitals, when simulated on one machine"
    )

    def problems(self) -> list[Problem]:
        """Return what of the sections does not fit together."""
        problems = super().problems()
        weights = self.backbone.weights or ""
        if self.pretrain is not None:
            problems += check_pretrain(self.pretrain, self.task, self.backbone, self.simulation)
        line = family_line(self.backbone.name)
        if line.has_folders and not weights:
            what = f"missing, and {self.backbone.name} is a model's folder"
            problems.append(Problem("backbone.weights", what, "write the folder, such as ./minilm"))
        if is_folder(weights) and not line.has_folders:
            what = f"{weights} is no file of weights, and {self.backbone.name} reads no folders"
            remedy = f"name a file ({', '.join(WEIGHT_FILES)})"
            problems.append(Problem("backbone.weights", what, remedy))
        if self.backbone.weights is not None and line.is_untrained:
            what = f"{weights}, and {self.backbone.name} has nothing that was trained beforehand"
            problems.append(Problem("backbone.weights", what, "leave it out"))
        if self.simulation is not None:
            classes = len(self.task.classes)
            problems += check_simulation(self.simulation, classes, self.aggregate.min_nodes)
        return problems


def agreement_of(plan: Agreement) -> Agreement:
    """Return what of a plan a hospital approves; an agreement itself as it is."""
    if type(plan) is Agreement:
        return plan
    shared = plan.model_dump(mode="json", include=set(Agreement.model_fields))
    shared["backbone"] = _keep(shared["backbone"], BackboneSection)
    shared["train"] = _keep(shared["train"], TrainSection)
    return Agreement.model_validate(shared)


def _keep(section: Mapping[str, Any], agreed: type[Section]) -> dict[str, Any]:
    """Return of a planned section the keys that the agreed one has."""
    return {key: section[key] for key in agreed.model_fields if key in section}

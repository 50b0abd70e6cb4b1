"""The agreement: what a hospital approves and what alone travels. Its hash goes to approvals,
messages and the ledger.

It is derived from the plan, which adds what only a researcher decides.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from fedgraft.common.backbones import family_line
from fedgraft.common.plan.adapter_section import AdapterSection
from fedgraft.common.plan.aggregate_section import AggregateSection
from fedgraft.common.plan.backbone_section import BackboneSection
from fedgraft.common.plan.compatibility import check_agreement
from fedgraft.common.plan.evaluate_section import EvaluateSection
from fedgraft.common.plan.extension_section import Extensions
from fedgraft.common.plan.phases import (
    begins_with_texts,
    closed_form_rounds,
    counts_constants,
    trains_nothing,
)
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.prompts import USUAL
from fedgraft.common.plan.section import Problem, Section, Seed, check_together
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks import task_line


class Agreement(Section):
    """What is trained, on what, how, and under which protection: all that a hospital approves."""

    later: ClassVar[tuple[str, ...]] = ("extensions",)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="letters, digits, dots and dashes; runs are named after it"
    )
    extensions: Extensions = Field(
        default=(),
        description=(
            "names of packages of your own code whose words the plan uses; they are part of the"
            " bundle that hospitals approve, or named by --with"
        ),
    )
    task: TaskSection = Field(description="what is to be told apart")
    backbone: BackboneSection = Field(description="the frozen network")
    adapter: AdapterSection = Field(description="what is grafted onto it and trained")
    train: TrainSection = Field(default=TrainSection(), description="local training")
    aggregate: AggregateSection = Field(
        default=AggregateSection(), description="how the server combines the adapters"
    )
    privacy: PrivacySection = Field(default=PrivacySection(), description="differential privacy")
    evaluate: EvaluateSection = Field(default=EvaluateSection(), description="what is measured")
    seed: Seed = Field(
        default=0, description="seed of everything random but differential privacy's noise"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Agreement:
        self._fill_rounds()
        self._fill_question()
        self._fill_texts()
        return check_together(self, self.problems())

    def _fill_rounds(self) -> None:
        """Write the rounds of a closed form, or of none, into the plan, where it says nothing of
        rounds: there is one for histograms where constants of the backbone are counted.
        """
        train = self.train
        if trains_nothing(train) and "rounds" not in train.model_fields_set:
            object.__setattr__(train, "rounds", 1)
        if train.method == "closed-form" and "rounds" not in train.model_fields_set:
            learns = family_line(self.backbone.name).learns
            counts = counts_constants(train, self.privacy, learns=learns)
            rounds = closed_form_rounds(counts=counts)
            object.__setattr__(train, "rounds", rounds)

    def _fill_question(self) -> None:
        """Write into the plan what its question measures, and its loss, where it says nothing of
        them and the question is not about classes.
        """
        line = task_line(self.task.question)
        if "metrics" not in self.evaluate.model_fields_set:
            evaluate = self.evaluate.model_copy(update={"metrics": line.metrics})
            object.__setattr__(self, "evaluate", evaluate)
        if "loss" not in self.train.model_fields_set and self.train.loss not in line.losses:
            train = self.train.model_copy(update={"loss": line.losses[0]})
            object.__setattr__(self, "train", train)

    def _fill_texts(self) -> None:
        """Write into the plan which texts make its first head, where it leaves them out."""
        if begins_with_texts(self.train) and self.task.prompts is None:
            task = self.task.model_copy(update={"prompts": USUAL})
            object.__setattr__(self, "task", task)

    def problems(self) -> list[Problem]:
        """Return what of the sections does not fit together."""
        return check_agreement(
            task=self.task,
            backbone=self.backbone,
            adapter=self.adapter,
            train=self.train,
            aggregate=self.aggregate,
            privacy=self.privacy,
            evaluate=self.evaluate,
        )

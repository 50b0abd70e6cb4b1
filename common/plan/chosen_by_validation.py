"""What a plan measures on validation records, and what is chosen by them: a choice on test records
would make the tests say more than is true.
"""

from __future__ import annotations

from fedgraft.common.plan.evaluate_section import EvaluateSection
from fedgraft.common.plan.train_section import TrainSection
from fedgraft.common.tasks.measures import measure_of


def chooses_round(train: TrainSection) -> bool:
    """Whether the round that is kept, or the end of the training, is chosen by validation
    records.
    """
    return train.keep == "best" or train.patience is not None


def calibrates(train: TrainSection) -> bool:
    """Whether a temperature of the shared model is chosen by validation records."""
    return train.calibrate == "temperature"


def chooses_point(train: TrainSection) -> bool:
    """Whether the probability from which on a class is answered is chosen by validation records."""
    return train.operating_point != "even"


def measures_validation(train: TrainSection, evaluate: EvaluateSection) -> bool:
    """Whether the nodes measure the shared model on validation records."""
    chooses = chooses_round(train) or calibrates(train) or chooses_point(train)
    return chooses or evaluate.validation_fraction > 0


def is_validated_after(train: TrainSection, evaluate: EvaluateSection, round_: int) -> bool:
    """Whether the shared model is measured on validation records after a round: always after the
    last one; where a round is chosen, in the plan's steps before it.
    """
    if round_ == train.rounds:
        return measures_validation(train, evaluate)
    return chooses_round(train) and round_ % evaluate.every == 0


def is_better(value: float, than: float, measure: str) -> bool:
    """Whether one value of a measure is better than another."""
    return measure_of(measure).is_better(value, than)

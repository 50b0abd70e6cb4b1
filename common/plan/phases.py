"""What the nodes are asked in each round of a plan: steps, histograms that a table's constants or
scales are learnt from, sums that a head is solved from, or nothing, where texts say it all.
"""

from __future__ import annotations

from typing import Literal, get_args

from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.plan.train_section import TrainSection

Purpose = Literal["steps", "histograms", "sums", "nothing"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def purpose_of(train: TrainSection, round_: int) -> Purpose:
    """Return what a round, from 1, is for."""
    if train.method == "closed-form":
        # a plan with a round before the last is one whose backbone learns constants, see
        # `compatibility.check_rounds`
        return "sums" if round_ == train.rounds else "histograms"
    if trains_nothing(train):
        return "nothing"
    if round_ == 1 and train.start == "standardise":
        return "histograms"
    if round_ == 1 and train.start == "closed-form":
        return "sums"
    if train.finish == "closed-form" and round_ == train.rounds:
        return "sums"
    return "steps"


def rounds_for(train: TrainSection, purpose: Purpose) -> tuple[int, ...]:
    """Return the rounds of a plan that are for a purpose, from 1."""
    numbers = range(1, train.rounds + 1)
    return tuple(number for number in numbers if purpose_of(train, number) == purpose)


def rounds_measured(train: TrainSection, every: int) -> tuple[int, ...]:
    """Return the rounds of steps in which nodes measure the shared model as they receive it.

    Args:
        every: rounds from one measurement to the next.
    """
    steps = rounds_for(train, "steps")
    return tuple(number for number in steps if (number - 1) % every == 0)


def has_sums(train: TrainSection) -> bool:
    """Whether in some round a head is solved from sums."""
    return "closed-form" in (train.method, train.start, train.finish)


def trains_nothing(train: TrainSection) -> bool:
    """Whether nodes only measure what they are sent."""
    return train.method == "zero-shot"


def begins_with_texts(train: TrainSection) -> bool:
    """Whether the first head is what texts say of the classes."""
    return trains_nothing(train) or train.start == "prompts"


def has_depth_head(train: TrainSection, round_: int) -> bool:
    """Whether the head in this round reads features of all depths, and is solved from sums."""
    if train.method == "steps" and train.start in ("closed-form", "standardise") and round_ == 1:
        # before steps it is the network's own head
        return False
    return purpose_of(train, round_) in ("histograms", "sums")


def closed_form_rounds(*, counts: bool) -> int:
    """Return how many rounds a closed form has: sums, and before them histograms where constants of
    the backbone are counted.
    """
    return 2 if counts else 1


def counts_constants(train: TrainSection, privacy: PrivacySection, *, learns: bool) -> bool:
    """Whether a round of histograms tells constants of the backbone: they have no noise, so that
    under differential privacy the plan declares them.

    Args:
        learns: whether the backbone has such constants.
    """
    return learns and train.closed_form.constants == "counted" and privacy.mode == "none"


def has_hinges(train: TrainSection, privacy: PrivacySection) -> bool:
    """Whether numbers of a table are bent: not under differential privacy, where every feature
    adds noise, and class means of bent numbers gain less than that.
    """
    return train.closed_form.hinges and privacy.mode == "none"


def has_reference(train: TrainSection, privacy: PrivacySection) -> bool:
    """Whether features are centred and whitened by public ones, as noisy sums want them."""
    return privacy.mode == "sample" and "closed-form" in (train.method, train.finish)

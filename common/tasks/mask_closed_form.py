"""The closed form of a segmentation: ridge on the class of each place, then a cut for each class.

A ridge score is an estimate of how probable a class is at a place. The cut that gives the highest
expected Dice is half of that Dice (Lipton, Elkan and Naryanaswamy 2014, "Optimal thresholding of
classifiers to maximize F1 measure", theorem 1); what Dice the scores themselves have, as soft
masks, follows from the same sums:

    D = 2 Σ s y / (Σ s + Σ y) = E[s y] / E[y],   as E[s] = E[y]

so the threshold is chosen by training sums, and by nothing else. Soft masks have a lower Dice than
the best cut of them: the rule finds rather too much than too little.

Under differential privacy an image is the unit, not a place of it: its places share its weight of 1
(`noisy_places.py`), half of it those of the background, half all others. Were all places worth the
same, little of small things would be left beside the noise, and none would ever be likelier than
the background. The likeliest class of a place is its answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.statistics.noisy_places import share_halves
from fedgraft.common.statistics.ridge import RidgeSolution
from fedgraft.common.tasks.class_head import NOISY, check_counts, one_hot
from fedgraft.common.tasks.closed_form import ClosedForm, Head

# of a cut: a class that is hardly told needs no cut at nothing, and no score is certain
LEAST_CUT = 0.05
MOST_CUT = 0.5


def solve_masks(solution: RidgeSolution, task: TaskSection, prior: str) -> Head:
    """Return a head whose largest logit is the answer of a place.

    The background has a logit of 0; another class the log-odds of its score against the cut, to
    first order around the cut. `prior` says nothing here: Dice is of the shares that there are.
    """
    weights, bias = solution.head()
    cuts = choose_cuts(solution)
    slopes = 1 / (cuts * (1 - cuts))
    weights = weights * slopes[:, None]
    bias = (bias - cuts) * slopes
    weights[0] = 0.0
    bias[0] = 0.0
    return weights, bias


def choose_cuts(solution: RidgeSolution) -> np.ndarray:
    """Return the score from which a place is of each class, `(classes,)`."""
    return np.clip(soft_dice(solution) / 2, LEAST_CUT, MOST_CUT)


def soft_dice(solution: RidgeSolution) -> np.ndarray:
    """Return the Dice of the scores as soft masks, of each class, `(classes,)`; 0 for one that no
    place has.
    """
    sums = solution.sums
    share = sums.target_mean
    together = (sums.cross * solution.weights).sum(0) / sums.records
    return (together + share**2) / np.maximum(share, 1e-12)


MASK_HEAD = ClosedForm(
    by="by class, over the places of images",
    counts="counts of places by class",
    columns=lambda task: len(task.classes),
    targets=one_hot,
    check=check_counts,
    head=solve_masks,
    noisy=replace(NOISY, parts=share_halves),
)

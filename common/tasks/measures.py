"""What is measured of answers, in words for people: how a number is read, and which way is better.

measure_of("auroc").words, measure_of("mae").is_better(0.2, than=0.3)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedgraft.common.tasks import task_line


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        key: its name in plans and results.
        words: what a table calls it.
        meaning: what it says, for a reader who does not know it, in half a sentence.
        lower: whether less is better.
        is_share: whether it is a share of records, which has a score interval.
        in_points: whether differences are told in points, hundredths of 1.
        chance: what a model that knows nothing has; None: that depends.
    """

    key: str
    words: str
    meaning: str = ""
    lower: bool = False
    is_share: bool = False
    in_points: bool = False
    chance: float | None = None

    @property
    def title(self) -> str:
        """Return its words at the beginning of a sentence."""
        return self.words[0].upper() + self.words[1:]

    def show_gap(self, gap: float) -> str:
        """Return a difference in words."""
        if self.in_points:
            return f"{100 * gap:.1f} points of {self.words}"
        return f"{gap:.3f} of {self.words}"

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        if self.lower:
            return value < than
        return value > than


_MEASURES = (
    Measure(
        "auroc",
        "AUROC",
        "how often a case of one class is scored above one of another (guessing: 0.5)",
        in_points=True,
        chance=0.5,
    ),
    Measure(
        "accuracy",
        "accuracy",
        "the share of answers that are right",
        is_share=True,
        in_points=True,
    ),
    Measure("f1", "F1", "the harmonic mean of precision and sensitivity", in_points=True),
    Measure("loss", "loss", "the mean loss of a record", lower=True),
    Measure(
        "calibration_error",
        "ECE",
        "how far the stated certainty is from how often it is right",
        lower=True,
    ),
    Measure(
        "auprc",
        "AUPRC",
        "the mean precision over all sensitivities; guessing has the share of the positives",
        in_points=True,
    ),
    Measure(
        "sensitivity",
        "sensitivity",
        "the share of the sick that are found",
        in_points=True,
    ),
    Measure(
        "specificity",
        "specificity",
        "the share of the healthy that are told as such",
        in_points=True,
    ),
    Measure(
        "sensitivity_at_90",
        "sensitivity at 90 %",
        "the share of the sick that a threshold finds which tells 90 % of the healthy as such",
        in_points=True,
    ),
    Measure(
        "sensitivity_at_95",
        "sensitivity at 95 %",
        "the same with 95 % of the healthy",
        in_points=True,
    ),
    Measure(
        "concordance",
        "concordance",
        "how often, of two people, the one with the earlier event was given less time"
        " (guessing: 0.5)",
        in_points=True,
        chance=0.5,
    ),
    Measure(
        "brier",
        "Brier score",
        "the mean squared error of the stated survival over the time",
        lower=True,
    ),
    Measure(
        "observed_survival",
        "survival",
        "the share without the event at the last cut, by Kaplan and Meier's curve",
        in_points=True,
    ),
    Measure(
        "predicted_survival",
        "predicted survival",
        "the mean of what is told of it",
        in_points=True,
    ),
    Measure(
        "kappa",
        "weighted kappa",
        "agreement beyond chance, a mistake weighed by the square of the grades between"
        " (guessing: 0)",
        chance=0.0,
    ),
    Measure("grades_off", "grades off", "how many grades an answer is off, on average", lower=True),
    Measure("mae", "MAE", "how far an answer is off, on average", lower=True),
    Measure("rmse", "RMSE", "the root of the mean square of what an answer is off", lower=True),
    Measure(
        "dice",
        "Dice",
        "how far a mask and the answer overlap: 1 where they are the same, 0 where they have"
        " nothing in common; the mean over images",
        in_points=True,
    ),
    Measure(
        "iou", "IoU", "their intersection by their union, the mean over images", in_points=True
    ),
    Measure(
        "hausdorff_95",
        "HD95",
        "how far the edges of both lie apart, of which the farthest 5 % do not count, in pixels of"
        " the prepared image",
        lower=True,
    ),
    Measure("pixel_accuracy", "pixel accuracy", "the share of pixels that are right"),
    Measure("precision", "precision", "the share of answers that are right", in_points=True),
    Measure("recall", "recall", "the share of what is there that is found", in_points=True),
    Measure("token_accuracy", "token accuracy", "the share of tokens that got the right tag"),
    Measure(
        "map_50",
        "mAP@50",
        "the average precision of boxes that overlap a true one by half (IoU), the mean over"
        " classes",
        in_points=True,
    ),
    Measure(
        "map",
        "mAP",
        "the same, the mean over overlaps from 0.5 to 0.95",
        in_points=True,
    ),
    Measure(
        "image_ap_50",
        "AP@50 by image",
        "the average precision of an image by itself, the mean over images",
        in_points=True,
    ),
    Measure(
        "perplexity",
        "perplexity",
        "among how many tokens, equally likely, the model in effect guesses the next one of an"
        " answer (certain: 1)",
        lower=True,
    ),
    Measure(
        "next_token_accuracy",
        "next token",
        "how often the token that the model holds likeliest is the answer's next one",
    ),
    Measure(
        "r2",
        "R²",
        "the part of the variance that is explained (always the mean: 0)",
        chance=0.0,
    ),
)
MEASURES: Mapping[str, Measure] = {measure.key: measure for measure in _MEASURES}


def measure_of(key: str) -> Measure:
    """Return a metric by its name; one of an extension, of which nothing is known, by its name
    alone.
    """
    return MEASURES.get(key) or Measure(key, key.replace("_", " "))


def shown_measures(question: str) -> list[Measure]:
    """Return what tables of models show of a question."""
    return [measure_of(key) for key in task_line(question).shown]


def told_measures(question: str, measured: Collection[str]) -> list[Measure]:
    """Return the same, and behind the first what else a plan asked for.

    Args:
        measured: names of what is known of the models.
    """
    first, *others = shown_measures(question)
    asked = [measure_of(key) for key in task_line(question).asked if key in measured]
    return [first, *asked, *others]


def main_measures(question: str) -> list[Measure]:
    """Return what is told of each site: the first is what models are ranked by."""
    return [measure_of(key) for key in task_line(question).metrics[:2]]


def measures_in(row: Mapping[str, Any]) -> list[Measure]:
    """Return what was measured in the row of a label, beside how many there are of how many."""
    return [measure_of(key) for key in row if key not in ("positives", "examples")]


def explain(measures: Sequence[Measure]) -> str:
    """Return what measures say, in sentences."""
    sentences = []
    for measure in measures:
        if measure.meaning:
            sentences.append(f"{measure.words}: {measure.meaning}.")
    return " ".join(sentences)

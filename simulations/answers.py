"""What a model's answers are worth, from its confusion counts: what an accuracy hides where one
class is rare.

    answers = read_answers(result)
    answers.balanced_accuracy, answers.majority
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.simulations.report.intervals import estimate_share, show_interval

# an AUROC that rests on fewer cases is said to
FEW_CASES = 10


@dataclass(frozen=True)
class Answers:
    """Counts of answers by true class, over the test records of some sites.

    Attributes:
        counts: `(classes, classes)` by true class and answer.
        classes: their names.
    """

    counts: np.ndarray
    classes: Sequence[str]

    @property
    def by_class(self) -> np.ndarray:
        """Return how many records each class has, `(classes,)`."""
        return self.counts.sum(1)

    @property
    def balanced_accuracy(self) -> float:
        """Return the mean over the classes that occur of how many of each are found."""
        present = self.by_class > 0
        found = np.diag(self.counts)[present] / self.by_class[present]
        return float(found.mean())

    @property
    def majority(self) -> float:
        """Return how often it is right to answer always the commonest class."""
        return float(self.by_class.max() / self.by_class.sum())

    @property
    def accuracy(self) -> float:
        """Return how often the answer is right."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def commonest(self) -> str:
        """Return the name of the commonest class."""
        return self.classes[int(self.by_class.argmax())]


def question_of(result: Mapping[str, Any]) -> str:
    """Return what a run answers: a member of `common.tasks.TASKS`; runs of before it was told are
    about classes.
    """
    return result.get("question", "classification")


def read_answers(*results: Mapping[str, Any]) -> Answers | None:
    """Return the answers at all sites, of one run or of several together; None where no site told
    of them.
    """
    tables = []
    for result in results:
        tables += result.get("confusion", {}).values()
    if not tables:
        return None
    counts = np.sum([np.asarray(table) for table in tables], axis=0)
    names = results[0].get("data", {}).get("classes") or [
        f"class {at}" for at in range(len(counts))
    ]
    return Answers(counts, names)


def read_site_answers(result: Mapping[str, Any]) -> dict[str, Answers]:
    """Return the answers at each site."""
    by_site = {}
    for site, table in result.get("confusion", {}).items():
        answers = read_answers({**result, "confusion": {site: table}})
        if answers is not None:
            by_site[site] = answers
    return by_site


def describe_answers(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in sentences how often answers are right beside a guess, how many of each class are
    found, and what to beware of.

    Args:
        results: result.json of each seed.
    """
    answers = read_answers(*results)
    if answers is None:
        return []
    guess = f"always “{answers.commonest}” would be right for {answers.majority:.1%}"
    sentences = [f"balanced accuracy {answers.balanced_accuracy:.3f}; {guess}"]
    # seeds are measured on the same records again: together they would seem to be more
    if len(answers.classes) == 2 and len(results) == 1:
        sentences.append(_describe_two(answers))
    areas = [result["final"]["global"].get("auroc") for result in results]
    known = [area for area in areas if area is not None]
    chosen = any(result.get("operating_point") for result in results)
    auroc = float(np.mean(known)) if known else None
    return [*sentences, *warn_of(answers, auroc, point_chosen=chosen)]


def warn_of(answers: Answers, auroc: float | None, *, point_chosen: bool) -> list[str]:
    """Return what makes the figures worth little.

    Args:
        point_chosen: whether the operating point was chosen: it gives up accuracy for sensitivity
            or specificity, and says so.
    """
    warnings = []
    if answers.accuracy <= answers.majority and not point_chosen:
        what = f"it is right no more often than always answering “{answers.commonest}”"
        if len(answers.classes) == 2:
            what += "; train.operating_point answers from another probability than 0.5"
        warnings.append(f"beware: {what}")
    if auroc is not None and auroc <= 0.5:
        warnings.append("beware: it orders cases no better than chance (AUROC of 0.5 or less)")
    cases = answers.by_class[answers.by_class > 0]
    rarest = answers.classes[int(np.where(answers.by_class > 0, answers.by_class, np.inf).argmin())]
    if len(cases) > 1 and cases.min() < FEW_CASES:
        number = int(cases.min())
        some = "one test record" if number == 1 else f"{number} test records"
        warnings.append(f"beware: what is said of “{rarest}” rests on {some}")
    return warnings


def _describe_two(answers: Answers) -> str:
    """Return sensitivity, specificity and predictive values of the second class, with intervals."""
    (true_negatives, false_positives), (false_negatives, true_positives) = answers.counts.tolist()
    shares = {
        "sensitivity": (true_positives, true_positives + false_negatives),
        "specificity": (true_negatives, true_negatives + false_positives),
        "positive predictive value": (true_positives, true_positives + false_positives),
        "negative predictive value": (true_negatives, true_negatives + false_negatives),
    }
    words = []
    for name, (part, whole) in shares.items():
        value = "undefined"
        if whole:
            value = show_interval(estimate_share(part / whole, whole))
        words.append(f"{name} {value}")
    return f"for “{answers.classes[1]}”: {', '.join(words)}"

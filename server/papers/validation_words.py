"""What validation records said of a run, in sentences: which round is shared, and why."""

from __future__ import annotations

from fedgraft.common.result import Calibration, Metrics, OperatingFacts, Validation
from fedgraft.common.tasks.measures import measure_of


def describe_validation(validation: Validation, rounds_done: int) -> list[str]:
    """Return which round is shared and when training ended, by which measure on how many records;
    where nothing was chosen, what was measured.

    Args:
        rounds_done: how many rounds were finished.
    """
    sentences = []
    best = validation.best
    by = measure_of(validation.by)
    measure = by.words
    better = "lowest" if by.lower else "highest"
    records = f"{validation.metrics_of(best)['examples']:,} validation records"
    if validation.keep == "best":
        value = f"{validation.value_of(best):.3f}"
        sentences.append(
            f"the shared model is that of round {best} of {rounds_done}: the {better} {measure},"
            f" {value}, on {records}; no test record had a say in it"
        )
    if validation.ended_early:
        what = f"no better {measure} on {records} since round {best}"
        sentences.append(f"training ended early, after round {rounds_done}: {what}")
    if not sentences:
        last = validation.rounds[-1]
        values = _list_values(last.metrics)
        sentences.append(f"on {records}: {values}; no round was chosen by them")
    return sentences


def describe_calibration(calibration: Calibration) -> str:
    """Return which temperature was chosen, and what it did to the loss."""
    before = calibration.loss_before
    after = calibration.loss
    return (
        f"outputs are divided by a temperature of {calibration.temperature:.2f}: the lowest loss on"
        f" {calibration.examples:,} validation records, {after:.3f} where it was {before:.3f}"
    )


def describe_operating_point(point: OperatingFacts, answered: str) -> str:
    """Return which threshold was chosen, and what it reaches.

    Args:
        answered: the class that is answered from the threshold on.
    """
    records = f"{point.examples:,} validation records"
    if point.positives is not None:
        records += f", {point.positives:,} of them “{answered}”"
    return (
        f"“{answered}” is answered from a probability of {point.threshold:.3f} on: sensitivity"
        f" {point.sensitivity:.3f} and specificity {point.specificity:.3f} on"
        f" {records}; no test record had a say in it"
    )


def _list_values(metrics: Metrics) -> str:
    values = []
    for key, value in metrics.items():
        if value is not None and key != "examples":
            values.append(f"{measure_of(key).words} {value:.3f}")
    return ", ".join(values)

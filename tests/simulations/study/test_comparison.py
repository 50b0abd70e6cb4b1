"""Plans beside each other: seed by seed, at the same values of the grid, no ranking by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from fedgraft.simulations.report.intervals import Interval
from fedgraft.simulations.study.comparison import (
    describe_change,
    describe_ranking,
    list_gains_over_first,
    show_gain,
    subtract,
)
from fedgraft.simulations.study.study_file import Study
from fedgraft.simulations.study.study_groups import Group


def group(name: str, values: Sequence[float | None]) -> Group:
    return Group(name, [{"seed": 7 + k, "accuracy": value} for k, value in enumerate(values)])


def test_plans_are_compared_seed_by_seed():
    """Means of other seeds, or an interval of two samples where the seeds are the same. Against
    scipy's paired test.
    """
    one, two = [0.80, 0.84, 0.86], [0.79, 0.82, 0.85]
    other = stats.ttest_rel(one, two).confidence_interval(0.95)
    found = subtract(
        group("one", one), group("two", [*two, 0.1]), "accuracy"
    )  # a seed that only one of them has
    assert found == pytest.approx((np.mean(one) - np.mean(two), other.low, other.high), abs=1e-12)
    assert subtract(group("one", one), group("two", [None, None]), "accuracy") is None


def test_no_plan_is_called_better_where_it_may_be_chance():
    """A ranking by means of three seeds."""
    groups = [
        group("steady", [0.80, 0.81, 0.82]),
        group("chance, or not", [0.60, 0.99, 0.81]),
        group("best", [0.90, 0.91, 0.92]),
    ]
    said = describe_ranking(groups, "accuracy", "accuracy")
    assert (
        said
        == "Highest mean accuracy on test records, by which no plan is chosen: best, 0.910. Seed by"
        " seed, each with 95 % confidence, steady is below it. chance, or not cannot be told from"
        " it with 3 seeds."
    )
    assert "not known" in describe_ranking(
        [group("a", [0.8]), group("b", [0.9])], "accuracy", "accuracy"
    )
    assert describe_ranking([group("a", [None])], "accuracy", "accuracy") == ""
    words = describe_change(groups[0], groups[2], {"accuracy": "accuracy"})
    assert words == "From steady to best: +10.0 points of accuracy (+10.0 to +10.0)."


def test_a_plan_is_chosen_by_validation_records_alone():
    """A winner that was picked on the tests: then its accuracy there says too much."""

    def measured(name: str, tests: list[float], validation: list[float | None]) -> Group:
        rows = []
        for seed, (test, value) in enumerate(zip(tests, validation, strict=True)):
            rows.append({"seed": seed, "accuracy": test, "validation.accuracy": value})
        return Group(name, rows)

    lucky = measured("lucky on tests", [0.95, 0.96, 0.97], [0.70, 0.71, 0.72])
    chosen = measured("chosen", [0.90, 0.91, 0.92], [0.80, 0.81, 0.82])
    said = describe_ranking([lucky, chosen], "accuracy", "accuracy")
    assert said.startswith(
        "Highest mean accuracy on validation records: chosen, 0.810; chosen by that, it has 0.910"
        " on test records."
    )
    assert "lucky on tests is below it" in said

    # one cell without validation records: nothing is chosen
    partly = measured("partly", [0.5, 0.5, 0.5], [0.99, 0.99, None])
    said = describe_ranking([lucky, chosen, partly], "accuracy", "accuracy")
    assert "on test records, by which no plan is chosen: lucky on tests" in said


def test_cases_are_compared_at_the_same_place_of_the_grid():
    """A strategy on easy data beside another on hard data; the first case beside itself."""
    study = Study.model_validate(
        {
            "name": "s",
            "question": "q",
            "plan": "p",
            "cases": {"a": {}, "b": {}},
            "grid": {"x.y": [1, 2]},
            "seeds": [7, 8],
        }
    )
    groups = []
    for case, extra in (("a", 0.0), ("b", 0.01)):
        for place in (1, 2):
            rows = []
            for seed in (7, 8):
                accuracy = 0.5 * place + extra - 0.01 * seed
                rows.append({"seed": seed, "case": case, "x.y": place, "accuracy": accuracy})
            groups.append(Group(f"{case}, y {place}", rows))
    found = list_gains_over_first(study, groups, "accuracy")
    assert [(name, round(gain.value, 9)) for name, gain in found] == [
        ("b, y 1", 0.01),
        ("b, y 2", 0.01),
    ]
    assert show_gain(Interval(0.047, -0.045, 0.138)) == "+4.7 (-4.5 to +13.8), may be chance"
    assert show_gain(Interval(-0.03, -0.04, -0.02)) == "-3.0 (-4.0 to -2.0), worse"
    assert show_gain(Interval(0.03)) == "+3.0, of one seed"
    assert list_gains_over_first(study.model_copy(update={"grid": {}}), groups, "accuracy") == []

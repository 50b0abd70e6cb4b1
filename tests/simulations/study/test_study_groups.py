"""What attacks found over the seeds: audits together, at the confidence of all of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from scipy import stats

from fedgraft.simulations.attacks.empirical_epsilon import Audit, lower_bound
from fedgraft.simulations.study.study_answer import draw_column
from fedgraft.simulations.study.study_file import Study
from fedgraft.simulations.study.study_groups import group_cells, merge_seeds


def audit_of(correct: int, stated: float | None) -> dict[str, Any]:
    """As an audit writes it: 100 of 100 canaries guessed, δ = 0."""
    sure = 1 - 0.05 / 3
    proved, most = (
        lower_bound(100, 100, right, delta=0.0, confidence=sure) for right in (correct, 100)
    )
    found = Audit(proved, most, 0.0, 0.95, 100, 100, correct, correct / 100)
    return {"kind": "audit", "node": "h0", "stated_epsilon": stated, **asdict(found)}


def test_the_best_of_several_audits_is_as_sure_as_all_of_them_together() -> None:
    """95 % on a page for the largest of three bounds, each of which may be wrong once in twenty
    times.

    So each is taken at a third of the risk: with 80 of 100 right and δ = 0, ε = logit of the
    Clopper-Pearson bound at 0.05 / 9, from SciPy's binomial test here.
    """
    found = merge_seeds([audit_of(correct, None) for correct in (60, 80, 70)])
    low = stats.binomtest(80, 100, alternative="greater").proportion_ci(1 - 0.05 / 9).low
    assert found["epsilon"] == pytest.approx(math.log(low / (1 - low)), abs=1e-5)
    assert found["confidence"] == 0.95
    assert (found["correct"], found["stated_epsilon"]) == (80, None)
    assert merge_seeds([audit_of(80, None)]) == pytest.approx(audit_of(80, None))


def test_an_audit_that_refutes_is_shown_before_one_that_proves_more() -> None:
    """A promise of ε = 0.5 that one seed refuted, hidden behind a seed that promised more and kept
    it.
    """
    found = merge_seeds([audit_of(80, 0.5), audit_of(90, 8.0)])
    assert found["stated_epsilon"] == 0.5
    assert found["epsilon"] > 0.5


def test_a_grid_of_privacy_has_names_that_people_read() -> None:
    """Plans called by their JSON, or two that differ in more than ε called the same."""
    asked = [
        {"mode": "none"},
        {"mode": "sample", "target_epsilon": 3},
        {"mode": "sample", "target_epsilon": 3, "unit": "patient"},
    ]
    study = Study(name="s", question="?", plan="digits", grid={"privacy": tuple(asked)}, seeds=(7,))
    rows = []
    for section, epsilon in zip(asked, (None, 3.0, 3.0), strict=True):
        rows.append({"privacy": json.dumps(section), "epsilon": epsilon, "accuracy": 0.9})
    groups = group_cells(study, rows)
    names = [group.name for group in groups]
    assert names[:2] == ["no privacy", "ε = 3"]
    assert "patient" in names[2]
    assert draw_column(study, groups, "accuracy") is not None

"""The tables' benchmark: intervals of differences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedgraft.simulations.benchmarks.tables_one_round import (
    Prediction,
    make_table,
    redraw_auroc,
)


def test_a_redrawn_auroc_is_that_of_the_records_it_drew() -> None:
    """An interval of another figure than the table's."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = rng.normal(size=200) + labels
    times = np.stack([np.ones(200, int), np.bincount(rng.integers(0, 200, 200), minlength=200)])
    whole, redrawn = redraw_auroc(scores, labels, times)
    assert whole == pytest.approx(roc_auc_score(labels, scores))
    assert redrawn == pytest.approx(roc_auc_score(labels, scores, sample_weight=times[1]))


def test_differences_are_paired_by_the_records() -> None:
    """Two models that say the same differ by nothing, whichever records are drawn."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    good = labels + rng.normal(size=300)
    rows = np.arange(300)
    predictions = [
        Prediction("logistic regression, pooled", rows, good),
        Prediction("boosting, pooled", rows, rng.normal(size=300)),
        Prediction("one round, no privacy", rows, good + 5),
    ]
    table = make_table(predictions, labels)
    first = table.rows[0]
    assert first[0] == "one round, no privacy"
    assert first[4] == "–"
    assert first[5].startswith("+0.")
    low = float(first[5].partition("(")[2].partition(" ")[0])
    assert low > 0

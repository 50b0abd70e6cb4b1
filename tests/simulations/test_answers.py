"""What a headline must say where one class is rare; scikit-learn counts the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score

from fedgraft.simulations.answers import describe_answers, read_answers, read_site_answers


def result_of(*tables: list[list[int]], auroc: float | None = 0.7) -> dict[str, Any]:
    return {
        "confusion": {f"h{number}": table for number, table in enumerate(tables)},
        "data": {"classes": ["home", "again"]},
        "final": {"global": {"auroc": auroc}},
    }


def test_it_is_what_scikit_learn_counts() -> None:
    """A sensitivity of the wrong class; sites averaged instead of added."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200) * rng.integers(0, 2, 200)
    told = np.where(rng.random(200) < 0.8, truth, 1 - truth)
    table = [[int(((truth == a) & (told == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    halves = [
        [[n // 2 for n in row] for row in table],
        [[n - n // 2 for n in row] for row in table],
    ]
    result = result_of(*halves)
    answers = read_answers(result)
    assert answers is not None
    assert answers.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, told))
    assert answers.majority == max(np.bincount(truth)) / 200
    words = " ".join(describe_answers([result]))
    assert f"sensitivity {recall_score(truth, told):.3f} (" in words
    assert f"specificity {recall_score(truth, told, pos_label=0):.3f} (" in words
    assert f"positive predictive value {precision_score(truth, told):.3f} (" in words
    assert list(read_site_answers(result)) == ["h0", "h1"]


def test_a_useless_model_is_not_praised() -> None:
    """88.9 % told rightly, where 1 of 200 readmissions is found."""
    words = describe_answers([result_of([[1599, 1], [199, 1]], auroc=0.49)])
    text = " ".join(words)
    assert "balanced accuracy 0.502; always “home” would be right for 88.9%" in text
    assert "sensitivity 0.005 (" in text
    assert "beware: it is right no more often than always answering “home”" in text
    assert "beware: it orders cases no better than chance" in text


def test_an_operating_point_gives_up_accuracy_and_is_not_scolded_for_it() -> None:
    """Eight in ten found at a threshold of 0.07, called useless for its accuracy."""
    result = result_of([[500, 400], [20, 80]])
    assert any("train.operating_point" in line for line in describe_answers([result]))
    point = {"threshold": 0.07, "score_bin": 400, "sensitivity": 0.8, "specificity": 0.55}
    words = describe_answers([result | {"operating_point": point | {"examples": 90}}])
    assert not [word for word in words if "beware" in word]


def test_one_case_is_no_evidence() -> None:
    """An AUROC of 0.99 that rests on a single patient."""
    assert any(
        "rests on one test record" in line
        for line in describe_answers([result_of([[90, 1], [0, 1]], auroc=0.99)])
    )
    assert not [w for w in describe_answers([result_of([[90, 1], [2, 40]])]) if "beware" in w]
    assert describe_answers([{"final": {"global": {}}}]) == []

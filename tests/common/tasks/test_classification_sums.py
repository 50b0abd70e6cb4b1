"""Metrics as sums: against scikit-learn on the pooled predictions, merged, on the wire, and
malformed.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.errors import Refused
from fedgraft.common.tasks.classification_sums import CALIBRATION_BINS, sums_of, zero
from fedgraft.common.tasks.score_bins import bins_of, log_odds
from fedgraft.common.tasks.sums_from_wire import sums_from_flat


def predictions(
    seed: int, n: int, classes: int, scale: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know something of their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return logits * scale, labels


def close(found: Any, wanted: float, tolerance: float = 1e-12) -> bool:
    return found is not None and math.isclose(found, wanted, rel_tol=0, abs_tol=tolerance)


# ── against scikit-learn ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_summary_equals_scikit_learn_on_the_pooled_predictions(classes: int) -> None:
    """A wrong confusion index, average, or log base would report a model better or worse than it
    is.
    """
    from sklearn import metrics

    parts = [predictions(seed, n, classes) for seed, n in enumerate((40, 1, 333))]
    found = sum((sums_of(*part) for part in parts), zero(classes))
    logits, labels = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]).numpy()
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    summary = found.summary()

    assert summary["examples"] == 374
    assert close(summary["accuracy"], metrics.accuracy_score(labels, predicted))
    average = "binary" if classes == 2 else "macro"
    assert close(summary["f1"], float(metrics.f1_score(labels, predicted, average=average)))
    assert close(
        summary["loss"], metrics.log_loss(labels, probabilities, labels=range(classes)), 1e-9
    )
    scores = probabilities[:, 1] if classes == 2 else probabilities
    exact = float(metrics.roc_auc_score(labels, scores, multi_class="ovr"))
    assert close(summary["auroc"], exact, found.auroc_resolution())
    assert found.auroc_resolution() < 0.005
    assert np.array_equal(
        found.confusion, metrics.confusion_matrix(labels, predicted, labels=range(classes))
    )


def test_auroc_of_an_overconfident_model_keeps_its_ranks() -> None:
    """Scores of 20 to 60 logits are all 1.0 as float32 probabilities; AUROC from those would say
    0.5.
    """
    from sklearn.metrics import roc_auc_score

    scores = torch.linspace(20, 60, 200)
    labels = (
        torch.arange(200) % 10 < torch.arange(200) // 20
    ).long()  # more positives among higher scores
    found = sums_of(torch.stack([torch.zeros(200), scores], dim=1), labels)
    exact = float(roc_auc_score(labels.numpy(), scores.numpy()))
    assert close(found.summary()["auroc"], exact, found.auroc_resolution())
    assert exact > 0.7
    assert found.auroc_resolution() < 0.01


def test_expected_calibration_error_equals_a_slow_loop() -> None:
    """Guo et al. 2017, eq. 5, over bins ((m−1)/15, m/15], one prediction at a time."""
    logits, labels = predictions(3, 500, 4)
    logits[0] = torch.tensor([0.0, 0.0, 0.0, 0.0])  # confidence 1/4
    probabilities = torch.softmax(logits.double(), dim=1)
    total = 0.0
    for m in range(1, CALIBRATION_BINS + 1):
        inside = [
            (float(p.max()), int(p.argmax()) == int(y))
            for p, y in zip(probabilities, labels, strict=True)
            if (m - 1) / CALIBRATION_BINS < float(p.max()) <= m / CALIBRATION_BINS
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / 500 * abs(accuracy - confidence)
    assert close(sums_of(logits, labels).summary()["calibration_error"], total, 1e-9)


def test_log_odds_equal_the_logit_of_the_softmax() -> None:
    """The score that is ranked must be a rising function of the class's probability."""
    logits, _ = predictions(1, 50, 5)
    p = torch.softmax(logits.double(), dim=1)
    torch.testing.assert_close(log_odds(logits.double()), torch.log(p) - torch.log1p(-p))


def test_bins_keep_the_order_of_scores() -> None:
    """A bin function that is not rising would scramble ranks; scores beyond its reach stay at its
    ends.
    """
    bins = bins_of(torch.tensor([-1e30, -1e4, -50.0, -1.0, -0.1, 0.0, 0.1, 1.0, 50.0, 1e4, 1e30]))
    assert (bins.diff() >= 0).all()
    assert len(set(bins[2:9].tolist())) == 7
    assert (bins[0], bins[-1]) == (0, 1023)


# ── what cannot be said ───────────────────────────────────────────────────────────────────────────


def test_one_class_has_no_auroc_but_an_accuracy() -> None:
    """A hospital with healthy patients only must report, without a made-up AUROC or F1."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    summary = sums_of(logits, torch.tensor([0, 0])).summary()
    assert summary["auroc"] is None
    assert summary["f1"] is None
    assert summary["accuracy"] == 1.0


def test_nothing_measured_is_none_everywhere() -> None:
    """An empty test split must not divide by zero, nor count as accuracy 0."""
    summary = sums_of(torch.empty(0, 3), torch.empty(0, dtype=torch.long)).summary()
    assert summary.pop("examples") == 0
    assert set(summary.values()) == {None}


def test_auroc_of_several_classes_is_the_mean_over_those_present() -> None:
    """A class that no one has would otherwise make the mean undefined, or count as 0."""
    from sklearn.metrics import roc_auc_score

    logits, labels = predictions(5, 200, 3)
    labels[labels == 2] = 0
    found = sums_of(logits, labels)
    scores = log_odds(logits.double()).numpy()
    wanted = np.mean([roc_auc_score(labels.numpy() == k, scores[:, k]) for k in (0, 1)])
    assert close(found.summary()["auroc"], float(wanted), found.auroc_resolution())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_is_refused_in_words(bad: float) -> None:
    """NaN would be counted as a prediction of class 0 and a score in a bin."""
    with pytest.raises(Refused, match="not finite"):
        sums_of(torch.tensor([[0.0, bad]]), torch.tensor([0]))


# ── merging and travelling ────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 5),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    scale=st.sampled_from([0.0, 0.1, 3.0, 1e3]),
)
def test_merged_sums_equal_pooled_sums(
    seed: int, classes: int, cuts: list[int], scale: float
) -> None:
    """However predictions are spread over hospitals, also with empty ones, the total is that of the
    pool.
    """
    logits, labels = predictions(seed, 60, classes, scale)
    ends = [0, *sorted(cuts), 60]
    total = zero(classes)
    for start, end in itertools.pairwise(ends):
        total = total + sums_of(logits[start:end], labels[start:end])
    pooled = sums_of(logits, labels)
    assert np.array_equal(total.confusion, pooled.confusion)
    assert np.array_equal(total.positives, pooled.positives)
    assert np.array_equal(total.negatives, pooled.negatives)
    assert np.array_equal(total.calibration[:, [0, 2]], pooled.calibration[:, [0, 2]])
    np.testing.assert_allclose(total.calibration[:, 1], pooled.calibration[:, 1], rtol=1e-12)
    assert math.isclose(total.loss, pooled.loss, rel_tol=1e-12, abs_tol=1e-12)
    assert sums_from_flat(total.to_flat(), classes).to_flat() == total.to_flat()


def test_sums_over_different_classes_do_not_add_up() -> None:
    """NumPy would broadcast some of these shapes into a wrong answer."""
    with pytest.raises(ValueError, match="do not add up"):
        _ = zero(2) + zero(3)


def test_flat_sums_pass_through_flowers_record() -> None:
    """Flower's MetricRecord takes ints, floats and lists of one of them; anything else fails at the
    node.
    """
    from flwr.app import MetricRecord

    for sums in (zero(3), sums_of(*predictions(0, 20, 3))):
        assert dict(MetricRecord(sums.to_flat())) == sums.to_flat()


def flat() -> dict[str, Any]:
    return dict(sums_of(*predictions(2, 30, 2)).to_flat())


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("examples", lambda v: v + 1),
        ("examples", lambda v: -v),
        ("examples", lambda v: float(v)),
        ("examples", lambda v: True),
        ("examples", lambda v: 2**50),
        ("loss", lambda v: math.nan),
        ("loss", lambda v: math.inf),
        ("loss", lambda v: -1.0),
        ("loss", lambda v: 1e300),
        ("loss", lambda v: [v]),
        ("confusion", lambda v: [v[0] + 1, *v[1:]]),
        ("confusion", lambda v: [-v[0], *v[1:]]),
        ("confusion", lambda v: v[1:]),
        ("confusion-at", lambda v: [*v[:-1], 4]),
        ("confusion-at", lambda v: v[::-1]),
        ("confusion-at", lambda v: [v[0], v[0], *v[2:]]),
        ("positives", lambda v: [v[0] + 1, *v[1:]]),
        ("positives-at", lambda v: [*v[:-1], 2 * 1024]),
        ("negatives", lambda v: [0, *v[1:]]),
        ("negatives", lambda v: [2**62, *v[1:]]),
        ("negatives-at", lambda v: "text"),
        ("calibration-count", lambda v: [v[0] + 1, *v[1:]]),
        ("calibration-correct", lambda v: [v[0] + 1, *v[1:]]),
        ("calibration-confidence", lambda v: [math.nan, *v[1:]]),
        ("calibration-confidence", lambda v: [v[0] * 3, *v[1:]]),
        ("calibration-confidence", lambda v: [1, *v[1:]]),
        ("calibration-at", lambda v: [*v[:-1], 15]),
    ],
)
def test_malformed_sums_are_refused(key: str, change: Any) -> None:
    """One node's broken or forged metrics would otherwise enter everyone's."""
    bad = flat()
    bad[key] = change(bad[key])
    with pytest.raises(ValueError, match=r"\w"):
        sums_from_flat(bad, 2)


def test_unknown_and_missing_keys_are_refused() -> None:
    """Anything more in the record is something that was not agreed to leave a node."""
    with pytest.raises(ValueError, match="extra"):
        sums_from_flat(flat() | {"extra": 1}, 2)
    with pytest.raises(ValueError, match="loss"):
        sums_from_flat({key: value for key, value in flat().items() if key != "loss"}, 2)


def test_sums_of_other_classes_are_refused() -> None:
    """A node that runs another plan's classes must be found out, not merged."""
    with pytest.raises(ValueError, match="beyond"):
        sums_from_flat(sums_of(*predictions(2, 30, 3)).to_flat(), 2)

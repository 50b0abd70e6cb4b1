"""Metrics of boxes as sums: against pycocotools on the same predictions, merged, on the wire."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.errors import Refused
from fedgraft.common.tasks.average_precision import (
    SCORE_BINS,
    least_average_precision,
    most_average_precision,
)
from fedgraft.common.tasks.box_places import Detections
from fedgraft.common.tasks.box_sums import IMAGE_BINS, BoxSums, count_boxes, sums_of, zero
from fedgraft.common.tasks.box_sums_from_wire import box_sums_from_flat

CLASSES = 2
MOST = 100
LEVELS = range(10)
# an image's found and true boxes
Seen = tuple[Detections, np.ndarray]


def draw_images(seed: int, images: int, *, spread: float) -> list[Seen]:
    """Images with true boxes, and found ones near them and elsewhere.

    Args:
        spread: how far found boxes lie off; scores say something of it.
    """
    rng = np.random.default_rng(seed)
    seen: list[Seen] = []
    for _ in range(images):
        true = draw_boxes(rng, int(rng.integers(0, 7)))
        near = true[rng.random(len(true)) < 0.8]
        near = near + np.pad(rng.normal(0, spread, (len(near), 4)), ((0, 0), (1, 0)))
        # doubles of the same thing, and things that are not there
        doubles = near[:2] + np.array([0, 1, 0, 1, 0])
        found = np.concatenate([near, doubles, draw_boxes(rng, 3)])
        # a head tells sides above 0
        found[:, 3:] = np.maximum(found[:, 3:], found[:, 1:3] + 1)
        scores = rng.uniform(0.06, 1.0, len(found)).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        found = found[order]
        detections = Detections(
            found[:, 1:].astype(np.float32), scores[order], found[:, 0].astype(np.int64)
        )
        seen.append((detections, true.astype(np.float32)))
    return seen


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 40, (count, 2))
    sides = rng.uniform(6, 24, (count, 2))
    classes = rng.integers(0, CLASSES, (count, 1))
    return np.concatenate([classes, corners, corners + sides], axis=1)


def sum_up(seen: Sequence[Seen]) -> BoxSums:
    total = zero(CLASSES)
    for detections, true in seen:
        total = total + replace(count_boxes(detections, true, CLASSES), loss=1.0)
    return total


def ask_coco(seen: Sequence[Seen]) -> np.ndarray:
    """pycocotools' average precision by threshold and class; NaN without a box."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (detections, true) in enumerate(seen):
        for row in true.astype(np.float64).tolist():
            truth.append(as_coco(number, int(row[0]), row[1:]) | {"id": len(truth) + 1})
        rows = detections.boxes.astype(np.float64).tolist()
        for box, score, kind in zip(rows, detections.scores, detections.classes, strict=True):
            results.append(as_coco(number, int(kind), box) | {"score": float(score)})
    given_ = coco.COCO()
    given_.dataset = {
        "info": {},
        "images": [{"id": number, "width": 99, "height": 99} for number in range(len(seen))],
        "annotations": truth,
        "categories": [{"id": number} for number in range(CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        given_.createIndex()
        asked = evaluation.COCOeval(given_, given_.loadRes(results), "bbox")
        asked.params.maxDets = [MOST]
        asked.params.areaRng = [[0, 1e10]]
        asked.params.areaRngLbl = ["all"]
        asked.evaluate()
        asked.accumulate()
    precision = asked.eval["precision"][:, :, :, 0, 0].mean(1)
    return np.where(precision < 0, np.nan, precision)


def as_coco(image: int, kind: int, box: Sequence[float]) -> dict[str, Any]:
    left, top, right, bottom = box
    sides = [left, top, right - left, bottom - top]
    area = sides[2] * sides[3]
    return {"image_id": image, "category_id": kind, "bbox": sides, "area": area, "iscrowd": 0}


def both_bounds(sums: BoxSums) -> tuple[np.ndarray, np.ndarray]:
    """Least and most average precision by threshold and class."""
    bounds = []
    for precision in (least_average_precision, most_average_precision):
        rows = []
        for level in LEVELS:
            row = []
            for number in range(CLASSES):
                value = precision(
                    sums.hits[number, level], sums.found[number], int(sums.boxes[number])
                )
                row.append(np.nan if value is None else value)
            rows.append(row)
        bounds.append(np.array(rows))
    return bounds[0], bounds[1]


# ── against pycocotools ───────────────────────────────────────────────────────────────────────────
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 6))
def test_pycocotools_lies_between_the_least_and_the_most_that_ties_allow(
    seed: int, spread: float
) -> None:
    """A wrong match, envelope or recall would report boxes better or worse than they are."""
    seen = draw_images(seed, 6, spread=spread)
    least, most = both_bounds(sum_up(seen))
    coco = ask_coco(seen)
    known = ~np.isnan(coco)
    assert (np.isnan(least) == ~known).all()
    assert (least[known] <= coco[known] + 1e-9).all()
    assert (coco[known] <= most[known] + 1e-9).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_the_summary_equals_pycocotools_where_no_two_boxes_are_tied(seed: int) -> None:
    """With a bin for each score nothing is lost: mAP is COCO's own number."""
    seen = draw_images(seed, 5, spread=3)
    count = sum(len(detections.scores) for detections, _ in seen)
    bins = np.random.default_rng(seed).permutation(np.arange(20, SCORE_BINS))[:count]
    start = 0
    spread_out: list[Seen] = []
    for detections, true in seen:
        scores = (bins[start : start + len(detections.scores)] + 0.5) / SCORE_BINS
        start += len(scores)
        order = np.argsort(-scores)
        spread_out.append(
            (
                Detections(
                    detections.boxes[order],
                    scores[order].astype(np.float32),
                    detections.classes[order],
                ),
                true,
            )
        )
    coco = ask_coco(spread_out)
    summary = sum_up(spread_out).summary()
    if np.isnan(coco).all():
        assert summary["map"] is None
        return
    assert summary["map_50"] == pytest.approx(float(np.nanmean(coco[0])), abs=1e-9)
    assert summary["map"] == pytest.approx(float(np.nanmean(coco)), abs=1e-9)
    assert summary["map_50_most"] == pytest.approx(summary["map_50"], abs=1e-9)


# ── sums ──────────────────────────────────────────────────────────────────────────────────────────
def test_sums_of_two_nodes_are_those_of_their_pooled_images() -> None:
    """Else a federation's number would depend on how the images are dealt."""
    seen = draw_images(3, 12, spread=2)
    parts = sum_up(seen[:5]) + sum_up(seen[5:])
    assert parts.to_flat() == sum_up(seen).to_flat()
    assert sum_up(seen[:5]).within(parts)
    assert not parts.within(sum_up(seen[:5]))


def test_sums_of_other_classes_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        _ = zero(1) + zero(2)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 8))
def test_an_image_is_in_one_bin_however_many_boxes_it_has(seed: int, images: int) -> None:
    """Noise is for one count: an image in two would be protected by half of what is stated."""
    sums = sum_up(draw_images(seed, images, spread=3))
    assert sums.bins.sum() == images
    noisy = sums.only_counts(np.zeros(sums.cells))
    assert noisy.boxes.sum() == noisy.found.sum() == noisy.hits.sum() == 0
    assert noisy.loss == 0
    summary = noisy.summary()
    assert summary["map_50"] is None
    assert summary["loss"] is None
    assert summary["image_ap_50"] == sums.summary()["image_ap_50"]
    assert box_sums_from_flat(noisy.to_flat(), CLASSES, MOST).to_flat() == noisy.to_flat()


def test_an_image_without_a_box_is_right_where_none_is_told_for_sure() -> None:
    nothing = np.zeros((0, 5), np.float32)
    box = np.array([[1, 1, 9, 9]], np.float32)
    unsure = Detections(box, np.array([0.4], np.float32), np.array([0]))
    sure = replace(unsure, scores=np.array([0.6], np.float32))
    assert count_boxes(unsure, nothing, 1).bins[-1] == 1
    assert count_boxes(sure, nothing, 1).bins[0] == 1


def test_no_class_with_a_box_has_no_average_precision() -> None:
    """0 would be said of what was never asked."""
    sums = replace(zero(2), examples=1, loss=1.0)
    sums.bins[-1] = 1
    assert sums.summary()["map"] is None
    assert zero(2).summary()["map_50"] is None


# ── what a model may say ──────────────────────────────────────────────────────────────────────────
def test_outputs_that_are_not_finite_are_refused() -> None:
    outputs = torch.zeros(1, 8, 4)
    outputs[0, 0, 0] = float("nan")
    with pytest.raises(Refused):
        sums_of(outputs, torch.full((1, 2, 5), -1.0), MOST)


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_wild_outputs_give_sums_that_count(value: float) -> None:
    """A server's model that overflows on certain images must not make a node refuse, which would
    tell that they are there.
    """
    targets = torch.full((2, 3, 5), -1.0)
    targets[0, 0] = torch.tensor([0.0, 1.0, 1.0, 30.0, 30.0])
    outputs = torch.full((2, 8, 16), value)
    sums = sums_of(outputs, targets, MOST)
    assert sums.examples == 2
    assert box_sums_from_flat(sums.to_flat(), 1, MOST).to_flat() == sums.to_flat()


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────
FLAT = sum_up(draw_images(5, 4, spread=2)).to_flat()


def test_sums_come_back_from_the_wire() -> None:
    assert box_sums_from_flat(FLAT, CLASSES, MOST).to_flat() == FLAT


def more_hits_than_found() -> dict[str, Any]:
    hits = list(FLAT["hits"])
    empty = FLAT["found"].index(0, SCORE_BINS // 2)
    hits[empty] = 1
    return {"hits": hits}


def many(name: str, at: int, value: int) -> dict[str, Any]:
    values = list(FLAT[name])
    values[at] = value
    return {name: values}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"more": 1}, "unknown"),
        ({"examples": -1}, "count"),
        ({"examples": 1.0}, "count"),
        ({"examples": True}, "count"),
        ({"examples": 2**60}, "count"),
        ({"loss": float("nan")}, "loss"),
        ({"loss": 1e30}, "loss"),
        ({"boxes": [1]}, "list of 2"),
        ({"boxes": [1, 10**9]}, "boxes"),
        ({"boxes": [0, 0]}, "more right boxes than true"),
        ({"bins": [0] * IMAGE_BINS}, "disagree"),
        (many("found", 0, 1), "score below"),
        (many("found", 100, 4 * MOST), "for each image"),
        (more_hits_than_found(), "than found"),
        (many("found", 100, -1), "found"),
        (
            {"loss": 0, "boxes": [0, 0], "found": [0] * (CLASSES * SCORE_BINS)},
            "right boxes without",
        ),
    ],
)
def test_what_no_predictions_could_give_is_refused(changes: dict[str, Any], words: str) -> None:
    """A hostile node's sums would else bend the federation's report."""
    with pytest.raises(ValueError, match=words):
        box_sums_from_flat(FLAT | changes, CLASSES, MOST)

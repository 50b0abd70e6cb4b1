"""Metrics of masks as sums: against MONAI on the same predictions, merged, on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgraft.common.errors import Refused
from fedgraft.common.tasks.mask_sums import DICE_BINS, MaskSums, sums_of, zero
from fedgraft.common.tasks.mask_sums_from_wire import mask_sums_from_flat
from fedgraft.common.tasks.mask_surfaces import hausdorff_95


def blobs(
    seed: int, n: int, classes: int, grid: tuple[int, ...] = (24, 20)
) -> tuple[Tensor, Tensor]:
    """Logits that know something of masks with connected shapes, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, classes, *[side // 4 for side in grid], generator=generator)
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    field = torch.nn.functional.interpolate(coarse, grid, mode=mode)
    masks = field.argmax(1)
    logits = field + 0.4 * torch.randn(n, classes, *grid, generator=generator)
    return logits, masks


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


# ── against MONAI ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grid", [(24, 20), (12, 16, 8)])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_summary_equals_monai_on_the_same_masks(classes: int, grid: tuple[int, ...]) -> None:
    """A wrong denominator, edge or percentile would report masks better or worse than they are."""
    metrics = pytest.importorskip("monai.metrics")
    logits, masks = blobs(3, 12, classes, grid)
    # a class that is in neither mask, and one that is in one of them alone
    logits[0, 1:] = -9.0
    masks[0] = 0
    logits[1, 1:] = -9.0
    predicted, true = one_hot(logits.argmax(1), classes), one_hot(masks, classes)
    summary = sums_of(logits, masks).summary()

    dice = metrics.compute_dice(predicted, true, include_background=False, ignore_empty=False)
    assert summary["dice"] == pytest.approx(float(dice.mean(0).mean()), abs=1e-6)
    iou = metrics.compute_iou(predicted, true, include_background=False, ignore_empty=False)
    # MONAI says nothing of an IoU of two empty masks; of Dice it says 1
    both_empty = (predicted[:, 1:].flatten(2).sum(2) + true[:, 1:].flatten(2).sum(2)) == 0
    iou = torch.where(both_empty, 1.0, iou)
    assert summary["iou"] == pytest.approx(float(iou.mean(0).mean()), abs=1e-6)
    distances = metrics.compute_hausdorff_distance(
        predicted, true, include_background=False, percentile=95
    )
    known = torch.isfinite(distances)
    both = (predicted[:, 1:].flatten(2).sum(2) > 0) & (true[:, 1:].flatten(2).sum(2) > 0)
    assert torch.equal(known, both)
    means = [float(distances[known[:, k], k].mean()) for k in range(classes - 1)]
    assert summary["hausdorff_95"] == pytest.approx(np.mean(means), abs=2e-3)
    assert summary["edges"] == int(both.sum())


def test_the_distance_equals_a_slow_loop_over_pairs_of_edges() -> None:
    """MONAI could be wrong in the same way: every pair of edge pixels is measured."""
    rng = np.random.default_rng(5)
    first, second = rng.random((2, 9, 11)) < 0.4

    def edge(mask: np.ndarray) -> list[tuple[int, int]]:
        padded = np.pad(mask, 1)
        found = []
        for y, x in zip(*np.nonzero(mask), strict=True):
            around = [
                padded[y, x + 1],
                padded[y + 2, x + 1],
                padded[y + 1, x],
                padded[y + 1, x + 2],
            ]
            if not all(around):
                found.append((int(y), int(x)))
        return found

    def one_way(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> float:
        nearest = [min(np.hypot(y - v, x - u) for v, u in b) for y, x in a]
        return float(np.percentile(nearest, 95))

    one, other = edge(first), edge(second)
    wanted = max(one_way(one, other), one_way(other, one))
    assert hausdorff_95(first, second) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "true", "dice", "edges"), [(0, 0, 1.0, 0), (1, 0, 0.0, 0), (1, 1, 1.0, 1)]
)
def test_an_empty_mask_is_counted_by_the_stated_rule(
    predicted: int, true: int, dice: float, edges: int
) -> None:
    """0 / 0 counted as 0 would punish a model that rightly finds nothing; a distance from nothing
    would be infinite and spoil the mean.
    """
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, predicted, 1:3, 1:3] = 5.0
    logits[0, 0] += 1.0
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    mask[0, 1:3, 1:3] = true
    summary = sums_of(logits, mask).summary()
    assert summary["dice"] == summary["iou"] == dice
    assert summary["edges"] == edges
    assert (summary["hausdorff_95"] is None) == (edges == 0)


# ── they merge ────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(6)), st.integers(0, 6))
def test_sums_are_the_same_however_images_are_dealt(seed: int, order: list[int], cut: int) -> None:
    """Were they floats, two deals of the images would differ in the last bit."""
    logits, masks = blobs(seed, 6, 3, (8, 8))
    whole = sums_of(logits, masks)
    first = sums_of(logits[order[:cut]], masks[order[:cut]]) if cut else zero(3)
    second = sums_of(logits[order[cut:]], masks[order[cut:]]) if cut < 6 else zero(3)
    together = first + second
    for name in ("dice", "iou", "surfaces", "distances", "bins", "pixels"):
        assert np.array_equal(getattr(whole, name), getattr(together, name)), name
    assert together.loss == pytest.approx(whole.loss)
    assert first.within(whole)
    assert second.within(whole)
    assert cut == 6 or not whole.within(first)


def test_sums_of_other_classes_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        _ = zero(2) + zero(3)


def test_an_image_is_in_one_cell_and_noise_on_the_cells_leaves_the_mean_dice() -> None:
    """An image in two cells would move noisy counts by more than the noise is made for."""
    logits, masks = blobs(1, 9, 2)
    sums = sums_of(logits, masks)
    assert sums.bins.sum() == 9
    assert sums.cells == DICE_BINS
    released = sums.only_counts(np.zeros(DICE_BINS))
    told = released.summary()
    assert told["examples"] == 9
    assert told["dice"] == pytest.approx(sums.summary()["dice"], abs=0.5 / DICE_BINS)
    assert told["iou"] is None
    assert told["loss"] is None
    assert mask_sums_from_flat(released.to_flat(), 2).examples == 9
    drowned = sums.only_counts(np.full(DICE_BINS, -100.0))
    assert drowned.examples == 0
    assert drowned.summary()["dice"] is None


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.sampled_from([2, 3]))
def test_sums_survive_the_wire(seed: int, n: int, classes: int) -> None:
    sums = zero(classes)
    if n:
        sums = sums_of(*blobs(seed, n, classes, (8, 8)))
    read = mask_sums_from_flat(sums.to_flat(), classes)
    assert read.to_flat() == sums.to_flat()


def hostile(sums: MaskSums, **changes: Any) -> dict[str, Any]:
    return {**sums.to_flat(), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": -1},
        {"examples": True},
        {"examples": 2**21},
        {"examples": 3},
        {"loss": float("nan")},
        {"loss": float("inf")},
        {"loss": -1.0},
        {"loss": "0"},
        {"dice": [2**31 * 9]},
        {"dice": [0]},
        {"dice": [0.5]},
        {"dice": [-1]},
        {"dice": []},
        {"iou": [2**30 * 4]},
        {"iou": [0]},
        {"surfaces": [5]},
        {"distances": [2**28]},
        {"distances": [-1]},
        {"bins": [4] + [0] * 19},
        {"bins": [1] * 20},
        {"pixels": [0, 0, 0, 0]},
        {"pixels": [3, 0, 0, 0]},
        {"pixels": [2**40, 0, 0, 2**40]},
        {"pixels": [1000, 10, 10, 0]},
        {"surprise": 1},
    ],
)
def test_what_no_predictions_give_is_refused(changes: dict[str, Any]) -> None:
    """One node could otherwise lift the mean of all of them, overflow it or make it NaN."""
    sums = sums_of(*blobs(2, 4, 2, (8, 8)))
    with pytest.raises(ValueError, match=r"[a-z]"):
        mask_sums_from_flat(hostile(sums, **changes), 2)


def test_outputs_that_are_not_finite_are_refused() -> None:
    logits, masks = blobs(4, 2, 2)
    logits[1, 0, 3, 3] = float("nan")
    with pytest.raises(Refused):
        sums_of(logits, masks)

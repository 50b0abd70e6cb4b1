"""Sums over the tokens of a hospital's texts: against a slow loop, and what one text moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.split import Split
from fedgraft.client.node_task import NodeTask
from fedgraft.client.sum_round import sum_privately, sum_split
from fedgraft.common.model.solve_head import rounding_of
from fedgraft.common.statistics.gram_sums import GramSums
from fedgraft.common.statistics.noisy_sums import COUNT_STEP, SCALE
from tests.entity_texts import PLAN, draw_sites, write_notes
from tests.hospital_task import task_of
from tests.huggingface_folders import write_folder

pytest.importorskip("transformers")
PRIVATE = ("privacy.mode=sample", "privacy.target_epsilon=8", "privacy.delta=1e-3")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with one hospital's notes and a tiny BERT."""
    write_notes(tmp_path / "north.csv", draw_sites()["north"])
    write_folder(tmp_path / "model", "bert")
    return tmp_path


def a_task(here: Path, *overrides: str) -> NodeTask:
    """Return the hospital's task under the plan."""
    return task_of(here, PLAN, "north.csv", *overrides)


def test_every_token_of_every_text_is_a_row_and_no_other_place(here: Path) -> None:
    """Padding, or the tokens around a text, would teach that nothing is nothing."""
    task = a_task(here)
    sums = sum_split(task)
    tags = task.train.labels
    rounding = rounding_of(task.plan)
    gram = np.zeros_like(sums.gram)
    cross = np.zeros_like(sums.cross)
    for row in range(len(task.train)):
        features = task.model.features(task.train.inputs(torch.tensor([row])))[0]
        for place, tag in enumerate(tags[row].tolist()):
            if tag >= 0:
                integers = rounding.to_integers(features[place : place + 1].numpy())[0]
                gram += np.outer(integers, integers).astype(np.int64)
                cross[:, tag] += integers.astype(np.int64)
    assert sums.records == int((tags >= 0).sum())
    assert sums.targets.tolist() == torch.bincount(tags[tags >= 0], minlength=5).tolist()
    # a loop over single texts has other last bits before they are rounded
    assert np.allclose(sums.gram, gram, rtol=1e-4, atol=float(np.abs(gram).max()) * 1e-5)
    assert np.allclose(sums.cross, cross, rtol=1e-4, atol=float(np.abs(cross).max()) * 1e-5)


def test_both_forms_of_annotation_and_any_deal_give_the_same_sums(here: Path) -> None:
    """Spans and tags of the same notes are one truth; sums do not know who holds a text."""
    whole = sum_of_all(here)
    notes = draw_sites()["north"]
    write_notes(here / "north.csv", notes[1::2], tags=True)
    total = sum_of_all(here)
    write_notes(here / "north.csv", notes[::2], tags=True)
    total = total + sum_of_all(here)
    assert total.records == whole.records
    for name in ("gram", "total", "cross", "targets", "squares"):
        assert np.array_equal(getattr(total, name), getattr(whole, name))


def sum_of_all(here: Path) -> GramSums:
    """Return the sums over all texts of the hospital's file."""
    task = a_task(here)
    assert isinstance(task.train, Split)
    records = task.train.records
    split = Split(records, np.arange(len(records.source)), task.train.preparation)
    every = NodeTask("n", task.plan, task.model, split, task.test, task.fingerprint)
    return sum_split(every)


def test_a_text_moves_noisy_sums_by_no_more_than_the_noise_is_for(here: Path) -> None:
    """However many tokens and entities it has: the unit is the text."""
    task = a_task(here, *PRIVATE, "train.closed_form.features=last")
    assert isinstance(task.train, Split)
    whole = sum_privately(task, None)
    rows = task.train.rows
    for left_out in range(0, len(rows), 9):
        others = np.delete(rows, left_out)
        split = Split(task.train.records, others, task.train.preparation)
        less = NodeTask("n", task.plan, task.model, split, task.test, task.fingerprint)
        rest = sum_privately(less, None)
        assert np.linalg.norm(whole.sums - rest.sums) <= SCALE
        assert np.linalg.norm(whole.counts - rest.counts) <= COUNT_STEP

"""The same image twice: on one side of our own splits, refused at both sides of the data's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.client.data.shared_images import count_copies, describe_copies, keep_together
from fedgraft.common.errors import UserError
from tests.records import open_records

XRAYS = {"kind": "image-classification", "classes": ("normal", "pneumonia")}


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 9), st.booleans()), min_size=1, max_size=40
    ),
    by_patient=st.booleans(),
)
def test_equal_images_and_patients_end_on_one_side(
    rows: list[tuple[int, int, bool]], by_patient: bool
) -> None:
    """An image under two labels, or of two patients, is torn by a split that looks at one of them;
    nothing moves into the tests.
    """
    contents = [bytes([image]) for image, _, _ in rows]
    patients = [f"p{patient}" for _, patient, _ in rows] if by_patient else None
    chosen = {patient: tested for _, patient, tested in rows}
    sides = [chosen[patient] if by_patient else tested for _, patient, tested in rows]
    tested = np.array(sides, bool)
    joined = keep_together(tested, contents, patients)
    assert not (joined & ~tested).any()
    assert len({*zip(contents, joined, strict=True)}) == len(set(contents))
    if patients is not None:
        assert len({*zip(patients, joined, strict=True)}) == len(set(patients))
    if len(set(contents)) == len(contents):
        assert np.array_equal(joined, tested)


def archive(path: Path, copied: int) -> Path:
    """200 images to train on and 100 tests, of which so many are training images."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8)
    pixels[200 : 200 + copied] = pixels[:copied]
    labels = np.arange(300) % 2
    np.savez(
        path,
        train_images=pixels[:200],
        train_labels=labels[:200],
        test_images=pixels[200:],
        test_labels=labels[200:],
    )
    return path


def test_tests_that_are_also_trained_on_are_refused(tmp_path: Path) -> None:
    """A model that knows a tenth of the tests by heart looks better than it is; one in a hundred is
    what public data sets have, and is told.
    """
    with pytest.raises(UserError, match="10 of 100 images in test are also in train") as told:
        open_records(path=archive(tmp_path / "x.npz", 10), **XRAYS)
    assert "data.max_shared: 0.1 " in told.value.remedy
    path = tmp_path / "x.npz"
    records = open_records(path=path, reading={"max_shared": 0.1}, **XRAYS)
    assert count_copies(records.source, records.splits).shared == {("train", "test"): 10}
    few = open_records(path=archive(tmp_path / "few.npz", 1), **XRAYS)
    words = describe_copies(count_copies(few.source, few.splits))
    assert "1 of 300 images are duplicates" in words
    assert "1 in test are also in train" in words


def test_an_image_with_two_labels_is_on_one_side(tmp_path: Path) -> None:
    """The share of tests is chosen class by class: each class had its own copy of the image."""
    half = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.repeat([0, 1], 40)
    np.savez(tmp_path / "x.npz", images=np.concatenate([half, half]), labels=labels)
    records = open_records(path=tmp_path / "x.npz", **XRAYS)
    copies = count_copies(records.source, records.splits)
    assert (copies.copies, copies.mislabelled, copies.most) == (40, 40, 2)
    assert not copies.shared

"""What lies in a folder beside its images: counted where nobody doubts it, else asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.readers.folder_files import sort_files
from fedgraft.common.errors import UserError
from tests.formats import content, dicom
from tests.records import open_records

CLASSES = ("normal", "pneumonia")
XRAYS: dict[str, Any] = {"kind": "image-classification", "classes": CLASSES}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)


def write(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(file)


def folder(path: Path, count: int = 20) -> Path:
    """So many images in two class folders."""
    for number in range(count):
        write(path / CLASSES[number % 2] / f"scan ({number}).png", number)
    return path


def test_files_of_the_system_are_no_records_and_every_file_is_counted(tmp_path: Path) -> None:
    """Sixty thumbnails of a file server were trained on; a count that does not add up hides what
    was passed over.
    """
    path = folder(tmp_path)
    for number in range(0, 20, 2):
        write(path / "normal" / "@eaDir" / f"scan ({number}).png" / "SYNOPHOTO_THUMB_M.jpg", 99)
    write(path / "__MACOSX" / "normal" / "._scan.png", 98)
    write(path / "pneumonia" / ".thumbnails" / "a.png", 97)
    (path / "normal" / "Thumbs.db").write_bytes(b"x")
    (path / "normal" / "notes.txt").write_text("x")
    (path / "pneumonia" / "notes.ini").write_text("x")
    write(path / "overview.png", 96)
    records = open_records(path=path, **XRAYS)
    assert len(records.labels) == 20
    assert records.source.beside == {
        "of other kinds (.txt 1, .ini 1)": 2,
        "of the system (@eaDir 10, Thumbs.db 1, hidden 1, __MACOSX 1)": 13,
        "in no class folder": 1,
    }
    files = sum(1 for file in path.rglob("*") if file.is_file())
    assert files == len(records.labels) + records.skipped + sum(records.source.beside.values())


@pytest.mark.parametrize(
    "name", ["scan ({})_mask.png", "scan ({})-seg.png", "previews/{}.png", "Thumb_{}.png"]
)
def test_masks_and_previews_are_asked_about(tmp_path: Path, name: str) -> None:
    """A mask beside its image was a training image with the image's label."""
    path = folder(tmp_path)
    for number in range(20):
        write(path / CLASSES[number % 2] / name.format(number), 100 + number)
    with pytest.raises(UserError, match="20 of 40 images seem to be made from others") as told:
        open_records(path=path, **XRAYS)
    pattern = told.value.remedy.split("data.leave_out: ['")[1].split("']")[0]
    left = open_records(path=path, reading={"leave_out": (pattern,)}, **XRAYS)
    assert len(left.labels) == 20
    assert left.source.beside == {"left out by data.leave_out": 20}
    every = {"leave_out": (), "patient_from": "none"}
    assert len(open_records(path=path, reading=every, **XRAYS).labels) == 40


def test_a_word_that_all_files_or_their_class_have_says_nothing(tmp_path: Path) -> None:
    """Photographs of faces with and without masks, in folders of these names."""
    classes = ("with_mask", "without_mask")
    for number in range(10):
        write(tmp_path / classes[number % 2] / f"{classes[number % 2]}_{number}.png", number)
    records = open_records(path=tmp_path, kind="image-classification", classes=classes)
    assert len(records.labels) == 10


def test_dicom_beside_other_images_is_asked_about(tmp_path: Path) -> None:
    """One preview hid sixty DICOM files: the folder was one of a single image."""
    for number in range(20):
        file = tmp_path / CLASSES[number % 2] / f"IM{number:04}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content(dicom(noise(number), patient=f"P{number}")))
    write(tmp_path / "normal" / "000.jpg", 50)
    for format_ in (None, "dicom", "image-folder"):
        with pytest.raises(UserError, match="20 DICOM files are mixed") as told:
            open_records(path=tmp_path, format=format_, **XRAYS)
        assert "data.leave_out: ['*.jpg']" in told.value.remedy
    for pattern, count in (("*.jpg", 20), ("normal/*.jpg", 20)):
        left = open_records(path=tmp_path, reading={"leave_out": (pattern,)}, **XRAYS)
        assert len(left.labels) == count
        assert left.owners is not None


def test_a_pattern_fits_a_name_a_path_or_its_end(tmp_path: Path) -> None:
    """`previews/*` left out nothing, since the pattern began at the root."""
    path = folder(tmp_path, 4)
    write(path / "normal" / "previews" / "a.png", 9)
    folders = [str(path / name) for name in CLASSES]
    for pattern in ("previews/*", "normal/previews/a.png", "A.png", "*/previews/*"):
        files = sort_files(str(path), folders, [pattern])
        assert files.beside == {"left out by data.leave_out": 1}, pattern
    assert not sort_files(str(path), folders, ["review*", "views/*"]).beside

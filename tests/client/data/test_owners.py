"""Whose each record is: names that are nobody's, and names of files that seem to say it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.readers.dicom import examine
from fedgraft.client.readers.placeholders import PSEUDONYM_OF_NOBODY
from fedgraft.common.errors import UserError
from tests.formats import content, dicom
from tests.records import open_records

XRAYS = {"kind": "image-classification", "classes": ("normal", "pneumonia")}
TABLE: dict[str, Any] = {
    "kind": "tabular-classification",
    "classes": ("healthy", "ill"),
    "columns": ["age"],
}


def visits(folder: Path, patients: list[str]) -> Path:
    """A table with a row for each of these patients' visits."""
    lines = ["age,patient,target"]
    lines += [f"{20 + n},{patient},{n % 2}" for n, patient in enumerate(patients)]
    (folder / "visits.csv").write_text("\n".join(lines) + "\n")
    return folder / "visits.csv"


def images(folder: Path, names: list[str]) -> Path:
    """Images of noise under these names, by turns of the two classes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        file = folder / XRAYS["classes"][number % 2] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(file)
    return folder


# ── names that are nobody's ───────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["NA", "n/a", "ANONYMOUS", "Anonymous^", "unknown", "None", "-"])
def test_a_patient_called_nobody_is_refused(tmp_path: Path, name: str) -> None:
    """Everybody without a name taken for one person: all on one side, and hidden as one."""
    path = visits(tmp_path, [name if n % 3 == 0 else f"p{n}" for n in range(30)])
    with pytest.raises(UserError, match=r"10 of 30 records are of a patient who is nobody") as told:
        open_records(path=path, **TABLE)
    assert "data.patient_unknown: apart" in told.value.remedy


@pytest.mark.parametrize(
    ("patients", "refused"),
    [
        ([str(n) for n in range(30)], False),
        ([str(n // 3) for n in range(30)], False),
        (["0" if n < 9 else str(n) for n in range(30)], True),
        (["999" if n < 9 else f"p{n // 4}" for n in range(30)], True),
        (["K7" if n < 16 else f"p{n}" for n in range(30)], True),
        (["K7" if n < 15 else f"p{n}" for n in range(30)], False),
        (["only"] * 12, False),
    ],
)
def test_a_number_or_a_name_that_too_many_have(
    tmp_path: Path, patients: list[str], refused: bool
) -> None:
    """An export that writes one name for all is seen by its count; patient 0 of many is one."""
    path = visits(tmp_path, patients)
    if refused:
        with pytest.raises(UserError, match="nearly everybody"):
            open_records(path=path, **TABLE)
    else:
        assert open_records(path=path, **TABLE).owners == patients


def test_apart_and_together(tmp_path: Path) -> None:
    """What a person decides holds for the split: many persons, or one who is on one side; sorted
    anew, everybody stays where they were.
    """
    patients = ["NA" if n % 3 == 0 else f"p{n}" for n in range(60)]
    path = visits(tmp_path, patients)
    apart = open_records(path=path, reading={"patient_unknown": "apart"}, **TABLE)
    assert apart.owners is not None
    assert len(set(apart.owners)) == 60
    together = open_records(path=path, reading={"patient_unknown": "together"}, **TABLE)
    assert together.owners is not None
    assert Counter(together.owners).most_common(1)[0][1] == 20
    sides = [{together.owners[row] for row in rows.tolist()} for rows in together.splits.values()]
    assert not sides[0] & sides[2]

    ages = apart.read(apart.splits["test"])[:, 0].tolist()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    again = open_records(path=path, reading={"patient_unknown": "apart"}, **TABLE)
    assert sorted(again.read(again.splits["test"])[:, 0].tolist()) == sorted(ages)


def test_an_empty_name_among_others_can_be_decided(tmp_path: Path) -> None:
    """One record without a patient stops a hospital for ever, if nobody can say what it is."""
    path = visits(tmp_path, [f"p{n}" if n % 5 else "" for n in range(30)])
    with pytest.raises(UserError, match="6 of 30 records without a patient") as told:
        open_records(path=path, **TABLE)
    assert "data.patient_unknown" in told.value.remedy
    records = open_records(path=path, reading={"patient_unknown": "apart"}, **TABLE)
    assert len(set(records.owners or ())) == 30


def test_a_dicom_file_of_nobody_has_nobodys_pseudonym(tmp_path: Path) -> None:
    """A hash of ANONYMOUS looks like a person's; and no PatientID may come out of the reader."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert examine(content(dicom(pixels, patient="ANONYMOUS"))).patient == PSEUDONYM_OF_NOBODY
    assert examine(content(dicom(pixels, patient="P-7"))).patient != PSEUDONYM_OF_NOBODY
    for number in range(20):
        file = tmp_path / XRAYS["classes"][number % 2] / f"IM{number:03}"
        file.parent.mkdir(exist_ok=True)
        patient = "Anonymized" if number % 4 == 0 else f"P{number}"
        file.write_bytes(content(dicom(pixels + number, patient=patient)))
    for cache in (tmp_path / "seen", tmp_path / "seen"):
        with pytest.raises(UserError, match=r"5 of 20 records.*ANONYMOUS or the like 5"):
            open_records(path=tmp_path, cache=cache, max_unreadable=0.1, **XRAYS)


# ── names of files ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("name", "refused"),
    [
        (lambda n: f"person{n // 5}_bacteria_{n % 5}.png", True),
        (lambda n: f"{n // 3:08}_{n % 3:03}.png", True),
        (lambda n: f"IM-{n // 4:04}-{n % 4:04}.png", True),
        (lambda n: f"patient{n // 2:03}_{'left' if n % 2 else 'right'}.png", True),
        (lambda n: f"{n:03}.png", False),
        (lambda n: f"benign ({n}).png", False),
        (lambda n: f"scan_2024_{n}.png", False),
        (lambda n: f"{n * 7919 % 104729:x}-{n:04x}e.png", False),
    ],
)
def test_names_of_files_that_seem_to_say_whose_they_are(
    tmp_path: Path, name: Any, refused: bool
) -> None:
    """Five images of a child, split by file, are in training and in the tests; numbers in a row and
    names by chance say nothing of people.
    """
    path = images(tmp_path, [name(n) for n in range(60)])
    if not refused:
        assert open_records(path=path, **XRAYS).owners is None
        return
    with pytest.raises(UserError, match="share the beginning of their file name") as told:
        open_records(path=path, **XRAYS)
    found = re.search(r"data\.patient_from: '([^']*)'", told.value.remedy)
    assert found is not None
    records = open_records(path=path, reading={"patient_from": found[1]}, **XRAYS)
    sides = [{(records.owners or [])[r] for r in rows} for rows in records.splits.values()]
    assert not sides[0] & sides[2]
    assert len(sides[0] | sides[2]) < 60
    alone = open_records(path=path, reading={"patient_from": "none"}, **XRAYS)
    assert alone.owners is None


def test_a_group_of_the_expression_is_the_person(tmp_path: Path) -> None:
    """Folders of patients below the class, with studies of their own."""
    path = images(tmp_path, [f"ward3/p{n // 4:02}/{n}.png" for n in range(40)])
    records = open_records(path=path, reading={"patient_from": "/(p[0-9]+)/"}, **XRAYS)
    assert set(records.owners or ()) == {f"p{n:02}" for n in range(10)}
    with pytest.raises(UserError, match="is in no path"):
        open_records(path=path, reading={"patient_from": "person[0-9]+"}, **XRAYS)

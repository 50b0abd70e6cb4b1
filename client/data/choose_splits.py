"""Which rows a node trains on, which it chooses by, and which it tests on.

In this order: the row numbers that node.yaml names, the file's own splits, a share chosen by
patient, or by content where the data does not say whose each record is. The share depends on the
records only, not on their order: sorting a table anew leaks no tests into training. No patient is
ever on two sides. Tests are taken first: they are the same with and without validation rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgraft.client.data.shared_images import keep_together
from fedgraft.client.readers.archive import load_archive
from fedgraft.client.readers.source import SPLITS
from fedgraft.common.errors import UserError
from fedgraft.common.plan.reading_section import to_write

Splits = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """The rows of a file, by what they are split.

    Attributes:
        where: the data, for messages.
        labels: class of each row `(n,)`, −1 for rows that are not part of the task.
        digests: SHA-256 of each row's content.
        own: splits that the file has itself.
        patients: whose each row is; None: not known.
        contents: equal for rows that are the same image; None: rows may be equal by chance.
    """

    where: str
    labels: np.ndarray
    digests: Sequence[bytes]
    own: Mapping[str, np.ndarray]
    patients: list[str] | None = None
    contents: Sequence[bytes] | None = None


@dataclass(frozen=True)
class SplitRule:
    """How rows are split.

    Attributes:
        rows_file: an .npz with arrays train, val, test of row numbers, or None.
        test_fraction: share of each class to test on where there is no test split.
        validation_fraction: share of each class of what is left for training to choose by, where
            there are no validation rows.
    """

    rows_file: Path | None
    test_fraction: float
    seed: int
    validation_fraction: float = 0.0


def choose_splits(rows: LabelledRows, rule: SplitRule) -> Splits:
    """Return train, val and test row numbers, int64, each in rising order; rows without a class are
    in none.

    Raises:
        UserError: the rows file is not what it should be; a record without a patient among others
            that have one; a patient in two splits.
    """
    count = len(rows.labels)
    given = dict(rows.own)
    if rule.rows_file is not None:
        given = _read_rows(rule.rows_file, count)
    if not given:
        given = {"train": np.arange(count)}

    splits = {}
    for name in SPLITS:
        split = np.sort(given.get(name, np.empty(0)).astype(np.int64))
        splits[name] = split[rows.labels[split] >= 0]
    if "test" not in given:
        splits |= _hold_out("test", rows, splits["train"], rule.test_fraction, rule.seed)
    if not len(splits["val"]):
        splits |= _hold_out("val", rows, splits["train"], rule.validation_fraction, rule.seed)
    if rows.patients is not None:
        _check_apart(splits, rows.patients, rows.where)
    return splits


def list_own_rows(rows_file: Path | None, count: int) -> np.ndarray:
    """Return the row numbers that a node's rows file names, rising; all of the file without one.

    Raises:
        UserError: the rows file is not what it should be.
    """
    if rows_file is None:
        return np.arange(count)
    splits = _read_rows(rows_file, count)
    return np.sort(np.concatenate(list(splits.values())).astype(np.int64))


def _hold_out(
    name: str, rows: LabelledRows, train: np.ndarray, fraction: float, seed: int
) -> Splits:
    """Return a split of this name that is taken out of training rows, and what is left of them."""
    if fraction <= 0:
        return {name: train[:0]}
    own = train.tolist()
    labels = rows.labels[train]
    patients = None
    if rows.patients is None:
        held = by_content(labels, [rows.digests[row] for row in own], fraction, seed)
    else:
        patients = [rows.patients[row] for row in own]
        held = by_patient(labels, patients, fraction, seed)
    if rows.contents is not None:
        # equal images, whatever their labels, on one side
        held = keep_together(held, [rows.contents[row] for row in own], patients)
    return {"train": train[~held], name: train[held]}


# ── a share that is held out ──────────────────────────────────────────────────────────────────────
def by_patient(
    labels: np.ndarray, patients: Sequence[str], fraction: float, seed: int
) -> np.ndarray:
    """Return which records to hold out, bool `(n,)`: of each class's patients those with the
    smallest seeded hashes.

    A patient counts to the rarest class among their records. Patients are taken while their records
    fit the share; a class of two or more patients gives at least one to each side.
    """
    held = np.zeros(len(labels), bool)
    if fraction <= 0:
        return held
    records = _group(patients)

    def smallest_hash(patient: str) -> bytes:
        return hashlib.sha256(f"patient/{seed}/{patient}".encode()).digest()

    for members in _strata(labels, records):
        members.sort(key=smallest_hash)
        counts = [len(records[patient]) for patient in members]
        share = max(1, round(fraction * sum(counts)))
        # the last stays for training, whatever the share
        free = members[:-1]
        taken = 0
        for patient in free:
            size = len(records[patient])
            if taken + size <= share:
                held[records[patient]] = True
                taken += size
        # each is larger than the share
        if free and not taken:
            fewest = min(free, key=lambda patient: len(records[patient]))
            held[records[fewest]] = True
    return held


def _group(patients: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of each patient's records."""
    records: dict[str, list[int]] = {}
    for position, patient in enumerate(patients):
        records.setdefault(patient, []).append(position)
    return records


def _strata(labels: np.ndarray, records: Mapping[str, list[int]]) -> list[list[str]]:
    """Return the patients of each class, one by the rarest class among their records."""
    sizes = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    strata: dict[int, list[str]] = {}
    for patient, positions in records.items():
        rarest = min(labels[positions], key=lambda label: (sizes[label], label))
        strata.setdefault(int(rarest), []).append(patient)
    return list(strata.values())


def by_content(
    labels: np.ndarray, digests: Sequence[bytes], fraction: float, seed: int
) -> np.ndarray:
    """Return which records to hold out, bool `(n,)`: of each class the share with the smallest
    seeded hashes.

    A class of two or more gives at least one record to each side. Equal records stay on one side.
    """
    held = np.zeros(len(labels), bool)
    if fraction <= 0:
        return held
    salt = f"test/{seed}/".encode()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        hashed: dict[bytes, list[int]] = {}
        for member in members.tolist():
            key = hashlib.sha256(salt + digests[member]).digest()
            hashed.setdefault(key, []).append(member)
        share = max(1, round(fraction * len(members)))
        share = min(share, len(members) - 1)
        taken = 0
        # the last stays for training, whatever the share
        for key in sorted(hashed)[:-1]:
            if taken >= share:
                break
            held[hashed[key]] = True
            taken += len(hashed[key])
    return held


# ── what is checked ───────────────────────────────────────────────────────────────────────────────
def _check_apart(splits: Splits, patients: Sequence[str], where: str) -> None:
    """Raise UserError unless every record says whose it is, and no patient is in two splits."""
    rows = np.concatenate(list(splits.values())).tolist()
    nobody = sum(not patients[row] for row in rows)
    if nobody:
        what = f"{nobody} of {len(rows)} records without a patient"
        remedy = (
            "say for every record whose it is, or the same patient may be in training and in the"
            f" tests; or decide it: {to_write('patient_unknown', 'apart')}, or together"
        )
        raise UserError(what, where=where, remedy=remedy)

    sides = {}
    for name, split in splits.items():
        sides[name] = {patients[row] for row in split.tolist()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        both = len(sides[one] & sides[other])
        if both:
            what = f"{both} patients are in {one} and in {other}"
            remedy = (
                "give all records of a patient to one split, or leave the splits out: then they are"
                " made so"
            )
            raise UserError(what, where=where, remedy=remedy)


def _read_rows(path: Path, length: int) -> Splits:
    """Return the row numbers in a node's rows file, checked."""
    splits, _ = load_archive(path)
    problem = ""
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        problem = f"unknown array {unknown[0]!r}"
    elif "train" not in splits:
        problem = "no array 'train'"
    for name, split in splits.items():
        problem = problem or _problem_of(name, split, length)
    if problem:
        remedy = "write numpy.savez(path, train=…, val=…, test=…) with whole row numbers from 0"
        raise UserError(problem, where=str(path), remedy=remedy)

    every = np.concatenate(list(splits.values()))
    if len(np.unique(every)) != len(every):
        remedy = "give each row to one split, once"
        raise UserError("a row is named twice", where=str(path), remedy=remedy)
    return splits


def _problem_of(name: str, split: np.ndarray, length: int) -> str:
    """Return what is wrong with one array of row numbers; "" if nothing."""
    if split.ndim != 1 or (split.size and split.dtype.kind not in "iu"):
        return f"{name} is {split.dtype}{split.shape}"
    if not split.size:
        return ""
    low = int(split.min())
    high = int(split.max())
    if low >= 0 and high < length:
        return ""
    wrong = low if low < 0 else high
    return f"{name} names row {wrong}; the data has {length}"

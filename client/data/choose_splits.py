"""Which rows a node trains on and which it tests on.

In this order: the row numbers that node.yaml names, the file's own splits, a share chosen by
patient, or by content where the data does not say whose each record is. The share depends on the
records only, not on their
order: sorting a table anew leaks no tests into training. No patient is ever on two sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedgraft.client.readers.arrays import load_archive
from fedgraft.client.readers.source import SPLITS
from fedgraft.common.errors import UserError

Splits = dict[str, np.ndarray]


def choose_splits(
    *,
    labels: np.ndarray,
    digests: Sequence[bytes],
    own: Mapping[str, np.ndarray],
    rows: Path | None,
    test_fraction: float,
    seed: int,
    patients: list[str] | None = None,
    where: str = "",
) -> Splits:
    """Train, val and test row numbers, int64, each in rising order; rows without a class are in
    none.

    Args:
        labels: class of each row `(n,)`, −1 for rows that are not part of the task.
        own: splits that the file has itself.
        rows: an .npz with arrays train, val, test of row numbers, or None.
        test_fraction: share of each class to test on where there is no test split.
        patients: whose each row is; None: not known.
        where: the data, for messages.

    Raises:
        UserError: the rows file is not what it should be; a record without a patient among others
            that have one; a patient in two splits.
    """
    given = _read_rows(rows, len(labels)) if rows is not None else dict(own)
    if not given:
        given = {"train": np.arange(len(labels))}
    splits = {name: np.sort(given.get(name, np.empty(0)).astype(np.int64)) for name in SPLITS}
    splits = {name: split[labels[split] >= 0] for name, split in splits.items()}
    if "test" not in given:
        train = splits["train"]
        if patients is None:
            tested = by_content(labels[train], [digests[row] for row in train], test_fraction, seed)
        else:
            tested = by_patient(
                labels[train], [patients[row] for row in train], test_fraction, seed
            )
        splits |= {"train": train[~tested], "test": train[tested]}
    if patients is not None:
        _keep_apart(splits, patients, where)
    return splits


def by_patient(
    labels: np.ndarray, patients: list[str], test_fraction: float, seed: int
) -> np.ndarray:
    """Which records to test on, bool `(n,)`: of each class's patients those with the smallest
    seeded hashes.

    A patient counts to the rarest class among their records. Patients are taken while their records
    fit the share; a class of two or more patients gives at least one to each side.
    """
    tested = np.zeros(len(labels), bool)
    if test_fraction <= 0:
        return tested
    sizes = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    records: dict[str, list[int]] = {}
    for at, patient in enumerate(patients):
        records.setdefault(patient, []).append(at)
    strata: dict[int, list[str]] = {}
    for patient, mine in records.items():
        strata.setdefault(
            int(min(labels[mine], key=lambda label: (sizes[label], label))), []
        ).append(patient)
    for members in strata.values():
        wanted = max(1, round(test_fraction * sum(len(records[patient]) for patient in members)))
        members.sort(
            key=lambda patient: hashlib.sha256(f"patient/{seed}/{patient}".encode()).digest()
        )
        free, taken = members[:-1], 0  # the last stays for training, whatever the share
        for patient in free:
            if taken + len(records[patient]) <= wanted:
                tested[records[patient]] = True
                taken += len(records[patient])
        if free and not taken:  # each is larger than the share
            tested[records[min(free, key=lambda patient: len(records[patient]))]] = True
    return tested


def by_content(
    labels: np.ndarray, digests: Sequence[bytes], test_fraction: float, seed: int
) -> np.ndarray:
    """Which records to test on, bool `(n,)`: of each class the share with the smallest seeded
    hashes.

    A class of two or more gives at least one record to each side. Equal records stay on one side.
    """
    tested = np.zeros(len(labels), bool)
    if test_fraction <= 0:
        return tested
    salt = f"test/{seed}/".encode()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        hashed: dict[bytes, list[int]] = {}
        for member in members.tolist():
            hashed.setdefault(hashlib.sha256(salt + digests[member]).digest(), []).append(member)
        wanted = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        taken = 0
        for key in sorted(hashed)[:-1]:  # the last stays for training, whatever the share
            if taken >= wanted:
                break
            tested[hashed[key]] = True
            taken += len(hashed[key])
    return tested


def _keep_apart(splits: Splits, patients: list[str], where: str) -> None:
    """Every record says whose it is, and no patient is in two splits; raises UserError
    otherwise.
    """
    every = np.concatenate(list(splits.values())).tolist()
    nobody = sum(not patients[row] for row in every)
    if nobody:
        remedy = (
            "say for every record whose it is, or the same patient may be in training and in the"
            " tests"
        )
        raise UserError(
            f"{nobody} of {len(every)} records without a patient", where=where, remedy=remedy
        )
    sides = {name: {patients[row] for row in rows.tolist()} for name, rows in splits.items()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if both := len(sides[one] & sides[other]):
            raise UserError(
                f"{both} patients are in {one} and in {other}",
                where=where,
                remedy=(
                    "give all records of a patient to one split, or leave the splits out: then they"
                    " are made so"
                ),
            )


def _read_rows(path: Path, length: int) -> Splits:
    """The row numbers in a node's rows file, checked."""
    remedy = "write numpy.savez(path, train=…, val=…, test=…) with whole row numbers from 0"
    splits, _ = load_archive(path)
    if unknown := set(splits) - set(SPLITS):
        raise UserError(f"unknown array {sorted(unknown)[0]!r}", where=str(path), remedy=remedy)
    if "train" not in splits:
        raise UserError("no array 'train'", where=str(path), remedy=remedy)
    for name, split in splits.items():
        if split.ndim != 1 or (split.size and split.dtype.kind not in "iu"):
            raise UserError(f"{name} is {split.dtype}{split.shape}", where=str(path), remedy=remedy)
        if split.size and (split.min() < 0 or split.max() >= length):
            wrong = int(split.min()) if split.min() < 0 else int(split.max())
            raise UserError(
                f"{name} names row {wrong}; the data has {length}", where=str(path), remedy=remedy
            )
    every = np.concatenate(list(splits.values()))
    if len(np.unique(every)) != len(every):
        raise UserError(
            "a row is named twice", where=str(path), remedy="give each row to one split, once"
        )
    return splits

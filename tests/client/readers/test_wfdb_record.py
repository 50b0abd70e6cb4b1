"""WFDB records: channels by name, and headers that ask for what is not theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.readers.reader import ReadRequest
from fedgraft.client.readers.reader_table import READERS
from fedgraft.client.readers.signal_file import read_signals
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.series import Signal

wfdb: Any = pytest.importorskip("wfdb")
VALUES = np.random.default_rng(0).normal(size=(120, 3)).round(3)
NAMES = ["I", "II", "V1"]


def write(folder: Path, name: str = "r1", kind: str = "16") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=250,
        units=["mV"] * 3,
        sig_name=NAMES,
        p_signal=VALUES,
        fmt=[kind] * 3,
        write_dir=str(folder),
    )
    return folder / f"{name}.hea"


def one(path: Path, *channels: str) -> Signal:
    signals = read_signals(channels or ("II",), [path])
    assert isinstance(signals, list)
    return signals[0]


@pytest.mark.parametrize("kind", ["16", "24", "32", "212", "80"])
def test_channels_are_found_by_name_in_any_order(kind: str, tmp_path: Path) -> None:
    """Lead I in the place of V1 wherever a hospital's recorder has another order."""
    signal = one(write(tmp_path, kind=kind), "V1", "I")
    assert signal.rate == 250.0
    tolerance = 0.03 if kind == "80" else 2e-3
    np.testing.assert_allclose(signal.values.numpy(), VALUES[:, [2, 0]].T, atol=tolerance)


def test_a_channel_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """MLII where a plan says II, and nobody sees why no record can be used."""
    with pytest.raises(UserError, match="no channel 'MLII'; there are I, II, V1"):
        one(write(tmp_path), "MLII")


ELSEWHERE = [
    "../../etc/passwd",
    "/etc/passwd",
    "../r1.dat",
    "/tmp/r1.dat",
    "https://example.org/r1.dat",
    "s3://bucket/r1.dat",
    "sub/r1.dat",
    "..\\r1.dat",
    "~",
    "-",
    "..dat",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_header_that_names_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """A file of the node's that becomes a record, or a call to somebody's server."""
    path = write(tmp_path)
    path.write_text(path.read_text().replace("r1.dat", name))
    with pytest.raises(UserError, match=r"elsewhere than beside it|cut off or corrupt"):
        one(path)


HEADERS = {
    "1e12 samples": (("250 120", "250 1000000000000"), "more than"),
    "more samples": (("250 120", "250 121"), "cut off"),
    "no samples": (("250 120", "250 0"), "how many samples"),
    "1e9 channels": (("r1 3 ", "r1 1000000000 "), "cut off|without channels"),
    "fewer lines": (("r1 3 ", "r1 9 "), "cut off|without channels"),
    "segments": (("r1 3 ", "r1/2 3 "), "several segments|cut off"),
    "rate of 0": (("250 120", "0 120"), "no number of samples a second|cut off"),
    "compressed": (("r1.dat 16", "r1.dat 516"), "format that is not read"),
    "frames": (("r1.dat 16", "r1.dat 16x4"), "several rates"),
    "no format": (("r1.dat 16", "r1.dat 17"), "format that is not read"),
    "no file": (("r1.dat", "r2.dat"), "dat file is missing"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    """A traceback at a hospital, or all of its memory asked for by one file."""
    (old, new), words = HEADERS[name]
    path = write(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=words):
        one(path)


def test_any_cut_of_either_file_is_refused(tmp_path: Path) -> None:
    """A traceback for one of the places where a copy may have stopped."""
    path = write(tmp_path)
    header = path.read_bytes()
    for end in range(0, header.index(b"\n", 20), 3):
        path.write_bytes(header[:end])
        with pytest.raises(UserError, match="cannot be used"):
            one(path)
    path.write_bytes(header)
    data = path.with_suffix(".dat")
    samples = data.read_bytes()
    for end in (0, 1, 100, len(samples) - 1):
        data.write_bytes(samples[:end])
        with pytest.raises(UserError, match="cut off or corrupt"):
            one(path)
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match="cannot be used"):
        one(path)


def test_class_folders_hold_records(tmp_path: Path) -> None:
    """A .dat file counted as one that is no signal; a record taken twice."""
    for number, kind in enumerate(["calm", "calm", "ill"]):
        write(tmp_path / "data" / kind, f"r{number}")
    source = READERS["signal-folder"].read(
        ReadRequest(str(tmp_path / "data"), channels=("II", "I"))
    )
    assert sorted(source.labels) == ["calm", "calm", "ill"]
    assert source.beside == {}
    assert source.read(np.arange(1), None)[0].values.shape == (2, 120)

"""DICOM files, written here by pydicom: every step from stored values to brightness, and what is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels.processing import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from fedgraft.client.readers.dicom import decode, examine, is_dicom, window
from fedgraft.common.errors import UserError
from tests.formats import content, dicom
from tests.records import open_records

XRAYS = {"kind": "image-classification", "classes": ("normal", "pneumonia")}


def lut(values: list[int], first: int, bits: int = 16) -> Sequence:
    table = Dataset()
    table.LUTDescriptor = [len(values), first, bits]
    table.LUTData = np.array(values, np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    return Sequence([table])


def grey(low: int, high: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (6, 7)).astype(dtype)


def as_16_bits(part: np.ndarray) -> np.ndarray:
    return np.rint(part * 65535).astype(np.uint16)


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 256), (np.uint16, 65536)])
def test_plain_pixels_are_the_stored_ones(dtype: Any, high: int) -> None:
    """An 8-bit export that is not its pixels, bit for bit, is not the image that the PNG of it
    is.
    """
    pixels = grey(0, high, dtype)
    assert np.array_equal(decode(content(dicom(pixels))), pixels)
    same = dicom(pixels, RescaleSlope="1", RescaleIntercept="0")
    assert np.array_equal(decode(content(same)), pixels)
    inverted = decode(content(dicom(pixels, PhotometricInterpretation="MONOCHROME1")))
    assert inverted.dtype == dtype
    assert np.array_equal(inverted, high - 1 - pixels.astype(np.int64))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_fill_the_whole_range(bits: int) -> None:
    """12 bits taken for 16 make an almost black image: 4095 / 65535 = 6 % of white."""
    pixels = grey(0, 2**bits, np.uint16)
    pixels[0, :2] = 0, 2**bits - 1
    found = decode(content(dicom(pixels, bits=bits)))
    assert np.array_equal(found, as_16_bits(pixels / (2**bits - 1)))
    assert found[0, :2].tolist() == [0, 65535]


def test_hounsfield_units_in_a_window() -> None:
    """CT: signed values, rescaled, windowed. The lung window −600 ± 750: −1350 is black and 150 is
    white.
    """
    stored = np.array([[-2000, 24, 425, 1524, 3000]], np.int16)  # − 1024 → HU
    data = dicom(
        stored,
        bits=16,
        RescaleSlope="1",
        RescaleIntercept="-1024",
        WindowCenter="-600",
        WindowWidth="1500",
    )
    found = decode(content(data))[0] / 65535
    # PS3.3 C.11.2.1.2.1 by hand: (x − (−600 − ½)) / 1499 + ½
    wanted = [min(max((x - 1024 + 600.5) / 1499 + 0.5, 0), 1) for x in stored[0].tolist()]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found[[0, 3]].tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    centre=st.integers(-500, 3000),
    width=st.integers(2, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_windows_are_pydicoms(centre: int, width: int, function: str) -> None:
    """Another reading of the standard: pydicom's own window, put on 0–1."""
    values = np.arange(0, 4096, 13, dtype=np.uint16)[None]
    data = dicom(values, bits=12, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    with np.errstate(over="ignore"):
        theirs = np.asarray(apply_voi_lut(values, data), float) / 4095
    np.testing.assert_allclose(window(values, centre, width, function), theirs, atol=1e-9)


def test_the_first_of_several_windows() -> None:
    """Scanners offer soft tissue, lung and bone; the first one is the default view."""
    pixels = grey(0, 4096, np.uint16)
    one = dicom(pixels, bits=12, WindowCenter="2000", WindowWidth="1000")
    many = dicom(pixels, bits=12, WindowCenter=["2000", "700"], WindowWidth=["1000", "90"])
    assert np.array_equal(decode(content(one)), decode(content(many)))


def test_look_up_tables_one_pixel_at_a_time() -> None:
    """A modality LUT and then a VOI LUT, against a slow loop: first entry, last entry, and beyond
    both ends.
    """
    pixels = grey(0, 16, np.uint8)
    modality = [(i * 37) % 101 for i in range(12)]  # for stored values from 2
    voi = [(i * 577) % 4096 for i in range(60)]  # for values from 20
    data = dicom(
        pixels, bits=8, ModalityLUTSequence=lut(modality, 2, 8), VOILUTSequence=lut(voi, 20, 12)
    )

    def at(table: list[int], first: int, value: int) -> int:
        return table[min(max(value - first, 0), len(table) - 1)]

    wanted = [[at(voi, 20, at(modality, 2, int(x))) / 4095 for x in row] for row in pixels]
    assert np.array_equal(decode(content(data)), as_16_bits(np.array(wanted)))
    only = dicom(pixels, bits=8, ModalityLUTSequence=lut(modality, 2, 8))
    wanted = [[at(modality, 2, int(x)) / 255 for x in row] for row in pixels]
    assert np.array_equal(decode(content(only)), as_16_bits(np.array(wanted)))


def test_monochrome1_is_turned_after_the_window() -> None:
    """An X-ray shown as a negative is another image to the backbone."""
    pixels = grey(0, 4096, np.uint16)
    tags = {"bits": 12, "WindowCenter": "2000", "WindowWidth": "1000"}
    one = decode(content(dicom(pixels, **tags)))
    other = decode(content(dicom(pixels, **tags, PhotometricInterpretation="MONOCHROME1")))
    assert np.abs(65535 - other.astype(int) - one).max() <= 1


def test_padding_is_black() -> None:
    """The corners of a round detector: stored as −2000, or brightest of all in a MONOCHROME1
    image.
    """
    pixels = np.array([[63536, 63537, 100, 4000]], np.uint16)
    data = dicom(
        pixels,
        bits=16,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter="2000",
        WindowWidth="4000",
        PixelPaddingValue=63536,
        PixelPaddingRangeLimit=63540,
    )
    found = decode(content(data))[0]
    assert found[:2].tolist() == [0, 0]
    assert found[2] > found[3]


def test_colour_and_compression() -> None:
    """Dermoscopy is RGB; RLE is the compression that every reader has."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    assert np.array_equal(decode(content(dicom(pixels))), pixels)
    stored = grey(0, 4096, np.uint16)
    packed = dicom(stored, bits=12)
    packed.compress(RLELossless)
    assert np.array_equal(decode(content(packed)), as_16_bits(stored / 4095))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def many_frames() -> Dataset:
    data = dicom(np.zeros((4, 4), np.uint8), NumberOfFrames="3")
    data.PixelData = bytes(48)
    return data


def without(*names: str) -> Dataset:
    data = dicom(grey(0, 255, np.uint8))
    for name in names:
        delattr(data, name)
    return data


def lossless_jpeg() -> Dataset:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLosslessSV1

    data = dicom(grey(0, 255, np.uint8))
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.PixelData = encapsulate([b"\xff\xd8" + bytes(20)])
    return data


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (many_frames, "multi-frame"),
        (lambda: without("PixelData"), "without pixels"),
        (lambda: without("Rows"), "corrupt"),
        (
            lambda: dicom(grey(0, 255, np.uint8), PhotometricInterpretation="CMYK"),
            "colours as CMYK",
        ),
        (lossless_jpeg, "no decoder"),
    ],
)
def test_what_is_no_single_image_is_refused_in_words(
    make: Callable[[], Dataset], words: str
) -> None:
    """The first frame of a film taken for the image would be trained on without a word."""
    problem = examine(content(make())).problem
    assert words in problem
    with pytest.raises(ValueError, match=words if words != "corrupt" else None):
        decode(content(make()))


@pytest.mark.parametrize("kept", [10, 200, 400, -5])
def test_a_file_that_was_cut_off_is_found_before_training(kept: int) -> None:
    """A copy that broke off, at any place: in the preamble, the header, the pixels."""
    whole = content(dicom(np.arange(1600, dtype=np.uint16).reshape(40, 40).astype(np.uint8)))
    if is_dicom(whole[:kept]):
        assert "cut off" in examine(whole[:kept]).problem
    assert examine(whole).problem == ""


def test_a_damaged_window_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    """Found when the image is asked for: one message, no traceback."""
    path = folder(
        tmp_path,
        [dicom(grey(0, 255, np.uint8), WindowCenter="5", WindowWidth="0") for _ in range(4)],
    )
    records = open_records(path=path, **XRAYS)
    with pytest.raises(UserError, match="window width 0") as caught:
        records.read(np.arange(1))
    assert "IM0000" in caught.value.where


# ── folders of them ───────────────────────────────────────────────────────────────────────────────


def folder(path: Path, files: list[Dataset]) -> Path:
    """Files without a suffix, one study a folder, classes in turn; with the index of a CD and a
    text beside them.
    """
    for number, data in enumerate(files):
        place = path / ("normal", "pneumonia")[number % 2] / f"study{number // 4}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"IM{number:04}").write_bytes(content(data))
    (path / "normal" / "DICOMDIR").write_bytes(content(dicom(np.zeros((2, 2), np.uint8))))
    (path / "normal" / "README.txt").write_text("exported on Monday")
    return path


def test_a_folder_of_dicom_files(tmp_path: Path) -> None:
    """Labels from the folders, whose each image is from the files, and all images of a patient on
    one side.
    """
    images = [grey(0, 4096, np.uint16) + number for number in range(40)]
    path = folder(
        tmp_path, [dicom(x, bits=12, patient=f"MRN{n // 4}") for n, x in enumerate(images)]
    )
    records = open_records(path=path, test_fraction=0.3, **XRAYS)
    assert (len(records.labels), records.skipped) == (40, 0)
    assert records.owners is not None
    assert len(set(records.owners)) == 10
    assert "MRN" not in "".join(records.owners)
    train, test = (
        {records.owners[row] for row in records.splits[split]} for split in ("train", "test")
    )
    assert not train & test
    assert len(records.splits["test"]) == 12
    assert records.read(records.splits["test"]).shape == (12, 1, 6, 7)


def test_files_that_cannot_be_used_are_counted_and_then_an_error(tmp_path: Path) -> None:
    """One film among a hundred images is left out; ten are a mistake in the export. No name of a
    file is told.
    """
    good = [dicom(grey(0, 255, np.uint8) // 2 + n % 100, patient=f"P{n}") for n in range(99)]
    records = open_records(
        path=folder(tmp_path / "a", [*good, many_frames()]), patient="patient", **XRAYS
    )
    assert (records.skipped, len(records.labels)) == (1, 99)
    assert next(iter(records.source.problems)).startswith("multi-frame")
    broken = folder(tmp_path / "b", [*good[:90], *(many_frames() for _ in range(10))])
    with pytest.raises(UserError, match="10 of 100 files cannot be used") as caught:
        open_records(path=broken, **XRAYS)
    assert "multi-frame" in str(caught.value)
    assert "IM0" not in str(caught.value)
    assert open_records(path=broken, max_unreadable=0.1, **XRAYS).skipped == 10

"""Images of 16 bits that use fewer: spread where the file says so, refused where nobody does."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedgraft.client.readers import stored
from fedgraft.client.readers.bit_depth import spread
from fedgraft.common.errors import UserError
from tests.formats import content, dicom
from tests.records import open_records

CLASSES = ("normal", "pneumonia")
XRAYS: dict[str, Any] = {"kind": "image-classification", "classes": CLASSES}
TWELVE: dict[str, Any] = {"reading": {"bits": 12}}


def detector(count: int = 10) -> np.ndarray:
    """Images of 12 bits, each with some white: `(count, 8, 8)` uint16."""
    pixels = np.random.default_rng(0).integers(0, 4096, (count, 8, 8)).astype(np.uint16)
    pixels[:, 0, 0] = 4095
    return pixels


def on_all_bits(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels / 4095 * 65535).astype(np.uint16)


def as_files(folder: Path, contents: list[bytes], suffix: str) -> Path:
    for number, each in enumerate(contents):
        file = folder / CLASSES[number % 2] / f"{number}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(each)
    return folder


def png(pixels: np.ndarray, significant: int | None = None) -> bytes:
    """A grey PNG of 16 bits, with an sBIT chunk if it is to say how many are used."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    said = b"" if significant is None else chunk(b"sBIT", bytes([significant]))
    whole = chunk(b"IHDR", header) + said + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + whole + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, highest: int) -> bytes:
    """An uncompressed TIFF of 16 bits with MaxSampleValue."""
    data = pixels.astype("<u2").tobytes()
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (281, highest)]
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:
        directory += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    return b"II" + struct.pack("<HI", 42, 8 + len(data)) + data + directory + bytes(4)


def test_a_file_that_says_it_is_spread_over_all_bits(tmp_path: Path) -> None:
    """A detector's 12 bits in a file of 16 are 6 % of white: dark beside all other hospitals."""
    pixels = detector()
    stated = {
        "png": as_files(tmp_path / "png", [png(image, 12) for image in pixels], ".png"),
        "tiff": as_files(tmp_path / "tiff", [tiff(image, 4095) for image in pixels], ".tif"),
        "dicom": as_files(
            tmp_path / "dicom",
            [content(dicom(image, bits=12, patient=f"P{n}")) for n, image in enumerate(pixels)],
            "",
        ),
    }
    # the order of class folders
    order = [*range(0, 10, 2), *range(1, 10, 2)]
    for name, path in stated.items():
        found = open_records(path=path, **XRAYS).read(np.arange(10))[:, 0].numpy()
        assert np.array_equal(found, on_all_bits(pixels)[order]), name


def test_a_highest_value_that_is_only_this_images_is_no_depth(tmp_path: Path) -> None:
    """MaxSampleValue 3000 is that of the brightest pixel; images would be stretched each by its
    own.
    """
    path = as_files(tmp_path, [tiff(image, 3000) for image in detector() // 2], ".tif")
    with pytest.raises(UserError, match="16 bits are dark"):
        open_records(path=path, **XRAYS)


def test_a_file_that_says_more_than_is_true_cannot_be_used(tmp_path: Path) -> None:
    """10 bits are stated, 12 are there: wrapped around or cut, it is another image."""
    pictures = [png(image, 10 if n == 3 else 12) for n, image in enumerate(detector())]
    path = as_files(tmp_path, pictures, ".png")
    records = open_records(path=path, max_unreadable=0.2, **XRAYS)
    assert records.source.problems == {"values of more than the 10 bits that the file states": 1}


@pytest.mark.parametrize("kind", ["png", "dicom", "archive", "large archive", "int32"])
def test_dark_images_are_refused_until_a_person_says_how_many_bits(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says 16, the values are of 12; and in every format the decision gives the same."""
    pixels = detector()
    order = list(range(10))
    if kind in ("png", "dicom"):
        order = [*range(0, 10, 2), *range(1, 10, 2)]
        pictures = [png(image) for image in pixels]
        if kind == "dicom":
            pictures = [content(dicom(image, patient=f"P{n}")) for n, image in enumerate(pixels)]
        path = as_files(tmp_path / "data", pictures, ".png" if kind == "png" else "")
    else:
        path = tmp_path / "x.npz"
        typed = pixels.astype(np.int32) if kind == "int32" else pixels
        np.savez(path, images=typed, labels=np.arange(10) % 2)
        if kind == "large archive":
            monkeypatch.setattr(stored, "LARGE", 100)
    with pytest.raises(UserError, match="none has a value above 4,095 of 65,535") as told:
        open_records(path=path, **XRAYS)
    assert "data.bits: 12" in told.value.remedy

    said = open_records(path=path, **TWELVE, **XRAYS)
    assert np.array_equal(said.read(np.arange(10))[:, 0].numpy(), on_all_bits(pixels)[order])
    as_it_is = open_records(path=path, reading={"bits": 16}, **XRAYS)
    assert np.array_equal(as_it_is.read(np.arange(10))[:, 0].numpy(), pixels[order])
    # what is computed of one is not taken for the other, and to the ledger they are the same people
    assert said.source.fingerprint() != as_it_is.source.fingerprint()
    assert said.source.identities == as_it_is.source.identities
    with pytest.raises(UserError, match="10 of 10 images have values above those of 10 bits"):
        open_records(path=path, reading={"bits": 10}, **XRAYS)


def test_a_single_bright_image_shows_that_all_bits_are_used(tmp_path: Path) -> None:
    """A dark X-ray among bright ones is a dark X-ray."""
    pixels = detector()
    pixels[7, 3, 3] = 65535
    path = as_files(tmp_path, [png(image) for image in pixels], ".png")
    assert len(open_records(path=path, **XRAYS).labels) == 10


@given(bits=st.integers(8, 16), data=st.data())
def test_black_stays_black_and_white_white(bits: int, data: st.DataObject) -> None:
    """Scaled by one too many, white would wrap around to black."""
    white = (1 << bits) - 1
    values = data.draw(st.lists(st.integers(0, white), min_size=1, max_size=20))
    found = spread(np.array([0, *values, white], np.uint16), bits)
    assert (int(found[0]), int(found[-1])) == (0, 65535)
    assert (np.diff(found[np.argsort([0, *values, white], kind="stable")].astype(int)) >= 0).all()
    if bits < 16:
        with pytest.raises(ValueError, match="more than"):
            spread(np.array([white + 1], np.uint16), bits)


def test_blank_images_are_counted_as_unusable(tmp_path: Path) -> None:
    """58 of 400 images were black, and were trained on as healthy and as sick."""
    for number in range(40):
        file = tmp_path / CLASSES[number % 2] / f"{number}.{('png', 'jpg', 'tif')[number % 3]}"
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
        if number in (6, 7, 8):
            pixels[:] = 0
        Image.fromarray(pixels).save(file)
    with pytest.raises(UserError, match=r"3 of 40 files cannot be used \(3: blank"):
        open_records(path=tmp_path, **XRAYS)
    records = open_records(path=tmp_path, max_unreadable=0.1, **XRAYS)
    assert (len(records.labels), records.skipped) == (37, 3)


def test_a_blank_dicom_image_is_found(tmp_path: Path) -> None:
    """An X-ray whose exposure failed, or whose pixels were wiped."""
    path = as_files(tmp_path, [content(dicom(np.full((8, 8), 7, np.uint8)))] * 4, "")
    with pytest.raises(UserError, match="blank"):
        open_records(path=path, **XRAYS)

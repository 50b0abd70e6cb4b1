"""Images of other channels than colour has, and grey ones through windows: every kind of file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedgraft.client.data.data_set import Records
from fedgraft.client.privacy.ledger_records import DataSet
from fedgraft.client.readers.dicom import decode_values
from fedgraft.client.readers.image_file import examine, read_images
from fedgraft.client.readers.pixel_form import AS_USUAL, PixelForm
from fedgraft.common.errors import UserError
from fedgraft.common.plan.backbone_section import BackboneSection
from tests.formats import content, dicom
from tests.records import open_records

KIND = {"kind": "image-classification", "classes": ("ill", "well"), "test_fraction": 0.5}
FOUR = PixelForm(channels=4)
# brain, subdural, bone
WINDOWS = ((0.0, 80.0), (-20.0, 180.0), (-800.0, 2000.0))


def sequences(seed: int, channels: int = 4) -> np.ndarray:
    """One image (channels, H, W) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (channels, 9, 11), np.uint8)


def write_folder(folder: Path, images: list[np.ndarray]) -> None:
    for number, image in enumerate(images):
        place = folder / ("ill", "well")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number:02}.npy", image)


def opened(path: Path, **more: Any) -> Records:
    return open_records(path, **KIND, **more)


def packed(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()


# ── any number of channels ────────────────────────────────────────────────────────────────────────
def test_a_folder_of_arrays_of_either_order(tmp_path: Path) -> None:
    """Rows taken for channels."""
    images = [sequences(seed) for seed in range(8)]
    written = [image if seed < 4 else image.transpose(1, 2, 0) for seed, image in enumerate(images)]
    write_folder(tmp_path / "scans", written)
    records = opened(tmp_path / "scans", form=FOUR)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_array_equal(
        records.read(np.arange(8)).numpy(), np.stack([images[at] for at in order])
    )


def test_a_list_and_an_archive_of_four_channels(tmp_path: Path) -> None:
    """A way to give images by which the plan's channels are forgotten."""
    images = np.stack([sequences(seed) for seed in range(8)])
    write_folder(tmp_path / "scans", list(images))
    rows = [f"scans/{('ill', 'well')[n % 2]}/{n:02}.npy,{('ill', 'well')[n % 2]}" for n in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    listed = opened(tmp_path / "list.csv", form=FOUR)
    np.testing.assert_array_equal(listed.read(np.arange(8)).numpy(), images)

    labels = np.array(["ill", "well"] * 4)
    for name, stored in (("first", images), ("last", images.transpose(0, 2, 3, 1))):
        np.savez(tmp_path / f"{name}.npz", images=stored, labels=labels)
        archive = opened(tmp_path / f"{name}.npz", form=FOUR)
        np.testing.assert_array_equal(archive.read(np.arange(8)).numpy(), images)
    with pytest.raises(UserError, match="1 or 3 channels C"):
        opened(tmp_path / "first.npz")


def test_one_array_is_not_read_in_two_ways(tmp_path: Path) -> None:
    """A plan that takes rows for channels, for whom the ledger begins anew."""
    rng = np.random.default_rng(0)
    labels = np.array(["ill", "well"] * 4)
    colour = rng.integers(0, 256, (8, 28, 28, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", images=colour, labels=labels)
    with pytest.raises(UserError, match="an array of shape"):
        opened(tmp_path / "colour.npz", form=PixelForm(channels=28))
    np.savez(tmp_path / "four.npz", images=rng.integers(0, 256, (8, 28, 28, 4)), labels=labels)
    known = [
        DataSet.of(opened(tmp_path / "four.npz", form=PixelForm(channels=channels))).records
        for channels in (4, 28)
    ]
    assert known[0] == known[1]


def test_a_page_is_a_channel(tmp_path: Path) -> None:
    """The first of four sequences that is taken for the whole image."""
    image = sequences(3)
    pages = [Image.fromarray(page) for page in image]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    read: Any = read_images([tmp_path / "a.tiff"], form=FOUR)
    np.testing.assert_array_equal(read[0].numpy(), image)
    first: Any = read_images([tmp_path / "a.tiff"])
    np.testing.assert_array_equal(first[0].numpy(), image[:1])


def test_colour_where_the_plan_has_four_channels_is_refused(tmp_path: Path) -> None:
    """Photographs in the place of scans, found in the middle of the training."""
    for number in range(6):
        place = tmp_path / "photographs" / ("ill", "well")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sequences(number, 3).transpose(1, 2, 0)).save(place / f"{number}.png")
    with pytest.raises(UserError, match="images of other than 4 channels, which"):
        opened(tmp_path / "photographs", form=FOUR)
    assert len(opened(tmp_path / "photographs", form=PixelForm(channels=1)).labels) == 6


def test_arrays_beside_images_are_no_records(tmp_path: Path) -> None:
    """Features or masks that count as images since a release knows their format."""
    write_folder(tmp_path / "scans", [sequences(seed, 3) for seed in range(4)])
    for name in ("ill", "well"):
        for number in range(3):
            pixels = sequences(10 + number, 1)[0]
            Image.fromarray(pixels).save(tmp_path / "scans" / name / f"{number}.png")
    records = opened(tmp_path / "scans")
    assert len(records.labels) == 6
    assert records.source.beside == {"of other kinds (.npy 4)": 4}


@pytest.mark.parametrize(
    ("array", "form", "words"),
    [
        (sequences(0), AS_USUAL, "other than 1 or 3 channels"),
        (sequences(0).astype(np.int16) * 9, FOUR, "neither uint8, nor uint16, nor fractions"),
        (sequences(0) / 255 * np.nan, FOUR, "not finite"),
        (sequences(0) / 100, FOUR, "neither uint8, nor uint16, nor fractions"),
        (sequences(0) * 0, FOUR, "blank"),
        (sequences(0)[None], FOUR, "no image"),
        (sequences(0), PixelForm(windows=((0, 80),)), "windows are for grey"),
        (np.array(["a", "b"]), FOUR, "something else than numbers"),
    ],
)
def test_an_array_that_is_no_image_is_left_out(
    array: np.ndarray, form: PixelForm, words: str
) -> None:
    """A run that ends at the seventh batch, since one file is broken."""
    assert words in examine(packed(array), form).problem


def test_a_damaged_array_is_left_out() -> None:
    """A traceback of NumPy, or memory for what a header claims."""
    whole = packed(sequences(0))
    assert examine(whole, FOUR).problem == ""
    for kept in (7, 60, 130, len(whole) - 1):
        assert "cut off" in examine(whole[:kept], FOUR).problem
    claims = whole.replace(b"(4, 9, 11)", b"(4,9,9999)")
    assert "cut off" in examine(claims, FOUR).problem
    claims = whole.replace(b"(4, 9, 11)", b"(4,99999,)") + b"9"
    assert examine(claims, FOUR).problem
    fortran = packed(np.asfortranarray(sequences(0)))
    assert examine(fortran, FOUR) == examine(whole, FOUR)


def test_arrays_of_either_order_in_memory(tmp_path: Path) -> None:
    """Rows and columns exchanged, since an array was saved as it lay."""
    image = sequences(5).astype(">u2") * 257
    np.save(tmp_path / "a.npy", np.asfortranarray(image))
    read: Any = read_images([tmp_path / "a.npy"], form=FOUR)
    np.testing.assert_array_equal(read[0].numpy(), image.astype(np.uint16))


# ── windows ───────────────────────────────────────────────────────────────────────────────────────
def expected(values: np.ndarray) -> np.ndarray:
    """What the three windows show, on 0–1."""
    shown = [np.clip((values - low) / (high - low), 0, 1) for low, high in WINDOWS]
    return np.stack(shown)


def test_windows_of_a_ct_slice_are_in_hounsfield_units(tmp_path: Path) -> None:
    """The window that a technician happened to set, in the place of the plan's."""
    stored = np.random.default_rng(0).integers(0, 4096, (9, 11)).astype(np.uint16)
    tags = {"RescaleSlope": "0.5", "RescaleIntercept": "-1024", "WindowCenter": "9"}
    slice_ = content(dicom(stored, bits=12, WindowWidth="3", PatientID="17", **tags))
    (tmp_path / "a.dcm").write_bytes(slice_)
    values = stored * 0.5 - 1024
    np.testing.assert_array_equal(decode_values(slice_), values)
    read: Any = read_images([tmp_path / "a.dcm"], form=PixelForm(windows=WINDOWS))
    np.testing.assert_allclose(read[0].numpy() / 65535, expected(values), atol=1e-5)
    assert examine(slice_, PixelForm(windows=WINDOWS)).patient
    inverted = content(dicom(stored, bits=12, PhotometricInterpretation="MONOCHROME1"))
    assert examine(inverted, PixelForm(windows=WINDOWS)).problem


def test_windows_of_arrays_and_of_sixteen_bits(tmp_path: Path) -> None:
    """Hounsfield units that were saved with NumPy, refused as no pixels."""
    values = np.random.default_rng(0).integers(-1000, 1500, (9, 11)).astype(np.int16)
    np.save(tmp_path / "a.npy", values)
    read: Any = read_images([tmp_path / "a.npy"], form=PixelForm(windows=WINDOWS))
    np.testing.assert_allclose(read[0].numpy() / 65535, expected(values), atol=1e-5)
    stored = (values + 1024).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    seen: Any = read_images([tmp_path / "a.png"], form=PixelForm(windows=((1024, 1104),)))
    np.testing.assert_allclose(seen[0, 0].numpy() / 65535, expected(values)[0], atol=1e-5)


def test_other_windows_are_other_records(tmp_path: Path) -> None:
    """Activations of one window that are kept, and taken for those of another."""
    write_folder(tmp_path / "ct", [sequences(seed, 1)[0] for seed in range(8)])
    prints: set[str] = set()
    for windows in ((), ((0.0, 80.0),), ((0.0, 90.0),)):
        for _ in range(2):
            records = opened(tmp_path / "ct", form=PixelForm(windows=windows), cache=tmp_path / "c")
            prints.add(records.fingerprint)
    assert len(prints) == 3


def test_an_archive_has_no_windows(tmp_path: Path) -> None:
    images = np.stack([sequences(seed, 1) for seed in range(4)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["ill", "well"] * 2))
    with pytest.raises(UserError, match=r"the plan has backbone\.windows"):
        opened(tmp_path / "a.npz", form=PixelForm(windows=((0, 80),)))


@pytest.mark.parametrize(
    "keys",
    [
        {"windows": [[80, 0]]},
        {"windows": [[0, 80], [0, 90]], "channels": 3},
        {"windows": [[0, 80]], "channels": 4},
        {"channels": 33},
    ],
)
def test_windows_and_channels_that_contradict(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BackboneSection.model_validate({"name": "resnet18", **keys})

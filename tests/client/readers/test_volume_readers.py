"""Volumes on a disc: turned to the patient's axes, and what is broken said in a sentence."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from fedgraft.client.readers.nifti import read_nifti
from fedgraft.client.readers.orientation import BrokenVolume, orient
from fedgraft.client.readers.reader import ReadRequest
from fedgraft.client.readers.reader_table import READERS
from fedgraft.client.readers.volume_file import read_volumes
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.volume import Volume, VolumePreparation
from fedgraft.common.plan.volume_section import VolumeSection

nibabel: Any = pytest.importorskip("nibabel")
from tests.volumes import body, write_nifti, write_series  # noqa: E402

SPACING = (1.0, 2.0, 3.0)
VOXELS = body((12, 10, 8), SPACING, 9.0)
# head, front, right: as networks see it
SEEN = VOXELS.transpose(2, 1, 0)
AXES = [
    "".join(axes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for axes in itertools.product(*order)
]


def one(path: Path) -> Volume:
    volumes = read_volumes([path])
    assert isinstance(volumes, list)
    return volumes[0]


@pytest.mark.parametrize("axes", AXES)
def test_every_orientation_of_a_file_is_the_same_volume(axes: str, tmp_path: Path) -> None:
    """A scan upside down, or left and right exchanged: 48 ways to write one body."""
    write_nifti(tmp_path / "a.nii.gz", VOXELS, SPACING, axes)
    volume = one(tmp_path / "a.nii.gz")
    assert volume.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(volume.values[0].numpy(), SEEN)


def test_an_oblique_volume_is_turned_as_nibabel_turns_it(tmp_path: Path) -> None:
    """Axes given to the wrong direction where none is exact."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        # half a right angle away, axes could be given either way
        axis = rng.normal(size=3)
        tilt = Rotation.from_rotvec(0.5 * axis / np.linalg.norm(axis)).as_matrix()
        turn = tilt[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
        affine = np.eye(4)
        affine[:3, :3] = turn * [0.7, 1.1, 2.5]
        theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOXELS, affine))
        mine, spacing = orient(VOXELS, affine)
        np.testing.assert_array_equal(mine, theirs.get_fdata(dtype=np.float32).transpose(2, 1, 0))
        np.testing.assert_allclose(spacing, theirs.header.get_zooms()[::-1], rtol=1e-5)


def test_stored_values_are_scaled(tmp_path: Path) -> None:
    """Numbers of a file in the place of intensities."""
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii")
    values = one(tmp_path / "a.nii").values
    theirs = nibabel.load(tmp_path / "a.nii").get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(values[0].numpy(), theirs)


def test_a_series_of_slices_is_the_volume_of_a_nifti_file(tmp_path: Path) -> None:
    """Slices in the order of their names, or pixels in the place of Hounsfield units."""
    write_series(tmp_path / "ct", VOXELS, SPACING)
    volume = one(tmp_path / "ct")
    assert volume.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_allclose(volume.values[0].numpy(), SEEN, atol=0.26)


def test_one_body_from_three_scanners_is_one_input(tmp_path: Path) -> None:
    """A model that tells hospitals apart instead of diseases."""
    fine = body((40, 40, 40), (1.0, 1.0, 1.0), 9.0, seed=1)
    write_nifti(tmp_path / "a.nii.gz", fine, (1, 1, 1), "LPI")
    write_nifti(tmp_path / "b.nii", body((50, 50, 14), (0.8, 0.8, 3.0), 9.0), (0.8, 0.8, 3), "SAR")
    write_series(tmp_path / "c", body((30, 30, 40), (1.3, 1.3, 1.0), 9.0), (1.3, 1.3, 1.0))
    section = VolumeSection(size=(16, 16, 16), spacing=(2, 2, 2), window=(0, 100))
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii", tmp_path / "c"]
    seen: Any = read_volumes(files, VolumePreparation(section))
    for other in (1, 2):
        correlation = np.corrcoef(seen.only[0].flatten(), seen.only[other].flatten())[0, 1]
        assert correlation > 0.9


# ── what is broken ────────────────────────────────────────────────────────────────────────────────
def header(path: Path, change: Callable[[bytearray], None]) -> Path:
    """Write a small volume with another header."""
    write_nifti(path, VOXELS, SPACING)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(bytes(content))
    return path


def put(place: int, form: str, *values: Any) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, place, *values)


HEADERS: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "1e12 voxels": (put(40, "<8h", 3, 10000, 10000, 10000, 1, 1, 1, 1), "more than"),
    "negative side": (put(40, "<8h", 3, -5, 10, 8, 1, 1, 1, 1), "cut off"),
    "no axes": (put(40, "<8h", 0, 1, 1, 1, 1, 1, 1, 1), "axes|cut off"),
    "a film": (put(40, "<8h", 4, 12, 10, 4, 2, 1, 1, 1), "4 axes"),
    "a slice": (put(40, "<8h", 2, 12, 10, 1, 1, 1, 1, 1), "2 axes"),
    "far voxels": (put(108, "<f", 1e12), "cut off"),
    "offset nan": (put(108, "<f", float("nan")), "cut off"),
    "no magic": (put(344, "4s", b"ni1"), "without voxels"),
    "colours": (put(70, "<h", 128), "no numbers"),
    "unknown type": (put(70, "<h", 9999), "cut off"),
    "no place": (put(252, "<2h", 0, 0), "how it lies"),
    "no size": (put(0, "<i", 12), "no NIfTI file"),
    "infinite": (put(280, "<f", float("inf")), "not finite|cut off"),
    "flat": (put(280, "<4f", 0, 0, 0, 0), "voxels less than|right angles"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    """A traceback at a hospital, or all of its memory asked for by one file."""
    change, words = HEADERS[name]
    path = header(tmp_path / "a.nii", change)
    tracemalloc.start()
    with pytest.raises(UserError, match=words):
        read_volumes([path])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte of file."""
    write_nifti(tmp_path / "a.nii", VOXELS, SPACING)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write((tmp_path / "a.nii").read_bytes())
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    read_nifti(tmp_path / "bomb.nii.gz")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**23


@pytest.mark.parametrize("kept", [0, 3, 200, 400, 900])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_is_cut_off_is_refused(name: str, kept: int, tmp_path: Path) -> None:
    write_nifti(tmp_path / name, VOXELS, SPACING)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut off|no NIfTI"):
        read_volumes([path])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    """One voxel that makes a whole model NaN."""
    voxels = VOXELS.copy()
    voxels[3, 3, 3] = value
    write_nifti(tmp_path / "a.nii.gz", voxels, SPACING)
    with pytest.raises(UserError, match="not finite"):
        read_volumes([tmp_path / "a.nii.gz"])


def test_a_blank_volume_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros_like(VOXELS), SPACING)
    with pytest.raises(UserError, match="blank"):
        read_volumes([tmp_path / "a.nii.gz"])
    (tmp_path / "a.txt").write_text("no volume")
    with pytest.raises(UserError, match="neither"):
        read_volumes([tmp_path / "a.txt"])
    with pytest.raises(UserError, match="cannot be read"):
        read_volumes([tmp_path / "nothing.nii"])


def edit(file: Path, **values: Any) -> None:
    data = pydicom.dcmread(file)
    for name, value in values.items():
        setattr(data, name, value)
    data.save_as(file)


def remove(files: list[Path]) -> None:
    files[3].unlink()


SERIES: dict[str, tuple[Callable[[list[Path]], Any], str]] = {
    "missing": (remove, "missing between"),
    "mixed": (lambda files: edit(files[2], SeriesInstanceUID="1.2.3"), "several series"),
    "patients": (lambda files: edit(files[2], PatientID="other"), "several patients"),
    "twice": (
        lambda files: edit(files[2], ImagePositionPatient=[0, 0, 9]),
        "two slices at one place",
    ),
    "uneven": (lambda files: edit(files[2], ImagePositionPatient=[0, 0, 7]), "evenly"),
    "aside": (lambda files: edit(files[2], ImagePositionPatient=[5, 0, 6]), "evenly"),
    "spacing": (lambda files: edit(files[2], PixelSpacing=[1, 1]), "pixel spacings"),
    "turned": (
        lambda files: edit(files[2], ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "directions",
    ),
    "nowhere": (lambda files: edit(files[2], ImagePositionPatient=None), "where they lie"),
    "far": (lambda files: edit(files[2], ImagePositionPatient=[0, 0, 1e300]), "missing|evenly"),
    "huge": (
        lambda files: [edit(file, Rows=60000, Columns=60000) for file in files],
        "more than",
    ),
    "cut": (lambda files: files[2].write_bytes(files[2].read_bytes()[:-50]), "cut off"),
}


@pytest.mark.parametrize("name", SERIES)
def test_a_series_that_is_not_whole_is_refused(name: str, tmp_path: Path) -> None:
    """A body that is shorter than it was, or two bodies in one."""
    change, words = SERIES[name]
    change(write_series(tmp_path / "ct", VOXELS, SPACING))
    with pytest.raises(UserError, match=words) as refused:
        read_volumes([tmp_path / "ct"])
    assert str(tmp_path / "ct") in str(refused.value)


# ── folders and lists ─────────────────────────────────────────────────────────────────────────────
def write_folder(root: Path) -> None:
    for number in range(2):
        write_nifti(root / "ill" / f"{number}.nii.gz", VOXELS + number, SPACING)
        write_series(root / "well" / f"p{number}", VOXELS + 5 * number, SPACING, f"p{number}")
    (root / "ill" / "notes.txt").write_text("notes")
    (root / "ill" / "3.nii.gz").write_bytes(b"broken")


def test_class_folders_hold_files_and_series(tmp_path: Path) -> None:
    """Slices counted as records, or a broken file that stops the others."""
    write_folder(tmp_path / "data")
    source = READERS["volume-folder"].read(ReadRequest(str(tmp_path / "data")))
    assert source.labels == ["ill", "ill", "well", "well"]
    assert source.problems == {"cut off or corrupt": 1}
    assert source.beside == {"files that are no volumes": 1}
    assert source.plural == "volumes"
    owners = source.owners("patient")
    assert owners is not None
    assert len(set(owners[2:])) == 2
    section = VolumeSection(size=(4, 4, 4))
    batch = source.read(np.array([3, 0]), VolumePreparation(section))
    assert batch.only.shape == (2, 1, 4, 4, 4)


def test_a_manifest_lists_files_and_series(tmp_path: Path) -> None:
    """Paths that begin elsewhere, or a record that is known by its packing."""
    write_folder(tmp_path / "data")
    write_nifti(tmp_path / "data" / "again.nii", VOXELS, SPACING)
    rows = ["ill/0.nii.gz,ill,p1", "well/p0,well,p2", "again.nii,ill,p3"]
    manifest = tmp_path / "data" / "list.csv"
    manifest.write_text("\n".join(["path,label,patient", *rows]))
    source = READERS["volume-manifest"].read(ReadRequest(str(manifest)))
    assert source.labels == ["ill", "well", "ill"]
    assert source.owners("patient") == ["p1", "p2", "p3"]
    assert source.digests[0] == source.digests[2] != source.digests[1]


def test_a_folder_without_volumes_says_what_to_put_there(tmp_path: Path) -> None:
    (tmp_path / "data" / "ill").mkdir(parents=True)
    with pytest.raises(UserError, match="no volumes in class folders"):
        READERS["volume-folder"].read(ReadRequest(str(tmp_path / "data")))
    (tmp_path / "data" / "ill" / "a.nii").write_bytes(b"")
    with pytest.raises(UserError, match="no readable volume"):
        READERS["volume-folder"].read(ReadRequest(str(tmp_path / "data")))


def test_a_volume_of_distances_that_no_scanner_has_is_refused() -> None:
    with pytest.raises(BrokenVolume, match="mm apart"):
        orient(VOXELS, np.diag([1e-5, 1, 1, 1]))
    sheared = np.eye(4)
    sheared[0, 1] = 3.0
    with pytest.raises(BrokenVolume, match="right angles"):
        orient(VOXELS, sheared)

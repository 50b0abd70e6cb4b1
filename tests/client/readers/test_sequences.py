"""Records of several images: sequences in files of their own, and images behind a fourth axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.data.data_set import Records
from fedgraft.client.privacy.ledger_records import DataSet
from fedgraft.client.readers import volume_file
from fedgraft.client.readers.nifti import read_nifti
from fedgraft.client.readers.orientation import BrokenVolume, Scan, orient, orient_grid
from fedgraft.client.readers.scan_form import ScanForm
from fedgraft.client.readers.sequences import find_sequences
from fedgraft.client.readers.volume_file import read_volumes
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.volume import Volume
from tests.records import open_records

nibabel: Any = pytest.importorskip("nibabel")
from tests.volumes import body, write_nifti, write_series  # noqa: E402

KIND = {"kind": "volume-classification", "classes": ("ill", "well"), "test_fraction": 0.5}
NAMES = ("t1", "t1ce", "t2", "flair")
FORM = ScanForm(sequences=NAMES)
SPACING = (1.0, 2.0, 3.0)


def images(seed: int) -> dict[str, np.ndarray]:
    """A body in four sequences, axes right, front, head."""
    return {
        name: body((8, 7, 6), SPACING, 6.0, seed=10 * seed + at) for at, name in enumerate(NAMES)
    }


def write_record(folder: Path, seed: int, pattern: str = "{}.nii.gz", axes: str = "RAS") -> None:
    for name, voxels in images(seed).items():
        write_nifti(folder / pattern.format(name), voxels, SPACING, axes)


def seen(seed: int) -> np.ndarray:
    """What a network sees: head, front, right."""
    return np.stack([voxels.transpose(2, 1, 0) for voxels in images(seed).values()])


def one(path: Path, form: ScanForm = FORM) -> Volume:
    volumes = read_volumes([path], form=form)
    assert isinstance(volumes, list)
    return volumes[0]


def opened(path: Path, **more: Any) -> Records:
    return open_records(path, **KIND, scan=FORM, **more)


@pytest.mark.parametrize("pattern", ["{}.nii.gz", "BraTS_001_{}.nii", "BraTS-GLI-1-{}.nii.gz"])
def test_a_record_is_a_folder_with_a_file_of_each(pattern: str, tmp_path: Path) -> None:
    """T1 with contrast agent taken for T1; or an order that the letters of the names make."""
    write_record(tmp_path / "p1", 3, pattern)
    volume = one(tmp_path / "p1")
    assert volume.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(volume.values.numpy(), seen(3))
    turned = one(tmp_path / "p1", ScanForm(sequences=("flair", "t1")))
    np.testing.assert_array_equal(turned.values.numpy(), seen(3)[[3, 0]])


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that begins by decompressing every scan of its patients twice."""
    read: list[Path] = []

    def count(path: Path, channels: int = 1) -> Scan:
        read.append(path)
        return read_nifti(path, channels)

    monkeypatch.setattr(volume_file, "read_nifti", count)
    for number in range(2):
        write_record(tmp_path / ("ill", "well")[number] / "p", number)
    opened(tmp_path)
    assert sorted(read) == sorted(tmp_path.rglob("*.nii.gz"))


def test_class_folders_with_a_folder_a_record(tmp_path: Path) -> None:
    """Each sequence counted as a record of its own, some in the tests."""
    for number in range(8):
        place = tmp_path / ("ill", "well")[number % 2] / f"deep/p{number}"
        write_record(place, number)
        write_nifti(place / "seg.nii.gz", body((8, 7, 6), SPACING, 6.0), SPACING)
    records = opened(tmp_path)
    assert len(records.labels) == 8
    assert records.source.beside == {"files that are no volumes": 8}
    volumes = records.read(np.array([0, 4]))
    np.testing.assert_array_equal(volumes[1].values.numpy(), seen(1))


def test_a_list_has_a_column_a_sequence(tmp_path: Path) -> None:
    """Rows whose second file is another patient's; or an empty cell that nobody names."""
    rows = [",".join([*NAMES, "label"])]
    for number in range(8):
        write_record(tmp_path / f"p{number}", number)
        files = [f"p{number}/{name}.nii.gz" for name in NAMES]
        rows.append(",".join([*files, ("ill", "well")[number % 2]]))
    (tmp_path / "list.csv").write_text("\n".join(rows))
    records = opened(tmp_path / "list.csv")
    volumes = records.read(np.arange(8))
    for number in range(8):
        np.testing.assert_array_equal(volumes[number].values.numpy(), seen(number))

    wrong = [rows[0], *rows[1:4], rows[4].replace("p3/t2.nii.gz", ""), *rows[5:]]
    (tmp_path / "wrong.csv").write_text("\n".join(wrong))
    with pytest.raises(UserError, match=r"wrong\.csv:5.*'t2': no path"):
        opened(tmp_path / "wrong.csv")
    (tmp_path / "less.csv").write_text("\n".join(rows).replace("t1ce,", "t1gd,", 1))
    with pytest.raises(UserError, match="no column 't1ce'"):
        opened(tmp_path / "less.csv")

    folders = ["path,label", *(f"p{n},{('ill', 'well')[n % 2]}" for n in range(8))]
    (tmp_path / "folders.csv").write_text("\n".join(folders))
    assert opened(tmp_path / "folders.csv").fingerprint == records.fingerprint


def test_a_ledger_knows_a_record_whatever_a_plan_picks(tmp_path: Path) -> None:
    """A budget that begins anew where the next plan picks other sequences, or another order."""
    rows = [",".join([*NAMES, "label"])]
    for number in range(6):
        label = ("ill", "well")[number % 2]
        write_record(tmp_path / "scans" / label / f"p{number}", number)
        files = [f"scans/{label}/p{number}/{name}.nii.gz" for name in NAMES]
        rows.append(",".join([*files, label]))
    (tmp_path / "list.csv").write_text("\n".join(rows))

    def known(name: str, *sequences: str) -> set[bytes]:
        form = ScanForm(sequences=sequences)
        return set(DataSet.of(open_records(tmp_path / name, **KIND, scan=form)).records)

    first = known("scans", "t1", "t2")
    for name in ("scans", "list.csv"):
        for other in (("t2", "t1"), ("flair",), NAMES):
            assert len(first & known(name, *other)) >= 6
    # each file a record of its own
    assert len(first & known("scans")) == 6 * len(NAMES)


def test_sequences_may_be_series_of_dicom(tmp_path: Path) -> None:
    """A folder of slices a sequence, beside one another; of two patients they are refused."""
    form = ScanForm(sequences=("t1", "t2"))
    for name in ("t1", "t2"):
        write_series(tmp_path / "p1" / name, images(0)[name], SPACING, "p1")
        write_series(tmp_path / "p2" / name, images(0)[name], SPACING, f"of-{name}")
    np.testing.assert_allclose(one(tmp_path / "p1", form).values, seen(0)[[0, 2]], atol=0.3)
    with pytest.raises(UserError, match="sequences of several patients"):
        one(tmp_path / "p2", form)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLP"])
def test_files_in_several_orientations_are_one_grid(axes: str, tmp_path: Path) -> None:
    """One sequence that was saved the other way round, refused, or put on the others mirrored."""
    write_record(tmp_path, 1)
    write_nifti(tmp_path / "t2.nii.gz", images(1)["t2"], SPACING, axes)
    np.testing.assert_array_equal(one(tmp_path).values.numpy(), seen(1))


@pytest.mark.parametrize("change", ["shape", "spacing", "place", "missing", "twice", "blank"])
def test_what_does_not_lie_on_one_grid_is_refused(change: str, tmp_path: Path) -> None:
    """A lesion of one sequence on the healthy tissue of another."""
    write_record(tmp_path / "p1", 1)
    file = tmp_path / "p1" / "t2.nii.gz"
    voxels = images(1)["t2"]
    words = "sequence t2 does not lie on the grid"
    if change == "shape":
        write_nifti(file, voxels[1:], SPACING)
    elif change == "spacing":
        write_nifti(file, voxels, (1.0, 2.0, 3.1))
    elif change == "place":
        affine = np.diag([*SPACING, 1.0])
        affine[1, 3] = 0.4
        nibabel.save(nibabel.Nifti1Image(voxels, affine), file)
    elif change == "missing":
        file.unlink()
        words = "without its sequence t2"
    elif change == "twice":
        write_nifti(tmp_path / "p1" / "old_t2.nii", voxels, SPACING)
        words = "several files of its sequence t2"
    else:
        write_nifti(file, voxels * 0, SPACING)
        words = "blank"
    with pytest.raises(UserError, match=words):
        one(tmp_path / "p1")
    for number in range(2, 8):
        write_record(tmp_path / "all" / ("ill", "well")[number % 2] / f"p{number}", number)
    (tmp_path / "p1").rename(tmp_path / "all" / "ill" / "p1")
    records = opened(tmp_path / "all", max_unreadable=0.2)
    assert records.skipped == 1
    assert words in next(iter(records.source.problems))


def test_images_behind_a_fourth_axis(tmp_path: Path) -> None:
    """The images of one file in the order of another axis; a film taken for sequences."""
    voxels = np.stack(list(images(2).values()), axis=-1)
    for name, stored in (("a", voxels), ("b", voxels[:, :, :, None, :])):
        nibabel.save(
            nibabel.Nifti1Image(stored, np.diag([*SPACING, 1.0])), tmp_path / f"{name}.nii"
        )
        volume = one(tmp_path / f"{name}.nii", ScanForm(channels=4))
        np.testing.assert_array_equal(volume.values.numpy(), seen(2))
    for form in (ScanForm(channels=3), ScanForm()):
        with pytest.raises(UserError, match=r"another number of images|axes: a series"):
            one(tmp_path / "a.nii", form)


def test_the_grid_is_that_of_the_turned_voxels() -> None:
    """Two grids that are compared as they lay in their files, not as they are put together."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        affine = np.eye(4)
        affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 3, 3)
        affine[:3, 3] = rng.normal(size=3) * 50
        places = np.stack(np.meshgrid(*map(np.arange, (4, 5, 6)), indexing="ij"), -1)
        mm = places @ affine[:3, :3].T + affine[:3, 3]
        grid = orient_grid((4, 5, 6), affine)
        turned = np.stack([orient(mm[..., axis], affine)[0] for axis in range(3)], -1)
        last = np.array(turned.shape[:3]) - 1
        np.testing.assert_allclose(turned[0, 0, 0], grid[:3, 3], atol=1e-9)
        np.testing.assert_allclose(turned[-1, -1, -1], grid[:3, :3] @ last + grid[:3, 3], atol=1e-9)


def test_a_name_that_ends_otherwise_is_none(tmp_path: Path) -> None:
    """`notflair` taken for FLAIR."""
    write_record(tmp_path, 0)
    (tmp_path / "flair.nii.gz").rename(tmp_path / "notflair.nii.gz")
    with pytest.raises(BrokenVolume, match="without its sequence flair"):
        find_sequences(tmp_path, NAMES)
    (tmp_path / "notflair.nii.gz").rename(tmp_path / "X-FLAIR.NII.GZ")
    assert [file.name for file in find_sequences(tmp_path, NAMES)][-1] == "X-FLAIR.NII.GZ"

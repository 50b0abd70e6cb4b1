"""Masks beside their records: lists, two folders, archives, NIfTI; and what is wrong in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.client.readers.mask_file import read_image_mask
from fedgraft.client.readers.reader import ReadRequest
from fedgraft.client.readers.reader_table import READERS
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError

SIDES = (12, 16)


def draw_pairs(count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(4)
    pairs = []
    for number in range(count):
        image = rng.integers(0, 256, SIDES, dtype=np.uint8)
        mask = np.zeros(SIDES, np.uint8)
        mask[number : number + 5, 2:9] = 1
        pairs.append((image, mask))
    return pairs


def write_list(folder: Path, header: str = "path,mask", rows: list[str] | None = None) -> Path:
    """Write images, masks and a list of them."""
    lines = []
    for number, (image, mask) in enumerate(draw_pairs()):
        for name, values in (("images", image), ("masks", mask)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(folder / name / f"{number}.png")
        lines.append(f"images/{number}.png,masks/{number}.png")
    path = folder / "list.csv"
    path.write_text("\n".join([header, *(rows or lines)]) + "\n")
    return path


def read(name: str, path: Path, **more: Any) -> Source:
    return READERS[name].read(replace(ReadRequest(str(path), masks=True), **more))


def masks_of(source: Source) -> list[np.ndarray]:
    assert source.masks is not None
    return [source.masks.read(row).numpy() for row in range(len(source))]


# ── where they may lie ────────────────────────────────────────────────────────────────────────────
def test_a_list_with_a_column_of_masks(tmp_path: Path) -> None:
    """A mask given to the wrong image; labels need no column."""
    source = read("manifest", write_list(tmp_path))
    assert source.masks is not None
    assert list(source.masks.values) == [(0, 1)] * 3
    for found, (image, mask) in zip(range(3), draw_pairs(), strict=True):
        assert np.array_equal(source.read(np.array([found]), None)[0, 0].numpy(), image)
        assert np.array_equal(source.masks.read(found).numpy(), mask)


@pytest.mark.parametrize("ending", [".png", "_mask.png", "_seg.tif", ".npy"])
def test_two_folders(tmp_path: Path, ending: str) -> None:
    """Masks by their image's name, with another ending or with what they are behind it."""
    for split in ("train", "test"):
        for number, (image, mask) in enumerate(draw_pairs()):
            for name in ("images/p1", "masks/p1"):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / split / f"images/p1/{number}.png")
            target = tmp_path / split / f"masks/p1/{number}{ending}"
            if ending == ".npy":
                np.save(target, mask.astype(np.int64))
            else:
                Image.fromarray(mask).save(target)
    assert READERS["mask-folder"].matches(str(tmp_path))
    assert not READERS["volume-mask-folder"].matches(str(tmp_path))
    source = read("mask-folder", tmp_path)
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 3, "test": 3}
    wanted = [mask for _, mask in draw_pairs()]
    for split in ("train", "test"):
        found = [masks_of(source)[row] for row in source.splits[split]]
        assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_an_archive(tmp_path: Path) -> None:
    images, masks = map(np.stack, zip(*draw_pairs(), strict=True))
    np.savez(
        tmp_path / "a.npz",
        train_images=images,
        train_masks=masks,
        test_images=images[:1],
        test_masks=masks[:1].astype(bool),
    )
    source = read("npz", tmp_path / "a.npz")
    assert len(source) == 4
    assert np.array_equal(np.stack(masks_of(source)), np.concatenate([masks, masks[:1]]))
    np.savez(tmp_path / "b.npz", images=images, labels=np.zeros(3))
    with pytest.raises(UserError, match="no array 'masks'"):
        read("npz", tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", images=images, masks=masks[:, :5])
    with pytest.raises(UserError, match="masks of shape"):
        read("npz", tmp_path / "c.npz")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_volumes_with_nifti_masks_in_any_orientation(tmp_path: Path, axes: str) -> None:
    """A mask written in another orientation than its volume must land on the same organ."""
    pytest.importorskip("nibabel")
    from tests.volumes import body, write_nifti

    spacing = (1.0, 2.0, 3.0)
    voxels = body((12, 10, 8), spacing, 9.0)
    mask = (voxels > 50).astype(np.uint8)
    write_nifti(tmp_path / "images/a.nii.gz", voxels, spacing)
    write_nifti(tmp_path / "masks/a_seg.nii.gz", mask, spacing, axes)
    source = read("volume-mask-folder", tmp_path)
    assert source.masks is not None
    found = source.masks.read(0)
    volume = source.read(np.array([0]), None)[0]
    assert found.spacing == volume.spacing
    assert torch.equal(found.values[0], (volume.values[0] > 50).to(torch.uint8))

    rows = tmp_path / "list.csv"
    rows.write_text("path,mask\nimages/a.nii.gz,masks/a_seg.nii.gz\n")
    listed = read("volume-manifest", rows)
    assert listed.masks is not None
    assert torch.equal(listed.masks.read(0).values, found.values)
    # moved by one voxel
    write_nifti(tmp_path / "masks/a_seg.nii.gz", mask, (1.0, 2.0, 4.0), axes)
    with pytest.raises(UserError, match="does not lie on the grid"):
        read("volume-mask-folder", tmp_path)


# ── the ledger and approvals know them ────────────────────────────────────────────────────────────
def test_another_mask_is_another_record_to_train_on_and_the_same_image_to_the_ledger(
    tmp_path: Path,
) -> None:
    """A mask that was redrawn must change the data's fingerprint; to spend privacy anew on an image
    because its mask was redrawn must not be possible.
    """
    path = write_list(tmp_path)
    before = read("manifest", path)
    Image.fromarray(np.ones(SIDES, np.uint8)).save(tmp_path / "masks/1.png")
    after = read("manifest", path)
    same = [one == other for one, other in zip(before.digests, after.digests, strict=True)]
    assert same == [True, False, True]
    assert before.identities == after.identities


# ── what is wrong, in words ───────────────────────────────────────────────────────────────────────
def test_all_masks_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    """One error a run, and a night is gone with ten."""
    path = write_list(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    Image.fromarray(np.zeros((5, 16), np.uint8)).save(tmp_path / "masks/1.png")
    (tmp_path / "masks/2.png").write_bytes(b"no image")
    with pytest.raises(UserError) as found:
        read("manifest", path)
    text = str(found.value)
    assert "0.png: no such file" in text
    assert "a mask of 5×16, and 1.png is 12×16" in text
    assert "2.png" in text


def test_a_list_without_a_mask_says_which_row(tmp_path: Path) -> None:
    path = write_list(tmp_path, rows=["images/0.png,masks/0.png", "images/1.png,"])
    with pytest.raises(UserError, match=r"list.csv:3: column 'mask': no mask"):
        read("manifest", path)
    path = write_list(tmp_path, header="path,truth")
    with pytest.raises(UserError, match="no column 'mask'"):
        read("manifest", path)


def test_a_folder_without_a_mask_says_how_it_would_be_called(tmp_path: Path) -> None:
    write_list(tmp_path)
    (tmp_path / "masks/1.png").unlink()
    with pytest.raises(UserError, match=r"no mask .*masks/1\.\*"):
        read("mask-folder", tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full(SIDES, 300, np.uint16), "values from 300 to 300"),
        (np.random.default_rng(1).integers(0, 9, (*SIDES, 3), dtype=np.uint8), "in colour"),
    ],
)
def test_what_is_no_mask_is_said_in_words(tmp_path: Path, values: np.ndarray, words: str) -> None:
    """Instances that were numbered one by one, or an overlay in colour."""
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=words):
        read_image_mask(tmp_path / "a.png")
    with pytest.raises(UserError, match="keeps no exact numbers"):
        read_image_mask(tmp_path / "a.jpg")
    np.save(tmp_path / "a.npy", np.full(SIDES, 0.5))
    with pytest.raises(UserError, match="no whole numbers"):
        read_image_mask(tmp_path / "a.npy")


def test_a_palette_keeps_its_numbers(tmp_path: Path) -> None:
    """Decoded to colours, class 2 would be whatever red the palette has."""
    numbers = np.array([[0, 1], [2, 3]], np.uint8)
    image = Image.fromarray(numbers, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9] + [0] * 756)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image_mask(tmp_path / "a.png").numpy(), numbers)

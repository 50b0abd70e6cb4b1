"""Image files in class folders: `folder/<class>/*.png`, or `folder/train/<class>/…` with its own splits.

Files are decoded when they are asked for. Opening looks at every file once: its bytes are hashed, its
header read and its end checked, so that a truncated file is left out before training, not met in its middle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.readers.source import Prepare, Source, digest, unreadable
from common.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_folder(path: Path) -> Source:
    """Every readable image below a folder of class folders; the folder's name is the label.

    Raises:
        UserError: no such folder, no class folders, or no readable image.
    """
    try:
        below = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise unreadable(path, error) from None
    parts = {folder: _SPLIT_NAMES[folder.name.lower()] for folder in below if folder.name.lower() in _SPLIT_NAMES}
    own = "train" in parts.values()
    files: list[Path] = []
    labels: list[str] = []
    digests: list[bytes] = []
    splits: dict[str, list[int]] = {}
    skipped = 0
    for top in parts if own else (path,):
        for folder in sorted(entry for entry in top.iterdir() if entry.is_dir() and entry.name[0] != "."):
            for file in sorted(folder.rglob("*")):
                if file.suffix.lower() not in SUFFIXES or not file.is_file():
                    continue
                content = file.read_bytes()
                if not _sound(content):
                    skipped += 1
                    continue
                if own:
                    splits.setdefault(parts[top], []).append(len(files))
                files.append(file)
                labels.append(folder.name)
                digests.append(digest(content, folder.name))
    if not files:
        what = f"no readable image ({skipped} unreadable)" if skipped else "no images in class folders"
        remedy = f"put {', '.join(SUFFIXES[:3])} files into one folder a class: {path.name}/<class>/image.png"
        raise UserError(what, where=str(path), remedy=remedy)
    return Source(
        where=str(path),
        labels=labels,
        digests=digests,
        read=lambda rows, prepare=None: read_images([files[row] for row in rows], prepare),
        place=lambda row: str(files[row]),
        splits={name: np.array(rows, np.int64) for name, rows in splits.items()},
        skipped=skipped,
    )


def read_images(files: list[Path], prepare: Prepare | None = None) -> Tensor:
    """Images as `(n, C, H, W)`, uint8 or uint16; `prepare` is applied to each `(1, C, H, W)` before stacking.

    Raises:
        UserError: a file cannot be decoded, or sizes differ and there is no `prepare` to make them equal.
    """
    images = [_decode(file) for file in files]
    if prepare is not None:
        return torch.cat([prepare(image) for image in images])
    if len({image.shape[1:] for image in images}) > 1 and any(image.shape[1] == 3 for image in images):
        images = [image.expand(-1, 3, -1, -1) for image in images]  # grey among colour
    if len({(image.shape, image.dtype) for image in images}) > 1:
        sizes = ", ".join(sorted({f"{i.shape[3]}×{i.shape[2]}" for i in images})[:4])
        raise UserError(f"images of several sizes or types: {sizes}", remedy="resize them with `prepare`")
    return torch.cat(images)


def _decode(file: Path) -> Tensor:
    """One image `(1, C, H, W)`: grey stays grey (16 bits stay 16), anything else becomes RGB, turned upright."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("I;16", "I;16L", "I;16B", "I"):
                pixels = np.asarray(image).astype(np.uint16)
            else:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(file, error) from None
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(planes[None].copy())


def _sound(content: bytes) -> bool:
    """Whether the bytes are an image that opens, with checksums (PNG) or the end marker (JPEG) in place."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and b"\xff\xd9" not in content[-64:]:
                return False
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True

"""Tensors in files: read without running anything, written whole or not at all, known by their
SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import replacing, write_whole

CHOSEN = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".th")


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted tensors: name, dtype, shape, then the bytes as they lie in
    (little-endian) memory.

    Any other byte, name, dtype or shape gives another fingerprint; the order of the mapping does
    not matter.

    Returns:
        "sha256:" and 64 hex digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(head.encode() + b"\0")
        raw = tensor.cpu().contiguous().reshape(-1)
        if raw.numel():
            digest.update(raw.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pth`, `.pt` or `.th` file, on the CPU.

    Torch's files are unpickled with `weights_only=True`: one that would run code is refused, not
    run. A state dict under the key `state_dict` or `model`, and names that begin with `module.`,
    are understood.

    Raises:
        UserError: the file is missing, corrupt, holds something else than tensors, would run code,
            or holds values that are not finite.
    """
    where = str(path)
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"weights in a {path.suffix or 'nameless'} file",
            where=where,
            remedy=f"give a file in {', '.join(SUFFIXES)}",
        )
    if not path.is_file():
        raise UserError(
            "there is no such weights file",
            where=where,
            remedy="correct backbone.weights, or fetch the file first",
        )
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{name} holds values that are not finite (NaN or infinity)",
                where=where,
                remedy="train or fetch the weights again",
            )
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Weights only" in str(error) or "GLOBAL" in str(error):
            raise UserError(
                "the file holds more than tensors: to load it would run code that somebody put into"
                " it; refused",
                where=str(path),
                remedy=(
                    "save the state dict alone (torch.save(net.state_dict(), …)), or as"
                    " .safetensors"
                ),
            ) from error
        raise _corrupt(path, error) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        raise _corrupt(path, error) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(v, Tensor) for v in loaded.values())
    ):
        raise UserError(
            "the file holds no state dict (names → tensors)",
            where=str(path),
            remedy="save it with torch.save(net.state_dict(), …) or as .safetensors",
        )
    return {str(name).removeprefix("module."): tensor.detach() for name, tensor in loaded.items()}


def _corrupt(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the weights cannot be read: the file is cut short or damaged ({type(error).__name__})",
        where=str(path),
        remedy="fetch or write the file again",
    )


def write_tensors(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file, whole or not at all; the same tensors give the same bytes.

    Args:
        metadata: one entry at most, as safetensors writes several in no fixed order.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if metadata and len(metadata) > 1:
        raise ValueError(f"metadata {sorted(metadata)}: several have no fixed order in the file")
    whole = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(
                whole, part, metadata=dict(metadata or {})
            )  # into the file: no copy of all in memory
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise _told(
            path, OSError(int(number[1]), os.strerror(int(number[1]))) if number else error
        ) from error
    except OSError as error:
        raise _told(path, error) from error


def write_beside(content: bytes, path: Path) -> None:
    """Write bytes whole or not at all; the folder is made if it is not there.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full or broken.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise _told(path, error) from error


def _told(path: Path, error: Exception) -> Exception:
    """A place that cannot be written was chosen by the user; a disk that is full or broken was
    not.
    """
    if not isinstance(error, OSError) or error.errno not in CHOSEN:
        return OSError(
            getattr(error, "errno", None) or errno.EIO,
            getattr(error, "strerror", None) or str(error),
            str(path),
        )
    return UserError(
        f"cannot be written ({error.strerror})",
        where=str(path),
        remedy="choose a folder that you may write to",
    )

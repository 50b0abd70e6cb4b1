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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.errors import UserError
from fedgraft.common.files.whole_files import replacing, write_whole

SUFFIXES = (".safetensors", ".pth", ".pt", ".th")
# a path that cannot be written was chosen by the user; a disk that is full or broken was not
CHOSEN = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)
# what torch raises for bytes that are no file of its own
DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
)
# keys under which state dicts are found in published files
WRAPPERS = ("state_dict", "model")


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the sorted tensors: name, dtype, shape, then the bytes as they lie in
    (little-endian) memory.

    Any other byte, name, dtype or shape gives another fingerprint; the order of the mapping does
    not matter.

    Returns:
        "sha256:" and 64 hex digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(fingerprint_head(name, kind, tensor.shape))
        raw = tensor.cpu().contiguous().reshape(-1)
        if raw.numel():
            digest.update(raw.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def fingerprint_head(name: str, kind: str, shape: Sequence[int]) -> bytes:
    """Return what a fingerprint covers of a tensor before its bytes.

    Args:
        kind: torch's name of its kind of numbers, such as `float32`.
    """
    head = json.dumps([name, kind, list(shape)])
    return head.encode() + b"\0"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.pth`, `.pt` or `.th` file, on the CPU.

    Torch's files are unpickled with `weights_only=True`: one that would run code is refused, not
    run. A state dict under the key `state_dict` or `model`, and names that begin with `module.`,
    are understood.

    Raises:
        UserError: the file is missing, corrupt, holds something else than tensors, would run code,
            or holds values that are not finite.
    """
    where = str(path)
    if path.suffix not in SUFFIXES:
        what = f"weights in a {path.suffix or 'nameless'} file"
        raise UserError(what, where=where, remedy=f"give a file in {', '.join(SUFFIXES)}")
    if not path.is_file():
        remedy = "correct backbone.weights, or fetch the file first"
        raise UserError("there is no such weights file", where=where, remedy=remedy)
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = _read_torch(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = f"{name} holds values that are not finite (NaN or infinity)"
            raise UserError(what, where=where, remedy="train or fetch the weights again")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    loaded = _unpickle(path)
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not _is_state(loaded):
        remedy = "save it with torch.save(net.state_dict(), …) or as .safetensors"
        what = "the file holds no state dict (names → tensors)"
        raise UserError(what, where=str(path), remedy=remedy)
    state: dict[str, Tensor] = {}
    for name, tensor in loaded.items():
        # a prefix of networks that were trained on several cards
        state[str(name).removeprefix("module.")] = tensor.detach()
    return state


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _would_run_code(error):
            raise _corrupt(path, error) from error
        what = (
            "the file holds more than tensors: to load it would run code that somebody put into it;"
            " refused"
        )
        remedy = "save the state dict alone (torch.save(net.state_dict(), …)), or as .safetensors"
        raise UserError(what, where=str(path), remedy=remedy) from error
    except DAMAGED as error:
        raise _corrupt(path, error) from error


def _would_run_code(error: pickle.UnpicklingError) -> bool:
    """Whether torch refused something that is no tensor."""
    words_of_torch = ("weights_only", "Weights only", "GLOBAL")
    return any(words in str(error) for words in words_of_torch)


def _is_state(loaded: Any) -> bool:
    if not isinstance(loaded, dict) or not loaded:
        return False
    return all(isinstance(value, Tensor) for value in loaded.values())


def _corrupt(path: Path, error: Exception) -> UserError:
    kind = type(error).__name__
    what = f"the weights cannot be read: the file is cut short or damaged ({kind})"
    return UserError(what, where=str(path), remedy="fetch or write the file again")


def read_metadata(path: Path) -> dict[str, str]:
    """Return what was written into a `.safetensors` file beside its tensors.

    Raises:
        UserError: the file is missing or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from error


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
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # straight into the file: no copy of all in memory
        with replacing(path) as part:
            save_file(tensors, part, metadata=dict(metadata or {}))
    except SafetensorError as error:
        raise _explain(path, _os_error_of(error)) from error
    except OSError as error:
        raise _explain(path, error) from error


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
        raise _explain(path, error) from error


def _os_error_of(error: Exception) -> OSError:
    """Return the system's error that safetensors put into words."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(errno.EIO, str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])))


def _explain(path: Path, error: OSError) -> Exception:
    """Return what to raise for a path that cannot be written."""
    if error.errno in CHOSEN:
        what = f"cannot be written ({error.strerror})"
        return UserError(what, where=str(path), remedy="choose a folder that you may write to")
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))

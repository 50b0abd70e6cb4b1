"""Where a model is computed: on the processor, or on a card.

Sums over records, noise and whatever leaves a node are made on the host, whatever the device:
float64 and whole numbers are the same everywhere there.
"""

from __future__ import annotations

import os

import torch

from fedgraft.common.errors import UserError
from fedgraft.common.model.instructions import name_instructions

CPU = torch.device("cpu")
# how torch asks cuBLAS for sums in the same order each time; read when a card is first used
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# torch then asks the driver's library for the cards, and not the driver itself
ASK_GENTLY = "PYTORCH_NVML_BASED_CUDA_CHECK"


def find_device(text: str) -> torch.device:
    """Return the device that is meant by `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; a text that is
    none of these is not here either.

    `auto` is the first card that torch can use, else the processor. Asking does not wake a card: a
    process that is forked afterwards can still use it.

    Raises:
        UserError: it is not there; says what is.
    """
    if text == "cpu":
        return CPU
    os.environ.setdefault(ASK_GENTLY, "1")
    if text == "auto":
        return _find_any()
    if text == "mps":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        raise _missing(text)
    name, _, number = text.partition(":")
    is_card = name == "cuda" and (number or "0").isdecimal()
    index = int(number or 0) if is_card else 0
    if not is_card or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise _missing(text)
    return torch.device("cuda", index)


def list_devices() -> list[str]:
    """Return what there is, as `device` takes it, the processor last."""
    os.environ.setdefault(ASK_GENTLY, "1")
    names: list[str] = []
    if torch.cuda.is_available():
        names += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def spread_over(text: str, nodes: int) -> list[str]:
    """Return the device of each of so many simulated nodes: of several cards, one after the other.

    Raises:
        UserError: as of `find_device`.
    """
    device = find_device(text)
    if text not in ("auto", "cuda") or device.type != "cuda":
        return [str(device)] * nodes
    cards = torch.cuda.device_count()
    return [f"cuda:{number % cards}" for number in range(nodes)]


def prepare_device(device: torch.device, *, tf32: bool) -> None:
    """Let a card compute the same bits each time, and float32 in full unless tf32 is wanted. The
    processor is left as it is.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def describe_device(device: torch.device) -> str:
    """Return a device in words, such as `cuda:0, NVIDIA A100 80GB PCIe, CUDA 13.0`, or `cpu, AMX`:
    with what last bits depend on.
    """
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    if device == CPU:
        return f"cpu, {name_instructions()}"
    return str(device)


def _find_any() -> torch.device:
    return torch.device(list_devices()[0])


def _missing(text: str) -> UserError:
    remedy = f"write one of auto, {', '.join(list_devices())}"
    if text.startswith("cuda") and torch.version.cuda is None:
        remedy += "; this torch was built without CUDA: install the usual one from PyPI"
    return UserError(f"{text} is not here, or torch cannot use it", where="device", remedy=remedy)

"""What a run's numbers depend on beside its plan and data: code, packages, machine."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedgraft.server.papers.stable_json import stable_bytes

PACKAGES = (
    "fedgraft",
    "flwr",
    "flwr-datasets",
    "numpy",
    "opacus",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
)
ROOMS = ("client", "common", "server", "simulations")
SOURCES = (".py", ".yaml")


def code() -> dict[str, Any]:
    """Return every source file of fedgraft by its SHA-256, and one hash over all of them."""
    root = Path(__file__).resolve().parents[2]
    package = root / "fedgraft" if (root / "fedgraft").is_dir() else root
    files = {f"fedgraft/{path.name}": sha256_of(path) for path in sorted(package.glob("*.py"))}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in SOURCES and "__pycache__" not in path.parts:
                files[path.relative_to(root).as_posix()] = sha256_of(path)
    return {"sha256": hashlib.sha256(stable_bytes(files)).hexdigest(), "files": files}


def packages() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, str]:
    """Return what else the last bits depend on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
    }


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

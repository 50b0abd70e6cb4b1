"""The app bundle (FAB) that a run sends to hospitals, made from the installed package: the same bytes on every side.

A hospital approves this hash, so nothing goes into the bundle but what runs there or at the coordinator: the
sources of client, server and common, the ready plans, and a `pyproject.toml` of a few lines written here. Flower's
own builder makes the bytes (sorted names, a fixed date). They are equal for equal sources and versions of
fedgraft; the compression is zlib's, so two sides with another zlib must exchange the file instead of building it.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

ROOMS = ("client", "common", "server")
KINDS = (".py", ".yaml")

# As in pyproject.toml, where `flwr run .` finds it; a test holds the two together.
APP: dict = {
    "publisher": "fedgraft",
    "fab-include": ["client/**/*.py", "server/**/*.py", "common/**/*.py", "common/**/*.yaml"],
    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
    "config": {"plan": "", "weights": "", "out": "", "nodes": "", "nodes-expected": 0, "resume": False},
}


def bundle() -> tuple[bytes, str]:
    """The bundle's bytes and their sha256, 64 hex digits: what Flower calls the FAB hash."""
    from flwr.cli.build import build_fab_from_files

    made, _ = build_fab_from_files(dict(_files()))
    return made, hashlib.sha256(made).hexdigest()


def write_app(folder: Path) -> Path:
    """The app's files in a new folder, for `flwr run FOLDER`: Flower builds the bytes of `bundle()` from them."""
    for name, content in _files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def _files() -> dict[str, bytes]:
    """Path in the bundle → content."""
    import tomli_w

    root = Path(__file__).resolve().parents[1]
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for room in ROOMS
        for path in sorted((root / room).rglob("*"))
        if path.suffix in KINDS and "__pycache__" not in path.parts
    }
    project = {
        "project": {"name": "fedgraft", "version": version("fedgraft"), "description": "federated transfer learning"},
        "tool": {"flwr": {"app": APP}},
    }
    return {"pyproject.toml": tomli_w.dumps(project).encode(), **found}

"""`flwr-clientapp` as this node runs it: Flower's own, but only the approved code is ever loaded.

A Flower bundle is code from outside. Flower unpacks what the server sends into a folder that the
bundle's own version names, and loads the folder that the server's message names. A version that
begins with the approved folder's own name and goes on with `/../../../store/x` leaves
`$FLWR_HOME/apps`, read-only or not: seen with Flower 1.41, it was loaded. So two steps of Flower's
process are replaced here, before anything of the bundle is unpacked: the bundle must have the
approved contents, to the byte, and what is loaded is the approved folder and no other, whatever the
message says. A refusal is an error reply in words.

The node starts this file by its path, under the name of Flower's program. It imports nothing of
fedgraft: the rooms that it will load are those of the approved folder, not those that the node was
started from.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# the environment: the administrator's folder
APPROVALS = "FEDGRAFT_APPROVALS"
# bytes of a bundle, and of everything in it
LARGEST = 10 * 1024 * 1024
LARGEST_UNPACKED = 10 * LARGEST


class BundleRefused(Exception):
    """Code that nobody approved at this node."""


def main() -> None:
    """Run one task for the SuperNode."""
    from flwr.supernode.cli import flwr_clientapp

    process = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    ours = {
        "install_from_fab": check_bundle,
        "get_project_dir": lambda *_: approved_folder(),
        "get_load_client_app_fn": lambda **_: load_approved,
    }
    for name, function in ours.items():
        # another Flower than this was written for: run nothing
        if not callable(getattr(process, name, None)):
            missing = f"this release of Flower has no {name}"
            sys.exit(f"{missing}; its code cannot be held to what was approved")
        setattr(process, name, function)
    flwr_clientapp()


def check_bundle(fab: bytes, **_: Any) -> Path:
    """Return the folder of the approved code, if the bundle that came is just that.

    Raises:
        BundleRefused: it is not, by as little as one byte; or what is installed is no longer what
            was approved.
    """
    approved = _approved()
    arrived = f"sha256:{hashlib.sha256(fab).hexdigest()}"
    if arrived != approved["hash"] and _contents_of_zip(fab) != approved["contents"]:
        raise BundleRefused(
            f"the code {arrived} that the server sent is not approved at this node; "
            f"approved is {approved['hash']}. It was not unpacked"
        )
    return approved_folder()


def approved_folder() -> Path:
    """Return where the approved code is. Raises `BundleRefused` where it was changed since."""
    approved = _approved()
    folder = _home() / "apps" / approved["folder"]
    if installed_contents(folder) != approved["contents"]:
        raise BundleRefused("the approved code at this node was changed or removed; nothing is run")
    return folder


def load_approved(*_: str) -> Any:
    """Return the ClientApp of the approved folder, whatever names the server's message has."""
    from flwr.clientapp.client_app import LoadClientAppError
    from flwr.supercore.object_ref import load_app

    return load_app("fedgraft.client.app:app", LoadClientAppError, approved_folder())


def _approved() -> dict[str, str]:
    """Return folder, hash and contents of what was approved last."""
    try:
        about = json.loads((_home() / "bundle.json").read_text())
        approved = {key: str(about[key]) for key in ("folder", "hash", "contents")}
        if "/" in approved["folder"] or approved["folder"].startswith("."):
            raise ValueError("a folder elsewhere")
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleRefused("no code was ever approved at this node") from None
    return approved


def _home() -> Path:
    return Path(os.environ[APPROVALS])


# ── contents ──────────────────────────────────────────────────────────────────────────────────────
def installed_contents(folder: Path) -> str:
    """Return as `fedgraft.common.files.bundle.contents_of`, over the sources in a folder."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name != "__pycache__":
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return _contents(files)


def _contents_of_zip(fab: bytes) -> str:
    """Return as `fedgraft.common.files.bundle.contents_of`; "" for what is no sound archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_UNPACKED:
                return ""
            names = archive.namelist()
            files = {name: archive.read(name) for name in names if name != ".info/CONTENT"}
    # whatever a hostile archive provokes: it is not the approved one
    except Exception:
        return ""
    if len(set(names)) < len(names):
        return ""
    return _contents(files)


def _contents(files: Mapping[str, bytes]) -> str:
    lines = []
    for name, content in files.items():
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    text = "".join(sorted(lines))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


if __name__ == "__main__":
    main()

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
from pathlib import Path
from typing import Any

APPROVALS = "FEDGRAFT_APPROVALS"  # the environment: the administrator's folder
LARGEST = 10 * 1024 * 1024  # bytes


class BundleRefused(Exception):
    """Code that nobody approved at this node."""


def main() -> None:
    """Run one task for the SuperNode."""
    from flwr.supernode.cli import flwr_clientapp

    process = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    ours = {
        "install_from_fab": must_be_approved,
        "get_project_dir": lambda *_: approved_folder(),
        "get_load_client_app_fn": lambda **_: load_approved,
    }
    for name, function in ours.items():
        if not callable(
            getattr(process, name, None)
        ):  # another Flower than this was written for: run nothing
            sys.exit(
                f"this release of Flower has no {name}; its code cannot be held to what was"
                " approved"
            )
        setattr(process, name, function)
    flwr_clientapp()


def must_be_approved(fab: bytes, **_: Any) -> Path:
    """The folder of the approved code, if the bundle that came is just that.

    Raises:
        BundleRefused: it is not, by as little as one byte; or what is installed is no longer what
            was approved.
    """
    wanted = _approved()
    came = hashlib.sha256(fab).hexdigest()
    if f"sha256:{came}" != wanted["hash"] and _contents_of_zip(fab) != wanted["contents"]:
        raise BundleRefused(
            f"the code sha256:{came} that the server sent is not approved at this node; "
            f"approved is {wanted['hash']}. It was not unpacked"
        )
    return approved_folder()


def approved_folder() -> Path:
    """Where the approved code is. Raises `BundleRefused` where it was changed since."""
    wanted = _approved()
    folder = _home() / "apps" / wanted["folder"]
    if installed(folder) != wanted["contents"]:
        raise BundleRefused("the approved code at this node was changed or removed; nothing is run")
    return folder


def installed(folder: Path) -> str:
    """As `fedgraft.common.files.bundle.contents_of`, over the sources in an installed folder."""
    return _contents(
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
    )


def load_approved(*_: str) -> Any:
    """The ClientApp of the approved folder, whatever names the server's message has."""
    from flwr.clientapp.client_app import LoadClientAppError
    from flwr.supercore.object_ref import load_app

    return load_app("fedgraft.client.app:app", LoadClientAppError, approved_folder())


def _approved() -> dict[str, str]:
    try:
        wanted = json.loads((_home() / "bundle.json").read_text())
        if "/" in wanted["folder"] or wanted["folder"].startswith("."):
            raise ValueError
        return {key: str(wanted[key]) for key in ("folder", "hash", "contents")}
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleRefused("no code was ever approved at this node") from None


def _home() -> Path:
    return Path(os.environ[APPROVALS])


def _contents_of_zip(fab: bytes) -> str:
    """As `fedgraft.common.files.bundle.contents_of`; "" for what is no sound archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 10 * LARGEST:
                return ""
            names = archive.namelist()
            files = {name: archive.read(name) for name in names if name != ".info/CONTENT"}
    except Exception:  # whatever a hostile archive provokes: it is not the approved one
        return ""
    return _contents(files) if len(set(names)) == len(names) else ""


def _contents(files: dict[str, bytes]) -> str:
    lines = sorted(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()
    )
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


if __name__ == "__main__":
    main()

"""What a hospital's administrator does: write node.yaml, approve a plan, keep approvals from the
node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fedgraft.client.node.approve import approve, propose
from fedgraft.client.node.node_file import load_node
from fedgraft.common.extensions import read_offered
from fedgraft.common.files.bundle import build_bundle
from fedgraft.common.files.yaml_file import dump_yaml
from fedgraft.common.plan.plan import Plan

WITHOUT_RIGHTS = "-dac_override,-dac_read_search,-fowner,-chown,-setuid,-setgid"
NOBODY = 65534


def write_node_file(source: Path, home: Path, connection: Mapping[str, str]) -> Path:
    """Write a hospital's own node.yaml into its folder: what `source` says, approvals, and how it
    connects. Return its path.
    """
    home.mkdir(parents=True, exist_ok=True)
    content = load_node(source).model_dump(mode="json", exclude_unset=True, exclude_none=True)
    content["connection"] = dict(connection)
    content["approvals"] = "approvals"
    content.setdefault("policy", {}).setdefault("approved_plans", "recorded")
    Path(content["store"]).mkdir(parents=True, exist_ok=True)
    file = home / "node.yaml"
    file.write_text(dump_yaml(content))
    return file


def approve_plan(file: Path, plan: Plan, base: Path, who: str) -> None:
    """Approve a plan and this code at a node, as `fedgraft node approve` does; with it the
    extensions that this process was offered.

    Args:
        base: the folder of the plan's file.
    """
    node = load_node(file)
    bundle = build_bundle(extensions=read_offered())
    with administered(node.approvals):
        approve(node, propose(node, plan, bundle, base=base), who)


@contextlib.contextmanager
def administered(approvals: Path) -> Iterator[None]:
    """Let the administrator's folder be written in the block; after it the node can only read what
    is in it.
    """
    is_root = os.geteuid() == 0
    if not is_root and approvals.exists():
        _change_all(approvals, _allow_writing)
    yield
    _change_all(approvals, _give_away if is_root else _forbid_writing)


def without_rights(command: list[str]) -> list[str]:
    """Return what runs a command without root's rights."""
    if os.geteuid() != 0:
        return command
    dropped = []
    if shutil.which("setpriv"):
        dropped = ["setpriv", "--bounding-set", WITHOUT_RIGHTS, "--inh-caps", "-all"]
    return [*dropped, *command, "--allow-root"]


def _change_all(folder: Path, change: Callable[[Path], None]) -> None:
    for path in [folder, *folder.rglob("*")]:
        change(path)


def _allow_writing(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o200)


def _forbid_writing(path: Path) -> None:
    path.chmod(path.stat().st_mode & ~0o222)


def _give_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)

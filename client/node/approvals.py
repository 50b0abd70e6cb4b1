"""What people at this hospital approved: the code that may run here, and the plans.

approvals/                      owned by the administrator; the node's user reads it and cannot
                                write
  approvals.jsonl               who approved or withdrew what, and when; hash-chained
  bundle.json                   the code's hashes and folder, for `client/site/launcher.py`
  apps/<name.version.hash>/     the code itself, where Flower looks for it (`FLWR_HOME` is this
                                folder)
"""

from __future__ import annotations

import compileall
import getpass
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from fedgraft.client.node.node_file import Node
from fedgraft.client.site.launcher import installed_contents
from fedgraft.client.store.chain_entry import Entry
from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.files.bundle import Bundle, unpacked
from fedgraft.common.files.whole_files import write_whole


@dataclass(frozen=True)
class Approvals:
    """The administrator's folder. Reading it needs no right to write it.

    approvals = Approvals(node.approvals)
    agreement_hash(plan) in approvals.plans()
    approvals.install(bundle, by="Dr. A")
    """

    folder: Path

    @property
    def journal(self) -> Journal:
        """The record, readable by everyone: it holds no secret."""
        return Journal(self.folder / "approvals.jsonl", mode=0o644)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────
    def plans(self) -> frozenset[str]:
        """Return the hashes of the plans that are approved and not withdrawn.

        Raises `Refused` where the record is damaged.
        """
        problems = self.journal.verify()
        if problems:
            what = f"this node's record of approvals does not verify ({problems[0]})"
            raise Refused(Code.POLICY, f"policy: {what}")
        approved: set[str] = set()
        for entry in self.journal.entries():
            if entry.kind == "plan":
                approved.add(entry.body["plan"])
            elif entry.kind == "withdrawn":
                approved.discard(entry.body["plan"])
        return frozenset(approved)

    def bundle(self) -> dict[str, str] | None:
        """Return the installed code: `folder`, `hash`, `contents`; None: nothing ever was."""
        file = self.folder / "bundle.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"it cannot be read: {error}",
                where=str(file),
                remedy="run `fedgraft node approve` again, as the administrator",
            ) from None

    def app_folder(self, bundle: Mapping[str, str]) -> Path:
        """Return where the code of `bundle()` lies."""
        return self.folder / "apps" / bundle["folder"]

    def writable(self) -> list[Path]:
        """Return what of the approved code this process could change; it must be nothing."""
        apps = self.folder / "apps"
        paths = [
            self.folder,
            self.folder / "bundle.json",
            self.folder / "approvals.jsonl",
            apps,
        ]
        if apps.is_dir():
            paths += sorted(apps.rglob("*"))
        return [path for path in paths if path.exists() and os.access(path, os.W_OK)]

    def how_to_protect(self) -> str:
        """Return what to do where the node could change the approved code."""
        folder = self.folder
        return f"give it to the administrator: chown -R root {folder}; chmod -R go-w {folder}"

    # ── writing ───────────────────────────────────────────────────────────────────────────────────
    def record(self, kind: str, body: dict[str, Any], by: str = "") -> Entry:
        """Write down who did what. Raises `UserError` where this user may not."""
        try:
            return self.journal.append(kind, body | {"by": by or _person()})
        except Refused as refusal:
            remedy = (
                "run this as the folder's owner, such as `sudo fedgraft node approve …`, never as"
                " the node"
            )
            raise UserError(refusal.reason, where=str(self.folder), remedy=remedy) from None

    def install(self, bundle: Bundle, by: str = "") -> bool:
        """Put the code where the node will run it from, and make it the only one.

        The folder appears whole or not at all. Sources are compiled here, since the node's user
        cannot keep the result; the compiled files name the hash of their source and are not used
        for any other.

        Returns:
            Whether anything was done; False: it was there already.

        Raises:
            UserError: this user may not write there.
        """
        about = {"folder": bundle.folder, "hash": bundle.hash, "contents": bundle.contents}
        folder = self.app_folder(about)
        is_there = self.bundle() == about and folder.is_dir()
        if is_there and installed_contents(folder) == bundle.contents:
            return False
        try:
            self._put(bundle, folder)
            self.record("bundle", about, by)
            content = json.dumps(about, indent=1) + "\n"
            write_whole(self.folder / "bundle.json", content)
        except OSError as error:
            raise UserError(
                f"the approved code cannot be installed: {error.strerror or error}",
                where=str(folder.parent),
                remedy="run this as the administrator, who owns that folder",
            ) from None
        return True

    def _put(self, bundle: Bundle, folder: Path) -> None:
        """Make a folder of the code, and remove all others. Raises OSError."""
        apps = folder.parent
        apps.mkdir(parents=True, exist_ok=True)
        # the node's user reads it, whatever the administrator's umask
        self.folder.chmod(0o755)
        apps.chmod(0o755)
        fresh = Path(tempfile.mkdtemp(dir=apps, prefix=".new-"))
        try:
            _lay_out(bundle, fresh)
            if folder.exists():
                folder.rename(fresh.with_name(fresh.name + "-old"))
            fresh.rename(folder)
        finally:
            for rest in apps.glob(".new-*"):
                shutil.rmtree(rest)
        # an older release must not be runnable any more
        for other in apps.iterdir():
            if other != folder:
                shutil.rmtree(other)


def check_approved(node: Node, *, plan_hash: str | None, backbone: str | None) -> None:
    """Raise `Refused` unless this plan and this backbone may run at a node; None is not checked.

    Where the policy says `recorded`, those plans may that people approved there.
    """
    recorded = Approvals(node.approvals).plans
    node.policy.check_approved(plan_hash=plan_hash, backbone=backbone, recorded=recorded)


def _lay_out(bundle: Bundle, folder: Path) -> None:
    for name, content in unpacked(bundle).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    mode = PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode, stripdir=str(folder))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _person() -> str:
    """Return who is at the keyboard: the one who called sudo, else this user."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"

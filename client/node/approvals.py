"""What people at this hospital approved: the code that may run here, and the plans.

approvals/                      owned by the administrator; the node's user reads it and cannot
  write approvals.jsonl               who approved or withdrew what, and when; hash-chained
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
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from fedgraft.client.node.node_file import Node
from fedgraft.client.site.launcher import installed
from fedgraft.client.store.chain_entry import Entry
from fedgraft.client.store.journal import Journal
from fedgraft.common.errors import Code, Refused, UserError
from fedgraft.common.files.bundle import Bundle, unpacked
from fedgraft.common.files.whole_files import write_whole


@dataclass(frozen=True)
class Approvals:
    """The administrator's folder. Reading it needs no right to write it."""

    folder: Path

    @property
    def journal(self) -> Journal:
        """The record, readable by everyone: it holds no secret."""
        return Journal(self.folder / "approvals.jsonl", mode=0o644)

    def plans(self) -> frozenset[str]:
        """Hashes of the plans that are approved and not withdrawn. Raises `Refused` where the
        record is damaged.
        """
        problems = self.journal.verify()
        if problems:
            raise Refused(
                Code.POLICY,
                f"policy: this node's record of approvals does not verify ({problems[0]})",
            )
        approved: set[str] = set()
        for entry in self.journal.entries():
            if entry.kind == "plan":
                approved.add(entry.body["plan"])
            elif entry.kind == "withdrawn":
                approved.discard(entry.body["plan"])
        return frozenset(approved)

    def bundle(self) -> dict[str, str] | None:
        """The installed code: `folder`, `hash`, `contents`; None where nothing was ever
        installed.
        """
        try:
            return json.loads((self.folder / "bundle.json").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"it cannot be read: {error}",
                where=str(self.folder / "bundle.json"),
                remedy="run `fedgraft node approve` again, as the administrator",
            ) from None

    def record(self, kind: str, body: dict[str, Any], by: str = "") -> Entry:
        """Write down who did what. Raises `UserError` where this user may not."""
        try:
            return self.journal.append(kind, body | {"by": by or _person()})
        except Refused as refusal:
            raise UserError(
                refusal.reason,
                where=str(self.folder),
                remedy=(
                    "run this as the folder's owner, such as `sudo fedgraft node approve …`, never"
                    " as the node"
                ),
            ) from None

    def install(self, bundle: Bundle, by: str = "") -> bool:
        """Put the code where the node will run it from, and make it the only one; False: it was
        there already.

        The folder appears whole or not at all. Sources are compiled here, since the node's user
        cannot keep the result; the compiled files name the hash of their source and are not used
        for any other.

        Raises:
            UserError: this user may not write there.
        """
        about = {"folder": bundle.folder, "hash": bundle.hash, "contents": bundle.contents}
        place = self.folder / "apps" / bundle.folder
        if self.bundle() == about and place.is_dir() and installed(place) == bundle.contents:
            return False
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, place.parent):
                folder.chmod(0o755)  # the node's user reads it, whatever the administrator's umask
            fresh = Path(tempfile.mkdtemp(dir=place.parent, prefix=".new-"))
            try:
                _lay_out(bundle, fresh)
                if place.exists():
                    place.rename(fresh.with_name(fresh.name + "-old"))
                fresh.rename(place)
            finally:
                for left in place.parent.glob(".new-*"):
                    shutil.rmtree(left)
            for other in place.parent.iterdir():
                if other != place:  # an older release must not be runnable any more
                    shutil.rmtree(other)
            self.record("bundle", about, by)
            write_whole(self.folder / "bundle.json", json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"the approved code cannot be installed: {error.strerror or error}",
                where=str(place.parent),
                remedy="run this as the administrator, who owns that folder",
            ) from None
        return True

    def writable(self) -> list[Path]:
        """What of the approved code this process could change; it must be nothing."""
        places = [
            self.folder,
            self.folder / "bundle.json",
            self.folder / "approvals.jsonl",
            self.folder / "apps",
        ]
        if (self.folder / "apps").is_dir():
            places += sorted((self.folder / "apps").rglob("*"))
        return [place for place in places if place.exists() and os.access(place, os.W_OK)]


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
    compileall.compile_dir(
        folder, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH, stripdir=str(folder)
    )
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _person() -> str:
    """Who is at the keyboard: the one who called sudo, else this user."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"

"""What a preflight finds of the approved code, and what a start demands of it."""

from __future__ import annotations

import os

from fedgraft.client.node.approvals import Approvals
from fedgraft.client.node.finding import Finding, ok, skipped, wrong
from fedgraft.client.node.node_file import Node
from fedgraft.client.site.launcher import installed_contents
from fedgraft.common.errors import UserError
from fedgraft.common.files.bundle import build_bundle

_WHAT = "approved code"
_APPROVE = "as the administrator: fedgraft node approve PLAN --node FILE"


def check_approved_code(node: Node) -> Finding:
    """Return whether the installed code is what was approved, and the node cannot change it."""
    approvals = Approvals(node.approvals)
    try:
        bundle = approvals.bundle()
    except UserError as error:
        return wrong(_WHAT, error.what, error.remedy)
    if bundle is None:
        return wrong(_WHAT, "none: the node would refuse everything", _APPROVE)
    if installed_contents(approvals.app_folder(bundle)) != bundle["contents"]:
        remedy = f"find out who changed it; then, {_APPROVE}"
        return wrong(_WHAT, "what is installed is not what was approved", remedy)
    if os.geteuid() == 0:
        return skipped(_WHAT, "whole; whether the node could change it cannot be told as root")
    writable = approvals.writable()
    if writable:
        remedy = approvals.how_to_protect()
        return wrong(_WHAT, f"this user can change {writable[0]}", remedy)

    which = "another release's than this command"
    if bundle["contents"] == build_bundle().contents:
        which = "this release's"
    return ok(_WHAT, f"{which}, {bundle['hash'][:19]}…, not writable by this user")

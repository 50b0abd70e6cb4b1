"""Which operating systems this runs on; both doors, the command and the Python API, ask first."""

from __future__ import annotations

import sys

from fedgraft.common.errors import UserError

# as `sys.platform` has it
SUPPORTED = {"linux": "Linux", "darwin": "macOS"}


def check_system() -> None:
    """Raise `UserError` on a system that has no file locks and process groups as POSIX has them."""
    if sys.platform in SUPPORTED:
        return
    names = " and ".join(SUPPORTED.values())
    remedy = "use one of them; on Windows, its Linux subsystem (wsl --install) is one"
    raise UserError(f"fedgraft runs on {names}, and this is {sys.platform}", remedy=remedy)

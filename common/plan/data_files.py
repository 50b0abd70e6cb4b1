"""Where the files that a plan names lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from fedgraft.common.errors import UserError

SHARED_DATA = "../shared/data/"
# a data set that comes with scikit-learn
BUNDLED = "sklearn:"
DEFAULT_REMEDY = (
    "write its absolute path into the plan, or set FEDGRAFT_DATA to the folder that holds the data"
)


def resolve(path: str, base: Path | None, *, remedy: str = DEFAULT_REMEDY) -> Path:
    """Return the file that a plan means: absolute; beside the plan; in this folder; in
    `$FEDGRAFT_DATA`.

    Args:
        path: as the plan has it. `sklearn:…` names a data set of scikit-learn and passes through.
        base: the folder of the plan's file.
        remedy: what to do if it is nowhere, such as the command that makes it.

    Raises:
        UserError: it is nowhere; says where it was looked for.
    """
    if path.startswith(BUNDLED):
        return Path(path)
    candidates = _candidates(path, base)
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    looked = ", ".join(map(str, candidates))
    raise UserError(f"no such file; looked for {looked}", where=path, remedy=remedy)


def _candidates(path: str, base: Path | None) -> list[Path]:
    """Return where a file may lie, the likeliest first, each place once."""
    if Path(path).is_absolute():
        return [Path(os.path.abspath(path))]
    here = Path.cwd()
    shared = Path(os.environ.get("FEDGRAFT_DATA") or here.parent / "shared" / "data")
    candidates = [here / path, shared / path.removeprefix(SHARED_DATA)]
    if base is not None:
        candidates.insert(0, base / path)
    absolute = [Path(os.path.abspath(candidate)) for candidate in candidates]
    return list(dict.fromkeys(absolute))

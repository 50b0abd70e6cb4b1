"""Files by path or, where they come with fedgraft, by bare name: plans and studies."""

from __future__ import annotations

import os
from pathlib import Path

from fedgraft.common.errors import UserError
from fedgraft.common.files.mistakes import nearest


def ready_names(folder: Path) -> list[str]:
    """Return the bare names of the YAML files in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_file(name: str | Path, kind: str, folder: Path) -> Path:
    """Return the file of a plan or a study. One in the current folder goes before a ready one.

    Args:
        name: a path, or the bare name of a ready one.
        kind: what it is called in messages, "plan" or "study".
        folder: where the ready ones are.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    text = str(name)
    names = ready_names(folder)
    if os.path.isfile(path):
        return path
    if text in names:
        return folder / f"{text}.yaml"
    # a folder: the reader says so
    if os.path.exists(path):
        return path
    remedy = f"Give the path of a {kind}.yaml, or one of: {', '.join(names)}"
    guess = nearest(path.stem[:100], names)
    if guess is not None:
        remedy = f"did you mean `{guess}`? {remedy}"
    what = f"there is no such file and no ready {kind} of this name"
    raise UserError(what, where=text, remedy=remedy)

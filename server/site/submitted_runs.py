"""The runs that went through this server: what a resume needs, and no run's folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from fedgraft.server.site.server_file import Server


@dataclass(frozen=True)
class Submitted:
    """A run as it was submitted; a line of the state's `submitted.jsonl`.

    Attributes:
        run: Flower's id of it.
        name: the plan's.
        time: seconds since 1970.
        resume: whether it went on with an earlier one.
        plan: the plan's own file.
        weights: where the backbone's weights lie, or what they are called.
        out: the run's folder.
    """

    run: str = ""
    name: str = ""
    time: float = 0.0
    resume: bool = False
    plan: str = ""
    weights: str = ""
    out: str = ""


def add_submitted(server: Server, submitted: Submitted) -> None:
    """Write a run down."""
    with server.submitted.open("a") as file:
        file.write(json.dumps(asdict(submitted)) + "\n")


def read_submitted(server: Server) -> list[Submitted]:
    """Return what was submitted so far, oldest first; a line that is half written is left out."""
    if not server.submitted.exists():
        return []
    keys = {field.name for field in fields(Submitted)}
    runs = []
    for line in server.submitted.read_text().splitlines():
        if line.endswith("}"):
            content = json.loads(line)
            runs.append(Submitted(**{key: content[key] for key in keys & set(content)}))
    return runs

"""One of this folder's files as a Flower app of its own, for `flwr run`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "{module}:server"
clientapp = "{module}:client"
[tool.flwr.app.config]
"""


def write_project(
    app: Path, name: str, module: str, config: Mapping[str, str | int | bool]
) -> None:
    """Write `pyproject.toml` and the module, which has `server` and `client`, into the app's
    folder.

    Args:
        config: the keys that a run config may set, and their defaults.
    """
    app.mkdir(exist_ok=True)
    text = PROJECT.format(name=name, module=module)
    for key, value in config.items():
        text += f"{key} = {json.dumps(value)}\n"
    (app / "pyproject.toml").write_text(text)
    shutil.copy(Path(__file__).with_name(f"{module}.py"), app)

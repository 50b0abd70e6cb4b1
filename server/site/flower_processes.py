"""Flower's own commands as processes: their environment, their connection, and the truth about a
run.

`flwr run --stream` exits 0 even for a run that failed, so a run is submitted, followed by its
status, and judged by what `flwr list` says at the end. The folder that Flower works in is neutral:
from a checkout it would import the checkout's `fedgraft.client.app` and `fedgraft.server.app`
instead of the bundle's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.files.bundle import write_app

CONNECTION = "fedgraft"  # the name of the one connection in our config.toml
COMPLETED = "finished:completed"
RunConfig = Mapping[str, str | int | float | bool]


def program(name: str) -> str:
    """Where one of Flower's commands is. Raises `UserError` where it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UserError(
            "is not installed", where=name, remedy="pip install 'flwr[simulation]~=1.41.0'"
        )
    return found


def environment(home: Path) -> dict[str, str]:
    """This process's environment with Flower's home, no telemetry, and no installing of torch for
    each run.
    """
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@dataclass(frozen=True)
class Flower:
    """`flwr` against one SuperLink.

    Args:
        folder: a neutral folder; Flower's home is in it.
    """

    folder: Path

    @classmethod
    def connect(cls, folder: Path, address: str, ca: Path | None) -> Flower:
        """Write the connection into the folder; without a CA's certificate it is not encrypted."""
        flower = cls(folder)
        flower.home.mkdir(parents=True, exist_ok=True)
        trust = "insecure = true" if ca is None else f"root-certificates = {json.dumps(str(ca))}"
        (flower.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress ='
            f' "{address}"\n{trust}\n'
        )
        return flower

    @property
    def home(self) -> Path:
        """FLWR_HOME."""
        return self.folder / "home"

    def call(self, *arguments: str) -> dict[str, Any]:
        """`flwr … --format json`, parsed.

        Raises:
            RunFailed: it failed; carries Flower's own words.
        """
        done = subprocess.run(
            [program("flwr"), *arguments, "--format", "json"],
            cwd=self.folder, env=environment(self.home), capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError:
            raise RunFailed(
                f"flwr {arguments[0]} failed: {(done.stderr or done.stdout).strip()[-800:]}"
            ) from None
        if not answer.get("success"):
            raise RunFailed(f"flwr {' '.join(arguments[:2])}: {_words(answer)}")
        return answer

    def bundled(self) -> Path:
        """The folder of our own app, written anew from the installed release."""
        shutil.rmtree(self.folder / "app", ignore_errors=True)
        return write_app(self.folder / "app")

    def submit(self, app: Path | str, run_config: RunConfig, *more: str) -> str:
        """Start a run of an app's folder, which Flower bundles, or of an app that its hub has by
        that name; its id.
        """
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        return str(
            self.call("run", str(app), CONNECTION, "--run-config", settings, *more)["run-id"]
        )

    def status(self, run_id: str) -> str:
        """`pending`, `starting`, `running`, or `finished:` and how."""
        return str(self.call("list", CONNECTION, "--run-id", run_id)["runs"][0]["status"])

    def stop(self, run_id: str) -> None:
        """Stop a run."""
        self.call("stop", run_id, CONNECTION)

    def log(self, run_id: str) -> str:
        """The last lines of the ServerApp's log, as Flower kept them."""
        done = subprocess.run(
            [program("flwr"), "log", run_id, CONNECTION, "--show"],
            cwd=self.folder, env=environment(self.home), capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "\n".join(done.stdout.splitlines()[-15:])


def _words(answer: Mapping[str, Any]) -> str:
    """What went wrong, from Flower's JSON."""
    said = str(answer.get("error-message") or answer.get("error") or answer).strip()
    if "SuperLink is unavailable" in said:
        return "the SuperLink does not answer\n  → is it running? fedgraft server start server.yaml"
    return said[-800:]

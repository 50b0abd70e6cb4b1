"""Flower's own commands as processes: environment, connection, and the truth about a run.

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
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.files.bundle import app_files, write_app
from fedgraft.common.wire.proxies import spare_loopback
from fedgraft.server.site.run_status import NO_ANSWER, ask_status

# the name of the one connection in our config.toml
CONNECTION = "fedgraft"
COMPLETED = "finished:completed"
LONGEST_WORDS = 800
LOG_LINES = 15
RunConfig = Mapping[str, str | int | float | bool]


def program(name: str) -> str:
    """Return where one of Flower's commands is. Raises `UserError` where it is not installed."""
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return str(beside)
    path = shutil.which(name)
    if path is None:
        remedy = "pip install 'flwr[simulation]~=1.41.0'"
        raise UserError("is not installed", where=name, remedy=remedy)
    return path


def environment(home: Path) -> dict[str, str]:
    """Return this process's environment for Flower's commands.

    With Flower's home, no telemetry, and no installing of torch for each run.
    """
    binaries = Path(sys.executable).parent
    path = os.environ.get("PATH", "")
    changes = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{binaries}{os.pathsep}{path}",
    }
    whole = os.environ | changes
    spare_loopback(whole)
    return whole


@dataclass(frozen=True)
class Flower:
    """`flwr` against one SuperLink.

        flower = Flower.connect(folder, "127.0.0.1:9091", ca)
        run_id = flower.submit(flower.make_app(), {"plan": "digits", "out": "/runs/first"})
        flower.status(run_id)

    Args:
        folder: a neutral folder; Flower's home is in it.
    """

    folder: Path

    @classmethod
    def connect(cls, folder: Path, address: str, ca: Path | None) -> Flower:
        """Write the connection into the folder; without a CA's certificate it is not encrypted."""
        flower = cls(folder)
        flower.home.mkdir(parents=True, exist_ok=True)
        trust = "insecure = true"
        if ca is not None:
            trust = f"root-certificates = {json.dumps(str(ca))}"
        lines = [
            "[superlink]",
            f'default = "{CONNECTION}"',
            "",
            f"[superlink.{CONNECTION}]",
            f'address = "{address}"',
            trust,
        ]
        flower._config.write_text("\n".join(lines) + "\n")
        return flower

    @property
    def home(self) -> Path:
        """FLWR_HOME."""
        return self.folder / "home"

    @property
    def _config(self) -> Path:
        return self.home / "config.toml"

    def call(self, *arguments: str) -> dict[str, Any]:
        """Return what `flwr … --format json` prints, parsed.

        Raises:
            RunFailed: it failed; carries Flower's own words.
        """
        done = self._run(*arguments, "--format", "json")
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError:
            words = (done.stderr or done.stdout).strip()[-LONGEST_WORDS:]
            raise RunFailed(f"flwr {arguments[0]} failed: {words}") from None
        if not answer.get("success"):
            raise RunFailed(f"flwr {' '.join(arguments[:2])}: {_words(answer)}")
        return answer

    def make_app(self, extensions: Mapping[str, bytes] | None = None) -> Path:
        """Write our own app anew from the installed release; return its folder.

        Args:
            extensions: as of `fedgraft.common.files.bundle.app_files`.
        """
        shutil.rmtree(self.folder / "app", ignore_errors=True)
        return write_app(self.folder / "app", app_files(extensions=extensions))

    def submit(self, app: Path | str, run_config: RunConfig, *more: str) -> str:
        """Start a run and return its id.

        Args:
            app: a folder, which Flower bundles, or the name that its hub has an app by.
            run_config: what the apps read.
            more: arguments of `flwr run`.
        """
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        answer = self.call("run", str(app), CONNECTION, "--run-config", settings, *more)
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Return `pending`, `starting`, `running`, or `finished:` and how.

        Raises:
            RunFailed: the SuperLink does not answer, or knows no such run.
        """
        connection = tomllib.loads(self._config.read_text())["superlink"][CONNECTION]
        ca = connection.get("root-certificates")
        return ask_status(connection["address"], Path(ca) if ca else None, run_id)

    def stop(self, run_id: str) -> None:
        """Stop a run."""
        self.call("stop", run_id, CONNECTION)

    def log(self, run_id: str) -> str:
        """Return the last lines of the ServerApp's log, as Flower kept them."""
        done = self._run("log", run_id, CONNECTION, "--show")
        return "\n".join(done.stdout.splitlines()[-LOG_LINES:])

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program("flwr"), *arguments],
            cwd=self.folder,
            env=environment(self.home),
            capture_output=True,
            text=True,
            check=False,
        )


def _words(answer: Mapping[str, Any]) -> str:
    """Return what went wrong, from Flower's JSON."""
    words = answer.get("error-message") or answer.get("error") or answer
    text = str(words).strip()
    if "SuperLink is unavailable" in text:
        return NO_ANSWER
    return text[-LONGEST_WORDS:]

"""An environment for each peer under build/bench, with the peer's own pins, and torch from the main
environment.

    .venv/bin/python -m fedgraft.simulations.benchmarks.environments

A path file lets the main environment's packages be found behind the peer's own: pip takes those as
installed, so that a peer costs tens of megabytes and not five gigabytes.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "bench"
PEERS = {"pfl": "pfl==0.6.0", "nvflare": "nvflare==2.9.0"}


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return FOLDER / peer / "bin" / "python"


def make_environment(peer: str) -> str:
    """Make a peer's environment, unless it is there; return why that failed, or nothing."""
    home = FOLDER / peer
    done = home / "installed"
    if done.exists():
        return ""
    venv.create(home, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    (packages / "main.pth").write_text(sysconfig.get_path("purelib") + "\n")

    command = [str(python_of(peer)), "-m", "pip", "install", "--quiet", PEERS[peer]]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return lines[-1] if lines else "pip failed"
    done.touch()
    return ""


def main() -> None:
    """Make them all; say what could not be made. The table then says it, too."""
    for peer, package in PEERS.items():
        failure = make_environment(peer)
        print(f"{package}: {failure or 'installed'}")


if __name__ == "__main__":
    main()

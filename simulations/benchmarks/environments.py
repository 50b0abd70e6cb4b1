"""An environment for each peer under build/bench, with the peer's own pins, and torch from the main
environment.

A path file lets the main environment's packages be found behind the peer's own: pip takes those as
installed, so that a peer costs tens of megabytes and not five gigabytes. `python -m
fedgraft.simulations.benchmarks.environments` makes them.
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
    """The interpreter of a peer's environment."""
    return FOLDER / peer / "bin" / "python"


def make(peer: str) -> str:
    """Make a peer's environment, unless it is there; returns why that failed, or nothing."""
    done = FOLDER / peer / "installed"
    if done.exists():
        return ""
    venv.create(FOLDER / peer, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = FOLDER / peer / "lib" / version / "site-packages"
    (packages / "main.pth").write_text(sysconfig.get_path("purelib") + "\n")
    words = [str(python_of(peer)), "-m", "pip", "install", "--quiet", PEERS[peer]]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode:
        return (ran.stderr.strip().splitlines() or ["pip failed"])[-1]
    done.touch()
    return ""


def main() -> None:
    """Make them all; say what could not be made. The table then says it, too."""
    for peer, package in PEERS.items():
        print(f"{package}: {make(peer) or 'installed'}")


if __name__ == "__main__":
    main()

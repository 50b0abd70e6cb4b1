"""The command as people run it, and small data for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedgraft.simulations.deployment.processes import wait_until

TABLE_PLAN = """
name: tiny
task:
  kind: tabular-classification
  classes: [no, yes]
  columns: [a, b, c]
  ranges: [{columns: [a, b, c], low: -3, high: 4}]
backbone: {name: mlp, hidden: [8, 8]}
adapter: {method: lora, rank: 2}
train: {rounds: 2, batch_size: 8}
simulation: {data: [north.csv, south.csv, west.csv], partition: {kind: files}}
"""
IMAGE_PLAN = """
name: spots
task: {kind: image-classification, classes: [dark, light]}
backbone: {name: cifar-resnet20, image_size: 8}
adapter: {method: head}
train: {rounds: 1, batch_size: 16}
simulation: {nodes: 2, data: spots.npz, partition: {kind: iid}}
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def write_table(
    path: Path, rows: int = 40, seed: int = 0, labels: tuple[int, ...] = (0, 1)
) -> None:
    """Columns a, b, c and target, in which the classes differ."""
    rng = np.random.default_rng(seed)
    truth = np.resize(labels, rows)
    lines = [
        ",".join(f"{v + label:.3f}" for v in rng.normal(size=3)) + f",{label}\n" for label in truth
    ]
    path.write_text("a,b,c,target\n" + "".join(lines))


def write_images(path: Path, count: int = 60, seed: int = 0) -> None:
    """Grey 8×8 images, dark or light."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = (rng.integers(0, 100, (count, 8, 8)) + 120 * labels[:, None, None]).astype(np.uint8)
    np.savez(path, images=images, labels=labels)


def fill(folder: Path) -> Path:
    """The two plans and their data in a folder."""
    for seed, name in enumerate(("north", "south", "west")):
        write_table(folder / f"{name}.csv", seed=seed)
    write_images(folder / "spots.npz")
    (folder / "plan.yaml").write_text(TABLE_PLAN)
    (folder / "images.yaml").write_text(IMAGE_PLAN)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `plan.yaml` (tables), `images.yaml` and their data; the current folder."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`fedgraft …` in this process, which saves the seconds of importing torch; a traceback is an
    error here, too.
    """
    from fedgraft import cli

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capfd.readouterr()
        return Done(code, said.out, said.err)

    return run


@pytest.fixture
def program() -> list[str]:
    """The installed command of this environment."""
    return [str(Path(sys.executable).parent / "fedgraft")]


def run_to_its_end(words: Sequence[str | Path], cwd: Path) -> Done:
    """Run a program; return how it ended."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def process(programs: Path) -> Callable[..., Done]:
    """`fedgraft …` as a process of its own: (arguments, cwd) → how it ended."""
    return lambda *words, cwd: run_to_its_end([programs / "fedgraft", *words], cwd)


@pytest.fixture
def installed(program: list[str]) -> Callable[..., Done]:
    """The same with the installed command, which imports everything itself."""
    return lambda *words, cwd: run_to_its_end([*program, *words], cwd)


def wait_for_first_round(run: Path) -> None:
    """Wait until the first round of a deployment's run is finished: on a busy machine its processes
    take minutes to be there.
    """
    first = run / "checkpoints" / "round-0001"
    wait_until("the first round is finished", first.is_dir, 300)

"""examples/ work as they are, in a folder whose other files have the rooms' names."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedgraft
from tests.docs.blocks import read_blocks

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNNER = Path(__file__).with_name("run_examples.py")
FILES = ("first_federation.py", "own_table.py", "private_budget.py", "first_federation.ipynb")
# each run by a test of its own
BOXES = "boxes_of_masks.py"
NOTES = "synthetic_notes.py"
PAIR = "clip_of_digits.py"
HOSTILE = ("client", "server", "common", "simulations")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Path:
    """A folder where every example was run, beside files that must not be imported."""
    folder = tmp_path_factory.mktemp("examples")
    for name in HOSTILE:
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user is imported')\n")
    for name in FILES:
        shutil.copy(EXAMPLES / name, folder)
    shutil.copy(RUNNER, folder)
    subprocess.run([programs / "python", RUNNER.name, *FILES], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def shown(folder: Path) -> Mapping[str, str]:
    """What each example printed."""
    return {name: (folder / f"{name}.out").read_text() for name in FILES}


def test_every_example_is_run() -> None:
    """One that is not rots."""
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert found == {*FILES, BOXES, NOTES, PAIR}


def test_boxes_around_the_parts_of_masks(tmp_path: Path) -> None:
    """A box beside its thing, a speck that is taken for one, or images that are not found."""
    mask = np.zeros((20, 30), np.uint8)
    mask[2:8, 3:9] = 1
    mask[10:18, 15:27] = 1
    mask[0, 29] = 1
    for name in ("image", "mask"):
        Image.fromarray(mask * 255).save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("path,mask,site\nimage.png,mask.png,north\n")
    command = [sys.executable, EXAMPLES / BOXES, "list.csv", "site", "out"]
    subprocess.run(command, cwd=tmp_path, check=True)
    content = json.loads((tmp_path / "out" / "north.json").read_text())
    assert [each["bbox"] for each in content["annotations"]] == [[3, 2, 6, 6], [15, 10, 12, 8]]
    (image,) = content["images"]
    assert (image["width"], image["height"]) == (30, 20)
    assert (tmp_path / "out" / image["file_name"]).exists()


@pytest.mark.slow
def test_texts_tell_apart_what_no_caption_named(tmp_path: Path) -> None:
    """A head of texts that points elsewhere than the pair's images would be right in one of ten:
    the plan that docs/zero-shots.md shows, on what its example makes.
    """
    pytest.importorskip("transformers")
    subprocess.run([sys.executable, EXAMPLES / PAIR, "."], cwd=tmp_path, check=True)
    text = (EXAMPLES.parent / "docs" / "zero-shots.md").read_text()
    (plan,) = [block.text for block in read_blocks(text) if block.text.startswith("name:")]
    (tmp_path / "plan.yaml").write_text(plan)
    done = fedgraft.simulate(
        tmp_path / "plan.yaml", out=tmp_path / "run", baselines=[], progress=False
    )
    assert done.metrics.loc["shared model", "accuracy"] > 0.7


def test_notes_whose_entities_lie_where_they_are_said_to(tmp_path: Path) -> None:
    """Figures of docs/tokens.md that nobody can repeat, or spans beside the names."""
    for out in ("one", "again"):
        command = [sys.executable, EXAMPLES / NOTES, out, "40,30,20"]
        subprocess.run(command, cwd=tmp_path, check=True)
    found: dict[str, int] = {}
    for name, notes in (("north", 40), ("south", 30), ("west", 20)):
        written = (tmp_path / "one" / f"{name}.csv").read_bytes()
        assert written == (tmp_path / "again" / f"{name}.csv").read_bytes()
        with (tmp_path / "one" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == notes
        for row in rows:
            for span in row["target"].split("|"):
                if span == "none":
                    continue
                start, end, kind = span.split(":")
                entity = row["text"][int(start) : int(end)]
                assert entity == entity.strip()
                assert (kind == "PHONE") <= bool(re.search(r"\d{4}$|\d{6,7}$", entity))
                found[kind] = found.get(kind, 0) + 1
    assert set(found) == {"NAME", "DATE", "PHONE", "PLACE"}


@pytest.mark.slow
def test_a_first_federation(folder: Path, shown: Mapping[str, str]) -> None:
    """The shared model is better than a hospital alone, and there is a picture of it."""
    text = shown["first_federation.py"]
    accuracy = {
        name: float(value) for name, value in re.findall(r"^([a-z ]+?) +(\d\.\d+) ", text, re.M)
    }
    assert accuracy["shared model"] > accuracy["alone"] > accuracy["head"] / 2, text
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_tables_of_two_hospitals(shown: Mapping[str, str]) -> None:
    """A hospital that lacks a column takes part."""
    text = shown["own_table.py"]
    assert re.search(r"^hospital-b +0\.\d+ +18$", text, re.M), text
    assert "row 1" in text


@pytest.mark.slow
def test_a_budget_over_three_runs(shown: Mapping[str, str]) -> None:
    """The second run counts on top of the first, and the third is refused."""
    text = shown["private_budget.py"]
    first, second = re.findall(r"ε = (\d\.\d+) for this plan, (\d\.\d+) for all so far", text)
    assert first[0] == first[1] == "3.00", text
    assert 3 < float(second[1]) < 4.5
    assert "would pass the ceiling of 4.5" in text


@pytest.mark.slow
def test_the_notebook_shows_what_it_keeps(shown: Mapping[str, str]) -> None:
    """Its kept outputs are what its cells give, numbers aside; and it is small."""
    file = EXAMPLES / "first_federation.ipynb"
    assert file.stat().st_size < 100_000
    kept: list[str] = []
    for cell in json.loads(file.read_text())["cells"]:
        for output in cell.get("outputs", []):
            kept.append("".join(output["data"]["text/plain"]))
    assert words("\n".join(kept)) == words(shown["first_federation.ipynb"])


def words(text: str) -> list[str]:
    return re.sub(r"\d+(\.\d+)?", "#", text).split()

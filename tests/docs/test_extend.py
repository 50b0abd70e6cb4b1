"""docs/extend.md followed word by word: its files are written, its lines added to a copy of the
house, and what it says to try is run there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks, read_page

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("run_trials.py")

# files of the table of DESIGN §3: one file and one line; a step is there for either end
FILES = {
    "Task": 1,
    "Input": 1,
    "Family": 1,
    "Method": 1,
    "Reader": 1,
    "Rule": 1,
    "Release step": 2,
    "Attack": 1,
}
TOGETHER = "All together: a new kind of data"
# recipes that build on others
NEEDS = {"Family": ("Input",), TOGETHER: ("Input", "Family", "Reader")}


@dataclass
class Recipe:
    """What the page says of one seam.

    Attributes:
        files: new files by their path in the repository.
        changes: (path, block) where `+` marks a line that is added, and the others are there.
        trials: what to try.
    """

    files: dict[str, str] = field(default_factory=dict)
    changes: list[tuple[str, str]] = field(default_factory=list)
    trials: list[str] = field(default_factory=list)

    def added_lines(self) -> list[str]:
        """Return the lines that are added to files that are there."""
        lines: list[str] = []
        for _, block in self.changes:
            lines += [line[1:] for line in block.splitlines() if line.startswith("+")]
        return lines


def read_recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for section in read_page("extend.md").split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        recipe = Recipe()
        for block in read_blocks(text):
            if block.language == "diff":
                recipe.changes.append((block.title, block.text))
            elif block.title:
                recipe.files[block.title] = block.text
            else:
                recipe.trials.append(block.text)
        if recipe.trials:
            recipes[title] = recipe
    return recipes


RECIPES = read_recipes()


def apply(recipe: Recipe, house: Path) -> None:
    """Write a recipe's files into a house, and add its lines."""
    for path, content in recipe.files.items():
        file = house / "fedgraft" / path
        assert not file.exists(), f"{path} is there already"
        file.write_text(content)
    for path, block in recipe.changes:
        file = house / "fedgraft" / path
        lines = block.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if not line.startswith("+"))
        after = "".join(line[1:] for line in lines)
        text = file.read_text()
        assert text.count(before) == 1, f"{path} does not say\n{before}"
        file.write_text(text.replace(before, after))


def make_job(title: str, folder: Path, backbone: Path) -> Path:
    """Make a folder with a copy of the house that the recipe was followed in, and its trial."""
    house = folder / "house"
    # the rooms are links in the package; in a copy they are folders
    shutil.copytree(
        ROOT / "fedgraft", house / "fedgraft", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in (*NEEDS.get(title, ()), title):
        apply(RECIPES[name], house)
    (folder / "trial.py").write_text("\n".join(RECIPES[title].trials))
    shutil.copytree(backbone, folder / "here" / "runs" / "backbones")
    return folder


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> dict[str, Path]:
    """Every recipe followed and tried."""
    work = tmp_path_factory.mktemp("extend")
    # two passes make a backbone that is good enough to try things on
    short = ("--set", "pretrain.epochs=2")
    command = [programs / "fedgraft", "pretrain", "digits", *short]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    backbone = work / "runs" / "backbones"
    jobs: dict[str, Path] = {}
    for number, title in enumerate(RECIPES):
        jobs[title] = make_job(title, work / str(number), backbone)
    subprocess.run([sys.executable, RUNNER, *jobs.values()], check=True)
    return jobs


def test_the_page_has_a_recipe_for_each_seam() -> None:
    """A seam without a recipe is a seam that nobody dares to use."""
    assert [*RECIPES] == [*FILES, TOGETHER]


@pytest.mark.parametrize("title", FILES)
def test_a_member_is_one_file_and_one_line(title: str) -> None:
    """Where a member needs more, the seam leaks."""
    recipe = RECIPES[title]
    lines = [line for line in recipe.added_lines() if not line.startswith("from ")]
    assert len(recipe.files) == FILES[title]
    assert len(lines) == FILES[title]


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works(title: str, jobs: dict[str, Path]) -> None:
    """A recipe that does not work costs whoever follows it a day."""
    output = (jobs[title] / "output").read_text()
    assert (jobs[title] / "status").read_text() == "0", output

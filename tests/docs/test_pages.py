"""What the pages say is so: the tutorial works word by word, examples of files are valid, each page
says for whom it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml

from fedgraft.client.node.node_file import check_node_file
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks import TASKS
from fedgraft.simulations.study.study_file import Study
from tests.docs.blocks import Block, read_blocks, read_page
from tests.golden.test_golden import on_another_machine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# results.md is written by the benchmarks; the site says above it for whom it is
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "results"]


# ── the tutorial ──────────────────────────────────────────────────────────────────────────────────
def mask(text: str) -> list[str]:
    """Return the words of an output, without its numbers, hashes and the width of its columns."""
    masked = re.sub(r"\b[0-9a-f]{64}\b|[0-9][0-9.,]*", "#", text)
    return re.sub(r"[━─┏┓┗┛┡┩└┘┳┴╇┬┃│]+", " ", masked).split()


def run_block(block: Block, folder: Path, programs: Path) -> str:
    """Run a block of commands as they are typed. Return what they print."""
    commands = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": commands, "COLUMNS": "100", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        ["bash", "-e", "-c", block.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_works_word_by_word(tmp_path: Path, programs: Path) -> None:
    """Whoever types what the first page says, into an empty folder, sees what it shows; and what
    the README's Python prints.
    """
    shown = ""
    for block in read_blocks(read_page("first-federation.md")):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "sh":
            shown = run_block(block, tmp_path, programs)
        elif block.language == "text":
            assert mask(shown) == mask(block.text)

    (script,) = [block.text for block in read_blocks(README) if block.language == "python"]
    (tmp_path / "readme.py").write_text(script)
    shown = run_block(Block("sh", "", "python readme.py"), tmp_path, programs)
    printed = textwrap.dedent(README.partition(script)[2].split("\n\n")[1]) + "\n"
    assert mask(shown) == mask(printed)
    # another processor rounds otherwise
    if not on_another_machine():
        assert shown == printed


def test_the_readme_is_one_page() -> None:
    """It grew to 443 lines once."""
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100
    for link in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / link).exists(), link


# ── examples of files ─────────────────────────────────────────────────────────────────────────────
def yamls_of(page: str, first_key: str) -> list[dict]:
    """Return the YAML blocks of a page that begin with a key."""
    blocks = [block.text for block in read_blocks(read_page(page)) if block.language == "yaml"]
    return [yaml.safe_load(text) for text in blocks if text.startswith(f"{first_key}:")]


def yaml_of(page: str, first_key: str) -> dict:
    """Return the one YAML block of a page that begins with a key."""
    (found,) = yamls_of(page, first_key)
    return found


def test_the_study_of_the_page_is_one() -> None:
    """A study that is refused is a bad beginning."""
    Study.model_validate(yaml_of("leaks.md", "name"))


def test_the_policy_of_the_page_is_one(tmp_path: Path) -> None:
    """A privacy officer copies it into a node's file."""
    node = {"name": "a", "data": {"path": "x"}, "store": "store"}
    node |= yaml_of("privacy.md", "policy")
    opened = check_node_file(node, {}, tmp_path / "node.yaml")
    assert opened.policy.dp_required


def test_data_and_task_of_the_page_are_valid(tmp_path: Path) -> None:
    """A hospital's engineer copies them, too."""
    node = {"name": "a", "store": "store"} | yaml_of("your-data.md", "data")
    assert check_node_file(node, {}, tmp_path / "node.yaml").data.columns.label == "finding"
    inputs: list[int] = []
    for task in yamls_of("your-data.md", "task"):
        plan = {"name": "p", "backbone": {"name": "mlp"}, "adapter": {"method": "head"}}
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(plan | task))
        inputs.append(load_plan(file).task.inputs)
    # a category of two values is two inputs
    assert inputs == [4, 4]


@pytest.mark.parametrize("page", ["tasks.md", "survival.md", "boxes.md"])
def test_questions_of_the_pages_are_valid(page: str) -> None:
    """A question that is copied from the page, and refused."""
    for block in yamls_of(page, "task"):
        assert TaskSection.model_validate(block["task"]).question in TASKS


# ── for whom ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_first_for_whom_it_is(page: Path) -> None:
    """A reader who is not meant should see that in the first sentence."""
    title, _, text = page.read_text().partition("\n")
    assert title.startswith("# ")
    assert re.match(r"\s*For [a-z]", text), f"{page.name} does not begin with `For …`"

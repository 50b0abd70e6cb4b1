"""What benchmarks measured, as files: docs/results/NAME.json, each table with the command that gave
it, on which machine, when, and at which commit.

    table = ResultTable(("ε", "accuracy"))
    table.add("1", "0.719 ± 0.090")
    record("privacy", "accuracy", table, packages=("torch",))

docs/results.md is made of these files by `results_page.py`.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fedgraft.common.files.whole_files import write_whole

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "results"


class ResultTable:
    """A table as it is measured, row by row; cells are Markdown.

    table = ResultTable(("network", "seconds"))
    table.add("ResNet-18", "1.9")
    print(table.to_markdown())
    """

    def __init__(self, head: Sequence[str], *, words: Sequence[int] = (0,)) -> None:
        """Begin a table without rows; `words` are the columns that hold no numbers."""
        self.head = list(head)
        self.words = list(words)
        self.rows: list[list[str]] = []

    def add(self, *cells: str) -> None:
        """Add a row."""
        if len(cells) != len(self.head):
            raise ValueError(f"{len(cells)} cells under {len(self.head)} columns")
        self.rows.append(list(cells))

    def print_head(self) -> None:
        """Print the first two lines in Markdown."""
        print(write_head(self.head, self.words))

    def print_last(self) -> None:
        """Print the row that was added last, at once."""
        print(write_line(self.rows[-1]), flush=True)

    def to_markdown(self) -> str:
        """Return the whole table."""
        return write_markdown(self.head, self.words, self.rows)


class Circumstances(BaseModel):
    """Under which a table was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    commit: str
    machine: str
    versions: dict[str, str]


class RecordedTable(BaseModel):
    """A table of results as it is kept: columns, rows, and what gave them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    measured: Circumstances
    head: list[str]
    words: list[int] = [0]
    rows: list[list[str]]
    # what the command said besides
    notes: list[str] = []

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return write_markdown(self.head, self.words, self.rows)


class ResultFile(BaseModel):
    """The tables of one benchmark, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables: dict[str, RecordedTable]


# ── files ─────────────────────────────────────────────────────────────────────────────────────────
def record(
    name: str,
    table_name: str,
    table: ResultTable,
    *,
    packages: Sequence[str] = ("torch",),
    notes: Sequence[str] = (),
    command: str = "",
    folder: Path = FOLDER,
) -> None:
    """Put a table into docs/results/NAME.json; the file's other tables stay as they are.

    Args:
        name: of the file, the benchmark's.
        table_name: as the section's text names it.
        packages: whose versions matter.
        notes: sentences that belong under the table.
        command: what gives the table again; default: the command that runs now.
    """
    if not folder.is_dir():
        print(f"not recorded: {folder} is not there", file=sys.stderr)
        return
    path = folder / f"{name}.json"
    tables = dict(read_result_file(path).tables) if path.exists() else {}
    tables[table_name] = RecordedTable(
        command=command or current_command(),
        measured=current_circumstances(packages),
        head=table.head,
        words=table.words,
        rows=table.rows,
        notes=list(notes),
    )
    write_whole(path, write_json(ResultFile(tables=tables)))
    print(f"recorded in {path}", file=sys.stderr)


def read_result_file(path: Path) -> ResultFile:
    """Return what a file of results says. Raise `ValueError` where it is not one."""
    return ResultFile.model_validate_json(path.read_text(encoding="utf-8"))


def write_json(file: ResultFile) -> str:
    """Return the text of a file of results."""
    content = file.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


# ── circumstances ─────────────────────────────────────────────────────────────────────────────────
def current_command() -> str:
    """Return the command that runs now, as a person writes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec else Path(sys.argv[0]).name
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def current_circumstances(packages: Sequence[str]) -> Circumstances:
    """Return the date, the commit, the machine and the versions of Python and of packages."""
    versions = {"python": platform.python_version()}
    for package in packages:
        versions[package] = version(package)
    return Circumstances(
        date=datetime.now(UTC).date().isoformat(),
        commit=_commit(),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        versions=versions,
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# ── Markdown ──────────────────────────────────────────────────────────────────────────────────────
def write_markdown(head: Sequence[str], words: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; columns of words to the left, of numbers to the right."""
    lines = [write_head(head, words)]
    lines += [write_line(row) for row in rows]
    return "\n".join(lines)


def write_head(head: Sequence[str], words: Sequence[int]) -> str:
    """Return the first two lines of a table."""
    rules = "|"
    for number in range(len(head)):
        rules += "---|" if number in words else "---:|"
    return f"{write_line(head)}\n{rules}"


def write_line(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"

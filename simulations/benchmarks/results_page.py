"""docs/results.md, written from docs/results/: what benchmarks recorded, and the text beside it.

    .venv/bin/python -m fedgraft.simulations.benchmarks.results_page

NAME.json holds the tables of one benchmark, NAME.md what is to be said of them. In the text a line
`{table NAME}` is the place of a table; the command that gave it and when and where it was measured
are written under it. Tables that the text does not name follow it, and files that no text belongs
to come last. The first line of a text says for the figures of which commit it was written: where a
table is of another, the page says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fedgraft.common.files.whole_files import write_whole
from fedgraft.simulations.benchmarks.result_files import (
    FOLDER,
    RecordedTable,
    read_result_file,
)

PAGE = FOLDER.with_suffix(".md")
# sections in the order of the page
SECTIONS = (
    "digits",
    "medical",
    "heart",
    "one-round",
    "icu",
    "survival",
    "families",
    "generate",
    "privacy",
    "lora",
    "studies",
    "leaks",
    "deployment",
    "handout",
    "many-nodes",
    "large-models",
    "bfloat16",
    "cards",
    "peers",
    "steps",
    "cost",
)
HEAD = """# Results

What fedgraft reaches, what privacy costs, what leaks, and what it takes, as measured. Benchmarks
write their tables into docs/results/, and `python -m fedgraft.simulations.benchmarks.results_page`
makes this page of them; nothing in it is edited by hand. Under each table stands the command that
gives it again.
"""
MARKER = re.compile(r"^\{table ([a-z0-9-]+)\}$", re.MULTILINE)
WRITTEN_FOR = re.compile(r"<!-- written for the figures of ([0-9a-z]+) -->\n")


def main() -> None:
    """Write the page."""
    write_whole(PAGE, render_page(FOLDER))
    print(f"written: {PAGE}")


def render_page(folder: Path) -> str:
    """Return the page from all that lies in a folder of results."""
    parts = [HEAD]
    for name in list_sections(folder):
        parts.append(render_section(folder, name))
    return "\n".join(parts)


def list_sections(folder: Path) -> list[str]:
    """Return the names of all sections: those that are known in their order, then any others."""
    there = set()
    for path in folder.iterdir():
        if path.suffix in (".json", ".md"):
            there.add(path.stem)
    known = [name for name in SECTIONS if name in there]
    return known + sorted(there.difference(SECTIONS))


def render_section(folder: Path, name: str) -> str:
    """Return a section: its text, with its tables where the text names them and after it.

    Raises:
        ValueError: the text names a table that nobody recorded.
    """
    results = folder / f"{name}.json"
    tables = read_result_file(results).tables if results.exists() else {}
    text = _read_text(folder / f"{name}.md", name)
    commit, text = _split_commit(text)
    named = MARKER.findall(text)
    for table in named:
        if table not in tables:
            raise ValueError(f"{name}.md names the table {table}, which {name}.json does not have")

    def place_table(match: re.Match[str]) -> str:
        return render_table(tables[match.group(1)])

    parts = [MARKER.sub(place_table, text).strip()]
    for table in tables:
        if table not in named:
            parts.append(render_table(tables[table]))
    if commit and _has_newer(tables, commit):
        parts.append(f"*The text above was written for figures measured at {commit}.*")
    return "\n\n".join(parts) + "\n"


def render_table(table: RecordedTable) -> str:
    """Return a table, and under it what gave it."""
    measured = table.measured
    circumstances = [f"{measured.date}, commit {measured.commit}", measured.machine]
    circumstances += [f"{name} {number}" for name, number in measured.versions.items()]
    words = "; ".join(filter(None, circumstances))
    lines = [table.to_markdown(), f"`{table.command}` ({words})"]
    if table.notes:
        lines.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(lines)


def _read_text(path: Path, name: str) -> str:
    if path.exists():
        return path.read_text(encoding="utf-8")
    return f"## {name}\n"


def _split_commit(text: str) -> tuple[str, str]:
    match = WRITTEN_FOR.match(text)
    if match is None:
        return "", text
    return match.group(1), text[match.end() :]


def _has_newer(tables: Mapping[str, RecordedTable], commit: str) -> bool:
    return any(commit not in table.measured.commit for table in tables.values())


if __name__ == "__main__":
    main()

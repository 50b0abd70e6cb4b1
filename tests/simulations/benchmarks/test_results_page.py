"""docs/results.md: made of the files beside it, and of nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedgraft.simulations.benchmarks.result_files import (
    FOLDER,
    ResultTable,
    read_result_file,
    record,
)
from fedgraft.simulations.benchmarks.results_page import (
    PAGE,
    SECTIONS,
    render_page,
    render_section,
)


def measured(*cells: str) -> ResultTable:
    table = ResultTable(("what", "seconds"))
    table.add(*cells)
    return table


def test_the_page_says_what_the_files_say():
    """A page edited by hand, or results recorded and never shown: run results_page to mend it."""
    assert PAGE.read_text(encoding="utf-8") == render_page(FOLDER)


def test_every_section_has_its_text_and_its_tables():
    """A table without words on how it was measured; a text whose tables are gone."""
    for path in FOLDER.iterdir():
        assert path.stem in SECTIONS
        assert path.with_suffix(".md").exists()
        assert path.with_suffix(".json").exists()


def test_every_command_can_be_run():
    """A command of a module that was renamed, under a table that nobody can measure again."""
    for path in FOLDER.glob("*.json"):
        for table in read_result_file(path).tables.values():
            module = re.match(r"python -m fedgraft\.simulations\.benchmarks\.(\w+)", table.command)
            if module is None:
                assert table.command.startswith("fedgraft ")
            else:
                file = f"{module.group(1)}.py"
                assert (Path(FOLDER).parents[1] / "simulations" / "benchmarks" / file).exists()


def test_a_table_is_recorded_beside_the_others(tmp_path):
    """A second table of a benchmark that takes the first one's place; cells without their
    column.
    """
    record("speed", "first", measured("a", "1.0"), folder=tmp_path)
    record("speed", "second", measured("b", "2.0"), folder=tmp_path, notes=["idle"])
    record("speed", "first", measured("c", "3.0"), folder=tmp_path)
    tables = read_result_file(tmp_path / "speed.json").tables
    assert tables["first"].rows == [["c", "3.0"]]
    assert tables["second"].notes == ["idle"]
    assert "python" in tables["first"].measured.versions
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        measured("a")


def test_tables_stand_where_the_text_names_them(tmp_path):
    """A table in another's place or not at all; a text of other figures that does not say so."""
    record("speed", "first", measured("a", "1.0"), folder=tmp_path)
    record("speed", "second", measured("b", "2.0"), folder=tmp_path)
    text = "<!-- written for the figures of 0abc -->\n## Speed\n\n{table second}\n\nAfter it.\n"
    (tmp_path / "speed.md").write_text(text)
    section = render_section(tmp_path, "speed")
    order = [section.index(words) for words in ("## Speed", "| b |", "After it.", "| a |")]
    assert order == sorted(order)
    assert "was written for figures measured at 0abc" in section
    assert "{table" not in section
    (tmp_path / "speed.md").write_text("{table third}\n")
    with pytest.raises(ValueError, match="names the table third"):
        render_section(tmp_path, "speed")


def test_a_file_that_is_no_result_is_refused(tmp_path):
    """Figures whose circumstances are not known."""
    (tmp_path / "speed.json").write_text(json.dumps({"tables": {"a": {"rows": [["1"]]}}}))
    with pytest.raises(ValidationError, match="measured"):
        read_result_file(tmp_path / "speed.json")

"""Groups of people at one node: who is in which, and that nothing told gives away a group that is
kept back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.client.data.data_set import Records
from fedgraft.client.data.groups_of_people import choose_reported, find_groups
from fedgraft.client.node.approval_words import in_words
from fedgraft.client.node.approve import propose
from fedgraft.client.node.check import check_node
from fedgraft.client.node.node_file import load_node
from fedgraft.common.errors import UserErrors
from fedgraft.common.plan.evaluate_section import SubgroupsSection
from fedgraft.common.plan.plan import Plan
from fedgraft.common.plan.plan_file import amended, load_plan
from tests.records import open_records

BY_SEX = SubgroupsSection(column="sex", values=("f", "m"), names=("women", "men"))
BY_AGE = SubgroupsSection(column="age", edges=(50, 65))


def table(folder: Path, women: int = 12, men: int = 30) -> Records:
    """People of 40 to 80 years, the last two without a sex, the last without an age; all of them
    for tests but four.
    """
    sexes = ["f"] * women + ["m"] * men + ["", "x"]
    ages = [str(40 + 40 * at // len(sexes)) for at in range(len(sexes) - 1)] + [""]
    rows = [
        f"{at},{sex},{age},{at % 2}" for at, (sex, age) in enumerate(zip(sexes, ages, strict=True))
    ]
    (folder / "people.csv").write_text("\n".join(["a,sex,age,target", *rows]) + "\n")
    return open_records(
        path=folder / "people.csv",
        kind="tabular-classification",
        classes=["no", "yes"],
        columns=["a"],
        test_fraction=0.9,
    )


def test_each_row_is_in_the_group_of_its_own_value(tmp_path: Path) -> None:
    """Rows of the file taken for rows of the split, edges on the wrong side, an empty cell that is
    somebody.
    """
    records = table(tmp_path)
    rows = np.array([43, 0, 42, 11, 12, 41])
    by_sex, by_age = find_groups(BY_SEX, records, rows), find_groups(BY_AGE, records, np.arange(44))
    assert by_sex is not None
    assert by_age is not None
    assert by_sex.tolist() == [-1, 0, -1, 0, 1, 1]
    ages = [40 + 40 * at // 44 for at in range(43)]
    assert by_age.tolist() == [0 if age < 50 else 1 if age < 65 else 2 for age in ages] + [-1]
    assert BY_AGE.groups == ("below 50", "50 to below 65", "65 and above")
    assert find_groups(SubgroupsSection(column="scanner", values=("a",)), records, rows) is None


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    none=st.integers(0, 40),
    least=st.integers(1, 15),
)
def test_nothing_told_gives_a_small_group_away(sizes, none, least) -> None:
    """The one group that is kept back is all minus the others: ten women beside two hundred men are
    told by the men.

    Whoever has the sums of all and those told can work out sums of what is in no told group, and of
    nothing smaller.
    """
    member = np.repeat(np.arange(-1, len(sizes)), [none, *sizes])
    found = choose_reported(member, len(sizes), least)
    assert all(sizes[group] >= least for group in found)
    rest = none + sum(size for group, size in enumerate(sizes) if group not in found)
    assert rest == 0 or rest >= least or not found
    if all(size >= least for size in sizes) and (none == 0 or none >= least):
        assert found == list(range(len(sizes)))  # and nothing is kept back without need


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ("[{column: sex}]", "neither values and edges"),
        ("[{column: sex, values: [f], edges: [3]}]", "both values and edges"),
        ("[{column: age, edges: [65, 50]}]", "do not rise"),
        ("[{column: sex, values: [f, m], names: [women]}]", "1 names for 2 groups"),
        ("[{column: sex, values: [f]}, {column: sex, values: [m]}]", "there twice"),
    ],
)
def test_groups_that_cannot_be_are_told_at_the_door(columns: str, what: str) -> None:
    with pytest.raises(UserErrors, match=what):
        load_plan("heart", [f"evaluate.subgroups={columns}"])


def asking(*more: str) -> Plan:
    task = "task={kind: tabular-classification, classes: [no, yes], columns: [a]}"
    groups = (
        "[{column: sex, values: [f, m], names: [women, men]}, {column: scanner, values: [a, b]}]"
    )
    return amended(load_plan("heart"), [task, f"evaluate.subgroups={groups}", *more])


@pytest.mark.parametrize(
    ("policy", "more", "words", "found"),
    [
        (
            "{}",
            (),
            (
                "nor of any that would give such a group away (min_subgroup):\n    sex (women,"
                " men)\n    scanner (a, b)"
            ),
            "told of: women, men",
        ),
        ("{min_subgroup: 20}", (), "fewer than 20 test records", "told of: none"),
        (
            "{min_subgroup: null}",
            (),
            "nothing of groups of people, which the plan asks for (this node's policy)",
            "",
        ),
        ("{report_metrics: false}", (), "nothing of groups of people", ""),
        (
            "{report_metrics: true}",
            ("privacy={mode: sample, target_epsilon: 1}",),
            (
                "nothing of groups of people, which the plan asks for (ε would not cover it): sex"
                " (women, men)"
            ),
            "",
        ),
    ],
)
def test_who_approves_and_who_checks_is_told_of_them(
    tmp_path: Path, policy, more, words, found
) -> None:
    """Sums by sex that leave a hospital whose privacy officer never read of them."""
    table(tmp_path, women=14)
    rows = tmp_path / "people.csv"
    rows.write_text("\n".join(rows.read_text().splitlines()[:-2]) + "\n")  # without those of no sex
    file = tmp_path / "node.yaml"
    data = "{path: people.csv, test_fraction: 0.9}"
    file.write_text(f"name: north\ndata: {data}\nstore: store\npolicy: {policy}\n")
    node, plan = load_node(file), asking(*more)
    assert words in in_words(node, propose(node, plan, None))
    checks = {each.what: each for each in check_node(node, plan)}
    assert found in checks["groups by sex"].detail
    assert checks["groups by sex"].state == ("ok" if found else "skipped")
    assert checks["groups by scanner"].state == "skipped"

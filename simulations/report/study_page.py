"""The page of a study, from its folder: the question, the answer in pictures and tables, and how to
repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.errors import UserError
from fedgraft.common.files.yaml_file import read_yaml, validate
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.privacy.accounting import shown
from fedgraft.simulations.report import attacks_part as attacks
from fedgraft.simulations.report import page, pictures
from fedgraft.simulations.report import privacy_part as privacy
from fedgraft.simulations.report.comparison import (
    beside_first,
    change,
    highest,
    in_points,
    standing,
)
from fedgraft.simulations.report.intervals import Interval, of_mean, said
from fedgraft.simulations.report.page import listed
from fedgraft.simulations.report.study_groups import Group, Row, found_on, grouped, is_number
from fedgraft.simulations.results_table import size
from fedgraft.simulations.study.study_file import Study

WORDS = {
    "epsilon": "ε (upper bound)",
    "bytes": "bytes sent",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "worst.accuracy": "accuracy at the worst site",
    "worst.auroc": "AUROC at the worst site",
    "gap.accuracy": "accuracy, best less worst site",
    "simulation.nodes": "hospitals",
    "simulation.partition.alpha": "α of the partition (small: very unequal)",
}

LEVELS = (("pooled", "pooled data, no privacy"), ("alone", "each hospital alone, mean"))


def study_page(folder: Path) -> str:
    """The page as HTML. Raises `UserError` where no cell is finished."""
    from pyarrow import parquet

    data, lines = read_yaml(folder / "study.yaml")
    study = validate(Study, data, lines, str(folder / "study.yaml"))
    if not (folder / "table.parquet").is_file():
        raise UserError("no cell is finished", where=str(folder), remedy="run it: fedgraft study")
    rows = parquet.read_table(folder / "table.parquet").to_pylist()
    groups = grouped(study, rows)
    found = {group.name: found_on(folder, group) for group in groups}
    sections = [
        page.heading(study.question, 1),
        *_opening(study, groups, folder),
        *_answer(study, groups),
        *_beside(study, groups),
        *_against(study, groups),
        *_sites(groups),
        *_private(groups, found),
        *_attacked(study, found),
        *_bytes(groups),
        *_not_protected(folder, groups),
        *_repeat(study, folder, rows),
    ]
    return page.page(f"{study.name}: a study", sections)


# ── question and answer ───────────────────────────────────────────────────────────────────────────
def _opening(study: Study, groups: Sequence[Group], folder: Path) -> list[str]:
    cells = sum(len(group.rows) for group in groups)
    first = load_plan(folder / "cells" / groups[0].rows[0]["cell"] / "plan.yaml")
    seconds = sum(row["seconds"] or 0 for group in groups for row in group.rows)
    top = highest(groups, "accuracy")
    boxes = [(str(cells), f"federations: {len(groups)} plans, {_seeds(study)} each", False)]
    if top is not None and len(study.seeds) > 1 and not (study.cases and study.grid):
        best, _, alike = top
        others = f"; {len(alike)} more cannot be told from it" if alike else ""
        value = best.over_seeds("accuracy") or Interval(0)
        boxes.append(
            (f"{100 * value.value:.1f} %", f"highest mean accuracy: {best.name}{others}", False)
        )
    limits = [
        row["epsilon"] for group in groups for row in group.rows if row.get("epsilon") is not None
    ]
    if limits:
        boxes.append((privacy.card([min(limits)])[0], "the strongest protection tried", False))
    boxes.append(
        (
            f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s",
            "of computing in the federations",
            False,
        )
    )
    return [
        page.paragraph(
            f"The plan {first.name}: {first.backbone.name} with adapters, to tell"
            f" {listed(first.task.classes)} apart. Each cell of the study is a whole federation on"
            " one machine; no cell saw another's data or model.",
            "lead",
        ),
        page.cards(boxes),
    ]


def _answer(study: Study, groups: Sequence[Group]) -> list[str]:
    columns = list(dict.fromkeys([*study.show.y, "accuracy", "auroc"]))
    epsilons = [group.over_seeds("epsilon") for group in groups]
    private, rows = any(epsilon is not None for epsilon in epsilons), []
    for group, epsilon in zip(groups, epsilons, strict=True):
        cells = [group.over_seeds(column) for column in columns]
        limit = ["–" if epsilon is None else f"{epsilon.value:.3g}"] if private else []
        rows.append([group.name, *limit, *("–" if cell is None else said(cell) for cell in cells)])
    head = ["plan", *(["ε"] if private else []), *(WORDS.get(column, column) for column in columns)]
    return [
        page.heading("The answer"),
        *(page.paragraph(words) for words in _in_words(study, groups) if words),
        *(
            page.figure(picture(study, groups, column), _caption(study, column))
            for column in study.show.y
        ),
        page.table(head, rows),
        page.paragraph(
            f"Means over {_seeds(study)}; in brackets 95 % intervals (Student's t). A seed deals the data anew, so "
            "intervals "
            "hold what unequal hospitals bring, too. With so few seeds they are wide."
            if len(study.seeds) > 1
            else "Of one seed: how much another would differ is not known.",
            "quiet",
        ),
    ]  # fmt: skip


def _in_words(study: Study, groups: Sequence[Group]) -> list[str]:
    """Where one thing was changed, from its first value to its last; then who has the highest mean,
    if one has.
    """
    if len(groups) < 2:
        return []
    columns = [(column, WORDS[column]) for column in ("accuracy", "auroc")]
    said = []
    for case in study.cases or {"": {}}:
        line = [
            group for group in groups if not study.grid or group.rows[0].get("case", "") == case
        ]
        if len(study.grid) + bool(study.cases and not study.grid) == 1 and len(line) > 1:
            said.append(change(line[0], line[-1], columns))
    if (study.cases and study.grid) or len(
        study.seeds
    ) < 2:  # a grid is no choice: its cases have a table of their own
        return said
    return [*dict.fromkeys(said), *(standing(groups, column, words) for column, words in columns)]


def picture(study: Study, groups: Sequence[Group], column: str) -> bytes | None:
    """The study's picture of one column, as its file asks for it."""
    show = study.show
    levels = _levels(groups, column)
    numeric = all(
        is_number(row.get(show.x))
        for group in groups
        for row in group.rows
        if row.get(show.x) is not None
    )
    if (
        show.x == "case"
        or not numeric
        or not any(row.get(show.x) is not None for g in groups for row in g.rows)
    ):
        points = [
            (float(at), found)
            for at, group in enumerate(groups)
            if (found := group.over_seeds(column))
        ]
        names = [group.name for group in groups]
        return (
            pictures.utility({"": points}, x="", y=WORDS.get(column, column), names=names)
            if points
            else None
        )
    by = show.by or next((key for key in study.grid if key != show.x), None)
    lines: dict[str, list[pictures.Point]] = {}
    for group in groups:
        value = group.over_seeds(column)
        if value is None:
            continue
        x = group.over_seeds(show.x)
        if x is None:  # such as no privacy on an axis of ε: it holds for every x
            levels = {group.name: value} | levels
            continue
        place = float(f"{x.value:.2g}") if show.x == "epsilon" else x.value
        lines.setdefault(str(group.rows[0].get(by)) if by else "", []).append((place, value))
    if not lines:
        return None
    if list(lines) == [""] and study.baselines:
        lines = {"federated": lines[""], **(_moving(groups, show.x, column) if not levels else {})}
    words = {"x": WORDS.get(show.x, show.x), "y": WORDS.get(column, column)}
    return pictures.utility(lines, **words, log_x=show.log_x, levels=levels)


def _moving(groups: Sequence[Group], x: str, column: str) -> dict[str, list[pictures.Point]]:
    """Baselines that depend on what is along the axis: a line each."""
    found: dict[str, list[pictures.Point]] = {}
    for name, words in LEVELS:
        for group in groups:
            place, value = group.over_seeds(x), group.over_seeds(f"baseline.{name}.{column}")
            if place is not None and value is not None:
                found.setdefault(words, []).append((place.value, value))
    return found


def _levels(groups: Sequence[Group], column: str) -> dict[str, Interval]:
    """Baselines that do not depend on the cell: one level each."""
    found = {}
    for name, words in LEVELS:
        values = [group.over_seeds(f"baseline.{name}.{column}") for group in groups]
        known = [value for value in values if value is not None]
        if known and len({round(value.value, 9) for value in known}) == 1:
            found[words] = known[0]
    return found


# ── beside the baselines ──────────────────────────────────────────────────────────────────────────
def _against(study: Study, groups: Sequence[Group]) -> list[str]:
    rows = []
    for group in groups:
        for name in study.baselines:
            cells = [_gain(group, name, column) for column in ("accuracy", "auroc")]
            if any(cells):
                rows.append([group.name, name, *(cell or "–" for cell in cells)])
    if not rows:
        return []
    return [
        page.heading("Against each baseline"),
        page.paragraph(
            "The federation less the baseline, in points, seed by seed on the same data, with 95 %"
            " intervals. alone: each hospital by itself, the mean of their models, without privacy."
            " pooled: all data in one place, without privacy; what privacy and distance cost."
        ),
        page.table(["plan", "baseline", "accuracy", "AUROC"], rows, texts=[1]),
    ]


def _gain(group: Group, baseline: str, column: str) -> str:
    """What a plan is ahead of a baseline, and whether that may be chance; empty where it was not
    measured.
    """
    pairs = [
        row[column] - row[f"baseline.{baseline}.{column}"]
        for row in group.rows
        if row.get(column) is not None and row.get(f"baseline.{baseline}.{column}") is not None
    ]
    return in_points(of_mean(pairs)) if pairs else ""


def _beside(study: Study, groups: Sequence[Group]) -> list[str]:
    """Cases against the first of them, where all were run over a grid."""
    columns = ("accuracy", "worst.accuracy", "auroc")
    found = {column: dict(beside_first(study, groups, column)) for column in columns}
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    if not names:
        return []
    rows = [
        [name, *(in_points(found[c][name]) if name in found[c] else "–" for c in columns)]
        for name in names
    ]
    return [
        page.heading(f"Against {next(iter(study.cases))}"),
        page.paragraph(
            "In points, seed by seed on the same data, with 95 % intervals. Of many comparisons"
            " some leave zero out by chance."
        ),
        page.table(["plan", *(WORDS[column] for column in columns)], rows, texts=[1, 2, 3]),
    ]


def _sites(groups: Sequence[Group]) -> list[str]:
    rows = []
    for group in groups:
        worst, gap = group.over_seeds("worst.accuracy"), group.over_seeds("gap.accuracy")
        if worst is not None and gap is not None:
            rows.append([group.name, said(worst), said(gap)])
    if not rows:
        return []
    return [
        page.heading("Does it serve every site?"),
        page.paragraph(
            "A small site has few test examples: the worst of many small sites is far below the"
            " best by chance alone."
        ),
        page.table(["plan", "accuracy at the worst site", "between best and worst site"], rows),
    ]


# ── privacy and attacks ───────────────────────────────────────────────────────────────────────────
def _private(groups: Sequence[Group], found: Mapping[str, attacks.Found]) -> list[str]:
    if all(group.over_seeds("epsilon") is None for group in groups):
        proved = attacks.empirical(list(found.items()))
        return [page.heading("Privacy"), page.note(privacy.NO_PRIVACY, warn=True), proved]
    rows = []
    for group in groups:
        epsilon, delta = group.over_seeds("epsilon"), group.over_seeds("delta")
        if epsilon is None or delta is None:
            rows.append([group.name, "none", "–", "updates may reveal training data"])
        else:
            most = max(row["epsilon"] for row in group.rows)
            rows.append([group.name, f"≤ {shown(most)}", f"{delta.value:g}", _promise(most)])
    return [
        page.heading("Privacy"),
        page.table(["plan", "ε, largest of all sites", "δ", "in words"], rows, texts=[3]),
        page.bullets(privacy.ASSUMPTIONS),
        attacks.empirical(list(found.items())),
    ]


def _promise(epsilon: float) -> str:
    for most, words in ((1.0, "strong"), (3.0, "good"), (10.0, "moderate")):
        if epsilon <= most * 1.001:
            return words
    return "weak"


def _attacked(study: Study, found: Mapping[str, attacks.Found]) -> list[str]:
    named = list(found.items())
    parts = [attacks.membership(named), attacks.others(named)]
    if not any(parts):
        return []
    words = (
        f"Means over {_seeds(study)}, with the widest interval of any of them; curves of the first"
        " seed."
    )
    if len(study.seeds) == 1:
        words = "Of one seed. Intervals are over the records that were attacked."
    return [page.heading("What attackers found"), page.paragraph(words, "quiet"), *parts]


def _seeds(study: Study) -> str:
    return "one seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"


def _caption(study: Study, column: str) -> str:
    several = f"means over {_seeds(study)} with 95 % intervals"
    name = WORDS.get(column, column)
    return (
        f"{name[0].upper()}{name[1:]}:"
        f" {several if len(study.seeds) > 1 else 'of one seed, without an interval'}."
    )


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────
def _bytes(groups: Sequence[Group]) -> list[str]:
    names: dict[tuple[str, str, str], list[str]] = {}
    for group in groups:
        cells = (
            size(group.rows[0]["adapter_bytes"]),
            size(float(np.mean([row["bytes"] for row in group.rows]))),
            f"{group.rows[0]['full_model_bytes'] / group.rows[0]['adapter_bytes']:,.0f} times",
        )
        names.setdefault(cells, []).append(group.name)
    every = [f"each of the {len(groups)} plans"] if len(names) == 1 and len(groups) > 1 else None
    rows = [[", ".join(every or named), *cells] for cells, named in names.items()]
    head = ["plan", "one update", "all rounds, both ways", "full fine-tuning would send"]
    return [page.heading("What left each building"), page.table(head, rows, texts=[0])]


def _not_protected(folder: Path, groups: Sequence[Group]) -> list[str]:
    """In the words of the most protected cell's result."""
    known = [row for group in groups for row in group.rows]
    row = min(
        known, key=lambda each: each["epsilon"] if each.get("epsilon") is not None else float("inf")
    )
    run = folder / "cells" / row["cell"]
    return privacy.not_protected(
        load_plan(run / "plan.yaml"), json.loads((run / "result.json").read_text())
    )


def _repeat(study: Study, folder: Path, rows: Sequence[Row]) -> list[str]:
    hashes = [[row["cell"], row["plan_hash"]] for row in rows]
    return [
        page.heading("How to repeat it"),
        page.paragraph(
            "table.csv and table.parquet beside this page hold every number; manifest.json holds"
            " the hashes of the plans, the code, the data, the packages and every file. This runs"
            " every cell again and says what agrees:"
        ),
        page.listing(f"fedgraft reproduce {folder.name}/manifest.json"),
        page.details(
            "study.yaml, every default written out",
            page.listing((folder / "study.yaml").read_text()),
        ),
        page.details(
            f"The {len(rows)} plans by their hashes",
            page.table(["cell", "plan"], hashes, texts=[1]),
        ),
    ]

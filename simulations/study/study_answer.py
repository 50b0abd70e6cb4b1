"""The answer on a study's page: in words, in pictures and in one table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from fedgraft.simulations.flatten import is_number
from fedgraft.simulations.report import page
from fedgraft.simulations.report.intervals import Interval, show_interval
from fedgraft.simulations.study.comparison import describe_change, describe_ranking
from fedgraft.simulations.study.study_file import Study
from fedgraft.simulations.study.study_groups import Group
from fedgraft.simulations.study.study_pictures import Axis, Lines, Point, draw_cases, draw_lines

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
METRICS = {"accuracy": "accuracy", "auroc": "AUROC"}
# baselines that are drawn, and what they are called
LEVELS = {"pooled": "pooled data, no privacy", "alone": "each hospital alone, mean"}
ONE_SEED = "Of one seed: how much another would differ is not known."


def show_answer(study: Study, groups: Sequence[Group]) -> list[str]:
    """Return what the study found: sentences, a picture for each column it shows, a table."""
    pictures = []
    for column in study.show.y:
        pictures.append(page.figure(draw_column(study, groups, column), _caption(study, column)))
    return [
        page.heading("The answer"),
        *map(page.paragraph, describe_answer(study, groups)),
        *pictures,
        _answer_table(study, groups),
        page.paragraph(_explain_intervals(study), "quiet"),
    ]


def count_seeds(study: Study) -> str:
    """Return how many seeds a study has, in words."""
    seeds = len(study.seeds)
    return "one seed" if seeds == 1 else f"{seeds} seeds"


# ── in words ──────────────────────────────────────────────────────────────────────────────────────
def describe_answer(study: Study, groups: Sequence[Group]) -> list[str]:
    """Return sentences: where one thing was changed, from its first value to its last; then who has
    the highest mean, if one has.
    """
    if len(groups) < 2:
        return []
    sentences = []
    if _changes_one_thing(study):
        for line in _lines_of(study, groups):
            if len(line) > 1:
                sentences.append(describe_change(line[0], line[-1], METRICS))
    # a grid is no choice: its cases have a table of their own
    is_choice = not (study.cases and study.grid)
    if is_choice and len(study.seeds) > 1:
        for column, word in METRICS.items():
            sentences.append(describe_ranking(groups, column, word))
    return list(filter(None, sentences))


def _changes_one_thing(study: Study) -> bool:
    if study.grid:
        return len(study.grid) == 1
    return bool(study.cases)


def _lines_of(study: Study, groups: Sequence[Group]) -> list[list[Group]]:
    """Return the groups of each case along the grid; all of them where there is no grid or no
    case.
    """
    if not study.cases or not study.grid:
        return [list(groups)]
    by_case: dict[str, list[Group]] = {case: [] for case in study.cases}
    for group in groups:
        by_case[group.rows[0]["case"]].append(group)
    return list(by_case.values())


def _explain_intervals(study: Study) -> str:
    if len(study.seeds) == 1:
        return ONE_SEED
    return (
        f"Means over {count_seeds(study)}; in brackets 95 % intervals (Student's t). A seed deals"
        " the data anew, so intervals hold what unequal hospitals bring, too. With so few seeds"
        " they are wide."
    )


def _caption(study: Study, column: str) -> str:
    name = WORDS.get(column, column)
    title = name[0].upper() + name[1:]
    if len(study.seeds) == 1:
        return f"{title}: of one seed, without an interval."
    return f"{title}: means over {count_seeds(study)} with 95 % intervals."


# ── table ─────────────────────────────────────────────────────────────────────────────────────────
def _answer_table(study: Study, groups: Sequence[Group]) -> str:
    columns = list(dict.fromkeys([*study.show.y, *METRICS]))
    private = any(group.estimate("epsilon") is not None for group in groups)
    head = ["plan"]
    if private:
        head.append("ε")
    for column in columns:
        head.append(WORDS.get(column, column))

    rows = []
    for group in groups:
        cells = [group.name]
        if private:
            cells.append(_show_epsilon(group))
        for column in columns:
            cells.append(_show_estimate(group, column))
        rows.append(cells)
    return page.table(head, rows)


def _show_epsilon(group: Group) -> str:
    epsilon = group.estimate("epsilon")
    return "–" if epsilon is None else f"{epsilon.value:.3g}"


def _show_estimate(group: Group, column: str) -> str:
    estimate = group.estimate(column)
    return "–" if estimate is None else show_interval(estimate)


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────
def draw_column(study: Study, groups: Sequence[Group], column: str) -> bytes | None:
    """Draw one column as the study's file asks for it; None where there is nothing to draw."""
    measure = WORDS.get(column, column)
    show = study.show
    if not _is_numeric(groups, show.x):
        points = _case_points(groups, column)
        names = [group.name for group in groups]
        return draw_cases({"": points}, measure, names) if points else None

    lines, levels = _split_lines(study, groups, column)
    if not lines:
        return None
    if list(lines) == [""] and study.baselines:
        moving = {} if levels else _moving_baselines(groups, show.x, column)
        lines = {"federated": lines[""], **moving}
    along = Axis(WORDS.get(show.x, show.x), log=show.log_x, in_bytes=show.x == "bytes")
    return draw_lines(lines, along, measure, levels)


def _is_numeric(groups: Sequence[Group], column: str) -> bool:
    """Return whether a column can be an axis: numbers, wherever a cell has it."""
    values = []
    for group in groups:
        values += group.values(column)
    return bool(values) and column != "case" and all(map(is_number, values))


def _case_points(groups: Sequence[Group], column: str) -> list[Point]:
    points = []
    for number, group in enumerate(groups):
        value = group.estimate(column)
        if value is not None:
            points.append((float(number), value))
    return points


def _split_lines(
    study: Study, groups: Sequence[Group], column: str
) -> tuple[dict[str, list[Point]], dict[str, Interval]]:
    """Return a line for each value of the column `by`; and levels: groups without an x, such as no
    privacy on an axis of ε, and baselines, which hold for every x.
    """
    along = study.show.x
    by = study.show.by or _second_key(study)
    levels = _level_baselines(groups, column)
    lines: dict[str, list[Point]] = defaultdict(list)
    for group in groups:
        value = group.estimate(column)
        x = group.estimate(along)
        if value is None:
            continue
        if x is None:
            levels = {group.name: value} | levels
            continue
        name = str(group.rows[0].get(by)) if by else ""
        lines[name].append((_round_position(x.value, along), value))
    return lines, levels


def _second_key(study: Study) -> str | None:
    """Return the first key of the grid that is not along the axis."""
    for key in study.grid:
        if key != study.show.x and not _sets_epsilon(key, study.show.x):
            return key
    return None


def _sets_epsilon(key: str, along: str) -> bool:
    """Whether a key of the grid is what an axis of ε stands for."""
    return along == "epsilon" and key in ("privacy", "privacy.target_epsilon")


def _round_position(value: float, along: str) -> float:
    """Return where a point stands; an ε that was spent stands at the one that was asked for."""
    if along == "epsilon":
        return float(f"{value:.2g}")
    return value


def _moving_baselines(groups: Sequence[Group], along: str, column: str) -> Lines:
    """Return baselines that depend on what is along the axis: a line each."""
    lines: dict[str, list[Point]] = defaultdict(list)
    for baseline, words in LEVELS.items():
        for group in groups:
            x = group.estimate(along)
            value = group.estimate(f"baseline.{baseline}.{column}")
            if x is not None and value is not None:
                lines[words].append((x.value, value))
    return lines


def _level_baselines(groups: Sequence[Group], column: str) -> dict[str, Interval]:
    """Return baselines that do not depend on the cell: one level each."""
    levels = {}
    for baseline, words in LEVELS.items():
        known = []
        for group in groups:
            estimate = group.estimate(f"baseline.{baseline}.{column}")
            if estimate is not None:
                known.append(estimate)
        if _are_equal(known):
            levels[words] = known[0]
    return levels


def _are_equal(intervals: Sequence[Interval]) -> bool:
    distinct = {round(interval.value, 9) for interval in intervals}
    return len(distinct) == 1

"""The page: intervals against other sources, nothing fetched, nothing told that must not be, the
same every time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.papers.model_card import not_covered
from fedgraft.simulations.attacks.empirical_epsilon import Audit, lower_bound
from fedgraft.simulations.report import attacks_part as attacks
from fedgraft.simulations.report import page, write_report
from fedgraft.simulations.report import privacy_part as privacy
from fedgraft.simulations.report.comparison import apart, beside_first, change, in_points, standing
from fedgraft.simulations.report.fairness_part import gap_in_words
from fedgraft.simulations.report.intervals import Interval, of_area, of_mean, of_share, said
from fedgraft.simulations.report.pictures import roc_curves, utility
from fedgraft.simulations.report.run_page import told_counts
from fedgraft.simulations.report.study_groups import Group, _over_seeds
from fedgraft.simulations.simulate import simulate_plan
from fedgraft.simulations.study.run_study import run_study
from fedgraft.simulations.study.study_file import Study

VOID = {"meta", "img", "br", "hr", "link"}


class Strict(HTMLParser):
    """Every tag is closed by its own end; what is shown is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shown = ""
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [
            value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")
        ]
        assert all(not key.startswith("on") for key, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.shown += data + " "


def read(path: Path) -> str:
    """What a page shows; the page is well-formed and stands alone."""
    raw = path.read_text(encoding="utf-8")
    parser = Strict()
    parser.feed(raw)
    assert parser.open == []
    assert all(source.startswith("data:image/svg+xml;base64,") for source in parser.sources)
    assert "<script" not in raw
    assert not re.search(r"url\(|@import|https?://", raw)
    return " ".join(parser.shown.split())


# ── intervals ─────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("right", "count"), [(0, 10), (7, 10), (430, 468), (468, 468), (1, 1)])
def test_interval_of_a_share_is_wilson_s(right, count):
    """Against scipy's own; the normal interval would leave [0, 1] or have no width at 0 and 1."""
    found = of_share(right / count, count)
    other = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-6)


def test_interval_of_an_area_is_hanley_and_mcneil_s():
    """Worked from the paper's table II: area 0.893, 51 abnormal and 58 normal images, standard
    error 0.032.
    """
    found = of_area(0.893, 51, 58)
    assert found.high is not None
    assert (found.high - 0.893) / 1.96 == pytest.approx(0.032, abs=0.0006)
    assert of_area(1.0, 30, 30) == Interval(1.0, 1.0, 1.0)
    assert of_area(0.5, 0, 3) == Interval(0.5)


def test_interval_of_a_mean_is_student_s():
    """Against scipy's one-sample interval; with one seed nothing is claimed."""
    values = [0.81, 0.84, 0.86, 0.80]
    other = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert of_mean(values)[1:] == pytest.approx((other.low, other.high), abs=1e-12)
    assert of_mean([0.7]) == Interval(0.7)
    assert said(of_mean([0.7])) == "0.700"


# ── attacks in words ──────────────────────────────────────────────────────────────────────────────
def measured(auc: tuple[float, float, float], hits: tuple[float, float, float]) -> dict:
    return {
        "auc": auc[0],
        "auc_interval": list(auc[1:]),
        "tpr": {"0.001": 0.0, "0.01": hits[0]},
        "tpr_interval": {"0.001": [0.0, 0.0], "0.01": list(hits[1:])},
        "roc": {"fpr": [0.0, 0.01, 1.0], "tpr": [0.0, hits[0], 1.0]},
    }


@pytest.mark.parametrize(
    ("auc", "hits", "words"),
    [
        ((0.51, 0.48, 0.54), (0.012, 0.0, 0.03), "not told from guessing"),
        ((0.55, 0.52, 0.58), (0.012, 0.0, 0.03), "leaks a little"),
        ((0.51, 0.48, 0.54), (0.05, 0.02, 0.09), "leaks a little"),  # an average hides it
        ((0.97, 0.95, 0.98), (0.6, 0.5, 0.7), "leaks strongly"),
    ],
)
def test_verdicts_follow_the_intervals(auc, hits, words):
    """A leak called chance since its area is near one half, or chance called a leak."""
    assert attacks.verdict(measured(auc, hits)) == words


def test_every_plan_has_a_curve():
    """A picture of the first plans only, in which those with privacy are missing; or of their
    weakest attack.
    """
    weak, strong = (
        measured((0.5, 0.4, 0.6), (0.01, 0.0, 0.1)),
        measured((0.9, 0.8, 1.0), (0.5, 0.4, 0.6)),
    )
    plans = [
        (
            f"plan {k}",
            {
                "lira": {
                    "kind": "membership",
                    "views": {"shared model": weak, "node updates": strong},
                }
            },
        )
        for k in range(5)
    ]
    assert list(attacks._curves(plans, one_each=True)) == [
        f"plan {k}: LiRA, node updates" for k in range(5)
    ]
    assert list(attacks._curves([("", plans[0][1])], one_each=False)) == [
        "LiRA, shared model",
        "LiRA, node updates",
    ]


def test_a_broken_mechanism_is_called_refuted():
    """A lower bound above the stated ε that reads like the others."""
    audit = {
        "kind": "audit",
        "epsilon": 2.1,
        "ceiling": 6.0,
        "correct": 480,
        "guesses": 500,
        "confidence": 0.95,
    }
    assert "REFUTED" in attacks.empirical([("", {"canaries": audit | {"stated_epsilon": 1.0}})])
    assert "does not contradict" in attacks.empirical(
        [("", {"canaries": audit | {"stated_epsilon": 8.0}})]
    )


def test_a_rebuilt_image_and_a_hospitals_share_come_with_their_caveats():
    """A page on which an attack that failed looks like a proof, or an ε for a record like one for a
    hospital.
    """
    rebuilt = {
        "kind": "inversion",
        "images": 4,
        "together": 1,
        "ssim": 0.5,
        "ssim_mean": 0.6,
        "better": 0,
    }
    share = {
        "kind": "properties",
        "share_of": "sick",
        "nodes": 6,
        "error": 0.01,
        "error_chance": 0.2,
    }
    said = attacks.others([("", {"inversion": rebuilt, "properties": share})])
    for words in (
        "no proof that it cannot",
        "8 × 8",
        "28 × 28",
        "true of a whole hospital",
        "mode: local",
        "leaks: ε",
    ):
        assert words in said
    assert "no proof" not in attacks.others([("", {"properties": share})])


@pytest.mark.parametrize("mode", ["sample", "central", "local"])
def test_what_is_not_protected_says_what_an_epsilon_does_not_hide(mode):
    """ε for a record read as if it hid a hospital's share of sick people; the same said where it is
    hidden.
    """
    plan = load_plan("pneumonia", [f"privacy={{mode: {mode}, target_epsilon: 1, delta: 1.0e-3}}"])
    _, said = privacy.not_protected(plan, {"not_covered_by_epsilon": not_covered(plan)})
    assert ("share of sick patients" in said) == (mode == "sample")


def test_a_gap_is_called_chance_where_intervals_overlap():
    """A site or a group that is blamed for what few test examples bring; or a real gap that is
    excused.
    """
    rows = {"a": {"accuracy": 0.9, "examples": 20}, "b": {"accuracy": 0.7, "examples": 20}}
    assert gap_in_words(rows) == (
        "b",
        "b, accuracy 0.700; 20.0 points below a. Their 95 % intervals overlap: it may be chance.",
    )  # Wilson: 0.481 to 0.855 and 0.699 to 0.972
    sure = {name: row | {"examples": 2000} for name, row in rows.items()}
    assert gap_in_words(sure)[1] == "b, accuracy 0.700; 20.0 points below a."
    assert gap_in_words({"a": rows["a"]})[1] == "a, the only one."


# ── plans beside each other ───────────────────────────────────────────────────────────────────────
def group(name: str, values: Sequence[float | None]) -> Group:
    return Group(name, [{"seed": 7 + k, "accuracy": value} for k, value in enumerate(values)])


def test_plans_are_compared_seed_by_seed():
    """Means of other seeds, or an interval of two samples where the seeds are the same. Against
    scipy's paired test.
    """
    one, two = [0.80, 0.84, 0.86], [0.79, 0.82, 0.85]
    other = stats.ttest_rel(one, two).confidence_interval(0.95)
    found = apart(
        group("one", one), group("two", [*two, 0.1]), "accuracy"
    )  # a seed that only one of them has
    assert found == pytest.approx((np.mean(one) - np.mean(two), other.low, other.high), abs=1e-12)
    assert apart(group("one", one), group("two", [None, None]), "accuracy") is None


def test_no_plan_is_called_better_where_it_may_be_chance():
    """A ranking by means of three seeds."""
    groups = [
        group("steady", [0.80, 0.81, 0.82]),
        group("chance, or not", [0.60, 0.99, 0.81]),
        group("best", [0.90, 0.91, 0.92]),
    ]
    said = standing(groups, "accuracy", "accuracy")
    assert (
        said
        == "Highest mean accuracy: best, 0.910. Seed by seed, each with 95 % confidence, steady is"
        " below it. chance, or not cannot be told from it with 3 seeds."
    )
    assert "not known" in standing([group("a", [0.8]), group("b", [0.9])], "accuracy", "accuracy")
    assert standing([group("a", [None])], "accuracy", "accuracy") == ""
    words = change(groups[0], groups[2], [("accuracy", "accuracy")])
    assert words == "From steady to best: +10.0 points of accuracy (+10.0 to +10.0)."


def test_cases_are_compared_at_the_same_place_of_the_grid():
    """A strategy on easy data beside another on hard data; the first case beside itself."""
    study = Study.model_validate({"name": "s", "question": "q", "plan": "p", "cases": {"a": {}, "b": {}},
                                  "grid": {"x.y": [1, 2]}, "seeds": [7, 8]})  # fmt: skip
    groups = []
    for case, extra in (("a", 0.0), ("b", 0.01)):
        for place in (1, 2):
            rows = [{"seed": seed, "case": case, "x.y": place, "accuracy": 0.5 * place + extra - 0.01 * seed}
                    for seed in (7, 8)]  # fmt: skip
            groups.append(Group(f"{case}, y {place}", rows))
    found = beside_first(study, groups, "accuracy")
    assert [(name, round(gain.value, 9)) for name, gain in found] == [
        ("b, y 1", 0.01),
        ("b, y 2", 0.01),
    ]
    assert in_points(Interval(0.047, -0.045, 0.138)) == "+4.7 (-4.5 to +13.8), may be chance"
    assert in_points(Interval(-0.03, -0.04, -0.02)) == "-3.0 (-4.0 to -2.0), worse"
    assert in_points(Interval(0.03)) == "+3.0, of one seed"
    assert beside_first(study.model_copy(update={"grid": {}}), groups, "accuracy") == []


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.simulations.conftest import PLAN, write_table

    place = tmp_path_factory.mktemp("report")
    for number, name in enumerate(("north.csv", "south.csv")):
        write_table(place / name, 64 + number, number)
    (place / "plan.yaml").write_text(
        PLAN.replace("FILES", "north.csv, south.csv").replace("[no, yes]", "['<b>', yes]")
    )
    simulate_plan(
        str(place / "plan.yaml"),
        overrides=["privacy={mode: sample, target_epsilon: 5, delta: 1e-3}", "task.labels=[0, 1]"],
        baselines="alone",
        out=place / "run",
        workers=1,
        quiet=True,
    )
    return place / "run"


def test_a_run_s_page_says_what_the_result_says(private_run):
    """Numbers of another run, a part that is missing, or names from a plan that become markup."""
    shown = read(private_run / "report.html")
    result = json.loads((private_run / "result.json").read_text())
    for heading in (
        "What was trained, and on whose data",
        "How good is the shared model?",
        "Does it serve every site?",
        "What left each building",
        "Privacy",
        "What attackers found",
        "What is not protected",
        "How to repeat it",
    ):
        assert heading in shown
    assert "<b>" in shown  # as text: the parser above would have seen a tag
    assert f"{result['final']['global']['accuracy']:.3f} (" in shown
    assert result["plan_hash"] in shown
    for words in ("Poisson", "PRV", "δ", "example", "ε ≤ ", *result["not_covered_by_epsilon"]):
        assert words in shown
    for name in ("north", "south"):
        assert name in shown


def test_exact_counts_are_not_told_under_privacy(private_run):
    """Counts that ε does not cover, on a page that is passed on."""
    result = json.loads((private_run / "result.json").read_text())
    plan = load_plan(private_run / "plan.yaml")
    counts, words = told_counts(plan, result)
    assert "Rounded down" in words
    for name, row in counts.items():
        assert all(count % 10 == 0 for count in row)
        assert all(
            0 <= exact - count < 10
            for exact, count in zip(result["data"]["labels"][name], row, strict=True)
        )


def test_a_page_written_twice_is_the_same(private_run):
    """Dates or random ids, after which the manifest would no longer hold."""
    first = (private_run / "report.html").read_bytes()
    assert write_report(private_run).read_bytes() == first


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_study_s_page_has_its_question_its_attacks_and_its_numbers(tiny, tmp_path):
    """A study whose page leaves out cells, or shows means that are not those of the table."""
    tiny(2)
    (tmp_path / "study.yaml").write_text("""
name: noise
question: What does <noise> cost?
plan: plan.yaml
cases: {plain: {}, private: {privacy: {mode: sample, target_epsilon: 5, delta: 1.0e-3}}}
seeds: [3, 4]
baselines: [pooled]
attacks: [loss-threshold]
""")
    rows = run_study(str(tmp_path / "study.yaml"), out=tmp_path / "out", workers=1, quiet=True)[
        "rows"
    ]
    shown = read(tmp_path / "out" / "report.html")
    assert "What does <noise> cost?" in shown
    for case in ("plain", "private"):
        mean = np.mean([row["accuracy"] for row in rows if row["case"] == case])
        assert f"{mean:.3f} (" in shown
    for words in (
        "loss-threshold",
        "Against each baseline",
        "pooled",
        "guessing",
        "reproduce out/manifest.json",
    ):
        assert words in shown
    first = (tmp_path / "out" / "report.html").read_bytes()
    assert write_report(tmp_path / "out").read_bytes() == first


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────
def test_pictures_bear_odd_numbers():
    """One point, no interval, rates of zero on log axes, many names: no warning, no exception, an
    SVG.
    """
    curves = {"a": ([0.0, 1.0], [0.0, 1.0]), "b": ([0.0, 0.0, 1.0], [0.0, 0.4, 1.0])}
    lines = {"": [(1.0, Interval(0.8)), (8.0, Interval(0.9, 0.85, 0.95))]}
    for svg in (
        roc_curves(curves),
        utility(lines, x="ε", y="accuracy", log_x=True, levels={"pooled": Interval(0.9, 0.8, 1.0)}),
        utility({"": [(0.0, Interval(0.5))]}, x="", y="accuracy", names=["only"]),
    ):
        assert svg.startswith(b"<?xml")
        assert b"nan" not in svg


def test_text_is_escaped_everywhere():
    """A site's or a class's name that becomes markup."""
    evil = "<img src=x onerror=alert(1)>'\""
    parts = [
        page.heading(evil),
        page.paragraph(evil),
        page.table([evil], [[evil]]),
        page.facts([(evil, evil)]),
        page.bullets([evil]),
        page.cards([(evil, evil, True)]),
        page.figure(b"<svg/>", evil),
        page.listing(evil),
        page.details(evil, ""),
        page.note(evil),
    ]
    assert "<img src=x" not in page.page(evil, parts)


def audit_of(correct: int, stated: float | None) -> dict[str, Any]:
    """As an audit writes it: 100 of 100 canaries guessed, δ = 0."""
    sure = 1 - 0.05 / 3
    proved, most = (
        lower_bound(100, 100, right, delta=0.0, confidence=sure) for right in (correct, 100)
    )
    found = Audit(proved, most, 0.0, 0.95, 100, 100, correct, correct / 100)
    return {"kind": "audit", "node": "h0", "stated_epsilon": stated, **asdict(found)}


def test_the_best_of_several_audits_is_as_sure_as_all_of_them_together() -> None:
    """95 % on a page for the largest of three bounds, each of which may be wrong once in twenty
    times.

    So each is taken at a third of the risk: with 80 of 100 right and δ = 0, ε = logit of the
    Clopper-Pearson bound at 0.05 / 9, from SciPy's binomial test here.
    """
    found = _over_seeds([audit_of(correct, None) for correct in (60, 80, 70)])
    low = stats.binomtest(80, 100, alternative="greater").proportion_ci(1 - 0.05 / 9).low
    assert found["epsilon"] == pytest.approx(math.log(low / (1 - low)), abs=1e-5)
    assert found["confidence"] == 0.95
    assert (found["correct"], found["stated_epsilon"]) == (80, None)
    assert _over_seeds([audit_of(80, None)]) == pytest.approx(audit_of(80, None))


def test_an_audit_that_refutes_is_shown_before_one_that_proves_more() -> None:
    """A promise of ε = 0.5 that one seed refuted, hidden behind a seed that promised more and kept
    it.
    """
    found = _over_seeds([audit_of(80, 0.5), audit_of(90, 8.0)])
    assert found["stated_epsilon"] == 0.5
    assert found["epsilon"] > 0.5

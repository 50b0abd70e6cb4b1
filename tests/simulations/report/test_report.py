"""The page: intervals against other sources, nothing fetched, nothing told that must not be, the
same every time.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.tasks.measures import measure_of
from fedgraft.server.papers.model_card import not_covered
from fedgraft.simulations.engines.engine import EngineOptions
from fedgraft.simulations.report import page
from fedgraft.simulations.report.attack_results import list_views
from fedgraft.simulations.report.audits_part import show_audits
from fedgraft.simulations.report.fairness_part import describe_gap
from fedgraft.simulations.report.intervals import (
    Interval,
    estimate_area,
    estimate_mean,
    estimate_share,
    show_interval,
)
from fedgraft.simulations.report.membership_part import judge_membership, select_curves
from fedgraft.simulations.report.page import Card
from fedgraft.simulations.report.pictures import draw_roc_curves
from fedgraft.simulations.report.privacy_part import show_not_protected
from fedgraft.simulations.report.sums_part import judge_size
from fedgraft.simulations.report.training_part import choose_counts
from fedgraft.simulations.report.updates_part import show_other_attacks
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan
from fedgraft.simulations.study.run_study import run_study
from fedgraft.simulations.study.study_pictures import Axis, draw_cases, draw_lines
from fedgraft.simulations.write_report import write_report

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
    found = estimate_share(right / count, count)
    other = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-6)


def test_interval_of_an_area_is_hanley_and_mcneil_s():
    """Worked from the paper's table II: area 0.893, 51 abnormal and 58 normal images, standard
    error 0.032.
    """
    found = estimate_area(0.893, 51, 58)
    assert found.high is not None
    assert (found.high - 0.893) / 1.96 == pytest.approx(0.032, abs=0.0006)
    assert estimate_area(1.0, 30, 30) == Interval(1.0, 1.0, 1.0)
    assert estimate_area(0.5, 0, 3) == Interval(0.5)


def test_interval_of_a_mean_is_student_s():
    """Against scipy's one-sample interval; with one seed nothing is claimed."""
    values = [0.81, 0.84, 0.86, 0.80]
    other = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimate_mean(values)[1:] == pytest.approx((other.low, other.high), abs=1e-12)
    assert estimate_mean([0.7]) == Interval(0.7)
    assert show_interval(estimate_mean([0.7])) == "0.700"


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
    assert judge_membership(measured(auc, hits)) == words


def test_every_plan_has_a_curve():
    """A picture of the first plans only, in which those with privacy are missing; or of their
    weakest attack.
    """
    weak, strong = (
        measured((0.5, 0.4, 0.6), (0.01, 0.0, 0.1)),
        measured((0.9, 0.8, 1.0), (0.5, 0.4, 0.6)),
    )
    views = {"shared model": weak, "node updates": strong}
    attacks = {"lira": {"kind": "membership", "views": views}}
    plans = list_views({f"plan {k}": attacks for k in range(5)})
    assert list(select_curves(plans, one_each=True)) == [
        f"plan {k}: LiRA, node updates" for k in range(5)
    ]
    assert list(select_curves(list_views({"": attacks}), one_each=False)) == [
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
    assert "REFUTED" in show_audits({"": {"canaries": audit | {"stated_epsilon": 1.0}}})
    assert "does not contradict" in show_audits({"": {"canaries": audit | {"stated_epsilon": 8.0}}})


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
    said = show_other_attacks({"": {"inversion": rebuilt, "properties": share}})
    for words in (
        "no proof that it cannot",
        "8 × 8",
        "28 × 28",
        "true of a whole hospital",
        "mode: local",
        "leaks: ε",
    ):
        assert words in said
    assert "no proof" not in show_other_attacks({"": {"properties": share}})


@pytest.mark.parametrize("mode", ["sample", "central", "local"])
def test_what_is_not_protected_says_what_an_epsilon_does_not_hide(mode):
    """ε for a record read as if it hid a hospital's share of sick people; the same said where it is
    hidden.
    """
    plan = load_plan("pneumonia", [f"privacy={{mode: {mode}, target_epsilon: 1, delta: 1.0e-3}}"])
    _, said = show_not_protected(plan, {"not_covered_by_epsilon": not_covered(plan)})
    assert ("share of sick patients" in said) == (mode == "sample")


def test_a_gap_is_called_chance_where_intervals_overlap():
    """A site or a group that is blamed for what few test examples bring; or a real gap that is
    excused.
    """
    rows = {"a": {"accuracy": 0.9, "examples": 20}, "b": {"accuracy": 0.7, "examples": 20}}
    assert describe_gap(rows, measure_of("accuracy")) == (
        "b",
        "b, accuracy 0.700; 20.0 points below a. Their 95 % intervals overlap: it may be chance.",
    )  # Wilson: 0.481 to 0.855 and 0.699 to 0.972
    sure = {name: row | {"examples": 2000} for name, row in rows.items()}
    assert (
        describe_gap(sure, measure_of("accuracy"))[1] == "b, accuracy 0.700; 20.0 points below a."
    )
    assert describe_gap({"a": rows["a"]}, measure_of("accuracy"))[1] == "a, the only one."


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
        out=place / "run",
        options=SimulationOptions(EngineOptions(workers=1), baselines=("alone",), quiet=True),
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
    counts, words = choose_counts(plan, result)
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
        draw_roc_curves(curves),
        draw_lines(lines, Axis("ε", log=True), "accuracy", {"pooled": Interval(0.9, 0.8, 1.0)}),
        draw_cases({"": [(0.0, Interval(0.5))]}, "accuracy", ["only"]),
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
        page.cards([Card(evil, evil, warn=True)]),
        page.figure(b"<svg/>", evil),
        page.listing(evil),
        page.details(evil, ""),
        page.note(evil),
    ]
    assert "<img src=x" not in page.page(evil, parts)


@pytest.mark.parametrize(
    ("area", "hits", "exact", "words"),
    [
        ((0.9, 1.0), (0.9, 1.0), 1.0, "every record comes back"),
        ((0.99, 1.0), (0.96, 1.0), None, "certain who is in"),
        ((0.96, 0.99), (0.03, 0.75), None, "nearly certain who is in"),
        ((0.74, 0.82), (0.0, 0.14), 0.0, "better than guessing"),
        ((0.44, 0.54), (0.0, 0.08), None, "not told from guessing"),
    ],
)
def test_verdicts_on_sums_follow_the_intervals(area, hits, exact, words):
    """A certainty that is only likely, or chance called a leak."""
    found = {"auc_interval": list(area), "hits_interval": list(hits)}
    if exact is not None:
        found["exact"] = exact
    assert judge_size(found) == words

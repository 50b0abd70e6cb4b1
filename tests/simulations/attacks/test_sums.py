"""Attacks on sums: without noise they tell who is in them, and under ε they do not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client import sum_round
from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.common.statistics.gram_sums import sum_records
from fedgraft.simulations.attacks import ATTACKS, sums_audit
from fedgraft.simulations.attacks.lira import attack_by_likelihood
from fedgraft.simulations.attacks.privacy_limit import StatedPrivacy, most_area, most_hits
from fedgraft.simulations.attacks.solved_membership import measure_leverage, sum_as_sent
from fedgraft.simulations.attacks.solved_target import open_solved
from fedgraft.simulations.attacks.sums_audit import SumsAuditor
from fedgraft.simulations.attacks.unit_lattice import match_records, recover_records
from fedgraft.simulations.benchmarks.planted_runs import FinishedRun
from fedgraft.simulations.engines.engine import nodes_on_disk, simulate
from fedgraft.simulations.report.run_page import write_run_page
from fedgraft.simulations.report.sums_part import judge_size, show_sums
from fedgraft.simulations.study.run_study import run_study

IMAGES = """
name: few
task: {kind: image-classification, classes: [no, yes]}
backbone: {name: cifar-resnet8, image_size: 8}
adapter: {method: head}
train: {method: closed-form}
simulation: {nodes: 2, data: images.npz, partition: {kind: iid}}
seed: 5
"""
TABLE = """
name: patients
task:
  kind: tabular-classification
  classes: [no, yes]
  columns: [a, b, c]
  ranges: [{columns: [a, b, c], low: -3, high: 4}]
backbone: {name: mlp, hidden: [8, 8]}
adapter: {method: head}
train: {method: closed-form}
privacy: {mode: sample, unit: patient, target_epsilon: 1, delta: 1.0e-5}
aggregate: {min_nodes: 1}
simulation: {data: [table.csv], partition: {kind: files}}
seed: 5
"""
PRIVATE = ("privacy={mode: sample, target_epsilon: 1, delta: 1.0e-5}",)


def write_images(folder: Path) -> Path:
    """A plan over 180 small images at two nodes, fewer than there are features."""
    rng = np.random.default_rng(2)
    content = {}
    for split, count in (("train", 180), ("val", 120), ("test", 30)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 120, (count, 8, 8))
        content[f"{split}_images"] = (noise + 6 * labels[:, None, None]).astype(np.uint8)
        content[f"{split}_labels"] = labels
    np.savez(folder / "images.npz", **content)
    (folder / "plan.yaml").write_text(IMAGES)
    return folder / "plan.yaml"


def finish(folder: Path, overrides: tuple[str, ...]) -> Iterator[FinishedRun]:
    path = write_images(folder)
    plan = load_plan(path, overrides)
    with nodes_on_disk(plan, path) as nodes:
        simulate(plan, path, folder / "run", nodes=nodes)
        yield FinishedRun(plan, folder / "run", nodes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    yield from finish(tmp_path_factory.mktemp("plain"), ())


@pytest.fixture(scope="module")
def noised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    yield from finish(tmp_path_factory.mktemp("noised"), PRIVATE)


# ── what was sent ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["plain", "noised"])
def test_the_sums_that_were_sent_are_made_again(name: str, request: pytest.FixtureRequest) -> None:
    """An attack on sums that no node ever sent: they must give the shared head to the bit."""
    run: FinishedRun = request.getfixturevalue(name)
    target = open_solved(run.plan, run.run, run.nodes)
    solved = target.solve(sum_as_sent(target))
    for part, tensor in target.run.shared.items():
        assert torch.equal(solved[part], tensor), part


def test_an_attack_spends_nothing(noised: FinishedRun) -> None:
    """A ledger that is written by whoever attacks a run."""
    target = open_solved(noised.plan, noised.run, noised.nodes)
    ledger = target.run.nodes[0].node.ledger_path
    before = ledger.read_bytes()
    sum_as_sent(target)
    assert ledger.read_bytes() == before


# ── membership ────────────────────────────────────────────────────────────────────────────────────
def attack(run: FinishedRun, shadows: int = 64) -> dict[str, Any]:
    return attack_by_likelihood(run.plan, run.run, run.nodes, 0, shadows=shadows)


def test_a_nodes_sums_name_every_member(plain: FinishedRun) -> None:
    """An attack that cannot see a leak that is there: fewer records than features."""
    found = attack(plain)
    assert found["shadows"] == 64
    assert found["limit"] is None
    assert found["views"]["node sums"]["auc"] == 1.0
    assert found["views"]["shared model"]["auc_interval"][0] > 0.5


def test_noise_leaves_no_more_than_its_epsilon_allows(noised: FinishedRun) -> None:
    """A leak that is only the attack's own error, or noise that is the same in every shadow."""
    found = attack(noised)
    assert found["limit"]["epsilon"] == pytest.approx(1.0, abs=1e-3)
    for view in found["views"].values():
        assert view["auc_interval"][0] < found["limit"]["auc"]
        assert view["auc"] < 0.75


def test_the_loss_is_asked_under_both_heads(plain: FinishedRun, noised: FinishedRun) -> None:
    """A view that is missing where there are no updates."""
    for run in (plain, noised):
        views = run.attack("loss-threshold")["views"]
        assert set(views) == {"shared model", "node sums"}
    assert plain.attack("loss-threshold")["views"]["node sums"]["auc"] > 0.55


def test_the_limit_is_that_of_epsilon_and_delta() -> None:
    """A limit below what a mechanism of this ε gives away, or above what it can."""
    nothing = StatedPrivacy(0.0, 0.0)
    assert most_area(nothing) == pytest.approx(0.5)
    assert most_hits(0.01, nothing) == pytest.approx(0.01)
    # randomised response: the curve has one corner, at 1 / (1 + e^ε)
    likelier = math.e
    assert most_area(StatedPrivacy(1.0, 0.0)) == pytest.approx(likelier / (1 + likelier))
    assert most_hits(0.01, StatedPrivacy(1.0, 1e-3)) == pytest.approx(likelier * 0.01 + 1e-3)
    assert most_hits(1.0, StatedPrivacy(1.0, 0.0)) == 1.0


# ── reconstruction ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("records", [1, 2, 5, 12])
def test_few_records_come_back_from_their_products(records: int) -> None:
    """A reduction that loses a record, or finds others with the same products."""
    rng = np.random.default_rng(records)
    truth = rng.integers(-(2**20), 2**20, (records, 60))
    found = recover_records(truth.T @ truth, records, rng)
    assert found is not None
    assert np.array_equal(found.T @ found, truth.T @ truth)
    assert match_records(found, truth) == records


def test_what_cannot_come_back_is_not_made_up() -> None:
    """A record twice: its lattice has no vectors of length 1 for it. More records than features:
    there is none.
    """
    rng = np.random.default_rng(0)
    once = rng.integers(-1000, 1000, (3, 40))
    twice = np.concatenate([once, once[:1]])
    assert recover_records(twice.T @ twice, 4, rng) is None
    many = rng.integers(-1000, 1000, (8, 5))
    assert recover_records(many.T @ many, 8, rng) is None


def test_leverage_excludes_every_stranger_to_fewer_records_than_features() -> None:
    """A member excluded by rounding, or a stranger let through."""
    rng = np.random.default_rng(1)
    known = rng.integers(-(2**20), 2**20, (30, 50)).astype(float)
    strangers = rng.integers(-(2**20), 2**20, (30, 50)).astype(float)
    sums = sum_records(known, np.zeros((30, 1), np.int64), 20)
    assert measure_leverage(sums, known).max() < 1 + 1e-6
    assert measure_leverage(sums, strangers).min() > 1e3


def test_the_attack_says_how_few_is_too_few(plain: FinishedRun, noised: FinishedRun) -> None:
    """A floor that nobody measured; noise that hides nothing."""
    found = plain.attack("reconstruction")
    assert found["features"] == 128
    assert (found["nodes_below_features"], found["nodes_below_floor"]) == (2, 2)
    for size in ("1", "2", "4", "8", "16"):
        assert found["by_size"][size]["exact"] == 1.0, size
        assert found["by_size"][size]["auc"] == pytest.approx(1.0)
        assert judge_size(found["by_size"][size]) == "every record comes back"
    assert found["by_size"]["128"]["auc"] > 0.99
    assert found["by_size"]["1"]["error"] < 1e-4 < found["by_size"]["1"]["error_mean"]

    hidden = noised.attack("reconstruction")
    for size, of_size in hidden["by_size"].items():
        assert "exact" not in of_size
        assert of_size["auc_interval"][0] < 0.731, size
    assert hidden["by_size"]["1"]["error"] > 10 * hidden["by_size"]["1"]["error_mean"]
    words = show_sums({"plain": {"reconstruction": found}, "noised": {"reconstruction": hidden}})
    assert "2 of 2 hospitals have fewer records than the 128 features" in words
    assert "noised: the sums have noise" in words
    assert "not told from guessing" in words


# ── the audit ─────────────────────────────────────────────────────────────────────────────────────
def test_sums_without_noise_give_every_canary_away(plain: FinishedRun) -> None:
    """A canary that is lost on its way into the sums."""
    audit = plain.attack("audit")
    assert audit["stated_epsilon"] is None
    assert (audit["releases"], audit["accuracy"]) == (1, 1.0)
    assert audit["epsilon"] == audit["ceiling"] > 3


def test_a_right_release_is_never_refuted(
    noised: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound that accuses who keeps their word."""
    monkeypatch.setattr(sums_audit, "CANARIES", 10_000)
    audit = noised.attack("audit")
    assert audit["releases"] == 40
    assert 0 <= audit["epsilon"] <= audit["stated_epsilon"]
    assert audit["ceiling"] > 4


def draw_nothing(sigma: int, count: int, randomness: Any) -> np.ndarray:
    return np.zeros(count, np.int64)


@pytest.mark.parametrize("shares", ["counted", "equal"])
def test_a_canary_adds_one_to_its_own_score(noised: FinishedRun, shares: str) -> None:
    """Canaries that move the sums by less than a record may, or one another's scores."""
    closed = noised.plan.train.closed_form.model_copy(update={"shares": shares})
    train = noised.plan.train.model_copy(update={"closed_form": closed})
    target = open_solved(noised.plan, noised.run, noised.nodes)
    changed = replace(target.run, plan=noised.plan.model_copy(update={"train": train}))
    auditor = SumsAuditor.of(replace(target, run=changed), seed=1)
    included = np.arange(len(auditor.canaries)) % 3 == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_round, "draw_discrete_gaussian", draw_nothing)
        scores = auditor.score(1, included)
    assert scores == pytest.approx(included.astype(float), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_less_noise_than_stated_is_refuted(
    noised: FinishedRun, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """An audit that any implementation passes. The code itself is broken here; the plan states ε =
    1 all the same.
    """
    honest = sum_round.sigma_of

    def too_little(noise_multiplier: float, **options: bool) -> int:
        return int(share * honest(noise_multiplier, **options))

    monkeypatch.setattr(sum_round, "sigma_of", too_little)
    audit = noised.attack("audit")
    assert audit["epsilon"] > audit["stated_epsilon"]


def test_noise_that_repeats_is_refuted(
    noised: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any noise a few releases suffice."""
    monkeypatch.setattr(sums_audit, "CANARIES", 2_000)
    monkeypatch.setattr(sum_round, "draw_discrete_gaussian", draw_nothing)
    audit = noised.attack("audit")
    assert audit["epsilon"] > 3 > audit["stated_epsilon"]


# ── in words, and in a study ──────────────────────────────────────────────────────────────────────
def test_attacks_on_steps_say_what_to_do_about_sums(plain: FinishedRun) -> None:
    """A refusal that does not tell what can be attacked."""
    for name in ("inversion", "labels", "properties"):
        with pytest.raises(UserError, match="reconstruction"):
            plain.attack(name)
    steps = load_plan(plain.run.parent / "plan.yaml", ["train.method=steps"])
    with pytest.raises(UserError, match="closed-form"):
        ATTACKS["reconstruction"](steps, plain.run, plain.nodes, 0)


STUDY = """
name: one-round-small
question: What do sums give away?
plan: plan.yaml
grid: {privacy: [{mode: none}, {mode: sample, target_epsilon: 1, delta: 1.0e-5}]}
seeds: [5]
attacks: [loss-threshold, reconstruction]
show: {x: epsilon}
"""


@pytest.mark.slow
def test_a_study_of_one_round_ends_in_a_page_and_goes_on(tmp_path: Path) -> None:
    """A page that speaks of steps and updates; a cell that is run again for one attack."""
    write_images(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    out = tmp_path / "out"
    done = run_study(str(tmp_path / "study.yaml"), out=out, workers=1, quiet=True)
    assert done["run"] == 2
    text = (out / "report.html").read_text()
    for words in ("a head solved from sums", "How few records do sums hide?", "node sums"):
        assert words in text, words
    for words in ("adapters", "clipping norm", "every step"):
        assert words not in text, words

    (cell,) = (out / "cells").glob("*none*")
    file = cell / "attacks.json"
    results = json.loads(file.read_text())
    first = results.pop("reconstruction")
    file.write_text(json.dumps(results))
    finished = (cell / "result.json").stat().st_mtime_ns
    again = run_study(str(tmp_path / "study.yaml"), out=out, workers=1, quiet=True)
    assert again["run"] == 1
    assert (cell / "result.json").stat().st_mtime_ns == finished
    assert json.loads(file.read_text())["reconstruction"]["by_size"] == first["by_size"]

    page = write_run_page(cell).read_text()
    assert "How few records do sums hide?" in page


def test_a_patients_records_share_one_weight(tmp_path: Path) -> None:
    """Canaries that are taken for somebody's records; shadows in which a patient weighs more than
    the plan lets them.
    """
    rng = np.random.default_rng(4)
    lines = ["id,a,b,c,target"]
    for row in range(120):
        label = int(rng.integers(0, 2))
        values = ",".join(f"{value + label:.4f}" for value in rng.normal(size=3))
        lines.append(f"p{row // 2},{values},{label}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    path = tmp_path / "plan.yaml"
    path.write_text(TABLE)
    plan = load_plan(path)
    with nodes_on_disk(plan, path) as nodes:
        for node in nodes:
            text = node.read_text()
            node.write_text(text.replace("data:\n", "data:\n  patient: id\n", 1))
        simulate(plan, path, tmp_path / "run", nodes=nodes)
        run = FinishedRun(plan, tmp_path / "run", nodes)
        target = open_solved(plan, run.run, nodes)
        solved = target.solve(sum_as_sent(target))
        assert torch.equal(solved["depth_head.weight"], target.run.shared["depth_head.weight"])
        found = attack(run, shadows=16)
        assert found["views"]["node sums"]["auc"] < 0.8
        auditor = SumsAuditor.of(target, seed=1)
        included = np.arange(len(auditor.canaries)) % 2 == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sum_round, "draw_discrete_gaussian", draw_nothing)
            scores = auditor.score(1, included)
        assert scores == pytest.approx(included.astype(float), abs=1e-6)

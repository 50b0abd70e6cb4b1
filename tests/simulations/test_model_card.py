"""The model card: the field's headings in its order, the run's own numbers, nothing that the run
cannot know.
"""

from __future__ import annotations

import json
import re

from scipy import stats

from fedgraft.server.papers.model_card import wilson
from fedgraft.simulations.results_in_words import describe_results

MITCHELL = (  # Mitchell et al. 2019, figure 1
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)


def test_headings_and_numbers_are_those_of_the_paper_and_of_the_run(tiny, tmp_path):
    """A heading left out, a number of another run, or a table that Markdown does not read."""
    result, _ = tiny(3).run(tmp_path / "out")
    card = (tmp_path / "out" / "shared_model" / "MODEL_CARD.md").read_text()
    assert tuple(re.findall(r"^## (.+)$", card, re.M)) == MITCHELL
    assert "nan" not in card.lower().split()
    assert result["plan_hash"] in card
    assert result["backbone"]["fingerprint_before"] in card
    rows = [line.split("|")[1:-1] for line in card.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {5}
    for name, metrics in {
        "all nodes together": result["final"]["global"],
        **result["final"]["nodes"],
    }.items():
        (row,) = [row for row in rows if row[0].strip() == name]
        assert row[1].strip() == f"{metrics['examples']:,}"
        assert row[2].strip() == f"{metrics['accuracy']:.3f}"
    about = json.loads((tmp_path / "out" / "shared_model" / "model.json").read_text())
    assert all(name in card for name in about["classes"])
    assert "No differential privacy" in card


def test_a_chosen_round_is_told(tiny, tmp_path):
    """A model of round 1 under a card that speaks of three rounds; or a choice nobody can weigh."""
    sets = ["train.keep=best", "train.patience=1", "evaluate.validation_fraction=0.3"]
    # a rate at which every further round is worse
    result, _ = tiny(3).run(tmp_path / "out", [*sets, "train.optimizer.lr=2.0"])
    card = (tmp_path / "out" / "shared_model" / "MODEL_CARD.md").read_text()
    best = result["validation"]["best"]
    done = result["rounds_done"]
    assert result["validation"]["ended_early"]
    assert done == best + 1 < 3
    assert f"- The shared model is that of round {best} of {done}: the lowest loss" in card
    assert f"on {result['validation']['rounds'][0]['metrics']['examples']} validation rec" in card
    assert f"- Training ended early, after round {done}" in card
    told = describe_results([{**result, "baselines": {}}])
    assert any(sentence.startswith("training ended early") for sentence in told)


def test_a_refused_update_is_a_caveat(tiny, tmp_path):
    """A model that was made without a node, and a card that keeps it quiet."""
    result, _ = tiny(3).run(tmp_path / "out", unreachable=2)
    card = (tmp_path / "out" / "shared_model" / "MODEL_CARD.md").read_text()
    assert result["refused"]
    assert "Updates left out" in card
    assert result["refused"][0]["node"] in card.partition("## Caveats")[2]


def test_intervals_are_wilson_s():
    """Against scipy's own."""
    for right, count in ((0, 7), (5, 9), (403, 468)):
        other = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert abs(wilson(right / count, count)[0] - other.low) < 1e-6
        assert abs(wilson(right / count, count)[1] - other.high) < 1e-6

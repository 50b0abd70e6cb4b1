"""A federation that learns to answer: from texts of two sites to a language model made of a
third's, adapters, answers, and all of it private.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from typer.testing import CliRunner

import fedgraft
from fedgraft.cli import app
from fedgraft.common.errors import UserError
from tests.language_models import write_gpt2, write_site

pytest.importorskip("transformers")
PLAN: dict[str, Any] = {
    "name": "answers",
    "task": {
        "kind": "text-generation",
        "text": ["question", "answer"],
        "target": "answer",
    },
    "backbone": {"name": "huggingface", "weights": "./model", "max_length": 48},
    "adapter": {"method": "lora", "rank": 4},
    "train": {
        "rounds": 3,
        "local_epochs": 2,
        "batch_size": 8,
        "optimizer": {"lr": 0.02},
    },
    "simulation": {
        "data": ["north.csv", "south.csv"],
        "partition": {"kind": "files"},
        "test_fraction": 0.25,
    },
}
PRETRAIN: dict[str, Any] = {
    "data": ["source.csv"],
    "epochs": 30,
    "batch_size": 4,
    "optimizer": {"lr": 0.01},
    "language": {"tokens": 300, "layers": 1, "width": 16, "heads": 2},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sites, one that is a source, and a tiny GPT-2."""
    for number, name in enumerate(("north", "south", "source")):
        write_site(tmp_path / f"{name}.csv", number)
    write_gpt2(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


def perplexities(run: fedgraft.Run) -> list[float]:
    return run.rounds["received_perplexity"].tolist()


def test_from_answers_of_two_sites_to_answers_of_new_questions(here: Path) -> None:
    """The whole way: perplexity falls, and what is written follows the question."""
    run = simulate("run", **{"train.rounds": 6})
    last = run.metrics.loc["shared model", "perplexity"]
    assert last < 0.4 * perplexities(run)[0]
    with (here / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question"])
        writer.writerows([["What of the skin?"], ["What of the lungs?"]])
    command = ["predict", "run", "prompts.csv", "--out", "said.csv", "--tokens", "12"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    with (here / "said.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == ["row 1", "row 2"]

    prompts = ["What of the skin?", "What of the lungs?"]
    model = run.shared_model
    by_list = model.predict(prompts, tokens=12)
    by_frame = model.predict(pandas.DataFrame({"question": prompts}), tokens=12)
    assert by_list["answer"].tolist() == [row["answer"] for row in rows]
    assert by_frame["answer"].tolist() == by_list["answer"].tolist()

    card = next(here.glob("run/**/MODEL_CARD.md")).read_text()
    assert "perplexity" in card.lower()
    assert "to write answer after question" in card
    assert "perplexity" in (here / "run/report.html").read_text()


def test_nothing_of_a_text_is_in_what_a_run_writes(here: Path) -> None:
    """Answers stand where labels do, and labels may be told of; answers are records."""
    simulate("run", **{"train.rounds": 1})
    for path in (here / "run").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".html", ".md", ".log", ".yaml"):
            assert "behind the chest" not in path.read_text(), path


def test_private_steps_and_noisy_counts(here: Path) -> None:
    """DP-SGD clips the loss of an answer, and no sums leave but noisy counts of losses."""
    changes = {
        "privacy.mode": "sample",
        "privacy.target_epsilon": 8.0,
        "train.rounds": 2,
    }
    run = simulate("private", **changes)
    spent = run.result.privacy
    assert spent is not None
    assert all(each.epsilon <= 8.0 for each in spent.values())
    assert run.metrics.loc["shared model", "perplexity"] > 1


def test_a_language_model_made_of_other_sites(here: Path) -> None:
    """Its folder is one that the plan can name, with what it was made of; the same to the bit."""
    changes: dict[str, Any] = {"pretrain": PRETRAIN, "backbone.weights": "./made"}
    made = fedgraft.pretrain(PLAN, set=changes)
    again = fedgraft.pretrain(PLAN, set={**changes, "backbone.weights": "./again"})
    assert made["fingerprint"] == again["fingerprint"]
    # among 300 tokens
    assert 1 < made["perplexity"] < 60
    provenance = json.loads((here / "made/provenance.json").read_text())
    assert provenance["data"] == ["source.csv"]
    assert provenance["held_out_perplexity"] == made["perplexity"]

    import transformers

    library = transformers.GPT2LMHeadModel.from_pretrained("made")
    assert library.config.n_embd == 16
    run = fedgraft.simulate(PLAN, set=changes, out="run", progress=False)
    assert isinstance(run, fedgraft.Run)
    assert perplexities(run)[-1] < perplexities(run)[0]


def test_a_source_that_is_a_node_is_refused() -> None:
    """Its tests would be of texts that the language model has seen."""
    changes = {"pretrain": {**PRETRAIN, "data": ["north.csv"]}, "backbone.weights": "./made"}
    with pytest.raises(UserError, match="node's file"):
        fedgraft.pretrain(PLAN, set=changes)
    changes = {"pretrain": {**PRETRAIN, "data": ["./north.csv"]}, "backbone.weights": "./made"}
    with pytest.raises(UserError, match="node's file"):
        fedgraft.pretrain(PLAN, set=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.method": "head"}, "nothing would be trained"),
        ({"task.text": ["answer", "question"]}, "answer last"),
        ({"task.text": ["answer"]}, "answer last"),
        ({"train.method": "closed-form", "adapter.method": "bias"}, "no sums"),
        ({"task.classes": ["a", "b"]}, "no class"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    """Each says what to write instead."""
    with pytest.raises(UserError) as error:
        fedgraft.validate(PLAN, set=changes)
    assert message in f"{error.value.what} {error.value.remedy}" or message in str(error.value)


def test_a_network_that_is_no_language_model(here: Path) -> None:
    """A BERT sees both sides of a token: its loss would be that of copying."""
    from tests.huggingface_folders import write_folder

    write_folder(here / "bert", "bert")
    with pytest.raises(UserError, match="left to right"):
        simulate("run", **{"backbone.weights": "./bert", "backbone.max_length": 16})

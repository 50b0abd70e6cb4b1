"""A federation that finds entities in texts, from three files to spans: in one round, by steps,
private.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.simulations.predict import predict
from tests.awd_lstm_folders import write_encoder
from tests.entity_texts import PLAN, as_spans, draw_sites, write_notes
from tests.huggingface_folders import ARCHITECTURES, write_folder

pytest.importorskip("transformers")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the notes of three hospitals and a tiny BERT."""
    for name, notes in draw_sites().items():
        write_notes(tmp_path / f"{name}.csv", notes)
    write_folder(tmp_path / "model", "bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(name: str, **changes: Any) -> Any:
    """Run the plan with sections or keys replaced."""
    sections = {key: value for key, value in changes.items() if "." not in key}
    keys = {key: value for key, value in changes.items() if "." in key}
    Path("plan.json").write_text(json.dumps({**PLAN, **sections}))
    return fedgraft.simulate("plan.json", out=name, set=keys, progress=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_round_finds_entities(architecture: str, here: Path) -> None:
    """The shortest way from annotated notes to spans in new ones, whatever the tokenizer does."""
    write_folder(here / architecture, architecture)
    run = simulate("one", **{"backbone.weights": f"./{architecture}"})
    # twelve random numbers a token, in some depths; nothing found is 0
    assert run.metrics.loc["shared model", "f1"] > 0.2
    told = run.shared_model.predict(["cough three weeks", "nothing found 25"])
    assert told.columns.tolist() == ["entities"]
    assert told["entities"].tolist()[0] == "none"


def test_what_is_written_is_what_the_data_state(here: Path) -> None:
    """A file of predictions can be laid beside the file of annotations, or taught from."""
    simulate("run")
    rows = predict(here / "run", here / "north.csv", here / "out.csv")
    assert rows == 60
    with (here / "out.csv").open() as file:
        told = [row["entities"] for row in csv.DictReader(file)]
    stated = [as_spans(note) for note in draw_sites()["north"]]
    same = sum(one == other for one, other in zip(told, stated, strict=True))
    assert same > 30
    frame = fedgraft.load_shared_model("run").predict("north.csv")
    assert frame["entities"].tolist() == told


def test_page_and_card_speak_of_entities(here: Path) -> None:
    """Whoever decides on a model reads of each type how much of it is found."""
    simulate("run")
    card = (here / "run" / "shared_model" / "MODEL_CARD.md").read_text()
    page = (here / "run" / "report.html").read_text()
    assert "to find in texts: NAME, DATE" in card
    assert "recall" in card
    assert "Label by label" in page
    result = json.loads((here / "run" / "result.json").read_text())
    assert set(result["final"]["labels"]) == {"NAME", "DATE"}


@pytest.mark.parametrize(
    ("adapter", "train"),
    [
        ({"method": "head"}, {"rounds": 3}),
        ({"method": "lora", "rank": 2, "targets": "last-block"}, {"rounds": 2}),
        ({"method": "lora", "rank": 2}, {"rounds": 2, "start": "closed-form"}),
        ({"method": "bottleneck"}, {"rounds": 3, "finish": "closed-form"}),
    ],
)
def test_steps_train_for_each_token(
    adapter: dict[str, Any], train: dict[str, Any], here: Path
) -> None:
    """Heads and adapters on tokens, by themselves and from or to a head that sums give."""
    steps = {"batch_size": 8, "local_epochs": 3, "optimizer": {"lr": 0.03}}
    run = simulate("steps", adapter=adapter, train={**train, **steps})
    assert run.metrics.loc["shared model", "f1"] > 0.1
    assert len(run.shared_model.predict("north.csv")) == 60


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"method": "closed-form", "closed_form": {"features": "last"}}},
        {"train": {"rounds": 1, "batch_size": 8}},
        {"train": {"rounds": 1, "batch_size": 8}, "adapter": {"method": "lora", "rank": 2}},
    ],
)
def test_privacy_by_text_can_be_had(changes: dict[str, Any], here: Path) -> None:
    """Sums with noise and steps with noise, a text being the unit: gradients are tried first."""
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    run = simulate("private", privacy=privacy, **changes)
    assert '"epsilon"' in run.result.model_dump_json()
    assert len(run.shared_model.predict(["cough"])) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone.pool": "first"}, "tokens are not pooled"),
        ({"train.closed_form.pool": "mean-and-deviation"}, "tokens are not pooled"),
        ({"task.kind": "image-token-classification"}, "is for text"),
        ({"train.loss": "balanced"}, "no loss of"),
    ],
)
def test_plans_that_cannot_be_are_refused(changes: dict[str, Any], words: str, here: Path) -> None:
    """Each would run, and something of it would mean nothing."""
    with pytest.raises(UserError, match=words):
        simulate("wrong", **changes)


def test_words_cut_by_a_rule_are_refused(here: Path) -> None:
    """An encoder of fastai's does not say where its words lie."""
    write_encoder(here / "ulmfit")
    encoder = {"name": "fastai/awd-lstm", "weights": "./ulmfit", "max_length": 24}
    with pytest.raises(UserError, match=r"cut into words|does not tell the tokens"):
        simulate("words", backbone=encoder)

"""Which tokens are asked for: the answer's, its end, none of the prompt, none that was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.data_set import DataSource, open_records
from fedgraft.common.backbones.backbone_files import load_backbone
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.text import TextPreparation
from fedgraft.common.plan.task_section import TaskSection
from fedgraft.common.tasks.answer_tokens import list_targets
from tests.language_models import write_gpt2

pytest.importorskip("transformers")
TASK = TaskSection(kind="text-generation", text=("question", "answer"), target="answer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def prepare(folder: Path, length: int) -> TextPreparation:
    preparation = load_backbone("huggingface", weights=folder, max_length=length).preprocess
    assert isinstance(preparation, TextPreparation)
    return preparation


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Why?", "because"),
        ("Why?", "so\nit is\n\nand ends"),
        ("Wärum – 何?", "naïve Ärzte: 薬 💊"),
        ("", "an answer alone"),
        ("two\nlines", "  with spaces before"),
    ],
)
def test_targets_are_the_answers_tokens_and_its_end(folder: Path, prompt: str, answer: str) -> None:
    """Each token of the answer once, in order, at the place before it; then the end."""
    preparation = prepare(folder, 48)
    text = f"{prompt}\n{answer}" if prompt else answer
    start = len(text) - len(answer)
    targets = list_targets(preparation, text, start)
    tokens = preparation.tokenizer.encode(text).ids
    asked = [place for place, target in enumerate(targets) if target >= 0]
    assert asked == list(range(asked[0], len(tokens)))
    for place in asked[:-1]:
        assert targets[place] == tokens[place + 1]
    # <|endoftext|>
    assert targets[-1] == 0
    before = tokens[: asked[0] + 1]
    if prompt:
        decoded = sum(len(str(preparation.tokenizer.id_to_token(token))) for token in before)
        assert decoded == len(text[:start].encode())


def test_a_text_that_is_cut_has_no_end(folder: Path) -> None:
    """Or a model would learn to stop in the middle of a sentence."""
    text = "Why?\n" + "because of that " * 20
    targets = list_targets(prepare(folder, 12), text, 5)
    assert len(targets) == 12
    assert targets[-1] == -1
    assert 0 not in targets
    # a prompt that fills the text leaves nothing to ask
    assert set(list_targets(prepare(folder, 4), "a very long question indeed\nyes", 28)) == {-1}


def test_records_and_their_targets(folder: Path, tmp_path: Path) -> None:
    """From a file: an answer is where its cell is, also where it is a number or the question."""
    path = tmp_path / "site.csv"
    path.write_text("question,answer\nHow many?,007\nyes,yes\n,only\nWhat?,a rash\n")
    records = open_records(DataSource(path), TASK)
    assert set(records.source.labels) == {"text"}
    preparation = prepare(folder, 32)
    texts = records.read(np.arange(4))
    assert texts == ["How many?\n007", "yes\nyes", "only", "What?\na rash"]
    targets = records.targets(np.arange(4), preparation)
    assert targets.shape == (4, 32)
    for row, answer in enumerate(("007", "yes", "only", "a rash")):
        own = targets[row][targets[row] > 0].tolist()
        pieces = [str(preparation.tokenizer.id_to_token(token)) for token in own]
        said = "".join(pieces).replace("Ġ", " ")
        # the first token of a text has none before it that could be asked
        assert said == (answer if row != 2 else said)
        assert answer.endswith(said)


def test_texts_without_answers_are_refused(tmp_path: Path) -> None:
    """A plan of another question that is sent to these records."""
    path = tmp_path / "site.csv"
    path.write_text("question,answer\nWhy?,\n")
    with pytest.raises(UserError, match="missing"):
        open_records(DataSource(path), TASK)

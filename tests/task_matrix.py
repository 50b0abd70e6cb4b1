"""What can be asked, and how: every question × every way to answer it, tried on tiny federations.

    python -m tests.task_matrix        # writes docs/task-matrix.md

A cell is a run on synthetic records of two hospitals; `tests/test_task_matrix.py` holds the page to
it.
"""

from __future__ import annotations

import csv
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fedgraft.common.errors import UserError
from fedgraft.common.tasks import TASKS
from fedgraft.simulations.engines.engine import EngineOptions
from fedgraft.simulations.predict import predict
from fedgraft.simulations.simulate import SimulationOptions, simulate_plan
from fedgraft.simulations.study.run_study import run_study
from tests.entity_texts import PLAN as ENTITY_PLAN
from tests.entity_texts import draw_note, write_notes
from tests.huggingface_folders import write_folder
from tests.language_models import write_gpt2
from tests.language_models import write_site as write_questions

PAGE = Path(__file__).parents[1] / "docs" / "task-matrix.md"
WORKS = "✓"
HEAD = """# What can be asked, and how

For whoever has a question and asks whether it can be answered in one round, by steps, privately.
Each cell is a federation of two hospitals on synthetic records (`tests/test_task_matrix.py`), and
this page is written by it: `python -m tests.task_matrix`. What each question is, how its data look
and how its plan reads: [Questions](tasks.md).

- **one round**: the head is solved from exact sums; **private**: from sums with noise, ε = 8;
- **head**, **LoRA**: by steps; **private steps**: sample-level differential privacy, ε = 8;
- **predict**: `fedgraft predict` writes a line for each record, without its label;
- **page**: the run's page and the model card say what was asked and measured;
- **study**: a study attacks it by the loss of a record, and refuses in words what goes by classes.

"""

Write = Callable[[Path, np.random.Generator, int], None]
ONE_ROUND = {"adapter.method": "head", "train.method": "closed-form", "train.rounds": 1}
STEPS = {"train.rounds": 2, "train.local_epochs": 1}
PRIVATE = {"privacy.mode": "sample", "privacy.target_epsilon": 8, "privacy.delta": 1e-3}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "one round": ONE_ROUND,
    "private": ONE_ROUND | PRIVATE,
    "head": STEPS | {"adapter.method": "head"},
    "LoRA": STEPS | {"adapter.method": "lora", "adapter.rank": 2},
    "private steps": STEPS | PRIVATE | {"adapter.method": "head"},
}
AFTERWARDS = ("predict", "page", "study")


def drop_answers(folder: Path) -> Path:
    """Return a table of inputs alone: the first hospital's columns a, b and c."""
    with (folder / "site-0.csv").open() as file:
        rows = [row[:3] for row in csv.reader(file)]
    path = folder / "unlabelled.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@dataclass(frozen=True)
class Question:
    """A question on tiny synthetic records.

    Attributes:
        plan: what of it is its own.
        write: (file, randomness, records) → a hospital's file.
        file: what a hospital's file is called, with `{}` for its number.
        unlabelled: (folder) → what is predicted, without labels.
        steps: the way by steps that is looked at closely.
        ways: keys that a way has beside the usual ones, by its name.
    """

    plan: Mapping[str, Any]
    write: Write
    file: str = "site-{}.csv"
    unlabelled: Callable[[Path], Path] = drop_answers
    steps: str = "head"
    ways: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


TABLE = {
    "columns": ["a", "b", "c"],
    "ranges": [{"columns": ["a", "b", "c"], "low": -2, "high": 2}],
}


def write_table(answers: Callable[[np.ndarray, np.random.Generator], Mapping[str, Any]]) -> Write:
    """Return a writer of tables whose answers follow from their columns."""

    def write(path: Path, rng: np.random.Generator, records: int) -> None:
        columns = rng.normal(size=(records, 3))
        named = answers(columns, rng)
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["a", "b", "c", *named])
            for number, values in enumerate(columns.round(4).tolist()):
                rows.writerow([*values, *(column[number] for column in named.values())])

    return write


def score(columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a number that follows from the columns, with noise."""
    return columns @ [1.0, -1.0, 0.5] + 0.3 * rng.normal(size=len(columns))


def in_labels(columns: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Return two labels; a fifth of each is not known."""
    labels: dict[str, Any] = {}
    for name in ("edema", "mass"):
        there = (score(columns, rng) > 0).astype(int).astype(str)
        there[rng.random(len(there)) < 0.2] = ""
        labels[name] = there
    return labels


def in_grades(columns: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Return one of three grades."""
    return {
        "target": np.array(["low", "middle", "high"])[np.digitize(score(columns, rng), (-1, 1))]
    }


def write_masks(path: Path, rng: np.random.Generator, records: int) -> None:
    """Write images with a bright square each, and masks that say where it is."""
    images = rng.integers(0, 80, (records, 16, 16), dtype=np.uint8)
    masks = np.zeros((records, 16, 16), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        top, left = rng.integers(0, 8, 2)
        mask[top : top + 7, left : left + 7] = 1
        image[mask == 1] += 120
    np.savez(path, images=images, masks=masks)


def write_boxes(path: Path, rng: np.random.Generator, records: int) -> None:
    """Write images with a bright square each, and a file in COCO's format that says where it is."""
    folder = path.with_suffix("")
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(records):
        image = rng.integers(0, 80, (16, 16), dtype=np.uint8)
        top, left = rng.integers(0, 8, 2).tolist()
        image[top : top + 7, left : left + 7] += 120
        name = f"{folder.name}/{number:02}.png"
        Image.fromarray(image).save(path.parent / name)
        images.append({"id": number, "file_name": name, "width": 16, "height": 16})
        annotations.append({"image_id": number, "category_id": 1, "bbox": [left, top, 7, 7]})
    categories = [{"id": 1, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def drop_masks(folder: Path) -> Path:
    """Return an archive of images alone."""
    path = folder / "unlabelled.npz"
    with np.load(folder / "site-0.npz") as archive:
        np.savez(path, images=archive["images"][:9])
    return path


def write_answers(path: Path, rng: np.random.Generator, records: int) -> None:
    """Write questions and answers, and beside them the folder of a tiny language model."""
    write_questions(path, seed=int(path.stem[-1]), count=records)
    write_gpt2(path.parent / "model")


def drop_words(folder: Path) -> Path:
    """Return a table of questions alone."""
    path = folder / "unlabelled.csv"
    path.write_text("question\nWhat of the skin?\nWhat of the heart?\n")
    return path


def in_times(columns: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Return when each was last seen, and whether the event ended it."""
    times = rng.exponential(3 * np.exp(-score(columns, rng)))
    lost = rng.uniform(0, 6, len(times))
    return {"days": np.minimum(times, lost).round(3), "died": (times <= lost).astype(int)}


def write_entities(path: Path, rng: np.random.Generator, records: int) -> None:
    """Write a hospital's notes with their entities, and beside them a tiny transformer."""
    if not (path.parent / "model").exists():
        write_folder(path.parent / "model")
    draw = random.Random(int(rng.integers(1000)))
    write_notes(path, [draw_note(draw) for _ in range(records)])


def drop_entities(folder: Path) -> Path:
    """Return the first hospital's notes alone."""
    with (folder / "site-0.csv").open() as file:
        rows = [row[:1] for row in csv.reader(file)]
    path = folder / "unlabelled.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


QUESTIONS: Mapping[str, Question] = {
    "classification": Question(
        {"task": {"kind": "tabular-classification", "classes": ["no", "yes"], **TABLE}},
        write_table(lambda columns, rng: {"target": (score(columns, rng) > 0).astype(int)}),
    ),
    "multilabel": Question(
        {
            "task": {
                "kind": "tabular-multilabel",
                "classes": ["edema", "mass"],
                "targets": ["edema", "mass"],
                **TABLE,
            }
        },
        write_table(in_labels),
    ),
    "ordinal": Question(
        {"task": {"kind": "tabular-ordinal", "classes": ["low", "middle", "high"], **TABLE}},
        write_table(in_grades),
    ),
    "regression": Question(
        {"task": {"kind": "tabular-regression", "number": {"low": -5, "high": 5}, **TABLE}},
        write_table(lambda columns, rng: {"target": score(columns, rng).round(3)}),
    ),
    "survival": Question(
        {
            "task": {
                "kind": "tabular-survival",
                "targets": ["days", "died"],
                "survival": {"cuts": [1, 2, 4], "unit": "days"},
                **TABLE,
            }
        },
        write_table(in_times),
    ),
    "segmentation": Question(
        {
            "task": {
                "kind": "image-segmentation",
                "classes": ["background", "square"],
                "mask": {"stride": 2, "width": 8},
            },
            "backbone": {"name": "cifar-resnet8", "image_size": 16},
        },
        write_masks,
        file="site-{}.npz",
        unlabelled=drop_masks,
    ),
    "generation": Question(
        {
            "task": {
                "kind": "text-generation",
                "text": ["question", "answer"],
                "target": "answer",
            },
            "backbone": {"name": "huggingface", "weights": "./model", "max_length": 48},
        },
        write_answers,
        unlabelled=drop_words,
        steps="LoRA",
        ways={"private steps": {"adapter.method": "lora", "adapter.rank": 2}},
    ),
    "detection": Question(
        {
            "task": {
                "kind": "image-detection",
                "classes": ["square"],
                "boxes": {"strides": [2, 4], "width": 8, "most": 5},
            },
            "backbone": {"name": "cifar-resnet8", "image_size": 16},
        },
        write_boxes,
        file="site-{}.json",
        # its folder of images
        unlabelled=lambda folder: folder / "site-0",
    ),
}
ENTITIES = Question(
    {"task": ENTITY_PLAN["task"], "backbone": ENTITY_PLAN["backbone"]},
    write_entities,
    unlabelled=drop_entities,
)
QUESTIONS = {**QUESTIONS, "token-classification": ENTITIES}
REST: Mapping[str, Any] = {
    "backbone": {"name": "mlp", "hidden": [8, 8]},
    "adapter": {"method": "head"},
    "train": {"batch_size": 16, "optimizer": {"lr": 0.01}},
}


@cache
def open_folder(name: str) -> Path:
    """Return a folder with two hospitals' files and the plan of a question."""
    question = QUESTIONS[name]
    folder = Path(tempfile.mkdtemp(prefix=f"fedgraft-{name}-"))
    rng = np.random.default_rng(1)
    files = []
    for number in range(2):
        path = folder / question.file.format(number)
        question.write(path, rng, 60)
        files.append(str(path))
    simulation = {"data": files, "partition": {"kind": "files"}}
    plan = {"name": f"asks-{name}", **REST, **question.plan, "simulation": simulation}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder


def list_overrides(question: Question, way: str) -> list[str]:
    """Return the keys of a way as overrides."""
    changes = {**WAYS[way], **question.ways.get(way, {})}
    overrides = []
    for key, value in changes.items():
        written = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
        overrides.append(f"{key}={written}")
    return overrides


def run(name: str, way: str) -> Path:
    """Run a question one way. Return the run's folder. Raise `UserError` where it cannot be."""
    folder = open_folder(name)
    out = folder / way.replace(" ", "-")
    if (out / "result.json").exists():
        return out
    options = SimulationOptions(
        engine=EngineOptions(workers=1), baselines=(), quiet=True, pages=True
    )
    overrides = list_overrides(QUESTIONS[name], way)
    simulate_plan(str(folder / "plan.yaml"), overrides=overrides, out=out, options=options)
    return out


def try_cell(name: str, way: str) -> str:
    """Return ✓ where a question can be answered so, or why not."""
    try:
        if way in WAYS:
            return _check_run(name, way)
        return CHECKS[way](name)
    except UserError as error:
        first, *_ = str(error).splitlines()
        return first.split(": ", 1)[1] if first.startswith("--set") else first


def _check_run(name: str, way: str) -> str:
    result = json.loads((run(name, way) / "result.json").read_text())
    measured = result["final"]["global"]
    if result["status"] != "completed" or not measured["examples"]:
        return "wrong: nothing was measured"
    private = way.startswith("private")
    if private and max(row["epsilon"] for row in result["privacy"].values()) > 8:
        return "wrong: more ε than was asked for"
    return WORKS


def _first_run(name: str) -> Path:
    """Return a run of a question, one round where it has sums."""
    try:
        return run(name, "one round")
    except UserError:
        return run(name, QUESTIONS[name].steps)


def _check_predictions(name: str) -> str:
    folder = open_folder(name)
    out = folder / "predictions.csv"
    written = predict(_first_run(name), QUESTIONS[name].unlabelled(folder), out)
    with out.open() as file:
        rows = list(csv.reader(file))
    return WORKS if written and len(rows) == written + 1 else "wrong: no line for each record"


def _check_page(name: str) -> str:
    finished = _first_run(name)
    page = (finished / "report.html").read_text()
    card = (finished / "shared_model" / "MODEL_CARD.md").read_text()
    for text in (page, card):
        if "nan" in text.split("<style>")[0] or "None" in text:
            return "wrong: a page with a value that is none"
    return WORKS if "How good is the shared model?" in page else "wrong: no page"


def _check_study(name: str) -> str:
    folder = open_folder(name)
    overrides = {}
    for override in list_overrides(QUESTIONS[name], QUESTIONS[name].steps):
        key, _, value = override.partition("=")
        overrides[key] = yaml.safe_load(value)
    study = {
        "name": f"attacks-{name}",
        "question": "What does the loss of a record tell?",
        "plan": str(folder / "plan.yaml"),
        "set": overrides,
        "seeds": [7],
        "attacks": ["loss-threshold"],
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    outcome = run_study(str(file), out=folder / "study", workers=1, quiet=True)
    if outcome.get("failed"):
        return f"wrong: {outcome['failed']}"
    if name == "classification":
        return WORKS
    file.write_text(yaml.safe_dump(study | {"attacks": ["lira"]}))
    try:
        run_study(str(file), out=folder / "refused", workers=1, quiet=True)
    except UserError as error:
        return WORKS if "goes by" in str(error) else f"wrong: {error}"
    return "wrong: an attack that goes by classes was not refused"


CHECKS: Mapping[str, Callable[[str], str]] = {
    "predict": _check_predictions,
    "page": _check_page,
    "study": _check_study,
}


def write_page() -> None:
    """Try every cell and write the page."""
    ways = [*WAYS, *AFTERWARDS]
    lines = [f"| question | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    notes: list[str] = []
    for name in QUESTIONS:
        cells = []
        for way in ways:
            found = try_cell(name, way)
            cells.append(WORKS if found == WORKS else "–")
            if found != WORKS:
                notes.append(f"- {name}, {way}: {found}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    PAGE.write_text(HEAD + "\n".join([*lines, "", *notes]).rstrip() + "\n")


def list_missing() -> list[str]:
    """Return questions of the house that are not tried here."""
    return [name for name in TASKS if name not in QUESTIONS]


if __name__ == "__main__":
    write_page()

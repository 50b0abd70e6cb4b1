"""The command, met by people who make mistakes: what it says, how it ends, and what it leaves
behind.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refuse(place: Path, done: Any, *words: str) -> None:
    """Exit 2, one message with the words and a remedy, no traceback."""
    assert done.code == 2, done
    for word in words:
        assert word in done.err, done.err
    assert "→" in done.err
    assert "Traceback" not in done.err + done.out
    assert len(done.err) < 600


# ── mistakes in the plan ──────────────────────────────────────────────────────────────────────────
def bomb(place: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9)]
    (place / "plan.yaml").write_text("\n".join(lines))


PLANS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "10 MB": (
        lambda p: (p / "plan.yaml").write_text("name: x\n" + "# filler\n" * 1_200_000),
        ("plan.yaml", "larger than"),
    ),
    "bomb": (bomb, ("plan.yaml:1", "aliases")),
    "deep": (lambda p: (p / "plan.yaml").write_text("name: " + "[" * 5000), ("plan.yaml",)),
    "binary": (lambda p: (p / "plan.yaml").write_bytes(bytes(range(256))), ("plan.yaml",)),
    "empty": (lambda p: (p / "plan.yaml").write_text(""), ("plan.yaml",)),
    "a list": (lambda p: (p / "plan.yaml").write_text("- 1\n- 2\n"), ("plan.yaml",)),
    "gone": (lambda p: (p / "plan.yaml").unlink(), ("plan.yaml", "pneumonia")),
    "a folder": (lambda p: ((p / "plan.yaml").unlink(), (p / "plan.yaml").mkdir()), ("plan.yaml",)),
    "misspelt key": (
        lambda p: edit(p / "plan.yaml", "rounds", "ronds"),
        ("plan.yaml:10", "train.ronds", "rounds"),
    ),
    "text for a number": (
        lambda p: edit(p / "plan.yaml", "rounds: 2", "rounds: two"),
        ("plan.yaml:10", "train.rounds", "two"),
    ),
    "twice": (
        lambda p: edit(p / "plan.yaml", "name: tiny", "name: tiny\nname: tiny"),
        ("plan.yaml:3", "name"),
    ),
}


@pytest.mark.parametrize("verb", ["validate", "simulate"])
@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_is_none(place, command, case, verb):
    """A traceback, minutes of thinking, or a message without file and line."""
    spoil, words = PLANS[case]
    spoil(place)
    before = everything(place)
    refuse(place, command(verb, "plan.yaml"), *words)
    assert everything(place) == before


def test_all_mistakes_are_told_at_once(place, command):
    """One mistake a run."""
    edit(place / "plan.yaml", "rounds: 2", "rounds: 0")
    edit(place / "plan.yaml", "method: lora", "method: lorra")
    refuse(
        place,
        command("validate", "plan.yaml", "--set", "seed=-1"),
        "train.rounds",
        "adapter.method",
        "lora",
        "--set seed",
    )


# ── mistakes in weights and data ──────────────────────────────────────────────────────────────────
def csv_cell(text: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        lines = (place / "south.csv").read_text().splitlines()
        lines[4] = ",".join([lines[4].split(",")[0], text, *lines[4].split(",")[2:]])
        (place / "south.csv").write_text("\n".join(lines) + "\n")

    return change


def label(text: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        lines = (place / "west.csv").read_text().splitlines()
        lines[7] = ",".join([*lines[7].split(",")[:3], text])
        (place / "west.csv").write_text("\n".join(lines) + "\n")

    return change


def without_column(place: Path) -> None:
    lines = [line.split(",") for line in (place / "south.csv").read_text().splitlines()]
    (place / "south.csv").write_text(
        "".join(",".join([line[0], *line[2:]]) + "\n" for line in lines)
    )


def weights(write: Callable[[Path], Any], name: str = "w.safetensors") -> Callable[[Path], None]:
    def change(place: Path) -> None:
        write(place / name)
        set_weights(place, name)

    return change


def set_weights(place: Path, name: str) -> None:
    """Name weights, which bring scales of their own."""
    edit(place / "plan.yaml", "name: mlp,", f"name: mlp, weights: {name},")
    edit(place / "plan.yaml", "  ranges: [{columns: [a, b, c], low: -3, high: 4}]\n", "")


def other_network(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3, 3)}, path)


def evil(path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (path.with_name("ran"),))

    path.write_bytes(pickle.dumps(Evil(), protocol=2))


def sets(old: str, new: str) -> Callable[[Path], None]:
    return lambda place: edit(place / "plan.yaml", old, new)


DATA: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "no weights": (
        lambda place: set_weights(place, "nowhere.safetensors"),
        ("nowhere.safetensors",),
    ),
    "junk weights": (
        weights(lambda path: path.write_bytes(b"junk" * 100)),
        ("w.safetensors", "damaged"),
    ),
    "empty weights": (weights(lambda path: path.write_bytes(b"")), ("w.safetensors",)),
    "other weights": (weights(other_network, "w.pth"), ("w.pth",)),
    "weights that run code": (weights(evil, "w.pth"), ("w.pth", "code")),
    "no data": (lambda p: (p / "south.csv").unlink(), ("south.csv",)),
    "binary table": (lambda p: (p / "south.csv").write_bytes(bytes(range(256))), ("south.csv",)),
    "empty table": (lambda p: (p / "south.csv").write_text(""), ("south.csv",)),
    "text in a cell": (csv_cell("old"), ("south.csv:5", "'b'", "'old'")),
    "infinity in a cell": (csv_cell("inf"), ("south.csv:5", "'b'", "'inf'")),
    "NaN in a cell": (csv_cell("nan"), ("south.csv:5", "'b'", "'nan'")),
    "a column that one hospital lacks": (without_column, ("south.csv:1", "'b'")),
    "a label outside the list": (label("2"), ("west.csv:8", "2")),
    "no label": (label(""), ("west.csv:8", "target")),
    "too few classes": (sets("[no, yes]", "[no, yes, maybe]"), ("maybe", "task.classes")),
    "two rows": (
        lambda p: (p / "south.csv").write_text("a,b,c,target\n1,2,3,0\n4,5,6,1\n"),
        ("south.csv", "min_examples"),
    ),
    "no simulation": (sets("simulation:", "# simulation:"), ("simulation",)),
    "targets that match nothing": (sets("rank: 2", "rank: 2, targets: [layer9]"), ("layer9",)),
    "an adapter that the backbone cannot take": (
        sets("method: lora, rank: 2", "method: bottleneck, targets: [layers.0.relu]"),
        ("layers.0.relu",),
    ),
    "images for a table": (
        sets("[north.csv, south.csv, west.csv]", "[spots.npz, west.csv]"),
        ("spots.npz", "tabular"),
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_input_that_is_wrong(place, command, case):
    """A traceback, a message that does not say where, a run's folder with nothing in it, or a
    changed input.
    """
    spoil, words = DATA[case]
    spoil(place)
    before = everything(place)
    refuse(place, command("simulate", "plan.yaml", "--out", "run"), *words)
    assert everything(place) == before
    assert not (place / "ran").exists()
    assert not (place / "run").exists()


def test_images_that_are_wrong(place, command):
    """As above, for archives of images."""
    content = dict(np.load("spots.npz"))
    refuse(
        place,
        command("simulate", "images.yaml", "--set", "backbone.name=reznet18"),
        "reznet18",
        "resnet18",
    )
    for words, arrays in (
        (("spots.npz", "label"), content | {"labels": np.full(60, 5)}),
        (("spots.npz",), {"pictures": content["images"]}),
        (("spots.npz",), content | {"labels": content["labels"][:7]}),
        (("simulation.nodes", "min_examples"), {key: array[:12] for key, array in content.items()}),
    ):
        np.savez("spots.npz", **arrays)  # pyright: ignore[reportArgumentType]
        refuse(place, command("simulate", "images.yaml", "--out", "run"), *words)
    (place / "spots.npz").write_bytes(b"PK\x03\x04 cut short")
    refuse(place, command("simulate", "images.yaml", "--out", "run"), "spots.npz")
    assert not (place / "run").exists()


# ── mistakes on the command line ──────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "pnemonia"], ["pnemonia", "pneumonia"]),
        (["simulate", "plan.yaml", "--engine", "warp"], ["--engine", "warp", "inprocess"]),
        (["simulate", "plan.yaml", "--baselines", "alone,luck"], ["--baselines", "luck", "pooled"]),
        (["simulate", "plan.yaml", "--resume"], ["--resume", "--out"]),
        (["simulate", "plan.yaml", "--out", "void", "--resume"], ["void", "--resume"]),
        (["simulate", "plan.yaml", "--set", "train.rounds"], ["--set train.rounds", "key=value"]),
        (["simulate", "plan.yaml", "--set", "train.ruonds=3"], ["train.ruonds", "rounds"]),
        (["simulate", "plan.yaml", "--out", "full"], ["--out full", "not empty"]),
        (["simulate", "plan.yaml", "--out", "full", "--seeds", "2"], ["--out full", "not empty"]),
        (["simulate", "plan.yaml", "--out", "plan.yaml"], ["--out plan.yaml", "file"]),
        (["simulate", "plan.yaml", "--out", "plan.yaml", "--seeds", "2"], ["--out plan.yaml"]),
        (["simulate", "plan.yaml", "--out", "plan.yaml/below"], ["--out plan.yaml/below", "file"]),
        (
            ["simulate", "plan.yaml", "--out", "/proc/below"],
            ["--out /proc/below", "cannot be written"],
        ),
        (["pretrain", "plan.yaml"], ["pretrain"]),
        (["predict", "nowhere", "north.csv"], ["nowhere"]),
        (["nearest", "nowhere", "north.csv", "--among", "south.csv"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["report", "full"], ["full"]),
    ],
)
def test_a_wrong_command_line(place, command, arguments, words):
    """A traceback, or a folder or file written for nothing."""
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("years of work")
    before = everything(place)
    refuse(place, command(*arguments), *words)
    assert everything(place) == before


def test_an_unknown_verb_or_option(place, command):
    """A traceback, or status 0."""
    for line in (
        "simulat plan.yaml",
        "simulate plan.yaml --rounds 3",
        "simulate",
        "simulate plan.yaml --seeds 0",
        "simulate plan.yaml --workers x",
        "predict",
    ):
        done = command(*line.split())
        assert done.code == 2
        assert "Traceback" not in done.err
        assert "fedgraft" in done.err


# ── input that is odd, and right ──────────────────────────────────────────────────────────────────
def test_odd_data_that_works(place, command):
    """One class at a hospital, two rows, an empty column, a batch larger than the data: it runs all
    the same.
    """
    lines = (place / "north.csv").read_text().splitlines()
    (place / "north.csv").write_text(
        "\n".join(line for line in lines if not line.endswith(",1")) + "\n"
    )
    (place / "south.csv").write_text("a,b,c,target\n1,2,3,0\n4,5,6,1\n")
    cells = [line.split(",") for line in (place / "west.csv").read_text().splitlines()]
    (place / "west.csv").write_text(
        "a,b,c,target\n" + "".join(f"{a},,{c},{t}\n" for a, _, c, t in cells[1:])
    )
    edit(place / "plan.yaml", "kind: files", "kind: files, min_examples: 1")
    done = command(
        "simulate",
        "plan.yaml",
        "--out",
        "run",
        "--set",
        "train.batch_size=1000",
        "--baselines",
        "alone",
    )
    assert done.code == 0, done.err
    assert "batch_size" in done.out  # it is said once that no node fills a batch
    result = json.loads((place / "run" / "result.json").read_text())
    assert result["status"] == "completed"
    assert set(result["final"]["nodes"]) == {"north", "south", "west"}
    assert (
        result["final"]["nodes"]["north"]["auroc"] is None
    )  # one class: undefined, not 0 and not NaN


def test_what_a_run_says_and_leaves(place, command):
    """A table without the shared model, files that other tools rely on, leftovers of writing, or
    JSON that is none.
    """
    done = command("simulate", "plan.yaml", "--out", "run", "--baselines", "alone,head")
    assert done.code == 0, done.err
    for word in ("shared model", "head only", "alone, mean", "accuracy", "run"):
        assert word in done.out
    assert {path.name for path in (place / "run").iterdir()} >= {
        "plan.yaml",
        "result.json",
        "metrics.jsonl",
        "shared_model",
        "checkpoints",
        "report.html",
        "labels_by_node.png",
    }
    assert not [path for path in place.rglob("*") if ".part" in path.name]
    assert "batch_size" not in done.out
    page = (place / "run" / "report.html").read_text()
    assert "://" not in page.replace("http://www.w3.org", "")  # opens without a network
    assert command("report", "run").code == 0

    done = command(
        "simulate", "run/plan.yaml", "--out", "again", "--json"
    )  # the plan with its defaults is a plan
    result = json.loads(done.out)
    assert result["final"] == json.loads((place / "run" / "result.json").read_text())["final"]
    done = command("simulate", "plan.yaml", "--out", "seeds", "--seeds", "2", "--json")
    assert [each["seed"] for each in json.loads(done.out)["seeds"]] == [0, 1]


def test_validate_prints_what_it_promises(command):
    """Output that is no JSON, a hash that changes with the way a plan is written, or a key without
    its meaning.
    """
    said = json.loads(command("validate", "digits", "--json").out)
    assert said["plan_hash"].startswith("sha256:")
    assert said["plan"]["task"]["labels"] == [5, 6, 7, 8, 9]
    assert said["plan_hash"] in command("validate", "digits", "--set", "seed=7").out
    assert said["plan_hash"] not in command("validate", "digits", "--set", "seed=8").out
    keys = command("validate", "--keys").out
    for key in ("train.rounds", "aggregate.min_nodes", "simulation.partition.alpha"):
        assert key in keys
    without = command("validate")
    assert without.code == 2
    assert "no plan is named" in without.err


# ── predict ───────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def runs(place, command) -> Path:
    """Two finished runs: `tables` and `images`."""
    for plan, out in (("plan.yaml", "tables"), ("images.yaml", "images")):
        done = command("simulate", plan, "--out", out)
        assert done.code == 0, done.err
    return place


def rows_of(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


def test_predict_on_every_kind_of_input(runs, command):
    """An input that is not read, lines that are lost, or probabilities that are none."""
    import pandas
    from PIL import Image

    folder = runs / "scans"
    (folder / "deeper").mkdir(parents=True)
    for number, size in enumerate([(8, 8), (31, 17), (64, 64)]):
        shade = np.full((*size, 3), 80 * number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number}.png")
        Image.fromarray(shade[..., 0]).save(folder / "deeper" / f"{number}.jpg")
    pandas.read_csv(runs / "west.csv").to_parquet(runs / "west.parquet")
    for run, given, count in (
        ("images", "scans/1.png", 1),
        ("images", "scans", 6),
        ("images", "spots.npz", 60),
        ("images/shared_model", "spots.npz", 60),
        ("tables", "west.csv", 40),
        ("tables", "west.parquet", 40),
    ):
        done = command("predict", run, given, "--out", "found.csv")
        assert done.code == 0, done.err
        head, *rows = rows_of(runs / "found.csv")
        classes = ["no", "yes"] if run == "tables" else ["dark", "light"]
        assert head == ["input", "class", *(f"p_{name}" for name in classes)]
        assert len(rows) == count
        for row in rows:
            numbers = [float(value) for value in row[2:]]
            assert sum(numbers) == pytest.approx(1, abs=1e-5)
            assert row[1] == classes[int(np.argmax(numbers))]
    assert not list(runs.glob("*.part"))


def test_predict_meets_mistakes(runs, command):
    """A traceback, a half-written CSV, or an old one lost."""
    (runs / "found.csv").write_text("an older result")
    (runs / "empty").mkdir()
    (runs / "bad.png").write_bytes(b"\x89PNG no more")
    (runs / "bad.npz").write_bytes(b"no archive")
    np.savez("words.npz", images=np.array(["a", "b"]))
    np.savez("cubes.npz", images=np.zeros((2, 4, 4, 4, 3), np.uint8))
    shutil.copytree("images", "damaged")
    (runs / "damaged" / "shared_model" / "adapter_model.safetensors").write_bytes(b"junk")
    shutil.copytree("images", "other")
    shutil.copy(
        "tables/shared_model/backbone.safetensors", "other/shared_model/backbone.safetensors"
    )
    (runs / "short.csv").write_text("a,b\n1,2\n")
    (runs / "text.csv").write_text("a,b,c\n1,2,high\n")
    for arguments, words in (
        (["images", "west.csv"], ["west.csv", "image"]),
        (["tables", "spots.npz"], ["spots.npz", "csv"]),
        (["tables", "short.csv"], ["short.csv:1", "'c'"]),
        (["tables", "text.csv"], ["text.csv:2", "'high'"]),
        (["images", "gone.png"], ["gone.png"]),
        (["images", "empty"], ["empty"]),
        (["images", "bad.png"], ["bad.png"]),
        (["images", "plan.yaml"], ["plan.yaml"]),
        (["images", "bad.npz"], ["bad.npz"]),
        (["images", "words.npz"], ["words.npz"]),
        (["images", "cubes.npz"], ["cubes.npz"]),
        (["damaged", "spots.npz"], ["damaged"]),
        (["other", "spots.npz"], ["other"]),
        (["empty", "spots.npz"], ["empty"]),
        (["images", "spots.npz", "--backbone", "gone.safetensors"], ["gone.safetensors"]),
    ):
        refuse(runs, command("predict", *arguments, "--out", "found.csv"), *words)
        assert (runs / "found.csv").read_text() == "an older result"
    for out in ("plan.yaml/found.csv", "empty", "no/such/folder/found.csv"):
        refuse(runs, command("predict", "images", "spots.npz", "--out", out), out)
    assert not list(runs.rglob("*.part"))


def test_a_question_that_nobody_answers_approves_nothing(place, command, monkeypatch) -> None:
    """A traceback where an approval is asked for in a script, without a terminal; or worse, a
    yes.
    """
    assert command("partition", "plan.yaml", "--out", "nodes").code == 0
    (node,) = list(Path("nodes").glob("node-0.yaml"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = command("node", "approve", "plan.yaml", "--node", node)
    assert done.code == 1
    assert "not approved; nothing was changed" in done.err
    assert "Traceback" not in done.err
    assert not list(Path().rglob("approvals.jsonl"))


# ── a process of its own ──────────────────────────────────────────────────────────────────────────
def test_the_installed_command(place, installed):
    """A command that works in tests only."""
    done = installed(
        "simulate", "plan.yaml", "--set", "adapter.targets=[layer9]", "--out", "run", cwd=place
    )
    refuse(place, done, "layer9")
    assert installed("simulat", cwd=place).code == 2
    assert installed("--help", cwd=place).code == 0


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished_and_says_how_to_go_on(place, process, program):
    """Work lost to Ctrl-C, a traceback, a process left behind, or a command to go on that does not
    work.
    """
    sets = ["--set", "train.rounds=60", "--set", "task.classes=[no, yes indeed]"]
    started = subprocess.Popen(
        [*program, "simulate", "plan.yaml", *sets, "--out", "cut", "--baselines", "head"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests in the background ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines = place / "cut" / "metrics.jsonl"
    while started.poll() is None and (not lines.exists() or lines.read_text().count("\n") < 9):
        time.sleep(0.05)
    assert started.poll() is None, started.communicate()
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert "Traceback" not in out + err
    done = json.loads((place / "cut" / "result.json").read_text())
    assert done["status"] == "interrupted"
    assert 2 <= done["rounds_done"] < 60
    assert f"{done['rounds_done']} finished rounds are kept in cut" in err
    assert (place / "cut" / "shared_model" / "MODEL_CARD.md").is_file()

    again = err.partition("go on: ")[2].splitlines()[0]
    resumed = process(*shlex.split(again)[1:], cwd=place)
    assert resumed.code == 0, resumed.err
    assert "head only" in resumed.out
    assert process("simulate", "plan.yaml", *sets, "--out", "whole", cwd=place).code == 0
    models = [
        (place / run / "shared_model" / "adapter_model.safetensors").read_bytes()
        for run in ("cut", "whole")
    ]
    assert models[0] == models[1]


@pytest.mark.slow
def test_a_full_disk(place, process):
    """A traceback, finished rounds lost, or files that are half there, when the disk is full in the
    middle of a run.
    """
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this machine does not give")
    try:
        done = process(
            "simulate", "plan.yaml", "--set", "train.rounds=60", "--out", "disk/run", cwd=place
        )
        assert done.code == 1, done.err
        assert "Traceback" not in done.err
        assert "No space left" in done.err
        assert "finished rounds are kept in disk/run" in done.err
        assert "→" in done.err
        whole = [
            path
            for path in (disk / "run").rglob("*")
            if path.is_file() and ".part" not in str(path)
        ]
        for path in whole:
            if path.suffix == ".json":
                json.loads(path.read_text())
        assert list((disk / "run" / "checkpoints").glob("round-????"))
        shutil.copytree(disk / "run", place / "saved")
    finally:
        subprocess.run(["umount", disk], check=True)
    resumed = process(
        "simulate",
        "plan.yaml",
        "--set",
        "train.rounds=60",
        "--out",
        "saved",
        "--resume",
        cwd=place,
    )
    assert resumed.code == 0, resumed.err

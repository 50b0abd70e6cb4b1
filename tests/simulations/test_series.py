"""A federation on signals, from three recorders to predictions: in one round, with LoRA, private.

The truth is known: two classes whose waves differ in frequency. Each hospital records at a rate of
its own, and one of them writes audio.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy.io import wavfile

import fedgraft
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.series import Signal
from tests.huggingface_folders import write_audio_folder

# Hz
FREQUENCIES = {"slow": 3.0, "fast": 4.5}
SPREAD = 0.5
RATES = {"north": 50, "south": 80, "west": 125}
SECONDS = 4
PLAN: dict[str, Any] = {
    "name": "waves",
    "task": {
        "kind": "series-classification",
        "classes": ["slow", "fast"],
        "labels": ["slow", "fast"],
        "target": "pace",
    },
    "backbone": {
        "name": "series-resnet",
        "signal": {"channels": ["pulse"], "rate": 50, "samples": 128},
    },
    "adapter": {"method": "head"},
    "train": {"method": "closed-form"},
    "simulation": {
        "data": ["north.csv", "south.npz", "west/list.csv"],
        "partition": {"kind": "files"},
        "test_fraction": 0.3,
    },
}


def wave(kind: str, rate: int, seed: int) -> np.ndarray:
    """One record: a wave of a class, of any phase and loudness, in noise; a few are in between."""
    rng = np.random.default_rng(seed)
    times = np.arange(SECONDS * rate) / rate
    phase = rng.uniform(0, 2 * np.pi)
    pace = FREQUENCIES[kind] + rng.normal(scale=SPREAD)
    clean = np.sin(2 * np.pi * pace * times + phase)
    return rng.uniform(0.1, 0.4) * (clean + 0.3 * rng.normal(size=len(times)))


def records(name: str, count: int = 80) -> list[tuple[str, np.ndarray]]:
    """What a hospital has: of each record its class and its samples."""
    first = 1000 * list(RATES).index(name)
    kinds = [("slow", "fast")[number % 2] for number in range(count)]
    return [(kind, wave(kind, RATES[name], first + at)) for at, kind in enumerate(kinds)]


def write_long(path: Path, rows: list[tuple[str, np.ndarray]], rate: int) -> None:
    parts = []
    for number, (kind, values) in enumerate(rows):
        part = pandas.DataFrame({"pulse": values, "time": np.arange(len(values)) / rate})
        parts.append(part.assign(record=f"r{number}", pace=kind, patient=f"p{number}"))
    pandas.concat(parts).to_csv(path, index=False)


def write_audio(folder: Path, rows: list[tuple[str, np.ndarray]], rate: int) -> None:
    """Audio, of which every other file is in stereo."""
    folder.mkdir(parents=True)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        for number, (kind, values) in enumerate(rows):
            samples = (values * 2**14).astype(np.int16)
            if number % 2:
                samples = np.stack([samples, samples // 2], 1)
            wavfile.write(folder / f"{number}.wav", rate, samples)
            writer.writerow([f"{number}.wav", kind, f"w{number}"])


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The signals of three hospitals, and new ones."""
    folder = tmp_path_factory.mktemp("signals")
    write_long(folder / "north.csv", records("north"), RATES["north"])
    south = records("south")
    np.savez(
        folder / "south.npz",
        series=np.stack([values for _, values in south])[:, None],
        labels=np.array([kind for kind, _ in south]),
        patient=np.arange(len(south)),
        rate=RATES["south"],
    )
    write_audio(folder / "west", records("west"), RATES["west"])
    new = [(kind, wave(kind, 200, 9000 + at)) for at, kind in enumerate(FREQUENCIES)]
    for kind, values in new:
        path = folder / "new" / f"{kind}.wav"
        path.parent.mkdir(exist_ok=True)
        wavfile.write(path, 200, (values * 2**14).astype(np.int16))
    write_long(folder / "new.csv", new, 200)
    public = [("fast" if at % 2 else "slow", at) for at in range(200)]
    np.savez(
        folder / "public.npz",
        series=np.stack([wave(kind, 50, 50_000 + at) for kind, at in public])[:, None],
        labels=np.array([kind for kind, _ in public]),
        rate=50,
    )
    return folder


@pytest.fixture(autouse=True)
def here(sites: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(sites)
    return sites


def simulate(out: str, **changes: Any) -> fedgraft.Run:
    run = fedgraft.simulate(PLAN, set=changes, out=out, progress=False)
    assert isinstance(run, fedgraft.Run)
    return run


def must_know_the_new_ones(run: fedgraft.Run) -> None:
    predicted = run.shared_model.predict("new")
    assert predicted["class"].to_dict() == {f"{kind}.wav": kind for kind in FREQUENCIES}


def test_one_round_over_all_depths(here: Path) -> None:
    """The shortest way from signals of three hospitals to a model of all of them, and back from its
    folder to a record of a fourth.
    """
    run = simulate("one")
    assert run.metrics.loc["shared model", "accuracy"] > 0.85
    must_know_the_new_ones(run)
    model = run.shared_model
    of_file = model.predict("new/fast.wav")
    assert float(of_file["p_fast"].iloc[0]) == float(model.predict("new").loc["fast.wav", "p_fast"])
    assert model.predict("new.csv")["class"].to_dict() == {"r0": "slow", "r1": "fast"}
    assert len(model.predict("south.npz")) == 80
    assert len(model.predict(torch.randn(2, 1, 300))) == 2
    values = torch.from_numpy(wave("fast", 400, 1)).float()[None]
    assert list(model.predict([Signal(values, 400.0)])["class"]) == ["fast"]
    (here / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"this model takes a \.wav"):
        model.predict("a.txt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "lora",
        pytest.param("scale-shift", marks=pytest.mark.exhaustive),
        pytest.param("bottleneck", marks=pytest.mark.exhaustive),
    ],
)
def test_adapters_train_by_steps(method: str) -> None:
    """Signals through the steps of training, and kept activations of three axes."""
    train = {"rounds": 4, "batch_size": 8, "optimizer": {"lr": 0.01}, "finish": "closed-form"}
    run = simulate(method, adapter={"method": method, "targets": "last-block"}, train=train)
    assert run.metrics.loc["shared model", "accuracy"] > 0.85
    must_know_the_new_ones(run)


@pytest.mark.parametrize(
    ("out", "changes"),
    [
        ("private-sums", {"train": {"method": "closed-form"}}),
        (
            "private-steps",
            {"train": {"rounds": 1, "batch_size": 8}, "adapter": {"method": "lora", "rank": 2}},
        ),
    ],
)
def test_privacy_by_example_can_be_had(out: str, changes: dict[str, Any]) -> None:
    """Sums with noise, and steps with noise, on signals; every record of its own patient."""
    privacy = {"mode": "sample", "target_epsilon": 8, "delta": 1e-3}
    run = simulate(out, privacy=privacy, **changes)
    assert '"epsilon"' in run.result.model_dump_json()
    assert set(run.shared_model.predict("new")["class"]) <= set(FREQUENCIES)


def test_weights_are_made_of_public_signals(here: Path) -> None:
    """A backbone of another rate than the plan's, or one that learnt nothing."""
    weights = "waves.safetensors"
    made = {"data": "public.npz", "labels": ["slow", "fast"], "epochs": 2, "batch_size": 20}
    plan = PLAN | {"backbone": PLAN["backbone"] | {"weights": weights}, "pretrain": made}
    told = fedgraft.pretrain(plan)
    # two kinds of signal; one that learnt nothing is right for half
    assert told["accuracy"] > 0.75
    run = fedgraft.simulate(plan, out="pretrained", progress=False)
    assert isinstance(run, fedgraft.Run)
    assert run.metrics.loc["shared model", "accuracy"] > 0.85
    must_know_the_new_ones(run)
    with pytest.raises(UserError, match=r"trained with rate: 50\.0"):
        fedgraft.simulate(plan, set={"backbone.signal.rate": 100}, out="wrong", progress=False)


def test_wav2vec_2_out_of_a_folder(here: Path) -> None:
    """A model's folder that only the coordinator has, on signals of three rates."""
    pytest.importorskip("transformers")
    write_audio_folder(here / "wav2vec2", rate=50)
    backbone = {"name": "huggingface-audio", "weights": "./wav2vec2"}
    run = simulate("heard", backbone=PLAN["backbone"] | backbone)
    # random values of 12 channels
    assert run.metrics.loc["shared model", "accuracy"] > 0.6
    assert set(run.shared_model.predict("new")["class"]) <= set(FREQUENCIES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.image_size": 64}, "a length in samples"),
        ({"backbone.signal": None}, r"(?s)series need it.*signal: \{channels"),
        ({"train.augment": "flip"}, "flip is for images"),
        ({"backbone.name": "resnet18"}, "cannot take the data"),
        ({"backbone.name": "series-resnet18"}, "no backbone is called|cannot take"),
        ({"backbone.signal.samples": 10**9}, "samples"),
        ({"backbone.signal.channels": ["a", "a"]}, "channels"),
        ({"backbone.signal.channels": ["pulse", "breath"]}, "'breath"),
        ({"task.columns": ["age"]}, r"named by `backbone\.signal`"),
    ],
)
def test_a_plan_that_cannot_be_says_what_to_write(change: dict[str, Any], words: str) -> None:
    """A traceback from within torch, an hour later."""
    with pytest.raises(UserError, match=words):
        simulate("wrong", **change)

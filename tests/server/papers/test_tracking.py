"""What TensorBoard and MLflow are given, read back with their own packages."""

from __future__ import annotations

import logging

import pytest

from fedgraft.common.errors import UserError
from fedgraft.common.plan.plan_file import load_plan
from fedgraft.server.papers.tracking import Tracker, points
from fedgraft.server.site.server_file import Tracking

LINES = [
    {
        "round": 1,
        "node": "a",
        "bytes": {"down": 10, "up": 20},
        "train": {"loss": 0.5, "seconds": 2.0},
        "received": {"accuracy": 0.5, "auroc": None, "examples": 10},
    },
    {"round": 1, "node": "b", "bytes": {"down": 10, "up": 0}, "refused": "no answer"},
    {"round": 1, "node": "a", "final": {"accuracy": 0.9, "examples": 10}},
    {"round": 1, "node": "b", "final": {"accuracy": 0.6, "examples": 20}},
]


def test_points_are_at_the_round_that_they_measure():
    """A curve that is one round late: `received` is of the model before the round; or a mean that
    ignores sizes.

    Mean at the end: (0.9 · 10 + 0.6 · 20) / 30 = 0.7.
    """
    found = {(name, round_): value for name, value, round_ in points(LINES)}
    assert found["accuracy/a", 0] == 0.5
    assert found["accuracy/a", 1] == 0.9
    assert found["accuracy/mean", 1] == pytest.approx(0.7)
    assert found["refused/b", 1] == 1.0
    assert found["train/loss/a", 1] == 0.5
    assert found["bytes/up/a", 1] == 20.0
    assert not [name for name, _ in found if name.startswith("auroc")]


def written(tracking: Tracking, folder) -> None:
    """A run whose lines arrive in three pieces."""
    tracker = Tracker.open(tracking, load_plan("digits"), folder / "run-1")
    for count in (1, 3, 4):
        tracker.write(LINES[:count])
    tracker.close()


def test_tensorboard_reads_them(tmp_path):
    """Points that are written twice, or not at all."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written(Tracking(tensorboard=str(tmp_path / "boards")), tmp_path)
    board = accumulator.EventAccumulator(str(tmp_path / "boards" / "run-1"))
    board.Reload()
    assert [(event.step, round(event.value, 3)) for event in board.Scalars("accuracy/a")] == [
        (0, 0.5),
        (1, 0.9),
    ]
    assert [event.value for event in board.Scalars("train/seconds/a")] == [2.0]


@pytest.mark.slow
def test_mlflow_reads_them(tmp_path):
    """A run that MLflow does not show as finished, or without the plan's identity."""
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    written(Tracking(mlflow=uri), tmp_path)
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fedgraft")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run-1"
    assert run.data.params["plan_hash"].startswith("sha256:")
    assert [
        (point.step, point.value)
        for point in client.get_metric_history(run.info.run_id, "accuracy/a")
    ] == [
        (0, 0.5),
        (1, 0.9),
    ]


def test_what_cannot_be_opened_is_told_in_words(tmp_path):
    """MLflow's traceback, after the run was submitted."""
    with pytest.raises(UserError, match=r"tracking.mlflow: 'file:.*' cannot be used"):
        written(Tracking(mlflow=f"file:{tmp_path}"), tmp_path)


def test_a_tracker_that_fails_does_not_stop_the_run(caplog):
    """A full disk at TensorBoard's folder, and the federation is followed no more."""

    class Broken:
        calls = 0

        def point(self, name: str, value: float, round_: int) -> None:
            self.calls += 1
            raise OSError("No space left on device")

        def close(self) -> None:
            raise OSError("No space left on device")

    sink = Broken()
    tracker = Tracker([sink])
    with caplog.at_level(logging.WARNING):
        tracker.write(LINES[:1])
        tracker.write(LINES)
        tracker.close()
    assert sink.calls == 1
    assert "Broken is dropped: No space left" in caplog.text

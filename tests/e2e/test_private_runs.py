"""`fedgraft simulate pneumonia` with an ε, as people type it: what it spends, and that it cannot be
spent twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting as google
import pytest
from dp_accounting.pld import PLDAccountant

import fedgraft.client.round
from fedgraft.client.privacy.ledger import Ledger

ASKED = ("--set", "privacy.mode=sample", "--set", "privacy.target_epsilon=3")
QUICK = (
    "--set",
    "adapter.method=head",
    "--set",
    "train.rounds=2",
    "--baselines",
    "none",
)  # the same way, in a tenth of the time
CEILING = (
    "--policy",
    "dp_required=true",
    "--policy",
    "max_epsilon_total=3",
    "--policy",
    "max_delta=1e-5",
)


@pytest.fixture
def pneumonia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder from which the ready plan finds its data; skips where there is none."""
    data = Path(
        os.environ.get("FEDGRAFT_DATA", Path(__file__).parents[3] / "shared" / "data")
    ).absolute()
    if not (data / "pneumoniamnist.npz").is_file():
        pytest.skip(f"{data} has no pneumoniamnist.npz")
    monkeypatch.setenv("FEDGRAFT_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def google_epsilon(history: list[list[float]], delta: float) -> float:
    """ε of a node's whole history by Google's accountant (privacy loss distributions,
    pessimistic).
    """
    accountant = PLDAccountant()
    for sigma, rate, steps in history:
        step = google.PoissonSampledDpEvent(rate, google.GaussianDpEvent(sigma))
        accountant.compose(google.SelfComposedDpEvent(step, int(steps)))
    return float(accountant.get_epsilon(delta))


def spent_of(run: Path, most: float) -> dict[str, Any]:
    """What every node spent, checked by the other accountant."""
    privacy = json.loads((run / "result.json").read_text())["privacy"]
    assert len(privacy) == 8
    for entry in privacy.values():
        assert entry["delta"] == 1e-5
        assert (entry["unit"], entry["neighbours"]) == ("example", "one example added or removed")
        assert google_epsilon(entry["history"], entry["delta"]) <= most
        assert 0.98 * most < entry["epsilon"] <= most
    return privacy


@pytest.mark.slow
def test_every_node_keeps_its_epsilon_and_a_second_run_is_refused(
    pneumonia: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ε that is counted for a round, or lost with the process; a ceiling that is looked at after
    training.
    """
    arguments = ("simulate", "pneumonia", *ASKED, *QUICK, "--ledger", "ledgers", *CEILING)
    done = command(*arguments, "--out", "one")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "at δ = 1e-05 at every node, for one example added or removed" in said
    assert "ledger: ledgers" in said
    spent = spent_of(pneumonia / "one", 3.0)
    page = (pneumonia / "one" / "report.html").read_text()
    assert "What is not protected" in page
    assert "one example added or removed" in page
    ledgers = {path.stem: Ledger(path) for path in sorted((pneumonia / "ledgers").glob("*.sqlite"))}
    assert ledgers.keys() == spent.keys()
    before = {name: ledger.book().lines for name, ledger in ledgers.items()}

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(fedgraft.client.round, "train_privately", never)
    for number, again in enumerate(
        [(), ("--set", "seed=8", "--set", "simulation.partition.kind=iid")]
    ):
        done = command(*arguments, *again, "--out", f"again-{number}")
        assert done.code == 1
        assert "Traceback" not in done.err
        assert {name: ledger.book().lines for name, ledger in ledgers.items()} == before
        assert all(ledger.verify() == [] for ledger in ledgers.values())
    assert "would pass" in done.err  # the same records, dealt otherwise


@pytest.mark.exhaustive
def test_the_plan_as_written(pneumonia: Path, command: Callable[..., Any]) -> None:
    """LoRA on every convolution, ten rounds; some minutes."""
    done = command("simulate", "pneumonia", *ASKED, "--out", "run")
    assert done.code == 0, done.err
    spent_of(pneumonia / "run", 3.0)

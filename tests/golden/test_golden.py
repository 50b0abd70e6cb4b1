"""What e7a320a computed and wrote: later releases compute the same bits, open its files, and count
its privacy budget.

`results.json` was recorded by `record.py` on one kind of processor; elsewhere record it from a
worktree of e7a320a: `python tests/golden/record.py FILE -- python WORKTREE/fedgraft.py`. What was
recorded anew since, and why, stands at its end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

import fedgraft
from fedgraft.client.node.node_file import load_node
from fedgraft.client.privacy.ledger import Ledger
from fedgraft.common.errors import RunFailed, UserError
from fedgraft.common.plan.plan_file import find_plan, load_plan
from fedgraft.simulations.engines.engine import EngineOptions, nodes_on_disk, simulate
from fedgraft.simulations.engines.simulated_node import load_simulated_node
from fedgraft.simulations.pretraining import pretrain
from tests.golden import record

RECORDED = Path(__file__).parent / "e7a320a"
GOLDEN = json.loads((RECORDED / "results.json").read_text())
LONG = (
    "pneumonia",
    "digits",
    "heart",
    "digits-sample-lora",
    "pneumonia-sample",
    "pneumonia-two-rounds",
)
PRIVATE = ("privacy.mode=sample", "privacy.noise_multiplier=1.5", "train.rounds=2")
pytestmark = pytest.mark.slow


def on_another_machine() -> str:
    """Return what differs from the machine that recorded the bits; empty where nothing does."""
    recorded = GOLDEN["machine"]
    here = record.machine()
    differing = []
    if recorded["processor"] != here["processor"]:
        differing.append(f"processor {here['processor']}, not {recorded['processor']}")
    for name in ("torch", "numpy", "opacus", "scikit-learn"):
        if recorded["versions"][name] != here["versions"][name]:
            differing.append(f"{name} {here['versions'][name]}")
    return ", ".join(differing)


@pytest.fixture(autouse=True, scope="module")
def threads_as_recorded(one_thread_each: threadpool_limits) -> Iterator[None]:
    """As many threads as NumPy takes by itself: how a product is split shows in its last bits."""
    one_thread_each.restore_original_limits()
    yield
    threadpool_limits(1, "blas")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder with the backbones that the cases need; the current folder."""
    if difference := on_another_machine():
        pytest.skip(f"other bits are to be expected here: {difference}")
    folder = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FEDGRAFT_DATA", str(record.DATA))
        for name in record.BACKBONES:
            if name == "digits" or record.DATA.is_dir():
                pretrain(load_plan(name), find_plan(name))
        yield folder


def read_words(words: Sequence[str]) -> tuple[list[str], dict[str, float], EngineOptions]:
    """Words of `fedgraft simulate` → overrides, policy, engine."""
    overrides: list[str] = []
    policy: dict[str, float] = {}
    rest = iter(words)
    together = False
    workers = None
    for word in rest:
        if word == "--set":
            overrides.append(next(rest))
        elif word == "--policy":
            key, _, value = next(rest).partition("=")
            policy[key] = float(value)
        elif word == "--together":
            together = True
        elif word == "--workers":
            workers = int(next(rest))
    return overrides, policy, EngineOptions(together=together, workers=workers)


def cases() -> list:
    marked = []
    for name in record.CASES:
        marks = [pytest.mark.exhaustive] if name in LONG else []
        marked.append(pytest.param(name, marks=marks))
    return marked


@pytest.mark.parametrize("case", cases())
def test_the_same_bits_as_e7a320a(case: str, place: Path) -> None:
    """Another hash of adapter or backbone, other metrics, another ε, or another plan's hash."""
    plan_name, *words = record.CASES[case]
    if plan_name != "digits" and not record.DATA.is_dir():
        pytest.skip(f"{record.DATA} is not here")
    overrides, policy, options = read_words(words)
    plan = load_plan(plan_name, overrides)
    out = place / case
    with nodes_on_disk(plan, find_plan(plan_name), out / "ledgers", policy) as nodes:
        simulate(plan, find_plan(plan_name), out, nodes=nodes, options=options)
    assert record.essence(out) == GOLDEN["cases"][case]


# ── files ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what e7a320a wrote; the current folder."""
    folder = tmp_path / "e7a320a"
    shutil.copytree(RECORDED, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_that_was_cut_off_ends_as_if_nothing_had_happened(recorded: Path) -> None:
    """A checkpoint of an earlier release that cannot be read, or another model from it."""
    if difference := on_another_machine():
        pytest.skip(f"other bits are to be expected here: {difference}")
    plan = load_plan("plan.yaml")
    with nodes_on_disk(plan, recorded / "plan.yaml") as nodes:
        options = EngineOptions(resume=True)
        simulate(plan, recorded / "plan.yaml", Path("cut"), nodes=nodes, options=options)
    adapter = Path("cut") / "shared_model" / "adapter_model.safetensors"
    expected = json.loads(Path("finished.json").read_text())
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert digest == expected["adapter_of_cut_and_finished"]
    assert (
        fedgraft.load_run("cut").result.final.model_dump(by_alias=True, exclude_unset=True)
        == (expected["final"])
    )


def test_a_finished_run_and_its_shared_model_still_open(recorded: Path) -> None:
    """A run's folder of an earlier release that the API, the page or a prediction cannot read."""
    run = fedgraft.load_run("finished")
    assert run.status == "completed"
    assert run.result.rounds_done == 3
    table = run.shared_model.predict("north.csv")
    assert len(table) == 40
    right = (table["class"] == "yes").to_numpy() == (
        fedgraft.api.load_shared_model("finished").predict("north.csv")["p_yes"] > 0.5
    ).to_numpy()
    assert right.all()


def test_a_node_file_of_a_simulation_still_opens(recorded: Path) -> None:
    """`fedgraft partition` of an earlier release wrote `seeded_noise`, which is no clause now."""
    file = recorded / "nodes" / "node-0.yaml"
    file.write_text(file.read_text().replace("PLACE", str(recorded)))
    assert load_simulated_node(file).name == "north"
    with pytest.raises(UserError, match="seeded_noise"):
        load_node(file)


@pytest.mark.parametrize("unit", ["example", "patient"])
def test_a_ledger_still_counts(recorded: Path, unit: str) -> None:
    """Records that are known by another digest would have a budget of their own, and patients would
    be spent twice.
    """
    ledgers = recorded / f"ledger-{unit}"
    before = {path.name: Ledger(path).book() for path in sorted(ledgers.glob("*.sqlite"))}
    for book in before.values():
        assert len(book.lines) == 2
        assert not book.problems
    plan = load_plan("plan.yaml", [*PRIVATE, f"privacy.unit={unit}"])
    expected = json.loads(Path("privacy.json").read_text())[unit]["again"]
    with nodes_on_disk(plan, recorded / "plan.yaml", ledgers) as nodes:
        result = simulate(plan, recorded / "plan.yaml", Path("again"), nodes=nodes)
    spent = json.loads(json.dumps(result.to_json()["privacy"]))
    for node, recorded_there in expected.items():
        # another processor's transform has other last digits
        epsilon = pytest.approx(recorded_there["epsilon"], rel=1e-9)
        assert spent[node] == {**recorded_there, "epsilon": epsilon}
    assert spent.keys() == expected.keys()

    for path in sorted(ledgers.glob("*.sqlite")):
        book = Ledger(path).book()
        assert len(book.lines) == 4
        # the same data, whose patients that release did not know: its history goes on
        latest = book.data[-1]
        assert len(book.lines_on(latest.fingerprint)) == 4

    # what the run alone takes is allowed, and with the history it is refused
    alone = max(spent["epsilon"] for spent in expected.values())
    policy = {"dp_required": True, "max_delta": 1e-5, "max_epsilon_total": 1.05 * alone}
    changed = load_plan("plan.yaml", [*PRIVATE, f"privacy.unit={unit}", "seed=3"])
    with nodes_on_disk(changed, recorded / "plan.yaml", recorded / "fresh", policy) as nodes:
        simulate(changed, recorded / "plan.yaml", Path("fresh-run"), nodes=nodes)
    with (
        nodes_on_disk(changed, recorded / "plan.yaml", ledgers, policy) as nodes,
        pytest.raises(RunFailed, match="of all that was run on this data"),
    ):
        simulate(changed, recorded / "plan.yaml", Path("refused"), nodes=nodes)
